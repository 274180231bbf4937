//! Our own tables. Ids are 16-byte blobs, digests 32, times microseconds since the Unix epoch.

/// Run once, when the file is made.
pub(super) const TABLES: &str = "
CREATE TABLE identity (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    device BLOB NOT NULL, auth_seed BLOB NOT NULL, suite INTEGER NOT NULL, signer BLOB NOT NULL,
    tenant BLOB, user BLOB
) STRICT;
-- cursor: the last one saved. event: the cursor of the last event (a Progress moves only the former).
-- resync: events before the cursor are missing and their conversations are still to be read.
CREATE TABLE feed (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    cursor BLOB NOT NULL DEFAULT x'', event BLOB NOT NULL DEFAULT x'',
    resync INTEGER NOT NULL DEFAULT 0, packages_low INTEGER NOT NULL DEFAULT 0
) STRICT;
INSERT INTO feed (one) VALUES (1);
-- The tenant authority's keys, sorted, 32 bytes each; no row before they are first seen.
CREATE TABLE authority (one INTEGER PRIMARY KEY CHECK (one = 1), keys BLOB NOT NULL) STRICT;
-- What was verified of device logs, and their heads. A device's keys never change, so a row is good for ever but for `active`.
CREATE TABLE device_logs (user BLOB PRIMARY KEY, version INTEGER NOT NULL, hash BLOB NOT NULL) STRICT;
CREATE TABLE logged_devices (
    user BLOB NOT NULL, device BLOB NOT NULL, auth_key TEXT NOT NULL, mls_keys BLOB NOT NULL, active INTEGER NOT NULL,
    PRIMARY KEY (user, device)
) STRICT;
CREATE TABLE conversations (
    id BLOB PRIMARY KEY, kind INTEGER NOT NULL, suite INTEGER NOT NULL, generation INTEGER NOT NULL,
    status INTEGER NOT NULL, title TEXT NOT NULL, sequence INTEGER NOT NULL, chain BLOB NOT NULL,
    read INTEGER NOT NULL DEFAULT 0
) STRICT;
-- Joined without having read the title.
CREATE TABLE untitled (conversation BLOB PRIMARY KEY) STRICT;
CREATE TABLE skipped (conversation BLOB NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL,
    PRIMARY KEY (conversation, first)) STRICT;
CREATE TABLE pending_removals (conversation BLOB NOT NULL, user BLOB NOT NULL, device BLOB NOT NULL,
    PRIMARY KEY (conversation, device)) STRICT;
CREATE TABLE messages (
    conversation BLOB NOT NULL, sequence INTEGER NOT NULL, sender BLOB NOT NULL, device BLOB NOT NULL,
    message BLOB NOT NULL, kind INTEGER NOT NULL, content_id BLOB, content BLOB,
    payload BLOB NOT NULL, chain BLOB NOT NULL, accepted_at INTEGER,
    PRIMARY KEY (conversation, sequence)
) STRICT;
CREATE INDEX messages_by_content ON messages (conversation, content_id) WHERE content_id IS NOT NULL;
-- What this device has written and the conversation has not sequenced. The sealed columns are set together.
CREATE TABLE outbox (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    conversation BLOB NOT NULL, content_id BLOB NOT NULL, content BLOB NOT NULL,
    urgency INTEGER NOT NULL, respond_by INTEGER, expires_at INTEGER,
    state INTEGER NOT NULL, uncertain INTEGER NOT NULL DEFAULT 0,
    message BLOB, envelope BLOB, mls_message BLOB, generation INTEGER, epoch INTEGER
) STRICT;
CREATE INDEX outbox_by_conversation ON outbox (conversation, id);
-- The CreateConversation or Commit request a conversation waits for; the bytes that are sent, and sent again.
CREATE TABLE requests (
    conversation BLOB PRIMARY KEY, kind INTEGER NOT NULL, message BLOB NOT NULL, request BLOB NOT NULL,
    epoch INTEGER NOT NULL, state INTEGER NOT NULL, uncertain INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE TABLE watermarks (
    conversation BLOB NOT NULL, user BLOB NOT NULL, device BLOB NOT NULL,
    delivered INTEGER NOT NULL, read INTEGER NOT NULL, skipped BLOB NOT NULL,
    PRIMARY KEY (conversation, user, device)
) STRICT;
";
