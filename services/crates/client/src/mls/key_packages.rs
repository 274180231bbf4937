//! Stub.
use crate::device::Inner;
use crate::error::Error;
use std::sync::Arc;
pub(crate) async fn publish(_: &Arc<Inner>, _: u32) -> Result<u32, Error> {
    todo!()
}
