//! The same inputs give the same manifest digest: in any store, by any user, with any number of threads, from any
//! checkout; and other inputs give another.

use std::fs::{self, File, FileTimes};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use crate::world::{USER, World, is_root, noise};

/// Checks the fixture out into the folder `context`, as a shell with that umask would.
fn check_out(world: &World, context: &str, umask: u32, seconds: u64) {
    world.write(&format!("{context}/app/main"), "main\n".repeat(1000));
    world.write(&format!("{context}/app/data/large"), noise(700_000));
    for number in 0..40 {
        world.write(&format!("{context}/app/data/{number}"), format!("{number}\n"));
    }
    world.write(
        &format!("{context}/copied"),
        "FROM scratch\nCOPY --chmod=u=rwX,go=rX app /srv/\nENV A=1\nCMD [\"/srv/main\"]\n",
    );
    world.write(
        &format!("{context}/run"),
        "FROM imported\nRUN mkdir -p /data && echo hello > /data/a && chmod 640 /data/a && rm /bin/nc\n\
         COPY --chmod=u=rwX,go=rX app /srv/\nRUN cat /data/a > /data/b; date > /dev/null; ln -s a /data/c; ln /data/a /data/d\n\
         RUN cp -r /srv/data /copy && touch /srv/main\nWORKDIR /work/dir\n",
    );
    times_and_modes(&world.path(context), umask, SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
}

fn times_and_modes(path: &Path, umask: u32, time: SystemTime) {
    let directory = path.is_dir();
    if directory {
        for entry in fs::read_dir(path).unwrap() {
            times_and_modes(&entry.unwrap().path(), umask, time);
        }
    }
    let mode = if directory { 0o777 } else { 0o666 } & !umask;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    File::open(path).unwrap().set_times(FileTimes::new().set_modified(time)).unwrap();
}

/// Builds in a store of its own with the image `imported`, and gives the digest.
fn build(world: &World, store: &str, context: &str, file: &str, threads: &str, user: Option<u32>) -> String {
    let root = world.path(store);
    fs::create_dir(&root).unwrap();
    if let Some(user) = user {
        std::os::unix::fs::chown(&root, Some(user), Some(user)).unwrap();
    }
    let run = |arguments: &[&str]| {
        let mut command = match user {
            Some(user) => world.command_as(user, arguments),
            None => world.command(arguments),
        };
        command.env("RIMG_ROOT", &root);
        world.run(command).ok()
    };
    run(&["import", "root.tar", "imported"]);
    let file = format!("{context}/{file}");
    let digest = run(&["build", "--threads", threads, "-f", &file, "-t", "app", context]);
    world.verify_store(&root);
    digest.trim().to_owned()
}

/// A root file system as an archive, whose owners are nobody's on this machine.
fn archive(world: &World) {
    world.busybox_root("rootfs");
    let mut tar = Command::new("tar");
    tar.args(["--owner=0", "--group=0", "--numeric-owner", "--sort=name", "-cf"]);
    assert!(
        tar.arg(world.path("root.tar"))
            .arg("-C")
            .arg(world.path("rootfs"))
            .arg(".")
            .status()
            .unwrap()
            .success()
    );
}

#[test]
fn of_copies_and_of_run_steps() {
    let world = World::new();
    archive(&world);
    check_out(&world, "one", 0o022, 1_000_000_000);
    check_out(&world, "two", 0o002, 1_700_000_000);
    let users: &[Option<u32>] = if is_root() { &[None, Some(USER)] } else { &[None] };
    for file in ["copied", "run"] {
        let mut digests = Vec::new();
        for &user in users {
            for (context, threads) in [("one", "1"), ("two", "4")] {
                let store = format!("{file}-{context}-{}", user.unwrap_or(0));
                let digest = build(&world, &store, context, file, threads, user);
                digests.push((digest, store));
            }
        }
        let first = &digests[0].0;
        assert!(digests.iter().all(|(digest, _)| digest == first), "{digests:#?}");
    }
}

#[test]
fn another_content_of_the_same_size_and_time_is_another_image() {
    let world = World::new();
    archive(&world);
    check_out(&world, "context", 0o022, 1_000_000_000);
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    world.rimg(&["import", "root.tar", "imported"]).ok();
    for file in ["copied", "run"] {
        let file = format!("context/{file}");
        let mut seen = Vec::new();
        // Several times: the first look at a file is not trusted anyway.
        for content in ["aaaa", "aaaa", "bbbb", "bbbb", "cccc", "aaaa"] {
            world.write("context/app/data/7", content);
            times_and_modes(&world.path("context/app/data/7"), 0o022, time);
            let digest = world.build("context", &["-f", &file, "-t", "app"]);
            assert_eq!(world.rimg(&["cat", "app", "/srv/data/7"]).ok(), content);
            seen.push((content, digest));
        }
        for (one, digest) in &seen {
            for (other, another) in &seen {
                assert_eq!(one == other, digest == another, "{one} {other} {seen:#?}");
            }
        }
    }
}
