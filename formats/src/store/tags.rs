//! Tags of a [`Repository`]: resolving, listing page by page in byte order, and compare-and-swap.

use rusqlite::{Connection, params};

use super::error::StoreError;
use super::metadata::{first, from_sql, parsed, rows, run, text, to_sql};
use super::put::Precondition;
use super::repository::{Repository, find_repository, repository_id, set_tag_row};
use crate::digest::Digest;
use crate::reference::Tag;

/// A tag with what a listing tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TagRecord {
    /// The tag.
    pub tag: Tag,
    /// The manifest it names.
    pub digest: Digest,
    /// The manifest's media type.
    pub media_type: String,
    /// The manifest's size in bytes.
    pub size: u64,
    /// When it was set, in seconds since 1970.
    pub updated_at: i64,
}

impl Repository {
    /// The manifest that a tag names.
    pub fn resolve(&self, tag: &Tag) -> Result<Option<Digest>, StoreError> {
        self.read("look up a tag", |connection, id| match id {
            Some(id) => tag_row(connection, id, tag).map_err(StoreError::sql("look up a tag")),
            None => Ok(None),
        })
    }

    /// Tags in byte order, at most `limit`, beginning behind `after`.
    pub fn tags(&self, after: Option<&str>, limit: usize) -> Result<Vec<Tag>, StoreError> {
        self.read("list tags", |connection, id| {
            let sql = "SELECT name FROM tag WHERE repository_id = ?1 AND name > ?2 ORDER BY name LIMIT ?3";
            rows(connection, sql, params![id, after.unwrap_or(""), to_sql(limit as u64)], |row| {
                parsed(row, 0)
            })
            .map_err(StoreError::sql("list tags"))
        })
    }

    /// As [`Repository::tags`], with what they name.
    pub fn tag_records(&self, after: Option<&str>, limit: usize) -> Result<Vec<TagRecord>, StoreError> {
        self.read("list tags", |connection, id| {
            let sql = "SELECT tag.name, tag.digest, manifest.media_type, manifest.size, tag.updated_at
                       FROM tag JOIN manifest ON manifest.repository_id = tag.repository_id
                       AND manifest.digest = tag.digest
                       WHERE tag.repository_id = ?1 AND tag.name > ?2 ORDER BY tag.name LIMIT ?3";
            rows(connection, sql, params![id, after.unwrap_or(""), to_sql(limit as u64)], |row| {
                Ok(TagRecord {
                    tag: parsed(row, 0)?,
                    digest: parsed(row, 1)?,
                    media_type: row.get(2)?,
                    size: from_sql(row.get(3)?),
                    updated_at: row.get(4)?,
                })
            })
            .map_err(StoreError::sql("list tags"))
        })
    }

    /// The tags on one manifest, in byte order.
    pub fn tags_of(&self, digest: &Digest) -> Result<Vec<Tag>, StoreError> {
        self.read("list tags", |connection, id| {
            let sql = "SELECT name FROM tag WHERE repository_id = ?1 AND digest = ?2 ORDER BY name";
            rows(connection, sql, params![id, text(digest)], |row| parsed(row, 0))
                .map_err(StoreError::sql("list tags"))
        })
    }

    /// Points a tag at a manifest that this repository has.
    pub fn set_tag(&self, tag: &Tag, digest: &Digest, precondition: Precondition) -> Result<(), StoreError> {
        self.write("set a tag", |transaction| {
            let id = repository_id(transaction, &self.name)?;
            self.check_precondition(transaction, id, std::slice::from_ref(tag), digest, precondition)?;
            let sql = "SELECT 1 FROM manifest WHERE repository_id = ?1 AND digest = ?2";
            let failed = || StoreError::sql("set a tag");
            if first(transaction, sql, params![id, text(digest)], |_| Ok(())).map_err(failed())?.is_none() {
                return Err(StoreError::ManifestUnknown { name: self.name.clone(), digest: *digest });
            }
            set_tag_row(transaction, id, tag, digest).map_err(failed())?;
            Ok(())
        })
    }

    /// Removes a tag; the manifest stays. Returns what it named, `None` when there was no such tag.
    pub fn delete_tag(&self, tag: &Tag, precondition: Precondition) -> Result<Option<Digest>, StoreError> {
        self.write("delete a tag", |transaction| {
            let failed = || StoreError::sql("delete a tag");
            let Some(id) = find_repository(transaction, &self.name).map_err(failed())? else {
                return Ok(None);
            };
            let Some(current) = tag_row(transaction, id, tag).map_err(failed())? else { return Ok(None) };
            self.check_precondition(transaction, id, std::slice::from_ref(tag), &current, precondition)?;
            let sql = "DELETE FROM tag WHERE repository_id = ?1 AND name = ?2";
            run(transaction, sql, params![id, tag.as_str()]).map_err(failed())?;
            Ok(Some(current))
        })
    }

    pub(super) fn check_precondition(
        &self,
        connection: &Connection,
        id: i64,
        tags: &[Tag],
        digest: &Digest,
        precondition: Precondition,
    ) -> Result<(), StoreError> {
        let holds = |current: Option<Digest>| match precondition {
            Precondition::None => true,
            Precondition::Absent => current.is_none(),
            Precondition::Is(expected) => current == Some(expected),
        };
        let failed = || StoreError::sql("check a precondition");
        for tag in tags {
            let current = tag_row(connection, id, tag).map_err(failed())?;
            if !holds(current) {
                let what = format!("tag {}:{tag}", self.name);
                return Err(StoreError::PreconditionFailed { what, current });
            }
        }
        if tags.is_empty() && precondition != Precondition::None {
            let sql = "SELECT digest FROM manifest WHERE repository_id = ?1 AND digest = ?2";
            let current =
                first(connection, sql, params![id, text(digest)], |row| parsed(row, 0)).map_err(failed())?;
            if !holds(current) {
                let what = format!("manifest {digest} in {}", self.name);
                return Err(StoreError::PreconditionFailed { what, current });
            }
        }
        Ok(())
    }
}

fn tag_row(connection: &Connection, id: i64, tag: &Tag) -> rusqlite::Result<Option<Digest>> {
    let sql = "SELECT digest FROM tag WHERE repository_id = ?1 AND name = ?2";
    first(connection, sql, params![id, tag.as_str()], |row| parsed(row, 0))
}
