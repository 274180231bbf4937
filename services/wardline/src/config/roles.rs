//! Which roles a process runs.

use std::collections::BTreeSet;

use crate::cli::RoleArg;
use crate::node::Role;

/// The roles of one process: at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Roles(BTreeSet<Role>);

impl Roles {
    /// All of them.
    pub fn all() -> Self {
        Self(Role::ALL.into())
    }

    /// As given on the command line, where repeats and `all` beside others do no harm.
    pub fn of(args: &[RoleArg]) -> Self {
        let each = args.iter().flat_map(|arg| match arg {
            RoleArg::Ingest => vec![Role::Ingest],
            RoleArg::Fanout => vec![Role::Fanout],
            RoleArg::Presence => vec![Role::Presence],
            RoleArg::Receipt => vec![Role::Receipt],
            RoleArg::Directory => vec![Role::Directory],
            RoleArg::All => Role::ALL.to_vec(),
        });
        Self(each.collect())
    }

    /// Each of them once.
    pub fn each(&self) -> Vec<Role> {
        self.0.iter().copied().collect()
    }

    /// Whether `role` is one of them.
    pub fn contains(&self, role: Role) -> bool {
        self.0.contains(&role)
    }

    /// Those that are not among them.
    pub fn missing(&self) -> Vec<Role> {
        Role::ALL.into_iter().filter(|role| !self.contains(*role)).collect()
    }
}
