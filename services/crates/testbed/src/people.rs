//! People with devices, enrolled and attached through the public API.
//!
//! Deliberately absent: how the deployment behind it runs.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use secrecy::SecretString;
use wardline_client::{
    AccessTokens, Admin, Backoff, Device, Durability, Endpoints, Error, Failpoints, Options, UserId,
};

/// How long anything may take before a test calls it stuck.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Gives an access token for a subject with scopes: the issuer of a deployment under test.
pub type Tokens = Arc<dyn Fn(&str, &str) -> SecretString + Send + Sync>;

/// Somebody with a user in the directory.
#[derive(Debug, Clone)]
pub struct Person {
    /// The user.
    pub user: UserId,
    /// What the issuer calls the person.
    pub subject: String,
}

/// Makes people and devices in one deployment.
#[derive(Clone)]
pub struct People {
    endpoints: Endpoints,
    tokens: Tokens,
    dir: PathBuf,
}

impl std::fmt::Debug for People {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("People")
    }
}

struct Login {
    tokens: Tokens,
    subject: String,
    scope: &'static str,
}

#[async_trait]
impl AccessTokens for Login {
    async fn access_token(&self) -> Result<SecretString, Error> {
        Ok((self.tokens)(&self.subject, self.scope))
    }
}

impl People {
    /// Devices' files go under `dir`.
    pub fn new(endpoints: Endpoints, tokens: Tokens, dir: impl Into<PathBuf>) -> Self {
        Self { endpoints, tokens, dir: dir.into() }
    }

    /// The same people at other addresses.
    #[must_use]
    pub fn at(&self, endpoints: Endpoints) -> Self {
        Self { endpoints, ..self.clone() }
    }

    /// Where the services are.
    pub const fn endpoints(&self) -> &Endpoints {
        &self.endpoints
    }

    /// A login of somebody.
    pub fn login(&self, subject: impl Into<String>, scope: &'static str) -> Arc<dyn AccessTokens> {
        Arc::new(Login { tokens: Arc::clone(&self.tokens), subject: subject.into(), scope })
    }

    /// An administrator with the tenant's scopes.
    pub fn admin(&self) -> Result<Admin, Error> {
        Admin::new(&self.endpoints, self.login("administrator", "directory.write tenant.admin"))
    }

    /// A new user.
    pub async fn person(&self, name: &str) -> Result<Person, Error> {
        let user = UserId::from_bytes(*uuid::Uuid::new_v4().as_bytes());
        let subject = format!("{name}-{user}");
        self.admin()?.create_user(user, &subject).await?;
        Ok(Person { user, subject })
    }

    /// The options that tests use: files survive the process, not a power cut; retries are quick.
    pub fn options() -> Options {
        let backoff = Backoff { base: Duration::from_millis(20), cap: Duration::from_secs(1) };
        Options { durability: Durability::Process, key_packages: 20, backoff, ..Options::default() }
    }

    /// A new device of somebody: enrolled (vouched for by `vouching` when it is not the first), with key packages, attached.
    pub async fn device(&self, person: &Person, vouching: Option<&Device>) -> Result<Device, Error> {
        let (device, _) = self.device_with(person, vouching, Self::options()).await?;
        device.attach();
        Ok(device)
    }

    /// As [`People::device`], not attached, with options, and with the file it lies in.
    pub async fn device_with(
        &self,
        person: &Person,
        vouching: Option<&Device>,
        options: Options,
    ) -> Result<(Device, PathBuf), Error> {
        let file = self.dir.join(format!("device-{}.db", uuid::Uuid::new_v4()));
        let packages = options.key_packages;
        let device = Device::create(&file, &self.endpoints, self.login(&person.subject, ""), options)?;
        match vouching {
            None => device.enroll().await?,
            Some(first) => {
                let request = device.enrollment_request().await?;
                let vouch = first.vouch_for(&request).await?;
                device.enroll_with(&request, &vouch).await?;
            }
        }
        device.publish_key_packages(packages).await?;
        Ok((device, file))
    }

    /// Opens a device's file again.
    pub fn reopen(&self, person: &Person, file: &std::path::Path, failpoints: Failpoints) -> Result<Device, Error> {
        let options = Options { failpoints, ..Self::options() };
        Device::open(file, &self.endpoints, self.login(&person.subject, ""), options)
    }
}
