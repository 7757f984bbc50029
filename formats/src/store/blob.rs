//! [`Blob`]: the way bytes leave the store, and what happens to those that are no longer right.
//!
//! Three depths of checking, each the caller's choice: [`Store::blob`] compares the file's size with the
//! metadata at every open; [`Store::verified_blob`] trusts a file whose inode, size, mtime and ctime are those
//! of its last verification, and hashes it otherwise; [`Store::read_blob`] always hashes (manifests and
//! configurations). Rot beneath the file system, which changes no stat, is [`Store::fsck`]'s to find.
//!
//! A damaged blob is moved to `quarantine/` and its row says why, so every later open fails with
//! [`StoreError::Damaged`] until the next ingest of the digest heals it.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, params};

use super::error::StoreError;
use super::ingest::hash_file;
use super::metadata::{Durability, first, from_sql, now, run, text};
use super::registration::{Seen, record_blob};
use super::{Store, random_id};
use crate::digest::Digest;
use crate::root_dir::open_regular;

/// An open blob. The content stays readable even when the blob is collected meanwhile.
#[derive(Debug)]
pub struct Blob {
    digest: Digest,
    size: u64,
    file: File,
    path: PathBuf,
}

impl Blob {
    pub(super) fn of(digest: Digest, size: u64, file: File, path: PathBuf) -> Blob {
        Blob { digest, size, file, path }
    }

    /// Its digest.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The open file, positioned at its start.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The open file, taken out.
    pub fn into_file(self) -> File {
        self.file
    }

    /// Where it lies. For display and for mounts; read the file that is open.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Blob {
    fn seen(&self) -> Result<Seen, StoreError> {
        Ok(Seen::of(&self.file.metadata().map_err(StoreError::at("look at", &self.path))?))
    }
}

/// Whether a blob can be served as it is.
#[derive(Debug)]
pub enum BlobState {
    /// Its file is as it was when it was verified.
    Verified(Blob),
    /// Its file was touched since, and has to be hashed.
    Touched,
}

impl Read for Blob {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.file.read(buffer)
    }
}

/// A row of `blob`.
#[derive(Clone, Debug)]
pub(super) struct BlobRow {
    pub(super) size: u64,
    pub(super) damaged: Option<String>,
    pub(super) seen: Option<Seen>,
}

pub(super) fn blob_row(connection: &Connection, digest: &Digest) -> rusqlite::Result<Option<BlobRow>> {
    let sql = "SELECT size, damaged, seen_inode, seen_mtime_ns, seen_ctime_ns FROM blob WHERE digest = ?1";
    first(connection, sql, [text(digest)], |row| {
        let size = from_sql(row.get(0)?);
        let inode: Option<i64> = row.get(2)?;
        let seen = match inode {
            Some(inode) => Some(Seen { inode, size, mtime_ns: row.get(3)?, ctime_ns: row.get(4)? }),
            None => None,
        };
        Ok(BlobRow { size, damaged: row.get(1)?, seen })
    })
}

impl Store {
    /// Opens a blob. `None` when the store does not have it; an error when it has, but damaged.
    pub fn blob(&self, digest: &Digest) -> Result<Option<Blob>, StoreError> {
        Ok(self.open_blob(digest)?.map(|(blob, _)| blob))
    }

    /// As [`Store::blob`], for content that will be run or unpacked: a file that was touched since its last
    /// verification is hashed first.
    pub fn verified_blob(&self, digest: &Digest) -> Result<Option<Blob>, StoreError> {
        let Some((blob, row)) = self.open_blob(digest)? else { return Ok(None) };
        let before = blob.seen()?;
        if row.seen == Some(before) {
            return Ok(Some(blob));
        }
        let actual = hash_file(&blob.file, digest.algorithm()).map_err(StoreError::at("read", &blob.path))?;
        if actual != *digest {
            return Err(self.quarantine(&blob, format!("its content hashes to {actual}")));
        }
        if before == blob.seen()? {
            self.note_verified(digest, &before)?;
        }
        Ok(Some(blob))
    }

    /// What [`Store::verified_blob`] would have to do: for those who cannot wait for it. Fast whatever the size.
    pub fn blob_state(&self, digest: &Digest) -> Result<Option<BlobState>, StoreError> {
        let Some((blob, row)) = self.open_blob(digest)? else { return Ok(None) };
        let untouched = row.seen == Some(blob.seen()?);
        Ok(Some(if untouched { BlobState::Verified(blob) } else { BlobState::Touched }))
    }

    /// The whole content, hashed. For documents: fails with [`StoreError::TooLarge`] over `limit` bytes.
    pub fn read_blob(&self, digest: &Digest, limit: u64) -> Result<Vec<u8>, StoreError> {
        let blob = self.blob(digest)?.ok_or(StoreError::BlobUnknown(*digest))?;
        if blob.size > limit {
            return Err(StoreError::TooLarge { digest: *digest, size: blob.size, limit });
        }
        let mut content = Vec::with_capacity(usize::try_from(blob.size).unwrap_or(0));
        let reader = blob.file.try_clone().map_err(StoreError::at("open", &blob.path))?;
        reader.take(blob.size + 1).read_to_end(&mut content).map_err(StoreError::at("read", &blob.path))?;
        let actual = Digest::of(digest.algorithm(), &content);
        if actual != *digest {
            return Err(self.quarantine(&blob, format!("its content hashes to {actual}")));
        }
        Ok(content)
    }

    /// Whether the store has the blob whole. If so, it is leased to this handle, so that a manifest put soon will
    /// find it.
    pub fn contains(&self, digest: &Digest) -> Result<bool, StoreError> {
        if !self.has_file(digest)? {
            return Ok(false);
        }
        self.lease_for_session(digest)
    }

    /// The size of a blob that the store has whole.
    pub fn blob_size(&self, digest: &Digest) -> Result<Option<u64>, StoreError> {
        let row = self.blob_row(digest)?;
        Ok(row.filter(|row| row.damaged.is_none()).map(|row| row.size))
    }

    pub(super) fn blob_row(&self, digest: &Digest) -> Result<Option<BlobRow>, StoreError> {
        self.metadata().read("look up a blob", |connection| {
            blob_row(connection, digest).map_err(StoreError::sql("look up a blob"))
        })
    }

    /// Whether a file of the right size is there and not known to be damaged.
    pub(super) fn has_file(&self, digest: &Digest) -> Result<bool, StoreError> {
        match self.open_blob(digest) {
            Ok(opened) => Ok(opened.is_some()),
            Err(StoreError::Damaged { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether `blobs/` has the name. Only under the metadata's write lock does that remain so.
    pub(super) fn is_named(&self, digest: &Digest) -> bool {
        fs::symlink_metadata(self.blob_path(digest)).is_ok()
    }

    fn open_blob(&self, digest: &Digest) -> Result<Option<(Blob, BlobRow)>, StoreError> {
        let Some(row) = self.blob_row(digest)? else { return Ok(None) };
        if let Some(reason) = row.damaged {
            return Err(StoreError::Damaged { digest: *digest, reason });
        }
        let path = self.blob_path(digest);
        let file = match open_regular(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(StoreError::io("open", &path, error)),
        };
        let actual = file.metadata().map_err(StoreError::at("look at", &path))?.len();
        let blob = Blob { digest: *digest, size: row.size, file, path };
        if actual != row.size {
            let reason = format!("its file has {actual} bytes, expected {}", row.size);
            return Err(self.quarantine(&blob, reason));
        }
        Ok(Some((blob, row)))
    }

    /// Takes a damaged blob out of service, unless it has been healed since it was opened. Returns the error
    /// for whoever wanted to read it.
    pub(super) fn quarantine(&self, blob: &Blob, reason: String) -> StoreError {
        let digest = blob.digest;
        let moved = self.metadata().write(Durability::Durable, "quarantine a blob", |transaction| {
            let inode = |stat: fs::Metadata| (stat.dev(), stat.ino());
            let open = blob.file.metadata().map(inode).map_err(StoreError::at("look at", &blob.path))?;
            if fs::symlink_metadata(&blob.path).map(inode).ok() != Some(open) {
                return Ok(());
            }
            let name = format!("{}-{}-{}", digest.algorithm(), digest.hex(), random_id());
            let target = self.quarantine_dir().join(name);
            fs::rename(&blob.path, &target).map_err(StoreError::at("quarantine", &blob.path))?;
            let sql = "UPDATE blob SET damaged = ?2 WHERE digest = ?1";
            run(transaction, sql, params![text(&digest), reason])
                .map(|_| ())
                .map_err(StoreError::sql("quarantine a blob"))
        });
        self.inner.manifests.forget(&digest);
        match moved {
            Ok(()) => StoreError::Damaged { digest, reason },
            Err(error) => error,
        }
    }

    pub(super) fn note_verified(&self, digest: &Digest, seen: &Seen) -> Result<(), StoreError> {
        self.metadata().write(Durability::Soft, "note a verification", |transaction| {
            let known = blob_row(transaction, digest).map_err(StoreError::sql("note a verification"))?;
            if known.is_some_and(|row| row.damaged.is_none() && row.size == seen.size) {
                record_blob(transaction, digest, seen, now())
                    .map_err(StoreError::sql("note a verification"))?;
            }
            Ok(())
        })
    }
}
