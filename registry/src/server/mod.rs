//! The registry server: the HTTP face of the content store (distribution-spec 1.1, and what clients rely on
//! beyond it).
//!
//! ```text
//! connection ──► service ──► route, access ──► one handler an endpoint ──► store (blocking jobs)
//! ```
//!
//! It is an axum service with a single handler of its own in place of axum's routes: repository names contain
//! slashes, and a route of axum's cannot have a wildcard in its middle. Connections are hyper's own, since
//! `axum::serve` bounds neither the time nor the size of a request's head.
//!
//! | module | owns |
//! |---|---|
//! | `connection`, `farewell` | accepting, timeouts, graceful end; telling those that are not served |
//! | `places`, `patience` | how many at once, and how slow they may be |
//! | `service` | from request to answer: routing, rights, headers of every answer, events |
//! | `route`, `query`, `range`, `entity_tag` | parsing what strangers send |
//! | `access`, `peer`, `names` | who may do what, who asks, and by which names the server answers |
//! | `blobs`, `verification`, `body` | end-2, end-10: blobs, what is hashed first, and the way they leave |
//! | `uploads`, `receive`, `sessions` | end-4, 5, 6, 11, 13, 14: the way blobs come in |
//! | `manifests` | end-3, end-7, end-9 |
//! | `listings` | end-8 and `_catalog` |
//! | `referrers` | end-12 |
//! | `limits`, `error`, `event` | bounds, refusals, what the owner is told |
//!
//! Three choices that hold everything together:
//!
//! * *HTTP/1.1 only.* Clients speak HTTP/2 to registries over TLS alone, which a proxy in front ends; without
//!   it, multiplexing buys nothing for bulk transfer and widens what strangers can do.
//! * *Nothing blocks an async thread, and no thread waits for a client.* Blocking jobs are short (one block read,
//!   one batch hashed and written, one transaction), so a thousand slow clients cost memory and no threads. The few that
//!   take as long as a blob is large (a file that was touched, an upload under another algorithm than announced) have
//!   permits of their own, and the others never wait for them.
//! * *An answer of success means that the store has made it durable.* The server keeps no state of its own that
//!   would be missed: sessions of unfinished uploads live in the store and survive a restart.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use axum::http::HeaderValue;
use rimg_formats::reference::RegistryHost;
use rimg_formats::store::Store;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

mod access;
mod blobs;
mod body;
mod connection;
mod entity_tag;
mod error;
mod event;
mod farewell;
mod limits;
mod listings;
mod manifests;
mod names;
mod patience;
mod peer;
mod places;
mod query;
mod range;
mod receive;
mod referrers;
mod route;
mod service;
mod sessions;
mod uploads;
mod verification;

pub use access::{AccessRequest, Action, Authorize, Decision, allow_everything};
pub use event::{Event, Observer};
pub use limits::Limits;

use error::ApiError;
use names::Names;
use peer::PeerUsers;
use places::Places;
use sessions::Sessions;
use verification::Verifications;

/// The port that registries listen on by custom.
pub const DEFAULT_PORT: u16 = 5000;

/// How a server is to behave.
#[derive(Clone)]
pub struct ServerOptions {
    /// Where to listen. Loopback by default: there is no TLS, and there are no passwords.
    pub listen: SocketAddr,
    /// Who may do what.
    pub authorize: Authorize,
    /// Look up which local user each connection comes from, for [`AccessRequest::user`]. Only connections within the
    /// server's network namespace have one. Binding fails where the kernel does not tell.
    pub identify_users: bool,
    /// Told of every request.
    pub observer: Option<Observer>,
    /// Bounds.
    pub limits: Limits,
    /// Accept manifests although content they name is missing (*sparse* images and indexes). Off by default:
    /// a push that lost a layer should fail, not the pull that needs it.
    pub allow_sparse_manifests: bool,
    /// What users are to be told, such as a date of closing: carried by every answer as a `Warning`, which
    /// clients show.
    pub warnings: Vec<String>,
    /// Names by which it answers, besides addresses and `localhost`; their ports play no part. Without any it answers
    /// to every name, unless it listens on loopback alone: there a page in the user's browser could otherwise read
    /// and write by letting its own name resolve to loopback.
    pub names: Vec<RegistryHost>,
    /// Proxies in front. One address may hold only a part of the connections and uploads; these, which speak for
    /// many people, and loopback addresses may hold all.
    pub proxies: Vec<IpAddr>,
    /// Mount a blob by its digest alone when some repository that the caller may read has it.
    pub allow_anonymous_mount: bool,
}

impl Default for ServerOptions {
    fn default() -> ServerOptions {
        ServerOptions {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, DEFAULT_PORT)),
            authorize: allow_everything(),
            identify_users: false,
            observer: None,
            limits: Limits::default(),
            allow_sparse_manifests: false,
            allow_anonymous_mount: true,
            warnings: Vec::new(),
            names: Vec::new(),
            proxies: Vec::new(),
        }
    }
}

/// Why a server could not start or go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// The address could not be bound.
    #[error("failed to listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel does not tell whose a connection is.
    #[error("failed to look up which user a connection comes from: {source}")]
    UsersUnknown {
        /// What the kernel said.
        source: io::Error,
    },
    /// A warning cannot be a header, or all of them are too long.
    #[error("warning `{0}` does not fit: printable ASCII, and at most 4096 bytes for all warnings together")]
    Warning(String),
}

/// A bound server.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    state: Arc<State>,
}

/// What all requests share.
struct State {
    store: Store,
    options: ServerOptions,
    /// Present with [`ServerOptions::identify_users`].
    users: Option<PeerUsers>,
    /// What the server may be called by.
    names: Names,
    /// [`ServerOptions::warnings`] as headers.
    warnings: Vec<HeaderValue>,
    /// Admission to the blocking threads.
    jobs: Arc<Semaphore>,
    /// Admission of jobs that take as long as a blob is large.
    long_jobs: Arc<Semaphore>,
    verifications: Verifications,
    /// Large blocks of bodies that may be in memory.
    read_blocks: Arc<Semaphore>,
    /// Admission to [`Limits::connections`].
    connections: Arc<Places>,
    /// Admission to [`limits::LARGE_DOCUMENTS_MAX`].
    large_documents: Arc<Places>,
    sessions: Arc<Sessions>,
}

impl Server {
    /// Binds the address. Connections queue from here on, and are answered once [`Server::serve`] runs.
    pub async fn bind(store: Store, options: ServerOptions) -> Result<Server, ServerError> {
        let warnings = service::warnings(&options.warnings)?;
        let users = options.identify_users.then(PeerUsers::probe).transpose();
        let users = users.map_err(|source| ServerError::UsersUnknown { source })?;
        let address = options.listen;
        let failed = |source| ServerError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let places = |all| Places::new(all, &options.proxies);
        let state = State {
            store,
            users,
            names: Names::new(address, &options.names),
            warnings,
            jobs: Arc::new(Semaphore::new(limits::BLOCKING_JOBS_MAX)),
            long_jobs: Arc::new(Semaphore::new(limits::LONG_JOBS_MAX)),
            verifications: Verifications::default(),
            read_blocks: Arc::new(Semaphore::new(limits::READ_BLOCKS_MAX)),
            connections: places(options.limits.connections),
            large_documents: places(limits::LARGE_DOCUMENTS_MAX),
            sessions: Arc::new(Sessions::new(places(options.limits.concurrent_uploads))),
            options,
        };
        Ok(Server { listener, address, state: Arc::new(state) })
    }

    /// The address bound; the port is the real one when 0 was asked for.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `shutdown` resolves, then lets requests under way finish for [`Limits::shutdown`] and cuts
    /// off the rest. An upload that is cut off keeps what has arrived.
    pub async fn serve(self, shutdown: impl Future<Output = ()>) {
        connection::serve(self.listener, self.state, shutdown).await;
    }
}

impl State {
    /// Runs a short piece of work on the blocking threads, when a permit is free.
    async fn run<T, E>(
        &self,
        work: impl FnOnce(&Store) -> Result<T, E> + Send + 'static,
    ) -> Result<T, ApiError>
    where
        T: Send + 'static,
        E: Into<ApiError> + Send + 'static,
    {
        self.run_among(&self.jobs, work).await
    }

    /// As [`State::run`], for work that takes long: it takes no permit from the short.
    async fn run_long<T, E>(
        &self,
        work: impl FnOnce(&Store) -> Result<T, E> + Send + 'static,
    ) -> Result<T, ApiError>
    where
        T: Send + 'static,
        E: Into<ApiError> + Send + 'static,
    {
        self.run_among(&self.long_jobs, work).await
    }

    async fn run_among<T, E>(
        &self,
        jobs: &Arc<Semaphore>,
        work: impl FnOnce(&Store) -> Result<T, E> + Send + 'static,
    ) -> Result<T, ApiError>
    where
        T: Send + 'static,
        E: Into<ApiError> + Send + 'static,
    {
        let permit = jobs.clone().acquire_owned().await.map_err(ApiError::internal)?;
        let store = self.store.clone();
        let job = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            work(&store)
        });
        job.await.map_err(ApiError::internal)?.map_err(Into::into)
    }

    fn notify(&self, event: impl FnOnce() -> Event) {
        if let Some(observer) = &self.options.observer {
            observer(event());
        }
    }
}
