//! Commands on stored images: listing, naming, looking inside, archives, removing, checking.

use std::fs;

use crate::world::World;

fn small_image(world: &World) -> String {
    world.write("context/Buildfile", "FROM scratch\nCOPY a.txt /dir/\nCOPY b.txt /\nENV X=y\nCMD [\"/x\"]\n");
    world.write("context/a.txt", "file a\n");
    world.write("context/b.txt", "file b\n");
    world.build("context", &["-t", "app:1"])
}

#[test]
fn images_are_listed_named_and_removed() {
    let world = World::new();
    let digest = small_image(&world);
    world.rimg(&["tag", "app:1", "localhost:5000/team/app:2"]).ok();
    let listing = world.rimg(&["images"]).ok();
    assert!(listing.contains("app") && listing.contains("localhost:5000/team/app"), "{listing}");
    let json: serde_json::Value =
        serde_json::from_str(&world.rimg(&["images", "--format", "json"]).ok()).unwrap();
    assert_eq!(json.as_array().unwrap().len(), 2);
    assert_eq!(json[0]["digest"], digest.as_str());
    // The same image without a name, and another one that has none.
    assert_eq!(world.build("context", &[]), digest);
    let unnamed = world.build("context", &["--label", "a=b"]);
    let all = world.rimg(&["images", "--all", "--no-trunc"]).ok();
    assert_eq!((all.matches(&digest).count(), all.matches(&unnamed).count()), (2, 1), "{all}");

    world.rimg(&["rmi", "app:1"]).ok();
    assert_eq!(world.rimg(&["cat", "localhost:5000/team/app:2", "b.txt"]).ok(), "file b\n");
    world.rimg(&["rmi", "localhost:5000/team/app:2"]).ok();
    let gone = world.rimg(&["inspect", "app:1"]).fails(1);
    assert!(gone.contains("app:1"), "{gone}");
    world.rimg(&["prune", "--all", "--force"]).ok();
    let left = fs::read_dir(world.root().join("blobs/sha256")).unwrap().count();
    assert_eq!(left, 0, "prune --all leaves no blob of an empty store");
}

#[test]
fn an_image_answers_to_its_digest_and_its_beginning() {
    let world = World::new();
    let digest = small_image(&world);
    let hex = digest.strip_prefix("sha256:").unwrap();
    for name in ["app:1", &digest, hex, &hex[..12], &format!("app@{digest}")] {
        assert_eq!(world.rimg(&["cat", name, "/dir/a.txt"]).ok(), "file a\n", "{name}");
    }
    let unknown = world.rimg(&["cat", "nothere", "/x"]).fails(1);
    assert!(unknown.contains("nothere"), "{unknown}");
}

#[test]
fn looking_inside_needs_no_unpacking() {
    let world = World::new();
    let digest = small_image(&world);
    assert_eq!(world.rimg(&["ls", "app:1"]).ok(), "b.txt\ndir\n");
    assert!(world.rimg(&["ls", "-l", "app:1", "/dir"]).ok().contains("-rw-r--r--"));
    let missing = world.rimg(&["cat", "app:1", "/dir/missing"]).fails(1);
    assert!(missing.contains("/dir/missing"), "{missing}");
    let history = world.rimg(&["history", "app:1"]).ok();
    assert!(history.contains("COPY") && history.contains("CMD"), "{history}");
    let inspected: serde_json::Value = serde_json::from_str(&world.rimg(&["inspect", "app:1"]).ok()).unwrap();
    assert_eq!(inspected[0]["digest"], digest.as_str());
    assert_eq!(inspected[0]["config"]["config"]["Env"][1], "X=y");
    assert_eq!(fs::read_dir(world.root().join("snapshots")).unwrap().count(), 0);
}

#[test]
fn archives_keep_the_digest() {
    let world = World::new();
    let digest = small_image(&world);
    world.rimg(&["save", "-o", "app.tar", "app:1"]).ok();
    let other = world.path("other");
    let other = other.to_str().unwrap();
    let loaded = world.rimg(&["--root", other, "load", "-i", "app.tar"]).ok();
    assert!(loaded.contains("app:1") && loaded.contains(&digest), "{loaded}");
    assert_eq!(world.rimg(&["--root", other, "cat", "app:1", "b.txt"]).ok(), "file b\n");
    world.rimg(&["save", "-o", "again.tar", "app:1"]).ok();
    assert!(fs::read(world.path("app.tar")).unwrap() == fs::read(world.path("again.tar")).unwrap());
    let refused = world.rimg(&["--root", other, "load", "-i", "context/a.txt"]).fails(1);
    assert!(refused.contains("a.txt"), "{refused}");
}

#[test]
fn a_root_file_system_becomes_an_image() {
    let world = World::new();
    world.write("tree/etc/os-release", "ID=test\n");
    let tar = std::process::Command::new("tar")
        .args(["-cf", "root.tar", "-C", "tree", "."])
        .current_dir(world.path(""))
        .status();
    assert!(tar.unwrap().success());
    let imported = world.rimg(&["import", "root.tar", "imported:1"]).ok();
    fs::create_dir(world.path("another place")).unwrap();
    fs::copy(world.path("root.tar"), world.path("another place/of $it.tar")).unwrap();
    assert_eq!(world.rimg(&["import", "another place/of $it.tar"]).ok(), imported);
    assert_eq!(world.rimg(&["cat", "imported:1", "/etc/os-release"]).ok(), "ID=test\n");
}

#[test]
fn fsck_finds_a_flipped_bit_and_a_build_heals_it() {
    let world = World::new();
    small_image(&world);
    let inspected: serde_json::Value = serde_json::from_str(&world.rimg(&["inspect", "app:1"]).ok()).unwrap();
    let layer = inspected[0]["manifest"]["layers"][0]["digest"].as_str().unwrap().replace("sha256:", "");
    let path = world.root().join("blobs/sha256").join(layer);
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    make_writable(&path);
    fs::write(&path, &bytes).unwrap();
    let found = world.run(world.command(&["fsck"])).fails(1);
    assert!(found.contains("damaged"), "{found}");
    assert_ne!(world.run(world.command(&["cat", "app:1", "/dir/a.txt"])).code, 0, "damaged bytes were shown");
    world.run(world.command(&["build", "-t", "app:1", "context"])).ok();
    assert_eq!(world.rimg(&["cat", "app:1", "/dir/a.txt"]).ok(), "file a\n");
}

#[test]
fn fsck_rebuilds_damaged_metadata_and_nothing_else() {
    let world = World::new();
    let digest = small_image(&world);
    let path = world.root().join("metadata.db");
    let whole = fs::read(&path).unwrap();
    // The header's `user_version`: a newer rimg's store is not a damaged one.
    let mut newer = whole.clone();
    newer[60..64].copy_from_slice(&999u32.to_be_bytes());
    fs::write(&path, &newer).unwrap();
    let refused = world.run(world.command(&["fsck", "--repair"])).fails(1);
    assert!(refused.contains("use a newer rimg"), "{refused}");
    assert_eq!(fs::read(&path).unwrap(), newer);
    // All pages but the first are rubbish.
    let mut damaged = whole.clone();
    damaged[4096..].fill(0x5a);
    fs::write(&path, &damaged).unwrap();
    for command in [&["images"][..], &["tag", "app:1", "x"], &["fsck"]] {
        let text = world.run(world.command(command)).fails(1);
        let told = text.contains("metadata.db is damaged") && text.contains("rimg fsck --repair");
        assert!(told && text.matches("malformed").count() == 1, "{text}");
    }
    world.run(world.command(&["fsck", "--repair"])).ok();
    assert_eq!(world.rimg(&["cat", digest.trim(), "/dir/a.txt"]).ok(), "file a\n");
}

fn make_writable(path: &std::path::Path) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
}
