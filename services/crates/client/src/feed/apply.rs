//! Applying a batch of events in one transaction: MLS state, plaintext, outbox and cursor together.

use wardline_domain::envelope::Generation;
use wardline_domain::{DeviceId, UserId};
use wardline_proto::convert::{ids, reject};
use wardline_proto::reason::Reason;
use wardline_proto::v1;

use super::message::Sequenced;
use super::take::{Took, unknown};
use crate::core::Step;
use crate::device_log::leaf::{self, Leaf, Standing, Stranger};
use crate::error::Error;
use crate::mls::{config, group, join};
use crate::store::conversations;
use crate::store::feed::{self, Place};
use crate::store::requests;
use crate::view::{ConversationStatus, Incoming};

/// An event with all it needs.
pub(crate) struct Prepared {
    pub(crate) cursor: Vec<u8>,
    pub(crate) previous: Vec<u8>,
    pub(crate) body: Body,
}

/// What an event says.
pub(crate) enum Body {
    Nothing,
    Message(Sequenced),
    /// With the group state of its epoch, when the server still has it: for the title.
    Welcome(v1::Welcome, Option<v1::GroupState>),
    Rejected(v1::Rejected),
    ConversationChanged(v1::ConversationChanged),
    DeviceChanged,
    KeyPackagesLow,
}

/// How far a batch was applied.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Applied {
    /// How many events.
    pub(crate) events: usize,
    /// Why not all.
    pub(crate) stopped: Option<Stopped>,
    /// The last cursor saved.
    pub(crate) cursor: Vec<u8>,
}

/// Why a batch was not applied to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stopped {
    /// The next event's `previous` is not where the device is.
    FeedGap,
    /// Messages of this conversation are missing before the next event.
    Missing(wardline_domain::ConversationId),
}

impl Step<'_> {
    /// Applies events in order, as far as they follow, and saves the cursor.
    pub(crate) fn apply(&mut self, events: &[Prepared]) -> Result<Applied, Error> {
        let mut place = feed::load(&self.tx)?;
        let mut stopped = None;
        let mut done = 0;
        for event in events {
            if event.cursor != place.cursor {
                stopped = self.apply_one(&mut place, event)?;
            }
            if stopped.is_some() {
                break;
            }
            done += 1;
        }
        feed::save(&self.tx, &place)?;
        Ok(Applied { events: done, stopped, cursor: place.cursor })
    }

    fn apply_one(&mut self, place: &mut Place, event: &Prepared) -> Result<Option<Stopped>, Error> {
        let follows = place.cursor.is_empty() || event.previous == place.cursor || event.previous == place.event;
        if !follows {
            return Ok(Some(Stopped::FeedGap));
        }
        match &event.body {
            Body::Nothing => {}
            Body::Message(message) => {
                if self.take(message)? == Took::Gap {
                    return Ok(Some(Stopped::Missing(message.conversation)));
                }
            }
            Body::Welcome(welcome, state) => self.welcomed(welcome, state.as_ref())?,
            Body::Rejected(rejected) => self.rejected(rejected)?,
            Body::ConversationChanged(changed) => self.conversation_changed(changed)?,
            Body::DeviceChanged => self.told.push(Incoming::DevicesChanged),
            Body::KeyPackagesLow => place.packages_low = true,
        }
        place.cursor.clone_from(&event.cursor);
        place.event.clone_from(&event.cursor);
        Ok(None)
    }

    /// The device was added. When the Welcome is of no use, it rejoins by itself.
    fn welcomed(&mut self, welcome: &v1::Welcome, state: Option<&v1::GroupState>) -> Result<(), Error> {
        let Ok(id) = ids::conversation(&welcome.conversation_id, "") else { return Ok(()) };
        let known = conversations::load(&self.tx, id)?;
        let current = known
            .as_ref()
            .is_some_and(|row| row.status == ConversationStatus::Active && row.sequence >= welcome.sequence);
        if current {
            return Ok(());
        }
        if let Some(waiting) = requests::load(&self.tx, id)? {
            self.lost.push((waiting.message, Reason::EpochConflict));
            requests::remove(&self.tx, id)?;
        }
        let mut row = known.unwrap_or_else(|| unknown(id, self.me.suite));
        group::delete(&self.provider(), id, row.generation)?;
        row.generation = Generation(welcome.generation);
        row.sequence = welcome.sequence;
        row.chain = wardline_domain::Digest::try_from(welcome.chain_hash.as_ref())
            .map_err(|_| Error::Untrusted("a Welcome without its chain hash"))?;
        row.status = ConversationStatus::Broken;
        let mut stranger = None;
        match self.try_join(&row, welcome, state)? {
            Join::Joined(joined) => {
                row.status = ConversationStatus::Active;
                row.suite = joined.suite;
                row.title = joined.title.unwrap_or(row.title);
                conversations::set_untitled(&self.tx, id, state.is_none())?;
                self.told.push(Incoming::Joined(id));
            }
            Join::Stranger(found) => stranger = Some(found),
            Join::Useless => {}
        }
        conversations::set_pending_removals(&self.tx, id, &[])?;
        conversations::save(&self.tx, &row)?;
        stranger.map_or(Ok(()), |stranger| self.untrusted(id, stranger))
    }

    /// Joins inside a savepoint: a Welcome that fails half way, or that leads into a group with a stranger, leaves nothing
    /// behind.
    fn try_join(
        &self,
        row: &conversations::Conversation,
        welcome: &v1::Welcome,
        state: Option<&v1::GroupState>,
    ) -> Result<Join, Error> {
        self.tx.execute_batch("SAVEPOINT joining")?;
        let join = match self.join(row, welcome, state) {
            Err(Error::Store(error)) => return Err(Error::Store(error)),
            Err(error) => {
                tracing::warn!(%error, "a Welcome is of no use; the device rejoins by itself");
                Join::Useless
            }
            Ok(join) => join,
        };
        let joined = matches!(join, Join::Joined(_));
        let end = if joined { "RELEASE joining" } else { "ROLLBACK TO joining; RELEASE joining" };
        self.tx.execute_batch(end)?;
        Ok(join)
    }

    fn join(
        &self,
        row: &conversations::Conversation,
        welcome: &v1::Welcome,
        state: Option<&v1::GroupState>,
    ) -> Result<Join, Error> {
        use openmls::prelude::OpenMlsProvider as _;
        let provider = self.provider();
        let group = join::by_welcome(&provider, row.id, row.generation, welcome, state)?;
        let suite = u16::from(group.ciphersuite());
        config::suite(suite)?;
        let leaves = leaf::of_group(&group);
        if let Some(stranger) = leaf::stranger(&self.tx, self.me, suite, Standing::Stays, &leaves)? {
            return Ok(Join::Stranger(stranger));
        }
        let title = state.and_then(|state| group::read_title(provider.crypto(), &group, state));
        Ok(Join::Joined(Joined { suite, title }))
    }

    /// The leaves that a Welcome leads to, to learn their logs; none when it is of no use. Opening it uses up its key package, so
    /// that is taken back.
    pub(crate) fn leaves_of(&self, welcome: &v1::Welcome) -> Result<Vec<Leaf>, Error> {
        self.tx.execute_batch("SAVEPOINT opening")?;
        let tree = join::tree_of_welcome(&self.provider(), welcome);
        self.tx.execute_batch("ROLLBACK TO opening; RELEASE opening")?;
        Ok(tree.ok().flatten().map(|tree| leaf::of_tree(&tree)).unwrap_or_default())
    }

    fn rejected(&mut self, rejected: &v1::Rejected) -> Result<(), Error> {
        let (Ok(conversation), Ok(device), Ok(message)) = (
            ids::conversation(&rejected.conversation_id, ""),
            ids::device(&rejected.device_id, ""),
            ids::message(&rejected.message_id, ""),
        ) else {
            return Ok(());
        };
        let Some(reason) = reject::from_number(rejected.reason).map(reject::to_reason) else { return Ok(()) };
        if device != self.me.device {
            return Ok(());
        }
        self.abandon(conversation, message, reason)?;
        self.content_refused(conversation, message, reason)
    }

    fn conversation_changed(&mut self, changed: &v1::ConversationChanged) -> Result<(), Error> {
        let Ok(id) = ids::conversation(&changed.conversation_id, "") else { return Ok(()) };
        let pending = device_refs(&changed.removal_pending);
        if pending.iter().any(|(_, device)| *device == self.me.device) {
            return self.removed(id);
        }
        conversations::set_pending_removals(&self.tx, id, &pending)
    }
}

/// What came of a Welcome.
enum Join {
    Joined(Joined),
    /// It does not fit; the device may rejoin.
    Useless,
    /// The group has a leaf that no device log vouches for.
    Stranger(Stranger),
}

struct Joined {
    suite: u16,
    title: Option<String>,
}

/// Devices, as far as they parse.
pub(crate) fn device_refs(refs: &[v1::DeviceRef]) -> Vec<(UserId, DeviceId)> {
    let parse = |one: &v1::DeviceRef| Some((ids::user(&one.user_id, "").ok()?, ids::device(&one.device_id, "").ok()?));
    refs.iter().filter_map(parse).collect()
}
