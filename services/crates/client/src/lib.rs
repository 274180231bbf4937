//! A Wardline device: keys, sessions, enrolment, MLS groups, the outbox and the feed, over one SQLite file.
//!
//! The promise: whatever the process does, it may die at any instant and be opened again from its file; no message that the
//! feed delivered is lost, none is shown twice, and what was queued is sent once in effect. One SQLite transaction per step
//! holds MLS state, plaintext, cursor and outbox.
//!
//! The caller's duty: one process per file, and a file is never restored from a backup: its ratchets would repeat themselves.
//! Enrol a new device instead.
//!
//! Deliberately absent: a user interface, push notifications, an object store for large attachments, role inboxes, and any
//! printing of plaintext, ids or tokens.

mod admin;
mod backoff;
mod clock;
mod commit;
mod content;
mod core;
mod device;
mod device_log;
mod dpop;
mod endpoints;
mod error;
mod failpoint;
mod feed;
mod mls;
mod outbox;
mod rpc;
mod secret;
mod session;
mod store;
mod token;
mod view;

pub use self::admin::Admin;
pub use self::backoff::Backoff;
pub use self::clock::Clock;
pub use self::content::{Attached, Body, ContentId, Outgoing};
pub use self::device::{Device, Durability, NewConversation, Options};
pub use self::device_log::{DeviceLog, EnrollmentRequest, Entry, LoggedDevice, Vouch, canonical_bytes, entry_hash};
pub use self::endpoints::{Endpoints, Tls};
pub use self::error::{Error, Refusal};
pub use self::failpoint::{Failpoints, Point};
pub use self::token::{AccessTokens, FixedToken};
pub use self::view::{
    ConversationStatus, ConversationView, HistoryEntry, HistoryKind, Incoming, MemberView, MessageState, ReceiptView,
    View,
};
pub use wardline_domain::record::ConversationKind;
pub use wardline_domain::{ConversationId, DeviceId, MessageId, TenantId, Timestamp, UserId};
pub use wardline_proto::reason::Reason;
