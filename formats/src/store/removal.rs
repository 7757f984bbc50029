//! Removing images, as `docker rmi` does: names first, and what nothing names any more at once.
//!
//! Space comes back immediately, without a prune: the manifests, their variants and referrers go with the last
//! name, then the blobs that neither another image, nor the build cache, nor a lease needs.

use std::collections::BTreeSet;

use rusqlite::{Connection, params};

use super::Store;
use super::error::StoreError;
use super::images::ResolvedImage;
use super::metadata::{Durability, first, now, parsed, rows, run, text};
use super::prune::{InUse, remove_if_unneeded};
use super::repository::check_part_of_tag;
use crate::digest::Digest;
use crate::reference::{ImageName, Tag};

/// What a removal did.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Removed {
    /// Names removed.
    pub untagged: Vec<(ImageName, Tag)>,
    /// Manifests that the store does not have any more.
    pub deleted: Vec<Digest>,
    /// Bytes freed.
    pub bytes: u64,
}

impl Store {
    /// Removes what [`Store::resolve`] or [`Store::resolve_text`] found, in its repository alone: one tag if it was found
    /// by a tag, the image with all its tags otherwise. Without `force`, an image that is held
    /// ([`StoreError::InUse`]), or that has several names and was not given by one ([`StoreError::SeveralNames`]), is
    /// an error. With or without, so is one that stays because it is a part of a tagged index
    /// ([`StoreError::PartOfTag`]).
    pub fn remove_image(
        &self,
        image: &ResolvedImage,
        in_use: &InUse,
        force: bool,
    ) -> Result<Removed, StoreError> {
        self.with_reserve(|| self.remove_image_now(image, in_use, force, false))
    }

    /// As [`Store::remove_image`], of an image that was given by its id: what nothing names goes from every repository,
    /// and several names in whichever repositories are several names.
    pub fn remove_image_by_id(
        &self,
        image: &ResolvedImage,
        in_use: &InUse,
        force: bool,
    ) -> Result<Removed, StoreError> {
        self.with_reserve(|| self.remove_image_now(image, in_use, force, true))
    }

    fn remove_image_now(
        &self,
        image: &ResolvedImage,
        in_use: &InUse,
        force: bool,
        everywhere: bool,
    ) -> Result<Removed, StoreError> {
        let mut removed = Removed::default();
        let given_up = self.metadata().write(Durability::Durable, "remove an image", |transaction| {
            let failed = || StoreError::sql("remove an image");
            let places = places(transaction, image, everywhere).map_err(failed())?;
            if places.is_empty() {
                return Err(StoreError::ImageUnknown(image.digest.to_string()));
            }
            if !force {
                check_free(transaction, image, &places, in_use)?;
            }
            let mut given_up = Vec::with_capacity(places.len());
            for place in &places {
                for tag in place.doomed(image) {
                    let sql = "DELETE FROM tag WHERE repository_id = ?1 AND name = ?2 AND digest = ?3";
                    run(transaction, sql, params![place.id, tag.as_str(), text(&image.digest)])
                        .map_err(failed())?;
                    removed.untagged.push((place.name.clone(), tag.clone()));
                }
                let mut blobs = BTreeSet::new();
                remove_cascade(transaction, place.id, &image.digest, &mut removed.deleted, &mut blobs)?;
                given_up.push((place.id, blobs));
            }
            // A part of an image stays with it, which the caller is to know.
            if removed.untagged.is_empty() && removed.deleted.is_empty() {
                for place in &places {
                    check_part_of_tag(transaction, Some(place.id), &place.name, &image.digest)?;
                }
            }
            // What another repository has is not deleted.
            let mut gone = Vec::with_capacity(removed.deleted.len());
            for digest in &removed.deleted {
                let sql = "SELECT 1 FROM manifest WHERE digest = ?1 LIMIT 1";
                if first(transaction, sql, [text(digest)], |_| Ok(())).map_err(failed())?.is_none() {
                    gone.push(*digest);
                }
            }
            let taken = std::mem::replace(&mut removed.deleted, gone);
            removed.deleted.dedup();
            Ok((given_up, taken))
        })?;
        let (given_up, taken) = given_up;
        for (repository, mut digests) in given_up {
            digests.extend(taken.iter().copied());
            removed.bytes += self.collect_given_up(repository, &digests)?.bytes;
        }
        Ok(removed)
    }
}

/// A repository that has the image.
struct Place {
    id: i64,
    name: ImageName,
    /// All its tags there.
    tags: Vec<Tag>,
}

impl Place {
    /// The tags to be removed.
    fn doomed<'p>(&'p self, image: &'p ResolvedImage) -> &'p [Tag] {
        match &image.tag {
            Some(tag) => std::slice::from_ref(tag),
            None => &self.tags,
        }
    }
}

/// The repository that the image was found in, or every one that has it, by name.
fn places(connection: &Connection, image: &ResolvedImage, everywhere: bool) -> rusqlite::Result<Vec<Place>> {
    let sql = "SELECT repository.id, repository.name FROM repository JOIN manifest
               ON manifest.repository_id = repository.id
               WHERE manifest.digest = ?1 AND (?2 OR repository.name = ?3) ORDER BY repository.name";
    let found =
        rows(connection, sql, params![text(&image.digest), everywhere, image.name.as_str()], |row| {
            Ok((row.get::<_, i64>(0)?, parsed(row, 1)?))
        })?;
    let place = |(id, name)| Ok(Place { id, name, tags: tags_on(connection, id, &image.digest)? });
    found.into_iter().map(place).collect()
}

fn tags_on(connection: &Connection, id: i64, digest: &Digest) -> rusqlite::Result<Vec<Tag>> {
    let sql = "SELECT name FROM tag WHERE repository_id = ?1 AND digest = ?2 ORDER BY name";
    rows(connection, sql, params![id, text(digest)], |row| parsed(row, 0))
}

/// Refuses to take away what somebody uses, or several names at once.
fn check_free(
    connection: &Connection,
    image: &ResolvedImage,
    places: &[Place],
    in_use: &InUse,
) -> Result<(), StoreError> {
    let names = |place: &Place| -> Vec<String> {
        place.doomed(image).iter().map(|tag| format!("{}:{tag}", place.name)).collect()
    };
    let names: Vec<String> = places.iter().flat_map(names).collect();
    if image.tag.is_none() && names.len() > 1 {
        return Err(StoreError::SeveralNames { digest: image.digest, names });
    }
    let used_by = |holder| Err(StoreError::InUse { digest: image.digest, holder });
    for place in places {
        if !place.tags.iter().all(|tag| place.doomed(image).contains(tag)) {
            continue;
        }
        let failed = || StoreError::sql("remove an image");
        if let Some(holder) = in_use.holder(connection, place.id, &image.digest).map_err(failed())? {
            return used_by(format!("{holder}: wait for its end, or use --force"));
        }
        // Nothing would be left to start what the holder holds again.
        let sql = "SELECT holder FROM lease WHERE expires_at IS NULL AND (digest = ?1 OR digest IN
                   (SELECT target FROM reference WHERE manifest = ?1 AND kind = 'manifest'))
                   ORDER BY holder LIMIT 1";
        let holders = rows(connection, sql, [text(&image.digest)], |row| row.get::<_, String>(0));
        let holders = holders.map_err(failed())?;
        if let Some(holder) = holders.into_iter().next() {
            return used_by(format!("{holder}: remove that first, or use --force"));
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
