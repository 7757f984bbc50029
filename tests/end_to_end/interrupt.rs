//! Ctrl-C and SIGTERM during a build: it winds up, says so, and leaves nothing running and nothing behind.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::{Child, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::leftovers::{assert_no_mounts, assert_no_process, names};
use crate::world::World;

fn send(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

/// Reads lines up to one that contains `text`; then `then`, and the remaining lines.
fn read_until(child: &mut Child, text: &str, then: impl FnOnce(&Child)) -> Vec<String> {
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|line| line.contains(text)), "`{text}` never came");
    then(child);
    lines.collect()
}

#[test]
fn a_signal_ends_a_build_in_good_order() {
    let world = World::new();
    world.busybox_root("rootfs");
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        // A number that only this payload has among its arguments. Two stages, so that more than one step runs.
        let marker = format!("{}", 700_000_000 + code + std::process::id());
        let stage = |name: &str| {
            format!(
                "FROM ./rootfs AS {name}\nENV PATH=/bin\nRUN touch /{name}; echo be''gun; sleep {marker}\n"
            )
        };
        let last = "FROM scratch\nCOPY --from=a /a /\nCOPY --from=b /b /\n";
        world.write("Buildfile", format!("{}{}{last}", stage("a"), stage("b")));
        let mut command = world.command(&["build", "--progress", "plain", "-t", "never", "."]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let said = read_until(&mut child, "begun", |child| send(child, signal));
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(i32::try_from(code).unwrap()), "{said:?}");
        assert!(output.stdout.is_empty());
        assert_eq!(said.last().map(String::as_str), Some("build interrupted"), "{said:?}");
        assert!(!said.iter().any(|line| line.contains("ERROR")), "{said:?}");
        assert_no_process(&marker);
        assert_no_mounts(&world);
        let snapshots = names(&world.root().join("snapshots"));
        assert!(!snapshots.iter().any(|name| name.starts_with('.')), "{snapshots:?}");
        for folder in ["uploads", "containers", "sessions"] {
            assert_eq!(names(&world.root().join(folder)), Vec::<String>::new(), "in {folder}/");
        }
        world.verify_store(&world.root());
        world.rimg(&["inspect", "never"]).fails(1);
    }
    // Nothing stands in the way of the next build, and finished steps were kept.
    world.write("Buildfile", "FROM ./rootfs AS a\nENV PATH=/bin\nRUN touch /done\n");
    let outcome = world.rimg(&["build", "--progress", "plain", "."]);
    assert!(outcome.stderr.contains("CACHED"), "{}", outcome.stderr);
    outcome.ok();
}

#[test]
fn a_build_that_waits_for_a_network_is_interrupted_too() {
    let world = World::new();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let image = format!("{}/image", silent.local_addr().unwrap());
    world.write("Buildfile", format!("FROM {image}\n"));
    let mut command = world.command(&["build", "--plain-http", "--progress", "plain", "."]);
    let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    // A registry that takes the connection and says nothing.
    let _connection = silent.accept().unwrap();
    send(&child, Signal::INT);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    assert!(String::from_utf8_lossy(&output.stderr).ends_with("\nbuild interrupted\n"));
    world.verify_store(&world.root());
}

#[test]
fn a_copy_is_interrupted_in_the_middle_of_a_file() {
    let world = World::new();
    world.write("Buildfile", "FROM scratch\nCOPY large /\n");
    // It takes no space, and takes much longer to copy than the signal takes to come.
    std::fs::File::create(world.path("large")).unwrap().set_len(64 << 30).unwrap();
    let mut command = world.command(&["build", "--progress", "plain", "."]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let uploads = world.root().join("uploads");
    while names(&uploads).is_empty() {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it was interrupted");
        std::thread::yield_now();
    }
    send(&child, Signal::INT);
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{said}");
    assert!(said.ends_with("CANCELED\nbuild interrupted\n"), "{said}");
    assert_eq!(names(&uploads), Vec::<String>::new());
    world.verify_store(&world.root());
}
