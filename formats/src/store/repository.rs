//! [`Repository`]: a name's manifests, and its right to blobs.
//!
//! Blobs are stored once, but belong to repositories: what was never pushed to, mounted into or named by a
//! manifest of a repository is not there for its readers, even if the store has it. A put of a manifest is the
//! moment at which content becomes reachable; blobs first, then the manifest, then its tags, all names in one
//! durable transaction.

use std::sync::Arc;

use rusqlite::{Connection, Transaction, params};

use super::Store;
use super::blob::{Blob, blob_row};
use super::error::StoreError;
use super::ingest::Ingest;
use super::metadata::{Durability, first, from_sql, now, parsed, rows, run, text, to_sql};
use super::registration::{LEASE_GRACE_SECONDS, link};
use super::uploads::UploadId;
use crate::descriptor::Descriptor;
use crate::digest::{Algorithm, Digest};
use crate::manifest::{MANIFEST_BYTES_MAX, ManifestOrIndex};
use crate::reference::{ImageName, Tag};

/// A manifest as it was put.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredManifest {
    /// Its digest.
    pub digest: Digest,
    /// Its media type.
    pub media_type: String,
    /// Its exact bytes.
    pub raw: Arc<[u8]>,
}

impl StoredManifest {
    /// Its parsed form.
    pub fn parse(&self) -> Result<ManifestOrIndex, StoreError> {
        Ok(ManifestOrIndex::parse(&self.raw, Some(&self.media_type))?)
    }

    /// A descriptor of it.
    pub fn descriptor(&self) -> Descriptor {
        Descriptor::new(&self.media_type, self.digest, self.raw.len() as u64)
    }
}

/// One name in the store. Need not exist yet: it does from the first blob or manifest put into it.
#[derive(Clone, Debug)]
pub struct Repository {
    pub(super) store: Store,
    pub(super) name: ImageName,
}

impl Store {
    /// The repository called `name`.
    pub fn repository(&self, name: &ImageName) -> Repository {
        Repository { store: self.clone(), name: name.clone() }
    }

    /// Names that hold manifests, in byte order, beginning behind `after`.
    pub fn repositories(&self, after: Option<&str>, limit: usize) -> Result<Vec<ImageName>, StoreError> {
        self.metadata().read("list repositories", |connection| {
            let sql = "SELECT name FROM repository WHERE name > ?1 AND EXISTS
                       (SELECT 1 FROM manifest WHERE manifest.repository_id = repository.id)
                       ORDER BY name LIMIT ?2";
            rows(connection, sql, params![after.unwrap_or(""), to_sql(limit as u64)], |row| parsed(row, 0))
                .map_err(StoreError::sql("list repositories"))
        })
    }

    /// Names that have a right to a blob, at most `limit`.
    pub fn repositories_with_blob(
        &self,
        digest: &Digest,
        limit: usize,
    ) -> Result<Vec<ImageName>, StoreError> {
        self.metadata().read("list repositories", |connection| {
            let sql = "SELECT repository.name FROM repository_blob JOIN repository
                       ON repository.id = repository_blob.repository_id
                       WHERE repository_blob.digest = ?1 ORDER BY repository.name LIMIT ?2";
            rows(connection, sql, params![text(digest), to_sql(limit as u64)], |row| parsed(row, 0))
                .map_err(StoreError::sql("list repositories"))
        })
    }
}

impl Repository {
    /// Its name.
    pub fn name(&self) -> &ImageName {
        &self.name
    }

    /// Its store.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Whether anything was ever put into it.
    pub fn exists(&self) -> Result<bool, StoreError> {
        self.read("look up a repository", |_, id| Ok(id.is_some()))
    }

    /// Begins an ingest whose blob will belong to this repository. Durable when committed.
    pub fn ingest_with(&self, algorithm: Algorithm) -> Result<Ingest, StoreError> {
        let mut ingest = self.store.ingest_with(algorithm)?;
        ingest.repository = Some(self.name.clone());
        Ok(ingest)
    }

    /// As [`Store::resume`]; an upload of another repository is unknown here.
    pub fn resume(&self, id: &UploadId) -> Result<Ingest, StoreError> {
        let ingest = self.store.resume(id)?;
        if ingest.repository.as_ref() == Some(&self.name) {
            return Ok(ingest);
        }
        ingest.suspend()?;
        Err(StoreError::UploadUnknown(*id))
    }

    /// The size of a blob that belongs to this repository and is whole. The answer is a promise: the blob is
    /// leased for a while.
    pub fn has_blob(&self, digest: &Digest) -> Result<Option<u64>, StoreError> {
        let member = self.read("look up a blob", |connection, id| {
            let Some(id) = id else { return Ok(None) };
            let sql = "SELECT leased_until FROM repository_blob WHERE repository_id = ?1 AND digest = ?2";
            let leased: Option<i64> = first(connection, sql, params![id, text(digest)], |row| row.get(0))
                .map_err(StoreError::sql("look up a blob"))?;
            Ok(leased.map(|until| (id, until)))
        })?;
        let Some((id, leased_until)) = member else { return Ok(None) };
        if !self.store.has_file(digest)? {
            return Ok(None);
        }
        let until = now() + LEASE_GRACE_SECONDS;
        if leased_until < until - LEASE_GRACE_SECONDS / 2 && !self.renew(id, digest, until)? {
            return Ok(None);
        }
        self.store.blob_size(digest)
    }

    /// Opens a blob that belongs to this repository, verified as by [`Store::verified_blob`].
    pub fn blob(&self, digest: &Digest) -> Result<Option<Blob>, StoreError> {
        if self.is_member(digest)? { self.store.verified_blob(digest) } else { Ok(None) }
    }

    /// Gives this repository a blob that `source` has; `false` when `source` does not have it. The caller
    /// decides who may.
    pub fn mount_blob(&self, digest: &Digest, source: &ImageName) -> Result<bool, StoreError> {
        if self.store.repository(source).has_blob(digest)?.is_none() {
            return Ok(false);
        }
        self.link_blob(digest)
    }

    /// Gives this repository a blob of the store; `false` when the store does not have it.
    pub fn link_blob(&self, digest: &Digest) -> Result<bool, StoreError> {
        if !self.store.has_file(digest)? {
            return Ok(false);
        }
        self.store.blob_directory(digest.algorithm()).sync()?;
        self.write("link a blob", |transaction| {
            let failed = || StoreError::sql("link a blob");
            let row = blob_row(transaction, digest).map_err(failed())?;
            if row.is_none_or(|row| row.damaged.is_some()) || !self.store.is_named(digest) {
                return Ok(false);
            }
            let id = repository_id(transaction, &self.name)?;
            link(transaction, id, digest, now() + LEASE_GRACE_SECONDS).map_err(failed())?;
            Ok(true)
        })
    }

    /// Takes a blob away from this repository; `false` when it did not have it. Fails with
    /// [`StoreError::PartOfTag`] while a tag leads to a manifest that names it.
    pub fn delete_blob(&self, digest: &Digest) -> Result<bool, StoreError> {
        self.write("delete a blob", |transaction| {
            let id = find_repository(transaction, &self.name).map_err(StoreError::sql("delete a blob"))?;
            check_part_of_tag(transaction, id, &self.name, digest)?;
            let sql = "DELETE FROM repository_blob WHERE repository_id = ?1 AND digest = ?2";
            let removed = run(transaction, sql, params![id, text(digest)]);
            Ok(removed.map_err(StoreError::sql("delete a blob"))? > 0)
        })
    }

    /// A manifest of this repository.
    pub fn manifest(&self, digest: &Digest) -> Result<StoredManifest, StoreError> {
        let media_type = self.read("look up a manifest", |connection, id| {
            let sql = "SELECT media_type FROM manifest WHERE repository_id = ?1 AND digest = ?2";
            first(connection, sql, params![id, text(digest)], |row| row.get::<_, String>(0))
                .map_err(StoreError::sql("look up a manifest"))
        })?;
        let Some(media_type) = media_type else {
            return Err(StoreError::ManifestUnknown { name: self.name.clone(), digest: *digest });
        };
        Ok(StoredManifest { digest: *digest, media_type, raw: self.store.manifest_bytes(digest)? })
    }

    /// Digests of all manifests here, in byte order, beginning behind `after`.
    pub fn manifests(&self, after: Option<&Digest>, limit: usize) -> Result<Vec<Digest>, StoreError> {
        self.read("list manifests", |connection, id| {
            let sql = "SELECT digest FROM manifest WHERE repository_id = ?1 AND digest > ?2
                       ORDER BY digest LIMIT ?3";
            let after = after.map(text).unwrap_or_default();
            rows(connection, sql, params![id, after, to_sql(limit as u64)], |row| parsed(row, 0))
                .map_err(StoreError::sql("list manifests"))
        })
    }

    /// Removes a manifest and every tag on it; `false` when there was none. Its blobs go with the next
    /// collection. Fails with [`StoreError::PartOfTag`] while a tag leads to an index that lists it.
    pub fn delete_manifest(&self, digest: &Digest) -> Result<bool, StoreError> {
        self.write("delete a manifest", |transaction| {
            match find_repository(transaction, &self.name).map_err(StoreError::sql("delete a manifest"))? {
                Some(id) => {
                    check_part_of_tag(transaction, Some(id), &self.name, digest)?;
                    delete_manifest_rows(transaction, id, digest)
                }
                None => Ok(false),
            }
        })
    }

    /// The bytes of all blobs that belong to this repository.
    pub fn size_bytes(&self) -> Result<u64, StoreError> {
        self.read("measure a repository", |connection, id| {
            let sql = "SELECT COALESCE(SUM(blob.size), 0) FROM blob JOIN repository_blob
                       ON repository_blob.digest = blob.digest WHERE repository_blob.repository_id = ?1";
            let size = first(connection, sql, [id], |row| row.get(0));
            Ok(from_sql(size.map_err(StoreError::sql("measure a repository"))?.unwrap_or(0)))
        })
    }

    /// Runs `work` on a snapshot with this repository's id, if it has one.
    pub(super) fn read<T>(
        &self,
        action: &'static str,
        work: impl FnOnce(&Connection, Option<i64>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.store.metadata().read(action, |connection| {
            let id = find_repository(connection, &self.name).map_err(StoreError::sql(action))?;
            work(connection, id)
        })
    }

    /// Runs `work` in a durable transaction.
    pub(super) fn write<T>(
        &self,
        action: &'static str,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.store.metadata().write(Durability::Durable, action, work)
    }

    fn is_member(&self, digest: &Digest) -> Result<bool, StoreError> {
        self.read("look up a blob", |connection, id| {
            let sql = "SELECT 1 FROM repository_blob WHERE repository_id = ?1 AND digest = ?2";
            let found = first(connection, sql, params![id, text(digest)], |_| Ok(()));
            Ok(found.map_err(StoreError::sql("look up a blob"))?.is_some())
        })
    }

    /// Prolongs a membership's lease; `false` when a collector was quicker.
    fn renew(&self, id: i64, digest: &Digest, until: i64) -> Result<bool, StoreError> {
        self.store.metadata().write(Durability::Soft, "lease a blob", |transaction| {
            let sql = "UPDATE repository_blob SET leased_until = ?3 WHERE repository_id = ?1 AND digest = ?2";
            let changed = run(transaction, sql, params![id, text(digest), until]);
            Ok(changed.map_err(StoreError::sql("lease a blob"))? > 0)
        })
    }
}

impl Store {
    /// The bytes of a manifest, from memory if it was read lately.
    pub(super) fn manifest_bytes(&self, digest: &Digest) -> Result<Arc<[u8]>, StoreError> {
        if let Some(raw) = self.inner.manifests.get(digest) {
            return Ok(raw);
        }
        let raw: Arc<[u8]> = self.read_blob(digest, MANIFEST_BYTES_MAX as u64)?.into();
        self.inner.manifests.put(*digest, raw.clone());
        Ok(raw)
    }
}

/// Refuses to take away what a tagged image consists of, through however many indexes.
pub(super) fn check_part_of_tag(
    connection: &Connection,
    id: Option<i64>,
    name: &ImageName,
    digest: &Digest,
) -> Result<(), StoreError> {
    let sql = "WITH RECURSIVE holder (digest) AS (
                   SELECT manifest FROM reference WHERE repository_id = ?1 AND target = ?2
                   UNION
                   SELECT reference.manifest FROM reference JOIN holder ON reference.target = holder.digest
                   WHERE reference.repository_id = ?1)
               SELECT tag.name FROM tag JOIN holder ON holder.digest = tag.digest
               WHERE tag.repository_id = ?1 ORDER BY tag.name LIMIT 1";
    let tag: Option<Tag> = first(connection, sql, params![id, text(digest)], |row| parsed(row, 0))
        .map_err(StoreError::sql("look for tags on a part"))?;
    match tag {
        Some(tag) => Err(StoreError::PartOfTag { digest: Box::new(*digest), name: name.clone(), tag }),
        None => Ok(()),
    }
}

pub(super) fn set_tag_row(
    connection: &Connection,
    id: i64,
    tag: &Tag,
    digest: &Digest,
) -> rusqlite::Result<usize> {
    run(
        connection,
        "INSERT INTO tag (repository_id, name, digest, updated_at) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT (repository_id, name) DO UPDATE SET digest = excluded.digest,
         updated_at = excluded.updated_at",
        params![id, tag.as_str(), text(digest), now()],
    )
}

pub(super) fn delete_manifest_rows(
    connection: &Connection,
    id: i64,
    digest: &Digest,
) -> Result<bool, StoreError> {
    let mut removed = 0;
    for sql in [
        "DELETE FROM tag WHERE repository_id = ?1 AND digest = ?2",
        "DELETE FROM reference WHERE repository_id = ?1 AND manifest = ?2",
        "DELETE FROM manifest WHERE repository_id = ?1 AND digest = ?2",
    ] {
        // The last statement's count is the answer.
        removed =
            run(connection, sql, params![id, text(digest)]).map_err(StoreError::sql("delete a manifest"))?;
    }
    Ok(removed > 0)
}

pub(super) fn find_repository(connection: &Connection, name: &ImageName) -> rusqlite::Result<Option<i64>> {
    first(connection, "SELECT id FROM repository WHERE name = ?1", [name.as_str()], |row| row.get(0))
}

/// The id of a repository, which begins to exist if it did not.
pub(super) fn repository_id(connection: &Connection, name: &ImageName) -> Result<i64, StoreError> {
    let failed = || StoreError::sql("look up a repository");
    if let Some(id) = find_repository(connection, name).map_err(failed())? {
        return Ok(id);
    }
    let sql = "INSERT INTO repository (name, created_at) VALUES (?1, ?2) ON CONFLICT (name) DO NOTHING";
    run(connection, sql, params![name.as_str(), now()]).map_err(failed())?;
    let id = find_repository(connection, name).map_err(failed())?;
    id.ok_or(StoreError::Statement {
        action: "create a repository",
        source: rusqlite::Error::QueryReturnedNoRows,
    })
}
