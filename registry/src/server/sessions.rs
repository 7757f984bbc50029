//! [`Sessions`]: what this process knows of uploads under way. The truth about a session is in the store; here
//! is only how far its present writer has come, and how many write at once.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rimg_formats::reference::ImageName;
use rimg_formats::store::{Ingest, UploadId};
use tokio::sync::Notify;

use super::State;
use super::error::ApiError;
use super::event::Event;
use super::places::{Full, Place, Places};

/// How often abandoned uploads are looked for; they live for a day, so an hour more does not matter.
const SWEEP_INTERVAL: Duration = Duration::from_secs(60 * 60);

/// The uploads that receive bytes at this moment.
#[derive(Debug)]
pub(super) struct Sessions {
    places: Arc<Places>,
    active: Mutex<HashMap<UploadId, Active>>,
}

/// An upload and how far its writer has come.
#[derive(Debug)]
struct Active {
    repository: Option<ImageName>,
    length: Arc<AtomicU64>,
    /// Rung when the writer is to stop.
    stop: Arc<Notify>,
}

impl Sessions {
    pub(super) fn new(places: Arc<Places>) -> Sessions {
        Sessions { places, active: Mutex::default() }
    }

    /// A place among those that receive; 429 when all are taken, or all that `peer` may have.
    pub(super) fn admit(&self, peer: IpAddr) -> Result<Place, ApiError> {
        self.places.take(peer).map_err(|full| {
            ApiError::too_many(match full {
                Full::All => "too many uploads at once; try again in a moment",
                Full::Share { .. } => "too many uploads at once from your address; try again in a moment",
            })
        })
    }

    /// Notes that an upload has a writer.
    pub(super) fn enter(self: &Arc<Self>, ingest: &Ingest) -> Writing {
        let (id, length) = (ingest.id(), Arc::new(AtomicU64::new(ingest.len())));
        let stop = Arc::new(Notify::new());
        let repository = ingest.repository().cloned();
        self.lock().insert(id, Active { repository, length: length.clone(), stop: stop.clone() });
        Writing { sessions: self.clone(), id, length, stop }
    }

    /// Tells the present writer of `id`, if it has one here, to put aside what it has. Says whether `repository` is
    /// where that upload belongs, as far as is known here.
    pub(super) fn stop(&self, id: &UploadId, repository: &ImageName) -> bool {
        let active = self.lock();
        let Some(active) = active.get(id) else { return true };
        let belongs = active.repository.as_ref() == Some(repository);
        if belongs {
            active.stop.notify_one();
        }
        belongs
    }

    /// How many bytes the present writer of `id` has stored, if it has one here.
    pub(super) fn progress(&self, id: &UploadId, repository: &ImageName) -> Option<u64> {
        let active = self.lock();
        let active = active.get(id).filter(|active| active.repository.as_ref() == Some(repository))?;
        Some(active.length.load(Ordering::Relaxed))
    }

    /// Resolves when nobody receives any more and all that was received is put aside.
    pub(super) async fn finished(&self) {
        self.places.all_given_back().await;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<UploadId, Active>> {
        self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Somebody writes to an upload, for as long as this lives.
pub(super) struct Writing {
    sessions: Arc<Sessions>,
    id: UploadId,
    length: Arc<AtomicU64>,
    stop: Arc<Notify>,
}

impl Writing {
    /// Resolves when another request takes the upload over. Safe to drop and to call again.
    pub(super) async fn taken_over(&self) {
        self.stop.notified().await;
    }

    pub(super) fn advance(&self, length: u64) {
        self.length.store(length, Ordering::Relaxed);
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        self.sessions.lock().remove(&self.id);
    }
}

/// Removes abandoned uploads at once and every hour.
pub(super) async fn sweep_regularly(state: Arc<State>) {
    let mut interval = tokio::time::interval(SWEEP_INTERVAL);
    loop {
        interval.tick().await;
        let idle = state.options.limits.session_idle;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let before = i64::try_from(now.saturating_sub(idle).as_secs()).unwrap_or(i64::MAX);
        match state.run(move |store| store.sweep_uploads(before, false)).await {
            Ok((0, _)) => {}
            Ok((count, bytes)) => state.notify(|| Event::UploadsExpired { count, bytes }),
            Err(error) => state.notify(|| Event::SweepFailed { cause: error.cause.unwrap_or_default() }),
        }
    }
}
