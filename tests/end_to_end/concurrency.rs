//! Several commands at once on one store, in any combination, disturb each other in nothing.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::leftovers::{assert_no_mounts, assert_pruned, names};
use crate::transfer::Server;
use crate::world::{Outcome, World, noise};

/// Starts all commands before it waits for the first.
fn at_once(commands: Vec<Command>) -> Vec<Outcome> {
    let spawn = |mut command: Command| command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let children: Vec<_> = commands.into_iter().map(spawn).collect();
    // Each gets a reader of its own: a full pipe must not hold another one up.
    let readers: Vec<_> = children
        .into_iter()
        .map(|child| std::thread::spawn(|| Outcome::of(child.wait_with_output().unwrap())))
        .collect();
    readers.into_iter().map(|reader| reader.join().unwrap()).collect()
}

fn many(number: usize, command: impl Fn() -> Command) -> Vec<Outcome> {
    at_once((0..number).map(|_| command()).collect())
}

fn context(world: &World) {
    world.busybox_root("rootfs");
    world.write("large", noise(1_500_000));
    world.write(
        "Buildfile",
        "FROM ./rootfs\nCOPY large /\nRUN cat /large > /copy\nRUN echo one > /one && rm /copy\nCMD [\"cat\", \"/one\"]\n",
    );
}

/// Runs `rimg prune` over and over while `work` goes on.
fn while_pruning(world: &World, root: &str, arguments: &[&str], work: impl FnOnce()) {
    /// Ends the pruning also when `work` panics.
    struct Stop<'a>(&'a AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let pruning = scope.spawn(|| {
            let mut rounds = 0;
            while !stop.load(Ordering::SeqCst) || rounds == 0 {
                let mut prune = world.command(arguments);
                prune.env("RIMG_ROOT", world.path(root));
                world.run(prune).ok();
                rounds += 1;
            }
        });
        let guard = Stop(&stop);
        work();
        drop(guard);
        pruning.join().unwrap();
    });
}

#[test]
fn builds_of_one_buildfile() {
    let world = World::new();
    context(&world);
    for flags in [&[][..], &["--no-cache"]] {
        let arguments = [&["build", "-t", "app"], flags, &["."]].concat();
        let built: Vec<String> = many(3, || world.command(&arguments)).into_iter().map(Outcome::ok).collect();
        assert!(built.iter().all(|digest| *digest == built[0]), "{built:?}");
        assert_eq!(world.rimg(&["run", "--rm", "app"]).ok(), "one\n");
    }
    assert_no_mounts(&world);
    assert_pruned(&world, &world.root(), world.command(&["prune"]));
}

#[test]
fn a_build_while_prune_runs() {
    let world = World::new();
    context(&world);
    for prune in [&["prune"][..], &["prune", "--all", "--force"]] {
        while_pruning(&world, "store", prune, || {
            let mut digests = Vec::new();
            for round in 0..4 {
                let flags: &[&str] = if round % 2 == 0 { &["--no-cache"] } else { &[] };
                let arguments = [&["build", "-t", "app"], flags, &["."]].concat();
                digests.push(world.run(world.command(&arguments)).ok());
            }
            assert!(digests.iter().all(|digest| *digest == digests[0]), "{digests:?}");
        });
        world.verify_store(&world.root());
    }
    world.build(".", &["-t", "app"]);
    assert_eq!(world.rimg(&["run", "--rm", "app"]).ok(), "one\n");
}

#[test]
fn pulls_of_one_image() {
    let world = World::new();
    context(&world);
    let digest = world.build(".", &["-t", "app"]);
    let server = Server::start(&world, "store");
    let name = format!("{}/app", server.address);
    let root = world.path("puller");
    let root = root.to_str().unwrap();
    for outcome in many(4, || world.command(&["--root", root, "pull", &name])) {
        assert_eq!(outcome.ok().trim(), digest);
    }
    assert_eq!(world.rimg(&["--root", root, "run", "--rm", &name]).ok(), "one\n");
    assert_pruned(&world, &world.path("puller"), world.command(&["prune"]));
}

#[test]
fn runs_of_one_fresh_image() {
    let world = World::new();
    context(&world);
    world.write("Buildfile", "FROM ./rootfs\nCOPY large /\n");
    world.build(".", &["-t", "app"]);
    assert_eq!(names(&world.root().join("snapshots")), Vec::<String>::new());
    for outcome in many(8, || {
        world.command(&["run", "--rm", "app", "sh", "-c", "wc -c < /large; echo x > /one; rm /large"])
    }) {
        assert_eq!(outcome.ok(), "1500000\n");
    }
    let trees = names(&world.root().join("snapshots"));
    assert_eq!(trees.iter().filter(|name| !name.contains('.')).count(), 2, "{trees:?}");
    assert_no_mounts(&world);
    assert_pruned(&world, &world.root(), world.command(&["prune"]));
}

#[test]
fn an_image_is_removed_while_a_container_of_it_runs() {
    let world = World::new();
    context(&world);
    world.build(".", &["-t", "app"]);
    let mut child = world
        .command(&[
            "run",
            "--rm",
            "-i",
            "app",
            "sh",
            "-c",
            "echo up; while read file; do wc -c < $file; done",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "up");
    world.rimg(&["rmi", "--force", "app"]).ok();
    world.rimg(&["prune", "--all", "--force"]).ok();
    // Files that the container has not looked at before, and a program.
    for (file, length) in [("/large", "1500000"), ("/one", "4")] {
        writeln!(stdin, "{file}").unwrap();
        assert_eq!(lines.next().expect("the container died").unwrap().trim(), length);
    }
    drop(stdin);
    assert!(child.wait().unwrap().success());
    assert_no_mounts(&world);
    world.rimg(&["prune", "--all", "--force"]).ok();
    for folder in ["snapshots", "containers", "blobs/sha256"] {
        assert_eq!(names(&world.root().join(folder)), Vec::<String>::new(), "{folder}");
    }
}

#[test]
fn a_server_while_prune_runs() {
    let world = World::new();
    context(&world);
    let digest = world.build(".", &["-t", "app"]);
    let server = Server::start(&world, "second");
    let name = format!("{}/kept", server.address);
    world.rimg(&["push", "-q", "app", &name]).ok();
    while_pruning(&world, "second", &["prune"], || {
        for round in 0..4 {
            let pushed = format!("{}/round-{round}/app", server.address);
            let root = format!("puller-{round}");
            let pull = world.command(&["--root", world.path(&root).to_str().unwrap(), "pull", "-q", &name]);
            for outcome in at_once(vec![world.command(&["push", "-q", "app", &pushed]), pull]) {
                assert_eq!(outcome.ok().trim(), digest);
            }
            let root = world.path(&root);
            let pull = world.command(&["--root", root.to_str().unwrap(), "pull", "-q", &pushed]);
            assert_eq!(world.run(pull).ok().trim(), digest);
            fs::remove_dir_all(root).unwrap();
        }
    });
    world.verify_store(&world.path("second"));
}
