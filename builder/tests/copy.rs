//! COPY's rules: sources, destinations, owners and modes, as BuildKit has them.

#![allow(clippy::unwrap_used)]

mod kit;

use kit::Workspace;
use rimg_builder::engine::BuildOptions;

/// Builds `COPY` lines on a small base and returns the listing without the base's own entries.
fn copied(lines: &str) -> Vec<String> {
    let workspace = workspace();
    let base = "FROM scratch AS base\nCOPY base/ /\nFROM base\n";
    let all = workspace.build(&format!("{base}{lines}")).listing();
    let base = workspace.build("FROM scratch\nCOPY base/ /\n").listing();
    all.into_iter().filter(|line| !base.contains(line)).collect()
}

fn workspace() -> Workspace {
    let workspace = Workspace::new();
    workspace
        .file("base/etc/passwd", "root:x:0:0::/:\nweb:x:33:44::/:\n")
        .file("base/etc/group", "root:x:0:\nwww:x:55:\n")
        .file("base/dir/old", "old")
        .file("base/usr/lib/so", "so")
        .link("base/lib", "usr/lib")
        .link("base/abs", "/dir")
        .file("one", "1")
        .file("two", "2")
        .file("tree/a", "a")
        .file("tree/sub/b", "b")
        .link("tree/up", "../one")
        .link("tree/sub/out", "/etc/passwd")
        .link("to-tree", "tree")
        .link("to-one", "tree/up")
        .link("escape", "../../../../../one")
        .file("odd[1]", "odd");
    workspace
}

#[test]
fn destinations() {
    let table: &[(&str, &[&str])] = &[
        ("COPY one /", &["f644 0:0 one = 1"]),
        ("COPY one /x", &["f644 0:0 x = 1"]),
        ("COPY one /x/", &["d755 0:0 x", "f644 0:0 x/one = 1"]),
        ("COPY one /x/y/z", &["d755 0:0 x", "d755 0:0 x/y", "f644 0:0 x/y/z = 1"]),
        ("COPY one /dir", &["f644 0:0 dir/one = 1"]),
        ("COPY one /abs", &["f644 0:0 dir/one = 1"]),
        ("COPY one /lib/x", &["f644 0:0 usr/lib/x = 1"]),
        ("COPY one /lib/", &["f644 0:0 usr/lib/one = 1"]),
        ("COPY one two /x/", &["d755 0:0 x", "f644 0:0 x/one = 1", "f644 0:0 x/two = 2"]),
        (
            "COPY tree /x",
            &[
                "d755 0:0 x",
                "f644 0:0 x/a = a",
                "d755 0:0 x/sub",
                "f644 0:0 x/sub/b = b",
                "l777 0:0 x/sub/out -> /etc/passwd",
                "l777 0:0 x/up -> ../one",
            ],
        ),
        ("COPY t\\\\ree/[s]ub/b /x", &["f644 0:0 x = b"]),
        ("COPY tree/sub/b tree/a /dir/", &["f644 0:0 dir/a = a", "f644 0:0 dir/b = b"]),
        ("WORKDIR /w\nCOPY one .", &["d755 0:0 w", "f644 0:0 w/one = 1"]),
        ("WORKDIR /w\nWORKDIR v\nCOPY one ../", &["d755 0:0 w", "f644 0:0 w/one = 1", "d755 0:0 w/v"]),
        ("COPY one ../../../x", &["f644 0:0 x = 1"]),
        ("COPY [\"one\", \"/with space\"]", &["f644 0:0 with space = 1"]),
        ("COPY one /etc/passwd", &["f644 0:0 etc/passwd = 1"]),
    ];
    for (lines, expected) in table {
        assert_eq!(copied(lines), *expected, "{lines}");
    }
}

#[test]
fn sources() {
    let table: &[(&str, &[&str])] = &[
        ("COPY /one /../two /x/", &["d755 0:0 x", "f644 0:0 x/one = 1", "f644 0:0 x/two = 2"]),
        ("COPY t[vw]o /x", &["f644 0:0 x = 2"]),
        ("COPY [^a-t]wo* o?e /x/", &["d755 0:0 x", "f644 0:0 x/one = 1"]),
        (
            "COPY tree/* /x/",
            &[
                "d755 0:0 x",
                "f644 0:0 x/a = a",
                "f644 0:0 x/b = b",
                "l777 0:0 x/out -> /etc/passwd",
                "f644 0:0 x/up = 1",
            ],
        ),
        ("COPY nothing* /x/", &[]),
        (
            "COPY to-tree /x",
            &[
                "d755 0:0 x",
                "f644 0:0 x/a = a",
                "d755 0:0 x/sub",
                "f644 0:0 x/sub/b = b",
                "l777 0:0 x/sub/out -> /etc/passwd",
                "l777 0:0 x/up -> ../one",
            ],
        ),
        ("COPY to-one /x/", &["d755 0:0 x", "f644 0:0 x/to-one = 1"]),
        ("COPY to-tree/sub/b /x", &["f644 0:0 x = b"]),
        ("COPY escape /x", &["f644 0:0 x = 1"]),
        ("COPY odd[1] /x/", &[]),
        ("COPY odd[[]1] /x", &["f644 0:0 x = odd"]),
        (
            "COPY --parents tree/sub/b /x/",
            &["d755 0:0 x", "d755 0:0 x/tree", "d755 0:0 x/tree/sub", "f644 0:0 x/tree/sub/b = b"],
        ),
        ("COPY --parents tree/./sub/b /x/", &["d755 0:0 x", "d755 0:0 x/sub", "f644 0:0 x/sub/b = b"]),
        (
            "COPY --parents **/b /x/",
            &["d755 0:0 x", "d755 0:0 x/tree", "d755 0:0 x/tree/sub", "f644 0:0 x/tree/sub/b = b"],
        ),
        ("COPY --exclude=sub --exclude=u* tree /x", &["d755 0:0 x", "f644 0:0 x/a = a"]),
        (
            "COPY --exclude=** --exclude=!sub/b tree /x",
            &["d755 0:0 x", "d755 0:0 x/sub", "f644 0:0 x/sub/b = b"],
        ),
        (
            "COPY <<A <<B /x/\na$PATH\nA\nb\nB",
            &[
                "d755 0:0 x",
                "f644 0:0 x/A = a/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "f644 0:0 x/B = b",
            ],
        ),
        ("COPY <<'A' /x\n$PATH\nA", &["f644 0:0 x = $PATH"]),
        ("ADD one /x", &["f644 0:0 x = 1"]),
    ];
    for (lines, expected) in table {
        assert_eq!(copied(lines), *expected, "{lines}");
    }
}

#[test]
fn owners_and_modes() {
    let table: &[(&str, &[&str])] = &[
        ("COPY --chown=7 one /x", &["f644 7:7 x = 1"]),
        ("COPY --chown=7:8 one /x/y", &["d755 7:8 x", "f644 7:8 x/y = 1"]),
        ("COPY --chown=web one /x", &["f644 33:44 x = 1"]),
        ("COPY --chown=web:www one /x", &["f644 33:55 x = 1"]),
        ("COPY --chown=:www one /x", &["f644 0:55 x = 1"]),
        ("ARG N\nCOPY --chown=$N:$N one /x", &["f644 0:0 x = 1"]),
        ("ARG N\nCOPY --chown=web:$N one /x", &["f644 33:44 x = 1"]),
        ("COPY --chmod=600 one /x", &["f600 0:0 x = 1"]),
        (
            "COPY --chmod=u=rwX,go=rX tree/sub /x",
            &["d755 0:0 x", "f644 0:0 x/b = b", "l777 0:0 x/out -> /etc/passwd"],
        ),
        (
            "COPY --chmod=4711 --chown=1 tree/sub /x",
            &["d711 1:1 x", "f4711 1:1 x/b = b", "l777 1:1 x/out -> /etc/passwd"],
        ),
        // An octal mode is that of folders that are made on the way, too.
        (
            "COPY --chmod=700 tree/sub /x/y",
            &["d700 0:0 x", "d700 0:0 x/y", "f700 0:0 x/y/b = b", "l777 0:0 x/y/out -> /etc/passwd"],
        ),
        ("COPY --chmod=2750 one /x/", &["d750 0:0 x", "f2750 0:0 x/one = 1"]),
        ("COPY --chmod=u=rwX,go= one /x/", &["d755 0:0 x", "f600 0:0 x/one = 1"]),
        ("COPY --chmod=600 one /dir/", &["f600 0:0 dir/one = 1"]),
        (
            "COPY --parents --chmod=500 tree/sub/b /x",
            &["d500 0:0 x", "d500 0:0 x/tree", "d500 0:0 x/tree/sub", "f500 0:0 x/tree/sub/b = b"],
        ),
        (
            "COPY --parents --chmod=go= tree/sub/b /x",
            &["d755 0:0 x", "d700 0:0 x/tree", "d700 0:0 x/tree/sub", "f600 0:0 x/tree/sub/b = b"],
        ),
        ("ARG who=web\nCOPY --chown=$who one /x", &["f644 33:44 x = 1"]),
        ("USER web\nCOPY one /x", &["f644 0:0 x = 1"]),
        ("USER web\nWORKDIR /w/v", &["d755 33:44 w", "d755 33:44 w/v"]),
    ];
    for (lines, expected) in table {
        assert_eq!(copied(lines), *expected, "{lines}");
    }
}

#[test]
fn other_stages_keep_owners_and_links() {
    let workspace = workspace();
    let built = workspace.build(
        "FROM scratch AS first\nCOPY --chown=5:6 tree /t\nCOPY --chown=5:6 one /t/\n\
         FROM scratch\nCOPY --from=first /t /copy\nCOPY --from=0 /t/sub/b /t/a /files/\nCOPY --from=first --chown=0 /t/one /x\n",
    );
    assert_eq!(
        built.listing(),
        [
            "d755 0:0 copy",
            "f644 5:6 copy/a = a",
            "f644 5:6 copy/one = 1",
            "d755 5:6 copy/sub",
            "f644 5:6 copy/sub/b = b",
            "l777 5:6 copy/sub/out -> /etc/passwd",
            "l777 5:6 copy/up -> ../one",
            "d755 0:0 files",
            "f644 5:6 files/a = a",
            "f644 5:6 files/b = b",
            "f644 0:0 x = 1",
        ]
    );
}

#[test]
fn parents_of_the_base_come_along_with_their_attributes() {
    let workspace = workspace();
    let built = workspace.build("FROM scratch\nCOPY --chown=5:6 --chmod=700 tree /t/\nCOPY one /t/sub/\n");
    let top = &built.result.layers[1].0;
    let index = workspace.store.layer_index(&top.digest).unwrap();
    let entries: Vec<String> = index
        .entries
        .iter()
        .map(|entry| format!("{:o} {} {}", entry.entry.mode, entry.entry.uid, entry.path()))
        .collect();
    assert_eq!(entries, ["700 5 t", "700 5 t/sub", "644 0 t/sub/one"]);
}

#[test]
fn errors() {
    let table = [
        (
            "COPY onn /x",
            "error: `onn` is not in the build context\n --> Buildfile:3:6\n  |\n3 | COPY onn /x\n  |      ^^^ not found\n  |\n  = help: did you mean `one`?\n",
        ),
        ("COPY tree/c /x", "`tree/c` is not in the build context"),
        ("COPY one/c /x", "`one/c` is not in the build context"),
        ("COPY one two /x", "wants a directory"),
        ("COPY o* t* /x", "wants a directory"),
        ("COPY [ot]* /x", "several files are to go to `/x`, which is not written as a directory"),
        ("COPY tree /one/../etc/passwd", "cannot copy a directory onto `/etc/passwd`, which is a file"),
        (
            "COPY base/lib /lib/x\nCOPY one /dir/..\nCOPY one /dir/old/",
            "cannot copy a directory onto `/dir/old`, which is a file",
        ),
        ("COPY --chown=nobody one /x", "user `nobody` is not in the image's /etc/passwd"),
        ("COPY --chown=0:none one /x", "group `none` is not in the image's /etc/group"),
        (
            "COPY <<.wh.x /d/\nx\n.wh.x",
            "`d/.wh.x` cannot be in a layer: names that begin with `.wh.` mean removal in a layer and cannot be files\n --> \
             Buildfile:3:1",
        ),
        (
            "COPY <<.wh.x /d/\nx\n.wh.x",
            "help: give it another name, or leave it out: with .dockerignore or `--exclude`",
        ),
        ("ADD https://example.com/x /x", "ADD of a URL or git repository is not supported yet"),
        ("ARG at=git@host\nADD $at:x /x", "ADD of a URL or git repository is not supported yet"),
        ("WORKDIR /etc/passwd", "`/etc/passwd` cannot be a working directory: it is a file"),
    ];
    for (lines, expected) in table {
        let text = workspace().fails(&format!("FROM scratch\nCOPY base/ /\n{lines}\n"));
        assert!(text.contains(expected), "{lines}: {text}");
    }
}

/// Whatever cannot be done is told before anything is done, and all of it.
#[test]
fn what_is_not_supported_is_told_at_once() {
    let workspace = workspace();
    let text = workspace.fails(
        "FROM nowhere.invalid/image AS a\nADD https://example.com/x git@example.com:y /x/\nRUN --mount=type=ssh --security=insecure true\n\
         FROM scratch\nONBUILD ADD https://example.com/later /\nRUN --mount=type=cache,target=/c,source=/a true\nCOPY --from=a missing /\n",
    );
    let heads: Vec<&str> =
        text.lines().filter(|line| line.starts_with("error") || line.contains("-->")).collect();
    assert_eq!(
        heads,
        [
            "error: ADD of a URL or git repository is not supported yet",
            " --> Buildfile:2:5",
            "error: ADD of a URL or git repository is not supported yet",
            " --> Buildfile:2:27",
            "error: `--mount=type=ssh` is not supported yet",
            " --> Buildfile:3:5",
            "error: `--security=insecure` is not supported yet",
            " --> Buildfile:3:33",
            "error: `source` of a cache mount names a path in what `from` names",
            " --> Buildfile:6:5",
        ]
    );
}

/// Names that a stranger's context brings and that are opened without being asked for.
#[test]
fn pipes_and_directories_under_wellknown_names() {
    let workspace = Workspace::new();
    std::fs::create_dir(workspace.context().join("Buildfile")).unwrap();
    workspace.file("Dockerfile", "FROM scratch\n");
    let found = BuildOptions::for_context(&workspace.context(), None).unwrap();
    assert!(found.buildfile.name().ends_with("/Dockerfile"));
    let pipe = workspace.context().join(".dockerignore");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o644.into(), 0).unwrap();
    let error = BuildOptions::for_context(&workspace.context(), None).unwrap_err().to_string();
    assert!(error.ends_with("/.dockerignore`: it is no regular file"), "{error}");
    std::fs::remove_file(&pipe).unwrap();
    std::fs::create_dir(&pipe).unwrap();
    let error = BuildOptions::for_context(&workspace.context(), None).unwrap_err().to_string();
    assert!(error.contains("/.dockerignore`: is a directory"), "{error}");
}

#[test]
fn sockets_are_told_from_files_that_are_missing() {
    let workspace = Workspace::new();
    let _socket = std::os::unix::net::UnixListener::bind(workspace.context().join("socket")).unwrap();
    let text = workspace.fails("FROM scratch\nCOPY socket /\n");
    assert!(text.contains("note: `socket` is a socket, which images cannot hold"), "{text}");
    assert_eq!(workspace.build("FROM scratch\nCOPY . /x/\n").listing().len(), 2);
}

/// Deep enough that a walk which calls itself runs out of stack.
#[test]
fn deep_directories_are_copied() {
    let workspace = Workspace::new();
    let mut directory = std::fs::File::open(workspace.context()).unwrap();
    for _ in 0..1000 {
        rustix::fs::mkdirat(&directory, "d", 0o755.into()).unwrap();
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC;
        directory = rustix::fs::openat(&directory, "d", flags, 0.into()).unwrap().into();
    }
    let built = workspace.build("FROM scratch\nCOPY d /x/\n");
    let (layer, _) = &built.result.layers[0];
    assert_eq!(workspace.store.layer_index(&layer.digest).unwrap().entries.len(), 1000);
}

/// `--link` makes the layer on nothing: links, directories and their attributes below do not matter, and the layer is
/// the same, and found again, on every base.
#[test]
fn linked_copies_do_not_look_below() {
    let workspace = workspace();
    let layer = |built: &kit::Outcome| built.result.layers.last().unwrap().0.digest;
    let build = |base: &str, line: &str| workspace.build(&format!("FROM scratch\n{base}\n{line}\n"));
    let bases = [
        "COPY two /other",
        "COPY base/ /",
        "COPY two /lib",
        "COPY --chmod=700 --chown=5:6 tree /lib/deep/",
        "WORKDIR /lib",
    ];
    let lines = [
        (
            "COPY --link tree/a /lib/deep/x",
            vec!["d755 0:0 lib", "d755 0:0 lib/deep", "f644 0:0 lib/deep/x = a"],
        ),
        ("COPY --link tree/sub/ /lib/", vec!["d755 0:0 lib", "f644 0:0 lib/b = b"]),
        // Without a `/` at its end the destination is a file, whatever is there below.
        ("COPY --link one /lib", vec!["f644 0:0 lib = 1"]),
        ("ADD --link --chown=7 --chmod=640 one two /lib/", vec!["d640 7:7 lib", "f640 7:7 lib/one = 1"]),
    ];
    for (line, shown) in lines {
        let alone = workspace.build(&format!("FROM scratch\n{line}\n"));
        for base in bases {
            let built = build(base, line);
            assert_eq!(layer(&built), layer(&alone), "{line} on {base}");
            let steps = built.steps();
            assert_eq!(steps.last().map(String::as_str), Some("0.2 cached"), "{line} on {base}");
            let listing = built.listing();
            assert!(shown.iter().all(|line| listing.contains(&(*line).to_owned())), "{base}: {listing:?}");
        }
    }
    // Switched off it is a COPY like any other: the link is followed.
    let followed = build("COPY base/ /", "COPY --link=false one /lib/");
    assert!(followed.listing().contains(&"f644 0:0 usr/lib/one = 1".to_owned()));
}

/// A file that has more than it says, as one that grows while it is read; those of procfs always do.
#[test]
fn files_that_change_while_they_are_read_are_named() {
    let workspace = workspace();
    let mut options = workspace.options("FROM scratch\nCOPY version /a/b\n");
    options.context = Some("/proc".into());
    let error = workspace.build_with(options).err().unwrap();
    let diagnostic = &error.diagnostics()[0];
    assert_eq!(
        diagnostic.message,
        "`/proc/version` changed while it was read: it had 0 bytes, then more than 0"
    );
    assert_eq!(diagnostic.span.map(|span| span.start), Some(13));
}

#[test]
fn names_are_bytes() {
    use std::os::unix::ffi::OsStrExt;
    let workspace = workspace();
    let names: [&[u8]; 4] = [b"\xff\xfe", &[b'n'; 255], "\u{e9}".as_bytes(), b"\x1b[31m\n"];
    std::fs::create_dir(workspace.context().join("odd")).unwrap();
    for name in names {
        std::fs::write(workspace.context().join("odd").join(std::ffi::OsStr::from_bytes(name)), "x").unwrap();
    }
    let built = workspace.build("FROM scratch\nCOPY odd /\n");
    for name in names {
        let path = rimg_formats::layer::LayerPath::parse(name).unwrap();
        assert!(built.tree().lookup(&path).is_some(), "{path}");
    }
}

#[test]
fn paths_that_no_image_can_hold_are_named_by_their_ends() {
    let workspace = workspace();
    let directory =
        rustix::fs::open(workspace.context(), rustix::fs::OFlags::DIRECTORY, rustix::fs::Mode::empty());
    let mut directory = directory.unwrap();
    let name = "d".repeat(200);
    for _ in 0..22 {
        rustix::fs::mkdirat(&directory, &name, rustix::fs::Mode::RWXU).unwrap();
        let flags = rustix::fs::OFlags::DIRECTORY;
        directory = rustix::fs::openat(&directory, &name, flags, rustix::fs::Mode::empty()).unwrap();
    }
    let error = workspace.fails("FROM scratch\nCOPY . /\n");
    let first = error.lines().next().unwrap();
    assert!(
        first.starts_with("error: failed to read `") && first.ends_with("the path is longer than 4096 bytes"),
        "{first}"
    );
    assert!(first.len() < 500, "{first}");
}

/// The names of `listing` that are hard links, and the contents of all files.
fn links(listing: &[String]) -> Vec<String> {
    let of_file = |line: &&String| line.starts_with(['f', 'h']) && !line.contains("Buildfile");
    listing.iter().filter(of_file).map(|line| format!("{}{}", &line[..1], &line[9..])).collect()
}

/// Names of one file stay names of one file, as far as one source brings them.
#[test]
fn hard_links_of_a_folder_stay_links() {
    let workspace = Workspace::new();
    let named = tempfile::tempdir_in(workspace.root()).unwrap();
    workspace.file("a", "x").file("d/z", "z").file("e/1", "y");
    for (from, to) in [("a", "b"), ("a", "d/c"), ("e/1", "e/2")] {
        std::fs::hard_link(workspace.context().join(from), workspace.context().join(to)).unwrap();
    }
    std::fs::hard_link(workspace.context().join("a"), named.path().join("other")).unwrap();
    std::fs::hard_link(workspace.context().join("a"), named.path().join("other2")).unwrap();
    let all = ["fy/a = x", "hy/b = x", "hy/d/c = x", "fy/d/z = z", "fy/e/1 = y", "hy/e/2 = y"];
    let table: &[(&str, &[&str])] = &[
        ("COPY . /y/", &all),
        ("COPY --chmod=644 --chown=0 . /y/", &all),
        ("COPY --link . /y/", &all),
        ("COPY --exclude=a . /y/", &["fy/b = x", "hy/d/c = x", "fy/d/z = z", "fy/e/1 = y", "hy/e/2 = y"]),
        ("COPY --exclude=a --exclude=d/c . /y/", &["fy/b = x", "fy/d/z = z", "fy/e/1 = y", "hy/e/2 = y"]),
        ("COPY a b /y/", &["fy/a = x", "fy/b = x"]),
        ("COPY ? /y/", &["fy/1 = y", "hy/2 = y", "fy/a = x", "fy/b = x", "fy/c = x", "fy/z = z"]),
        ("COPY --parents a b /y/", &["fy/a = x", "fy/b = x"]),
        ("COPY a /y/a\nCOPY . /y/", &all),
        ("COPY --from=named / /y/", &["fy/other = x", "hy/other2 = x"]),
    ];
    let build = |text: &str| {
        let mut options = workspace.options(text);
        options.named_contexts.insert("named".into(), named.path().display().to_string());
        workspace.build_with(options).unwrap_or_else(|error| panic!("{text}: {error}"))
    };
    for (lines, expected) in table {
        assert_eq!(links(&build(&format!("FROM scratch\n{lines}\n")).listing()), *expected, "{lines}");
    }
    let stages = build("FROM scratch AS first\nCOPY . /y/\nFROM scratch\nCOPY --from=first / /\n");
    assert_eq!(links(&stages.listing()), all);
    // Nothing changed, and nothing is made again.
    let again = build("FROM scratch\nCOPY . /y/\n");
    assert!(again.steps().iter().all(|step| step.ends_with("cached")), "{:?}", again.steps());
    std::fs::write(workspace.context().join("d/c"), "new").unwrap();
    let changed = build("FROM scratch\nCOPY . /y/\n").listing();
    assert_eq!(links(&changed)[..3], ["fy/a = new", "hy/b = new", "hy/d/c = new"]);
}
