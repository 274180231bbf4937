//! What Wardline is about, without any I/O: ids, the sealed envelope, the reader of MLS handshakes, the roster, and the
//! conversation state machine that every owner of a log partition runs and must run alike.
//!
//! Deliberately absent: clocks, randomness, engines, protobuf, `async`.

mod codec;
pub mod conversation;
pub mod digest;
pub mod envelope;
pub mod failure;
pub mod ids;
pub mod metric;
pub mod mls;
pub mod partition;
pub mod position;
pub mod record;
pub mod roster;
pub mod time;

pub use digest::Digest;
pub use failure::{Cause, Failure};
pub use ids::{ConversationId, DeviceId, MessageId, TenantId, UserId};
pub use position::Position;
pub use time::Timestamp;
