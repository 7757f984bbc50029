//! The client's end of the distribution protocol: pulling from and pushing to any registry.
//!
//! | module | owns |
//! |---|---|
//! | this one | [`Client`] and its options: the synchronous door, with a runtime of its own behind it |
//! | [`repository`](RemoteRepository), `transfer` | one repository: what commands work with, an end of copies |
//! | `manifests`, `download`, `upload`, `listing`, `referrers` | the requests of the protocol |
//! | `session`, `challenge`, `token` | who is asking: challenges, tokens, `Authorization` |
//! | `credentials`, `credential_helper`, `login` | where passwords are kept |
//! | `wire`, `endpoint`, `no_proxy`, `retry`, `tls`, `pipe` | exchanges: connections, redirects, limits, retries, trust |
//! | `error`, `diagnosis` | what went wrong, and what helps |
//!
//! From the outside everything is synchronous and may be called from any number of threads, though not from
//! within asynchronous code. Memory is bounded: a transfer holds about two MiB whatever the blob's size.

mod challenge;
mod credential_helper;
mod credentials;
mod diagnosis;
mod download;
mod endpoint;
mod error;
mod listing;
mod login;
mod manifests;
mod names;
mod no_proxy;
mod pipe;
mod referrers;
mod repository;
mod retry;
mod session;
mod tls;
mod token;
mod transfer;
mod upload;
mod wire;

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use reqwest::{Method, StatusCode};
use rimg_formats::reference::{Reference, RegistryHost};
use tokio::runtime::Runtime;

pub use credentials::{AuthFiles, Credential, CredentialError, SavedIn, Secret};
pub use diagnosis::{Distrust, NoConnection, Target};
pub use error::ClientError;
pub use login::Login;
pub use repository::{RemoteManifest, RemoteRepository};
pub use retry::RetryPolicy;
pub use upload::BlobOpener;

use endpoint::{Endpoint, Scheme};
use session::Session;
use wire::{Request, Wire};

/// Threads that move bytes. TLS of two transfers at once fills two cores; blobs are hashed elsewhere.
const RUNTIME_THREADS: usize = 2;

/// Which registries are spoken to without TLS. Registries on this machine always are, unless they speak TLS.
#[derive(Clone, Debug, Default)]
pub enum PlainHttp {
    /// Those on this machine alone.
    #[default]
    Loopback,
    /// These besides.
    Hosts(BTreeSet<RegistryHost>),
    /// Every one, without trying TLS first.
    Always,
}

impl PlainHttp {
    /// Whether `host` may be spoken to without TLS.
    fn allows(&self, host: &str) -> bool {
        let Ok(host) = host.parse::<RegistryHost>() else { return false };
        match self {
            PlainHttp::Always => true,
            PlainHttp::Hosts(hosts) if hosts.contains(&host) => true,
            _ => host.is_loopback(),
        }
    }
}

/// Where the client finds credentials.
#[derive(Clone, Debug)]
pub enum CredentialSource {
    /// Nowhere.
    Anonymous,
    /// This one, for this registry.
    Fixed {
        /// The registry it belongs to; it is sent to no other.
        host: RegistryHost,
        /// The credential.
        credential: Credential,
    },
    /// In files that `rimg login`, docker and podman keep.
    Files(AuthFiles),
}

/// Called with a warning, from any thread.
#[derive(Clone)]
pub struct OnWarning(pub Arc<dyn Fn(&str) + Send + Sync>);

impl std::fmt::Debug for OnWarning {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("OnWarning")
    }
}

/// How a [`Client`] behaves.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// Which registries are spoken to without TLS.
    pub plain_http: PlainHttp,
    /// Where credentials are found.
    pub credentials: CredentialSource,
    /// Told of files and helpers that cannot be used, in words for the user. The registry may need no credentials.
    pub on_warning: Option<OnWarning>,
    /// The `User-Agent` header.
    pub user_agent: String,
    /// How often failed requests are repeated.
    pub retry: RetryPolicy,
    /// Files of certificate authorities (PEM) to trust besides the system's.
    pub ca_files: Vec<PathBuf>,
    /// Folders with a folder for each registry, holding `*.crt` authorities and `*.cert`/`*.key` identities.
    pub certificate_folders: Vec<PathBuf>,
    /// Longest wait for a connection.
    pub connect_timeout: Duration,
    /// Longest time without any progress on a connection.
    pub idle_timeout: Duration,
    /// Uploads go in pieces of this size instead of whole; for proxies that limit the size of requests.
    pub chunk_bytes: Option<u64>,
}

impl Default for ClientOptions {
    fn default() -> Self {
        ClientOptions {
            plain_http: PlainHttp::default(),
            credentials: CredentialSource::Files(AuthFiles::from_environment()),
            on_warning: None,
            user_agent: concat!("rimg/", env!("CARGO_PKG_VERSION")).to_owned(),
            retry: RetryPolicy::default(),
            ca_files: Vec::new(),
            certificate_folders: certificate_folders(std::env::var_os("HOME").map(PathBuf::from)),
            connect_timeout: Duration::from_secs(30),
            // Registries that commit a large blob to an object store are silent for minutes.
            idle_timeout: Duration::from_secs(180),
            chunk_bytes: None,
        }
    }
}

/// Where docker and podman look for certificates: the user's own folder comes first.
fn certificate_folders(home: Option<PathBuf>) -> Vec<PathBuf> {
    let own = home.filter(|home| home.is_absolute()).map(|home| home.join(".config/containers/certs.d"));
    let shared = ["/etc/docker/certs.d", "/etc/containers/certs.d"].map(PathBuf::from);
    own.into_iter().chain(shared).collect()
}

/// A client of any number of registries. Clones share connections, tokens and the runtime, which starts with
/// the first request.
#[derive(Clone, Debug)]
pub struct Client {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    wire: Arc<Wire>,
    runtime: OnceLock<Result<Runtime, String>>,
    sessions: Mutex<HashMap<RegistryHost, Arc<Session>>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Without waiting for transfers that nobody reads any more.
        if let Some(Ok(runtime)) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Client {
    /// A client that behaves as `options` say. Nothing is contacted yet.
    pub fn new(options: ClientOptions) -> Client {
        let wire = Arc::new(Wire::new(options));
        Client { inner: Arc::new(Inner { wire, runtime: OnceLock::new(), sessions: Mutex::default() }) }
    }

    /// The repository that `reference` names; its tag and digest play no part.
    pub fn repository(&self, reference: &Reference) -> RemoteRepository {
        RemoteRepository::new(self.clone(), reference)
    }

    /// Repositories that the registry lists (`_catalog`), at most `limit`. Many registries refuse to tell.
    pub fn catalog(&self, host: &RegistryHost, limit: usize) -> Result<Vec<String>, ClientError> {
        self.run(async {
            let session = self.session(host).await?;
            listing::catalog(&session, limit).await
        })
    }

    /// Runs `work` to its end on the client's runtime.
    fn run<T>(&self, work: impl Future<Output = Result<T, ClientError>>) -> Result<T, ClientError> {
        self.runtime()?.block_on(work)
    }

    fn runtime(&self) -> Result<&Runtime, ClientError> {
        let start = || {
            tokio::runtime::Builder::new_multi_thread()
                .worker_threads(RUNTIME_THREADS)
                .thread_name("rimg-client")
                .enable_all()
                .build()
                .map_err(|error| error.to_string())
        };
        self.inner.runtime.get_or_init(start).as_ref().map_err(|reason| ClientError::Setup(reason.clone()))
    }

    /// The conversation with `host`, begun if it has not yet been.
    async fn session(&self, host: &RegistryHost) -> Result<Arc<Session>, ClientError> {
        let known = |sessions: &HashMap<_, _>| sessions.get(host).map(Arc::clone);
        if let Some(session) = known(&self.inner.sessions.lock().unwrap_or_else(PoisonError::into_inner)) {
            return Ok(session);
        }
        let begun = begin(&self.inner.wire, host).await?;
        let mut sessions = self.inner.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Arc::clone(sessions.entry(host.clone()).or_insert(begun)))
    }
}

/// Begins a conversation: chooses between HTTP and HTTPS. A registry on this machine is asked in the clear
/// first, since nobody can listen in between, and by HTTPS if it turns out to speak only that.
async fn begin(wire: &Arc<Wire>, host: &RegistryHost) -> Result<Arc<Session>, ClientError> {
    let session = |scheme| {
        let endpoint = Endpoint::new(host, scheme)
            .map_err(|reason| ClientError::Setup(format!("`{host}` cannot be contacted: {reason}")))?;
        Ok(Arc::new(Session::new(Arc::clone(wire), endpoint)))
    };
    match &wire.options.plain_http {
        PlainHttp::Always => return session(Scheme::Http),
        PlainHttp::Hosts(hosts) if hosts.contains(host) => return session(Scheme::Http),
        _ if !host.is_loopback() || wire.certificates_of(host.as_str()).is_some() => {
            return session(Scheme::Https);
        }
        _ => {}
    }
    let plain = session(Scheme::Http)?;
    let request = Request::new(Method::GET, plain.endpoint.root(), "the registry");
    let probe = wire.pool(&request.url)?.get(request.url.clone()).send();
    let Ok(answer) = tokio::time::timeout(wire.options.idle_timeout, probe).await else {
        return Err(wire.silent(&request.url, &request.what));
    };
    match answer {
        // Go's and nginx's words for a client that forgot TLS.
        Ok(response) if response.status() == StatusCode::BAD_REQUEST => {
            let body = wire.read(response, &request.what, 4096).await.unwrap_or_default();
            if String::from_utf8_lossy(&body).contains("HTTPS") { session(Scheme::Https) } else { Ok(plain) }
        }
        Ok(response) => {
            plain.learn(response.headers()).await;
            Ok(plain)
        }
        // Not refused, yet not understood: bytes of TLS, or a connection closed at once.
        Err(error) if !error.is_connect() && !error.is_timeout() => session(Scheme::Https),
        Err(_) => Ok(plain),
    }
}
