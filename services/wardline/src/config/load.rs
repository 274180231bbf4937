//! File and environment into one [`Config`], with every problem told at once.

use std::ffi::OsString;
use std::path::Path;

use figment::error::Kind;
use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider, Source};

use super::problem::{ConfigError, Origin, Problem, What};
use super::{Config, check};

/// What the names of the environment's variables begin with.
pub const PREFIX: &str = "WARDLINE_";

/// Names the file, so it is no key of it.
const NAMES_THE_FILE: &str = "WARDLINE_CONFIG";

/// What tests and development scripts tell each other begins with this, and is no key.
const FOR_TESTS: &str = "WARDLINE_TEST_";

/// How unlike a known key may be and still be suggested: 1 is alike.
const LIKENESS: f64 = 0.75;

impl Config {
    /// Reads `file`, then what `environment` says in variables such as `WARDLINE_LISTEN__INGEST`, over the defaults.
    ///
    /// Refuses what it does not know. Says nothing about what a set of roles needs: see [`Config::fit_to_serve`].
    pub fn load(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self, ConfigError> {
        let mut figment = Figment::new();
        if let Some(file) = file {
            figment = figment.merge(Written::in_file(file)?);
        }
        for (name, value) in environment {
            if let Some(variable) = Written::in_variable(name, value)? {
                figment = figment.merge(variable);
            }
        }
        let config = extract(&figment).map_err(ConfigError::Invalid)?;
        let problems = check::possible(&config);
        if problems.is_empty() {
            return Ok(config);
        }
        let located = problems.into_iter().map(|(key, why)| Problem {
            origin: figment.find_metadata(&key).map_or(Origin::Nowhere, origin),
            key,
            what: What::Invalid(why),
        });
        Err(ConfigError::Invalid(located.collect()))
    }
}

/// What one source says.
struct Written {
    source: Source,
    says: Dict,
}

impl Written {
    fn in_file(file: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(file)
            .map_err(|source| ConfigError::Unreadable { file: file.to_owned(), source })?;
        let says = toml::from_str(&text)
            .map_err(|source| ConfigError::Syntax { file: file.to_owned(), source: Box::new(source) })?;
        Ok(Self { source: Source::File(file.to_owned()), says })
    }

    fn in_variable(name: OsString, value: OsString) -> Result<Option<Self>, ConfigError> {
        let Ok(name) = name.into_string() else { return Ok(None) };
        if name == NAMES_THE_FILE || name.starts_with(FOR_TESTS) {
            return Ok(None);
        }
        let Some(key) = name.strip_prefix(PREFIX) else { return Ok(None) };
        let value = value.into_string().map_err(|_| ConfigError::NotText(name.clone()))?;
        let Ok(value) = value.parse::<Value>();
        let path = key.to_lowercase().replace("__", ".");
        let Value::Dict(_, says) = figment::util::nest(&path, value) else { return Ok(None) };
        Ok(Some(Self { source: Source::Custom(name), says }))
    }
}

impl Provider for Written {
    fn metadata(&self) -> Metadata {
        Metadata::from("configuration", self.source.clone())
    }

    fn data(&self) -> figment::Result<Map<Profile, Dict>> {
        Ok(Map::from([(Profile::Default, self.says.clone())]))
    }
}

fn origin(metadata: &Metadata) -> Origin {
    match &metadata.source {
        Some(Source::File(file)) => Origin::File(file.clone()),
        Some(Source::Custom(variable)) => Origin::Environment(variable.clone()),
        _ => Origin::Nowhere,
    }
}

/// serde stops at the first error: take out what it was about, and ask again.
fn extract(figment: &Figment) -> Result<Config, Vec<Problem>> {
    let mut written = Value::from(said(figment)?);
    let mut problems = Vec::new();
    loop {
        let error = match written.deserialize::<Config>() {
            Ok(config) if problems.is_empty() => return Ok(config),
            Ok(_) => return Err(problems),
            Err(error) => error,
        };
        let (path, what) = told(error);
        let at = find(&written, &path).unwrap_or(&written).tag();
        let origin = figment.get_metadata(at).map_or(Origin::Nowhere, origin);
        let missing = what == What::Missing;
        problems.push(Problem { key: as_key(&path), origin, what });
        // What is missing cannot be taken out.
        if missing || !take_out(&mut written, &path) {
            return Err(problems);
        }
    }
}

fn said(figment: &Figment) -> Result<Dict, Vec<Problem>> {
    match figment.data() {
        Ok(mut profiles) => Ok(profiles.remove(&Profile::Default).unwrap_or_default()),
        Err(error) => {
            let (path, what) = told(error);
            Err(vec![Problem { key: as_key(&path), origin: Origin::Nowhere, what }])
        }
    }
}

/// Where an error is, and what it is.
fn told(error: figment::Error) -> (Vec<String>, What) {
    let mut path = error.path;
    let what = match error.kind {
        Kind::UnknownField(field, known) => {
            if path.last() != Some(&field) {
                path.push(field);
            }
            What::Unknown { nearest: nearest(&path, known) }
        }
        Kind::MissingField(field) => {
            path.push(field.into_owned());
            What::Missing
        }
        kind => What::Invalid(kind.to_string()),
    };
    (path, what)
}

/// The nearest key of the same section, else one of that name in another section.
fn nearest(path: &[String], siblings: &[&str]) -> Option<String> {
    let (name, section) = path.split_last()?;
    let likest = |candidates: &mut dyn Iterator<Item = (String, String)>| {
        candidates
            .map(|(key, last)| (strsim::jaro_winkler(name, &last), key))
            .filter(|(likeness, _)| *likeness >= LIKENESS)
            .max_by(|(one, _), (other, _)| one.total_cmp(other))
            .map(|(_, key)| key)
    };
    let beside = |sibling: &&str| {
        let path: Vec<String> = section.iter().cloned().chain([(*sibling).to_owned()]).collect();
        (as_key(&path), (*sibling).to_owned())
    };
    let elsewhere = |key: String| {
        let last = key.rsplit('.').next().unwrap_or_default().to_owned();
        (key, last)
    };
    likest(&mut siblings.iter().map(beside)).or_else(|| likest(&mut Config::keys().into_iter().map(elsewhere)))
}

/// `["issuers", "0", "url"]` as `issuers[0].url`.
fn as_key(path: &[String]) -> String {
    let mut key = String::new();
    for part in path {
        if part.bytes().all(|byte| byte.is_ascii_digit()) {
            key.push_str(&format!("[{part}]"));
        } else {
            if !key.is_empty() {
                key.push('.');
            }
            key.push_str(part);
        }
    }
    key
}

fn find<'a>(value: &'a Value, path: &[String]) -> Option<&'a Value> {
    path.iter().try_fold(value, |value, part| match value {
        Value::Dict(_, fields) => fields.get(part),
        Value::Array(_, elements) => elements.get(part.parse::<usize>().ok()?),
        _ => None,
    })
}

fn take_out(value: &mut Value, path: &[String]) -> bool {
    match (value, path) {
        (Value::Dict(_, fields), [last]) => fields.remove(last).is_some(),
        (Value::Dict(_, fields), [first, rest @ ..]) => {
            fields.get_mut(first).is_some_and(|value| take_out(value, rest))
        }
        (Value::Array(_, elements), [first, rest @ ..]) if !rest.is_empty() => {
            let element = first.parse::<usize>().ok().and_then(|index| elements.get_mut(index));
            element.is_some_and(|element| take_out(element, rest))
        }
        _ => false,
    }
}
