//! [`LayerSource`]: where the bytes and the indexes of a stack's layers come from.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::sync::Arc;

use rimg_formats::digest::{DiffId, Digest};
use rimg_formats::layer::{LayerIndex, MergedTree};
use rimg_formats::store::{Blob, Store};

/// Bytes of a blob read at once.
const READ_BYTES: usize = 1 << 20;

/// The layers of one image, the lowest first.
pub trait LayerSource: Sync {
    /// The bytes of a layer, compressed or not.
    ///
    /// # Errors
    /// When they are not there or cannot be read.
    fn open(&self, number: usize) -> io::Result<Box<dyn Read + Send + '_>>;

    /// The index of a layer. It proves that the layer's tar has the diff_id that the image names.
    ///
    /// # Errors
    /// When the layer cannot be read or is another one.
    fn index(&self, number: usize) -> io::Result<Arc<LayerIndex>>;

    /// The blob with this digest.
    ///
    /// # Errors
    /// When it is not there or cannot be read.
    fn blob(&self, digest: &Digest) -> io::Result<File>;

    /// What the layers below layer `number` make together.
    ///
    /// # Errors
    /// As [`LayerSource::index`].
    fn below(&self, number: usize) -> io::Result<MergedTree> {
        let indexes = (0..number).map(|number| self.index(number)).collect::<io::Result<Vec<_>>>()?;
        Ok(MergedTree::new(&indexes))
    }
}

/// The layers of an image in a store.
#[derive(Debug)]
pub struct StoreLayers<'s> {
    store: &'s Store,
    layers: Vec<(Digest, DiffId)>,
}

impl<'s> StoreLayers<'s> {
    /// The layers with these blobs and diff_ids.
    pub fn new(store: &'s Store, layers: impl IntoIterator<Item = (Digest, DiffId)>) -> StoreLayers<'s> {
        StoreLayers { store, layers: layers.into_iter().collect() }
    }

    fn verified(&self, digest: &Digest) -> io::Result<Blob> {
        let missing = || io::Error::other(format!("layer {digest} is not in the store"));
        self.store.verified_blob(digest).map_err(io::Error::other)?.ok_or_else(missing)
    }
}

impl LayerSource for StoreLayers<'_> {
    fn open(&self, number: usize) -> io::Result<Box<dyn Read + Send + '_>> {
        let file = self.verified(&self.layers[number].0)?.into_file();
        Ok(Box::new(BufReader::with_capacity(READ_BYTES, file)))
    }

    fn index(&self, number: usize) -> io::Result<Arc<LayerIndex>> {
        let (digest, diff_id) = &self.layers[number];
        self.store.layer_index_of(digest, Some(diff_id)).map_err(io::Error::other)
    }

    fn blob(&self, digest: &Digest) -> io::Result<File> {
        Ok(self.verified(digest)?.into_file())
    }
}
