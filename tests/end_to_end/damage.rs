//! A blob damaged on disk is never served, pushed, saved or run, and the next pull or push of its digest heals it.

use std::fs;

use crate::http::{get, request};
use crate::transfer::Server;
use crate::world::{Damage, World};

/// What an image has of each kind: manifest, configuration, layer.
struct Parts {
    manifest: String,
    config: String,
    layer: String,
}

impl Parts {
    fn of(world: &World, image: &str) -> Parts {
        let inspected = world.inspect(image);
        let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
        Parts {
            manifest: text(&inspected[0]["digest"]),
            config: text(&inspected[0]["manifest"]["config"]["digest"]),
            layer: text(&inspected[0]["manifest"]["layers"][0]["digest"]),
        }
    }

    fn all(&self) -> [(&'static str, &str); 3] {
        [("manifests", &self.manifest), ("blobs", &self.config), ("blobs", &self.layer)]
    }
}

fn image(world: &World) -> Parts {
    world.busybox_root("context/rootfs");
    world.write("context/Buildfile", "FROM ./rootfs\nENV A=1\n");
    world.build("context", &["-t", "app"]);
    Parts::of(world, "app")
}

#[test]
fn it_is_never_served_and_a_push_heals_it() {
    let world = World::new();
    let parts = image(&world);
    for damage in Damage::ALL {
        for (kind, digest) in parts.all() {
            let what = format!("{damage:?} of {kind} {digest}");
            for root in ["second", "third"] {
                let _ = fs::remove_dir_all(world.path(root));
            }
            let server = Server::start(&world, "second");
            let name = format!("{}/app", server.address);
            world.rimg(&["push", "-q", "app", &name]).ok();
            let target = format!("/v2/app/{kind}/{digest}");
            let whole = get(&server.address, &target);
            assert_eq!((whole.status, whole.complete), (200, true), "{what}");
            drop(server);

            damage.apply(&world.blob("second", digest));
            let server = Server::start(&world, "second");
            let name = format!("{}/app", server.address);
            let part = request(&server.address, "GET", &target, "Range: bytes=0-9\r\n", b"");
            assert!(part.status >= 400, "{what}: a part was served with {}", part.status);
            let answer = get(&server.address, &target);
            assert!(answer.status >= 400 || !answer.complete, "{what}: served with {}", answer.status);
            assert!(answer.body != whole.body, "{what}");
            let head = request(&server.address, "HEAD", &target, "", b"");
            assert!(head.status >= 400, "{what}: a client was told that it is there");
            let third = world.path("third");
            let pull = world.run(world.command(&["--root", third.to_str().unwrap(), "pull", "-q", &name]));
            assert_ne!(pull.code, 0, "{what}: {}", pull.stdout);

            world.rimg(&["push", "-q", "app", &name]).ok();
            let healed = get(&server.address, &target);
            assert!(healed.status == 200 && healed.body == whole.body, "{what}: {}", healed.status);
            assert_eq!(
                world.rimg(&["--root", third.to_str().unwrap(), "pull", "-q", &name]).ok().trim(),
                parts.manifest
            );
            world.verify_store(&world.path("second"));
        }
    }
}

#[test]
fn damage_under_a_running_server_is_noticed() {
    let world = World::new();
    let parts = image(&world);
    let server = Server::start(&world, "store");
    let target = format!("/v2/app/blobs/{}", parts.layer);
    assert_eq!(get(&server.address, &target).status, 200);
    Damage::Flip.apply(&world.blob("store", &parts.layer));
    for _ in 0..2 {
        let answer = get(&server.address, &target);
        assert!(answer.status >= 400, "served with {}", answer.status);
    }
}

#[test]
fn it_is_never_pushed_or_saved_or_run_and_a_pull_heals_it() {
    let world = World::new();
    let parts = image(&world);
    let server = Server::start(&world, "second");
    let name = format!("{}/app", server.address);
    world.rimg(&["push", "-q", "app", &name]).ok();
    for damage in Damage::ALL {
        for (kind, digest) in parts.all() {
            let what = format!("{damage:?} of {kind} {digest}");
            let _ = fs::remove_dir_all(world.path("local"));
            let run = |arguments: &[&str]| {
                let mut command = world.command(arguments);
                command.env("RIMG_ROOT", world.path("local"));
                world.run(command)
            };
            run(&["pull", "-q", &name]).ok();
            damage.apply(&world.blob("local", digest));
            // The first registry has the blobs and could take them from itself.
            let _ = fs::remove_dir_all(world.path("empty"));
            let empty = Server::start(&world, "empty");
            let name_there = format!("{}/app", empty.address);
            assert_ne!(run(&["push", "-q", &name, &name_there]).code, 0, "{what} was pushed");
            assert_eq!(get(&empty.address, "/v2/app/manifests/latest").status, 404, "{what} was pushed");
            assert_ne!(run(&["save", "-o", "saved.tar", &name]).code, 0, "{what} was saved");
            assert!(!world.path("saved.tar").exists(), "{what}: half an archive is there");
            assert_eq!(run(&["run", "--rm", "--pull", "never", &name, "true"]).code, 125, "{what} was run");
            run(&["pull", "-q", &name]).ok();
            run(&["run", "--rm", "--pull", "never", &name, "true"]).ok();
            run(&["fsck"]).ok();
        }
    }
}

#[test]
fn a_pull_heals_what_nobody_has_noticed() {
    let world = World::new();
    let parts = image(&world);
    let server = Server::start(&world, "second");
    let name = format!("{}/app", server.address);
    world.rimg(&["push", "-q", "app", &name]).ok();
    world.rimg(&["pull", "-q", &name]).ok();
    for damage in Damage::ALL {
        for (_, digest) in parts.all() {
            damage.apply(&world.blob("store", digest));
            world.run(world.command(&["pull", "-q", &name])).ok();
            world.verify_store(&world.root());
        }
    }
    world.rimg(&["run", "--rm", "app", "true"]).ok();
}
