//! ADD of archives, and archives as bases: every name, every byte.

#![allow(clippy::unwrap_used)]

mod kit;

use std::collections::BTreeMap;

use kit::{Workspace, gzip, tar};

#[test]
fn archives() {
    let workspace = Workspace::new();
    let archive = tar(&[
        ("z/", b'5', ""),
        ("z/file", b'0', "inside"),
        ("lib/so", b'0', "so"),
        ("a", b'2', "z/file"),
        ("z/hard", b'1', "z/file"),
    ]);
    std::fs::write(workspace.context().join("a.tar"), &archive).unwrap();
    std::fs::write(workspace.context().join("a.tgz"), gzip(&archive)).unwrap();
    std::fs::write(workspace.context().join("no.tgz"), gzip(b"just text")).unwrap();
    workspace.file("base/usr/lib/x", "x").link("base/lib", "usr/lib");
    let expected = [
        "l777 7:9 a -> z/file",
        "d755 0:0 lib",
        "f644 7:9 lib/so = so",
        "d644 7:9 z",
        "f644 7:9 z/file = inside",
        "h644 7:9 z/hard = inside",
    ];
    let normal = |listing: Vec<String>| {
        listing.into_iter().map(|line| line.replace("l644", "l777")).collect::<Vec<_>>()
    };
    for name in ["a.tar", "a.tgz"] {
        let base = workspace.build(&format!("FROM ./{name}\n"));
        assert_eq!(normal(base.listing()), expected, "{name}");
        assert_eq!(workspace.build(&format!("FROM ./{name}\n")).steps(), ["0.0 cached"]);
        let added = workspace.build(&format!("FROM scratch\nCOPY base/ /\nADD {name} /\n"));
        let listing = normal(added.listing());
        assert!(listing.contains(&"f644 7:9 usr/lib/so = so".to_owned()), "{listing:?}");
        assert!(listing.contains(&"l777 0:0 lib -> usr/lib".to_owned()), "{listing:?}");
        let kept = workspace.build(&format!("FROM scratch\nADD --unpack=false {name} /x/\n"));
        assert!(
            kept.result.layers.len() == 1
                && kept
                    .tree()
                    .lookup(&rimg_formats::layer::LayerPath::parse(format!("x/{name}")).unwrap())
                    .is_some()
        );
    }
    let plain = workspace.build("FROM scratch\nADD no.tgz /\n");
    assert!(plain.tree().lookup(&rimg_formats::layer::LayerPath::parse("no.tgz").unwrap()).is_some());
    assert!(workspace.fails("FROM ./no.tgz\n").contains("is neither a directory nor a tar archive"));
    std::fs::write(workspace.context().join("bad.tar"), tar(&[("../x", b'0', "evil")])).unwrap();
    assert!(workspace.fails("FROM scratch\nADD bad.tar /\n").contains("failed to unpack `bad.tar`"));
    std::fs::write(workspace.context().join("wh.tar"), tar(&[(".wh.x", b'0', "")])).unwrap();
    assert!(workspace.fails("FROM scratch\nADD wh.tar /\n").contains(".wh."));
}

/// Files at the same places of two archives have nothing to do with each other.
#[test]
fn several_archives_keep_their_contents_apart() {
    let workspace = Workspace::new();
    let mut wanted = BTreeMap::new();
    for archive in ["1", "2", "3"] {
        let names: Vec<(String, String)> = (0..60)
            .map(|number| (format!("{archive}-{number:02}"), format!("file {number} of archive {archive}")))
            .collect();
        let mut entries: Vec<(&str, u8, &str)> =
            names.iter().map(|(name, content)| (name.as_str(), b'0', content.as_str())).collect();
        // Hard links within an archive stay what they are.
        let (second, link) = (names[1].0.clone(), format!("{archive}-link"));
        entries.push((&link, b'1', &second));
        std::fs::write(workspace.context().join(format!("{archive}.tar")), tar(&entries)).unwrap();
        std::fs::write(workspace.context().join(format!("{archive}.tgz")), gzip(&tar(&entries))).unwrap();
        wanted.extend(
            names.iter().map(|(name, content)| (name.clone(), format!("f644 7:9 s/{name} = {content}"))),
        );
        wanted.insert(link.clone(), format!("h644 7:9 s/{link} = {}", names[1].1));
    }
    workspace.file("1-plain", "plain");
    let wanted: Vec<String> = std::iter::once("d755 0:0 s".to_owned()).chain(wanted.into_values()).collect();
    for line in [
        "ADD 1.tar 2.tar 3.tar /s/",
        "ADD *.tar /s/",
        "ADD 1.tgz 2.tar 3.tgz /s/",
        "ADD *.tgz /s/",
        "ADD --link 3.tar 2.tgz 1.tar /s/",
        "ADD 1.tar /s/\nADD 2.tar 3.tar /s/",
        "ADD 1.tar 1.tar 2.tar 3.tar 2.tar /s/",
    ] {
        assert_eq!(workspace.build(&format!("FROM scratch\n{line}\n")).listing(), wanted, "{line}");
    }
    let between = workspace.build("FROM scratch\nADD 1.tar 1-plain 2.tar 3.tar /s/\n").listing();
    assert_eq!(between.len(), wanted.len() + 1);
    assert!(between.contains(&"f644 0:0 s/1-plain = plain".to_owned()));
    assert!(wanted.iter().all(|line| between.contains(line)));
}

/// An archive's entries.
type Entries<'a> = &'a [(&'a str, u8, &'a str)];

/// What ADD of these archives, at `/` of a base, changes.
fn added(flags: &str, archives: &[Entries<'_>]) -> (Vec<String>, Vec<String>) {
    let workspace = Workspace::new();
    workspace
        .file("base/s/p/old", "old")
        .file("base/usr/lib/so", "so")
        .file("base/file", "f")
        .file("base/own/x", "x");
    workspace.link("base/lib", "usr/lib").link("base/gone", "nowhere").link("base/to-file", "file");
    for (number, archive) in archives.iter().enumerate() {
        std::fs::write(workspace.context().join(format!("{number}.tar")), tar(archive)).unwrap();
    }
    let base = "FROM scratch\nCOPY base/ /\nCOPY --chmod=1711 --chown=3:4 base/own /own/\n\
                COPY --chmod=1711 --chown=3:4 base/own /sub/own\n";
    let before = workspace.build(base).listing();
    let names: Vec<String> = (0..archives.len()).map(|number| format!("{number}.tar")).collect();
    let after = workspace.build(&format!("{base}ADD {flags} {} /\n", names.join(" "))).listing();
    let only = |these: &[String], those: &[String]| {
        these.iter().filter(|line| !those.contains(line)).cloned().collect::<Vec<String>>()
    };
    (only(&before, &after), only(&after, &before))
}

#[test]
fn what_an_archive_brings_wins() {
    let gone_s = ["d755 0:0 s/p", "f644 0:0 s/p/old = old"];
    let table: &[(&str, Entries<'_>, &[&str], &[&str])] = &[
        ("a file over a folder", &[("s/p", b'0', "new")], &gone_s, &["f644 7:9 s/p = new"]),
        ("a link over a folder", &[("s/p", b'2', "q")], &gone_s, &["l644 7:9 s/p -> q"]),
        (
            "a folder over a file",
            &[("file", b'5', ""), ("file/x", b'0', "x")],
            &["f644 0:0 file = f"],
            &["d644 7:9 file", "f644 7:9 file/x = x"],
        ),
        (
            "a folder over a link to nothing",
            &[("gone", b'5', ""), ("gone/x", b'0', "x")],
            &["l777 0:0 gone -> nowhere"],
            &["d644 7:9 gone", "f644 7:9 gone/x = x"],
        ),
        (
            "a folder over a link to a file",
            &[("to-file", b'5', "")],
            &["l777 0:0 to-file -> file"],
            &["d644 7:9 to-file"],
        ),
        (
            "a folder over a link to a folder",
            &[("lib", b'5', ""), ("lib/x", b'0', "x")],
            &[],
            &["f644 7:9 usr/lib/x = x"],
        ),
        ("a file below a link to a folder", &[("lib/x", b'0', "x")], &[], &["f644 7:9 usr/lib/x = x"]),
        ("a file over a link", &[("lib", b'0', "x")], &["l777 0:0 lib -> usr/lib"], &["f644 7:9 lib = x"]),
        // Folders without entries of their own have no say in attributes.
        (
            "a folder that is implied",
            &[("own/y", b'0', "y"), ("new/z", b'0', "z")],
            &[],
            &["d755 0:0 new", "f644 7:9 new/z = z", "f644 7:9 own/y = y"],
        ),
        ("a hard link to a file of the image", &[("link", b'1', "usr/lib/so")], &[], &["f644 0:0 link = so"]),
    ];
    for (what, archive, gone, new) in table {
        let (found_gone, found_new) = added("", &[archive]);
        assert_eq!(found_gone, *gone, "{what}");
        assert_eq!(found_new, *new, "{what}");
        // Once more changes nothing.
        assert_eq!(added("", &[archive, archive]), (found_gone, found_new), "{what}, twice");
    }
}

#[test]
fn archives_in_conflict_are_unpacked_one_after_the_other() {
    let folder: Entries<'_> = &[("s/", b'5', ""), ("s/p/", b'5', ""), ("s/p/x", b'0', "x")];
    let file: Entries<'_> = &[("s/p", b'0', "p")];
    let gone = vec!["d755 0:0 s".to_owned(), "d755 0:0 s/p".to_owned(), "f644 0:0 s/p/old = old".to_owned()];
    let (found_gone, new) = added("", &[folder, file]);
    assert_eq!(
        (found_gone, new),
        (gone.clone(), vec!["d644 7:9 s".to_owned(), "f644 7:9 s/p = p".to_owned()])
    );
    // The file took the folder's place, with all that was in it.
    let (found_gone, new) = added("", &[file, folder]);
    assert_eq!(found_gone, gone);
    assert_eq!(new, ["d644 7:9 s", "d644 7:9 s/p", "f644 7:9 s/p/x = x"]);
    let link: Entries<'_> = &[("new/real/", b'5', ""), ("new/link", b'2', "real")];
    let through: Entries<'_> = &[("new/link/", b'5', ""), ("new/link/x", b'0', "x")];
    let (_, new) = added("", &[link, through]);
    assert_eq!(
        new,
        ["d755 0:0 new", "l644 7:9 new/link -> real", "d644 7:9 new/real", "f644 7:9 new/real/x = x"]
    );
}

#[test]
fn flags_on_archives() {
    let archive: Entries<'_> = &[("d/", b'5', ""), ("d/x", b'0', "x"), ("l", b'2', "d"), ("e/y", b'0', "y")];
    let (_, new) = added("--chmod=700 --chown=5:6", &[archive]);
    assert_eq!(new, ["d644 5:6 d", "f644 5:6 d/x = x", "d755 0:0 e", "f644 5:6 e/y = y", "l644 5:6 l -> d"]);
    let workspace = Workspace::new();
    std::fs::write(workspace.context().join("a.tar"), tar(&[("./", b'5', ""), ("x", b'0', "x")])).unwrap();
    // What --exclude leaves out is not unpacked either.
    let none = workspace.build("FROM scratch\nADD --exclude=*.tar a.tar Buildfile /n/\n").listing();
    assert_eq!(none.len(), 2, "{none:?}");
    // The archive's root has no say, neither here nor as a base.
    let built = workspace.build("FROM scratch\nADD --chmod=700 --chown=5:6 a.tar /n/m/\n").listing();
    assert_eq!(built, ["d755 5:6 n", "d755 5:6 n/m", "f644 5:6 n/m/x = x"]);
    let based = workspace.build("FROM ./a.tar\n");
    assert!(based.tree().lookup(&rimg_formats::layer::LayerPath::root()).unwrap().entry.is_none());
    std::fs::write(workspace.context().join("bad.tar"), tar(&[("x", b'1', "none")])).unwrap();
    let text = workspace.fails("FROM scratch\nADD bad.tar /\n");
    let expected = "`x` is a hard link to `none`, which is neither in it nor in the image";
    assert!(text.contains(expected), "{text}");
}

/// What one tar says about itself, and what stands behind it.
#[test]
fn archives_with_links_of_their_own() {
    let archive: Entries<'_> = &[("real/", b'5', ""), ("lnk", b'2', "real"), ("lnk/f", b'0', "f")];
    let (_, new) = added("", &[archive]);
    assert_eq!(new, ["l644 7:9 lnk -> real", "d644 7:9 real", "f644 7:9 real/f = f"]);
    let archive: Entries<'_> =
        &[("real/", b'5', ""), ("lnk", b'2', "real"), ("lnk/", b'5', ""), ("lnk/f", b'0', "f")];
    let (_, new) = added("", &[archive]);
    assert_eq!(new, ["d644 7:9 lnk", "f644 7:9 lnk/f = f", "d644 7:9 real"]);
    let workspace = Workspace::new();
    let mut padded = gzip(&tar(&[("x", b'0', "x")]));
    padded.resize(padded.len() + 2560, 0);
    std::fs::write(workspace.context().join("a.tgz"), padded).unwrap();
    assert_eq!(workspace.build("FROM scratch\nADD a.tgz /\n").listing(), ["f644 7:9 x = x"]);
    std::fs::write(workspace.context().join("bad.tar"), tar(&[("x", b'1', "x")])).unwrap();
    workspace.fails("FROM scratch\nADD bad.tar /\n");
}
