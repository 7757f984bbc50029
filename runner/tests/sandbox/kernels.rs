//! What differs from kernel to kernel, walked on the one that the tests run on.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use rimg_runner::kernel::{Version, overlay_attributes};
use rimg_runner::rootfs::{Mechanism, mount_only_by};
use rimg_runner::spec::{RootFs, Upper};
use rustix::fs::{FileType, Mode, XattrFlags};

use crate::harness::{Root, Test, output, skipped};

pub(crate) const TESTS: &[Test] =
    &[("every_mechanism_mounts_the_same_root", every_mechanism_mounts_the_same_root)];

/// As many layers as docker's images have at most.
const LAYERS: usize = 127;

/// The mechanisms with the kernels that have them.
const MECHANISMS: [(Mechanism, Version); 3] = [
    (Mechanism::Descriptors, Version(6, 13)),
    (Mechanism::Names, Version(6, 8)),
    (Mechanism::MountCall, Version(5, 10)),
];

fn every_mechanism_mounts_the_same_root() {
    let root = Root::new();
    let lowers = layers(&root);
    let before = overlays();
    let mut seen = Vec::new();
    for (mechanism, since) in MECHANISMS {
        if Version::running() < since {
            skipped(&format!("{mechanism:?}"), &format!("the kernel is older than {since}"));
            continue;
        }
        // Without an upper directory, and with one that has changes of a run before.
        let upper = upper_of(&root, mechanism);
        for (index, upper) in [Upper::None, upper].into_iter().enumerate() {
            let rootfs = RootFs { lowers: lowers.clone(), upper };
            let mount =
                mount_only_by(&rootfs, mechanism).unwrap_or_else(|error| panic!("{mechanism:?}: {error}"));
            let path = PathBuf::from(format!("/proc/self/fd/{}/.", mount.as_raw_fd()));
            let tree = tree(&path);
            assert_eq!(tree["shared"], format!("100644 {}", LAYERS - 1), "{mechanism:?}");
            assert!(
                tree.contains_key("hidden/new") && !tree.contains_key("hidden/old"),
                "{mechanism:?}: opaque"
            );
            assert!(!tree.contains_key("gone"), "{mechanism:?}: a whiteout");
            let written = fs::write(path.join("written"), "x");
            assert_eq!(written.is_ok(), index == 1, "{mechanism:?}: {written:?}");
            if index == 1 {
                // Needs a mark of overlayfs in the upper directory, which the file system has to take.
                fs::remove_dir_all(path.join("hidden")).unwrap();
                fs::create_dir(path.join("hidden")).unwrap();
                assert_eq!(fs::read_dir(path.join("hidden")).unwrap().count(), 0);
            }
            seen.push((mechanism, index, tree));
        }
    }
    for (mechanism, index, tree) in &seen {
        let first = seen.iter().find(|(_, other, _)| other == index).unwrap();
        assert_eq!(tree, &first.2, "{mechanism:?} and {:?}", first.0);
    }
    assert_eq!(overlays(), before, "nothing is left mounted");
    // And whatever this kernel's mechanism is, a sandbox runs on it.
    let mut spec = root.spec(&["cat", "/shared"]);
    spec.rootfs.lowers = lowers;
    assert_eq!(output(spec), (LAYERS - 1).to_string());
}

/// The overlays in our own mount namespace.
fn overlays() -> Vec<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    mounts.lines().filter(|line| line.contains(" - overlay ")).map(str::to_owned).collect()
}

/// Layers that each hide something of those below.
fn layers(root: &Root) -> Vec<PathBuf> {
    let mut lowers = vec![root.lower()];
    for number in 1..LAYERS {
        let layer = root.directory.path().join(format!("layer with a, comma: {number}"));
        fs::create_dir(&layer).unwrap();
        fs::write(layer.join("shared"), number.to_string()).unwrap();
        fs::write(layer.join(format!("own{number}")), "own").unwrap();
        symlink("shared", layer.join(format!("link{number}"))).unwrap();
        lowers.push(layer);
    }
    let [lower, upper] = [&lowers[1], &lowers[LAYERS - 2]];
    fs::create_dir(lower.join("hidden")).unwrap();
    fs::write(lower.join("hidden/old"), "").unwrap();
    fs::write(lower.join("gone"), "").unwrap();
    fs::create_dir(upper.join("hidden")).unwrap();
    fs::write(upper.join("hidden/new"), "").unwrap();
    let mark = str::from_utf8(overlay_attributes().opaque()).unwrap();
    rustix::fs::setxattr(upper.join("hidden"), mark, b"y", XattrFlags::empty()).unwrap();
    let whiteout = upper.join("gone");
    rustix::fs::mknodat(rustix::fs::CWD, &whiteout, FileType::CharacterDevice, Mode::empty(), 0).unwrap();
    lowers
}

fn upper_of(root: &Root, mechanism: Mechanism) -> Upper {
    let base = root.directory.path().join(format!("{mechanism:?}"));
    let (upper, work) = (base.join("upper"), base.join("work"));
    for directory in [&upper, &work] {
        fs::create_dir_all(directory).unwrap();
    }
    fs::write(upper.join("changed"), "changed").unwrap();
    Upper::Directory { upper, work, volatile: true }
}

/// Every path below `root` with its mode and content.
fn tree(root: &Path) -> BTreeMap<String, String> {
    fn walk(root: &Path, directory: &Path, found: &mut BTreeMap<String, String>) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let metadata = fs::symlink_metadata(&path).unwrap();
            let content = match metadata.file_type() {
                kind if kind.is_symlink() => fs::read_link(&path).unwrap().display().to_string(),
                kind if kind.is_file() && metadata.len() < 100 => fs::read_to_string(&path).unwrap(),
                _ => String::new(),
            };
            let name = path.strip_prefix(root).unwrap().display().to_string();
            found.insert(name, format!("{:o} {content}", metadata.mode()));
            if metadata.is_dir() {
                walk(root, &path, found);
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(root, root, &mut found);
    found
}
