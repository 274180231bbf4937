//! Tables of one cell a row, changed by compare-and-set: a value is set where there is none, or where it is the one read.
//!
//! Who gets no answer asks again, for the value that stands there once every change under way has come to its end; and who
//! finds there what it wanted to set has set it. So values must differ where changes do: rows carry versions and request ids.

use bytes::Bytes;
use scylla::statement::prepared::PreparedStatement;
use wardline_store::{Failure, Result};

use crate::session::{Cql, Lwt};
use crate::statements::Preparer;

/// A table's statements.
pub(super) struct Cells {
    table: &'static str,
    reading: &'static str,
    setting: &'static str,
    get: PreparedStatement,
    get_serial: PreparedStatement,
    insert: PreparedStatement,
    replace: PreparedStatement,
}

/// How setting a value where there is none ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Insert {
    Applied,
    /// This stands there.
    Exists(Bytes),
}

/// What is known after a try.
enum Tried {
    Applied,
    Refused(Option<Bytes>),
    Again,
}

impl Cells {
    /// Prepares a table's statements, which are measured under the names given.
    pub(super) async fn prepare(
        p: &Preparer<'_>,
        table: &'static str,
        [reading, setting]: [&'static str; 2],
    ) -> Result<Self> {
        let select = format!("SELECT value FROM {{ks}}.{table} WHERE key = ?");
        Ok(Self {
            table,
            reading,
            setting,
            get: p.read(&select).await?,
            get_serial: p.read_serial(&select).await?,
            insert: p.lwt(&format!("INSERT INTO {{ks}}.{table} (key, value) VALUES (?, ?) IF NOT EXISTS")).await?,
            replace: p.lwt(&format!("UPDATE {{ks}}.{table} SET value = ? WHERE key = ? IF value = ?")).await?,
        })
    }

    /// Reads what was answered for.
    pub(super) async fn get(&self, cql: &Cql, key: &[u8]) -> Result<Option<Bytes>> {
        Ok(cql.one::<(Bytes,)>(self.reading, &self.get, (key,)).await?.map(|(value,)| value))
    }

    /// Reads after every change under way has come to its end.
    pub(super) async fn get_serial(&self, cql: &Cql, key: &[u8]) -> Result<Option<Bytes>> {
        Ok(cql.one::<(Bytes,)>(self.reading, &self.get_serial, (key,)).await?.map(|(value,)| value))
    }

    /// Sets a value where there is none.
    pub(super) async fn insert(&self, cql: &Cql, key: &[u8], value: &Bytes) -> Result<Insert> {
        let (mut unsure, mut tries) = (false, cql.directory.tries());
        while tries.again().await {
            let answer = cql.lwt(self.setting, &self.insert, (key, value)).await;
            match self.outcome(cql, key, value, answer, &mut unsure).await? {
                Tried::Applied => return Ok(Insert::Applied),
                Tried::Refused(Some(stands)) => return Ok(Insert::Exists(stands)),
                Tried::Refused(None) | Tried::Again => (),
            }
        }
        Err(tries.failure(self.table, unsure))
    }

    /// Sets a value where `old` stands. Answers whether it did.
    pub(super) async fn replace(&self, cql: &Cql, key: &[u8], old: &Bytes, value: &Bytes) -> Result<bool> {
        let (mut unsure, mut tries) = (false, cql.directory.tries());
        while tries.again().await {
            let answer = cql.lwt(self.setting, &self.replace, (value, key, old)).await;
            match self.outcome(cql, key, value, answer, &mut unsure).await? {
                Tried::Applied => return Ok(true),
                Tried::Refused(stands) if stands.as_ref() != Some(old) => return Ok(false),
                Tried::Refused(_) | Tried::Again => (),
            }
        }
        Err(tries.failure(self.table, unsure))
    }

    /// What a try came to. Without an answer, what stands there tells: all but the value before it was set after this
    /// was asked.
    async fn outcome(
        &self,
        cql: &Cql,
        key: &[u8],
        value: &Bytes,
        answer: Result<Lwt>,
        unsure: &mut bool,
    ) -> Result<Tried> {
        let stands = match answer {
            Ok(Lwt::Applied) => return Ok(Tried::Applied),
            Ok(Lwt::Refused(Some(stands))) => Some(stands),
            Ok(Lwt::Refused(None)) => self.get_serial(cql, key).await?,
            Err(Failure::NotApplied(_)) if *unsure => return Ok(Tried::Again),
            Err(failure @ Failure::NotApplied(_)) => return Err(failure),
            Err(Failure::Unknown(_)) => {
                *unsure = true;
                match self.get_serial(cql, key).await {
                    Ok(stands) => stands,
                    Err(_) => return Ok(Tried::Again),
                }
            }
        };
        match stands {
            Some(stands) if *unsure && stands == *value => Ok(Tried::Applied),
            stands => Ok(Tried::Refused(stands)),
        }
    }
}
