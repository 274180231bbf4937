//! Any RPC by its path and raw bytes: for tests that send what no generated client would.
//!
//! Deliberately absent: meaning. Requests and answers are protobuf bytes, or what pretends to be.

use bytes::{Buf as _, BufMut as _, Bytes};
use tonic::client::Grpc;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Request, Status, Streaming};

/// The largest answer, in bytes.
const MAX_ANSWER_BYTES: usize = 16 << 20;

/// Calls `/package.Service/Method` with the given frames and leaves the stream open behind them when `open`. Unary calls
/// look the same on the wire: one frame, closed.
pub async fn call(
    channel: &Channel,
    path: &str,
    token: Option<&str>,
    frames: Vec<Bytes>,
    open: bool,
) -> Result<Streaming<Bytes>, Status> {
    let path: PathAndQuery = path.parse().map_err(|_| Status::cancelled("not a path"))?;
    let stay: Box<dyn tokio_stream::Stream<Item = Bytes> + Send + Unpin> = match open {
        true => Box::new(tokio_stream::StreamExt::chain(tokio_stream::iter(frames), tokio_stream::pending())),
        false => Box::new(tokio_stream::iter(frames)),
    };
    let mut request = Request::new(stay);
    if let Some(token) = token {
        let bearer = format!("Bearer {token}").parse().map_err(|_| Status::cancelled("not a token"))?;
        request.metadata_mut().insert("authorization", bearer);
    }
    let mut grpc = Grpc::new(channel.clone()).max_decoding_message_size(MAX_ANSWER_BYTES);
    grpc.ready().await.map_err(|_| Status::cancelled("no connection"))?;
    Ok(grpc.streaming(request, path, Raw).await?.into_inner())
}

/// Calls a unary method.
pub async fn unary(channel: &Channel, path: &str, token: Option<&str>, request: Bytes) -> Result<Bytes, Status> {
    let mut answer = call(channel, path, token, vec![request], false).await?;
    let message = answer.message().await?.ok_or_else(|| Status::cancelled("no answer"))?;
    // The status comes behind the message.
    match answer.message().await? {
        None => Ok(message),
        Some(_) => Err(Status::cancelled("more than one answer")),
    }
}

#[derive(Debug, Clone, Copy)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        into.put(item);
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::default()
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::default()
    }
}
