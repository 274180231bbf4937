//! Typed rejections: the same names as domain values, as wire enum and as error reasons.

use wardline_domain::conversation::RejectReason;

use crate::reason::Reason;
use crate::v1;

/// To the wire.
pub const fn to_wire(reason: RejectReason) -> v1::RejectReason {
    match reason {
        RejectReason::EpochConflict => v1::RejectReason::EpochConflict,
        RejectReason::StaleEpoch => v1::RejectReason::StaleEpoch,
        RejectReason::NotAMember => v1::RejectReason::NotAMember,
        RejectReason::RemovalRequired => v1::RejectReason::RemovalRequired,
        RejectReason::MessageIdReused => v1::RejectReason::MessageIdReused,
        RejectReason::MessageIdTime => v1::RejectReason::MessageIdTime,
        RejectReason::Expired => v1::RejectReason::Expired,
        RejectReason::CommitInvalid => v1::RejectReason::CommitInvalid,
        RejectReason::RoleRequired => v1::RejectReason::RoleRequired,
        RejectReason::ConversationFull => v1::RejectReason::ConversationFull,
        RejectReason::Quarantined => v1::RejectReason::Quarantined,
        RejectReason::ConversationUnknown => v1::RejectReason::ConversationUnknown,
        RejectReason::ConversationExists => v1::RejectReason::ConversationExists,
    }
}

/// From the wire, or from a record's number.
pub fn from_number(number: i32) -> Option<RejectReason> {
    Some(match v1::RejectReason::try_from(number).ok()? {
        v1::RejectReason::Unspecified => return None,
        v1::RejectReason::EpochConflict => RejectReason::EpochConflict,
        v1::RejectReason::StaleEpoch => RejectReason::StaleEpoch,
        v1::RejectReason::NotAMember => RejectReason::NotAMember,
        v1::RejectReason::RemovalRequired => RejectReason::RemovalRequired,
        v1::RejectReason::MessageIdReused => RejectReason::MessageIdReused,
        v1::RejectReason::MessageIdTime => RejectReason::MessageIdTime,
        v1::RejectReason::Expired => RejectReason::Expired,
        v1::RejectReason::CommitInvalid => RejectReason::CommitInvalid,
        v1::RejectReason::RoleRequired => RejectReason::RoleRequired,
        v1::RejectReason::ConversationFull => RejectReason::ConversationFull,
        v1::RejectReason::Quarantined => RejectReason::Quarantined,
        v1::RejectReason::ConversationUnknown => RejectReason::ConversationUnknown,
        v1::RejectReason::ConversationExists => RejectReason::ConversationExists,
    })
}

/// As an error reason.
pub const fn to_reason(reason: RejectReason) -> Reason {
    match reason {
        RejectReason::EpochConflict => Reason::EpochConflict,
        RejectReason::StaleEpoch => Reason::StaleEpoch,
        RejectReason::NotAMember => Reason::NotAMember,
        RejectReason::RemovalRequired => Reason::RemovalRequired,
        RejectReason::MessageIdReused => Reason::MessageIdReused,
        RejectReason::MessageIdTime => Reason::MessageIdTime,
        RejectReason::Expired => Reason::Expired,
        RejectReason::CommitInvalid => Reason::CommitInvalid,
        RejectReason::RoleRequired => Reason::RoleRequired,
        RejectReason::ConversationFull => Reason::ConversationFull,
        RejectReason::Quarantined => Reason::Quarantined,
        RejectReason::ConversationUnknown => Reason::ConversationUnknown,
        RejectReason::ConversationExists => Reason::ConversationExists,
    }
}
