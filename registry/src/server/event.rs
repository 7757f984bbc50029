//! [`Event`]: what the server tells its owner. The server itself writes no log.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// Something worth a line in a log.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// A request was answered; a body may still be on its way.
    Request {
        /// Who asked.
        peer: SocketAddr,
        /// The method.
        method: String,
        /// Path and query as they came, shortened when long.
        target: String,
        /// The status answered.
        status: u16,
        /// From the request's head to the answer's.
        elapsed: Duration,
        /// What went wrong, when the answer does not say all of it.
        cause: Option<String>,
    },
    /// A blob's body was broken off, because the file could not be read on.
    BodyFailed {
        /// The blob.
        digest: String,
        /// Why.
        cause: String,
    },
    /// A connection could not be accepted; the server goes on.
    AcceptFailed {
        /// Why.
        cause: String,
    },
    /// An address has as many connections as one may have; further ones are refused. Told once, until it has none.
    ConnectionsRefused {
        /// Who asked for more.
        peer: SocketAddr,
    },
    /// Abandoned uploads were removed.
    UploadsExpired {
        /// How many.
        count: u64,
        /// How many bytes that freed.
        bytes: u64,
    },
    /// Housekeeping failed; it is tried again later.
    SweepFailed {
        /// Why.
        cause: String,
    },
}

/// Receives events, on the async threads: it must not block for long.
pub type Observer = Arc<dyn Fn(Event) + Send + Sync>;
