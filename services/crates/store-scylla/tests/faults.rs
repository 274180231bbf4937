//! Changes of the directory whose requests or answers are lost or late, and another process that wants the same meanwhile:
//! one of the two gets it, whoever asks again is answered the same, and nobody is locked out.
//!
//! Each change is tried with the fault at its first request, its second, and so on until the fault comes too late.

#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;
use std::time::Duration;

use support::proxy::{Fault, Proxy};
use support::{Lease, nodes, on_runtime, options};
use wardline_domain::Digest;
use wardline_store::directory::{Appended, Claimed, DeviceLogRow, Put, UserRow};
use wardline_store::laws::sample::{
    day, device, device_row, last_resort, log_entry, package, tenant_row, time, user, user_row,
};
use wardline_store::{Result, Stores};
use wardline_store_scylla::open;

/// How long a process waits for an answer that was lost. Not shorter than a busy server takes.
const SHORT: Duration = Duration::from_millis(700);

/// The most requests a change makes.
const MOST: usize = 40;

/// Two processes: one reaches the server through a proxy.
struct World {
    lease: Lease,
    proxy: Proxy,
    through: Arc<Stores>,
}

impl World {
    async fn start(fault: Fault) -> Option<Self> {
        let nodes = nodes()?;
        let lease = Lease::take(nodes.clone()).await;
        let keyspace = lease.keyspace().to_owned();
        let (proxy, through) = on_runtime(async move {
            let proxy = Proxy::start(nodes[0].clone()).await;
            let mut options = options(vec![proxy.address.to_string()], &keyspace);
            if fault != Fault::Hold {
                options.read_timeout = SHORT;
                options.lwt_timeout = SHORT;
            }
            (proxy, Arc::new(open(options).await.unwrap()))
        })
        .await;
        Some(Self { lease, proxy, through })
    }

    fn direct(&self) -> &Stores {
        self.lease.stores()
    }

    /// Runs the first process's change with a fault at request `at`, and then, or while that request is held back, the
    /// second process's. Answers with both ends and whether the fault was met.
    async fn contend<A, B>(
        &self,
        (fault, at): (Fault, usize),
        first: impl Future<Output = A> + Send + 'static,
        second: impl Future<Output = B> + Send,
    ) -> (A, B, bool)
    where
        A: Send + 'static,
    {
        self.proxy.arm(fault, at).await;
        let mut first = tokio::spawn(first);
        if fault != Fault::Hold {
            let first = first.await.unwrap();
            let met = self.proxy.heal().await;
            return (first, second.await, met);
        }
        let ended = tokio::select! {
            () = self.proxy.held() => None,
            end = &mut first => Some(end.unwrap()),
        };
        let second = second.await;
        let met = self.proxy.heal().await;
        self.proxy.release();
        let first = match ended {
            Some(end) => end,
            None => first.await.unwrap(),
        };
        (first, second, met)
    }
}

/// Runs a case with the fault at each request in turn.
async fn at_each_request(fault: Fault, mut case: impl AsyncFnMut(&World, usize) -> bool) {
    let Some(world) = World::start(fault).await else { return };
    for at in 0..MOST {
        if !case(&world, at).await {
            assert!(at > 0, "the fault met nothing");
            return;
        }
    }
    panic!("a change makes more than {MOST} requests");
}

/// A user with an external id that another wants, too.
async fn create_user(world: &World, fault: Fault, at: usize) -> bool {
    let n = at as u64;
    let (mine, theirs) = (user_row(1000 + n, 1, &format!("s{at}"), 1), user_row(2000 + n, 1, &format!("s{at}"), 2));
    let (through, direct) = (Arc::clone(&world.through), &world.direct().directory);
    let first = {
        let mine = mine.clone();
        async move { through.directory.create_user(&mine).await }
    };
    let (first, second, met) = world.contend((fault, at), first, direct.create_user(&theirs)).await;
    let won = match second.unwrap() {
        Put::Applied => &theirs,
        Put::Exists(stored) => {
            assert_eq!(stored, mine);
            &mine
        }
    };
    check_first(&first, &mine, won);
    // The same request under another id, as when the server chooses ids.
    let again = UserRow { user: user(3000 + n), ..mine.clone() };
    assert_eq!(direct.create_user(&again).await.unwrap(), Put::Exists(won.clone()));
    assert_eq!(direct.create_user(&mine).await.unwrap(), Put::Exists(won.clone()));
    assert_eq!(direct.user_by_external_id(mine.tenant, &mine.external_id).await.unwrap().as_ref(), Some(won));
    for row in [&mine, &theirs] {
        assert_eq!(direct.user(row.user).await.unwrap().as_ref(), (row == won).then_some(won));
    }
    assert_eq!(direct.user(again.user).await.unwrap(), None);
    met
}

fn check_first(first: &Result<Put<UserRow>>, mine: &UserRow, won: &UserRow) {
    match first {
        Ok(Put::Applied) => assert_eq!(won, mine),
        Ok(Put::Exists(stored)) => assert_eq!(stored, won),
        Err(_) => (),
    }
}

/// A tenant that another creates, too.
async fn create_tenant(world: &World, fault: Fault, at: usize) -> bool {
    let (through, direct) = (Arc::clone(&world.through), &world.direct().directory);
    let (mine, theirs) = (tenant_row(1000 + at as u64, 1), tenant_row(1000 + at as u64, 2));
    let first = {
        let mine = mine.clone();
        async move { through.directory.create_tenant(&mine).await }
    };
    let (first, second, met) = world.contend((fault, at), first, direct.create_tenant(&theirs)).await;
    let won = if second.unwrap() == Put::Applied { &theirs } else { &mine };
    match first {
        Ok(Put::Applied) => assert_eq!(won, &mine),
        // Whose answer was lost finds its own row and knows it.
        Ok(Put::Exists(stored)) => assert_eq!((&stored, won), (&theirs, &theirs)),
        Err(_) => (),
    }
    assert_eq!(direct.create_tenant(&mine).await.unwrap(), Put::Exists(won.clone()));
    assert_eq!(direct.tenant(mine.tenant).await.unwrap().as_ref(), Some(won));
    met
}

/// A change of a user that another changes, too.
async fn update_user(world: &World, fault: Fault, at: usize) -> bool {
    let (through, direct) = (Arc::clone(&world.through), &world.direct().directory);
    let stored = user_row(1000 + at as u64, 1, &format!("u{at}"), 1);
    assert_eq!(direct.create_user(&stored).await.unwrap(), Put::Applied);
    let mine = UserRow { version: 2, external_id: format!("new{at}"), ..stored.clone() };
    let theirs = UserRow { version: 2, deactivated: true, ..stored.clone() };
    let first = {
        let mine = mine.clone();
        async move { through.directory.update_user(&mine).await }
    };
    let (first, second, met) = world.contend((fault, at), first, direct.update_user(&theirs)).await;
    let won = if second.unwrap() == Put::Applied { &theirs } else { &mine };
    check_first(&first, &mine, won);
    assert_eq!(direct.user(stored.user).await.unwrap().as_ref(), Some(won));
    assert_eq!(direct.user_by_external_id(won.tenant, &won.external_id).await.unwrap().as_ref(), Some(won));
    // The external id that nobody has can be had.
    let free = if won == &mine { &stored.external_id } else { &mine.external_id };
    let another = user_row(2000 + at as u64, 1, free, 3);
    assert_eq!(direct.create_user(&another).await.unwrap(), Put::Applied);
    met
}

/// A device whose session key another user brings, too.
async fn append_device_log(world: &World, fault: Fault, at: usize) -> bool {
    let n = at as u64;
    let (through, direct) = (Arc::clone(&world.through), &world.direct().directory);
    let entry = |of| log_entry(1, device_row(of, of, 5000 + n), Digest::default());
    let (mine, theirs) = (entry(1000 + n), entry(2000 + n));
    let first = {
        let mine = mine.clone();
        async move { through.directory.append_device_log(&mine).await }
    };
    let (first, second, met) = world.contend((fault, at), first, direct.append_device_log(&theirs)).await;
    let (won, lost) = match second.unwrap() {
        Appended::Applied => (&theirs, &mine),
        Appended::KeyTaken => (&mine, &theirs),
        other => panic!("{other:?}"),
    };
    match first {
        Ok(Appended::Applied) => assert_eq!(won, &mine),
        Ok(other) => assert_eq!((other, won), (Appended::KeyTaken, &theirs)),
        Err(_) => (),
    }
    assert_eq!(direct.append_device_log(won).await.unwrap(), Appended::Applied);
    assert_eq!(direct.append_device_log(lost).await.unwrap(), Appended::KeyTaken);
    assert_eq!(direct.device_by_thumbprint(won.device.thumbprint).await.unwrap().as_ref(), Some(&won.device));
    assert_eq!(direct.device_log(won.device.user, 0, 9).await.unwrap(), std::slice::from_ref(won));
    assert_eq!(direct.device_log(lost.device.user, 0, 9).await.unwrap(), Vec::<DeviceLogRow>::new());
    assert_eq!(direct.devices(lost.device.user).await.unwrap(), []);
    // What the loser brought besides is free.
    let mut rest = lost.device.clone();
    rest.user = user(3000 + n);
    rest.thumbprint = Digest::of(&n.to_be_bytes());
    let rest = log_entry(1, rest, Digest::default());
    assert_eq!(direct.append_device_log(&rest).await.unwrap(), Appended::Applied);
    met
}

/// A claim of key packages while another claims of the same user.
async fn claim_key_packages(world: &World, fault: Fault, at: usize) -> bool {
    let of = 1000 + at as u64;
    let (through, direct) = (Arc::clone(&world.through), &world.direct().directory);
    let mut rows: Vec<_> = (0..3).map(|n| package(of, 1, n, 90 + n)).collect();
    rows.push(last_resort(of, 1, 9, 90));
    assert_eq!(direct.publish_key_packages(&rows, 100).await.unwrap(), 3);
    async fn claim(stores: &Stores, of: u64, by: u8) -> Result<Claimed> {
        stores.directory.claim_key_packages(user(of), 1, &[device(1)], [by; 16], day(60), time(5)).await
    }
    let first = async move { claim(&through, of, 1).await };
    let (first, second, met) = world.contend((fault, at), first, claim(world.direct(), of, 2)).await;
    let second = second.unwrap();
    let again = claim(world.direct(), of, 1).await.unwrap();
    if let Ok(first) = first {
        assert_eq!(first, again);
    }
    assert_eq!(claim(world.direct(), of, 2).await.unwrap(), second);
    assert_ne!(again.packages[0].reference, second.packages[0].reference);
    let status = direct.key_package_status(user(of), device(1), 1, day(60)).await.unwrap();
    assert_eq!((status.available, status.last_resort_used), (1, None));
    for claimed in [&again, &second] {
        let row = &claimed.packages[0];
        assert_eq!(direct.served_key_package(user(of), 1, row.reference).await.unwrap().as_ref(), Some(row));
    }
    met
}

/// Who claimed a session key and died, and claims it again after its log has moved on, keeps it from whoever was about to
/// take the first claim over.
#[tokio::test]
async fn a_claim_made_again_is_not_taken_over() {
    let Some(world) = World::start(Fault::Cut).await else { return };
    for at in 0..MOST {
        let n = at as u64;
        let direct = &world.direct().directory;
        let mine = device_row(1000 + n, 1000 + n, 5000 + n);
        let (through, entry) = (Arc::clone(&world.through), log_entry(1, mine.clone(), Digest::default()));
        // Its head, four looks, four claims and the device are read and written; the entry is not.
        let died = async move { through.directory.append_device_log(&entry).await };
        let other = log_entry(1, device_row(1000 + n, 3000 + n, 6000 + n), Digest::default());
        let (died, moved, cut) = world.contend((Fault::Cut, 10), died, direct.append_device_log(&other)).await;
        assert!(died.is_err() && cut);
        assert_eq!(moved.unwrap(), Appended::Applied);
        let mine = log_entry(2, mine, other.hash);
        let theirs = log_entry(1, device_row(2000 + n, 2000 + n, 5000 + n), Digest::default());
        let (through, taking) = (Arc::clone(&world.through), theirs.clone());
        let taking = async move { through.directory.append_device_log(&taking).await };
        let (first, second, met) = world.contend((Fault::Hold, at), taking, direct.append_device_log(&mine)).await;
        let won = match second.unwrap() {
            Appended::Applied => &mine,
            Appended::KeyTaken => &theirs,
            other => panic!("{other:?}"),
        };
        match first {
            Ok(Appended::Applied) => assert_eq!(won, &theirs),
            Ok(other) => assert_eq!((other, won), (Appended::KeyTaken, &mine)),
            Err(_) => (),
        }
        assert_eq!(direct.device_by_thumbprint(won.device.thumbprint).await.unwrap().as_ref(), Some(&won.device));
        let devices = [mine.device.user, theirs.device.user].map(|user| (user, won.device.user == user));
        for (user, has_it) in devices {
            let all = direct.devices(user).await.unwrap();
            assert_eq!(all.iter().any(|row| row.thumbprint == won.device.thumbprint), has_it);
        }
        if !met {
            return;
        }
    }
    panic!("a change makes more than {MOST} requests");
}

macro_rules! at_each_request {
    ($($case:ident)*) => {
        $(
            mod $case {
                use super::*;

                #[tokio::test]
                async fn whose_answer_is_lost() {
                    at_each_request(Fault::Lose, async |world, at| $case(world, Fault::Lose, at).await).await;
                }

                #[tokio::test]
                async fn whose_process_ends() {
                    at_each_request(Fault::Cut, async |world, at| $case(world, Fault::Cut, at).await).await;
                }

                #[tokio::test]
                async fn whose_request_is_late() {
                    at_each_request(Fault::Hold, async |world, at| $case(world, Fault::Hold, at).await).await;
                }
            }
        )*
    };
}

at_each_request!(create_tenant create_user update_user append_device_log claim_key_packages);
