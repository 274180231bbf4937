//! Joining by a Welcome, which carries the ratchet tree: what was committed since, or how far the service that has the group
//! states has come, does not matter.

use openmls::prelude::tls_codec::DeserializeBytes as _;
use openmls::prelude::{
    MlsGroup, MlsMessageBodyIn, MlsMessageIn, ProcessedWelcome, RatchetTreeIn, StagedWelcome, Welcome,
};
use wardline_domain::ConversationId;
use wardline_domain::envelope::Generation;
use wardline_domain::mls::group_id;
use wardline_proto::v1;

use super::config;
use super::provider::Provider;
use crate::error::{Error, mls};

/// Joins, replacing whatever state there was. Lifetimes in the tree are not checked: one expired leaf would keep everybody out.
/// A Welcome without the tree needs `state` of its epoch.
pub(crate) fn by_welcome(
    provider: &Provider<'_>,
    conversation: ConversationId,
    generation: Generation,
    welcome: &v1::Welcome,
    state: Option<&v1::GroupState>,
) -> Result<MlsGroup, Error> {
    let mut joining = StagedWelcome::build_from_welcome(provider, &config::join(), parse(welcome)?).map_err(mls)?;
    if let Some(state) = state {
        joining = joining.with_ratchet_tree(tree(state)?);
    }
    let staged = joining.replace_old_group().skip_lifetime_validation().build().map_err(mls)?;
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

fn parse(welcome: &v1::Welcome) -> Result<Welcome, Error> {
    let message = MlsMessageIn::tls_deserialize_exact_bytes(&welcome.welcome).map_err(mls)?;
    match message.extract() {
        MlsMessageBodyIn::Welcome(body) => Ok(body),
        _ => Err(Error::Untrusted("what came as a Welcome is none")),
    }
}

/// The ratchet tree that a Welcome carries, not verified. Uses up the key package: the caller takes that back.
pub(crate) fn tree_of_welcome(provider: &Provider<'_>, welcome: &v1::Welcome) -> Result<Option<RatchetTreeIn>, Error> {
    let opened = ProcessedWelcome::new_from_welcome(provider, &config::join(), parse(welcome)?).map_err(mls)?;
    let tree = opened.unverified_group_info().extensions().ratchet_tree();
    Ok(tree.map(|extension| extension.ratchet_tree().clone()))
}

/// The ratchet tree of a group state.
pub(crate) fn tree(state: &v1::GroupState) -> Result<RatchetTreeIn, Error> {
    RatchetTreeIn::tls_deserialize_exact_bytes(&state.ratchet_tree).map_err(mls)
}
