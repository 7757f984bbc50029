//! [`DirectorySync`]: one fsync of a directory for everybody who waits for one.
//!
//! A caller's rename is covered by any fsync that *starts* after the call. Whoever finds none running starts
//! one; the others wait, and all that arrived in the meantime share the next. Under load one fsync serves
//! every writer of its duration.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, PoisonError};

use super::error::StoreError;

#[derive(Debug)]
pub(super) struct DirectorySync {
    path: PathBuf,
    directory: File,
    state: Mutex<State>,
    finished: Condvar,
}

#[derive(Debug, Default)]
struct State {
    started: u64,
    finished: u64,
    running: bool,
    /// The latest fsync that failed, and how. Whoever it might have covered is told.
    failure: Option<(u64, i32)>,
}

impl DirectorySync {
    pub(super) fn open(path: &Path) -> Result<DirectorySync, StoreError> {
        let directory = File::open(path).map_err(StoreError::at("open", path))?;
        Ok(DirectorySync {
            path: path.to_owned(),
            directory,
            state: Mutex::default(),
            finished: Condvar::new(),
        })
    }

    /// Returns when every change of the directory made before the call survives a power cut.
    pub(super) fn sync(&self) -> Result<(), StoreError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let ticket = state.started + 1;
        loop {
            if state.finished >= ticket {
                return match state.failure {
                    Some((failed, code)) if failed >= ticket => Err(self.failed(code)),
                    _ => Ok(()),
                };
            }
            if state.running {
                state = self.finished.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            state.running = true;
            state.started += 1;
            let generation = state.started;
            drop(state);
            let result = self.directory.sync_all();
            state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.running = false;
            state.finished = generation;
            if let Err(error) = result {
                state.failure = Some((generation, error.raw_os_error().unwrap_or(0)));
            }
            self.finished.notify_all();
        }
    }

    fn failed(&self, code: i32) -> StoreError {
        StoreError::io("sync", &self.path, io::Error::from_raw_os_error(code))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn many_waiters_share_few_syncs() {
        let directory = tempfile::tempdir().unwrap();
        let sync = DirectorySync::open(directory.path()).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..16 {
                scope.spawn(|| (0..20).for_each(|_| sync.sync().unwrap()));
            }
        });
        let state = sync.state.lock().unwrap();
        assert_eq!(state.started, state.finished);
        assert!(state.finished <= 320);
    }
}
