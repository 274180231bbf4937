//! Redis away, back, emptied, hung, or strange: calls fail soon, and succeed again by themselves.
//!
//! Needs a `redis-server`, named by `WARDLINE_TEST_REDIS_SERVER` or on PATH; each test runs servers of its own.

#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use secrecy::SecretString;
use support::{Redis, answers, fails, until};
use tokio::net::TcpListener;
use tokio::time::{Instant, timeout};
use wardline_domain::failure::CauseKind;
use wardline_domain::{Failure, Position, Timestamp, UserId};
use wardline_registry::{Allowance, Owner, Presence, Rate, Registry};
use wardline_registry_redis::{Options, RedisRegistry, Tls, open};

const TTL: Duration = Duration::from_secs(600);
const RATE: Rate = Rate { burst: 2, per_second: 1 };

fn at(address: impl Into<String>) -> Options {
    let mut options = Options::new(address, "test");
    // Long enough that a busy machine is not taken for a server that is away.
    options.deadline = Duration::from_secs(2);
    options
}

fn owner(term: u64) -> Owner {
    Owner { term: Position::from_u64(term), address: format!("instance-{term}") }
}

/// All calls fail, and each says whether it may have happened.
async fn all_fail(registry: &RedisRegistry) {
    let user = UserId::from_bytes([1; 16]);
    let known = Presence { devices: 1, active_at: None, at: Timestamp::from_micros(1) };
    let failures = [
        registry.announce_owner(1, &owner(1), TTL).await.unwrap_err(),
        registry.owner(1).await.unwrap_err(),
        registry.announce_presence(&[(user, known)], TTL).await.unwrap_err(),
        registry.presence(&[user]).await.unwrap_err(),
        registry.take([1; 16], RATE, 1).await.unwrap_err(),
        registry.end_session([1; 16], TTL).await.unwrap_err(),
        registry.session_ended([1; 16]).await.unwrap_err(),
    ];
    for failure in failures {
        assert!(matches!(&failure, Failure::NotApplied(cause) if cause.kind == CauseKind::Unavailable), "{failure}");
    }
}

#[tokio::test]
async fn a_closed_port_fails_every_call_at_once_and_a_server_there_later_is_found() {
    let Some(mut redis) = Redis::new(&[]) else { return };
    let mut options = at(redis.address());
    options.deadline = Duration::from_secs(60);
    // Nothing waits for the deadline, not even the first call.
    let registry = timeout(Duration::from_secs(20), async {
        let registry = open(&options).unwrap();
        for _ in 0..100 {
            all_fail(&registry).await;
        }
        registry
    });
    let registry = registry.await.expect("a refused connection is not waited for");
    redis.start("--port").await;
    answers(&registry).await;
    assert_eq!(registry.take([1; 16], RATE, 1).await, Ok(Allowance::Granted));
}

#[tokio::test]
async fn a_killed_server_that_comes_back_empty_is_used_again() {
    let Some(mut redis) = Redis::new(&[]) else { return };
    redis.start("--port").await;
    let registry = open(&at(redis.address())).unwrap();
    answers(&registry).await;
    registry.announce_owner(1, &owner(5), TTL).await.unwrap();
    registry.end_session([1; 16], TTL).await.unwrap();
    redis.kill();
    fails(&registry).await;
    redis.start("--port").await;
    answers(&registry).await;
    // Nothing is there any more, and scripts have to be loaded anew.
    assert_eq!(registry.owner(1).await, Ok(None));
    assert_eq!(registry.session_ended([1; 16]).await, Ok(false));
    // Redis forgot the higher term, so that the lower one is as good as any: edges still refuse it.
    registry.announce_owner(1, &owner(4), TTL).await.unwrap();
    assert_eq!(registry.owner(1).await, Ok(Some(owner(4))));
    registry.announce_owner(1, &owner(5), TTL).await.unwrap();
    registry.announce_owner(1, &owner(4), TTL).await.unwrap();
    assert_eq!(registry.owner(1).await, Ok(Some(owner(5))));
}

#[tokio::test]
async fn a_stopped_server_costs_one_deadline_and_not_one_a_call() {
    let Some(mut redis) = Redis::new(&[]) else { return };
    redis.start("--port").await;
    let registry = open(&at(redis.address())).unwrap();
    answers(&registry).await;
    redis.signal("-STOP");
    let began = Instant::now();
    let first = registry.end_session([1; 16], TTL).await.unwrap_err();
    assert!(matches!(&first, Failure::Unknown(cause) if cause.kind == CauseKind::Timeout), "{first}");
    for _ in 0..100 {
        registry.session_ended([1; 16]).await.unwrap_err();
    }
    // The first, and one that waited for the attempt to connect anew.
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    redis.signal("-CONT");
    answers(&registry).await;
}

#[tokio::test]
async fn a_caller_that_loses_patience_first_is_a_sign_as_well() {
    let Some(mut redis) = Redis::new(&[]) else { return };
    redis.start("--port").await;
    let mut options = at(redis.address());
    options.deadline = Duration::from_secs(600);
    let registry = open(&options).unwrap();
    answers(&registry).await;
    redis.signal("-STOP");
    let hasty = Duration::from_millis(100);
    timeout(hasty, registry.session_ended([1; 16])).await.unwrap_err();
    redis.kill();
    // Long before its deadline the next call knows that there is nobody.
    until("calls to fail", || async {
        timeout(hasty, registry.session_ended([1; 16])).await.is_ok_and(|told| told.is_err())
    })
    .await;
}

#[tokio::test]
async fn a_listener_that_never_answers_is_no_redis() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let mut options = at(listener.local_addr().unwrap().to_string());
    options.deadline = Duration::from_millis(250);
    let registry = open(&options).unwrap();
    let began = Instant::now();
    for _ in 0..10 {
        all_fail(&registry).await;
    }
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_full_server_refuses_writes_and_still_answers() {
    let Some(mut redis) = Redis::new(&["--maxmemory", "1", "--maxmemory-policy", "noeviction"]) else { return };
    redis.start("--port").await;
    let registry = open(&at(redis.address())).unwrap();
    answers(&registry).await;
    for _ in 0..10 {
        let refused = registry.take([1; 16], RATE, 1).await.unwrap_err();
        assert!(matches!(refused, Failure::NotApplied(_)), "{refused}");
        assert_eq!(registry.session_ended([1; 16]).await, Ok(false));
    }
}

#[tokio::test]
async fn every_key_has_an_end_of_life() {
    let Some(mut redis) = Redis::new(&[]) else { return };
    redis.start("--port").await;
    let registry = open(&at(redis.address())).unwrap();
    answers(&registry).await;
    let user = UserId::from_bytes([1; 16]);
    let known = Presence { devices: 1, active_at: None, at: Timestamp::from_micros(1) };
    registry.announce_owner(1, &owner(1), TTL).await.unwrap();
    registry.announce_presence(&[(user, known)], TTL).await.unwrap();
    registry.end_session([1; 16], TTL).await.unwrap();
    // A bucket that would take a century to fill is forgotten all the same.
    let slow = Rate { burst: u32::MAX, per_second: 1 };
    assert_eq!(registry.take([1; 16], slow, u32::MAX).await, Ok(Allowance::Granted));
    assert!(matches!(registry.take([1; 16], slow, 1).await, Ok(Allowance::Exhausted(_))));

    let client = redis::Client::open(format!("redis://{}", redis.address())).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let keys: Vec<Vec<u8>> = redis::cmd("KEYS").arg("test:*").query_async(&mut connection).await.unwrap();
    assert_eq!(keys.len(), 4);
    for key in keys {
        let left: i64 = redis::cmd("PTTL").arg(&key).query_async(&mut connection).await.unwrap();
        assert!((1..=24 * 60 * 60 * 1000).contains(&left), "{key:?} {left}");
    }
}

#[tokio::test]
async fn passwords_and_certificates_are_checked() {
    let dir = tempfile::tempdir().unwrap();
    let [ca, certificate, key] = support::certificates(dir.path());
    let files = [&certificate, &key].map(|file| file.to_str().unwrap());
    let tls = ["--tls-cert-file", files[0], "--tls-key-file", files[1], "--tls-auth-clients", "no"];
    let Some(mut redis) = Redis::new(&[&tls[..], &["--requirepass", "a-test-password"]].concat()) else { return };
    redis.start("--tls-port").await;
    let mut options = at(redis.address());
    options.tls = Tls::Authorities(std::fs::read(&ca).unwrap());
    options.password = Some(SecretString::from("a-test-password"));
    let good = open(&options).unwrap();
    answers(&good).await;
    assert_eq!(good.session_ended([1; 16]).await, Ok(false));

    let stranger = tempfile::tempdir().unwrap();
    let other_ca = std::fs::read(&support::certificates(stranger.path())[0]).unwrap();
    let refused = [
        Options { password: Some(SecretString::from("wrong")), ..options.clone() },
        Options { password: None, ..options.clone() },
        Options { tls: Tls::Authorities(other_ca), ..options.clone() },
        Options { tls: Tls::System, ..options.clone() },
        Options { tls: Tls::Off, ..options.clone() },
    ];
    for options in refused {
        let registry = open(&options).unwrap();
        all_fail(&registry).await;
    }
}

/// What can never work is said at once; the panic-free rest is found out by trying.
#[tokio::test]
async fn options_that_cannot_work_are_refused() {
    for address in ["", "redis", ":6379", "redis:", "redis:65536", "redis:port"] {
        assert!(open(&at(address)).is_err(), "{address}");
    }
    let mut options = at("127.0.0.1:6379");
    for broken in ["", "no certificate", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
        options.tls = Tls::Authorities(broken.into());
        assert!(open(&options).is_err(), "{broken}");
    }
    assert!(open(&at("[::1]:6379")).is_ok());
}
