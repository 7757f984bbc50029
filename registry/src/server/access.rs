//! Who may do what. Every request passes [`Authorize`] once its target is known and before anything about it is
//! looked up, so that a refusal tells nothing of what exists.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::http::header::{AUTHORIZATION, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use axum::http::{Method, StatusCode};
use rimg_formats::reference::RepositoryName;

use super::error::{ApiError, Code};
use super::peer::{Peer, PeerUsers};
use super::route::Route;

/// What a request wants to do with its repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Ask whether this is a registry (`GET /v2/`), where clients expect a challenge to log in.
    Discover,
    /// List the repositories.
    List,
    /// Read manifests, blobs, tags and referrers.
    Pull,
    /// Write blobs, manifests and tags; also to look at and to cancel one's own uploads.
    Push,
    /// Remove blobs, manifests and tags: a right of its own, which pushing does not include.
    Delete,
}

/// What there is to decide on.
#[derive(Debug)]
pub struct AccessRequest<'a> {
    /// What is wanted.
    pub action: Action,
    /// Of which repository; none for [`Action::Discover`] and [`Action::List`].
    pub repository: Option<&'a RepositoryName>,
    /// The `Authorization` header.
    pub authorization: Option<&'a HeaderValue>,
    /// Where the request comes from.
    pub peer: SocketAddr,
    /// The local user at the other end of the connection; `None` when that cannot be told, or is not looked up (see
    /// [`ServerOptions::identify_users`](super::ServerOptions::identify_users)).
    pub user: Option<u32>,
}

/// The decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Go ahead.
    Allow,
    /// 401: who are you? With a `WWW-Authenticate` challenge.
    Authenticate {
        /// The challenge, such as `Basic realm="rimg"`.
        challenge: String,
    },
    /// 403: you may not.
    Deny {
        /// Why, and what would help: clients show it.
        message: String,
    },
}

/// Decides on requests. Called for every one, on the async threads: it must not block.
pub type Authorize = Arc<dyn Fn(&AccessRequest<'_>) -> Decision + Send + Sync>;

/// Everybody who can connect may do everything.
pub fn allow_everything() -> Authorize {
    Arc::new(|_| Decision::Allow)
}

/// What `method` on `route` amounts to.
pub(super) fn action(route: &Route, method: &Method) -> Action {
    match route {
        Route::Base => Action::Discover,
        Route::Catalog => Action::List,
        Route::UploadStart { .. } | Route::Upload { .. } => Action::Push,
        _ if *method == Method::PUT => Action::Push,
        _ if *method == Method::DELETE => Action::Delete,
        _ => Action::Pull,
    }
}

/// The caller, for handlers that need more than the action of their route (mounting reads another repository).
#[derive(Clone)]
pub(super) struct Caller {
    pub(super) authorize: Authorize,
    pub(super) authorization: Option<HeaderValue>,
    pub(super) peer: SocketAddr,
    user: Option<u32>,
}

impl Caller {
    /// `users` looks the peer's user up; without it nobody is told who that is.
    pub(super) fn new(
        authorize: &Authorize,
        headers: &HeaderMap,
        peer: &Peer,
        users: Option<&PeerUsers>,
    ) -> Caller {
        let authorization = headers.get(AUTHORIZATION).cloned();
        let user = users.and_then(|users| peer.user(users));
        Caller { authorize: authorize.clone(), authorization, peer: peer.address, user }
    }

    fn decide(&self, action: Action, repository: Option<&RepositoryName>) -> Decision {
        let authorization = self.authorization.as_ref();
        let Caller { peer, user, .. } = *self;
        (self.authorize)(&AccessRequest { action, repository, authorization, peer, user })
    }

    pub(super) fn may(&self, action: Action, repository: &RepositoryName) -> bool {
        self.decide(action, Some(repository)) == Decision::Allow
    }

    /// Succeeds when the action is allowed; else the answer to give.
    pub(super) fn require(
        &self,
        action: Action,
        repository: Option<&RepositoryName>,
    ) -> Result<(), ApiError> {
        match self.decide(action, repository) {
            Decision::Allow => Ok(()),
            Decision::Deny { message } => Err(ApiError::new(StatusCode::FORBIDDEN, Code::Denied, message)),
            Decision::Authenticate { challenge } => {
                let refused =
                    ApiError::new(StatusCode::UNAUTHORIZED, Code::Unauthorized, "authentication is required");
                Err(match HeaderValue::from_str(&challenge) {
                    Ok(challenge) => refused.with_header(WWW_AUTHENTICATE, challenge),
                    Err(_) => refused,
                })
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn deleting_is_a_right_of_its_own_and_cancelling_is_not_deleting() {
        let name: RepositoryName = "a".parse().unwrap();
        let digest = rimg_formats::digest::Digest::sha256(b"");
        let blob = Route::Blob { name: name.clone(), digest };
        let upload = Route::Upload { name, id: String::new() };
        assert_eq!(action(&blob, &Method::GET), Action::Pull);
        assert_eq!(action(&blob, &Method::DELETE), Action::Delete);
        assert_eq!(action(&upload, &Method::DELETE), Action::Push);
        assert_eq!(action(&upload, &Method::GET), Action::Push);
        assert_eq!(action(&Route::Base, &Method::GET), Action::Discover);
    }
}
