//! The schema: numbered migrations, applied one after the other by whoever holds the lock, and verified by who opens.
//!
//! A migration only adds, and is never changed once released: programs of an older version go on working beside those of a
//! newer one. Each of its statements may be run again.
//!
//! Deliberately absent: a way back.

mod lock;
mod migrate;

use scylla::client::session::Session;
use scylla::errors::{DbError, PrepareError, RequestAttemptError};
use scylla::statement::unprepared::Statement;
use wardline_domain::Digest;
use wardline_store::{Cause, Failure, Result};

use crate::failure;
use crate::session::Profiles;

pub use migrate::{Migrated, migrate};

/// One step of the schema.
struct Migration {
    version: i32,
    cql: &'static str,
}

const MIGRATIONS: [Migration; 3] = [
    Migration { version: 1, cql: include_str!("../../migrations/0001_conversations.cql") },
    Migration { version: 2, cql: include_str!("../../migrations/0002_feeds.cql") },
    Migration { version: 3, cql: include_str!("../../migrations/0003_directory.cql") },
];

/// The version of the schema that this program needs.
pub const NEWEST: i32 = 3;

impl Migration {
    /// What tells whether the same was applied.
    fn checksum(&self) -> Digest {
        Digest::of(self.cql.as_bytes())
    }

    /// Its statements, without comments.
    fn statements(&self, keyspace: &str) -> Vec<String> {
        let lines = self.cql.lines().filter(|line| !line.trim_start().starts_with("--"));
        let text = lines.collect::<Vec<_>>().join("\n").replace("{ks}", keyspace);
        text.split(';').map(str::trim).filter(|statement| !statement.is_empty()).map(str::to_owned).collect()
    }
}

/// A keyspace's name stands unquoted in every statement.
pub(crate) fn check_name(keyspace: &str) -> Result<()> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    let named = keyspace.len() <= 48
        && keyspace.bytes().all(plain)
        && keyspace.bytes().next().is_some_and(|first| first.is_ascii_lowercase());
    if named {
        return Ok(());
    }
    Err(unfit("a keyspace's name is a lower-case letter, then lower-case letters, digits and underscores, at most 48"))
}

fn unfit(detail: impl std::fmt::Display) -> Failure {
    Failure::NotApplied(Cause::unavailable(detail))
}

/// Verifies that every migration this program knows was applied, and as this program knows it.
pub(crate) async fn verify(session: &Session, keyspace: &str, profiles: &Profiles) -> Result<()> {
    let applied = applied(session, keyspace, profiles).await?;
    for migration in &MIGRATIONS {
        match applied.iter().find(|(version, _)| *version == migration.version) {
            None => {
                return Err(unfit(format!(
                    "the schema of keyspace {keyspace} is not at version {NEWEST}: run `wardline migrate`"
                )));
            }
            Some((_, checksum)) if *checksum != migration.checksum() => return Err(another(keyspace, migration)),
            Some(_) => (),
        }
    }
    Ok(())
}

fn another(keyspace: &str, migration: &Migration) -> Failure {
    unfit(format!(
        "migration {} of keyspace {keyspace} was applied by a program that knows it differently: \
         run the version that applied it, or use another keyspace",
        migration.version
    ))
}

/// The migrations that were applied, by version. None where there is no table of them.
async fn applied(session: &Session, keyspace: &str, profiles: &Profiles) -> Result<Vec<(i32, Digest)>> {
    let mut select = Statement::new(format!("SELECT version, checksum FROM {keyspace}.schema_migrations"));
    select.set_execution_profile_handle(Some(profiles.read.clone()));
    let mut statement = match session.prepare(select).await {
        Ok(statement) => statement,
        Err(PrepareError::AllAttemptsFailed { first_attempt: RequestAttemptError::DbError(DbError::Invalid, _) }) => {
            return Ok(Vec::new());
        }
        Err(error) => return Err(failure::of_prepare(&error)),
    };
    statement.set_is_idempotent(true);
    let answer = session.execute_unpaged(&statement, ()).await;
    let answer = answer.map_err(|error| failure::of_read("schema_migrations.get", &error))?;
    let unreadable = || unfit(format!("{keyspace}.schema_migrations does not decode"));
    let rows = answer.into_rows_result().map_err(|_| unreadable())?;
    let mut applied = Vec::new();
    for row in rows.rows::<(i32, Option<Vec<u8>>)>().map_err(|_| unreadable())? {
        // The lock's row has no checksum.
        if let (version, Some(checksum)) = row.map_err(|_| unreadable())? {
            applied.push((version, Digest::try_from(&checksum[..]).map_err(|_| unreadable())?));
        }
    }
    Ok(applied)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn migrations_are_numbered_from_one() {
        let versions: Vec<_> = MIGRATIONS.iter().map(|migration| migration.version).collect();
        assert_eq!(versions, (1..=NEWEST).collect::<Vec<_>>());
    }

    #[test]
    fn every_statement_may_be_run_again() {
        for statement in MIGRATIONS.iter().flat_map(|migration| migration.statements("k")) {
            assert!(statement.starts_with("CREATE TABLE IF NOT EXISTS k."), "{statement}");
        }
    }

    #[test]
    fn names_that_need_quotes_are_refused() {
        for name in ["", "1a", "a-b", "Ab", "a b", "a\"", &"a".repeat(49)] {
            assert!(check_name(name).is_err(), "{name}");
        }
        assert!(check_name("wardline_2").is_ok());
    }
}
