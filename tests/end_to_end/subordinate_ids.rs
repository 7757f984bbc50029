//! An ordinary user with subordinate ids: an image's files keep their owners, its users are real, and everything can
//! be removed again.
//!
//! The user exists only in a mount namespace in which `/etc/passwd`, `/etc/subuid` and `/etc/subgid` are others;
//! `newuidmap` reads those.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::leftovers::{assert_no_mounts, assert_no_process, names};
use crate::world::{Outcome, World, is_root};

/// The user; no machine has it.
const SUBORDINATE_USER: u32 = 23_456;
/// The first of its subordinate ids.
const FIRST: u32 = 1_500_000_000;

/// Mounts the files over the machine's, then becomes the user.
const ENTER: &str = "set -e\n\
    for name in passwd group subuid subgid; do mount --bind \"$1/$name\" /etc/$name; done\n\
    user=$2; shift 2\n\
    exec setpriv --reuid=$user --regid=$user --clear-groups \"$@\"\n";

/// Whether the test can be made here. On a machine that has to be able, it fails instead.
fn is_possible() -> bool {
    let lacking = [
        (!is_root(), "only root can make a user with subordinate ids"),
        (!Path::new("/usr/bin/newuidmap").exists(), "newuidmap is missing: apt-get install uidmap"),
        (!Path::new("/etc/subuid").exists(), "/etc/subuid is missing: apt-get install uidmap"),
        (!Path::new("/usr/bin/setpriv").exists(), "setpriv is missing: apt-get install util-linux"),
    ];
    let Some((_, why)) = lacking.iter().find(|(lacks, _)| *lacks) else { return true };
    assert!(std::env::var_os("CI").is_none() || !is_root(), "{why}");
    eprintln!("SKIPPED: {why}");
    false
}

struct User {
    world: World,
}

impl User {
    fn new() -> User {
        let world = World::new();
        let user = format!(
            "root:x:0:0::/root:/bin/sh\nsubordinate:x:{SUBORDINATE_USER}:{SUBORDINATE_USER}::/:/bin/sh\n"
        );
        world.write("machine/passwd", user);
        world.write("machine/group", format!("root:x:0:\nsubordinate:x:{SUBORDINATE_USER}:\n"));
        for name in ["subuid", "subgid"] {
            world.write(&format!("machine/{name}"), format!("subordinate:{FIRST}:65536\n"));
        }
        fs::create_dir(world.path("home")).unwrap();
        std::os::unix::fs::chown(world.path("home"), Some(SUBORDINATE_USER), Some(SUBORDINATE_USER)).unwrap();
        User { world }
    }

    /// A command of this user.
    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", ENTER, "enter"]);
        command
            .arg(self.world.path("machine"))
            .arg(SUBORDINATE_USER.to_string())
            .arg(program)
            .args(arguments);
        command.current_dir(self.world.path("")).stdin(Stdio::null());
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("HOME", self.world.path("home"));
        command.env("TMPDIR", self.world.path("tmp")).env("RIMG_ROOT", self.world.path("home/store"));
        command
    }

    fn rimg_command(&self, arguments: &[&str]) -> Command {
        self.command(env!("CARGO_BIN_EXE_rimg"), arguments)
    }

    fn rimg(&self, arguments: &[&str]) -> Outcome {
        self.world.run(self.rimg_command(arguments))
    }

    /// An image `base` with files of several owners and users of several kinds, from an archive.
    fn import_base(&self) {
        let root = self.world.busybox_root("rootfs");
        let passwd = fs::read_to_string(root.join("etc/passwd")).unwrap();
        fs::write(root.join("etc/passwd"), passwd + "_apt:x:42:65534::/nonexistent:/bin/false\n").unwrap();
        for (name, owner, mode) in
            [("home/app", 1000, 0o700), ("var/cache/apt", 42, 0o700), ("srv/last", 65_535, 0o755)]
        {
            use std::os::unix::fs::PermissionsExt;
            fs::create_dir_all(root.join(name)).unwrap();
            fs::write(root.join(name).join("file"), "content\n").unwrap();
            for path in [root.join(name).join("file"), root.join(name)] {
                std::os::unix::fs::chown(path, Some(owner), Some(owner)).unwrap();
            }
            fs::set_permissions(root.join(name), fs::Permissions::from_mode(mode)).unwrap();
        }
        let mut tar = Command::new("tar");
        tar.args(["--numeric-owner", "-cf"]).arg(self.world.path("root.tar")).arg("-C").arg(root).arg(".");
        assert!(tar.status().unwrap().success());
        self.rimg(&["import", "root.tar", "base"]).ok();
    }

    /// Nothing of the user's store stays that the user itself could not remove.
    #[track_caller]
    fn assert_removable(&self) {
        assert_no_mounts(&self.world);
        self.rimg(&["prune", "--all", "--force"]).ok();
        let store = self.world.path("home/store");
        for folder in ["snapshots", "containers", "uploads"] {
            assert_eq!(names(&store.join(folder)), Vec::<String>::new(), "{folder}");
        }
        let removed = self.world.run(self.command("rm", &["-rf", store.to_str().unwrap()]));
        removed.ok();
        assert!(!store.exists());
    }
}

#[test]
fn files_keep_their_owners_and_users_are_real() {
    if !is_possible() {
        return;
    }
    let user = User::new();
    user.import_base();
    let run = |arguments: &[&str]| user.rimg(&[&["run", "--rm"], arguments].concat());
    let owners = "cd /; for path in etc home/app/file var/cache/apt srv/last; do stat -c %u:%g $path; done";
    assert_eq!(run(&["base", "sh", "-c", owners]).ok(), "0:0\n1000:1000\n42:42\n65535:65535\n");
    assert_eq!(
        run(&["-u", "app", "base", "id"]).ok().trim(),
        "uid=1000(app) gid=1000(app) groups=1000(app),2000(extra)"
    );
    assert_eq!(run(&["-u", "app", "base", "cat", "/home/app/file"]).ok(), "content\n");
    assert_ne!(run(&["-u", "app", "base", "cat", "/var/cache/apt/file"]).code, 0);
    assert_ne!(run(&["-u", "app", "base", "touch", "/etc/x"]).code, 0);
    run(&[
        "base",
        "sh",
        "-c",
        "touch /x && chown 33:44 /x && chown 7 /home/app/file && test $(stat -c %u:%g /x) = 33:44",
    ])
    .ok();

    // On the disk they are the subordinate ids', so that another container cannot meet them as its own.
    let snapshot =
        names(&user.world.path("home/store/snapshots")).into_iter().find(|name| !name.contains('.')).unwrap();
    let stat = fs::symlink_metadata(user.world.path("home/store/snapshots").join(snapshot).join("home/app"))
        .unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&stat), FIRST + 999);
    user.assert_removable();
}

#[test]
fn run_steps_change_owners_and_users_and_give_roots_digest() {
    if !is_possible() {
        return;
    }
    let user = User::new();
    user.import_base();
    user.world.write(
        "context/Buildfile",
        "FROM base\nRUN mkdir -p /data && echo a > /data/a && chown -R app:extra /data && chmod 4750 /data/a\n\
         USER _apt\nRUN id -u > /var/cache/apt/who && test ! -r /home/app/file\n\
         USER root\nRUN chown 65535:65535 /var/cache/apt/who && rm -r /srv/last\nCOPY --chown=42:43 file /copied\nUSER app\n",
    );
    user.world.write("context/file", "copied\n");
    let digest = user.rimg(&["build", "-t", "made", "context"]).ok();
    let owners = "cd /; for path in data data/a var/cache/apt/who copied; do stat -c %u:%g:%a $path; done";
    assert_eq!(
        user.rimg(&["run", "--rm", "made", "sh", "-c", owners.replace("var/cache/apt/who ", "").as_str()])
            .ok(),
        "1000:2000:755\n1000:2000:4750\n42:43:644\n"
    );
    let as_root = ["run", "--rm", "-u", "0", "made", "cat", "/var/cache/apt/who"];
    assert_eq!(user.rimg(&as_root).ok(), "42\n");
    let listing = user.rimg(&["ls", "-l", "made", "/var/cache/apt"]).ok();
    assert!(listing.contains("65535"), "{listing}");

    let world = &user.world;
    world.rimg(&["import", "root.tar", "base"]).ok();
    assert_eq!(world.build("context", &["-t", "made"]), digest.trim(), "root built something else");
    user.assert_removable();
}

#[test]
fn what_a_killed_container_leaves_can_be_removed() {
    if !is_possible() {
        return;
    }
    let user = User::new();
    user.import_base();
    let marker = format!("{}", 800_000_000 + std::process::id());
    let script = "mkdir -p /closed/in && touch /closed/in/file && chown -R 77:88 /closed && chmod 000 /closed; echo up; exec sleep $0";
    let mut child = user
        .rimg_command(&["run", "base", "sh", "-c", script, &marker])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.take().unwrap()), &mut line)
        .unwrap();
    assert_eq!(line, "up\n");
    child.kill().unwrap();
    child.wait().unwrap();
    assert_no_process(&marker);
    user.rimg(&["prune"]).ok();
    assert_eq!(names(&user.world.path("home/store/containers")), Vec::<String>::new());
    user.assert_removable();
}
