//! The MLS reader on what is not in order: refused with a reason, never with a panic, never at more memory than the input.

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use bytes::Bytes;
use proptest::prelude::*;
use support::forge::{self, Commit, Proposal, Source, vector};
use support::{CONVERSATION, Draft, credential, key, message};
use wardline_domain::conversation::Head;
use wardline_domain::mls::{self, Form, InvalidMls};
use wardline_domain::roster::{Roster, RosterDelta};
use wardline_domain::{Digest, MessageId};

thread_local! {
    static ALLOCATED: Cell<usize> = const { Cell::new(0) };
}

/// Counts what this thread asks for.
struct Counting;

#[allow(unsafe_code)] // an allocator cannot be written without; every call goes on to the system's
// SAFETY: every method passes its arguments to `System` unchanged; counting does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = ALLOCATED.try_with(|sum| sum.set(sum.get() + layout.size()));
        // SAFETY: the caller's promise, passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise, passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The law: reading takes memory in proportion to the input. A list grows by doubling and an entry in memory is a few
/// times its bytes, so the sum over all growth stays within 16 times the input.
fn read_everything(bytes: &Bytes) {
    let before = ALLOCATED.get();
    let _ = mls::header(bytes);
    let _ = mls::commit(bytes);
    let _ = mls::key_package(bytes);
    let _ = mls::welcome_refs(bytes);
    let _ = mls::slice_welcome(bytes, Digest::of(b"joiner"));
    let _ = mls::single_leaf(bytes);
    let _ = Head::decode(bytes);
    let _ = Roster::decode(bytes);
    let _ = RosterDelta::decode(bytes);
    let used = ALLOCATED.get() - before;
    assert!(used <= 16 * bytes.len() + 4096, "{used} bytes for {}", bytes.len());
}

fn id() -> MessageId {
    message(support::START_MILLIS, 1)
}

fn commit() -> Commit {
    Draft::commit(0x10, 3, id(), 5).removing(&[7, 1]).adding(&[0x20, 0x30]).forged()
}

fn external() -> Commit {
    Draft::external(0x10, id(), 5).removing(&[4]).forged()
}

fn samples() -> Vec<Bytes> {
    let package = forge::key_package(1, &credential(0x20), &key(0x20), true);
    let leaf = forge::leaf_node(&credential(0x20), &key(0x20), Source::KeyPackage);
    vec![
        commit().encode(),
        external().encode(),
        forge::private(CONVERSATION, 5, 1, &[1; 32]),
        forge::framed(5, &package),
        forge::welcome(1, &[Digest::of(b"a"), Digest::of(b"joiner"), Digest::of(b"c")]),
        vector(&[&[1, 1][..], &leaf].concat()).into(),
        support::World::new().conversation.head.expect("created").encode(),
        support::World::new().conversation.roster.encode(),
    ]
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, InvalidMls>, text: &str) {
    assert_eq!(result.err(), Some(InvalidMls(find(text))));
}

/// The tests name texts by a part of them; the texts are part of what clients see, so each must exist.
fn find(text: &str) -> &'static str {
    TEXTS.iter().find(|whole| whole.contains(text)).expect("a known text")
}

const TEXTS: [&str; 27] = [
    "the message ends early",
    "an optional value is neither present nor absent",
    "bytes follow the end",
    "the protocol version is not mls10",
    "the wire format is neither public nor private message",
    "the sender is neither a member nor a joiner",
    "the public message is not a commit",
    "the private message is not application data",
    "the group id is not one of ours",
    "the commit is not a public message",
    "a proposal is by reference",
    "the commit adds more than 128",
    "a proposal is neither Add, Remove nor ExternalInit",
    "the path's leaf is not made for a commit",
    "a member's commit has an ExternalInit",
    "the commit lacks a path",
    "a joiner's commit has other proposals than one ExternalInit and at most one Remove",
    "the message is not a key package",
    "the key package's version is not mls10",
    "the key package's leaf is not made for one",
    "the cipher suite is neither 1 nor 2",
    "the credential is not basic",
    "the credential is not one of ours",
    "the message is not a Welcome",
    "the Welcome is not for this joiner",
    "a joiner is not a SHA-256 reference",
    "the tree has more than one leaf",
];

#[test]
fn a_commit_reads_as_it_was_written() {
    let read = mls::commit(&commit().encode()).expect("in order");
    assert_eq!(read.header, mls::header(&commit().encode()).expect("in order"));
    assert_eq!((read.header.form, read.header.epoch.0), (Form::MemberCommit(3), 5));
    assert_eq!(read.header.conversation, CONVERSATION);
    assert_eq!(read.removes, vec![7, 1]);
    let added: Vec<_> = read.adds.iter().map(|add| (add.leaf.credential, add.leaf.key_hash(), add.suite)).collect();
    let wanted = [0x20, 0x30].map(|number| (credential(number), support::key_hash(number), 1));
    assert_eq!(added, wanted);
    assert_eq!(read.path_leaf.map(|leaf| leaf.credential), Some(credential(0x10)));
    let read = mls::commit(&external().encode()).expect("in order");
    assert_eq!((read.header.form, read.removes), (Form::NewMemberCommit, vec![4]));
}

#[test]
fn proposals_that_apply_cannot_follow_are_refused() {
    let with = |proposals: Vec<Proposal>| mls::commit(&Commit { proposals, ..commit() }.encode());
    refused(with(vec![Proposal::Reference]), "by reference");
    // Update, PreSharedKey, ReInit, GroupContextExtensions, SelfRemove, one of the future, none.
    for kind in [2, 4, 5, 7, 10, 0xf00d, 0] {
        refused(with(vec![Proposal::Raw(kind, vector(&[1; 8]))]), "neither Add, Remove");
    }
    refused(with(vec![Proposal::ExternalInit]), "has an ExternalInit");
    let adds = |count: u16| (0..count).map(|n| Proposal::Add(forge::key_package(1, &credential(n), &key(n), false)));
    assert_eq!(with(adds(128).collect()).expect("in order").adds.len(), 128);
    refused(with(adds(129).collect()), "more than 128");
}

#[test]
fn the_nodes_of_a_path_are_read_to_their_end() {
    let bytes = commit().encode();
    // The last secret's ciphertext: one byte of length, 48 of content.
    let secret = vector(&[2; 48]);
    let at = bytes.windows(secret.len()).rposition(|window| window == secret).expect("a path has secrets");
    let mut longer = bytes.to_vec();
    longer[at] += 1;
    refused(mls::commit(&longer.into()), "ends early");
}

#[test]
fn a_path_may_be_left_out_with_adds_only() {
    let package = || Proposal::Add(forge::key_package(1, &credential(0x20), &key(0x20), false));
    let bare = |proposals| mls::commit(&Commit { proposals, path: None, ..commit() }.encode());
    assert!(bare(vec![package()]).is_ok_and(|read| read.path_leaf.is_none()));
    refused(bare(vec![]), "lacks a path");
    refused(bare(vec![Proposal::Remove(1)]), "lacks a path");
    refused(bare(vec![Proposal::Remove(1), package()]), "lacks a path");
    refused(mls::commit(&Commit { path: None, ..external() }.encode()), "lacks a path");
}

#[test]
fn a_joiner_proposes_itself_and_one_remove() {
    let with = |proposals| mls::commit(&Commit { proposals, ..external() }.encode());
    let package = Proposal::Add(forge::key_package(1, &credential(0x20), &key(0x20), false));
    assert!(with(vec![Proposal::ExternalInit]).is_ok());
    for proposals in [
        vec![],
        vec![Proposal::Remove(1)],
        vec![Proposal::ExternalInit, Proposal::ExternalInit],
        vec![Proposal::ExternalInit, Proposal::Remove(1), Proposal::Remove(2)],
        vec![Proposal::ExternalInit, package],
    ] {
        refused(with(proposals), "a joiner's commit");
    }
}

#[test]
fn leaves_and_key_packages_must_be_of_their_kind() {
    let add = |package| mls::commit(&Commit { proposals: vec![Proposal::Add(package)], ..commit() }.encode());
    let leaf = |source| forge::leaf_node(&credential(0x20), &key(0x20), source);
    assert!(add(forge::key_package_of(2, &leaf(Source::KeyPackage), false)).is_ok_and(|read| read.adds[0].suite == 2));
    for suite in [0, 3, 7, 0x100] {
        refused(add(forge::key_package_of(suite, &leaf(Source::KeyPackage), false)), "neither 1 nor 2");
    }
    for source in [Source::Update, Source::Commit] {
        refused(add(forge::key_package_of(1, &leaf(source), false)), "leaf is not made for one");
    }
    let x509 = forge::leaf_node_of(2, &vector(&vector(&[1; 100])), &key(0x20), Source::KeyPackage);
    refused(add(forge::key_package_of(1, &x509, false)), "is not basic");
    for identity in [vec![1; 48], vec![1; 50], vec![2; 49], vec![]] {
        let other = forge::leaf_node_of(1, &vector(&identity), &key(0x20), Source::KeyPackage);
        refused(add(forge::key_package_of(1, &other, false)), "credential is not one of ours");
    }
    let mut version = forge::key_package_of(1, &leaf(Source::KeyPackage), false);
    version[1] = 2;
    refused(add(version), "key package's version");
    for source in [Source::KeyPackage, Source::Update] {
        let path = Some(leaf(source));
        refused(mls::commit(&Commit { path, ..commit() }.encode()), "path's leaf");
    }
}

#[test]
fn headers_of_other_messages_are_refused() {
    let encoded = commit().encode();
    let at = |place: usize, byte: u8| {
        let mut bytes = encoded.to_vec();
        bytes[place] = byte;
        Bytes::from(bytes)
    };
    refused(mls::header(&at(1, 2)), "protocol version");
    refused(mls::header(&at(0, 1)), "protocol version");
    for wire in [0, 3, 4, 5, 6] {
        refused(mls::header(&at(3, wire)), "wire format");
        refused(mls::commit(&at(3, wire)), "not a public message");
    }
    refused(mls::commit(&forge::private(CONVERSATION, 5, 1, &[])), "not a public message");
    // version, wire format, length and group id (21), epoch (8): the sender.
    for sender in [0, 2, 3, 5] {
        refused(mls::header(&at(33, sender)), "neither a member");
    }
    // sender (5), length and authenticated data (33): the content.
    for content in [0, 1, 2, 4] {
        refused(mls::header(&at(71, content)), "not a commit");
        refused(mls::commit(&at(71, content)), "not a commit");
    }
    for content in [0, 2, 3] {
        refused(mls::header(&forge::private(CONVERSATION, 5, content, &[])), "application data");
    }
    let private = forge::private(CONVERSATION, 5, 1, &[9; 32]);
    let header = mls::header(&private).expect("in order");
    assert_eq!((header.form, &header.authenticated_data[..]), (Form::PrivateApplication, &[9; 32][..]));
    refused(mls::header(&[&private[..], &[0]].concat().into()), "bytes follow");
    for length in [19, 21] {
        let mut other = vector(&vec![1; length]);
        other.extend([0; 60]);
        refused(mls::header(&forge::framed(1, &other)), "group id");
        refused(mls::header(&forge::framed(2, &other)), "group id");
    }
}

#[test]
fn what_is_cut_off_or_goes_on_is_refused() {
    for (sample, number) in samples().iter().zip(0..) {
        let read = |bytes: &Bytes| match number {
            0 | 1 => mls::commit(bytes).map(|_| ()),
            2 => mls::header(bytes).map(|_| ()),
            3 => mls::key_package(bytes).map(|_| ()),
            4 => mls::welcome_refs(bytes).map(|_| ()),
            5 => mls::single_leaf(bytes).map(|_| ()),
            _ => Err(InvalidMls("not read here")),
        };
        if number > 5 {
            continue;
        }
        assert_eq!(read(sample), Ok(()));
        refused(read(&[&sample[..], &[0]].concat().into()), "bytes follow");
        for length in 0..sample.len() {
            refused(read(&sample.slice(..length)), "ends early");
        }
    }
}

#[test]
fn key_packages_say_lifetime_and_last_resort() {
    for last_resort in [false, true] {
        let package = forge::key_package(2, &credential(0x20), &key(0x20), last_resort);
        let read = mls::key_package(&forge::framed(5, &package)).expect("in order");
        assert_eq!((read.suite, read.not_before, read.not_after, read.last_resort), (2, 1_000, 2_000, last_resort));
        let input = [&vector(b"MLS 1.0 KeyPackage Reference")[..], &vector(&package)].concat();
        assert_eq!(read.reference, Digest::of(&input));
    }
    refused(mls::key_package(&commit().encode()), "not a key package");
}

#[test]
fn a_welcome_is_cut_to_one_joiner() {
    let joiners = [Digest::of(b"a"), Digest::of(b"b"), Digest::of(b"c")];
    let welcome = forge::welcome(2, &joiners);
    assert_eq!(mls::welcome_refs(&welcome).as_deref(), Ok(&joiners[..]));
    for joiner in joiners {
        let slice = mls::slice_welcome(&welcome, joiner).expect("listed");
        assert_eq!(mls::welcome_refs(&slice), Ok(vec![joiner]));
        assert_eq!(slice[..6], welcome[..6]);
        assert!(slice.ends_with(&vector(&[4; 500])));
        assert_eq!(mls::slice_welcome(&slice, joiner), Ok(slice));
    }
    assert_eq!(mls::slice_welcome(&forge::welcome(1, &joiners[..1]), joiners[0]), Ok(forge::welcome(1, &joiners[..1])));
    refused(mls::slice_welcome(&welcome, Digest::of(b"d")), "not for this joiner");
    refused(mls::welcome_refs(&forge::welcome(3, &joiners)), "neither 1 nor 2");
    refused(mls::welcome_refs(&commit().encode()), "not a Welcome");
    let mut short = 1u16.to_be_bytes().to_vec();
    short.extend(vector(&[&vector(&[1; 31])[..], &vector(&[1]), &vector(&[1])].concat()));
    short.extend(vector(&[1]));
    refused(mls::welcome_refs(&forge::framed(3, &short)), "SHA-256 reference");
}

#[test]
fn a_tree_has_one_leaf() {
    let leaf = [&[1, 1][..], &forge::leaf_node(&credential(0x20), &key(0x20), Source::KeyPackage)].concat();
    let read = mls::single_leaf(&vector(&leaf).into()).expect("in order");
    assert_eq!((read.credential, &read.signature_key[..]), (credential(0x20), &key(0x20)[..]));
    refused(mls::single_leaf(&vector(&[&leaf[..], &[0]].concat()).into()), "more than one leaf");
    refused(mls::single_leaf(&vector(&[&leaf[..], &[0], &leaf].concat()).into()), "more than one leaf");
    for start in [[0, 1], [1, 2]] {
        let other = [&start[..], &leaf[2..]].concat();
        assert_eq!(mls::single_leaf(&vector(&other).into()), Err(InvalidMls("the tree's first node is not a leaf")));
    }
    refused(mls::single_leaf(&vector(&[&[2, 1], &leaf[2..]].concat()).into()), "neither present nor absent");
    refused(mls::single_leaf(&vector(&[]).into()), "ends early");
}

#[test]
fn many_small_proposals_stay_within_bounds() {
    let removes = (0..20_000).map(Proposal::Remove).collect();
    let encoded = Commit { proposals: removes, ..commit() }.encode();
    read_everything(&encoded);
    assert_eq!(mls::commit(&encoded).expect("in order").removes.len(), 20_000);
    // A count that promises more than there is.
    read_everything(&[&[1][..], &[0; 8], &[0xff; 4]].concat().into());
    read_everything(&[&[0x81][..], &[0; 8], &[0xff; 4]].concat().into());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        read_everything(&bytes.into());
    }

    #[test]
    fn changed_messages_are_read_without_panic(
        which in any::<prop::sample::Index>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..4u8), 1..6),
    ) {
        let samples = samples();
        let mut bytes = which.get(&samples).to_vec();
        for (at, value, kind) in changes {
            let at = at.index(bytes.len().max(1)).min(bytes.len());
            match kind {
                0 if at < bytes.len() => bytes[at] = value,
                1 => bytes.truncate(at),
                2 => bytes.insert(at, value),
                _ => drop(bytes.drain(at..(at + usize::from(value)).min(bytes.len()))),
            }
        }
        read_everything(&bytes.into());
    }
}
