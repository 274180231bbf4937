//! What fanout leaves behind, undisturbed and disturbed.

#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;

use bytes::Bytes;
use wardline_domain::Position;
use wardline_domain::conversation::RejectReason;
use wardline_domain::record::Control;
use wardline_fanout::Options;
use wardline_log::Topic;
use wardline_log::fold::Fold as _;
use wardline_log::laws::{Fault, MemoryLog};
use wardline_proto::internal::v1 as wire;
use wardline_proto::internal::v1::feed_event_record::Event;
use wardline_store::Stores;
use wardline_store::conversations::OutcomeResult;
use wardline_store::laws::faulty::{Faults, faulty_with_switch};

use self::support::script::{Script, Sends, device, user};
use self::support::{Left, conversation_in, drive, feeds, fold, left, source, stores};

const PARTITION: u32 = 2;

fn says(by: u8, id: u64, epoch: u64, text: &str) -> Sends {
    Sends { by, id, epoch, text: text.as_bytes().to_vec() }
}

/// A care team forms, talks, loses a device and goes on; somebody outside knocks; one record is broken.
fn shift() -> Script {
    let mut script = Script::default();
    let (team, other) = (conversation_in(PARTITION, 0), conversation_in(PARTITION, 1));
    script.create(team);
    script.send(team, says(0, 15, 0, "alone"));
    script.raw(Bytes::from_static(b"\xff\xff"));
    script.commit(team, says(0, 16, 0, ""), &[], &[1, 2, 3, 4, 5, 6, 7, 8, 9]);
    script.send(team, says(3, 50, 1, "together"));
    script.send(team, says(3, 50, 1, "together"));
    script.send(team, says(3, 50, 1, "another text"));
    script.send(team, says(4, 60, 0, "stale"));
    script.create(other);
    script.send(team, says(19, 61, 1, "from outside"));
    script.control(team, Control::DeviceRevoked { user: user(5), device: device(5) });
    script.send(team, says(4, 70, 1, "removal first"));
    script.commit(team, says(0, 71, 1, ""), &[5], &[]);
    script.send(other, says(0, 72, 0, "notes"));
    script.send(team, says(4, 80, 2, "on we go"));
    script
}

async fn calm(script: &Script, batch: usize) -> Left {
    let (stores, _dir) = stores();
    let log = Arc::new(MemoryLog::new(|_| Fault::Works));
    let mut fold = fold(&log, &stores, &Options::default(), PARTITION).await;
    drive(&mut fold, &script.records, batch).await;
    left(&log, &stores, script).await
}

fn events_of(left: &Left, n: u8) -> Vec<&Event> {
    let events = &left.feeds[&MemoryLog::PARTITIONS.partition_of(user(n).as_bytes())];
    let is_for = |event: &&wire::FeedEventRecord| {
        event.recipients.iter().any(|recipient| recipient.user_id == user(n).as_bytes()[..])
    };
    events.iter().filter(is_for).filter_map(|event| event.event.as_ref()).collect()
}

fn name(event: &Event) -> String {
    match event {
        Event::Message(message) => format!("message {}", message.sequence),
        Event::Welcome(welcome) => format!("welcome {}", welcome.epoch),
        Event::Rejected(rejected) => format!("rejected {}", rejected.reason),
        Event::ConversationChanged(changed) => format!("pending {}", changed.removal_pending.len()),
        _ => "another".to_owned(),
    }
}

#[tokio::test]
async fn everybody_gets_what_is_theirs_in_order() {
    let script = shift();
    let left = calm(&script, 100).await;
    let told = |n| events_of(&left, n).into_iter().map(name).collect::<Vec<_>>();
    let reason = |reason: RejectReason| format!("rejected {}", reason as u32);
    assert_eq!(
        told(4),
        [
            "welcome 1".to_owned(),
            "message 3".to_owned(),
            reason(RejectReason::StaleEpoch),
            "pending 1".to_owned(),
            reason(RejectReason::RemovalRequired),
            "message 4".to_owned(),
            "message 5".to_owned(),
        ]
    );
    assert_eq!(told(5), ["welcome 1", "message 3"], "a revoked device gets nothing more");
    assert_eq!(told(19), [reason(RejectReason::NotAMember)]);
    let third = told(3);
    assert_eq!(third[1..3], ["message 3".to_owned(), reason(RejectReason::MessageIdReused)]);
    assert_eq!(told(0)[..2], ["message 1", "message 2"]);
}

#[tokio::test]
async fn rows_say_what_the_log_says() {
    let script = shift();
    let left = calm(&script, 4).await;
    assert_eq!(left.messages.iter().map(Vec::len).collect::<Vec<_>>(), [5, 1]);
    assert_eq!(left.heads[0].as_ref().unwrap().last, script.records.last().unwrap().position);
    let rejected = |n: usize| left.outcomes[n].as_ref().and_then(|row| row.result.reason());
    assert_eq!(rejected(2), None, "the first of one id keeps its outcome");
    assert!(matches!(left.outcomes[3].as_ref().unwrap().result, OutcomeResult::Sequenced(_)));
    assert_eq!(rejected(5), Some(RejectReason::StaleEpoch));
    let member = |n: usize| left.memberships[n].iter().map(|row| row.member).collect::<Vec<_>>();
    assert_eq!((member(0), member(4), member(5), member(19)), (vec![true, true], vec![true], vec![false], vec![]));
}

#[tokio::test]
async fn what_does_not_decode_is_a_dead_letter_and_nothing_else() {
    let script = shift();
    let left = calm(&script, 100).await;
    let letters: Vec<_> = left.dead_letters.values().collect();
    assert_eq!(letters.len(), 1);
    let broken = &script.records[2];
    assert_eq!((letters[0].topic.as_str(), letters[0].partition), ("conversations", PARTITION));
    assert_eq!(letters[0].position, broken.position.as_u64());
    assert_eq!(letters[0].digest[..], broken.digest().as_bytes()[..]);
    let told = |position: u64| left.feeds.values().flatten().any(|event| event.source_position == position);
    assert!(!told(broken.position.as_u64()));
}

#[tokio::test]
async fn how_the_log_is_cut_into_batches_leaves_no_trace() {
    let script = shift();
    let whole = calm(&script, 100).await;
    for batch in 1..script.records.len() {
        assert_eq!(calm(&script, batch).await, whole);
    }
    assert!(whole.feeds.values().flatten().all(|event| event.source == source(PARTITION)));
}

/// Folds with whatever fails: each failure ends the process (`dies`) or is tried again, as the driver does.
async fn stubborn(log: &Arc<MemoryLog>, failing: &Stores, script: &Script, batch: usize, dies: bool) {
    let options = Options::default();
    let (mut owner, mut done) = (fold(log, failing, &options, PARTITION).await, 0);
    'next: while done < script.records.len() {
        let end = script.records.len().min(done + batch);
        let effects = loop {
            if let Ok(effects) = owner.apply(&script.records[done..end]).await {
                break effects;
            }
        };
        while owner.effects(&effects).await.is_err() {
            if dies {
                owner = fold(log, failing, &options, PARTITION).await;
                continue 'next;
            }
        }
        done = end;
    }
}

/// The law: wherever appends fail, and whether the process dies of it or tries again, what is left is what a calm run
/// leaves.
#[tokio::test]
async fn a_failure_at_any_append_leaves_no_trace() {
    let script = shift();
    let expected = calm(&script, 100).await;
    for fault in [Fault::NotApplied, Fault::UnknownApplied, Fault::UnknownNotApplied] {
        for dies in [false, true] {
            let mut nth = 0;
            loop {
                let (stores, _dir) = stores();
                let log = Arc::new(MemoryLog::new(move |call| if call == nth { fault } else { Fault::Works }));
                stubborn(&log, &stores, &script, 6, dies).await;
                assert_eq!(left(&log, &stores, &script).await, expected, "{fault:?} at {nth}, dies: {dies}");
                if log.calls() <= nth {
                    break;
                }
                nth += 1;
            }
        }
    }
}

/// The law: the same with a store that fails, tears batches of rows and forgets to answer.
#[tokio::test]
async fn failing_stores_leave_no_trace() {
    let script = shift();
    let expected = calm(&script, 100).await;
    for seed in 0..40 {
        let (stores, _dir) = stores();
        let (failing, _switch) = faulty_with_switch(stores.clone(), seed, Faults::default());
        let log = Arc::new(MemoryLog::new(move |call| match (call as u64 * 7 + seed) % 11 {
            0 => Fault::NotApplied,
            1 => Fault::UnknownApplied,
            _ => Fault::Works,
        }));
        let batch = 1 + (seed as usize % 7);
        stubborn(&log, &failing, &script, batch, seed % 2 == 0).await;
        assert_eq!(left(&log, &stores, &script).await, expected, "seed {seed}");
    }
}

/// The law: an owner that was thought dead may do its part late, or all of it, beside the new one.
#[tokio::test]
async fn a_zombie_leaves_no_trace() {
    let script = shift();
    let expected = calm(&script, 100).await;
    for (stops, batch) in [(0, 3), (3, 5), (6, 2), (9, 6)] {
        let (stores, _dir) = stores();
        let log = Arc::new(MemoryLog::new(|_| Fault::Works));
        let mut zombie = fold(&log, &stores, &Options::default(), PARTITION).await;
        drive(&mut zombie, &script.records[..stops], 2).await;
        let late = zombie.apply(&script.records[stops..stops + 4]).await.unwrap();
        let mut owner = fold(&log, &stores, &Options::default(), PARTITION).await;
        drive(&mut owner, &script.records[stops..], batch).await;
        zombie.effects(&late).await.unwrap();
        drive(&mut zombie, &script.records[stops + 4..], 3).await;
        assert_eq!(left(&log, &stores, &script).await, expected, "stopped at {stops}");
    }
}

/// The law: a message travels inline while its size times the records that carry it is at most the limit.
#[tokio::test]
async fn above_the_limit_a_message_travels_by_reference() {
    let script = shift();
    let whole = calm(&script, 100).await;
    let message = &whole.messages[0][4];
    let of_message = |event: &&wire::FeedEventRecord| event.source_position == message.position.as_u64();
    let records = whole.feeds.values().flatten().filter(of_message).count();
    assert!(records > 1);
    for (limit, by_reference) in [(message.sealed.len() * records, false), (message.sealed.len() * records - 1, true)] {
        let (stores, _dir) = stores();
        let log = Arc::new(MemoryLog::new(|_| Fault::Works));
        let options = Options { inline_bytes: limit, ..Options::default() };
        let mut fold = fold(&log, &stores, &options, PARTITION).await;
        drive(&mut fold, &script.records, 100).await;
        for event in feeds(&log).values().flatten().filter(of_message) {
            let Some(Event::Message(told)) = &event.event else { panic!("a message") };
            assert_eq!((told.by_reference, told.envelope.is_empty()), (by_reference, by_reference));
            assert_eq!(told.mls_message.is_empty(), by_reference);
        }
    }
}

#[tokio::test]
async fn a_record_in_another_conversations_partition_is_a_dead_letter() {
    let mut script = Script::default();
    script.create(conversation_in(PARTITION + 1, 0));
    let left = calm(&script, 1).await;
    assert_eq!(left.heads, [None]);
    assert_eq!(left.dead_letters.len(), 1);
    assert_eq!(left.dead_letters[&Position::new(1, 1).unwrap().as_u64()].topic, Topic::Conversations.name());
}
