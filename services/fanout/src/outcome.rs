//! What an outcome of the state machine means for tables and feeds. Pure: no store, no log.
//!
//! Deliberately absent: heads. The batch's last one is written once a conversation.

use std::collections::BTreeSet;
use std::sync::Arc;

use wardline_domain::Digest;
use wardline_domain::conversation::{
    CommitEffects, Conversation, Outcome, OutcomeKey, PriorOutcome, Rejection, Sequenced,
};
use wardline_domain::partition::PartitionCount;
use wardline_domain::record::{Body, Control, Record, Submission};
use wardline_domain::roster::{Audience, Roster, RosterDelta};
use wardline_log::Headers;
use wardline_proto::convert::ids::{bytes16, bytes32};
use wardline_proto::convert::record::blob_to;
use wardline_proto::convert::reject;
use wardline_proto::internal::v1 as wire;
use wardline_proto::internal::v1::feed_event_record::Event;
use wardline_store::conversations::{MembersRow, MembershipRow, MessageRow, OutcomeResult, OutcomeRow, SNAPSHOT_EVERY};

use crate::cache::Entry;
use crate::effects::Effects;
use crate::feed_records::{FeedEvent, Grouping};

/// What stays the same for all records of a partition.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Frame {
    /// Partitions of `feeds`.
    pub(crate) feeds: PartitionCount,
    /// [`crate::Options::inline_bytes`].
    pub(crate) inline_bytes: usize,
}

/// A record that was applied.
#[derive(Debug)]
pub(crate) struct Applied<'a> {
    pub(crate) record: &'a Record,
    /// Its trace context.
    pub(crate) headers: &'a Headers,
    /// The roster before it.
    pub(crate) before: &'a Roster,
    /// The conversation after it.
    pub(crate) entry: &'a mut Entry,
    pub(crate) effects: &'a mut Effects,
}

impl Applied<'_> {
    /// Adds what the outcome means to the effects. Gives what later records of the batch must know of the record's key.
    pub(crate) fn describe(mut self, frame: Frame, outcome: &Outcome) -> Option<(OutcomeKey, PriorOutcome)> {
        match (outcome, &self.record.body) {
            (Outcome::Created { delta }, _) => {
                self.members(delta);
                None
            }
            (Outcome::Changed { delta, audience }, body) => {
                if let Some(delta) = delta {
                    self.members(delta);
                }
                let to = self.grouping(frame, audience);
                let changed = self.conversation_changed();
                // Whoever left is not of the audience any more: this is the last that the user's devices hear of it.
                if let Body::Control(Control::UserLeft { user }) = body {
                    self.tell(Arc::new(Grouping::of_user(*user, frame.feeds)), changed.clone());
                }
                self.tell(to, changed);
                None
            }
            (Outcome::Sequenced(sequenced), Body::Submission(submission)) => {
                Some(self.sequenced(frame, submission, sequenced))
            }
            (Outcome::Rejected(rejection), Body::Submission(submission)) => {
                self.tell_rejected(frame, submission, rejection);
                Some(self.outcome(submission, rejection.payload, OutcomeResult::Rejected(rejection.clone())))
            }
            (Outcome::Conflict(rejection), Body::Submission(submission)) => {
                self.tell_rejected(frame, submission, rejection);
                None
            }
            // Nothing but the head changes; only submissions are sequenced or rejected.
            _ => None,
        }
    }

    fn conversation(&self) -> &Conversation {
        &self.entry.conversation
    }

    fn sequenced(
        &mut self,
        frame: Frame,
        submission: &Submission,
        sequenced: &Sequenced,
    ) -> (OutcomeKey, PriorOutcome) {
        let envelope = &submission.envelope;
        self.effects.rows.messages.push(MessageRow {
            conversation: self.record.conversation,
            sequence: sequenced.sequence,
            chain: sequenced.chain,
            sender: envelope.sender,
            device: envelope.device,
            kind: envelope.kind,
            accepted_at: self.record.accepted_at,
            position: self.record.position,
            sealed: submission.sealed.clone(),
        });
        let to = self.grouping(frame, &sequenced.audience);
        let message = self.message(frame, submission, sequenced, to.parts.len());
        self.tell(to, message);
        if let Some(commit) = &sequenced.commit {
            self.committed(frame, submission, sequenced, commit);
        }
        self.outcome(submission, sequenced.payload, OutcomeResult::Sequenced(sequenced.sequence))
    }

    fn committed(&mut self, frame: Frame, submission: &Submission, sequenced: &Sequenced, commit: &CommitEffects) {
        if let Some(delta) = &commit.delta {
            self.members(delta);
        }
        // `apply` sequences no commit that adds devices without a Welcome.
        if let Some(blob) = &submission.welcome
            && !commit.joined.is_empty()
        {
            let to = Arc::new(Grouping::of(&commit.joined, frame.feeds));
            let welcome = wire::FeedWelcome {
                conversation_id: bytes16(self.record.conversation.as_bytes()),
                generation: submission.envelope.generation.0,
                epoch: commit.epoch.0,
                sequence: sequenced.sequence.0,
                chain_hash: bytes32(&sequenced.chain),
                welcome: Some(blob_to(blob)),
            };
            self.tell(to, Event::Welcome(welcome));
        }
    }

    /// The first record of a key writes its row; what comes later is a repeat or a conflict.
    fn outcome(
        &mut self,
        submission: &Submission,
        payload: Digest,
        result: OutcomeResult,
    ) -> (OutcomeKey, PriorOutcome) {
        let (device, message) = (submission.envelope.device, submission.envelope.message);
        let key = OutcomeKey { conversation: self.record.conversation, device, message };
        let (position, accepted_at) = (self.record.position, self.record.accepted_at);
        self.effects.rows.outcomes.push(OutcomeRow { key, position, accepted_at, payload, result });
        (key, PriorOutcome { position, payload })
    }

    /// The roster's new version, and who is in the conversation now or no more.
    fn members(&mut self, delta: &RosterDelta) {
        let (conversation, position) = (self.record.conversation, self.record.position);
        let after = Arc::clone(&self.entry.conversation.roster);
        let leaves_before = delta.leaves.keys().filter_map(|index| self.before.leaves().get(index));
        let touched: BTreeSet<_> = leaves_before.chain(delta.leaves.values().flatten()).map(|leaf| leaf.user).collect();
        let changed = touched.into_iter().filter(|user| self.before.has_user(*user) != after.has_user(*user));
        let memberships =
            changed.map(|user| MembershipRow { user, conversation, member: after.has_user(user), position });
        self.effects.rows.memberships.extend(memberships);
        self.effects.rows.members.push(MembersRow {
            conversation,
            version: delta.to,
            accepted_at: self.record.accepted_at,
            delta: delta.clone(),
            snapshot: delta.to.is_multiple_of(SNAPSHOT_EVERY).then_some(after),
        });
    }

    /// The audience by partition: made once while the roster stays.
    fn grouping(&mut self, frame: Frame, audience: &Audience) -> Arc<Grouping> {
        match &self.entry.grouping {
            Some(grouping) if grouping.is_of(audience) => Arc::clone(grouping),
            _ => Arc::clone(self.entry.grouping.insert(Arc::new(Grouping::of(audience, frame.feeds)))),
        }
    }

    fn tell(&mut self, to: Arc<Grouping>, event: Event) {
        self.effects.feed_events.push(FeedEvent::new(self.record.position, to, event, self.headers.clone()));
    }

    fn message(&self, frame: Frame, submission: &Submission, sequenced: &Sequenced, records: usize) -> Event {
        let sealed = &submission.sealed;
        let inline = sealed.len().saturating_mul(records) <= frame.inline_bytes;
        Event::Message(wire::FeedMessage {
            conversation_id: bytes16(self.record.conversation.as_bytes()),
            sequence: sequenced.sequence.0,
            chain_hash: bytes32(&sequenced.chain),
            accepted_at_us: self.record.accepted_at.as_micros(),
            sender_user_id: bytes16(submission.envelope.sender.as_bytes()),
            sender_device_id: bytes16(submission.envelope.device.as_bytes()),
            envelope: if inline { sealed.envelope.clone() } else { Default::default() },
            mls_message: if inline { sealed.mls_message.clone() } else { Default::default() },
            by_reference: !inline,
        })
    }

    /// A rejection goes to all devices of the sender's user, a member or not: ingest has checked who sent it.
    fn tell_rejected(&mut self, frame: Frame, submission: &Submission, rejection: &Rejection) {
        let envelope = &submission.envelope;
        let rejected = wire::FeedRejected {
            conversation_id: bytes16(self.record.conversation.as_bytes()),
            device_id: bytes16(envelope.device.as_bytes()),
            message_id: bytes16(envelope.message.as_bytes()),
            reason: reject::to_wire(rejection.reason) as u32,
            generation: rejection.generation.0,
            epoch: rejection.epoch.0,
            winner_message_id: rejection.winner.map(|winner| bytes16(winner.as_bytes())).unwrap_or_default(),
        };
        let to = Arc::new(Grouping::of_user(envelope.sender, frame.feeds));
        self.tell(to, Event::Rejected(rejected));
    }

    fn conversation_changed(&self) -> Event {
        let pending = self.conversation().roster.removal_pending().into_iter();
        Event::ConversationChanged(wire::FeedConversationChanged {
            conversation_id: bytes16(self.record.conversation.as_bytes()),
            removal_pending: pending
                .map(|(user, device)| wire::DeviceRefRecord {
                    user_id: bytes16(user.as_bytes()),
                    device_id: bytes16(device.as_bytes()),
                })
                .collect(),
        })
    }
}
