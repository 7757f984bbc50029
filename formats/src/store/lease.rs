//! [`Lease`]: holding on to a blob or a manifest without naming it.
//!
//! A lease belongs to a holder. This handle's own leases (`session:…`) are taken by every ingest and every
//! [`Store::contains`], and are given back when a local manifest names the content; they end with the handle (see
//! [`session`](super::session)), and after [`LEASE_SECONDS`] in any case. Leases by name ([`Store::hold`]) do not
//! expire. What was sent to a repository is kept for [`LEASE_GRACE_SECONDS`], whoever received it.

use rusqlite::{Connection, params};

pub use super::registration::LEASE_GRACE_SECONDS;

use super::error::StoreError;
use super::metadata::{Durability, now, parsed, rows, run, text};
use super::{Store, random_id};
use crate::digest::Digest;

/// How long a lease lasts whose owner neither gives it back nor dies: longer than any build, shorter than a process
/// that hangs.
pub(super) const LEASE_SECONDS: i64 = 24 * 3600;

/// Keeps blobs (or a manifest with all it needs) from being collected while it lives.
#[derive(Debug)]
pub struct Lease {
    store: Store,
    holder: String,
}

impl Drop for Lease {
    fn drop(&mut self) {
        // If this fails the lease expires by itself.
        let _ = self.store.release(&self.holder);
    }
}

impl Store {
    /// Leases `digest` until the returned value is dropped.
    pub fn lease(&self, digest: &Digest) -> Result<Lease, StoreError> {
        self.lease_all(&[*digest])
    }

    /// Leases all of `digests` until the returned value is dropped.
    pub fn lease_all(&self, digests: &[Digest]) -> Result<Lease, StoreError> {
        let holder = format!("{}/{}", self.holder()?, random_id());
        self.insert_leases(&holder, digests, Some(now() + LEASE_SECONDS), Durability::Soft)?;
        Ok(Lease { store: self.clone(), holder })
    }

    /// Leases `digests` to `holder` until [`Store::release`]: survives the process and restarts.
    pub fn hold(&self, holder: &str, digests: &[Digest]) -> Result<(), StoreError> {
        self.insert_leases(holder, digests, None, Durability::Durable)
    }

    /// Gives back every lease of `holder`.
    pub fn release(&self, holder: &str) -> Result<(), StoreError> {
        self.metadata()
            .write(Durability::Soft, "release a lease", |transaction| release_in(transaction, holder))
    }

    /// Who holds `digest` by name (see [`Store::hold`]).
    pub fn holders(&self, digest: &Digest) -> Result<Vec<String>, StoreError> {
        self.metadata().read("list leases", |connection| {
            let sql = "SELECT holder FROM lease WHERE digest = ?1 AND expires_at IS NULL ORDER BY holder";
            rows(connection, sql, [text(digest)], |row| row.get(0)).map_err(StoreError::sql("list leases"))
        })
    }

    /// All holders by name and what they hold.
    pub fn all_holders(&self) -> Result<Vec<(String, Digest)>, StoreError> {
        self.metadata().read("list leases", |connection| {
            let sql = "SELECT holder, digest FROM lease WHERE expires_at IS NULL ORDER BY holder, digest";
            rows(connection, sql, [], |row| Ok((row.get(0)?, parsed(row, 1)?)))
                .map_err(StoreError::sql("list leases"))
        })
    }

    /// Leases a blob to this session if it is (still) known and whole; says whether it was.
    pub(super) fn lease_for_session(&self, digest: &Digest) -> Result<bool, StoreError> {
        let holder = self.holder()?;
        self.metadata().write(Durability::Soft, "lease a blob", |transaction| {
            let changed = run(
                transaction,
                "INSERT INTO lease (digest, holder, expires_at)
                 SELECT digest, ?2, ?3 FROM blob WHERE digest = ?1 AND damaged IS NULL
                 ON CONFLICT (digest, holder) DO UPDATE SET expires_at = excluded.expires_at",
                params![text(digest), holder, now() + LEASE_SECONDS],
            );
            Ok(changed.map_err(StoreError::sql("lease a blob"))? > 0)
        })
    }

    fn insert_leases(
        &self,
        holder: &str,
        digests: &[Digest],
        expires_at: Option<i64>,
        durability: Durability,
    ) -> Result<(), StoreError> {
        self.metadata().write(durability, "lease a blob", |transaction| {
            for digest in digests {
                run(
                    transaction,
                    "INSERT INTO lease (digest, holder, expires_at) VALUES (?1, ?2, ?3)
                     ON CONFLICT (digest, holder) DO UPDATE SET expires_at = excluded.expires_at",
                    params![text(digest), holder, expires_at],
                )
                .map_err(StoreError::sql("lease a blob"))?;
            }
            Ok(())
        })
    }
}

/// Gives back every lease of `holder` within a transaction.
pub(super) fn release_in(connection: &Connection, holder: &str) -> Result<(), StoreError> {
    run(connection, "DELETE FROM lease WHERE holder = ?1", [holder])
        .map(|_| ())
        .map_err(StoreError::sql("release a lease"))
}
