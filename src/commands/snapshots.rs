//! What commands that touch unpacked layers share.

use std::collections::HashSet;

use rimg_formats::digest::ChainId;
use rimg_formats::store::Store;
use rimg_formats::store::prune::InUse;
use rimg_runner::containers::Containers;
use rimg_runner::snapshots::{Owners, Snapshots};

use crate::failure::{Context, Failure};
use crate::terminal::note;

/// Removes snapshots of layers that no image in the store has, and what dead runs left; returns how many.
pub(crate) fn sweep(store: &Store, dry_run: bool) -> Result<u64, Failure> {
    let folder = store.snapshots_dir();
    if std::fs::read_dir(&folder).is_ok_and(|mut entries| entries.next().is_none()) {
        return Ok(0);
    }
    if !dry_run {
        // Files in snapshots may belong to subordinate ids, which only their user namespace may remove.
        super::rootless::enter()?;
        Containers::new(&store.containers_dir()).sweep()?;
    }
    let mut wanted = HashSet::new();
    for record in store.images()? {
        if let Ok(image) = store.image(&record.digest, None) {
            let mut chain = None;
            for (_, diff_id) in &image.layers {
                let next = ChainId::of(chain.as_ref(), diff_id);
                wanted.extend([diff_id.digest().hex(), next.digest().hex()]);
                chain = Some(next);
            }
        }
    }
    let snapshots = Snapshots::open(&folder, Owners::Keep)?;
    match snapshots.sweep(|hex| wanted.contains(hex), dry_run)? {
        Some(swept) => Ok(swept),
        None => {
            note("snapshots are in use by containers or builds, and stay");
            // Not those that somebody died while making.
            Ok(snapshots.sweep_unfinished(dry_run)?)
        }
    }
}

/// The images that containers run at the moment.
pub(crate) fn in_use(store: &Store) -> Result<InUse, Failure> {
    let folder = store.containers_dir();
    let images = Containers::new(&folder).images_in_use();
    let images = images.context(format!("failed to list {}", folder.display()))?;
    Ok(images.into_iter().map(|(image, name)| (image, format!("container `{name}`"))).collect())
}
