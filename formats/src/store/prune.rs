//! Garbage collection, while everything else goes on.
//!
//! # What is kept
//!
//! | thing | kept while |
//! |---|---|
//! | manifest | it has a tag, is listed by a kept index, refers to a kept manifest, is leased, or is younger than asked |
//! | a repository's right to a blob | a manifest of the repository names it, or its lease runs |
//! | blob | a repository has a right to it, it is a kept manifest, a cache entry needs it, or a lease runs |
//! | cache entry | it was used within the time, and fits into the size, that the policy gives |
//! | damaged blob in quarantine | a week |
//! | upload | a living process writes to it, or it was suspended less than a day ago |
//!
//! # Why nothing in use is lost
//!
//! Candidates are gathered from a read snapshot, which blocks nobody and may be stale; each is decided on again
//! in a short transaction that holds the metadata's write lock. Adding a reference (a put, a mount, a lease) is
//! a transaction under the same lock and looks at the row it refers to. So one of the two comes first: either
//! the collector sees the reference and keeps the blob, or the reference's transaction sees that the blob is
//! gone and fails, and the client sends it again. Within the collector's transaction the file is also renamed
//! out of `blobs/`; an ingest that placed the same content meanwhile finds at registration, under the lock,
//! whether its name is still there (see [`ingest`](super::ingest)). Bytes are unlinked after the commit; a
//! crash in between leaves them in `uploads/`, where they are swept, and at worst a row without a file, which
//! every reader takes for "not here".

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, params};
use walkdir::WalkDir;

use super::error::StoreError;
use super::metadata::{Durability, first, from_sql, now, parsed, rows, run, text};
use super::registration::LEASE_GRACE_SECONDS;
use super::repository::delete_manifest_rows;
use super::{Store, random_id};
use crate::digest::Digest;
use crate::reference::{ImageName, Tag};

/// How many candidates are decided on in one transaction: it holds the write lock, and others wait.
const BATCH: usize = 128;
/// How long a suspended upload is kept: a client that was cut off overnight may still go on.
pub const UPLOAD_SECONDS_MAX: i64 = 24 * 3600;
/// How long a damaged blob is kept in quarantine: long enough to find out what the disk did.
const QUARANTINE_SECONDS_MAX: i64 = 7 * 24 * 3600;
/// How long the digest of a context file is remembered: forgetting it costs one hash.
const STAT_CACHE_SECONDS_MAX: i64 = 30 * 24 * 3600;
/// Rounds of removing manifests that only removed ones needed. Indexes are not nested deeper than this.
const MANIFEST_ROUNDS_MAX: usize = 16;

/// The unexpired leases of anybody on a digest.
const LEASED: &str = "EXISTS (SELECT 1 FROM lease WHERE lease.digest = blob.digest
    AND (lease.expires_at IS NULL OR lease.expires_at >= ?1))";

/// What the build cache may keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct CachePolicy {
    /// Entries unused for longer go. `None`: no limit.
    pub unused_seconds_max: Option<i64>,
    /// Entries used least lately go until the blobs of the rest fit. `None`: no limit.
    pub bytes_max: Option<u64>,
}

impl CachePolicy {
    /// Forget everything.
    pub const CLEAR: CachePolicy = CachePolicy { unused_seconds_max: None, bytes_max: Some(0) };
}

/// What to collect. The default collects only what nothing can ever reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PruneOptions {
    /// Also manifests that no tag names, directly or through an index.
    pub untagged: bool,
    /// Also tagged images that nobody holds (see [`Store::hold`]).
    pub all: bool,
    /// Manifests and tags younger than this many seconds stay in any case.
    pub older_than_seconds: i64,
    /// What of the build cache goes.
    pub cache: CachePolicy,
    /// Change nothing, only report.
    pub dry_run: bool,
}

impl Default for PruneOptions {
    fn default() -> PruneOptions {
        PruneOptions {
            untagged: false,
            all: false,
            older_than_seconds: LEASE_GRACE_SECONDS,
            cache: CachePolicy::default(),
            dry_run: false,
        }
    }
}

/// What was collected, or would be.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct PruneReport {
    /// Tags removed.
    pub tags: Vec<(ImageName, Tag)>,
    /// Manifests removed, each from its repository.
    pub manifests: Vec<(ImageName, Digest)>,
    /// Cache entries removed.
    pub cache_entries: u64,
    /// Unfinished uploads removed.
    pub uploads: u64,
    /// Blobs removed.
    pub blobs: u64,
    /// Bytes freed, of blobs and uploads.
    pub bytes: u64,
}

/// How the phases touch the world: in transactions of their own, or within one that will be rolled back.
enum Access<'a> {
    Real(&'a Store),
    Rehearsal(&'a Connection),
}

impl Access<'_> {
    /// Looks at a snapshot. Blocks nobody.
    fn look<T>(&self, work: impl FnOnce(&Connection) -> Result<T, StoreError>) -> Result<T, StoreError> {
        match self {
            Access::Real(store) => store.metadata().read("look for what to collect", work),
            Access::Rehearsal(connection) => work(connection),
        }
    }

    /// Decides and changes under the write lock.
    fn change<T>(&self, work: impl FnOnce(&Connection) -> Result<T, StoreError>) -> Result<T, StoreError> {
        match self {
            Access::Real(store) => {
                store.metadata().write(Durability::Durable, "collect", |transaction| work(transaction))
            }
            Access::Rehearsal(connection) => work(connection),
        }
    }

    /// Finds candidates and decides on each, a batch to a transaction.
    fn batches<C, R>(
        &self,
        find: impl FnOnce(&Connection) -> Result<Vec<C>, StoreError>,
        decide: impl Fn(&Connection, &C) -> Result<Option<R>, StoreError>,
    ) -> Result<Vec<R>, StoreError> {
        let mut done = Vec::new();
        for batch in self.look(find)?.chunks(BATCH) {
            self.change(|connection| {
                for candidate in batch {
                    done.extend(decide(connection, candidate)?);
                }
                Ok(())
            })?;
        }
        Ok(done)
    }
}

impl Store {
    /// Collects what `options` say. May run at any time, in any number of processes.
    pub fn prune(&self, options: &PruneOptions) -> Result<PruneReport, StoreError> {
        let mut report = PruneReport::default();
        if options.dry_run {
            // One transaction that sees its own changes, and is then rolled back.
            self.metadata().rehearse("rehearse a prune", |transaction| {
                self.collect(options, &Access::Rehearsal(transaction), &mut report)
            })?;
        } else {
            self.collect(options, &Access::Real(self), &mut report)?;
            self.remove_orphans(&mut report)?;
            self.forget_the_old()?;
            report.bytes += self.empty_quarantine()?;
        }
        let (uploads, bytes) = self.sweep_uploads(now() - UPLOAD_SECONDS_MAX, options.dry_run)?;
        report.uploads += uploads;
        report.bytes += bytes;
        Ok(report)
    }

    fn collect(
        &self,
        options: &PruneOptions,
        access: &Access<'_>,
        report: &mut PruneReport,
    ) -> Result<(), StoreError> {
        let cutoff = now() - options.older_than_seconds;
        if options.all {
            report.tags = access.batches(unheld_tags(cutoff), |connection, (id, name, tag)| {
                Ok(remove_tag_if_unheld(connection, *id, tag, cutoff)?.then(|| (name.clone(), tag.clone())))
            })?;
        }
        if options.untagged || options.all {
            for _ in 0..MANIFEST_ROUNDS_MAX {
                let removed =
                    access.batches(unneeded_manifests(cutoff), |connection, (id, name, digest)| {
                        Ok(remove_if_unneeded(connection, *id, digest, cutoff)?
                            .then(|| (name.clone(), *digest)))
                    })?;
                if removed.is_empty() {
                    break;
                }
                report.manifests.extend(removed);
            }
        }
        report.cache_entries = prune_cache(access, options.cache)?;
        access.batches(unneeded_rights, |connection, (id, digest)| {
            Ok(remove_right_if_unneeded(connection, *id, digest)?.then_some(()))
        })?;
        let candidates = access.look(unneeded_blobs)?;
        self.remove_blobs(access, &candidates, report)
    }

    /// Removes those candidates that nothing needs; their files after each batch's commit.
    fn remove_blobs(
        &self,
        access: &Access<'_>,
        candidates: &[Digest],
        report: &mut PruneReport,
    ) -> Result<(), StoreError> {
        for batch in candidates.chunks(BATCH) {
            let mut discarded = Vec::new();
            access.change(|connection| {
                for digest in batch {
                    let Some(size) = remove_blob_row(connection, digest)? else { continue };
                    report.blobs += 1;
                    report.bytes += size;
                    if matches!(access, Access::Real(_)) {
                        discarded.extend(self.discard(&self.blob_path(digest))?);
                    }
                }
                Ok(())
            })?;
            if matches!(access, Access::Real(_)) {
                self.unlink(&discarded, batch)?;
            }
        }
        Ok(())
    }

    /// Renames a file out of `blobs/`, which is as quick for a gigabyte as for a byte.
    fn discard(&self, path: &Path) -> Result<Option<PathBuf>, StoreError> {
        let target = self.uploads_dir().join(random_id());
        match fs::rename(path, &target) {
            Ok(()) => Ok(Some(target)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StoreError::io("remove", path, error)),
        }
    }

    fn unlink(&self, discarded: &[PathBuf], digests: &[Digest]) -> Result<(), StoreError> {
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
    fn remove_orphans(&self, report: &mut PruneReport) -> Result<(), StoreError> {
        for digest in self.orphans()? {
            let path = self.blob_path(&digest);
            let discarded = self.metadata().write(Durability::Soft, "remove an orphan", |transaction| {
                let known = super::blob::blob_row(transaction, &digest);
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

    /// Rows that are only about the past: leases that have ended, files not looked at for a month.
    fn forget_the_old(&self) -> Result<(), StoreError> {
        self.metadata().write(Durability::Soft, "forget leases", |transaction| {
            let failed = || StoreError::sql("forget leases");
            run(transaction, "DELETE FROM lease WHERE expires_at < ?1", [now()]).map_err(failed())?;
            let oldest = now() - STAT_CACHE_SECONDS_MAX;
            run(transaction, "DELETE FROM stat_cache WHERE used_at < ?1", [oldest]).map_err(failed())?;
            Ok(())
        })
    }

    /// Removes damaged blobs that nobody came to look at; how many bytes.
    fn empty_quarantine(&self) -> Result<u64, StoreError> {
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
    pub(super) fn orphans(&self) -> Result<Vec<Digest>, StoreError> {
        let mut orphans = Vec::new();
        for digest in self.blob_files()? {
            if is_old(&self.blob_path(&digest)) && self.blob_row(&digest)?.is_none() {
                orphans.push(digest);
            }
        }
        Ok(orphans)
    }

    /// The digests that have a file in `blobs/`.
    pub(super) fn blob_files(&self) -> Result<Vec<Digest>, StoreError> {
        Ok(self.digest_files("blobs")?.into_iter().filter_map(|(_, digest)| digest).collect())
    }

    /// What lies in `blobs/` or `index/`, each with the digest that names it, if it is a file that one names.
    pub(super) fn digest_files(&self, folder: &str) -> Result<Vec<(PathBuf, Option<Digest>)>, StoreError> {
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

    /// Collects at once what nothing needs any more out of `digests`, which a repository just gave up.
    pub(super) fn collect_given_up(
        &self,
        repository: i64,
        digests: &BTreeSet<Digest>,
    ) -> Result<PruneReport, StoreError> {
        let mut report = PruneReport::default();
        let access = Access::Real(self);
        let digests: Vec<Digest> = digests.iter().copied().collect();
        access.change(|connection| {
            for digest in &digests {
                remove_right_if_unneeded(connection, repository, digest)?;
            }
            Ok(())
        })?;
        self.remove_blobs(&access, &digests, &mut report)?;
        Ok(report)
    }
}

/// Whether a tag's image is old enough and not held: neither itself nor anything it names.
const UNHELD_TAG: &str = "SELECT 1 FROM tag WHERE updated_at <= ?1 AND repository_id = ?3 AND name = ?4
    AND NOT EXISTS (SELECT 1 FROM lease WHERE (expires_at IS NULL OR expires_at >= ?2) AND
    (lease.digest = tag.digest OR lease.digest IN (SELECT target FROM reference
     WHERE reference.repository_id = tag.repository_id AND reference.manifest = tag.digest)))";

fn unheld_tags(cutoff: i64) -> impl Fn(&Connection) -> Result<Vec<(i64, ImageName, Tag)>, StoreError> {
    move |connection| {
        let sql = "SELECT tag.repository_id, repository.name, tag.name FROM tag
                   JOIN repository ON repository.id = tag.repository_id WHERE tag.updated_at <= ?1
                   ORDER BY repository.name, tag.name";
        rows(connection, sql, [cutoff], |row| Ok((row.get(0)?, parsed(row, 1)?, parsed(row, 2)?)))
            .map_err(StoreError::sql("prune tags"))
    }
}

fn remove_tag_if_unheld(
    connection: &Connection,
    repository: i64,
    tag: &Tag,
    cutoff: i64,
) -> Result<bool, StoreError> {
    let failed = || StoreError::sql("prune tags");
    let parameters = params![cutoff, now(), repository, tag.as_str()];
    if first(connection, UNHELD_TAG, parameters, |_| Ok(())).map_err(failed())?.is_none() {
        return Ok(false);
    }
    let sql = "DELETE FROM tag WHERE repository_id = ?1 AND name = ?2";
    Ok(run(connection, sql, params![repository, tag.as_str()]).map_err(failed())? > 0)
}

/// A manifest that nothing keeps.
const UNNEEDED: &str = "manifest.pushed_at <= ?1
    AND NOT EXISTS (SELECT 1 FROM tag WHERE tag.repository_id = manifest.repository_id
        AND tag.digest = manifest.digest)
    AND NOT EXISTS (SELECT 1 FROM reference WHERE reference.repository_id = manifest.repository_id
        AND reference.target = manifest.digest AND reference.kind = 'manifest')
    AND NOT EXISTS (SELECT 1 FROM manifest AS subject WHERE subject.repository_id = manifest.repository_id
        AND subject.digest = manifest.subject)
    AND NOT EXISTS (SELECT 1 FROM lease WHERE lease.digest = manifest.digest
        AND (lease.expires_at IS NULL OR lease.expires_at >= ?2))";

fn unneeded_manifests(
    cutoff: i64,
) -> impl Fn(&Connection) -> Result<Vec<(i64, ImageName, Digest)>, StoreError> {
    move |connection| {
        let sql = format!(
            "SELECT manifest.repository_id, repository.name, manifest.digest FROM manifest
             JOIN repository ON repository.id = manifest.repository_id
             WHERE {UNNEEDED} ORDER BY repository.name, manifest.digest"
        );
        rows(connection, &sql, params![cutoff, now()], |row| {
            Ok((row.get(0)?, parsed(row, 1)?, parsed(row, 2)?))
        })
        .map_err(StoreError::sql("prune manifests"))
    }
}

pub(super) fn remove_if_unneeded(
    connection: &Connection,
    repository: i64,
    digest: &Digest,
    cutoff: i64,
) -> Result<bool, StoreError> {
    let sql = format!("SELECT 1 FROM manifest WHERE {UNNEEDED} AND repository_id = ?3 AND digest = ?4");
    let found = first(connection, &sql, params![cutoff, now(), repository, text(digest)], |_| Ok(()));
    match found.map_err(StoreError::sql("prune manifests"))? {
        Some(()) => delete_manifest_rows(connection, repository, digest),
        None => Ok(false),
    }
}

/// A repository's right to a blob that no manifest of it names, and whose lease is over.
const UNNEEDED_RIGHT: &str = "leased_until < ?1 AND NOT EXISTS (SELECT 1 FROM reference
    WHERE reference.repository_id = repository_blob.repository_id
    AND reference.target = repository_blob.digest)";

fn unneeded_rights(connection: &Connection) -> Result<Vec<(i64, Digest)>, StoreError> {
    let sql = format!("SELECT repository_id, digest FROM repository_blob WHERE {UNNEEDED_RIGHT}");
    rows(connection, &sql, [now()], |row| Ok((row.get(0)?, parsed(row, 1)?)))
        .map_err(StoreError::sql("prune blobs"))
}

fn remove_right_if_unneeded(
    connection: &Connection,
    repository: i64,
    digest: &Digest,
) -> Result<bool, StoreError> {
    let sql =
        format!("DELETE FROM repository_blob WHERE {UNNEEDED_RIGHT} AND repository_id = ?2 AND digest = ?3");
    let removed = run(connection, &sql, params![now(), repository, text(digest)]);
    Ok(removed.map_err(StoreError::sql("prune blobs"))? > 0)
}

/// A blob that nothing needs, before its leases are looked at.
pub(super) const UNNEEDED_BLOB: &str =
    "NOT EXISTS (SELECT 1 FROM repository_blob WHERE repository_blob.digest = blob.digest)
    AND NOT EXISTS (SELECT 1 FROM manifest WHERE manifest.digest = blob.digest)
    AND NOT EXISTS (SELECT 1 FROM cache_blob WHERE cache_blob.digest = blob.digest)";

fn unneeded_blobs(connection: &Connection) -> Result<Vec<Digest>, StoreError> {
    let sql = format!("SELECT digest FROM blob WHERE {UNNEEDED_BLOB} AND NOT {LEASED}");
    rows(connection, &sql, [now()], |row| parsed(row, 0)).map_err(StoreError::sql("prune blobs"))
}

/// Removes a blob's row if nothing needs it; its size then.
fn remove_blob_row(connection: &Connection, digest: &Digest) -> Result<Option<u64>, StoreError> {
    let failed = || StoreError::sql("prune blobs");
    let sql = format!("SELECT size FROM blob WHERE {UNNEEDED_BLOB} AND NOT {LEASED} AND digest = ?2");
    let size = first(connection, &sql, params![now(), text(digest)], |row| row.get(0)).map_err(failed())?;
    if size.is_some() {
        run(connection, "DELETE FROM blob WHERE digest = ?1", [text(digest)]).map_err(failed())?;
    }
    Ok(size.map(from_sql))
}

fn prune_cache(access: &Access<'_>, policy: CachePolicy) -> Result<u64, StoreError> {
    if policy == CachePolicy::default() {
        return Ok(0);
    }
    let failed = || StoreError::sql("prune the build cache");
    let removed = access.batches(
        |connection| stale_entries(connection, &policy).map_err(failed()),
        |connection, key: &String| {
            for sql in ["DELETE FROM cache_blob WHERE key = ?1", "DELETE FROM cache_entry WHERE key = ?1"] {
                run(connection, sql, [key]).map_err(failed())?;
            }
            Ok(Some(()))
        },
    )?;
    Ok(removed.len() as u64)
}

/// Keys of cache entries that the policy gives up.
fn stale_entries(connection: &Connection, policy: &CachePolicy) -> rusqlite::Result<Vec<String>> {
    let oldest = policy.unused_seconds_max.map_or(i64::MIN, |seconds| now().saturating_sub(seconds));
    let mut stale =
        rows(connection, "SELECT key FROM cache_entry WHERE used_at < ?1", [oldest], |row| row.get(0))?;
    let Some(bytes_max) = policy.bytes_max else { return Ok(stale) };
    let sql = "SELECT cache_entry.key, blob.digest, blob.size FROM cache_entry
               LEFT JOIN cache_blob ON cache_blob.key = cache_entry.key
               LEFT JOIN blob ON blob.digest = cache_blob.digest
               WHERE cache_entry.used_at >= ?1 ORDER BY cache_entry.used_at DESC, cache_entry.key";
    let entries = rows(connection, sql, [oldest], |row| {
        Ok((row.get::<_, String>(0)?, row.get::<_, Option<String>>(1)?, row.get::<_, Option<i64>>(2)?))
    })?;
    let (mut counted, mut bytes, mut over) = (BTreeSet::new(), 0u64, BTreeSet::new());
    for (key, digest, size) in entries {
        if let (Some(digest), Some(size)) = (digest, size)
            && counted.insert(digest)
        {
            bytes = bytes.saturating_add(from_sql(size));
        }
        if bytes_max == 0 || bytes > bytes_max {
            over.insert(key);
        }
    }
    stale.extend(over);
    Ok(stale)
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
