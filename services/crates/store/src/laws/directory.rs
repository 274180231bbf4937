//! Laws of tenants, users, devices and device logs.

use wardline_domain::{DeviceId, Digest};

use super::sample::{device, device_row, digest, log_entry, tenant, tenant_row, user, user_row};
use super::{Harness, ok};
use crate::directory::{Appended, DeviceLogRow, DeviceRow, Put};

/// How many racers a race has.
const RACERS: u8 = 8;

/// Runs all racers at once and answers in their order.
async fn race<T: Send + 'static>(racers: impl Iterator<Item = impl Future<Output = T> + Send + 'static>) -> Vec<T> {
    let running: Vec<_> = racers.map(tokio::spawn).collect();
    let mut answers = Vec::new();
    for racer in running {
        answers.push(racer.await.expect("a racer that panics has failed its law"));
    }
    answers
}

/// Exactly one create of a tenant is applied; the others are answered with the row that was.
pub async fn of_two_racing_creates_of_a_tenant_one_wins(harness: impl Harness) {
    let store = harness.stores().directory.clone();
    assert_eq!(ok(store.tenant(tenant(1)).await), None);
    let create = |request| {
        let store = store.clone();
        async move { ok(store.create_tenant(&tenant_row(1, request)).await) }
    };
    let answers = race((0..RACERS).map(create)).await;
    let winner = answers.iter().position(|answer| *answer == Put::Applied).expect("one of them is applied");
    let won = tenant_row(1, winner as u8);
    assert_eq!(answers.iter().filter(|answer| **answer == Put::Exists(won.clone())).count(), answers.len() - 1);
    assert_eq!(ok(store.tenant(tenant(1)).await), Some(won));
}

/// Exactly one of many users with the same external id, under different ids, is created.
pub async fn of_two_racing_creates_of_a_user_one_wins(harness: impl Harness) {
    let store = harness.stores().directory.clone();
    let create = |n: u8| {
        let store = store.clone();
        async move { ok(store.create_user(&user_row(u64::from(n), 1, "sub", n)).await) }
    };
    let answers = race((0..RACERS).map(create)).await;
    let winner = answers.iter().position(|answer| *answer == Put::Applied).expect("one of them is applied");
    let won = user_row(winner as u64, 1, "sub", winner as u8);
    assert_eq!(answers.iter().filter(|answer| **answer == Put::Exists(won.clone())).count(), answers.len() - 1);
    for n in 0..u64::from(RACERS) {
        let expected = (n == winner as u64).then(|| won.clone());
        assert_eq!(ok(store.user(user(n)).await), expected);
    }
    assert_eq!(ok(store.user_by_external_id(tenant(1), "sub").await), Some(won));
}

/// The same external id in two tenants names two users; a prefix of it names nobody; a taken id is refused in any tenant.
pub async fn an_external_id_is_unique_in_its_tenant_only(harness: impl Harness) {
    let store = &harness.stores().directory;
    let (first, second) = (user_row(1, 1, "subject", 1), user_row(2, 2, "subject", 2));
    assert_eq!(ok(store.create_user(&first).await), Put::Applied);
    assert_eq!(ok(store.create_user(&second).await), Put::Applied);
    assert_eq!(ok(store.create_user(&user_row(3, 1, "subject", 3)).await), Put::Exists(first.clone()));
    assert_eq!(ok(store.create_user(&user_row(1, 2, "other", 3)).await), Put::Exists(first.clone()));
    assert_eq!(ok(store.user_by_external_id(tenant(1), "subject").await), Some(first));
    assert_eq!(ok(store.user_by_external_id(tenant(2), "subject").await), Some(second));
    assert_eq!(ok(store.user_by_external_id(tenant(1), "subj").await), None);
    assert_eq!(ok(store.user_by_external_id(tenant(2), "other").await), None);
}

/// An update is applied when it follows the stored version, else answered with what stands there.
pub async fn a_user_is_updated_from_the_version_before_only(harness: impl Harness) {
    let store = &harness.stores().directory;
    let first = user_row(1, 1, "sub", 1);
    ok(store.create_user(&first).await);
    let mut second = first.clone();
    second.version = 2;
    second.deactivated = true;
    let mut third = first.clone();
    third.version = 3;
    assert_eq!(ok(store.update_user(&third).await), Put::Exists(first.clone()));
    assert_eq!(ok(store.update_user(&first).await), Put::Exists(first));
    assert_eq!(ok(store.update_user(&second).await), Put::Applied);
    assert_eq!(ok(store.update_user(&second).await), Put::Exists(second.clone()));
    assert_eq!(ok(store.user(user(1)).await), Some(second.clone()));
    assert_eq!(ok(store.user_by_external_id(tenant(1), "sub").await), Some(second));
    assert_eq!(ok(store.update_user(&third).await), Put::Applied);
}

/// Exactly one of many updates from the same version is applied.
pub async fn of_two_racing_updates_of_a_user_one_wins(harness: impl Harness) {
    let store = harness.stores().directory.clone();
    ok(store.create_user(&user_row(1, 1, "sub", 1)).await);
    let updated = |n: u8| {
        let mut row = user_row(1, 1, "sub", 1);
        row.version = 2;
        row.sealed_profile = vec![n].into();
        row
    };
    let update = |n| {
        let store = store.clone();
        async move { ok(store.update_user(&updated(n)).await) }
    };
    let answers = race((0..RACERS).map(update)).await;
    let winner = answers.iter().position(|answer| *answer == Put::Applied).expect("one of them is applied");
    let won = updated(winner as u8);
    assert_eq!(answers.iter().filter(|answer| **answer == Put::Exists(won.clone())).count(), answers.len() - 1);
    assert_eq!(ok(store.user(user(1)).await), Some(won));
}

/// A user's log of `count` enrolled devices.
fn log(of: u64, count: u64) -> Vec<DeviceLogRow> {
    let mut previous = Digest::default();
    let entry = |version| {
        let entry = log_entry(version, device_row(of, of * 100 + version, of * 100 + version), previous);
        previous = entry.hash;
        entry
    };
    (1..=count).map(entry).collect()
}

/// Entries follow the log's head in version and hash, else they conflict with it; reads begin above a version.
pub async fn a_device_log_is_dense_and_chained(harness: impl Harness) {
    let store = &harness.stores().directory;
    let entries = log(1, 5);
    assert_eq!(ok(store.append_device_log(&entries[1]).await), Appended::Conflict { version: 0 });
    for (entry, version) in entries.iter().zip(1..) {
        assert_eq!(ok(store.append_device_log(entry).await), Appended::Applied);
        let gap = log_entry(version + 2, device_row(1, 90, 90), entry.hash);
        assert_eq!(ok(store.append_device_log(&gap).await), Appended::Conflict { version });
        let unchained = log_entry(version + 1, device_row(1, 90, 90), digest(77));
        assert_eq!(ok(store.append_device_log(&unchained).await), Appended::Conflict { version });
    }
    ok(store.append_device_log(&log(2, 1)[0]).await);
    assert_eq!(ok(store.device_log(user(1), 0, 100).await), entries);
    assert_eq!(ok(store.device_log(user(1), 2, 2).await), entries[2..4]);
    assert_eq!(ok(store.device_log(user(1), 5, 100).await), vec![]);
    assert_eq!(ok(store.device(user(1), device(90)).await), None);
    assert_eq!(ok(store.device_by_thumbprint(digest(90)).await), None);
}

/// Of entries with the same predecessor exactly one is applied; the others conflict with it and leave no device.
pub async fn of_two_racing_entries_of_a_device_log_one_wins(harness: impl Harness) {
    let store = harness.stores().directory.clone();
    let append = |n: u8| {
        let store = store.clone();
        let n = u64::from(n);
        async move { ok(store.append_device_log(&log_entry(1, device_row(1, n, n), Digest::default())).await) }
    };
    let answers = race((0..RACERS).map(append)).await;
    let winner = answers.iter().position(|answer| *answer == Appended::Applied).expect("one of them is applied") as u64;
    let lost = answers.iter().filter(|answer| **answer == Appended::Conflict { version: 1 }).count();
    assert_eq!(lost, answers.len() - 1);
    assert_eq!(ok(store.devices(user(1)).await), vec![device_row(1, winner, winner)]);
    assert_eq!(ok(store.device_log(user(1), 0, 9).await).len(), 1);
}

/// The head's own entry again is answered as applied and changes nothing: who got no answer may ask again.
pub async fn a_device_log_entry_repeated_is_applied_once(harness: impl Harness) {
    let store = &harness.stores().directory;
    for entry in log(1, 2) {
        for _ in 0..2 {
            assert_eq!(ok(store.append_device_log(&entry).await), Appended::Applied);
        }
    }
    assert_eq!(ok(store.device_log(user(1), 0, 9).await), log(1, 2));
}

/// A session key of another device, of the same user or another, revoked or not, is refused and nothing is written.
pub async fn a_session_key_belongs_to_one_device(harness: impl Harness) {
    let store = &harness.stores().directory;
    let first = log_entry(1, device_row(1, 1, 7), Digest::default());
    assert_eq!(ok(store.append_device_log(&first).await), Appended::Applied);
    let of_another = log_entry(1, device_row(2, 2, 7), Digest::default());
    let of_the_same = log_entry(2, device_row(1, 3, 7), first.hash);
    for entry in [&of_another, &of_the_same] {
        assert_eq!(ok(store.append_device_log(entry).await), Appended::KeyTaken);
    }
    let mut revoked = device_row(1, 1, 7);
    revoked.revoked = true;
    ok(store.append_device_log(&log_entry(2, revoked.clone(), first.hash)).await);
    assert_eq!(ok(store.append_device_log(&of_another).await), Appended::KeyTaken);
    assert_eq!(ok(store.device_log(user(2), 0, 9).await), vec![]);
    assert_eq!(ok(store.devices(user(2)).await), vec![]);
    assert_eq!(ok(store.device_by_thumbprint(digest(7)).await), Some(revoked));
}

/// Of many users' devices that bring the same session key at once, one gets it.
pub async fn of_two_racing_enrolments_of_a_session_key_one_wins(harness: impl Harness) {
    let store = harness.stores().directory.clone();
    let append = |n: u8| {
        let store = store.clone();
        let n = u64::from(n);
        async move { ok(store.append_device_log(&log_entry(1, device_row(n, n, 7), Digest::default())).await) }
    };
    let answers = race((0..RACERS).map(append)).await;
    let winner = answers.iter().position(|answer| *answer == Appended::Applied).expect("one of them is applied") as u64;
    assert_eq!(answers.iter().filter(|answer| **answer == Appended::KeyTaken).count(), answers.len() - 1);
    assert_eq!(ok(store.device_by_thumbprint(digest(7)).await), Some(device_row(winner, winner, 7)));
    for n in 0..u64::from(RACERS) {
        let entries = ok(store.device_log(user(n), 0, 9).await).len();
        assert_eq!(entries, usize::from(n == winner));
    }
}

/// The id of another user's device, revoked or not, is refused and nothing is written: others know a device by its id alone.
pub async fn a_device_id_belongs_to_one_user(harness: impl Harness) {
    let store = &harness.stores().directory;
    let first = log_entry(1, device_row(1, 7, 1), Digest::default());
    assert_eq!(ok(store.append_device_log(&first).await), Appended::Applied);
    let of_another = log_entry(1, DeviceRow { device: device(7), ..device_row(2, 2, 2) }, Digest::default());
    assert_eq!(ok(store.append_device_log(&of_another).await), Appended::DeviceTaken);
    let mut revoked = device_row(1, 7, 1);
    revoked.revoked = true;
    assert_eq!(ok(store.append_device_log(&log_entry(2, revoked, first.hash)).await), Appended::Applied);
    assert_eq!(ok(store.append_device_log(&of_another).await), Appended::DeviceTaken);
    assert_eq!(ok(store.device_log(user(2), 0, 9).await), vec![]);
    assert_eq!(ok(store.device(user(2), device(7)).await), None);
    assert_eq!(ok(store.device_by_thumbprint(digest(2)).await), None);
}

/// Of many users that bring a device of the same id at once, one gets it.
pub async fn of_two_racing_enrolments_of_a_device_id_one_wins(harness: impl Harness) {
    let store = harness.stores().directory.clone();
    let append = |n: u8| {
        let store = store.clone();
        let row = DeviceRow { device: device(7), ..device_row(u64::from(n), u64::from(n), u64::from(n)) };
        async move { ok(store.append_device_log(&log_entry(1, row, Digest::default())).await) }
    };
    let answers = race((0..RACERS).map(append)).await;
    assert_eq!(answers.iter().filter(|answer| **answer == Appended::Applied).count(), 1);
    assert_eq!(answers.iter().filter(|answer| **answer == Appended::DeviceTaken).count(), answers.len() - 1);
    for (n, answer) in (0..).zip(&answers) {
        let stored = ok(store.device(user(n), device(7)).await).is_some();
        assert_eq!(stored, *answer == Appended::Applied);
    }
}

/// An MLS key of another device, of the same user or another, revoked or not, is refused for the same suite, and nothing is
/// written.
pub async fn an_mls_key_belongs_to_one_device(harness: impl Harness) {
    let store = &harness.stores().directory;
    let first = log_entry(1, device_row(1, 1, 1), Digest::default());
    assert_eq!(ok(store.append_device_log(&first).await), Appended::Applied);
    let mut row = device_row(2, 2, 2);
    row.mls_keys[1].public_key = first.device.mls_keys[1].public_key.clone();
    let of_another = log_entry(1, row.clone(), Digest::default());
    let of_the_same = log_entry(2, DeviceRow { user: user(1), ..row.clone() }, first.hash);
    for entry in [&of_another, &of_the_same] {
        assert_eq!(ok(store.append_device_log(entry).await), Appended::MlsKeyTaken);
    }
    let revoked = DeviceRow { revoked: true, ..first.device.clone() };
    assert_eq!(ok(store.append_device_log(&log_entry(2, revoked, first.hash)).await), Appended::Applied);
    assert_eq!(ok(store.append_device_log(&of_another).await), Appended::MlsKeyTaken);
    assert_eq!(ok(store.devices(user(2)).await), vec![]);
    // The same bytes for another suite are another key.
    row.mls_keys.truncate(1);
    row.mls_keys[0].suite = 3;
    row.mls_keys[0].public_key = first.device.mls_keys[1].public_key.clone();
    assert_eq!(ok(store.append_device_log(&log_entry(1, row, Digest::default())).await), Appended::Applied);
}

/// A device's row is what the log's latest entry of it says; devices come by id, revoked ones included.
pub async fn devices_stand_as_their_log_says(harness: impl Harness) {
    let store = &harness.stores().directory;
    let mut entries = log(1, 3);
    let mut revoked = entries[0].device.clone();
    revoked.revoked = true;
    entries.push(log_entry(4, revoked.clone(), entries[2].hash));
    for entry in &entries {
        assert_eq!(ok(store.append_device_log(entry).await), Appended::Applied);
    }
    let devices = vec![revoked.clone(), entries[1].device.clone(), entries[2].device.clone()];
    assert_eq!(ok(store.devices(user(1)).await), devices);
    assert_eq!(ok(store.device(user(1), revoked.device).await), Some(revoked.clone()));
    assert_eq!(ok(store.device(user(2), revoked.device).await), None);
    assert_eq!(ok(store.device_by_thumbprint(revoked.thumbprint).await), Some(revoked));
    assert_eq!(ok(store.devices(user(2)).await), vec![]);
}

/// What was answered is there after the process was killed, with its indexes.
pub async fn the_directory_survives_the_end_of_the_process(harness: impl Harness) {
    let store = &harness.stores().directory;
    ok(store.create_tenant(&tenant_row(1, 1)).await);
    ok(store.create_user(&user_row(1, 1, "sub", 1)).await);
    for entry in log(1, 2) {
        ok(store.append_device_log(&entry).await);
    }
    let Some(harness) = harness.crash().await else { return };
    let store = &harness.stores().directory;
    assert_eq!(ok(store.tenant(tenant(1)).await), Some(tenant_row(1, 1)));
    assert_eq!(ok(store.user_by_external_id(tenant(1), "sub").await), Some(user_row(1, 1, "sub", 1)));
    assert_eq!(ok(store.device_log(user(1), 0, 9).await), log(1, 2));
    let second: DeviceId = device(102);
    assert_eq!(ok(store.device_by_thumbprint(digest(102)).await).map(|row| row.device), Some(second));
}
