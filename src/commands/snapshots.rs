//! What commands that touch unpacked layers share.

use std::collections::HashSet;

use rimg_formats::store::Store;
use rimg_runner::containers::Containers;
use rimg_runner::snapshots::Snapshots;

use crate::failure::Failure;

/// Removes snapshots of layers that no image in the store has, and what dead runs left; returns how many.
pub(crate) fn sweep(store: &Store, dry_run: bool) -> Result<u64, Failure> {
    let folder = store.snapshots_dir();
    if dry_run || std::fs::read_dir(&folder).is_ok_and(|mut entries| entries.next().is_none()) {
        return Ok(0);
    }
    // Files in snapshots may belong to subordinate ids, which only their user namespace may remove.
    super::rootless::enter()?;
    Containers::new(&store.containers_dir()).sweep()?;
    let snapshots = Snapshots::new(&folder);
    let mut wanted = HashSet::new();
    for record in store.images()? {
        if let Ok(image) = store.image(&record.digest, None) {
            wanted.extend(image.layers.iter().map(|(_, diff_id)| *diff_id));
        }
    }
    Ok(snapshots.sweep(|layer| wanted.contains(layer))?)
}
