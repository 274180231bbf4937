//! Where the services are.

use std::time::Duration;

use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};

use crate::error::Error;

/// The longest a unary call may take; beyond it the outcome is unknown.
const CALL_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a connection is probed.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// How long the answer may take. A server that is frozen takes connections and says nothing: only this finds it.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// The addresses of the four services that devices speak to, as `http://host:port` or `https://host:port`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoints {
    /// SessionService and DirectoryService.
    pub directory: String,
    /// ConversationService.
    pub ingest: String,
    /// DeliveryService.
    pub presence: String,
    /// ReceiptService.
    pub receipt: String,
    /// For `https` addresses; absent means the system's roots.
    pub tls: Option<Tls>,
}

/// How to verify the servers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tls {
    /// The authority that signed the servers' certificates, in PEM.
    pub ca_pem: Option<Vec<u8>>,
    /// The name in the servers' certificates, when it is not the address's host.
    pub domain: Option<String>,
}

impl Endpoints {
    /// All services at one address, as `wardline dev` serves them.
    pub fn all_at(address: impl Into<String>) -> Self {
        let address = address.into();
        Self {
            directory: address.clone(),
            ingest: address.clone(),
            presence: address.clone(),
            receipt: address,
            tls: None,
        }
    }
}

/// A lazy channel for streams: no deadline. Connects upon the first call and again after each break.
pub(crate) fn stream_channel(address: &str, tls: Option<&Tls>) -> Result<Channel, Error> {
    Ok(endpoint(address, tls)?.connect_lazy())
}

/// A lazy channel for unary calls, which end after [`CALL_TIMEOUT`].
pub(crate) fn unary_channel(address: &str, tls: Option<&Tls>) -> Result<Channel, Error> {
    Ok(endpoint(address, tls)?.timeout(CALL_TIMEOUT).connect_lazy())
}

fn endpoint(address: &str, tls: Option<&Tls>) -> Result<Endpoint, Error> {
    let endpoint = Endpoint::from_shared(address.to_owned())
        .map_err(|_| Error::Invalid("an endpoint is not a URL"))?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true);
    if !address.starts_with("https://") {
        return Ok(endpoint);
    }
    let mut config = ClientTlsConfig::new();
    if let Some(pem) = tls.and_then(|tls| tls.ca_pem.as_ref()) {
        config = config.ca_certificate(Certificate::from_pem(pem));
    }
    if let Some(domain) = tls.and_then(|tls| tls.domain.as_ref()) {
        config = config.domain_name(domain);
    }
    endpoint.tls_config(config).map_err(|_| Error::Invalid("the TLS options are not valid"))
}
