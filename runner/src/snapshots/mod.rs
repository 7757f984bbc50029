//! [`Snapshots`]: layers unpacked as overlay lower directories, made on demand and shared by all containers.
//!
//! ```text
//! snapshots/<hex>            a layer's tree, by the digest of its uncompressed tar; complete, never changed
//! snapshots/<hex>-squashed   the same for a user without subordinate ids: every file is that user's
//! snapshots/<hex>.boot       the tree was not synced to disk yet: it is good until the machine starts again
//! snapshots/.new-<pid>-<n>   a tree being made; locked by its maker, so that a dead maker's can be told and removed
//! ```
//!
//! A snapshot appears by one rename, after its bytes are durable or with a `.boot` mark beside it, so whatever is found
//! under a digest is whole. All of it can be made again from the layer blobs. The folder is closed to other users:
//! images contain set-user-ID programs.
//!
//! [`apply`] unpacks layers, [`changes`] reads back what a container changed.

pub mod apply;
pub mod changes;

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rimg_formats::digest::DiffId;
use rimg_formats::layer::{LayerError, LayerReader, Limits, Mtime};
use rimg_formats::root_dir::{Directory, RootDir};
use rustix::fs::{FlockOperation, Mode, OFlags, RenameFlags};

use apply::{ApplyError, Skipped};
use changes::Changes;

/// The prefix of trees being made.
const UNFINISHED_PREFIX: &str = ".new-";
/// The suffix of marks of trees that are good for this boot only.
const BOOT_SUFFIX: &str = ".boot";
/// The suffix of trees whose files all belong to one user.
const SQUASHED_SUFFIX: &str = "-squashed";

/// Whose the unpacked files are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owners {
    /// As the layer says: for root, and for users with subordinate ids.
    Keep,
    /// All the caller's: there are no other ids in a single-id user namespace.
    Squash,
}

/// Why a snapshot could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// The layer cannot be unpacked.
    #[error("failed to unpack layer {layer}: {source}")]
    Apply {
        /// The layer.
        layer: DiffId,
        /// Why.
        source: ApplyError,
    },
    /// The file system refused.
    #[error("failed to {action} {}: {source}", path.display())]
    Io {
        /// What was being done, as a verb.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// For `map_err`.
fn at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SnapshotError {
    let path = path.to_owned();
    move |source| SnapshotError::Io { action, path, source }
}

/// The snapshots of one store.
#[derive(Debug)]
pub struct Snapshots {
    path: PathBuf,
    folder: Directory,
    owners: Owners,
    boot_id: String,
}

/// A tree being made: locked as long as this lives, removed when it was not finished.
#[derive(Debug)]
struct Unfinished<'s> {
    snapshots: &'s Snapshots,
    name: String,
    tree: RootDir,
    _lock: File,
}

impl Snapshots {
    /// Opens the folder `path`, making it if there is none. As long as the result lives, nobody sweeps trees away that
    /// a container may stand on.
    ///
    /// # Errors
    /// When it cannot be made or opened.
    pub fn open(path: &Path, owners: Owners) -> Result<Snapshots, SnapshotError> {
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(at("create", path))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder =
            rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| at("open", path)(errno.into()))?;
        // It may be older than this rule, or made by somebody who did not know it.
        let stat = rustix::fs::fstat(&folder).map_err(|errno| at("look at", path)(errno.into()))?;
        if stat.st_mode & 0o077 != 0 {
            rustix::fs::fchmod(&folder, Mode::RWXU).map_err(|errno| at("close", path)(errno.into()))?;
        }
        rustix::fs::flock(&folder, FlockOperation::LockShared)
            .map_err(|errno| at("lock", path)(errno.into()))?;
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Ok(Snapshots { path: path.to_owned(), folder: Directory::from_fd(folder), owners, boot_id })
    }

    /// The tree of a layer, if it was made before.
    pub fn get(&self, layer: &DiffId) -> Option<PathBuf> {
        let name = self.name(layer);
        self.folder.stat(name.as_bytes()).ok()?;
        if self.good_for_this_boot(&name) { Some(self.path.join(name)) } else { None }
    }

    /// The tree of a layer, unpacked from `open` unless it is there already. `open` gives the layer's bytes, compressed
    /// or not; they are hashed while they are unpacked, and only the tar that `layer` names becomes its tree: neither
    /// an image whose configuration claims another image's layer, nor bytes that rotted on the disk, can take its
    /// place. Several processes may prepare one layer at once; one of them wins and all get its tree.
    ///
    /// # Errors
    /// When the layer is hostile, damaged or another one, or the disk is full; nothing is left then.
    pub fn prepare<R: io::Read + Send>(
        &self,
        layer: &DiffId,
        limits: Limits,
        open: impl FnOnce() -> io::Result<R>,
    ) -> Result<(PathBuf, Skipped), SnapshotError> {
        if let Some(path) = self.get(layer) {
            return Ok((path, Skipped::default()));
        }
        let name = self.name(layer);
        self.forget(&name)?;
        let unfinished = self.begin()?;
        let failed = |source| SnapshotError::Apply { layer: *layer, source };
        let input = open().map_err(|error| failed(ApplyError::Layer(LayerError::Read(error))))?;
        let mut reader = LayerReader::hashing(input, limits).map_err(|error| failed(error.into()))?;
        let skipped = apply::apply(&mut reader, &unfinished.tree, self.owners).map_err(failed)?;
        check_diff_id(layer, reader.diff_id()).map_err(failed)?;
        rustix::fs::syncfs(&unfinished._lock).map_err(|errno| at("sync", &self.path)(errno.into()))?;
        unfinished.publish(&name)?;
        Ok((self.path.join(name), skipped))
    }

    /// Makes the changed files in `upper`, an overlay's upper directory in a folder on the same file system, the tree
    /// of the layer that was written from `changes`: by a rename, without copying. Every entry gets the time `mtime`
    /// first, as it has in the layer, so that the tree is what unpacking the layer would give.
    ///
    /// # Errors
    /// When the upper directory cannot be changed or moved.
    pub fn adopt(
        &self,
        upper: &Path,
        changes: &Changes,
        layer: &DiffId,
        mtime: Option<Mtime>,
    ) -> Result<PathBuf, SnapshotError> {
        let name = self.name(layer);
        let path = self.path.join(&name);
        if self.get(layer).is_some() {
            return Ok(path);
        }
        self.forget(&name)?;
        if let Some(mtime) = mtime {
            changes.set_times(mtime).map_err(at("set times below", upper))?;
        }
        // The mark comes first: whoever finds the tree without it would trust it after a power cut.
        let mark = self.path.join(format!("{name}{BOOT_SUFFIX}"));
        std::fs::write(&mark, &self.boot_id).map_err(at("write", &mark))?;
        match rustix::fs::renameat_with(
            rustix::fs::CWD,
            upper,
            rustix::fs::CWD,
            &path,
            RenameFlags::NOREPLACE,
        ) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(path),
            Err(errno) => Err(at("move", upper)(errno.into())),
        }
    }

    /// Removes trees of layers that `wanted` does not name, and what dead makers left. Returns how many; `None`, and
    /// nothing is removed, while containers or builds use the snapshots.
    ///
    /// # Errors
    /// When something cannot be removed.
    pub fn sweep(&self, wanted: impl Fn(&str) -> bool, dry_run: bool) -> Result<Option<u64>, SnapshotError> {
        let alone = rustix::fs::flock(&self.folder, FlockOperation::NonBlockingLockExclusive).is_ok();
        let swept = if alone { self.remove_unwanted(wanted, dry_run).map(Some) } else { Ok(None) };
        rustix::fs::flock(&self.folder, FlockOperation::LockShared)
            .map_err(|errno| at("lock", &self.path)(errno.into()))?;
        swept
    }

    fn remove_unwanted(&self, wanted: impl Fn(&str) -> bool, dry_run: bool) -> Result<u64, SnapshotError> {
        let mut removed = 0;
        for name in self.folder.names().map_err(at("list", &self.path))? {
            let Ok(name) = String::from_utf8(name) else { continue };
            let hex = name.trim_end_matches(BOOT_SUFFIX).trim_end_matches(SQUASHED_SUFFIX);
            let unneeded = match name.starts_with(UNFINISHED_PREFIX) {
                true => !self.is_being_made(&name),
                false => !wanted(hex),
            };
            if unneeded {
                removed += u64::from(!name.ends_with(BOOT_SUFFIX));
                if !dry_run {
                    self.folder.remove(name.as_bytes()).map_err(at("remove", &self.path.join(&name)))?;
                }
            }
        }
        Ok(removed)
    }

    /// Removes the trees that makers who died have left.
    ///
    /// # Errors
    /// When one cannot be removed.
    pub fn sweep_unfinished(&self) -> Result<u64, SnapshotError> {
        self.remove_unwanted(|_| true, false)
    }

    fn name(&self, layer: &DiffId) -> String {
        let suffix = if self.owners == Owners::Squash { SQUASHED_SUFFIX } else { "" };
        format!("{}{suffix}", layer.digest().hex())
    }

    /// Whether a tree may be used: it has no mark, or this boot's.
    fn good_for_this_boot(&self, name: &str) -> bool {
        match std::fs::read_to_string(self.path.join(format!("{name}{BOOT_SUFFIX}"))) {
            Ok(boot_id) => !boot_id.is_empty() && boot_id == self.boot_id,
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        }
    }

    /// Removes a tree that is not good any more. Only trees of an earlier boot are, so nobody uses it.
    fn forget(&self, name: &str) -> Result<(), SnapshotError> {
        if self.folder.stat(name.as_bytes()).is_ok() && !self.good_for_this_boot(name) {
            self.folder.remove(name.as_bytes()).map_err(at("remove", &self.path.join(name)))?;
            let mark = format!("{name}{BOOT_SUFFIX}");
            self.folder.remove(mark.as_bytes()).map_err(at("remove", &self.path.join(&mark)))?;
        }
        Ok(())
    }

    fn begin(&self) -> Result<Unfinished<'_>, SnapshotError> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        // Process ids repeat, in other pid namespaces and later: a name that is taken is not ours.
        loop {
            let count = COUNTER.fetch_add(1, Ordering::Relaxed);
            let name = format!("{UNFINISHED_PREFIX}{}-{count}", std::process::id());
            let path = self.path.join(&name);
            match self.folder.create_dir(name.as_bytes(), 0o755) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                made => made.map_err(at("create", &path))?,
            }
            let lock = File::open(&path).map_err(at("open", &path))?;
            rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)
                .map_err(|errno| at("lock", &path)(errno.into()))?;
            let tree = RootDir::open(&path).map_err(at("open", &path))?;
            return Ok(Unfinished { snapshots: self, name, tree, _lock: lock });
        }
    }

    fn is_being_made(&self, name: &str) -> bool {
        let Ok(folder) = File::open(self.path.join(name)) else { return false };
        rustix::fs::flock(&folder, FlockOperation::NonBlockingLockExclusive).is_err()
    }
}

/// Whether what was unpacked is the layer it should be.
fn check_diff_id(expected: &DiffId, actual: Option<DiffId>) -> Result<(), ApplyError> {
    match actual {
        Some(actual) if actual == *expected => Ok(()),
        actual => Err(ApplyError::Layer(LayerError::Mismatch {
            what: "diff_id",
            expected: Box::new(*expected.digest()),
            actual: Box::new(actual.map_or(*expected.digest(), |actual| *actual.digest())),
        })),
    }
}

impl Unfinished<'_> {
    /// Gives the tree its name. When somebody else made the same meanwhile, that one stays.
    fn publish(self, name: &str) -> Result<(), SnapshotError> {
        let folder = &self.snapshots.folder;
        match folder.rename(self.name.as_bytes(), folder, name.as_bytes()) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            result => result.map_err(at("rename", &self.snapshots.path.join(&self.name))),
        }
    }
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        // Gone already when it was published. What cannot be removed now, a later sweep will.
        let _ = self.snapshots.folder.remove(self.name.as_bytes());
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
