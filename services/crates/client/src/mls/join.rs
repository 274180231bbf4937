//! Joining by a Welcome.

use openmls::prelude::tls_codec::DeserializeBytes as _;
use openmls::prelude::{MlsGroup, MlsMessageBodyIn, MlsMessageIn, RatchetTreeIn, StagedWelcome};
use wardline_domain::ConversationId;
use wardline_domain::envelope::Generation;
use wardline_domain::mls::group_id;
use wardline_proto::v1;

use super::config;
use super::provider::Provider;
use crate::error::{Error, mls};

/// Joins, replacing whatever state there was. Lifetimes in the tree are not checked: one expired leaf would keep everybody out.
pub(crate) fn by_welcome(
    provider: &Provider<'_>,
    conversation: ConversationId,
    generation: Generation,
    welcome: &v1::Welcome,
    state: &v1::GroupState,
) -> Result<MlsGroup, Error> {
    let message = MlsMessageIn::tls_deserialize_exact_bytes(&welcome.welcome).map_err(mls)?;
    let MlsMessageBodyIn::Welcome(body) = message.extract() else {
        return Err(Error::Untrusted("what came as a Welcome is none"));
    };
    let staged = StagedWelcome::build_from_welcome(provider, &config::join(), body)
        .map_err(mls)?
        .with_ratchet_tree(tree(state)?)
        .replace_old_group()
        .skip_lifetime_validation()
        .build()
        .map_err(mls)?;
    if staged.group_context().group_id().as_slice() != group_id(conversation, generation) {
        return Err(Error::Untrusted("a Welcome for another group"));
    }
    if staged.group_context().epoch().as_u64() != welcome.epoch {
        return Err(Error::Untrusted("a Welcome for another epoch"));
    }
    let extension = staged.group_context().extensions().unknown(config::CONVERSATION_EXTENSION);
    if extension.is_none_or(|found| found.0 != config::conversation_extension(conversation, generation)) {
        return Err(Error::Untrusted("a group that is not bound to its conversation"));
    }
    staged.into_group(provider).map_err(mls)
}

/// The ratchet tree of a group state.
pub(crate) fn tree(state: &v1::GroupState) -> Result<RatchetTreeIn, Error> {
    RatchetTreeIn::tls_deserialize_exact_bytes(&state.ratchet_tree).map_err(mls)
}
