//! The build cache: what makes a step run again, what does not, and what is said about it.

#![allow(clippy::unwrap_used)]

mod kit;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, SystemTime};

use kit::{Workspace, build_in};
use rimg_builder::engine::Timestamps;
use rimg_formats::epoch::Epoch;
use rimg_formats::layer::LayerCompression;
use rimg_formats::store::Store;

const COPIES: &str = "FROM scratch\nCOPY a /a\nLABEL l=1\nCOPY dir /dir\n";

fn workspace() -> Workspace {
    let workspace = Workspace::new();
    workspace.file("a", "content of a").file("dir/b", "content of b").file("dir/c", "content of c");
    workspace.link("dir/link", "b");
    workspace
}

/// Makes every file old enough for its stamp to be trusted: otherwise it is read again, which is right but no test.
fn settle() {
    std::thread::sleep(Duration::from_millis(60));
}

#[test]
fn an_unchanged_build_does_nothing() {
    let workspace = workspace();
    let first = workspace.build(COPIES);
    assert_eq!(
        first.steps(),
        [
            "0.0 cached",
            "0.1 missed: no earlier build had this instruction",
            "0.1 done 1",
            "0.2 done",
            "0.3 missed: no earlier build had this instruction",
            "0.3 done 4",
        ]
    );
    let second = workspace.build(COPIES);
    assert_eq!(second.steps(), ["0.0 cached", "0.1 cached", "0.2 cached", "0.3 cached"]);
    assert_eq!(second.digest(), first.digest());
}

/// A directory that is there already is nothing to make, however often it is asked for.
#[test]
fn a_working_directory_that_exists_is_no_work() {
    let workspace = workspace();
    let text = "FROM scratch\nCOPY dir /dir\nWORKDIR /dir\nLABEL l=1\n";
    workspace.build(text);
    assert_eq!(workspace.build(text).steps(), ["0.0 cached", "0.1 cached", "0.2 cached", "0.3 cached"]);
}

#[test]
fn what_changes_a_key_and_what_does_not() {
    type Change = fn(&Workspace);
    let table: &[(&str, Change, &str)] = &[
        (
            "content",
            |w| {
                w.file("dir/b", "other text b");
            },
            "file dir/b changed",
        ),
        (
            "length",
            |w| {
                w.file("dir/b", "longer text of b, much");
            },
            "file dir/b changed",
        ),
        (
            "mode",
            |w| {
                fs::set_permissions(w.context().join("dir/b"), fs::Permissions::from_mode(0o600)).unwrap();
            },
            "mode or owner of dir/b changed",
        ),
        (
            "new file",
            |w| {
                w.file("dir/bb", "");
            },
            "the set of files (dir/bb is new) changed",
        ),
        (
            "gone",
            |w| fs::remove_file(w.context().join("dir/c")).unwrap(),
            "the set of files (dir/c is gone) changed",
        ),
        (
            "link",
            |w| {
                fs::remove_file(w.context().join("dir/link")).unwrap();
                w.link("dir/link", "c");
            },
            "file dir/link changed",
        ),
        (
            "time",
            |w| {
                let file = fs::File::options().write(true).open(w.context().join("dir/b")).unwrap();
                file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(5)).unwrap();
            },
            "",
        ),
        (
            "other inode",
            |w| {
                let path = w.context().join("dir/b");
                fs::copy(&path, w.context().join("tmp")).unwrap();
                fs::rename(w.context().join("tmp"), path).unwrap();
            },
            "",
        ),
        (
            "other file",
            |w| {
                w.file("elsewhere", "");
            },
            "",
        ),
        (
            "a name of the context",
            |w| {
                w.file("dir2", "");
            },
            "",
        ),
    ];
    for (name, change, expected) in table {
        let workspace = workspace();
        let first = workspace.build(COPIES);
        settle();
        workspace.build(COPIES);
        change(&workspace);
        let second = workspace.build(COPIES);
        let steps = second.steps();
        if expected.is_empty() {
            assert_eq!(steps, ["0.0 cached", "0.1 cached", "0.2 cached", "0.3 cached"], "{name}");
            assert_eq!(second.digest(), first.digest(), "{name}");
        } else {
            assert_eq!(steps[1], "0.1 cached", "{name}");
            assert_eq!(steps[3], format!("0.3 missed: {expected}"), "{name}");
            assert_ne!(second.digest(), first.digest(), "{name}");
        }
        let clean = Store::open(&workspace.root().join("clean")).unwrap();
        let again = build_in(&clean, workspace.options(COPIES)).unwrap();
        assert_eq!(again.digest(), second.digest(), "{name}: the cache changed the result");
    }
}

/// A file whose content changes while size and modification time stay what they were.
#[test]
fn a_change_that_hides_its_time_is_noticed() {
    let workspace = workspace();
    let path = workspace.context().join("a");
    let first = workspace.build(COPIES);
    settle();
    workspace.build(COPIES);
    settle();
    let before = fs::metadata(&path).unwrap().modified().unwrap();
    fs::write(&path, "CONTENT OF A").unwrap();
    fs::File::options().write(true).open(&path).unwrap().set_modified(before).unwrap();
    let second = workspace.build(COPIES);
    assert_eq!(second.steps()[1], "0.1 missed: file a changed");
    assert_ne!(second.digest(), first.digest());
}

/// Changes right after one another, faster than the file system's clock ticks.
#[test]
fn quick_changes_are_noticed() {
    let workspace = workspace();
    let path = workspace.context().join("a");
    let mut digests = std::collections::BTreeSet::new();
    for round in 0..20 {
        fs::write(&path, format!("round {round:04}")).unwrap();
        digests.insert(workspace.build("FROM scratch\nCOPY a /a\n").digest());
    }
    assert_eq!(digests.len(), 20);
}

#[test]
fn options_that_enter_the_key() {
    let workspace = workspace();
    let first = workspace.build(COPIES).digest();
    let mut options = workspace.options(COPIES);
    options.compression = LayerCompression::ZSTD_DEFAULT;
    assert_eq!(workspace.build_with(options).unwrap().steps()[1], "0.1 missed: compression changed");
    let mut options = workspace.options(COPIES);
    options.epoch = Epoch::from_seconds(1_700_000_000).unwrap();
    let other = workspace.build_with(options).unwrap();
    assert_eq!(other.steps()[1], "0.1 missed: times changed");
    assert_eq!(other.config().created.as_deref(), Some("2023-11-14T22:13:20Z"));
    let mut options = workspace.options(COPIES);
    options.no_cache = true;
    let again = workspace.build_with(options).unwrap();
    assert_eq!(again.steps()[1], "0.1 missed: the cache is not used");
    assert_eq!(again.digest(), first);
    assert_eq!(workspace.build(COPIES).steps()[1], "0.1 cached");
}

#[test]
fn kept_times_are_in_the_layer_and_in_the_key() {
    let workspace = workspace();
    let build = |seconds| {
        let file = fs::File::options().write(true).open(workspace.context().join("a")).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)).unwrap();
        let mut options = workspace.options("FROM scratch\nCOPY a /a\n");
        options.timestamps = Timestamps::Preserve;
        workspace.build_with(options).unwrap()
    };
    let first = build(1_000_000);
    let a = rimg_formats::layer::LayerPath::parse("a").unwrap();
    assert_eq!(first.tree().lookup(&a).unwrap().mtime().secs, 1_000_000);
    assert_eq!(build(2_000_000).steps()[1], "0.1 missed: modification time of a changed");
    assert_eq!(build(1_000_000).digest(), first.digest());
}

#[test]
fn the_same_inputs_give_the_same_digest() {
    let mut digests = std::collections::BTreeSet::new();
    for threads in [1, 2, 7] {
        let workspace = workspace();
        // Files enough for several members, and one of members of its own.
        for number in 0..200 {
            workspace.file(&format!("dir/many/{number}"), &format!("{number} ").repeat(2000));
        }
        workspace.file("dir/large", &"0123456789abcdef".repeat(200_000));
        let mut options = workspace.options(COPIES);
        options.threads = threads;
        digests.insert(workspace.build_with(options).unwrap().digest());
    }
    assert_eq!(digests.len(), 1);
}

/// A damaged layer is no result.
#[test]
fn a_damaged_layer_is_made_again() {
    let workspace = workspace();
    let first = workspace.build(COPIES);
    let layer = first.result.layers[0].0.digest;
    let path = workspace.store.blob(&layer).unwrap().unwrap().path().to_owned();
    let mut bytes = fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(&path, bytes).unwrap();
    let second = workspace.build(COPIES);
    assert!(second.steps()[1].starts_with("0.1 missed: its layer sha256:"), "{:?}", second.steps());
    assert_eq!(second.digest(), first.digest());
    assert_eq!(
        workspace.store.read_blob(&layer, 1 << 20).unwrap().len() as u64,
        first.result.layers[0].0.size
    );
}

/// The layer of a COPY is its entries: what lies below it, and how it is spelt, do not matter.
#[test]
fn layers_are_found_on_other_bases() {
    let workspace = workspace();
    workspace.build("FROM scratch\nCOPY dir /dir\n");
    let moved = workspace.build("FROM scratch\nCOPY a /x\nCOPY dir /dir\n");
    assert_eq!(moved.steps()[2..], ["0.1 done 1", "0.2 cached"]);
}

#[test]
fn files_under_dockerignore_do_not_count() {
    let workspace = workspace();
    workspace.file(".dockerignore", "*\n!dir\ndir/c\n# comment\n");
    let first = workspace.build("FROM scratch\nCOPY . /x/\n");
    assert_eq!(
        first.listing(),
        ["d755 0:0 x", "d755 0:0 x/dir", "f644 0:0 x/dir/b = content of b", "l777 0:0 x/dir/link -> b",]
    );
    workspace.file("dir/c", "changed").file("other", "new");
    assert_eq!(workspace.build("FROM scratch\nCOPY . /x/\n").digest(), first.digest());
    let text = workspace.fails("FROM scratch\nCOPY a /\n");
    assert_eq!(
        text,
        "error: `a` is not in the build context\n --> Buildfile:2:6\n  |\n2 | COPY a /\n  |      ^ not found\n  |\n  = note: `a` exists, but .dockerignore excludes it\n"
    );
}
