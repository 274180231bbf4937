//! The ratchet tree a conversation starts with (RFC 9420 section 12.4.3.3): one leaf.
//!
//! Deliberately absent: larger trees. The roster is derived from commits, not read from trees.

use bytes::Bytes;

use super::leaf::leaf_node;
use super::reader::Reader;
use super::{InvalidMls, LeafNode};

/// NodeType leaf (RFC 9420 section 7.8).
const NODE_LEAF: u8 = 1;

/// The only leaf of a TLS-encoded one-leaf ratchet tree.
///
/// # Errors
/// When there are more nodes or none, the node is blank or a parent, or bytes follow.
pub fn single_leaf(ratchet_tree: &Bytes) -> Result<LeafNode, InvalidMls> {
    let mut reader = Reader::new(ratchet_tree);
    let mut nodes = reader.vector()?;
    reader.finish()?;
    if !nodes.present()? || nodes.u8()? != NODE_LEAF {
        return Err(InvalidMls("the tree's first node is not a leaf"));
    }
    let (leaf, _) = leaf_node(&mut nodes)?;
    if nodes.is_empty() { Ok(leaf) } else { Err(InvalidMls("the tree has more than one leaf")) }
}
