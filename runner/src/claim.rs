//! Folders that belong to a living process: claimed by making and locking them, swept when their maker is dead.
//!
//! The lock (flock) is the truth about life: it goes with its process however that ends. A folder is made before it is
//! locked, and a sweeper that comes in between takes it for a dead maker's. So whoever locks one looks whether it is
//! still the folder of that name, and a sweeper holds the lock until it has removed it.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;

use rimg_formats::layer::LayerPath;
use rimg_formats::root_dir::RootDir;
use rustix::fs::{FlockOperation, flock};

/// Makes the folder `path`, which is this process's until the result is dropped. `None` when there is one of this name,
/// or when a sweeper was faster: another name is to be tried.
///
/// # Errors
/// The kernel's.
pub fn make(path: &Path, mode: u32) -> io::Result<Option<File>> {
    match DirBuilder::new().mode(mode).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(None),
        made => made.and_then(|()| lock(path)),
    }
}

/// Locks the folder `path`. `None` when a living process has it, or when it is gone.
///
/// # Errors
/// The kernel's.
pub fn lock(path: &Path) -> io::Result<Option<File>> {
    let folder = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    if flock(&folder, FlockOperation::NonBlockingLockExclusive).is_err() {
        return Ok(None);
    }
    Ok(is_at(&folder, path)?.then_some(folder))
}

/// Whether `folder` still has this name.
fn is_at(folder: &File, path: &Path) -> io::Result<bool> {
    let open = folder.metadata()?;
    let named = fs::symlink_metadata(path);
    Ok(named.is_ok_and(|named| (named.dev(), named.ino()) == (open.dev(), open.ino())))
}

/// Removes the folder `name` of `parent` with all that is in it, unless a living process has it; says whether it did.
///
/// # Errors
/// When something in it cannot be removed; the rest is for a later sweep.
pub fn sweep(parent: &Path, name: &str) -> io::Result<bool> {
    let Some(_lock) = lock(&parent.join(name))? else { return Ok(false) };
    remove(parent, name)?;
    Ok(true)
}

/// Removes the folder `name` of `parent`, which is the caller's own.
///
/// # Errors
/// As [`sweep`].
pub fn remove(parent: &Path, name: &str) -> io::Result<()> {
    RootDir::open(parent)?.remove_tree(&LayerPath::parse(name).map_err(io::Error::other)?)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_swept_when_its_maker_is_dead_and_not_before() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("a");
        let claimed = make(&path, 0o700).unwrap().unwrap();
        assert!(make(&path, 0o700).unwrap().is_none());
        assert!(!sweep(parent.path(), "a").unwrap() && path.is_dir());
        fs::create_dir(path.join("b")).unwrap();
        drop(claimed);
        assert!(sweep(parent.path(), "a").unwrap() && !path.exists());
        assert!(!sweep(parent.path(), "a").unwrap());
    }

    #[test]
    fn a_folder_that_was_swept_before_it_was_locked_is_not_claimed() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("a");
        fs::create_dir(&path).unwrap();
        let folder = File::open(&path).unwrap();
        assert!(is_at(&folder, &path).unwrap());
        assert!(sweep(parent.path(), "a").unwrap());
        assert!(!is_at(&folder, &path).unwrap());
        fs::create_dir(&path).unwrap();
        assert!(!is_at(&folder, &path).unwrap(), "another one of the same name");
    }
}
