//! [`Session`]: the conversation with one registry. It remembers how the registry wants to be answered, holds
//! the tokens it gave, and adds `Authorization` to requests.
//!
//! The first request goes out bare. A 401 says what is wanted ([`super::challenge`]); from then on every request
//! carries it unasked. A token that is refused is replaced once per request; a second refusal is final.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use reqwest::header::{HeaderMap, HeaderValue};
use reqwest::{Response, StatusCode};
use rimg_formats::reference::RepositoryName;
use tokio::sync::Mutex;

use super::challenge::{self, Bearer, Challenge};
use super::credentials::{Credential, CredentialError};
use super::endpoint::Endpoint;
use super::error::{ClientError, sanitise};
use super::token::{self, Token};
use super::wire::{Request, Retries, Wire};
use super::{CredentialSource, OnWarning};

/// Most scopes asked for at once; a mount needs two.
const SCOPES_MAX: usize = 16;
/// Longest scope taken from a challenge: the longest repository name and some actions.
const SCOPE_BYTES_MAX: usize = 512;
/// Most tokens kept for a registry, one for each repository and kind of access.
const TOKENS_MAX: usize = 1000;

/// What is to be permitted: `repository:<name>:<actions>` (token specification, *Token Scope*), sorted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Scopes(BTreeSet<String>);

impl Scopes {
    fn add(&mut self, scope: String) {
        if self.0.len() < SCOPES_MAX && scope.len() <= SCOPE_BYTES_MAX {
            self.0.insert(scope);
        }
    }

    fn add_challenged(&mut self, scopes: &str) {
        for scope in scopes.split_ascii_whitespace() {
            self.add(scope.to_owned());
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }

    /// As the OAuth2 form takes them.
    pub(super) fn joined(&self) -> String {
        self.iter().collect::<Vec<_>>().join(" ")
    }

    /// For error messages.
    pub(super) fn shown(&self) -> String {
        if self.0.is_empty() { "logging in".to_owned() } else { format!("`{}`", sanitise(&self.joined())) }
    }
}

/// On whose behalf and for what a request is made.
#[derive(Clone, Debug, Default)]
pub(super) struct Access {
    repository: Option<RepositoryName>,
    scopes: Scopes,
}

impl Access {
    /// Knowing who is asking, nothing more.
    pub(super) fn identity() -> Access {
        Access::default()
    }

    /// `registry:catalog:*`, which alone lists repositories.
    pub(super) fn catalog() -> Access {
        let mut access = Access::default();
        access.scopes.add("registry:catalog:*".to_owned());
        access
    }

    /// Reading `name`.
    pub(super) fn pull(name: &RepositoryName) -> Access {
        Access::to(name, "pull")
    }

    /// Reading and writing `name`.
    pub(super) fn push(name: &RepositoryName) -> Access {
        Access::to(name, "pull,push")
    }

    /// Deleting from `name`.
    pub(super) fn delete(name: &RepositoryName) -> Access {
        Access::to(name, "delete")
    }

    /// This access, and reading `source` besides: for mounting blobs from there.
    pub(super) fn mounting(mut self, source: &RepositoryName) -> Access {
        self.scopes.add(format!("repository:{source}:pull"));
        self
    }

    fn to(name: &RepositoryName, actions: &str) -> Access {
        let mut access = Access { repository: Some(name.clone()), ..Access::default() };
        access.scopes.add(format!("repository:{name}:{actions}"));
        access
    }
}

/// The conversation with one registry.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) wire: Arc<Wire>,
    pub(super) endpoint: Endpoint,
    memory: Mutex<Memory>,
}

#[derive(Debug, Default)]
struct Memory {
    challenge: Option<Challenge>,
    credentials: HashMap<Option<RepositoryName>, Option<Credential>>,
    tokens: HashMap<Scopes, Token>,
    /// Problems with credentials that the user was told of.
    warned: BTreeSet<String>,
}

impl Session {
    pub(super) fn new(wire: Arc<Wire>, endpoint: Endpoint) -> Session {
        Session { wire, endpoint, memory: Mutex::default() }
    }

    /// Sends `request` until it succeeds or is finally refused. An answer has a 2xx status.
    pub(super) async fn send(&self, access: &Access, request: &Request) -> Result<Response, ClientError> {
        let ours = self.endpoint.owns(&request.url);
        let mut authorization = if ours { self.authorization(access, &request.what).await? } else { None };
        let mut renewed = false;
        let mut retries = Retries::new(&self.wire);
        loop {
            let outcome = self.wire.once(request, authorization.as_ref()).await;
            let Some(response) = retries.settle(outcome, &request.what).await? else { continue };
            if response.status().is_success() {
                return Ok(response);
            }
            // A server that a redirect led to does not say where the registry's credentials go.
            let asks = ours && self.endpoint.owns(response.url());
            if response.status() == StatusCode::UNAUTHORIZED && asks && !renewed {
                renewed = true;
                let better =
                    self.renew(access, &request.what, authorization.as_ref(), response.headers()).await?;
                if better.is_some() {
                    authorization = better;
                    continue;
                }
            }
            return Err(self.refusal(access, response, &request.what).await);
        }
    }

    /// The error for a refused request, naming whether credentials were at hand.
    pub(super) async fn refusal(&self, access: &Access, response: Response, what: &str) -> ClientError {
        let with_credentials = match self.memory.lock().await.credentials.get(&access.repository) {
            Some(found) => found.is_some(),
            None => false,
        };
        self.wire.refusal(response, what, with_credentials).await
    }

    /// What to send along unasked, by what the registry demanded before.
    pub(super) async fn authorization(
        &self,
        access: &Access,
        what: &str,
    ) -> Result<Option<HeaderValue>, ClientError> {
        let mut memory = self.memory.lock().await;
        match memory.challenge.clone() {
            None => Ok(None),
            Some(Challenge::Basic) => self.basic(&mut memory, access).await,
            Some(Challenge::Bearer(bearer)) => match memory.tokens.get(&access.scopes) {
                Some(token) if token.is_good() => Ok(token.header()),
                _ => self.fetch(&mut memory, access, &bearer, what).await,
            },
        }
    }

    /// What to send instead of `refused`, by what a 401 demands; `None` when nothing else is at hand.
    pub(super) async fn renew(
        &self,
        access: &Access,
        what: &str,
        refused: Option<&HeaderValue>,
        headers: &HeaderMap,
    ) -> Result<Option<HeaderValue>, ClientError> {
        let mut memory = self.memory.lock().await;
        let Some(challenge) = challenge::choose(headers) else { return Ok(None) };
        memory.challenge = Some(challenge.clone());
        match challenge {
            Challenge::Basic => {
                let header = self.basic(&mut memory, access).await?;
                Ok(header.filter(|header| Some(header) != refused))
            }
            Challenge::Bearer(bearer) => {
                // Another thread may have renewed it while this one was being refused.
                let fresh = memory.tokens.get(&access.scopes).filter(|token| token.is_good());
                match fresh.and_then(Token::header) {
                    Some(header) if Some(&header) != refused => Ok(Some(header)),
                    _ => self.fetch(&mut memory, access, &bearer, what).await,
                }
            }
        }
    }

    /// Remembers the demand of a 401 that was met outside of [`Session::send`].
    pub(super) async fn learn(&self, headers: &HeaderMap) {
        // The scope belongs to the request that was refused, not to those to come.
        let learnt = challenge::choose(headers).map(|challenge| match challenge {
            Challenge::Bearer(bearer) => Challenge::Bearer(Bearer { scope: None, ..bearer }),
            Challenge::Basic => Challenge::Basic,
        });
        if learnt.is_some() {
            self.memory.lock().await.challenge = learnt;
        }
    }

    async fn basic(&self, memory: &mut Memory, access: &Access) -> Result<Option<HeaderValue>, ClientError> {
        Ok(match self.credential(memory, access).await? {
            Some(Credential::Password { username, password }) => token::basic(&username, &password),
            Some(Credential::RegistryToken(text)) => Token::fixed(text).header(),
            Some(Credential::IdentityToken(_)) | None => None,
        })
    }

    async fn fetch(
        &self,
        memory: &mut Memory,
        access: &Access,
        bearer: &Bearer,
        what: &str,
    ) -> Result<Option<HeaderValue>, ClientError> {
        let credential = self.credential(memory, access).await?;
        let mut scopes = access.scopes.clone();
        scopes.add_challenged(bearer.scope.as_deref().unwrap_or(""));
        let root = self.endpoint.root();
        let fetched = token::fetch(&self.wire, &root, bearer, &scopes, credential.as_ref()).await;
        let token = fetched.map_err(|error| match error {
            // The user knows the registry, not its token server.
            ClientError::Unauthorized { detail, .. } | ClientError::Denied { detail, .. } => {
                let (host, what) = (self.endpoint.host.to_string(), what.to_owned());
                ClientError::Unauthorized { host, what, with_credentials: credential.is_some(), detail }
            }
            other => other,
        })?;
        if let Some(Challenge::Bearer(remembered)) = &mut memory.challenge {
            remembered.scope = None;
        }
        if memory.tokens.len() >= TOKENS_MAX {
            memory.tokens.clear();
        }
        let header = token.header();
        memory.tokens.insert(access.scopes.clone(), token);
        Ok(header)
    }

    /// Tells each problem once.
    fn warn(&self, memory: &mut Memory, problems: &[CredentialError]) {
        for problem in problems.iter().map(ToString::to_string) {
            if memory.warned.insert(problem.clone())
                && let Some(OnWarning(tell)) = &self.wire.options.on_warning
            {
                tell(&problem);
            }
        }
    }

    async fn credential(
        &self,
        memory: &mut Memory,
        access: &Access,
    ) -> Result<Option<Credential>, ClientError> {
        if let Some(known) = memory.credentials.get(&access.repository) {
            return Ok(known.clone());
        }
        let found = match &self.wire.options.credentials {
            CredentialSource::Anonymous => None,
            CredentialSource::Fixed { host, credential } => {
                (*host == self.endpoint.host).then(|| credential.clone())
            }
            CredentialSource::Files(files) => {
                let (files, host) = (files.clone(), self.endpoint.host.clone());
                let repository = access.repository.clone();
                // A helper program may take its time.
                let looked_up = tokio::task::spawn_blocking(move || files.lookup(&host, repository.as_ref()));
                let found = looked_up.await.map_err(|error| ClientError::Setup(error.to_string()))?;
                self.warn(memory, &found.problems);
                found.credential
            }
        };
        memory.credentials.insert(access.repository.clone(), found.clone());
        Ok(found)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn scopes_of_a_mount_are_two() {
        let (name, source) = ("b/app".parse().unwrap(), "a/base".parse().unwrap());
        let access = Access::push(&name).mounting(&source);
        assert_eq!(access.scopes.joined(), "repository:a/base:pull repository:b/app:pull,push");
    }

    #[test]
    fn challenged_scopes_are_limited() {
        let mut scopes = Scopes::default();
        scopes.add_challenged(&"x".repeat(SCOPE_BYTES_MAX + 1));
        assert_eq!(scopes, Scopes::default());
        let many: Vec<String> = (0..1000).map(|number| format!("s{number}")).collect();
        scopes.add_challenged(&many.join(" "));
        assert_eq!(scopes.iter().count(), SCOPES_MAX);
    }
}
