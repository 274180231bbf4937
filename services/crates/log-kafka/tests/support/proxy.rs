//! A loopback proxy before brokers, which can cut and black-hole connections. It names itself in the brokers' place in what they
//! tell of addresses, so that clients stay behind it.

use std::sync::Arc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What happens to connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Passing,
    /// What clients send gets nowhere, and nothing is answered; connections stand.
    Silent,
    /// Connections end as soon as they begin.
    Refusing,
}

pub struct Proxy {
    addresses: Vec<String>,
    mode: watch::Sender<Mode>,
    /// Raised to end all connections that stand.
    cut: watch::Sender<u64>,
}

/// Address of a broker as its answers hold it, and the port that stands there instead.
type Places = Arc<Vec<(Vec<u8>, u16)>>;

impl Proxy {
    pub async fn before(brokers: &[String]) -> Self {
        let mut listeners = Vec::new();
        let mut places = Vec::new();
        for broker in brokers {
            let (host, port) = broker.rsplit_once(':').unwrap();
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let mut told = host.as_bytes().to_vec();
            told.extend(port.parse::<i32>().unwrap().to_be_bytes());
            assert_eq!(host, "127.0.0.1", "the proxy has the brokers' host");
            places.push((told, listener.local_addr().unwrap().port()));
            listeners.push((listener, broker.clone()));
        }
        let places: Places = Arc::new(places);
        let proxy = Self {
            addresses: listeners.iter().map(|(listener, _)| listener.local_addr().unwrap().to_string()).collect(),
            mode: watch::Sender::new(Mode::Passing),
            cut: watch::Sender::new(0),
        };
        for (listener, broker) in listeners {
            let (places, mode, cut) = (Arc::clone(&places), proxy.mode.subscribe(), proxy.cut.subscribe());
            tokio::spawn(async move {
                while let Ok((client, _)) = listener.accept().await {
                    let (broker, places, mode) = (broker.clone(), Arc::clone(&places), mode.clone());
                    let mut cut = cut.clone();
                    cut.borrow_and_update();
                    if *mode.borrow() == Mode::Refusing {
                        continue;
                    }
                    tokio::spawn(async move {
                        tokio::select! {
                            biased;
                            _ = cut.changed() => {}
                            () = carry(client, &broker, &places, mode) => {}
                        }
                    });
                }
            });
        }
        proxy
    }

    /// Where clients find it.
    pub fn addresses(&self) -> Vec<String> {
        self.addresses.clone()
    }

    /// From now on nothing gets through, and those who connect hear nothing.
    pub fn silence(&self) {
        self.mode.send_replace(Mode::Silent);
    }

    /// From now on the brokers are as if their processes were gone.
    pub fn refuse(&self) {
        self.mode.send_replace(Mode::Refusing);
        self.cut();
    }

    /// Everything gets through again, on new connections.
    pub fn heal(&self) {
        self.cut();
        self.mode.send_replace(Mode::Passing);
    }

    /// Ends all connections that stand.
    pub fn cut(&self) {
        self.cut.send_modify(|count| *count += 1);
    }
}

async fn carry(client: TcpStream, broker: &str, places: &Places, mode: watch::Receiver<Mode>) {
    let Ok(server) = TcpStream::connect(broker).await else { return };
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    let none = Arc::new(Vec::new());
    tokio::select! {
        () = pump(from_client, to_server, &none, mode.clone()) => {}
        () = pump(from_server, to_client, places, mode) => {}
    }
}

/// Carries frames (four bytes of length, then the rest) one way.
async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, places: &Places, mut mode: watch::Receiver<Mode>) {
    loop {
        let Ok(length) = from.read_u32().await else { return };
        let mut frame = vec![0; length as usize];
        if from.read_exact(&mut frame).await.is_err() {
            return;
        }
        if mode.wait_for(|mode| *mode == Mode::Passing).await.is_err() {
            return;
        }
        for (told, port) in places.iter() {
            rename(&mut frame, told, *port);
        }
        if to.write_u32(length).await.is_err() || to.write_all(&frame).await.is_err() {
            return;
        }
    }
}

fn rename(frame: &mut [u8], told: &[u8], port: u16) {
    let places: Vec<usize> =
        frame.windows(told.len()).enumerate().filter(|(_, window)| *window == told).map(|(at, _)| at).collect();
    for at in places {
        let end = at + told.len();
        frame[end - 4..end].copy_from_slice(&i32::from(port).to_be_bytes());
    }
}
