//! What happens when the disk is full: nothing is acknowledged, nothing is damaged, and it goes on once there is
//! room.

#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::path::Path;

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::fsck::FsckOptions;
use super::*;

/// A small file system of its own, gone at the end.
struct SmallDisk<'a>(&'a Path);

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        let _ = unmount(self.0, UnmountFlags::DETACH);
    }
}

#[test]
fn a_full_disk_acknowledges_nothing_and_damages_nothing() {
    let directory = tempfile::tempdir().unwrap();
    if let Err(error) = mount("tmpfs", directory.path(), "tmpfs", MountFlags::empty(), c"size=4m") {
        eprintln!("SKIPPED: needs the right to mount a tmpfs: {error}");
        return;
    }
    let _disk = SmallDisk(directory.path());
    let store = Store::open(directory.path()).unwrap();
    let mut stored = Vec::new();
    let error = loop {
        assert!(stored.len() < 100, "the disk is never full");
        let content = vec![u8::try_from(stored.len()).unwrap(); 300_000];
        let mut ingest = store.ingest().unwrap();
        let committed = ingest
            .write_all(&content)
            .map_err(StoreError::at("write", directory.path()))
            .and_then(|()| ingest.commit(None));
        match committed {
            Ok(committed) => stored.push(committed.digest),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, StoreError::Full { .. }), "{error}");
    assert!(error.to_string().contains("rimg prune"), "{error}");
    assert!(stored.len() > 2);
    let report = store.fsck(&FsckOptions::default()).unwrap();
    assert!(report.is_clean() && report.blobs == stored.len() as u64, "{report:?}");
    for digest in &stored {
        store.read_blob(digest, 1 << 20).unwrap();
    }
    fs::remove_file(store.blob_path(&stored[0])).unwrap();
    store.put_bytes(b"there is room again").unwrap();
}

#[test]
fn a_prune_goes_on_a_disk_that_is_full_to_the_last_byte() {
    let directory = tempfile::tempdir().unwrap();
    if let Err(error) = mount("tmpfs", directory.path(), "tmpfs", MountFlags::empty(), c"size=8m") {
        eprintln!("SKIPPED: needs the right to mount a tmpfs: {error}");
        return;
    }
    let _disk = SmallDisk(directory.path());
    let root = directory.path().join("store");
    Store::open(&root).unwrap().put_bytes(&vec![7; 2_000_000]).unwrap();
    let filling = File::create(directory.path().join("filling")).unwrap();
    while (&filling).write_all(&[7; 4096]).is_ok() {}
    assert!(matches!(Store::open(&root), Err(StoreError::Full { .. })));
    let store = Store::open_to_remove(&root).unwrap();
    let report = store.prune(&prune::PruneOptions::default()).unwrap();
    assert_eq!(report.blobs, 1);
    assert!(root.join("reserve").exists(), "the next one has no reserve");
}
