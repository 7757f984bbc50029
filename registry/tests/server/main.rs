//! The registry server, driven over real sockets.
//!
//! Each test has a store and a server of its own. The client is a few lines over `TcpStream`, so that requests can
//! be as wrong, as slow and as short as strangers make them.

#![allow(clippy::unwrap_used)]

mod blobs;
mod harness;
mod hostile;
mod listings;
mod manifests;
mod referrers;
mod restarts;
mod uploads;
mod users;
