//! The connection: how it is made, and how every statement goes through it.
//!
//! Deliberately absent: statements that are not prepared, and reads of more than a page at once.

use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use scylla::client::PoolSize;
use scylla::client::execution_profile::{ExecutionProfile, ExecutionProfileHandle};
use scylla::client::session::Session;
use scylla::client::session_builder::SessionBuilder;
use scylla::deserialize::row::DeserializeRow;
use scylla::errors::{ExecutionError, NewSessionError};
use scylla::policies::load_balancing::DefaultPolicy;
use scylla::policies::speculative_execution::SimpleSpeculativeExecutionPolicy;
use scylla::response::query_result::QueryResult;
use scylla::response::{PagingState, PagingStateResponse};
use scylla::serialize::row::SerializeRow;
use scylla::statement::batch::Batch;
use scylla::statement::prepared::PreparedStatement;
use scylla::statement::{Consistency, SerialConsistency};
use scylla::value::{CqlValue, Row};
use secrecy::ExposeSecret;
use wardline_store::{Cause, Failure, Result};

use crate::number::corrupt;
use crate::retry::{Watched, watched};
use crate::statements::{Preparer, Statements};
use crate::{Options, directory, failure, schema};

/// How often a connection without traffic is asked whether it lives, and how long it may stay silent. Until then requests
/// to a paused node wait for [`Options::speculate_after`] before another node is asked.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(4));

/// How long a connection may take to come up.
const CONNECT: Duration = Duration::from_secs(5);

/// How many other nodes are asked when one does not answer.
const SPECULATIONS: usize = 2;

/// How much longer than for others is waited for a node that reads at serial consistency before another one is asked.
const SERIAL_PATIENCE: u32 = 4;

/// How a statement is asked.
#[derive(Debug, Clone)]
pub(crate) struct Profiles {
    pub(crate) read: ExecutionProfileHandle,
    pub(crate) write: ExecutionProfileHandle,
    pub(crate) lwt: ExecutionProfileHandle,
    pub(crate) serial: ExecutionProfileHandle,
}

/// The session and what was prepared on it.
pub(crate) struct Cql {
    pub(crate) session: Session,
    pub(crate) statements: Statements,
    pub(crate) directory: directory::State,
    concurrency: NonZeroUsize,
    write: ExecutionProfileHandle,
    lwt: ExecutionProfileHandle,
}

/// How a compare-and-set ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Lwt {
    /// Its condition held.
    Applied,
    /// It did not. The value that stood there, when the server said.
    Refused(Option<Bytes>),
}

impl Cql {
    /// Connects, verifies the schema and prepares every statement.
    pub(crate) async fn open(options: &Options) -> Result<Self> {
        let (session, profiles) = connect(options).await?;
        schema::verify(&session, &options.keyspace, &profiles).await?;
        let preparer = Preparer::new(&session, &options.keyspace, &profiles);
        let statements = Statements::prepare(&preparer).await?;
        Ok(Self {
            statements,
            directory: directory::State::new(options.lwt_timeout),
            concurrency: NonZeroUsize::new(options.concurrency).unwrap_or(NonZeroUsize::MIN),
            write: profiles.write,
            lwt: profiles.lwt,
            session,
        })
    }

    /// How many requests one call has under way at most.
    pub(crate) fn concurrency(&self) -> usize {
        self.concurrency.get()
    }

    /// Reads one row by its whole key.
    pub(crate) async fn one<R>(
        &self,
        operation: &'static str,
        statement: &PreparedStatement,
        key: impl SerializeRow,
    ) -> Result<Option<R>>
    where
        R: for<'frame, 'metadata> DeserializeRow<'frame, 'metadata>,
    {
        let answer = timed(operation, self.session.execute_unpaged(statement, key)).await;
        let answer = answer.map_err(|error| failure::of_read(operation, &error))?;
        rows(operation, answer, |rows| rows.maybe_first_row::<R>().map_err(|_| undecodable(operation)))
    }

    /// Reads many things at once. Answers in their order.
    pub(crate) async fn each<T>(&self, reads: Vec<impl Future<Output = Result<T>>>) -> Result<Vec<T>> {
        futures::stream::iter(reads).buffered(self.concurrency()).try_collect().await
    }

    /// Reads rows page by page, until they end or `take` has enough.
    pub(crate) async fn pages<R>(
        &self,
        operation: &'static str,
        statement: &PreparedStatement,
        values: impl SerializeRow,
        mut take: impl FnMut(R) -> Result<ControlFlow<()>>,
    ) -> Result<()>
    where
        R: for<'frame, 'metadata> DeserializeRow<'frame, 'metadata>,
    {
        let mut from = PagingState::start();
        loop {
            let page = timed(operation, self.session.execute_single_page(statement, &values, from)).await;
            let (answer, next) = page.map_err(|error| failure::of_read(operation, &error))?;
            let flow = rows(operation, answer, |rows| {
                for row in rows.rows::<R>().map_err(|_| undecodable(operation))? {
                    if take(row.map_err(|_| undecodable(operation))?)?.is_break() {
                        return Ok(ControlFlow::Break(()));
                    }
                }
                Ok(ControlFlow::Continue(()))
            })?;
            match next {
                PagingStateResponse::HasMorePages { state } if flow.is_continue() => from = state,
                _ => return Ok(()),
            }
        }
    }

    /// Writes one row.
    pub(crate) async fn write(
        &self,
        operation: &'static str,
        statement: &PreparedStatement,
        values: impl SerializeRow,
    ) -> Result<()> {
        let (answer, unsure) = watched(timed(operation, self.session.execute_unpaged(statement, values))).await;
        answer.map(drop).map_err(|error| failure::of_write(operation, &error, unsure))
    }

    /// Writes several rows of one partition.
    pub(crate) async fn write_batch<R: SerializeRow>(
        &self,
        operation: &'static str,
        batch: &mut Batch,
        values: Vec<R>,
    ) -> Result<()> {
        batch.set_execution_profile_handle(Some(self.write.clone()));
        batch.set_is_idempotent(true);
        let (answer, unsure) = watched(timed(operation, self.session.batch(batch, values))).await;
        answer.map(drop).map_err(|error| failure::of_write(operation, &error, unsure))
    }

    /// Compares and sets.
    pub(crate) async fn lwt(
        &self,
        operation: &'static str,
        statement: &PreparedStatement,
        values: impl SerializeRow,
    ) -> Result<Lwt> {
        let (answer, unsure) = watched(timed(operation, self.session.execute_unpaged(statement, values))).await;
        decided(operation, answer, unsure)
    }

    /// Compares and sets several rows of one partition, all or none.
    pub(crate) async fn lwt_batch<R: SerializeRow>(
        &self,
        operation: &'static str,
        batch: &mut Batch,
        values: Vec<R>,
    ) -> Result<Lwt> {
        batch.set_execution_profile_handle(Some(self.lwt.clone()));
        let (answer, unsure) = watched(timed(operation, self.session.batch(batch, values))).await;
        decided(operation, answer, unsure)
    }
}

/// Makes the session and the profiles its statements are asked with.
pub(crate) async fn connect(options: &Options) -> Result<(Session, Profiles)> {
    schema::check_name(&options.keyspace)?;
    let profiles = profiles(options);
    let mut builder = SessionBuilder::new()
        .known_nodes(&options.nodes)
        .keyspaces_to_fetch([&options.keyspace])
        .fetch_full_schema_metadata(false)
        .default_execution_profile_handle(profiles.read.clone())
        .connection_timeout(CONNECT)
        .keepalive_interval(KEEPALIVE.0)
        .keepalive_timeout(KEEPALIVE.1)
        .pool_size(PoolSize::PerShard(NonZeroUsize::MIN))
        .tcp_nodelay(true);
    if let Some(pem) = &options.ca_pem {
        builder = builder.tls_context(Some(tls(pem)?));
    }
    if let Some(username) = &options.username {
        let password = options.password.as_ref().map_or("", |password| password.expose_secret());
        builder = builder.user(username, password);
    }
    let session = builder.build().await.map_err(|error| unreached(&error))?;
    check_datacenter(&session, options.datacenter.as_deref())?;
    Ok((session, profiles))
}

fn profiles(options: &Options) -> Profiles {
    let mut nodes = DefaultPolicy::builder().token_aware(true);
    if let Some(datacenter) = &options.datacenter {
        nodes = nodes.prefer_datacenter(datacenter.clone());
    }
    let base = ExecutionProfile::builder()
        .consistency(Consistency::LocalQuorum)
        .serial_consistency(Some(SerialConsistency::LocalSerial))
        .load_balancing_policy(nodes.build())
        .retry_policy(Arc::new(Watched::new()));
    let racing = |after| {
        let policy = SimpleSpeculativeExecutionPolicy { max_retry_count: SPECULATIONS, retry_interval: after };
        base.clone().speculative_execution_policy(Some(Arc::new(policy)))
    };
    // A serial read takes part in the consensus: raced too early it would get in the way of what it waits for.
    let serial = racing(options.speculate_after.saturating_mul(SERIAL_PATIENCE));
    let racing = racing(options.speculate_after);
    Profiles {
        read: racing.clone().request_timeout(Some(options.read_timeout)).build().into_handle(),
        write: racing.request_timeout(Some(options.write_timeout)).build().into_handle(),
        lwt: base.request_timeout(Some(options.lwt_timeout)).build().into_handle(),
        serial: serial.request_timeout(Some(options.lwt_timeout)).build().into_handle(),
    }
}

/// TLS that believes certificates which lead to those in `pem`, and no others.
fn tls(pem: &[u8]) -> Result<Arc<rustls::ClientConfig>> {
    let refused = |what: &str| Failure::NotApplied(Cause::unavailable(format!("the servers' CA: {what}")));
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|_| refused("not PEM"))?;
        roots.add(certificate).map_err(|_| refused("not a certificate"))?;
    }
    if roots.is_empty() {
        return Err(refused("no certificate in it"));
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|_| refused("no TLS version"))?;
    Ok(Arc::new(config.with_root_certificates(roots).with_no_client_auth()))
}

fn unreached(error: &NewSessionError) -> Failure {
    // Says which address was tried and what the handshake said; nothing was asked for yet.
    Failure::NotApplied(Cause::unavailable(format!("no node is reached: {error}")))
}

/// A quorum is one of a datacenter: asking nodes of several in turn, a read would not see what was written before it.
fn check_datacenter(session: &Session, wanted: Option<&str>) -> Result<()> {
    let state = session.get_cluster_state();
    let mut known: Vec<&str> = state.get_nodes_info().iter().filter_map(|node| node.datacenter.as_deref()).collect();
    known.sort_unstable();
    known.dedup();
    let refused = |detail| Err(Failure::NotApplied(Cause::unavailable(detail)));
    match wanted {
        Some(wanted) if !known.contains(&wanted) => {
            refused(format!("no node is in datacenter {wanted}; there are: {}", known.join(", ")))
        }
        None if known.len() > 1 => refused(format!("name one of the datacenters: {}", known.join(", "))),
        _ => Ok(()),
    }
}

async fn timed<T>(
    operation: &'static str,
    request: impl Future<Output = std::result::Result<T, ExecutionError>>,
) -> std::result::Result<T, ExecutionError> {
    let begun = Instant::now();
    let answer = request.await;
    metrics::histogram!("wardline_cql_seconds", "operation" => operation).record(begun.elapsed());
    answer
}

fn undecodable(operation: &'static str) -> Failure {
    corrupt(format!("{operation}: a row does not decode"))
}

fn rows<T>(
    operation: &'static str,
    answer: QueryResult,
    read: impl FnOnce(&scylla::response::query_result::QueryRowsResult) -> Result<T>,
) -> Result<T> {
    read(&answer.into_rows_result().map_err(|_| undecodable(operation))?)
}

/// Reads the answer to a compare-and-set. Cassandra answers an applied one with `[applied]` alone and adds the row to a
/// refused one, ScyllaDB always answers with the row; so columns are found by name.
fn decided(
    operation: &'static str,
    answer: std::result::Result<QueryResult, ExecutionError>,
    unsure: bool,
) -> Result<Lwt> {
    let answer = answer.map_err(|error| failure::of_write(operation, &error, unsure))?;
    // What was answered was decided; an answer that cannot be read leaves the caller without it.
    let unreadable = || Failure::Unknown(Cause::corrupt(format!("{operation}: the decision does not decode")));
    let rows = answer.into_rows_result().map_err(|_| unreadable())?;
    let at = |name| rows.column_specs().get_by_name(name).map(|(at, _)| at);
    let applied = at("[applied]").ok_or_else(unreadable)?;
    let row = rows.first_row::<Row>().map_err(|_| unreadable())?;
    match row.columns.get(applied) {
        Some(Some(CqlValue::Boolean(true))) => Ok(Lwt::Applied),
        Some(Some(CqlValue::Boolean(false))) => {
            let value = at("value").and_then(|at| row.columns.get(at)?.as_ref()?.as_blob().cloned());
            Ok(Lwt::Refused(value.map(Bytes::from)))
        }
        _ => Err(unreadable()),
    }
}
