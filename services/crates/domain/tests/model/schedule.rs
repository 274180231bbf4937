//! Schedules: what many devices might send, mostly sensible, with retries, other bytes under a used id, lost races, late
//! arrivals and revocations in between.

use proptest::prelude::*;
use proptest::sample::Index;
use wardline_domain::MessageId;
use wardline_domain::record::{Control, ConversationKind, Create, MembershipRule};

use crate::reference::{Event, Reference};
use crate::support::{self, Draft, START_MILLIS, at, device, message, user};

/// What the next event is about.
#[derive(Debug, Clone)]
pub(crate) enum Intent {
    Content {
        by: Index,
        stranger: bool,
        behind: u8,
    },
    Commit {
        by: Index,
        adds: Vec<Index>,
        removes: Vec<Index>,
        behind: u8,
        flaw: u8,
    },
    External {
        by: Index,
        behind: u8,
        flaw: u8,
    },
    /// Sends an earlier draft again, with other bytes or the same.
    Again {
        which: Index,
        other_bytes: bool,
    },
    /// Several members say something.
    Burst {
        from: Index,
        count: u8,
    },
    /// An id from another time.
    Odd {
        by: Index,
        kind: u8,
    },
    /// A device uses a low id that is new, then one of its earlier ids with other bytes.
    Echo {
        which: Index,
    },
    /// A device is removed, sends all the same, is added again, and uses that id with other bytes.
    Return {
        who: Index,
        by: Index,
    },
    /// The next draft arrives only when `Release` comes.
    Hold,
    Release {
        which: Index,
    },
    Revoke {
        which: Index,
    },
    Leave {
        which: Index,
    },
    SetAside,
    Create {
        other: bool,
    },
    Later {
        millis: u32,
    },
}

fn intent() -> impl Strategy<Value = Intent> {
    let index = any::<Index>;
    let behind = || prop_oneof![6 => Just(0u8), 1 => 1..4u8];
    let flaw = || prop_oneof![6 => Just(0u8), 1 => 1..6u8];
    let some = |most| prop::collection::vec(any::<Index>(), 0..most);
    prop_oneof![
        8 => (index(), prop::bool::weighted(0.1), behind())
            .prop_map(|(by, stranger, behind)| Intent::Content { by, stranger, behind }),
        6 => (index(), some(4), some(3), behind(), flaw())
            .prop_map(|(by, adds, removes, behind, flaw)| Intent::Commit { by, adds, removes, behind, flaw }),
        3 => (index(), behind(), flaw()).prop_map(|(by, behind, flaw)| Intent::External { by, behind, flaw }),
        6 => (index(), any::<bool>()).prop_map(|(which, other_bytes)| Intent::Again { which, other_bytes }),
        2 => (index(), 1..70u8).prop_map(|(from, count)| Intent::Burst { from, count }),
        1 => (index(), 0..4u8).prop_map(|(by, kind)| Intent::Odd { by, kind }),
        2 => index().prop_map(|which| Intent::Echo { which }),
        2 => (index(), index()).prop_map(|(who, by)| Intent::Return { who, by }),
        2 => Just(Intent::Hold),
        2 => index().prop_map(|which| Intent::Release { which }),
        1 => index().prop_map(|which| Intent::Revoke { which }),
        1 => index().prop_map(|which| Intent::Leave { which }),
        1 => any::<bool>().prop_map(|other| Intent::Create { other }),
        1 => (0..400_000u32).prop_map(|millis| Intent::Later { millis }),
    ]
}

/// The shape of a conversation, and what happens in it.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    kind: ConversationKind,
    membership: MembershipRule,
    /// Whether many devices are in it from the first commit on, so that senders are evicted.
    crowd: bool,
    early: Vec<Intent>,
    intents: Vec<Intent>,
    /// Set aside after these.
    set_aside: bool,
}

pub(crate) fn plan() -> impl Strategy<Value = Plan> {
    let kinds = prop_oneof![
        6 => Just(ConversationKind::Group),
        1 => Just(ConversationKind::Direct),
        1 => Just(ConversationKind::SelfNotes)
    ];
    let rules = prop_oneof![2 => Just(MembershipRule::Members), 1 => Just(MembershipRule::Admins)];
    let intents = |range| prop::collection::vec(intent(), range);
    (kinds, rules, prop::bool::weighted(0.3), intents(0..3), intents(1..60), prop::bool::weighted(0.1)).prop_map(
        |(kind, membership, crowd, early, intents, set_aside)| Plan {
            kind,
            membership,
            crowd,
            early,
            intents,
            set_aside,
        },
    )
}

/// Events with the millisecond of their acceptance.
pub(crate) struct Schedule {
    pub(crate) events: Vec<(u64, Event)>,
    reference: Reference,
    past: Vec<Draft>,
    held: Vec<Draft>,
    hold_next: bool,
    millis: u64,
    number: u16,
}

/// The devices schedules speak of: users 1 to 4 with three each.
fn universe() -> Vec<u16> {
    (1..5).flat_map(|user| (0..3).map(move |nth| (user << 4) | nth)).collect()
}

impl Schedule {
    pub(crate) fn of(plan: &Plan) -> Self {
        let mut schedule = Self {
            events: Vec::new(),
            reference: Reference::default(),
            past: Vec::new(),
            held: Vec::new(),
            hold_next: false,
            millis: START_MILLIS,
            number: 0,
        };
        plan.early.iter().for_each(|intent| schedule.take(plan, intent));
        schedule.create(plan, false);
        if plan.crowd {
            let crowd: Vec<u16> = (16..96).map(|user| user << 4).collect();
            let draft = Draft::commit(0x10, 0, schedule.fresh(), 0).adding(&crowd);
            schedule.send(draft);
        }
        plan.intents.iter().for_each(|intent| schedule.take(plan, intent));
        if plan.set_aside {
            schedule.take(plan, &Intent::SetAside);
            plan.intents.iter().take(10).for_each(|intent| schedule.take(plan, intent));
        }
        schedule
    }

    fn fresh(&mut self) -> MessageId {
        self.number += 1;
        message(self.millis, self.number)
    }

    fn push(&mut self, event: Event) {
        self.millis += u64::from(self.number % 3);
        self.reference.take(&event, self.millis);
        self.events.push((self.millis, event));
    }

    fn send(&mut self, draft: Draft) {
        if std::mem::take(&mut self.hold_next) {
            return self.held.push(draft);
        }
        self.past.push(draft.clone());
        self.push(Event::Submit(draft));
    }

    fn create(&mut self, plan: &Plan, other: bool) {
        let mut create: Create = support::create(0x10);
        create.kind = plan.kind;
        create.policy.membership = plan.membership;
        create.policy.retention_days = u32::from(other);
        self.push(Event::Create { creator: 0x10, create });
    }

    fn member(&self, by: &Index) -> u16 {
        let active: Vec<u16> = self.reference.active().into_iter().collect();
        if active.is_empty() { 0x10 } else { *by.get(&active) }
    }

    fn leaf(&self, number: u16) -> Option<u32> {
        self.reference.seats().find(|(_, seat)| seat.device == number).map(|(index, _)| index)
    }

    fn take(&mut self, plan: &Plan, intent: &Intent) {
        match intent {
            Intent::Content { by, stranger, behind } => {
                let by = if *stranger { *by.get(&universe()) } else { self.member(by) };
                let draft = Draft::content(by, self.fresh(), self.epoch(*behind));
                self.send(draft);
            }
            Intent::Commit { by, adds, removes, behind, flaw } => {
                let by = self.member(by);
                let draft = self.commit(by, adds, removes, *behind, *flaw);
                self.send(draft);
            }
            Intent::External { by, behind, flaw } => {
                let by = *by.get(&universe());
                let draft = self.external(by, *behind, *flaw);
                self.send(draft);
            }
            Intent::Again { which, other_bytes } if !self.past.is_empty() => {
                let mut draft = which.get(&self.past).clone();
                draft.tag ^= u8::from(*other_bytes);
                draft.epoch = if *other_bytes { self.reference.epoch() } else { draft.epoch };
                self.push(Event::Submit(draft));
            }
            Intent::Burst { from, count } => {
                let active: Vec<u16> = self.reference.active().into_iter().collect();
                let start = if active.is_empty() { 0 } else { from.index(active.len()) };
                for by in active.iter().cycle().skip(start).take(usize::from(*count).min(active.len())) {
                    let draft = Draft::content(*by, self.fresh(), self.reference.epoch());
                    self.send(draft);
                }
            }
            Intent::Odd { by, kind } => self.odd(by, *kind),
            Intent::Echo { which } if !self.past.is_empty() => self.echo(which.get(&self.past).clone()),
            Intent::Return { who, by } => self.away_and_back(self.member(who), self.member(by)),
            Intent::Hold => self.hold_next = true,
            Intent::Release { which } if !self.held.is_empty() => {
                let draft = self.held.swap_remove(which.index(self.held.len()));
                self.send(draft);
            }
            Intent::Revoke { which } => {
                let gone = self.member(which);
                self.push(Event::Control(Control::DeviceRevoked { user: user(gone >> 4), device: device(gone) }));
            }
            Intent::Leave { which } => {
                let gone = which.get(&universe()) >> 4;
                self.push(Event::Control(Control::UserLeft { user: user(gone) }));
            }
            Intent::SetAside => self.push(Event::Control(Control::Quarantine { reason: "test".into() })),
            Intent::Create { other } if self.reference.exists() => self.create(plan, *other),
            Intent::Later { millis } => self.millis += u64::from(*millis),
            Intent::Echo { .. } | Intent::Again { .. } | Intent::Release { .. } | Intent::Create { .. } => {}
        }
    }

    /// The current epoch, or one `behind`; 3 stands for the next.
    fn epoch(&self, behind: u8) -> u64 {
        let now = self.reference.epoch();
        if behind == 3 { now + 1 } else { now.saturating_sub(u64::from(behind)) }
    }

    fn commit(&mut self, by: u16, adds: &[Index], removes: &[Index], behind: u8, flaw: u8) -> Draft {
        let members: Vec<u32> = self.reference.seats().map(|(index, _)| index).collect();
        let own = self.leaf(by).unwrap_or(0);
        let mut leaves: Vec<u32> = self.reference.seats().filter(|(_, seat)| seat.pending).map(|(at, _)| at).collect();
        if !members.is_empty() {
            leaves.extend(removes.iter().map(|index| *index.get(&members)));
        }
        leaves.sort_unstable();
        leaves.dedup();
        leaves.retain(|leaf| *leaf != own);
        let present: Vec<u16> = self.reference.seats().map(|(_, seat)| seat.device).collect();
        let absent: Vec<u16> = universe().into_iter().filter(|number| !present.contains(number)).collect();
        let mut new: Vec<u16> = adds.iter().filter(|_| !absent.is_empty()).map(|index| *index.get(&absent)).collect();
        new.sort_unstable();
        new.dedup();
        let mut draft = Draft::commit(by, own, self.fresh(), self.epoch(behind)).removing(&leaves).adding(&new);
        match flaw {
            1 => draft.leaf += 1,
            2 => draft.path = false,
            3 => draft.removes.push(own),
            4 => draft.removes = draft.removes.into_iter().skip(1).collect(),
            5 => draft.adds.extend(present.first()),
            _ => {}
        }
        draft
    }

    fn external(&mut self, by: u16, behind: u8, flaw: u8) -> Draft {
        let old = self.leaf(by);
        let mut draft = Draft::external(by, self.fresh(), self.epoch(behind));
        draft.removes.extend(old);
        match flaw {
            1 => draft.removes.clear(),
            2 => draft.path = false,
            3 => draft.removes = vec![0],
            4 => draft.adds.push(0x42),
            5 => draft.generation = 1,
            _ => {}
        }
        draft
    }

    fn echo(&mut self, earlier: Draft) {
        self.number += 1;
        let low = message(self.millis - 3_600_000, self.number);
        self.send(Draft::content(earlier.device, low, self.reference.epoch()));
        self.other_bytes(&earlier);
    }

    fn other_bytes(&mut self, earlier: &Draft) {
        let now = Draft::content(earlier.device, earlier.message, self.reference.epoch());
        self.push(Event::Submit(Draft { tag: earlier.tag ^ 1, ..now }));
    }

    fn away_and_back(&mut self, who: u16, by: u16) {
        let (Some(leaf), Some(own)) = (self.leaf(who), self.leaf(by)) else { return };
        if who == by {
            return;
        }
        let removal = Draft::commit(by, own, self.fresh(), self.reference.epoch()).removing(&[leaf]);
        self.send(removal);
        let outside = Draft::content(who, self.fresh(), self.reference.epoch());
        self.send(outside.clone());
        let back = Draft::commit(by, own, self.fresh(), self.reference.epoch()).adding(&[who]);
        self.send(back);
        self.other_bytes(&outside);
    }

    /// Ids too old or too new, and an expiry that is over. A member's only: what others send too far ahead, ingest stops.
    fn odd(&mut self, by: &Index, kind: u8) {
        let by = self.member(by);
        if !self.reference.active().contains(&by) {
            return;
        }
        self.number += 1;
        let (millis, number) = (self.millis, self.number);
        let id = match kind {
            0 => message(millis - 8 * 24 * 3600 * 1000, number),
            1 => message(millis + 6 * 60 * 1000, number),
            2 => message(millis - 6 * 24 * 3600 * 1000, number),
            _ => message(millis, number),
        };
        let mut draft = Draft::content(by, id, self.reference.epoch());
        draft.expires_at = (kind == 3).then(|| at(millis - 1));
        self.send(draft);
    }
}
