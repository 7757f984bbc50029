//! Our client and our server, with a network between them: one that breaks, one that crawls, or one behind TLS.

#![allow(clippy::unwrap_used)]

mod relay;
mod tls;
mod transfers;
