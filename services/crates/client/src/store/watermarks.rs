//! Watermarks: state, merged by maximum.

use rusqlite::{Connection, params};
use wardline_domain::{ConversationId, DeviceId, UserId};

use super::Fixed;
use crate::error::Error;
use crate::view::ReceiptView;

/// Merges one watermark; answers whether anything moved.
pub(crate) fn merge(connection: &Connection, mark: &ReceiptView) -> Result<bool, Error> {
    let mut skipped = Vec::new();
    ciborium::into_writer(&mark.skipped, &mut skipped).map_err(|error| Error::Store(error.to_string()))?;
    let changed = connection.execute(
        "INSERT INTO watermarks (conversation, user, device, delivered, read, skipped) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
         ON CONFLICT (conversation, user, device) DO UPDATE
         SET delivered = max(delivered, ?4), read = max(read, ?5),
             skipped = CASE WHEN length(?6) > length(skipped) THEN ?6 ELSE skipped END
         WHERE delivered < ?4 OR read < ?5 OR length(?6) > length(skipped)",
        params![
            mark.conversation.as_bytes(),
            mark.user.as_bytes(),
            mark.device.as_bytes(),
            mark.delivered,
            mark.read,
            skipped
        ],
    )?;
    Ok(changed > 0)
}

/// All watermarks of a conversation.
pub(crate) fn all(connection: &Connection, conversation: ConversationId) -> Result<Vec<ReceiptView>, Error> {
    let mut select = connection.prepare_cached(
        "SELECT user, device, delivered, read, skipped FROM watermarks WHERE conversation = ? ORDER BY user, device",
    )?;
    let rows = select.query_map([conversation.as_bytes()], |row| {
        let (user, device): (Fixed<16>, Fixed<16>) = (row.get(0)?, row.get(1)?);
        let skipped: Vec<u8> = row.get(4)?;
        Ok(ReceiptView {
            conversation,
            user: UserId::from_bytes(user.0),
            device: DeviceId::from_bytes(device.0),
            delivered: row.get(2)?,
            read: row.get(3)?,
            skipped: ciborium::from_reader(skipped.as_slice()).unwrap_or_default(),
        })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// What this person has read and the server has not confirmed for this device.
pub(crate) fn unconfirmed_reads(
    connection: &Connection,
    device: DeviceId,
) -> Result<Vec<(ConversationId, u64)>, Error> {
    let mut select = connection.prepare_cached(
        "SELECT c.id, c.read FROM conversations c LEFT JOIN watermarks w ON w.conversation = c.id AND w.device = ?
         WHERE c.read > coalesce(w.read, 0)",
    )?;
    let rows = select.query_map([device.as_bytes()], |row| {
        let id: Fixed<16> = row.get(0)?;
        Ok((ConversationId::from_bytes(id.0), row.get(1)?))
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}
