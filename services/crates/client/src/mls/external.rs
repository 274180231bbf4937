//! Joining by an external commit (RFC 9420 section 12.4.3.2): for a device whose own state is behind or lost.
//!
//! openmls merges an external commit as it is made. Until the feed says that it won, the group is there but unused, and it is
//! thrown away when it lost.

use openmls::prelude::tls_codec::DeserializeBytes as _;
use openmls::prelude::{LeafNodeParameters, MlsGroup, MlsMessageBodyIn, MlsMessageIn, OpenMlsProvider as _};
use wardline_domain::Digest;
use wardline_domain::envelope::{Epoch, MessageKind};
use wardline_domain::mls::group_id;
use wardline_proto::convert::envelope;
use wardline_proto::v1;

use super::group::{Built, delete, encode, group_state};
use super::{config, join};
use crate::core::Step;
use crate::device_log::leaf::{self, Standing, Stranger};
use crate::error::{Error, mls};
use crate::store::conversations::Conversation;

impl Step<'_> {
    /// Replaces the local group by one that joins at `state`, and answers the commit that does it; or a leaf of that group
    /// that no device log vouches for. The caller's duty is then to delete the group.
    pub(crate) fn build_external(
        &mut self,
        row: &Conversation,
        state: &v1::GroupState,
    ) -> Result<Result<Built, Stranger>, Error> {
        let clear = self.envelope(row, Epoch(state.epoch), MessageKind::ExternalCommit)?;
        let bytes = envelope::encode(&clear);
        let provider = self.provider();
        delete(&provider, row.id, row.generation)?;
        let message = MlsMessageIn::tls_deserialize_exact_bytes(&state.group_info).map_err(mls)?;
        let MlsMessageBodyIn::GroupInfo(info) = message.extract() else {
            return Err(Error::Untrusted("what came as a GroupInfo is none"));
        };
        if info.group_id().as_slice() != group_id(row.id, row.generation) || info.epoch().as_u64() != state.epoch {
            return Err(Error::Untrusted("a GroupInfo of another group or epoch"));
        }
        let leaf = LeafNodeParameters::builder().with_capabilities(config::capabilities()).build();
        let (group, bundle) = MlsGroup::external_commit_builder()
            .with_ratchet_tree(join::tree(state)?)
            .with_config(config::join())
            .with_aad(Digest::of(&bytes).as_bytes().to_vec())
            .skip_lifetime_validation()
            .build_group(&provider, info, config::credential(self.me)?)
            .map_err(mls)?
            .leaf_node_parameters(leaf)
            .load_psks(provider.storage())
            .map_err(mls)?
            .build(provider.rand(), provider.crypto(), &self.me.signer, |_| true)
            .map_err(mls)?
            .finalize(&provider)
            .map_err(mls)?;
        // The tree that counts may have come in the GroupInfo: so the group's leaves are looked at, not those of `state`.
        let suite = u16::from(group.ciphersuite());
        if let Some(stranger) = leaf::stranger(&self.tx, self.me, suite, Standing::Stays, &leaf::of_group(&group))? {
            return Ok(Err(stranger));
        }
        let after = group_state(&provider, &group, self.me, row)?;
        let request = v1::CommitRequest {
            sealed: Some(v1::Sealed { envelope: bytes, mls_message: encode(bundle.commit())? }),
            welcome: bytes::Bytes::new(),
            group_state: Some(after),
        };
        Ok(Ok(Built { message: clear.message, request, epoch: Epoch(state.epoch) }))
    }
}
