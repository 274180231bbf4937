//! Devices with real MLS state (openmls), set up as API.md says.

use openmls::prelude::tls_codec::{DeserializeBytes as _, Serialize as _};
use openmls::prelude::*;
use openmls_basic_credential::SignatureKeyPair;
use openmls_rust_crypto::OpenMlsRustCrypto;
use wardline_domain::Digest;
use wardline_domain::envelope::Generation;
use wardline_domain::mls;

use crate::support;

/// The extension and credential types API.md names.
const WARDLINE_EXTENSION: u16 = 0xf1a0;

pub(crate) struct Device {
    pub(crate) number: u16,
    pub(crate) suite: Ciphersuite,
    pub(crate) provider: OpenMlsRustCrypto,
    pub(crate) signer: SignatureKeyPair,
    pub(crate) group: Option<MlsGroup>,
}

/// What a commit leaves with the server.
pub(crate) struct Made {
    pub(crate) commit: Vec<u8>,
    pub(crate) welcome: Option<Vec<u8>>,
}

pub(crate) fn bytes_of(message: &MlsMessageOut) -> Vec<u8> {
    message.to_bytes().expect("openmls writes its own message")
}

fn read(bytes: &[u8]) -> MlsMessageIn {
    MlsMessageIn::tls_deserialize_exact_bytes(bytes).expect("openmls reads the message")
}

impl Device {
    pub(crate) fn new(number: u16, suite: Ciphersuite) -> Self {
        let provider = OpenMlsRustCrypto::default();
        let signer = SignatureKeyPair::new(suite.signature_algorithm()).expect("a key pair");
        signer.store(provider.storage()).expect("memory storage");
        Self { number, suite, provider, signer, group: None }
    }

    pub(crate) fn key_hash(&self) -> Digest {
        Digest::of(self.signer.public())
    }

    fn credential(&self) -> CredentialWithKey {
        let credential = BasicCredential::new(support::credential(self.number).encode().to_vec());
        CredentialWithKey { credential: credential.into(), signature_key: self.signer.public().into() }
    }

    fn capabilities() -> Capabilities {
        Capabilities::builder()
            .ciphersuites(vec![
                Ciphersuite::MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519,
                Ciphersuite::MLS_128_DHKEMP256_AES128GCM_SHA256_P256,
            ])
            .extensions(vec![ExtensionType::LastResort, ExtensionType::Unknown(WARDLINE_EXTENSION)])
            .proposals(vec![ProposalType::SelfRemove])
            .credentials(vec![CredentialType::Basic, CredentialType::X509])
            .build()
    }

    pub(crate) fn create_group(&mut self) {
        let required = RequiredCapabilitiesExtension::new(
            &[ExtensionType::Unknown(WARDLINE_EXTENSION)],
            &[ProposalType::SelfRemove],
            &[CredentialType::Basic],
        );
        let own = Extension::Unknown(WARDLINE_EXTENSION, UnknownExtension(vec![1; 21]));
        let extensions =
            Extensions::from_vec(vec![Extension::RequiredCapabilities(required), own]).expect("two distinct types");
        let group = MlsGroup::builder()
            .with_group_id(GroupId::from_slice(&mls::group_id(support::CONVERSATION, Generation(0))))
            .ciphersuite(self.suite)
            .with_wire_format_policy(PURE_PLAINTEXT_WIRE_FORMAT_POLICY)
            .padding_size(256)
            .with_capabilities(Self::capabilities())
            .with_group_context_extensions(extensions)
            .build(&self.provider, &self.signer, self.credential())
            .expect("a group");
        self.group = Some(group);
    }

    pub(crate) fn key_package(&self, last_resort: bool) -> KeyPackage {
        let builder = KeyPackage::builder().leaf_node_capabilities(Self::capabilities());
        let builder = if last_resort { builder.mark_as_last_resort() } else { builder };
        let bundle = builder.build(self.suite, &self.provider, &self.signer, self.credential()).expect("a key package");
        bundle.key_package().clone()
    }

    pub(crate) fn reference(&self, package: &KeyPackage) -> Digest {
        let reference = package.hash_ref(self.provider.crypto()).expect("a hash");
        Digest::try_from(reference.as_slice()).expect("SHA-256")
    }

    fn join_config() -> MlsGroupJoinConfig {
        MlsGroupJoinConfig::builder().wire_format_policy(PURE_PLAINTEXT_WIRE_FORMAT_POLICY).padding_size(256).build()
    }

    fn group(&mut self) -> (&mut MlsGroup, &OpenMlsRustCrypto, &SignatureKeyPair) {
        (self.group.as_mut().expect("a member"), &self.provider, &self.signer)
    }

    /// Commits and merges.
    pub(crate) fn commit(&mut self, adds: Vec<KeyPackage>, removes: &[u32], update: bool, aad: &[u8]) -> Made {
        let (group, provider, signer) = self.group();
        group.set_aad(aad.to_vec());
        let bundle = group
            .commit_builder()
            .propose_removals(removes.iter().map(|leaf| LeafNodeIndex::new(*leaf)))
            .propose_adds(adds)
            .force_self_update(update)
            .load_psks(provider.storage())
            .expect("no psks")
            .build(provider.rand(), provider.crypto(), signer, |_| true)
            .expect("a valid commit")
            .stage_commit(provider)
            .expect("memory storage");
        let made = Made {
            commit: bytes_of(bundle.commit()),
            welcome: bundle.to_welcome_msg().map(|welcome| bytes_of(&welcome)),
        };
        group.merge_pending_commit(provider).expect("its own commit");
        made
    }

    pub(crate) fn content(&mut self, text: &[u8], aad: &[u8]) -> Vec<u8> {
        let (group, provider, signer) = self.group();
        group.set_aad(aad.to_vec());
        bytes_of(&group.create_message(provider, signer, text).expect("a message"))
    }

    pub(crate) fn receive(&mut self, commit: &[u8]) {
        let (group, provider, _) = self.group();
        let message = read(commit).try_into_protocol_message().expect("a protocol message");
        let processed = group.process_message(provider, message).expect("a valid commit");
        match processed.into_content() {
            ProcessedMessageContent::StagedCommitMessage(staged) => {
                group.merge_staged_commit(provider, *staged).expect("a valid commit");
            }
            other => panic!("not a commit: {other:?}"),
        }
    }

    /// Joins by a Welcome; whether it could.
    pub(crate) fn join(&mut self, welcome: &[u8], tree: RatchetTreeIn) -> bool {
        let MlsMessageBodyIn::Welcome(welcome) = read(welcome).extract() else { panic!("not a Welcome") };
        let staged = StagedWelcome::new_from_welcome(&self.provider, &Self::join_config(), welcome, Some(tree));
        let Ok(staged) = staged else { return false };
        self.group = Some(staged.into_group(&self.provider).expect("memory storage"));
        true
    }

    /// Joins by an external commit.
    pub(crate) fn join_externally(&mut self, helper: &Self, aad: &[u8]) -> Made {
        let group = helper.group.as_ref().expect("a member");
        let info = group.export_group_info(helper.provider.crypto(), &helper.signer, false).expect("a group info");
        let MlsMessageBodyIn::GroupInfo(info) = read(&bytes_of(&info)).extract() else { panic!("not a group info") };
        let parameters = LeafNodeParameters::builder().with_capabilities(Self::capabilities()).build();
        let provider = &self.provider;
        let (group, bundle) = MlsGroup::external_commit_builder()
            .with_ratchet_tree(group.export_ratchet_tree().into())
            .with_config(Self::join_config())
            .with_aad(aad.to_vec())
            .build_group(provider, info, self.credential())
            .expect("a group to join")
            .leaf_node_parameters(parameters)
            .load_psks(provider.storage())
            .expect("no psks")
            .build(provider.rand(), provider.crypto(), &self.signer, |_| true)
            .expect("a valid commit")
            .finalize(provider)
            .expect("memory storage");
        self.group = Some(group);
        Made { commit: bytes_of(bundle.commit()), welcome: None }
    }

    /// The tree as the server gets it.
    pub(crate) fn tree_bytes(&self) -> Vec<u8> {
        let tree = self.group.as_ref().expect("a member").export_ratchet_tree();
        tree.tls_serialize_detached().expect("openmls writes its own tree")
    }
}
