//! Table `blobs`: conversation and digest → the bytes.

use async_trait::async_trait;
use bytes::Bytes;
use wardline_domain::{ConversationId, Digest};

use super::Embedded;
use super::engine::{Engine, key};
use crate::Result;
use crate::conversations::Blobs;

fn blob_key(conversation: ConversationId, digest: Digest) -> Vec<u8> {
    key(&[conversation.as_bytes(), digest.as_bytes()])
}

fn put(engine: &Engine, conversation: ConversationId, blobs: Vec<Bytes>) -> Result<()> {
    let table = &engine.tables.blobs;
    let mut batch = engine.batch();
    for bytes in blobs {
        let key = blob_key(conversation, Digest::of(&bytes));
        if !table.contains(&key)? {
            batch.insert(&table.keyspace, key, bytes);
        }
    }
    engine.commit_for_sync(batch)
}

#[async_trait]
impl Blobs for Embedded {
    async fn put(&self, conversation: ConversationId, blobs: &[Bytes]) -> Result<()> {
        let blobs = blobs.to_vec();
        self.0.blocking(move |engine| put(engine, conversation, blobs)).await?;
        self.0.syncer.synced().await
    }

    async fn get(&self, conversation: ConversationId, digest: Digest) -> Result<Option<Bytes>> {
        self.0.blocking(move |engine| engine.tables.blobs.get(&blob_key(conversation, digest))).await
    }
}
