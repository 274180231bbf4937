//! Where access tokens come from. The device never sees how the person logged in.

use async_trait::async_trait;
use secrecy::SecretString;

use crate::error::Error;

/// A source of OIDC access tokens for the device's user.
///
/// The promise: each call answers with a token that is valid now. The caller's duty: refresh it, and keep it out of logs.
#[async_trait]
pub trait AccessTokens: Send + Sync {
    /// A valid access token.
    async fn access_token(&self) -> Result<SecretString, Error>;
}

/// One token that never changes: for tests and short runs.
#[derive(Debug, Clone)]
pub struct FixedToken(SecretString);

impl FixedToken {
    /// Wraps a token.
    pub fn new(token: impl Into<String>) -> Self {
        Self(SecretString::from(token.into()))
    }
}

#[async_trait]
impl AccessTokens for FixedToken {
    async fn access_token(&self) -> Result<SecretString, Error> {
        Ok(self.0.clone())
    }
}
