//! [`AuthFiles`]: the files in which credentials for registries are kept, and [`Credential`], what is found.
//!
//! Looked up in this order, the first file that knows the registry decides:
//!
//! 1. `$REGISTRY_AUTH_FILE` (podman, skopeo)
//! 2. rimg's own file, `$XDG_CONFIG_HOME/rimg/auth.json`, else `~/.config/rimg/auth.json`: the only one that
//!    [`AuthFiles::save`] and [`AuthFiles::erase`] write
//! 3. `$XDG_RUNTIME_DIR/containers/auth.json` (podman)
//! 4. `$XDG_CONFIG_HOME/containers/auth.json`, else `~/.config/containers/auth.json`
//! 5. `$DOCKER_CONFIG/config.json`, else `~/.docker/config.json`
//!
//! All have docker's shape: `auths` with base64 of `user:password`, an identity token or a registry token by
//! registry; `credHelpers` and `credsStore` naming helper programs, which are asked as
//! [`super::credential_helper`] says. Within a file, a helper for the registry comes before `auths`, and those
//! before `credsStore`. Keys of `auths` may be longer than a host (`quay.io/team`): the longest that fits wins.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use rimg_formats::reference::{DOCKER_HUB, DOCKER_HUB_HOST, RegistryHost, RepositoryName};
use serde::{Deserialize, Serialize};

use super::credential_helper::Helper;

/// Largest file read. One entry takes a few hundred bytes; tokens of cloud registries a few thousand.
const AUTH_FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// The key under which every client keeps Docker Hub.
pub(super) const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";

/// Why stored credentials cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// A file cannot be read or written.
    #[error("credentials in {}: {source}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file does not have docker's shape.
    #[error("credentials in {}: {reason}", .path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, without quoting it.
        reason: String,
    },
    /// A helper program failed.
    #[error("credential helper `{helper}`: {reason}")]
    Helper {
        /// The program.
        helper: String,
        /// What went wrong.
        reason: String,
    },
    /// There is no home directory to keep a file in.
    #[error("no place to keep credentials: neither XDG_CONFIG_HOME nor HOME is set")]
    NoHome,
}

/// Text that must not be shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Keeps `text` out of sight.
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// The text itself, to be sent or stored but never printed.
    pub(super) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("[hidden]")
    }
}

/// What proves to a registry who one is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credential {
    /// A user name with its password or access token.
    Password {
        /// Who.
        username: String,
        /// The proof.
        password: Secret,
    },
    /// A long-lived token to be exchanged for access tokens (OAuth2 refresh token).
    IdentityToken(Secret),
    /// A token to be sent to the registry as it is.
    RegistryToken(Secret),
}

impl Credential {
    /// A user name with its password.
    pub fn password(username: impl Into<String>, password: impl Into<String>) -> Credential {
        Credential::Password { username: username.into(), password: Secret::new(password) }
    }
}

/// What [`AuthFiles::lookup`] found.
#[derive(Debug, Default)]
pub struct LookedUp {
    /// The credential.
    pub credential: Option<Credential>,
    /// Files and helpers that could not be used.
    pub problems: Vec<CredentialError>,
}

/// Where [`AuthFiles::save`] put a credential.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SavedIn {
    /// This file, readable by its owner alone, but not encrypted.
    File(PathBuf),
    /// The helper program of this name.
    Helper(String),
}

impl fmt::Display for SavedIn {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SavedIn::File(path) => path.display().fmt(formatter),
            SavedIn::Helper(name) => write!(formatter, "the credential helper `{name}`"),
        }
    }
}

/// The files in which credentials are kept.
#[derive(Clone, Debug, Default)]
pub struct AuthFiles {
    /// In the order of lookup.
    lookup: Vec<PathBuf>,
    own: Option<PathBuf>,
    helper_path: Option<OsString>,
}

impl AuthFiles {
    /// The files that the environment of this process names.
    pub fn from_environment() -> AuthFiles {
        AuthFiles::from_variables(|name| std::env::var_os(name))
    }

    /// The files that the variables named in the module's documentation, given by `variable`, name. Helpers
    /// are searched along its `PATH`.
    pub fn from_variables(variable: impl Fn(&str) -> Option<OsString>) -> AuthFiles {
        let folder = |name: &str| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let home = folder("HOME");
        let config = folder("XDG_CONFIG_HOME").or_else(|| home.as_ref().map(|home| home.join(".config")));
        let docker = folder("DOCKER_CONFIG").or_else(|| home.as_ref().map(|home| home.join(".docker")));
        let own = config.as_ref().map(|config| config.join("rimg/auth.json"));
        let lookup = [
            folder("REGISTRY_AUTH_FILE"),
            own.clone(),
            folder("XDG_RUNTIME_DIR").map(|runtime| runtime.join("containers/auth.json")),
            config.map(|config| config.join("containers/auth.json")),
            docker.map(|docker| docker.join("config.json")),
        ];
        AuthFiles { lookup: lookup.into_iter().flatten().collect(), own, helper_path: variable("PATH") }
    }

    /// The credential for `repository` (or the whole registry) at `host`, if one is kept. A file or helper that cannot be
    /// used is a problem to tell, and those behind it are asked: the registry may need no credentials at all.
    pub fn lookup(&self, host: &RegistryHost, repository: Option<&RepositoryName>) -> LookedUp {
        let mut looked_up = LookedUp::default();
        for path in &self.lookup {
            let found = match AuthFile::read(path) {
                Ok(Some(file)) => file.lookup(path, host, repository, self.helper_path.as_deref()),
                Ok(None) => Ok(None),
                Err(error) => Err(error),
            };
            match found {
                Ok(Some(credential)) => {
                    looked_up.credential = Some(credential);
                    break;
                }
                Ok(None) => {}
                Err(problem) => looked_up.problems.push(problem),
            }
        }
        looked_up
    }

    /// Keeps `credential` for `host` in rimg's own file, or in the helper which that file names. The file is
    /// replaced as a whole, so that a reader sees the old or the new one.
    pub fn save(&self, host: &RegistryHost, credential: &Credential) -> Result<SavedIn, CredentialError> {
        let own = self.own.as_deref().ok_or(CredentialError::NoHome)?;
        let mut file = AuthFile::read(own)?.unwrap_or_default();
        if let Some(name) = file.helper_for(host).or(file.creds_store.as_deref()) {
            Helper::new(name, self.helper_path.as_deref())?.store(&server_key(host), credential)?;
            return Ok(SavedIn::Helper(name.to_owned()));
        }
        let auths = file.auths.get_or_insert_default();
        auths.retain(|key, _| !means_host(key, host));
        auths.insert(server_key(host), AuthEntry::of(credential));
        file.write(own)?;
        Ok(SavedIn::File(own.to_owned()))
    }

    /// Forgets what [`AuthFiles::save`] kept for `host`. Returns whether there was anything, and the other
    /// files that still know the registry: those belong to other programs and are left alone.
    pub fn erase(&self, host: &RegistryHost) -> Result<(bool, Vec<PathBuf>), CredentialError> {
        let own = self.own.as_deref().ok_or(CredentialError::NoHome)?;
        let mut erased = false;
        if let Some(mut file) = AuthFile::read(own)? {
            if let Some(name) = file.helper_for(host).or(file.creds_store.as_deref()) {
                erased |= Helper::new(name, self.helper_path.as_deref())?.erase(&server_key(host))?;
            }
            let auths = file.auths.get_or_insert_default();
            let before = auths.len();
            auths.retain(|key, _| !means_host(key, host));
            if auths.len() != before {
                file.write(own)?;
                erased = true;
            }
        }
        let mut others = Vec::new();
        for path in self.lookup.iter().filter(|path| *path != own) {
            // What cannot be read is not told from here.
            let Ok(Some(file)) = AuthFile::read(path) else { continue };
            let listed =
                file.auths.iter().flatten().any(|(key, entry)| means_host(key, host) && !entry.is_empty());
            if listed || file.helper_for(host).is_some() {
                others.push(path.clone());
            }
        }
        Ok((erased, others))
    }
}

/// The name under which a registry is kept.
fn server_key(host: &RegistryHost) -> String {
    if is_docker_hub(host.as_str()) { DOCKER_HUB_KEY.to_owned() } else { host.to_string() }
}

fn is_docker_hub(host: &str) -> bool {
    [DOCKER_HUB, DOCKER_HUB_HOST, "index.docker.io"].contains(&host)
}

/// `[https://]host[/path]` without its scheme; older clients wrote URLs.
fn bare_key(key: &str) -> &str {
    let bare = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    bare.trim_end_matches('/')
}

/// Whether `key` names the registry at `host` as a whole. `/v1/` and `/v2/` come from older clients.
fn means_host(key: &str, host: &RegistryHost) -> bool {
    let (name, path) = bare_key(key).split_once('/').unwrap_or((bare_key(key), ""));
    let same =
        name.eq_ignore_ascii_case(host.as_str()) || (is_docker_hub(name) && is_docker_hub(host.as_str()));
    same && matches!(path, "" | "v1" | "v2")
}

/// How well `key` fits the repository: longer is better; `None` is not at all.
fn fit(key: &str, host: &RegistryHost, repository: Option<&RepositoryName>) -> Option<usize> {
    if means_host(key, host) {
        return Some(0);
    }
    let (name, prefix) = bare_key(key).split_once('/')?;
    let rest = repository?.as_str().strip_prefix(prefix)?;
    let fits = name.eq_ignore_ascii_case(host.as_str()) && (rest.is_empty() || rest.starts_with('/'));
    fits.then_some(prefix.len())
}

/// A file of docker's shape. What rimg does not know is kept when it writes the file.
#[derive(Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct AuthFile {
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "null_entries")]
    auths: Option<BTreeMap<String, AuthEntry>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    creds_store: Option<String>,
    /// `null`, as Go programs take it, is an empty name: none.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "null_entries")]
    cred_helpers: Option<BTreeMap<String, String>>,
    #[serde(flatten)]
    unknown: serde_json::Map<String, serde_json::Value>,
}

#[derive(Default, Deserialize, Serialize)]
struct AuthEntry {
    #[serde(default, skip_serializing_if = "String::is_empty", deserialize_with = "null_text")]
    auth: String,
    #[serde(default, skip_serializing_if = "String::is_empty", deserialize_with = "null_text")]
    username: String,
    #[serde(default, skip_serializing_if = "String::is_empty", deserialize_with = "null_text")]
    password: String,
    #[serde(default, skip_serializing_if = "String::is_empty", deserialize_with = "null_text")]
    identitytoken: String,
    #[serde(default, skip_serializing_if = "String::is_empty", deserialize_with = "null_text")]
    registrytoken: String,
    #[serde(flatten)]
    unknown: serde_json::Map<String, serde_json::Value>,
}

/// A map in which `null` stands for an empty value: Go programs write and take it.
fn null_entries<'de, D, T>(deserializer: D) -> Result<Option<BTreeMap<String, T>>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    let entries = Option::<BTreeMap<String, Option<T>>>::deserialize(deserializer)?;
    Ok(entries
        .map(|entries| entries.into_iter().map(|(key, entry)| (key, entry.unwrap_or_default())).collect()))
}

/// A text for which `null` may stand.
fn null_text<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

impl AuthFile {
    fn read(path: &Path) -> Result<Option<AuthFile>, CredentialError> {
        let failed = |source| CredentialError::File { path: path.to_owned(), source };
        let shape = |reason: String| CredentialError::Shape { path: path.to_owned(), reason };
        let file = match std::fs::File::open(path) {
            Ok(file) => file,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(None);
            }
            Err(error) => return Err(failed(error)),
        };
        let mut text = Vec::new();
        file.take(AUTH_FILE_BYTES_MAX + 1).read_to_end(&mut text).map_err(failed)?;
        if text.len() as u64 > AUTH_FILE_BYTES_MAX {
            return Err(shape(format!("it is larger than {AUTH_FILE_BYTES_MAX} bytes")));
        }
        if text.trim_ascii().is_empty() {
            return Ok(None);
        }
        // Of serde's message only the place is kept: the rest may quote a password.
        let place = |error: serde_json::Error| {
            shape(format!("not of docker's shape at line {} column {}", error.line(), error.column()))
        };
        serde_json::from_slice(&text).map(Some).map_err(place)
    }

    fn helper_for(&self, host: &RegistryHost) -> Option<&str> {
        let mut helpers = self.cred_helpers.iter().flatten();
        helpers.find(|(key, name)| means_host(key, host) && !name.is_empty()).map(|(_, name)| name.as_str())
    }

    fn lookup(
        &self,
        path: &Path,
        host: &RegistryHost,
        repository: Option<&RepositoryName>,
        helper_path: Option<&std::ffi::OsStr>,
    ) -> Result<Option<Credential>, CredentialError> {
        if let Some(name) = self.helper_for(host) {
            return Helper::new(name, helper_path)?.get(&server_key(host));
        }
        let entries = self.auths.iter().flatten();
        let fitting = entries.filter_map(|(key, entry)| Some((fit(key, host, repository)?, key, entry)));
        let mut fitting: Vec<_> = fitting.collect();
        fitting.sort_by_key(|(length, ..)| std::cmp::Reverse(*length));
        for (_, key, entry) in fitting {
            let unreadable = || CredentialError::Shape {
                path: path.to_owned(),
                reason: format!("`auth` of {} is not base64 of `user:password`", super::error::sanitise(key)),
            };
            if let Some(credential) = entry.credential().map_err(|NotBasic| unreadable())? {
                return Ok(Some(credential));
            }
        }
        match &self.creds_store {
            Some(name) if !name.is_empty() => Helper::new(name, helper_path)?.get(&server_key(host)),
            _ => Ok(None),
        }
    }

    fn write(&self, path: &Path) -> Result<(), CredentialError> {
        let failed = |source| CredentialError::File { path: path.to_owned(), source };
        let folder = path.parent().ok_or(CredentialError::NoHome)?;
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
        let temporary = folder.join(format!(".auth.json.{}", std::process::id()));
        let written = self.write_new(&temporary).and_then(|()| std::fs::rename(&temporary, path));
        if written.is_err() {
            // The first error tells more than one about tidying up.
            let _ = std::fs::remove_file(&temporary);
        }
        written.map_err(failed)
    }

    fn write_new(&self, path: &Path) -> io::Result<()> {
        // Left behind by a process of the same number that was killed.
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(&serde_json::to_vec_pretty(self)?)?;
        file.sync_all()
    }
}

struct NotBasic;

impl AuthEntry {
    fn of(credential: &Credential) -> AuthEntry {
        let mut entry = AuthEntry::default();
        match credential {
            Credential::Password { username, password } => {
                entry.auth = STANDARD.encode(format!("{username}:{}", password.reveal()));
            }
            Credential::IdentityToken(token) => entry.identitytoken = token.reveal().to_owned(),
            Credential::RegistryToken(token) => entry.registrytoken = token.reveal().to_owned(),
        }
        entry
    }

    fn is_empty(&self) -> bool {
        [&self.auth, &self.username, &self.identitytoken, &self.registrytoken]
            .iter()
            .all(|text| text.is_empty())
    }

    /// What the entry holds; docker leaves empty entries behind when a helper keeps the secret.
    fn credential(&self) -> Result<Option<Credential>, NotBasic> {
        if !self.registrytoken.is_empty() {
            return Ok(Some(Credential::RegistryToken(Secret::new(&self.registrytoken))));
        }
        if !self.identitytoken.is_empty() {
            return Ok(Some(Credential::IdentityToken(Secret::new(&self.identitytoken))));
        }
        if self.auth.is_empty() {
            let named = !self.username.is_empty();
            return Ok(named.then(|| Credential::password(&self.username, &self.password)));
        }
        let text = self.auth.trim();
        let decoded =
            STANDARD.decode(text).or_else(|_| STANDARD_NO_PAD.decode(text)).map_err(|_| NotBasic)?;
        let decoded = String::from_utf8(decoded).map_err(|_| NotBasic)?;
        let (username, password) = decoded.split_once(':').ok_or(NotBasic)?;
        // Docker pads with NUL.
        Ok(Some(Credential::password(username, password.trim_end_matches('\0'))))
    }
}
