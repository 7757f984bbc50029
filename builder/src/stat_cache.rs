//! Digests of files on disk that need no second reading.
//!
//! A file's content is taken to be what it was when device, inode, size, modification time **and change time** are
//! what they were: the change time cannot be set back. One gap remains, that a file is written twice within one tick
//! of the file system's clock, the digest being taken in between. Therefore a digest is remembered only when the
//! change time was already older than [`RACY_NANOSECONDS`] when reading began; until then the file is read again.

use std::collections::HashMap;
use std::io::{self, Read};
use std::sync::Mutex;

use rimg_formats::digest::{Algorithm, Digest, Hasher};
use rimg_formats::store::cache::FileStamp;
use rustix::fs::Stat;

use crate::context::DiskFile;
use crate::engine::Stop;

/// How long a file must have been left alone before its digest is remembered. Change times advance with the kernel's
/// tick, 10 ms at the slowest; file systems that keep whole seconds or two (FAT) never pass with a fraction of 0, see
/// [`is_settled`].
const RACY_NANOSECONDS: i128 = 30_000_000;
/// The same for file systems without fractions of seconds.
const RACY_COARSE_NANOSECONDS: i128 = 2_500_000_000;

/// Bytes read at a time while hashing.
const CHUNK_BYTES: usize = 256 << 10;

/// The stamp of a file: what must stay the same for its content to be the same.
pub(crate) fn stamp_of(stat: &Stat) -> FileStamp {
    let nanoseconds = |seconds: i64, fraction: u64| {
        let fraction = i64::try_from(fraction).unwrap_or(0);
        seconds.saturating_mul(1_000_000_000).saturating_add(fraction)
    };
    FileStamp {
        device: stat.st_dev,
        inode: stat.st_ino,
        size: u64::try_from(stat.st_size).unwrap_or(0),
        mtime_ns: nanoseconds(stat.st_mtime, stat.st_mtime_nsec),
        ctime_ns: nanoseconds(stat.st_ctime, stat.st_ctime_nsec),
    }
}

/// Whether the file had been left alone long enough at `now_ns` that a later change must show in the stamp.
pub(crate) fn is_settled(stamp: &FileStamp, now_ns: i128) -> bool {
    let coarse = stamp.ctime_ns % 1_000_000_000 == 0;
    let margin = if coarse { RACY_COARSE_NANOSECONDS } else { RACY_NANOSECONDS };
    i128::from(stamp.ctime_ns) + margin < now_ns
}

/// The digests known, and those learnt in this build.
#[derive(Debug, Default)]
pub(crate) struct StatCache {
    known: Mutex<HashMap<FileStamp, Digest>>,
    learnt: Mutex<Vec<(FileStamp, Digest)>>,
}

impl StatCache {
    /// Takes in more of what earlier builds learnt.
    pub(crate) fn add_known(&self, more: impl IntoIterator<Item = (FileStamp, Digest)>) {
        lock(&self.known).extend(more);
    }

    /// The digest of a file with this stamp, if known.
    pub(crate) fn get(&self, stamp: &FileStamp) -> Option<Digest> {
        lock(&self.known).get(stamp).copied()
    }

    /// Remembers that a file had this content; does nothing while the file is too young for its stamp to be trusted.
    ///
    /// `began_ns` is [`now_ns`] from before reading began, `after` the stamp when it had ended.
    pub(crate) fn learn(&self, before: &FileStamp, after: &FileStamp, began_ns: i128, digest: Digest) {
        if before != after || !is_settled(before, began_ns) {
            return;
        }
        if lock(&self.known).insert(*before, digest) != Some(digest) {
            lock(&self.learnt).push((*before, digest));
        }
    }

    /// What this build learnt and has not yet been taken.
    pub(crate) fn take_learnt(&self) -> Vec<(FileStamp, Digest)> {
        std::mem::take(&mut lock(&self.learnt))
    }

    /// The digest of a file's content: from memory, else by reading it.
    pub(crate) fn digest(&self, file: &DiskFile, stop: &Stop) -> io::Result<Digest> {
        if let Some(digest) = self.get(&file.stamp) {
            return Ok(digest);
        }
        let began_ns = now_ns();
        let opened = file.open()?;
        let before = stamp_of(&rustix::fs::fstat(&opened)?);
        let digest = hash(stop.reader(&opened))?;
        let after = stamp_of(&rustix::fs::fstat(&opened)?);
        self.learn(&before, &after, began_ns, digest);
        Ok(digest)
    }
}

/// The digest of everything that can be read.
pub(crate) fn hash(mut content: impl Read) -> io::Result<Digest> {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        match content.read(&mut chunk) {
            Ok(0) => return Ok(hasher.finish()),
            Ok(length) => hasher.update(&chunk[..length]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// The clock that change times are taken from, in nanoseconds since 1970.
pub(crate) fn now_ns() -> i128 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse);
    i128::from(now.tv_sec) * 1_000_000_000 + i128::from(now.tv_nsec)
}

/// A poisoned lock means that another thread panicked; the maps are whole between any two statements.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
