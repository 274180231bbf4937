//! Every statement, prepared once at the start. Beside each table's code stands what is asked of the table.

use scylla::client::session::Session;
use scylla::statement::Consistency;
use scylla::statement::prepared::PreparedStatement;
use scylla::statement::unprepared::Statement;
use wardline_store::Result;

use crate::session::Profiles;
use crate::{blobs, checkpoints, conversations, directory, failure, feeds, receipts, watermarks};

/// The statements of all tables.
pub(crate) struct Statements {
    pub(crate) conversations: conversations::Statements,
    pub(crate) blobs: blobs::Statements,
    pub(crate) feeds: feeds::Statements,
    pub(crate) receipts_of: receipts::Statements,
    pub(crate) watermarks: watermarks::Statements,
    pub(crate) checkpoints: checkpoints::Statements,
    pub(crate) directory: directory::Statements,
}

impl Statements {
    pub(crate) async fn prepare(preparer: &Preparer<'_>) -> Result<Self> {
        Ok(Self {
            conversations: conversations::Statements::prepare(preparer).await?,
            blobs: blobs::Statements::prepare(preparer).await?,
            feeds: feeds::Statements::prepare(preparer).await?,
            receipts_of: receipts::Statements::prepare(preparer).await?,
            watermarks: watermarks::Statements::prepare(preparer).await?,
            checkpoints: checkpoints::Statements::prepare(preparer).await?,
            directory: directory::Statements::prepare(preparer).await?,
        })
    }
}

/// Prepares statements on one keyspace, which they name as `{ks}`.
pub(crate) struct Preparer<'a> {
    session: &'a Session,
    keyspace: &'a str,
    profiles: &'a Profiles,
}

impl<'a> Preparer<'a> {
    pub(crate) fn new(session: &'a Session, keyspace: &'a str, profiles: &'a Profiles) -> Self {
        Self { session, keyspace, profiles }
    }

    /// A read by a quorum.
    pub(crate) async fn read(&self, cql: &str) -> Result<PreparedStatement> {
        let mut statement = self.prepare(cql).await?;
        statement.set_execution_profile_handle(Some(self.profiles.read.clone()));
        statement.set_is_idempotent(true);
        // What comes back has the columns it had when it was prepared: migrations only add tables.
        statement.set_use_cached_result_metadata(true);
        Ok(statement)
    }

    /// A read by a quorum of at most `rows` rows a page.
    pub(crate) async fn read_paged(&self, rows: i32, cql: &str) -> Result<PreparedStatement> {
        let mut statement = self.read(cql).await?;
        statement.set_page_size(rows);
        Ok(statement)
    }

    /// A read that brings every compare-and-set under way to its end first.
    pub(crate) async fn read_serial(&self, cql: &str) -> Result<PreparedStatement> {
        let mut statement = self.prepare(cql).await?;
        statement.set_execution_profile_handle(Some(self.profiles.serial.clone()));
        statement.set_consistency(Consistency::LocalSerial);
        statement.set_is_idempotent(true);
        Ok(statement)
    }

    /// A write that may be repeated and raced.
    pub(crate) async fn write(&self, cql: &str) -> Result<PreparedStatement> {
        let mut statement = self.prepare(cql).await?;
        statement.set_execution_profile_handle(Some(self.profiles.write.clone()));
        statement.set_is_idempotent(true);
        Ok(statement)
    }

    /// A compare-and-set.
    pub(crate) async fn lwt(&self, cql: &str) -> Result<PreparedStatement> {
        let mut statement = self.prepare(cql).await?;
        statement.set_execution_profile_handle(Some(self.profiles.lwt.clone()));
        Ok(statement)
    }

    async fn prepare(&self, cql: &str) -> Result<PreparedStatement> {
        let statement = Statement::new(cql.replace("{ks}", self.keyspace));
        self.session.prepare(statement).await.map_err(|error| failure::of_prepare(&error))
    }
}
