//! The law: whatever was acknowledged survives a power cut. And the laws about this test: each sync that it rests on is
//! needed, for without it a test of that sync's name finds something missing.
//!
//! The disk keeps only what was synced ([`wardline_testbed::forgetful`]); devices' own files do not lie on it.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod outage;

use std::path::Path;
use std::time::Duration;

use outage::Bed;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::time::Instant;
use wardline_testbed::forgetful::Forgetful;
use wardline_testbed::server::Server;
use wardline_testbed::team::{self, Failed, Progress, Team};

const USERS: usize = 3;
const READERS: usize = 2;
const CUTS: usize = 6;
const MESSAGES: usize = 12;

/// The journals of the two databases: every acknowledgement rests on one of them.
const LOG_JOURNAL: &str = "log/*.jnl";
const STORE_JOURNAL: &str = "store/*.jnl";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_power_cut_loses_repeats_or_reorders_anything() {
    let seed = team::seed();
    println!("seed {seed}");
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let disk = Forgetful::new(&data, dir.path().join("journal")).unwrap().requiring_directory_syncs();
    let mut server = Server::start(Path::new(env!("CARGO_BIN_EXE_wardline")), &data, Some(disk)).await.unwrap();
    let run = run(seed, &mut server, dir.path()).await;
    team::conclude(seed, run.map_err(|failed| format!("{failed}\n{}", server.last_words()).into()));
}

async fn run(seed: u64, server: &mut Server, dir: &Path) -> Result<(), Failed> {
    let began = Instant::now();
    let people = server.people(dir)?;
    let team = Team::gather(&people, USERS).await?;
    // People, devices and the conversation were acknowledged a moment ago.
    server.kill()?;
    server.restart().await?;
    let progress = Progress::new();
    let messages = team.size() * MESSAGES;
    let cutting = async {
        let mut random = StdRng::seed_from_u64(seed);
        let mut points = rand::seq::index::sample(&mut random, messages - 1, CUTS - 1).into_vec();
        points.sort_unstable();
        for point in points {
            progress.reaches(point + 1).await?;
            server.kill()?;
            server.restart().await?;
        }
        Ok(())
    };
    tokio::try_join!(team.talk(MESSAGES, READERS, seed, &progress), cutting)?;
    team.converges(READERS, people.endpoints()).await?;
    println!(
        "{CUTS} cuts, {messages} messages to {} devices, longest silence {:.1?}, converged after {:.1?}",
        team.size(),
        progress.longest_silence(),
        began.elapsed()
    );
    Ok(())
}

#[test]
fn child() {
    outage::serve_task();
}

/// Does a task on a data directory, cuts the power, and looks: once with all syncs, where `look` must answer `kept`, and once
/// without those of the files that match `sync`, where it must answer something else.
#[track_caller]
fn rests_on(sync: &str, before: &[&str], task: &str, look: &str, kept: &str) {
    for ablated in [false, true] {
        let bed = Bed::new();
        let all = bed.forgetful();
        for task in before {
            assert!(bed.answer(&all, task).is_some(), "{task} failed");
        }
        // From here on, everything before counts as synced.
        let disk = bed.forgetful();
        let disk = if ablated { disk.without_sync_of(sync) } else { disk };
        assert!(bed.cut_after(&disk, task).is_some(), "{task} was not acknowledged");
        let found = bed.answer(&disk, look);
        if ablated {
            let noticed = found.as_deref().is_some_and(|found| found != kept);
            assert!(noticed, "{task} without the sync of {sync}: {found:?}, so nobody would notice");
        } else {
            assert_eq!(found.as_deref(), Some(kept), "{task} was acknowledged and is gone");
        }
    }
}

#[test]
fn an_append_rests_on_the_sync_of_the_logs_journal() {
    rests_on(LOG_JOURNAL, &["open"], "append", "appended", "1");
}

#[test]
fn a_user_rests_on_the_sync_of_directory_rows() {
    rests_on(STORE_JOURNAL, &["open"], "user", "has-user", "true");
}

#[test]
fn an_enrolment_rests_on_the_sync_of_directory_rows() {
    rests_on(STORE_JOURNAL, &["open"], "device", "has-device", "true");
}

#[test]
fn published_key_packages_rest_on_the_sync_of_directory_rows() {
    rests_on(STORE_JOURNAL, &["open"], "packages", "packages-left", "2");
}

/// A package that was served must not be served again.
#[test]
fn a_claim_rests_on_the_sync_of_directory_rows() {
    rests_on(STORE_JOURNAL, &["open", "packages"], "claim", "packages-left", "1");
}

#[test]
fn a_blob_rests_on_the_sync_of_blobs() {
    rests_on(STORE_JOURNAL, &["open"], "blob", "has-blob", "true");
}

#[test]
fn trimming_the_log_rests_on_the_flush_of_the_checkpoint() {
    rests_on(STORE_JOURNAL, &["open"], "fold", "neither-in-log-nor-store", "0");
}

#[test]
fn a_new_log_rests_on_the_sync_of_its_keyspaces() {
    rests_on("log/keyspaces/", &[], "append", "appended", "1");
}

#[test]
fn a_new_store_rests_on_the_sync_of_its_keyspaces() {
    rests_on("store/keyspaces/", &[], "user", "has-user", "true");
}

#[test]
fn a_new_data_directory_rests_on_the_sync_of_what_holds_it() {
    rests_on("/", &[], "append", "appended", "1");
}

/// fjall changes journals and writes tables meanwhile.
#[test]
fn a_long_log_rests_on_the_sync_of_its_journals() {
    rests_on(LOG_JOURNAL, &["open"], "append-many", "appended", "80");
}

/// Sessions outlive a restart because the keys do.
#[test]
fn keys_rest_on_the_syncs_of_their_files_and_folders() {
    for sync in ["dev/*.unfinished", "dev/", "/"] {
        for ablated in [false, true] {
            let bed = Bed::new();
            let disk = bed.forgetful();
            let disk = if ablated { disk.without_sync_of(sync) } else { disk };
            let made = bed.cut_after(&disk, "keys").unwrap();
            let found = bed.answer(&disk, "keys");
            assert_eq!(found.as_deref() != Some(&made), ablated, "without the sync of {sync}: {ablated}");
        }
    }
}

/// Whenever the first start is cut off, the next one goes on from there.
#[test]
fn a_start_that_was_cut_off_can_be_started_again() {
    let seed = team::seed();
    let mut random = StdRng::seed_from_u64(seed);
    for _ in 0..3 {
        let bed = Bed::new();
        let disk = bed.forgetful();
        for _ in 0..4 {
            bed.cut_within(&disk, "open", Duration::from_millis(random.random_range(1..500)));
        }
        let opened = bed.answer(&disk, "open");
        assert_eq!(opened.as_deref(), Some("open"), "to see it again: WARDLINE_TEST_SEED={seed}");
    }
}
