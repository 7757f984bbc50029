//! [`StoreError`]: what can go wrong in the store, by what a caller can do about it.

use std::io;
use std::path::{Path, PathBuf};

use crate::digest::Digest;
use crate::layer::LayerError;
use crate::manifest::ManifestError;
use crate::reference::{ImageName, Tag};
use crate::store::UploadId;

/// Why an operation of the store failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The disk or the quota is full. Nothing of the operation was acknowledged; it can be repeated.
    #[error("no space left to {action} {}: free some with `rimg prune`", path.display())]
    Full {
        /// What was being done, as a verb.
        action: &'static str,
        /// To which file.
        path: PathBuf,
    },
    /// The file system refused.
    #[error("failed to {action} {}: {source}", path.display())]
    Io {
        /// What was being done, as a verb.
        action: &'static str,
        /// To which file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A statement failed. Nobody outside the store sees this: it becomes one of the following, or
    /// [`StoreError::Full`], where the database's path is known.
    #[error("failed to {action}: {source}")]
    Statement {
        /// What was being done.
        action: &'static str,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// The metadata database refused.
    #[error("failed to {action}: {}: {reason}", path.display())]
    MetadataRefused {
        /// What was being done.
        action: &'static str,
        /// The database file.
        path: PathBuf,
        /// Why, and what helps.
        reason: String,
    },
    /// The metadata database cannot be read at all.
    #[error("{} is damaged ({reason}): `rimg fsck --repair` rebuilds it from the blobs", path.display())]
    MetadataDamaged {
        /// The database file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A newer rimg has written this store.
    #[error("{} has schema version {found}, this rimg knows up to {known}: use a newer rimg", path.display())]
    SchemaNewer {
        /// The database file.
        path: PathBuf,
        /// The version found.
        found: i64,
        /// The newest version known.
        known: i64,
    },
    /// What was written is not what was announced. Nothing was stored.
    #[error("content does not match its digest: expected {expected}, received {actual}")]
    DigestMismatch {
        /// The digest announced.
        expected: Box<Digest>,
        /// The digest of the bytes received.
        actual: Box<Digest>,
    },
    /// What was written is not as long as was announced. Nothing was stored.
    #[error("content of {digest} has {actual} bytes, expected {expected}")]
    SizeMismatch {
        /// The digest announced.
        digest: Digest,
        /// The size announced, in bytes.
        expected: u64,
        /// The size received, in bytes.
        actual: u64,
    },
    /// A stored blob is not what it was. It has been moved to quarantine and is no longer served.
    #[error("blob {digest} is damaged ({reason}): pull or push it again to heal it")]
    Damaged {
        /// The blob.
        digest: Digest,
        /// How that was noticed.
        reason: String,
    },
    /// A document is longer than its kind may be.
    #[error("blob {digest} has {size} bytes, too many for this use (at most {limit})")]
    TooLarge {
        /// The blob.
        digest: Digest,
        /// Its size in bytes.
        size: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// The store has no such blob.
    #[error("blob {0} is not in the store")]
    BlobUnknown(Digest),
    /// A manifest names blobs or manifests that are not there.
    #[error("manifest {manifest} refers to content that is missing: {}", list(missing))]
    ContentMissing {
        /// The manifest that was put.
        manifest: Digest,
        /// What is missing.
        missing: Vec<Digest>,
    },
    /// The repository has no such manifest.
    #[error("{name} has no manifest {digest}")]
    ManifestUnknown {
        /// The repository.
        name: ImageName,
        /// The manifest asked for.
        digest: Digest,
    },
    /// The repository has no such tag.
    #[error("{name} has no tag `{tag}`")]
    TagUnknown {
        /// The repository.
        name: ImageName,
        /// The tag asked for.
        tag: Tag,
    },
    /// The bytes are not a manifest.
    #[error(transparent)]
    ManifestInvalid(#[from] ManifestError),
    /// A stored document (configuration, layer index, …) cannot be understood.
    #[error("{digest} is not a valid {what}: {reason}")]
    DocumentInvalid {
        /// The blob.
        digest: Box<Digest>,
        /// What it should be.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A layer cannot be read, or is not the layer that its configuration says.
    #[error("layer {digest}: {source}")]
    Layer {
        /// The blob.
        digest: Digest,
        /// What is wrong with it.
        source: Box<LayerError>,
    },
    /// No unfinished upload has this id (any more).
    #[error("upload {0} is unknown: it was finished, cancelled or has expired")]
    UploadUnknown(UploadId),
    /// Somebody else is writing to the upload at this moment.
    #[error("upload {0} is in use by another writer")]
    UploadBusy(UploadId),
    /// A tag or manifest is not in the state that the caller required. Nothing was changed.
    #[error("precondition failed: {what} {}", state(current))]
    PreconditionFailed {
        /// The tag or manifest that was to change.
        what: String,
        /// What is there now.
        current: Option<Digest>,
    },
    /// A short id fits several images.
    #[error("`{text}` is ambiguous: it could be {}", list(candidates))]
    Ambiguous {
        /// What was given.
        text: String,
        /// What it may mean.
        candidates: Vec<Digest>,
    },
    /// Nothing in the store has this name or id.
    #[error("no image `{0}` in the store")]
    ImageUnknown(String),
    /// The image has no variant for the platform wanted.
    #[error("image {digest} has no variant for {wanted}; it has: {}", if available.is_empty() { "none" } else { available })]
    PlatformUnavailable {
        /// The index.
        digest: Box<Digest>,
        /// The platform wanted.
        wanted: String,
        /// What there is.
        available: String,
    },
    /// A tag's image would lose a part of itself.
    #[error("{digest} is a part of {name}:{tag}; delete that first")]
    PartOfTag {
        /// The blob or manifest.
        digest: Box<Digest>,
        /// The repository.
        name: ImageName,
        /// The first such tag.
        tag: Tag,
    },
    /// An image that was given by its id has several names.
    #[error("image {digest} is referenced {}: remove one by its name, or all with --force", named_by(names))]
    SeveralNames {
        /// The manifest.
        digest: Digest,
        /// All of them.
        names: Vec<String>,
    },
    /// Something holds on to the image.
    #[error("image {digest} is in use by {holder}")]
    InUse {
        /// The manifest.
        digest: Digest,
        /// Who holds it.
        holder: String,
    },
}

/// Docker's words, with the names.
fn named_by(names: &[String]) -> String {
    let repository = |name: &String| name.rsplit_once(':').map(|(repository, _)| repository.to_owned());
    let several = names.iter().any(|name| repository(name) != repository(&names[0]));
    format!(
        "{} ({})",
        if several { "in multiple repositories" } else { "by several names" },
        names.join(", ")
    )
}

impl StoreError {
    /// The error for an I/O failure of `action` on `path`.
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> StoreError {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StoreError::Full { action, path },
            _ => StoreError::Io { action, path, source },
        }
    }

    /// For `map_err`: as [`StoreError::io`].
    pub(crate) fn at<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> StoreError + 'a {
        move |source| StoreError::io(action, path, source)
    }

    /// For `map_err`: an SQL failure while doing `action`.
    pub(crate) fn sql(action: &'static str) -> impl FnOnce(rusqlite::Error) -> StoreError {
        move |source| StoreError::Statement { action, source }
    }

    /// Whether the failure says "there is no such thing", so that a caller may look elsewhere.
    pub fn is_not_found(&self) -> bool {
        matches!(
            self,
            StoreError::BlobUnknown(_)
                | StoreError::ManifestUnknown { .. }
                | StoreError::TagUnknown { .. }
                | StoreError::UploadUnknown(_)
                | StoreError::ImageUnknown(_)
        )
    }
}

/// Joins digests for a message; the first ten will do.
fn list(digests: &[Digest]) -> String {
    const SHOWN_MAX: usize = 10;
    let mut text = digests.iter().take(SHOWN_MAX).map(Digest::to_string).collect::<Vec<_>>().join(", ");
    if digests.len() > SHOWN_MAX {
        text.push_str(&format!(" and {} more", digests.len() - SHOWN_MAX));
    }
    text
}

fn state(current: &Option<Digest>) -> String {
    match current {
        Some(digest) => format!("is {digest}"),
        None => "does not exist".to_owned(),
    }
}
