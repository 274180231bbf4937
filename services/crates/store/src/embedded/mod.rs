//! The embedded engine on fjall.

use std::path::Path;

use crate::{Result, Stores};

/// Opens, or creates, all stores in one database under `dir`: one journal, so that a checkpoint never outlives the rows
/// before it.
#[allow(clippy::todo)]
pub fn open(_dir: &Path) -> Result<Stores> {
    todo!()
}
