//! The laws every engine keeps: one function a law, each run against an empty registry of its own.
//!
//! A registry is a hint, so no law says that an answer is there; they say what an answer may be. The exception is a quiet
//! registry that nobody else uses, as a harness gives: there, what was announced is answered within its time.

use std::time::Duration;

use async_trait::async_trait;
use wardline_domain::{Position, Timestamp, UserId};

use crate::{Allowance, Owner, Presence, Rate, Registry};

/// An engine under test.
#[async_trait]
pub trait Harness: Send + Sync + Sized {
    /// An empty registry; `None` when the engine's server is not there and need not be.
    async fn start() -> Option<Self>;

    /// The registry.
    fn registry(&self) -> &dyn Registry;

    /// Lets time pass: moves the engine's clock, or waits where the clock is the server's.
    async fn pass(&self, time: Duration);
}

/// Makes one test of each law for a [`laws::Harness`](crate::laws::Harness).
#[macro_export]
macro_rules! registry_laws {
    ($harness:ty) => {
        $crate::registry_laws!(@each $harness:
            an_empty_registry_answers_nothing
            an_announced_owner_is_answered
            a_lower_term_never_replaces_a_higher_one
            an_equal_term_renews
            owners_end
            a_lower_term_may_follow_one_that_ended
            presence_is_answered_in_the_order_asked
            presence_is_the_last_announced_and_ends
            a_bucket_grants_its_burst_and_no_more
            a_bucket_refills_at_its_rate_up_to_its_burst
            an_exhausted_bucket_tells_when_to_come_back
            a_refusal_costs_nothing
            buckets_are_apart
            ended_sessions_are_told_until_their_time
            a_shorter_end_does_not_shorten_a_session_end
        );
    };
    (@each $harness:ty: $($law:ident)*) => {
        $(
            #[tokio::test]
            async fn $law() {
                if let Some(harness) = <$harness as $crate::laws::Harness>::start().await {
                    $crate::laws::$law(&harness).await;
                }
            }
        )*
    };
}

const TTL: Duration = Duration::from_secs(3);

fn owner(term: u64) -> Owner {
    Owner { term: Position::from_u64(term), address: format!("instance-{term}") }
}

fn user(n: u8) -> UserId {
    UserId::from_bytes([n; 16])
}

fn presence(devices: u32) -> Presence {
    Presence { devices, active_at: Some(Timestamp::from_micros(7)), at: Timestamp::from_micros(9) }
}

async fn announce(harness: &impl Harness, term: u64) {
    harness.registry().announce_owner(1, &owner(term), TTL).await.expect("a law needs an engine that answers");
}

async fn known(harness: &impl Harness) -> Option<Owner> {
    harness.registry().owner(1).await.expect("a law needs an engine that answers")
}

async fn take(harness: &impl Harness, key: u8, rate: Rate, cost: u32) -> Allowance {
    harness.registry().take([key; 16], rate, cost).await.expect("a law needs an engine that answers")
}

/// An empty registry has no owner, no presence, no ended session, and full buckets.
pub async fn an_empty_registry_answers_nothing(harness: &impl Harness) {
    assert_eq!(known(harness).await, None);
    assert_eq!(harness.registry().presence(&[user(1), user(2)]).await, Ok(vec![None, None]));
    assert_eq!(harness.registry().presence(&[]).await, Ok(vec![]));
    assert_eq!(harness.registry().session_ended([1; 16]).await, Ok(false));
    assert_eq!(take(harness, 1, Rate { burst: 5, per_second: 1 }, 5).await, Allowance::Granted);
}

/// What was announced is answered, for its partition only.
pub async fn an_announced_owner_is_answered(harness: &impl Harness) {
    announce(harness, 5).await;
    assert_eq!(known(harness).await, Some(owner(5)));
    assert_eq!(harness.registry().owner(2).await, Ok(None));
}

/// In whatever order terms are announced, the highest stands, and a lower one does not renew it.
pub async fn a_lower_term_never_replaces_a_higher_one(harness: &impl Harness) {
    // Beyond 2^53 a term is no exact floating-point number: engines must not compare them as such.
    let base = 1 << 60;
    for order in [[1, 2, 3], [1, 3, 2], [2, 1, 3], [2, 3, 1], [3, 1, 2], [3, 2, 1]] {
        for term in order {
            announce(harness, base + term).await;
        }
        assert_eq!(known(harness).await, Some(owner(base + 3)));
    }
    harness.pass(TTL / 2).await;
    announce(harness, base + 1).await;
    harness.pass(TTL).await;
    assert_eq!(known(harness).await, None);
}

/// The same term again takes the new address and time.
pub async fn an_equal_term_renews(harness: &impl Harness) {
    announce(harness, 5).await;
    harness.pass(TTL / 2).await;
    let moved = Owner { address: "elsewhere".to_owned(), ..owner(5) };
    harness.registry().announce_owner(1, &moved, TTL).await.expect("a law needs an engine that answers");
    harness.pass(TTL * 3 / 4).await;
    assert_eq!(known(harness).await, Some(moved));
}

/// An owner that stops announcing is not answered after its time.
pub async fn owners_end(harness: &impl Harness) {
    announce(harness, 5).await;
    harness.pass(TTL + Duration::from_millis(1)).await;
    assert_eq!(known(harness).await, None);
}

/// A term is remembered only as long as its owner: after that a lower one may be announced, as an edge refuses it anyway.
pub async fn a_lower_term_may_follow_one_that_ended(harness: &impl Harness) {
    announce(harness, 5).await;
    harness.pass(TTL + Duration::from_millis(1)).await;
    announce(harness, 4).await;
    assert_eq!(known(harness).await, Some(owner(4)));
}

/// Users are answered in the order asked, those asked twice twice.
pub async fn presence_is_answered_in_the_order_asked(harness: &impl Harness) {
    let users = [(user(1), presence(1)), (user(2), presence(2))];
    harness.registry().announce_presence(&users, TTL).await.expect("a law needs an engine that answers");
    let asked = [user(2), user(3), user(1), user(2)];
    let answer = vec![Some(presence(2)), None, Some(presence(1)), Some(presence(2))];
    assert_eq!(harness.registry().presence(&asked).await, Ok(answer));
}

/// The last announcement stands, with its own time.
pub async fn presence_is_the_last_announced_and_ends(harness: &impl Harness) {
    let never = Presence { devices: 0, active_at: None, at: Timestamp::from_micros(11) };
    for known in [presence(2), never] {
        harness
            .registry()
            .announce_presence(&[(user(1), known)], TTL)
            .await
            .expect("a law needs an engine that answers");
    }
    assert_eq!(harness.registry().presence(&[user(1)]).await, Ok(vec![Some(never)]));
    harness.pass(TTL + Duration::from_millis(1)).await;
    assert_eq!(harness.registry().presence(&[user(1)]).await, Ok(vec![None]));
}

/// A bucket that nobody used grants its burst, then nothing.
pub async fn a_bucket_grants_its_burst_and_no_more(harness: &impl Harness) {
    let rate = Rate { burst: 5, per_second: 1 };
    for _ in 0..5 {
        assert_eq!(take(harness, 1, rate, 1).await, Allowance::Granted);
    }
    assert!(matches!(take(harness, 1, rate, 1).await, Allowance::Exhausted(_)));
    assert!(matches!(take(harness, 2, rate, 6).await, Allowance::Exhausted(_)), "more than the burst never fits");
}

/// `per_second` tokens come back each second, and never more than the burst.
pub async fn a_bucket_refills_at_its_rate_up_to_its_burst(harness: &impl Harness) {
    let rate = Rate { burst: 4, per_second: 2 };
    assert_eq!(take(harness, 1, rate, 4).await, Allowance::Granted);
    harness.pass(Duration::from_secs(1)).await;
    assert_eq!(take(harness, 1, rate, 2).await, Allowance::Granted);
    harness.pass(Duration::from_secs(10)).await;
    assert_eq!(take(harness, 1, rate, 4).await, Allowance::Granted);
    assert!(matches!(take(harness, 1, rate, 2).await, Allowance::Exhausted(_)));
}

/// After the time told, the same cost is granted; the time is not longer than the rate explains.
pub async fn an_exhausted_bucket_tells_when_to_come_back(harness: &impl Harness) {
    let rate = Rate { burst: 3, per_second: 2 };
    assert_eq!(take(harness, 1, rate, 3).await, Allowance::Granted);
    let Allowance::Exhausted(after) = take(harness, 1, rate, 2).await else { panic!("an empty bucket granted two") };
    assert!(after > Duration::ZERO && after <= Duration::from_secs(1), "{after:?}");
    harness.pass(after).await;
    assert_eq!(take(harness, 1, rate, 2).await, Allowance::Granted);
}

/// What is refused takes no token.
pub async fn a_refusal_costs_nothing(harness: &impl Harness) {
    let rate = Rate { burst: 3, per_second: 1 };
    assert_eq!(take(harness, 1, rate, 1).await, Allowance::Granted);
    assert!(matches!(take(harness, 1, rate, 3).await, Allowance::Exhausted(_)));
    assert_eq!(take(harness, 1, rate, 2).await, Allowance::Granted);
}

/// One key's use is not another's.
pub async fn buckets_are_apart(harness: &impl Harness) {
    let rate = Rate { burst: 1, per_second: 1 };
    assert_eq!(take(harness, 1, rate, 1).await, Allowance::Granted);
    assert_eq!(take(harness, 2, rate, 1).await, Allowance::Granted);
    assert!(matches!(take(harness, 1, rate, 1).await, Allowance::Exhausted(_)));
}

/// An ended session is told of until its time, others are not.
pub async fn ended_sessions_are_told_until_their_time(harness: &impl Harness) {
    harness.registry().end_session([1; 16], TTL).await.expect("a law needs an engine that answers");
    assert_eq!(harness.registry().session_ended([1; 16]).await, Ok(true));
    assert_eq!(harness.registry().session_ended([2; 16]).await, Ok(false));
    harness.pass(TTL + Duration::from_millis(1)).await;
    assert_eq!(harness.registry().session_ended([1; 16]).await, Ok(false));
}

/// Ending a session again for a shorter time leaves the longer one.
pub async fn a_shorter_end_does_not_shorten_a_session_end(harness: &impl Harness) {
    for ttl in [TTL, TTL / 3] {
        harness.registry().end_session([1; 16], ttl).await.expect("a law needs an engine that answers");
    }
    harness.pass(TTL / 2).await;
    assert_eq!(harness.registry().session_ended([1; 16]).await, Ok(true));
}
