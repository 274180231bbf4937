//! The one table of error reasons: each is an ErrorInfo reason of domain `wardline`, with its gRPC code, constant text and
//! what a caller does about it. `deploy/docs/errors.md` is rendered from it.

use tonic::Code;

/// ErrorInfo.domain of every error.
pub const DOMAIN: &str = "wardline";

macro_rules! reasons {
    ($($name:ident $text:literal $code:ident $message:literal $remedy:literal;)*) => {
        /// Why a call was refused.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Reason {
            $(#[doc = $message] $name,)*
        }

        impl Reason {
            /// All of them, in the table's order.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// ErrorInfo.reason.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// The gRPC status code.
            pub const fn code(self) -> Code {
                match self { $(Self::$name => Code::$code,)* }
            }

            /// Constant text for people; never carries what was sent.
            pub const fn message(self) -> &'static str {
                match self { $(Self::$name => $message,)* }
            }

            /// What a caller does about it.
            pub const fn remedy(self) -> &'static str {
                match self { $(Self::$name => $remedy,)* }
            }

            /// From ErrorInfo.reason.
            pub fn parse(text: &str) -> Option<Self> {
                match text { $($text => Some(Self::$name),)* _ => None }
            }
        }
    };
}

reasons! {
    // Who calls
    TokenMissing "TOKEN_MISSING" Unauthenticated "no session token" "Create a session and send it as authorization metadata.";
    TokenInvalid "TOKEN_INVALID" Unauthenticated "the session token is not valid" "Create a new session.";
    SessionExpired "SESSION_EXPIRED" Unauthenticated "the session has ended" "Create a new session and repeat the call.";
    AccessTokenInvalid "ACCESS_TOKEN_INVALID" Unauthenticated "the access token is not valid here" "Get a new access token from an issuer of your tenant.";
    DpopInvalid "DPOP_INVALID" Unauthenticated "the DPoP proof is not valid" "Sign a proof as RFC 9449 section 4.2 asks, over this access token.";
    UseDpopNonce "USE_DPOP_NONCE" Unauthenticated "the DPoP proof needs the server's nonce" "Repeat with the nonce in the metadata of this error.";
    UserUnknown "USER_UNKNOWN" PermissionDenied "the token's subject is not a user of the tenant" "Have the user created first.";
    DeviceNotEnrolled "DEVICE_NOT_ENROLLED" PermissionDenied "the session's key is not enrolled" "Enrol the device; until then only EnrollDevice is allowed.";
    DeviceRevoked "DEVICE_REVOKED" PermissionDenied "the device is revoked" "Enrol anew with new keys.";
    UserDeactivated "USER_DEACTIVATED" PermissionDenied "the user is deactivated" "Ask the tenant's administrator.";
    ScopeRequired "SCOPE_REQUIRED" PermissionDenied "the session lacks a scope" "Ask for the scope named in the metadata.";
    DeviceRequired "DEVICE_REQUIRED" PermissionDenied "the call needs a device's session" "Call with a session of an enrolled device.";
    SenderMismatch "SENDER_MISMATCH" PermissionDenied "the envelope's sender is not the session's device" "Send with the device that made the envelope.";
    // Whether it may see it
    NotAMember "NOT_A_MEMBER" PermissionDenied "not a member of the conversation, or no such conversation" "Have a member add the device.";
    NotFound "NOT_FOUND" NotFound "no such thing in your tenant" "Check the id.";
    // What was sent
    ArgumentInvalid "ARGUMENT_INVALID" InvalidArgument "a field is not valid" "See the field violations.";
    TooLarge "TOO_LARGE" InvalidArgument "larger than the limit" "See GetServerInfo for limits.";
    MlsInvalid "MLS_INVALID" InvalidArgument "the MLS message is not acceptable" "Send PrivateMessages with content and PublicMessages with commits, proposals by value.";
    EnvelopeMismatch "ENVELOPE_MISMATCH" InvalidArgument "the MLS message does not carry what the envelope declares" "Make envelope and MLS message agree; authenticated_data is SHA-256(envelope).";
    BlobUnknown "BLOB_UNKNOWN" NotFound "no such blob" "Fetch the message again.";
    CursorInvalid "CURSOR_INVALID" InvalidArgument "not a cursor of this feed" "Attach with a cursor that this feed gave out.";
    PageTokenInvalid "PAGE_TOKEN_INVALID" InvalidArgument "not a page token of this list" "Start from the first page.";
    KeyPackageInvalid "KEY_PACKAGE_INVALID" InvalidArgument "a key package is not acceptable" "See the field violations.";
    SignatureInvalid "SIGNATURE_INVALID" InvalidArgument "the signature does not verify" "Sign the canonical bytes with the signer's authentication key.";
    // What stands against it
    AlreadyExists "ALREADY_EXISTS" AlreadyExists "it exists with other content" "Choose another id, or read what is there.";
    EtagMismatch "ETAG_MISMATCH" Aborted "it was changed meanwhile" "Read it again and repeat.";
    DeviceLogConflict "DEVICE_LOG_CONFLICT" Aborted "the device log has moved on" "Read the log, sign for its head, repeat.";
    SignerRequired "SIGNER_REQUIRED" FailedPrecondition "an active device of the user must vouch" "Have an active device sign the entry.";
    KeyTaken "KEY_TAKEN" AlreadyExists "the key belongs to another device" "Make a new key.";
    SuiteNotAllowed "SUITE_NOT_ALLOWED" FailedPrecondition "the tenant does not allow this cipher suite" "Use one of the tenant's suites.";
    DevicesMissing "DEVICES_MISSING" FailedPrecondition "the commit leaves out devices of a user it adds" "Claim key packages again and add all devices.";
    KeyPackageNotServed "KEY_PACKAGE_NOT_SERVED" FailedPrecondition "an added key package was not served by the directory, or is not in the Welcome" "Add claimed key packages only.";
    StaleEpoch "STALE_EPOCH" FailedPrecondition "the group has moved to another epoch" "Process the feed, seal the content again with a new message_id and the same content_id.";
    EpochConflict "EPOCH_CONFLICT" Aborted "another commit ended the epoch first" "Clear the pending commit, process the feed, commit again.";
    RemovalRequired "REMOVAL_REQUIRED" FailedPrecondition "devices wait for removal" "Commit the removal of the waiting leaves, then send.";
    MessageIdReused "MESSAGE_ID_REUSED" FailedPrecondition "the message_id was used with other bytes" "Use a new message_id.";
    MessageIdTime "MESSAGE_ID_TIME" FailedPrecondition "the message_id's time is more than 7 days old or 5 minutes ahead" "Use a new message_id; check the clock.";
    Expired "EXPIRED" FailedPrecondition "accepted after its expire_time" "Send anew if it still matters.";
    CommitInvalid "COMMIT_INVALID" FailedPrecondition "the commit breaks a rule for commits" "See the rules for commits.";
    RoleRequired "ROLE_REQUIRED" PermissionDenied "the commit needs a role its sender has not got" "Have an admin do it.";
    ConversationFull "CONVERSATION_FULL" FailedPrecondition "the conversation would hold too many users or devices" "Split it.";
    Quarantined "QUARANTINED" FailedPrecondition "the conversation is set aside" "Ask the deployment's operator.";
    ConversationUnknown "CONVERSATION_UNKNOWN" NotFound "no such conversation" "Create it first.";
    ConversationExists "CONVERSATION_EXISTS" AlreadyExists "the conversation_id is taken" "Choose another id.";
    AttachmentReplaced "ATTACHMENT_REPLACED" Aborted "the device attached anew elsewhere" "Keep one Attach stream per device.";
    // What may pass
    Overloaded "OVERLOADED" ResourceExhausted "more work than there is room for" "Wait for RetryInfo's delay, with jitter.";
    QuotaExceeded "QUOTA_EXCEEDED" ResourceExhausted "the caller's quota is used up" "Wait for RetryInfo's delay.";
    Unavailable "UNAVAILABLE" Unavailable "not now; the outcome may be unknown" "Repeat the same bytes after RetryInfo's delay.";
    DeadlineExceeded "DEADLINE_EXCEEDED" DeadlineExceeded "not in time; the outcome may be unknown" "Repeat the same bytes.";
    Internal "INTERNAL" Internal "an invariant does not hold" "Report it.";
}

const HEADER: &str = "\
# Errors

Rendered from the table in `proto/src/reason.rs`; `UPDATE=1 cargo test -p wardline-proto --test reasons` writes it anew.

Every call that is refused ends with one of these. `ErrorInfo.domain` is `wardline` and `ErrorInfo.reason` is the reason; both
stay as they are, while the text may change. Act on the reason, then on the code. `RetryInfo` comes with every
RESOURCE_EXHAUSTED and UNAVAILABLE, `BadRequest` with every field that is not valid. The text is constant: nothing of what was
sent comes back.

| reason | code | what it means | what to do |
|---|---|---|---|
";

/// The table as a page for people, in Markdown.
pub fn page() -> String {
    let mut page = HEADER.to_owned();
    for reason in Reason::ALL {
        let (name, code) = (reason.as_str(), code_name(reason.code()));
        page.push_str(&format!("| `{name}` | {code} | {} | {} |\n", reason.message(), reason.remedy()));
    }
    page
}

/// A status code by the name that the gRPC specification gives it.
pub const fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}
