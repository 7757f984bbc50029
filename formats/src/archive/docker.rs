//! Archives of `docker save`: an image is a configuration and layer files, without a manifest.
//!
//! The manifest is made here. Layers keep their bytes, compressed or not, so loading the same archive twice, here or
//! elsewhere, gives the same image. Each layer is checked against the configuration's `diff_ids`: nothing else in
//! such an archive says what a layer must be.

use super::DockerImage;
use super::load::{Contents, LoadOptions, Loaded, Stored, refused, repo_tags, unnamed};
use crate::compression::Compression;
use crate::config::{CONFIG_BYTES_MAX, ImageConfig};
use crate::descriptor::Descriptor;
use crate::digest::DiffId;
use crate::layout::LayoutName;
use crate::manifest::Manifest;
use crate::media_type;
use crate::store::{Precondition, PutOptions, Store, StoreError};
use crate::transfer::TransferError;

/// Loads the images of `manifest.json`.
pub(super) fn load_images(
    store: &Store,
    contents: &Contents,
    images: &[DockerImage],
    options: &LoadOptions<'_>,
) -> Result<Vec<Loaded>, TransferError> {
    let mut stored = Vec::new();
    for image in images {
        let manifest = manifest_of(store, contents, image)?;
        let mut names = repo_tags(image);
        if names.is_empty() {
            names.push(LayoutName { name: None, tag: None });
        }
        for name in names {
            let name = name.completed(options.name.as_ref());
            let repository = store.repository(&name.name.unwrap_or_else(unnamed));
            // Before the put, which gives back the session's own lease.
            let lease = store.lease(&manifest.digest())?;
            repository.put_manifest(manifest.raw(), None, &[], &PutOptions::local())?;
            stored.push((repository, name.tag, manifest.digest(), lease));
        }
    }
    // Names come when everything is there.
    let mut loaded = Vec::with_capacity(stored.len());
    for (repository, tag, digest, _) in &stored {
        if let Some(tag) = tag {
            repository.set_tag(tag, digest, Precondition::None)?;
        }
        loaded.push(Loaded { name: repository.name().clone(), tag: tag.clone(), digest: *digest });
    }
    Ok(loaded)
}

fn manifest_of(store: &Store, contents: &Contents, image: &DockerImage) -> Result<Manifest, TransferError> {
    let stored = contents.file(&image.config)?;
    let raw = store.read_blob(&stored.digest, CONFIG_BYTES_MAX as u64)?;
    let config = ImageConfig::parse_for(&raw, image.layers.len())
        .map_err(|error| refused(&image.config, &format!("it is not a valid configuration: {error}")))?;
    let mut layers = Vec::with_capacity(image.layers.len());
    for (path, diff_id) in image.layers.iter().zip(&config.rootfs.diff_ids) {
        let layer = contents.file(path)?;
        check_layer(store, path, &layer, diff_id)?;
        let media_type = media_type::oci_layer(layer.compression).ok_or_else(|| {
            refused(path, &format!("layers compressed with {} are not supported", layer.compression.name()))
        })?;
        layers.push(Descriptor::new(media_type, layer.digest, layer.size));
    }
    let config = Descriptor::new(media_type::OCI_CONFIG, stored.digest, stored.size);
    Ok(Manifest::build(config, layers, Default::default()))
}

/// Refuses a layer that is not the one its image was made of.
fn check_layer(store: &Store, path: &str, layer: &Stored, diff_id: &DiffId) -> Result<(), TransferError> {
    let comparable = layer.digest.algorithm() == diff_id.digest().algorithm();
    if layer.compression == Compression::None && comparable {
        return match layer.digest == *diff_id.digest() {
            true => Ok(()),
            false => {
                Err(refused(path, &format!("it is {}, but the configuration says {diff_id}", layer.digest)))
            }
        };
    }
    match store.layer_index_of(&layer.digest, Some(diff_id)) {
        Ok(_) => Ok(()),
        Err(StoreError::Layer { source, .. }) => Err(refused(path, &source.to_string())),
        Err(error) => Err(error.into()),
    }
}
