//! A stable address in front of a server that comes and goes: TCP connections are passed on to wherever the server is now.
//!
//! Deliberately absent: any understanding of what passes.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Passes connections on until it is dropped.
#[derive(Debug)]
pub struct Forwarder {
    address: SocketAddr,
    target: Arc<Mutex<Target>>,
    _stop: DropGuard,
}

#[derive(Debug)]
struct Target {
    /// Nowhere: connections are closed at once.
    address: Option<SocketAddr>,
    /// Ends the connections made so far.
    epoch: CancellationToken,
}

impl Forwarder {
    /// Listens on a free port of loopback and leads nowhere yet.
    pub async fn start() -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let target = Arc::new(Mutex::new(Target { address: None, epoch: CancellationToken::new() }));
        let stop = CancellationToken::new();
        tokio::spawn(accept(listener, Arc::clone(&target), stop.clone()));
        Ok(Self { address, target, _stop: stop.drop_guard() })
    }

    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Leads to `target` from now on; cuts the connections that led elsewhere.
    pub fn lead_to(&self, target: Option<SocketAddr>) {
        let mut state = self.target.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        state.address = target;
        std::mem::take(&mut state.epoch).cancel();
    }
}

async fn accept(listener: TcpListener, target: Arc<Mutex<Target>>, stop: CancellationToken) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        let Ok((client, _)) = accepted else { continue };
        let (address, epoch) = {
            let state = target.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            (state.address, state.epoch.clone())
        };
        let (Some(address), stop) = (address, stop.clone()) else { continue };
        tokio::spawn(async move {
            tokio::select! {
                () = pass(client, address) => {}
                () = epoch.cancelled() => {}
                () = stop.cancelled() => {}
            }
        });
    }
}

async fn pass(mut client: TcpStream, address: SocketAddr) {
    let Ok(mut server) = TcpStream::connect(address).await else { return };
    // Either end may break off at any time: that is what it is for.
    let _ = client.set_nodelay(true);
    let _ = server.set_nodelay(true);
    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
}
