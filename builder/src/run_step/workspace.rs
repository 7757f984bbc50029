//! The directory a RUN step works in, beside the snapshots so that its upper directory can become one:
//!
//! ```text
//! snapshots/.new-<process>-run-<number>/      locked (flock) while the step runs; swept by later steps when its process died
//!     upper/  work/  empty/                    the overlay's
//!     script                                   a heredoc with `#!`
//!     mounts/<number>/content                  what bind mounts show that cannot be shown in place
//!     renewed/                                 files of the layers with other times
//! ```

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rimg_runner::claim;
use rimg_runner::spec::{Mount, MountKind};

use crate::source_tree::SourceNode;

/// What the names of trees that are being made begin with, in this folder.
const PREFIX: &str = ".new-";

/// The directory of one step, gone when dropped.
pub(super) struct RunWorkspace {
    parent: PathBuf,
    name: String,
    _lock: File,
}

impl RunWorkspace {
    /// A new one in `parent`. The upper directory is what the process sees as `/`, so it gets the attributes of the
    /// image's `root`.
    pub(super) fn new(parent: &Path, root: Option<&SourceNode>) -> io::Result<RunWorkspace> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        sweep(parent)?;
        // Process ids repeat: a name that is taken is not ours.
        let (name, lock) = loop {
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let name = format!("{PREFIX}{}-run-{number}", std::process::id());
            if let Some(lock) = claim::make(&parent.join(&name), 0o700)? {
                break (name, lock);
            }
        };
        let workspace = RunWorkspace { parent: parent.to_owned(), name, _lock: lock };
        for directory in
            [workspace.upper(), workspace.work(), workspace.empty(), workspace.path().join("mounts")]
        {
            fs::create_dir(directory)?;
        }
        let mode = root.map_or(0o755, |root| root.mode);
        fs::set_permissions(workspace.upper(), Permissions::from_mode(mode))?;
        fs::set_permissions(workspace.empty(), Permissions::from_mode(mode))?;
        if let Some((uid, gid)) = root.and_then(|root| root.owner).filter(|owner| *owner != (0, 0)) {
            let id = |id: u64| u32::try_from(id).map_err(io::Error::other);
            std::os::unix::fs::chown(workspace.upper(), Some(id(uid)?), Some(id(gid)?))?;
        }
        Ok(workspace)
    }

    fn path(&self) -> PathBuf {
        self.parent.join(&self.name)
    }

    /// Receives the changes.
    pub(super) fn upper(&self) -> PathBuf {
        self.path().join("upper")
    }

    /// The overlay's scratch directory.
    pub(super) fn work(&self) -> PathBuf {
        self.path().join("work")
    }

    /// A lower directory with nothing in it: the kernel wants at least one.
    pub(super) fn empty(&self) -> PathBuf {
        self.path().join("empty")
    }

    /// A new directory for the content of a mount.
    pub(super) fn mount_directory(&self, number: usize) -> io::Result<PathBuf> {
        let path = self.path().join("mounts").join(number.to_string());
        fs::create_dir(&path)?;
        fs::set_permissions(&path, Permissions::from_mode(0o755))?;
        Ok(path)
    }

    /// A new directory that goes on top of the layers.
    pub(super) fn renewed(&self) -> io::Result<PathBuf> {
        let path = self.path().join("renewed");
        fs::create_dir(&path)?;
        fs::set_permissions(&path, Permissions::from_mode(0o755))?;
        Ok(path)
    }

    /// An executable file with this content, to be mounted at `target`.
    pub(super) fn script(&self, target: &str, content: &str) -> io::Result<Mount> {
        let source = self.path().join("script");
        fs::write(&source, content)?;
        fs::set_permissions(&source, Permissions::from_mode(0o755))?;
        Ok(Mount { kind: MountKind::Bind { source }, target: PathBuf::from(target), read_only: true })
    }
}

impl Drop for RunWorkspace {
    fn drop(&mut self) {
        // What cannot be removed now is swept with the directories of dead processes.
        let _ = claim::remove(&self.parent, &self.name);
    }
}

/// Removes what builds left that were killed.
fn sweep(parent: &Path) -> io::Result<()> {
    for entry in fs::read_dir(parent)? {
        let name = entry?.file_name();
        if let Some(name) = name.to_str().filter(|name| name.starts_with(PREFIX)) {
            // Another user's directory is that user's to remove.
            let _ = claim::sweep(parent, name);
        }
    }
    Ok(())
}
