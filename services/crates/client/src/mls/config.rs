//! What every group and leaf of Wardline is made with.

use openmls::prelude::{
    BasicCredential, Capabilities, Ciphersuite, CredentialType, CredentialWithKey, Extension, ExtensionType,
    Extensions, ExternalSender, GroupContext, Lifetime, MIXED_PLAINTEXT_WIRE_FORMAT_POLICY, MlsGroupCreateConfig,
    MlsGroupJoinConfig, ProposalType, ProtocolVersion, RequiredCapabilitiesExtension, SenderRatchetConfiguration,
    SignaturePublicKey, UnknownExtension,
};
use wardline_domain::envelope::Generation;
use wardline_domain::mls::Credential;
use wardline_domain::{ConversationId, Timestamp};

use crate::core::Identity;
use crate::error::{Error, mls};

/// The extension that binds a group to its conversation: version, conversation, generation.
pub(crate) const CONVERSATION_EXTENSION: u16 = 0xF1A0;
const CONVERSATION_EXTENSION_VERSION: u8 = 1;

/// Plaintexts are padded to a multiple of this.
const PADDING_BYTES: usize = 256;
/// How many of a sender's messages may arrive out of order, and how many may be missing before one.
const OUT_OF_ORDER: u32 = 256;
const FORWARD: u32 = 4096;

/// How long key packages live, less an hour for clocks that differ.
const LIFETIME_SECONDS: u64 = 180 * 24 * 3600 - 3600;
const LIFETIME_MARGIN_SECONDS: u64 = 3600;

/// What the leaves can do.
pub(crate) fn capabilities() -> Capabilities {
    Capabilities::new(
        Some(&[ProtocolVersion::Mls10]),
        Some(&[
            Ciphersuite::MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519,
            Ciphersuite::MLS_128_DHKEMP256_AES128GCM_SHA256_P256,
        ]),
        Some(&[ExtensionType::LastResort, ExtensionType::Unknown(CONVERSATION_EXTENSION)]),
        Some(&[ProposalType::SelfRemove]),
        Some(&[CredentialType::Basic, CredentialType::X509]),
    )
}

/// The device's own leaf credential.
pub(crate) fn credential(me: &Identity) -> Result<CredentialWithKey, Error> {
    let account = me.account()?;
    let credential = Credential { tenant: account.tenant, principal: account.user, device: me.device };
    Ok(CredentialWithKey {
        credential: BasicCredential::new(credential.encode().to_vec()).into(),
        signature_key: me.signer.to_public_vec().into(),
    })
}

/// The lifetime of key packages made now.
pub(crate) fn lifetime(now: Timestamp) -> Lifetime {
    let now = now.as_millis() / 1000;
    Lifetime::init(now.saturating_sub(LIFETIME_MARGIN_SECONDS), now + LIFETIME_SECONDS)
}

/// A suite by its number.
pub(crate) fn suite(number: u16) -> Result<Ciphersuite, Error> {
    Ciphersuite::try_from(number).map_err(mls)
}

/// For groups that are joined. Handshakes are public, content is private; nothing of past epochs is kept.
pub(crate) fn join() -> MlsGroupJoinConfig {
    MlsGroupJoinConfig::builder()
        .wire_format_policy(MIXED_PLAINTEXT_WIRE_FORMAT_POLICY)
        .padding_size(PADDING_BYTES)
        .max_past_epochs(0)
        .number_of_resumption_psks(0)
        .use_ratchet_tree_extension(false)
        .sender_ratchet_configuration(SenderRatchetConfiguration::new(OUT_OF_ORDER, FORWARD))
        .build()
}

/// For groups that are created.
pub(crate) fn create(
    suite_number: u16,
    conversation: ConversationId,
    generation: Generation,
    authority: &[[u8; 32]],
    now: Timestamp,
) -> Result<MlsGroupCreateConfig, Error> {
    let extensions = context_extensions(suite_number, conversation, generation, authority)?;
    Ok(MlsGroupCreateConfig::builder()
        .wire_format_policy(MIXED_PLAINTEXT_WIRE_FORMAT_POLICY)
        .padding_size(PADDING_BYTES)
        .max_past_epochs(0)
        .number_of_resumption_psks(0)
        .use_ratchet_tree_extension(false)
        .sender_ratchet_configuration(SenderRatchetConfiguration::new(OUT_OF_ORDER, FORWARD))
        .ciphersuite(suite(suite_number)?)
        .lifetime(lifetime(now))
        .capabilities(capabilities())
        .with_group_context_extensions(extensions)
        .build())
}

fn context_extensions(
    suite_number: u16,
    conversation: ConversationId,
    generation: Generation,
    authority: &[[u8; 32]],
) -> Result<Extensions<GroupContext>, Error> {
    let required = RequiredCapabilitiesExtension::new(
        &[ExtensionType::Unknown(CONVERSATION_EXTENSION)],
        &[ProposalType::SelfRemove],
        &[CredentialType::Basic],
    );
    let mut extensions = vec![
        Extension::RequiredCapabilities(required),
        Extension::Unknown(CONVERSATION_EXTENSION, UnknownExtension(conversation_extension(conversation, generation))),
    ];
    // The authority's keys are Ed25519; a group of another signature scheme could not verify them.
    if suite_number == 1 && !authority.is_empty() {
        let sender = |key: &[u8; 32]| {
            let credential = BasicCredential::new(b"wardline authority".to_vec());
            ExternalSender::new(SignaturePublicKey::from(key.as_slice()), credential.into())
        };
        extensions.push(Extension::ExternalSenders(authority.iter().map(sender).collect()));
    }
    Extensions::from_vec(extensions).map_err(mls)
}

/// The bytes of extension 0xF1A0: version, conversation (16), generation (u32 big-endian).
pub(crate) fn conversation_extension(conversation: ConversationId, generation: Generation) -> Vec<u8> {
    let mut bytes = vec![CONVERSATION_EXTENSION_VERSION];
    bytes.extend_from_slice(conversation.as_bytes());
    bytes.extend_from_slice(&generation.0.to_be_bytes());
    bytes
}
