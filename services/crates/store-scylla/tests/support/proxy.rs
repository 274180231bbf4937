//! A proxy in front of a CQL server that does one thing to one request: loses its answer, holds it back, or lets it and
//! everything after it never arrive. It reads frames of the native protocol, versions 3 and 4, by their headers.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, Notify};

/// Opcodes of requests that are counted.
const EXECUTE: u8 = 0x0a;
const BATCH: u8 = 0x0d;

/// What happens to the n-th request from now on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It is done and its answer is lost.
    Lose,
    /// Neither it nor any after it arrives.
    Cut,
    /// It arrives when it is released.
    Hold,
}

#[derive(Default)]
struct State {
    fault: Mutex<Option<(Fault, usize)>>,
    asked: AtomicUsize,
    holds: AtomicBool,
    held: Notify,
    release: Notify,
}

/// The proxy. Lives as long as its runtime.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    state: Arc<State>,
}

impl Proxy {
    /// Listens on a free port and leads to `server`.
    pub(crate) async fn start(server: String) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State::default());
        let shared = Arc::clone(&state);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(&server).await.unwrap();
                tokio::spawn(serve(client, server, Arc::clone(&shared)));
            }
        });
        Self { address, state }
    }

    /// From now on, the request with this number (the next is 0) meets the fault.
    pub(crate) async fn arm(&self, fault: Fault, at: usize) {
        *self.state.fault.lock().await = Some((fault, at));
        self.state.asked.store(0, Ordering::SeqCst);
        self.state.holds.store(false, Ordering::SeqCst);
    }

    /// No fault from now on. Answers whether a request had met it.
    pub(crate) async fn heal(&self) -> bool {
        let fault = self.state.fault.lock().await.take();
        fault.is_some_and(|(_, at)| self.state.asked.load(Ordering::SeqCst) > at)
    }

    /// Waits until a request is held back.
    pub(crate) async fn held(&self) {
        while !self.state.holds.load(Ordering::SeqCst) {
            self.state.held.notified().await;
        }
    }

    /// Lets the request that is held back arrive.
    pub(crate) fn release(&self) {
        if self.state.holds.swap(false, Ordering::SeqCst) {
            self.state.release.notify_one();
        }
    }
}

/// Streams whose answer is lost.
type Lost = Arc<Mutex<HashSet<[u8; 2]>>>;

async fn serve(client: TcpStream, server: TcpStream, state: Arc<State>) {
    client.set_nodelay(true).unwrap();
    server.set_nodelay(true).unwrap();
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    let lost = Lost::default();
    tokio::spawn(back(from_server, to_client, Arc::clone(&lost)));
    forth(from_client, Arc::new(Mutex::new(to_server)), lost, state).await;
}

async fn frame(from: &mut OwnedReadHalf) -> Option<Vec<u8>> {
    let mut frame = vec![0; 9];
    from.read_exact(&mut frame).await.ok()?;
    let length = u32::from_be_bytes(frame[5..9].try_into().unwrap()) as usize;
    frame.resize(9 + length, 0);
    from.read_exact(&mut frame[9..]).await.ok()?;
    Some(frame)
}

async fn back(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, lost: Lost) {
    while let Some(frame) = frame(&mut from).await {
        if !lost.lock().await.remove(&[frame[2], frame[3]]) && to.write_all(&frame).await.is_err() {
            return;
        }
    }
}

async fn forth(mut from: OwnedReadHalf, to: Arc<Mutex<OwnedWriteHalf>>, lost: Lost, state: Arc<State>) {
    while let Some(frame) = frame(&mut from).await {
        let fault = if matches!(frame[4], EXECUTE | BATCH) { meet(&state).await } else { None };
        match fault {
            Some(Fault::Cut) => continue,
            Some(Fault::Lose) => {
                lost.lock().await.insert([frame[2], frame[3]]);
            }
            Some(Fault::Hold) => {
                tokio::spawn(hold(frame, Arc::clone(&to), Arc::clone(&state)));
                continue;
            }
            None => (),
        }
        if to.lock().await.write_all(&frame).await.is_err() {
            return;
        }
    }
}

/// Counts a request. Answers what happens to it.
async fn meet(state: &State) -> Option<Fault> {
    let fault = state.fault.lock().await;
    let at = state.asked.fetch_add(1, Ordering::SeqCst);
    match *fault {
        Some((fault @ Fault::Cut, from)) if at >= from => Some(fault),
        Some((fault, only)) if at == only => Some(fault),
        _ => None,
    }
}

async fn hold(frame: Vec<u8>, to: Arc<Mutex<OwnedWriteHalf>>, state: Arc<State>) {
    state.holds.store(true, Ordering::SeqCst);
    state.held.notify_one();
    state.release.notified().await;
    let _ = to.lock().await.write_all(&frame).await;
}
