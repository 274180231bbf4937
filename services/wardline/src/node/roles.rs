//! Each role, put together.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::watch;
use tonic::service::Routes;
use wardline_proto::internal::v1::presence_link_service_server;
use wardline_proto::v1::{
    conversation_service_server, delivery_service_server, directory_service_server, receipt_service_server,
    session_service_server,
};
use wardline_runtime::health::Cause;

use super::parts::{self, Parts, Services};
use super::watched::watched;
use super::{NodeOptions, Role, StartError};
use crate::keys;

type Addresses = BTreeMap<&'static str, SocketAddr>;

pub(super) async fn ingest(parts: &Parts, options: &NodeOptions, to: &mut Addresses) -> Result<(), StartError> {
    let deps = wardline_ingest::Deps {
        log: watched(Arc::clone(&parts.over.log), &parts.health.role(Role::Ingest.name())),
        stores: parts.over.stores.clone(),
        members: parts.members.clone(),
        revocations: parts.revocations.clone(),
        authenticator: parts.authenticator(Role::Ingest)?,
        registry: Arc::clone(&parts.over.registry),
        audit: parts.audit(Role::Ingest),
        clock: parts.over.clock.clone(),
    };
    let role = wardline_ingest::Ingest::new(deps, options.ingest.clone(), parts.drain.clone());
    let services =
        Services { routes: Routes::new(role.service()), names: &[conversation_service_server::SERVICE_NAME] };
    let address =
        parts.listen(Role::Ingest, options.listen.ingest, services, parts.auth(Role::Ingest, &[])?, options).await?;
    to.insert("ingest", address);
    Ok(())
}

pub(super) fn fanout(parts: &Parts, options: &NodeOptions) {
    let deps = parts.consumer(Role::Fanout);
    parts.fold(Role::Fanout, wardline_fanout::run(deps, options.fanout.clone(), parts.stop.clone()));
}

pub(super) async fn presence(
    parts: &Parts,
    options: &NodeOptions,
    to: &mut Addresses,
) -> Result<Arc<wardline_presence::Presence>, StartError> {
    let deps = wardline_presence::Deps {
        log: Arc::clone(&parts.over.log),
        stores: parts.over.stores.clone(),
        registry: Arc::clone(&parts.over.registry),
        members: parts.members.clone(),
        authenticator: parts.authenticator(Role::Presence)?,
        revocations: parts.revocations.clone(),
        clock: parts.over.clock.clone(),
        audit: parts.audit(Role::Presence),
        link_key: wardline_presence::LinkKey::new(key(Role::Presence, keys::LINK, &options.keys.link)?),
    };
    let link = parts::bind("link", options.listen.link).await?;
    let mut role_options = wardline_presence::Options::new(link_address(link.address, options)?);
    role_options.peers.clone_from(&options.link_peers);
    role_options.link_tls.clone_from(&options.link_tls);
    role_options.timings = options.presence_timings.clone();
    role_options.limits = options.presence_limits.clone();
    let role = Arc::new(wardline_presence::Presence::new(deps, role_options));
    to.insert("link", link.address);
    let links = Routes::new(role.link_service());
    parts.serve_links(link, Services { routes: links, names: &[presence_link_service_server::SERVICE_NAME] }, options);
    tell(parts, role.health());
    let public = Routes::new(role.delivery_service());
    let public = Services { routes: public, names: &[delivery_service_server::SERVICE_NAME] };
    let address = parts
        .listen(Role::Presence, options.listen.presence, public, parts.auth(Role::Presence, &[])?, options)
        .await?;
    to.insert("presence", address);
    let (running, stop) = (Arc::clone(&role), parts.stop.clone());
    parts.fold(Role::Presence, async move { running.run(stop).await });
    Ok(role)
}

pub(super) async fn receipt(parts: &Parts, options: &NodeOptions, to: &mut Addresses) -> Result<(), StartError> {
    let service = wardline_receipt::service(wardline_receipt::ServiceDeps {
        stores: parts.over.stores.clone(),
        members: parts.members.clone(),
        clock: parts.over.clock.clone(),
        audit: parts.audit(Role::Receipt),
    });
    let services = Services { routes: Routes::new(service), names: &[receipt_service_server::SERVICE_NAME] };
    let address =
        parts.listen(Role::Receipt, options.listen.receipt, services, parts.auth(Role::Receipt, &[])?, options).await?;
    to.insert("receipt", address);
    let deps = parts.consumer(Role::Receipt);
    let fold = wardline_receipt::run(deps, wardline_receipt::Options::default(), parts.stop.clone());
    parts.fold(Role::Receipt, fold);
    Ok(())
}

pub(super) async fn directory(parts: &Parts, options: &NodeOptions, to: &mut Addresses) -> Result<(), StartError> {
    let role = wardline_directory::Directory::new(wardline_directory::Deps {
        log: Arc::clone(&parts.over.log),
        directory: Arc::clone(&parts.over.stores.directory),
        conversations: Arc::clone(&parts.over.stores.conversations),
        registry: Arc::clone(&parts.over.registry),
        clock: parts.over.clock.clone(),
        audit: parts.audit(Role::Directory),
        sessions: key(Role::Directory, keys::SESSION, &options.keys.session)?,
        revocations: parts.revocations.clone(),
        issuers: options.issuers.clone(),
        authority: Arc::new(key(Role::Directory, keys::AUTHORITY, &options.keys.authority)?),
        limits: options.directory_limits,
        info: wardline_directory::Info::default(),
    });
    let auth = parts.auth(Role::Directory, wardline_directory::OPEN)?;
    let names = &[session_service_server::SERVICE_NAME, directory_service_server::SERVICE_NAME];
    let services = Services { routes: role.routes(), names };
    let address = parts.listen(Role::Directory, options.listen.directory, services, auth, options).await?;
    to.insert("directory", address);
    let (fold, stop) = (parts.consumer(Role::Directory), parts.stop.clone());
    parts.fold(Role::Directory, async move { role.follow_revocations(fold, stop).await });
    Ok(())
}

/// A key that the role cannot do without.
fn key<K: Clone>(role: Role, key: &'static str, given: &Option<K>) -> Result<K, StartError> {
    given.clone().ok_or(StartError::Key { role: role.name(), key })
}

/// The role serves while presence says that it does.
fn tell(parts: &Parts, mut said: watch::Receiver<wardline_presence::Health>) {
    let condition = parts.health.role(Role::Presence.name()).condition(Cause::Fold);
    let stop = parts.stop.clone();
    let telling = async move {
        loop {
            let is_serving = *said.borrow_and_update() == wardline_presence::Health::Serving;
            condition.set(is_serving);
            if said.changed().await.is_err() {
                return;
            }
        }
    };
    parts.folds.spawn(async move { stop.run_until_cancelled(telling).await });
}

/// What other instances are told. In clear only where nothing leaves the machine, or where the deployment has no TLS at all.
fn link_address(bound: SocketAddr, options: &NodeOptions) -> Result<String, StartError> {
    let secured = options.link_tls.is_some() && options.tls.is_some();
    if options.tls.is_some() && !secured && !bound.ip().is_loopback() {
        let problem = "the link leaves this machine in clear: set link.ca_file, or listen on loopback".to_owned();
        return Err(StartError::Role { role: Role::Presence.name(), problem });
    }
    let scheme = if secured { "https" } else { "http" };
    match &options.link_advertise {
        Some(address) if address.starts_with(&format!("{scheme}://")) => Ok(address.clone()),
        Some(_) => Err(StartError::Role {
            role: Role::Presence.name(),
            problem: format!("link.advertise must begin with {scheme}://, as the link is served"),
        }),
        None => Ok(format!("{scheme}://{bound}")),
    }
}
