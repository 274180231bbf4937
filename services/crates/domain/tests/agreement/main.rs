//! Our reader and the state machine's roster, held against openmls: whatever a real group does, leaf by leaf.
#![allow(clippy::unwrap_used)]

mod device;
#[path = "../support/mod.rs"]
mod support;

use std::collections::BTreeMap;

use bytes::Bytes;
use device::{Device, Made, bytes_of};
use openmls::prelude::{Ciphersuite, KeyPackage, MlsMessageOut};
use proptest::prelude::*;
use support::{CONVERSATION, Draft, World, credential, key_hash, user_of};
use wardline_domain::Digest;
use wardline_domain::conversation::{Outcome, Prior};
use wardline_domain::envelope::{Epoch, Generation, MessageKind};
use wardline_domain::mls::{self, Form, Header};
use wardline_domain::record::{AddedKey, Body};

/// More make the test slow and nothing new happens.
const MEMBERS: usize = 9;

#[derive(Debug, Clone)]
enum Step {
    /// A member adds devices of users, removes some others, and perhaps renews its leaf.
    Commit { by: prop::sample::Index, adds: Vec<u16>, removes: Vec<prop::sample::Index>, update: bool },
    /// A new device of a member's user comes by itself.
    Join { of: prop::sample::Index },
    /// A device has lost its state and comes again.
    Rejoin { who: prop::sample::Index },
    /// A member says something.
    Content { by: prop::sample::Index },
}

fn step() -> impl Strategy<Value = Step> {
    let index = any::<prop::sample::Index>;
    let users = prop::collection::vec(1..6u16, 0..4);
    prop_oneof![
        4 => (index(), users, prop::collection::vec(index(), 0..3), any::<bool>())
            .prop_map(|(by, adds, removes, update)| Step::Commit { by, adds, removes, update }),
        1 => index().prop_map(|of| Step::Join { of }),
        1 => index().prop_map(|who| Step::Rejoin { who }),
        1 => index().prop_map(|by| Step::Content { by }),
    ]
}

/// A real group beside the conversation that is folded from its commits.
struct Both {
    devices: BTreeMap<u16, Device>,
    world: World,
    suite: Ciphersuite,
    /// How many devices each user ever had.
    enrolled: BTreeMap<u16, u16>,
}

impl Both {
    fn new(suite: Ciphersuite) -> Self {
        let mut creator = Device::new(0x10, suite);
        creator.create_group();
        let tree = Bytes::from(creator.tree_bytes());
        let leaf = mls::single_leaf(&tree).expect("one leaf");
        assert_eq!((leaf.credential, leaf.key_hash()), (credential(0x10), creator.key_hash()));
        let mut create = support::create(0x10);
        create.suite = suite as u16;
        create.key_hash = leaf.key_hash();
        let devices = BTreeMap::from([(0x10, creator)]);
        Self { devices, world: World::with(&create), suite, enrolled: BTreeMap::from([(1, 1)]) }
    }

    fn enrol(&mut self, user: u16) -> Option<Device> {
        let count = self.enrolled.entry(user).or_default();
        let number = (user << 4) | *count;
        *count += 1;
        (*count <= 16).then(|| Device::new(number, self.suite))
    }

    fn pick(&self, index: &prop::sample::Index) -> u16 {
        *index.get(&self.devices.keys().copied().collect::<Vec<_>>())
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::Commit { by, adds, removes, update } => {
                let by = self.pick(by);
                let gone: Vec<u16> =
                    removes.iter().map(|index| self.pick(index)).filter(|number| *number != by).collect();
                let room = MEMBERS.saturating_sub(self.devices.len());
                let joiners = adds.iter().take(room).filter_map(|user| self.enrol(*user)).collect();
                self.commit(by, joiners, gone, *update);
            }
            Step::Join { of } => {
                let user = self.pick(of) >> 4;
                if let Some(device) = self.enrol(user) {
                    self.join(device);
                }
            }
            Step::Rejoin { who } if self.devices.len() > 1 => {
                let who = self.pick(who);
                let device = self.devices.remove(&who).expect("picked");
                self.join(device);
            }
            Step::Rejoin { .. } => {}
            Step::Content { by } => self.content(self.pick(by)),
        }
        self.compare();
    }

    fn commit(&mut self, by: u16, mut joiners: Vec<Device>, mut gone: Vec<u16>, update: bool) {
        gone.sort_unstable();
        gone.dedup();
        let leaves: Vec<u32> = gone.iter().map(|number| self.world.leaf(*number).expect("a member")).collect();
        let draft = self.world.commit(by).adding(&joiners.iter().map(|device| device.number).collect::<Vec<_>>());
        let packages: Vec<KeyPackage> =
            joiners.iter().map(|device| device.key_package(device.number.is_multiple_of(2))).collect();
        let references: Vec<Digest> =
            joiners.iter().zip(&packages).map(|(device, package)| device.reference(package)).collect();
        check_key_packages(&joiners, &packages, &references);
        let aad = Digest::of(&draft.envelope_bytes());
        let committer = self.devices.get_mut(&by).expect("a member");
        let made = committer.commit(packages, &leaves, update, aad.as_bytes());
        self.submit(&draft, &made, &joiners);
        let read = mls::commit(&Bytes::from(made.commit.clone())).expect("a real commit");
        assert_eq!(read.adds.iter().map(|add| add.key_package_ref).collect::<Vec<_>>(), references);
        assert_eq!(read.header.form, Form::MemberCommit(draft.leaf));
        gone.iter().for_each(|number| drop(self.devices.remove(number)));
        self.deliver(by, &made);
        if let Some(welcome) = &made.welcome {
            self.welcome(by, &Bytes::from(welcome.clone()), &mut joiners, &references);
        }
        self.devices.extend(joiners.into_iter().map(|device| (device.number, device)));
    }

    /// Every joiner joins by its own slice, and by no other's.
    fn welcome(&self, by: u16, welcome: &Bytes, joiners: &mut [Device], references: &[Digest]) {
        let listed = mls::welcome_refs(welcome).expect("a real Welcome");
        assert!(references.iter().all(|reference| listed.contains(reference)) && listed.len() == references.len());
        assert!(mls::slice_welcome(welcome, Digest::of(b"nobody")).is_err());
        let tree = || self.devices[&by].group.as_ref().expect("a member").export_ratchet_tree().into();
        for (place, joiner) in joiners.iter_mut().enumerate() {
            let slice = |at: usize| mls::slice_welcome(welcome, references[at % references.len()]).expect("a joiner");
            assert_eq!(mls::welcome_refs(&slice(place)).as_deref(), Ok(&references[place..=place]));
            if references.len() > 1 {
                assert!(!joiner.join(&slice(place + 1), tree()), "joined by another's slice");
            }
            assert!(joiner.join(&slice(place), tree()), "did not join by its own slice");
        }
    }

    fn join(&mut self, mut device: Device) {
        let draft = self.world.external(device.number);
        let aad = Digest::of(&draft.envelope_bytes());
        let helper = self.devices.values().next().expect("somebody is left");
        let made = device.join_externally(helper, aad.as_bytes());
        self.submit(&draft, &made, std::slice::from_ref(&device));
        let by = device.number;
        self.devices.insert(by, device);
        self.deliver(by, &made);
    }

    fn deliver(&mut self, by: u16, made: &Made) {
        for (number, device) in &mut self.devices {
            if *number != by {
                device.receive(&made.commit);
            }
        }
    }

    fn submit(&mut self, draft: &Draft, made: &Made, joiners: &[Device]) {
        let mut submission = draft.build();
        submission.sealed.mls_message = Bytes::from(made.commit.clone());
        let external = draft.kind == MessageKind::ExternalCommit;
        let added = |device: &Device| AddedKey {
            tenant: support::tenant(),
            user: user_of(device.number),
            device: support::device(device.number),
            key_hash: device.key_hash(),
        };
        if external {
            submission.key_hash = joiners[0].key_hash();
        } else {
            submission.added_keys = joiners.iter().map(added).collect();
        }
        self.check_header(draft, &made.commit);
        let outcome = self.world.feed(Prior::None, Body::Submission(Box::new(submission)));
        assert!(matches!(outcome, Outcome::Sequenced(_)), "{outcome:?}");
    }

    fn content(&mut self, by: u16) {
        let draft = self.world.content(by);
        let aad = Digest::of(&draft.envelope_bytes());
        let message = self.devices.get_mut(&by).expect("a member").content(b"potassium 6.1", aad.as_bytes());
        self.check_header(&draft, &message);
        assert!(mls::commit(&Bytes::from(message)).is_err());
    }

    fn check_header(&self, draft: &Draft, message: &[u8]) {
        let form = match draft.kind {
            MessageKind::Application => Form::PrivateApplication,
            MessageKind::Commit => Form::MemberCommit(draft.leaf),
            MessageKind::ExternalCommit => Form::NewMemberCommit,
        };
        let expected = Header {
            form,
            conversation: CONVERSATION,
            generation: Generation(0),
            epoch: Epoch(self.world.epoch()),
            authenticated_data: Bytes::copy_from_slice(Digest::of(&draft.envelope_bytes()).as_bytes()),
        };
        assert_eq!(mls::header(&Bytes::copy_from_slice(message)), Ok(expected));
    }

    /// The law: the roster is openmls' member list, leaf by leaf, and so is the epoch.
    fn compare(&self) {
        let ours: Vec<_> = self.world.conversation.roster.leaves().iter().collect();
        let ours: Vec<_> =
            ours.into_iter().map(|(index, leaf)| (*index, leaf.device, leaf.user, leaf.key_hash)).collect();
        for device in self.devices.values() {
            let group = device.group.as_ref().expect("a member");
            let theirs: Vec<_> = group
                .members()
                .map(|member| {
                    let credential = mls::Credential::decode(member.credential.serialized_content()).expect("ours");
                    let key = Digest::of(&member.signature_key);
                    (member.index.u32(), credential.device, credential.principal, key)
                })
                .collect();
            assert!(ours == theirs, "leaves differ at epoch {}", self.world.epoch());
            assert_eq!(group.epoch().as_u64(), self.world.epoch());
        }
    }
}

fn check_key_packages(joiners: &[Device], packages: &[KeyPackage], references: &[Digest]) {
    for ((device, package), reference) in joiners.iter().zip(packages).zip(references) {
        let message = Bytes::from(bytes_of(&MlsMessageOut::from(package.clone())));
        let read = mls::key_package(&message).expect("a real key package");
        assert_eq!((read.suite, read.reference), (device.suite as u16, *reference));
        assert_eq!((read.leaf.credential, read.leaf.key_hash()), (credential(device.number), device.key_hash()));
        assert_eq!(read.not_after, package.life_time().not_after());
        assert_eq!(read.not_before, package.life_time().not_before());
        assert_eq!(read.last_resort, package.last_resort());
    }
}

fn suites() -> impl Strategy<Value = Ciphersuite> {
    prop_oneof![
        Just(Ciphersuite::MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519),
        Just(Ciphersuite::MLS_128_DHKEMP256_AES128GCM_SHA256_P256),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 64, ..ProptestConfig::default() })]

    #[test]
    fn the_roster_is_the_groups_member_list(suite in suites(), steps in prop::collection::vec(step(), 1..12)) {
        let mut both = Both::new(suite);
        for step in &steps {
            both.take(step);
        }
    }
}

/// The same, as one walk that surely passes a blank leaf, a rejoin and a grown tree.
#[test]
fn a_known_walk_agrees() {
    for suite in [
        Ciphersuite::MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519,
        Ciphersuite::MLS_128_DHKEMP256_AES128GCM_SHA256_P256,
    ] {
        let mut both = Both::new(suite);
        let devices: Vec<Device> = [2, 2, 3, 4].iter().map(|user| both.enrol(*user).unwrap()).collect();
        both.commit(0x10, devices, vec![], false);
        both.compare();
        both.commit(0x21, vec![], vec![0x10, 0x30], true);
        both.compare();
        let joiner = both.enrol(2).unwrap();
        both.join(joiner);
        both.compare();
        let back = both.devices.remove(&0x40).unwrap();
        both.join(back);
        both.compare();
        let devices: Vec<Device> = [5, 3, 3].iter().map(|user| both.enrol(*user).unwrap()).collect();
        both.commit(0x22, devices, vec![0x20], false);
        both.compare();
        assert_ne!(key_hash(0x20), both.devices[&0x21].key_hash(), "real keys, not the forge's");
    }
}
