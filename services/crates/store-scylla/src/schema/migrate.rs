//! Applies migrations.
//!
//! Every change of the schema goes through the same node, whoever runs this: nodes of Cassandra that create the same table
//! at the same time create two.

use std::sync::Arc;
use std::time::Duration;

use scylla::client::session::Session;
use scylla::policies::load_balancing::{LoadBalancingPolicy, NodeIdentifier, SingleTargetLoadBalancingPolicy};
use scylla::statement::unprepared::Statement;
use wardline_store::Result;

use super::lock::Lock;
use super::{MIGRATIONS, NEWEST, another, applied, check_name, unfit};
use crate::Options;
use crate::session::{Profiles, connect};

/// How long one change of the schema may take.
const CHANGE: Duration = Duration::from_secs(60);

/// What a run has done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Migrated {
    /// The versions applied by this run, in order; none when all had been.
    pub applied: Vec<i32>,
    /// The version the schema is at now, as far as this program knows.
    pub version: i32,
}

/// Brings the schema to the version this program needs: creates the keyspace when it is not there, and applies what has not
/// been applied. Safe to run twice, and by two at once.
///
/// # Errors
/// Unavailable when no node answers, another run holds the lock for too long, or a migration was applied that this program
/// knows differently.
pub async fn migrate(options: &Options) -> Result<Migrated> {
    check_name(&options.keyspace)?;
    let (session, profiles) = connect(options).await?;
    let schema = Schema::new(&session, &options.keyspace, profiles)?;
    schema.create_keyspace(options).await?;
    schema.change(&migrations_table(&options.keyspace)).await?;
    let lock = Lock::acquire(&session, &options.keyspace, &schema.profiles).await?;
    let end = schema.apply(&lock).await;
    lock.release().await;
    end.map(|applied| Migrated { applied, version: NEWEST })
}

fn migrations_table(keyspace: &str) -> String {
    format!(
        "CREATE TABLE IF NOT EXISTS {keyspace}.schema_migrations \
         (version int PRIMARY KEY, checksum blob, applied_at timestamp, owner uuid)"
    )
}

/// Where the schema is changed.
struct Schema<'a> {
    session: &'a Session,
    keyspace: &'a str,
    node: Arc<dyn LoadBalancingPolicy>,
    profiles: Profiles,
}

impl<'a> Schema<'a> {
    fn new(session: &'a Session, keyspace: &'a str, profiles: Profiles) -> Result<Self> {
        let state = session.get_cluster_state();
        let first = state.get_nodes_info().iter().filter(|node| node.is_connected()).min_by_key(|node| node.host_id);
        let first = first.ok_or_else(|| unfit("no node is reached"))?;
        let node = SingleTargetLoadBalancingPolicy::new(NodeIdentifier::HostId(first.host_id), None);
        Ok(Self { session, keyspace, node, profiles })
    }

    /// Runs a statement that changes the schema. The driver waits until all nodes agree on it.
    async fn change(&self, cql: &str) -> Result<()> {
        let mut statement = Statement::new(cql);
        statement.set_load_balancing_policy(Some(Arc::clone(&self.node)));
        statement.set_request_timeout(Some(CHANGE));
        let done = self.session.query_unpaged(statement, ()).await;
        // The servers' words are about the schema, which names nobody.
        done.map(drop).map_err(|error| unfit(format!("keyspace {}: {error}", self.keyspace)))
    }

    /// Creates the keyspace unless it is there: created by hand it may have what is not said here.
    async fn create_keyspace(&self, options: &Options) -> Result<()> {
        let state = self.session.get_cluster_state();
        if state.get_keyspace(self.keyspace).is_some() {
            return Ok(());
        }
        let of_nodes = || state.get_nodes_info().iter().find_map(|node| node.datacenter.clone());
        let datacenter = options.datacenter.clone().or_else(of_nodes);
        let datacenter = datacenter.ok_or_else(|| unfit("the nodes do not say their datacenter: name it"))?;
        let keyspace = self.keyspace;
        // A quote in a name is written twice.
        let datacenter = datacenter.replace('\'', "''");
        self.change(&format!(
            "CREATE KEYSPACE IF NOT EXISTS {keyspace} WITH replication = \
             {{'class': 'NetworkTopologyStrategy', '{datacenter}': {}}}",
            options.replication
        ))
        .await
    }

    /// Applies what has not been applied.
    async fn apply(&self, lock: &Lock<'_>) -> Result<Vec<i32>> {
        let before = applied(self.session, self.keyspace, &self.profiles).await?;
        let mut done = Vec::new();
        for migration in &MIGRATIONS {
            match before.iter().find(|(version, _)| *version == migration.version) {
                Some((_, checksum)) if *checksum == migration.checksum() => continue,
                Some(_) => return Err(another(self.keyspace, migration)),
                None => (),
            }
            for statement in migration.statements(self.keyspace) {
                lock.renew().await?;
                self.change(&statement).await?;
            }
            lock.record(migration.version, migration.checksum()).await?;
            done.push(migration.version);
        }
        Ok(done)
    }
}
