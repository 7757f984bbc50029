//! Layer indexes beside the blobs: `index/<alg>/<hex>`, written with a layer that is built here, made by one scan
//! of a layer that came from elsewhere, and made again whenever the file is missing, of another version or
//! damaged. An index file is never fsynced: it carries a checksum, and losing it costs one scan.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::error::StoreError;
use super::ingest::{Committed, Expect, Ingest};
use super::{Store, random_id};
use crate::digest::{DiffId, Digest};
use crate::layer::{Expected, LayerError, LayerIndex, Limits};

/// Indexes in use at the moment, so that a base image's are in memory once.
#[derive(Debug, Default)]
pub(super) struct IndexCache(Mutex<HashMap<Digest, Weak<LayerIndex>>>);

impl Store {
    /// Commits a layer together with the index that its writer made.
    pub fn commit_layer(&self, ingest: Ingest, index: &LayerIndex) -> Result<Committed, StoreError> {
        let expect = Expect { digest: index.blob, size: Some(index.blob_size) };
        let committed = ingest.commit(Some(&expect))?;
        self.keep_index(index);
        Ok(committed)
    }

    /// The index of a layer blob.
    pub fn layer_index(&self, layer: &Digest) -> Result<Arc<LayerIndex>, StoreError> {
        self.layer_index_of(layer, None)
    }

    /// The index of a layer blob whose uncompressed tar must have the digest `diff_id`: for layers of an image,
    /// where the configuration says so. A layer that is something else fails with [`StoreError::Layer`].
    pub fn layer_index_of(
        &self,
        layer: &Digest,
        diff_id: Option<&DiffId>,
    ) -> Result<Arc<LayerIndex>, StoreError> {
        // An index has its diff_id by one algorithm; an image may name the layer by another.
        let comparable = |index: &LayerIndex| {
            diff_id.is_none_or(|diff_id| diff_id.digest().algorithm() == index.diff_id.digest().algorithm())
        };
        let index = match self.index_in_use(layer).filter(|index| comparable(index)) {
            Some(index) => index,
            None => match self.index_on_disk(layer).filter(comparable) {
                Some(index) => self.share_index(index),
                None => self.scan_layer(layer, diff_id)?,
            },
        };
        match diff_id {
            Some(expected) if index.diff_id != *expected => Err(StoreError::Layer {
                digest: *layer,
                source: Box::new(LayerError::Mismatch {
                    what: "diff_id",
                    expected: Box::new(*expected.digest()),
                    actual: Box::new(*index.diff_id.digest()),
                }),
            }),
            _ => Ok(index),
        }
    }

    fn index_in_use(&self, layer: &Digest) -> Option<Arc<LayerIndex>> {
        let cache = self.inner.indexes.0.lock().unwrap_or_else(PoisonError::into_inner);
        cache.get(layer).and_then(Weak::upgrade)
    }

    fn share_index(&self, index: LayerIndex) -> Arc<LayerIndex> {
        let (digest, index) = (index.blob, Arc::new(index));
        let mut cache = self.inner.indexes.0.lock().unwrap_or_else(PoisonError::into_inner);
        cache.retain(|_, weak| weak.strong_count() > 0);
        cache.insert(digest, Arc::downgrade(&index));
        index
    }

    /// The index file, if it can be used.
    fn index_on_disk(&self, layer: &Digest) -> Option<LayerIndex> {
        let mut file = File::open(self.index_path(layer)).ok()?;
        LayerIndex::read_from(&mut file).ok().filter(|index| index.blob == *layer)
    }

    fn scan_layer(&self, layer: &Digest, diff_id: Option<&DiffId>) -> Result<Arc<LayerIndex>, StoreError> {
        let blob = self.blob(layer)?.ok_or(StoreError::BlobUnknown(*layer))?;
        let expected = Expected { blob: Some(*layer), diff_id: diff_id.copied() };
        match LayerIndex::scan(blob.file(), Limits::default(), expected) {
            Ok(index) => {
                self.keep_index(&index);
                Ok(self.share_index(index))
            }
            Err(LayerError::Mismatch { what: "digest", actual, .. }) => {
                Err(self.quarantine(&blob, format!("its content hashes to {actual}")))
            }
            Err(source) => Err(StoreError::Layer { digest: *layer, source: Box::new(source) }),
        }
    }

    /// Writes an index beside its blob. A failure is not the caller's concern: the index will be made again.
    fn keep_index(&self, index: &LayerIndex) {
        let temporary = self.uploads_dir().join(random_id());
        if write_index(index, &temporary, &self.index_path(&index.blob)).is_err() {
            let _ = fs::remove_file(&temporary);
        }
    }
}

fn write_index(index: &LayerIndex, temporary: &Path, target: &Path) -> io::Result<()> {
    let mut file = File::create_new(temporary)?;
    // So that no sweeper takes it for a leftover.
    file.try_lock()?;
    io::Write::write_all(&mut file, &index.to_bytes())?;
    fs::rename(temporary, target)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::layer::{LayerOptions, LayerWriter};

    fn empty_layer(store: &Store) -> LayerIndex {
        let ingest = store.ingest_local().unwrap();
        let finished = LayerWriter::new(ingest, LayerOptions::default()).unwrap().finish().unwrap();
        store.commit_layer(finished.out, &finished.index).unwrap();
        finished.index
    }

    #[test]
    fn an_index_is_made_again_when_it_is_lost_or_damaged() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let index = empty_layer(&store);
        let path = store.index_path(&index.blob);
        assert!(path.exists());
        for damage in [None, Some(&b"rubbish"[..])] {
            match damage {
                None => fs::remove_file(&path).unwrap(),
                Some(bytes) => fs::write(&path, bytes).unwrap(),
            }
            assert_eq!(*store.layer_index(&index.blob).unwrap(), index);
            assert!(store.index_on_disk(&index.blob).is_some());
        }
        assert!(store.layer_index_of(&index.blob, Some(&index.diff_id)).is_ok());
        let other = DiffId::new(Digest::sha256(b"other"));
        assert!(matches!(store.layer_index_of(&index.blob, Some(&other)), Err(StoreError::Layer { .. })));
    }
}
