//! Snapshots from layers and back: what is made, what is refused, what an interrupted maker leaves.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rimg_formats::digest::Digest;
use rimg_formats::layer::{Entry, EntryKind, LayerPath};

use super::*;

fn owners() -> Owners {
    if rustix::process::geteuid().is_root() { Owners::Keep } else { Owners::Squash }
}

/// One ustar member, with no check on its name: as a stranger would write it.
fn member(name: &str, kind: u8, content: &[u8], link: &str) -> Vec<u8> {
    let mut header = [0u8; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    let mode = if kind == b'5' { "0000755\0" } else { "0004751\0" };
    header[100..108].copy_from_slice(mode.as_bytes());
    header[108..116].copy_from_slice(b"0000000\0");
    header[116..124].copy_from_slice(b"0000000\0");
    header[124..136].copy_from_slice(format!("{:011o}\0", content.len()).as_bytes());
    header[136..148].copy_from_slice(b"02273362000\0");
    header[148..156].copy_from_slice(b"        ");
    header[156] = kind;
    header[157..157 + link.len()].copy_from_slice(link.as_bytes());
    header[257..265].copy_from_slice(b"ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut bytes = header.to_vec();
    bytes.extend(content);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn tar(members: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = members.concat();
    bytes.extend([0; 1024]);
    bytes
}

struct Place {
    folder: tempfile::TempDir,
    snapshots: Snapshots,
}

fn place() -> Place {
    let folder = tempfile::tempdir().unwrap();
    // As wide as an earlier version left it.
    fs::create_dir(folder.path().join("snapshots")).unwrap();
    fs::set_permissions(folder.path().join("snapshots"), fs::Permissions::from_mode(0o755)).unwrap();
    let snapshots = Snapshots::open(&folder.path().join("snapshots"), owners()).unwrap();
    Place { folder, snapshots }
}

impl Place {
    fn prepare(&self, layer: Vec<u8>) -> Result<PathBuf, SnapshotError> {
        let id = DiffId::new(Digest::sha256(&layer));
        let prepared = self
            .snapshots
            .prepare(&id, SnapshotTimes::Exported, Limits::default(), || Ok(io::Cursor::new(layer)));
        prepared.map(|(path, _)| path)
    }

    /// The trees, finished or not.
    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.folder.path().join("snapshots")).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name != LOCK_NAME && !name.ends_with(BOOT_SUFFIX)).collect()
    }
}

#[test]
fn a_layer_becomes_a_lower_directory() {
    let place = place();
    let layer = tar(&[
        member("dir/", b'5', b"", ""),
        member("dir/file", b'0', b"content", ""),
        member("dir/hard", b'1', b"", "dir/file"),
        member("dir/soft", b'2', b"", "/etc/passwd"),
        member("dir/fifo", b'6', b"", ""),
        member(".wh.gone", b'0', b"", ""),
        member("hidden/", b'5', b"", ""),
        member("hidden/.wh..wh..opq", b'0', b"", ""),
        member("implied/by/a/file", b'0', b"x", ""),
    ]);
    let made = DiffId::new(Digest::sha256(&layer));
    let tree = place.prepare(layer).unwrap();
    let stat = |path: &str| fs::symlink_metadata(tree.join(path)).unwrap();
    assert_eq!(fs::read(tree.join("dir/file")).unwrap(), b"content");
    assert_eq!(stat("dir/file").mode() & 0o7777, 0o4751);
    assert_eq!(stat("dir/file").mtime(), 317_580_288);
    assert_eq!(stat("dir/hard").ino(), stat("dir/file").ino());
    assert_eq!(fs::read_link(tree.join("dir/soft")).unwrap(), Path::new("/etc/passwd"));
    assert!(stat("dir/fifo").file_type().is_fifo());
    assert!(stat("gone").file_type().is_char_device() && stat("gone").rdev() == 0);
    assert_eq!(stat("implied/by/a").mode() & 0o777, 0o755);
    let hidden = RootDir::open(&tree).unwrap().directory(&LayerPath::root()).unwrap();
    assert_eq!(hidden.xattr(b"hidden", apply::opaque()).unwrap().as_deref(), Some(&b"y"[..]));
    let closed = fs::metadata(place.folder.path().join("snapshots")).unwrap().permissions().mode();
    assert_eq!(closed & 0o077, 0, "other users could run set-user-ID programs of images");
    assert_eq!(place.snapshots.get(&made, SnapshotTimes::Exported), Some(tree));
    assert_eq!(place.names().len(), 1);
}

#[test]
fn nothing_is_written_outside_and_nothing_is_left_of_a_refused_layer() {
    let place = place();
    let outside = place.folder.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("victim"), "safe").unwrap();
    let outside_text = outside.to_str().unwrap();
    let through = |name: &str| format!("link/{name}");
    let hostile = [
        ("dot dot", tar(&[member("../outside/victim", b'0', b"bad", "")])),
        (
            "through an absolute link",
            tar(&[member("link", b'2', b"", outside_text), member(&through("victim"), b'0', b"bad", "")]),
        ),
        (
            "through a relative link",
            tar(&[member("link", b'2', b"", "../../outside"), member(&through("victim"), b'0', b"bad", "")]),
        ),
        ("hard link out", tar(&[member("name", b'1', b"", "../outside/victim")])),
        (
            "hard link through a link",
            tar(&[member("link", b'2', b"", outside_text), member("name", b'1', b"", &through("victim"))]),
        ),
        (
            "whiteout through a link",
            tar(&[member("link", b'2', b"", outside_text), member(&through(".wh.victim"), b'0', b"", "")]),
        ),
        ("absolute hard link", tar(&[member("name", b'1', b"", &format!("{outside_text}/victim"))])),
        ("link to nothing", tar(&[member("name", b'1', b"", "missing")])),
        ("truncated", member("file", b'0', &[1; 5000], "")[..2000].to_vec()),
    ];
    for (what, layer) in hostile {
        let result = place.prepare(layer);
        assert!(result.is_err(), "{what} was accepted as {result:?}");
        assert_eq!(place.names(), Vec::<String>::new(), "{what} left something");
        assert_eq!(fs::read_to_string(outside.join("victim")).unwrap(), "safe", "{what}");
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1, "{what}");
    }
}

/// An image whose configuration claims another image's layer would otherwise run in the other's place.
#[test]
fn only_the_layer_that_was_named_takes_its_place() {
    let place = place();
    let (good, bad) = (tar(&[member("file", b'0', b"good", "")]), tar(&[member("file", b'0', b"evil", "")]));
    let result = place.snapshots.prepare(
        &DiffId::new(Digest::sha256(&good)),
        SnapshotTimes::Exported,
        Limits::default(),
        || Ok(io::Cursor::new(bad)),
    );
    assert!(result.unwrap_err().to_string().contains("diff_id"));
    assert_eq!(place.names(), Vec::<String>::new());
    let tree = place.prepare(good).unwrap();
    assert_eq!(fs::read(tree.join("file")).unwrap(), b"good");
}

#[test]
fn absolute_names_land_inside() {
    let place = place();
    let tree = place.prepare(tar(&[member("/etc/hostname", b'0', b"inside", "")])).unwrap();
    assert_eq!(fs::read(tree.join("etc/hostname")).unwrap(), b"inside");
}

#[test]
fn later_entries_replace_earlier_ones() {
    let place = place();
    let layer = tar(&[
        member("a", b'0', b"first", ""),
        member("a", b'0', b"second", ""),
        member("link", b'2', b"", "a"),
        member("link", b'0', b"a file now", ""),
        member("dir/x", b'0', b"", ""),
        member("dir", b'0', b"a file now", ""),
    ]);
    let tree = place.prepare(layer).unwrap();
    assert_eq!(fs::read(tree.join("a")).unwrap(), b"second");
    assert_eq!(fs::read(tree.join("link")).unwrap(), b"a file now");
    assert_eq!(fs::read(tree.join("dir")).unwrap(), b"a file now");
}

#[test]
fn a_device_that_overlayfs_takes_for_a_whiteout_is_left_out() {
    let place = place();
    let layer = tar(&[member("null", b'3', b"", "")]);
    let id = DiffId::new(Digest::sha256(&layer));
    let (tree, skipped) = place
        .snapshots
        .prepare(&id, SnapshotTimes::Exported, Limits::default(), || Ok(io::Cursor::new(layer)))
        .unwrap();
    assert_eq!((skipped.devices, tree.join("null").exists()), (1, false));
}

#[test]
fn dead_makers_are_swept_and_living_ones_are_not() {
    let place = place();
    fs::create_dir_all(place.folder.path().join("snapshots/.new-1-0/deep")).unwrap();
    let living = place.snapshots.begin().unwrap();
    assert_eq!(place.snapshots.sweep_unfinished(false).unwrap(), 1);
    assert_eq!(place.names(), std::slice::from_ref(&living.name));
    drop(living);
    assert_eq!(place.names(), Vec::<String>::new());
}

#[test]
fn a_tree_is_good_for_one_boot() {
    let place = place();
    let upper = place.folder.path().join("upper");
    fs::create_dir(&upper).unwrap();
    fs::write(upper.join("file"), "x").unwrap();
    let changes = Changes::read(&upper, &[], &[]).unwrap();
    let times = SnapshotTimes::Build(315_619_200);
    let layer = tar(&[member("file", b'0', b"y", "")]);
    let id = DiffId::new(Digest::sha256(&layer));
    let tree = place.snapshots.adopt(&upper, &changes, &id, times).unwrap();
    assert_eq!(fs::metadata(tree.join("file")).unwrap().mtime(), 315_619_200);
    assert_eq!(place.snapshots.get(&id, times), Some(tree.clone()));
    let mark = format!("{}.boot", tree.to_str().unwrap());
    fs::write(&mark, "another boot").unwrap();
    assert_eq!(place.snapshots.get(&id, times), None);
    let open = || Ok(io::Cursor::new(layer.clone()));
    let (made_again, _) = place.snapshots.prepare(&id, times, Limits::default(), open).unwrap();
    assert_eq!(fs::read(made_again.join("file")).unwrap(), b"y");
    assert_eq!(place.names().len(), 1);
    // Of another boot nothing is asked for under a build's time, so it is no use that the layer is wanted.
    fs::write(mark, "another boot").unwrap();
    assert_eq!(place.snapshots.sweep(|_| true, false).unwrap(), Some(1));
    assert_eq!(place.names(), Vec::<String>::new());
}

#[test]
fn a_layer_has_a_tree_for_each_time() {
    let place = place();
    let layer = tar(&[member("d/", b'5', b"", ""), member("d/f", b'0', b"x", "")]);
    let exported = place.prepare(layer.clone()).unwrap();
    let id = DiffId::new(Digest::sha256(&layer));
    let open = || Ok(io::Cursor::new(layer.clone()));
    let (built, _) =
        place.snapshots.prepare(&id, SnapshotTimes::Build(1000), Limits::default(), open).unwrap();
    let times = |tree: &Path| ["d", "d/f"].map(|path| fs::metadata(tree.join(path)).unwrap().mtime());
    assert_eq!((times(&exported), times(&built)), ([317_580_288; 2], [1000; 2]));
    assert_eq!(place.snapshots.get(&id, SnapshotTimes::Build(1001)), None);
    assert_eq!(place.snapshots.sweep(|hex| hex == id.digest().hex(), false).unwrap(), Some(0));
    assert_eq!(place.snapshots.sweep(|_| false, false).unwrap(), Some(2));
}

#[test]
fn an_adopted_tree_has_what_changed_and_nothing_else() {
    let place = place();
    let base = tar(&[
        member("d/", b'5', b"", ""),
        member("d/f", b'0', b"content", ""),
        member("e/", b'5', b"", ""),
        member("e/f", b'0', b"content", ""),
    ]);
    let lower = place.prepare(base).unwrap();
    let upper = place.folder.path().join("upper");
    for folder in ["d", "e"] {
        fs::create_dir_all(upper.join(folder)).unwrap();
        fs::set_permissions(upper.join(folder), fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(upper.join(folder).join("f"), "content").unwrap();
        fs::set_permissions(upper.join(folder).join("f"), fs::Permissions::from_mode(0o4751)).unwrap();
    }
    fs::write(upper.join("d/new"), "new").unwrap();
    let changes = Changes::read(&upper, &[lower], &[]).unwrap();
    let id = DiffId::new(Digest::sha256(b"the layer"));
    let tree = place.snapshots.adopt(&upper, &changes, &id, SnapshotTimes::Build(7)).unwrap();
    assert_eq!(fs::metadata(tree.join("d")).unwrap().mtime(), 7);
    assert_eq!(fs::metadata(tree.join("d/new")).unwrap().mtime(), 7);
    assert!(!tree.join("d/f").exists() && !tree.join("e").exists());
}

/// Path and kind of every change, in layer order.
fn shown(changes: &Changes) -> Vec<String> {
    let kind = |entry: &Entry| match &entry.kind {
        EntryKind::Directory => "dir".to_owned(),
        EntryKind::Regular { size } => format!("file {size}"),
        EntryKind::Symlink { target } => format!("-> {}", String::from_utf8_lossy(target)),
        EntryKind::Hardlink { target } => format!("= {target}"),
        EntryKind::Whiteout => "gone".to_owned(),
        EntryKind::OpaqueMarker => "opaque".to_owned(),
        other => format!("{other:?}"),
    };
    changes.entries.iter().map(|entry| format!("{} {}", entry.path, kind(entry))).collect()
}

#[test]
fn changes_are_what_a_container_changed() {
    let place = place();
    let base = tar(&[
        member("kept/", b'5', b"", ""),
        member("kept/same", b'0', b"same", ""),
        member("kept/other", b'0', b"other", ""),
        member("removed", b'0', b"", ""),
        member("remade/", b'5', b"", ""),
        member("remade/inside", b'0', b"", ""),
    ]);
    let lower = place.prepare(base).unwrap();
    let upper = place.folder.path().join("upper");
    for folder in ["kept", "remade", "new", "stub"] {
        fs::create_dir_all(upper.join(folder)).unwrap();
        fs::set_permissions(upper.join(folder), fs::Permissions::from_mode(0o755)).unwrap();
    }
    for (name, content) in [("kept/same", "same"), ("kept/other", "OTHER"), ("new/file", "x")] {
        fs::write(upper.join(name), content).unwrap();
        fs::set_permissions(upper.join(name), fs::Permissions::from_mode(0o4751)).unwrap();
    }
    fs::hard_link(upper.join("new/file"), upper.join("new/hard")).unwrap();
    symlink("../kept", upper.join("new/soft")).unwrap();
    let tree = RootDir::open(&upper).unwrap().directory(&LayerPath::root()).unwrap();
    for name in [&b"removed"[..], b"never-there"] {
        tree.make_node(name, rustix::fs::FileType::CharacterDevice, 0, 0, 0).unwrap();
    }
    tree.set_xattr(b"remade", apply::opaque(), b"y").unwrap();
    tree.set_xattr(b"new", apply::opaque(), b"y").unwrap();
    let stub = LayerPath::parse("stub").unwrap();
    let changes = Changes::read(&upper, &[lower], &[stub]).unwrap();
    let expected = [
        "removed gone",
        "kept dir",
        "kept/other file 5",
        "new dir",
        "new/file file 1",
        "new/hard = new/file",
        "new/soft -> ../kept",
        "remade dir",
        "remade opaque",
    ];
    let mut seen = shown(&changes);
    let mut wanted: Vec<String> = expected.iter().map(|line| (*line).to_owned()).collect();
    seen.sort();
    wanted.sort();
    assert_eq!(seen, wanted);
}

#[test]
fn copying_up_is_no_change() {
    let place = place();
    let base = tar(&[member("d/", b'5', b"", ""), member("d/f", b'0', b"content", "")]);
    let lower = place.prepare(base).unwrap();
    let upper = place.folder.path().join("upper");
    fs::create_dir_all(upper.join("d")).unwrap();
    fs::set_permissions(upper.join("d"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(upper.join("d/f"), "content").unwrap();
    fs::set_permissions(upper.join("d/f"), fs::Permissions::from_mode(0o4751)).unwrap();
    assert_eq!(
        shown(&Changes::read(&upper, std::slice::from_ref(&lower), &[]).unwrap()),
        Vec::<String>::new()
    );
    fs::set_permissions(upper.join("d/f"), fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(shown(&Changes::read(&upper, &[lower], &[]).unwrap()), ["d dir", "d/f file 7"]);
}

#[test]
fn nobody_sweeps_below_a_container() {
    let place = place();
    place.prepare(tar(&[member("file", b'0', b"x", "")])).unwrap();
    let other = Snapshots::open(&place.folder.path().join("snapshots"), owners()).unwrap();
    assert_eq!(place.snapshots.sweep(|_| false, false).unwrap(), None);
    assert_eq!(place.names().len(), 1);
    drop(other);
    assert_eq!(place.snapshots.sweep(|_| false, true).unwrap(), Some(1));
    assert_eq!(place.names().len(), 1, "a dry run removes nothing");
    assert_eq!(place.snapshots.sweep(|_| false, false).unwrap(), Some(1));
    assert_eq!(place.names().len(), 0);
}

#[test]
fn every_root_stands_on_the_mount_points() {
    let place = place();
    let layer = place.prepare(tar(&[member("file", b'0', b"x", "")])).unwrap();
    let stacked = place.snapshots.on_mount_points(std::slice::from_ref(&layer)).unwrap();
    assert_eq!(stacked[1..], [layer]);
    for folder in ["dev", "etc", "proc", "sys"] {
        assert!(stacked[0].join(folder).is_dir(), "{folder}");
    }
    assert_eq!(fs::read(stacked[0].join("etc/resolv.conf")).unwrap(), b"");
    assert_eq!(place.snapshots.sweep(|_| false, false).unwrap(), Some(1));
    assert_eq!(place.snapshots.on_mount_points(&[]).unwrap(), stacked[..1], "swept away");
    let many = vec![stacked[0].clone(); crate::spec::RootFs::LOWERS_MAX];
    assert_eq!(place.snapshots.on_mount_points(&many).unwrap().len(), many.len());
}
