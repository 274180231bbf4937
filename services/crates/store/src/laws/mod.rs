//! The laws every engine keeps: one function a law, each run against empty stores of its own.
//!
//! Where writes may come in any order, a law tries every order. Deliberately absent: sleeping, clocks, and what only one
//! engine promises.

pub mod blobs;
pub mod checkpoints;
pub mod conversations;
pub mod directory;
pub mod faulty;
pub mod feeds;
pub mod key_packages;
pub mod messages;
pub mod rosters;
pub mod sample;
pub mod watermarks;
pub mod zombie;

use async_trait::async_trait;

use crate::{Result, Stores};

/// An engine under test.
#[async_trait]
pub trait Harness: Send + Sync + Sized + 'static {
    /// Empty stores; `None` when the engine's server is not there and need not be.
    async fn start() -> Option<Self>;

    /// The stores.
    fn stores(&self) -> &Stores;

    /// Closes the stores in order and opens them again.
    async fn reopen(self) -> Self;

    /// Ends the engine as a process that is killed ends, and opens the stores again; `None` where a process of ours holds
    /// nothing that could be lost.
    async fn crash(self) -> Option<Self>;

    /// Whether rows go when `expire` and `drop_messages` are called, and not by themselves after a time that no test waits for.
    fn expires_when_told(&self) -> bool;
}

/// Makes one test of each law for a [`laws::Harness`](crate::laws::Harness).
#[macro_export]
macro_rules! store_laws {
    ($harness:ty) => {
        $crate::store_laws!(@each $harness, conversations:
            heads_are_read_as_written
            heads_are_answered_in_the_order_asked
            an_older_head_never_shadows_a_newer_one
            outcomes_are_answered_in_the_order_asked
            outcomes_older_than_three_weeks_go
            memberships_are_paged_by_conversation
            an_older_membership_never_shadows_a_newer_one
            rows_written_again_change_nothing
        );
        $crate::store_laws!(@each $harness, messages:
            messages_are_read_as_written
            messages_are_paged_by_number
            messages_are_paged_by_bytes_but_at_least_one
            single_messages_are_answered_in_the_order_asked
            only_whole_partitions_at_or_below_are_dropped
        );
        $crate::store_laws!(@each $harness, rosters:
            a_roster_at_every_version_is_the_fold_of_its_deltas
            versions_above_the_head_are_readable
            an_unknown_conversation_has_the_empty_roster
            a_large_roster_is_read_as_written
        );
        $crate::store_laws!(@each $harness, blobs:
            blobs_are_read_by_their_digest
            a_blob_belongs_to_its_conversation
            a_blob_put_again_changes_nothing
            blobs_survive_the_end_of_the_process
        );
        $crate::store_laws!(@each $harness, feeds:
            feed_rows_are_read_as_written
            feed_rows_are_ranges_of_positions
            previous_leads_from_row_to_row
            an_older_feed_head_never_shadows_a_newer_one
            an_older_device_cursor_never_shadows_a_newer_one
            expire_drops_old_rows_only
            feed_heads_do_not_expire
            receipts_of_merge_in_every_order
            receipts_of_above_a_position
            receipts_of_keep_the_most_recent
        );
        $crate::store_laws!(@each $harness, watermarks:
            watermarks_are_read_as_written
            watermarks_merge_in_every_order
            watermarks_merged_again_change_nothing
            watermarks_of_a_conversation_are_sorted
        );
        $crate::store_laws!(@each $harness, checkpoints:
            a_checkpoint_is_read_as_written
            an_older_checkpoint_never_shadows_a_newer_one
            checkpoints_of_partitions_are_apart
            a_checkpoint_survives_a_reopening
            what_was_answered_survives_the_end_of_the_process
        );
        $crate::store_laws!(@each $harness, directory:
            of_two_racing_creates_of_a_tenant_one_wins
            of_two_racing_creates_of_a_user_one_wins
            an_external_id_is_unique_in_its_tenant_only
            a_user_is_updated_from_the_version_before_only
            of_two_racing_updates_of_a_user_one_wins
            a_device_log_is_dense_and_chained
            of_two_racing_entries_of_a_device_log_one_wins
            a_device_log_entry_repeated_is_applied_once
            a_session_key_belongs_to_one_device
            of_two_racing_enrolments_of_a_session_key_one_wins
            a_device_id_belongs_to_one_user
            of_two_racing_enrolments_of_a_device_id_one_wins
            an_mls_key_belongs_to_one_device
            devices_stand_as_their_log_says
            the_directory_survives_the_end_of_the_process
        );
        $crate::store_laws!(@each $harness, key_packages:
            published_packages_are_counted_up_to_the_cap
            published_again_they_are_skipped
            the_package_that_ends_first_is_served_first
            a_package_is_served_once_under_concurrency
            without_packages_the_last_resort_one_is_served
            a_last_resort_package_replaces_the_one_before
            a_claim_repeated_answers_the_same
            a_claim_takes_one_for_each_device
            served_packages_are_found_unserved_ones_not
            dropped_packages_are_not_served
            claims_survive_the_end_of_the_process
        );
        $crate::store_laws!(@each $harness, zombie:
            a_zombies_writes_do_not_change_the_final_state
            failed_writes_repeated_end_in_the_same_state
        );
    };
    (@each $harness:ty, $family:ident: $($law:ident)*) => {
        mod $family {
            use super::*;
            $(
                #[tokio::test]
                async fn $law() {
                    if let Some(harness) = <$harness as $crate::laws::Harness>::start().await {
                        $crate::laws::$family::$law(harness).await;
                    }
                }
            )*
        }
    };
}

/// What an engine answered. A law needs one that answers.
#[track_caller]
fn ok<T>(result: Result<T>) -> T {
    result.expect("a law needs an engine that answers")
}

/// All orders of `items`.
pub fn orders<T: Clone>(items: &[T]) -> Vec<Vec<T>> {
    if items.is_empty() {
        return vec![Vec::new()];
    }
    let mut all = Vec::new();
    for at in 0..items.len() {
        let mut others = items.to_vec();
        let first = others.remove(at);
        all.extend(orders(&others).into_iter().map(|rest| [vec![first.clone()], rest].concat()));
    }
    all
}
