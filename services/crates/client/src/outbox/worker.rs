//! Stub.
use crate::device::Inner;
use std::sync::Arc;
pub(crate) async fn run(_: Arc<Inner>) {}
