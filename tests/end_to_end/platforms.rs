//! Images for several platforms: pushed and pulled whole or in part, and chosen from.

use crate::http::request;
use crate::transfer::Server;
use crate::world::World;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// Puts an index of amd64 and s390x images into the default store's repository `app`, as a client would; its digest.
fn index(world: &World, server: &Server) -> String {
    let mut manifests = Vec::new();
    for architecture in ["amd64", "s390x"] {
        world.write(
            "context/Buildfile",
            "FROM scratch\nARG TARGETARCH\nCOPY file /\nLABEL arch=$TARGETARCH\n",
        );
        world.write("context/file", format!("for {architecture}\n"));
        let platform = format!("linux/{architecture}");
        let digest = world.build("context", &["--platform", &platform, "-t", &format!("app:{architecture}")]);
        let size = std::fs::metadata(world.blob("store", &digest)).unwrap().len();
        manifests.push(serde_json::json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": digest,
            "size": size,
            "platform": {"os": "linux", "architecture": architecture},
        }));
    }
    let index =
        serde_json::json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests}).to_string();
    let headers = format!("Content-Type: {INDEX}\r\n");
    let put = request(&server.address, "PUT", "/v2/app/manifests/multi", &headers, index.as_bytes());
    assert_eq!(put.status, 201, "{}", String::from_utf8_lossy(&put.body));
    world.inspect("app:multi")[0]["digest"].as_str().unwrap().to_owned()
}

#[test]
fn all_of_them_travel_between_two_servers() {
    let world = World::new();
    let first = Server::start(&world, "store");
    let digest = index(&world, &first);
    let second = Server::start(&world, "second");
    let name = format!("{}/team/app:multi", second.address);
    assert_eq!(world.rimg(&["push", "-q", "app:multi", &name]).ok().trim(), digest);
    let third = world.path("third");
    let third = third.to_str().unwrap();
    assert_eq!(world.rimg(&["--root", third, "pull", "-q", "--all-platforms", &name]).ok().trim(), digest);
    let again = Server::start(&world, "fourth");
    let name_there = format!("{}/again", again.address);
    assert_eq!(world.rimg(&["--root", third, "push", "-q", &name, &name_there]).ok().trim(), digest);
    for root in ["store", "second", "third", "fourth"] {
        world.verify_store(&world.path(root));
    }
}

#[test]
fn one_of_them_is_chosen() {
    let world = World::new();
    let server = Server::start(&world, "store");
    let digest = index(&world, &server);
    let name = format!("{}/app:multi", server.address);
    for architecture in ["amd64", "s390x"] {
        let root = world.path(architecture);
        let root = root.to_str().unwrap();
        let platform = format!("linux/{architecture}");
        let pulled = world.rimg(&["--root", root, "pull", "-q", "--platform", &platform, &name]).ok();
        assert_eq!(pulled.trim(), digest, "the index keeps its digest, whatever of it is here");
        let mut next = world.command(&["build", "-q", "--platform", &platform, "-t", "next", "next"]);
        world.write("next/Buildfile", format!("FROM {name}\nENV A=1\n"));
        world
            .run({
                next.env("RIMG_ROOT", root);
                next
            })
            .ok();
        let file = world.rimg(&["--root", root, "cat", "next", "/file"]).ok();
        assert_eq!(file, format!("for {architecture}\n"));
        world.verify_store(&world.path(architecture));
    }
    // Pushed as an image of its own.
    let second = Server::start(&world, "second");
    let alone = format!("{}/alone", second.address);
    let pushed = world.rimg(&["push", "-q", "--platform", "linux/s390x", "app:multi", &alone]).ok();
    assert_eq!(pushed.trim(), world.inspect("app:s390x")[0]["digest"].as_str().unwrap());
}

#[test]
fn a_platform_that_is_not_there_is_told_with_those_that_are() {
    let world = World::new();
    let server = Server::start(&world, "store");
    index(&world, &server);
    let name = format!("{}/app:multi", server.address);
    let other = world.path("other");
    let other = other.to_str().unwrap();
    world.write("next/Buildfile", format!("FROM {name}\n"));
    let run = ["run", "--rm", "--platform", "linux/riscv64", "app:multi", "true"];
    for (arguments, code) in [
        (&["--root", other, "pull", "--platform", "linux/riscv64", &name][..], 1),
        (&["--root", other, "build", "--platform", "linux/riscv64", "next"], 1),
        (&["push", "--platform", "linux/riscv64", "app:multi", &name], 1),
        (&run, 125),
    ] {
        let text = world.rimg(arguments).fails(code);
        for word in ["linux/riscv64", "linux/amd64", "linux/s390x"] {
            assert!(text.contains(word), "{arguments:?}: {word} is not in: {text}");
        }
    }
    let text = world.rimg(&["pull", "--platform", "a/b/c/d", &name]).fails(2);
    assert!(text.contains("linux/arm64"), "{text}");
}
