//! What the writer writes, the reader reads back; other tar programs read it too; threads change nothing.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::process::Command;

use proptest::prelude::*;
use rimg_formats::epoch::Epoch;
use rimg_formats::layer::{
    Entry, EntryKind, FinishedLayer, LayerCompression, LayerIndex, LayerOptions, LayerPath, LayerReader,
    LayerWriter, Limits, Mtime, MtimePolicy, WriteError, layer_order,
};

type Tree = Vec<(Entry, Vec<u8>)>;

fn path(text: &str) -> LayerPath {
    LayerPath::parse(text).unwrap()
}

fn options(compression: LayerCompression, threads: usize) -> LayerOptions {
    LayerOptions { compression, threads, mtime: MtimePolicy::Preserve }
}

fn write(tree: &Tree, options: LayerOptions) -> FinishedLayer<Vec<u8>> {
    let mut writer = LayerWriter::new(Vec::new(), options).unwrap();
    for (entry, content) in tree {
        writer.append(entry, content.as_slice()).unwrap();
    }
    writer.finish().unwrap()
}

fn read(blob: &[u8]) -> Tree {
    let mut reader = LayerReader::new(blob, Limits::default()).unwrap();
    let mut tree = Tree::new();
    while let Some(entry) = reader.next_entry().unwrap() {
        let mut content = Vec::new();
        reader.content().read_to_end(&mut content).unwrap();
        tree.push((entry, content));
    }
    tree
}

fn scan(blob: &[u8]) -> LayerIndex {
    LayerIndex::scan(blob, Limits::default(), Default::default()).unwrap()
}

/// Text that compresses well and is nowhere the same: numbered copies of one page.
fn text(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut page = Vec::new();
    while page.len() < length.min(8 << 10) {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        write!(page, "word{} ", (state >> 33) % 3000).unwrap();
    }
    let mut out = Vec::with_capacity(length + page.len() + 8);
    while out.len() < length {
        out.extend_from_slice(&(out.len() as u64).to_le_bytes());
        out.extend_from_slice(&page);
    }
    out.truncate(length);
    out
}

/// Everything a layer can say, names of every encoding, and files on both sides of every boundary.
fn everything() -> Tree {
    let entry = |name: &str, kind| (Entry::new(path(name), kind, 0o644), Vec::new());
    let file = |name: &str, content: Vec<u8>| {
        (Entry::new(path(name), EntryKind::Regular { size: content.len() as u64 }, 0o644), content)
    };
    let long = format!("{}/{}", "directory-of-some-length/".repeat(12), "file");
    let mut tree = vec![
        entry("", EntryKind::Directory),
        entry("gone", EntryKind::Whiteout),
        entry("opaque", EntryKind::Directory),
        entry("opaque", EntryKind::OpaqueMarker),
        entry("opaque/gone", EntryKind::Whiteout),
        entry("link", EntryKind::Symlink { target: b"../usr/lib".to_vec() }),
        entry("long-link", EntryKind::Symlink { target: vec![b't'; 300] }),
        entry("null", EntryKind::CharDevice { major: 1, minor: 3 }),
        entry("disk", EntryKind::BlockDevice { major: 259, minor: 1_048_575 }),
        entry("pipe", EntryKind::Fifo),
        file("empty", Vec::new()),
        file("small", b"hello\n".to_vec()),
        file("sm\u{e4}ll", b"umlaut\n".to_vec()),
        file(&long, b"far away".to_vec()),
        file("large", text(3 << 20, 1)),
        file("large-1", text((256 << 10) - 1, 2)),
        file("large-2", text(256 << 10, 3)),
        file("large-3", text((1 << 20) + 1, 4)),
        entry("zz-hard", EntryKind::Hardlink { target: path("large") }),
    ];
    tree.extend((0..300).map(|n| file(&format!("many/{n}"), text(n * 37, n as u64))));
    let mut special = file("capable", b"#!".to_vec());
    special.0.mode = 0o4755;
    special.0.uid = 3_000_000;
    special.0.gid = 4_000_000_000;
    special.0.xattrs = BTreeMap::from([
        (b"security.capability".to_vec(), vec![1, 0, 0, 2, 0, b'\n', b'=']),
        (b"user.empty".to_vec(), Vec::new()),
    ]);
    special.0.mtime = Mtime { secs: 1_700_000_000, nanos: 123_456_789 };
    tree.push(special);
    let mut ancient = file("ancient", b"1901".to_vec());
    ancient.0.mtime = Mtime { secs: -2_000_000_000, nanos: 500_000_000 };
    tree.push(ancient);
    tree.sort_by(|left, right| layer_order(&left.0, &right.0));
    tree
}

/// What stands in the layer: markers have no attributes.
fn as_written(tree: &Tree) -> Tree {
    let mut tree = tree.clone();
    for (entry, _) in &mut tree {
        if matches!(entry.kind, EntryKind::Whiteout | EntryKind::OpaqueMarker) {
            entry.mode = 0;
        }
    }
    tree
}

const COMPRESSIONS: [LayerCompression; 3] =
    [LayerCompression::GZIP_DEFAULT, LayerCompression::ZSTD_DEFAULT, LayerCompression::None];

#[test]
fn reads_back_what_was_written() {
    let tree = everything();
    for compression in COMPRESSIONS {
        let layer = write(&tree, options(compression, 2));
        let back = read(&layer.out);
        assert_eq!(back.len(), tree.len());
        for (back, expected) in back.iter().zip(as_written(&tree)) {
            assert_eq!(back.0, expected.0);
            assert!(back.1 == expected.1, "{}", back.0.path);
        }
    }
}

#[test]
fn the_writers_index_is_the_one_a_scan_finds() {
    let tree = everything();
    for compression in COMPRESSIONS {
        let layer = write(&tree, options(compression, 2));
        let scanned = scan(&layer.out);
        assert_eq!(scanned.members, layer.index.members);
        assert_eq!(scanned, layer.index);
        assert_eq!(LayerIndex::from_bytes(&layer.index.to_bytes()).unwrap(), layer.index);
    }
}

#[test]
fn files_are_read_through_the_index() {
    let tree = everything();
    for compression in COMPRESSIONS {
        let layer = write(&tree, options(compression, 2));
        let mut blob = tempfile::tempfile().unwrap();
        blob.write_all(&layer.out).unwrap();
        for (entry, content) in &tree {
            let found = layer.index.get(&entry.path);
            if !matches!(entry.kind, EntryKind::Regular { .. } | EntryKind::Hardlink { .. }) {
                continue;
            }
            let source = layer.index.link_source(found.unwrap()).unwrap();
            let mut back = Vec::new();
            layer.index.read_file(source, blob.try_clone().unwrap()).unwrap().read_to_end(&mut back).unwrap();
            let expected = if entry.path == path("zz-hard") { text(3 << 20, 1) } else { content.clone() };
            assert!(back == expected, "{}", entry.path);
        }
    }
}

#[test]
fn threads_change_no_byte() {
    let tree = everything();
    for compression in COMPRESSIONS {
        let one = write(&tree, options(compression, 1));
        for threads in [2, 3, 5, 8] {
            let many = write(&tree, options(compression, threads));
            assert!(many.out == one.out, "{threads} threads");
            assert_eq!(many.index, one.index);
        }
    }
}

#[test]
fn large_content_is_the_same_member_bytes_in_every_layer() {
    let content = text(2_500_000, 9);
    let entry = |name: &str| Entry::new(path(name), EntryKind::Regular { size: content.len() as u64 }, 0o644);
    let alone = write(&vec![(entry("a"), content.clone())], options(LayerCompression::GZIP_DEFAULT, 2));
    let small = Entry::new(path("0"), EntryKind::Regular { size: 3 }, 0o644);
    let tree = vec![(small, b"abc".to_vec()), (entry("elsewhere"), content.clone())];
    let among = write(&tree, options(LayerCompression::GZIP_DEFAULT, 2));
    let members = |layer: &FinishedLayer<Vec<u8>>, name: &str| {
        let found = layer.index.get(&path(name)).unwrap();
        let (start, end) = (found.offset, found.offset + content.len() as u64);
        let own = layer.index.members.iter().filter(|m| (start..end).contains(&m.uncompressed_offset));
        own.map(|m| layer.out[m.blob_offset as usize..(m.blob_offset + m.blob_len) as usize].to_vec())
            .collect::<Vec<_>>()
    };
    assert_eq!(members(&alone, "a").len(), 3);
    assert_eq!(members(&alone, "a"), members(&among, "elsewhere"));
}

#[test]
fn an_added_file_leaves_most_members_alone() {
    let file = |name: String, seed: u64| {
        let content = text(3000 + (seed as usize * 7919) % 20_000, seed);
        (Entry::new(path(&name), EntryKind::Regular { size: content.len() as u64 }, 0o644), content)
    };
    let before: Tree = (0..1000).map(|n| file(format!("{n:05}"), n)).collect();
    let mut after = before.clone();
    after.insert(10, file("00009-new".to_owned(), 77));
    let gzip = options(LayerCompression::GZIP_DEFAULT, 2);
    let (before, after) = (write(&before, gzip), write(&after, gzip));
    let pieces = |layer: &FinishedLayer<Vec<u8>>| {
        let cut = |m: &rimg_formats::layer::Member| {
            layer.out[m.blob_offset as usize..(m.blob_offset + m.blob_len) as usize].to_vec()
        };
        layer.index.members.iter().map(cut).collect::<Vec<_>>()
    };
    let known = pieces(&before);
    let fresh = pieces(&after).iter().filter(|piece| !known.contains(piece)).count();
    assert!(known.len() > 15 && fresh <= 4, "{fresh} of {} members changed", known.len());
}

#[test]
fn fixed_time_is_the_only_time() {
    let mut tree = everything();
    let fixed = LayerOptions { mtime: MtimePolicy::Fixed(Epoch::DEFAULT), ..LayerOptions::default() };
    let first = write(&tree, fixed);
    for (entry, _) in &mut tree {
        entry.mtime = Mtime { secs: 12345, nanos: 1 };
    }
    assert_eq!(write(&tree, fixed).digest, first.digest);
    assert!(
        first
            .index
            .entries
            .iter()
            .all(|e| e.entry.mtime == Mtime { secs: Epoch::DEFAULT.seconds(), nanos: 0 })
    );
}

#[test]
fn wrong_input_is_refused_by_name() {
    let file = |name: &str, size| Entry::new(path(name), EntryKind::Regular { size }, 0o644);
    type Case = (Vec<(Entry, &'static [u8])>, &'static str);
    let cases: Vec<Case> = vec![
        (vec![(file("grown", 3), b"four")], "`grown` has more than 3 bytes"),
        (vec![(file("shrunk", 3), b"ab")], "`shrunk` has exactly 2 bytes, expected 3"),
        (vec![(file("b", 0), b""), (file("a", 0), b"")], "`a` comes after `b`"),
        (vec![(file("a", 0), b""), (file("a", 0), b"")], "`a` comes after `a`"),
        (vec![(file("a", 0), b""), (file("a/b", 0), b"")], "`a/b` lies under `a`"),
        (vec![(file(".wh.a", 0), b"")], "mean removal"),
        (
            vec![(Entry::new(path("l"), EntryKind::Hardlink { target: path("m") }, 0o644), b"")],
            "hard link to `m`",
        ),
    ];
    for (entries, message) in cases {
        let mut writer = LayerWriter::new(Vec::new(), LayerOptions::default()).unwrap();
        let result = entries.iter().try_for_each(|(entry, content)| writer.append(entry, *content));
        let error = result.unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
    let level = LayerOptions { compression: LayerCompression::Gzip { level: 13 }, ..LayerOptions::default() };
    assert!(matches!(LayerWriter::new(Vec::new(), level), Err(WriteError::Level { level: 13, .. })));
}

#[test]
fn a_failing_output_is_an_error_not_a_hang() {
    struct Full(usize);
    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 = self.0.checked_sub(bytes.len()).ok_or_else(|| std::io::Error::other("no space"))?;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let content = text(64 << 20, 5);
    let entry = Entry::new(path("big"), EntryKind::Regular { size: content.len() as u64 }, 0o644);
    let mut writer = LayerWriter::new(Full(1 << 16), LayerOptions::default()).unwrap();
    let error = writer.append(&entry, content.as_slice()).unwrap_err();
    assert!(error.to_string().contains("no space"), "{error}");
}

/// Runs a program over the layer as a file; its absence fails the test, because then nothing would be checked.
fn run_over(layer: &[u8], program: &str, arguments: &[&str]) -> String {
    let mut file = tempfile::Builder::new().suffix(".tar.gz").tempfile().unwrap();
    file.write_all(layer).unwrap();
    let output = Command::new(program).args(arguments).arg(file.path()).env("LC_ALL", "C.UTF-8").output();
    let output = output.unwrap_or_else(|error| panic!("{program} is needed for this test: {error}"));
    let complaints = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && complaints.is_empty(), "{program}: {complaints}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn gnu_tar_agrees() {
    let tree = everything();
    let layer = write(&tree, options(LayerCompression::GZIP_DEFAULT, 2));
    let listing = run_over(&layer.out, "tar", &["--quoting-style=literal", "-tzf"]);
    assert_eq!(listing.lines().count(), tree.len());
    let long = listing.lines().find(|line| line.contains("directory-of-some-length")).unwrap();
    assert_eq!(long.len(), 25 * 12 + 5 - 1);
    let details = run_over(
        &layer.out,
        "tar",
        &["--numeric-owner", "--full-time", "--xattrs", "--xattrs-include=*", "-tvvzf"],
    );
    let capable = details.lines().find(|line| line.contains("capable")).unwrap();
    assert!(capable.contains("3000000/4000000000"), "{capable}");
    assert!(capable.starts_with("-rwsr-xr-x*"), "{capable}");
    assert!(details.contains("security.capability"), "{details}");
}

#[test]
fn python_tarfile_agrees() {
    let tree = everything();
    let layer = write(&tree, options(LayerCompression::GZIP_DEFAULT, 2));
    let script = "import sys, tarfile, hashlib\n\
                  for m in tarfile.open(sys.argv[1]):\n\
                  \x20 data = tarfile.open(sys.argv[1]).extractfile(m.name).read() if m.isreg() and m.size < 300 else b''\n\
                  \x20 print(m.name, m.mode, m.uid, m.gid, m.size if m.isreg() else 0, hashlib.sha256(data).hexdigest()[:8], sep='|')\n";
    let listing = run_over(&layer.out, "python3", &["-c", script]);
    let back = read(&layer.out);
    assert_eq!(listing.lines().count(), back.len());
    for (line, (entry, _)) in listing.lines().zip(&back) {
        let fields: Vec<&str> = line.split('|').collect();
        if !matches!(entry.kind, EntryKind::Whiteout | EntryKind::OpaqueMarker) && !entry.path.is_root() {
            assert_eq!(fields[0].as_bytes(), entry.path.as_bytes());
        }
        assert_eq!(fields[1..4], [entry.mode.to_string(), entry.uid.to_string(), entry.gid.to_string()]);
    }
    assert!(listing.contains("opaque/.wh..wh..opq|0|") && listing.contains("\n.wh.gone|0|"), "{listing}");
}

#[test]
fn names_that_are_not_utf8_survive() {
    let name = LayerPath::parse(b"latin-\xe9").unwrap();
    let tree = vec![(Entry::new(name, EntryKind::Regular { size: 1 }, 0o600), b"x".to_vec())];
    let layer = write(&tree, options(LayerCompression::GZIP_DEFAULT, 1));
    assert_eq!(read(&layer.out), tree);
    let script =
        "import sys, tarfile, os\nprint([os.fsencode(n) for n in tarfile.open(sys.argv[1]).getnames()])";
    assert_eq!(run_over(&layer.out, "python3", &["-c", script]).trim(), r"[b'latin-\xe9']");
}

#[test]
fn the_longest_name_can_be_removed() {
    let whiteout = Entry::new(path(&"n".repeat(255)), EntryKind::Whiteout, 0);
    let tree = vec![(whiteout, Vec::new())];
    assert_eq!(read(&write(&tree, options(LayerCompression::None, 1)).out), tree);
}

#[test]
fn a_file_is_appended_from_where_it_stands() {
    let mut file: File = tempfile::tempfile().unwrap();
    file.write_all(&text(700_000, 3)).unwrap();
    file.rewind().unwrap();
    let entry = Entry::new(path("f"), EntryKind::Regular { size: 700_000 }, 0o644);
    let mut writer = LayerWriter::new(Vec::new(), LayerOptions::default()).unwrap();
    writer.append_file(&entry, &file).unwrap();
    let layer = writer.finish().unwrap();
    assert!(read(&layer.out)[0].1 == text(700_000, 3));
}

fn any_tree() -> impl Strategy<Value = Tree> {
    let component = prop_oneof![
        4 => proptest::collection::vec(prop_oneof![Just(b'a'), Just(b'-'), Just(b'.'), Just(b'b')], 1..3),
        1 => proptest::collection::vec(any::<u8>(), 1..40),
        1 => proptest::collection::vec(Just(b'n'), 90..255),
    ];
    let names = proptest::collection::vec(component, 1..5).prop_map(|parts| parts.join(&b'/'));
    let kinds = prop_oneof![
        5 => (0_u64..3000).prop_map(|size| EntryKind::Regular { size }),
        1 => Just(EntryKind::Directory),
        1 => proptest::collection::vec(1_u8..=255, 1..200).prop_map(|target| EntryKind::Symlink { target }),
        1 => (0_u32..4096, 0_u32..1_048_576).prop_map(|(major, minor)| EntryKind::CharDevice { major, minor }),
        1 => Just(EntryKind::Whiteout),
        1 => Just(EntryKind::OpaqueMarker),
    ];
    let attributes = (
        0_u32..0o10_000,
        any::<u32>(),
        any::<u64>().prop_map(|id| id >> 2),
        any::<i64>(),
        0_u32..1_000_000_000,
    );
    let xattrs =
        proptest::collection::btree_map("[a-z.]{1,9}".prop_map(String::into_bytes), any::<Vec<u8>>(), 0..3);
    let one =
        (names, kinds, attributes, xattrs).prop_filter_map("clean", |(name, kind, attributes, xattrs)| {
            let path = LayerPath::parse(&name).ok().filter(|path| !path.is_root())?;
            let (mode, uid, gid, secs, nanos) = attributes;
            // Tar says times in decimals of at most 63 bits.
            let mtime = Mtime { secs: secs >> 2, nanos };
            Some(Entry { path, kind, mode, uid: uid.into(), gid, mtime, xattrs })
        });
    proptest::collection::vec(one, 0..40).prop_map(arrange)
}

/// Sorts, and drops what a layer cannot say.
fn arrange(mut entries: Vec<Entry>) -> Tree {
    entries.sort_by(layer_order);
    entries.dedup_by(|a, b| layer_order(a, b).is_eq());
    let reserved = |entry: &Entry| entry.path.components().any(|name| name.starts_with(b".wh."));
    entries.retain(|entry| !reserved(entry));
    let mut tree = Tree::new();
    let mut blocker: Option<LayerPath> = None;
    for mut entry in entries {
        if blocker.as_ref().is_some_and(|blocker| entry.path.starts_with(blocker)) {
            continue;
        }
        match entry.kind {
            EntryKind::Directory => {}
            EntryKind::Whiteout | EntryKind::OpaqueMarker => {
                (entry.mode, entry.uid, entry.gid) = (0, 0, 0);
                entry.xattrs.clear();
            }
            _ => blocker = Some(entry.path.clone()),
        }
        let content = text(entry.size() as usize, entry.mode.into());
        tree.push((entry, content));
    }
    tree
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn any_tree_reads_back(tree in any_tree(), which in 0_usize..3) {
        let layer = write(&tree, options(COMPRESSIONS[which], 2));
        prop_assert_eq!(&read(&layer.out), &tree);
        prop_assert_eq!(scan(&layer.out), layer.index.clone());
        prop_assert_eq!(LayerIndex::from_bytes(&layer.index.to_bytes()).unwrap(), layer.index);
    }
}
