//! `rimg inspect`: everything the store knows of images, as JSON.

use rimg_formats::manifest::ManifestOrIndex;
use rimg_formats::platform::Platform;
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::session::Session;
use crate::terminal::print_json;

/// Flags of `rimg inspect`.
#[derive(Debug, clap::Args)]
pub(crate) struct InspectArgs {
    /// Names, digests, or beginnings of digests
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    /// Which variant of an index to show [default: this machine's]
    #[arg(long, value_name = "OS/ARCH")]
    platform: Option<Platform>,
}

pub(crate) fn run(session: &Session, args: InspectArgs) -> Result<(), Failure> {
    let store = session.store()?;
    let mut all = Vec::new();
    for name in &args.images {
        let resolved = store.resolve_text(name)?;
        let raw = |raw: &[u8]| serde_json::from_slice::<Value>(raw);
        let mut value = json!({
            "name": resolved.name,
            "tag": resolved.tag,
            "digest": resolved.digest,
            "mediaType": resolved.media_type,
        });
        if let ManifestOrIndex::Index(index) = store.manifest(&resolved.digest)? {
            value["index"] = raw(index.raw())?;
        }
        let image = store.image(&resolved.digest, args.platform.as_ref())?;
        value["platform"] = json!(image.config.platform.to_string());
        value["manifestDigest"] = json!(image.digest);
        value["manifest"] = raw(image.manifest.raw())?;
        value["configDigest"] = json!(image.manifest.config().digest);
        value["config"] = serde_json::to_value(&image.config)?;
        value["size"] =
            json!(image.manifest.layers().iter().fold(0u64, |sum, layer| sum.saturating_add(layer.size)));
        all.push(value);
    }
    print_json(&all)
}
