//! The law: whatever is wrong with what devices have, the ledger says so. Each test plants one wrong in clean data and finds
//! exactly that; a ledger that missed one would let every test that relies on it pass for nothing.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use wardline_client::{
    Body, ContentId, ConversationId, DeviceId, HistoryEntry, HistoryKind, MessageId, ReceiptView, UserId,
};
use wardline_domain::Digest;
use wardline_testbed::ledger::{Finding, Held, Ledger, Violation};

const CONVERSATION: ConversationId = ConversationId::from_bytes([7; 16]);
const USERS: u8 = 3;
const DEVICES: u8 = 2;
/// A commit at 1, then this many messages; the users take turns.
const MESSAGES: u64 = 9;
const LAST: u64 = MESSAGES + 1;

type Key = (UserId, DeviceId);

fn key(user: u8, device: u8) -> Key {
    (UserId::from_bytes([user; 16]), DeviceId::from_bytes([user * 16 + device; 16]))
}

fn content(sequence: u64) -> ContentId {
    ContentId::from_bytes(u128::from(sequence).to_be_bytes())
}

fn sender(sequence: u64) -> u8 {
    u8::try_from(sequence).unwrap() % USERS
}

fn entry(sequence: u64) -> HistoryEntry {
    let body = Body::Text { text: format!("number {sequence}"), reply_to: None };
    let (user, device) = key(sender(sequence), 0);
    HistoryEntry {
        conversation: CONVERSATION,
        sequence,
        sender: user,
        device,
        message: MessageId::from_bytes(u128::from(sequence).to_be_bytes()),
        kind: if sequence == 1 { HistoryKind::Commit } else { HistoryKind::Content { id: content(sequence), body } },
        payload: Digest::of(&sequence.to_be_bytes()),
        chain: Digest::of(&[sequence.to_be_bytes(), [1; 8]].concat()),
        accepted_at: None,
    }
}

fn receipt((user, device): Key, read: u64) -> ReceiptView {
    ReceiptView { conversation: CONVERSATION, user, device, delivered: LAST, read, skipped: Vec::new() }
}

fn keys() -> impl Iterator<Item = Key> {
    (0..USERS).flat_map(|user| (0..DEVICES).map(move |device| key(user, device)))
}

/// Only the first device of each user reads.
fn read_on((user, device): Key) -> u64 {
    if device == key(user.as_bytes()[0], 0).1 { LAST } else { 0 }
}

/// Everybody has everything and knows it.
fn clean() -> Ledger {
    let history: Vec<_> = (1..=LAST).map(entry).collect();
    let receipts: Vec<_> = keys().map(|key| receipt(key, read_on(key))).collect();
    let held = |key| Held { history: history.clone(), read: read_on(key), receipts: receipts.clone() };
    Ledger { sent: (2..=LAST).map(content).collect(), devices: keys().map(|key| (key, held(key))).collect() }
}

/// The device that wrongs are planted on, and its place in the ledger. Not the first: the ledger trusts no device more than
/// another.
fn victim(ledger: &mut Ledger) -> (&mut Held, usize) {
    let at = ledger.devices.keys().position(|other| *other == key(1, 0)).unwrap();
    (ledger.devices.get_mut(&key(1, 0)).unwrap(), at)
}

fn first(ledger: &mut Ledger) -> &mut Held {
    ledger.devices.values_mut().next().unwrap()
}

fn found(findings: &[Finding]) -> BTreeSet<(Violation, usize, u64)> {
    findings.iter().map(|finding| (finding.violation, finding.device, finding.sequence)).collect()
}

#[track_caller]
fn finds<const N: usize>(findings: &[Finding], expected: [(Violation, usize, u64); N]) {
    assert_eq!(found(findings), BTreeSet::from(expected));
}

fn plant(wrong: impl FnOnce(&mut Held)) -> (Ledger, usize) {
    let mut ledger = clean();
    let (held, at) = victim(&mut ledger);
    wrong(held);
    (ledger, at)
}

fn at(held: &mut Held, sequence: u64) -> &mut HistoryEntry {
    held.history.iter_mut().find(|entry| entry.sequence == sequence).unwrap()
}

fn told(held: &mut Held, of: Key) -> &mut ReceiptView {
    held.receipts.iter_mut().find(|receipt| (receipt.user, receipt.device) == of).unwrap()
}

#[test]
fn nothing_is_found_in_clean_data() {
    let ledger = clean();
    finds(&ledger.findings(), []);
    finds(&ledger.receipt_findings(), []);
    finds(&ledger.service_findings(&first(&mut clean()).receipts), []);
}

#[test]
fn a_device_may_have_joined_later_than_another() {
    let mut ledger = clean();
    victim(&mut ledger).0.history.remove(0);
    finds(&ledger.findings(), []);
    finds(&ledger.receipt_findings(), []);
}

#[test]
fn content_that_was_sealed_twice_and_counted_once_is_clean() {
    let mut ledger = clean();
    for held in ledger.devices.values_mut() {
        held.history.push(HistoryEntry { kind: HistoryKind::Repeat { id: content(4) }, ..entry(LAST + 1) });
    }
    finds(&ledger.findings(), []);
}

#[test]
fn a_loss_in_the_middle_is_found() {
    let (ledger, device) = plant(|held| held.history.retain(|entry| entry.sequence != 5));
    finds(&ledger.findings(), [(Violation::Lost, device, 5)]);
}

#[test]
fn a_loss_at_the_end_is_found() {
    let (ledger, device) = plant(|held| drop(held.history.pop()));
    finds(&ledger.findings(), [(Violation::Lost, device, LAST)]);
}

#[test]
fn a_lost_commit_is_found() {
    let mut ledger = clean();
    for held in ledger.devices.values_mut() {
        held.history.push(HistoryEntry { kind: HistoryKind::Commit, ..entry(LAST + 1) });
    }
    let (held, device) = victim(&mut ledger);
    held.history.pop();
    finds(&ledger.findings(), [(Violation::Lost, device, LAST + 1)]);
}

#[test]
fn a_loss_on_every_device_is_found() {
    let mut ledger = clean();
    ledger.sent.insert(content(99));
    let lost: Vec<_> = (0..ledger.devices.len()).map(|device| (Violation::Lost, device, 0)).collect();
    assert_eq!(found(&ledger.findings()), lost.into_iter().collect());
}

#[test]
fn a_device_without_anything_is_found() {
    let (ledger, device) = plant(|held| held.history.clear());
    let lost: BTreeSet<_> = (2..=LAST).map(|sequence| (Violation::Lost, device, sequence)).collect();
    assert_eq!(found(&ledger.findings()), lost);
}

#[test]
fn a_repeat_at_another_place_is_found() {
    let mut ledger = clean();
    for held in ledger.devices.values_mut() {
        held.history.push(HistoryEntry { kind: HistoryKind::Repeat { id: content(4) }, ..entry(LAST + 1) });
    }
    let (held, device) = victim(&mut ledger);
    at(held, LAST + 1).kind = entry(4).kind;
    finds(&ledger.findings(), [(Violation::Repeated, device, LAST + 1)]);
}

#[test]
fn a_repeat_at_the_same_place_is_found() {
    let (ledger, device) = plant(|held| held.history.insert(4, entry(4)));
    finds(&ledger.findings(), [(Violation::Repeated, device, 4), (Violation::Disordered, device, 4)]);
}

#[test]
fn a_swap_is_found() {
    let (ledger, device) = plant(|held| {
        let (four, five) = (entry(4), entry(5));
        *at(held, 4) = HistoryEntry { sequence: 4, ..five };
        *at(held, 5) = HistoryEntry { sequence: 5, ..four };
    });
    finds(&ledger.findings(), [(Violation::Disordered, device, 4), (Violation::Disordered, device, 5)]);
}

#[test]
fn a_swap_on_the_first_device_is_found_there() {
    let mut ledger = clean();
    let held = first(&mut ledger);
    held.history.swap(3, 4);
    (held.history[3].sequence, held.history[4].sequence) = (4, 5);
    finds(&ledger.findings(), [(Violation::Disordered, 0, 4), (Violation::Disordered, 0, 5)]);
}

#[test]
fn places_that_do_not_rise_are_found() {
    let (ledger, device) = plant(|held| held.history.swap(3, 4));
    finds(&ledger.findings(), [(Violation::Disordered, device, 4)]);
}

#[test]
fn another_chain_under_the_same_content_is_found() {
    let (ledger, device) = plant(|held| at(held, 6).chain = Digest::of(b"another past"));
    finds(&ledger.findings(), [(Violation::Disordered, device, 6)]);
}

#[test]
fn a_place_that_nobody_has_is_found() {
    let mut ledger = clean();
    for held in ledger.devices.values_mut() {
        held.history.last_mut().unwrap().sequence = LAST + 1;
    }
    let holes: BTreeSet<_> = (0..ledger.devices.len()).map(|device| (Violation::Disordered, device, LAST)).collect();
    assert!(found(&ledger.findings()).is_superset(&holes));
}

#[test]
fn an_invention_is_found() {
    let (ledger, device) = plant(|held| {
        let body = Body::Text { text: "nobody said this".to_owned(), reply_to: None };
        at(held, 6).kind = HistoryKind::Content { id: content(66), body };
    });
    finds(&ledger.findings(), [(Violation::Invented, device, 6), (Violation::Lost, device, 6)]);
}

#[test]
fn an_invention_on_every_device_is_found() {
    let mut ledger = clean();
    ledger.sent.remove(&content(6));
    let invented: BTreeSet<_> = (0..ledger.devices.len()).map(|device| (Violation::Invented, device, 6)).collect();
    assert_eq!(found(&ledger.findings()), invented);
}

#[test]
fn what_a_device_cannot_read_is_found() {
    let (ledger, device) = plant(|held| at(held, 6).kind = HistoryKind::Unreadable);
    finds(&ledger.findings(), [(Violation::Unreadable, device, 6), (Violation::Lost, device, 6)]);
}

#[test]
fn a_missing_receipt_is_found() {
    let (ledger, device) = plant(|held| held.receipts.retain(|receipt| (receipt.user, receipt.device) != key(2, 1)));
    finds(&ledger.receipt_findings(), [(Violation::ReceiptBehind, device, 0)]);
}

#[test]
fn a_delivery_that_is_behind_is_found() {
    let own_last = (2..=LAST).rfind(|sequence| sender(*sequence) == 1).unwrap();
    let (ledger, device) = plant(|held| told(held, key(2, 1)).delivered = own_last - 1);
    finds(&ledger.receipt_findings(), [(Violation::ReceiptBehind, device, own_last - 1)]);
    let (ledger, _) = plant(|held| told(held, key(2, 1)).delivered = own_last);
    finds(&ledger.receipt_findings(), []);
}

#[test]
fn a_delivery_that_is_ahead_is_found() {
    let (ledger, device) = plant(|held| told(held, key(2, 1)).delivered = LAST + 1);
    finds(&ledger.receipt_findings(), [(Violation::ReceiptAhead, device, LAST + 1)]);
}

#[test]
fn a_delivery_of_what_the_device_lost_is_found() {
    let (mut ledger, _) = plant(|held| held.history.retain(|entry| entry.sequence != 5));
    let ahead: BTreeSet<_> = (0..ledger.devices.len()).map(|device| (Violation::ReceiptAhead, device, LAST)).collect();
    assert_eq!(found(&ledger.receipt_findings()), ahead);
    for held in ledger.devices.values_mut() {
        told(held, key(1, 0)).skipped = vec![(5, 5)];
    }
    finds(&ledger.receipt_findings(), []);
}

#[test]
fn a_skip_of_what_the_device_has_is_found() {
    let (ledger, device) = plant(|held| told(held, key(2, 1)).skipped = vec![(5, 5)]);
    finds(&ledger.receipt_findings(), [(Violation::ReceiptBehind, device, 5)]);
}

#[test]
fn a_read_mark_that_is_behind_is_found() {
    let (ledger, device) = plant(|held| told(held, key(2, 0)).read = 2);
    finds(&ledger.receipt_findings(), [(Violation::ReadBehind, device, 2)]);
}

#[test]
fn a_read_mark_of_ones_own_other_device_that_is_behind_is_found() {
    let mut ledger = clean();
    let other = ledger.devices.get_mut(&key(1, 1)).unwrap();
    told(other, key(1, 0)).read = LAST - 1;
    let device = ledger.devices.keys().position(|other| *other == key(1, 1)).unwrap();
    finds(&ledger.receipt_findings(), [(Violation::ReadBehind, device, LAST - 1)]);
}

#[test]
fn a_read_mark_that_is_ahead_is_found() {
    let (ledger, device) = plant(|held| told(held, key(2, 1)).read = 1);
    finds(&ledger.receipt_findings(), [(Violation::ReadAhead, device, 1)]);
}

#[test]
fn a_service_that_says_less_or_more_is_found() {
    let said = |change: fn(&mut ReceiptView)| {
        let mut said = first(&mut clean()).receipts.clone();
        change(&mut said[3]);
        clean().service_findings(&said)
    };
    finds(&said(|receipt| receipt.delivered = LAST - 1), [(Violation::ReceiptBehind, 3, LAST - 1)]);
    finds(&said(|receipt| receipt.delivered = LAST + 1), [(Violation::ReceiptAhead, 3, LAST + 1)]);
    finds(&said(|receipt| receipt.read = 1), [(Violation::ReadAhead, 3, 1)]);
    finds(&said(|receipt| receipt.device = DeviceId::from_bytes([0; 16])), [(Violation::ReceiptBehind, 3, 0)]);
}
