//! `apply` against a reference written from DESIGN alone, over generated schedules: straight, through crashes at every
//! point between effects, and with a zombie owner beside the new one.
#![allow(clippy::unwrap_used)]

mod reference;
mod schedule;
#[path = "../support/mod.rs"]
mod support;
mod toy;

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use reference::{Event, Reference, Seat, Verdict};
use schedule::{Plan, Schedule, plan};
use support::{device, key_hash, record, user_of};
use toy::{Owner, Store};
use wardline_domain::DeviceId;
use wardline_domain::conversation::Outcome;
use wardline_domain::record::{Body, Record};
use wardline_domain::roster::{Audience, Roster, RosterDelta};

/// The log of a schedule, with gaps between offsets as aborted appends leave them.
fn log_of(schedule: &Schedule) -> Vec<Record> {
    let records = schedule.events.iter().enumerate().map(|(number, (millis, event))| {
        let body = match event {
            Event::Create { create, .. } => Body::Create(create.clone()),
            Event::Submit(draft) => Body::Submission(Box::new(draft.build())),
            Event::Control(control) => Body::Control(control.clone()),
        };
        record(1 + 2 * number as u64, *millis, body)
    });
    records.collect()
}

fn devices(audience: &Audience) -> BTreeSet<DeviceId> {
    audience.iter().flat_map(|recipient| recipient.devices.iter().copied()).collect()
}

fn numbers(devices: &BTreeSet<u16>) -> BTreeSet<DeviceId> {
    devices.iter().map(|number| device(*number)).collect()
}

/// The roster as the deltas make it, held against the reference's leaves.
fn same_leaves(roster: &Roster, expected: &[Option<Seat>]) -> bool {
    let wanted: BTreeMap<u32, &Seat> =
        expected.iter().enumerate().filter_map(|(index, seat)| Some((index as u32, seat.as_ref()?))).collect();
    wanted.len() == roster.leaves().len()
        && roster.leaves().iter().all(|(index, leaf)| {
            wanted.get(index).is_some_and(|seat| {
                let admin = leaf.role == wardline_domain::roster::Role::Admin;
                (leaf.device, leaf.user, leaf.key_hash)
                    == (device(seat.device), user_of(seat.device), key_hash(seat.device))
                    && (admin, leaf.removal_pending, leaf.joined.0) == (seat.admin, seat.pending, seat.joined)
            })
        })
}

fn advance(roster: &mut Roster, delta: Option<&RosterDelta>) {
    if let Some(delta) = delta {
        roster.apply(delta).expect("deltas come in order");
    }
}

/// Whether an outcome is what the reference says. `roster` follows the deltas.
fn agrees(outcome: &Outcome, verdict: &Verdict, roster: &mut Roster) -> bool {
    match (outcome, verdict) {
        (Outcome::Ignored, Verdict::Ignored)
        | (Outcome::Repeat, Verdict::Repeat)
        | (Outcome::Conflict(_), Verdict::Conflict) => true,
        (Outcome::Created { delta }, Verdict::Created) => {
            advance(roster, Some(delta));
            true
        }
        (Outcome::CreateRepeated { same }, Verdict::CreateRepeated { same: expected }) => same == expected,
        (Outcome::Rejected(found), Verdict::Rejected { reason, epoch, winner }) => {
            (found.reason, found.epoch.0, found.winner) == (*reason, *epoch, *winner)
        }
        (Outcome::Changed { delta, audience }, Verdict::Changed { to, leaves }) => {
            advance(roster, delta.as_ref());
            devices(audience) == numbers(to) && same_leaves(roster, leaves)
        }
        (Outcome::Sequenced(done), Verdict::Sequenced { sequence, chain, to, welcomed, leaves }) => {
            let commit = done.commit.as_ref();
            advance(roster, commit.and_then(|commit| commit.delta.as_ref()));
            let joined = commit.map(|commit| devices(&commit.joined)).unwrap_or_default();
            (done.sequence.0, done.chain.as_bytes()[..] == chain[..]) == (*sequence, true)
                && (devices(&done.audience), joined) == (numbers(to), numbers(welcomed))
                && same_leaves(roster, leaves)
        }
        _ => false,
    }
}

/// Runs the log without trouble and gives every outcome and the final rows.
fn straight(log: &[Record], batch: usize) -> (Vec<Outcome>, Store) {
    let (mut store, mut outcomes) = (Store::default(), Vec::new());
    let mut owner = Owner::start(&store, log);
    while !owner.is_done(log) {
        owner.step(&mut store, log, batch, &mut |_, outcome| outcomes.push(outcome.clone()));
    }
    (outcomes, store)
}

fn against_the_reference(plan: &Plan) {
    let schedule = Schedule::of(plan);
    let log = log_of(&schedule);
    let (outcomes, _) = straight(&log, 7);
    let (mut reference, mut roster) = (Reference::default(), Roster::default());
    assert_eq!(outcomes.len(), log.len());
    for (number, ((millis, event), outcome)) in schedule.events.iter().zip(&outcomes).enumerate() {
        let verdict = reference.take(event, *millis);
        assert!(
            agrees(outcome, &verdict, &mut roster),
            "record {number}: {event:?}\n  apply:     {outcome:?}\n  reference: {verdict:?}"
        );
    }
}

fn through_crashes(plan: &Plan, crashes: &[(u8, u8, u64)]) {
    let log = log_of(&Schedule::of(plan));
    let (outcomes, expected) = straight(&log, 5);
    let mut same = |number: usize, outcome: &Outcome| assert_eq!(*outcome, outcomes[number], "record {number}");
    let mut store = Store::default();
    for (batch, steps, lost) in crashes {
        let mut owner = Owner::start(&store, &log);
        for _ in 0..*steps {
            owner.step(&mut store, &log, usize::from(*batch), &mut same);
        }
        owner.die(&mut store, *lost);
    }
    let mut owner = Owner::start(&store, &log);
    while !owner.is_done(&log) {
        owner.step(&mut store, &log, 3, &mut same);
    }
    assert!(store == expected, "rows differ after crashes");
}

fn beside_a_zombie(plan: &Plan, turns: &[(bool, u8)], wakes: u8) {
    let log = log_of(&Schedule::of(plan));
    let (outcomes, expected) = straight(&log, 4);
    let mut same = |number: usize, outcome: &Outcome| assert_eq!(*outcome, outcomes[number], "record {number}");
    let mut store = Store::default();
    let mut zombie = Owner::start(&store, &log);
    for _ in 0..wakes {
        zombie.step(&mut store, &log, 3, &mut same);
    }
    let mut owner = Owner::start(&store, &log);
    for (zombies, batch) in turns {
        let turn = if *zombies { &mut zombie } else { &mut owner };
        for _ in 0..3 {
            turn.step(&mut store, &log, usize::from(*batch), &mut same);
        }
    }
    for last in [&mut owner, &mut zombie] {
        while !last.is_done(&log) {
            last.step(&mut store, &log, 2, &mut same);
        }
    }
    assert!(store == expected, "rows differ beside a zombie");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn apply_does_what_the_design_says(plan in plan()) {
        against_the_reference(&plan);
    }

    #[test]
    fn crashes_between_effects_leave_the_same_rows(
        plan in plan(),
        crashes in prop::collection::vec((1..9u8, 0..60u8, any::<u64>()), 1..8),
    ) {
        through_crashes(&plan, &crashes);
    }

    #[test]
    fn a_zombie_beside_the_owner_leaves_the_same_rows(
        plan in plan(),
        turns in prop::collection::vec((any::<bool>(), 1..6u8), 0..60),
        wakes in 0..100u8,
    ) {
        beside_a_zombie(&plan, &turns, wakes);
    }
}

/// The schedules reach every verdict: else the laws above say less than they seem to.
#[test]
fn schedules_reach_every_verdict() {
    use proptest::strategy::ValueTree as _;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut seen = BTreeMap::<String, usize>::new();
    for _ in 0..150 {
        let plan = plan().new_tree(&mut runner).unwrap().current();
        let (outcomes, _) = straight(&log_of(&Schedule::of(&plan)), 5);
        for outcome in outcomes {
            let name = match outcome {
                Outcome::Rejected(rejection) => format!("{:?}", rejection.reason),
                Outcome::Sequenced(done) => format!("Sequenced, commit: {}", done.commit.is_some()),
                other => format!("{other:?}").split(['(', ' ']).next().unwrap_or_default().to_owned(),
            };
            *seen.entry(name).or_default() += 1;
        }
    }
    let wanted = [
        "EpochConflict",
        "StaleEpoch",
        "NotAMember",
        "RemovalRequired",
        "MessageIdTime",
        "Expired",
        "CommitInvalid",
        "RoleRequired",
        "ConversationFull",
        "Quarantined",
        "ConversationUnknown",
        "Sequenced, commit: true",
        "Sequenced, commit: false",
        "Repeat",
        "Conflict",
        "Created",
        "CreateRepeated",
        "Changed",
        "Ignored",
    ];
    for name in wanted {
        assert!(seen.get(name).is_some_and(|count| *count >= 5), "{name} is hardly reached: {seen:?}");
    }
}
