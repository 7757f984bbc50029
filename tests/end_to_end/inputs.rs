//! What a build reads, takes and writes: standard input, bases for another platform, docker's flags, outputs.

use std::io::Write;
use std::process::{Command, Stdio};

use crate::transfer::Server;
use crate::world::{Outcome, World};

/// Runs rimg with `input` on its standard input.
fn with_input(world: &World, arguments: &[&str], input: &[u8]) -> Outcome {
    let mut command = world.command(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // A command that refuses its command line reads nothing.
    let _ = child.stdin.take().unwrap().write_all(input);
    let outcome = Outcome::of(child.wait_with_output().unwrap());
    world.verify_store(&world.root());
    outcome
}

fn tar(world: &World, folder: &str, option: &str) -> Vec<u8> {
    let output =
        Command::new("tar").args(["-c", option, "-C"]).arg(world.path(folder)).arg(".").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

#[test]
fn a_buildfile_comes_from_standard_input() {
    let world = World::new();
    let text = "FROM scratch\nCOPY file /\n";
    world.write("context/Buildfile", text);
    world.write("context/file", "x");
    world.write("context/.dockerignore", "Buildfile\n");
    let expected = world.build("context", &[]);
    let built = with_input(&world, &["build", "-q", "-f", "-", "context"], text.as_bytes());
    assert_eq!(built.ok().trim(), expected);

    // Without a context there is nothing to copy.
    let built = with_input(&world, &["build", "-q", "-"], b"FROM scratch\nENV A=1\n").ok();
    assert!(built.starts_with("sha256:"), "{built}");
    let said = with_input(&world, &["build", "-q", "-"], text.as_bytes()).fails(1);
    assert!(said.contains("this build has no context") && said.contains("--> standard input:2:1"), "{said}");
    with_input(&world, &["build", "-f", "-", "-"], b"").fails(2);
    let said = with_input(&world, &["build", "-f", "Other", "-"], text.as_bytes()).fails(1);
    assert!(said.contains("`rimg build -f - CONTEXT`"), "{said}");
}

#[test]
fn a_context_comes_from_standard_input() {
    let world = World::new();
    world.write("context/Buildfile", "FROM scratch\nCOPY . /\n");
    world.write("context/sub/Other", "FROM scratch\nCOPY sub /o/\n");
    world.write("context/.dockerignore", "no\n");
    world.write("context/no", "x");
    std::os::unix::fs::symlink("sub/Other", world.path("context/link")).unwrap();
    let expected = world.build("context", &[]);
    for option in ["--format=pax", "-z", "-j", "-J", "--zstd"] {
        let built = with_input(&world, &["build", "-q", "-"], &tar(&world, "context", option));
        assert_eq!(built.ok().trim(), expected, "{option}");
    }
    let other = world.path("context/sub/Other");
    let expected = world.build("context", &["-f", other.to_str().unwrap()]);
    for name in ["sub/Other", "link", "/sub/Other"] {
        let stream = tar(&world, "context", "-z");
        let built = with_input(&world, &["build", "-q", "-f", name, "-"], &stream);
        assert_eq!(built.ok().trim(), expected, "{name}");
    }
    let said = with_input(&world, &["build", "-f", "none", "-"], &tar(&world, "context", "-z")).fails(1);
    assert!(said.contains("failed to read `none`:"), "{said}");
    let said = with_input(&world, &["build", "-"], &tar(&world, "context/sub", "-z")).fails(1);
    let expected =
        "error: the context on standard input: it holds neither Buildfile, Dockerfile nor Containerfile";
    assert!(said.contains(expected), "{said}");

    // A Buildfile that is a link out of the context would show a file of the host.
    let secret = world.write("outside", "FROM hidden\n");
    std::fs::remove_file(world.path("context/Buildfile")).unwrap();
    std::os::unix::fs::symlink(secret, world.path("context/Buildfile")).unwrap();
    let said = with_input(&world, &["build", "-"], &tar(&world, "context", "-z")).fails(1);
    assert!(said.contains("leads out of the context") && !said.contains("hidden"), "{said}");

    let left = std::fs::read_dir(world.root().join("snapshots")).unwrap();
    let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().contains("context")), "{left:?}");
}

#[test]
fn a_base_that_is_here_for_another_platform_is_pulled() {
    let world = World::new();
    let server = Server::start(&world, "served");
    let image = |root: &str, architecture: &str| {
        world.write("base/Buildfile", "FROM scratch\nCOPY file /\n");
        world.write("base/file", architecture);
        let platform = format!("linux/{architecture}");
        let name = format!("{}/base:1", server.address);
        world.build("base", &["--root", root, "--platform", &platform, "-t", &name]);
        name
    };
    let other = world.path("other");
    let name = image(other.to_str().unwrap(), "s390x");
    world.rimg(&["--root", other.to_str().unwrap(), "push", "-q", &name]).ok();
    let own = world.root();
    image(own.to_str().unwrap(), "riscv64");
    let before = world.inspect(&name)[0]["digest"].clone();

    world.write("next/Buildfile", format!("FROM {name}\n"));
    world.build("next", &["--platform", "linux/s390x", "-t", "next"]);
    assert_eq!(world.rimg(&["cat", "next", "/file"]).ok(), "s390x");
    assert_eq!(world.inspect(&name)[0]["digest"], before, "the name goes on meaning what was built");
    // The same of an image that is only copied from.
    world.write("copy/Buildfile", format!("FROM scratch\nCOPY --from={name} /file /\n"));
    world.build("copy", &["--platform", "linux/s390x", "-t", "copy"]);
    assert_eq!(world.rimg(&["cat", "copy", "/file"]).ok(), "s390x");
    // What is there for the platform is not asked for.
    drop(server);
    world.build("next", &["--platform", "linux/riscv64", "-t", "next"]);
    assert_eq!(world.rimg(&["cat", "next", "/file"]).ok(), "riscv64");
    let said = world.rimg(&["build", "--platform", "linux/s390x", "next"]).fails(1);
    for words in
        ["the store has it for linux/riscv64, not for linux/s390x", "`FROM --platform=linux/riscv64`"]
    {
        assert!(said.contains(words), "{said}");
    }
}

#[test]
fn dockers_flags_are_accepted_or_explained() {
    let world = World::new();
    world.write("Buildfile", "FROM scratch\nENV A=1\n");
    let accepted = "--load --rm --force-rm=true --provenance=false --sbom=false --pull=false --no-cache=false \
                    --network=host --quiet=true";
    let arguments: Vec<&str> = accepted.split_whitespace().collect();
    world.build(".", &arguments);
    let said = world.rimg(&["build", "--ssh", "default", "."]).fails(2);
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.starts_with("error: --ssh is docker's and not supported"), "{said}");
    let said = world.rimg(&["build", "--laod", "."]).fails(2);
    assert!(!said.contains("-- --laod"), "{said}");
}

#[test]
fn outputs_are_written_again_and_again() {
    let world = World::new();
    world.write("Buildfile", "FROM scratch\nCOPY f /sub/f\n");
    for content in ["1", "two"] {
        world.write("f", content);
        for output in ["out", ".", "type=local,dest=deleting,mode=delete"] {
            world.build(".", &["-o", output]);
        }
        for place in ["out/sub/f", "sub/f", "deleting/sub/f"] {
            assert_eq!(std::fs::read_to_string(world.path(place)).unwrap(), content, "{place}");
        }
        world.write("out/other", "");
        world.write("deleting/other", "");
    }
    assert!(world.path("out/other").exists() && world.path("Buildfile").exists());
    world.build(".", &["-o", "type=local,dest=deleting,mode=delete"]);
    assert!(!world.path("deleting/other").exists());
    for arguments in [&["-o", "type=oci,tar=false,dest=layout"][..], &["-o", "type=cacheonly"]] {
        world.build(".", &[arguments, &["-t", "app:1"]].concat());
        world.build(".", &[arguments, &["-t", "app:2"]].concat());
    }
    let index: serde_json::Value =
        serde_json::from_slice(&std::fs::read(world.path("layout/index.json")).unwrap()).unwrap();
    assert_eq!(index["manifests"].as_array().unwrap().len(), 2, "{index}");
    let said = world.rimg(&["build", "-o", "type=what,dest=x", "."]).fails(2);
    assert!(said.contains("use local, tar, oci, docker, image or registry"), "{said}");
}

#[test]
fn a_build_is_named_annotated_described_and_pushed() {
    let world = World::new();
    let server = Server::start(&world, "served");
    world.write("Buildfile", "FROM scratch\nENV A=1\nCOPY Buildfile /\n");
    let name = format!("{}/app:1", server.address);
    let output = format!("type=image,name={name},push=true,compression=zstd,annotation.a.B=c");
    let arguments = ["-o", &output, "--annotation", "manifest:x=y", "--metadata-file", "metadata"];
    let digest = world.build(".", &arguments);
    let other = world.path("other");
    let pulled = world.rimg(&["--root", other.to_str().unwrap(), "pull", "-q", &name]).ok();
    assert_eq!(pulled.trim(), digest);
    let manifest: serde_json::Value =
        serde_json::from_slice(&std::fs::read(world.blob("store", &digest)).unwrap()).unwrap();
    assert_eq!(manifest["annotations"], serde_json::json!({"a.B": "c", "x": "y"}));
    assert!(manifest["layers"][0]["mediaType"].as_str().unwrap().ends_with("+zstd"), "{manifest}");
    let metadata: serde_json::Value =
        serde_json::from_slice(&std::fs::read(world.path("metadata")).unwrap()).unwrap();
    assert_eq!(metadata["containerimage.digest"], digest.as_str());
    assert_eq!(metadata["image.name"], name.as_str());
    world.build(".", &["--push", "-t", &format!("{}/app:2", server.address)]);
    world.rimg(&["build", "--push", "."]).fails(2);
}
