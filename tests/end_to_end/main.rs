//! End-to-end tests of the binary: only what needs all the parts together. Everything else is tested lower down.
#![allow(clippy::unwrap_used)]

mod build;
mod command_line;
mod concurrency;
mod crash;
mod damage;
mod faults;
mod http;
mod images;
mod inputs;
mod interrupt;
mod leftovers;
mod platforms;
mod power_cut;
mod proxy;
mod reproducibility;
mod run;
mod subordinate_ids;
mod transfer;
mod world;
