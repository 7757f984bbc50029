//! The content store on disk: the one place that holds what rimg builds, pulls, serves and runs.
//!
//! ```text
//! blobs/<alg>/<hex>      immutable, whole, verified on the way in (an OCI layout's own shape)
//! index/<alg>/<hex>      layer index of a layer blob; can be rebuilt
//! metadata.db            SQLite: repositories, tags, manifests, references, uploads, leases, cache
//! metadata.queue         empty; locked by the process whose turn to write is next
//! uploads/<id>           unfinished ingests, locked by their writer; also blobs on their way out
//! sessions/<id>          empty; locked by a process that holds leases
//! reserve                room that a prune on a full disk may take
//! quarantine/            damaged blobs, kept for the curious, never served
//! snapshots/<id>/        layer contents as overlay lower directories (owned by the runner)
//! containers/<id>/       container state (owned by the runner)
//! ```
//!
//! | module | owns |
//! |---|---|
//! | [`ingest`] | the only way bytes enter; durability and its argument |
//! | [`uploads`] | suspending, resuming and sweeping ingests |
//! | [`blob`] | the way bytes leave: size at every open, hash on demand, quarantine |
//! | [`repository`], [`put`], [`tags`], [`referrers`] | names and what they hold |
//! | [`images`], [`removal`] | what users see as images: listing, resolving, removing |
//! | [`cache`] | build cache and stat cache |
//! | [`lease`], `session`, [`prune`], [`fsck`] | keeping, collecting and checking |
//! | `metadata`, `schema`, `reserve` | the database underneath |
//!
//! A [`Store`] is cheap to clone, and any number of threads and processes may use one directory at once.

use std::fs::{self, DirBuilder, File};
use std::hash::{BuildHasher, Hasher as _};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::digest::{Algorithm, Digest};

pub mod blob;
pub mod cache;
pub mod cache_mounts;
#[cfg(test)]
mod collection_tests;
mod directory_sync;
mod error;
pub mod fsck;
#[cfg(test)]
mod full_disk_tests;
pub mod images;
pub mod ingest;
mod layer_index;
pub mod lease;
mod manifest_cache;
mod metadata;
#[cfg(test)]
mod process_tests;
pub mod prune;
pub mod put;
pub mod referrers;
mod registration;
pub mod removal;
pub mod repository;
mod reserve;
mod schema;
mod session;
pub mod tags;
#[cfg(test)]
mod tests;
pub mod uploads;

pub use blob::{Blob, BlobState};
pub use error::StoreError;
pub use images::{Image, ImageRecord, ResolvedImage};
pub use ingest::{Committed, Expect, Ingest};
pub use lease::Lease;
pub use put::{ManifestPut, Precondition, PutOptions, Require};
pub use referrers::{ReferrersPage, ReferrersQuery};
pub use repository::{Repository, StoredManifest};
pub use uploads::UploadId;

use directory_sync::DirectorySync;
use layer_index::IndexCache;
use manifest_cache::ManifestCache;
use metadata::Metadata;
use registration::Registrar;
use session::Session;

/// An open store.
#[derive(Clone, Debug)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    metadata: Metadata,
    /// The blob directories, in the order of [`Algorithm::ALL`].
    blob_directories: [DirectorySync; 2],
    registrar: Registrar,
    manifests: ManifestCache,
    indexes: IndexCache,
    /// Holds this handle's leases.
    session: Session,
}

/// Makes a directory that nobody else may enter, and closes one that an earlier version left open: images contain
/// set-user-ID programs, which no other user of this machine may execute.
fn create_private(path: &Path) -> Result<(), StoreError> {
    use std::os::unix::fs::PermissionsExt;
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(StoreError::at("create", path))?;
    let mode = fs::metadata(path).map_err(StoreError::at("look at", path))?.permissions().mode();
    if mode & 0o077 != 0 {
        fs::set_permissions(path, fs::Permissions::from_mode(0o700))
            .map_err(StoreError::at("close", path))?;
    }
    Ok(())
}

impl Store {
    /// Opens the store in `root`, and creates it if there is none. Opening is cheap: nothing is scanned.
    ///
    /// A store that is created is its owner's alone: images hold set-user-ID programs, which other users of the
    /// machine must not be able to start from where they lie unpacked. A directory that exists keeps its mode.
    pub fn open(root: &Path) -> Result<Store, StoreError> {
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700);
        let create = |path: &Path| builder.create(path).map_err(StoreError::at("create", path));
        create(root)?;
        let root = root.canonicalize().map_err(StoreError::at("open", root))?;
        for name in ["uploads", "quarantine", "sessions"] {
            create(&root.join(name))?;
        }
        for name in ["snapshots", "containers"] {
            create_private(&root.join(name))?;
        }
        for algorithm in Algorithm::ALL {
            create(&root.join("blobs").join(algorithm.name()))?;
            create(&root.join("index").join(algorithm.name()))?;
        }
        let directory =
            |algorithm: Algorithm| DirectorySync::open(&root.join("blobs").join(algorithm.name()));
        let inner = Inner {
            metadata: Metadata::open(&root.join("metadata.db"))?,
            blob_directories: [directory(Algorithm::Sha256)?, directory(Algorithm::Sha512)?],
            registrar: Registrar::default(),
            manifests: ManifestCache::default(),
            indexes: IndexCache::default(),
            session: Session::default(),
            root,
        };
        let store = Store { inner: Arc::new(inner) };
        store.sync_skeleton()?;
        Ok(store)
    }

    /// The directory of the store.
    pub fn root(&self) -> &Path {
        &self.inner.root
    }

    /// Where the runner keeps unpacked layers.
    pub fn snapshots_dir(&self) -> PathBuf {
        self.inner.root.join("snapshots")
    }

    /// Where the runner keeps containers.
    pub fn containers_dir(&self) -> PathBuf {
        self.inner.root.join("containers")
    }

    /// Makes every blob committed so far durable, whichever thread or process committed it. Local ingests
    /// (see [`Store::ingest_local`]) leave this to the publishing of the manifest that names them, which calls
    /// it; call it yourself only to make blobs durable without a manifest.
    pub fn sync(&self) -> Result<(), StoreError> {
        for directory in &self.inner.blob_directories {
            directory.sync()?;
        }
        Ok(())
    }

    pub(super) fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.inner.root.join("blobs").join(digest.algorithm().name()).join(digest.hex())
    }

    fn index_path(&self, digest: &Digest) -> PathBuf {
        self.inner.root.join("index").join(digest.algorithm().name()).join(digest.hex())
    }

    fn uploads_dir(&self) -> PathBuf {
        self.inner.root.join("uploads")
    }

    fn sessions_dir(&self) -> PathBuf {
        self.inner.root.join("sessions")
    }

    fn quarantine_dir(&self) -> PathBuf {
        self.inner.root.join("quarantine")
    }

    fn metadata(&self) -> &Metadata {
        &self.inner.metadata
    }

    fn blob_directory(&self, algorithm: Algorithm) -> &DirectorySync {
        match algorithm {
            Algorithm::Sha256 => &self.inner.blob_directories[0],
            Algorithm::Sha512 => &self.inner.blob_directories[1],
        }
    }

    /// The directories themselves must survive a power cut before anything in them can. The marker comes last: who
    /// finds it, in whichever process, need not wait for anything.
    fn sync_skeleton(&self) -> Result<(), StoreError> {
        let blobs = self.inner.root.join("blobs");
        let marker = blobs.join(".synced");
        if marker.exists() {
            return Ok(());
        }
        let sync = |directory: &Path| File::open(directory).and_then(|file| file.sync_all());
        for directory in [&blobs, &self.inner.root] {
            sync(directory).map_err(StoreError::at("sync", directory))?;
        }
        for above in self.inner.root.ancestors().skip(1) {
            match sync(above) {
                Ok(()) => {}
                // What this user may not even read, this user has not made.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => break,
                Err(error) => return Err(StoreError::io("sync", above, error)),
            }
        }
        self.renew_reserve();
        fs::write(&marker, b"").map_err(StoreError::at("create", &marker))
    }
}

/// 128 bits that nobody can guess and nobody else has: the standard library's keyed hash, whose keys come from
/// the kernel, over a counter, the time and the process.
fn random_id() -> String {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let count = COUNTER.fetch_add(1, Ordering::Relaxed);
    let half = |side: u8| {
        let mut hasher = std::hash::RandomState::new().build_hasher();
        let nanos = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        hasher.write_u8(side);
        hasher.write_u64(count);
        hasher.write_u32(std::process::id());
        hasher.write_u128(nanos.as_nanos());
        hasher.finish()
    };
    format!("{:016x}{:016x}", half(0), half(1))
}
