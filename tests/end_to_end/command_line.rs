//! The command line itself: help, versions, errors of usage, closed pipes.

use std::io::Read;
use std::process::Stdio;

use crate::world::World;

#[test]
fn every_command_explains_itself() {
    let world = World::new();
    let help = world.rimg(&["--help"]).ok();
    for command in "build push pull run serve images tag rmi inspect history ls cat save load import login logout prune fsck doctor version completions".split(' ') {
        assert!(help.contains(&format!("  {command} ")), "{command} is missing in {help}");
        assert!(world.rimg(&[command, "--help"]).ok().contains("Usage: rimg"), "{command}");
    }
}

#[test]
fn wrong_usage_exits_with_2_and_no_store_is_made() {
    let world = World::new();
    world.rimg(&["buidl"]).fails(2);
    let error = world.rimg(&["ps", "-a"]).fails(2);
    assert!(error.starts_with("error: `rimg ps` is not supported\n  hint: a container"), "{error}");
    // As docker: 2 might be the exit code of the container's process.
    world.rimg(&["run"]).fails(125);
    world.rimg(&["run", "--no-such-flag", "app"]).fails(125);
    world.rimg(&["tag", "a", "B@"]).fails(2);
    assert!(!world.root().exists());
}

#[test]
fn versions_and_completions() {
    let world = World::new();
    assert!(world.rimg(&["version"]).ok().starts_with(concat!("rimg ", env!("CARGO_PKG_VERSION"))));
    let json: serde_json::Value =
        serde_json::from_str(&world.rimg(&["--format", "json", "version"]).ok()).unwrap();
    assert_eq!(json["version"], env!("CARGO_PKG_VERSION"));
    assert!(world.rimg(&["completions", "bash"]).ok().contains("_rimg"));
}

#[test]
fn a_closed_pipe_is_no_error() {
    let world = World::new();
    world.write("Buildfile", "FROM scratch\nCOPY big /\n");
    world.write("big", vec![b'x'; 4_000_000]);
    world.build(".", &["-t", "app"]);
    let mut child =
        world.command(&["cat", "app", "/big"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut few = [0; 10];
    child.stdout.take().unwrap().read_exact(&mut few).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));
}

#[test]
fn doctor_speaks_of_this_machine() {
    let world = World::new();
    let report = world.command(&["doctor"]).output().unwrap();
    let text = String::from_utf8_lossy(&report.stdout).into_owned();
    for subject in ["user namespaces", "a container: works, its layers mounted by", "cgroup"] {
        assert!(text.to_lowercase().contains(subject), "{subject}: {text}");
    }
}
