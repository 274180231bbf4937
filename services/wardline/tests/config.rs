//! What a configuration may say, what is refused, and that the shipped samples and their comments are true.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use wardline::cli::{Overrides, RoleArg};
use wardline::config::{Authority, Config, ConfigError, Engines, Lacking, Link, Origin, Roles, Session, What};
use wardline::node::Role;

const STRICT: Overrides = Overrides { allow_plaintext: false, allow_no_issuer: false };

fn sample(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/config").join(name)
}

/// Loads `text` as a file, with `environment`.
fn load(text: &str, environment: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("wardline.toml");
    std::fs::write(&file, text).unwrap();
    Config::load(Some(&file), variables(environment))
}

fn variables(environment: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
    environment.iter().map(|(name, value)| (name.into(), value.into())).collect()
}

/// The problems of what must be refused.
fn refused(text: &str, environment: &[(&str, &str)]) -> String {
    load(text, environment).unwrap_err().to_string()
}

#[test]
fn without_file_and_environment_there_are_the_defaults() {
    assert_eq!(Config::load(None, []).unwrap(), Config::default());
    assert_eq!(load("", &[("HOME", "/root"), ("WARDLINE_CONFIG", "x.toml")]).unwrap(), Config::default());
}

#[test]
fn the_shipped_samples_suffice_to_serve_all_roles() {
    for name in ["serve.toml", "minimal.toml"] {
        let config = Config::load(Some(&sample(name)), []).unwrap();
        assert_eq!(config.fit_to_serve(&Roles::all(), STRICT), Ok(()), "{name}");
    }
}

#[test]
fn the_documented_keys_are_exactly_those_there_are() {
    let text = std::fs::read_to_string(sample("serve.toml")).unwrap();
    let known: BTreeSet<String> = Config::keys().into_iter().collect();
    assert_eq!(documented(&text), known);
}

#[test]
fn what_is_commented_out_shows_the_default() {
    let text = std::fs::read_to_string(sample("serve.toml")).unwrap();
    // Examples rather than defaults: these have none.
    let examples = [
        "advertise",
        "client_ca_file",
        "ca_file",
        "server_name",
        "username",
        "password_file",
        "datacenter",
        "otlp_endpoint",
    ];
    let uncommented: String = text
        .lines()
        .filter_map(|line| Some((line, key_of(line.strip_prefix("# ")?)?)))
        .filter(|(_, key)| !examples.contains(key))
        .fold(text.clone(), |text, (line, _)| text.replace(line, &line[2..]));
    let shipped = Config::load(Some(&sample("serve.toml")), []).unwrap();
    assert_ne!(uncommented, text);
    assert_eq!(load(&uncommented, &[]).unwrap(), shipped);
}

/// The keys of a TOML text, those in comments included.
fn documented(text: &str) -> BTreeSet<String> {
    let mut section = String::new();
    let mut keys = BTreeSet::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("[[").and_then(|line| line.strip_suffix("]]")) {
            section = format!("{name}[].");
        } else if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            section = format!("{name}.");
        } else if let Some(key) = key_of(line.strip_prefix("# ").unwrap_or(line)) {
            keys.insert(format!("{section}{key}"));
        }
    }
    keys
}

/// The key that a line sets.
fn key_of(line: &str) -> Option<&str> {
    let (key, _) = line.split_once(" = ")?;
    key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_').then_some(key)
}

#[test]
fn the_environment_goes_before_the_file() {
    let config = load(
        "[limits]\nsend_burst = 5\nsend_per_second = 6\n",
        &[("WARDLINE_LIMITS__SEND_BURST", "7"), ("WARDLINE_LISTEN__INGEST", "[::1]:9"), ("WARDLINE_DATA_DIR", "/d")],
    )
    .unwrap();
    assert_eq!((config.limits.send_burst, config.limits.send_per_second), (7, 6));
    assert_eq!(config.listen.ingest, "[::1]:9".parse().unwrap());
    assert_eq!(config.data_dir, Path::new("/d"));
}

#[test]
fn an_unknown_key_is_refused_with_the_nearest_and_where_it_is() {
    let told = refused("[listen]\ningst = \"127.0.0.1:1\"\n", &[]);
    assert!(told.contains("wardline.toml: unknown key `listen.ingst`; the nearest known is `listen.ingest`"), "{told}");

    let told = refused("", &[("WARDLINE_LISTEN__INGST", "127.0.0.1:1")]);
    assert!(told.contains("unknown variable WARDLINE_LISTEN__INGST"), "{told}");
    assert!(told.contains("the nearest known is WARDLINE_LISTEN__INGEST"), "{told}");
}

#[test]
fn a_key_in_the_wrong_section_is_named_in_the_right_one() {
    let told = refused("retention_days = 3\n", &[]);
    assert!(told.contains("`retention_days`; the nearest known is `feeds.retention_days`"), "{told}");
    let told = refused("quux = 3\n", &[]);
    assert!(told.contains("`quux`") && !told.contains("nearest"), "{told}");
}

#[test]
fn a_key_in_both_file_and_environment_is_refused_where_it_is_wrong() {
    let file = "[limits]\nsend_burst = 5\n";
    let error = load(file, &[("WARDLINE_LIMITS__SEND_BURST", "many")]).unwrap_err();
    let [problem] = error.problems() else { panic!("{error}") };
    assert_eq!(problem.key, "limits.send_burst");
    assert_eq!(problem.origin, Origin::Environment("WARDLINE_LIMITS__SEND_BURST".to_owned()));
}

#[test]
fn a_log_budget_that_the_largest_batches_do_not_fit_is_refused() {
    let budget = |bytes: u32| load(&format!("[embedded]\nlog_budget_bytes = {bytes}\n"), &[]);
    let error = budget((4 << 20) - 1).unwrap_err();
    let [problem] = error.problems() else { panic!("{error}") };
    assert_eq!(problem.key, "embedded.log_budget_bytes");
    budget(4 << 20).unwrap();
}

const CLUSTER: &str = "
engines = \"cluster\"
[kafka]
brokers = [\"kafka-0:9092\", \"kafka-1:9092\"]
[cql]
nodes = [\"cql-0:9042\"]
[redis]
address = \"redis:6379\"
";

/// The configuration of a cluster whose keys and issuer are those of the sample.
fn clustered(more: &str) -> Config {
    let sample = Config::load(Some(&sample("minimal.toml")), []).unwrap();
    let cluster = load(&format!("{CLUSTER}{more}"), &[]).unwrap();
    Config { engines: cluster.engines, kafka: cluster.kafka, cql: cluster.cql, redis: cluster.redis, ..sample }
}

#[test]
fn on_a_cluster_any_roles_may_be_served() {
    let config = clustered("");
    let permitted = Overrides { allow_plaintext: true, ..STRICT };
    for role in [RoleArg::Ingest, RoleArg::Fanout, RoleArg::Presence, RoleArg::Receipt, RoleArg::Directory] {
        assert_eq!(config.fit_to_serve(&Roles::of(&[role]), permitted), Ok(()));
    }
    let embedded = Config { engines: Engines::Embedded, ..config };
    let refused = embedded.fit_to_serve(&Roles::of(&[RoleArg::Ingest]), permitted).unwrap_err();
    assert!(matches!(refused.0[..], [Lacking::AllRoles { .. }]), "{refused}");
}

#[test]
fn a_role_needs_the_keys_that_it_uses_and_no_other() {
    let bare =
        Config { session: Session::default(), authority: Authority::default(), link: Link::default(), ..clustered("") };
    let permitted = Overrides { allow_plaintext: true, ..STRICT };
    let lacking = |role| match bare.fit_to_serve(&Roles::of(&[role]), permitted) {
        Ok(()) => Vec::new(),
        Err(refused) => refused
            .0
            .into_iter()
            .map(|lacking| match lacking {
                Lacking::Key { key, .. } => key,
                other => panic!("{other}"),
            })
            .collect(),
    };
    assert_eq!(lacking(RoleArg::Fanout), Vec::<&str>::new());
    assert_eq!(lacking(RoleArg::Ingest), ["session.keys_file"]);
    assert_eq!(lacking(RoleArg::Receipt), ["session.keys_file"]);
    assert_eq!(lacking(RoleArg::Presence), ["session.keys_file", "link.key_file"]);
    assert_eq!(lacking(RoleArg::Directory), ["session.keys_file", "authority.key_file"]);
}

#[test]
fn engines_in_clear_take_an_override_each_time() {
    let refused = clustered("").fit_to_serve(&Roles::all(), STRICT).unwrap_err();
    let in_clear = |key| Lacking::EngineInClear { key };
    assert_eq!(refused.0, [in_clear("kafka.tls"), in_clear("cql.tls"), in_clear("redis.tls")]);
    let refused = clustered("").fit_to_migrate(false).unwrap_err();
    assert_eq!(refused.0.len(), 3);
    assert_eq!(clustered("").fit_to_migrate(true), Ok(()));
}

#[test]
fn a_cluster_without_an_engine_s_address_is_refused() {
    let config = Config { engines: Engines::Cluster, ..Config::default() };
    let refused = config.fit_to_migrate(true).unwrap_err().to_string();
    for key in ["kafka.brokers", "cql.nodes", "redis.address"] {
        assert!(refused.contains(key), "{key} in {refused}");
    }
    let refused = Config::default().fit_to_migrate(true).unwrap_err();
    assert!(refused.0.contains(&Lacking::Cluster), "{refused}");
}

#[test]
fn lists_come_from_the_environment_too() {
    let config =
        load("", &[("WARDLINE_KAFKA__BROKERS", "[\"a:1\", \"b:2\"]"), ("WARDLINE_TEST_ANYTHING", "x")]).unwrap();
    assert_eq!(config.kafka.brokers, ["a:1", "b:2"]);
}

#[test]
fn every_problem_is_told_at_once() {
    let text = "
        data_dri = \"x\"
        [embedded]
        feeds_partitions = 3
        [listen]
        ingest = \"nowhere\"
        [[issuers]]
        url = \"https://a.example\"
        jwks_file = \"a\"
        audience = \"a\"
        tenant = \"not a tenant\"
        colour = 1
    ";
    let error = load(text, &[("WARDLINE_FEDS__RETENTION_DAYS", "1")]).unwrap_err();
    let keys: BTreeSet<&str> = error.problems().iter().map(|problem| problem.key.as_str()).collect();
    let expected =
        ["data_dri", "embedded.feeds_partitions", "feds", "issuers[0].colour", "issuers[0].tenant", "listen.ingest"];
    assert_eq!(keys, BTreeSet::from(expected), "{error}");
}

#[test]
fn a_missing_key_of_an_issuer_is_named() {
    let error = load("[[issuers]]\nurl = \"https://a.example\"\n", &[]).unwrap_err();
    let [problem] = error.problems() else { panic!("{error}") };
    assert_eq!((problem.key.as_str(), &problem.what), ("issuers[0].jwks_file", &What::Missing));
}

#[test]
fn variables_that_kubernetes_adds_are_explained() {
    for name in ["WARDLINE_INGEST_SERVICE_HOST", "WARDLINE_INGEST_PORT_7401_TCP_ADDR", "WARDLINE_PORT"] {
        let told = refused("", &[(name, "10.0.0.1")]);
        assert!(told.contains("enableServiceLinks"), "{told}");
    }
}

#[test]
fn values_that_cannot_be_are_refused() {
    let issuer = |rest: &str| format!("[[issuers]]\njwks_file = \"j\"\naudience = \"a\"\n{rest}");
    let cases = [
        ("[limits]\nsend_burst = 0", "limits.send_burst"),
        ("[tls]\ncert_file = \"c\"", "tls.cert_file"),
        ("[tls]\nclient_ca_file = \"c\"", "tls.client_ca_file"),
        ("[link]\nadvertise = \"presence:7406\"", "link.advertise"),
        ("[link]\nadvertise = \"http://presence:7406/x\"", "link.advertise"),
        ("[listen]\ningest = \"127.0.0.1:7404\"", "listen.directory"),
        ("[diagnostics]\nfilter = \"a=b=c\"", "diagnostics.filter"),
        ("[diagnostics]\nformat = \"loud\"", "diagnostics.format"),
        ("[kafka]\nbrokers = [\"kafka\"]", "kafka.brokers"),
        ("[kafka]\nprefix = \"Ward.line\"", "kafka.prefix"),
        ("[kafka]\nreplication = 1", "kafka.min_insync_replicas"),
        ("[kafka]\nbudget_bytes = 1", "kafka.budget_bytes"),
        ("[kafka]\nusername = \"wardline\"", "kafka.password_file"),
        ("[kafka]\nmechanism = \"PLAIN\"", "kafka.mechanism"),
        ("[kafka]\nca_file = \"ca\"", "kafka.ca_file"),
        ("[kafka.incarnation]\nfeeds = 0", "kafka.incarnation.feeds"),
        ("[cql]\nnodes = [\"user@cql:9042\"]", "cql.nodes"),
        ("[cql]\nkeyspace = \"9\"", "cql.keyspace"),
        ("[cql]\ntls = true", "cql.ca_file"),
        ("[redis]\nusername = \"wardline\"", "redis.password_file"),
        ("[link]\npeers = [\"presence\"]", "link.peers"),
        ("engines = \"cluster\"\n[listen]\npresence_link = \"0.0.0.0:7405\"", "link.advertise"),
        ("engines = \"cluster\"\n[feeds]\nretention_days = 7", "feeds.retention_days"),
        ("[admin]\nlisten = \"127.0.0.1:7404\"", "admin.listen"),
        ("[telemetry]\nsample_ratio = 1.5", "telemetry.sample_ratio"),
        ("[telemetry]\notlp_endpoint = \"https://otlp:4317\"", "telemetry.ca_file"),
        (&issuer("url = \"http://a.example\"\nscopes = [\"operator\"]"), "issuers[0].url"),
        (&issuer("url = \"https://a.example\""), "issuers[0].scopes"),
    ];
    for (text, key) in cases {
        let error = load(text, &[]).unwrap_err();
        let [problem] = error.problems() else { panic!("{text}: {error}") };
        assert_eq!(problem.key, key, "{error}");
    }
    let local = issuer("url = \"http://127.0.0.1:7408\"\nscopes = [\"operator\"]");
    assert!(load(&local, &[]).is_ok());
}

#[test]
fn what_is_not_there_or_not_toml_is_an_error_of_its_own() {
    assert!(matches!(Config::load(Some(Path::new("/nowhere.toml")), []), Err(ConfigError::Unreadable { .. })));
    let told = refused("[listen\n", &[]);
    assert!(told.contains("is not TOML") && told.contains("line 1"), "{told}");
}

#[test]
fn each_thing_that_serving_needs_is_missed_by_name() {
    let bare = Config::default();
    let refused = bare.fit_to_serve(&Roles::all(), STRICT).unwrap_err();
    assert!(refused.0.contains(&Lacking::Certificate) && refused.0.contains(&Lacking::Issuer));
    let keys: Vec<&str> = refused
        .0
        .iter()
        .filter_map(|lacking| if let Lacking::Key { key, .. } = lacking { Some(*key) } else { None })
        .collect();
    assert_eq!(keys, ["session.keys_file", "authority.key_file", "link.key_file"]);
}

#[test]
fn each_override_excuses_only_what_it_names() {
    let mut config = Config::load(Some(&sample("minimal.toml")), []).unwrap();
    let plaintext = Overrides { allow_plaintext: true, ..STRICT };
    let no_issuer = Overrides { allow_no_issuer: true, ..STRICT };
    let lacking = |config: &Config, overrides| match config.fit_to_serve(&Roles::all(), overrides) {
        Ok(()) => Vec::new(),
        Err(refused) => refused.0,
    };
    config.tls = Config::default().tls;
    assert_eq!(lacking(&config, STRICT), [Lacking::Certificate]);
    assert_eq!(lacking(&config, no_issuer), [Lacking::Certificate]);
    assert_eq!(lacking(&config, plaintext), []);
    config.issuers.clear();
    assert_eq!(lacking(&config, plaintext), [Lacking::Issuer]);
    assert_eq!(lacking(&config, no_issuer), [Lacking::Certificate]);
    assert_eq!(lacking(&config, Overrides { allow_plaintext: true, allow_no_issuer: true }), []);
}

#[test]
fn no_file_and_no_environment_can_carry_an_override() {
    for text in ["allow_plaintext = true", "allow_no_issuer = true", "[tls]\nallow_plaintext = true"] {
        assert!(refused(text, &[]).contains("unknown"), "{text}");
    }
    assert!(refused("", &[("WARDLINE_ALLOW_PLAINTEXT", "true")]).contains("unknown"));
}

#[test]
fn a_part_of_the_roles_is_refused_on_engines_of_one_process() {
    let config = Config::load(Some(&sample("minimal.toml")), []).unwrap();
    let part = Roles::of(&[RoleArg::Ingest, RoleArg::Presence, RoleArg::Directory]);
    let refused = config.fit_to_serve(&part, STRICT).unwrap_err();
    assert_eq!(refused.0, [Lacking::AllRoles { missing: vec![Role::Fanout, Role::Receipt] }]);
    assert!(refused.to_string().contains("`fanout`, `receipt`"), "{refused}");
    let each = [RoleArg::Ingest, RoleArg::Fanout, RoleArg::Presence, RoleArg::Receipt, RoleArg::Directory];
    assert_eq!(Roles::of(&each), Roles::of(&[RoleArg::All, RoleArg::Ingest]));
}
