//! What the topics must be like: created by [`migrate`], verified there and at every start.
//!
//! Deliberately absent: changing a topic that exists. Its settings belong to whoever runs the cluster; a difference that would
//! break a promise is told, with what to do.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, ConfigResource, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::config::FromClientConfigAndContext as _;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::RDKafkaErrorCode;
use wardline_domain::Failure;
use wardline_log::Topic;

use crate::context::Diagnostics;
use crate::failure::{blocking, corrupt, not_applied, unavailable};
use crate::options::{Options, TOPIC_MESSAGE_BYTES};

/// How long the brokers may take for one question.
const ASK: Duration = Duration::from_secs(10);

/// How long new topics may take to have leaders.
const SETTLE: Duration = Duration::from_secs(60);

/// What [`migrate`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Migrated {
    /// The topics that were missing and are there now.
    pub created: Vec<String>,
    /// The topics that were there, as configured.
    pub verified: Vec<String>,
}

/// Creates the topics that are missing and verifies the others. May be repeated, and run by two at once.
///
/// # Errors
/// `NotApplied` with cause `Corrupt` that names every difference between a topic and the configuration; with `Unavailable` or
/// `Timeout` when the brokers do not answer or refuse.
pub async fn migrate(options: &Options) -> Result<Migrated, Failure> {
    options.check()?;
    let admin = Admin::connect(options).await?;
    let missing = admin.missing(options).await?;
    let created = admin.create(options, &missing).await?;
    admin.settled(options).await?;
    admin.verify(options).await?;
    let verified = Topic::ALL.map(|topic| options.topic_name(topic));
    let verified = verified.into_iter().filter(|name| !created.contains(name)).collect();
    Ok(Migrated { created, verified })
}

/// Refuses topics that are not what is configured.
pub(crate) async fn verify(options: &Options) -> Result<(), Failure> {
    let admin = Admin::connect(options).await?;
    let missing = admin.missing(options).await?;
    if let Some(topic) = missing.first() {
        return Err(corrupt(format!(
            "topic {} does not exist: run `wardline migrate`, or correct the prefix, or restore the topic",
            options.topic_name(*topic)
        )));
    }
    admin.verify(options).await
}

/// How a setting must stand to what is configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Must {
    Equal,
    /// A number; -1 stands for no limit.
    AtLeast,
}

struct Setting {
    key: &'static str,
    value: String,
    must: Option<Must>,
}

/// What a topic is created with, and what of it matters later.
fn settings(options: &Options, topic: Topic) -> Vec<Setting> {
    let set = |key, value: String, must| Setting { key, value, must };
    let mut settings = vec![
        set("message.timestamp.type", "LogAppendTime".to_owned(), Some(Must::Equal)),
        set("min.insync.replicas", options.min_insync_replicas.to_string(), Some(Must::AtLeast)),
        set("unclean.leader.election.enable", "false".to_owned(), Some(Must::Equal)),
        set("max.message.bytes", TOPIC_MESSAGE_BYTES.to_string(), Some(Must::AtLeast)),
        // Whatever a producer chose is kept.
        set("compression.type", "producer".to_owned(), None),
    ];
    match options.retention.of(topic) {
        Some(kept) => settings.extend([
            set("cleanup.policy", "delete".to_owned(), Some(Must::Equal)),
            set("retention.ms", kept.as_millis().to_string(), Some(Must::AtLeast)),
            set("retention.bytes", "-1".to_owned(), Some(Must::Equal)),
        ]),
        // Compaction passes over the segment that is being written: a new one each day bounds what a start must read.
        None => settings.extend([
            set("cleanup.policy", "compact".to_owned(), Some(Must::Equal)),
            set("segment.ms", "86400000".to_owned(), None),
            set("min.cleanable.dirty.ratio", "0.1".to_owned(), None),
        ]),
    }
    settings
}

/// What is different, or `None`.
fn difference(setting: &Setting, found: Option<&str>) -> Option<String> {
    let fits = match (setting.must?, found) {
        (Must::Equal, Some(found)) => found == setting.value,
        (Must::AtLeast, Some(found)) => at_least(found, &setting.value),
        (_, None) => false,
    };
    let at_least = if setting.must == Some(Must::AtLeast) { "at least " } else { "" };
    let Setting { key, value, .. } = setting;
    (!fits).then(|| format!("{key} is {} and must be {at_least}{value}", found.unwrap_or("not told")))
}

fn at_least(found: &str, wanted: &str) -> bool {
    match (found.parse::<i64>(), wanted.parse::<i64>()) {
        (Ok(-1), Ok(_)) => true,
        (Ok(found), Ok(wanted)) => found >= wanted,
        _ => false,
    }
}

/// Two clients: an administrator's, and a consumer's for metadata, since that of a producer may create topics by asking.
struct Admin {
    admin: Option<AdminClient<Diagnostics>>,
    metadata: Arc<BaseConsumer<Diagnostics>>,
}

impl Admin {
    async fn connect(options: &Options) -> Result<Self, Failure> {
        let config = options.client();
        blocking(move || {
            let refused = |error| corrupt(format!("librdkafka refuses its settings: {error}"));
            let admin = AdminClient::from_config_and_context(&config, Diagnostics).map_err(refused)?;
            let metadata = BaseConsumer::from_config_and_context(&config, Diagnostics).map_err(refused)?;
            Ok(Self { admin: Some(admin), metadata: Arc::new(metadata) })
        })
        .await
    }

    fn admin(&self) -> Result<&AdminClient<Diagnostics>, Failure> {
        self.admin.as_ref().ok_or_else(|| unavailable("the administrator's client is gone"))
    }

    /// What the brokers know of a topic; `None` when there is no such topic.
    async fn look(&self, options: &Options, topic: Topic) -> Result<Option<Found>, Failure> {
        let (metadata, name) = (Arc::clone(&self.metadata), options.topic_name(topic));
        blocking(move || {
            let told = metadata.fetch_metadata(Some(&name), ASK).map_err(|error| not_applied(&error))?;
            let Some(topic) = told.topics().iter().find(|topic| topic.name() == name) else { return Ok(None) };
            match topic.error().map(RDKafkaErrorCode::from) {
                None => Ok(Some(Found {
                    partitions: topic.partitions().len(),
                    replicas: topic.partitions().iter().map(|partition| partition.replicas().len()).min().unwrap_or(0),
                    led: topic.partitions().iter().all(|partition| partition.leader() >= 0),
                })),
                Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => Ok(None),
                Some(code) => Err(unavailable(format!("topic {name}: {code}"))),
            }
        })
        .await
    }

    async fn missing(&self, options: &Options) -> Result<Vec<Topic>, Failure> {
        let mut missing = Vec::new();
        for topic in Topic::ALL {
            if self.look(options, topic).await?.is_none() {
                missing.push(topic);
            }
        }
        Ok(missing)
    }

    async fn create(&self, options: &Options, missing: &[Topic]) -> Result<Vec<String>, Failure> {
        let described: Vec<_> =
            missing.iter().map(|topic| (*topic, options.topic_name(*topic), settings(options, *topic))).collect();
        let new: Vec<NewTopic<'_>> = described
            .iter()
            .map(|(topic, name, settings)| {
                let partitions = i32::try_from(options.count(*topic).get()).unwrap_or(i32::MAX);
                let new = NewTopic::new(name, partitions, TopicReplication::Fixed(i32::from(options.replication)));
                settings.iter().fold(new, |new, setting| new.set(setting.key, &setting.value))
            })
            .collect();
        if new.is_empty() {
            return Ok(Vec::new());
        }
        let asked = AdminOptions::new().operation_timeout(Some(SETTLE)).request_timeout(Some(SETTLE));
        let results = self.admin()?.create_topics(&new, &asked).await.map_err(|error| not_applied(&error))?;
        let mut created = Vec::new();
        for result in results {
            match result {
                Ok(name) => created.push(name),
                // Another one was quicker.
                Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((name, code)) => return Err(unavailable(format!("cannot create topic {name}: {code}"))),
            }
        }
        Ok(created)
    }

    /// Waits until every partition has a leader.
    async fn settled(&self, options: &Options) -> Result<(), Failure> {
        let deadline = Instant::now() + SETTLE;
        for topic in Topic::ALL {
            while !self.look(options, topic).await?.is_some_and(|found| found.led) {
                if Instant::now() > deadline {
                    let name = options.topic_name(topic);
                    return Err(unavailable(format!("topic {name} has partitions without a leader")));
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        Ok(())
    }

    async fn verify(&self, options: &Options) -> Result<(), Failure> {
        let mut differences = Vec::new();
        for topic in Topic::ALL {
            let name = options.topic_name(topic);
            if let Some(found) = self.look(options, topic).await? {
                differences.extend(found.differences(options, topic).map(|text| format!("topic {name}: {text}")));
            }
        }
        let configured = self.describe(options).await?;
        for topic in Topic::ALL {
            let name = options.topic_name(topic);
            let found = configured.get(&name);
            let told = |key| found.and_then(|found| found.get(key)).and_then(|entry| entry.value.as_deref());
            let of_topic = settings(options, topic);
            let wrong = of_topic.iter().filter_map(|setting| difference(setting, told(setting.key)));
            differences.extend(wrong.map(|text| format!("topic {name}: {text} (set it with kafka-configs --alter)")));
        }
        if differences.is_empty() { Ok(()) } else { Err(corrupt(differences.join("; "))) }
    }

    async fn describe(&self, options: &Options) -> Result<HashMap<String, ConfigResource>, Failure> {
        let names = Topic::ALL.map(|topic| options.topic_name(topic));
        let resources: Vec<_> = names.iter().map(|name| ResourceSpecifier::Topic(name)).collect();
        let asked = AdminOptions::new().request_timeout(Some(ASK));
        let results = self.admin()?.describe_configs(&resources, &asked).await.map_err(|error| not_applied(&error))?;
        let mut found = HashMap::new();
        for (name, result) in names.into_iter().zip(results) {
            let resource = result.map_err(|code| {
                unavailable(format!(
                    "cannot read the settings of topic {name}: {code} (DescribeConfigs must be allowed)"
                ))
            })?;
            found.insert(name, resource);
        }
        Ok(found)
    }
}

impl Drop for Admin {
    /// Ending a client waits for its threads.
    fn drop(&mut self) {
        let clients = (self.admin.take(), Arc::clone(&self.metadata));
        std::thread::spawn(move || drop(clients));
    }
}

/// A topic as the brokers know it.
struct Found {
    partitions: usize,
    replicas: usize,
    led: bool,
}

impl Found {
    fn differences(&self, options: &Options, topic: Topic) -> impl Iterator<Item = String> + use<> {
        let (partitions, replicas) = (options.count(topic).get(), options.replication);
        let count = (self.partitions != partitions as usize).then(|| {
            format!(
                "it has {} partitions and is configured with {partitions}: correct the configuration, or create the topic \
                 anew under another prefix and raise its incarnation",
                self.partitions
            )
        });
        let copies = (self.replicas < usize::from(replicas))
            .then(|| format!("it has {} replicas and must have {replicas}: reassign its partitions", self.replicas));
        count.into_iter().chain(copies)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setting(must: Must, value: &str) -> Setting {
        Setting { key: "k", value: value.to_owned(), must: Some(must) }
    }

    #[test]
    fn tells_what_differs() {
        assert_eq!(difference(&setting(Must::Equal, "a"), Some("a")), None);
        let other = difference(&setting(Must::Equal, "a"), Some("b"));
        assert_eq!(other.as_deref(), Some("k is b and must be a"));
        assert_eq!(difference(&setting(Must::AtLeast, "10"), Some("10")), None);
        assert_eq!(difference(&setting(Must::AtLeast, "10"), Some("-1")), None);
        let less = difference(&setting(Must::AtLeast, "10"), Some("9"));
        assert_eq!(less.as_deref(), Some("k is 9 and must be at least 10"));
        let untold = difference(&setting(Must::AtLeast, "10"), None);
        assert_eq!(untold.as_deref(), Some("k is not told and must be at least 10"));
    }
}
