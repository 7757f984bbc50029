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
