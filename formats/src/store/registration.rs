//! [`Registrar`]: tells the metadata that a blob's file is in place, many blobs in one transaction.
//!
//! Registration and garbage collection meet in the metadata's write lock: within it a collector unlinks names
//! from `blobs/`, and within it the registrar looks whether the file is (still) there before it says so. A row
//! is therefore never written for a file that a collector took between rename and registration; the ingest
//! learns [`Registered::Lost`] and puts the file there again.

use std::fs::{self, Metadata as FileStat};
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};

use rusqlite::{Connection, params};

use super::Store;
use super::error::StoreError;
use super::lease::LEASE_SECONDS;
use super::metadata::{Durability, now, run, text, to_sql};
use super::repository::repository_id;
use crate::digest::Digest;
use crate::reference::ImageName;

/// How long content is kept that a client was told of but that no manifest names yet. An hour is what other
/// registries allow between a blob and its manifest, and a slow push of a large image needs most of it.
pub const LEASE_GRACE_SECONDS: i64 = 3600;

/// The state of a file when its content was known to be right. A write changes at least the ctime, which cannot be set
/// back. Not so writes through a shared mapping of a file on tmpfs, and those that a network file system's server
/// dates: these are for a scrub to find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) inode: i64,
    pub(super) size: u64,
    pub(super) mtime_ns: i64,
    pub(super) ctime_ns: i64,
}

impl Seen {
    pub(super) fn of(stat: &FileStat) -> Seen {
        let nanos = |seconds: i64, nanos: i64| seconds.saturating_mul(1_000_000_000).saturating_add(nanos);
        Seen {
            inode: i64::from_ne_bytes(stat.ino().to_ne_bytes()),
            size: stat.len(),
            mtime_ns: nanos(stat.mtime(), stat.mtime_nsec()),
            ctime_ns: nanos(stat.ctime(), stat.ctime_nsec()),
        }
    }
}

/// A blob whose file has been renamed into place.
#[derive(Clone, Debug)]
pub(super) struct Placed {
    pub(super) digest: Digest,
    pub(super) size: u64,
    /// The repository that the content was sent to, if any.
    pub(super) repository: Option<ImageName>,
}

/// What the registrar found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Registered {
    /// The file is there and the metadata says so.
    Present,
    /// The file is gone or not whole; nothing was written.
    Lost,
}

#[derive(Debug, Default)]
pub(super) struct Registrar {
    queue: Mutex<Queue>,
    finished: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: Vec<Waiting>,
    leading: bool,
}

/// A queued registration; the slot is filled with `None` when the shared transaction failed.
#[derive(Debug)]
struct Waiting {
    placed: Placed,
    slot: Arc<OnceLock<Option<Registered>>>,
}

impl Store {
    /// Registers a placed blob and leases it to this session (or to the repository). When `durability` is
    /// durable, the answer survives a power cut, and concurrent callers share the fsync.
    pub(super) fn register(&self, placed: Placed, durability: Durability) -> Result<Registered, StoreError> {
        match durability {
            Durability::Soft => self.register_now(&placed, durability),
            Durability::Durable => self.register_grouped(placed),
        }
    }

    fn register_now(&self, placed: &Placed, durability: Durability) -> Result<Registered, StoreError> {
        self.metadata()
            .write(durability, "register a blob", |transaction| self.register_in(transaction, placed))
    }

    fn register_grouped(&self, placed: Placed) -> Result<Registered, StoreError> {
        let registrar = &self.inner.registrar;
        let slot = Arc::new(OnceLock::new());
        let mut queue = registrar.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.waiting.push(Waiting { placed: placed.clone(), slot: slot.clone() });
        loop {
            match slot.get() {
                Some(Some(registered)) => return Ok(*registered),
                // Somebody's share of the transaction failed; alone, everybody gets an answer of their own.
                Some(None) => {
                    drop(queue);
                    return self.register_now(&placed, Durability::Durable);
                }
                None if queue.leading => {
                    queue = registrar.finished.wait(queue).unwrap_or_else(PoisonError::into_inner);
                }
                None => {
                    queue.leading = true;
                    let batch = std::mem::take(&mut queue.waiting);
                    drop(queue);
                    self.register_batch(&batch);
                    queue = registrar.queue.lock().unwrap_or_else(PoisonError::into_inner);
                    queue.leading = false;
                    registrar.finished.notify_all();
                }
            }
        }
    }

    fn register_batch(&self, batch: &[Waiting]) {
        let results = self.metadata().write(Durability::Durable, "register blobs", |transaction| {
            batch
                .iter()
                .map(|waiting| self.register_in(transaction, &waiting.placed))
                .collect::<Result<Vec<_>, _>>()
        });
        for (index, waiting) in batch.iter().enumerate() {
            let outcome = results.as_ref().ok().and_then(|results| results.get(index).copied());
            // Each slot is filled once, here, by the one leader that took it from the queue.
            let _ = waiting.slot.set(outcome);
        }
    }

    /// Registers within a transaction that already holds the write lock.
    pub(super) fn register_in(
        &self,
        transaction: &Connection,
        placed: &Placed,
    ) -> Result<Registered, StoreError> {
        let path = self.blob_path(&placed.digest);
        let stat = match fs::symlink_metadata(&path) {
            Ok(stat) if stat.is_file() && stat.len() == placed.size => stat,
            Ok(_) => return Ok(Registered::Lost),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Registered::Lost),
            Err(error) => return Err(StoreError::io("look at", &path, error)),
        };
        let failed = || StoreError::sql("register a blob");
        let (digest, seen, now) = (text(&placed.digest), Seen::of(&stat), now());
        record_blob(transaction, &placed.digest, &seen, now).map_err(failed())?;
        match &placed.repository {
            Some(name) => {
                let id = repository_id(transaction, name)?;
                link(transaction, id, &placed.digest, now + LEASE_GRACE_SECONDS).map_err(failed())?;
            }
            None => {
                let expires = now + LEASE_SECONDS;
                run(
                    transaction,
                    "INSERT INTO lease (digest, holder, expires_at) VALUES (?1, ?2, ?3)
                     ON CONFLICT (digest, holder) DO UPDATE SET expires_at = excluded.expires_at",
                    params![digest, self.holder()?, expires],
                )
                .map_err(failed())?;
            }
        }
        Ok(Registered::Present)
    }
}

/// Writes that the file of `digest` is whole and looks like `seen`.
pub(super) fn record_blob(
    connection: &Connection,
    digest: &Digest,
    seen: &Seen,
    now: i64,
) -> rusqlite::Result<usize> {
    run(
        connection,
        "INSERT INTO blob (digest, size, damaged, created_at, seen_inode, seen_mtime_ns, seen_ctime_ns)
         VALUES (?1, ?2, NULL, ?3, ?4, ?5, ?6)
         ON CONFLICT (digest) DO UPDATE SET size = excluded.size, damaged = NULL,
         seen_inode = excluded.seen_inode, seen_mtime_ns = excluded.seen_mtime_ns,
         seen_ctime_ns = excluded.seen_ctime_ns",
        params![text(digest), to_sql(seen.size), now, seen.inode, seen.mtime_ns, seen.ctime_ns],
    )
}

/// Gives a repository the right to a blob, until `leased_until` at least.
pub(super) fn link(
    connection: &Connection,
    repository: i64,
    digest: &Digest,
    leased_until: i64,
) -> rusqlite::Result<usize> {
    run(
        connection,
        "INSERT INTO repository_blob (repository_id, digest, leased_until) VALUES (?1, ?2, ?3)
         ON CONFLICT (repository_id, digest) DO UPDATE SET leased_until = excluded.leased_until
         WHERE repository_blob.leased_until < excluded.leased_until",
        params![repository, text(digest), leased_until],
    )
}
