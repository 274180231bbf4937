//! Table `blobs`: conversation and digest → the bytes, in chunks.
//!
//! A blob is a partition of its own. A conversation's group state is replaced with every commit, and a partition of all of
//! them would grow by megabytes a commit where conversations are large.

use std::ops::ControlFlow;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use scylla::statement::prepared::PreparedStatement;
use wardline_domain::{ConversationId, Digest};
use wardline_store::conversations::Blobs;
use wardline_store::{Failure, Result};

use crate::Scylla;
use crate::batch::Write;
use crate::number::corrupt;
use crate::statements::Preparer;

/// How long a chunk is at most, in bytes. Small enough for a commit log and a page, large enough to be few.
const CHUNK: usize = 64 << 10;

pub(crate) struct Statements {
    put: PreparedStatement,
    get: PreparedStatement,
}

impl Statements {
    pub(crate) async fn prepare(p: &Preparer<'_>) -> Result<Self> {
        Ok(Self {
            put: p
                .write("INSERT INTO {ks}.blobs (conversation, digest, chunk, chunks, value) VALUES (?, ?, ?, ?, ?)")
                .await?,
            get: p
                .read_paged(16, "SELECT chunk, chunks, value FROM {ks}.blobs WHERE conversation = ? AND digest = ?")
                .await?,
        })
    }
}

/// The chunks of a value, numbered, with how many there are. An empty value has one.
pub(crate) fn cut(value: &Bytes) -> Result<Vec<(i32, i32, Bytes)>> {
    let chunks = value.len().div_ceil(CHUNK).max(1);
    let numbered = i32::try_from(chunks).map_err(|_| corrupt("a value has more chunks than can be counted"))?;
    let at = |chunk: usize| chunk.saturating_mul(CHUNK).min(value.len());
    Ok((0..numbered).zip(0..chunks).map(|(n, chunk)| (n, numbered, value.slice(at(chunk)..at(chunk + 1)))).collect())
}

/// Puts chunks together as they come, in order.
#[derive(Debug, Default)]
pub(crate) struct Joined {
    first: Option<Bytes>,
    rest: BytesMut,
    next: i32,
    chunks: i32,
    broken: bool,
}

impl Joined {
    /// Takes the next chunk.
    pub(crate) fn add(&mut self, chunk: i32, chunks: i32, value: Bytes) {
        if chunk != self.next {
            self.broken = true;
            return;
        }
        self.next += 1;
        self.chunks = chunks;
        match &self.first {
            None => self.first = Some(value),
            Some(first) => {
                if self.rest.is_empty() {
                    self.rest.extend_from_slice(first);
                }
                self.rest.extend_from_slice(&value);
            }
        }
    }

    /// The value, when all its chunks came. One that a torn write left in part was never answered for.
    pub(crate) fn value(self) -> Option<Bytes> {
        if self.broken || self.next == 0 || self.next != self.chunks {
            return None;
        }
        if self.next == 1 { self.first } else { Some(self.rest.freeze()) }
    }
}

type Row<'a> = (&'a [u8; 16], [u8; 32], i32, i32, Bytes);

#[async_trait]
impl Blobs for Scylla {
    async fn put(&self, conversation: ConversationId, blobs: &[Bytes]) -> Result<()> {
        let statement = &self.0.statements.blobs.put;
        let mut writes = Vec::with_capacity(blobs.len());
        for blob in blobs {
            let digest = *Digest::of(blob).as_bytes();
            for (chunk, chunks, value) in cut(blob)? {
                let bytes = value.len();
                let values: Row<'_> = (conversation.as_bytes(), digest, chunk, chunks, value);
                writes.push(Write { partition: digest, statement, values, bytes });
            }
        }
        self.0.write_all("blobs.put", writes).await.end()
    }

    async fn get(&self, conversation: ConversationId, digest: Digest) -> Result<Option<Bytes>> {
        let mut joined = Joined::default();
        let take = |(chunk, chunks, value)| {
            joined.add(chunk, chunks, value);
            Ok::<_, Failure>(ControlFlow::Continue(()))
        };
        let key = (conversation.as_bytes(), digest.as_bytes());
        self.0.pages("blobs.get", &self.0.statements.blobs.get, key, take).await?;
        let Some(value) = joined.value() else { return Ok(None) };
        if Digest::of(&value) != digest {
            return Err(corrupt("blobs: the bytes are not those of their digest"));
        }
        Ok(Some(value))
    }
}
