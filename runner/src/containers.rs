//! State of foreground runs on disk.
//!
//! ```text
//! containers/<id>/         locked (flock) by the rimg process that runs it; `name-<name>` for a run with a name
//! containers/<id>/upper/   what the run changed
//! containers/<id>/work/    the overlay's scratch directory
//! containers/<id>/image    the digest of the image it runs
//! ```
//!
//! The lock tells a dead run's leftovers from a live run (see [`claim`]), without asking anybody.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::claim;
use crate::spec::Upper;
use rimg_formats::digest::Digest;

/// The prefix of directories of runs with a name, which ids of other runs, being hexadecimal, do not have.
const NAMED_PREFIX: &str = "name-";

/// The file that tells the image.
const IMAGE: &str = "image";

/// Names become host names, which the kernel limits to this.
const NAME_BYTES_MAX: usize = 64;

/// Why a run cannot have its name.
#[derive(Debug, thiserror::Error)]
pub enum NameError {
    /// It is no name (docker's grammar).
    #[error(
        "`{0}` is no name of a container: letters, digits, `_`, `.` and `-`, up to 64, a letter or digit first"
    )]
    Grammar(String),
    /// A run that is still going on has it.
    #[error("the name `{0}` is in use by a container that runs: choose another, or wait for its end")]
    Taken(String),
    /// The kernel's.
    #[error("failed to make the container's folder: {0}")]
    Io(#[from] io::Error),
}

/// The directory of all containers.
#[derive(Debug, Clone)]
pub struct Containers {
    directory: PathBuf,
}

/// The state of one run. Dropping it removes everything on disk.
#[derive(Debug)]
pub struct Container {
    id: String,
    parent: PathBuf,
    removed: bool,
    _lock: File,
}

impl Containers {
    /// Containers in `directory`, which exists.
    #[must_use]
    pub fn new(directory: &Path) -> Containers {
        Containers { directory: directory.to_owned() }
    }

    /// Makes the state of a new run, locked by this process.
    ///
    /// # Errors
    /// The kernel's.
    pub fn create(&self) -> io::Result<Container> {
        loop {
            if let Some(container) = self.claim(unique_id())? {
                return Ok(container);
            }
        }
    }

    /// As [`Containers::create`], for a run with a name that no other run has while it lasts.
    ///
    /// # Errors
    /// [`NameError`] when it is no name, or taken.
    pub fn create_named(&self, name: &str) -> Result<Container, NameError> {
        let grammar = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
        if !grammar || name.len() > NAME_BYTES_MAX || !name.starts_with(|c: char| c.is_ascii_alphanumeric()) {
            return Err(NameError::Grammar(name.to_owned()));
        }
        let id = format!("{NAMED_PREFIX}{name}");
        // What a dead run of this name left is in the way of the first try only.
        for _ in 0..2 {
            if let Some(container) = self.claim(id.clone())? {
                return Ok(container);
            }
            claim::sweep(&self.directory, &id)?;
        }
        Err(NameError::Taken(name.to_owned()))
    }

    /// The state of a run under this id; `None` when there is one already.
    fn claim(&self, id: String) -> io::Result<Option<Container>> {
        let path = self.directory.join(&id);
        // Nobody else may look into it: it can contain set-user-id programs of the image.
        let Some(lock) = claim::make(&path, 0o700)? else { return Ok(None) };
        let container = Container { id, parent: self.directory.clone(), removed: false, _lock: lock };
        fs::create_dir(path.join("upper"))?;
        // The upper's root becomes the mode of `/` inside.
        fs::set_permissions(path.join("upper"), fs::Permissions::from_mode(0o755))?;
        fs::create_dir(path.join("work"))?;
        Ok(Some(container))
    }

    /// The images of the runs that are going on, each with the name or id of one that runs it.
    ///
    /// # Errors
    /// When the directory itself cannot be read.
    pub fn images_in_use(&self) -> io::Result<Vec<(Digest, String)>> {
        let mut images = Vec::new();
        for entry in fs::read_dir(&self.directory)?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            // A run that is at its beginning or its end has none.
            let Ok(text) = fs::read_to_string(entry.path().join(IMAGE)) else { continue };
            if let Ok(digest) = text.parse()
                && matches!(claim::lock(&entry.path()), Ok(None))
            {
                images.push((digest, name.strip_prefix(NAMED_PREFIX).unwrap_or(&name).to_owned()));
            }
        }
        Ok(images)
    }

    /// Removes what runs that are no more left behind. Returns how many there were.
    ///
    /// # Errors
    /// When the directory itself cannot be read.
    pub fn sweep(&self) -> io::Result<usize> {
        let mut removed = 0;
        for entry in fs::read_dir(&self.directory)?.flatten() {
            let name = entry.file_name();
            let Some(id) = name.to_str() else { continue };
            removed += usize::from(claim::sweep(&self.directory, id).unwrap_or(false));
        }
        Ok(removed)
    }
}

impl Container {
    /// Removes everything on disk, and says what dropping keeps to itself.
    ///
    /// # Errors
    /// When something cannot be removed. It is unlocked then, and the next sweep tries again.
    pub fn remove(mut self) -> io::Result<()> {
        self.removed = true;
        claim::remove(&self.parent, &self.id)
    }

    /// Its name.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Says which image it runs, so that nobody removes that meanwhile. Unsynced: a run does not outlive its machine.
    ///
    /// # Errors
    /// The kernel's.
    pub fn hold_image(&self, image: &Digest) -> io::Result<()> {
        fs::write(self.parent.join(&self.id).join(IMAGE), image.to_string())
    }

    /// The upper layer for this run's root: unsynced, because it does not outlive the run.
    #[must_use]
    pub fn upper(&self) -> Upper {
        let path = self.parent.join(&self.id);
        Upper::Directory { upper: path.join("upper"), work: path.join("work"), volatile: true }
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if self.removed {
            return;
        }
        // What cannot be removed now is unlocked in a moment, and the next sweep finds it.
        let _ = claim::remove(&self.parent, &self.id);
    }
}

fn unique_id() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_micros());
    format!("{now:x}-{:x}-{:x}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_live_run_survives_a_sweep_and_a_dead_one_does_not() {
        let directory = tempfile::tempdir().unwrap();
        let containers = Containers::new(directory.path());
        let live = containers.create().unwrap();
        let dead = directory.path().join("dead");
        fs::create_dir_all(dead.join("upper/deep/er")).unwrap();
        fs::write(dead.join("upper/deep/file"), "x").unwrap();
        assert_eq!(containers.sweep().unwrap(), 1);
        assert!(!dead.exists());
        let path = directory.path().join(live.id());
        assert!(path.join("upper").is_dir() && path.join("work").is_dir());
        drop(live);
        assert!(!path.exists());
    }

    #[test]
    fn an_image_is_in_use_as_long_as_its_run_lives() {
        let directory = tempfile::tempdir().unwrap();
        let containers = Containers::new(directory.path());
        let image = Digest::sha256(b"image");
        let run = containers.create_named("web").unwrap();
        assert_eq!(containers.images_in_use().unwrap(), []);
        run.hold_image(&image).unwrap();
        assert_eq!(containers.images_in_use().unwrap(), [(image, "web".to_owned())]);
        drop(run);
        // What a killed run left.
        fs::create_dir(directory.path().join("dead")).unwrap();
        fs::write(directory.path().join("dead/image"), image.to_string()).unwrap();
        assert_eq!(containers.images_in_use().unwrap(), []);
    }

    #[test]
    fn a_name_is_one_runs_at_a_time() {
        let directory = tempfile::tempdir().unwrap();
        let containers = Containers::new(directory.path());
        let first = containers.create_named("web").unwrap();
        assert!(matches!(containers.create_named("web"), Err(NameError::Taken(_))));
        drop(first);
        // A run that was killed leaves its directory, and no lock.
        fs::create_dir_all(directory.path().join("name-web/upper/x")).unwrap();
        drop(containers.create_named("web").unwrap());
        for bad in ["", ".", "..", "a/b", "-a", "a b", "a\n", &"x".repeat(65)] {
            assert!(matches!(containers.create_named(bad), Err(NameError::Grammar(_))), "{bad:?}");
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
