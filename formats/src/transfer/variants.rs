//! Which documents of an index a copy takes.

use std::io::Read;

use super::{ImageSource, TransferError, Version, fetch, is_not_found};
use crate::config::{CONFIG_BYTES_MAX, ImageConfig};
use crate::descriptor::Descriptor;
use crate::digest::Digest;
use crate::manifest::{Index, Manifest, ManifestOrIndex};
use crate::media_type::MediaKind;
use crate::platform::Platform;
use crate::variant::{Documents, Variant, choose};

/// The documents of a source, for choosing among them.
struct OfSource<'a>(&'a dyn ImageSource);

impl Documents for OfSource<'_> {
    type Error = TransferError;

    fn document(&self, entry: &Descriptor) -> Result<Option<ManifestOrIndex>, TransferError> {
        match fetch(self.0, &Version::Digest(entry.digest), Some(entry)) {
            Ok((_, document)) => Ok(Some(document)),
            Err(error) if is_odd(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn platform(&self, manifest: &Manifest) -> Result<Option<Platform>, TransferError> {
        let config = manifest.config();
        if config.size > CONFIG_BYTES_MAX as u64 {
            return Ok(None);
        }
        let mut raw = Vec::new();
        let read = self.0.open(config, 0).and_then(|content| {
            let action = format!("read the configuration {}", config.digest);
            content.take(config.size + 1).read_to_end(&mut raw).map_err(TransferError::io(action))
        });
        match read {
            Ok(_) => {}
            Err(error) if is_not_found(&error) => return Ok(None),
            Err(error) => return Err(error),
        }
        let genuine = Digest::of(config.digest.algorithm(), &raw) == config.digest;
        Ok(ImageConfig::parse(&raw).ok().filter(|_| genuine).map(|config| config.platform))
    }
}

/// Whether an entry cannot be used, and the others of its index can.
fn is_odd(error: &TransferError) -> bool {
    is_not_found(error) || matches!(error, TransferError::Manifest { .. } | TransferError::Mismatch { .. })
}

/// The variant of `index` for `wanted`; an error that lists what there is.
pub(super) fn variant(
    source: &dyn ImageSource,
    index: &Index,
    wanted: &Platform,
    what: &Version,
) -> Result<Variant, TransferError> {
    let choice = choose(index, wanted, &OfSource(source))?;
    choice.best.ok_or_else(|| TransferError::PlatformUnavailable {
        what: what.to_string(),
        wanted: wanted.to_string(),
        available: if choice.available.is_empty() {
            "nothing".to_owned()
        } else {
            choice.available.join(", ")
        },
    })
}

/// Whether an entry of an index is content of another kind than a manifest: what BuildKit exports as a cache lists
/// layers.
pub(super) fn is_blob(entry: &Descriptor) -> bool {
    !entry.media_type.is_empty() && !matches!(entry.kind(), MediaKind::Manifest | MediaKind::Index)
}

/// Whether the source has every blob of a manifest.
pub(super) fn has_blobs(source: &dyn ImageSource, document: &ManifestOrIndex) -> Result<bool, TransferError> {
    let ManifestOrIndex::Manifest(manifest) = document else { return Ok(true) };
    for blob in std::iter::once(manifest.config()).chain(manifest.layers()) {
        let foreign = matches!(blob.kind(), MediaKind::Layer { foreign: true, .. });
        if !foreign && !source.has(blob)? {
            return Ok(false);
        }
    }
    Ok(true)
}
