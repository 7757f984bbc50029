//! Layers of other programs: every format that GNU tar and Python can write, packed in every way, says the same.
#![allow(clippy::unwrap_used, missing_docs)]

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;
use std::process::Command;

use rimg_formats::compression::Compression;
use rimg_formats::digest::Digest;
use rimg_formats::layer::{Entry, EntryKind, LayerIndex, LayerPath, Limits};

/// Runs a program; its absence fails the test, because then nothing would be checked.
fn run(program: &str, arguments: &[&str], directory: &Path) -> Vec<u8> {
    let output =
        Command::new(program).args(arguments).current_dir(directory).env("LC_ALL", "C.UTF-8").output();
    let output = output.unwrap_or_else(|error| panic!("{program} is needed for this test: {error}"));
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// A tree whose names and sizes every format can say, v7 included.
fn plain_tree() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    std::fs::create_dir_all(root.join("d/e")).unwrap();
    std::fs::write(root.join("d/file"), b"content\n").unwrap();
    std::fs::write(root.join("d/large"), vec![b'l'; 100_000]).unwrap();
    std::fs::write(root.join("empty"), b"").unwrap();
    std::fs::hard_link(root.join("d/file"), root.join("hard")).unwrap();
    symlink("d/../d/file", root.join("link")).unwrap();
    directory
}

/// And what only some can: long names, other alphabets, holes.
fn rich_tree() -> tempfile::TempDir {
    let directory = plain_tree();
    let root = directory.path();
    let deep = root.join("deep-directory-name/".repeat(14));
    std::fs::create_dir_all(&deep).unwrap();
    std::fs::write(deep.join("f".repeat(200)), b"far").unwrap();
    std::fs::write(root.join("\u{3b1}\u{3b2}\u{3b3}"), b"greek").unwrap();
    symlink("t/".repeat(120), root.join("long-link")).unwrap();
    let sparse = File::create(root.join("sparse")).unwrap();
    sparse.set_len(5_000_000).unwrap();
    for at in 0..30 {
        sparse.write_all_at(b"data", at * 150_000).unwrap();
    }
    directory
}

fn show(index: &LayerIndex) -> Vec<String> {
    let show = |entry: &Entry| match &entry.kind {
        EntryKind::Hardlink { target } => format!("{} = {target}", entry.path),
        EntryKind::Symlink { target } => format!("{} -> {}", entry.path, String::from_utf8_lossy(target)),
        _ => format!("{} {:o} {}", entry.path, entry.mode, entry.size()),
    };
    // The order in which a hard linked pair comes depends on the directory's own order.
    index.entries.iter().map(|entry| show(&entry.entry)).filter(|line| !line.contains(" = ")).collect()
}

/// The index, after comparing the content of each file with the one on disk: by digest and read through the blob.
fn checked(blob: &[u8], tree: &Path) -> LayerIndex {
    let index = LayerIndex::scan(blob, Limits::default(), Default::default()).unwrap();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(blob).unwrap();
    for entry in &index.entries {
        if !matches!(entry.entry.kind, EntryKind::Regular { .. }) {
            continue;
        }
        let expected = std::fs::read(tree.join(entry.path().as_path())).unwrap();
        assert_eq!(entry.content, Some(Digest::sha256(&expected)), "{}", entry.path());
        let mut content = Vec::new();
        index.read_file(entry, file.try_clone().unwrap()).unwrap().read_to_end(&mut content).unwrap();
        assert!(content == expected, "{}", entry.path());
    }
    index
}

#[test]
fn every_format_of_gnu_tar() {
    let (plain, rich) = (plain_tree(), rich_tree());
    let mut listings = [Vec::new(), Vec::new()];
    let common = ["--sort=name", "--mode=u=rwX,go=rX", "-cf", "-"];
    let formats: [(&[&str], usize); 9] = [
        (&["--format=v7"], 0),
        (&["--format=ustar"], 0),
        (&["--format=oldgnu", "--sparse"], 1),
        (&["--format=gnu"], 1),
        (&["--format=gnu", "--sparse"], 1),
        (&["--format=posix"], 1),
        (&["--format=posix", "--sparse", "--sparse-version=0.0"], 1),
        (&["--format=posix", "--sparse", "--sparse-version=0.1"], 1),
        (&["--format=posix", "--sparse", "--sparse-version=1.0"], 1),
    ];
    for (format, which) in formats {
        let tree = [plain.path(), rich.path()][which];
        let blob = run("tar", &[format, &common[..], &["."]].concat(), tree);
        let index = checked(&blob, tree);
        let listing = &mut listings[which];
        if listing.is_empty() {
            *listing = show(&index);
            assert!(listing.len() > 5, "{listing:?}");
        }
        assert_eq!(show(&index), *listing, "{format:?}");
        if format.contains(&"--sparse") {
            let sparse = index.get(&LayerPath::parse("sparse").unwrap()).unwrap();
            assert!(
                sparse.segments.len() > 5 && sparse.stored_size() < 1_000_000,
                "{format:?}: {}",
                sparse.stored_size()
            );
        }
    }
}

#[test]
fn every_format_and_packing_of_python() {
    let script = "import sys, tarfile\n\
                  t = tarfile.open(fileobj=sys.stdout.buffer, mode='w|' + sys.argv[2], format=int(sys.argv[1]))\n\
                  t.add('.')\n\
                  t.close()\n";
    let tree = rich_tree();
    let packings = [
        ("", Compression::None),
        ("gz", Compression::Gzip),
        ("bz2", Compression::Bzip2),
        ("xz", Compression::Xz),
    ];
    let mut first = Vec::new();
    for (format, packing, compression) in packings
        .iter()
        .flat_map(|(packing, compression)| [("1", *packing, *compression), ("2", *packing, *compression)])
    {
        let blob = run("python3", &["-c", script, format, packing], tree.path());
        let index = checked(&blob, tree.path());
        assert_eq!(index.compression, compression);
        if first.is_empty() {
            first = show(&index);
        }
        assert_eq!(show(&index), first, "format {format}, {packing}");
    }
}

#[test]
fn times_and_owners_of_gnu_tar() {
    let tree = plain_tree();
    let cases: [(&[&str], i64, u32, u64); 4] = [
        (&["--format=posix", "--mtime=@-5.25"], -6, 750_000_000, 7),
        (&["--format=gnu", "--mtime=@-5"], -5, 0, 7),
        (&["--format=gnu", "--owner=:3000000", "--mtime=@1"], 1, 0, 3_000_000),
        (&["--format=posix", "--owner=:3000000", "--mtime=@99999999999"], 99_999_999_999, 0, 3_000_000),
    ];
    for (arguments, secs, nanos, uid) in cases {
        let blob = run("tar", &[&["--owner=:7"], arguments, &["-cf", "-", "empty"]].concat(), tree.path());
        let index = checked(&blob, tree.path());
        let entry = &index.entries[0].entry;
        assert_eq!((entry.mtime.secs, entry.mtime.nanos, entry.uid), (secs, nanos, uid), "{arguments:?}");
    }
}
