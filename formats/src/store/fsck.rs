//! Checking the whole store: every byte against its digest, every file against the metadata and back.
//!
//! 1. SQLite's own integrity check.
//! 2. Every file in `blobs/` is hashed, by several threads. What is wrong goes to quarantine at once, whether or
//!    not a repair was asked for: it must not be served.
//! 3. Rows without a file, files without a row, names that cannot be a digest.
//! 4. Tags without a manifest, manifests whose content is missing or damaged.
//! 5. Layer indexes of blobs that are gone, leftovers of dead writers.
//!
//! A repair makes the metadata agree with the files. What cannot be repaired (missing content) is reported with
//! the images it belongs to, so that a pull can heal it. Everything is checked again under the write lock before
//! it is changed, so a check may run beside builds and servers.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};

use rusqlite::{Connection, params};

use super::Store;
use super::blob::{Blob, blob_row};
use super::error::StoreError;
use super::ingest::hash_file;
use super::metadata::{Durability, first, now, parsed, rows, run, text, to_sql};
use super::prune::{UNPROMISED_BLOB, UPLOAD_SECONDS_MAX};
use super::put::PutOptions;
use super::registration::{Seen, record_blob};
use crate::digest::Digest;
use crate::manifest::{MANIFEST_BYTES_MAX, ManifestOrIndex};
use crate::reference::{ImageName, Tag};
use crate::root_dir::open_regular;

/// Called with each blob checked and its size in bytes, from several threads.
pub type OnBlob<'a> = &'a (dyn Fn(&Digest, u64) + Sync);

/// How to check.
#[derive(Clone, Copy, Default)]
pub struct FsckOptions<'a> {
    /// Make the metadata agree with the files, and remove leftovers.
    pub repair: bool,
    /// Threads that hash; 0 for as many as there are processors.
    pub threads: usize,
    /// Progress.
    pub on_blob: Option<OnBlob<'a>>,
}

/// A manifest that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokenManifest {
    /// The repository.
    pub name: ImageName,
    /// The manifest.
    pub digest: Digest,
    /// What it needs that is missing or damaged; itself, if its own bytes are.
    pub missing: Vec<Digest>,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct FsckReport {
    /// Blobs hashed.
    pub blobs: u64,
    /// Bytes hashed.
    pub bytes: u64,
    /// Complaints of SQLite about the database file.
    pub metadata: Vec<String>,
    /// Blobs that are not what they were, with the reason; now in quarantine.
    pub damaged: Vec<(Digest, String)>,
    /// Blobs that an image or a repository needs, known to the metadata, that have no file. A repair forgets them.
    /// (What only the build cache or a lease needs may go in a power cut, and is made again.)
    pub missing: Vec<Digest>,
    /// Whole blobs that the metadata does not know. A repair makes them known; a prune removes them.
    pub unknown: Vec<Digest>,
    /// Files among the blobs whose name is no digest. Left alone.
    pub strangers: Vec<PathBuf>,
    /// Tags whose manifest is gone. A repair removes them.
    pub dangling_tags: Vec<(ImageName, Tag)>,
    /// Manifests that need what is not there. A pull or push of the image heals them.
    pub broken: Vec<BrokenManifest>,
    /// Layer indexes without a blob. A repair removes them.
    pub stale_indexes: u64,
    /// Leftovers of dead writers and collectors. A repair removes them.
    pub leftovers: u64,
}

impl FsckReport {
    /// Whether nothing was found that a user must care for. (Leftovers of a crash are ordinary.)
    pub fn is_clean(&self) -> bool {
        self.metadata.is_empty()
            && self.damaged.is_empty()
            && self.missing.is_empty()
            && self.strangers.is_empty()
            && self.dangling_tags.is_empty()
            && self.broken.is_empty()
    }
}

impl Store {
    /// Checks everything.
    pub fn fsck(&self, options: &FsckOptions<'_>) -> Result<FsckReport, StoreError> {
        let mut report = FsckReport { metadata: self.metadata().check()?, ..FsckReport::default() };
        self.check_blobs(options, &mut report)?;
        self.check_rows(options.repair, &mut report)?;
        self.check_names(options.repair, &mut report)?;
        self.check_indexes(options.repair, &mut report)?;
        let before = now() - UPLOAD_SECONDS_MAX;
        report.leftovers += self.sweep_uploads(before, !options.repair)?.0;
        Ok(report)
    }

    /// Hashes one blob, whatever its stat says: a server's scrub in the background. Its size; damage is
    /// quarantined and returned as [`StoreError::Damaged`].
    pub fn scrub(&self, digest: &Digest) -> Result<Option<u64>, StoreError> {
        let Some(blob) = self.blob(digest)? else { return Ok(None) };
        let stat = || blob.file().metadata().map(|stat| Seen::of(&stat));
        let before = stat().map_err(StoreError::at("look at", blob.path()))?;
        self.check_content(&blob)?;
        if self.blob_row(digest)?.is_some_and(|row| row.seen != Some(before))
            && stat().is_ok_and(|after| after == before)
        {
            self.note_verified(digest, &before)?;
        }
        Ok(Some(blob.size()))
    }

    /// Digests of all blobs known, in byte order, beginning behind `after`.
    pub fn blob_digests(&self, after: Option<&Digest>, limit: usize) -> Result<Vec<Digest>, StoreError> {
        self.metadata().read("list blobs", |connection| {
            let sql =
                "SELECT digest FROM blob WHERE digest > ?1 AND damaged IS NULL ORDER BY digest LIMIT ?2";
            let after = after.map(text).unwrap_or_default();
            rows(connection, sql, params![after, to_sql(limit as u64)], |row| parsed(row, 0))
                .map_err(StoreError::sql("list blobs"))
        })
    }

    /// Opens a store whose metadata cannot be read: the database is put aside as `metadata.db.damaged-…`, every
    /// whole blob is registered anew, and the manifests found among them appear, untagged, in the repository
    /// `recovered`. Tags and memberships are lost.
    pub fn rebuild(root: &Path, options: &FsckOptions<'_>) -> Result<(Store, FsckReport), StoreError> {
        let stamp = now();
        for suffix in ["", "-wal", "-shm"] {
            let path = root.join(format!("metadata.db{suffix}"));
            let aside = root.join(format!("metadata.db.damaged-{stamp}{suffix}"));
            if path.exists() {
                fs::rename(&path, &aside).map_err(StoreError::at("put aside", &path))?;
            }
        }
        let store = Store::open(root)?;
        let report = store.fsck(&FsckOptions { repair: true, ..*options })?;
        store.recover_manifests(&report.unknown)?;
        Ok((store, report))
    }

    fn check_content(&self, blob: &Blob) -> Result<(), StoreError> {
        let actual = match hash_file(blob.file(), blob.digest().algorithm()) {
            Ok(actual) => actual,
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => {
                return Err(self.quarantine(blob, "the disk cannot read it any more".to_owned()));
            }
            Err(error) => return Err(StoreError::io("read", blob.path(), error)),
        };
        if actual != *blob.digest() {
            return Err(self.quarantine(blob, format!("its content hashes to {actual}")));
        }
        Ok(())
    }

    fn check_blobs(&self, options: &FsckOptions<'_>, report: &mut FsckReport) -> Result<(), StoreError> {
        let mut files = Vec::new();
        for (path, digest) in self.digest_files("blobs")? {
            match digest {
                Some(digest) => files.push(digest),
                None => report.strangers.push(path),
            }
        }
        report.strangers.sort();
        let threads = match options.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        };
        let (next, shared) = (AtomicUsize::new(0), Mutex::new((report, Ok(()))));
        let work = || {
            while let Some(digest) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
                let checked = self.check_file(digest, options.repair);
                let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
                let (report, failure) = &mut *shared;
                match checked {
                    Ok(Checked::Gone) => continue,
                    Ok(Checked::Whole { size, known }) => {
                        report.bytes += size;
                        report.unknown.extend((!known).then_some(*digest));
                    }
                    Ok(Checked::Damaged(reason)) => report.damaged.push((*digest, reason)),
                    Err(error) => {
                        *failure = Err(error);
                        return;
                    }
                }
                report.blobs += 1;
                if let Some(on_blob) = options.on_blob {
                    on_blob(digest, report.bytes);
                }
            }
        };
        std::thread::scope(|scope| (0..threads.max(1)).for_each(|_| drop(scope.spawn(work))));
        let (report, failure) = shared.into_inner().unwrap_or_else(PoisonError::into_inner);
        report.damaged.sort();
        report.unknown.sort();
        failure
    }

    fn check_file(&self, digest: &Digest, repair: bool) -> Result<Checked, StoreError> {
        let path = self.blob_path(digest);
        let known = self.blob_row(digest)?;
        let file = match open_regular(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Checked::Gone),
            Err(error) => return Err(StoreError::io("open", &path, error)),
        };
        let seen = Seen::of(&file.metadata().map_err(StoreError::at("look at", &path))?);
        let blob = Blob::of(*digest, seen.size, file, path);
        match self.check_content(&blob) {
            Ok(()) => {}
            Err(StoreError::Damaged { reason, .. }) => return Ok(Checked::Damaged(reason)),
            Err(error) => return Err(error),
        }
        let whole = known.as_ref().is_some_and(|row| row.damaged.is_none() && row.size == seen.size);
        if !whole && repair {
            self.metadata().write(Durability::Soft, "register a blob", |transaction| {
                let inode = fs::symlink_metadata(self.blob_path(digest)).map(|stat| Seen::of(&stat));
                if inode.is_ok_and(|now| now == seen) {
                    record_blob(transaction, digest, &seen, now())
                        .map_err(StoreError::sql("register a blob"))?;
                }
                Ok(())
            })?;
        }
        Ok(Checked::Whole { size: seen.size, known: known.is_some() })
    }

    /// Rows without files, and damage that was known before.
    fn check_rows(&self, repair: bool, report: &mut FsckReport) -> Result<(), StoreError> {
        let failed = || StoreError::sql("check the metadata");
        let known = self.metadata().read("check the metadata", |connection| {
            let sql = "SELECT digest, damaged FROM blob ORDER BY digest";
            rows(connection, sql, [], |row| Ok((parsed::<Digest>(row, 0)?, row.get::<_, Option<String>>(1)?)))
                .map_err(failed())
        })?;
        let fresh: BTreeSet<Digest> = report.damaged.iter().map(|(digest, _)| *digest).collect();
        for (digest, damaged) in known {
            let absent = || !self.blob_path(&digest).exists();
            match damaged {
                Some(_) if fresh.contains(&digest) => {}
                Some(reason) => report.damaged.push((digest, reason)),
                None if absent() => {
                    // Under the lock: an ingest may have been between its rename and our look.
                    let (gone, promised) =
                        self.metadata().write(Durability::Soft, "forget a blob", |transaction| {
                            let row = blob_row(transaction, &digest).map_err(failed())?;
                            let gone = row.is_some_and(|row| row.damaged.is_none()) && absent();
                            let promised = is_promised(transaction, &digest).map_err(failed())?;
                            if gone && repair {
                                run(transaction, "DELETE FROM blob WHERE digest = ?1", [text(&digest)])
                                    .map_err(failed())?;
                            }
                            Ok((gone, promised))
                        })?;
                    match gone && promised {
                        true => report.missing.push(digest),
                        // A collector died between taking the file away and saying so, or the power went before
                        // the name of a build's result was on the disk.
                        false => report.leftovers += u64::from(gone),
                    }
                }
                None => {}
            }
        }
        Ok(())
    }

    /// Tags and manifests against what they need.
    fn check_names(&self, repair: bool, report: &mut FsckReport) -> Result<(), StoreError> {
        let (tags, needs) = self.metadata().read("check the metadata", |connection| {
            let failed = || StoreError::sql("check the metadata");
            Ok((dangling_tags(connection).map_err(failed())?, unmet_needs(connection).map_err(failed())?))
        })?;
        let missing: BTreeSet<Digest> = report.missing.iter().copied().collect();
        let all = self.metadata().read("check the metadata", |connection| {
            all_needs(connection, &missing).map_err(StoreError::sql("check the metadata"))
        })?;
        let mut broken: BTreeMap<(String, Digest), (ImageName, BTreeSet<Digest>)> = BTreeMap::new();
        for (name, manifest, needed) in needs.into_iter().chain(all) {
            let key = (name.to_string(), manifest);
            broken.entry(key).or_insert_with(|| (name, BTreeSet::new())).1.insert(needed);
        }
        for ((_, digest), (name, missing)) in broken {
            report.broken.push(BrokenManifest { name, digest, missing: missing.into_iter().collect() });
        }
        for (id, name, tag) in tags {
            if repair {
                self.metadata().write(Durability::Durable, "remove a tag", |transaction| {
                    let sql = "DELETE FROM tag WHERE repository_id = ?1 AND name = ?2 AND NOT EXISTS
                               (SELECT 1 FROM manifest WHERE manifest.repository_id = tag.repository_id
                                AND manifest.digest = tag.digest)";
                    run(transaction, sql, params![id, tag.as_str()]).map_err(StoreError::sql("remove a tag"))
                })?;
            }
            report.dangling_tags.push((name, tag));
        }
        Ok(())
    }

    /// Layer indexes whose blob is gone, and what else lies among the indexes.
    fn check_indexes(&self, repair: bool, report: &mut FsckReport) -> Result<(), StoreError> {
        for (path, digest) in self.digest_files("index")? {
            if digest.is_some_and(|digest| self.is_named(&digest)) {
                continue;
            }
            report.stale_indexes += 1;
            if repair {
                fs::remove_file(&path).map_err(StoreError::at("remove", &path))?;
            }
        }
        Ok(())
    }

    /// Puts every document among `blobs` that says of itself that it is a manifest into one repository.
    fn recover_manifests(&self, blobs: &[Digest]) -> Result<(), StoreError> {
        let name: ImageName = "recovered".parse().expect("the name follows the grammar");
        let repository = self.repository(&name);
        for digest in blobs {
            if self.blob_size(digest)?.is_none_or(|size| size > MANIFEST_BYTES_MAX as u64) {
                continue;
            }
            let raw = self.read_blob(digest, MANIFEST_BYTES_MAX as u64)?;
            let named = raw.starts_with(b"{") && ManifestOrIndex::parse(&raw, None).is_ok();
            if !named {
                continue;
            }
            let options = PutOptions { digest: Some(*digest), ..PutOptions::local() };
            match repository.put_manifest(&raw, None, &[], &options) {
                // What it needs was lost too: there is no image to recover.
                Ok(_) | Err(StoreError::ContentMissing { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// What became of a file that was checked.
enum Checked {
    Gone,
    Whole { size: u64, known: bool },
    Damaged(String),
}

/// Whether somebody was promised that a blob is there.
fn is_promised(connection: &Connection, digest: &Digest) -> rusqlite::Result<bool> {
    let sql = format!("SELECT 1 FROM blob WHERE digest = ?1 AND {UNPROMISED_BLOB}");
    Ok(first(connection, &sql, [text(digest)], |_| Ok(()))?.is_none())
}

fn dangling_tags(connection: &Connection) -> rusqlite::Result<Vec<(i64, ImageName, Tag)>> {
    let sql = "SELECT tag.repository_id, repository.name, tag.name FROM tag
               JOIN repository ON repository.id = tag.repository_id WHERE NOT EXISTS
               (SELECT 1 FROM manifest WHERE manifest.repository_id = tag.repository_id
                AND manifest.digest = tag.digest) ORDER BY repository.name, tag.name";
    rows(connection, sql, [], |row| Ok((row.get(0)?, parsed(row, 1)?, parsed(row, 2)?)))
}

/// Manifest by manifest, the content it needs that has no whole blob. Variants that a sparse index lacks are not
/// needed; nor are foreign layers.
fn unmet_needs(connection: &Connection) -> rusqlite::Result<Vec<(ImageName, Digest, Digest)>> {
    let sql = "SELECT repository.name, reference.manifest, reference.target FROM reference
               JOIN repository ON repository.id = reference.repository_id
               WHERE reference.kind IN ('blob', 'config') AND NOT EXISTS
               (SELECT 1 FROM blob WHERE blob.digest = reference.target AND blob.damaged IS NULL)
               UNION SELECT repository.name, manifest.digest, manifest.digest FROM manifest
               JOIN repository ON repository.id = manifest.repository_id WHERE NOT EXISTS
               (SELECT 1 FROM blob WHERE blob.digest = manifest.digest AND blob.damaged IS NULL)
               ORDER BY 1, 2, 3";
    rows(connection, sql, [], |row| Ok((parsed(row, 0)?, parsed(row, 1)?, parsed(row, 2)?)))
}

/// What needs any of `missing`: blobs that have a row but, as it turned out, no file.
fn all_needs(
    connection: &Connection,
    missing: &BTreeSet<Digest>,
) -> rusqlite::Result<Vec<(ImageName, Digest, Digest)>> {
    let sql = "SELECT repository.name, reference.manifest FROM reference
               JOIN repository ON repository.id = reference.repository_id
               WHERE reference.target = ?1 AND reference.kind IN ('blob', 'config')
               UNION SELECT repository.name, manifest.digest FROM manifest
               JOIN repository ON repository.id = manifest.repository_id WHERE manifest.digest = ?1";
    let mut needs = Vec::new();
    for digest in missing {
        let found =
            rows(connection, sql, [text(digest)], |row| Ok((parsed(row, 0)?, parsed(row, 1)?, *digest)));
        needs.extend(found?);
    }
    Ok(needs)
}
