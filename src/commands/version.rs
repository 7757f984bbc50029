//! `rimg version`: which rimg this is.

use serde_json::json;

use crate::failure::Failure;
use crate::session::Session;
use crate::terminal::{print_json, print_line};

/// Flags of `rimg version`.
#[derive(Debug, clap::Args)]
pub(crate) struct VersionArgs {}

pub(crate) fn run(session: &Session, _: VersionArgs) -> Result<(), Failure> {
    let version = env!("CARGO_PKG_VERSION");
    let platform = rimg_formats::platform::Platform::host().to_string();
    match session.json() {
        true => print_json(&json!({"version": version, "platform": platform})),
        false => print_line(&format!("rimg {version} ({platform})")),
    }
}
