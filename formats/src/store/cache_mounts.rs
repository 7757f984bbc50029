//! [`CacheMount`]: directories that `RUN --mount=type=cache` shows, listed and removed.
//!
//! ```text
//! cache-mounts/<name>/about     what it is, for people
//! cache-mounts/<name>/lock      locked (flock) by whoever uses it; its time is that of the last use
//! cache-mounts/<name>/content   what is mounted
//! cache-mounts/.removed-<id>    on its way out
//! ```
//!
//! What else is in them belongs to the builder. One is removed under its lock and by a rename first, so that nobody
//! begins to use what is going away.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use walkdir::WalkDir;

use super::error::StoreError;
use super::metadata::now;
use super::{Store, random_id};
use crate::layer::LayerPath;
use crate::root_dir::RootDir;

/// The prefix of directories on their way out.
const REMOVED_PREFIX: &str = ".removed-";

/// Bytes of an `about` file that are shown: ids are names.
const ABOUT_BYTES_MAX: usize = 4096;

/// One cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheMount {
    /// Its directory's name.
    pub name: String,
    /// Id, mode and owner; empty for one that no longer has a name.
    pub about: String,
    /// Bytes of the files in it, as far as they can be seen.
    pub bytes: u64,
    /// When it was used last, in seconds since 1970.
    pub used_at: i64,
    /// Whether a step uses it at the moment.
    pub in_use: bool,
}

impl Store {
    /// Where the builder keeps cache mounts.
    pub fn cache_mounts_dir(&self) -> PathBuf {
        self.root().join("cache-mounts")
    }

    /// All caches, by name.
    pub fn cache_mounts(&self) -> Result<Vec<CacheMount>, StoreError> {
        let directory = self.cache_mounts_dir();
        let mut caches = Vec::new();
        let entries = match fs::read_dir(&directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(caches),
            entries => entries.map_err(StoreError::at("list", &directory))?,
        };
        for entry in entries {
            let entry = entry.map_err(StoreError::at("list", &directory))?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            caches.push(look(&entry.path(), name));
        }
        caches.sort_by(|left, right| left.name.cmp(&right.name));
        Ok(caches)
    }

    /// Removes caches that were not used for `unused_seconds`, and returns them. What is in use stays.
    pub fn prune_cache_mounts(
        &self,
        unused_seconds: i64,
        dry_run: bool,
    ) -> Result<Vec<CacheMount>, StoreError> {
        let latest = now() - unused_seconds;
        let mut removed = Vec::new();
        for cache in self.cache_mounts()? {
            let is_leftover = cache.name.starts_with(REMOVED_PREFIX);
            if cache.in_use || (cache.used_at > latest && !is_leftover) {
                continue;
            }
            if dry_run || self.remove_cache_mount(&cache.name, is_leftover)? {
                removed.push(cache);
            }
        }
        Ok(removed)
    }

    /// False when it has come into use.
    fn remove_cache_mount(&self, name: &str, is_leftover: bool) -> Result<bool, StoreError> {
        let directory = self.cache_mounts_dir();
        let path = directory.join(name);
        let failed = || StoreError::at("remove", &path);
        let mut doomed = name.to_owned();
        if !is_leftover {
            let Some(_lock) = lock(&path) else { return Ok(false) };
            doomed = format!("{REMOVED_PREFIX}{}", random_id());
            fs::rename(&path, directory.join(&doomed)).map_err(failed())?;
        }
        let doomed = LayerPath::parse(&doomed).map_err(io::Error::other).map_err(failed())?;
        let root = RootDir::open(&directory).map_err(failed())?;
        root.remove_tree(&doomed).map_err(failed())?;
        Ok(true)
    }
}

fn look(path: &Path, name: String) -> CacheMount {
    let mut about = fs::read(path.join("about")).unwrap_or_default();
    about.truncate(ABOUT_BYTES_MAX);
    let used_at =
        [path.join("lock"), path.to_owned()].iter().find_map(|path| Some(fs::metadata(path).ok()?.mtime()));
    let mut seen = std::collections::HashSet::new();
    let files =
        WalkDir::new(path.join("content")).into_iter().filter_map(|entry| entry.ok()?.metadata().ok());
    let files =
        files.filter(|stat| stat.is_file() && (stat.nlink() == 1 || seen.insert((stat.dev(), stat.ino()))));
    CacheMount {
        bytes: files.map(|stat| stat.len()).sum(),
        about: String::from_utf8_lossy(&about).into_owned(),
        used_at: used_at.unwrap_or(0),
        in_use: path.join("lock").exists() && lock(path).is_none(),
        name,
    }
}

/// The lock of a cache that nobody uses.
fn lock(path: &Path) -> Option<File> {
    let file = File::options().create(true).truncate(false).write(true).open(path.join("lock")).ok()?;
    file.try_lock().ok().map(|()| file)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;

    #[test]
    fn caches_are_listed_and_removed_when_nobody_uses_them() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        assert_eq!(store.cache_mounts().unwrap(), []);
        let make = |name: &str, days: u64| {
            let path = store.cache_mounts_dir().join(name);
            fs::create_dir_all(path.join("content/deep")).unwrap();
            fs::write(path.join("content/deep/file"), "12345").unwrap();
            fs::write(path.join("about"), format!("{name} 755 0:0")).unwrap();
            let lock = File::create(path.join("lock")).unwrap();
            lock.set_modified(SystemTime::now() - Duration::from_secs(days * 86_400)).unwrap();
            lock
        };
        let used = make("a", 20);
        used.try_lock().unwrap();
        make("b", 20);
        make("c", 1);
        fs::create_dir_all(store.cache_mounts_dir().join(".removed-x/content")).unwrap();
        let names = |caches: Vec<CacheMount>| caches.into_iter().map(|cache| cache.name).collect::<Vec<_>>();
        let listed = store.cache_mounts().unwrap();
        assert_eq!((listed[2].bytes, listed[2].about.as_str(), listed[2].in_use), (5, "b 755 0:0", false));
        assert!(listed[1].in_use);
        let fortnight = 14 * 86_400;
        let rehearsed = store.prune_cache_mounts(fortnight, true).unwrap();
        assert_eq!(store.cache_mounts().unwrap(), listed, "a dry run removes nothing");
        assert_eq!(store.prune_cache_mounts(fortnight, false).unwrap(), rehearsed);
        assert_eq!(names(rehearsed), [".removed-x", "b"]);
        assert_eq!(names(store.prune_cache_mounts(0, false).unwrap()), ["c"]);
        assert_eq!(names(store.cache_mounts().unwrap()), ["a"]);
        drop(used);
        assert_eq!(names(store.prune_cache_mounts(0, false).unwrap()), ["a"]);
    }
}
