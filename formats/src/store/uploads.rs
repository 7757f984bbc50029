//! [`UploadId`] and the life of ingests that outlive their writer: suspend, resume, list, cancel, sweep.
//!
//! A suspended upload is its file in `uploads/` and a row with the state of the hash at some length. The file
//! may have grown past that row when its writer died: what is behind is hashed on resume, so no acknowledged
//! byte has to be sent twice, whatever happened to the process. After a power cut the file may be shorter or
//! wrong, and what was hashed says nothing about what it holds: the state is good for one boot of the machine, and a
//! file of an earlier one is hashed from its beginning. The digest decides at commit, as always.
//!
//! A file that nobody locks and that has no row is a dead writer's and may be swept.

use std::fmt;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::str::FromStr;

use rusqlite::{Row, params};

use super::error::StoreError;
use super::ingest::Ingest;
use super::metadata::{Durability, first, from_sql, now, parsed, rows, run, to_sql};
use super::{Store, random_id};
use crate::boot;
use crate::digest::{Algorithm, Hasher};
use crate::reference::ImageName;

/// The name of an unfinished upload: 32 hex digits that cannot be guessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UploadId(u128);

impl UploadId {
    pub(super) fn random() -> UploadId {
        // The text is 32 hex digits by construction.
        UploadId(u128::from_str_radix(&random_id(), 16).unwrap_or(0))
    }
}

impl fmt::Display for UploadId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:032x}", self.0)
    }
}

/// Why a text is not an [`UploadId`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not an upload id: expected 32 lower-case hex digits")]
pub struct UploadIdError;

impl FromStr for UploadId {
    type Err = UploadIdError;

    fn from_str(text: &str) -> Result<Self, UploadIdError> {
        let plain = text.len() == 32 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let value = u128::from_str_radix(text, 16).ok().filter(|_| plain);
        value.map(UploadId).ok_or(UploadIdError)
    }
}

/// A suspended upload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UploadRecord {
    /// Its id.
    pub id: UploadId,
    /// The repository it was begun for.
    pub repository: Option<ImageName>,
    /// Bytes received when it was suspended last.
    pub size: u64,
    /// When it was begun, in seconds since 1970.
    pub started_at: i64,
    /// When it was suspended last, in seconds since 1970.
    pub updated_at: i64,
}

/// What a row of `upload` holds besides its [`UploadRecord`].
struct Suspended {
    repository: Option<ImageName>,
    hasher: Option<Hasher>,
    algorithm: Algorithm,
    size: u64,
}

impl Ingest {
    /// Puts the ingest aside, to be taken up again by [`Store::resume`] from any process.
    pub fn suspend(mut self) -> Result<UploadId, StoreError> {
        self.write_out().map_err(StoreError::at("write", &self.path))?;
        if self.broken {
            return Err(StoreError::io("write", &self.path, io::Error::other("an earlier write failed")));
        }
        let (algorithm, state) = (self.hasher.algorithm().name(), save(&self.hasher));
        let repository = self.repository.as_ref().map(ImageName::as_str);
        self.store.metadata().write(Durability::Soft, "suspend an upload", |transaction| {
            run(
                transaction,
                "INSERT INTO upload (id, repository, algorithm, size, hash_state, started_at, updated_at)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?6)
                 ON CONFLICT (id) DO UPDATE SET size = excluded.size, hash_state = excluded.hash_state,
                 updated_at = excluded.updated_at",
                params![self.id.to_string(), repository, algorithm, to_sql(self.length), state, now()],
            )
            .map_err(StoreError::sql("suspend an upload"))
        })?;
        self.released = true;
        Ok(self.id)
    }

    /// Gives the upload up: nothing of it remains.
    pub fn cancel(mut self) -> Result<(), StoreError> {
        let (store, id, resumed) = (self.store.clone(), self.id, self.resumed);
        self.resumed = false;
        drop(self);
        if resumed { store.forget_upload(&id) } else { Ok(()) }
    }
}

impl Store {
    /// Takes a suspended upload up again. One writer at a time: a second one gets
    /// [`StoreError::UploadBusy`].
    pub fn resume(&self, id: &UploadId) -> Result<Ingest, StoreError> {
        let path = self.upload_path(id);
        let file = match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(StoreError::UploadUnknown(*id));
            }
            Err(error) => return Err(StoreError::io("open", &path, error)),
        };
        lock(&file, &path, id)?;
        // Only under the lock is the row the latest, and the name still this file's.
        let suspended = self.suspended(id)?.filter(|_| names(&path, &file));
        let suspended = suspended.ok_or(StoreError::UploadUnknown(*id))?;
        let (hasher, length) = catch_up(&file, suspended.hasher, suspended.algorithm, suspended.size)
            .map_err(StoreError::at("read", &path))?;
        (&file).seek(SeekFrom::Start(length)).map_err(StoreError::at("seek in", &path))?;
        Ok(Ingest {
            store: self.clone(),
            id: *id,
            file,
            path,
            buffer: Vec::new(),
            hasher,
            length,
            repository: suspended.repository,
            durability: Durability::Durable,
            broken: false,
            released: false,
            resumed: true,
        })
    }

    /// A suspended upload's record, with the bytes that [`Store::resume`] would find. Takes no lock, so it never
    /// stands in a writer's way; while one is at work, what it still buffers does not count.
    pub fn upload(&self, id: &UploadId) -> Result<Option<UploadRecord>, StoreError> {
        let record = self.metadata().read("look up an upload", |connection| {
            let sql = "SELECT id, repository, size, started_at, updated_at FROM upload WHERE id = ?1";
            first(connection, sql, [id.to_string()], upload_record)
                .map_err(StoreError::sql("look up an upload"))
        })?;
        let Some(mut record) = record else { return Ok(None) };
        match fs::symlink_metadata(self.upload_path(id)) {
            Ok(stat) => record.size = stat.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(StoreError::io("look at", &self.upload_path(id), error)),
        }
        Ok(Some(record))
    }

    /// How many suspended uploads a repository has.
    pub fn upload_count(&self, repository: &ImageName) -> Result<u64, StoreError> {
        self.metadata().read("count uploads", |connection| {
            let sql = "SELECT COUNT(*) FROM upload WHERE repository = ?1";
            let count = first(connection, sql, [repository.as_str()], |row| row.get(0));
            Ok(from_sql(count.map_err(StoreError::sql("count uploads"))?.unwrap_or(0)))
        })
    }

    /// All suspended uploads, oldest first.
    pub fn uploads(&self) -> Result<Vec<UploadRecord>, StoreError> {
        self.metadata().read("list uploads", |connection| {
            let sql =
                "SELECT id, repository, size, started_at, updated_at FROM upload ORDER BY started_at, id";
            rows(connection, sql, [], upload_record).map_err(StoreError::sql("list uploads"))
        })
    }

    pub(super) fn forget_upload(&self, id: &UploadId) -> Result<(), StoreError> {
        self.metadata().write(Durability::Soft, "forget an upload", |transaction| {
            run(transaction, "DELETE FROM upload WHERE id = ?1", [id.to_string()])
                .map(|_| ())
                .map_err(StoreError::sql("forget an upload"))
        })
    }

    /// Removes uploads untouched since `before` (seconds since 1970) and files of dead writers; how many and
    /// how many bytes. What a living process writes to is left alone.
    pub fn sweep_uploads(&self, before: i64, dry_run: bool) -> Result<(u64, u64), StoreError> {
        let directory = self.uploads_dir();
        let (mut count, mut bytes) = (0, 0);
        let failed = || StoreError::at("list", &directory);
        for entry in fs::read_dir(&directory).map_err(failed())? {
            let path = entry.map_err(failed())?.path();
            if let Some(freed) = self.sweep_upload(&path, before, dry_run)? {
                count += 1;
                bytes += freed;
            }
        }
        // Rows whose file is gone, as a power cut may leave them.
        for record in self.uploads()?.iter().filter(|record| !self.upload_path(&record.id).exists()) {
            if !dry_run {
                self.forget_upload(&record.id)?;
            }
        }
        Ok((count, bytes))
    }

    fn sweep_upload(&self, path: &Path, before: i64, dry_run: bool) -> Result<Option<u64>, StoreError> {
        let id =
            path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse::<UploadId>().ok());
        // Looking before locking: a resume at this moment must not find the upload busy.
        if self.is_upload_kept(id.as_ref(), before)? {
            return Ok(None);
        }
        let Ok(file) = File::open(path) else { return Ok(None) };
        if file.try_lock().is_err() || !names(path, &file) || self.is_upload_kept(id.as_ref(), before)? {
            return Ok(None);
        }
        let freed = file.metadata().map(|stat| stat.len()).unwrap_or(0);
        if !dry_run {
            if let Some(id) = id {
                self.forget_upload(&id)?;
            }
            match fs::remove_file(path) {
                // It was a collected blob, and its collector was quicker.
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                result => result.map_err(StoreError::at("remove", path))?,
            }
        }
        Ok(Some(freed))
    }

    fn is_upload_kept(&self, id: Option<&UploadId>, before: i64) -> Result<bool, StoreError> {
        let Some(id) = id else { return Ok(false) };
        self.metadata().read("look up an upload", |connection| {
            let sql = "SELECT 1 FROM upload WHERE id = ?1 AND updated_at >= ?2";
            let kept = first(connection, sql, params![id.to_string(), before], |_| Ok(()));
            Ok(kept.map_err(StoreError::sql("look up an upload"))?.is_some())
        })
    }

    fn suspended(&self, id: &UploadId) -> Result<Option<Suspended>, StoreError> {
        self.metadata().read("look up an upload", |connection| {
            let sql = "SELECT repository, algorithm, size, hash_state FROM upload WHERE id = ?1";
            first(connection, sql, [id.to_string()], |row| {
                let named: Option<String> = row.get(0)?;
                let algorithm: Algorithm = parsed(row, 1)?;
                Ok(Suspended {
                    repository: named.map(|_| parsed(row, 0)).transpose()?,
                    hasher: restore(algorithm, &row.get::<_, Vec<u8>>(3)?),
                    algorithm,
                    size: from_sql(row.get(2)?),
                })
            })
            .map_err(StoreError::sql("look up an upload"))
        })
    }
}

/// The state of a hash, with the boot that it is good for.
fn save(hasher: &Hasher) -> Vec<u8> {
    let mut state = boot::id().unwrap_or_default().into_bytes();
    state.push(b'\n');
    state.extend(hasher.save());
    state
}

/// The reverse of [`save`], in the same boot only.
fn restore(algorithm: Algorithm, saved: &[u8]) -> Option<Hasher> {
    let boot = boot::id().ok()?;
    Hasher::restore(algorithm, saved.strip_prefix(boot.as_bytes())?.strip_prefix(b"\n")?)
}

/// Reads a row of `id, repository, size, started_at, updated_at`.
fn upload_record(row: &Row<'_>) -> rusqlite::Result<UploadRecord> {
    let named: Option<String> = row.get(1)?;
    Ok(UploadRecord {
        id: parsed(row, 0)?,
        repository: named.map(|_| parsed(row, 1)).transpose()?,
        size: from_sql(row.get(2)?),
        started_at: row.get(3)?,
        updated_at: row.get(4)?,
    })
}

fn lock(file: &File, path: &Path, id: &UploadId) -> Result<(), StoreError> {
    file.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => StoreError::UploadBusy(*id),
        TryLockError::Error(error) => StoreError::io("lock", path, error),
    })
}

/// Whether `path` still names the file that is open.
fn names(path: &Path, file: &File) -> bool {
    match (fs::symlink_metadata(path), file.metadata()) {
        (Ok(named), Ok(open)) => named.ino() == open.ino() && named.dev() == open.dev(),
        _ => false,
    }
}

/// The hash of everything in the file, starting from a saved state where there is one that fits.
fn catch_up(
    file: &File,
    saved: Option<Hasher>,
    algorithm: Algorithm,
    size: u64,
) -> io::Result<(Hasher, u64)> {
    let (mut hasher, mut offset) = match saved {
        Some(hasher) if file.metadata()?.len() >= size => (hasher, size),
        _ => (Hasher::new(algorithm), 0),
    };
    let mut buffer = vec![0; 64 << 10];
    loop {
        match file.read_at(&mut buffer, offset) {
            Ok(0) => return Ok((hasher, offset)),
            Ok(count) => {
                hasher.update(&buffer[..count]);
                offset += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
