//! Snapshots from layers and back: what is made, what is refused, what an interrupted maker leaves.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use std::sync::Arc;

use rimg_formats::digest::{Algorithm, Digest};
use rimg_formats::layer::{Entry, EntryKind, Expected, LayerIndex, LayerPath};

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

/// Layers in memory.
struct Layers(Vec<Vec<u8>>);

impl LayerSource for Layers {
    fn open(&self, number: usize) -> io::Result<Box<dyn io::Read + Send + '_>> {
        Ok(Box::new(self.0[number].as_slice()))
    }

    fn index(&self, number: usize) -> io::Result<Arc<LayerIndex>> {
        let scanned = LayerIndex::scan(self.0[number].as_slice(), Limits::default(), Expected::default());
        scanned.map(Arc::new).map_err(io::Error::other)
    }

    fn blob(&self, digest: &Digest) -> io::Result<File> {
        let layer = self.0.iter().find(|layer| Digest::sha256(layer) == *digest).unwrap();
        let mut file = tempfile::tempfile()?;
        io::Write::write_all(&mut file, layer)?;
        Ok(file)
    }
}

fn diff_id(layer: &[u8]) -> DiffId {
    DiffId::new(Digest::sha256(layer))
}

fn merged(layers: &[&[u8]]) -> MergedTree {
    let layers = Layers(layers.iter().map(|layer| layer.to_vec()).collect());
    layers.below(layers.0.len()).unwrap()
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
        let lower = Lower::single(diff_id(&layer));
        let prepared =
            self.snapshots.prepare(&lower, SnapshotTimes::Exported, Limits::default(), &Layers(vec![layer]));
        prepared.map(|(path, _)| path)
    }

    /// The directories of a stack of layers, the lowest first.
    fn stack(&self, layers: &[&[u8]]) -> Result<Vec<PathBuf>, SnapshotError> {
        let diff_ids: Vec<DiffId> = layers.iter().map(|layer| diff_id(layer)).collect();
        let source = Layers(layers.iter().map(|layer| layer.to_vec()).collect());
        let prepare = |lower: &Lower| {
            self.snapshots.prepare(lower, SnapshotTimes::Exported, Limits::default(), &source)
        };
        Lower::stack(&diff_ids).iter().map(|lower| prepare(lower).map(|(path, _)| path)).collect()
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
    let made = Lower::single(diff_id(&layer));
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
        ("hard link out", tar(&[member("name", b'1', b"", "../outside/victim")])),
        (
            "hard link through a link",
            tar(&[member("link", b'2', b"", outside_text), member("name", b'1', b"", &through("victim"))]),
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
    // These land inside, as in a container.
    let inside = [
        tar(&[member("link", b'2', b"", outside_text), member(&through("victim"), b'0', b"bad", "")]),
        tar(&[member("link", b'2', b"", "../../outside"), member(&through("victim"), b'0', b"bad", "")]),
        tar(&[member("link", b'2', b"", outside_text), member(&through(".wh.victim"), b'0', b"", "")]),
    ];
    for (layer, landed) in inside.into_iter().zip([outside_text, "/outside", outside_text]) {
        let tree = place.prepare(layer).unwrap();
        assert!(fs::symlink_metadata(tree.join(&landed[1..]).join("victim")).is_ok());
        assert_eq!(fs::read_to_string(outside.join("victim")).unwrap(), "safe");
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
    }
}

/// An image whose configuration claims another image's layer would otherwise run in the other's place.
#[test]
fn only_the_layer_that_was_named_takes_its_place() {
    let place = place();
    let (good, bad) = (tar(&[member("file", b'0', b"good", "")]), tar(&[member("file", b'0', b"evil", "")]));
    let lower = Lower::single(diff_id(&good));
    let result =
        place.snapshots.prepare(&lower, SnapshotTimes::Exported, Limits::default(), &Layers(vec![bad]));
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
    let lower = Lower::single(diff_id(&layer));
    let (tree, skipped) = place
        .snapshots
        .prepare(&lower, SnapshotTimes::Exported, Limits::default(), &Layers(vec![layer]))
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
fn starts_do_not_wait_while_large_trees_are_removed() {
    let place = place();
    let tree = place.prepare(tar(&[member("d/file", b'0', b"x", "")])).unwrap();
    fs::set_permissions(&tree, fs::Permissions::from_mode(0o555)).unwrap();
    let condemned = place.snapshots.condemn(|_| false, false).unwrap();
    // What is done before others go on.
    assert!(!tree.exists());
    let names = place.names();
    assert!(matches!(names.as_slice(), [name] if name.starts_with(UNFINISHED_PREFIX)), "{names:?}");
    assert_eq!(place.snapshots.remove_condemned(condemned).unwrap(), 1);
    assert_eq!(place.names(), Vec::<String>::new());
}

#[test]
fn a_tree_is_good_for_one_boot() {
    let place = place();
    let upper = place.folder.path().join("upper");
    fs::create_dir(&upper).unwrap();
    fs::write(upper.join("file"), "x").unwrap();
    let changes = Changes::read(&upper, &MergedTree::new(&[]), owners(), &[]).unwrap();
    let times = SnapshotTimes::Build(315_619_200);
    let layer = tar(&[member("file", b'0', b"y", "")]);
    let id = diff_id(&layer);
    let lower = Lower::single(id);
    let tree = place.snapshots.adopt(&upper, &changes, &id, times).unwrap();
    assert_eq!(fs::metadata(tree.join("file")).unwrap().mtime(), 315_619_200);
    assert_eq!(place.snapshots.get(&lower, times), Some(tree.clone()));
    let mark = format!("{}.boot", tree.to_str().unwrap());
    fs::write(&mark, "another boot").unwrap();
    assert_eq!(place.snapshots.get(&lower, times), None);
    let source = Layers(vec![layer.clone()]);
    let (made_again, _) = place.snapshots.prepare(&lower, times, Limits::default(), &source).unwrap();
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
    let lower = Lower::single(diff_id(&layer));
    let source = Layers(vec![layer]);
    let (built, _) =
        place.snapshots.prepare(&lower, SnapshotTimes::Build(1000), Limits::default(), &source).unwrap();
    let times = |tree: &Path| ["d", "d/f"].map(|path| fs::metadata(tree.join(path)).unwrap().mtime());
    assert_eq!((times(&exported), times(&built)), ([317_580_288; 2], [1000; 2]));
    assert_eq!(place.snapshots.get(&lower, SnapshotTimes::Build(1001)), None);
    let hex = lower.diff_id.digest().hex();
    assert_eq!(place.snapshots.sweep(|wanted| wanted == hex, false).unwrap(), Some(0));
    assert_eq!(place.snapshots.sweep(|_| false, false).unwrap(), Some(2));
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
    let changes = Changes::read(&upper, &merged(&[&base]), owners(), &[stub]).unwrap();
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
    let below = merged(&[&base]);
    let read = |upper: &Path| Changes::read(upper, &below, owners(), &[]).unwrap();
    let upper = place.folder.path().join("upper");
    fs::create_dir_all(upper.join("d")).unwrap();
    fs::set_permissions(upper.join("d"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(upper.join("d/f"), "content").unwrap();
    fs::set_permissions(upper.join("d/f"), fs::Permissions::from_mode(0o4751)).unwrap();
    assert_eq!(shown(&read(&upper)), Vec::<String>::new());
    fs::set_permissions(upper.join("d/f"), fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(shown(&read(&upper)), ["d dir", "d/f file 7"]);
}

/// A step whose result is found in the cache and unpacked has to see what it sees when it was just made.
#[test]
fn an_adopted_tree_has_what_the_layer_has() {
    let place = place();
    let base =
        tar(&[member("d/", b'5', b"", ""), member("d/same", b'0', b"same", ""), member("e/", b'5', b"", "")]);
    let upper = place.folder.path().join("upper");
    for folder in ["d", "e"] {
        fs::create_dir_all(upper.join(folder)).unwrap();
        fs::set_permissions(upper.join(folder), fs::Permissions::from_mode(0o755)).unwrap();
    }
    for (name, content) in [("d/same", "same"), ("d/new", "new")] {
        fs::write(upper.join(name), content).unwrap();
        fs::set_permissions(upper.join(name), fs::Permissions::from_mode(0o4751)).unwrap();
    }
    let _socket = std::os::unix::net::UnixListener::bind(upper.join("d/socket")).unwrap();
    let top = RootDir::open(&upper).unwrap().directory(&LayerPath::root()).unwrap();
    top.make_node(b"never-there", rustix::fs::FileType::CharacterDevice, 0, 0, 0).unwrap();
    let changes = Changes::read(&upper, &merged(&[&base]), owners(), &[]).unwrap();
    assert_eq!(shown(&changes), ["d dir", "d/new file 3"]);
    let tree =
        place.snapshots.adopt(&upper, &changes, &diff_id(b"some layer"), SnapshotTimes::Build(7)).unwrap();
    let names = |path: &str| {
        let entries = fs::read_dir(tree.join(path)).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect::<Vec<String>>()
    };
    assert_eq!(names(""), ["d"]);
    assert_eq!(names("d"), ["new"]);
    assert_eq!(["d", "d/new"].map(|path| fs::metadata(tree.join(path)).unwrap().mtime()), [7; 2]);
}

/// Deeper than there is stack, than files may be open, and than a path has bytes, on a thread with little of it.
#[test]
fn a_deep_tree_is_read_and_removed() {
    let place = place();
    let upper = place.folder.path().join("upper");
    fs::create_dir(&upper).unwrap();
    let make = |levels: usize| {
        let mut current = RootDir::open(&upper).unwrap().directory(&LayerPath::root()).unwrap();
        for _ in 0..levels {
            // Some levels may be there.
            let _ = current.create_dir(b"d", 0o755);
            current = current.open_dir(b"d").unwrap();
        }
    };
    make(2048);
    let read = |upper: &Path| Changes::read(upper, &MergedTree::new(&[]), owners(), &[]);
    std::thread::scope(|scope| {
        let small = std::thread::Builder::new().stack_size(128 << 10);
        let test = || {
            let changes = read(&upper).unwrap();
            assert_eq!(changes.entries.len(), 2048);
            changes.set_times(Mtime { secs: 5, nanos: 0 }).unwrap();
            make(2100);
            let error = read(&upper).unwrap_err().to_string();
            assert!(error.contains("longer than 4096 bytes"), "{error}");
        };
        small.spawn_scoped(scope, test).unwrap().join().unwrap();
    });
    let top = RootDir::open(place.folder.path()).unwrap();
    top.remove_tree(&LayerPath::parse("upper").unwrap()).unwrap();
}

#[test]
fn a_layer_that_depends_on_those_below_has_a_tree_for_each_stack() {
    let place = place();
    let base = |mode: &str| {
        let mut directory = member("d/", b'5', b"", "");
        directory[100..107].copy_from_slice(mode.as_bytes());
        directory[148..156].copy_from_slice(b"        ");
        let sum: u32 = directory[..512].iter().map(|byte| u32::from(*byte)).sum();
        directory[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        tar(&[directory, member("d/file", b'0', mode.as_bytes(), "")])
    };
    let above = tar(&[member("d/new", b'0', b"new", ""), member("linked", b'1', b"", "d/file")]);
    let independent = tar(&[member("alone", b'0', b"", "")]);
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
    let mut trees = Vec::new();
    for bits in ["0000700", "0001777"] {
        let base = base(bits);
        let stack: [&[u8]; 3] = [&base, &above, &independent];
        let lowers = place.stack(&stack).unwrap();
        assert_eq!(mode(&lowers[1].join("d")), u32::from_str_radix(bits, 8).unwrap());
        assert_eq!(fs::read_to_string(lowers[1].join("linked")).unwrap(), bits);
        assert_eq!(place.stack(&stack).unwrap(), lowers, "found again");
        trees.push(lowers);
    }
    assert_ne!(trees[0][1], trees[1][1]);
    assert_eq!(trees[0][2], trees[1][2], "shared");
    let nothing = place.prepare(above).unwrap_err().to_string();
    assert!(nothing.contains("hard link to `d/file`"), "{nothing}");
}

#[test]
fn links_to_links_cost_what_they_are() {
    const LINKS: usize = 10_000;
    /// A pass over all links for each of them takes minutes.
    const PATIENCE: std::time::Duration = std::time::Duration::from_secs(30);
    let link = |number: usize| member(&format!("{number}"), b'1', b"", &format!("{}", number + 1));
    let mut members: Vec<Vec<u8>> = (0..LINKS).map(link).collect();
    members.push(member(&format!("{LINKS}"), b'0', b"content", ""));
    let began = std::time::Instant::now();
    let lower = place().prepare(tar(&members));
    assert!(began.elapsed() < PATIENCE, "{:?}", began.elapsed());
    assert!(lower.is_ok(), "{lower:?}");
}

#[test]
fn many_links_to_one_file_below_are_one_copy() {
    let place = place();
    let base = tar(&[member("file", b'0', b"old", ""), member("other", b'1', b"", "file")]);
    let over = tar(&[member("file", b'0', b"new", "")]);
    let links = ["a", "b", "d/c"].map(|name| member(name, b'1', b"", "file"));
    let top = tar(&[links.concat(), member("old", b'1', b"", "other")]);
    let lowers = place.stack(&[&base, &over, &top]).unwrap();
    let all = ["a", "b", "d/c"].map(|name| lowers[2].join(name));
    for path in &all {
        assert_eq!(fs::read_to_string(path).unwrap(), "new");
        assert_eq!(fs::metadata(path).unwrap().ino(), fs::metadata(&all[0]).unwrap().ino());
        assert_eq!(fs::metadata(path).unwrap().mode() & 0o7777, 0o4751);
    }
    // Of the same path in another layer.
    assert_eq!(fs::read_to_string(lowers[2].join("old")).unwrap(), "old");
}

/// overlayfs takes a directory once.
#[test]
fn a_layer_may_come_twice() {
    let place = place();
    let (a, b) = (tar(&[member("a", b'0', b"a", "")]), tar(&[member(".wh.a", b'0', b"", "")]));
    let empty = vec![0; 1024];
    let record = vec![0; 10240];
    let count = |layers: &[&[u8]], expected: usize| {
        let lowers = place.stack(layers).unwrap();
        let mut different = lowers.clone();
        different.sort();
        different.dedup();
        assert_eq!((lowers.len(), different.len()), (expected, expected));
        lowers
    };
    count(&[&a, &a], 1);
    count(&[&empty, &a, &empty, &record, &a, &empty], 1);
    let around = count(&[&a, &b, &a], 3);
    assert_eq!(around[2], count(&[&a], 1)[0], "the upper one is the ordinary tree");
    assert_eq!(fs::read(around[0].join("a")).unwrap(), b"a");
    assert_eq!(count(&[&a, &b, &a, &b, &a], 5)[2..], around);
    let hexes = [a, b].map(|layer| Digest::sha256(&layer).hex());
    assert_eq!(place.snapshots.sweep(|hex| hexes.contains(&hex.to_owned()), false).unwrap(), Some(0));
    assert_eq!(place.snapshots.sweep(|_| false, false).unwrap(), Some(5));
}

#[test]
fn what_an_image_names_is_no_bomb() {
    let place = place();
    let layer = tar(&[member("zeros", b'0', &vec![0; 4 << 20], "")]);
    let mut packed = Vec::new();
    let mut writer = rimg_formats::layer::LayerWriter::new(&mut packed, Default::default()).unwrap();
    let kind = EntryKind::Regular { size: 4 << 20 };
    let entry = Entry::new(LayerPath::parse("zeros").unwrap(), kind, 0o644);
    writer.append(&entry, io::Read::take(io::repeat(0), 4 << 20)).unwrap();
    let lower = Lower::single(writer.finish().unwrap().diff_id);
    let limits = Limits { ratio_free: 1 << 20, ..Limits::default() };
    let (tree, _) = place
        .snapshots
        .prepare(&lower, SnapshotTimes::Exported, limits, &Layers(vec![packed.clone()]))
        .unwrap();
    let file = fs::metadata(tree.join("zeros")).unwrap();
    assert_eq!((file.len(), file.blocks()), (4 << 20, 0), "a hole again");
    // Another tar than the one named is not taken on trust.
    let other = Lower::single(diff_id(&layer));
    assert!(place.snapshots.prepare(&other, SnapshotTimes::Exported, limits, &Layers(vec![packed])).is_err());
    let long = Lower::single(DiffId::new(Digest::of(Algorithm::Sha512, &layer)));
    assert!(
        place.snapshots.prepare(&long, SnapshotTimes::Exported, limits, &Layers(vec![layer])).is_ok(),
        "by SHA-512 too"
    );
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
