//! Several layers seen as one tree.
#![allow(clippy::unwrap_used, missing_docs)]

use std::io::{Read, Write};
use std::sync::Arc;

use rimg_formats::layer::{
    Entry, EntryKind, LayerIndex, LayerOptions, LayerPath, LayerWriter, MergedTree, ResolveError, layer_order,
};

fn path(text: &str) -> LayerPath {
    LayerPath::parse(text).unwrap()
}

/// One line an entry: `dir a/`, `file a/b`, `link a -> b`, `hard a = b`, `gone a`, `opaque a`.
fn parse(line: &str) -> Entry {
    let (word, rest) = line.trim_start().split_once(' ').unwrap();
    let (name, kind) = match word {
        "dir" => (rest, EntryKind::Directory),
        "file" => (rest, EntryKind::Regular { size: rest.len() as u64 }),
        "gone" => (rest, EntryKind::Whiteout),
        "opaque" => (rest, EntryKind::OpaqueMarker),
        "link" => {
            let (name, target) = rest.split_once(" -> ").unwrap();
            (name, EntryKind::Symlink { target: target.as_bytes().to_vec() })
        }
        "hard" => {
            let (name, target) = rest.split_once(" = ").unwrap();
            (name, EntryKind::Hardlink { target: path(target) })
        }
        other => panic!("{other}"),
    };
    Entry::new(path(name), kind, 0o700)
}

/// An index over a tar that the writer would refuse to make (links to files below), for its entries alone.
fn index(text: &str) -> Arc<LayerIndex> {
    let mut entries: Vec<Entry> = text.lines().filter(|line| !line.trim().is_empty()).map(parse).collect();
    entries.sort_by(layer_order);
    let empty = LayerWriter::new(Vec::new(), LayerOptions::default()).unwrap().finish().unwrap().index;
    let wrap =
        |entry| rimg_formats::layer::IndexEntry { entry, content: None, offset: 0, segments: Vec::new() };
    Arc::new(LayerIndex { entries: entries.into_iter().map(wrap).collect(), ..empty })
}

fn tree(layers: &[&str]) -> MergedTree {
    MergedTree::new(&layers.iter().map(|text| index(text)).collect::<Vec<_>>())
}

/// `path:layer`, with `-` for what no layer mentions.
fn listing(tree: &MergedTree) -> Vec<String> {
    let show = |(path, node): (LayerPath, rimg_formats::layer::Node<'_>)| {
        format!("{path}:{}", node.layer.map_or("-".to_owned(), |layer| layer.to_string()))
    };
    tree.walk(&LayerPath::root()).skip(1).map(show).collect()
}

#[test]
fn layers_apply_in_order() {
    let cases: &[(&[&str], &[&str])] = &[
        (&["file a", "file a"], &["a:1"]),
        (&["dir d\nfile d/a", "gone d/a"], &["d:0"]),
        (&["dir d\nfile d/a", "gone d"], &[]),
        (&["dir d\nfile d/a", "dir d\nopaque d\nfile d/b"], &["d:1", "d/b:1"]),
        // No directory can hide whole layers.
        (&["file a", "opaque "], &["a:0"]),
        // A marker never touches its own layer.
        (&["file a", "gone a\nfile a"], &["a:1"]),
        (&["dir d\nfile d/a", "gone d\ndir d\nfile d/b"], &["d:1", "d/b:1"]),
        // A directory over a directory keeps what is in it; anything else replaces all.
        (&["dir d\nfile d/a", "dir d"], &["d:1", "d/a:0"]),
        (&["dir d\nfile d/a", "file d"], &["d:1"]),
        (&["file d", "dir d\nfile d/a"], &["d:1", "d/a:1"]),
        (&["link d -> e\ndir e", "dir d\nfile d/a"], &["d:1", "d/a:1", "e:0"]),
        // Parents that nobody mentions.
        (&["file a/b/c"], &["a:-", "a/b:-", "a/b/c:0"]),
        (&["file a/b/c", "dir a"], &["a:1", "a/b:-", "a/b/c:0"]),
        (&["file a", "file a/b"], &["a:-", "a/b:1"]),
        // What lies below a link of the layers below makes a directory of it, with the attributes of what it leads to.
        (
            &["link lib -> usr/lib\ndir usr\ndir usr/lib\ndir usr/lib/y", "file lib/x\nfile lib/y/z"],
            &["lib:0", "lib/x:1", "lib/y:0", "lib/y/z:1", "usr:0", "usr/lib:0", "usr/lib/y:0"],
        ),
        (
            &["link lib -> /usr/lib\nfile usr/lib/x", "gone lib/x"],
            &["lib:-", "usr:-", "usr/lib:-", "usr/lib/x:0"],
        ),
        (
            &["link lib -> /usr/lib\nfile usr/lib/x", "opaque lib\nfile lib/y"],
            &["lib:-", "lib/y:1", "usr:-", "usr/lib:-", "usr/lib/x:0"],
        ),
        (&["link lib -> lib", "file lib/x\nfile a"], &["a:1", "lib:-", "lib/x:1"]),
        (&["file a", "gone a/x"], &["a:-"]),
        // A directory that the layer removes does not lend its attributes; one that it only empties does.
        (&["dir d\nfile d/a", "gone d\nfile d/b"], &["d:-", "d/b:1"]),
        (&["dir d\nfile d/a", "opaque d\nfile d/b"], &["d:0", "d/b:1"]),
        (&["dir d\ndir d/e\nfile d/e/a", "opaque d\nfile d/e/b"], &["d:0", "d/e:-", "d/e/b:1"]),
        (&["dir a\nfile a/x", "gone nothing/there\ngone a/y"], &["a:0", "a/x:0", "nothing:-"]),
    ];
    for (layers, expected) in cases {
        assert_eq!(listing(&tree(layers)), *expected, "{layers:?}");
    }
}

#[test]
fn a_tree_is_not_changed_by_what_is_put_on_it() {
    let base = tree(&["dir a\nfile a/b\nfile a/c\ndir z\nfile z/z"]);
    let before = listing(&base);
    let above = base.with_layer(index("gone a/b\nfile a/d\nfile new/deep/file"));
    assert_eq!(listing(&base), before);
    assert_eq!(
        listing(&above),
        ["a:0", "a/c:0", "a/d:1", "new:-", "new/deep:-", "new/deep/file:1", "z:0", "z/z:0"]
    );
}

#[test]
fn paths_resolve_as_inside() {
    let tree = tree(&["
        dir usr
        dir usr/lib
        file usr/lib/os-release
        link etc/os-release -> ../usr/lib/os-release
        link lib -> usr/lib
        link up -> ../../../../usr
        link abs -> /lib/os-release
        link dangling -> /var/none/x
        link loop -> loop
        link self/a -> ../self/b
        file file
    "]);
    let found = [
        ("/etc/os-release", "usr/lib/os-release"),
        ("lib/os-release", "usr/lib/os-release"),
        ("lib/../lib/./os-release", "usr/lib/os-release"),
        ("../../lib", "usr/lib"),
        ("up/lib", "usr/lib"),
        ("abs", "usr/lib/os-release"),
        ("", ""),
        ("/", ""),
        ("etc", "etc"),
        ("file/", "file"),
    ];
    for (asked, expected) in found {
        let resolved = tree.resolve(asked).unwrap();
        assert_eq!(resolved.path, path(expected), "{asked}");
        assert!(resolved.node.is_some(), "{asked}");
    }
    let missing = [
        ("dangling", "var/none/x"),
        ("dangling/more", "var/none/x/more"),
        ("lib/new/file", "usr/lib/new/file"),
        ("no/such/../file", "no/file"),
        ("self/a", "self/b"),
    ];
    for (asked, expected) in missing {
        let resolved = tree.resolve(asked).unwrap();
        assert_eq!(resolved.path, path(expected), "{asked}");
        assert!(resolved.node.is_none(), "{asked}");
    }
    assert!(matches!(tree.resolve("loop"), Err(ResolveError::Links(_))));
    assert_eq!(tree.resolve("file/x").unwrap_err(), ResolveError::NotADirectory(path("file")));
    let link = tree.resolve_no_follow("lib/../../abs").unwrap();
    assert_eq!(link.path, path("abs"));
    assert!(matches!(link.node.unwrap().kind(), EntryKind::Symlink { .. }));
    assert_eq!(tree.resolve_no_follow("lib/os-release").unwrap().path, path("usr/lib/os-release"));
    assert_eq!(tree.resolve_no_follow("lib").unwrap().path, path("lib"));
}

#[test]
fn lookups_and_lists_follow_nothing() {
    let tree = tree(&["dir d\nfile d/b\nfile d/a\nlink l -> d"]);
    assert!(tree.lookup(&path("l/a")).is_none());
    assert!(tree.lookup(&path("d/a")).is_some());
    assert!(tree.lookup(&LayerPath::root()).unwrap().is_directory());
    let names: Vec<&[u8]> = tree.read_dir(&path("d")).unwrap().map(|(name, _)| name).collect();
    assert_eq!(names, [b"a", b"b"]);
    assert!(tree.read_dir(&path("l")).is_none());
    assert_eq!(tree.walk(&path("none")).count(), 0);
    assert_eq!(tree.walk(&path("d")).count(), 3);
}

#[test]
fn hard_links_find_their_file() {
    let tree = tree(&[
        "file base",
        "file a\nhard b = a\nhard c = b\nhard d = base\nhard e = none\nhard f = f2\nhard f2 = f",
        "gone base\ngone a",
    ]);
    let source = |name: &str| {
        let node = tree.lookup(&path(name)).unwrap();
        tree.link_source(node).map(|node| format!("{}:{}", node.entry.unwrap().path(), node.layer.unwrap()))
    };
    // What later layers remove is only a name.
    assert_eq!(source("b").as_deref(), Some("a:1"));
    assert_eq!(source("c").as_deref(), Some("a:1"));
    assert_eq!(source("d").as_deref(), Some("base:0"));
    assert_eq!(source("e"), None);
    assert_eq!(source("f"), None);
}

#[test]
fn content_is_read_through_the_tree() {
    let mut writer = LayerWriter::new(Vec::new(), LayerOptions::default()).unwrap();
    writer.append(&Entry::new(path("a"), EntryKind::Regular { size: 5 }, 0o644), &b"hello"[..]).unwrap();
    writer.append_empty(&Entry::new(path("b"), EntryKind::Hardlink { target: path("a") }, 0o644)).unwrap();
    let layer = writer.finish().unwrap();
    let tree = MergedTree::new(&[Arc::new(layer.index), index("gone a")]);
    let node = tree.lookup(&path("b")).unwrap();
    let open = |digest: &rimg_formats::digest::Digest| {
        assert_eq!(*digest, layer.digest);
        let mut file = tempfile::tempfile()?;
        file.write_all(&layer.out)?;
        Ok(file)
    };
    let mut content = String::new();
    tree.read_file(node, open).unwrap().read_to_string(&mut content).unwrap();
    assert_eq!(content, "hello");
}

#[test]
fn the_deepest_path_is_no_danger_to_the_stack() {
    let deep = vec!["d"; 2048].join("/");
    let tree = tree(&[&format!("file {deep}"), &format!("gone {deep}"), &format!("link x -> {deep}")]);
    assert_eq!(tree.walk(&LayerPath::root()).count(), 1 + 2047 + 1);
    assert!(tree.resolve("x").unwrap().node.is_none());
    drop(tree);
}
