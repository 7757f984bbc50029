//! Every hostile layer of `fixtures/hostile-layers`, with what must come of it; and noise.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::path::PathBuf;

use proptest::prelude::*;
use rimg_formats::layer::{
    Entry, EntryKind, LayerError, LayerIndex, LayerPath, LayerReader, Limits, MergedTree, ReadMode,
};

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../fixtures/hostile-layers")
}

fn fixture(name: &str) -> Vec<u8> {
    let path = fixtures().join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn scan(blob: &[u8]) -> Result<LayerIndex, LayerError> {
    LayerIndex::scan(blob, Limits::default(), Default::default())
}

/// What the index says of an entry: its kind, path, and size or target.
fn show(entry: &Entry) -> String {
    let path = &entry.path;
    match &entry.kind {
        EntryKind::Directory => format!("dir {path}"),
        EntryKind::Regular { size } => format!("file {path} {size}"),
        EntryKind::Symlink { target } => format!("link {path} -> {}", String::from_utf8_lossy(target)),
        EntryKind::Hardlink { target } => format!("hard {path} = {target}"),
        EntryKind::CharDevice { major, minor } => format!("char {path} {major}:{minor}"),
        EntryKind::BlockDevice { major, minor } => format!("block {path} {major}:{minor}"),
        EntryKind::Fifo => format!("fifo {path}"),
        EntryKind::Whiteout => format!("gone {path}"),
        EntryKind::OpaqueMarker => format!("opaque {path}"),
    }
}

type Case = (&'static str, &'static [&'static str]);

/// Layers that are refused, and a part of the reason.
const REFUSED: &[(&str, &str)] = &[
    ("dot-dot.tar", "leaves its directory by `..`"),
    ("dot-dot-inside.tar", "leaves its directory by `..`"),
    ("dot-dot-last.tar", "leaves its directory by `..`"),
    ("dot-dot-in-pax.tar", "leaves its directory by `..`"),
    ("dot-dot-in-gnu-long-name.tar", "leaves its directory by `..`"),
    ("prefix-dot-dot.tar", "leaves its directory by `..`"),
    ("sparse-1.0-dot-dot.tar", "leaves its directory by `..`"),
    ("hardlink-dot-dot.tar", "its target: the path leaves its directory"),
    ("empty-name.tar", "root of a layer can only be a directory"),
    ("root-as-file.tar", "root of a layer can only be a directory"),
    ("root-as-symlink.tar", "root of a layer can only be a directory"),
    ("long-component.tar", "longer than 255 bytes"),
    ("long-path.tar", "longer than 4096 bytes"),
    ("write-through-file.tar", "`x/y` is refused: it lies under `x`"),
    ("hardlink-to-itself.tar", "hard link to itself"),
    ("hardlink-to-root.tar", "hard link to itself or to the root"),
    ("hardlink-with-content.tar", "content of its own"),
    ("symlink-with-content.tar", "content of its own"),
    ("device-with-content.tar", "content of its own"),
    ("pax-size-of-symlink.tar", "content of its own"),
    ("symlink-empty-target.tar", "target of the symbolic link"),
    ("symlink-long-target.tar", "target of the symbolic link"),
    ("device-huge-number.tar", "device number 4294967296 is too large"),
    ("whiteout-of-nothing.tar", "whiteout of nothing"),
    ("whiteout-of-dot.tar", "whiteout of nothing, of its directory"),
    ("whiteout-of-dot-dot.tar", "or of the parent"),
    ("whiteout-in-whiteout.tar", "lies below a whiteout"),
    ("whiteout-as-symlink.tar", "not a regular file"),
    ("whiteout-as-directory.tar", "not a regular file"),
    ("hardlink-to-whiteout.tar", "hard link to a whiteout"),
    ("xattr-many.tar.gz", "more than 1024 extended attributes"),
    ("xattr-long-name.tar", "name of an extended attribute"),
    ("xattr-large-value.tar.gz", "longer than 65536 bytes"),
    ("xattr-nul-name.tar", "bad key"),
    ("pax-huge.tar.gz", "limit of 1048576 bytes in an extended header"),
    ("pax-claims-exabytes.tar", "limit of 1048576 bytes in an extended header"),
    ("gnu-long-name-huge.tar.gz", "limit of 1048576 bytes in an extended header"),
    ("pax-size-overflow.tar", "`9223372036854775808` is not a decimal number in range"),
    ("pax-size-negative.tar", "`-512` is not a decimal number"),
    ("pax-size-hex.tar", "`0x200` is not a decimal number"),
    ("pax-nul-in-path.tar", "holds a NUL byte"),
    ("pax-nul-in-key.tar", "bad key"),
    ("pax-no-newline.tar", "wrong length"),
    ("pax-length-too-long.tar", "wrong length"),
    ("pax-length-too-short.tar", "wrong length"),
    ("pax-length-zero.tar", "wrong length"),
    ("pax-length-huge.tar", "wrong length"),
    ("pax-no-equals.tar", "wrong length"),
    ("pax-twice.tar", "two extended headers of a kind"),
    ("pax-at-the-end.tar", "in the middle of an extended header"),
    ("pax-mtime-nonsense.tar", "`1e999` is not a decimal number"),
    ("pax-uid-huge.tar", "is not a decimal number in range"),
    ("pax-charset.tar", "neither BINARY nor UTF-8"),
    ("pax-global-path.tar", "global extended header sets `path`"),
    ("pax-global-size.tar", "global extended header sets `size`"),
    ("gnu-long-name-twice.tar", "two extended headers of a kind"),
    ("size-negative.tar", "size is negative"),
    ("size-exabytes.tar", "limit of 17592186044416 bytes in one file"),
    ("size-overflow.tar", "size is not a number"),
    ("size-not-a-number.tar", "size is not a number"),
    ("size-lies-short.tar", "checksum"),
    ("size-lies-long.tar", "in the middle of a file"),
    ("sparse-exabytes.tar", "limit of 17592186044416 bytes in one file"),
    ("sparse-overlap.tar", "overlaps"),
    ("sparse-beyond-end.tar", "reaches to 4608, the file only to 4096"),
    ("sparse-offset-overflow.tar", "reaches to 18446744073709551614"),
    ("sparse-stores-less.tar", "stores 1024 bytes, the archive 512"),
    ("sparse-endless-map.tar", "sparse map is empty"),
    ("sparse-1.0-count-lies.tar", "more than 262144 segments"),
    ("sparse-1.0-no-map.tar", "line that is no number"),
    ("sparse-0.0-odd.tar", "two sparse offsets"),
    ("sparse-unknown-format.tar", "sparse format is not supported"),
    ("sparse-name-without-map.tar", "name of a sparse file"),
    ("sparse-name-of-symlink.tar", "name of a sparse file"),
    ("checksum-wrong.tar", "checksum"),
    ("single-zero-block.tar", "single zero block"),
    ("truncated-header.tar", "in the middle of a header"),
    ("truncated-content.tar", "in the middle of a file"),
    ("truncated-pax.tar", "in the middle of an extended header"),
    ("type-unknown.tar", "its type `Z` is not supported"),
    ("type-multivolume.tar", "its type `M` is not supported"),
    ("not-a-tar.tar", "not a tar archive"),
    ("gzip-trailing-garbage.tar.gz", "not gzip"),
    ("gzip-trailing-zeros.tar.gz", "not gzip"),
    ("gzip-wrong-crc.tar.gz", "damaged"),
    ("gzip-truncated.tar.gz", "in the middle of"),
    ("zstd-huge-window.tar.zst", "too much memory"),
    ("xz-huge-dictionary.tar.xz", "memory"),
    ("bzip2-truncated.tar.bz2", "in the middle of"),
];

/// Layers that are read, and all that the index then says.
const READ: &[Case] = &[
    ("absolute-path.tar", &["file etc/passwd 1"]),
    ("write-through-symlink.tar", &["file etc/passwd 1", "link x -> /etc"]),
    ("write-through-relative-symlink.tar", &["dir d", "link d/up -> ../..", "file etc/passwd 1"]),
    ("directory-replaced-then-written.tar", &["file etc/passwd 1", "link x -> /etc"]),
    ("terminal-escape.tar", &["file a\u{241b}]0;owned\u{2407}b\u{240a} 1"]),
    ("symlink-replaced-by-directory.tar", &["dir x", "file x/passwd 1"]),
    ("directory-replaced-by-symlink.tar", &["link x -> /etc"]),
    ("hardlink-absolute.tar", &["hard h = etc/shadow"]),
    ("hardlink-through-symlink.tar", &["hard h = x/etc/shadow", "link x -> /"]),
    ("hardlink-circle.tar", &["hard a = b", "hard b = a"]),
    ("directory-with-size.tar", &["file after 1", "dir d"]),
    ("duplicate-file.tar", &["file a 10"]),
    ("duplicate-kinds.tar", &["file d 1", "dir e", "file e/f 1"]),
    ("case-and-dot-duplicates.tar", &["file A 1", "file a 4"]),
    ("devices.tar", &["char mem 1:1", "fifo pipe", "block sda 8:0"]),
    ("whiteout-of-whiteout.tar", &[]),
    ("whiteout-aufs.tar", &["file f 1"]),
    ("whiteout-of-own-file.tar", &["opaque d", "gone d/f", "file d/f 1"]),
    ("whiteout-with-content.tar", &["file after 1", "gone d/f"]),
    ("overlay-xattrs.tar", &["dir d"]),
    ("pax-size-desync.tar", &["file after 1", "file f 512"]),
    ("pax-duplicate-record.tar", &["file b 1"]),
    ("pax-global-comment.tar", &["file a 1"]),
    ("gnu-and-pax-names.tar", &["file from-pax 1"]),
    ("sparse-gnu-10g.tar", &["file after 1", "file hole 10737418240"]),
    ("sparse-1.0-10g.tar", &["file after 1", "file hole 10737418240"]),
    ("sparse-0.1-small.tar", &["file real 2000"]),
    ("sparse-one-hole.tar", &["file after 1", "file hole 2000"]),
    ("second-archive.tar", &["file a 1"]),
    ("garbage-behind-the-end.tar", &["file a 1"]),
    ("no-end.tar", &["file a 1"]),
    ("half-an-end.tar", &["file a 1"]),
    ("empty.tar", &[]),
    ("only-zeros.tar", &[]),
    ("gzip-second-archive.tar.gz", &["file a 1"]),
    ("gzip-empty-members.tar.gz", &["file a 1"]),
    ("gzip-bomb.tar.gz", &["file zeros 16777216"]),
];

#[test]
fn every_fixture_comes_to_what_it_should() {
    for (name, reason) in REFUSED {
        let error = scan(&fixture(name)).map(|index| index.entries).expect_err(name).to_string();
        assert!(error.contains(reason), "{name}: {error}");
    }
    for (name, expected) in READ {
        let index = scan(&fixture(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        let shown: Vec<String> = index.entries.iter().map(|entry| show(&entry.entry)).collect();
        assert_eq!(shown, *expected, "{name}");
        assert_eq!(LayerIndex::from_bytes(&index.to_bytes()).unwrap(), index, "{name}");
    }
}

#[test]
fn the_table_and_the_folder_agree() {
    let names = REFUSED.iter().map(|(name, _)| *name).chain(READ.iter().map(|(name, _)| *name));
    let table: BTreeSet<String> = names.map(str::to_owned).collect();
    assert_eq!(table.len(), REFUSED.len() + READ.len(), "a fixture stands twice in the table");
    let entries =
        std::fs::read_dir(fixtures()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let folder: BTreeSet<String> = entries.filter(|name| name.contains(".tar")).collect();
    assert_eq!(table, folder);
}

fn project() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn list_of_attacks() -> String {
    std::fs::read_to_string(project().join("HOSTILE.md")).unwrap()
}

/// The words in backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

#[test]
fn every_fixture_has_its_line_in_the_list_of_attacks() {
    let list = list_of_attacks();
    for name in REFUSED.iter().map(|(name, _)| name).chain(READ.iter().map(|(name, _)| name)) {
        assert!(list.contains(&format!("`{name}`")), "{name} is not in HOSTILE.md");
    }
}

/// A row's third column names tests: each after its file, or in the file that the section's text names last.
#[test]
fn every_test_in_the_list_of_attacks_exists() {
    let (mut usual, mut tests) = (String::new(), 0);
    for line in list_of_attacks().lines() {
        let columns: Vec<&str> = line.split(" | ").collect();
        let [_, _, column, ..] = columns[..] else {
            let file = quoted(line).filter(|word| word.ends_with(".rs")).last();
            usual = file.map_or(usual, str::to_owned);
            continue;
        };
        let mut file = usual.clone();
        let before = tests;
        for word in quoted(column) {
            if word.ends_with(".rs") {
                file = word.to_owned();
                continue;
            }
            let source = std::fs::read_to_string(project().join(&file)).unwrap_or_default();
            assert!(source.contains(&format!("fn {word}(")), "`{file}` has no test `{word}`, in: {line}");
            tests += 1;
        }
        assert!(tests > before || column == "test", "no test is named in: {line}");
    }
    assert!(tests > 150, "only {tests} tests were found: is the table still what it was?");
}

#[test]
fn attributes_of_the_machine_are_dropped() {
    let index = scan(&fixture("overlay-xattrs.tar")).unwrap();
    let names: Vec<&[u8]> = index.entries[0].entry.xattrs.keys().map(Vec::as_slice).collect();
    assert_eq!(names, [b"user.kept"]);
}

#[test]
fn hard_links_to_nothing_or_in_circles_have_no_content() {
    for name in ["hardlink-circle.tar", "hardlink-through-symlink.tar", "hardlink-absolute.tar"] {
        let index = std::sync::Arc::new(scan(&fixture(name)).unwrap());
        let tree = MergedTree::new(&[index]);
        let links = tree
            .walk(&LayerPath::root())
            .filter(|(_, node)| matches!(node.kind(), EntryKind::Hardlink { .. }));
        for (path, node) in links {
            assert!(tree.link_source(node).is_none(), "{name}: {path}");
            let opened = tree.read_file(node, |_| panic!("nothing is to be opened"));
            assert!(opened.is_err());
        }
    }
}

#[test]
fn a_last_duplicate_is_the_one_that_is_read() {
    let blob = fixture("duplicate-file.tar");
    let index = scan(&blob).unwrap();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&blob).unwrap();
    let mut content = String::new();
    index.read_file(&index.entries[0], file).unwrap().read_to_string(&mut content).unwrap();
    assert_eq!(content, "second one");
}

#[test]
fn holes_cost_nothing() {
    for name in ["sparse-gnu-10g.tar", "sparse-1.0-10g.tar"] {
        let blob = fixture(name);
        let mut reader = LayerReader::new(blob.as_slice(), Limits::default()).unwrap();
        let entry = reader.next_entry().unwrap().unwrap();
        let mut file = tempfile::tempfile().unwrap();
        assert_eq!(reader.content().copy_to(&mut file).unwrap(), entry.size());
        let metadata = file.metadata().unwrap();
        assert_eq!(metadata.len(), 10 << 30);
        use std::os::unix::fs::{FileExt, MetadataExt};
        assert!(metadata.blocks() < 64, "the hole takes {} blocks on disk", metadata.blocks());
        let mut last = [0; 513];
        file.read_exact_at(&mut last, (10 << 30) - 513).unwrap();
        assert_eq!((last[0], &last[1..]), (0, &[b's'; 512][..]));
        assert_eq!(reader.next_entry().unwrap().unwrap().path.to_string(), "after");
        assert!(scan(&blob).unwrap().get(&LayerPath::parse("hole").unwrap()).unwrap().content.is_none());
    }
}

#[test]
fn sparse_content_is_expanded() {
    let mut pieces = vec![0; 2000];
    pieces[..4].copy_from_slice(b"head");
    pieces[1000..1004].copy_from_slice(b"tail");
    for (name, at, expected) in
        [("sparse-0.1-small.tar", 0, pieces), ("sparse-one-hole.tar", 1, vec![0; 2000])]
    {
        let blob = fixture(name);
        let mut reader = LayerReader::new(blob.as_slice(), Limits::default()).unwrap();
        reader.next_entry().unwrap().unwrap();
        let mut content = Vec::new();
        reader.content().read_to_end(&mut content).unwrap();
        assert_eq!(content, expected, "{name}");
        let index = scan(&blob).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&blob).unwrap();
        let mut content = Vec::new();
        index.read_file(&index.entries[at], file).unwrap().read_to_end(&mut content).unwrap();
        assert_eq!(content, expected, "{name}");
        assert_eq!(index.entries[at].content, Some(rimg_formats::digest::Digest::sha256(&expected)));
    }
}

#[test]
fn directories_that_no_entry_names_are_limited_too() {
    // Fifty names bring a hundred thousand directories: in memory, on disk, and for every step that looks at them.
    let mut builder = tar::Builder::new(Vec::new());
    for number in 0..50 {
        let mut header = tar::Header::new_gnu();
        header.set_size(0);
        let path = format!("{number}/{}f", "d/".repeat(2000));
        builder.append_data(&mut header, path, std::io::empty()).unwrap();
    }
    let blob = builder.into_inner().unwrap();
    let limits = |max_entries| Limits { max_entries, ..Limits::default() };
    let error = LayerIndex::scan(blob.as_slice(), limits(100_000), Default::default()).unwrap_err();
    assert!(error.to_string().contains("100000 directories"), "{error}");
    let index = LayerIndex::scan(blob.as_slice(), limits(100_050), Default::default()).unwrap();
    assert_eq!(index.entries.len(), 50);
}

#[test]
fn limits_hold() {
    let defaults = Limits::default();
    let cases = [
        ("gzip-bomb.tar.gz", Limits { max_uncompressed: 1 << 20, ..defaults }, "uncompressed bytes"),
        ("gzip-bomb.tar.gz", Limits { ratio_free: 1 << 20, ..defaults }, "for each compressed one"),
        ("duplicate-kinds.tar", Limits { max_entries: 3, ..defaults }, "entries"),
        ("sparse-gnu-10g.tar", Limits { max_file: 1 << 30, ..defaults }, "bytes in one file"),
        ("overlay-xattrs.tar", Limits { max_metadata: 3, ..defaults }, "names and attributes"),
    ];
    for (name, limits, what) in cases {
        let error = LayerIndex::scan(fixture(name).as_slice(), limits, Default::default()).unwrap_err();
        assert!(
            matches!(&error, LayerError::Limit { .. }) && error.to_string().contains(what),
            "{name}: {error}"
        );
    }
}

/// A large sparse file compresses a thousandfold honestly. What an image names is known for it by its digest.
#[test]
fn what_is_proven_is_no_bomb() {
    let bomb = fixture("gzip-bomb.tar.gz");
    let limits = Limits { ratio_free: 1 << 20, ..Limits::default() };
    let refused = LayerIndex::scan(bomb.as_slice(), limits, Default::default()).unwrap_err();
    assert!(refused.is_ratio(), "{refused}");
    for algorithm in rimg_formats::digest::Algorithm::ALL {
        let mut tar = Vec::new();
        let mut decoder = rimg_formats::compression::Decoder::detect(Box::new(bomb.as_slice())).unwrap();
        decoder.read_to_end(&mut tar).unwrap();
        let diff_id = rimg_formats::digest::DiffId::new(rimg_formats::digest::Digest::of(algorithm, &tar));
        let expected = rimg_formats::layer::Expected { blob: None, diff_id: Some(diff_id) };
        assert_eq!(LayerIndex::scan(bomb.as_slice(), limits, expected).unwrap().diff_id, diff_id);
        let total = Limits { max_uncompressed: 1 << 20, ..limits };
        assert!(LayerIndex::scan(bomb.as_slice(), total, expected).is_err(), "the limit on all of it stays");
    }
    let proven = limits.without_ratio();
    assert!(LayerIndex::scan(bomb.as_slice(), proven, Default::default()).is_ok());
}

/// Behind a layer there is nothing; copies of archives in blocks have zeros there, which other tools never read.
#[test]
fn an_archive_may_be_followed_by_zeros() {
    let scan =
        |name| LayerIndex::scan_archive(fixture(name).as_slice(), Limits::default(), Default::default());
    let index = scan("gzip-trailing-zeros.tar.gz").unwrap();
    assert_eq!(index.entries.len(), 1);
    assert_eq!(index.blob_size, fixture("gzip-trailing-zeros.tar.gz").len() as u64);
    assert!(scan("gzip-trailing-garbage.tar.gz").unwrap_err().to_string().contains("not gzip"));
}

#[test]
fn archives_cannot_bring_whiteouts() {
    for name in ["whiteout-of-own-file.tar", "whiteout-aufs.tar", "whiteout-with-content.tar"] {
        let blob = fixture(name);
        let mut reader =
            LayerReader::with_mode(blob.as_slice(), Limits::default(), ReadMode::Archive).unwrap();
        let error = loop {
            match reader.next_entry() {
                Ok(entry) => assert!(entry.is_some(), "{name} was read to its end"),
                Err(error) => break error,
            }
        };
        assert!(error.to_string().contains("`.wh.`"), "{name}: {error}");
    }
}

#[test]
fn another_blob_is_called_so() {
    let blob = fixture("absolute-path.tar");
    let right = scan(&blob).unwrap();
    let wrong = rimg_formats::digest::Digest::sha256(b"something else");
    let expect = |blob, diff_id| rimg_formats::layer::Expected { blob, diff_id };
    let with = |bytes: &[u8], expected| LayerIndex::scan(bytes, Limits::default(), expected);
    assert_eq!(with(&blob, expect(Some(right.blob), Some(right.diff_id))).unwrap(), right);
    let damaged = fixture("checksum-wrong.tar");
    for (bytes, expected) in [
        (&blob, expect(Some(wrong), None)),
        (&blob, expect(None, Some(rimg_formats::digest::DiffId::new(wrong)))),
        (&damaged, expect(Some(wrong), None)),
    ] {
        assert!(matches!(with(bytes, expected), Err(LayerError::Mismatch { .. })));
    }
    let sha512 = rimg_formats::digest::Digest::of(rimg_formats::digest::Algorithm::Sha512, &blob);
    assert_eq!(with(&blob, expect(Some(sha512), None)).unwrap().blob, sha512);
}

#[test]
fn a_damaged_index_asks_to_be_rebuilt() {
    let bytes = scan(&fixture("duplicate-kinds.tar")).unwrap().to_bytes();
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1;
        let error = LayerIndex::from_bytes(&damaged).unwrap_err().to_string();
        assert!(error.contains("rebuild it"), "byte {at}: {error}");
        assert!(LayerIndex::from_bytes(&bytes[..at]).is_err());
    }
    assert!(LayerIndex::from_bytes(&[&bytes[..], b"x"].concat()).is_err());
}

/// Limits under which any noise is dealt with quickly.
const SMALL: Limits = Limits {
    max_uncompressed: 4 << 20,
    max_ratio: 2000,
    ratio_free: 0,
    max_entries: 1000,
    max_file: 1 << 20,
    max_metadata: 1 << 20,
};

fn read_everything(blob: &[u8]) {
    for mode in [ReadMode::Layer, ReadMode::Archive] {
        let Ok(mut reader) = LayerReader::with_mode(blob, SMALL, mode) else { continue };
        while let Ok(Some(entry)) = reader.next_entry() {
            let mut content = Vec::new();
            if reader.content().read_to_end(&mut content).is_ok() {
                assert_eq!(content.len() as u64, entry.size());
            }
        }
    }
    if let Ok(index) = LayerIndex::scan(blob, SMALL, Default::default()) {
        assert_eq!(LayerIndex::from_bytes(&index.to_bytes()).unwrap(), index);
        let tree = MergedTree::new(&[std::sync::Arc::new(index)]);
        for (path, node) in tree.walk(&LayerPath::root()) {
            let _ = (tree.resolve(path.as_bytes()), tree.link_source(node));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn noise_never_panics(noise in proptest::collection::vec(any::<u8>(), 0..3000)) {
        read_everything(&noise);
        let _ = LayerIndex::from_bytes(&noise);
    }

    #[test]
    fn changed_fixtures_never_panic(
        which in any::<prop::sample::Index>(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        repair in any::<bool>(),
    ) {
        let names: Vec<&str> = REFUSED.iter().map(|(name, _)| *name).chain(READ.iter().map(|(name, _)| *name)).collect();
        let mut blob = fixture(names[which.index(names.len())]);
        prop_assume!(!blob.is_empty());
        for (at, value) in changes {
            let at = at.index(blob.len());
            blob[at] = value;
            if repair {
                repair_checksum(&mut blob, at / 512 * 512);
            }
        }
        read_everything(&blob);
    }
}

/// Makes the checksum of a changed header right again, so that the change is looked at.
fn repair_checksum(blob: &mut [u8], start: usize) {
    let Some(block) = blob.get_mut(start..start + 512).filter(|block| block[257..262] == *b"ustar") else {
        return;
    };
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}
