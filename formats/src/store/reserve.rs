//! The reserve: room on the disk that is given up when the last of the rest is gone.
//!
//! Freeing space takes some: SQLite's log and its shared memory are files. Without this one, a store on a disk that is
//! full to the last byte could not even be opened to be pruned.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate};

use super::Store;
use super::error::StoreError;

/// Enough for SQLite's files while a prune's first batches go.
const RESERVE_BYTES: u64 = 1 << 20;

impl Store {
    /// As [`Store::open`], to remove something: on a full disk the reserve is given up. [`Store::prune`] renews it.
    pub fn open_to_remove(root: &Path) -> Result<Store, StoreError> {
        match Store::open(root) {
            Err(StoreError::Full { .. }) if give_up(root) => Store::open(root),
            opened => opened,
        }
    }

    /// Runs `work`, again without the reserve when the disk is full.
    pub(super) fn with_reserve<T>(
        &self,
        mut work: impl FnMut() -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        match work() {
            Err(StoreError::Full { .. }) if give_up(self.root()) => work(),
            done => done,
        }
    }

    /// Lays the reserve in, if it is not there. That there is no room for it is no reason to fail.
    pub(super) fn renew_reserve(&self) {
        let path = path(self.root());
        if !path.exists() && lay_in(&path).is_err() {
            let _ = fs::remove_file(&path);
        }
    }
}

fn path(root: &Path) -> PathBuf {
    root.join("reserve")
}

fn lay_in(path: &Path) -> io::Result<()> {
    let file = File::create_new(path)?;
    Ok(fallocate(&file, FallocateFlags::empty(), 0, RESERVE_BYTES)?)
}

/// Whether there was one.
fn give_up(root: &Path) -> bool {
    fs::remove_file(path(root)).is_ok()
}
