//! `kill -9` at any moment: the next command works, nothing is damaged, mounted or still running, and a prune leaves
//! nothing unfinished.
//!
//! Moments are places in a command's work, never times: a line of progress, a file that appears, a byte that passes.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::leftovers::{assert_no_mounts, assert_no_process, assert_pruned, names, process_with};
use crate::proxy::{Direction, Proxy};
use crate::transfer::Server;
use crate::world::{USER, World, is_root, noise};

/// How long a moment may take to come, on the slowest machine.
const MOMENT_SECONDS: u64 = 60;

/// A moment: whether it has come, by the lines that the command has said so far.
type Moment<'a> = Box<dyn Fn(&[String]) -> bool + 'a>;

/// When the command has said so many lines.
fn line(number: usize) -> Moment<'static> {
    Box::new(move |lines| lines.len() >= number)
}

/// When the command has said this.
fn said(text: &str) -> Moment<'_> {
    Box::new(move |lines| lines.iter().any(|line| line.contains(text)))
}

/// When a folder of the store has a name that was not there before.
fn appears(root: &Path, folder: &'static str, like: &'static str) -> Moment<'static> {
    let folder = root.join(folder);
    let before = names(&folder);
    Box::new(move |_| names(&folder).iter().any(|name| name.contains(like) && !before.contains(name)))
}

/// When a folder has fewer names than before.
fn shrinks(folder: &Path) -> Moment<'static> {
    let (folder, before) = (folder.to_owned(), names(folder).len());
    Box::new(move |_| names(&folder).len() < before)
}

/// Runs the command until the moment comes and kills it then. Whether it came before the command's end, and what the
/// command said.
fn kill_at(mut command: Command, moment: &Moment<'_>) -> (bool, Vec<String>) {
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let lines = Arc::new(Mutex::new(Vec::new()));
    let (stderr, said) = (BufReader::new(child.stderr.take().unwrap()), lines.clone());
    let reader = std::thread::spawn(move || {
        stderr.lines().map_while(Result::ok).for_each(|line| said.lock().unwrap().push(line));
    });
    let killed = kill_child_at(&mut child, || moment(&lines.lock().unwrap()));
    reader.join().unwrap();
    let lines = lines.lock().unwrap().clone();
    (killed, lines)
}

fn kill_child_at(child: &mut Child, moment: impl Fn() -> bool) -> bool {
    let deadline = Instant::now() + Duration::from_secs(MOMENT_SECONDS);
    loop {
        if moment() {
            child.kill().unwrap();
            return child.wait().unwrap().code().is_none();
        }
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        assert!(Instant::now() < deadline, "the moment never came");
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// Kills the command at each moment; afterwards all must be well, and the same command must work.
fn kill_at_each<'a>(
    world: &World,
    command: impl Fn() -> Command,
    moments: impl Fn() -> Vec<Moment<'a>>,
    reset: impl Fn(),
) {
    let mut killed = 0;
    for number in 0..moments().len() {
        reset();
        // Moments look at what is there when they are made.
        let moment = moments().swap_remove(number);
        killed += usize::from(kill_at(command(), &moment).0);
        world.verify_store(&world.root());
        assert_no_mounts(world);
        world.run(command()).ok();
    }
    assert!(killed * 2 > moments().len(), "only {killed} of {} moments came", moments().len());
}

/// A number that only this test's payloads have among their arguments.
fn marker(of: u32) -> String {
    format!("{}", 100_000_000 * of + std::process::id())
}

#[test]
fn a_killed_build_leaves_nothing_behind() {
    let world = World::new();
    world.write("Buildfile", "FROM scratch\nCOPY first /\nCOPY second /\n");
    world.write("first", noise(3_000_000));
    world.write("second", noise(2_000_000));
    let build = || world.command(&["build", "--no-cache", "--progress", "plain", "-t", "app", "."]);
    let digest = world.run(build()).ok();
    let root = world.root();
    let moments = || {
        let mut moments: Vec<Moment<'_>> = (0..6).map(line).collect();
        moments.push(appears(&root, "uploads", ""));
        moments.push(appears(&root, "blobs/sha256", ""));
        moments.push(appears(&root, "index/sha256", ""));
        moments
    };
    // Everything has to be made again each time.
    kill_at_each(&world, build, moments, || {
        world.rimg(&["prune", "--all", "--force"]).ok();
    });
    assert_eq!(world.run(build()).ok(), digest);
    assert_pruned(&world, &root, world.command(&["prune"]));
}

#[test]
fn a_build_that_is_killed_in_a_step_leaves_nothing_behind() {
    let users = [None, Some(USER)];
    for user in users.into_iter().filter(|user| user.is_none() || is_root()) {
        let world = World::new();
        world.busybox_root("rootfs");
        let seconds = marker(1 + user.map_or(0, |_| 1));
        world.write(
            "Buildfile",
            "FROM ./rootfs\nARG FIRST=0 SECOND=0\nRUN echo one > /one; echo in-the-first; sleep $FIRST\n\
             RUN rm /one; echo two > /two; echo in-the-second; sleep $SECOND\n",
        );
        if let Some(user) = user {
            world.store_of(user);
        }
        let command = |arguments: &[&str]| match user {
            Some(user) => world.command_as(user, arguments),
            None => world.command(arguments),
        };
        let build = |argument: &str| {
            command(&[
                "build",
                "--no-cache",
                "--progress",
                "plain",
                "-t",
                "app",
                "--build-arg",
                argument,
                ".",
            ])
        };
        for (step, said_there) in [("FIRST", "in-the-first"), ("SECOND", "in-the-second")] {
            let argument = format!("{step}={seconds}");
            let output = Box::new(|lines: &[String]| {
                // The instruction's text, which is told as well, does not end so.
                lines.iter().any(|line| line.ends_with(said_there)) && process_with(&seconds).is_some()
            }) as Moment<'_>;
            let (killed, lines) = kill_at(build(&argument), &output);
            assert!(killed, "{lines:?}");
            assert_no_process(&seconds);
            assert_no_mounts(&world);
            world.verify_store(&world.root());
            assert_pruned(&world, &world.root(), command(&["prune"]));
            world.run(build("FIRST=0")).ok();
        }
        for moment in [
            appears(&world.root(), "snapshots", ".new-"),
            appears(&world.root(), "blobs/sha256", ""),
            line(3),
        ] {
            kill_at(build("FIRST=0"), &moment);
            assert_no_mounts(&world);
            world.run(build("FIRST=0")).ok();
        }
        assert_eq!(world.run(command(&["cat", "app", "/two"])).ok(), "two\n");
        assert_pruned(&world, &world.root(), command(&["prune"]));
    }
}

/// Places in a transfer of so many bytes.
fn places(total: u64) -> Vec<u64> {
    vec![0, 300, total / 3, total * 2 / 3, total.saturating_sub(2000), total.saturating_sub(1), total]
}

fn image_of_two_layers(world: &World) -> String {
    world.write("context/Buildfile", "FROM scratch\nCOPY first /\nCOPY second /\n");
    world.write("context/first", noise(3_000_000));
    world.write("context/second", noise(1_000_000));
    world.build("context", &["-t", "app"])
}

#[test]
fn a_killed_pull_leaves_nothing_behind() {
    let world = World::new();
    let digest = image_of_two_layers(&world);
    let server = Server::start(&world, "store");
    let proxy = Proxy::start(&server.address, Direction::Down);
    let name = format!("{}/app", proxy.address);
    let root = world.path("puller");
    let pull = || world.command(&["--root", root.to_str().unwrap(), "pull", &name]);
    assert_eq!(world.run(pull()).ok().trim(), digest);
    for place in places(proxy.passed()) {
        std::fs::remove_dir_all(&root).unwrap();
        proxy.allow(place);
        kill_at(pull(), &(Box::new(|_: &[String]| proxy.is_exhausted()) as Moment<'_>));
        world.verify_store(&root);
        proxy.allow(u64::MAX);
        assert_eq!(world.run(pull()).ok().trim(), digest, "after {place} bytes");
        assert_pruned(&world, &root, world.command(&["--root", root.to_str().unwrap(), "prune"]));
        assert_eq!(std::fs::read(world.path("context/first")).unwrap(), noise(3_000_000));
    }
}

#[test]
fn a_killed_push_leaves_nothing_behind() {
    let world = World::new();
    let digest = image_of_two_layers(&world);
    let server = Server::start(&world, "second");
    let proxy = Proxy::start(&server.address, Direction::Up);
    let push = |tag: &str| world.command(&["push", "app", &format!("{}/{tag}/app", proxy.address)]);
    assert_eq!(world.run(push("first")).ok().trim(), digest);
    for (round, place) in places(proxy.passed()).into_iter().enumerate() {
        // A repository that has nothing yet.
        let name = format!("round-{round}");
        proxy.allow(place);
        kill_at(push(&name), &(Box::new(|_: &[String]| proxy.is_exhausted()) as Moment<'_>));
        world.verify_store(&world.path("second"));
        proxy.allow(u64::MAX);
        assert_eq!(world.run(push(&name)).ok().trim(), digest, "after {place} bytes");
    }
    assert_pruned(&world, &world.root(), world.command(&["prune"]));
    let third = world.path("third");
    let name = format!("{}/round-0/app", server.address);
    assert_eq!(world.rimg(&["--root", third.to_str().unwrap(), "pull", &name]).ok().trim(), digest);
}

#[test]
fn a_killed_server_keeps_what_it_acknowledged() {
    let world = World::new();
    let digest = image_of_two_layers(&world);
    let mut server = Server::start(&world, "second");
    let proxy = Proxy::start(&server.address, Direction::Up);
    let push =
        |round: usize| world.command(&["push", "-q", "app", &format!("{}/round-{round}/app", proxy.address)]);
    world.run(push(99)).ok();
    for (round, place) in places(proxy.passed()).into_iter().enumerate() {
        proxy.allow(place);
        let mut pushing = push(round).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let deadline = Instant::now() + Duration::from_secs(MOMENT_SECONDS);
        while !proxy.is_exhausted() && pushing.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "{place} bytes never passed");
            std::thread::sleep(Duration::from_micros(200));
        }
        drop(server);
        let _ = pushing.kill();
        let acknowledged = pushing.wait().unwrap().success();
        world.verify_store(&world.path("second"));
        server = Server::start(&world, "second");
        proxy.redirect(&server.address);
        proxy.allow(u64::MAX);
        if !acknowledged {
            world.run(push(round)).ok();
        }
        let third = world.path("third");
        let name = format!("{}/round-{round}/app", server.address);
        let pulled = world.rimg(&["--root", third.to_str().unwrap(), "pull", "-q", &name]).ok();
        assert_eq!(pulled.trim(), digest, "after {place} bytes");
        std::fs::remove_dir_all(third).unwrap();
    }
}

#[test]
fn a_killed_load_leaves_nothing_behind() {
    let world = World::new();
    let digest = image_of_two_layers(&world);
    world.rimg(&["save", "-o", "app.tar", "app"]).ok();
    let archive = std::fs::read(world.path("app.tar")).unwrap();
    let root = world.path("loader");
    let load = || world.command(&["--root", root.to_str().unwrap(), "load"]);
    for place in places(archive.len() as u64) {
        let mut child =
            load().stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // Returns when all but a pipe's worth has been read; standard input stays open, so the archive never ends.
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(&archive[..usize::try_from(place).unwrap()]).unwrap();
        kill_child_at(&mut child, || true);
        world.verify_store(&root);
        let mut again = load();
        again.stdin(std::fs::File::open(world.path("app.tar")).unwrap());
        assert!(world.run(again).ok().contains(&digest), "after {place} bytes");
        assert_pruned(&world, &root, world.command(&["prune"]));
        std::fs::remove_dir_all(&root).unwrap();
    }
}

#[test]
fn a_killed_run_leaves_nothing_behind() {
    let users = [None, Some(USER)];
    for user in users.into_iter().filter(|user| user.is_none() || is_root()) {
        let world = World::new();
        world.busybox_root("rootfs");
        world.write("Buildfile", "FROM ./rootfs\n");
        if let Some(user) = user {
            world.store_of(user);
        }
        let command = |arguments: &[&str]| match user {
            Some(user) => world.command_as(user, arguments),
            None => world.command(arguments),
        };
        world.run(command(&["build", "-t", "box", "."])).ok();
        let seconds = marker(3 + user.map_or(0, |_| 1));
        let script = "trap '' TERM; touch /here; echo ready >&2; sleep $0 & sleep $0";
        let run = || command(&["run", "--rm", "box", "sh", "-c", script, &seconds]);
        let root = world.root();
        let moments: [&dyn Fn() -> Moment<'static>; 6] = [
            &|| line(0),
            &|| appears(&root, "snapshots", ".new-"),
            &|| appears(&root, "snapshots", ""),
            &|| appears(&root, "containers", ""),
            &|| said("ready"),
            &|| said("ready"),
        ];
        for moment in moments {
            // The layer has to be unpacked again.
            for name in names(&root.join("snapshots")) {
                let path = root.join("snapshots").join(name);
                if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) }
                    .unwrap();
            }
            let (killed, lines) = kill_at(run(), &moment());
            assert!(killed, "{lines:?}");
            assert_no_process(&seconds);
            assert_no_mounts(&world);
            world.verify_store(&root);
            world.run(command(&["run", "--rm", "box", "test", "-x", "/bin/busybox"])).ok();
        }
        assert_pruned(&world, &root, command(&["prune"]));
    }
}

#[test]
fn a_killed_prune_leaves_nothing_half_removed() {
    const FILES: usize = 1500;
    let world = World::new();
    world.busybox_root("rootfs");
    for number in 0..FILES {
        world.write(&format!("rootfs/many/{number}"), "x");
    }
    world.write("Buildfile", "FROM ./rootfs\nCOPY large /\n");
    world.write("large", noise(1_000_000));
    let root = world.root();
    let count = || {
        world.build(".", &["-t", "app"]);
        let counted =
            world.rimg(&["run", "--rm", "app", "sh", "-c", "ls /many | wc -l; wc -c < /large"]).ok();
        assert_eq!(counted.split_whitespace().collect::<Vec<_>>(), [FILES.to_string().as_str(), "1000000"]);
    };
    count();
    let tree = || {
        let trees = names(&root.join("snapshots"))
            .into_iter()
            .map(|name| root.join("snapshots").join(name).join("many"));
        trees.into_iter().find(|many| many.is_dir()).unwrap()
    };
    let moments: [&dyn Fn() -> Moment<'static>; 6] = [
        &|| line(0),
        &|| shrinks(&root.join("blobs/sha256")),
        &|| appears(&root, "uploads", ""),
        &|| shrinks(&root.join("index/sha256")),
        &|| shrinks(&tree()),
        &|| shrinks(&root.join("snapshots")),
    ];
    for moment in moments {
        let moment = moment();
        let (_, lines) = kill_at(world.command(&["prune", "--all", "--force"]), &moment);
        world.verify_store(&root);
        assert_no_mounts(&world);
        // The image is made again beside what the prune has left, and is whole.
        count();
        assert_pruned(&world, &root, world.command(&["prune"]));
        assert!(lines.len() < 10, "{lines:?}");
    }
    assert_pruned(&world, &root, world.command(&["prune", "--all", "--force"]));
    assert_eq!(names(&root.join("blobs/sha256")), Vec::<String>::new());
    assert_eq!(names(&root.join("snapshots")), Vec::<String>::new());
}
