//! A repository of the store as either end of a copy.

use std::io::{self, Read};
use std::sync::{Mutex, PoisonError};

use super::{ImageSink, ImageSource, ManifestBytes, TransferError, Version};
use crate::descriptor::Descriptor;
use crate::digest::Digest;
use crate::reference::Tag;
use crate::store::lease::Lease;
use crate::store::{Expect, Precondition, PutOptions, Repository, StoreError};

impl ImageSource for Repository {
    fn manifest(&self, version: &Version) -> Result<ManifestBytes, TransferError> {
        let digest = match version {
            Version::Digest(digest) => *digest,
            Version::Tag(tag) => Repository::resolve(self, tag)?
                .ok_or_else(|| StoreError::TagUnknown { name: self.name().clone(), tag: tag.clone() })?,
        };
        let stored = Repository::manifest(self, &digest)?;
        Ok(ManifestBytes { raw: stored.raw.to_vec(), media_type: stored.media_type })
    }

    fn open(&self, blob: &Descriptor, offset: u64) -> Result<Box<dyn Read + Send + '_>, TransferError> {
        let found = self.blob(&blob.digest)?.ok_or(StoreError::BlobUnknown(blob.digest))?;
        let mut file = found.into_file();
        io::Seek::seek(&mut file, io::SeekFrom::Start(offset))
            .map_err(TransferError::io(format!("seek in {}", blob.digest)))?;
        Ok(Box::new(file))
    }

    fn has(&self, blob: &Descriptor) -> Result<bool, TransferError> {
        Ok(self.store().blob_size(&blob.digest)? == Some(blob.size))
    }

    fn referrers(&self, subject: &Digest) -> Result<Vec<Descriptor>, TransferError> {
        let listed = Repository::referrers(self, subject)?;
        // What an old client listed under a tag need not be here.
        let mut present = Vec::new();
        for descriptor in listed {
            if self.media_type(&descriptor.digest)?.is_some() {
                present.push(descriptor);
            }
        }
        Ok(present)
    }
}

/// A repository of the store as the end of a copy.
#[derive(Debug)]
pub struct RepositorySink {
    repository: Repository,
    tags: Vec<Tag>,
    /// What was put and has no name yet: a collector that comes in between leaves it alone. Blobs are held by the
    /// session that brought them until a manifest names them.
    held: Mutex<Vec<Lease>>,
}

impl RepositorySink {
    /// Will point `tags` of `repository` at the image. What was copied is held until the sink is dropped.
    pub fn new(repository: Repository, tags: Vec<Tag>) -> RepositorySink {
        RepositorySink { repository, tags, held: Mutex::default() }
    }
}

impl ImageSink for RepositorySink {
    fn contains(&self, blob: &Descriptor) -> Result<bool, TransferError> {
        let store = self.repository.store();
        if store.blob_size(&blob.digest)? != Some(blob.size) || !store.contains(&blob.digest)? {
            return Ok(false);
        }
        // A blob that was touched since it was verified is hashed: a copy is the chance to heal it.
        match store.verified_blob(&blob.digest) {
            Ok(found) => Ok(found.is_some()),
            Err(StoreError::Damaged { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn write(&self, blob: &Descriptor, content: &mut (dyn Read + Send)) -> Result<(), TransferError> {
        let mut ingest = self.repository.store().ingest_local()?;
        // One byte more than promised is enough to know.
        let mut bounded = content.take(blob.size.saturating_add(1));
        let copied = ingest.append_from(&mut bounded);
        copied.map_err(TransferError::io(format!("fetch {}", blob.digest)))??;
        ingest.commit(Some(&Expect::from(blob)))?;
        Ok(())
    }

    fn put_manifest(&self, descriptor: &Descriptor, raw: &[u8]) -> Result<(), TransferError> {
        // Before the put, which gives back the session's own lease.
        let lease = self.repository.store().lease(&descriptor.digest)?;
        self.held.lock().unwrap_or_else(PoisonError::into_inner).push(lease);
        let options = PutOptions { digest: Some(descriptor.digest), ..PutOptions::local() };
        self.repository.put_manifest(raw, Some(&descriptor.media_type), &[], &options)?;
        Ok(())
    }

    fn publish(&self, root: &Descriptor) -> Result<(), TransferError> {
        for tag in &self.tags {
            self.repository.set_tag(tag, &root.digest, Precondition::None)?;
        }
        Ok(())
    }
}
