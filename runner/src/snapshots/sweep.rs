//! Removing snapshots that nobody needs any more.
//!
//! While they are chosen nobody may begin to use one, so every start waits. Therefore they only lose their names
//! meanwhile, by a rename into a folder of this process, and are removed when others go on.

use std::fs::File;
use std::os::unix::fs::PermissionsExt;

use rustix::fs::FlockOperation;

use super::{
    BOOT_SUFFIX, LOCK_NAME, SnapshotError, Snapshots, TIME_MARK, UNFINISHED_PREFIX, Unfinished, at,
    mount_points,
};
use crate::claim;

/// What a sweep is to remove.
pub(super) struct Condemned<'s> {
    /// How many trees.
    count: u64,
    /// What makers who died left, each with the lock that keeps other sweepers away.
    left: Vec<(String, File)>,
    /// The folder that unwanted trees were moved into.
    moved: Option<Unfinished<'s>>,
}

impl Snapshots {
    /// Removes trees whose DiffID or ChainID `wanted` does not name (in hex), and what dead makers left. Returns how many; `None`, and
    /// nothing is removed, while containers or builds use the snapshots.
    ///
    /// # Errors
    /// When something cannot be removed.
    pub fn sweep(&self, wanted: impl Fn(&str) -> bool, dry_run: bool) -> Result<Option<u64>, SnapshotError> {
        let alone = rustix::fs::flock(&self.folder, FlockOperation::NonBlockingLockExclusive).is_ok();
        let swept = if alone { self.condemn(wanted, dry_run).map(Some) } else { Ok(None) };
        rustix::fs::flock(&self.folder, FlockOperation::LockShared)
            .map_err(|errno| at("lock", &self.path)(errno.into()))?;
        // Whoever starts now waits for the lock, and removing takes as long as the trees are large.
        swept?.map(|condemned| self.remove_condemned(condemned)).transpose()
    }

    /// Takes their names from trees that are to be removed, which takes no time.
    pub(super) fn condemn(
        &self,
        wanted: impl Fn(&str) -> bool,
        dry_run: bool,
    ) -> Result<Condemned<'_>, SnapshotError> {
        let mut condemned = Condemned { count: 0, left: Vec::new(), moved: None };
        for name in self.folder.names().map_err(at("list", &self.path))? {
            let Ok(name) = String::from_utf8(name) else { continue };
            if name == LOCK_NAME || name == mount_points::NAME {
                continue;
            }
            let hex = name.split(|c: char| !c.is_ascii_hexdigit()).next().unwrap_or_default();
            // What a build stood on before the machine started again, nobody will ask for.
            let is_left = name.contains(TIME_MARK) && self.mark(name.trim_end_matches(BOOT_SUFFIX)).is_none();
            let path = self.path.join(&name);
            if name.starts_with(UNFINISHED_PREFIX) {
                let Ok(Some(lock)) = claim::lock(&path) else { continue };
                condemned.count += 1;
                if !dry_run {
                    condemned.left.push((name, lock));
                }
                continue;
            }
            if wanted(hex) && !is_left {
                continue;
            }
            let is_mark = name.ends_with(BOOT_SUFFIX);
            condemned.count += u64::from(!is_mark);
            if dry_run {
                continue;
            }
            // Without its mark nobody uses the tree, should this process die half-way.
            let mark = if is_mark { name.clone() } else { format!("{name}{BOOT_SUFFIX}") };
            self.folder.remove(mark.as_bytes()).map_err(at("remove", &self.path.join(&mark)))?;
            if !is_mark {
                let folder = match condemned.moved.take() {
                    Some(folder) => folder,
                    None => self.begin()?,
                };
                let target = self.path.join(&folder.name).join(&name);
                condemned.moved = Some(folder);
                // A directory that its owner may not write to cannot be moved into another one.
                let mode = PermissionsExt::from_mode(0o700);
                std::fs::set_permissions(&path, mode).map_err(at("open", &path))?;
                std::fs::rename(&path, &target).map_err(at("move", &path))?;
            }
        }
        Ok(condemned)
    }

    pub(super) fn remove_condemned(&self, condemned: Condemned<'_>) -> Result<u64, SnapshotError> {
        let Condemned { count, left, moved } = condemned;
        let moved = moved.iter().map(|folder| &folder.name);
        for name in left.iter().map(|(name, _lock)| name).chain(moved) {
            self.folder.remove(name.as_bytes()).map_err(at("remove", &self.path.join(name)))?;
        }
        Ok(count)
    }

    /// Removes only the trees that makers who died have left, which no container or build stands on.
    ///
    /// # Errors
    /// When one cannot be removed.
    pub fn sweep_unfinished(&self, dry_run: bool) -> Result<u64, SnapshotError> {
        self.remove_condemned(self.condemn(|_| true, dry_run)?)
    }
}
