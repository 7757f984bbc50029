//! What commands that look into images share: the merged view of an image's layers, from their indexes alone.

use std::io;
use std::sync::Arc;

use rimg_formats::layer::{LayerIndex, MergedTree};
use rimg_formats::platform::Platform;
use rimg_formats::store::Store;

use crate::failure::Failure;
use crate::session::Session;

/// An image opened for looking inside.
pub(crate) struct OpenImage {
    pub(crate) store: Store,
    pub(crate) tree: MergedTree,
}

impl OpenImage {
    /// Finds the image and reads the indexes of its layers.
    pub(crate) fn open(
        session: &Session,
        name: &str,
        platform: Option<&Platform>,
    ) -> Result<OpenImage, Failure> {
        let store = session.store()?;
        let resolved = store.resolve_text(name)?;
        let image = store.image(&resolved.digest, platform)?;
        let mut layers: Vec<Arc<LayerIndex>> = Vec::new();
        for (layer, diff_id) in &image.layers {
            layers.push(store.layer_index_of(&layer.digest, Some(diff_id))?);
        }
        let tree = MergedTree::new(&layers);
        Ok(OpenImage { store, tree })
    }

    /// Opens a layer's blob, hashed again if it was touched since it was last verified.
    pub(crate) fn blob(&self, digest: &rimg_formats::digest::Digest) -> io::Result<std::fs::File> {
        let blob = self.store.verified_blob(digest).map_err(io::Error::other)?;
        let missing =
            || io::Error::new(io::ErrorKind::NotFound, format!("layer {digest} is not in the store"));
        Ok(blob.ok_or_else(missing)?.into_file())
    }
}
