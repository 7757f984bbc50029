//! `rimg pull`: an image from a registry into the store.

use rimg_formats::platform::Platform;
use rimg_formats::reference::Reference;
use rimg_formats::transfer::Platforms;
use serde_json::json;

use super::remote::{self, RemoteArgs};
use crate::failure::Failure;
use crate::session::Session;
use crate::terminal::{print_json, print_line};

/// Flags of `rimg pull`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Docker Hub is the registry of names that show none. The digest is the only line on standard output."
)]
pub(crate) struct PullArgs {
    /// The image
    #[arg(value_name = "[REGISTRY/]NAME[:TAG|@DIGEST]")]
    image: Reference,
    /// Which variant of an image for several platforms [default: the host's]
    #[arg(long, value_name = "OS/ARCH", conflicts_with = "all_platforms")]
    platform: Option<Platform>,
    /// Pull every variant
    #[arg(long)]
    all_platforms: bool,
    #[command(flatten)]
    remote: RemoteArgs,
}

pub(crate) fn run(session: &Session, args: PullArgs) -> Result<(), Failure> {
    let store = session.store()?;
    let platforms = if args.all_platforms { Platforms::All } else { remote::one_platform(args.platform) };
    let pulled = remote::pull(&store, &args.image, platforms, &args.remote, &args.remote.display())?;
    match session.json() {
        true => print_json(
            &json!({"name": args.image.name(), "digest": pulled.digest, "mediaType": pulled.media_type}),
        ),
        false => print_line(&pulled.digest.to_string()),
    }
}
