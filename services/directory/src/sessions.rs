//! Sessions: an access token and a proof of the device's key become ten minutes of one MAC a call.

use rand::RngCore as _;
use wardline_domain::{Digest, TenantId, UserId};
use wardline_proto::convert::time;
use wardline_proto::reason::Reason;
use wardline_proto::v1;
use wardline_runtime::caller::Scopes;
use wardline_runtime::session::{LEEWAY, LIFETIME};
use wardline_runtime::{Caller, Refusal};

use crate::Role;
use crate::access_token::AccessToken;
use crate::measures::decided;

impl Role {
    pub(crate) fn server_info(&self) -> v1::GetServerInfoResponse {
        let info = &self.deps.info;
        v1::GetServerInfoResponse {
            limits: Some(info.limits),
            suites: info.suites.iter().map(|suite| u32::from(*suite)).collect(),
            content_versions: info.content_versions.clone(),
            min_client_version: info.min_client_version.clone(),
            authority_keys: vec![self.deps.authority.verifying_key().to_bytes().to_vec().into()],
        }
    }

    pub(crate) async fn create_session(
        &self,
        request: &v1::CreateSessionRequest,
    ) -> Result<v1::CreateSessionResponse, Refusal> {
        let (token, key) = match self.proved(request) {
            Ok(proved) => proved,
            // The first half of every handshake is no decision.
            Err(refusal) if refusal.reason == Reason::UseDpopNonce => {
                decided("create_session", Err(refusal.reason));
                return Err(refusal);
            }
            Err(refusal) => {
                decided("create_session", Err(refusal.reason));
                self.unknown.refused("create_session", refusal.reason);
                return Err(refusal);
            }
        };
        // Who calls is known now, and how often by the memory of proofs: each decision has a record of its own.
        let caller = match self.caller_for(&token, key).await {
            Ok(caller) => self.audited("create_session", Some(&caller), None, Ok(caller))?,
            Err(refusal) => return self.audited("create_session", None, None, Err(refusal)),
        };
        let text = |id: Option<String>| id.unwrap_or_default();
        Ok(v1::CreateSessionResponse {
            session_token: self.deps.sessions.mint(&caller),
            expire_time: Some(time::to_wire(caller.expires_at)),
            nonce: self.proofs.nonce(self.deps.clock.now()),
            user_id: text(caller.user.map(|user| user.to_string())),
            device_id: text(caller.device.map(|device| device.to_string())),
            tenant_id: text(caller.tenant.map(|tenant| tenant.to_string())),
        })
    }

    /// The access token and the thumbprint of the key that proved itself over it.
    fn proved(&self, request: &v1::CreateSessionRequest) -> Result<(AccessToken, Digest), Refusal> {
        let now = self.deps.clock.now();
        let token = self.issuers().verify(&request.access_token, now)?;
        let key = self.proofs.verify(&request.dpop_proof, &request.access_token, &token, now)?.thumbprint();
        Ok((token, key))
    }

    async fn caller_for(&self, token: &AccessToken, key: Digest) -> Result<Caller, Refusal> {
        check_binding(token, key)?;
        let mut session = [0; 16];
        rand::rng().fill_bytes(&mut session);
        let anybody = Caller {
            session,
            tenant: None,
            user: None,
            device: None,
            key,
            scopes: token.scopes,
            expires_at: self.deps.clock.now().plus(LIFETIME),
        };
        match token.tenant {
            None if token.scopes.operator => Ok(anybody),
            None => Err(Refusal::new(Reason::ScopeRequired).with("scope", "operator")),
            Some(tenant) => self.in_tenant(tenant, token, anybody).await,
        }
    }

    async fn in_tenant(&self, tenant: TenantId, token: &AccessToken, anybody: Caller) -> Result<Caller, Refusal> {
        let listed = self.deps.directory.tenant(tenant).await?.is_some_and(|row| row.issuers.contains(&token.issuer));
        if !listed {
            return Err(Refusal::new(Reason::AccessTokenInvalid).with("detail", "the tenant does not list the issuer"));
        }
        let caller = Caller { tenant: Some(tenant), ..anybody };
        let Some(user) = self.deps.directory.user_by_external_id(tenant, &token.subject).await? else {
            // Who administers a tenant need not be one of its users.
            let administers = token.scopes != Scopes::default();
            return if administers { Ok(caller) } else { Err(Refusal::new(Reason::UserUnknown)) };
        };
        if user.deactivated {
            return Err(Refusal::new(Reason::UserDeactivated));
        }
        self.deps.revocations.check_user(user.user).map_err(Refusal::new)?;
        self.with_device(user.user, caller).await
    }

    async fn with_device(&self, user: UserId, caller: Caller) -> Result<Caller, Refusal> {
        let device = self.deps.directory.device_by_thumbprint(caller.key).await?;
        let caller = Caller { user: Some(user), ..caller };
        match device {
            None => Ok(caller),
            Some(device) if device.user != user => Err(Refusal::new(Reason::KeyTaken)),
            Some(device) if device.revoked => Err(Refusal::new(Reason::DeviceRevoked)),
            Some(device) => {
                self.deps.revocations.check(user, device.device).map_err(Refusal::new)?;
                Ok(Caller { device: Some(device.device), ..caller })
            }
        }
    }

    pub(crate) async fn delete_session(&self, caller: &Caller) -> Result<v1::DeleteSessionResponse, Refusal> {
        self.deps.registry.end_session(caller.session, LIFETIME + LEEWAY * 2).await?;
        self.deps.revocations.session_ended_here(caller.session, self.deps.clock.now());
        self.audited("delete_session", Some(caller), None, Ok(v1::DeleteSessionResponse {}))
    }
}

/// A token bound to a key is used with that key only (RFC 9449 section 6).
fn check_binding(token: &AccessToken, key: Digest) -> Result<(), Refusal> {
    use base64::Engine as _;
    let thumbprint = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(key.as_bytes());
    match &token.bound_to {
        Some(bound) if *bound != thumbprint => {
            Err(Refusal::new(Reason::DpopInvalid).with("detail", "the access token is bound to another key"))
        }
        _ => Ok(()),
    }
}
