//! Bytes that must never change: every cluster's data depends on them. A failure here is a new version byte, or a mistake.

mod support;

use std::collections::BTreeMap;

use support::{CONVERSATION, World, device, group_state, key_hash, message, tenant, user};
use wardline_domain::conversation::{Head, Newest, chain_next, chain_start, payload_digest};
use wardline_domain::envelope::{Epoch, Generation, Sequence};
use wardline_domain::partition::PartitionCount;
use wardline_domain::record::{ConversationKind, MembershipRule, Policy};
use wardline_domain::roster::{Leaf, Role, Roster, RosterDelta};
use wardline_domain::{Digest, Position};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn partitions() {
    let count = |number| PartitionCount::new(number).expect("a power of two");
    let keys = [[0; 16], [1; 16], [0xff; 16], *CONVERSATION.as_bytes()];
    let found: Vec<u32> = keys.iter().map(|key| count(256).partition_of(key)).collect();
    assert_eq!(found, PARTITIONS_OF_256);
    for key in &keys {
        assert_eq!(count(1).partition_of(key), 0);
        for bits in 0..16 {
            let (small, large) = (count(1 << bits).partition_of(key), count(2 << bits).partition_of(key));
            assert!(large == small || large == small + (1 << bits), "doubling moves keys only from p to p + n");
        }
    }
    for refused in [0, 3, 255, (1 << 24) + 1, 1 << 25] {
        assert_eq!(PartitionCount::new(refused), None);
    }
}

#[test]
fn chain_hashes() {
    let start = chain_start(CONVERSATION);
    assert_eq!(hex(start.as_bytes()), CHAIN_0);
    let (envelope, message) = (Digest::of(b"envelope"), Digest::of(b"mls"));
    assert_eq!(hex(chain_next(start, Sequence(1), envelope, message).as_bytes()), CHAIN_1);
    assert_eq!(hex(payload_digest(envelope, message).as_bytes()), PAYLOAD);
}

fn head() -> Head {
    Head {
        last: Position::new(1, 0x22).expect("fits"),
        last_digest: Digest::of(b"last"),
        created: Position::new(1, 0x11).expect("fits"),
        create_digest: Digest::of(b"create"),
        tenant: tenant(),
        kind: ConversationKind::Direct,
        suite: 2,
        sequence: Sequence(0x0102_0304_0506_0708),
        chain: Digest::of(b"chain"),
        generation: Generation(3),
        epoch: Epoch(0x44),
        epoch_winner: Some(message(0x1234, 5)),
        members_version: 0x55,
        policy: Policy { version: 0x66, membership: MembershipRule::Admins, retention_days: 0x77 },
        group_state: group_state(0x44),
        quarantined: Some("chain".into()),
        newest: BTreeMap::from([
            (device(2), Newest { message: message(0x1235, 6), at: Position::from_u64(0x21) }),
            (device(1), Newest { message: message(0x1236, 7), at: Position::from_u64(0x20) }),
        ]),
        floor: Some(message(0x1230, 8)),
    }
}

#[test]
fn heads() {
    let bytes = head().encode();
    assert_eq!(hex(Digest::of(&bytes).as_bytes()), HEAD_DIGEST);
    assert_eq!((bytes.len(), bytes[0]), (HEAD_LENGTH, 1));
    assert_eq!(Head::decode(&bytes), Ok(head()));
    let bare = Head { epoch_winner: None, quarantined: None, newest: BTreeMap::new(), floor: None, ..head() };
    assert_eq!(Head::decode(&bare.encode()), Ok(bare.clone()));
    assert_eq!(hex(Digest::of(&bare.encode()).as_bytes()), BARE_HEAD_DIGEST);
}

#[test]
fn a_head_of_every_kind_and_rule() {
    use ConversationKind::{Direct, Group, Inbox, SelfNotes};
    for kind in [Group, Direct, SelfNotes, Inbox] {
        for membership in [MembershipRule::Members, MembershipRule::Admins] {
            let one = Head { kind, policy: Policy { membership, ..head().policy }, ..head() };
            assert_eq!(Head::decode(&one.encode()), Ok(one));
        }
    }
}

#[test]
fn the_head_of_a_new_conversation() {
    let world = World::new();
    let bytes = world.conversation.head.as_ref().expect("created").encode();
    assert_eq!(hex(Digest::of(&bytes).as_bytes()), NEW_HEAD_DIGEST);
}

fn leaf(number: u16, role: Role) -> Leaf {
    Leaf {
        tenant: tenant(),
        user: user(number),
        device: device(number),
        key_hash: key_hash(number),
        role,
        joined: Epoch(u64::from(number)),
        removal_pending: number.is_multiple_of(2),
    }
}

fn delta() -> RosterDelta {
    let leaves = [(0, Role::Member), (1, Role::Admin), (5, Role::Archive), (0x0102_0304, Role::Gateway)];
    RosterDelta { to: 1, leaves: leaves.iter().map(|(at, role)| (*at, Some(leaf(*at as u16, *role)))).collect() }
}

#[test]
fn rosters_and_deltas() {
    let first = delta();
    assert_eq!(hex(Digest::of(&first.encode()).as_bytes()), DELTA_DIGEST);
    assert_eq!(RosterDelta::decode(&first.encode()), Ok(first.clone()));
    let mut roster = Roster::default();
    assert_eq!(hex(&roster.encode()), "01000000000000000000000000");
    roster.apply(&first).expect("the first");
    assert_eq!(hex(Digest::of(&roster.encode()).as_bytes()), ROSTER_DIGEST);
    assert_eq!(Roster::decode(&roster.encode()), Ok(roster.clone()));
    assert!(Roster::decode(&first.encode()).is_err() && RosterDelta::decode(&roster.encode()).is_err());
    let removal = RosterDelta { to: 2, leaves: BTreeMap::from([(1, None)]) };
    assert_eq!(hex(&removal.encode()), "810000000000000002000000010000000100");
    assert_eq!(RosterDelta::decode(&removal.encode()), Ok(removal));
}

#[test]
fn deltas_apply_in_order_or_not_at_all() {
    let mut roster = Roster::default();
    roster.apply(&delta()).expect("the first");
    let before = roster.clone();
    let absent = RosterDelta { to: 2, leaves: BTreeMap::from([(0, None), (2, None)]) };
    for refused in [delta(), RosterDelta { to: 3, ..delta() }, absent] {
        assert!(roster.apply(&refused).is_err());
        assert_eq!(roster, before);
    }
    assert_eq!(roster.audience().len(), 2, "two of four wait for removal");
    let removal = RosterDelta { to: 2, leaves: BTreeMap::from([(1, None)]) };
    roster.apply(&removal).expect("the next");
    assert_ne!(roster, before);
    assert_eq!((roster.audience().len(), roster.users().len(), roster.version()), (1, 3, 2));
    assert_eq!(roster.removal_pending(), vec![(user(0), device(0)), (user(0x0304), device(0x0304))]);
    assert!(roster.leaf_of(user(5), device(5)).is_some() && roster.leaf_of(user(1), device(5)).is_none());
    assert!(roster.has_user(user(5)) && !roster.has_user(user(0)) && !roster.has_user(user(1)));
}

/// Each byte string but the canonical one is refused.
fn refuses_others<T: PartialEq + std::fmt::Debug, E>(bytes: &[u8], decode: impl Fn(&[u8]) -> Result<T, E>) {
    let value = decode(bytes).ok().expect("canonical");
    for length in 0..bytes.len() {
        assert!(decode(&bytes[..length]).is_err(), "a prefix of {length} passes");
    }
    assert!(decode(&[bytes, &[0]].concat()).is_err(), "a byte after the end passes");
    for at in 0..bytes.len() {
        for flip in [1, 2, 0x80, 0xff] {
            let mut other = bytes.to_vec();
            other[at] ^= flip;
            // What decodes differs: no two byte strings stand for one value.
            assert!(decode(&other).ok().is_none_or(|other| other != value), "byte {at} means nothing");
        }
    }
    let mut version = bytes.to_vec();
    version[0] = 2;
    assert!(decode(&version).is_err());
}

#[test]
fn only_canonical_bytes_decode() {
    refuses_others(&head().encode(), Head::decode);
    refuses_others(&delta().encode(), RosterDelta::decode);
    let mut roster = Roster::default();
    roster.apply(&delta()).expect("the first");
    refuses_others(&roster.encode(), Roster::decode);
}

#[test]
fn unsorted_or_repeated_entries_are_refused() {
    let bytes = RosterDelta { to: 2, leaves: BTreeMap::from([(1, None), (2, None)]) }.encode().to_vec();
    for (first, second) in [(2, 1), (1, 1)] {
        let mut other = bytes.clone();
        (other[16], other[21]) = (first, second);
        assert!(RosterDelta::decode(&other).is_err());
    }
    // The head's senders stand before the floor: two entries of 40 bytes, then 17.
    let bytes = head().encode().to_vec();
    let entries = bytes.len() - 17 - 80;
    let mut swapped = bytes[..entries].to_vec();
    swapped.extend(&bytes[entries + 40..entries + 80]);
    swapped.extend(&bytes[entries..entries + 40]);
    swapped.extend(&bytes[entries + 80..]);
    assert!(Head::decode(&swapped).is_err());
    let mut twice = bytes.clone();
    twice.copy_within(entries..entries + 16, entries + 40);
    assert!(Head::decode(&twice).is_err());
}

#[test]
fn a_head_holds_sixty_four_senders_and_no_more() {
    let newest = |count: u16| {
        let entry = |number| (device(number), Newest { message: message(1, number), at: Position::from_u64(1) });
        (0..count).map(entry).collect::<BTreeMap<_, _>>()
    };
    let full = Head { newest: newest(64), ..head() };
    assert_eq!(Head::decode(&full.encode()), Ok(full.clone()));
    assert!(Head::decode(&Head { newest: newest(65), ..full }.encode()).is_err());
}

const PARTITIONS_OF_256: [u32; 4] = [255, 28, 148, 244];
const CHAIN_0: &str = "13a88af40ba2a90e641349d255ff7c752b11fa84f1f8b976149ec32614afd926";
const CHAIN_1: &str = "3b98bf43897b263420ef81fc8941fc59640e3601588f913eec43a9690e901fcb";
const PAYLOAD: &str = "adc53509755adac6500fd012fd3ad9046c039b050e635142a0493eec80b15e97";
const HEAD_DIGEST: &str = "c400df17c142918ff2913186dacfdb066ebc5b7b4c3146847706f6118b22a85b";
const HEAD_LENGTH: usize = 421;
const BARE_HEAD_DIGEST: &str = "9391639a0fe1b05d3ee4f9d745320ecbef38b05a98fd8befc1fca0c5f243cf1a";
const NEW_HEAD_DIGEST: &str = "cf659342a5546de4f51baaea2ba9ca48bcb15e65dd5d9a5c57cd47c6663e3a72";
const DELTA_DIGEST: &str = "2326dffafa7e939f40a5350c892618b0cfa1907d2f7864de387410bcdbf8a459";
const ROSTER_DIGEST: &str = "57c189cbb772df285ee85f7f103d4970223b8f84e669ca301f22130fdfb8d018";
