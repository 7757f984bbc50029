//! Files of what is collected: taking them away, and finding those that nothing knows.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use walkdir::WalkDir;

use super::super::blob::blob_row;
use super::super::error::StoreError;
use super::super::metadata::{Durability, now};
use super::super::registration::LEASE_GRACE_SECONDS;
use super::super::{Store, random_id};
use super::{PruneReport, QUARANTINE_SECONDS_MAX};
use crate::digest::Digest;

impl Store {
    /// Renames a file out of `blobs/`, which is as quick for a gigabyte as for a byte.
    pub(super) fn discard(&self, path: &Path) -> Result<Option<PathBuf>, StoreError> {
        let target = self.uploads_dir().join(random_id());
        match fs::rename(path, &target) {
            Ok(()) => Ok(Some(target)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StoreError::io("remove", path, error)),
        }
    }

    pub(super) fn unlink(&self, discarded: &[PathBuf], digests: &[Digest]) -> Result<(), StoreError> {
        for path in discarded {
            ignore_missing(fs::remove_file(path)).map_err(StoreError::at("remove", path))?;
        }
        for digest in digests.iter() {
            self.inner.manifests.forget(digest);
            let index = self.index_path(digest);
            if !self.blob_path(digest).exists() {
                ignore_missing(fs::remove_file(&index)).map_err(StoreError::at("remove", &index))?;
            }
        }
        Ok(())
    }

    /// Removes files in `blobs/` that have no row and are too old to be about to get one: leftovers of a crash
    /// between rename and registration.
    pub(super) fn remove_orphans(&self, report: &mut PruneReport) -> Result<(), StoreError> {
        for digest in self.orphans()? {
            let path = self.blob_path(&digest);
            let discarded = self.metadata().write(Durability::Soft, "remove an orphan", |transaction| {
                let known = blob_row(transaction, &digest);
                if known.map_err(StoreError::sql("remove an orphan"))?.is_some() || !is_old(&path) {
                    return Ok(None);
                }
                self.discard(&path)
            })?;
            if let Some(discarded) = discarded {
                report.blobs += 1;
                report.bytes += fs::metadata(&discarded).map(|stat| stat.len()).unwrap_or(0);
                self.unlink(&[discarded], &[digest])?;
            }
        }
        Ok(())
    }

    /// Removes damaged blobs that nobody came to look at; how many bytes.
    pub(super) fn empty_quarantine(&self) -> Result<u64, StoreError> {
        let (directory, mut bytes) = (self.quarantine_dir(), 0);
        for entry in fs::read_dir(&directory).map_err(StoreError::at("list", &directory))? {
            let path = entry.map_err(StoreError::at("list", &directory))?.path();
            let Ok(stat) = fs::symlink_metadata(&path) else { continue };
            if stat.ctime() < now() - QUARANTINE_SECONDS_MAX {
                ignore_missing(fs::remove_file(&path)).map_err(StoreError::at("remove", &path))?;
                bytes += stat.len();
            }
        }
        Ok(bytes)
    }

    /// Digests of old files in `blobs/` without a row.
    pub(in crate::store) fn orphans(&self) -> Result<Vec<Digest>, StoreError> {
        let mut orphans = Vec::new();
        for digest in self.blob_files()? {
            if is_old(&self.blob_path(&digest)) && self.blob_row(&digest)?.is_none() {
                orphans.push(digest);
            }
        }
        Ok(orphans)
    }

    /// The digests that have a file in `blobs/`.
    pub(in crate::store) fn blob_files(&self) -> Result<Vec<Digest>, StoreError> {
        Ok(self.digest_files("blobs")?.into_iter().filter_map(|(_, digest)| digest).collect())
    }

    /// What lies in `blobs/` or `index/`, each with the digest that names it, if it is a file that one names.
    pub(in crate::store) fn digest_files(
        &self,
        folder: &str,
    ) -> Result<Vec<(PathBuf, Option<Digest>)>, StoreError> {
        let folder = self.root().join(folder);
        let mut found = Vec::new();
        for entry in WalkDir::new(&folder).min_depth(2).max_depth(2) {
            let entry = match entry {
                Ok(entry) => entry,
                // Collected since its directory was read.
                Err(error) if error.io_error().is_some_and(|e| e.kind() == io::ErrorKind::NotFound) => {
                    continue;
                }
                Err(error) => return Err(StoreError::io("list", &folder, error.into())),
            };
            let parent = entry.path().parent().and_then(Path::file_name);
            let named = || {
                let (algorithm, hex) = (parent?.to_str()?, entry.file_name().to_str()?);
                format!("{algorithm}:{hex}").parse::<Digest>().ok()
            };
            let digest = if entry.file_type().is_file() { named() } else { None };
            found.push((entry.into_path(), digest));
        }
        Ok(found)
    }
}

/// Whether a file was put where it is longer ago than any commit takes.
fn is_old(path: &Path) -> bool {
    let changed = fs::symlink_metadata(path).map(|stat| stat.ctime());
    changed.is_ok_and(|changed| changed < now() - LEASE_GRACE_SECONDS)
}

fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
