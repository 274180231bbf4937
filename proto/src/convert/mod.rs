//! Between wire and domain. Parsing happens here and nowhere else.

pub mod envelope;
pub mod ids;
pub mod record;
pub mod reject;
pub mod time;

/// A field that is not valid: becomes a BadRequest field violation. Constant texts, so nothing of what was sent comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {description}")]
pub struct Violation {
    /// The field's path in the request.
    pub field: &'static str,
    /// What it should be.
    pub description: &'static str,
}

impl Violation {
    /// A violation of `field`.
    pub const fn new(field: &'static str, description: &'static str) -> Self {
        Self { field, description }
    }
}
