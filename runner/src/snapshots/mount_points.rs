//! The lowest layer of every root: empty folders and files where each sandbox mounts its own.
//!
//! An image rarely has `/etc/resolv.conf`, and one made from nothing has no `/proc` either. What a root lacks is made in
//! its upper directory and taken out again at the end, which means copying `/etc` up and several files made and removed
//! in every run. With this layer below the image's own they are there already, and nothing is written.

use std::io;
use std::path::PathBuf;

use super::{SnapshotError, Snapshots, at};
use crate::spec::RootFs;

/// The name of the layer's folder.
pub(super) const NAME: &str = ".mount-points";

/// What it has: where every sandbox mounts file systems.
const FOLDERS: [&str; 4] = ["dev", "etc", "proc", "sys"];

/// The files of `/etc` that are every container's own.
const FILES: [&str; 3] = ["hostname", "hosts", "resolv.conf"];

/// Of folders and files, as distributions have them.
const MODES: (u32, u32) = (0o755, 0o644);

impl Snapshots {
    /// The directories of a root's layers, the lowest first, with the layer of mount points below them. A root that has
    /// as many layers as the kernel stacks stays as it is.
    ///
    /// # Errors
    /// When the layer is not there yet and cannot be made.
    pub fn on_mount_points(&self, lowers: &[PathBuf]) -> Result<Vec<PathBuf>, SnapshotError> {
        if lowers.len() >= RootFs::LOWERS_MAX {
            return Ok(lowers.to_owned());
        }
        let path = self.path.join(NAME);
        if self.folder.stat(NAME.as_bytes()).is_err() {
            self.make_mount_points().map_err(at("create", &path))?;
        }
        Ok(std::iter::once(path).chain(lowers.iter().cloned()).collect())
    }

    fn make_mount_points(&self) -> io::Result<()> {
        let unfinished = self.begin().map_err(io::Error::other)?;
        let root = self.folder.open_dir(unfinished.name.as_bytes())?;
        for name in FOLDERS.map(str::as_bytes) {
            root.create_dir(name, MODES.0)?;
            root.set_mode(name, MODES.0)?;
        }
        let etc = root.open_dir(b"etc")?;
        for name in FILES.map(str::as_bytes) {
            etc.create_file(name, MODES.1)?;
            etc.set_mode(name, MODES.1)?;
        }
        match self.folder.rename(unfinished.name.as_bytes(), &self.folder, NAME.as_bytes()) {
            // Somebody else was faster.
            Err(_) if self.folder.stat(NAME.as_bytes()).is_ok() => Ok(()),
            renamed => renamed,
        }
    }
}
