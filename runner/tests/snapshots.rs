//! Layers into snapshots and upper directories back into layer entries: the rules, and layers that break them.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;
use std::fs;
use std::io::Cursor;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rimg_formats::digest::{DiffId, Digest};
use rimg_formats::layer::{Entry, EntryKind, LayerPath, Mtime};
use rimg_runner::snapshots::changes::Changes;
use rimg_runner::snapshots::{Snapshot, SnapshotError, Snapshots};

/// A tar made by hand, so that it may contain what no honest writer writes.
#[derive(Default)]
struct Tar(Vec<u8>);

impl Tar {
    fn entry(mut self, path: &str, kind: u8, mode: u32, link: &str, content: &[u8]) -> Tar {
        let mut header = [0u8; 512];
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, path.as_bytes());
        put(100, format!("{mode:07o}").as_bytes());
        put(108, b"0000000");
        put(116, b"0000000");
        put(124, format!("{:011o}", content.len()).as_bytes());
        put(136, format!("{:011o}", 1_600_000_000).as_bytes());
        put(148, b"        ");
        put(156, &[kind]);
        put(157, link.as_bytes());
        put(257, b"ustar\x0000");
        put(329, b"0000001");
        put(337, b"0000003");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        self.0.extend(header);
        self.0.extend(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn file(self, path: &str, content: &str) -> Tar {
        self.entry(path, b'0', 0o644, "", content.as_bytes())
    }

    fn dir(self, path: &str) -> Tar {
        self.entry(path, b'5', 0o755, "", b"")
    }

    fn symlink(self, path: &str, target: &str) -> Tar {
        self.entry(path, b'2', 0o777, target, b"")
    }

    fn hardlink(self, path: &str, target: &str) -> Tar {
        self.entry(path, b'1', 0o644, target, b"")
    }

    /// With a PAX header that gives the next entry an extended attribute.
    fn xattr(self, key: &str, value: &str) -> Tar {
        let record = format!(" SCHILY.xattr.{key}={value}\n");
        let mut length = record.len() + 1;
        while format!("{length}{record}").len() != length {
            length += 1;
        }
        self.entry("pax", b'x', 0o644, "", format!("{length}{record}").as_bytes())
    }

    fn bytes(mut self) -> Vec<u8> {
        self.0.extend([0; 1024]);
        self.0
    }
}

fn id(bytes: &[u8]) -> DiffId {
    DiffId::new(Digest::sha256(bytes))
}

fn unpack(tar: Tar) -> (tempfile::TempDir, Result<Snapshot, SnapshotError>) {
    let directory = tempfile::tempdir().unwrap();
    let bytes = tar.bytes();
    let snapshot = Snapshots::new(directory.path()).prepare(&id(&bytes), || Ok(Cursor::new(bytes.clone())));
    (directory, snapshot)
}

fn unpacked(tar: Tar) -> (tempfile::TempDir, PathBuf) {
    let (directory, snapshot) = unpack(tar);
    let path = snapshot.unwrap().path;
    (directory, path)
}

fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 256];
    let length = rustix::fs::lgetxattr(path, name, value.as_mut_slice()).ok()?;
    value.truncate(length);
    Some(value)
}

fn opaque(path: &Path) -> bool {
    xattr(path, "user.overlay.opaque").as_deref() == Some(b"y")
}

fn is_whiteout(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_char_device() && meta.rdev() == 0)
}

#[test]
fn files_directories_links_and_their_attributes() {
    let (_directory, root) = unpacked(
        Tar::default()
            .entry("d/", b'5', 0o1777, "", b"")
            .entry("d/suid", b'0', 0o4755, "", b"program")
            .hardlink("d/again", "d/suid")
            .symlink("d/link", "/etc/passwd")
            .entry("pipe", b'6', 0o600, "", b"")
            .xattr("user.note", "kept")
            .file("implicit/parent/file", "x"),
    );
    let meta = |path: &str| fs::symlink_metadata(root.join(path)).unwrap();
    assert_eq!(meta("d").permissions().mode() & 0o7777, 0o1777);
    assert_eq!(meta("d").mtime(), 1_600_000_000);
    assert_eq!(meta("d/suid").permissions().mode() & 0o7777, 0o4755);
    assert_eq!(meta("d/suid").ino(), meta("d/again").ino());
    assert_eq!(fs::read_link(root.join("d/link")).unwrap(), Path::new("/etc/passwd"));
    assert!(meta("pipe").file_type().is_fifo());
    assert_eq!(meta("implicit").permissions().mode() & 0o7777, 0o755);
    assert_eq!(xattr(&root.join("implicit/parent/file"), "user.note").as_deref(), Some(&b"kept"[..]));
}

#[test]
fn whiteouts_and_opaque_directories() {
    let (_directory, root) = unpacked(
        Tar::default()
            .dir("d/")
            .file("d/.wh.gone", "")
            .dir("o/")
            .file("o/.wh..wh..opq", "")
            .file("o/kept", "x")
            .file("new", "x")
            .file(".wh.new", "")
            .file(".wh.tree", "")
            .file("tree/below", "x"),
    );
    assert!(is_whiteout(&root.join("d/gone")));
    assert!(opaque(&root.join("o")) && root.join("o/kept").exists());
    assert!(root.join("new").is_file(), "a whiteout does not remove what its own layer brings");
    assert!(opaque(&root.join("tree")) && root.join("tree/below").exists());
    assert!(!opaque(&root.join("d")));
}

#[test]
fn nothing_is_written_through_links() {
    let outside = tempfile::tempdir().unwrap();
    let target = outside.path().to_str().unwrap();
    fs::write(outside.path().join("victim"), "safe").unwrap();
    let (_directory, root) = unpacked(
        Tar::default()
            .symlink("a", target)
            .file("a/file", "x")
            .symlink("b", &format!("{target}/victim"))
            .file("b", "overwritten")
            .symlink("c", target)
            .dir("c/")
            .symlink("e", target)
            .file("e/.wh.victim", ""),
    );
    assert_eq!(fs::read_to_string(outside.path().join("victim")).unwrap(), "safe");
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
    assert!(root.join("a").is_dir() && !root.join("a").is_symlink() && root.join("a/file").is_file());
    assert_eq!(fs::read_to_string(root.join("b")).unwrap(), "overwritten");
    assert!(root.join("c").is_dir() && !root.join("c").is_symlink());
    assert!(is_whiteout(&root.join("e/victim")));
}

#[test]
fn names_cannot_climb_out() {
    let directory = tempfile::tempdir().unwrap();
    for path in ["../climbed", "/absolute/../../climbed", "d/../../climbed", "d/../../../climbed"] {
        let bytes = Tar::default().file(path, "x").bytes();
        let inner = directory.path().join("inner");
        fs::create_dir_all(&inner).unwrap();
        // Whether it is refused or neutralised is the reader's choice; outside nothing may appear.
        let _ = Snapshots::new(&inner).prepare(&id(&bytes), || Ok(Cursor::new(bytes.clone())));
        let names: Vec<_> = fs::read_dir(directory.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["inner"], "{path}");
    }
}

#[test]
fn hard_links_stay_in_the_layer() {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("victim"), "safe").unwrap();
    let target = outside.path().to_str().unwrap();
    let through_link = Tar::default().symlink("out", target).hardlink("stolen", "out/victim");
    let missing = Tar::default().hardlink("stolen", "nothing");
    let directory = Tar::default().dir("d/").hardlink("d2", "d");
    let own_parent = Tar::default().dir("d/").file("d/x", "").hardlink("d", "d/x");
    let whiteout = Tar::default().file(".wh.gone", "").hardlink("forged", "gone");
    for (name, tar) in [
        ("through a link", through_link),
        ("missing", missing),
        ("directory", directory),
        ("own parent", own_parent),
        ("whiteout", whiteout),
    ] {
        let (kept, result) = unpack(tar);
        assert!(result.is_err(), "{name}");
        let left: Vec<_> = fs::read_dir(kept.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert!(left.iter().all(|left| left.to_str().unwrap().ends_with(".tmp")), "{name}: {left:?}");
        Snapshots::new(kept.path()).sweep().unwrap();
        assert_eq!(fs::read_dir(kept.path()).unwrap().count(), 0, "{name}");
    }
}

#[test]
fn overlay_state_cannot_be_forged() {
    let (_directory, snapshot) = unpack(
        Tar::default()
            .xattr("user.overlay.opaque", "y")
            .dir("d/")
            .xattr("user.overlay.redirect", "/etc")
            .dir("r/")
            .xattr("trusted.overlay.metacopy", "y")
            .file("f", "x"),
    );
    let root = snapshot.unwrap().path;
    assert!(!opaque(&root.join("d")));
    assert_eq!(xattr(&root.join("r"), "user.overlay.redirect"), None);
    assert_eq!(xattr(&root.join("f"), "trusted.overlay.metacopy"), None);
    // The whiteout device itself. Numbers 0:0 instead of the helper's 1:3.
    let mut bytes = Tar::default().entry("dev", b'3', 0o666, "", b"").0;
    bytes[329..336].copy_from_slice(b"0000000");
    bytes[337..344].copy_from_slice(b"0000000");
    bytes[148..156].copy_from_slice(b"        ");
    let sum: u32 = bytes[..512].iter().map(|byte| u32::from(*byte)).sum();
    bytes[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    let (_directory, snapshot) = unpack(Tar(bytes));
    let snapshot = snapshot.unwrap();
    assert!(!snapshot.path.join("dev").exists() && !is_whiteout(&snapshot.path.join("dev")));
    assert_eq!(snapshot.report.devices_skipped, 1);
}

#[test]
fn later_entries_replace_earlier_ones() {
    let (_directory, root) = unpacked(
        Tar::default()
            .file("a", "file")
            .dir("a/")
            .file("a/x", "1")
            .dir("a/")
            .dir("b/")
            .file("b/x", "1")
            .file("b", "file")
            .file("c", "first")
            .file("c", "second")
            .file("p", "file")
            .file("p/q", "below a file"),
    );
    assert_eq!(fs::read_to_string(root.join("a/x")).unwrap(), "1");
    assert_eq!(fs::read_to_string(root.join("b")).unwrap(), "file");
    assert_eq!(fs::read_to_string(root.join("c")).unwrap(), "second");
    assert_eq!(fs::read_to_string(root.join("p/q")).unwrap(), "below a file");
}

#[test]
fn a_layer_cut_short_leaves_nothing_visible() {
    let directory = tempfile::tempdir().unwrap();
    let snapshots = Snapshots::new(directory.path());
    let whole = Tar::default().file("a", "1").file("b", &"x".repeat(5000)).bytes();
    let layer = id(&whole);
    assert!(snapshots.prepare(&layer, || Ok(Cursor::new(whole[..2000].to_vec()))).is_err());
    assert_eq!(snapshots.find(&layer), None);
    let path = snapshots.prepare(&layer, || Ok(Cursor::new(whole.clone()))).unwrap().path;
    assert_eq!(snapshots.find(&layer), Some(path.clone()));
    assert_eq!(fs::read(path.join("b")).unwrap().len(), 5000);
    // Written during another boot: its content may never have reached the disk.
    fs::write(path.parent().unwrap().join("boot"), "another").unwrap();
    assert_eq!(snapshots.find(&layer), None);
    fs::write(path.join("b"), "").unwrap();
    snapshots.prepare(&layer, || Ok(Cursor::new(whole.clone()))).unwrap();
    assert_eq!(fs::read(path.join("b")).unwrap().len(), 5000);
    snapshots.remove(&layer).unwrap();
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn many_writers_make_one_snapshot() {
    let directory = tempfile::tempdir().unwrap();
    let snapshots = Snapshots::new(directory.path());
    let bytes = (0..200).fold(Tar::default(), |tar, number| tar.file(&format!("f{number}"), "x")).bytes();
    let layer = id(&bytes);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let path = snapshots.prepare(&layer, || Ok(Cursor::new(bytes.clone()))).unwrap().path;
                assert_eq!(fs::read_dir(path).unwrap().count(), 200);
            });
        }
    });
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
}

/// An upper directory over a lower one, both made by hand in overlay form.
struct Stack {
    directory: tempfile::TempDir,
}

impl Stack {
    fn new() -> Stack {
        let directory = tempfile::tempdir().unwrap();
        for name in ["lower", "upper"] {
            fs::create_dir(directory.path().join(name)).unwrap();
        }
        Stack { directory }
    }

    fn lower(&self, path: &str) -> PathBuf {
        self.directory.path().join("lower").join(path)
    }

    fn upper(&self, path: &str) -> PathBuf {
        self.directory.path().join("upper").join(path)
    }

    fn changes(&self) -> Changes {
        Changes::read(&self.upper(""), &[self.lower("")], false).unwrap()
    }

    fn shown(&self) -> Vec<String> {
        self.changes().entries.iter().map(show).collect()
    }
}

fn show(entry: &Entry) -> String {
    let path = String::from_utf8_lossy(entry.path.as_bytes()).into_owned();
    match &entry.kind {
        EntryKind::Directory => format!("dir {path}"),
        EntryKind::Regular { size } => format!("file {path} {size}"),
        EntryKind::Symlink { target } => format!("symlink {path} -> {}", String::from_utf8_lossy(target)),
        EntryKind::Hardlink { target } => {
            format!("link {path} = {}", String::from_utf8_lossy(target.as_bytes()))
        }
        EntryKind::Whiteout => format!("whiteout {path}"),
        EntryKind::OpaqueMarker => format!("opaque {path}"),
        other => format!("{other:?} {path}"),
    }
}

fn make_whiteout(path: &Path) {
    let kind = rustix::fs::FileType::CharacterDevice;
    rustix::fs::mknodat(rustix::fs::CWD, path, kind, rustix::fs::Mode::empty(), 0).unwrap();
}

fn make_opaque(path: &Path) {
    rustix::fs::lsetxattr(path, "user.overlay.opaque", b"y", rustix::fs::XattrFlags::empty()).unwrap();
}

#[test]
fn changes_are_new_different_and_removed_things() {
    let stack = Stack::new();
    for path in ["same/deep", "etc", "hidden", "gone"] {
        fs::create_dir_all(stack.lower(path)).unwrap();
    }
    for path in ["same/deep/copied", "etc/changed", "etc/mode", "hidden/old"] {
        fs::write(stack.lower(path), "old").unwrap();
    }
    // Copied up, but equal to what is below: neither it nor its directories are changes.
    fs::create_dir_all(stack.upper("same/deep")).unwrap();
    fs::write(stack.upper("same/deep/copied"), "old").unwrap();
    fs::create_dir(stack.upper("etc")).unwrap();
    fs::write(stack.upper("etc/changed"), "new").unwrap();
    fs::write(stack.upper("etc/mode"), "old").unwrap();
    fs::set_permissions(stack.upper("etc/mode"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::create_dir_all(stack.upper("new/er")).unwrap();
    fs::write(stack.upper("new/a"), "text").unwrap();
    fs::hard_link(stack.upper("new/a"), stack.upper("new/b")).unwrap();
    symlink("a", stack.upper("new/c")).unwrap();
    std::os::unix::net::UnixListener::bind(stack.upper("new/socket")).unwrap();
    fs::create_dir(stack.upper("hidden")).unwrap();
    make_opaque(&stack.upper("hidden"));
    make_whiteout(&stack.upper("gone"));
    assert_eq!(
        stack.shown(),
        [
            "whiteout gone",
            "dir etc",
            "file etc/changed 3",
            "file etc/mode 3",
            "dir hidden",
            "opaque hidden",
            "dir new",
            "file new/a 4",
            "link new/b = new/a",
            "symlink new/c -> a",
            "dir new/er",
        ]
    );
}

#[test]
fn what_a_lower_layer_hides_is_not_compared_with() {
    let stack = Stack::new();
    let base = stack.directory.path().join("base");
    fs::create_dir_all(base.join("d")).unwrap();
    fs::create_dir_all(base.join("e")).unwrap();
    for path in ["d/f", "e/f", "g"] {
        fs::write(base.join(path), "same").unwrap();
    }
    fs::create_dir(stack.lower("d")).unwrap();
    make_opaque(&stack.lower("d"));
    make_whiteout(&stack.lower("e"));
    symlink("elsewhere", stack.lower("g")).unwrap();
    fs::create_dir(stack.upper("d")).unwrap();
    fs::create_dir(stack.upper("e")).unwrap();
    for path in ["d/f", "e/f", "g"] {
        fs::write(stack.upper(path), "same").unwrap();
    }
    let changes = Changes::read(&stack.upper(""), &[base, stack.lower("")], false).unwrap();
    let shown: Vec<_> = changes.entries.iter().map(show).collect();
    assert_eq!(shown, ["dir d", "file d/f 4", "dir e", "file e/f 4", "file g 4"]);
}

#[test]
fn adopting_gives_what_unpacking_would() {
    let stack = Stack::new();
    fs::write(stack.lower("copied"), "old").unwrap();
    fs::write(stack.upper("copied"), "old").unwrap();
    fs::create_dir(stack.upper("d")).unwrap();
    fs::write(stack.upper("d/file"), "new").unwrap();
    let snapshots = stack.directory.path().join("snapshots");
    fs::create_dir(&snapshots).unwrap();
    let (snapshots, layer) = (Snapshots::new(&snapshots), id(b"layer"));
    let changes = stack.changes();
    let mtime = Mtime { secs: 315_619_200, nanos: 0 };
    let path = snapshots.adopt(&layer, &stack.upper(""), &changes, Some(mtime)).unwrap();
    assert_eq!(snapshots.find(&layer), Some(path.clone()));
    let mut times = BTreeMap::new();
    for name in ["d", "d/file"] {
        times.insert(name, fs::metadata(path.join(name)).unwrap().mtime());
    }
    assert!(times.values().all(|time| *time == mtime.secs), "{times:?}");
    assert!(!path.join("copied").exists() && !stack.upper("").exists());
    assert_eq!(
        snapshots.adopt(&layer, &stack.lower(""), &changes, None).unwrap(),
        path,
        "a second time is success"
    );
    assert!(changes.open(&LayerPath::parse("d/file").unwrap()).is_ok(), "open descriptors follow the move");
}
