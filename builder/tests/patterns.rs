//! COPY by patterns: `.dockerignore`, `--exclude`, `--parents`, globs and links, as whole trees.

#![allow(clippy::unwrap_used)]

mod kit;

use kit::Workspace;

/// The paths of a build, its own files left out.
fn paths(workspace: &Workspace, lines: &str) -> Vec<String> {
    let listing = workspace.build(&format!("FROM scratch\n{lines}\n")).listing();
    let short = |line: String| {
        let (kind, rest) =
            (line[..1].to_owned(), line.split_once(' ').unwrap().1.split_once(' ').unwrap().1.to_owned());
        let name = rest.split(" = ").next().unwrap().to_owned();
        if kind == "f" { name } else { format!("{kind} {name}") }
    };
    let own = |path: &String| path.ends_with("Buildfile") || path.ends_with(".dockerignore");
    listing.into_iter().map(short).filter(|path| !own(path)).collect()
}

fn workspace_of(files: &[&str]) -> Workspace {
    let workspace = Workspace::new();
    for file in files {
        workspace.file(file, file);
    }
    workspace
}

#[test]
fn excluded_folders_appear_only_with_something_in_them() {
    let files = [".git/objects/00/o", "api/a.go", "bin/t", "node_modules/m/index.js", "node_modules/k/keep"];
    let workspace = workspace_of(&files);
    let table: &[(&str, &[&str])] = &[
        ("**\n!**/*.go", &["d src", "d src/api", "src/api/a.go"]),
        ("*\n!**/*.go", &["d src", "d src/api", "src/api/a.go"]),
        ("*\n!api/*.go", &["d src", "d src/api", "src/api/a.go"]),
        ("**\n!nothing", &["d src"]),
        ("*\n!bin/nothing", &["d src"]),
        (
            ".git\n!**/README.md\nnode_modules\n!**/keep",
            &[
                "d src",
                "d src/api",
                "src/api/a.go",
                "d src/bin",
                "src/bin/t",
                "d src/node_modules",
                "d src/node_modules/k",
                "src/node_modules/k/keep",
            ],
        ),
    ];
    for (ignore, expected) in table {
        workspace.file(".dockerignore", ignore);
        assert_eq!(paths(&workspace, "COPY . /src/"), *expected, "{ignore}");
        workspace.file(".dockerignore", "");
        let flags: String = ignore.lines().map(|line| format!("--exclude={line} ")).collect();
        let expected: Vec<&str> = expected.to_vec();
        assert_eq!(paths(&workspace, &format!("COPY {flags} . /src/")), expected, "{flags}");
    }
    // A folder that is not there is not there for anybody.
    workspace.file(".dockerignore", "**\n!**/*.go");
    assert_eq!(paths(&workspace, "COPY api /x/"), ["d x", "x/a.go"]);
    assert_eq!(paths(&workspace, "COPY [abn]* /x/"), ["d x", "x/a.go"]);
    let text = workspace.fails("FROM scratch\nCOPY bin /x/\n");
    assert!(text.contains("note: `bin` exists, but .dockerignore excludes it"), "{text}");
    // Nor is it in the way of what the image has there.
    assert_eq!(paths(&workspace, "COPY <<bin /src/\n\nbin\nCOPY . /src/").len(), 4);
}

#[test]
fn exceptions_for_a_folder_bring_back_only_what_went_with_it() {
    let workspace = workspace_of(&["src/.env", "src/g", "docs/a.md", "docs/b/c"]);
    let all = ["d d", "d d/docs", "d/docs/a.md", "d d/docs/b", "d/docs/b/c", "d d/src", "d/src/g"];
    let table: &[(&str, &[&str])] = &[
        ("**/.env\n!src", &all),
        ("src/.env\n!src/", &all),
        ("docs/*\n!docs\nsrc", &["d d", "d d/docs"]),
        ("docs/**\n!docs\nsrc", &["d d", "d d/docs"]),
        ("*\n!docs\n**/*.md", &["d d", "d d/docs", "d d/docs/b", "d/docs/b/c"]),
        ("*\n!src/**", &["d d", "d d/src", "d/src/.env", "d/src/g"]),
    ];
    for (ignore, expected) in table {
        workspace.file(".dockerignore", ignore);
        assert_eq!(paths(&workspace, "COPY . /d/"), *expected, "{ignore}");
        workspace.file(".dockerignore", "");
        let flags: String = ignore.lines().map(|line| format!("--exclude={line} ")).collect();
        assert_eq!(paths(&workspace, &format!("COPY {flags} . /d/")), *expected, "{flags}");
    }
}

/// Spellings that other tools read differently.
#[test]
fn ignore_files_as_they_are_written() {
    let files = ["a", "a1", "a2", "d/x/c.md", "d/c.md", "foo/sub/x/y", "foo/sub/z", "foo/a1", "tr", "x/foo"];
    let workspace = workspace_of(&files);
    let gone = |ignore: &str| {
        workspace.file(".dockerignore", ignore);
        let left = paths(&workspace, "COPY . /");
        files.iter().copied().filter(|file| !left.contains(&(*file).to_owned())).collect::<Vec<_>>()
    };
    let table: &[(&str, &[&str])] = &[
        ("*\n!d/**/c.md", &["a", "a1", "a2", "foo/sub/x/y", "foo/sub/z", "foo/a1", "tr", "x/foo"]),
        ("*\n!**/c.md", &["a", "a1", "a2", "foo/sub/x/y", "foo/sub/z", "foo/a1", "tr", "x/foo"]),
        ("a?\n! a1", &["a2"]),
        (" foo", &["foo/sub/x/y", "foo/sub/z", "foo/a1"]),
        ("\u{feff}a", &["a"]),
        ("a\r\nfoo\r\n!foo/a1\r\n", &["a", "foo/sub/x/y", "foo/sub/z"]),
        ("tr ", &["tr"]),
        ("***/foo", &["x/foo"]),
        ("d**/c.md", &["d/x/c.md", "d/c.md"]),
        ("foo/sub/\n!foo/sub/x/", &["foo/sub/z"]),
        ("/a\n./tr", &["a", "tr"]),
        ("#a\na\n #tr", &["a"]),
    ];
    for (ignore, expected) in table {
        assert_eq!(gone(ignore), *expected, "{ignore:?}");
    }
}

#[test]
fn parents_with_excludes_begin_at_the_pivot() {
    let workspace = workspace_of(&["app/keys/k", "app/x.md", "app/storage/views/v", "app/storage/y.md"]);
    let table: &[(&str, &[&str])] = &[
        ("--exclude=app/keys --exclude=app/storage app", &["d d", "d d/app", "d/app/x.md"]),
        (
            "--exclude=keys --exclude=*.md app/keys app/x.md",
            &["d d", "d d/app", "d d/app/keys", "d/app/keys/k", "d/app/x.md"],
        ),
        ("--exclude=storage/views ./app/./storage", &["d d", "d d/storage", "d/storage/y.md"]),
        (
            "--exclude=app/storage/y.md app/*/",
            &[
                "d d",
                "d d/app",
                "d d/app/keys",
                "d/app/keys/k",
                "d d/app/storage",
                "d d/app/storage/views",
                "d/app/storage/views/v",
                "d/app/x.md",
            ],
        ),
        (
            "--exclude=**/*.md app/storage",
            &["d d", "d d/app", "d d/app/storage", "d d/app/storage/views", "d/app/storage/views/v"],
        ),
        ("--exclude=app --exclude=!app/keys app", &["d d", "d d/app", "d d/app/keys", "d/app/keys/k"]),
    ];
    for (words, expected) in table {
        assert_eq!(paths(&workspace, &format!("COPY --parents {words} /d/")), *expected, "{words}");
    }
    let text = workspace.fails("FROM scratch\nCOPY --parents --exclude=app app /d/\n");
    assert!(text.starts_with("error: `--exclude` leaves nothing of `app`\n --> Buildfile:2:30"), "{text}");
}

#[test]
fn parents_by_pivots_and_patterns() {
    let workspace = workspace_of(&[
        "a1/b/f",
        "a2/b/g",
        "a3",
        "pkg_a/q/p.xml",
        "pkg_a/p.xml",
        "pkg_/p.xml",
        "pkg_p.xml",
        "lib/so.1",
        "real/f",
    ]);
    workspace.link("lib/so", "so.1").link("lnk", "real").link("lib/none", "../nowhere").link("aa", "a1");
    let table: &[(&str, &[&str])] = &[
        ("a*/./b", &["d d", "d d/b", "d/b/f", "d/b/g"]),
        ("a*/./b/f", &["d d", "d d/b", "d/b/f"]),
        ("./a1/./b a2/b", &["d d", "d d/a2", "d d/a2/b", "d/a2/b/g", "d d/b", "d/b/f"]),
        ("a1/b/", &["d d", "d d/a1", "d d/a1/b", "d/a1/b/f"]),
        ("**/f", &["d d", "d d/a1", "d d/a1/b", "d/a1/b/f", "d d/real", "d/real/f"]),
        ("nothing*", &["d d"]),
        ("a1/./.", &["d d", "d d/b", "d/b/f"]),
        (
            "./pkg_**/p.xml",
            &[
                "d d",
                "d d/pkg_",
                "d/pkg_/p.xml",
                "d d/pkg_a",
                "d/pkg_a/p.xml",
                "d d/pkg_a/q",
                "d/pkg_a/q/p.xml",
                "d/pkg_p.xml",
            ],
        ),
        ("**/q", &["d d", "d d/pkg_a", "d d/pkg_a/q", "d/pkg_a/q/p.xml"]),
        // Links that are asked for are copied as links, those on the way and of the pivot are followed.
        ("lib/so*", &["d d", "d d/lib", "l d/lib/so -> so.1", "d/lib/so.1"]),
        ("lib/none", &["d d", "d d/lib", "l d/lib/none -> ../nowhere"]),
        ("lnk", &["d d", "l d/lnk -> real"]),
        ("lnk/f", &["d d", "d d/lnk", "d/lnk/f"]),
        ("lnk/*", &["d d", "d d/lnk", "d/lnk/f"]),
        ("lnk/./f", &["d d", "d/f"]),
        ("l*k/./f", &["d d", "d/f"]),
        ("aa/./b/*", &["d d", "d d/b", "d/b/f"]),
        ("none*/./f", &[]),
        ("lib/n*/./f lib/./so.1", &["d d", "d/so.1"]),
    ];
    for (words, expected) in table {
        assert_eq!(paths(&workspace, &format!("COPY --parents {words} /d/")), *expected, "{words}");
    }
    let text = workspace.fails("FROM scratch\nCOPY --parents a1/b/c /d/\n");
    assert!(text.starts_with("error: `a1/b/c` is not in the build context\n"), "{text}");
    let text = workspace.fails("FROM scratch\nCOPY --parents lib/none/x /d/\n");
    assert!(
        text.starts_with("error: `lib/none` is a link to `../nowhere`, which is not in the build context"),
        "{text}"
    );
    // A stage's libraries keep their links.
    let lines = "COPY . /o\nFROM scratch\nCOPY --from=0 --parents /o/./lib/so* /\n";
    assert_eq!(paths(&workspace, lines), ["d lib", "l lib/so -> so.1", "lib/so.1"]);
    // What is on the way keeps the attributes that the image gives it.
    let lines = "COPY --chmod=711 real /x/a1/b/\nCOPY --parents a1/b/f /x/";
    let listing = workspace.build(&format!("FROM scratch\n{lines}\n")).listing();
    assert_eq!(listing[1..3], ["d711 0:0 x/a1", "d711 0:0 x/a1/b"]);
}

#[test]
fn what_is_left_out_is_not_taken_for_a_slip() {
    let workspace = workspace_of(&["bin/t", "cfg/a.conf", "cfg/b.conf", "src/a.go"]);
    workspace.file(".dockerignore", "**\n!**/*.go\n");
    for lines in [
        "COPY bin /d/",
        "COPY cfg/a.conf /d/",
        "COPY --parents bin /d/",
        "RUN --mount=source=bin,target=/m x",
    ] {
        let text = workspace.fails(&format!("FROM scratch\n{lines}\n"));
        assert!(text.contains("exists, but .dockerignore excludes it"), "{lines}: {text}");
        assert!(!text.contains("did you mean"), "{lines}: {text}");
    }
}

#[test]
fn links_that_lead_nowhere_are_told_with_their_targets() {
    let workspace = workspace_of(&["cfg/a.conf", "hidden/h", "file"]);
    workspace
        .link("cfg/b.conf", "../shared/b.conf")
        .link("cfg/c.conn", "/etc/none")
        .link("cfg/d.hide", "../hidden/h");
    workspace
        .link("cfg/e.up", "../../out")
        .link("cfg/f.file", "../file/x")
        .link("gone", "nowhere")
        .link("two", "gone");
    workspace.file(".dockerignore", "hidden");
    let table = [
        (
            "COPY cfg/*.conf /etc/",
            "`cfg/b.conf` is a link to `../shared/b.conf`, which is not in the build context",
        ),
        (
            "COPY cfg/b.conf /etc/",
            "`cfg/b.conf` is a link to `../shared/b.conf`, which is not in the build context",
        ),
        (
            "ADD cfg/*.conf /etc/",
            "`cfg/b.conf` is a link to `../shared/b.conf`, which is not in the build context",
        ),
        (
            "COPY cfg/*.conn /etc/",
            "`cfg/c.conn` is a link to `/etc/none`, which is outside of the build context",
        ),
        (
            "COPY cfg/*.hide /etc/",
            "`cfg/d.hide` is a link to `../hidden/h`, which is excluded by .dockerignore",
        ),
        ("COPY cfg/e.up /etc/", "`cfg/e.up` is a link to `../../out`, which is outside of the build context"),
        ("COPY cfg/f.file /etc/", "`cfg/f.file` is a link to `../file/x`, which is not in the build context"),
        ("COPY two /etc/", "`two` is a link to `gone`, which is not in the build context"),
        ("COPY gone/x /etc/", "`gone` is a link to `nowhere`, which is not in the build context"),
        (
            "COPY . /o\nFROM scratch\nCOPY --from=0 /o/cfg/* /etc/",
            "`o/cfg/b.conf` is a link to `../shared/b.conf`, which is not in stage `0`",
        ),
        (
            "COPY . /o\nFROM scratch\nCOPY --from=0 /o/cfg/c* /etc/",
            "`o/cfg/c.conn` is a link to `/etc/none`, which is not in stage `0`",
        ),
        (
            "RUN --mount=source=cfg/b.conf,target=/m x",
            "`cfg/b.conf` is a link to `../shared/b.conf`, which is not in the build context",
        ),
        ("COPY --exclude=x gone/x /d/", "`gone` is a link to `nowhere`, which is not in the build context"),
    ];
    for (lines, expected) in table {
        let text = workspace.fails(&format!("FROM scratch\n{lines}\n"));
        assert!(text.starts_with(&format!("error: {expected}\n --> Buildfile:")), "{lines}: {text}");
        assert!(text.contains("^ leads nowhere\n"), "{lines}: {text}");
    }
    // `--exclude` leaves it out like a file.
    for lines in ["COPY --exclude=b.* cfg/*.conf /d/", "ADD --exclude=b.* cfg/*.conf /d/"] {
        assert_eq!(paths(&workspace, lines), ["d d", "d/a.conf"], "{lines}");
    }
    assert_eq!(paths(&workspace, "COPY --exclude=b.conf cfg/b.conf /d/").len(), 0);
    // In front of the last name it is no folder to look into, and inside of folders it is a link like others.
    assert_eq!(paths(&workspace, "COPY g*/x /d/").len(), 0);
    // Nor is one that leads to a folder, from the first wildcard on; in front of it they are followed.
    workspace.link("cfg/sub", "../real").link("to-cfg", "cfg").file("real/a.conf", "real");
    assert_eq!(paths(&workspace, "COPY */sub/a.conf /d/").len(), 0);
    assert_eq!(paths(&workspace, "COPY *g/a.conf /d/"), ["d d", "d/a.conf"]);
    let first = workspace.build("FROM scratch\nCOPY to-cfg/a.c* to-cfg/sub/a.c* /d/\n").listing();
    assert_eq!(first, ["d755 0:0 d", "f644 0:0 d/a.conf = real"]);
    let text = workspace.fails("FROM scratch\nCOPY gone/* /d/\n");
    assert!(text.starts_with("error: `gone` is a link to `nowhere`, which"), "{text}");
    assert!(paths(&workspace, "COPY cfg /d/").contains(&"l d/b.conf -> ../shared/b.conf".to_owned()));
}
