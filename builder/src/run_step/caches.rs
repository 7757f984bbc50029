//! Cache mounts: directories of the store that outlive builds.
//!
//! ```text
//! cache-mounts/<hex>[.n]/     by the digest of what tells caches apart; `.n` are further ones, for `sharing=private`;
//!                             listed and removed by [`rimg_formats::store::cache_mounts`]
//!     about                   what it is, for people: the id, mode and owner
//!     content/                what is mounted
//!     lock                    held while steps use it (flock), shared or exclusive as `sharing` says; its time is
//!                             that of the last use
//!     seen  clock             what it was used with, and until when: [`Seen`]
//!     seen.lock  users        held (flock) while `seen` is changed, and by everybody who uses the cache
//! ```
//!
//! Another owner or mode is another cache: a directory has only one of each, and what one user left would be closed to
//! the other.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rimg_formats::digest::Digest;
use rimg_formats::layer::{LayerPath, MtimePolicy};
use rimg_formats::root_dir::RootDir;
use rustix::fs::{CWD, FlockOperation, RenameFlags, flock};

use super::seen::{Seen, Sight};
use crate::engine::Build;
use crate::layer_plan::PlannedEntry;
use crate::materialise::materialise;
use crate::syntax::CacheSharing;

/// What is mounted of a cache, in its directory.
const CONTENT: &str = "content";

/// The longest that a step waits before it tries again to lock a cache: what a Ctrl-C may take.
const RETRY_MAX: Duration = Duration::from_millis(50);

/// A file of a cache whose time is that of the last use's end.
const CLOCK: &str = "clock";
const SECOND_NS: i64 = 1_000_000_000;

/// How much later than the files of a cache the present has to be: room for as many layers as there can be, one
/// microsecond each.
const TICK_NS: i64 = 1_000_000;
/// How often the clock is read until it has moved: longer than any step of it.
const TICKS_MAX: u32 = 2000;

/// The identity of a cache.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct CacheId {
    /// As the Buildfile says.
    pub(super) id: String,
    /// Permission bits of the directory.
    pub(super) mode: u32,
    /// User and group.
    pub(super) owner: (u32, u32),
    /// Digest of what it starts with: another start is another cache.
    pub(super) start: Option<Digest>,
}

/// A cache in use. Others that may not use it at the same time wait until this is dropped.
#[derive(Debug)]
pub(super) struct Cache {
    pub(super) id: CacheId,
    directory: PathBuf,
    _lock: File,
    /// Tells the next one that the cache is in use.
    user: Option<File>,
}

impl Drop for Cache {
    fn drop(&mut self) {
        if self.user.is_some() {
            // Without it the next use may be taken to come later than it does, by what this one took.
            let _ = fs::write(self.directory.join(CLOCK), b".");
        }
    }
}

impl CacheId {
    /// For people and as input of a key.
    pub(super) fn describe(&self) -> String {
        let start = self.start.map_or_else(String::new, |start| format!(" from {start}"));
        format!("{} {:o} {}:{}{start}", self.id, self.mode, self.owner.0, self.owner.1)
    }

    fn directory_name(&self) -> String {
        let (uid, gid) = self.owner;
        let start = self.start.map_or_else(String::new, |start| format!("{start} "));
        Digest::sha256(format!("{start}{:o} {uid}:{gid} {}", self.mode, self.id).as_bytes()).hex()
    }
}

impl Cache {
    /// Takes a cache of the build's store, waiting for those who have it. An interrupt of the build ends the wait.
    pub(super) fn take(build: &Build<'_>, id: &CacheId, sharing: CacheSharing) -> io::Result<Cache> {
        let parent = build.store.cache_mounts_dir();
        fs::create_dir_all(&parent)?;
        let name = id.directory_name();
        let mut number = 0_u32;
        loop {
            let name = if number == 0 { name.clone() } else { format!("{name}.{number}") };
            let (directory, lock) = open(&parent, &name, id)?;
            let locked = match sharing {
                CacheSharing::Private => try_lock(&lock, true)?,
                sharing => wait(build, &lock, sharing == CacheSharing::Locked).map(|()| true)?,
            };
            // A prune may have taken the directory away before it was locked.
            if locked && is_in_place(&directory, &lock)? {
                lock.set_modified(std::time::SystemTime::now())?;
                return Ok(Cache { id: id.clone(), directory, _lock: lock, user: None });
            }
            number += u32::from(!locked);
        }
    }

    /// Takes note of what a step of the instruction `slot` sees beside the cache, and returns the times at which it has
    /// to see it; `None` for the time that a path has by itself.
    pub(super) fn look(
        &mut self,
        build: &Build<'_>,
        sights: &[Sight],
        slot: u64,
    ) -> io::Result<Vec<Option<i64>>> {
        let path = self.directory.join("seen");
        let changing = lock_file(&self.directory.join("seen.lock"))?;
        wait(build, &changing, true)?;
        let user = lock_file(&self.directory.join("users"))?;
        let alone = try_lock(&user, true)?;
        wait(build, &user, false)?;
        self.user = Some(user);
        let ended = modified_ns(&self.directory.join(CLOCK)).unwrap_or(0);
        let seen = match fs::read(&path) {
            Ok(bytes) => Seen::decode(&bytes).unwrap_or_else(Seen::lost),
            Err(error) if error.kind() == io::ErrorKind::NotFound => match self.is_empty() {
                true => Seen::default(),
                false => Seen::lost(),
            },
            Err(error) => return Err(error),
        };
        loop {
            let now = self.now_ns()?;
            let mut after = seen.clone();
            let times = after.look(sights, slot, now, alone);
            let is_changed = times.iter().flatten().any(|time| *time > now - TICK_NS);
            if is_changed && now / SECOND_NS == ended / SECOND_NS {
                // Programs that look at whole seconds would see no difference.
                build.check_stopped().map_err(io::Error::other)?;
                let rest = u64::try_from(SECOND_NS - now % SECOND_NS).unwrap_or_default();
                std::thread::sleep(Duration::from_nanos(rest));
                continue;
            }
            let written = self.directory.join("seen.new");
            fs::write(&written, after.encode())?;
            fs::rename(written, path)?;
            return Ok(times);
        }
    }

    fn is_empty(&self) -> bool {
        fs::read_dir(self.directory.join(CONTENT)).map_or(true, |mut entries| entries.next().is_none())
    }

    /// The present by the clock that stamps the cache's files, at least [`TICK_NS`] later than any of them.
    fn now_ns(&self) -> io::Result<i64> {
        let clock = self.directory.join(CLOCK);
        let read = || fs::write(&clock, b".").and_then(|()| modified_ns(&clock));
        let began = read()?;
        // The kernel's clock for files moves in steps of up to 10 ms.
        for _ in 0..TICKS_MAX {
            std::thread::sleep(Duration::from_millis(1));
            let now = read()?;
            if now >= began + TICK_NS {
                return Ok(now);
            }
        }
        Err(io::Error::other(format!("the clock of {} stands still", self.directory.display())))
    }

    /// What is mounted; made at the first use, of the entries `start` where there are any, whose root is called
    /// `content`.
    pub(super) fn content(&self, start: &[PlannedEntry]) -> io::Result<PathBuf> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let content = self.directory.join(CONTENT);
        if content.exists() {
            return Ok(content);
        }
        // It appears whole, with its owner and mode: a process that dies here leaves no other.
        let folder = RootDir::open(&self.directory)?;
        let name = format!("new-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let removed = || folder.remove_tree(&LayerPath::parse(&name).map_err(io::Error::other)?);
        removed()?;
        let place = self.directory.join(&name);
        fs::create_dir(&place)?;
        let made = place.join(CONTENT);
        if start.is_empty() {
            fs::create_dir(&made)?;
            if self.id.owner != (0, 0) {
                std::os::unix::fs::chown(&made, Some(self.id.owner.0), Some(self.id.owner.1))?;
            }
            fs::set_permissions(&made, fs::Permissions::from_mode(self.id.mode))?;
        } else {
            materialise(start, &place, MtimePolicy::Preserve)?;
        }
        match rustix::fs::renameat_with(CWD, &made, CWD, &content, RenameFlags::NOREPLACE) {
            // Another step that shares it was faster.
            Err(rustix::io::Errno::EXIST) => {}
            renamed => renamed?,
        }
        removed()?;
        Ok(content)
    }
}

fn modified_ns(path: &Path) -> io::Result<i64> {
    let stat = fs::metadata(path)?;
    Ok(stat.mtime().saturating_mul(SECOND_NS).saturating_add(stat.mtime_nsec()))
}

fn lock_file(path: &Path) -> io::Result<File> {
    File::options().create(true).truncate(false).write(true).open(path)
}

fn open(parent: &Path, name: &str, id: &CacheId) -> io::Result<(PathBuf, File)> {
    let directory = parent.join(name);
    loop {
        match fs::create_dir(&directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let about = directory.join("about");
        let lock = directory.join("lock");
        let opened = if about.exists() { Ok(()) } else { fs::write(about, id.describe()) }
            .and_then(|()| lock_file(&lock));
        match opened {
            // A prune has just taken it away.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            opened => return Ok((directory, opened?)),
        }
    }
}

fn is_in_place(directory: &Path, lock: &File) -> io::Result<bool> {
    match fs::metadata(directory.join("lock")) {
        Ok(found) => {
            let held = lock.metadata()?;
            Ok((found.dev(), found.ino()) == (held.dev(), held.ino()))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Locks, looking now and then whether the build is to go on.
fn wait(build: &Build<'_>, lock: &File, exclusive: bool) -> io::Result<()> {
    let mut pause = Duration::from_millis(1);
    while !try_lock(lock, exclusive)? {
        build.check_stopped().map_err(io::Error::other)?;
        std::thread::sleep(pause);
        pause = (pause * 2).min(RETRY_MAX);
    }
    Ok(())
}

fn try_lock(lock: &File, exclusive: bool) -> io::Result<bool> {
    let operation = match exclusive {
        true => FlockOperation::NonBlockingLockExclusive,
        false => FlockOperation::NonBlockingLockShared,
    };
    match flock(lock, operation) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
