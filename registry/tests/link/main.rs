//! Pushing and pulling over bad networks: our client and our server, with a [`Link`](relay::Link) between them.

#![allow(clippy::unwrap_used)]

mod relay;
mod transfers;
