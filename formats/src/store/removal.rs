//! Removing images, as `docker rmi` does: names first, and what nothing names any more at once.
//!
//! Space comes back immediately, without a prune: the manifests, their variants and referrers go with the last
//! name, then the blobs that neither another image, nor the build cache, nor a lease needs.

use std::collections::BTreeSet;

use rusqlite::{Connection, params};

use super::Store;
use super::error::StoreError;
use super::images::ResolvedImage;
use super::metadata::{Durability, now, parsed, rows, run, text};
use super::prune::{InUse, remove_if_unneeded};
use super::repository::find_repository;
use crate::digest::Digest;
use crate::reference::{ImageName, Tag};

/// What a removal did.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Removed {
    /// Names removed.
    pub untagged: Vec<(ImageName, Tag)>,
    /// Manifests removed.
    pub deleted: Vec<Digest>,
    /// Bytes freed.
    pub bytes: u64,
}

impl Store {
    /// Removes what [`Store::resolve`] or [`Store::resolve_text`] found: one tag if it was found by a tag, the
    /// image with all its tags otherwise. Without `force`, an image that is held, or that has several names and
    /// was given by its id, is an error ([`StoreError::InUse`]).
    pub fn remove_image(
        &self,
        image: &ResolvedImage,
        in_use: &InUse,
        force: bool,
    ) -> Result<Removed, StoreError> {
        self.with_reserve(|| self.remove_image_now(image, in_use, force))
    }

    fn remove_image_now(
        &self,
        image: &ResolvedImage,
        in_use: &InUse,
        force: bool,
    ) -> Result<Removed, StoreError> {
        let mut removed = Removed::default();
        let given_up = self.metadata().write(Durability::Durable, "remove an image", |transaction| {
            let failed = || StoreError::sql("remove an image");
            let Some(id) = find_repository(transaction, &image.name).map_err(failed())? else {
                return Err(StoreError::ImageUnknown(image.digest.to_string()));
            };
            let tags = tags_on(transaction, id, &image.digest).map_err(failed())?;
            let doomed: Vec<Tag> = match &image.tag {
                Some(tag) => vec![tag.clone()],
                None => tags.clone(),
            };
            if !force {
                check_free(transaction, id, image, &tags, &doomed, in_use)?;
            }
            for tag in doomed {
                let sql = "DELETE FROM tag WHERE repository_id = ?1 AND name = ?2 AND digest = ?3";
                run(transaction, sql, params![id, tag.as_str(), text(&image.digest)]).map_err(failed())?;
                removed.untagged.push((image.name.clone(), tag));
            }
            let mut blobs = BTreeSet::new();
            remove_cascade(transaction, id, &image.digest, &mut removed.deleted, &mut blobs)?;
            Ok((id, blobs))
        })?;
        let (repository, mut digests) = given_up;
        digests.extend(removed.deleted.iter().copied());
        removed.bytes = self.collect_given_up(repository, &digests)?.bytes;
        Ok(removed)
    }
}

fn tags_on(connection: &Connection, id: i64, digest: &Digest) -> rusqlite::Result<Vec<Tag>> {
    let sql = "SELECT name FROM tag WHERE repository_id = ?1 AND digest = ?2 ORDER BY name";
    rows(connection, sql, params![id, text(digest)], |row| parsed(row, 0))
}

/// Refuses to take away what somebody uses, or several names at once.
fn check_free(
    connection: &Connection,
    repository: i64,
    image: &ResolvedImage,
    tags: &[Tag],
    doomed: &[Tag],
    in_use: &InUse,
) -> Result<(), StoreError> {
    let used_by = |holder| Err(StoreError::InUse { digest: image.digest, holder });
    if image.tag.is_none() && doomed.len() > 1 {
        let names = doomed.iter().map(|tag| format!("{}:{tag}", image.name)).collect::<Vec<_>>();
        return used_by(format!("several names ({}): remove these, or force it", names.join(", ")));
    }
    if tags.iter().all(|tag| doomed.contains(tag)) {
        let failed = || StoreError::sql("remove an image");
        if let Some(holder) = in_use.holder(connection, repository, &image.digest).map_err(failed())? {
            return used_by(format!("{holder}: wait for its end, or force it"));
        }
        // Nothing would be left to start what the holder holds again.
        let sql = "SELECT holder FROM lease WHERE expires_at IS NULL AND (digest = ?1 OR digest IN
                   (SELECT target FROM reference WHERE manifest = ?1 AND kind = 'manifest'))
                   ORDER BY holder LIMIT 1";
        let holders = rows(connection, sql, [text(&image.digest)], |row| row.get::<_, String>(0));
        let holders = holders.map_err(failed())?;
        if let Some(holder) = holders.into_iter().next() {
            return used_by(format!("{holder}: remove that first, or force it"));
        }
    }
    Ok(())
}

/// Removes a manifest that nothing needs, then what it listed and what referred to it, on the same condition.
fn remove_cascade(
    connection: &Connection,
    id: i64,
    top: &Digest,
    deleted: &mut Vec<Digest>,
    blobs: &mut BTreeSet<Digest>,
) -> Result<(), StoreError> {
    let failed = || StoreError::sql("remove an image");
    let mut left = vec![*top];
    while let Some(digest) = left.pop() {
        let sql = "SELECT target, kind FROM reference WHERE repository_id = ?1 AND manifest = ?2";
        let targets = rows(connection, sql, params![id, text(&digest)], |row| {
            Ok((parsed::<Digest>(row, 0)?, row.get::<_, String>(1)?))
        })
        .map_err(failed())?;
        let sql = "SELECT digest FROM manifest WHERE repository_id = ?1 AND subject = ?2";
        let referrers: Vec<Digest> =
            rows(connection, sql, params![id, text(&digest)], |row| parsed(row, 0)).map_err(failed())?;
        // Whatever its age: the user asked for it.
        if !remove_if_unneeded(connection, id, &digest, now() + 1)? {
            continue;
        }
        deleted.push(digest);
        left.extend(referrers);
        for (target, kind) in targets {
            if kind == "manifest" {
                left.push(target);
            }
            // An index may list blobs as well.
            blobs.insert(target);
        }
    }
    Ok(())
}
