//! [`copy_image`]: the one way an image gets from one place to another. Pull is push with its ends swapped.
//!
//! A source names manifests and opens blobs; a sink takes blobs, then manifests, then publishes the name. Whatever
//! fails before the last step leaves the sink's names as they were. Bytes are checked where they enter: manifests
//! here, blobs by the sink.
//!
//! | end | source | sink |
//! |---|---|---|
//! | a repository of the store | [`crate::store::Repository`] | [`RepositorySink`] |
//! | an OCI layout directory | [`crate::layout::LayoutSource`] | [`crate::layout::LayoutSink`] |
//! | an archive | (loaded by [`crate::archive::load`]) | [`crate::archive::ArchiveWriter`] |
//! | a registry | the registry crate's client | the same |

use std::collections::BTreeSet;
use std::io::{self, Read};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use crate::descriptor::Descriptor;
use crate::digest::Digest;
use crate::manifest::{Index, ManifestError, ManifestOrIndex};
use crate::media_type::MediaKind;
use crate::platform::Platform;
use crate::reference::Tag;
use crate::store::StoreError;
use crate::variant::{DEPTH_MAX, Variant};

mod repository;
mod resuming;
mod variants;

pub use repository::RepositorySink;
use resuming::Resuming;

/// Manifests of one copy: an index of all Linux platforms with attestations and referrers stays below a hundred.
const MANIFESTS_MAX: usize = 20_000;
/// Blobs on their way at the same time unless told otherwise: what docker does; more hardly helps one connection.
const PARALLEL_DEFAULT: usize = 4;
/// Which manifest of a source is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Version {
    /// What a tag names now.
    Tag(Tag),
    /// Exactly this one.
    Digest(Digest),
}

impl std::fmt::Display for Version {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Version::Tag(tag) => tag.fmt(formatter),
            Version::Digest(digest) => digest.fmt(formatter),
        }
    }
}

/// Why a copy failed. The sink's names are unchanged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransferError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A manifest is not valid.
    #[error("{what}: {source}")]
    Manifest {
        /// Which manifest.
        what: String,
        /// What is wrong with it.
        source: ManifestError,
    },
    /// The source does not have it.
    #[error("{0} is not there")]
    NotFound(String),
    /// What came is not what was announced.
    #[error("content of {digest} is not what was announced: {reason}")]
    Mismatch {
        /// The digest announced.
        digest: Box<Digest>,
        /// The difference.
        reason: String,
    },
    /// An index has no variant for a platform that was asked for.
    #[error("{what} has no variant for {wanted}; it has: {available}")]
    PlatformUnavailable {
        /// The index.
        what: String,
        /// The platform asked for.
        wanted: String,
        /// What there is.
        available: String,
    },
    /// Reading or writing failed.
    #[error("failed to {action}: {source}")]
    Io {
        /// What was being done, with its object.
        action: String,
        /// How it failed.
        source: io::Error,
    },
    /// The other end, a registry for instance, failed or refused.
    #[error("{0}")]
    Remote(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// More than any real image has.
    #[error("{what} exceeds the limit of {limit}")]
    Limit {
        /// What there is too much of.
        what: &'static str,
        /// How much is allowed.
        limit: usize,
    },
}

impl TransferError {
    /// For `map_err`: an I/O failure while doing `action`.
    pub fn io(action: impl Into<String>) -> impl FnOnce(io::Error) -> TransferError {
        let action = action.into();
        move |source| TransferError::Io { action, source }
    }
}

/// A manifest or index on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestBytes {
    /// The exact bytes.
    pub raw: Vec<u8>,
    /// Its media type.
    pub media_type: String,
}

/// Where images come from.
pub trait ImageSource: Sync {
    /// The manifest or index that `version` names. The caller verifies it.
    fn manifest(&self, version: &Version) -> Result<ManifestBytes, TransferError>;

    /// A blob's bytes from `offset` on. The sink verifies them.
    fn open(&self, blob: &Descriptor, offset: u64) -> Result<Box<dyn Read + Send + '_>, TransferError>;

    /// Whether the blob is there, as far as that is known without opening it.
    fn has(&self, _blob: &Descriptor) -> Result<bool, TransferError> {
        Ok(true)
    }

    /// What refers to a manifest; nothing, for sources that do not know.
    fn referrers(&self, _subject: &Digest) -> Result<Vec<Descriptor>, TransferError> {
        Ok(Vec::new())
    }
}

/// Opens a blob's content at an offset, as often as a sink needs it.
pub type OpenAt<'a> = dyn Fn(u64) -> Result<Box<dyn Read + Send + 'a>, TransferError> + 'a;

/// Where images go.
pub trait ImageSink: Sync {
    /// Whether the blob is there already (or could be put there without its bytes, by a mount).
    fn contains(&self, blob: &Descriptor) -> Result<bool, TransferError>;

    /// Takes a blob, and verifies its size and digest.
    fn write(&self, blob: &Descriptor, content: &mut (dyn Read + Send)) -> Result<(), TransferError>;

    /// As [`ImageSink::write`], for sinks that can go on in the middle after a broken connection.
    fn write_from(&self, blob: &Descriptor, open: &OpenAt<'_>) -> Result<(), TransferError> {
        self.write(blob, &mut *open(0)?)
    }

    /// Takes a manifest, whose blobs and variants it has been given before.
    fn put_manifest(&self, descriptor: &Descriptor, raw: &[u8]) -> Result<(), TransferError>;

    /// Makes `root` reachable by the names that the sink was made for. Comes last.
    fn publish(&self, root: &Descriptor) -> Result<(), TransferError>;

    /// How many blobs it can take at the same time.
    fn parallel_max(&self) -> usize {
        usize::MAX
    }
}

/// What happens during a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The plan is made: so many blobs with so many bytes in all.
    Planned {
        /// Blobs.
        blobs: usize,
        /// Bytes.
        bytes: u64,
    },
    /// A blob's transfer begins.
    BlobStarted {
        /// The blob.
        digest: Digest,
        /// Its size in bytes.
        size: u64,
    },
    /// More of a blob has been read.
    BlobAdvanced {
        /// The blob.
        digest: Digest,
        /// How many bytes more.
        bytes: u64,
    },
    /// A blob is in the sink.
    BlobDone {
        /// The blob.
        digest: Digest,
    },
    /// The sink had a blob already.
    BlobSkipped {
        /// The blob.
        digest: Digest,
        /// Its size in bytes.
        size: u64,
    },
    /// A manifest is in the sink.
    ManifestDone {
        /// The manifest.
        digest: Digest,
    },
}

/// Called with every event, from several threads.
pub type OnEvent<'a> = &'a (dyn Fn(Event) + Sync);

/// Which variants of an index are copied.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Platforms {
    /// All.
    #[default]
    All,
    /// All that the source has whole: a sparse index stays as sparse as it is. None at all is an error.
    Present,
    /// One variant for each of these; an error if there is none.
    Only(Vec<Platform>),
}

/// How to copy.
#[derive(Clone, Default)]
pub struct CopyOptions<'a> {
    /// Which variants of an index.
    pub platforms: Platforms,
    /// Copy the one chosen variant as an image of its own instead of the index around it.
    pub flatten: bool,
    /// Copy what refers to the image too (signatures, SBOMs).
    pub referrers: bool,
    /// Blobs on their way at the same time; 0 for the usual number.
    pub parallel: usize,
    /// Progress.
    pub on_event: Option<OnEvent<'a>>,
}

impl CopyOptions<'_> {
    fn tell(&self, event: Event) {
        if let Some(on_event) = self.on_event {
            on_event(event);
        }
    }
}

/// Copies an image: its blobs in parallel, then its manifests from the leaves up, then the name. Returns what was
/// published.
pub fn copy_image(
    source: &dyn ImageSource,
    sink: &dyn ImageSink,
    version: &Version,
    options: &CopyOptions<'_>,
) -> Result<Descriptor, TransferError> {
    let mut plan = Plan { source, options, manifests: Vec::new(), blobs: Vec::new(), seen: BTreeSet::new() };
    let root = plan.add_root(version)?;
    let bytes = plan.blobs.iter().map(|blob| blob.size).fold(0, u64::saturating_add);
    options.tell(Event::Planned { blobs: plan.blobs.len(), bytes });
    copy_blobs(source, sink, &plan.blobs, options)?;
    for (descriptor, raw) in &plan.manifests {
        sink.put_manifest(descriptor, raw)?;
        options.tell(Event::ManifestDone { digest: descriptor.digest });
    }
    sink.publish(&root)?;
    Ok(root)
}

/// Everything to be copied, in the order in which the sink gets it.
struct Plan<'a> {
    source: &'a dyn ImageSource,
    options: &'a CopyOptions<'a>,
    manifests: Vec<(Descriptor, Vec<u8>)>,
    blobs: Vec<Descriptor>,
    seen: BTreeSet<Digest>,
}

impl Plan<'_> {
    fn add_root(&mut self, version: &Version) -> Result<Descriptor, TransferError> {
        let (descriptor, document) = fetch(self.source, version, None)?;
        if !self.options.flatten {
            self.add(descriptor.clone(), document, 0)?;
            return Ok(descriptor);
        }
        let ManifestOrIndex::Index(index) = &document else {
            self.add(descriptor.clone(), document, 0)?;
            return Ok(descriptor);
        };
        let host = Platform::host();
        let wanted = match &self.options.platforms {
            Platforms::Only(platforms) if platforms.len() == 1 => &platforms[0],
            _ => &host,
        };
        let entry = variants::variant(self.source, index, wanted, version)?.entry;
        let (descriptor, document) = fetch(self.source, &Version::Digest(entry.digest), Some(&entry))?;
        self.add(descriptor.clone(), document, 0)?;
        Ok(descriptor)
    }

    fn add(
        &mut self,
        descriptor: Descriptor,
        document: ManifestOrIndex,
        depth: usize,
    ) -> Result<(), TransferError> {
        if !self.seen.insert(descriptor.digest) {
            return Ok(());
        }
        if depth >= DEPTH_MAX {
            return Err(TransferError::Limit { what: "the nesting of indexes", limit: DEPTH_MAX });
        }
        if self.seen.len() > MANIFESTS_MAX {
            return Err(TransferError::Limit {
                what: "the number of manifests and blobs",
                limit: MANIFESTS_MAX,
            });
        }
        match &document {
            ManifestOrIndex::Manifest(manifest) => {
                for blob in std::iter::once(manifest.config()).chain(manifest.layers()) {
                    // Layers that registries need not carry stay where they are.
                    let foreign = matches!(blob.kind(), MediaKind::Layer { foreign: true, .. });
                    if !foreign && self.seen.insert(blob.digest) {
                        self.blobs.push(blob.clone());
                    }
                }
            }
            ManifestOrIndex::Index(index) => self.add_variants(&descriptor, index, depth)?,
        }
        self.manifests.push((descriptor.clone(), document.raw().to_vec()));
        if self.options.referrers {
            for referrer in self.source.referrers(&descriptor.digest)? {
                let (referrer, document) =
                    fetch(self.source, &Version::Digest(referrer.digest), Some(&referrer))?;
                self.add(referrer, document, depth + 1)?;
            }
        }
        Ok(())
    }

    fn add_variants(
        &mut self,
        descriptor: &Descriptor,
        index: &Index,
        depth: usize,
    ) -> Result<(), TransferError> {
        match &self.options.platforms {
            // Choosing among platforms happens once, at the index that the user named.
            Platforms::Only(platforms) if depth == 0 => {
                let what = Version::Digest(descriptor.digest);
                platforms.iter().try_for_each(|platform| self.add_variant(index, platform, &what))
            }
            _ => self.add_entries(descriptor, index, depth),
        }
    }

    /// Adds one variant, and the indexes within the index that lead to it.
    fn add_variant(&mut self, index: &Index, wanted: &Platform, what: &Version) -> Result<(), TransferError> {
        let Variant { indexes, entry, .. } = variants::variant(self.source, index, wanted, what)?;
        let (child, document) = fetch(self.source, &Version::Digest(entry.digest), Some(&entry))?;
        self.add(child, document, 1)?;
        for (entry, inner) in indexes.iter().rev() {
            if self.seen.insert(entry.digest) {
                let descriptor = Descriptor::new(inner.media_type(), entry.digest, entry.size);
                self.manifests.push((descriptor, inner.raw().to_vec()));
            }
        }
        Ok(())
    }

    /// Adds every entry that is there.
    fn add_entries(
        &mut self,
        descriptor: &Descriptor,
        index: &Index,
        depth: usize,
    ) -> Result<(), TransferError> {
        let present = self.options.platforms == Platforms::Present;
        let mut left_out = 0;
        for entry in index.manifests() {
            if variants::is_blob(entry) {
                match self.source.has(entry)? {
                    true if self.seen.insert(entry.digest) => self.blobs.push(entry.clone()),
                    true => {}
                    false => left_out += 1,
                }
                continue;
            }
            match fetch(self.source, &Version::Digest(entry.digest), Some(entry)) {
                Ok((_, document)) if present && !variants::has_blobs(self.source, &document)? => {
                    left_out += 1
                }
                Ok((child, document)) => self.add(child, document, depth + 1)?,
                Err(error) if present && is_not_found(&error) => left_out += 1,
                Err(error) => return Err(error),
            }
        }
        match depth == 0 && left_out > 0 && left_out == index.manifests().len() {
            true => Err(TransferError::NotFound(format!("content of any entry of {}", descriptor.digest))),
            false => Ok(()),
        }
    }
}

fn is_not_found(error: &TransferError) -> bool {
    match error {
        TransferError::NotFound(_) => true,
        TransferError::Store(error) => error.is_not_found(),
        _ => false,
    }
}

/// Fetches a manifest and verifies it against the digest (and size) that it was asked for by.
fn fetch(
    source: &dyn ImageSource,
    version: &Version,
    announced: Option<&Descriptor>,
) -> Result<(Descriptor, ManifestOrIndex), TransferError> {
    let ManifestBytes { raw, media_type } = source.manifest(version)?;
    let digest = match version {
        Version::Digest(expected) => {
            let actual = Digest::of(expected.algorithm(), &raw);
            if actual != *expected {
                let reason = format!("its bytes hash to {actual}");
                return Err(TransferError::Mismatch { digest: Box::new(*expected), reason });
            }
            *expected
        }
        Version::Tag(_) => Digest::sha256(&raw),
    };
    if let Some(announced) = announced.filter(|announced| announced.size != raw.len() as u64) {
        let reason = format!("it has {} bytes, expected {}", raw.len(), announced.size);
        return Err(TransferError::Mismatch { digest: Box::new(digest), reason });
    }
    let document =
        ManifestOrIndex::parse(&raw, Some(&media_type).filter(|named| !named.is_empty()).map(String::as_str))
            .map_err(|source| TransferError::Manifest { what: version.to_string(), source })?;
    Ok((Descriptor::new(document.media_type(), digest, raw.len() as u64), document))
}

fn copy_blobs(
    source: &dyn ImageSource,
    sink: &dyn ImageSink,
    blobs: &[Descriptor],
    options: &CopyOptions<'_>,
) -> Result<(), TransferError> {
    let wanted = if options.parallel == 0 { PARALLEL_DEFAULT } else { options.parallel };
    let threads = wanted.min(sink.parallel_max()).min(blobs.len()).max(1);
    let (next, failed, failure) = (AtomicUsize::new(0), AtomicBool::new(false), Mutex::new(None));
    let work = || {
        while let Some(blob) = blobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            if failed.load(Ordering::Relaxed) {
                return;
            }
            if let Err(error) = copy_blob(source, sink, blob, options, &failed) {
                failed.store(true, Ordering::Relaxed);
                // The first failure is the cause; later ones are its consequences.
                failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
            }
        }
    };
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    failure.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}

fn copy_blob(
    source: &dyn ImageSource,
    sink: &dyn ImageSink,
    blob: &Descriptor,
    options: &CopyOptions<'_>,
    failed: &AtomicBool,
) -> Result<(), TransferError> {
    let digest = blob.digest;
    if sink.contains(blob)? {
        options.tell(Event::BlobSkipped { digest, size: blob.size });
        return Ok(());
    }
    options.tell(Event::BlobStarted { digest, size: blob.size });
    let told_bytes = AtomicU64::new(0);
    let open = |offset| -> Result<Box<dyn Read + Send + '_>, TransferError> {
        Ok(Box::new(Resuming::open(source, blob, options, failed, offset, &told_bytes)?))
    };
    sink.write_from(blob, &open)?;
    options.tell(Event::BlobDone { digest });
    Ok(())
}
