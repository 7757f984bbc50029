//! Directories of one image as `skopeo copy … dir:` and `podman save --format docker-dir` write them.
//!
//! ```text
//! version              Directory Transport Version: 1.1
//! manifest.json        the manifest, or an index
//! <hex>.manifest.json  a manifest that the index lists
//! <hex>                a blob
//! ```
//!
//! Everything is verified by whoever copies it, as from any source.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use crate::descriptor::Descriptor;
use crate::digest::Digest;
use crate::manifest::MANIFEST_BYTES_MAX;
use crate::root_dir::open_regular;
use crate::transfer::{ImageSource, ManifestBytes, TransferError, Version};

/// The file that holds the manifest.
const MANIFEST_FILE: &str = "manifest.json";

/// Such a directory to copy from.
pub(super) struct DirectorySource {
    root: PathBuf,
    manifest: Vec<u8>,
}

impl DirectorySource {
    /// Whether `root` is one: what sets it apart from a layout, and from an unpacked archive, is its `version`.
    pub(super) fn is_one(root: &Path) -> bool {
        let is_there = |name: &str| fs::symlink_metadata(root.join(name)).is_ok();
        is_there("version") && is_there(MANIFEST_FILE) && !is_there("index.json")
    }

    pub(super) fn open(root: &Path) -> Result<DirectorySource, TransferError> {
        let manifest = read_manifest(&root.join(MANIFEST_FILE))?;
        Ok(DirectorySource { root: root.to_owned(), manifest })
    }

    /// The digest of the image.
    pub(super) fn digest(&self) -> Digest {
        Digest::sha256(&self.manifest)
    }

    /// The size of its manifest in bytes.
    pub(super) fn size(&self) -> u64 {
        self.manifest.len() as u64
    }

    fn blob(&self, digest: &Digest) -> Result<File, TransferError> {
        let path = self.root.join(digest.hex());
        open_regular(&path).map_err(|error| unreadable(&path, error))
    }
}

impl ImageSource for DirectorySource {
    fn manifest(&self, version: &Version) -> Result<ManifestBytes, TransferError> {
        let raw = match version {
            Version::Digest(digest) if Digest::of(digest.algorithm(), &self.manifest) != *digest => {
                read_manifest(&self.root.join(format!("{}.{MANIFEST_FILE}", digest.hex())))?
            }
            _ => self.manifest.clone(),
        };
        Ok(ManifestBytes { raw, media_type: String::new() })
    }

    fn has(&self, blob: &Descriptor) -> Result<bool, TransferError> {
        Ok(fs::symlink_metadata(self.root.join(blob.digest.hex())).is_ok())
    }

    fn open(&self, blob: &Descriptor, offset: u64) -> Result<Box<dyn Read + Send + '_>, TransferError> {
        let mut file = self.blob(&blob.digest)?;
        let seek = file.seek(SeekFrom::Start(offset));
        seek.map_err(TransferError::io(format!("seek in {}", self.root.join(blob.digest.hex()).display())))?;
        Ok(Box::new(file))
    }
}

fn read_manifest(path: &Path) -> Result<Vec<u8>, TransferError> {
    let file = open_regular(path).map_err(|error| unreadable(path, error))?;
    let mut raw = Vec::new();
    let read = file.take(MANIFEST_BYTES_MAX as u64 + 1).read_to_end(&mut raw);
    read.map_err(TransferError::io(format!("read {}", path.display())))?;
    // One byte more than the limit is refused by whoever parses it.
    Ok(raw)
}

fn unreadable(path: &Path, error: io::Error) -> TransferError {
    match error.kind() {
        io::ErrorKind::NotFound => TransferError::NotFound(path.display().to_string()),
        _ => TransferError::io(format!("open {}", path.display()))(error),
    }
}
