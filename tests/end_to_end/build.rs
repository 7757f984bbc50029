//! `rimg build`: the same inputs give the same digests, the cache is true, errors point at their line.

use std::fs::{self, File, FileTimes};
use std::os::unix::process::CommandExt;
use std::time::{Duration, SystemTime};

use crate::world::{World, is_root};

/// An ordinary user without subordinate ids.
const USER: u32 = 12_345;

fn copy_fixture(world: &World, context: &str) {
    world.write(
        &format!("{context}/Buildfile"),
        "FROM scratch\nCOPY app /srv/\nENV A=1\nCMD [\"/srv/main\"]\n",
    );
    world.write(&format!("{context}/app/main"), "main\n".repeat(1000));
    world.write(&format!("{context}/app/data/large"), vec![7; 3_000_000]);
    for number in 0..50 {
        world.write(&format!("{context}/app/data/{number}"), format!("{number}\n"));
    }
}

#[test]
fn the_same_inputs_give_the_same_digest() {
    let world = World::new();
    copy_fixture(&world, "one");
    let first = world.build("one", &["-t", "app"]);
    assert!(first.starts_with("sha256:") && first.len() == 71, "{first}");

    // Another checkout at another time, another store, another number of threads.
    copy_fixture(&world, "two");
    let old = FileTimes::new().set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000));
    File::options().write(true).open(world.path("two/app/main")).unwrap().set_times(old).unwrap();
    for threads in ["1", "2", "7"] {
        let root = world.path(&format!("store-{threads}"));
        let root = root.to_str().unwrap();
        let digest = world.build("two", &["--root", root, "--threads", threads, "-t", "app"]);
        assert_eq!(digest, first, "with {threads} threads");
    }
}

#[test]
fn an_ordinary_user_gets_the_same_digest() {
    let world = World::new();
    copy_fixture(&world, "context");
    let as_root = world.build("context", &["-t", "app"]);
    let root = world.path("of-the-user");
    fs::create_dir(&root).unwrap();
    let mut command = world.command(&["build", "-t", "app", "context"]);
    command.env("RIMG_ROOT", &root).env("HOME", &root);
    if is_root() {
        std::os::unix::fs::chown(&root, Some(USER), Some(USER)).unwrap();
        command.uid(USER).gid(USER);
    }
    assert_eq!(world.run(command).ok().trim(), as_root);
}

#[test]
fn two_clean_builds_with_run_give_the_same_digest() {
    let world = World::new();
    world.busybox_root("rootfs");
    world.write(
        "Buildfile",
        "FROM ./rootfs\nRUN mkdir -p /data && echo hello > /data/a && chown 1000:1000 /data/a && rm /bin/nc\n\
         RUN cat /data/a > /data/b; date > /dev/null; ln -s a /data/c\nUSER app\nWORKDIR /work/dir\n",
    );
    let first = world.build(".", &["-t", "app"]);
    let other = world.path("other");
    let second = world.build(".", &["--root", other.to_str().unwrap(), "--threads", "1"]);
    assert_eq!(first, second);
    let again = world.build(".", &["--no-cache"]);
    assert_eq!(first, again);
    assert_eq!(world.rimg(&["cat", "app", "/data/b"]).ok(), "hello\n");
    let listing = world.rimg(&["ls", "app", "/bin"]).ok();
    assert!(!listing.split_whitespace().any(|name| name == "nc"), "{listing}");
}

#[test]
fn a_second_build_does_nothing_and_says_so() {
    let world = World::new();
    world.busybox_root("rootfs");
    world.write("Buildfile", "FROM ./rootfs\nCOPY file /file\nRUN echo ran-once\nENV A=b\n");
    world.write("file", "content");
    let first = world.rimg(&["build", "--progress", "plain", "."]);
    assert!(first.stderr.contains("ran-once"), "{}", first.stderr);
    let digest = first.ok();
    let second = world.rimg(&["build", "--progress", "plain", "."]);
    let cached = second.stderr.lines().filter(|line| line.contains("CACHED")).count();
    assert!(cached >= 2, "{}", second.stderr);
    assert!(!second.stderr.contains("DONE"), "{}", second.stderr);
    let printed = |line: &&str| line.ends_with("ran-once") && !line.contains("RUN");
    assert_eq!(second.stderr.lines().filter(printed).count(), 0, "{}", second.stderr);
    assert_eq!(second.ok(), digest);
}

#[test]
fn a_change_of_neither_size_nor_time_is_noticed() {
    let world = World::new();
    world.write("Buildfile", "FROM scratch\nCOPY file /\n");
    let path = world.write("file", "aaaa");
    let before = world.build(".", &["-t", "app"]);
    assert_eq!(world.build(".", &["-t", "app"]), before);
    let times = fs::metadata(&path).unwrap();
    fs::write(&path, "bbbb").unwrap();
    let restored =
        FileTimes::new().set_modified(times.modified().unwrap()).set_accessed(times.accessed().unwrap());
    File::options().write(true).open(&path).unwrap().set_times(restored).unwrap();
    assert_ne!(world.build(".", &["-t", "app"]), before);
    assert_eq!(world.rimg(&["cat", "app", "file"]).ok(), "bbbb");
}

#[test]
fn unneeded_stages_are_not_built() {
    let world = World::new();
    world.busybox_root("rootfs");
    world.write(
        "Buildfile",
        "FROM ./rootfs AS broken\nRUN false\nFROM ./rootfs AS tools\nRUN echo made > /made\n\
         FROM scratch\nCOPY --from=tools /made /x/\n",
    );
    world.build(".", &["-t", "app"]);
    assert_eq!(world.rimg(&["cat", "app", "/x/made"]).ok(), "made\n");
    let failed = world.rimg(&["build", "--target", "broken", "."]).fails(1);
    assert!(failed.contains("Buildfile:2") && failed.contains("RUN false"), "{failed}");
}

#[test]
fn the_digest_is_the_only_line_on_stdout() {
    let world = World::new();
    world.write("Dockerfile", "FROM scratch\nLABEL a=b\n");
    let outcome = world.rimg(&["build", "--iidfile", "id", "."]);
    let digest = outcome.ok();
    assert_eq!(digest.lines().count(), 1);
    assert_eq!(fs::read_to_string(world.path("id")).unwrap().trim(), digest.trim());
}

#[test]
fn errors_point_at_their_line() {
    let world = World::new();
    world.write("Buildfile", "FROM scratch\nCOPPY a b\nRUN --mount=type=nope x\n");
    let text = world.rimg(&["build", "."]).fails(1);
    assert!(
        text.contains("Buildfile:2:1") && text.contains("COPY") && text.contains("Buildfile:3"),
        "{text}"
    );
    world.write("Buildfile", "FROM scratch\nCOPY missing.txt /\n");
    world.write("missing.text", "");
    let text = world.rimg(&["build", "."]).fails(1);
    assert!(text.contains("Buildfile:2") && text.contains("missing.txt"), "{text}");
    world.write("Buildfile", "FROM scratch\nADD https://example.invalid/x /\n");
    let text = world.rimg(&["build", "."]).fails(1);
    assert!(text.contains("Buildfile:2") && text.contains("not supported yet"), "{text}");
}

#[test]
fn outputs_hold_the_image() {
    let world = World::new();
    copy_fixture(&world, ".");
    let digest = world.build(".", &["--output", "type=oci,dest=app.tar", "-t", "app"]);
    let other = world.path("other");
    let other = other.to_str().unwrap();
    world.rimg(&["--root", other, "load", "-i", "app.tar"]).ok();
    assert_eq!(world.rimg(&["--root", other, "cat", &digest, "/srv/data/7"]).ok(), "7\n");
    world.build(".", &["--output", "out"]);
    assert_eq!(fs::read(world.path("out/srv/data/large")).unwrap(), vec![7; 3_000_000]);
}

#[test]
fn further_contexts_start_at_the_working_folder() {
    let world = World::new();
    world.write("app/Buildfile", "FROM base\nCOPY --from=other / /other/\n");
    world.write("base/etc/own", "own\n");
    world.write("other/file", "file\n");
    let contexts = ["--build-context", "base=base", "--build-context", "other=./other"];
    let digest = world.build("app", &contexts);
    assert_eq!(world.rimg(&["cat", &digest, "/etc/own"]).ok(), "own\n");
    assert_eq!(world.rimg(&["cat", &digest, "/other/file"]).ok(), "file\n");
    // An image takes the place of a folder, and where folders lie does not matter.
    world.build("app", &[&contexts[..], &["-t", "base:1"]].concat());
    world.write("elsewhere/base/etc/own", "own\n");
    world.write("elsewhere/other/file", "file\n");
    let other = "other=elsewhere/other";
    let again = world.build("app", &["--build-context", "base=elsewhere/base", "--build-context", other]);
    assert_eq!(again, digest);
    let image = ["--build-context", "base=docker-image://base:1", "--build-context", other];
    world.build("app", &image);
    let said = world.rimg(&["build", "--build-context", "base=git://example.com/x", "app"]).fails(2);
    assert!(said.contains("`git://` is not supported yet") && said.contains("hint: give a folder"), "{said}");
}
