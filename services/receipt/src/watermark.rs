//! How a device's report changes its watermark. Pure.
//!
//! The laws: watermarks and the set of skipped sequences only grow; a sequence that was skipped stays so, whatever is
//! delivered later; to apply again what has been applied changes nothing, so a replay ends where the first run did.
//!
//! Deliberately absent: whether a report may be believed.

use wardline_domain::Timestamp;
use wardline_store::feeds::WatermarkKey;
use wardline_store::watermarks::{WatermarkRow, union};

use crate::record::Report;

/// A device that has reported nothing yet.
pub(crate) fn unreported((conversation, user, device): WatermarkKey) -> WatermarkRow {
    WatermarkRow { conversation, user, device, delivered: 0, read: 0, skipped: Vec::new(), when: Timestamp::default() }
}

/// Applies a report. What a resync passed over comes first: it lies above what was delivered before the report.
///
/// `read` may run ahead of `delivered` when the device says so; neither moves the other.
pub(crate) fn advance(row: &mut WatermarkRow, report: &Report, at: Timestamp) {
    let before = (row.delivered, row.read, row.skipped.clone());
    if report.skipped_through > row.delivered {
        // Cannot overflow: `delivered` is below `skipped_through`.
        row.skipped = union(&row.skipped, &[(row.delivered + 1, report.skipped_through)]);
    }
    row.delivered = row.delivered.max(report.delivered);
    row.read = row.read.max(report.read);
    if before != (row.delivered, row.read, row.skipped.clone()) {
        row.when = row.when.max(at);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use wardline_domain::{ConversationId, DeviceId, UserId};

    use super::*;

    fn report(delivered: u64, read: u64, skipped_through: u64) -> Report {
        let (user, device) = (UserId::from_bytes([1; 16]), DeviceId::from_bytes([2; 16]));
        Report { user, device, delivered, read, skipped_through }
    }

    fn fold(row: &mut WatermarkRow, reports: &[Report]) {
        for (n, report) in reports.iter().enumerate() {
            advance(row, report, Timestamp::from_micros(n as u64 + 1));
        }
    }

    fn fresh() -> WatermarkRow {
        unreported((ConversationId::from_bytes([0; 16]), UserId::from_bytes([1; 16]), DeviceId::from_bytes([2; 16])))
    }

    #[test]
    fn what_was_skipped_stays_so_below_what_is_delivered_later() {
        let mut row = fresh();
        fold(&mut row, &[report(10, 4, 0), report(0, 0, 20), report(25, 25, 0), report(27, 0, 26)]);
        assert_eq!((row.delivered, row.read), (27, 25));
        assert_eq!(row.skipped, [(11, 20), (26, 26)]);
    }

    #[test]
    fn what_was_delivered_cannot_be_skipped() {
        let mut row = fresh();
        fold(&mut row, &[report(10, 0, 0), report(0, 0, 10)]);
        assert_eq!(row.skipped, []);
    }

    #[test]
    fn reading_ahead_delivers_nothing() {
        let mut row = fresh();
        fold(&mut row, &[report(3, 9, 0)]);
        assert_eq!((row.delivered, row.read), (3, 9));
    }

    #[test]
    fn no_news_leave_the_time_alone() {
        let mut row = fresh();
        fold(&mut row, &[report(3, 3, 0), report(3, 2, 1), report(0, 0, 0)]);
        assert_eq!(row.when, Timestamp::from_micros(1));
    }

    fn reports() -> impl Strategy<Value = Vec<Report>> {
        let sequence = || prop_oneof![Just(0u64), 0..40u64];
        let one = (sequence(), sequence(), sequence()).prop_map(|(d, r, s)| report(d, r, s));
        proptest::collection::vec(one, 0..30)
    }

    fn covers(row: &WatermarkRow, sequence: u64) -> bool {
        row.skipped.iter().any(|(first, last)| (*first..=*last).contains(&sequence))
    }

    proptest! {
        /// The law: however often a consumer falls back and repeats what it has done, it ends where an undisturbed one does.
        #[test]
        fn replays_end_where_the_first_run_did(all in reports(), falls in proptest::collection::vec((0..31usize, 0..31usize), 0..8)) {
            let mut calm = fresh();
            fold(&mut calm, &all);
            let mut row = fresh();
            let mut reached = 0;
            for (to, back) in falls.into_iter().chain([(all.len(), 0)]) {
                let to = to.min(all.len()).max(reached);
                for (n, report) in all.iter().enumerate().take(to).skip(reached) {
                    advance(&mut row, report, Timestamp::from_micros(n as u64 + 1));
                }
                reached = if to == all.len() { to } else { to.saturating_sub(back) };
            }
            for (n, report) in all.iter().enumerate().skip(reached) {
                advance(&mut row, report, Timestamp::from_micros(n as u64 + 1));
            }
            prop_assert_eq!(row, calm);
        }

        /// The law: nothing moves back, and a sequence once skipped is never reported delivered.
        #[test]
        fn everything_only_grows(all in reports()) {
            let mut row = fresh();
            for (n, report) in all.iter().enumerate() {
                let before = row.clone();
                advance(&mut row, report, Timestamp::from_micros(n as u64 + 1));
                prop_assert!(row.delivered >= before.delivered && row.read >= before.read && row.when >= before.when);
                prop_assert!((0..=41).all(|sequence| covers(&row, sequence) || !covers(&before, sequence)));
                let passed_over = (before.delivered + 1..=report.skipped_through).all(|sequence| covers(&row, sequence));
                prop_assert!(passed_over);
            }
        }
    }
}
