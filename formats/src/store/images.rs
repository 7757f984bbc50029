//! Images as users see them: what a name or a short id means, what an image consists of, and the listing.

use std::collections::{BTreeMap, BTreeSet};

use rusqlite::{Connection, params};

use super::Store;
use super::error::StoreError;
use super::metadata::{first, from_sql, parsed, rows, text};
use crate::config::{CONFIG_BYTES_MAX, ImageConfig};
use crate::descriptor::Descriptor;
use crate::digest::{Algorithm, DiffId, Digest};
use crate::manifest::{Manifest, ManifestOrIndex};
use crate::platform::Platform;
use crate::reference::{ImageName, Reference, Tag};
use crate::variant::{Documents, choose, present};

/// Fewest hex digits that are taken for the beginning of an id: fewer would shadow ordinary names.
const SHORT_ID_DIGITS_MIN: usize = 6;

/// What a name or an id turned out to mean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedImage {
    /// The repository it was found in.
    pub name: ImageName,
    /// The tag it was found by, if it was by a tag.
    pub tag: Option<Tag>,
    /// The manifest or index.
    pub digest: Digest,
    /// Its media type.
    pub media_type: String,
}

/// An image for one platform, ready to be run or built upon.
#[derive(Clone, Debug)]
pub struct Image {
    /// The digest of the manifest.
    pub digest: Digest,
    /// The manifest.
    pub manifest: Manifest,
    /// The configuration.
    pub config: ImageConfig,
    /// The layers, lowest first, each with the digest of its uncompressed tar.
    pub layers: Vec<(Descriptor, DiffId)>,
}

/// A line of the listing.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageRecord {
    /// The repository.
    pub name: ImageName,
    /// The tag; `None` for an image that nothing names.
    pub tag: Option<Tag>,
    /// The manifest or index.
    pub digest: Digest,
    /// Its media type.
    pub media_type: String,
    /// The configuration of an image, or of an index's variant for this machine: docker's *image id*.
    pub config: Option<Digest>,
    /// The platforms it has content for.
    pub platforms: Vec<Platform>,
    /// When the configuration says it was created (RFC 3339).
    pub created: Option<String>,
    /// Bytes of the blobs it needs.
    pub size: u64,
    /// Of these, bytes that no other image in the store needs.
    pub unique_size: u64,
    /// Why it cannot be used, if so.
    pub damaged: Option<String>,
}

impl Store {
    /// Finds what `reference` names here. A digest wins over a tag.
    pub fn resolve(&self, reference: &Reference) -> Result<ResolvedImage, StoreError> {
        let (name, unknown) = (reference.name(), || StoreError::ImageUnknown(reference.to_string()));
        let repository = self.repository(&name);
        let (tag, digest) = match reference.digest {
            Some(digest) => (None, digest),
            None => {
                let tag = reference.tag_or_latest();
                let digest = repository.resolve(&tag)?.ok_or_else(unknown)?;
                (Some(tag), digest)
            }
        };
        let media_type = repository.media_type(&digest)?.ok_or_else(unknown)?;
        Ok(ResolvedImage { name, tag, digest, media_type })
    }

    /// Finds what a user typed: a name, a full digest of a manifest or configuration, or the first six or more
    /// hex digits of one.
    pub fn resolve_text(&self, typed: &str) -> Result<ResolvedImage, StoreError> {
        if let Ok(digest) = typed.parse::<Digest>() {
            return self.resolve_id(typed, &digest.to_string());
        }
        if let Ok(reference) = typed.parse::<Reference>() {
            match self.resolve(&reference) {
                Err(StoreError::ImageUnknown(_)) => {}
                other => return other,
            }
        }
        let hex = typed.strip_prefix("sha256:").unwrap_or(typed);
        let plain = hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if !plain || hex.len() < SHORT_ID_DIGITS_MIN {
            return Err(StoreError::ImageUnknown(typed.to_owned()));
        }
        self.resolve_id(typed, &format!("{}:{hex}", Algorithm::Sha256))
    }

    /// Manifests whose digest, or whose configuration's, begins with `prefix`.
    fn resolve_id(&self, typed: &str, prefix: &str) -> Result<ResolvedImage, StoreError> {
        let found = self.metadata().read("look up an image", |connection| {
            // `g` sorts behind every hex digit, so this is a range of the index.
            let end = format!("{prefix}g");
            let sql = "SELECT repository.name, manifest.digest, manifest.media_type FROM manifest
                       JOIN repository ON repository.id = manifest.repository_id
                       WHERE (manifest.digest >= ?1 AND manifest.digest < ?2) OR EXISTS
                       (SELECT 1 FROM reference WHERE reference.repository_id = manifest.repository_id
                        AND reference.manifest = manifest.digest AND reference.kind = 'config'
                        AND reference.target >= ?1 AND reference.target < ?2)
                       ORDER BY manifest.digest, repository.name";
            rows(connection, sql, params![prefix, end], |row| {
                Ok(ResolvedImage {
                    name: parsed(row, 0)?,
                    tag: None,
                    digest: parsed(row, 1)?,
                    media_type: row.get(2)?,
                })
            })
            .map_err(StoreError::sql("look up an image"))
        })?;
        let mut candidates: Vec<Digest> = found.iter().map(|image| image.digest).collect();
        candidates.dedup();
        match candidates.len() {
            0 => Err(StoreError::ImageUnknown(typed.to_owned())),
            1 => found.into_iter().next().ok_or_else(|| StoreError::ImageUnknown(typed.to_owned())),
            _ => Err(StoreError::Ambiguous { text: typed.to_owned(), candidates }),
        }
    }

    /// The manifest or index with this digest, in whichever repository it is.
    pub fn manifest(&self, digest: &Digest) -> Result<ManifestOrIndex, StoreError> {
        let media_type = self.metadata().read("look up a manifest", |connection| {
            let sql = "SELECT media_type FROM manifest WHERE digest = ?1 ORDER BY repository_id LIMIT 1";
            first(connection, sql, [text(digest)], |row| row.get::<_, String>(0))
                .map_err(StoreError::sql("look up a manifest"))
        })?;
        let media_type = media_type.ok_or_else(|| StoreError::ImageUnknown(digest.to_string()))?;
        Ok(ManifestOrIndex::parse(&self.manifest_bytes(digest)?, Some(&media_type))?)
    }

    /// The image for `platform` behind a manifest or an index. `None` takes this machine's variant of an index
    /// (or the only one), and a manifest as it is.
    pub fn image(&self, digest: &Digest, platform: Option<&Platform>) -> Result<Image, StoreError> {
        match self.manifest(digest)? {
            ManifestOrIndex::Manifest(manifest) => {
                let image = self.image_of(digest, manifest)?;
                let own = &image.config.platform;
                match platform.filter(|wanted| own.is_named() && !own.satisfies(wanted)) {
                    Some(wanted) => Err(StoreError::PlatformUnavailable {
                        digest: Box::new(*digest),
                        wanted: wanted.to_string(),
                        available: image.config.platform.to_string(),
                    }),
                    None => Ok(image),
                }
            }
            ManifestOrIndex::Index(index) => {
                let wanted = platform.cloned().unwrap_or_else(Platform::host);
                let choice = choose(&index, &wanted, self)?;
                let only = choice.only.filter(|_| platform.is_none());
                let variant = choice.best.or(only).ok_or_else(|| StoreError::PlatformUnavailable {
                    digest: Box::new(*digest),
                    wanted: wanted.to_string(),
                    available: match choice.available.is_empty() {
                        true => "nothing".to_owned(),
                        false => choice.available.join(", "),
                    },
                })?;
                let entry = variant.entry;
                match self.manifest(&entry.digest)? {
                    ManifestOrIndex::Manifest(manifest) => self.image_of(&entry.digest, manifest),
                    ManifestOrIndex::Index(_) => Err(StoreError::DocumentInvalid {
                        digest: Box::new(entry.digest),
                        what: "image manifest",
                        reason: "the index that lists it says so, but it is an index".to_owned(),
                    }),
                }
            }
        }
    }

    /// The configuration of an image.
    fn config_of(&self, manifest: &Manifest) -> Result<ImageConfig, StoreError> {
        let digest = manifest.config().digest;
        let raw = self.read_blob(&digest, CONFIG_BYTES_MAX as u64)?;
        ImageConfig::parse_for(&raw, manifest.layers().len()).map_err(|error| StoreError::DocumentInvalid {
            digest: Box::new(digest),
            what: "image configuration",
            reason: error.to_string(),
        })
    }

    fn image_of(&self, digest: &Digest, manifest: Manifest) -> Result<Image, StoreError> {
        if !manifest.is_image() {
            return Err(StoreError::DocumentInvalid {
                digest: Box::new(manifest.config().digest),
                what: "image configuration",
                reason: format!("its media type is `{}`", manifest.config().media_type),
            });
        }
        let config = self.config_of(&manifest)?;
        let layers = manifest.layers().iter().cloned().zip(config.rootfs.diff_ids.iter().copied()).collect();
        Ok(Image { digest: *digest, manifest, config, layers })
    }

    /// Every image in the store, by name and tag; those that nothing names last. Signatures and other
    /// referrers, and the variants within an index, are not listed by themselves.
    pub fn images(&self) -> Result<Vec<ImageRecord>, StoreError> {
        let (tops, contents) = self.metadata().read("list images", |connection| {
            let tops = top_manifests(connection).map_err(StoreError::sql("list images"))?;
            let mut contents = BTreeMap::new();
            for top in &tops {
                let blobs = blobs_of(connection, top.repository, &top.digest);
                contents.insert(top.digest, blobs.map_err(StoreError::sql("list images"))?);
            }
            Ok((tops, contents))
        })?;
        let mut users: BTreeMap<&Digest, usize> = BTreeMap::new();
        for digest in contents.values().flat_map(BTreeMap::keys) {
            *users.entry(digest).or_default() += 1;
        }
        let record = |top: Top| {
            let blobs = &contents[&top.digest];
            let alone = blobs.iter().filter(|(digest, _)| users.get(digest) == Some(&1));
            let alone = alone.map(|(_, size)| size);
            self.describe(top, sum(blobs.values()), sum(alone))
        };
        Ok(tops.into_iter().map(record).collect())
    }

    fn describe(&self, top: Top, size: u64, unique_size: u64) -> ImageRecord {
        let mut record = ImageRecord {
            name: top.name,
            tag: top.tag,
            digest: top.digest,
            media_type: top.media_type,
            config: None,
            platforms: Vec::new(),
            created: None,
            size,
            unique_size,
            damaged: None,
        };
        let described = self.manifest(&top.digest).and_then(|document| {
            match document {
                ManifestOrIndex::Index(index) => {
                    let variants = present(&index, self)?;
                    for variant in variants {
                        if !record.platforms.contains(&variant.platform) {
                            record.platforms.push(variant.platform);
                        }
                    }
                }
                ManifestOrIndex::Manifest(manifest) if !manifest.is_image() => return Ok(()),
                ManifestOrIndex::Manifest(_) => {}
            }
            let image = match self
                .image(&top.digest, record.platforms.first().filter(|_| record.platforms.len() == 1))
            {
                Ok(image) => image,
                Err(StoreError::PlatformUnavailable { .. } | StoreError::ImageUnknown(_)) => return Ok(()),
                Err(error) => return Err(error),
            };
            if record.platforms.is_empty() {
                record.platforms.push(image.config.platform.clone());
            }
            record.config = Some(image.manifest.config().digest);
            record.created = image.config.created;
            Ok(())
        });
        record.damaged = described.err().map(|error| error.to_string());
        record
    }
}

/// What the store has, in whichever repository.
impl Documents for Store {
    type Error = StoreError;

    fn document(&self, entry: &Descriptor) -> Result<Option<ManifestOrIndex>, StoreError> {
        unless_odd(self.manifest(&entry.digest))
    }

    fn platform(&self, manifest: &Manifest) -> Result<Option<Platform>, StoreError> {
        Ok(unless_odd(self.config_of(manifest))?.map(|config| config.platform))
    }
}

/// What cannot be read for reasons of its own is not there; the disk's failures are failures.
fn unless_odd<T>(found: Result<T, StoreError>) -> Result<Option<T>, StoreError> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(
            StoreError::ImageUnknown(_)
            | StoreError::BlobUnknown(_)
            | StoreError::ManifestInvalid(_)
            | StoreError::DocumentInvalid { .. }
            | StoreError::Damaged { .. }
            | StoreError::TooLarge { .. },
        ) => Ok(None),
        Err(error) => Err(error),
    }
}

impl super::Repository {
    /// The media type of a manifest of this repository, without its bytes.
    pub fn media_type(&self, digest: &Digest) -> Result<Option<String>, StoreError> {
        self.read("look up a manifest", |connection, id| {
            let sql = "SELECT media_type FROM manifest WHERE repository_id = ?1 AND digest = ?2";
            first(connection, sql, params![id, text(digest)], |row| row.get(0))
                .map_err(StoreError::sql("look up a manifest"))
        })
    }
}

/// Sizes are what manifests say, and these may say anything.
fn sum<'s>(sizes: impl Iterator<Item = &'s u64>) -> u64 {
    sizes.fold(0, |sum, size| sum.saturating_add(*size))
}

/// A manifest that is an image of its own.
struct Top {
    repository: i64,
    name: ImageName,
    tag: Option<Tag>,
    digest: Digest,
    media_type: String,
}

fn top_manifests(connection: &Connection) -> rusqlite::Result<Vec<Top>> {
    let sql = "SELECT manifest.repository_id, repository.name, tag.name, manifest.digest, manifest.media_type
               FROM manifest JOIN repository ON repository.id = manifest.repository_id
               LEFT JOIN tag ON tag.repository_id = manifest.repository_id AND tag.digest = manifest.digest
               WHERE tag.name IS NOT NULL OR (manifest.subject IS NULL AND NOT EXISTS
               (SELECT 1 FROM reference WHERE reference.repository_id = manifest.repository_id
                AND reference.target = manifest.digest AND reference.kind = 'manifest'))
               ORDER BY tag.name IS NULL, repository.name, tag.name, manifest.digest";
    rows(connection, sql, [], |row| {
        let tag: Option<String> = row.get(2)?;
        Ok(Top {
            repository: row.get(0)?,
            name: parsed(row, 1)?,
            tag: tag.map(|_| parsed(row, 2)).transpose()?,
            digest: parsed(row, 3)?,
            media_type: row.get(4)?,
        })
    })
}

/// The blobs that a manifest, or the present variants of an index, need, with their sizes.
fn blobs_of(
    connection: &Connection,
    repository: i64,
    top: &Digest,
) -> rusqlite::Result<BTreeMap<Digest, u64>> {
    let (mut blobs, mut visited, mut left) = (BTreeMap::new(), BTreeSet::new(), vec![*top]);
    while let Some(manifest) = left.pop() {
        if !visited.insert(manifest) {
            continue;
        }
        let sql = "SELECT target, kind, size FROM reference WHERE repository_id = ?1 AND manifest = ?2";
        let targets = rows(connection, sql, params![repository, text(&manifest)], |row| {
            Ok((parsed::<Digest>(row, 0)?, row.get::<_, String>(1)?, from_sql(row.get(2)?)))
        })?;
        for (target, kind, size) in targets {
            match kind.as_str() {
                "manifest" => left.push(target),
                "foreign" => {}
                _ => drop(blobs.insert(target, size)),
            }
        }
    }
    Ok(blobs)
}
