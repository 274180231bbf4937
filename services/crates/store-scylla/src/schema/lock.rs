//! The lock that one run of migrations holds: the row of version 0, which goes by itself when its owner dies.

use std::time::{Duration, Instant};

use scylla::client::session::Session;
use scylla::statement::prepared::PreparedStatement;
use scylla::statement::unprepared::Statement;
use scylla::value::{CqlValue, Row};
use uuid::Uuid;
use wardline_domain::Digest;
use wardline_store::Result;

use super::unfit;
use crate::failure;
use crate::session::Profiles;

/// How long the lock holds without being renewed, in seconds. Longer than one change of the schema takes, and the nodes'
/// agreement on it.
const HELD: u32 = 180;

/// How long is waited for another run: longer than a dead one's lock holds.
const PATIENCE: Duration = Duration::from_secs(240);

/// How often is asked whether another run has ended.
const POLL: Duration = Duration::from_millis(200);

/// The lock, held.
pub(super) struct Lock<'a> {
    session: &'a Session,
    owner: Uuid,
    renew: PreparedStatement,
    release: PreparedStatement,
    record: PreparedStatement,
}

impl<'a> Lock<'a> {
    /// Waits until no other run holds the lock.
    pub(super) async fn acquire(session: &'a Session, keyspace: &str, profiles: &Profiles) -> Result<Self> {
        let table = format!("{keyspace}.schema_migrations");
        let prepare = |cql| prepare(session, profiles, cql);
        let insert = format!("INSERT INTO {table} (version, owner) VALUES (0, ?) IF NOT EXISTS USING TTL {HELD}");
        let insert = prepare(insert).await?;
        let lock = Self {
            session,
            owner: Uuid::new_v4(),
            renew: prepare(format!("UPDATE {table} USING TTL {HELD} SET owner = ? WHERE version = 0 IF owner = ?"))
                .await?,
            release: prepare(format!("DELETE FROM {table} WHERE version = 0 IF owner = ?")).await?,
            record: prepare(format!(
                "INSERT INTO {table} (version, checksum, applied_at, owner) \
                 VALUES (?, ?, toTimestamp(now()), ?) IF NOT EXISTS"
            ))
            .await?,
        };
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            match lock.decide(&insert, (lock.owner,)).await? {
                Decided::Applied => return Ok(lock),
                // The answer to an earlier try was lost.
                Decided::Refused(Some(owner)) if owner == lock.owner => return Ok(lock),
                Decided::Refused(_) | Decided::Unknown => tokio::time::sleep(POLL).await,
            }
        }
        Err(unfit("another run of `wardline migrate` holds the lock; it goes by itself when that run has died"))
    }

    /// Holds the lock for longer.
    pub(super) async fn renew(&self) -> Result<()> {
        for _ in 0..10 {
            match self.decide(&self.renew, (self.owner, self.owner)).await? {
                Decided::Applied => return Ok(()),
                Decided::Refused(_) => return Err(unfit("another run of `wardline migrate` took the lock over")),
                Decided::Unknown => tokio::time::sleep(POLL).await,
            }
        }
        Err(unfit("the lock of `wardline migrate` could not be renewed"))
    }

    /// Writes that a migration was applied.
    pub(super) async fn record(&self, version: i32, checksum: Digest) -> Result<()> {
        for _ in 0..10 {
            match self.decide(&self.record, (version, checksum.as_bytes(), self.owner)).await? {
                Decided::Applied => return Ok(()),
                Decided::Refused(Some(owner)) if owner == self.owner => return Ok(()),
                Decided::Refused(_) => {
                    return Err(unfit("another run of `wardline migrate` applied the same migration"));
                }
                Decided::Unknown => tokio::time::sleep(POLL).await,
            }
        }
        Err(unfit("a migration was applied and could not be recorded: run `wardline migrate` again"))
    }

    /// Lets the next run begin. Where this fails, it begins when the row has gone.
    pub(super) async fn release(&self) {
        if self.decide(&self.release, (self.owner,)).await.is_err() {
            tracing::warn!("the lock of the migrations was not released, it goes by itself within {HELD} s");
        }
    }

    async fn decide(
        &self,
        statement: &PreparedStatement,
        values: impl scylla::serialize::row::SerializeRow,
    ) -> Result<Decided> {
        let answer = match self.session.execute_unpaged(statement, values).await {
            Ok(answer) => answer,
            Err(error) => match failure::of_write("schema_migrations", &error, false) {
                wardline_store::Failure::Unknown(_) => return Ok(Decided::Unknown),
                failure => return Err(failure),
            },
        };
        let unreadable = || unfit("the servers' answer to the lock does not decode");
        let rows = answer.into_rows_result().map_err(|_| unreadable())?;
        let at = |name| rows.column_specs().get_by_name(name).map(|(at, _)| at);
        let row = rows.first_row::<Row>().map_err(|_| unreadable())?;
        let column = |name| at(name).and_then(|at| row.columns.get(at)).and_then(Option::as_ref);
        match column("[applied]") {
            Some(CqlValue::Boolean(true)) => Ok(Decided::Applied),
            Some(CqlValue::Boolean(false)) => Ok(Decided::Refused(column("owner").and_then(CqlValue::as_uuid))),
            _ => Err(unreadable()),
        }
    }
}

async fn prepare(session: &Session, profiles: &Profiles, cql: String) -> Result<PreparedStatement> {
    let mut statement = session.prepare(Statement::new(cql)).await.map_err(|error| failure::of_prepare(&error))?;
    statement.set_execution_profile_handle(Some(profiles.lwt.clone()));
    Ok(statement)
}

/// How a compare-and-set of the lock ended.
enum Decided {
    Applied,
    /// Somebody else owns the row.
    Refused(Option<Uuid>),
    Unknown,
}
