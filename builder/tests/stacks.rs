//! One reading of layers: the merged tree, a mounted stack of snapshots and an exported tar agree, on the stacks of
//! `fixtures/layer-stacks` and on random ones. Mounting needs root; without it that part says `SKIPPED`.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use proptest::prelude::*;
use rimg_builder::engine::BuildResult;
use rimg_builder::output::write_tar;
use rimg_formats::descriptor::Descriptor;
use rimg_formats::digest::{DiffId, Digest};
use rimg_formats::layer::{EntryKind, Expected, LayerIndex, LayerPath, LayerReader, Limits, MergedTree};
use rimg_formats::media_type::OCI_LAYER_TAR;
use rimg_formats::store::Store;
use rimg_runner::kernel::{OverlayAttributes, overlay_attributes};
use rimg_runner::snapshots::source::StoreLayers;
use rimg_runner::snapshots::stack::Lower;
use rimg_runner::snapshots::{Owners, SnapshotTimes, Snapshots};
use rustix::mount::MountFlags;

/// One entry of a layer's tar.
#[derive(Clone, Debug)]
struct Item {
    kind: u8,
    path: String,
    mode: u32,
    owner: (u32, u32),
    /// Content or target.
    text: String,
}

impl Item {
    fn new(kind: u8, path: &str, mode: u32, text: &str) -> Item {
        Item { kind, path: path.to_owned(), mode, owner: (0, 0), text: text.to_owned() }
    }

    fn marker(directory: &str, name: &str) -> Item {
        let path = if directory.is_empty() { name.to_owned() } else { format!("{directory}/{name}") };
        Item::new(b'0', &path, 0o644, "")
    }

    fn gone(path: &str) -> Item {
        let (directory, name) = path.rsplit_once('/').unwrap_or(("", path));
        Item::marker(directory, &format!(".wh.{name}"))
    }

    /// One entry in the words of the fixture.
    fn parse(text: &str) -> Item {
        let words: Vec<&str> = text.split(' ').collect();
        let path = words.get(1).copied().unwrap_or_default();
        let mut item = match words[0] {
            "dir" => Item::new(b'5', path, 0o755, ""),
            "file" => Item::new(b'0', path, 0o644, path),
            "link" => Item::new(b'2', path, 0o777, words[3]),
            "hard" => Item::new(b'1', path, 0o644, words[3]),
            "gone" => Item::gone(path),
            "opaque" => Item::marker(path, ".wh..wh..opq"),
            other => panic!("{other}"),
        };
        if matches!(words[0], "dir" | "file") {
            if let [_, _, mode, owner, ..] = words[..]
                && let Some((uid, gid)) = owner.split_once(':')
            {
                item.mode = u32::from_str_radix(mode, 8).unwrap();
                item.owner = (uid.parse().unwrap(), gid.parse().unwrap());
            }
            if let Some((_, content)) = text.split_once(" = ") {
                item.text = content.to_owned();
            }
        }
        item
    }

    /// As a ustar member.
    fn member(&self) -> Vec<u8> {
        let content = if self.kind == b'0' { self.text.as_bytes() } else { b"" };
        let mut header = [0u8; 512];
        header[..self.path.len()].copy_from_slice(self.path.as_bytes());
        let mut number = |at: usize, value: u32| {
            header[at..at + 8].copy_from_slice(format!("{value:07o}\0").as_bytes());
        };
        number(100, self.mode);
        number(108, self.owner.0);
        number(116, self.owner.1);
        header[124..136].copy_from_slice(format!("{:011o}\0", content.len()).as_bytes());
        header[136..148].copy_from_slice(b"07346545000\0");
        header[148..156].copy_from_slice(b"        ");
        header[156] = self.kind;
        if matches!(self.kind, b'1' | b'2') {
            header[157..157 + self.text.len()].copy_from_slice(self.text.as_bytes());
        }
        header[257..265].copy_from_slice(b"ustar\x0000");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let mut bytes = header.to_vec();
        bytes.extend(content);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        bytes
    }
}

/// The layers of one image, in a store.
struct Layers<'s> {
    store: &'s Store,
    layers: Vec<(Descriptor, DiffId)>,
    indexes: Vec<Arc<LayerIndex>>,
}

fn tar(items: &[Item]) -> Vec<u8> {
    let mut bytes: Vec<u8> = items.iter().flat_map(Item::member).collect();
    bytes.extend([0; 1024]);
    bytes
}

/// The index of a layer; `None` for one that is refused.
fn scanned(items: &[Item]) -> Option<Arc<LayerIndex>> {
    let index = LayerIndex::scan(tar(items).as_slice(), Limits::default(), Expected::default());
    index.ok().map(Arc::new)
}

impl<'s> Layers<'s> {
    fn new(store: &'s Store, stack: &[Vec<Item>]) -> Layers<'s> {
        let mut layers = Vec::new();
        for tar in stack.iter().map(|items| tar(items)) {
            let mut ingest = store.ingest_local().unwrap();
            ingest.write_all(&tar).unwrap();
            ingest.commit(None).unwrap();
            let digest = Digest::sha256(&tar);
            layers.push((Descriptor::new(OCI_LAYER_TAR, digest, tar.len() as u64), DiffId::new(digest)));
        }
        let index = |(layer, diff_id): &(Descriptor, DiffId)| {
            store.layer_index_of(&layer.digest, Some(diff_id)).unwrap()
        };
        Layers { store, indexes: layers.iter().map(index).collect(), layers }
    }

    fn content(&self, tree: &MergedTree, node: rimg_formats::layer::Node<'_>) -> String {
        let open = |digest: &Digest| Ok(self.store.blob(digest).unwrap().unwrap().into_file());
        io::read_to_string(tree.read_file(node, open).unwrap()).unwrap()
    }
}

/// A tree as lines by path, in the words of the fixture; the time of files behind them.
type Tree = BTreeMap<String, String>;

fn line(kind: &str, path: &str, mode: u32, owner: (u64, u64), usual: u32, content: Option<&str>) -> String {
    let mut line = format!("{kind} {path}");
    if (mode, owner) != (usual, (0, 0)) {
        line += &format!(" {mode:o} {}:{}", owner.0, owner.1);
    }
    match content {
        Some(content) if content != path => line + " = " + content,
        _ => line,
    }
}

/// What the merged tree says; `Err` names a hard link that leads nowhere.
fn merged(layers: &Layers<'_>) -> Result<Tree, String> {
    let tree = MergedTree::new(&layers.indexes);
    let mut lines = Tree::new();
    for (path, node) in tree.walk(&LayerPath::root()).skip(1) {
        let node = tree.link_source(node).ok_or_else(|| format!("{path} is a link to nothing"))?;
        let (text, owner) = (path.to_string(), (node.uid(), node.gid()));
        let shown = match node.kind() {
            EntryKind::Directory => line("dir", &text, node.mode(), owner, 0o755, None),
            EntryKind::Symlink { target } => format!("link {text} -> {}", String::from_utf8_lossy(target)),
            EntryKind::Regular { .. } => {
                let content = layers.content(&tree, node);
                line("file", &text, node.mode(), owner, 0o644, Some(&content))
            }
            other => panic!("{other:?}"),
        };
        lines.insert(text, shown);
    }
    Ok(lines)
}

/// Whether all hard links of a stack lead somewhere.
fn is_whole(indexes: &[Arc<LayerIndex>]) -> bool {
    let tree = MergedTree::new(indexes);
    tree.walk(&LayerPath::root()).all(|(_, node)| tree.link_source(node).is_some())
}

/// What the exported tar has.
fn exported(layers: &Layers<'_>) -> Tree {
    let nothing = Digest::sha256(b"");
    let result = BuildResult {
        manifest: Descriptor::new("", nothing, 0),
        config: nothing,
        layers: layers.layers.clone(),
        names: Vec::new(),
    };
    let mut tar = Vec::new();
    write_tar(layers.store, &result, &mut tar).unwrap();
    let mut reader = LayerReader::new(tar.as_slice(), Limits::default()).unwrap();
    let mut lines = Tree::new();
    let mut files: BTreeMap<String, (u32, (u64, u64), String)> = BTreeMap::new();
    while let Some(entry) = reader.next_entry().unwrap() {
        let (text, owner) = (entry.path.to_string(), (entry.uid, entry.gid));
        let shown = match &entry.kind {
            EntryKind::Directory if text.is_empty() => continue,
            EntryKind::Directory => line("dir", &text, entry.mode, owner, 0o755, None),
            EntryKind::Symlink { target } => format!("link {text} -> {}", String::from_utf8_lossy(target)),
            EntryKind::Regular { .. } => {
                let content = io::read_to_string(reader.content()).unwrap();
                files.insert(text.clone(), (entry.mode, owner, content.clone()));
                line("file", &text, entry.mode, owner, 0o644, Some(&content))
            }
            EntryKind::Hardlink { target } => {
                let (mode, owner, content) = &files[&target.to_string()];
                line("file", &text, *mode, *owner, 0o644, Some(content))
            }
            other => panic!("{other:?}"),
        };
        lines.insert(text, shown);
    }
    lines
}

/// What a directory on disk has.
fn on_disk(root: &Path) -> Tree {
    let mut lines = Tree::new();
    let mut pending = vec![root.to_owned()];
    while let Some(folder) = pending.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let stat = fs::symlink_metadata(&path).unwrap();
            let text = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            let (mode, owner) = (stat.mode() & 0o7777, (stat.uid().into(), stat.gid().into()));
            assert!(!stat.file_type().is_char_device(), "{text}: a whiteout shows");
            let shown = if stat.is_dir() {
                pending.push(path);
                line("dir", &text, mode, owner, 0o755, None)
            } else if stat.is_symlink() {
                format!("link {text} -> {}", fs::read_link(&path).unwrap().display())
            } else {
                let content = fs::read_to_string(&path).unwrap();
                line("file", &text, mode, owner, 0o644, Some(&content))
            };
            lines.insert(text, shown);
        }
    }
    lines
}

/// A mount namespace of this thread's own, where that is allowed.
fn may_mount() -> bool {
    thread_local!(static OWN: bool = own_namespace());
    OWN.with(|own| *own)
}

fn own_namespace() -> bool {
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED the mounted half: it needs root");
        return false;
    }
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
    let private = rustix::mount::MountPropagationFlags::PRIVATE | rustix::mount::MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).unwrap();
    true
}

/// What the snapshots of a stack show when they are mounted; `None` where that is not allowed.
fn mounted(layers: &Layers<'_>) -> Option<Result<Tree, String>> {
    let place = tempfile::tempdir().unwrap();
    let may_mount = may_mount();
    let owners = if may_mount { Owners::Keep } else { Owners::Squash };
    let snapshots = Snapshots::open(&place.path().join("s"), owners).unwrap();
    let diff_ids: Vec<DiffId> = layers.indexes.iter().map(|index| index.diff_id).collect();
    let mut lowers: Vec<PathBuf> = Vec::new();
    let blobs = layers.layers.iter().map(|(layer, diff_id)| (layer.digest, *diff_id));
    let source = StoreLayers::new(layers.store, blobs);
    for lower in Lower::stack(&diff_ids) {
        match snapshots.prepare(&lower, SnapshotTimes::Exported, Limits::default(), &source) {
            Ok((path, _)) => lowers.push(path),
            Err(error) => return Some(Err(error.to_string())),
        }
    }
    if !may_mount {
        return None;
    }
    for name in ["bottom", "root"] {
        fs::create_dir(place.path().join(name)).unwrap();
    }
    // overlayfs wants two lower directories where there is no upper one.
    let bottom = [place.path().join("bottom"), place.path().join("s")];
    fs::create_dir(place.path().join("s/second")).unwrap();
    let second = bottom[1].join("second");
    let all = lowers.iter().rev().chain([&bottom[0], &second]);
    let all: Vec<&str> = all.map(|path| path.to_str().unwrap()).collect();
    let attributes = match overlay_attributes() {
        OverlayAttributes::User => ",userxattr",
        OverlayAttributes::Trusted => "",
    };
    let options = std::ffi::CString::new(format!("lowerdir={}{attributes}", all.join(":"))).unwrap();
    let root = place.path().join("root");
    rustix::mount::mount("overlay", &root, "overlay", MountFlags::RDONLY, options.as_c_str()).unwrap();
    let tree = on_disk(&root);
    rustix::mount::unmount(&root, rustix::mount::UnmountFlags::DETACH).unwrap();
    Some(Ok(tree))
}

/// Compares all; what they agree on, `None` when all refuse.
fn agreed(store: &Store, stack: &[Vec<Item>]) -> Option<Tree> {
    if stack.iter().any(|items| scanned(items).is_none()) {
        return None;
    }
    let layers = Layers::new(store, stack);
    let seen = match (merged(&layers), mounted(&layers)) {
        (Ok(merged), Some(Ok(mounted))) => {
            assert_eq!(merged, mounted, "{stack:?}");
            merged
        }
        (Ok(merged), None) => merged,
        (Err(_), Some(Err(_)) | None) => return None,
        (merged, mounted) => panic!("{merged:?} against {mounted:?} of {stack:?}"),
    };
    assert_eq!(seen, exported(&layers), "{stack:?}");
    Some(seen)
}

#[test]
fn stacks_mean_what_the_table_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/layer-stacks/stacks.txt");
    let text = fs::read_to_string(path).unwrap();
    let place = tempfile::tempdir().unwrap();
    let store = Store::open(place.path()).unwrap();
    let (mut name, mut stack, mut count) = ("", Vec::new(), 0);
    let parts = |text: &str| {
        text.split("; ").map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect::<Vec<_>>()
    };
    for line in text.lines() {
        if let Some(title) = line.strip_prefix("# ") {
            name = title;
        } else if let Some(layer) = line.strip_prefix("layer:") {
            stack.push(parts(layer).iter().map(|part| Item::parse(part)).collect::<Vec<_>>());
        } else if let Some(result) = line.strip_prefix("result: ") {
            let expected = (result != "refused").then(|| parts(result));
            let seen = agreed(&store, &std::mem::take(&mut stack))
                .map(|tree| tree.into_values().collect::<Vec<_>>());
            assert_eq!(seen, expected, "{name}");
            count += 1;
        }
    }
    assert!(count >= 40, "only {count} stacks were found");
}

/// Few names, so that layers meet each other's.
fn path() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "c"]), 1..4).prop_map(|names| names.join("/"))
}

fn item() -> impl Strategy<Value = Item> {
    let mode = prop::sample::select(vec![0o644u32, 0o755, 0o700, 0o1777, 0o4711]);
    let owner = (0u32..3, 0u32..3);
    let target = prop::sample::select(vec!["a", "b", "c", "/a/b", "../b", ".", "/", "c/a", "../../a/c"]);
    let attributes = (mode, owner);
    let with = |kind: u8| {
        move |(path, (mode, owner), text): (String, (u32, (u32, u32)), String)| Item {
            kind,
            path,
            mode,
            owner,
            text,
        }
    };
    let text = prop::sample::select(vec!["x".to_owned(), "y".to_owned(), String::new()]);
    prop_oneof![
        4 => (path(), attributes.clone(), Just(String::new())).prop_map(with(b'5')),
        5 => (path(), attributes, text).prop_map(with(b'0')),
        3 => (path(), target).prop_map(|(path, target)| Item::new(b'2', &path, 0o777, target)),
        2 => (path(), path()).prop_map(|(path, target)| Item::new(b'1', &path, 0o644, &target)),
        2 => path().prop_map(|path| Item::gone(&path)),
        1 => path().prop_map(|path| Item::marker(&path, ".wh..wh..opq")),
    ]
}

/// One for all cases: opening it costs more than a case.
static STORE: LazyLock<(tempfile::TempDir, Store)> = LazyLock::new(|| {
    let place = tempfile::tempdir().unwrap();
    let store = Store::open(place.path()).unwrap();
    (place, store)
});

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, max_shrink_iters: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_stacks_are_read_alike(
        layers in prop::collection::vec(prop::collection::vec(item(), 0..7), 1..5),
        again in prop::option::of((0usize..4, 0usize..5)),
    ) {
        // A layer with an entry that has no place is refused by both: leave such entries out.
        let (mut stack, mut indexes): (Vec<Vec<Item>>, Vec<Arc<LayerIndex>>) = (Vec::new(), Vec::new());
        for items in layers {
            let mut kept: Vec<Item> = Vec::new();
            for item in items {
                kept.push(item);
                let whole = scanned(&kept).map(|index| indexes.iter().cloned().chain([index]).collect::<Vec<_>>());
                if whole.is_none_or(|whole| !is_whole(&whole)) {
                    kept.pop();
                }
            }
            indexes.extend(scanned(&kept));
            stack.push(kept);
        }
        if let Some((from, to)) = again {
            let layer = stack[from % stack.len()].clone();
            stack.insert(to % (stack.len() + 1), layer);
            // Below what it links to, it cannot be unpacked.
            let indexes: Vec<_> = stack.iter().filter_map(|items| scanned(items)).collect();
            prop_assume!((1..=indexes.len()).all(|count| is_whole(&indexes[..count])));
        }
        agreed(&STORE.1, &stack);
    }
}
