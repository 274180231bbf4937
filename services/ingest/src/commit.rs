//! What a commit brings: the group after it, a Welcome, and devices whose key packages the directory must have served.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use wardline_domain::envelope::{Envelope, Epoch, Generation};
use wardline_domain::mls::{self, AddedLeaf};
use wardline_domain::record::{AddedKey, BlobRef, GroupStateRef};
use wardline_domain::{ConversationId, DeviceId, Digest, UserId};
use wardline_proto::reason::Reason;
use wardline_proto::v1;
use wardline_runtime::Refusal;
use wardline_runtime::caller::DeviceCaller;
use wardline_runtime::members::Seen;

use crate::{Inner, MAX_GROUP_STATE_BYTES, MAX_WELCOME_BYTES};

/// A key package must live at least this long to be served, and so to make a device count as missing.
const SERVABLE_FOR: Duration = Duration::from_secs(60 * 24 * 3600);

/// Group state whose sizes and place are right.
pub(crate) struct GroupState {
    pub(crate) reference: GroupStateRef,
    pub(crate) blobs: [Bytes; 3],
}

/// Checks group state that must describe (generation, epoch).
pub(crate) fn group_state(
    state: Option<v1::GroupState>,
    generation: Generation,
    epoch: Epoch,
) -> Result<GroupState, Refusal> {
    let state = state.ok_or_else(|| Refusal::field("group_state", "is required"))?;
    if state.generation != generation.0 {
        return Err(Refusal::field("group_state.generation", "must be the group's generation"));
    }
    if state.epoch != epoch.0 {
        return Err(Refusal::field("group_state.epoch", "must be the epoch that it describes"));
    }
    if state.group_info.is_empty() || state.ratchet_tree.is_empty() {
        return Err(Refusal::field("group_state", "must have GroupInfo and ratchet tree"));
    }
    if state.group_info.len() + state.ratchet_tree.len() + state.sealed_group_data.len() > MAX_GROUP_STATE_BYTES {
        return Err(Refusal::new(Reason::TooLarge).with("max_bytes", MAX_GROUP_STATE_BYTES.to_string()));
    }
    let blobs = [state.group_info, state.ratchet_tree, state.sealed_group_data];
    let [group_info, ratchet_tree, sealed_group_data] = blobs.each_ref().map(blob_ref);
    let reference = GroupStateRef { generation, epoch, group_info, ratchet_tree, sealed_group_data };
    Ok(GroupState { reference, blobs })
}

pub(crate) fn blob_ref(bytes: &Bytes) -> BlobRef {
    // Every caller has bounded the length far below 4 GiB.
    BlobRef { digest: Digest::of(bytes), length: u32::try_from(bytes.len()).unwrap_or(u32::MAX) }
}

/// A commit that may be appended.
pub(crate) struct Checked {
    pub(crate) group_state: GroupStateRef,
    pub(crate) welcome: Option<BlobRef>,
    pub(crate) added_keys: Vec<AddedKey>,
    /// To be stored before the append.
    pub(crate) blobs: Vec<Bytes>,
}

impl Inner {
    /// Checks what the fold cannot: that what is added was served by the directory, occurs in the Welcome, and is complete.
    pub(crate) async fn check_commit(
        &self,
        caller: &DeviceCaller,
        envelope: &Envelope,
        mls_message: &Bytes,
        welcome: Bytes,
        state: Option<v1::GroupState>,
        seen: &Seen,
    ) -> Result<Checked, Refusal> {
        let commit = mls::commit(mls_message)?;
        let state = group_state(state, envelope.generation, Epoch(envelope.epoch.0.saturating_add(1)))?;
        check_welcome(&commit.adds, &welcome)?;
        let mut added_keys = Vec::with_capacity(commit.adds.len());
        for add in &commit.adds {
            added_keys.push(self.added_key(caller, add, seen.head.suite).await?);
        }
        self.check_complete(&added_keys, seen).await?;
        let welcome_ref = (!welcome.is_empty()).then(|| blob_ref(&welcome));
        let mut blobs = Vec::from(state.blobs);
        blobs.extend((!welcome.is_empty()).then_some(welcome));
        Ok(Checked { group_state: state.reference, welcome: welcome_ref, added_keys, blobs })
    }

    /// The added device as the directory knows it.
    async fn added_key(&self, caller: &DeviceCaller, add: &AddedLeaf, suite: u16) -> Result<AddedKey, Refusal> {
        let not_served = || Refusal::new(Reason::KeyPackageNotServed);
        let credential = add.leaf.credential;
        // Users of other tenants come by an allow-list that does not exist yet.
        if credential.tenant != caller.tenant {
            return Err(not_served());
        }
        let directory = &self.deps.stores.directory;
        let served = directory.served_key_package(credential.principal, suite, add.key_package_ref).await?;
        let served = served.filter(|row| row.device == credential.device && row.key_hash == add.leaf.key_hash());
        let row = served.ok_or_else(not_served)?;
        self.deps
            .revocations
            .check(row.user, row.device)
            .map_err(|_| Refusal::new(Reason::KeyPackageNotServed).with("detail", "the device is revoked"))?;
        Ok(AddedKey { tenant: credential.tenant, user: row.user, device: row.device, key_hash: row.key_hash })
    }

    /// Adding a user adds all its devices that have packages.
    async fn check_complete(&self, added: &[AddedKey], seen: &Seen) -> Result<(), Refusal> {
        let mut by_user: BTreeMap<UserId, BTreeSet<DeviceId>> = BTreeMap::new();
        for key in added.iter().filter(|key| !seen.roster.has_user(key.user)) {
            by_user.entry(key.user).or_default().insert(key.device);
        }
        let until = self.deps.clock.now().plus(SERVABLE_FOR);
        for (user, devices) in by_user {
            for row in self.deps.stores.directory.devices(user).await? {
                if row.revoked || devices.contains(&row.device) {
                    continue;
                }
                let status =
                    self.deps.stores.directory.key_package_status(user, row.device, seen.head.suite, until).await?;
                if status.available > 0 || status.has_last_resort {
                    return Err(Refusal::new(Reason::DevicesMissing));
                }
            }
        }
        Ok(())
    }

    /// Stores what a commit or a new conversation brings. Durable before the record that names it.
    pub(crate) async fn put_blobs(&self, conversation: ConversationId, blobs: &[Bytes]) -> Result<(), Refusal> {
        Ok(self.deps.stores.blobs.put(conversation, blobs).await?)
    }
}

/// A Welcome comes exactly when somebody is added, and has a secret for each.
fn check_welcome(adds: &[AddedLeaf], welcome: &Bytes) -> Result<(), Refusal> {
    if welcome.len() > MAX_WELCOME_BYTES {
        return Err(Refusal::new(Reason::TooLarge).with("max_bytes", MAX_WELCOME_BYTES.to_string()));
    }
    if adds.is_empty() != welcome.is_empty() {
        return Err(Refusal::field("welcome", "must be given exactly when the commit adds devices"));
    }
    if adds.is_empty() {
        return Ok(());
    }
    let joiners: BTreeSet<Digest> = mls::welcome_refs(welcome)?.into_iter().collect();
    let added: BTreeSet<Digest> = adds.iter().map(|add| add.key_package_ref).collect();
    if joiners != added {
        return Err(Refusal::new(Reason::KeyPackageNotServed).with("detail", "the Welcome is for other key packages"));
    }
    Ok(())
}
