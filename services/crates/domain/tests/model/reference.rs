//! What DESIGN says of a conversation, written down a second time and as plainly as possible: every key that was ever
//! used, every message in order, leaves as a list. It reads drafts, not MLS bytes, and knows no heads.

use std::collections::{BTreeMap, BTreeSet};

use wardline_domain::conversation::RejectReason;
use wardline_domain::envelope::MessageKind;
use wardline_domain::record::{Control, ConversationKind, Create, MembershipRule};
use wardline_domain::{Digest, MessageId};

use crate::support::{CONVERSATION, Draft, at, device, user};

const DAY_MILLIS: i128 = 24 * 3600 * 1000;

/// One event of a schedule.
#[derive(Debug, Clone)]
pub(crate) enum Event {
    Create { creator: u16, create: Create },
    Submit(Draft),
    Control(Control),
}

/// What the reference says of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    Ignored,
    Repeat,
    Conflict,
    Created,
    CreateRepeated { same: bool },
    Rejected { reason: RejectReason, epoch: u64, winner: Option<MessageId> },
    Sequenced { sequence: u64, chain: Vec<u8>, to: BTreeSet<u16>, welcomed: BTreeSet<u16>, leaves: Vec<Option<Seat>> },
    Changed { to: BTreeSet<u16>, leaves: Vec<Option<Seat>> },
}

/// A leaf.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seat {
    pub(crate) device: u16,
    pub(crate) admin: bool,
    pub(crate) pending: bool,
    pub(crate) joined: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Reference {
    created: Option<Create>,
    /// Every key that ever came, with its first bytes.
    used: BTreeMap<(u16, MessageId), Vec<u8>>,
    /// The chain at each sequence.
    chain: Vec<Vec<u8>>,
    /// The winner of each epoch, by the epoch it ended.
    winners: Vec<MessageId>,
    pub(crate) leaves: Vec<Option<Seat>>,
    set_aside: bool,
}

impl Reference {
    pub(crate) fn epoch(&self) -> u64 {
        self.winners.len() as u64
    }

    pub(crate) fn exists(&self) -> bool {
        self.created.is_some()
    }

    pub(crate) fn seats(&self) -> impl Iterator<Item = (u32, &Seat)> {
        self.leaves.iter().enumerate().filter_map(|(index, seat)| Some((index as u32, seat.as_ref()?)))
    }

    pub(crate) fn active(&self) -> BTreeSet<u16> {
        self.seats().filter(|(_, seat)| !seat.pending).map(|(_, seat)| seat.device).collect()
    }

    pub(crate) fn take(&mut self, event: &Event, accepted_millis: u64) -> Verdict {
        match event {
            Event::Create { creator, create } => self.create(*creator, create),
            Event::Submit(draft) => self.submit(draft, accepted_millis),
            Event::Control(control) => self.control(control),
        }
    }

    fn create(&mut self, creator: u16, create: &Create) -> Verdict {
        if let Some(first) = &self.created {
            return Verdict::CreateRepeated { same: first == create };
        }
        self.created = Some(create.clone());
        self.chain.push(Digest::of(CONVERSATION.as_bytes()).as_bytes().to_vec());
        self.leaves.push(Some(Seat { device: creator, admin: true, pending: false, joined: 0 }));
        Verdict::Created
    }

    fn control(&mut self, control: &Control) -> Verdict {
        if self.created.is_none() {
            return Verdict::Ignored;
        }
        let before = (self.leaves.clone(), self.set_aside);
        match control {
            Control::Quarantine { .. } => self.set_aside = true,
            Control::UserLeft { user: gone } => self.suspend(|seat| user(seat.device >> 4) == *gone),
            Control::DeviceRevoked { user: of, device: gone } => {
                self.suspend(|seat| user(seat.device >> 4) == *of && device(seat.device) == *gone);
            }
        }
        if before == (self.leaves.clone(), self.set_aside) {
            return Verdict::Ignored;
        }
        Verdict::Changed { to: self.active(), leaves: self.trimmed() }
    }

    fn suspend(&mut self, concerned: impl Fn(&Seat) -> bool) {
        self.leaves.iter_mut().flatten().filter(|seat| concerned(seat)).for_each(|seat| seat.pending = true);
    }

    fn submit(&mut self, draft: &Draft, accepted_millis: u64) -> Verdict {
        let sealed = draft.build().sealed;
        let bytes = [&sealed.envelope[..], b"|", &sealed.mls_message[..]].concat();
        let key = (draft.device, draft.message);
        if let Some(first) = self.used.get(&key) {
            return if *first == bytes { Verdict::Repeat } else { Verdict::Conflict };
        }
        self.used.insert(key, bytes);
        let to_before = self.active();
        match self.judge(draft, accepted_millis) {
            Err((reason, winner)) => Verdict::Rejected { reason, epoch: self.epoch(), winner },
            Ok(next) => {
                let sequence = self.chain.len() as u64;
                let mut input = self.chain.last().expect("it starts with one").clone();
                input.extend(sequence.to_be_bytes());
                input.extend(Digest::of(&sealed.envelope).as_bytes());
                input.extend(Digest::of(&sealed.mls_message).as_bytes());
                self.chain.push(Digest::of(&input).as_bytes().to_vec());
                let (mut to, mut welcomed) = (to_before, BTreeSet::new());
                if let Some(leaves) = next {
                    self.leaves = leaves;
                    self.winners.push(draft.message);
                    match draft.kind {
                        MessageKind::ExternalCommit => drop(to.insert(draft.device)),
                        _ => welcomed.extend(&draft.adds),
                    }
                }
                let chain = self.chain.last().expect("just pushed").clone();
                Verdict::Sequenced { sequence, chain, to, welcomed, leaves: self.trimmed() }
            }
        }
    }

    /// Blank leaves at the right end are no leaves.
    fn trimmed(&self) -> Vec<Option<Seat>> {
        let used = self.leaves.iter().rposition(Option::is_some).map_or(0, |last| last + 1);
        self.leaves[..used].to_vec()
    }

    /// The leaves after a commit, `None` for content, or why there is no sequence.
    #[allow(clippy::type_complexity)] // said in full, the type is the contract
    fn judge(
        &self,
        draft: &Draft,
        accepted_millis: u64,
    ) -> Result<Option<Vec<Option<Seat>>>, (RejectReason, Option<MessageId>)> {
        let plain = |reason| Err((reason, None));
        let age = i128::from(accepted_millis) - i128::from(draft.message.unix_millis());
        if !(-5 * 60 * 1000..=7 * DAY_MILLIS).contains(&age) {
            return plain(RejectReason::MessageIdTime);
        }
        if draft.expires_at.is_some_and(|expiry| expiry < at(accepted_millis)) {
            return plain(RejectReason::Expired);
        }
        let Some(create) = &self.created else { return plain(RejectReason::ConversationUnknown) };
        if self.set_aside {
            return plain(RejectReason::Quarantined);
        }
        let active = self.active();
        let is_commit = draft.kind != MessageKind::Application;
        let may_send = match draft.kind {
            MessageKind::ExternalCommit => {
                let pending = self.seats().any(|(_, seat)| seat.device == draft.device && seat.pending);
                !pending && active.iter().any(|other| other >> 4 == draft.device >> 4)
            }
            _ => active.contains(&draft.device),
        };
        if !may_send {
            return plain(RejectReason::NotAMember);
        }
        let now = (0, self.epoch());
        if is_commit && (draft.generation, draft.epoch) < now {
            // The commit that ended the epoch it was made in, if that is the one before this.
            let winner = if draft.epoch + 1 == now.1 { self.winners.last().copied() } else { None };
            return Err((RejectReason::EpochConflict, winner));
        }
        if (draft.generation, draft.epoch) != now {
            return plain(RejectReason::StaleEpoch);
        }
        if !is_commit {
            return if self.seats().any(|(_, seat)| seat.pending) {
                plain(RejectReason::RemovalRequired)
            } else {
                Ok(None)
            };
        }
        self.commit(create, draft).map(Some).map_err(|reason| (reason, None))
    }

    fn commit(&self, create: &Create, draft: &Draft) -> Result<Vec<Option<Seat>>, RejectReason> {
        let external = draft.kind == MessageKind::ExternalCommit;
        let own = self.seats().find(|(_, seat)| seat.device == draft.device).map(|(index, _)| index);
        let bare = !draft.path && (external || draft.adds.is_empty() || !draft.removes.is_empty());
        let odd_joiner = external && (!draft.adds.is_empty() || draft.removes.len() > 1);
        if bare || odd_joiner || (!external && own != Some(draft.leaf)) {
            return Err(RejectReason::CommitInvalid);
        }
        let left_over = |(index, seat): (u32, &Seat)| seat.pending && !draft.removes.contains(&index);
        if !external && self.seats().any(left_over) {
            return Err(RejectReason::RemovalRequired);
        }
        let mut leaves = self.leaves.clone();
        for index in &draft.removes {
            let theirs = external != (own == Some(*index));
            let seat = leaves.get_mut(*index as usize).and_then(Option::take);
            if theirs || seat.is_none() {
                return Err(RejectReason::CommitInvalid);
            }
        }
        let coming = if external { vec![draft.device] } else { draft.adds.clone() };
        for new in &coming {
            if leaves.iter().flatten().any(|seat| seat.device == *new) {
                return Err(RejectReason::CommitInvalid);
            }
            let admin = self.seats().any(|(_, seat)| seat.device >> 4 == new >> 4 && seat.admin && !seat.pending);
            let seat = Seat { device: *new, admin, pending: false, joined: self.epoch() + 1 };
            match leaves.iter_mut().find(|leaf| leaf.is_none()) {
                Some(free) => *free = Some(seat),
                None => leaves.push(Some(seat)),
            }
        }
        self.allowed(create, draft, external)?;
        let users: BTreeSet<u16> = leaves.iter().flatten().map(|seat| seat.device >> 4).collect();
        let limit = match create.kind {
            ConversationKind::Direct => 2,
            ConversationKind::SelfNotes => 1,
            _ => 2_000,
        };
        if users.len() > limit { Err(RejectReason::ConversationFull) } else { Ok(leaves) }
    }

    fn allowed(&self, create: &Create, draft: &Draft, external: bool) -> Result<(), RejectReason> {
        let admin = self.seats().any(|(_, seat)| seat.device == draft.device && seat.admin);
        if external || admin || create.policy.membership == MembershipRule::Members {
            return Ok(());
        }
        let foreign = |device: u16| device >> 4 != draft.device >> 4;
        let removed = |index: &u32| self.leaves.get(*index as usize).and_then(Option::as_ref);
        let takes = draft.removes.iter().filter_map(removed).any(|seat| foreign(seat.device) && !seat.pending);
        let brings = draft.adds.iter().any(|new| foreign(*new));
        if takes || brings { Err(RejectReason::RoleRequired) } else { Ok(()) }
    }
}
