//! Snapshots: the contents of single layers as overlay lower directories.
//!
//! ```text
//! snapshots/<alg>-<hex>/fs/     what the layer with this diff id contains, in overlay form (userxattr)
//! snapshots/<alg>-<hex>/boot    the boot during which it was written
//! snapshots/<alg>-<hex>.tmp/    being written; its directory is locked (flock) by the writer
//! ```
//!
//! A snapshot appears by one rename and is never changed afterwards. It is a cache of a layer blob: instead of
//! syncing gigabytes, it notes the boot it was written in, and one from another boot is made again, because files
//! that were never synced may have lost their content with the power. The writer's death leaves a `.tmp` that the
//! next writer, or [`Snapshots::sweep`], takes over.
//!
//! `apply` owns layer → directory, [`changes`] owns upper directory → layer entries.

mod apply;
pub mod changes;

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use rimg_formats::digest::DiffId;
use rimg_formats::layer::{LayerError, LayerPath, Limits, Mtime};
use rimg_formats::root_dir::RootDir;
use rustix::fs::{FlockOperation, flock};

pub use apply::UnpackReport;
use changes::Changes;

/// The directory of all snapshots.
#[derive(Debug, Clone)]
pub struct Snapshots {
    directory: PathBuf,
}

/// A snapshot that is complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The overlay lower directory.
    pub path: PathBuf,
    /// What could not be kept of the layer, if it was unpacked just now.
    pub report: UnpackReport,
}

/// Why a snapshot could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The layer itself is bad.
    #[error("unpack layer {layer}: {source}")]
    Layer {
        /// Its diff id.
        layer: String,
        /// What is wrong with it.
        source: LayerError,
    },
    /// An entry of the layer cannot be made.
    #[error("unpack layer {layer}: {path}: {source}", path = String::from_utf8_lossy(path))]
    Entry {
        /// Its diff id.
        layer: String,
        /// The entry's path.
        path: Vec<u8>,
        /// The kernel's answer, or what is wrong with the entry.
        source: io::Error,
    },
    /// Reading the layer to its end, which verifies it, or the snapshot directory itself.
    #[error("{operation} {path}: {source}", path = path.display())]
    Io {
        /// What was attempted.
        operation: &'static str,
        /// Where.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl Snapshots {
    /// Snapshots in `directory`, which exists.
    #[must_use]
    pub fn new(directory: &Path) -> Snapshots {
        Snapshots { directory: directory.to_owned() }
    }

    /// The lower directory of a layer, if it is there and complete.
    #[must_use]
    pub fn find(&self, layer: &DiffId) -> Option<PathBuf> {
        let directory = self.directory.join(name_of(layer));
        let boot = fs::read(directory.join("boot")).ok()?;
        (boot == boot_id()).then(|| directory.join("fs"))
    }

    /// The lower directory of a layer, unpacked now if it is not there. `open` gives the layer's blob, compressed or
    /// not; it is read to its end, so that a verifying reader has its say. Several threads and processes may prepare
    /// the same layer: one works, the others wait.
    ///
    /// # Errors
    /// When the layer cannot be read or unpacked; nothing of it is visible then.
    pub fn prepare<R: Read + Send>(
        &self,
        layer: &DiffId,
        open: impl FnOnce() -> io::Result<R>,
    ) -> Result<Snapshot, SnapshotError> {
        if let Some(path) = self.find(layer) {
            return Ok(Snapshot { path, report: UnpackReport::default() });
        }
        let Some(draft) = self.draft(layer)? else {
            return self.prepare(layer, open);
        };
        let io_error = |operation| {
            let path = draft.path.clone();
            move |source| SnapshotError::Io { operation, path, source }
        };
        let root = RootDir::open(&draft.path.join("fs")).map_err(io_error("open"))?;
        let mut input = open().map_err(io_error("open the layer to unpack into"))?;
        let named = layer.digest().to_string();
        let report = apply::unpack(&mut input, &root, Limits::default(), &named)?;
        io::copy(&mut input, &mut io::sink()).map_err(io_error("read the end of the layer for"))?;
        Ok(Snapshot { path: self.publish(draft, layer)?, report })
    }

    /// Makes the upper directory of a finished step the snapshot of the layer written from it: unchanged copies are
    /// taken out, and every entry gets the time it has in the layer, so that a later step sees the same whether the
    /// snapshot was adopted or unpacked. `upper` is moved; it has to lie on the same file system.
    ///
    /// # Errors
    /// When it cannot be moved. An existing snapshot is success, and `upper` then stays.
    pub fn adopt(
        &self,
        layer: &DiffId,
        upper: &Path,
        changes: &Changes,
        mtime: Option<Mtime>,
    ) -> Result<PathBuf, SnapshotError> {
        if let Some(path) = self.find(layer) {
            return Ok(path);
        }
        let Some(draft) = self.draft(layer)? else {
            return self.adopt(layer, upper, changes, mtime);
        };
        let io_error =
            |operation| move |source| SnapshotError::Io { operation, path: upper.to_owned(), source };
        changes.tidy(mtime).map_err(io_error("make a snapshot of"))?;
        let target = draft.path.join("fs");
        fs::remove_dir(&target).map_err(io_error("make room for"))?;
        fs::rename(upper, &target).map_err(io_error("move into the snapshots"))?;
        self.publish(draft, layer)
    }

    /// Removes a snapshot. Sandboxes that use it keep what they have open; new lookups find nothing.
    ///
    /// # Errors
    /// The kernel's.
    pub fn remove(&self, layer: &DiffId) -> io::Result<()> {
        self.remove_named(&name_of(layer))
    }

    /// Removes what dead writers left, and snapshots that another boot wrote. Returns how many directories went.
    ///
    /// # Errors
    /// When the directory itself cannot be read.
    pub fn sweep(&self) -> io::Result<usize> {
        let mut removed = 0;
        for entry in fs::read_dir(&self.directory)?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let stale = if name.ends_with(".tmp") {
                let lock = File::open(entry.path());
                lock.is_ok_and(|lock| flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok())
            } else {
                fs::read(entry.path().join("boot")).is_ok_and(|boot| boot != boot_id())
            };
            if stale && self.remove_named(&name).is_ok() {
                removed += 1;
            }
        }
        Ok(removed)
    }

    /// An empty, locked draft; `None` when another writer has just published the snapshot.
    fn draft(&self, layer: &DiffId) -> Result<Option<Draft>, SnapshotError> {
        let name = name_of(layer);
        let path = self.directory.join(format!("{name}.tmp"));
        let io_error = |operation, path: &Path| {
            let path = path.to_owned();
            move |source| SnapshotError::Io { operation, path, source }
        };
        loop {
            match fs::create_dir(&path) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(io_error("make", &path)(error));
                }
                _ => {}
            }
            let lock = match File::open(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                other => other.map_err(io_error("open", &path))?,
            };
            flock(&lock, FlockOperation::LockExclusive)
                .map_err(|error| io_error("lock", &path)(error.into()))?;
            // While we waited the other writer may have renamed the directory we opened.
            if self.find(layer).is_some() {
                return Ok(None);
            }
            if !same_file(&lock, &path) {
                continue;
            }
            let root = RootDir::open(&path).map_err(io_error("open", &path))?;
            for leftover in ["fs", "boot"] {
                let leftover = LayerPath::parse(leftover)
                    .map_err(|error| io_error("name", &path)(io::Error::other(error)))?;
                root.remove_tree(&leftover).map_err(io_error("clear", &path))?;
            }
            fs::create_dir(path.join("fs")).map_err(io_error("make", &path))?;
            set_open_mode(&path.join("fs")).map_err(io_error("open up", &path))?;
            return Ok(Some(Draft { path, _lock: lock }));
        }
    }

    fn publish(&self, draft: Draft, layer: &DiffId) -> Result<PathBuf, SnapshotError> {
        let io_error = |operation| {
            let path = draft.path.clone();
            move |source| SnapshotError::Io { operation, path, source }
        };
        fs::write(draft.path.join("boot"), boot_id()).map_err(io_error("mark"))?;
        let name = name_of(layer);
        let target = self.directory.join(&name);
        if target.exists() {
            // From another boot, or `find` would have seen it; the lock makes us the only ones to replace it.
            self.remove_named(&name).map_err(io_error("replace the older form of"))?;
        }
        fs::rename(&draft.path, &target).map_err(io_error("publish"))?;
        Ok(target.join("fs"))
    }

    fn remove_named(&self, name: &str) -> io::Result<()> {
        let root = RootDir::open(&self.directory)?;
        // The completeness mark goes first, so that an interrupted removal is no snapshot.
        match fs::remove_file(self.directory.join(name).join("boot")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        root.remove_tree(&LayerPath::parse(name).map_err(io::Error::other)?)
    }
}

/// A snapshot being written, locked as long as this lives.
struct Draft {
    path: PathBuf,
    _lock: File,
}

fn name_of(layer: &DiffId) -> String {
    layer.digest().to_string().replace(':', "-")
}

fn boot_id() -> Vec<u8> {
    // Without /proc every snapshot counts as one of this boot.
    fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default()
}

fn same_file(open: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (open.metadata(), fs::symlink_metadata(path)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

/// The root of a root file system is 0755 unless the layer says otherwise, whatever our umask.
fn set_open_mode(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
}
