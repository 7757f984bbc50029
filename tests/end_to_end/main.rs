//! End-to-end tests of the binary: only what needs all the parts together. Everything else is tested lower down.
#![allow(clippy::unwrap_used)]

mod build;
mod command_line;
mod crash;
mod images;
mod run;
mod transfer;
mod world;
