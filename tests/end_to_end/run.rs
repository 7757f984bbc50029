//! `rimg run`: docker's flags and exit codes, in a sandbox that is safe by default, as root and as a user.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use crate::world::{Outcome, World, is_root};

/// An ordinary user without subordinate ids.
const USER: u32 = 12_345;

/// A world with the image `box`.
fn world() -> World {
    let world = World::new();
    world.busybox_root("rootfs");
    world.write("Buildfile", "FROM ./rootfs\nENV FROM_IMAGE=1\nCMD [\"echo\", \"default\"]\n");
    world.build(".", &["-t", "box"]);
    world
}

/// The same image in a store of an ordinary user; `None` in place of a user when the tests are not run by root.
fn user_world() -> (World, Option<u32>) {
    let world = World::new();
    world.busybox_root("rootfs");
    world.write("Buildfile", "FROM ./rootfs\nCMD [\"echo\", \"default\"]\n");
    let user = is_root().then_some(USER);
    std::fs::create_dir(world.root()).unwrap();
    if user.is_some() {
        std::os::unix::fs::chown(world.root(), user, user).unwrap();
    }
    let built = as_user(&world, user, &["build", "-t", "box", "."]);
    built.ok();
    (world, user)
}

fn as_user(world: &World, user: Option<u32>, arguments: &[&str]) -> Outcome {
    let mut command = world.command(arguments);
    if let Some(user) = user {
        command.uid(user).gid(user);
    }
    world.run(command)
}

fn run(world: &World, arguments: &[&str]) -> Outcome {
    let mut all = vec!["run", "--rm"];
    all.extend(arguments);
    world.rimg(&all)
}

#[test]
fn the_command_comes_from_the_image_or_the_caller() {
    let world = world();
    assert_eq!(run(&world, &["box"]).ok(), "default\n");
    assert_eq!(run(&world, &["box", "echo", "mine"]).ok(), "mine\n");
    assert_eq!(run(&world, &["--entrypoint", "/bin/echo", "box", "a", "b"]).ok(), "a b\n");
}

/// What stands behind the image never mounts, changes the user or opens the network.
#[test]
fn words_behind_the_image_belong_to_the_command() {
    let world = world();
    world.write("Buildfile", "FROM box\nENTRYPOINT [\"/bin/echo\", \"ARGS:\"]\n");
    world.build(".", &["-t", "entry"]);
    for words in [
        &["-u", "app"][..],
        &["--help"],
        &["-h"],
        &["-v/tmp:/x", "-q"],
        &["--root", "/nowhere"],
        &["-v", "/etc:/h", "--network", "host", "--", "--rm"],
    ] {
        let all: Vec<&str> = ["entry"].iter().chain(words).copied().collect();
        assert_eq!(run(&world, &all).ok(), format!("ARGS: {}\n", words.join(" ")));
    }
    let refused = run(&world, &["--entrypoint", "/bin/cat", "box", "-v", "/etc:/h", "/h/hostname"]);
    assert_ne!(refused.code, 0, "{}", refused.stdout);
}

#[test]
fn flags_have_dockers_grammar() {
    let world = world();
    for flags in [
        &["-m", "0"][..],
        &["--pids-limit", "-1"],
        &["--pids-limit=0"],
        &["--cpus", "0"],
        &["--rm=true", "-it=false"],
        &["--workdir", ""],
    ] {
        let all: Vec<&str> = flags.iter().chain(&["box", "true"]).copied().collect();
        run(&world, &all).ok();
    }
    assert_eq!(run(&world, &["-h", "web", "box", "hostname"]).ok(), "web\n");
    let seen = run(&world, &["-e", "A B=1", "-e", "FROM_IMAGE", "box", "env"]).ok();
    assert!(seen.contains("A B=1\n") && !seen.contains("FROM_IMAGE"), "{seen}");
    let refused = |flags: &[&str]| {
        let all: Vec<&str> = flags.iter().chain(&["box", "true"]).copied().collect();
        run(&world, &all).fails(125)
    };
    world.write("f", "x");
    assert_eq!(run(&world, &["-v", "./f:/x", "-v", "./f:/x", "box", "cat", "/x"]).ok(), "x");
    let twice = refused(&["-v", "./f:/x", "-v", "./f:/x/"]);
    assert!(twice.contains("Duplicate mount point: /x"), "{twice}");
    let relative = refused(&["-w", "etc"]);
    assert!(
        relative.contains("the working directory 'etc' is invalid, it needs to be an absolute path"),
        "{relative}"
    );
    let unsupported = refused(&["--gpus", "all"]);
    assert_eq!(unsupported, "error: `--gpus` is not supported by rimg run\n");
    assert!(!refused(&["--no-such-flag"]).contains("-- --"));
    assert!(refused(&["--network", "bridge"]).contains("not supported yet"));
}

#[test]
fn volumes_and_tmpfs_are_as_the_image_has_them() {
    let world = world();
    world.write(
        "Buildfile",
        "FROM box\nRUN mkdir -m 751 /data && echo image > /data/file && mkdir -m 700 /private\nVOLUME /data /missing\n",
    );
    world.build(".", &["-t", "vol"]);
    let script = "cat /data/file; stat -c %a /data /missing /anonymous; touch /data/x /missing/x /anonymous/x; touch /x 2>/dev/null || echo ro";
    let seen = run(&world, &["--read-only", "-v", "/anonymous", "vol", "sh", "-c", script]).ok();
    assert_eq!(seen, "image\n751\n755\n755\nro\n");
    // Gone with the container, and what the caller mounts there is what is there.
    assert_ne!(run(&world, &["vol", "ls", "/data/x"]).code, 0);
    world.write("own/file", "own\n");
    assert_eq!(run(&world, &["-v", "./own:/data", "vol", "cat", "/data/file"]).ok(), "own\n");
    let seen = run(
        &world,
        &[
            "--tmpfs",
            "/private",
            "--tmpfs",
            "/new:mode=711,size=64k",
            "vol",
            "stat",
            "-c",
            "%a",
            "/private",
            "/new",
        ],
    );
    assert_eq!(seen.ok(), "700\n711\n");
    let refused = run(&world, &["--tmpfs", "/t:nosuch=1", "vol", "true"]).fails(125);
    assert!(refused.contains("tmpfs option `nosuch` is not supported"), "{refused}");
}

#[test]
fn the_hosts_network_is_the_hosts() {
    let world = world();
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    assert_eq!(run(&world, &["--network", "host", "box", "hostname"]).ok().trim(), host);
    assert_eq!(run(&world, &["--network", "host", "-h", "web", "box", "hostname"]).ok(), "web\n");
    let listens = |flags: &[&str]| {
        // A port of this network that nobody else uses: below 1024, where only root may listen.
        let script = "for port in 81 82 83 84 85; do nc -l -p $port < /dev/null > /dev/null 2>&1 & sleep 0.3
            kill $! 2>/dev/null && echo listened && break; done; true";
        let all: Vec<&str> = flags.iter().chain(&["box", "sh", "-c", script]).copied().collect();
        run(&world, &all).ok()
    };
    assert_eq!(listens(&[]), "listened\n");
    if is_root() {
        assert_eq!(listens(&["-u", "app"]), "listened\n");
        assert_eq!(listens(&["--network", "host"]), "listened\n");
        assert_eq!(listens(&["--network", "host", "-u", "app"]), "");
    }
}

#[test]
fn exit_codes_are_dockers() {
    let world = world();
    for (arguments, code) in [
        (vec!["box", "true"], 0),
        (vec!["box", "sh", "-c", "exit 7"], 7),
        (vec!["box", "sh", "-c", "sh -c 'kill -TERM $$'; exit $?"], 143),
        (vec!["--init", "box", "sh", "-c", "kill -TERM $$"], 143),
        (vec!["box", "no-such-program"], 127),
        (vec!["box", "/etc/passwd"], 126),
        (vec!["box", "/etc"], 126),
        (vec!["no-such-image-here.invalid/x"], 125),
        (vec!["-u", "nobody-knows", "box", "true"], 125),
        (vec!["-w", "/etc/passwd", "box", "true"], 125),
    ] {
        let outcome = run(&world, &arguments);
        assert_eq!(outcome.code, code, "{arguments:?}: {}", outcome.stderr);
        assert!(
            code == 0 || code == 7 || code == 143 || !outcome.stderr.is_empty(),
            "{arguments:?} says nothing"
        );
    }
}

/// A limit that is too small is raised, or named; nothing overflows.
#[test]
fn small_stacks_are_no_crash() {
    let world = world();
    let rimg = world.command(&[]).get_program().to_owned();
    let mut command = world.command(&["run", "--rm", "box", "echo", "through"]);
    let script = "ulimit -s 64; exec \"$@\"";
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", script, "sh"]).arg(rimg).args(command.get_args());
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            shell.env(name, value);
        }
    }
    command = shell;
    let outcome = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&outcome.stderr);
    match outcome.status.code() {
        Some(0) => assert_eq!(outcome.stdout, b"through\n"),
        code => {
            assert_eq!(code, Some(125), "{stderr}");
            assert!(stderr.starts_with("error: the limit of the stack is 64 KiB"), "{stderr}");
            assert!(stderr.contains("hint: ulimit -s"), "{stderr}");
        }
    }
}

#[test]
fn environment_user_and_folder_are_set() {
    let world = world();
    world.write("env", "# comment\nFROM_FILE=2\n");
    let seen = run(&world, &["-e", "MINE=3", "--env-file", "env", "-e", "FROM_IMAGE=4", "box", "env"]).ok();
    for line in ["MINE=3", "FROM_FILE=2", "FROM_IMAGE=4", "HOME=/root"] {
        assert!(seen.lines().any(|seen| seen == line), "{line}: {seen}");
    }
    assert_eq!(
        run(&world, &["-u", "app", "box", "id"]).ok().trim(),
        "uid=1000(app) gid=1000(app) groups=1000(app),2000(extra)"
    );
    assert_eq!(run(&world, &["-u", "7:8", "box", "id"]).ok().trim(), "uid=7 gid=8 groups=8");
    assert_eq!(run(&world, &["-w", "/new/folder", "box", "pwd"]).ok(), "/new/folder\n");
    assert_eq!(run(&world, &["--hostname", "here", "box", "hostname"]).ok(), "here\n");
    // An empty value, as of a variable that a script has not set, is none.
    let unset = ["--hostname", "", "--name", "", "-w", "", "-u", "", "box", "hostname"];
    assert_eq!(run(&world, &unset).ok().trim().len(), 12);
}

#[test]
fn files_come_from_where_they_should() {
    let world = world();
    world.write("data/file", "from the host\n");
    assert_eq!(run(&world, &["-v", "./data:/data:ro", "box", "cat", "/data/file"]).ok(), "from the host\n");
    assert_ne!(run(&world, &["-v", "./data:/data:ro", "box", "touch", "/data/x"]).code, 0);
    run(&world, &["-v", "./data:/data", "box", "sh", "-c", "echo written > /data/out"]).ok();
    assert_eq!(std::fs::read_to_string(world.path("data/out")).unwrap(), "written\n");
    assert_ne!(run(&world, &["--read-only", "box", "touch", "/x"]).code, 0);
    run(&world, &["--read-only", "--tmpfs", "/scratch:size=1m", "box", "touch", "/scratch/x"]).ok();
    run(&world, &["box", "touch", "/bin/x"]).ok();
    assert_ne!(run(&world, &["box", "ls", "/bin/x"]).code, 0, "one container's files were seen by the next");
}

#[test]
fn standard_input_is_passed_only_with_i() {
    let world = world();
    let mut command = world.command(&["run", "--rm", "-i", "box", "cat"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"through\n").unwrap();
    assert_eq!(child.wait_with_output().unwrap().stdout, b"through\n");
    let mut command = world.command(&["run", "--rm", "box", "cat"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let _ = child.stdin.take().unwrap().write_all(b"through\n");
    assert_eq!(child.wait_with_output().unwrap().stdout, b"");
}

#[test]
fn a_sandbox_is_safe_by_default() {
    let world = world();
    let status = run(&world, &["box", "cat", "/proc/self/status"]).ok();
    let field = |name: &str| {
        status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim).unwrap().to_owned()
    };
    assert_eq!(field("NoNewPrivs:"), "1");
    assert_eq!(field("Seccomp:"), "2");
    assert_eq!(field("CapInh:"), "0000000000000000");
    assert_eq!(field("CapAmb:"), "0000000000000000");
    assert_eq!(field("CapBnd:"), "00000000a80425fb", "docker's fourteen");
    assert_eq!(run(&world, &["box", "sh", "-c", "echo $$"]).ok(), "1\n");
    assert_eq!(run(&world, &["--init", "box", "sh", "-c", "echo $$"]).ok(), "2\n");
    for (what, script) in [
        ("mounting", "mount -t tmpfs none /tmp"),
        ("/proc/sysrq-trigger", "echo x > /proc/sysrq-trigger"),
        ("/proc/kcore", "test -s /proc/kcore"),
        ("/sys", "touch /sys/x"),
        ("host processes", "test $(ls /proc | grep -c '^[0-9]') -gt 6"),
    ] {
        assert_ne!(run(&world, &["box", "sh", "-c", script]).code, 0, "{what} was allowed");
    }
    let files = run(&world, &["box", "ls", "-l", "/proc/self/fd"]).ok();
    assert!(!files.contains(world.root().to_str().unwrap()), "a file of the host leaked: {files}");
    let network = run(&world, &["--network", "none", "box", "ls", "/sys/class/net"]);
    assert!(network.code != 0 || network.stdout.trim() == "lo", "{}", network.stdout);
}

#[test]
fn limits_are_applied() {
    if !is_root() {
        eprintln!("SKIPPED: limits need a writable cgroup, which an ordinary user has only by delegation");
        return;
    }
    let world = world();
    let outcome =
        run(&world, &["--memory", "32m", "box", "dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1"]);
    assert_eq!(outcome.code, 137, "{}", outcome.stderr);
    let outcome =
        run(&world, &["--pids-limit", "8", "box", "sh", "-c", "for i in $(seq 20); do sleep 5 & done"]);
    assert_ne!(outcome.code, 0, "{}", outcome.stdout);
    run(&world, &["--cpus", "0.5", "box", "true"]).ok();
}

#[test]
fn an_ordinary_user_runs_containers() {
    let (world, user) = user_world();
    let run = |arguments: &[&str]| {
        let mut all = vec!["run", "--rm"];
        all.extend(arguments);
        as_user(&world, user, &all)
    };
    assert_eq!(run(&["box"]).ok(), "default\n");
    assert!(run(&["box", "id"]).ok().starts_with("uid=0(root)"));
    run(&["box", "sh", "-c", "touch /new && rm /bin/nc && test ! -e /bin/nc"]).ok();
    assert_eq!(run(&["box", "sh", "-c", "exit 9"]).code, 9);
    assert_ne!(run(&["box", "mount", "-t", "tmpfs", "none", "/tmp"]).code, 0);
    world.write("Buildfile", "FROM ./rootfs\nRUN echo made-by-a-user > /made\n");
    as_user(&world, user, &["build", "-t", "made", "."]).ok();
    assert_eq!(run(&["made", "cat", "/made"]).ok(), "made-by-a-user\n");
}

/// Only the base knows that the build runs something.
#[test]
fn an_ordinary_user_builds_on_triggers_that_run() {
    let (world, user) = user_world();
    world.write("Buildfile", "FROM box\nONBUILD RUN echo triggered > /made\n");
    as_user(&world, user, &["build", "-t", "base", "."]).ok();
    world.write("Buildfile", "FROM base\nCMD [\"cat\", \"/made\"]\n");
    as_user(&world, user, &["build", "-t", "made", "."]).ok();
    assert_eq!(as_user(&world, user, &["run", "--rm", "made"]).ok(), "triggered\n");
}

#[test]
fn an_ordinary_users_images_are_at_home() {
    let (world, user) = user_world();
    let home = world.path("home");
    std::fs::create_dir(&home).unwrap();
    std::os::unix::fs::chown(&home, user, user).unwrap();
    world.write("Buildfile", "FROM ./rootfs\nRUN echo made > /made\nCMD [\"cat\", \"/made\"]\n");
    let at_home = |arguments: &[&str]| {
        let mut command = world.command(arguments);
        command.env_remove("RIMG_ROOT").env("HOME", &home);
        if let Some(user) = user {
            command.uid(user).gid(user);
        }
        world.run(command)
    };
    at_home(&["build", "-t", "mine", "."]).ok();
    assert_eq!(at_home(&["run", "--rm", "mine"]).ok(), "made\n");
    assert!(at_home(&["images"]).ok().contains("mine"));
    assert!(home.join(".local/share/rimg/blobs").is_dir());
}

#[test]
fn a_damaged_layer_is_not_run() {
    let world = world();
    // The snapshot that this leaves is whole, and does not help.
    run(&world, &["box", "true"]).ok();
    let inspected: serde_json::Value = serde_json::from_str(&world.rimg(&["inspect", "box"]).ok()).unwrap();
    let layer = inspected[0]["manifest"]["layers"][0]["digest"].as_str().unwrap().replace("sha256:", "");
    let path = world.root().join("blobs/sha256").join(layer);
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    std::fs::write(&path, bytes).unwrap();
    let refused = world.run(world.command(&["run", "--rm", "box", "true"])).fails(125);
    assert!(refused.contains("damaged"), "{refused}");
}

#[test]
fn what_cannot_be_done_says_what_can() {
    let (world, user) = user_world();
    let refused = |arguments: &[&str], code| as_user(&world, user, arguments).fails(code);
    if is_root() {
        let error = refused(&["run", "--rm", "-u", "app", "box", "true"], 125);
        assert!(
            error.contains("error: failed to run as the user `app` (1000:1000): only one id is mapped"),
            "{error}"
        );
        assert!(error.contains("/etc/subuid") && error.contains("-u 0"), "{error}");
    }
    assert!(refused(&["run", "-p", "80:80", "box"], 125).contains("--network host"));
    assert!(refused(&["run", "-d", "box"], 125).contains("not supported yet"));
    assert!(refused(&["run", "--name", "a/b", "box"], 125).contains("no name of a container"));
}

/// Images contain set-user-ID programs.
#[test]
fn unpacked_images_are_closed_to_other_users() {
    use std::os::unix::fs::PermissionsExt;
    let world = world();
    run(&world, &["box", "true"]).ok();
    for name in ["snapshots", "containers"] {
        let mode = std::fs::metadata(world.root().join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700, "{name}");
    }
}

#[test]
fn signals_reach_the_process_and_nothing_is_left() {
    let world = world();
    let script = "trap 'echo caught; exit 3' TERM; echo ready; while true; do sleep 0.1; done";
    let mut child =
        world.command(&["run", "--rm", "box", "sh", "-c", script]).stdout(Stdio::piped()).spawn().unwrap();
    let mut output = std::io::BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    std::io::BufRead::read_line(&mut output, &mut line).unwrap();
    assert_eq!(line, "ready\n");
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(3));
    line.clear();
    std::io::BufRead::read_line(&mut output, &mut line).unwrap();
    assert_eq!(line, "caught\n");
    assert_eq!(std::fs::read_dir(world.root().join("containers")).unwrap().count(), 0);
}

#[test]
fn the_image_of_a_container_that_runs_stays() {
    let world = world();
    let mut child = world
        .command(&["run", "--rm", "-i", "--name", "web", "box", "sh", "-c", "echo ready; cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = std::io::BufReader::new(child.stdout.take().unwrap());
    std::io::BufRead::read_line(&mut output, &mut String::new()).unwrap();
    // What somebody left who was killed while unpacking goes, whoever runs.
    let unfinished = world.root().join("snapshots/.new-1-1");
    std::fs::create_dir(&unfinished).unwrap();
    world.rimg(&["prune", "--all", "--dry-run"]).ok();
    assert!(unfinished.exists());
    world.rimg(&["prune", "--all", "--force"]).ok();
    assert!(!unfinished.exists());
    let refused = world.rimg(&["rmi", "box"]).fails(1);
    assert!(refused.contains("in use by container `web`"), "{refused}");
    assert_eq!(run(&world, &["box", "echo", "still there"]).ok(), "still there\n");
    world.rimg(&["rmi", "--force", "box"]).ok();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!world.rimg(&["images"]).ok().contains("box"));
}

#[test]
fn a_terminal_is_a_terminal() {
    let world = world();
    let inner = format!(
        "{} run --rm -it box sh -c 'test -t 0 && test -t 1 && stty size 2>/dev/null; tty >/dev/null; echo is-a-tty'",
        env!("CARGO_BIN_EXE_rimg")
    );
    let mut command = Command::new("script");
    command.args(["-qec", &inner, "/dev/null"]).env("RIMG_ROOT", world.root()).stdin(Stdio::null());
    let outcome = world.run(command);
    assert!(outcome.stdout.contains("is-a-tty"), "{}{}", outcome.stdout, outcome.stderr);
    let refused = world.rimg(&["run", "--rm", "-t", "-i", "box", "true"]);
    assert!(refused.code != 0 && refused.stderr.contains("terminal"), "{}", refused.stderr);
}
