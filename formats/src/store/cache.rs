//! The build cache and the stat cache: what is remembered to spare work, and may be forgotten at any time.
//!
//! An entry of the build cache is a key, the key it followed (so that a miss can be explained by its nearest
//! earlier sibling) and a value that only the builder understands. The blobs that an entry needs are kept as
//! long as the entry is. The stat cache remembers the digest of a file by device and inode, and is right as
//! long as size, mtime and ctime are those it was taken with; the caller must not store a file whose ctime is
//! not older than its look at it.

use rusqlite::{OptionalExtension, params};

use super::Store;
use super::error::StoreError;
use super::metadata::{Durability, first, from_sql, now, parsed, rows, run, text, to_sql};
use crate::boot;
use crate::digest::Digest;

/// How stale `used_at` may become before a hit refreshes it: hits should be reads.
const USED_AT_RESOLUTION_SECONDS: i64 = 3600;

/// An entry of the build cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheEntry {
    /// Its key.
    pub key: String,
    /// The key that it followed.
    pub parent: String,
    /// What the builder stored.
    pub value: Vec<u8>,
    /// When, in seconds since 1970.
    pub created_at: i64,
}

/// What identifies the state of a file on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileStamp {
    /// The device number.
    pub device: u64,
    /// The inode number.
    pub inode: u64,
    /// Size in bytes.
    pub size: u64,
    /// Modification time, nanoseconds since 1970.
    pub mtime_ns: i64,
    /// Change time, nanoseconds since 1970.
    pub ctime_ns: i64,
}

impl Store {
    /// The value under `key`. A hit counts as a use, which keeps the entry from ageing.
    pub fn cache_get(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let found = self.metadata().read("look into the build cache", |connection| {
            let sql = "SELECT value, used_at FROM cache_entry WHERE key = ?1";
            first(connection, sql, [key], |row| Ok((row.get::<_, Vec<u8>>(0)?, row.get::<_, i64>(1)?)))
                .map_err(StoreError::sql("look into the build cache"))
        })?;
        let Some((value, used_at)) = found else { return Ok(None) };
        if used_at < now() - USED_AT_RESOLUTION_SECONDS {
            self.metadata().write(Durability::Soft, "use a cache entry", |transaction| {
                run(transaction, "UPDATE cache_entry SET used_at = ?2 WHERE key = ?1", params![key, now()])
                    .map_err(StoreError::sql("use a cache entry"))
            })?;
        }
        Ok(Some(value))
    }

    /// Remembers `value` under `key`, as what followed `parent`; `blobs` are kept while the entry is.
    pub fn cache_put(
        &self,
        key: &str,
        parent: &str,
        value: &[u8],
        blobs: &[Digest],
    ) -> Result<(), StoreError> {
        self.metadata().write(Durability::Soft, "write the build cache", |transaction| {
            let failed = || StoreError::sql("write the build cache");
            run(
                transaction,
                "INSERT INTO cache_entry (key, parent, value, created_at, used_at) VALUES (?1, ?2, ?3, ?4, ?4)
                 ON CONFLICT (key) DO UPDATE SET parent = excluded.parent, value = excluded.value,
                 created_at = excluded.created_at, used_at = excluded.used_at",
                params![key, parent, value, now()],
            )
            .map_err(failed())?;
            run(transaction, "DELETE FROM cache_blob WHERE key = ?1", [key]).map_err(failed())?;
            for digest in blobs {
                let sql = "INSERT INTO cache_blob (key, digest) VALUES (?1, ?2) ON CONFLICT (key, digest) DO NOTHING";
                run(transaction, sql, params![key, text(digest)]).map_err(failed())?;
            }
            Ok(())
        })
    }

    /// Entries that followed `parent`, newest first: what a missed key is compared with.
    pub fn cache_candidates(&self, parent: &str, limit: usize) -> Result<Vec<CacheEntry>, StoreError> {
        self.metadata().read("look into the build cache", |connection| {
            let sql = "SELECT key, parent, value, created_at FROM cache_entry WHERE parent = ?1
                       ORDER BY created_at DESC, key LIMIT ?2";
            rows(connection, sql, params![parent, to_sql(limit as u64)], |row| {
                Ok(CacheEntry {
                    key: row.get(0)?,
                    parent: row.get(1)?,
                    value: row.get(2)?,
                    created_at: row.get(3)?,
                })
            })
            .map_err(StoreError::sql("look into the build cache"))
        })
    }

    /// Forgets one entry: its blobs proved unusable.
    pub fn cache_remove(&self, key: &str) -> Result<(), StoreError> {
        self.metadata().write(Durability::Soft, "write the build cache", |transaction| {
            for sql in ["DELETE FROM cache_blob WHERE key = ?1", "DELETE FROM cache_entry WHERE key = ?1"] {
                run(transaction, sql, [key]).map_err(StoreError::sql("write the build cache"))?;
            }
            Ok(())
        })
    }

    /// How many entries there are, and how many bytes of blobs they need.
    pub fn cache_size(&self) -> Result<(u64, u64), StoreError> {
        self.metadata().read("measure the build cache", |connection| {
            let failed = || StoreError::sql("measure the build cache");
            let count = "SELECT count(*) FROM cache_entry";
            let bytes =
                "SELECT COALESCE(SUM(size), 0) FROM blob WHERE digest IN (SELECT digest FROM cache_blob)";
            let one = |sql| first(connection, sql, [], |row| row.get::<_, i64>(0)).map_err(failed());
            Ok((from_sql(one(count)?.unwrap_or(0)), from_sql(one(bytes)?.unwrap_or(0))))
        })
    }

    /// The digests remembered for files; `None` where nothing is, or where the file has changed since. What was
    /// remembered before the machine was started again does not count: after a power cut a file can have its times and
    /// its size, and other bytes.
    pub fn stat_cache_get(&self, stamps: &[FileStamp]) -> Result<Vec<Option<Digest>>, StoreError> {
        let Ok(boot) = boot::id() else { return Ok(vec![None; stamps.len()]) };
        self.metadata().read("look into the stat cache", |connection| {
            let sql = "SELECT digest FROM stat_cache WHERE device = ?1 AND inode = ?2 AND size = ?3
                       AND mtime_ns = ?4 AND ctime_ns = ?5 AND boot = ?6";
            let mut found = Vec::with_capacity(stamps.len());
            // Prepared once: a context has many files.
            let mut statement =
                connection.prepare_cached(sql).map_err(StoreError::sql("look into the stat cache"))?;
            for stamp in stamps {
                let (device, inode) = (bits(stamp.device), bits(stamp.inode));
                let parameters =
                    params![device, inode, to_sql(stamp.size), stamp.mtime_ns, stamp.ctime_ns, boot];
                let digest = statement.query_row(parameters, |row| parsed(row, 0)).optional();
                found.push(digest.map_err(StoreError::sql("look into the stat cache"))?);
            }
            Ok(found)
        })
    }

    /// Remembers the digests of files.
    pub fn stat_cache_put(&self, files: &[(FileStamp, Digest)]) -> Result<(), StoreError> {
        if files.is_empty() {
            return Ok(());
        }
        let Ok(boot) = boot::id() else { return Ok(()) };
        self.metadata().write(Durability::Soft, "write the stat cache", |transaction| {
            for (stamp, digest) in files {
                run(
                    transaction,
                    "INSERT INTO stat_cache (device, inode, size, mtime_ns, ctime_ns, digest, used_at,
                     boot) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
                     ON CONFLICT (device, inode) DO UPDATE SET size = excluded.size,
                     mtime_ns = excluded.mtime_ns, ctime_ns = excluded.ctime_ns, digest = excluded.digest,
                     used_at = excluded.used_at, boot = excluded.boot",
                    params![
                        bits(stamp.device),
                        bits(stamp.inode),
                        to_sql(stamp.size),
                        stamp.mtime_ns,
                        stamp.ctime_ns,
                        text(digest),
                        now(),
                        boot
                    ],
                )
                .map_err(StoreError::sql("write the stat cache"))?;
            }
            Ok(())
        })
    }
}

/// Device and inode numbers use all 64 bits; SQL integers are signed.
fn bits(number: u64) -> i64 {
    i64::from_ne_bytes(number.to_ne_bytes())
}
