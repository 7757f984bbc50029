//! Garbage collection, while everything else goes on.
//!
//! # What is kept
//!
//! | thing | kept while |
//! |---|---|
//! | manifest | it has a tag, is listed by a kept index, refers to a kept manifest, is leased or [in use](InUse), or is younger than asked |
//! | lease | its time is not over, and its owner lives (see [`session`](super::session)) |
//! | a repository's right to a blob | a manifest of the repository names it, or its lease runs |
//! | blob | a repository has a right to it, it is a kept manifest, a cache entry needs it, or a lease runs |
//! | cache entry | it was used within the time, and fits into the size, that the policy gives |
//! | damaged blob in quarantine | a week |
//! | upload | a living process writes to it, or it was suspended less than a day ago |
//!
//! `needs` asks what is needed, `files` takes files away.
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

mod files;
mod in_use;
mod needs;

use std::collections::BTreeSet;

use rusqlite::Connection;

use super::Store;
use super::error::StoreError;
use super::lease::release_in;
use super::metadata::{Durability, now, run};
use super::registration::LEASE_GRACE_SECONDS;
use crate::digest::Digest;
use crate::reference::{ImageName, Tag};
use needs::{
    remove_blob_row, remove_right_if_unneeded, remove_tag_if_unheld, stale_entries, unheld_tags,
    unneeded_blobs, unneeded_manifests, unneeded_rights,
};

pub use in_use::InUse;
pub(super) use needs::{UNPROMISED_BLOB, remove_if_unneeded};

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
    /// Images that stay in any case, with the tags that lead to them.
    pub in_use: InUse,
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
            in_use: InUse::default(),
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

/// How the phases touch the world: in transactions of their own, or on copies of the tables.
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
        self.with_reserve(|| self.prune_into(options, &mut report))?;
        if !options.dry_run {
            self.renew_reserve();
        }
        Ok(report)
    }

    fn prune_into(&self, options: &PruneOptions, report: &mut PruneReport) -> Result<(), StoreError> {
        if options.dry_run {
            // Each phase sees what those before it did, and nobody else sees anything.
            self.metadata().rehearse("rehearse a prune", |copies| {
                self.collect(options, &Access::Rehearsal(copies), report)
            })?;
        } else {
            self.collect(options, &Access::Real(self), report)?;
            self.remove_dead_sessions()?;
            self.remove_orphans(report)?;
            self.forget_the_old()?;
            report.bytes += self.empty_quarantine()?;
        }
        let (uploads, bytes) = self.sweep_uploads(now() - UPLOAD_SECONDS_MAX, options.dry_run)?;
        report.uploads += uploads;
        report.bytes += bytes;
        Ok(())
    }

    fn collect(
        &self,
        options: &PruneOptions,
        access: &Access<'_>,
        report: &mut PruneReport,
    ) -> Result<(), StoreError> {
        let cutoff = now() - options.older_than_seconds;
        access.batches(
            |connection| self.dead_holders(connection),
            |connection, holder: &String| release_in(connection, holder).map(Some),
        )?;
        if options.all {
            let tags = access.batches(unheld_tags(cutoff), |connection, (id, name, tag)| {
                Ok(remove_tag_if_unheld(connection, *id, tag, cutoff, &options.in_use)?
                    .then(|| (name.clone(), tag.clone())))
            })?;
            report.tags.extend(tags);
        }
        if options.untagged || options.all {
            for _ in 0..MANIFEST_ROUNDS_MAX {
                let removed =
                    access.batches(unneeded_manifests(cutoff), |connection, (id, name, digest)| {
                        let removed = !options.in_use.contains(digest)
                            && remove_if_unneeded(connection, *id, digest, cutoff)?;
                        Ok(removed.then(|| (name.clone(), *digest)))
                    })?;
                if removed.is_empty() {
                    break;
                }
                report.manifests.extend(removed);
            }
        }
        report.cache_entries += prune_cache(access, options.cache)?;
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
