//! What devices themselves can prove: every message that was sent is on every device of every member exactly once, in one
//! order, under one hash chain, and receipts have converged.
//!
//! Pure: it compares what devices have, so that tests can plant a loss, a repeat or a swap and see it found.
//!
//! Deliberately absent: the hash chain's own arithmetic, which every device verifies before it saves anything; and devices
//! that joined or left while messages were under way, of which nothing says what they should have.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use wardline_client::{ContentId, HistoryEntry, HistoryKind, ReceiptView};
use wardline_domain::{DeviceId, UserId};

/// One conversation as all its devices have it.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    /// What was sent, by any device, after all devices had joined.
    pub sent: BTreeSet<ContentId>,
    /// What each device has.
    pub devices: BTreeMap<(UserId, DeviceId), Held>,
}

/// What one device has.
#[derive(Debug, Clone, Default)]
pub struct Held {
    /// As saved, from where the device joined.
    pub history: Vec<HistoryEntry>,
    /// How far its person has said to have read on it.
    pub read: u64,
    /// What it was told of the others.
    pub receipts: Vec<ReceiptView>,
}

/// Something is not as promised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Violation {
    /// A sent message, or what others have at a place, is missing on a device.
    Lost,
    /// A message is there more than once.
    Repeated,
    /// A device has something else at a place than most devices do, its places do not rise, or nobody has a place in between.
    Disordered,
    /// A message that nobody sent.
    Invented,
    /// A device could not read what it should have.
    Unreadable,
    /// A receipt is missing, or says less than the device has.
    ReceiptBehind,
    /// A receipt says more than the device has.
    ReceiptAhead,
    /// A read mark is missing, or says less than the person has read on the device.
    ReadBehind,
    /// A read mark says more than the person has read on the device.
    ReadAhead,
}

/// A violation and where it was found: the device by its place in the ledger, never by id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// What.
    pub violation: Violation,
    /// Which device; of receipts, the one that was told.
    pub device: usize,
    /// At which sequence; 0 when it has none.
    pub sequence: u64,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} on device {} at sequence {}", self.violation, self.device, self.sequence)
    }
}

/// What stands at one place: payload and chain.
type Place = ([u8; 32], [u8; 32]);

impl Held {
    fn first(&self) -> u64 {
        self.history.iter().map(|entry| entry.sequence).min().unwrap_or(u64::MAX)
    }

    fn last(&self) -> u64 {
        self.history.iter().map(|entry| entry.sequence).max().unwrap_or(0)
    }

    fn has(&self, sequence: u64) -> bool {
        self.history.iter().any(|entry| entry.sequence == sequence)
    }

    fn told_of(&self, (user, device): (UserId, DeviceId)) -> Option<&ReceiptView> {
        self.receipts.iter().find(|receipt| (receipt.user, receipt.device) == (user, device))
    }

    /// The last message of its own user, which is what others' receipts are for.
    fn last_sent_by(&self, user: UserId) -> u64 {
        let own = self.history.iter().filter(|entry| entry.sender == user && entry.content().is_some());
        own.map(|entry| entry.sequence).max().unwrap_or(0)
    }
}

impl Ledger {
    /// Everything about messages that is not as promised, by device.
    pub fn findings(&self) -> Vec<Finding> {
        let order = self.order();
        let mut findings = Vec::new();
        for (device, copy) in self.devices.values().enumerate() {
            let mut found = BTreeSet::new();
            self.check_content(copy, &mut found);
            check_order(copy, &order, &mut found);
            findings.extend(found.into_iter().map(|(violation, sequence)| Finding { violation, device, sequence }));
        }
        findings
    }

    /// Everything about receipts that is not as promised, by the device that was told.
    pub fn receipt_findings(&self) -> Vec<Finding> {
        self.devices.keys().flat_map(|told| self.receipt_findings_of(*told)).collect()
    }

    /// What one device was told of the others: the progress of other users on what its own user sent, and how far its own
    /// user has read on any device. It may be told more, but nothing that did not happen.
    pub fn receipt_findings_of(&self, told: (UserId, DeviceId)) -> Vec<Finding> {
        let Some((device, copy)) = self.devices.keys().position(|key| *key == told).zip(self.devices.get(&told)) else {
            return Vec::new();
        };
        let own_last = copy.last_sent_by(told.0);
        let mut found = BTreeSet::new();
        for (key, other) in &self.devices {
            let receipt = copy.told_of(*key);
            let (delivered, read) = receipt.map_or((0, 0), |receipt| (receipt.delivered, receipt.read));
            let own = key.0 == told.0;
            if !own && delivered < own_last {
                found.insert((Violation::ReceiptBehind, delivered));
            }
            let due = match own {
                true => other.read,
                false if other.read >= own_last => own_last,
                false => 0,
            };
            if read < due {
                found.insert((Violation::ReadBehind, read));
            }
            if let Some(receipt) = receipt {
                check_claim(receipt, other, &mut found);
            }
        }
        found.into_iter().map(|(violation, sequence)| Finding { violation, device, sequence }).collect()
    }

    /// What the receipt service says of all devices: neither more nor less than they have. The device of a finding is the one
    /// it is about.
    pub fn service_findings(&self, said: &[ReceiptView]) -> Vec<Finding> {
        let mut findings = Vec::new();
        for (device, (key, copy)) in self.devices.iter().enumerate() {
            let receipt = said.iter().find(|receipt| (receipt.user, receipt.device) == *key);
            let (delivered, read) = receipt.map_or((0, 0), |receipt| (receipt.delivered, receipt.read));
            let mut found = BTreeSet::new();
            if delivered < copy.last() {
                found.insert((Violation::ReceiptBehind, delivered));
            }
            if read < copy.read {
                found.insert((Violation::ReadBehind, read));
            }
            if let Some(receipt) = receipt {
                check_claim(receipt, copy, &mut found);
            }
            findings.extend(found.into_iter().map(|(violation, sequence)| Finding { violation, device, sequence }));
        }
        findings
    }

    /// What most devices have at each place; of equally many, any one, the same for all.
    fn order(&self) -> BTreeMap<u64, Place> {
        let mut votes: BTreeMap<u64, BTreeMap<Place, usize>> = BTreeMap::new();
        for entry in self.devices.values().flat_map(|copy| &copy.history) {
            *votes.entry(entry.sequence).or_default().entry(place(entry)).or_default() += 1;
        }
        let winner = |votes: BTreeMap<Place, usize>| votes.into_iter().max_by_key(|(_, count)| *count);
        votes.into_iter().filter_map(|(sequence, votes)| Some((sequence, winner(votes)?.0))).collect()
    }

    /// Where others have a message; 0 when nobody does.
    fn sequence_of(&self, content: ContentId) -> u64 {
        let mut entries = self.devices.values().flat_map(|copy| &copy.history);
        let found = entries.find(|entry| entry.content().is_some_and(|(id, _)| id == content));
        found.map_or(0, |entry| entry.sequence)
    }

    fn check_content(&self, copy: &Held, found: &mut BTreeSet<(Violation, u64)>) {
        let mut seen = BTreeSet::new();
        for entry in &copy.history {
            match &entry.kind {
                HistoryKind::Content { id, .. } => {
                    if !seen.insert(*id) {
                        found.insert((Violation::Repeated, entry.sequence));
                    }
                    if !self.sent.contains(id) {
                        found.insert((Violation::Invented, entry.sequence));
                    }
                }
                // Its sender sealed it twice; that it counts once is checked above.
                HistoryKind::Repeat { id } if !self.sent.contains(id) => {
                    found.insert((Violation::Invented, entry.sequence));
                }
                HistoryKind::Unreadable => {
                    found.insert((Violation::Unreadable, entry.sequence));
                }
                HistoryKind::Repeat { .. } | HistoryKind::Commit => {}
            }
        }
        found.extend(self.sent.difference(&seen).map(|id| (Violation::Lost, self.sequence_of(*id))));
    }
}

fn place(entry: &HistoryEntry) -> Place {
    (*entry.payload.as_bytes(), *entry.chain.as_bytes())
}

fn check_order(copy: &Held, order: &BTreeMap<u64, Place>, found: &mut BTreeSet<(Violation, u64)>) {
    let mut previous = None;
    for entry in &copy.history {
        let rises = previous.is_none_or(|previous| entry.sequence > previous);
        if !rises || order.get(&entry.sequence) != Some(&place(entry)) {
            found.insert((Violation::Disordered, entry.sequence));
        }
        previous = Some(entry.sequence);
    }
    let last = order.last_key_value().map_or(0, |(sequence, _)| *sequence);
    for sequence in copy.first()..=last {
        if !copy.has(sequence) {
            let violation = if order.contains_key(&sequence) { Violation::Lost } else { Violation::Disordered };
            found.insert((violation, sequence));
        }
    }
}

/// A receipt claims everything from where the device joined through `delivered`, except what it says was skipped.
fn check_claim(receipt: &ReceiptView, of: &Held, found: &mut BTreeSet<(Violation, u64)>) {
    let skipped = |sequence| receipt.skipped.iter().any(|(first, last)| (*first..=*last).contains(&sequence));
    // Beyond its last, one place says as much as many.
    let through = receipt.delivered.min(of.last() + 1);
    for sequence in of.first().min(through)..=through {
        match (skipped(sequence), of.has(sequence)) {
            (false, false) if sequence > 0 => found.insert((Violation::ReceiptAhead, receipt.delivered)),
            (true, true) => found.insert((Violation::ReceiptBehind, sequence)),
            _ => false,
        };
    }
    if receipt.read > of.read {
        found.insert((Violation::ReadAhead, receipt.read));
    }
}
