//! How rows are laid out as values, for every engine: one cell a row, so that a row is there as a whole or not at all.
//!
//! Deliberately absent: keys, and where a row keeps its write timestamp. Those are each engine's own.

mod codec;
pub mod conversations;
pub mod directory;
pub mod feeds;

pub use codec::{Decoder, Encoder};
