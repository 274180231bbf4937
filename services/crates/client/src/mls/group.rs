//! A conversation's group: created, sealed with, committed to.

use std::collections::BTreeSet;

use openmls::prelude::tls_codec::Serialize as _;
use openmls::prelude::{
    GroupId, KeyPackage, LeafNodeIndex, MlsGroup, MlsMessageOut, OpenMlsCrypto, OpenMlsProvider as _,
};
use rusqlite::Connection;
use wardline_domain::envelope::{Envelope, Epoch, Generation, MessageKind, Sealed, Urgency};
use wardline_domain::mls::{Credential, group_id};
use wardline_domain::{ConversationId, DeviceId, Digest, MessageId, UserId};
use wardline_proto::convert::envelope;
use wardline_proto::v1;

use super::provider::Provider;
use super::{config, group_data};
use crate::core::{Identity, Step};
use crate::error::{Error, mls};
use crate::secret::Secret;
use crate::store::conversations::{self, Conversation};
use crate::view::{ConversationView, MemberView};

/// A group's state as the file has it; `None` when there is none.
pub(crate) fn load(
    provider: &Provider<'_>,
    id: ConversationId,
    generation: Generation,
) -> Result<Option<MlsGroup>, Error> {
    MlsGroup::load(provider.storage(), &GroupId::from_slice(&group_id(id, generation))).map_err(mls)
}

/// Deletes a group's state, if there is any.
pub(crate) fn delete(provider: &Provider<'_>, id: ConversationId, generation: Generation) -> Result<(), Error> {
    match load(provider, id, generation)? {
        Some(mut group) => group.delete(provider.storage()).map_err(mls),
        None => Ok(()),
    }
}

/// Our credential in a leaf; `None` when it is another's.
pub(crate) fn credential_of(credential: &openmls::prelude::Credential) -> Option<Credential> {
    Credential::decode(credential.serialized_content()).ok()
}

/// The leaves of a group: index, user, device.
pub(crate) fn leaves(group: &MlsGroup) -> impl Iterator<Item = (LeafNodeIndex, UserId, DeviceId)> + '_ {
    group.members().filter_map(|member| {
        let credential = credential_of(&member.credential)?;
        Some((member.index, credential.principal, credential.device))
    })
}

/// The devices of a group.
pub(crate) fn devices(group: &MlsGroup) -> BTreeSet<(UserId, DeviceId)> {
    leaves(group).map(|(_, user, device)| (user, device)).collect()
}

/// A conversation for reading.
pub(crate) fn conversation_view(
    connection: &Connection,
    id: ConversationId,
) -> Result<Option<ConversationView>, Error> {
    let Some(row) = conversations::load(connection, id)? else { return Ok(None) };
    let group = load(&Provider::new(connection), id, row.generation)?;
    Ok(Some(ConversationView {
        id,
        kind: row.kind,
        title: row.title,
        status: row.status,
        generation: row.generation.0,
        epoch: group.map(|group| group.epoch().as_u64()),
        sequence: row.sequence,
        chain: row.chain,
        read: row.read,
        skipped: conversations::skipped(connection, id)?,
    }))
}

/// The leaves for reading.
pub(crate) fn members(connection: &Connection, id: ConversationId) -> Result<Vec<MemberView>, Error> {
    let Some(row) = conversations::load(connection, id)? else { return Ok(Vec::new()) };
    let Some(group) = load(&Provider::new(connection), id, row.generation)? else { return Ok(Vec::new()) };
    let pending = conversations::pending_removals(connection, id)?;
    let view = |(leaf, user, device): (LeafNodeIndex, UserId, DeviceId)| MemberView {
        leaf: leaf.u32(),
        user,
        device,
        removal_pending: pending.contains(&(user, device)),
    };
    Ok(leaves(&group).map(view).collect())
}

/// A commit that was built and is not merged.
pub(crate) struct Built {
    pub(crate) message: MessageId,
    pub(crate) request: v1::CommitRequest,
    pub(crate) epoch: Epoch,
}

/// What a commit is to do.
#[derive(Default)]
pub(crate) struct Change {
    pub(crate) adds: Vec<KeyPackage>,
    pub(crate) removes: Vec<LeafNodeIndex>,
}

impl Step<'_> {
    /// openmls over this step's transaction.
    pub(crate) fn provider(&self) -> Provider<'_> {
        Provider::new(&self.tx)
    }

    /// A conversation's group; an error when there is none.
    pub(crate) fn group(&self, row: &Conversation) -> Result<MlsGroup, Error> {
        load(&self.provider(), row.id, row.generation)?
            .ok_or(Error::Invalid("the device has no group for the conversation"))
    }

    /// Makes a group of this device alone, at epoch 0.
    pub(crate) fn create_group(&self, row: &Conversation, authority: &[[u8; 32]]) -> Result<v1::GroupState, Error> {
        let provider = self.provider();
        let config = config::create(row.suite, row.id, row.generation, authority, self.clock.now())?;
        let id = GroupId::from_slice(&group_id(row.id, row.generation));
        let group = MlsGroup::new_with_group_id(&provider, &self.me.signer, &config, id, config::credential(self.me)?)
            .map_err(mls)?;
        group_state(&provider, &group, self.me, row)
    }

    /// Seals content in the group's current epoch, under a new message id. Advances the ratchet.
    pub(crate) fn seal(
        &mut self,
        row: &Conversation,
        group: &mut MlsGroup,
        content: &[u8],
        draft: impl FnOnce(&mut Envelope),
    ) -> Result<(MessageId, Sealed), Error> {
        let mut clear = self.envelope(row, Epoch(group.epoch().as_u64()), MessageKind::Application)?;
        draft(&mut clear);
        let bytes = envelope::encode(&clear);
        group.set_aad(Digest::of(&bytes).as_bytes().to_vec());
        let message = group.create_message(&self.provider(), &self.me.signer, content).map_err(mls)?;
        let mls_message = encode(&message)?;
        Ok((clear.message, Sealed { envelope: bytes, mls_message }))
    }

    /// Builds a commit and leaves it pending in the group.
    pub(crate) fn build_commit(
        &mut self,
        row: &Conversation,
        group: &mut MlsGroup,
        change: Change,
    ) -> Result<Built, Error> {
        let epoch = Epoch(group.epoch().as_u64());
        let clear = self.envelope(row, epoch, MessageKind::Commit)?;
        let bytes = envelope::encode(&clear);
        let provider = self.provider();
        group.set_aad(Digest::of(&bytes).as_bytes().to_vec());
        let bundle = group
            .commit_builder()
            .consume_proposal_store(false)
            .force_self_update(true)
            .propose_adds(change.adds)
            .propose_removals(change.removes)
            .load_psks(provider.storage())
            .map_err(mls)?
            // The Welcome carries the tree, so that it is enough to join with, whatever was committed since.
            .use_ratchet_tree_extension(true)
            .create_group_info(false)
            .build(provider.rand(), provider.crypto(), &self.me.signer, |_| true)
            .map_err(mls)?
            .stage_commit(&provider)
            .map_err(mls)?;
        let (commit, welcome, _) = bundle.into_messages();
        let state = self.state_after(row)?;
        let request = v1::CommitRequest {
            sealed: Some(v1::Sealed { envelope: bytes, mls_message: encode(&commit)? }),
            welcome: welcome.as_ref().map(encode).transpose()?.unwrap_or_default(),
            group_state: Some(state),
        };
        Ok(Built { message: clear.message, request, epoch })
    }

    /// The public state that the pending commit leads to: merged in a savepoint that is rolled back. The GroupInfo that the
    /// commit could make itself would carry the tree a second time.
    fn state_after(&self, row: &Conversation) -> Result<v1::GroupState, Error> {
        self.tx.execute_batch("SAVEPOINT merging")?;
        let provider = self.provider();
        let state = load(&provider, row.id, row.generation)
            .and_then(|group| group.ok_or_else(|| mls("a commit that is not pending")))
            .and_then(|mut group| {
                group.merge_pending_commit(&provider).map_err(mls)?;
                group_state(&provider, &group, self.me, row)
            });
        self.tx.execute_batch("ROLLBACK TO merging; RELEASE merging")?;
        state
    }

    /// A routine envelope by this device.
    pub(crate) fn envelope(&mut self, row: &Conversation, epoch: Epoch, kind: MessageKind) -> Result<Envelope, Error> {
        Ok(Envelope {
            conversation: row.id,
            sender: self.me.account()?.user,
            device: self.me.device,
            message: self.next_message(),
            generation: row.generation,
            epoch,
            kind,
            urgency: Urgency::Routine,
            respond_by: None,
            expires_at: None,
        })
    }
}

/// TLS-encodes a message.
pub(crate) fn encode(message: &MlsMessageOut) -> Result<bytes::Bytes, Error> {
    message.to_bytes().map(Into::into).map_err(mls)
}

/// The public state of a group as it stands.
pub(crate) fn group_state(
    provider: &Provider<'_>,
    group: &MlsGroup,
    me: &Identity,
    row: &Conversation,
) -> Result<v1::GroupState, Error> {
    let info = group.export_group_info(provider.crypto(), &me.signer, false).map_err(mls)?;
    let context = group.group_id().as_slice();
    let key = group.export_secret(provider.crypto(), group_data::LABEL, context, group_data::KEY_BYTES).map_err(mls)?;
    Ok(v1::GroupState {
        generation: row.generation.0,
        epoch: group.epoch().as_u64(),
        group_info: encode(&info)?,
        ratchet_tree: group.export_ratchet_tree().tls_serialize_detached().map_err(mls)?.into(),
        sealed_group_data: group_data::seal(&Secret::new(key), context, &row.title)?.into(),
    })
}

/// Reads the title that a group state carries, with the group's own epoch key.
pub(crate) fn read_title(crypto: &impl OpenMlsCrypto, group: &MlsGroup, state: &v1::GroupState) -> Option<String> {
    if state.epoch != group.epoch().as_u64() {
        return None;
    }
    let context = group.group_id().as_slice();
    let key = group.export_secret(crypto, group_data::LABEL, context, group_data::KEY_BYTES).ok()?;
    group_data::open(&Secret::new(key), context, &state.sealed_group_data)
}
