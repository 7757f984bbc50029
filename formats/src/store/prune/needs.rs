//! What is needed: each question as SQL, asked once of a snapshot to find candidates, and again under the write lock of
//! each candidate.

use std::collections::BTreeSet;

use rusqlite::{Connection, params};

use super::super::error::StoreError;
use super::super::metadata::{first, from_sql, now, parsed, rows, run, text};
use super::super::repository::delete_manifest_rows;
use super::CachePolicy;
use super::in_use::InUse;
use crate::digest::Digest;
use crate::reference::{ImageName, Tag};

/// The unexpired leases of anybody on a digest.
const LEASED: &str = "EXISTS (SELECT 1 FROM lease WHERE lease.digest = blob.digest
    AND (lease.expires_at IS NULL OR lease.expires_at >= ?1))";

/// Whether a tag's image is old enough and not held: neither itself nor anything it names.
const UNHELD_TAG: &str = "SELECT digest FROM tag WHERE updated_at <= ?1 AND repository_id = ?3 AND name = ?4
    AND NOT EXISTS (SELECT 1 FROM lease WHERE (expires_at IS NULL OR expires_at >= ?2) AND
    (lease.digest = tag.digest OR lease.digest IN (SELECT target FROM reference
     WHERE reference.repository_id = tag.repository_id AND reference.manifest = tag.digest)))";

pub(super) fn unheld_tags(
    cutoff: i64,
) -> impl Fn(&Connection) -> Result<Vec<(i64, ImageName, Tag)>, StoreError> {
    move |connection| {
        let sql = "SELECT tag.repository_id, repository.name, tag.name FROM tag
                   JOIN repository ON repository.id = tag.repository_id WHERE tag.updated_at <= ?1
                   ORDER BY repository.name, tag.name";
        rows(connection, sql, [cutoff], |row| Ok((row.get(0)?, parsed(row, 1)?, parsed(row, 2)?)))
            .map_err(StoreError::sql("prune tags"))
    }
}

pub(super) fn remove_tag_if_unheld(
    connection: &Connection,
    repository: i64,
    tag: &Tag,
    cutoff: i64,
    in_use: &InUse,
) -> Result<bool, StoreError> {
    let failed = || StoreError::sql("prune tags");
    let parameters = params![cutoff, now(), repository, tag.as_str()];
    let unheld = first(connection, UNHELD_TAG, parameters, |row| parsed(row, 0)).map_err(failed())?;
    let Some(digest) = unheld else { return Ok(false) };
    if !in_use.is_empty() && in_use.holder(connection, repository, &digest).map_err(failed())?.is_some() {
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

pub(super) fn unneeded_manifests(
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

pub(in crate::store) fn remove_if_unneeded(
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

pub(super) fn unneeded_rights(connection: &Connection) -> Result<Vec<(i64, Digest)>, StoreError> {
    let sql = format!("SELECT repository_id, digest FROM repository_blob WHERE {UNNEEDED_RIGHT}");
    rows(connection, &sql, [now()], |row| Ok((row.get(0)?, parsed(row, 1)?)))
        .map_err(StoreError::sql("prune blobs"))
}

pub(super) fn remove_right_if_unneeded(
    connection: &Connection,
    repository: i64,
    digest: &Digest,
) -> Result<bool, StoreError> {
    let sql =
        format!("DELETE FROM repository_blob WHERE {UNNEEDED_RIGHT} AND repository_id = ?2 AND digest = ?3");
    let removed = run(connection, &sql, params![now(), repository, text(digest)]);
    Ok(removed.map_err(StoreError::sql("prune blobs"))? > 0)
}

/// A blob that neither an image nor a repository needs.
pub(in crate::store) const UNPROMISED_BLOB: &str =
    "NOT EXISTS (SELECT 1 FROM repository_blob WHERE repository_blob.digest = blob.digest)
    AND NOT EXISTS (SELECT 1 FROM manifest WHERE manifest.digest = blob.digest)";

/// A blob among these that the build cache does not need either.
const UNCACHED_BLOB: &str = "NOT EXISTS (SELECT 1 FROM cache_blob WHERE cache_blob.digest = blob.digest)";

pub(super) fn unneeded_blobs(connection: &Connection) -> Result<Vec<Digest>, StoreError> {
    let sql = format!("SELECT digest FROM blob WHERE {UNPROMISED_BLOB} AND {UNCACHED_BLOB} AND NOT {LEASED}");
    rows(connection, &sql, [now()], |row| parsed(row, 0)).map_err(StoreError::sql("prune blobs"))
}

/// Removes a blob's row if nothing needs it; its size then.
pub(super) fn remove_blob_row(connection: &Connection, digest: &Digest) -> Result<Option<u64>, StoreError> {
    let failed = || StoreError::sql("prune blobs");
    let sql = format!(
        "SELECT size FROM blob WHERE {UNPROMISED_BLOB} AND {UNCACHED_BLOB} AND NOT {LEASED} AND digest = ?2"
    );
    let size = first(connection, &sql, params![now(), text(digest)], |row| row.get(0)).map_err(failed())?;
    if size.is_some() {
        run(connection, "DELETE FROM blob WHERE digest = ?1", [text(digest)]).map_err(failed())?;
    }
    Ok(size.map(from_sql))
}

/// Keys of cache entries that the policy gives up.
pub(super) fn stale_entries(connection: &Connection, policy: &CachePolicy) -> rusqlite::Result<Vec<String>> {
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
