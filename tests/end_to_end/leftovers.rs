//! What a killed command must not leave: mounts, processes, damage, and anything that a prune does not clean up.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::world::World;

/// The kernel takes namespaces and their processes apart at its leisure; a loaded machine takes longer.
const KERNEL_SECONDS: u64 = 30;

/// Waits (bounded) until `left` finds nothing.
#[track_caller]
fn wait_until_none(what: &str, left: impl Fn() -> Option<String>) {
    let deadline = Instant::now() + Duration::from_secs(KERNEL_SECONDS);
    while let Some(found) = left() {
        assert!(Instant::now() < deadline, "{what}: {found}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn processes() -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    entries.map(|entry| entry.path()).filter(|path| {
        path.file_name().is_some_and(|name| name.as_encoded_bytes().iter().all(u8::is_ascii_digit))
    })
}

/// Whether some process has `marker` among its arguments.
pub(crate) fn process_with(marker: &str) -> Option<String> {
    processes().find_map(|process| {
        let arguments = fs::read(process.join("cmdline")).unwrap_or_default();
        let text = String::from_utf8_lossy(&arguments).replace('\0', " ");
        text.contains(marker).then(|| format!("{}: {text}", process.display()))
    })
}

/// No process has `marker` among its arguments any more.
#[track_caller]
pub(crate) fn assert_no_process(marker: &str) {
    wait_until_none("a process is left", || process_with(marker));
}

/// No mount in any mount namespace of the machine has to do with the world.
#[track_caller]
pub(crate) fn assert_no_mounts(world: &World) {
    let folder = world.path("");
    let folder = folder.to_str().unwrap().trim_end_matches('/');
    wait_until_none("something is left mounted", || {
        let mut seen = BTreeSet::new();
        processes().find_map(|process| {
            // One look for each namespace.
            let namespace = fs::read_link(process.join("ns/mnt")).ok()?;
            if !seen.insert(namespace) {
                return None;
            }
            let mounts = fs::read_to_string(process.join("mountinfo")).unwrap_or_default();
            mounts.lines().find(|line| line.contains(folder)).map(str::to_owned)
        })
    });
}

/// Names in a folder of a store, but for the file that is only there to be locked and the empty layer below every root.
pub(crate) fn names(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter(|name| ![".lock", ".mount-points"].contains(&name.as_str())).collect()
}

/// After a prune, nothing unfinished is in the store `root`, nor among temporary files. `prune` is the command.
#[track_caller]
pub(crate) fn assert_pruned(world: &World, root: &Path, mut prune: std::process::Command) {
    prune.env("RIMG_ROOT", root);
    world.run(prune).ok();
    for folder in ["uploads", "containers"] {
        assert_eq!(names(&root.join(folder)), Vec::<String>::new(), "in {folder}/");
    }
    let mut unfinished = names(&root.join("snapshots"));
    unfinished.retain(|name| name.starts_with('.'));
    assert_eq!(unfinished, Vec::<String>::new(), "in snapshots/");
    assert_eq!(names(&world.path("tmp")), Vec::<String>::new(), "in TMPDIR");
    world.verify_store(root);
}
