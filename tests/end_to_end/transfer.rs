//! Push, pull and serve between stores, by the protocol.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};

use crate::http;
use crate::world::World;

/// A running `rimg serve`; killed when dropped.
pub(crate) struct Server {
    child: Child,
    /// `127.0.0.1:port`.
    pub(crate) address: String,
}

impl Server {
    /// Serves the store in the folder `root` on a free port.
    pub(crate) fn start(world: &World, root: &str) -> Server {
        Server::start_with(world, root, &[])
    }

    /// The same, with more flags.
    pub(crate) fn start_with(world: &World, root: &str, flags: &[&str]) -> Server {
        let root = world.path(root);
        let arguments = ["--root", root.to_str().unwrap(), "serve", "--listen", "127.0.0.1:0"];
        let arguments = [&arguments[..], flags].concat();
        let mut child = world.command(&arguments).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let address = loop {
            let line = lines.next().expect("the server ended before it said where it listens").unwrap();
            if let Some((_, address)) = line.split_once("http://") {
                break address.trim_end_matches('/').to_owned();
            }
        };
        std::thread::spawn(move || lines.for_each(drop));
        Server { child, address }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn build(world: &World) -> String {
    world.write("context/Buildfile", "FROM scratch\nCOPY . /\n");
    world.write("context/file", "content\n");
    world.write("context/large", (0..400_000u32).flat_map(u32::to_le_bytes).collect::<Vec<u8>>());
    world.build("context", &["-t", "app"])
}

#[test]
fn what_is_built_is_served_pushed_and_pulled_with_one_digest() {
    let world = World::new();
    let digest = build(&world);
    let local = Server::start(&world, "store");
    let other = Server::start(&world, "second");
    let name = format!("{}/app", local.address);
    let pulled = world.rimg(&["--root", world.path("third").to_str().unwrap(), "pull", "-q", &name]).ok();
    assert!(pulled.contains(&digest), "{pulled}");

    let pushed_name = format!("{}/team/app:1", other.address);
    world.rimg(&["tag", "app", &pushed_name]).ok();
    assert!(world.rimg(&["push", "-q", &pushed_name]).ok().contains(&digest));
    let fourth = world.path("fourth");
    let fourth = fourth.to_str().unwrap();
    world.rimg(&["--root", fourth, "pull", &pushed_name]).ok();
    assert_eq!(world.rimg(&["--root", fourth, "cat", &pushed_name, "file"]).ok(), "content\n");
    for root in ["store", "second", "third", "fourth"] {
        world.verify_store(&world.path(root));
    }
}

#[test]
fn what_is_not_there_is_named() {
    let world = World::new();
    let server = Server::start(&world, "store");
    let name = format!("{}/no/such:image", server.address);
    let text = world.rimg(&["--root", world.path("x").to_str().unwrap(), "pull", &name]).fails(1);
    assert!(text.contains("no/such:image"), "{text}");
    let text = world.rimg(&["push", "missing-here"]).fails(1);
    assert!(text.contains("missing-here"), "{text}");
    let text = world.rimg(&["pull", "127.0.0.1:1/x"]).fails(1);
    assert!(text.contains("127.0.0.1:1"), "{text}");
}

#[test]
fn a_base_image_is_pulled_when_it_is_not_here() {
    let world = World::new();
    build(&world);
    let server = Server::start(&world, "store");
    world.write("next/Buildfile", format!("FROM {}/app\nCOPY more /\n", server.address));
    world.write("next/more", "more\n");
    let root = world.path("builder");
    let root = root.to_str().unwrap();
    world.rimg(&["--root", root, "build", "-t", "next", "next"]).ok();
    assert_eq!(world.rimg(&["--root", root, "cat", "next", "/file"]).ok(), "content\n");
}

#[test]
fn a_damaged_blob_is_not_served_and_a_push_heals_it() {
    let world = World::new();
    build(&world);
    let inspected: serde_json::Value = serde_json::from_str(&world.rimg(&["inspect", "app"]).ok()).unwrap();
    let layer = inspected[0]["manifest"]["layers"][0]["digest"].as_str().unwrap().replace("sha256:", "");
    let server = Server::start(&world, "second");
    let name = format!("{}/app", server.address);
    world.rimg(&["push", "app", &name]).ok();
    let path = world.path("second").join("blobs/sha256").join(layer);
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    std::fs::write(&path, bytes).unwrap();
    let third = world.path("third");
    let third = third.to_str().unwrap();
    assert_ne!(world.rimg(&["--root", third, "pull", &name]).code, 0, "damaged bytes were served");
    world.rimg(&["push", "app", &name]).ok();
    world.rimg(&["--root", third, "pull", &name]).ok();
    world.verify_store(&world.path("second"));
}

#[test]
fn a_server_answers_to_the_names_it_was_given() {
    let world = World::new();
    let unnamed = Server::start(&world, "one");
    let named = Server::start_with(&world, "two", &["--host", "registry.example", "--proxy", "192.0.2.1"]);
    let table = [
        (&unnamed, "localhost", 200),
        (&unnamed, "registry.example", 421),
        (&named, "registry.example", 200),
        (&named, "evil.example", 421),
    ];
    for (server, name, status) in table {
        let answer = http::request(&server.address, "GET", "/v2/", &format!("Host: {name}\r\n"), b"");
        assert_eq!(answer.status, status, "{name}");
    }
}

/// `.invalid` is nobody's (RFC 6761): no network is needed to know.
#[test]
fn a_registry_that_cannot_be_reached_is_explained_wherever_it_is_needed() {
    let world = World::new();
    world.write("context/Buildfile", "FROM registry.invalid/app\n");
    let context = world.path("context");
    let commands: [(&[&str], i32); 4] = [
        (&["pull", "registry.invalid/app"], 1),
        (&["run", "registry.invalid/app"], 125),
        (&["build", context.to_str().unwrap()], 1),
        (&["login", "registry.invalid", "-u", "me", "-p", "secret"], 1),
    ];
    for (arguments, code) in commands {
        let mut command = world.command(arguments);
        // A proxy would be asked for the name.
        command.env("NO_PROXY", "*");
        let stderr = world.run(command).fails(code);
        let reason = "failed to reach registry.invalid: the name could not be resolved";
        assert!(stderr.contains(reason), "{arguments:?}: {stderr}");
        assert!(stderr.contains("check the spelling"), "{arguments:?}: {stderr}");
    }
}
