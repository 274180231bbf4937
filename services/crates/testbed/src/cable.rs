//! A TCP connection's way to an engine that can be disturbed: delayed, cut, silent, or closed.
//!
//! Deliberately absent: any understanding of what passes, and loss inside a connection, which TCP does not have.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::between;

/// How the way is now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// As if there were nothing in between.
    Open,
    /// Everything arrives this much later, in either direction.
    Delayed(Duration),
    /// Nothing arrives and nobody is told: connections stay, and new ones are taken, as behind a firewall that forgot them.
    Silent,
    /// Connections are reset, and new ones too.
    Closed,
}

/// Passes connections on until it is dropped.
#[derive(Debug)]
pub struct Cable {
    address: SocketAddr,
    shared: Arc<Shared>,
    _stop: DropGuard,
}

#[derive(Debug)]
struct Shared {
    target: SocketAddr,
    way: watch::Sender<Way>,
    /// Ends the connections made so far.
    present: Mutex<CancellationToken>,
}

/// How much is read at once, and how many of these may be under way in one direction.
const CHUNK_BYTES: usize = 64 << 10;
const CHUNKS_UNDER_WAY: usize = 64;

impl Cable {
    /// Listens on `at` (port 0 for any that is free) and leads to `target`.
    pub async fn start(at: SocketAddr, target: SocketAddr) -> io::Result<Self> {
        between::run(Self::bind(at, target)).await
    }

    async fn bind(at: SocketAddr, target: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(at).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared { target, way: watch::Sender::new(Way::Open), present: Mutex::default() });
        let stop = CancellationToken::new();
        tokio::spawn(accept(listener, Arc::clone(&shared), stop.clone()));
        Ok(Self { address, shared, _stop: stop.drop_guard() })
    }

    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on the way is like this, for the connections there are as well.
    pub fn set(&self, way: Way) {
        self.shared.way.send_replace(way);
        if way == Way::Closed {
            self.cut();
        }
    }

    /// Resets all connections; new ones may be made.
    pub fn cut(&self) {
        let mut present = self.shared.present.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *present).cancel();
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>, stop: CancellationToken) {
    while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
        let Ok((client, _)) = accepted else { continue };
        let cut = shared.present.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (shared, stop) = (Arc::clone(&shared), stop.clone());
        tokio::spawn(async move { stop.run_until_cancelled(pass(client, &shared, &cut)).await });
    }
}

async fn pass(mut client: TcpStream, shared: &Shared, cut: &CancellationToken) {
    if *shared.way.borrow() == Way::Closed {
        return reset(&client);
    }
    // One that is made while the way is silent gets an answer from nobody, until it is not.
    let connected = async {
        let _ = shared.way.subscribe().wait_for(|way| *way != Way::Silent).await;
        TcpStream::connect(shared.target).await
    };
    let Some(Ok(mut server)) = cut.run_until_cancelled(connected).await else { return reset(&client) };
    let _ = client.set_nodelay(true);
    let _ = server.set_nodelay(true);
    let ended = {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        let both = async { tokio::join!(pump(from_client, to_server, shared), pump(from_server, to_client, shared)) };
        cut.run_until_cancelled(both).await
    };
    if ended.is_none_or(|(up, down)| up.is_err() || down.is_err()) {
        reset(&client);
        reset(&server);
    }
}

/// Closes with RST instead of FIN when it is dropped.
fn reset(stream: &TcpStream) {
    // One that is gone already needs none.
    let _ = stream.set_zero_linger();
}

/// One direction, until its end or a break.
async fn pump(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, shared: &Shared) -> io::Result<()> {
    let (send, mut under_way) = mpsc::channel::<(Instant, Vec<u8>)>(CHUNKS_UNDER_WAY);
    let reading = async move {
        loop {
            let mut chunk = vec![0; CHUNK_BYTES];
            let read = from.read(&mut chunk).await?;
            chunk.truncate(read);
            // The writer ends only with an error, which it tells itself.
            if read == 0 || send.send((Instant::now(), chunk)).await.is_err() {
                return Ok(());
            }
        }
    };
    let writing = async {
        let mut way = shared.way.subscribe();
        while let Some((since, chunk)) = under_way.recv().await {
            let now = *way.wait_for(|way| *way != Way::Silent).await.map_err(io::Error::other)?;
            if let Way::Delayed(by) = now {
                sleep_until(since + by).await;
            }
            to.write_all(&chunk).await?;
        }
        to.shutdown().await
    };
    tokio::try_join!(reading, writing).map(|_| ())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// A server that sends back what it gets.
    async fn echo() -> SocketAddr {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            loop {
                let (mut connection, _) = listener.accept().await.unwrap();
                tokio::spawn(async move {
                    let (mut from, mut to) = connection.split();
                    tokio::io::copy(&mut from, &mut to).await
                });
            }
        });
        address
    }

    async fn cable() -> Cable {
        Cable::start(SocketAddr::from(([127, 0, 0, 1], 0)), echo().await).await.unwrap()
    }

    async fn asked(connection: &mut TcpStream, byte: u8) -> io::Result<u8> {
        connection.write_u8(byte).await?;
        connection.read_u8().await
    }

    #[tokio::test]
    async fn an_open_way_passes_all_and_its_end() {
        let cable = cable().await;
        let mut connection = TcpStream::connect(cable.address()).await.unwrap();
        let sent = vec![7; 1 << 20];
        let (mut from, mut to) = connection.split();
        let mut got = Vec::new();
        let (written, _) = tokio::join!(
            async {
                to.write_all(&sent).await.unwrap();
                to.shutdown().await
            },
            from.read_to_end(&mut got)
        );
        written.unwrap();
        assert_eq!(got, sent);
    }

    #[tokio::test]
    async fn a_delay_is_one_each_way() {
        let cable = cable().await;
        let mut connection = TcpStream::connect(cable.address()).await.unwrap();
        assert_eq!(asked(&mut connection, 1).await.unwrap(), 1);
        let delay = Duration::from_millis(50);
        cable.set(Way::Delayed(delay));
        let began = Instant::now();
        assert_eq!(asked(&mut connection, 2).await.unwrap(), 2);
        assert!(began.elapsed() >= delay * 2);
    }

    #[tokio::test]
    async fn a_cut_resets_and_lets_in_again() {
        let cable = cable().await;
        let mut connection = TcpStream::connect(cable.address()).await.unwrap();
        assert_eq!(asked(&mut connection, 1).await.unwrap(), 1);
        cable.cut();
        assert_eq!(connection.read_u8().await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        let mut connection = TcpStream::connect(cable.address()).await.unwrap();
        assert_eq!(asked(&mut connection, 1).await.unwrap(), 1);
    }

    #[tokio::test]
    async fn a_silent_way_keeps_connections_and_what_was_sent() {
        let cable = cable().await;
        let mut before = TcpStream::connect(cable.address()).await.unwrap();
        assert_eq!(asked(&mut before, 1).await.unwrap(), 1);
        cable.set(Way::Silent);
        let mut during = TcpStream::connect(cable.address()).await.unwrap();
        let silence = Duration::from_millis(100);
        for connection in [&mut before, &mut during] {
            connection.write_u8(2).await.unwrap();
            tokio::time::timeout(silence, connection.read_u8()).await.unwrap_err();
        }
        cable.set(Way::Open);
        for mut connection in [before, during] {
            assert_eq!(connection.read_u8().await.unwrap(), 2);
        }
    }

    #[tokio::test]
    async fn a_closed_way_resets_old_and_new() {
        let cable = cable().await;
        let mut before = TcpStream::connect(cable.address()).await.unwrap();
        assert_eq!(asked(&mut before, 1).await.unwrap(), 1);
        cable.set(Way::Closed);
        assert_eq!(before.read_u8().await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        let refused = async { asked(&mut TcpStream::connect(cable.address()).await?, 1).await };
        refused.await.unwrap_err();
    }
}
