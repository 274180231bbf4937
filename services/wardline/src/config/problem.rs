//! What is wrong with a configuration, where it was written, and what was probably meant.

use std::fmt;
use std::io;
use std::path::PathBuf;

use super::load::PREFIX;

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("the configuration {} cannot be read: {source}", file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is not TOML.
    #[error("the configuration {} is not TOML: {source}", file.display())]
    Syntax {
        /// The file.
        file: PathBuf,
        /// Where and why.
        source: Box<toml::de::Error>,
    },
    /// A variable of the environment is not Unicode.
    #[error("the environment variable {0} is not UTF-8")]
    NotText(String),
    /// What it says cannot be.
    #[error("the configuration is refused:{}", list(.0))]
    Invalid(Vec<Problem>),
}

impl ConfigError {
    /// The problems, when it was read at all.
    pub fn problems(&self) -> &[Problem] {
        match self {
            Self::Invalid(problems) => problems,
            Self::Unreadable { .. } | Self::Syntax { .. } | Self::NotText(_) => &[],
        }
    }
}

pub(super) fn list<T: fmt::Display>(items: &[T]) -> String {
    items.iter().map(|item| format!("\n  - {item}")).collect()
}

/// Where a value was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// In this file.
    File(PathBuf),
    /// In this variable.
    Environment(String),
    /// Nowhere: it is a default, or it is absent.
    Nowhere,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The key, as `section.key`.
    pub key: String,
    /// Where it was written.
    pub origin: Origin,
    /// What is wrong.
    pub what: What,
}

/// What is wrong with a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// There is no such key.
    Unknown {
        /// The nearest that there is.
        nearest: Option<String>,
    },
    /// The key has to be given.
    Missing,
    /// The value cannot be.
    Invalid(String),
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.origin {
            Origin::File(file) => write!(f, "{}: ", file.display())?,
            Origin::Environment(_) => f.write_str("environment: ")?,
            Origin::Nowhere => (),
        }
        match &self.what {
            What::Unknown { nearest } => {
                write!(f, "unknown {}", self.itself())?;
                if let Some(nearest) = nearest {
                    write!(f, "; the nearest known is {}", self.spelled(nearest))?;
                }
                if let Some(hint) = self.hint() {
                    write!(f, " ({hint})")?;
                }
                Ok(())
            }
            What::Missing => write!(f, "`{}` is missing", self.key),
            What::Invalid(why) => write!(f, "{}: {why}", self.itself()),
        }
    }
}

impl Problem {
    fn itself(&self) -> String {
        match &self.origin {
            Origin::Environment(name) => format!("variable {name}"),
            Origin::File(_) | Origin::Nowhere => format!("key `{}`", self.key),
        }
    }

    /// Another key as it would be written where this one was.
    fn spelled(&self, key: &str) -> String {
        match &self.origin {
            Origin::Environment(_) => format!("{PREFIX}{}", key.replace('.', "__").to_uppercase()),
            Origin::File(_) | Origin::Nowhere => format!("`{key}`"),
        }
    }

    /// Kubernetes adds variables for every Service of the namespace unless told not to.
    fn hint(&self) -> Option<&'static str> {
        let Origin::Environment(name) = &self.origin else { return None };
        let of_service = name.ends_with("_SERVICE_HOST") || name.contains("_SERVICE_PORT");
        let of_link = name.ends_with("_PORT") || name.contains("_PORT_");
        (of_service || of_link).then_some("Kubernetes adds such variables: set enableServiceLinks to false")
    }
}
