//! Hashing a blob whose file was touched: once for all who ask for it, and apart from the jobs that answer others.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use rimg_formats::digest::Digest;
use rimg_formats::reference::ImageName;
use rimg_formats::store::{Blob, BlobState, Store, StoreError};

use super::State;
use super::error::ApiError;

/// A lock for each blob that is being verified: single-flight.
#[derive(Debug, Default)]
pub(super) struct Verifications {
    locks: Mutex<HashMap<Digest, Weak<tokio::sync::Mutex<()>>>>,
    /// How many were begun.
    #[cfg(test)]
    begun: std::sync::atomic::AtomicUsize,
}

impl Verifications {
    fn lock(&self, digest: &Digest) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lock) = locks.get(digest).and_then(Weak::upgrade) {
            return lock;
        }
        locks.retain(|_, lock| lock.strong_count() > 0);
        let lock = Arc::default();
        locks.insert(*digest, Arc::downgrade(&lock));
        lock
    }
}

/// A blob of the repository, verified as by [`Store::verified_blob`].
pub(super) async fn open(
    state: &State,
    repository: ImageName,
    digest: Digest,
) -> Result<Option<Blob>, ApiError> {
    let name = repository.clone();
    match state.run(move |store| look(store, &name, &digest)).await? {
        None => return Ok(None),
        Some(BlobState::Verified(blob)) => return Ok(Some(blob)),
        Some(BlobState::Touched) => {}
    }
    let turn = state.verifications.lock(&digest).lock_owned().await;
    // Whoever held the lock before has verified it, as a rule.
    match state.run(move |store| look(store, &repository, &digest)).await? {
        None => return Ok(None),
        Some(BlobState::Verified(blob)) => return Ok(Some(blob)),
        Some(BlobState::Touched) => {}
    }
    #[cfg(test)]
    state.verifications.begun.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let verify = move |store: &Store| {
        // The job goes on when its client goes away, so the job holds the lock.
        let _turn = turn;
        store.verified_blob(&digest)
    };
    state.run_long(verify).await
}

fn look(store: &Store, repository: &ImageName, digest: &Digest) -> Result<Option<BlobState>, StoreError> {
    match store.repository(repository).has_blob(digest)? {
        Some(_) => store.blob_state(digest),
        None => Ok(None),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::atomic::Ordering;
    use std::time::{Duration, SystemTime};

    use super::super::limits::{BLOCKING_JOBS_MAX, LONG_JOBS_MAX};
    use super::super::{Server, ServerOptions};
    use super::*;

    #[test]
    fn a_touched_blob_is_hashed_once_for_all_who_wait_and_nobody_else_waits() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let name: ImageName = "a".parse().unwrap();
        let put = |content: &[u8]| {
            let digest = store.put_bytes(content).unwrap().digest;
            assert!(store.repository(&name).link_blob(&digest).unwrap());
            digest
        };
        let (touched, other) = (put(b"touched"), put(b"other"));
        let path = store.blob(&touched).unwrap().unwrap().path().to_owned();
        let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1);
        std::fs::File::open(path).unwrap().set_modified(long_ago).unwrap();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let listen = ([127, 0, 0, 1], 0).into();
            let server = Server::bind(store.clone(), ServerOptions { listen, ..ServerOptions::default() });
            let state = server.await.unwrap().state;
            // Hashing takes its time.
            let busy = state.long_jobs.acquire_many(LONG_JOBS_MAX as u32).await.unwrap();
            let waiting: Vec<_> = (0..BLOCKING_JOBS_MAX + 10)
                .map(|_| {
                    let (state, name) = (state.clone(), name.clone());
                    tokio::spawn(async move { open(&state, name, touched).await })
                })
                .collect();
            while state.verifications.begun.load(Ordering::Relaxed) == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            assert!(open(&state, name.clone(), other).await.unwrap().is_some(), "others are answered");
            drop(busy);
            for waiting in waiting {
                assert_eq!(waiting.await.unwrap().unwrap().unwrap().digest(), &touched);
            }
            assert_eq!(state.verifications.begun.load(Ordering::Relaxed), 1);
        });
    }
}
