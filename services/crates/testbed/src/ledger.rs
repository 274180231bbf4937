//! What devices themselves can prove: every message that was sent is on every device of every member exactly once, in one
//! order, under one hash chain, and receipts have converged.
//!
//! Pure: it compares what devices have, so that tests can plant a loss, a repeat or a swap and see it found.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use wardline_client::{ContentId, HistoryEntry, HistoryKind, ReceiptView};
use wardline_domain::{DeviceId, UserId};

/// One conversation as all its devices have it.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    /// What was sent, by any device.
    pub sent: BTreeSet<ContentId>,
    /// What each device has.
    pub devices: BTreeMap<(UserId, DeviceId), Held>,
}

/// What one device has.
#[derive(Debug, Clone, Default)]
pub struct Held {
    /// By sequence, as saved.
    pub history: Vec<HistoryEntry>,
    /// What it was told of the others.
    pub receipts: Vec<ReceiptView>,
}

/// Something is not as promised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Violation {
    /// A sent message is missing on a device.
    Lost,
    /// A message is there more than once.
    Repeated,
    /// Two devices have different things at one place, or a device has places out of order or missing.
    Disordered,
    /// A message that nobody sent.
    Invented,
    /// A device could not read what it should have.
    Unreadable,
    /// A receipt is missing, or says less than the device has.
    ReceiptBehind,
    /// A receipt says more than the device has.
    ReceiptAhead,
}

/// A violation and where it was found: the device by its place in the ledger, never by id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What.
    pub violation: Violation,
    /// Which device.
    pub device: usize,
    /// At which sequence; 0 when it has none.
    pub sequence: u64,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} on device {} at sequence {}", self.violation, self.device, self.sequence)
    }
}

impl Ledger {
    /// Everything that is not as promised. Receipts are looked at only when `receipts` is set: they converge a little later.
    pub fn findings(&self, receipts: bool) -> Vec<Finding> {
        let mut findings = Vec::new();
        let order = self.order();
        for (index, copy) in self.devices.values().enumerate() {
            self.check_content(index, copy, &mut findings);
            check_order(index, copy, &order, &mut findings);
        }
        if receipts {
            self.check_receipts(&mut findings);
        }
        findings
    }

    /// The order that most devices agree on is not needed: the first device to have a place says what is there.
    fn order(&self) -> BTreeMap<u64, ([u8; 32], [u8; 32])> {
        let mut order = BTreeMap::new();
        for entry in self.devices.values().flat_map(|copy| &copy.history) {
            order.entry(entry.sequence).or_insert((*entry.payload.as_bytes(), *entry.chain.as_bytes()));
        }
        order
    }

    fn check_content(&self, device: usize, copy: &Held, findings: &mut Vec<Finding>) {
        let mut seen = BTreeSet::new();
        for entry in &copy.history {
            let mut found = |violation| findings.push(Finding { violation, device, sequence: entry.sequence });
            match &entry.kind {
                HistoryKind::Content { id, .. } => {
                    if !seen.insert(*id) {
                        found(Violation::Repeated);
                    }
                    if !self.sent.contains(id) {
                        found(Violation::Invented);
                    }
                }
                HistoryKind::Unreadable => found(Violation::Unreadable),
                HistoryKind::Repeat { .. } | HistoryKind::Commit => {}
            }
        }
        for _ in self.sent.difference(&seen) {
            findings.push(Finding { violation: Violation::Lost, device, sequence: 0 });
        }
    }

    /// What each device was told of every other device's progress is what that device has.
    fn check_receipts(&self, findings: &mut Vec<Finding>) {
        let last = |copy: &Held| copy.history.last().map_or(0, |entry| entry.sequence);
        for (device, (_, copy)) in self.devices.iter().enumerate() {
            for (key, other) in &self.devices {
                // A device is told of the progress on what its own user sent.
                let own_last = self.last_sent_by(copy, self.user_of(device));
                let told = copy.receipts.iter().find(|receipt| (receipt.user, receipt.device) == *key);
                let told = told.map_or(0, |receipt| receipt.delivered);
                let (user, _) = key;
                if *user != self.user_of(device) && told < own_last {
                    findings.push(Finding { violation: Violation::ReceiptBehind, device, sequence: told });
                }
                if told > last(other) {
                    findings.push(Finding { violation: Violation::ReceiptAhead, device, sequence: told });
                }
            }
        }
    }

    fn user_of(&self, device: usize) -> UserId {
        self.devices.keys().nth(device).map_or(UserId::from_bytes([0; 16]), |(user, _)| *user)
    }

    fn last_sent_by(&self, copy: &Held, user: UserId) -> u64 {
        let own = copy.history.iter().rev().find(|entry| entry.sender == user && entry.content().is_some());
        own.map_or(0, |entry| entry.sequence)
    }
}

fn check_order(
    device: usize,
    copy: &Held,
    order: &BTreeMap<u64, ([u8; 32], [u8; 32])>,
    findings: &mut Vec<Finding>,
) {
    let mut previous: Option<u64> = None;
    for entry in &copy.history {
        let here = (*entry.payload.as_bytes(), *entry.chain.as_bytes());
        let dense = previous.is_none_or(|previous| entry.sequence == previous + 1);
        if !dense || order.get(&entry.sequence) != Some(&here) {
            findings.push(Finding { violation: Violation::Disordered, device, sequence: entry.sequence });
        }
        previous = Some(entry.sequence);
    }
}
