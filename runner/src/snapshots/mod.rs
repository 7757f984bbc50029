//! [`Snapshots`]: layers unpacked as overlay lower directories, made on demand and shared by all containers.
//!
//! ```text
//! snapshots/<hex>            a layer's tree, by the digest of its uncompressed tar; complete, never changed
//! snapshots/<hex>-again<n>   the same once more, for images that have the layer n times above
//! snapshots/<hex>-chained    the tree of a layer that depends on those below it, by the ChainID of all of them
//! snapshots/…-single         any of these for a user without subordinate ids, of a layer whose files are all root's
//! snapshots/…-squashed       any of these of any layer, if that user asked for it: every file is that user's
//! snapshots/…@<seconds>      any of these with one time for all entries: [`SnapshotTimes::Build`]
//! snapshots/….boot           when it was made: a boot's id; the tree is good until the machine starts again. A second
//!                            line `below` says that there is no such tree, because the layer depends on those below
//! snapshots/.new-<pid>-<n>   a tree being made or removed; locked by its maker, so that a dead maker's can be told
//! snapshots/.lock            held while a tree appears or goes
//! snapshots/.mount-points    below every root: empty folders and files to mount on
//! ```
//!
//! A snapshot appears by one rename, so whatever is found under a digest is whole, as long as the machine runs. Its
//! bytes are not synced: that would write out what the whole file system has waiting, and all of it can be made again
//! from the layer blobs. After the next start of the machine nobody can tell whether it was, so it is made again then.
//! The folder is closed to other users: images contain set-user-ID programs.
//!
//! Whether a layer depends on those below is learned while it is unpacked, and remembered: nobody who starts a container
//! from snapshots looks at an index. Most layers do not, and all images that have them share one tree.
//!
//! [`stack`] says which layers become directories, [`source`] has their bytes, [`apply`] unpacks them, [`changes`] reads
//! back what a container changed, [`mount_points`] is the layer below all.

pub mod apply;
pub mod changes;
mod mount_points;
pub mod source;
pub mod stack;
mod sweep;

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rimg_formats::digest::DiffId;
use rimg_formats::layer::{LayerError, LayerReader, Limits, MergedTree, Mtime};
use rimg_formats::root_dir::{Directory, RootDir};
use rustix::fs::{FlockOperation, Mode, OFlags};

use apply::{ApplyError, Skipped, Unpacking};
use changes::Changes;
use source::LayerSource;
use stack::Lower;

use crate::claim;

/// The prefix of trees being made.
const UNFINISHED_PREFIX: &str = ".new-";
/// The suffix of the marks that tell the boot a tree was made in.
const BOOT_SUFFIX: &str = ".boot";
/// The suffixes of trees whose files all belong to one user: as the layer has it, and other than the layer has it.
const SINGLE_SUFFIX: &str = "-single";
const SQUASHED_SUFFIX: &str = "-squashed";
/// What stands before the time in the names of trees whose entries all have one.
const TIME_MARK: char = '@';
/// The suffix of trees that depend on what lies below them.
const CHAINED_SUFFIX: &str = "-chained";
/// The suffix, before a number, of trees of layers that an image has again above.
const AGAIN_SUFFIX: &str = "-again";
/// The second line of a mark without a tree.
const BELOW: &str = "below";
/// The name of the lock file.
const LOCK_NAME: &str = ".lock";

/// Whose the unpacked files are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owners {
    /// As the layer says: for root, and for users with subordinate ids.
    Keep,
    /// All the caller's: there are no other ids in a single-id user namespace.
    Squash,
}

/// Which times the entries of a tree have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotTimes {
    /// The layer's own.
    Exported,
    /// All the same, in seconds since 1970: the layer's place in a build's logical time.
    Build(i64),
}

impl SnapshotTimes {
    fn fixed(self) -> Option<Mtime> {
        match self {
            SnapshotTimes::Exported => None,
            SnapshotTimes::Build(secs) => Some(Mtime { secs, nanos: 0 }),
        }
    }
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
    /// With [`Owners::Squash`]: of layers with other owners as well.
    is_squashing: bool,
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
        let boot_id = rimg_formats::boot::id().map_err(at("use", path))?;
        Ok(Snapshots {
            path: path.to_owned(),
            folder: Directory::from_fd(folder),
            owners,
            is_squashing: false,
            boot_id,
        })
    }

    /// The same, with trees in which owners were dropped. They are kept apart from those that lost nothing.
    #[must_use]
    pub fn squashing(self) -> Snapshots {
        Snapshots { is_squashing: true, ..self }
    }

    /// Whether only layers may be unpacked whose files are all root's: there are no other owners, and nobody asked to
    /// drop them. The caller has to look at the layer before.
    pub fn needs_one_owner(&self) -> bool {
        self.owners == Owners::Squash && !self.is_squashing
    }

    /// The tree of a layer, if it was made before.
    pub fn get(&self, lower: &Lower, times: SnapshotTimes) -> Option<PathBuf> {
        let name = self.name(lower, times);
        let name = match self.mark(&name)? {
            Mark::Tree => name,
            Mark::Below => {
                let chained = self.chained_name(lower, times);
                if self.mark(&chained)? != Mark::Tree {
                    return None;
                }
                chained
            }
        };
        self.folder.stat(name.as_bytes()).is_ok().then(|| self.path.join(name))
    }

    /// The tree of a layer, unpacked from `source` unless it is there already. The layer's bytes are hashed while they
    /// are unpacked, and only the tar that `lower` names becomes its tree: neither an image whose configuration claims
    /// another image's layer, nor bytes that rotted on the disk, can take its place. Several processes may prepare one
    /// layer at once; one of them wins and all get its tree.
    ///
    /// # Errors
    /// When the layer is hostile, damaged or another one, or the disk is full; nothing is left then.
    pub fn prepare(
        &self,
        lower: &Lower,
        times: SnapshotTimes,
        limits: Limits,
        source: &dyn LayerSource,
    ) -> Result<(PathBuf, Skipped), SnapshotError> {
        if let Some(path) = self.get(lower, times) {
            return Ok((path, Skipped::default()));
        }
        match self.unpack(lower, times, limits, source) {
            // A bomb, or a large sparse file. Its index proves that it is what the image names, and costs no disk.
            Err(SnapshotError::Apply { source: ApplyError::Layer(error), .. }) if error.is_ratio() => {
                let proof = source.index(lower.number);
                proof.map_err(|error| failed(lower, ApplyError::Layer(LayerError::Read(error))))?;
                self.unpack(lower, times, limits.without_ratio(), source)
            }
            result => result,
        }
    }

    fn unpack(
        &self,
        lower: &Lower,
        times: SnapshotTimes,
        limits: Limits,
        source: &dyn LayerSource,
    ) -> Result<(PathBuf, Skipped), SnapshotError> {
        let failed = |error| failed(lower, error);
        let unfinished = self.begin()?;
        let input = source.open(lower.number);
        let input = input.map_err(|error| failed(ApplyError::Layer(LayerError::Read(error))))?;
        let algorithm = lower.diff_id.digest().algorithm();
        let reader = LayerReader::hashing(input, limits, algorithm);
        let mut reader = reader.map_err(|error| failed(error.into()))?;
        let mut unpacking = Unpacking::new(&unfinished.tree, self.owners, times.fixed(), &limits);
        unpacking.entries(&mut reader).map_err(failed)?;
        check_diff_id(&lower.diff_id, reader.diff_id()).map_err(failed)?;
        let needs_below = unpacking.needs_below();
        let below = match needs_below {
            true => source.below(lower.number).map_err(|error| failed(ApplyError::Below(error)))?,
            false => MergedTree::new(&[]),
        };
        let skipped = unpacking.finish(&below, source).map_err(failed)?;
        let tree = self.path.join(&unfinished.name);
        let name = self.name(lower, times);
        if !needs_below {
            return Ok((self.publish(&tree, &name)?, skipped));
        }
        let path = self.publish(&tree, &self.chained_name(lower, times))?;
        // Last: who finds this mark looks for the tree.
        let lock = self.lock()?;
        self.write_mark(&name, &Mark::Below)?;
        drop(lock);
        Ok((path, skipped))
    }

    /// Makes the changed files in `upper`, an overlay's upper directory in a folder on the same file system, the tree
    /// of the layer that was written from `changes`: by a rename, without copying. What is no part of the layer is
    /// removed and every entry gets its time first, so that the tree is what unpacking the layer would give.
    ///
    /// # Errors
    /// When the upper directory cannot be changed or moved.
    pub fn adopt(
        &self,
        upper: &Path,
        changes: &Changes,
        layer: &DiffId,
        times: SnapshotTimes,
    ) -> Result<PathBuf, SnapshotError> {
        let lower = Lower::single(*layer);
        if let Some(path) = self.get(&lower, times) {
            return Ok(path);
        }
        changes.remove_superfluous().map_err(at("remove what did not change below", upper))?;
        if let Some(mtime) = times.fixed() {
            changes.set_times(mtime).map_err(at("set times below", upper))?;
        }
        self.publish(upper, &self.name(&lower, times))
    }

    /// Gives the finished `tree` the name it is found by. When somebody else made the same meanwhile, that one stays.
    fn publish(&self, tree: &Path, name: &str) -> Result<PathBuf, SnapshotError> {
        let path = self.path.join(name);
        let lock = self.lock()?;
        if self.mark(name) == Some(Mark::Tree) && self.folder.stat(name.as_bytes()).is_ok() {
            return Ok(path);
        }
        // A tree of an earlier boot gives way: into a name of its own, since removing it takes long.
        let earlier = self.begin()?;
        match std::fs::rename(&path, self.path.join(&earlier.name).join("earlier")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at("move", &path)(error)),
            _ => {}
        }
        // The mark comes first: without it nobody uses the tree, and the old mark would make it one to be removed.
        self.write_mark(name, &Mark::Tree)?;
        std::fs::rename(tree, &path).map_err(at("move", tree))?;
        drop(lock);
        drop(earlier);
        Ok(path)
    }

    /// Held while trees appear and go, so that nobody takes a new tree for the old one of its name.
    fn lock(&self) -> Result<File, SnapshotError> {
        let path = self.path.join(LOCK_NAME);
        let lock = File::options().create(true).append(true).open(&path).map_err(at("open", &path))?;
        rustix::fs::flock(&lock, FlockOperation::LockExclusive)
            .map_err(|errno| at("lock", &path)(errno.into()))?;
        Ok(lock)
    }

    /// What a layer's tree is found by when it does not depend on what lies below it.
    fn name(&self, lower: &Lower, times: SnapshotTimes) -> String {
        let hex = lower.diff_id.digest().hex();
        match lower.repeat {
            0 => self.variant(hex, times),
            repeat => self.variant(format!("{hex}{AGAIN_SUFFIX}{repeat}"), times),
        }
    }

    /// What it is found by when it does.
    fn chained_name(&self, lower: &Lower, times: SnapshotTimes) -> String {
        self.variant(format!("{}{CHAINED_SUFFIX}", lower.chain.digest().hex()), times)
    }

    /// The name of a tree as this user has it, with these times.
    fn variant(&self, mut name: String, times: SnapshotTimes) -> String {
        name.push_str(match (self.owners, self.is_squashing) {
            (Owners::Keep, _) => "",
            (Owners::Squash, false) => SINGLE_SUFFIX,
            (Owners::Squash, true) => SQUASHED_SUFFIX,
        });
        if let SnapshotTimes::Build(secs) = times {
            name.push_str(&format!("{TIME_MARK}{secs}"));
        }
        name
    }

    /// What is known of a name since the machine started.
    fn mark(&self, name: &str) -> Option<Mark> {
        let mark = std::fs::read_to_string(self.path.join(format!("{name}{BOOT_SUFFIX}"))).ok()?;
        match mark.strip_prefix(&self.boot_id)?.trim() {
            "" => Some(Mark::Tree),
            BELOW => Some(Mark::Below),
            _ => None,
        }
    }

    fn write_mark(&self, name: &str, mark: &Mark) -> Result<(), SnapshotError> {
        let path = self.path.join(format!("{name}{BOOT_SUFFIX}"));
        let text = match mark {
            Mark::Tree => self.boot_id.clone(),
            Mark::Below => format!("{}\n{BELOW}\n", self.boot_id),
        };
        std::fs::write(&path, text).map_err(at("write", &path))
    }

    fn begin(&self) -> Result<Unfinished<'_>, SnapshotError> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        // Process ids repeat, in other pid namespaces and later: a name that is taken is not ours.
        loop {
            let count = COUNTER.fetch_add(1, Ordering::Relaxed);
            let name = format!("{UNFINISHED_PREFIX}{}-{count}", std::process::id());
            let path = self.path.join(&name);
            let Some(lock) = claim::make(&path, 0o755).map_err(at("create", &path))? else { continue };
            let tree = RootDir::open(&path).map_err(at("open", &path))?;
            return Ok(Unfinished { snapshots: self, name, tree, _lock: lock });
        }
    }
}

/// What a mark says of the tree that has its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mark {
    /// It was made since the machine started.
    Tree,
    /// There is none: the layer depends on those below it.
    Below,
}

/// For `map_err`.
fn failed(lower: &Lower, source: ApplyError) -> SnapshotError {
    SnapshotError::Apply { layer: lower.diff_id, source }
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

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        // Gone already when it was published. What cannot be removed now, a later sweep will.
        let _ = self.snapshots.folder.remove(self.name.as_bytes());
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
