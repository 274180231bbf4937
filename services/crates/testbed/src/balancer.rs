//! One address in front of several servers that come and go, as a Kubernetes Service is: each new connection goes to the next
//! server, and stays there for its life.
//!
//! Deliberately absent: health checks. Who starts and stops servers says which there are, as a readiness probe would.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::between;

/// A server that does not take a connection in this time is passed over.
const CONNECT: Duration = Duration::from_secs(1);

/// Spreads connections until it is dropped.
#[derive(Debug)]
pub struct Balancer {
    address: SocketAddr,
    servers: Arc<Mutex<Servers>>,
    _stop: DropGuard,
}

#[derive(Debug, Default)]
struct Servers {
    addresses: Vec<SocketAddr>,
    next: usize,
}

impl Servers {
    /// All of them, the one whose turn it is first.
    fn in_turn(&mut self) -> Vec<SocketAddr> {
        let mut addresses = self.addresses.clone();
        if !addresses.is_empty() {
            addresses.rotate_left(self.next % self.addresses.len());
            self.next = self.next.wrapping_add(1);
        }
        addresses
    }
}

fn locked(servers: &Mutex<Servers>) -> MutexGuard<'_, Servers> {
    // Nothing leaves it half changed.
    servers.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Balancer {
    /// Listens on a free port of loopback. Without servers, connections are closed at once.
    pub async fn start() -> io::Result<Self> {
        between::run(Self::bind()).await
    }

    async fn bind() -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let servers = Arc::<Mutex<Servers>>::default();
        let stop = CancellationToken::new();
        tokio::spawn(accept(listener, Arc::clone(&servers), stop.clone()));
        Ok(Self { address, servers, _stop: stop.drop_guard() })
    }

    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// New connections go to this server, too.
    pub fn add(&self, server: SocketAddr) {
        let mut servers = locked(&self.servers);
        if !servers.addresses.contains(&server) {
            servers.addresses.push(server);
        }
    }

    /// No new connection goes to this server. Those it has, it keeps.
    pub fn remove(&self, server: SocketAddr) {
        locked(&self.servers).addresses.retain(|known| *known != server);
    }
}

async fn accept(listener: TcpListener, servers: Arc<Mutex<Servers>>, stop: CancellationToken) {
    while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
        let Ok((client, _)) = accepted else { continue };
        let (in_turn, stop) = (locked(&servers).in_turn(), stop.clone());
        tokio::spawn(async move { stop.run_until_cancelled(pass(client, in_turn)).await });
    }
}

async fn pass(mut client: TcpStream, servers: Vec<SocketAddr>) {
    for address in servers {
        let Ok(Ok(mut server)) = timeout(CONNECT, TcpStream::connect(address)).await else { continue };
        // Either end may break off at any time: that is what it is for.
        let _ = client.set_nodelay(true);
        let _ = server.set_nodelay(true);
        let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
        return;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use tokio::io::AsyncReadExt as _;

    use super::*;

    /// A server that greets each connection with its letter and closes it.
    async fn greeter(letter: u8) -> SocketAddr {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            loop {
                let (connection, _) = listener.accept().await.unwrap();
                connection.writable().await.unwrap();
                connection.try_write(&[letter]).unwrap();
            }
        });
        address
    }

    async fn greeting(balancer: &Balancer) -> Option<u8> {
        let mut connection = TcpStream::connect(balancer.address()).await.unwrap();
        connection.read_u8().await.ok()
    }

    #[tokio::test]
    async fn connections_go_round_to_those_that_are_there() {
        let balancer = Balancer::start().await.unwrap();
        assert_eq!(greeting(&balancer).await, None);
        let (a, b) = (greeter(b'a').await, greeter(b'b').await);
        balancer.add(a);
        balancer.add(b);
        balancer.add(b);
        let mut greeted = Vec::new();
        for _ in 0..4 {
            greeted.push(greeting(&balancer).await.unwrap());
        }
        greeted.sort_unstable();
        assert_eq!(greeted, b"aabb");
        balancer.remove(a);
        for _ in 0..3 {
            assert_eq!(greeting(&balancer).await, Some(b'b'));
        }
    }

    #[tokio::test]
    async fn a_server_that_is_gone_is_passed_over() {
        let balancer = Balancer::start().await.unwrap();
        let gone = TcpListener::bind(("127.0.0.1", 0)).await.unwrap().local_addr().unwrap();
        balancer.add(gone);
        balancer.add(greeter(b'a').await);
        for _ in 0..4 {
            assert_eq!(greeting(&balancer).await, Some(b'a'));
        }
    }
}
