//! Which engines a test's deployment runs on: the embedded ones, or a cluster's that run already.
//!
//! `WARDLINE_TEST_ENGINES` says so: absent, empty or `embedded` for the embedded ones; anything else for those at
//! `WARDLINE_TEST_KAFKA`, `WARDLINE_TEST_CQL` and `WARDLINE_TEST_REDIS` (`host:port`, comma-separated). `deploy/engines/with`
//! sets all of them, and then it names the folder by which `deploy/engines/engines` kills and starts them.
//!
//! Where the engines advertise other addresses than they listen on (`WARDLINE_TEST_KAFKA_DIRECT` and `…_PROXIED`, likewise for
//! CQL), a [`Cable`] is laid for each; to Redis always.
//!
//! Deliberately absent: starting engines, and removing what tests leave in them.

use std::env;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use tokio::process::Command;
use wardline::config::{self, Config};

use crate::cable::Cable;

/// Partitions of a test's topics: enough that each instance of a role has some.
const PARTITIONS: u32 = 8;

/// What a deployment runs on.
#[derive(Debug, Clone)]
pub enum Engines {
    /// Files of one process with all roles.
    Embedded,
    /// Engines that run already.
    Cluster(Cluster),
}

/// Where a cluster's engines are, `host:port` each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster {
    /// The brokers of Kafka.
    pub kafka: Vec<String>,
    /// The nodes of ScyllaDB or Cassandra.
    pub cql: Vec<String>,
    /// Redis.
    pub redis: String,
    /// What cables lead to, behind the addresses above: in their order, or none.
    pub kafka_direct: Vec<String>,
    /// Likewise.
    pub cql_direct: Vec<String>,
    /// The folder that `deploy/engines/engines --dir` knows them by.
    pub dir: Option<PathBuf>,
}

impl Engines {
    /// As the environment says.
    pub fn configured() -> io::Result<Self> {
        Self::from_variables(|name| env::var(name).ok())
    }

    fn from_variables(variable: impl Fn(&str) -> Option<String>) -> io::Result<Self> {
        let chosen = variable("WARDLINE_TEST_ENGINES").unwrap_or_default();
        if chosen.is_empty() || chosen == "embedded" {
            return Ok(Self::Embedded);
        }
        let list = |name: &str| -> Vec<String> {
            let text = variable(name).unwrap_or_default();
            text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect()
        };
        let needed = |name: &'static str| -> io::Result<Vec<String>> {
            let found = list(name);
            if found.is_empty() { Err(io::Error::other(format!("{name} is not set"))) } else { Ok(found) }
        };
        Ok(Self::Cluster(Cluster {
            kafka: needed("WARDLINE_TEST_KAFKA")?,
            cql: needed("WARDLINE_TEST_CQL")?,
            redis: needed("WARDLINE_TEST_REDIS")?.swap_remove(0),
            kafka_direct: list("WARDLINE_TEST_KAFKA_DIRECT"),
            cql_direct: list("WARDLINE_TEST_CQL_DIRECT"),
            dir: Some(chosen).filter(|dir| dir != "cluster").map(PathBuf::from),
        }))
    }

    /// Topics, tables and keys that nobody else uses, for one deployment.
    pub async fn fresh(&self) -> io::Result<Fresh> {
        let name = format!("test{}", uuid::Uuid::new_v4().simple());
        let cables = match self {
            Self::Embedded => Cables::default(),
            Self::Cluster(cluster) => Cables::lay(cluster).await?,
        };
        Ok(Fresh { engines: self.clone(), name, cables })
    }
}

/// One deployment's share of the engines.
#[derive(Debug)]
pub struct Fresh {
    engines: Engines,
    name: String,
    cables: Cables,
}

impl Fresh {
    /// Whether any number of processes can share them.
    pub const fn is_cluster(&self) -> bool {
        matches!(self.engines, Engines::Cluster(_))
    }

    /// Points `config` at them.
    pub fn configure(&self, config: &mut Config, data: &Path) {
        let Engines::Cluster(cluster) = &self.engines else {
            config.engines = config::Engines::Embedded;
            config.data_dir = data.to_owned();
            return;
        };
        config.engines = config::Engines::Cluster;
        let partitions = config::Partitions::try_from(PARTITIONS).expect("the number is a power of two");
        config.kafka.brokers.clone_from(&cluster.kafka);
        config.kafka.prefix.clone_from(&self.name);
        config.kafka.conversations_partitions = partitions;
        config.kafka.feeds_partitions = partitions;
        config.kafka.receipts_partitions = partitions;
        (config.kafka.replication, config.kafka.min_insync_replicas) =
            if cluster.kafka.len() < 3 { (1, 1) } else { (3, 2) };
        config.cql.nodes.clone_from(&cluster.cql);
        config.cql.keyspace.clone_from(&self.name);
        config.cql.replication = if cluster.cql.len() < 3 { 1 } else { 3 };
        config.redis.address =
            self.cables.redis.as_ref().map_or_else(|| cluster.redis.clone(), |cable| cable.address().to_string());
        config.redis.prefix.clone_from(&self.name);
    }

    /// The same as the environment of a process that is to use them.
    pub fn variables(&self, data: &Path) -> io::Result<Vec<(String, String)>> {
        let mut config = Config::default();
        self.configure(&mut config, data);
        if config.engines == config::Engines::Embedded {
            return Ok(Vec::new());
        }
        let config = serde_json::to_value(&config)?;
        let mut variables = vec![(format!("{}ENGINES", config::PREFIX), "cluster".to_owned())];
        for section in ["kafka", "cql", "redis"] {
            for (key, value) in config[section].as_object().into_iter().flatten() {
                let value = match value {
                    // What is not set, and what is no plain value, stays as it is by default.
                    serde_json::Value::Null | serde_json::Value::Object(_) => continue,
                    serde_json::Value::String(text) => text.clone(),
                    other => other.to_string(),
                };
                let name = format!("{}{section}__{key}", config::PREFIX).to_uppercase();
                variables.push((name, value));
            }
        }
        Ok(variables)
    }

    /// The ways to them.
    pub const fn cables(&self) -> &Cables {
        &self.cables
    }

    /// Kills, pauses and starts them, with the program at `control` (`deploy/engines/engines`). `None` when they are not ours to.
    pub fn control(&self, control: &Path) -> Option<Control> {
        let Engines::Cluster(cluster) = &self.engines else { return None };
        let dir = cluster.dir.clone()?;
        Some(Control { program: control.to_owned(), dir, brokers: cluster.kafka.len(), nodes: cluster.cql.len() })
    }
}

/// The ways to a cluster's engines. Those that clients find by themselves, directly, have none.
#[derive(Debug, Default)]
pub struct Cables {
    /// To each broker.
    pub kafka: Vec<Cable>,
    /// To each CQL node.
    pub cql: Vec<Cable>,
    /// To Redis.
    pub redis: Option<Cable>,
}

impl Cables {
    async fn lay(cluster: &Cluster) -> io::Result<Self> {
        let anywhere = SocketAddr::from(([127, 0, 0, 1], 0));
        Ok(Self {
            kafka: Self::between(&cluster.kafka, &cluster.kafka_direct).await?,
            cql: Self::between(&cluster.cql, &cluster.cql_direct).await?,
            redis: Some(Cable::start(anywhere, resolved(&cluster.redis).await?).await?),
        })
    }

    async fn between(advertised: &[String], direct: &[String]) -> io::Result<Vec<Cable>> {
        let mut cables = Vec::new();
        for (advertised, direct) in advertised.iter().zip(direct) {
            cables.push(Cable::start(resolved(advertised).await?, resolved(direct).await?).await?);
        }
        Ok(cables)
    }

    /// All of them.
    pub fn each(&self) -> impl Iterator<Item = &Cable> {
        self.kafka.iter().chain(&self.cql).chain(&self.redis)
    }
}

async fn resolved(address: &str) -> io::Result<SocketAddr> {
    let mut found = tokio::net::lookup_host(address).await?;
    found.next().ok_or_else(|| io::Error::other(format!("{address} is no address")))
}

/// Power over the engines' processes.
#[derive(Debug, Clone)]
pub struct Control {
    program: PathBuf,
    dir: PathBuf,
    brokers: usize,
    nodes: usize,
}

impl Control {
    /// How many brokers there are.
    pub const fn brokers(&self) -> usize {
        self.brokers
    }

    /// How many CQL nodes there are.
    pub const fn nodes(&self) -> usize {
        self.nodes
    }

    /// SIGKILL. `engine` is `broker`, `cql` or `redis`; brokers and nodes count from 1.
    pub async fn kill(&self, engine: &str, number: Option<usize>) -> io::Result<()> {
        self.run("kill", Some((engine, number))).await
    }

    /// SIGSTOP.
    pub async fn pause(&self, engine: &str, number: Option<usize>) -> io::Result<()> {
        self.run("pause", Some((engine, number))).await
    }

    /// SIGCONT.
    pub async fn resume(&self, engine: &str, number: Option<usize>) -> io::Result<()> {
        self.run("resume", Some((engine, number))).await
    }

    /// Starts it again, and waits until it answers and the others have met it.
    pub async fn restart(&self, engine: &str, number: Option<usize>) -> io::Result<()> {
        self.run("restart", Some((engine, number))).await
    }

    /// Continues what is paused and starts what does not run, when there is no time to wait for it otherwise: blocks.
    pub fn mend(&self) -> io::Result<()> {
        let engines = [("broker", self.brokers), ("cql", self.nodes), ("redis", 1)];
        for (engine, _) in engines.into_iter().filter(|(_, count)| *count > 0) {
            // One that does not run cannot be continued; it is started below.
            let _ = self.blocking(&["resume", engine]);
        }
        self.blocking(&["start"])
    }

    fn blocking(&self, arguments: &[&str]) -> io::Result<()> {
        let mut run = std::process::Command::new(&self.program);
        let output = run.args(&arguments[..1]).arg("--dir").arg(&self.dir).args(&arguments[1..]).output()?;
        if output.status.success() {
            return Ok(());
        }
        Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
    }

    async fn run(&self, command: &str, of: Option<(&str, Option<usize>)>) -> io::Result<()> {
        let mut run = Command::new(&self.program);
        run.arg(command).arg("--dir").arg(&self.dir);
        if let Some((engine, number)) = of {
            run.arg(engine).args(number.map(|number| number.to_string()));
        }
        let output = run.output().await?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Err(io::Error::other(format!("{} {command}: {}", self.program.display(), said.trim())))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::HashMap;

    use super::*;

    fn from(variables: &[(&str, &str)]) -> io::Result<Engines> {
        let variables: HashMap<_, _> =
            variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Engines::from_variables(|name| variables.get(name).cloned())
    }

    #[test]
    fn without_a_word_engines_are_embedded() {
        assert!(matches!(from(&[("WARDLINE_TEST_KAFKA", "a:1")]), Ok(Engines::Embedded)));
        assert!(matches!(from(&[("WARDLINE_TEST_ENGINES", "embedded")]), Ok(Engines::Embedded)));
    }

    #[test]
    fn a_cluster_needs_all_three() {
        let all = [
            ("WARDLINE_TEST_ENGINES", "/somewhere"),
            ("WARDLINE_TEST_KAFKA", "a:1, b:2"),
            ("WARDLINE_TEST_CQL", "c:3"),
            ("WARDLINE_TEST_REDIS", "d:4"),
        ];
        let Ok(Engines::Cluster(cluster)) = from(&all) else { panic!("no cluster") };
        assert_eq!((cluster.kafka.len(), cluster.redis.as_str()), (2, "d:4"));
        assert_eq!(cluster.dir.as_deref(), Some(Path::new("/somewhere")));
        for without in 1..all.len() {
            let some: Vec<_> = all.iter().enumerate().filter(|(n, _)| *n != without).map(|(_, pair)| *pair).collect();
            from(&some).unwrap_err();
        }
    }

    #[tokio::test]
    async fn a_process_reads_from_its_environment_what_a_file_would_say() {
        let engines = from(&[
            ("WARDLINE_TEST_ENGINES", "cluster"),
            ("WARDLINE_TEST_KAFKA", "127.0.0.1:1,127.0.0.1:2,127.0.0.1:3"),
            ("WARDLINE_TEST_CQL", "127.0.0.1:4"),
            ("WARDLINE_TEST_REDIS", "127.0.0.1:5"),
        ]);
        let fresh = engines.unwrap().fresh().await.unwrap();
        let mut written = Config::default();
        fresh.configure(&mut written, Path::new("unused"));
        let variables = fresh.variables(Path::new("unused")).unwrap();
        let read = Config::load(None, variables.into_iter().map(|(name, value)| (name.into(), value.into()))).unwrap();
        assert_eq!(read, written);
        assert_eq!((read.kafka.replication, read.kafka.min_insync_replicas, read.cql.replication), (3, 2, 1));
        let embedded = Engines::Embedded.fresh().await.unwrap();
        assert!(embedded.variables(Path::new("unused")).unwrap().is_empty());
    }
}
