//! [`ManifestCache`]: the bytes of manifests read lately, so that a busy tag costs no file.
//!
//! Content under a digest never changes, so entries need no invalidation; whether a repository *has* the
//! manifest is asked of the metadata every time. Two generations: when the young one is full it becomes the old
//! one, and what is asked for again moves back.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::digest::Digest;

/// Bytes per generation: thousands of ordinary manifests, and little enough for an idle server.
const GENERATION_BYTES_MAX: usize = 4 << 20;

#[derive(Debug, Default)]
pub(super) struct ManifestCache(Mutex<Generations>);

#[derive(Debug, Default)]
struct Generations {
    young: HashMap<Digest, Arc<[u8]>>,
    young_bytes: usize,
    old: HashMap<Digest, Arc<[u8]>>,
}

impl ManifestCache {
    pub(super) fn get(&self, digest: &Digest) -> Option<Arc<[u8]>> {
        let mut generations = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(raw) = generations.young.get(digest) {
            return Some(raw.clone());
        }
        let raw = generations.old.remove(digest)?;
        generations.insert(*digest, raw.clone());
        Some(raw)
    }

    pub(super) fn put(&self, digest: Digest, raw: Arc<[u8]>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(digest, raw);
    }

    pub(super) fn forget(&self, digest: &Digest) {
        let mut generations = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        generations.old.remove(digest);
        if let Some(raw) = generations.young.remove(digest) {
            generations.young_bytes -= raw.len();
        }
    }
}

impl Generations {
    fn insert(&mut self, digest: Digest, raw: Arc<[u8]>) {
        if raw.len() > GENERATION_BYTES_MAX / 4 {
            return;
        }
        if self.young_bytes + raw.len() > GENERATION_BYTES_MAX {
            self.old = std::mem::take(&mut self.young);
            self.young_bytes = 0;
        }
        let length = raw.len();
        if self.young.insert(digest, raw).is_none() {
            self.young_bytes += length;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn stays_within_two_generations() {
        let cache = ManifestCache::default();
        for number in 0..200u32 {
            let raw: Arc<[u8]> = vec![0u8; 100_000].into();
            cache.put(Digest::sha256(&number.to_le_bytes()), raw);
        }
        let generations = cache.0.lock().unwrap();
        assert!((generations.young.len() + generations.old.len()) * 100_000 <= 2 * GENERATION_BYTES_MAX);
        assert!(generations.young.contains_key(&Digest::sha256(&199u32.to_le_bytes())));
    }
}
