//! Who may open a link: holders of the cluster's link key. A call carries `authorization: Bearer 2.<seconds>.<nonce>.<mac>`:
//! the MAC over the direction, the time it was made at, a random nonce and the authority that was dialled. So what was
//! overheard is good nowhere else, and there neither again nor for long.
//!
//! Deliberately absent: TLS. It belongs under the listener and to [`crate::Options::link_tls`].

use std::collections::{BTreeSet, HashSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hmac::{Hmac, Mac as _};
use sha2::Sha256;
use subtle::ConstantTimeEq as _;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::transport::Uri;
use tonic::{Request, Status};
use wardline_domain::Timestamp;
use wardline_proto::reason::Reason;
use wardline_runtime::{Clock, Refusal};
use zeroize::Zeroizing;

/// How long a bearer is good for, and how far clocks may differ.
const VALID_FOR: Duration = Duration::from_secs(30);
/// How many bearers are remembered as used; beyond, calls are refused until some are too old to be used again. Each is of a
/// holder of the key, who makes one a link or question.
const USED_KEPT: usize = 65_536;
/// Separates this MAC from others under the same key, and calls from whatever an owner may one day say of itself.
const LABEL: &[u8] = b"wardline presence link 2, edge to owner";

type Nonce = [u8; 16];

/// The key that all presence instances of a deployment share.
#[derive(Clone)]
pub struct LinkKey(Zeroizing<[u8; 32]>);

impl LinkKey {
    /// From 32 random bytes.
    pub const fn new(key: Zeroizing<[u8; 32]>) -> Self {
        Self(key)
    }

    /// What comes before the authority has a fixed length.
    fn mac(&self, seconds: u64, nonce: &Nonce, authority: &str) -> [u8; 32] {
        let mut mac = <Hmac<Sha256> as hmac::Mac>::new_from_slice(&*self.0).expect("HMAC takes keys of every length");
        mac.update(LABEL);
        mac.update(&seconds.to_be_bytes());
        mac.update(nonce);
        mac.update(authority.as_bytes());
        mac.finalize().into_bytes().into()
    }

    fn bearer(&self, now: Timestamp, authority: &str) -> MetadataValue<Ascii> {
        let (seconds, nonce) = (seconds(now), rand::random());
        let mac = hex::encode(self.mac(seconds, &nonce, authority));
        let text = format!("Bearer 2.{seconds}.{}.{mac}", hex::encode(nonce));
        MetadataValue::try_from(text).expect("digits and hex are ASCII")
    }
}

fn seconds(at: Timestamp) -> u64 {
    at.as_micros() / 1_000_000
}

/// A bearer as it came.
struct Bearer {
    seconds: u64,
    nonce: Nonce,
    mac: [u8; 32],
}

impl Bearer {
    fn parse(bearer: &str) -> Option<Self> {
        let mut parts = bearer.strip_prefix("Bearer 2.")?.split('.');
        let (seconds, nonce, mac) = (parts.next()?.parse().ok()?, parts.next()?, parts.next()?);
        let mut parsed = Self { seconds, nonce: [0; 16], mac: [0; 32] };
        hex::decode_to_slice(nonce, &mut parsed.nonce).ok()?;
        hex::decode_to_slice(mac, &mut parsed.mac).ok()?;
        parts.next().is_none().then_some(parsed)
    }
}

/// The authority of an address, as it is dialled: `host:port`.
pub(crate) fn authority(address: &str) -> Option<String> {
    let uri: Uri = address.parse().ok()?;
    let port = uri.port_u16().unwrap_or(if uri.scheme_str() == Some("https") { 443 } else { 80 });
    Some(format!("{}:{port}", uri.host()?.to_ascii_lowercase()))
}

impl fmt::Debug for LinkKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LinkKey")
    }
}

/// Puts the bearer into calls to one authority.
#[derive(Debug, Clone)]
pub(crate) struct LinkPass {
    pub(crate) key: LinkKey,
    pub(crate) clock: Clock,
    pub(crate) authority: Arc<str>,
}

impl Interceptor for LinkPass {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let bearer = self.key.bearer(self.clock.now(), &self.authority);
        request.metadata_mut().insert("authorization", bearer);
        Ok(request)
    }
}

/// Refuses calls without a good bearer. Cheap to clone; all clones remember the same.
#[derive(Clone)]
pub struct LinkGate {
    key: LinkKey,
    clock: Clock,
    names: Arc<[String]>,
    used: Arc<Mutex<Used>>,
}

impl fmt::Debug for LinkGate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LinkGate")
    }
}

impl LinkGate {
    /// Of the instance that is reached at `address`. It also takes what was dialled by a name in `peers`, which may stand for
    /// all instances, and by the address that the connection came in at; but not by another instance's address.
    pub(crate) fn new(key: LinkKey, clock: Clock, address: &str, peers: &[String]) -> Self {
        let own = authority(address);
        let shared = peers.iter().filter_map(|peer| authority(peer)).filter(|name| !is_one_machine(name));
        Self { key, clock, names: own.into_iter().chain(shared).collect(), used: Arc::default() }
    }

    fn admit(&self, bearer: &str, came_in_at: Option<SocketAddr>) -> Result<(), Refusal> {
        let invalid = || Refusal::new(Reason::TokenInvalid);
        let bearer = Bearer::parse(bearer).ok_or_else(invalid)?;
        let now = seconds(self.clock.now());
        let at = came_in_at.map(|address| address.to_string());
        let was_dialled = |name: &str| self.key.mac(bearer.seconds, &bearer.nonce, name).ct_eq(&bearer.mac).into();
        let is_ours = self.names.iter().chain(&at).any(|name| was_dialled(name));
        if !is_ours || now.abs_diff(bearer.seconds) > VALID_FOR.as_secs() {
            return Err(invalid());
        }
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        match used.take(now, bearer.seconds, bearer.nonce) {
            Taken::Fresh => Ok(()),
            Taken::Again => Err(invalid()),
            Taken::NoRoom => Err(Refusal::new(Reason::Overloaded).retry_after(VALID_FOR)),
        }
    }
}

/// A name can stand for several machines, an address for one.
fn is_one_machine(authority: &str) -> bool {
    let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
    host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().is_ok()
}

impl Interceptor for LinkGate {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let Some(bearer) = request.metadata().get("authorization") else {
            return Err(Refusal::new(Reason::TokenMissing).into());
        };
        self.admit(bearer.to_str().unwrap_or_default(), request.local_addr())?;
        Ok(request)
    }
}

/// Bearers that were used and are not too old to be used again. Bounded.
#[derive(Default)]
struct Used {
    nonces: HashSet<Nonce>,
    by_time: BTreeSet<(u64, Nonce)>,
}

#[derive(Debug, PartialEq, Eq)]
enum Taken {
    Fresh,
    Again,
    NoRoom,
}

impl Used {
    /// Remembers a bearer that is good at `now`.
    fn take(&mut self, now: u64, seconds: u64, nonce: Nonce) -> Taken {
        while let Some((oldest, nonce)) = self.by_time.first().copied()
            && oldest.saturating_add(VALID_FOR.as_secs()) < now
        {
            self.by_time.pop_first();
            self.nonces.remove(&nonce);
        }
        if self.nonces.contains(&nonce) {
            return Taken::Again;
        }
        if self.nonces.len() >= USED_KEPT {
            return Taken::NoRoom;
        }
        self.nonces.insert(nonce);
        self.by_time.insert((seconds, nonce));
        Taken::Fresh
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    const START: u64 = 1_800_000_000;
    const HERE: &str = "http://presence-0.example:7405";

    fn key(byte: u8) -> LinkKey {
        LinkKey::new(Zeroizing::new([byte; 32]))
    }

    /// A gate, and the seconds of its clock.
    fn gate(peers: &[&str]) -> (LinkGate, Arc<AtomicU64>) {
        let time = Arc::new(AtomicU64::new(START));
        let shown = Arc::clone(&time);
        let clock = Clock::from_fn(move || at(shown.load(Ordering::SeqCst)));
        let peers: Vec<String> = peers.iter().map(|peer| (*peer).to_owned()).collect();
        (LinkGate::new(key(1), clock, HERE, &peers), time)
    }

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_micros(seconds * 1_000_000)
    }

    fn bearer(key: &LinkKey, seconds: u64, address: &str) -> String {
        key.bearer(at(seconds), &authority(address).unwrap()).to_str().unwrap().to_owned()
    }

    #[test]
    fn a_bearer_needs_the_key() {
        let (gate, _) = gate(&[]);
        assert_eq!(gate.admit(&bearer(&key(1), START, HERE), None), Ok(()));
        let refused = gate.admit(&bearer(&key(2), START, HERE), None).unwrap_err();
        assert_eq!(refused.reason, Reason::TokenInvalid);
        let good = bearer(&key(1), START, HERE);
        let (made, mac) = good.rsplit_once('.').unwrap();
        let longer = format!("{good}00");
        let further = format!("{good}.00");
        let without_mac = made.to_owned();
        let other_time = format!("{made}.{mac}").replacen(&START.to_string(), &(START + 1).to_string(), 1);
        for garbage in ["", "Bearer ", "Bearer 2.5", "Bearer 2.x.00.00", &longer, &further, &without_mac, &other_time] {
            assert!(gate.admit(garbage, None).is_err(), "{garbage}");
        }
        assert_eq!(gate.admit(&good, None), Ok(()), "what was refused did not use it up");
    }

    #[test]
    fn a_bearer_is_good_for_half_a_minute_whoevers_clock_is_ahead() {
        let valid = VALID_FOR.as_secs();
        let (gate, time) = gate(&[]);
        for (made, good) in [(START - valid, true), (START + valid, true), (START - valid - 1, false)] {
            assert_eq!(gate.admit(&bearer(&key(1), made, HERE), None).is_ok(), good);
        }
        assert!(gate.admit(&bearer(&key(1), START + valid + 1, HERE), None).is_err());
        let early = bearer(&key(1), START, HERE);
        time.store(START + valid + 1, Ordering::SeqCst);
        assert!(gate.admit(&early, None).is_err());
    }

    #[test]
    fn a_bearer_is_good_once() {
        let valid = VALID_FOR.as_secs();
        let (gate, time) = gate(&[]);
        // By a clock that is ahead: good for longest.
        let ahead = bearer(&key(1), START + valid, HERE);
        assert_eq!(gate.admit(&ahead, None), Ok(()));
        for later in 0..=2 * valid {
            time.store(START + later, Ordering::SeqCst);
            assert!(gate.clone().admit(&ahead, None).is_err(), "again after {later} s");
        }
    }

    #[test]
    fn a_bearer_is_good_where_it_was_meant_for() {
        let (gate, _) = gate(&["http://presence.example:7405", "http://10.0.0.9:7405", "http://[fd00::9]:7405"]);
        let came_in_at = Some("10.0.0.7:7405".parse().unwrap());
        let is_good = |address: &str| gate.admit(&bearer(&key(1), START, address), came_in_at).is_ok();
        assert!(is_good("http://PRESENCE-0.example:7405"), "names have no case");
        assert!(is_good("http://presence.example:7405"), "a name of several instances");
        assert!(is_good("https://10.0.0.7:7405"), "the address it came in at");
        for elsewhere in [
            "http://presence-1.example:7405",
            "http://presence-0.example",
            "http://10.0.0.9:7405",
            "http://[fd00::9]:7405",
        ] {
            assert!(!is_good(elsewhere), "{elsewhere} is somebody else");
        }
    }

    #[test]
    fn an_authority_has_its_port() {
        let cases =
            [("http://a", "a:80"), ("https://a", "a:443"), ("https://A:1", "a:1"), ("http://[::1]:2", "[::1]:2")];
        for (address, expected) in cases {
            assert_eq!(authority(address).as_deref(), Some(expected));
        }
        assert_eq!(authority("no address"), None);
    }

    #[test]
    fn what_is_remembered_is_bounded_and_forgotten_in_time() {
        let mut used = Used::default();
        let nonce = |n: usize| -> Nonce { (n as u128).to_be_bytes() };
        for n in 0..USED_KEPT {
            assert_eq!(used.take(START, START, nonce(n)), Taken::Fresh);
        }
        assert_eq!(used.take(START, START, nonce(0)), Taken::Again);
        assert_eq!(used.take(START, START, nonce(USED_KEPT)), Taken::NoRoom);
        let later = START + VALID_FOR.as_secs() + 1;
        assert_eq!(used.take(later, later, nonce(USED_KEPT)), Taken::Fresh);
        assert_eq!((used.nonces.len(), used.by_time.len()), (1, 1));
    }
}
