//! [`Ingest`]: the only way bytes enter the store.
//!
//! # What a commit does, and why it holds
//!
//! 1. Bytes go to `uploads/<id>`, which its writer keeps locked (`flock`), and are hashed on the way.
//! 2. `commit` compares digest and size with what was announced. On any difference the file is dropped.
//! 3. The file is fdatasynced, made read-only and renamed to `blobs/<alg>/<hex>`. If an undamaged blob is there
//!    already, that one is kept and this file dropped; a damaged one is replaced, which heals it.
//! 4. The directory is fsynced, once for all commits that wait for it at the moment.
//! 5. A row in the metadata, again in one transaction for all that wait, says that the blob is there and leases
//!    it for [`LEASE_GRACE_SECONDS`](super::lease::LEASE_GRACE_SECONDS).
//!
//! *Crash.* A name in `blobs/` only ever appears by the rename of step 3, after its content is on disk: under
//! no crash can it name other bytes than its own. A crash before step 3 leaves a file in `uploads/` that nobody
//! locks (swept by [`prune`](Store::prune)); one before step 5 leaves a whole blob without a row: the next
//! ingest replaces it, a prune removes it. Only after step 5 does `commit` return. Two fsyncs a blob at most,
//! one plus a share under load.
//!
//! *Local ingests* ([`Store::ingest_local`]) skip step 4 and make step 5 atomic but not yet durable. They
//! acknowledge nothing to anybody but their own process; the put of the manifest that names them fsyncs the
//! blob directories first and then commits durably, so whatever a name leads to is on disk before the name is.
//!
//! *Concurrency.* Renaming over an equal blob is harmless, so threads and processes that ingest the same
//! content need not know of each other. A garbage collector removes names only under the metadata's write lock,
//! and step 5 looks under the same lock whether the file is still there; if not, the content (the file is still
//! open) is put there again.

use std::fs::{self, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::PathBuf;

use super::Store;
use super::error::StoreError;
use super::metadata::Durability;
use super::registration::{Placed, Registered, Seen};
use super::uploads::UploadId;
use crate::descriptor::Descriptor;
use crate::digest::{Algorithm, Digest, Hasher};
use crate::reference::ImageName;

/// Bytes gathered before they are written: large enough that a system call is nothing beside hashing, small
/// enough for a thousand uploads at once.
const BUFFER_BYTES: usize = 128 << 10;
/// How often a commit puts back what a collector took away at the same moment. Twice is already unheard of.
const PLACE_ATTEMPTS_MAX: usize = 8;

/// What a commit must find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expect {
    /// The digest announced.
    pub digest: Digest,
    /// The size announced, in bytes.
    pub size: Option<u64>,
}

impl From<&Descriptor> for Expect {
    fn from(descriptor: &Descriptor) -> Expect {
        Expect { digest: descriptor.digest, size: Some(descriptor.size) }
    }
}

impl From<Digest> for Expect {
    fn from(digest: Digest) -> Expect {
        Expect { digest, size: None }
    }
}

/// What a commit stored. "The content is in the store", not "because of this call".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed {
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
}

/// Content on its way into the store. Dropping it without [`commit`](Ingest::commit) or
/// [`suspend`](Ingest::suspend) forgets what was written, unless it was resumed before: then it stays suspended,
/// with what reached the file. A commit that finds other content than expected forgets it in any case.
#[derive(Debug)]
pub struct Ingest {
    pub(super) store: Store,
    pub(super) id: UploadId,
    pub(super) file: File,
    pub(super) path: PathBuf,
    pub(super) buffer: Vec<u8>,
    pub(super) hasher: Hasher,
    /// Bytes accepted, those in the buffer included.
    pub(super) length: u64,
    pub(super) repository: Option<ImageName>,
    pub(super) durability: Durability,
    /// A write failed: the file may lack what was hashed.
    pub(super) broken: bool,
    /// The file is no longer this ingest's to remove.
    pub(super) released: bool,
    /// It has a row among the suspended uploads.
    pub(super) resumed: bool,
}

impl Store {
    /// Begins an ingest whose commit is durable when it returns.
    pub fn ingest(&self) -> Result<Ingest, StoreError> {
        self.ingest_with(Algorithm::Sha256)
    }

    /// Begins an ingest that is hashed with `algorithm`. (A commit that expects another algorithm's digest
    /// reads the file again.)
    pub fn ingest_with(&self, algorithm: Algorithm) -> Result<Ingest, StoreError> {
        self.begin(algorithm, Durability::Durable)
    }

    /// Begins an ingest that becomes durable with the manifest that will name it: for builds and pulls, where a
    /// commit is not yet a promise to anybody.
    pub fn ingest_local(&self) -> Result<Ingest, StoreError> {
        self.begin(Algorithm::Sha256, Durability::Soft)
    }

    /// Stores `bytes` (durably once a manifest names them, as [`Store::ingest_local`]).
    pub fn put_bytes(&self, bytes: &[u8]) -> Result<Committed, StoreError> {
        let mut ingest = self.ingest_local()?;
        ingest.append(bytes)?;
        ingest.commit(None)
    }

    fn begin(&self, algorithm: Algorithm, durability: Durability) -> Result<Ingest, StoreError> {
        loop {
            let id = UploadId::random();
            let path = self.upload_path(&id);
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&path)
                .map_err(StoreError::at("create", &path))?;
            // A sweeper may come between creating and locking, and take the file for an orphan.
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => continue,
                Err(TryLockError::Error(error)) => return Err(StoreError::io("lock", &path, error)),
            }
            if file.metadata().map(|stat| stat.nlink()).unwrap_or(0) == 0 {
                continue;
            }
            return Ok(Ingest {
                store: self.clone(),
                id,
                file,
                path,
                buffer: Vec::new(),
                hasher: Hasher::new(algorithm),
                length: 0,
                repository: None,
                durability,
                broken: false,
                released: false,
                resumed: false,
            });
        }
    }
}

impl Ingest {
    /// Bytes accepted so far.
    pub fn len(&self) -> u64 {
        self.length
    }

    /// Whether nothing was written yet.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// What it hashes with on the way.
    pub fn algorithm(&self) -> Algorithm {
        self.hasher.algorithm()
    }

    /// The id under which it can be resumed once it has been suspended.
    pub fn id(&self) -> UploadId {
        self.id
    }

    /// The repository it was begun for.
    pub fn repository(&self) -> Option<&ImageName> {
        self.repository.as_ref()
    }

    /// As [`Write::write_all`], with the store's errors.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.take(bytes).map_err(StoreError::at("write", &self.path))
    }

    /// Copies everything from `source`; how many bytes that was. An error of `source` is returned as the outer
    /// one, an error of the store as the inner one.
    pub fn append_from(&mut self, source: &mut dyn Read) -> io::Result<Result<u64, StoreError>> {
        let before = self.length;
        loop {
            if self.buffer.len() >= BUFFER_BYTES
                && let Err(error) = self.write_out()
            {
                return Ok(Err(StoreError::io("write", &self.path, error)));
            }
            let filled = self.buffer.len();
            self.buffer.reserve_exact(BUFFER_BYTES - filled);
            let room = (BUFFER_BYTES - filled) as u64;
            let result = source.take(room).read_to_end(&mut self.buffer);
            // What arrived before an error counts: a resumed upload goes on behind it.
            self.hasher.update(&self.buffer[filled..]);
            self.length += (self.buffer.len() - filled) as u64;
            if (result? as u64) < room {
                return Ok(Ok(self.length - before));
            }
        }
    }

    /// Verifies the content against `expect` and makes it part of the store. See the module for what holds
    /// when it returns.
    pub fn commit(mut self, expect: Option<&Expect>) -> Result<Committed, StoreError> {
        self.write_out().map_err(StoreError::at("write", &self.path))?;
        if self.broken {
            let source = io::Error::other("an earlier write failed");
            return Err(StoreError::io("write", &self.path, source));
        }
        let digest = match expect {
            Some(expect) if expect.digest.algorithm() != self.hasher.algorithm() => {
                hash_file(&self.file, expect.digest.algorithm())
                    .map_err(StoreError::at("read", &self.path))?
            }
            _ => self.hasher.clone().finish(),
        };
        let actual = self.length;
        if let Some(expect) = expect {
            if let Some(size) = expect.size.filter(|size| *size != actual) {
                self.cancel()?;
                return Err(StoreError::SizeMismatch { digest: expect.digest, expected: size, actual });
            }
            if expect.digest != digest {
                self.cancel()?;
                return Err(StoreError::DigestMismatch {
                    expected: Box::new(expect.digest),
                    actual: Box::new(digest),
                });
            }
        }
        self.place(&digest)?;
        Ok(Committed { digest, size: actual })
    }

    /// Steps 3 to 5 of the module's story.
    fn place(&mut self, digest: &Digest) -> Result<(), StoreError> {
        for _ in 0..PLACE_ATTEMPTS_MAX {
            if !self.store.is_whole(digest, self.length)? {
                if self.released {
                    self.write_again()?;
                }
                self.move_into_place(digest)?;
            }
            if self.durability == Durability::Durable {
                self.store.blob_directory(digest.algorithm()).sync()?;
            }
            let repository = self.repository.clone();
            let placed = Placed { digest: *digest, size: self.length, repository };
            if self.store.register(placed, self.durability)? == Registered::Present {
                // With its row, an upload's file goes as well, unless it has become the blob.
                return match std::mem::take(&mut self.resumed) {
                    true => self.store.forget_upload(&self.id),
                    false => Ok(()),
                };
            }
        }
        let source = io::Error::other("it was removed again and again while it was stored");
        Err(StoreError::io("store", &self.store.blob_path(digest), source))
    }

    fn move_into_place(&mut self, digest: &Digest) -> Result<(), StoreError> {
        self.file.sync_data().map_err(StoreError::at("sync", &self.path))?;
        let read_only = Permissions::from_mode(0o444);
        self.file.set_permissions(read_only).map_err(StoreError::at("set the mode of", &self.path))?;
        let target = self.store.blob_path(digest);
        fs::rename(&self.path, &target).map_err(|source| {
            // An upload that stays suspended has to be writable for its next writer.
            let _ = self.file.set_permissions(Permissions::from_mode(0o600));
            StoreError::io("create", &target, source)
        })?;
        self.released = true;
        Ok(())
    }

    /// Copies the content, whose name a collector took away, to a new file of this ingest.
    fn write_again(&mut self) -> Result<(), StoreError> {
        let fresh = self.store.begin(self.hasher.algorithm(), self.durability)?;
        let copied = copy_file(&self.file, &fresh.file).map_err(StoreError::at("write", &fresh.path));
        copied.map(|()| self.take_file_of(fresh))
    }

    fn take_file_of(&mut self, mut other: Ingest) {
        std::mem::swap(&mut self.file, &mut other.file);
        std::mem::swap(&mut self.path, &mut other.path);
        self.released = false;
        other.released = true;
    }

    /// Hands the buffer to the file.
    pub(super) fn write_out(&mut self) -> io::Result<()> {
        let result = (&self.file).write_all(&self.buffer);
        self.broken |= result.is_err();
        self.buffer.clear();
        result
    }
}

impl Ingest {
    fn take(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.broken {
            return Err(io::Error::other("an earlier write failed"));
        }
        if self.buffer.len() + bytes.len() > BUFFER_BYTES {
            self.write_out()?;
        }
        if bytes.len() >= BUFFER_BYTES {
            let result = (&self.file).write_all(bytes);
            self.broken |= result.is_err();
            result?;
        } else {
            if self.buffer.capacity() == 0 && self.length > 0 {
                // The second write shows that more will come.
                self.buffer.reserve_exact(BUFFER_BYTES);
            }
            self.buffer.extend_from_slice(bytes);
        }
        self.hasher.update(bytes);
        self.length += bytes.len() as u64;
        Ok(())
    }

    /// The error of a write, in the store's words: who writes to an ingest may not know that it is one.
    fn told(&self, error: io::Error) -> io::Error {
        io::Error::new(error.kind(), StoreError::io("write", &self.path, error))
    }
}

impl Write for Ingest {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.take(bytes).map(|()| bytes.len()).map_err(|error| self.told(error))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.write_out().map_err(|error| self.told(error))
    }
}

impl Drop for Ingest {
    fn drop(&mut self) {
        if self.released {
            return;
        }
        if self.resumed {
            // Its row is there still, and what reached the file counts at the next resume.
            let _ = self.write_out();
        } else {
            // A leftover is swept later; there is nobody to tell.
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Store {
    /// Whether a blob is in place whose file has not been touched since it was verified.
    pub(super) fn is_whole(&self, digest: &Digest, size: u64) -> Result<bool, StoreError> {
        let Some(row) = self.blob_row(digest)? else { return Ok(false) };
        let path = self.blob_path(digest);
        match fs::symlink_metadata(&path) {
            Ok(stat) => Ok(row.damaged.is_none() && row.size == size && row.seen == Some(Seen::of(&stat))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(StoreError::io("look at", &path, error)),
        }
    }

    pub(super) fn upload_path(&self, id: &UploadId) -> PathBuf {
        self.uploads_dir().join(id.to_string())
    }
}

/// The digest of a file's whole content.
pub(super) fn hash_file(file: &File, algorithm: Algorithm) -> io::Result<Digest> {
    let mut hasher = Hasher::new(algorithm);
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut offset = 0;
    loop {
        match file.read_at(&mut buffer, offset) {
            Ok(0) => return Ok(hasher.finish()),
            Ok(count) => {
                hasher.update(&buffer[..count]);
                offset += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn copy_file(mut source: &File, mut target: &File) -> io::Result<()> {
    source.seek(SeekFrom::Start(0))?;
    io::copy(&mut source, &mut target).map(|_| ())
}
