//! `rimg inspect`: everything the store knows of images, as JSON.

use rimg_formats::manifest::{Manifest, ManifestOrIndex};
use rimg_formats::platform::Platform;
use rimg_formats::store::StoreError;
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
    /// Which variant of an index to show [default: the host's]
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
        match store.manifest(&resolved.digest)? {
            ManifestOrIndex::Index(index) => value["index"] = raw(index.raw())?,
            // An artifact is its manifest: there is nothing to run in it.
            ManifestOrIndex::Manifest(manifest) if !manifest.is_image() => {
                value["artifactType"] = json!(manifest.artifact_type());
                value["manifestDigest"] = json!(resolved.digest);
                value["manifest"] = raw(manifest.raw())?;
                value["size"] = json!(bytes(&manifest));
                all.push(value);
                continue;
            }
            ManifestOrIndex::Manifest(_) => {}
        }
        let image = match store.image(&resolved.digest, args.platform.as_ref()) {
            // An index without a variant for this machine, or of something else than images.
            Err(StoreError::PlatformUnavailable { .. }) if args.platform.is_none() => {
                all.push(value);
                continue;
            }
            image => image?,
        };
        value["platform"] = json!(image.config.platform.to_string());
        value["manifestDigest"] = json!(image.digest);
        value["manifest"] = raw(image.manifest.raw())?;
        value["configDigest"] = json!(image.manifest.config().digest);
        value["config"] = serde_json::to_value(&image.config)?;
        value["size"] = json!(bytes(&image.manifest));
        all.push(value);
    }
    print_json(&all)
}

/// Bytes of a manifest's layers, which may say anything.
fn bytes(manifest: &Manifest) -> u64 {
    manifest.layers().iter().fold(0, |sum: u64, layer| sum.saturating_add(layer.size))
}
