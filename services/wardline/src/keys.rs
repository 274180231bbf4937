//! The deployment's secrets: read from files for `serve`, made at the first start for `dev`.
//!
//! A file holds 32-byte keys as 64 hexadecimal digits a line, as `openssl rand -hex 32` prints them. It is refused when others
//! could read it: nobody beside its owner, or, when root owns it, beside its group (so that a supervisor can hand a secret to
//! a process that is not root). Whoever holds any of these keys can speak for the deployment, so nothing here prints.
//!
//! Deliberately absent: secrets from the environment or the command line, where other processes read them.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ed25519_dalek::SigningKey;
use rand::TryRngCore as _;
use secrecy::SecretString;
use tonic::transport::{Certificate, ClientTlsConfig};
use wardline_runtime::serve::Tls;
use wardline_runtime::session::SessionKeys;
use zeroize::Zeroizing;

use crate::config::{Config, Roles};
use crate::disk;
use crate::node::Role;

/// A symmetric key; wiped when dropped.
pub type Key = Zeroizing<[u8; 32]>;

/// The largest file that is read for secrets, in bytes.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// The keys of a deployment. A process has those that its roles need, and no other.
#[derive(Clone, Default)]
pub struct Keys {
    /// Mints and verifies session tokens: for every role that answers devices.
    pub session: Option<Arc<SessionKeys>>,
    /// Signs administrative entries of device logs; its public part is the MLS external sender. For the directory.
    pub authority: Option<SigningKey>,
    /// Proves presence instances to each other.
    pub link: Option<Key>,
}

/// The keys that `role` needs, by their configuration keys.
pub(crate) const fn needed(role: Role) -> &'static [&'static str] {
    match role {
        Role::Fanout => &[],
        Role::Ingest | Role::Receipt => &[SESSION],
        Role::Presence => &[SESSION, LINK],
        Role::Directory => &[SESSION, AUTHORITY],
    }
}

/// Names the session keys' file.
pub(crate) const SESSION: &str = "session.keys_file";
/// Names the authority's file.
pub(crate) const AUTHORITY: &str = "authority.key_file";
/// Names the link key's file.
pub(crate) const LINK: &str = "link.key_file";

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Keys")
    }
}

/// Why a secret was not taken.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read or written.
    #[error("{}: {source}", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Others could read the file.
    #[error("{} holds a secret, but its mode is {mode:04o}: it must be readable by its owner only (chmod 600)", file.display())]
    Exposed {
        /// The file.
        file: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file does not hold what it should. What it holds is not repeated.
    #[error("{} does not hold {expected}", file.display())]
    Malformed {
        /// The file.
        file: PathBuf,
        /// What it should hold.
        expected: &'static str,
    },
    /// The configuration names no file.
    #[error("`{0}` is missing")]
    Unnamed(&'static str),
}

impl Keys {
    /// Those that `roles` need, from the files that `config` names.
    pub fn load(config: &Config, roles: &Roles) -> Result<Self, KeyError> {
        let file = |key: &'static str, named: &Option<PathBuf>| -> Result<Option<PathBuf>, KeyError> {
            let needed = roles.each().into_iter().any(|role| needed(role).contains(&key));
            if needed { named.clone().map(Some).ok_or(KeyError::Unnamed(key)) } else { Ok(None) }
        };
        Self::from_files(
            file(SESSION, &config.session.keys_file)?.as_deref(),
            file(AUTHORITY, &config.authority.key_file)?.as_deref(),
            file(LINK, &config.link.key_file)?.as_deref(),
        )
    }

    /// All of them from `dir`, where missing ones are made. For development.
    pub fn load_or_make(dir: &Path) -> Result<Self, KeyError> {
        disk::private_dir(dir).map_err(|source| KeyError::Io { file: dir.to_owned(), source })?;
        let [session, authority, link] = ["session.keys", "authority.key", "link.key"].map(|name| dir.join(name));
        for file in [&session, &authority, &link] {
            make_key(file)?;
        }
        Self::from_files(Some(&session), Some(&authority), Some(&link))
    }

    fn from_files(session: Option<&Path>, authority: Option<&Path>, link: Option<&Path>) -> Result<Self, KeyError> {
        Ok(Self {
            session: session.map(read_session_keys).transpose()?.map(Arc::new),
            authority: authority.map(read_key).transpose()?.map(|seed| SigningKey::from_bytes(&seed)),
            link: link.map(read_key).transpose()?,
        })
    }
}

fn read_session_keys(file: &Path) -> Result<SessionKeys, KeyError> {
    let expected = "at least one session key: 64 hexadecimal digits a line";
    SessionKeys::new(read_keys(file)?).ok_or_else(|| KeyError::Malformed { file: file.to_owned(), expected })
}

/// The certificate that `config` names; `None` when it names none.
pub fn load_tls(config: &Config) -> Result<Option<Tls>, KeyError> {
    let (Some(cert), Some(key)) = (&config.tls.cert_file, &config.tls.key_file) else { return Ok(None) };
    Ok(Some(Tls {
        cert_pem: read_public(cert)?,
        key_pem: read_secret(key)?,
        client_ca_pem: config.tls.client_ca_file.as_deref().map(read_public).transpose()?,
    }))
}

/// How links to other instances are verified; `None` when `config` leaves them in clear.
pub fn load_link_tls(config: &Config) -> Result<Option<ClientTlsConfig>, KeyError> {
    let Some(file) = &config.link.ca_file else { return Ok(None) };
    let pem = read_public(file)?;
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem));
    Ok(Some(match &config.link.server_name {
        Some(name) => tls.domain_name(name),
        None => tls,
    }))
}

/// What `file` holds, which is nobody's secret.
pub(crate) fn read_public(file: &Path) -> Result<Vec<u8>, KeyError> {
    std::fs::read(file).map_err(|source| KeyError::Io { file: file.to_owned(), source })
}

/// The password that `file` holds; a line's end behind it is none of it.
pub(crate) fn read_password(file: &Path) -> Result<SecretString, KeyError> {
    let malformed = || KeyError::Malformed { file: file.to_owned(), expected: "a password: one line of text" };
    let bytes = read_secret(file)?;
    let text = std::str::from_utf8(&bytes).map_err(|_| malformed())?.trim_end_matches(['\r', '\n']);
    if text.is_empty() || text.contains('\n') { Err(malformed()) } else { Ok(text.into()) }
}

/// The one key that `file` holds.
pub fn read_key(file: &Path) -> Result<Key, KeyError> {
    let mut keys = read_keys(file)?;
    match (keys.pop(), keys.is_empty()) {
        (Some(key), true) => Ok(key),
        _ => Err(KeyError::Malformed { file: file.to_owned(), expected: "one key: 64 hexadecimal digits" }),
    }
}

/// The keys that `file` holds, one a line; empty lines and those that begin with `#` say nothing.
fn read_keys(file: &Path) -> Result<Vec<Key>, KeyError> {
    let malformed = || KeyError::Malformed { file: file.to_owned(), expected: "keys: 64 hexadecimal digits a line" };
    let bytes = read_secret(file)?;
    let text = std::str::from_utf8(&bytes).map_err(|_| malformed())?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let mut key = Key::new([0; 32]);
            hex::decode_to_slice(line, key.as_mut_slice()).map_err(|_| malformed())?;
            Ok(key)
        })
        .collect()
}

/// What `file` holds, unless others could read it.
fn read_secret(file: &Path) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    let failed = |source| KeyError::Io { file: file.to_owned(), source };
    let open = File::open(file).map_err(failed)?;
    // Of the open file, so that nobody changes it in between.
    let metadata = open.metadata().map_err(failed)?;
    let mode = metadata.mode() & 0o7777;
    let forbidden = if metadata.uid() == 0 { 0o037 } else { 0o077 };
    if mode & forbidden != 0 {
        return Err(KeyError::Exposed { file: file.to_owned(), mode });
    }
    // Room for all of it at once: a vector that grows leaves copies behind.
    let length = metadata.len().min(MAX_FILE_BYTES);
    let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(length).unwrap_or(0) + 1));
    open.take(MAX_FILE_BYTES).read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

/// Writes a new key to `file`, readable by its owner only, unless there is one.
pub(crate) fn make_key(file: &Path) -> Result<(), KeyError> {
    if file.exists() {
        return Ok(());
    }
    let mut key = Key::new([0; 32]);
    rand::rngs::OsRng
        .try_fill_bytes(key.as_mut_slice())
        .map_err(|_| KeyError::Io { file: file.to_owned(), source: io::Error::other("no random bytes") })?;
    let mut line = Zeroizing::new(hex::encode(key.as_slice()));
    line.push('\n');
    write_private(file, line.as_bytes()).map_err(|source| KeyError::Io { file: file.to_owned(), source })
}

/// Writes a file that only its owner can read; whole and on disk, or not at all.
fn write_private(file: &Path, bytes: &[u8]) -> io::Result<()> {
    let unfinished = file.with_extension("unfinished");
    let mut open = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
    open.write_all(bytes)?;
    open.sync_all()?;
    std::fs::rename(&unfinished, file)?;
    disk::sync_parent(file)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::fs::{Permissions, set_permissions};
    use std::os::unix::fs::PermissionsExt as _;

    use secrecy::ExposeSecret as _;

    use super::*;

    fn written(text: &str, mode: u32) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("key");
        std::fs::write(&file, text).unwrap();
        set_permissions(&file, Permissions::from_mode(mode)).unwrap();
        (dir, file)
    }

    #[test]
    fn a_secret_that_others_can_read_or_change_is_refused() {
        for mode in [0o604, 0o602, 0o620, 0o644, 0o666, 0o777] {
            let (_dir, file) = written(&"ab".repeat(32), mode);
            assert!(matches!(read_key(&file), Err(KeyError::Exposed { mode: told, .. }) if told == mode), "{mode:o}");
        }
        let (_dir, file) = written(&"ab".repeat(32), 0o400);
        assert_eq!(*read_key(&file).unwrap(), [0xab; 32]);
    }

    #[test]
    fn comments_and_empty_lines_are_no_keys() {
        let (_dir, file) = written(&format!("# new\n{}\n\n# old\n{}\n", "01".repeat(32), "02".repeat(32)), 0o600);
        assert_eq!(read_keys(&file).unwrap().iter().map(|key| key[0]).collect::<Vec<_>>(), [1, 2]);
        assert!(matches!(read_key(&file), Err(KeyError::Malformed { .. })));
    }

    #[test]
    fn an_error_does_not_repeat_the_secret() {
        let secret = "c0ffee".repeat(11);
        let (_dir, file) = written(&secret, 0o600);
        let error = read_key(&file).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("c0ffee"), "{error}");
    }

    #[test]
    fn a_password_is_one_line() {
        for (text, password) in
            [("s3cret\n", Some("s3cret")), ("with space", Some("with space")), ("\n", None), ("a\nb\n", None)]
        {
            let (_dir, file) = written(text, 0o600);
            let read = read_password(&file).ok();
            assert_eq!(read.as_ref().map(|read| read.expose_secret()), password, "{text:?}");
        }
        let (_dir, file) = written("s3cret", 0o644);
        assert!(matches!(read_password(&file), Err(KeyError::Exposed { .. })));
    }

    #[test]
    fn development_keys_are_made_once_and_only_their_owner_reads_them() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("dev");
        let first = Keys::load_or_make(&dir).unwrap();
        let again = Keys::load_or_make(&dir).unwrap();
        let authority = |keys: &Keys| keys.authority.clone().unwrap().to_bytes();
        assert_eq!(authority(&first), authority(&again));
        assert_eq!(first.link, again.link);
        assert_ne!(first.link.clone().unwrap().as_slice(), authority(&first));
        assert_eq!(format!("{first:?}"), "Keys");
        for entry in std::fs::read_dir(&dir).unwrap() {
            assert_eq!(entry.unwrap().metadata().unwrap().mode() & 0o777, 0o600);
        }
    }
}
