//! `rimg push`: an image from the store to a registry.

use rimg_formats::platform::Platform;
use rimg_formats::reference::Reference;
use rimg_formats::store::Store;
use rimg_formats::transfer::{CopyOptions, Platforms, Version, copy_image};
use rimg_registry::client::{Client, RemoteRepository};
use serde_json::json;

use super::remote::{self, Bars, RemoteArgs};
use crate::failure::Failure;
use crate::session::Session;
use crate::terminal::{print_json, print_line};

/// Names of the store that are looked through for repositories of the target's registry.
const NAMES_MAX: usize = 1000;

/// Flags of `rimg push`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  rimg push registry.example/team/app:1\n  rimg push app registry.example/team/app:1"
)]
pub(crate) struct PushArgs {
    /// The local image; also where it is pushed to, unless a target follows
    image: String,
    /// Where to push it
    #[arg(value_name = "[REGISTRY/]NAME[:TAG]")]
    target: Option<Reference>,
    /// Push this variant of an image for several platforms, as an image of its own
    #[arg(long, value_name = "OS/ARCH")]
    platform: Option<Platform>,
    #[command(flatten)]
    remote: RemoteArgs,
}

pub(crate) fn run(session: &Session, args: PushArgs) -> Result<(), Failure> {
    let store = session.store()?;
    let resolved = store.resolve_text(&args.image)?;
    let target = match args.target {
        Some(target) => target,
        None => args.image.parse::<Reference>().map_err(|error| {
            Failure::from(error)
                .hint(format!("say where to push it: rimg push {} REGISTRY/NAME[:TAG]", args.image))
        })?,
    };
    let source = store.repository(&resolved.name);
    let client = Client::new(args.remote.client_options());
    let sink = remote_sink(&client, &store, &target)?;
    let display = args.remote.display();
    let bars = Bars::new(&display);
    let on_event = |event| bars.show(event);
    let options = CopyOptions {
        flatten: args.platform.is_some(),
        platforms: args.platform.map_or(Platforms::All, |platform| Platforms::Only(vec![platform])),
        referrers: true,
        parallel: args.remote.parallel.into(),
        on_event: Some(&on_event),
    };
    let pushed = copy_image(&source, &sink, &Version::Digest(resolved.digest), &options)
        .map_err(|error| remote::explain(error, &format!("failed to push {} to {target}", args.image)))?;
    match session.json() {
        true => print_json(&json!({"name": target, "digest": pushed.digest, "mediaType": pushed.media_type})),
        false => print_line(&pushed.digest.to_string()),
    }
}

/// Where the image goes. Repositories of the same registry that are known here may already have some of its blobs: the
/// registry is asked to take them from there.
fn remote_sink(client: &Client, store: &Store, target: &Reference) -> Result<RemoteRepository, Failure> {
    let known = store.repositories(None, NAMES_MAX)?;
    let neighbours = known
        .iter()
        .filter_map(|name| name.as_str().parse::<Reference>().ok())
        .filter(|other| other.registry.is_some() && other.registry_host() == target.registry_host())
        .map(|other| other.remote_repository());
    let tags = if target.digest.is_some() { None } else { Some(target.tag_or_latest()) };
    Ok(client.repository(target).mounting_from(neighbours).publishing(tags))
}
