//! The registry client against registries that misbehave on purpose (`fake`), and against a real one with
//! another client as the judge (`oracle`).
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod auth;
mod credentials;
mod download;
mod fake;
mod manifests;
mod oracle;
mod upload;
