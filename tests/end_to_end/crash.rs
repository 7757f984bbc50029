//! `kill -9` at any moment: the next command works, nothing is damaged, mounted or still running.
//!
//! Moments are spread over the command's usual duration, so that every phase is hit without knowing them.

use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::transfer::Server;
use crate::world::World;

/// Moments tried for each command.
const MOMENTS: u32 = 8;

/// Runs the command once to the end to learn how long it takes, then kills it at moments of that span; `reset`
/// brings the world back to where the command has work to do.
fn kill_at_moments(world: &World, arguments: &[&str], reset: impl Fn()) {
    reset();
    let begun = Instant::now();
    world.rimg(arguments).ok();
    let span = begun.elapsed();
    for moment in 0..MOMENTS {
        reset();
        let mut child = world.command(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(span * moment / MOMENTS + Duration::from_millis(1));
        child.kill().unwrap();
        child.wait().unwrap();
        world.verify_store(&world.root());
        assert_no_mounts(world);
    }
    world.rimg(arguments).ok();
}

fn assert_no_mounts(world: &World) {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let folder = world.path("");
    let folder = folder.to_str().unwrap();
    assert!(!mounts.contains(folder.trim_end_matches('/')), "left mounted: {mounts}");
}

/// Waits (bounded) until no process has `marker` among its arguments.
fn assert_no_process(marker: &str) {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let alive = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok).find(|entry| {
            let arguments = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            arguments.windows(marker.len()).any(|window| window == marker.as_bytes())
        });
        match alive {
            None => return,
            Some(entry) => {
                assert!(Instant::now() < deadline, "process {:?} is still alive", entry.file_name())
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_killed_build_leaves_nothing_behind() {
    let world = World::new();
    world.busybox_root("rootfs");
    world.write(
        "Buildfile",
        "FROM ./rootfs\nCOPY large /\nRUN cat /large > /copy && sleep 0.05\nRUN rm /copy\n",
    );
    world.write("large", (0..2_000_000u32).flat_map(u32::to_le_bytes).collect::<Vec<u8>>());
    kill_at_moments(&world, &["build", "--no-cache", "-t", "app", "."], || {});
    assert!(world.rimg(&["ls", "app"]).ok().contains("large"));
}

#[test]
fn killed_pushes_and_pulls_leave_nothing_behind() {
    let world = World::new();
    world.write("context/Buildfile", "FROM scratch\nCOPY . /\n");
    world.write("context/large", (0..4_000_000u32).flat_map(u32::to_le_bytes).collect::<Vec<u8>>());
    world.build("context", &["-t", "app"]);
    let server = Server::start(&world, "second");
    let name = format!("{}/app", server.address);
    world.rimg(&["push", "app", &name]).ok();
    let pull_into = world.path("puller");
    let arguments = ["--root", pull_into.to_str().unwrap(), "pull", name.as_str()];
    kill_at_moments(&world, &arguments, || {
        world.verify_store(&world.path("puller"));
        let _ = std::fs::remove_dir_all(world.path("puller"));
    });
    kill_at_moments(&world, &["push", "app", &name], || {});
    world.verify_store(&world.path("second"));
}

#[test]
fn a_killed_server_keeps_what_it_acknowledged() {
    let world = World::new();
    world.write("context/Buildfile", "FROM scratch\nCOPY . /\n");
    world.write("context/large", (0..3_000_000u32).flat_map(u32::to_le_bytes).collect::<Vec<u8>>());
    let digest = world.build("context", &["-t", "app"]);
    for moment in 0..MOMENTS {
        let server = Server::start(&world, "second");
        let name = format!("{}/app:{moment}", server.address);
        let mut push = world
            .command(&["push", "-q", "app", &name])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(u64::from(moment) * 15));
        drop(server);
        let acknowledged = push.wait().unwrap().success();
        world.verify_store(&world.path("second"));
        if acknowledged {
            let again = Server::start(&world, "second");
            let third = world.path("third");
            let name = format!("{}/app:{moment}", again.address);
            let pulled = world.rimg(&["--root", third.to_str().unwrap(), "pull", "-q", &name]).ok();
            assert!(pulled.contains(&digest), "{pulled}");
        }
    }
}

#[test]
fn a_killed_run_leaves_no_process() {
    let world = World::new();
    world.busybox_root("rootfs");
    world.write("Buildfile", "FROM ./rootfs\n");
    world.build(".", &["-t", "box"]);
    let marker = format!("sleep {}", 1_000_000 + std::process::id());
    let marker_seconds = marker.trim_start_matches("sleep ").to_owned();
    world.rimg(&["run", "--rm", "box", "true"]).ok();
    for moment in 0..MOMENTS {
        let mut child = world.command(&["run", "--rm", "box", "sleep", &marker_seconds]).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(u64::from(moment) * 4));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_no_process(&marker_seconds);
        assert_no_mounts(&world);
        world.rimg(&["run", "--rm", "box", "true"]).ok();
    }
    assert_eq!(std::fs::read_dir(world.root().join("containers")).unwrap().count(), 0);
}
