//! A remote repository as either end of [`copy_image`](rimg_formats::transfer::copy_image): pulling is copying
//! from it, pushing is copying to it.

use std::collections::HashMap;
use std::io::{self, Read};
use std::sync::{Arc, PoisonError};

use rimg_formats::descriptor::Descriptor;
use rimg_formats::digest::Digest;
use rimg_formats::transfer::{ImageSink, ImageSource, ManifestBytes, OpenAt, TransferError, Version};

use super::error::ClientError;
use super::repository::RemoteRepository;

/// Blobs sent to one registry at the same time at most: more only compete, and some registries count them.
const UPLOADS_MAX: usize = 16;
/// Bytes of manifests kept for naming them at the end. The image named is nearly always among the last.
const RECENT_BYTES_MAX: usize = 16 * 1024 * 1024;

impl From<ClientError> for TransferError {
    fn from(error: ClientError) -> TransferError {
        TransferError::Remote(Box::new(error))
    }
}

/// Manifests that were put a moment ago.
#[derive(Debug, Default)]
pub(super) struct RecentManifests {
    raw: HashMap<Digest, Arc<[u8]>>,
    bytes: usize,
}

impl RecentManifests {
    fn keep(&mut self, digest: Digest, raw: &[u8]) {
        if self.bytes.saturating_add(raw.len()) > RECENT_BYTES_MAX {
            *self = RecentManifests::default();
        }
        if self.raw.insert(digest, raw.into()).is_none() {
            self.bytes += raw.len();
        }
    }
}

impl ImageSource for RemoteRepository {
    fn manifest(&self, version: &Version) -> Result<ManifestBytes, TransferError> {
        let received = match version {
            Version::Tag(tag) => self.manifest_by_tag(tag)?,
            Version::Digest(digest) => self.manifest_by_digest(digest).map_err(|error| match error {
                // Of an index, some variants may be missing on purpose: the copy decides.
                ClientError::NotFound { host, what, .. } => {
                    TransferError::NotFound(format!("{what} on {host}"))
                }
                other => other.into(),
            })?,
        };
        Ok(ManifestBytes { raw: received.raw, media_type: received.media_type })
    }

    fn open(&self, blob: &Descriptor, offset: u64) -> Result<Box<dyn Read + Send + '_>, TransferError> {
        Ok(self.open_blob(blob, offset)?)
    }

    /// Asked of entries whose type says that they are no manifests; a registry may keep such a one among its manifests.
    fn has(&self, blob: &Descriptor) -> Result<bool, TransferError> {
        Ok(self.has_blob(blob)?)
    }

    fn referrers(&self, subject: &Digest) -> Result<Vec<Descriptor>, TransferError> {
        Ok(RemoteRepository::referrers(self, subject, None)?)
    }
}

impl ImageSink for RemoteRepository {
    fn contains(&self, blob: &Descriptor) -> Result<bool, TransferError> {
        Ok(self.has_blob(blob)?)
    }

    /// Content that can be read once only cannot be taken up again after a broken connection or a redirect, unless
    /// nothing of it had been read.
    fn write(&self, blob: &Descriptor, content: &mut (dyn Read + Send)) -> Result<(), TransferError> {
        let mut content = Some(content);
        let mut open = |offset: u64| -> io::Result<Box<dyn Read + Send + '_>> {
            match content.take() {
                Some(content) if offset == 0 => Ok(Box::new(content)),
                _ => Err(io::Error::other("it has to be sent again, but can be read only once")),
            }
        };
        Ok(self.push_blob(blob, &mut open)?)
    }

    fn write_from(&self, blob: &Descriptor, open: &OpenAt<'_>) -> Result<(), TransferError> {
        let mut open = |offset| open(offset).map_err(io::Error::other);
        Ok(self.push_blob(blob, &mut open)?)
    }

    fn put_manifest(&self, descriptor: &Descriptor, raw: &[u8]) -> Result<(), TransferError> {
        RemoteRepository::put_manifest_as(self, raw, &descriptor.media_type, &descriptor.digest, None)?;
        self.put.lock().unwrap_or_else(PoisonError::into_inner).keep(descriptor.digest, raw);
        Ok(())
    }

    fn publish(&self, root: &Descriptor) -> Result<(), TransferError> {
        let recent = self.put.lock().unwrap_or_else(PoisonError::into_inner).raw.get(&root.digest).cloned();
        let raw = match recent {
            Some(raw) => raw,
            None if self.tags.is_empty() => return Ok(()),
            None => self.manifest_by_digest(&root.digest)?.raw.into(),
        };
        for tag in &self.tags {
            self.put_manifest_as(&raw, &root.media_type, &root.digest, Some(tag))?;
        }
        Ok(())
    }

    fn parallel_max(&self) -> usize {
        UPLOADS_MAX
    }
}
