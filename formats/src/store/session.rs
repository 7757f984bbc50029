//! [`Session`]: a handle of the store as the owner of leases.
//!
//! ```text
//! sessions/<id>    empty; locked (flock) as long as the handle lives
//! ```
//!
//! The lock is the truth about life: it goes with its process however that ends, across pid namespaces, and no power cut
//! leaves one. So a lease whose owner has no locked file here is nobody's, and a prune collects what only such leases
//! keep. The file is made before the first lease, and a handle that takes none has none.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use rusqlite::Connection;

use super::error::StoreError;
use super::metadata::rows;
use super::{Store, random_id};

/// What the holders of leases that have an owner begin with.
const PREFIX: &str = "session:";

/// The owner of a handle's leases.
#[derive(Debug, Default)]
pub(super) struct Session(Mutex<Option<Owner>>);

#[derive(Debug)]
struct Owner {
    id: String,
    path: PathBuf,
    _lock: File,
}

impl Drop for Owner {
    fn drop(&mut self) {
        // One that stays is unlocked in a moment, and the next prune removes it.
        let _ = fs::remove_file(&self.path);
    }
}

impl Store {
    /// The holder of this handle's leases, which counts from now on.
    pub(super) fn holder(&self) -> Result<String, StoreError> {
        let mut owner = self.inner.session.0.lock().unwrap_or_else(PoisonError::into_inner);
        let id = match owner.as_ref() {
            Some(owner) => owner.id.clone(),
            None => owner.insert(self.begin_session()?).id.clone(),
        };
        Ok(format!("{PREFIX}{id}"))
    }

    fn begin_session(&self) -> Result<Owner, StoreError> {
        loop {
            let id = random_id();
            let path = self.sessions_dir().join(&id);
            let file = File::options().write(true).create_new(true).mode(0o600).open(&path);
            let lock = file.map_err(StoreError::at("create", &path))?;
            match lock.try_lock() {
                Ok(()) => {}
                // A prune came between creating and locking, and takes it for a dead one's.
                Err(TryLockError::WouldBlock) => continue,
                Err(TryLockError::Error(error)) => return Err(StoreError::io("lock", &path, error)),
            }
            if lock.metadata().is_ok_and(|stat| stat.nlink() > 0) {
                return Ok(Owner { id, path, _lock: lock });
            }
        }
    }

    /// Holders of leases whose owner is no more.
    pub(super) fn dead_holders(&self, connection: &Connection) -> Result<Vec<String>, StoreError> {
        let sql = "SELECT DISTINCT holder FROM lease WHERE expires_at IS NOT NULL";
        let holders = rows(connection, sql, [], |row| row.get::<_, String>(0));
        let mut dead = Vec::new();
        for holder in holders.map_err(StoreError::sql("list leases"))? {
            let Some(owner) = holder.strip_prefix(PREFIX) else { continue };
            let id = owner.split('/').next().unwrap_or(owner);
            if !self.is_alive(id)? {
                dead.push(holder);
            }
        }
        Ok(dead)
    }

    /// Whether a handle of this id lives, in whichever process.
    fn is_alive(&self, id: &str) -> Result<bool, StoreError> {
        let path = self.sessions_dir().join(id);
        match File::open(&path) {
            Ok(file) => Ok(matches!(file.try_lock(), Err(TryLockError::WouldBlock))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(StoreError::io("open", &path, error)),
        }
    }

    /// Removes the files that killed owners left.
    pub(super) fn remove_dead_sessions(&self) -> Result<(), StoreError> {
        let directory = self.sessions_dir();
        for entry in fs::read_dir(&directory).map_err(StoreError::at("list", &directory))? {
            let path = entry.map_err(StoreError::at("list", &directory))?.path();
            let Ok(file) = File::open(&path) else { continue };
            // Removed while it is locked: whoever has just made it sees that, and makes another.
            if file.try_lock().is_ok() {
                match fs::remove_file(&path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        return Err(StoreError::io("remove", &path, error));
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }
}
