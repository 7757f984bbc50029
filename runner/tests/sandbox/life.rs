//! Starting and ending: exit codes, signals, orphans, parents that die, and what is left afterwards.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};

use rimg_runner::spec::{Stdio, StdioEnd};
use rimg_runner::{Sandbox, SandboxError};

use crate::harness::{Root, Test, output, try_run};

pub(crate) const TESTS: &[Test] = &[
    ("true_leaves_nothing", true_leaves_nothing),
    ("exit_codes", exit_codes),
    ("programs_that_cannot_be_executed", programs_that_cannot_be_executed),
    ("signals_reach_the_payload", signals_reach_the_payload),
    ("a_signal_that_kills_is_reported", a_signal_that_kills_is_reported),
    ("orphans_are_reaped_and_killed_at_the_end", orphans_are_reaped_and_killed_at_the_end),
    ("dropping_kills", dropping_kills),
    ("many_at_once", many_at_once),
    ("a_parent_killed_leaves_no_process", a_parent_killed_leaves_no_process),
    ("piped_input", piped_input),
    ("invalid_specs", invalid_specs),
    ("set_up_failures_name_the_operation", set_up_failures_name_the_operation),
    ("no_mount_is_left_in_the_callers_namespace", no_mount_is_left_in_the_callers_namespace),
];

fn true_leaves_nothing() {
    let root = Root::new();
    assert_eq!(output(root.spec(&["/bin/true"])), "");
    assert_eq!(root.upper_paths(), Vec::<String>::new());
}

fn exit_codes() {
    let root = Root::new();
    for (script, code, signal) in [
        ("exit 3", 3, None),
        ("exit 125", 125, None),
        ("kill -TERM $$", 143, Some(15)),
        ("kill -KILL $$", 137, Some(9)),
        ("sh -c 'kill -SEGV $$'; exit $?", 139, None),
    ] {
        let status = try_run(root.shell(script)).unwrap().status;
        assert_eq!((status.code, status.signal), (code, signal), "{script}");
    }
}

fn programs_that_cannot_be_executed() {
    let root = Root::new();
    std::fs::write(root.lower().join("bin/plain"), "text").unwrap();
    for (program, code, errno) in [
        ("/bin/missing", 127, libc::ENOENT),
        ("missing", 127, libc::ENOENT),
        ("/bin/plain", 126, libc::EACCES),
        ("plain", 126, libc::EACCES),
        ("/bin", 126, libc::EACCES),
    ] {
        let status = try_run(root.spec(&[program])).unwrap().status;
        let error = status.exec_error.unwrap();
        assert_eq!((status.code, error.errno), (code, errno), "{program}");
        assert!(error.to_string().contains(program), "{error}");
    }
}

fn signals_reach_the_payload() {
    let root = Root::new();
    let script = "trap 'echo got; exit 7' TERM; echo ready; while :; do sleep 1 & wait; done";
    let mut running = Sandbox::new(root.shell(script)).unwrap().spawn(Stdio::output_piped()).unwrap();
    let mut lines = BufReader::new(running.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "ready");
    running.signal(libc::SIGTERM).unwrap();
    assert_eq!(lines.next().unwrap().unwrap(), "got");
    assert_eq!(running.wait().unwrap().code, 7);
    running.signal(libc::SIGTERM).unwrap();
}

fn a_signal_that_kills_is_reported() {
    let root = Root::new();
    let mut running = Sandbox::new(root.spec(&["sleep", "1000"])).unwrap().spawn(Stdio::default()).unwrap();
    running.signal(libc::SIGINT).unwrap();
    let status = running.wait().unwrap();
    assert_eq!((status.code, status.signal), (130, Some(libc::SIGINT)));
    let mut running = Sandbox::new(root.spec(&["sleep", "1000"])).unwrap().spawn(Stdio::default()).unwrap();
    running.signal(libc::SIGKILL).unwrap();
    assert_eq!(running.wait().unwrap().code, 137);
}

fn orphans_are_reaped_and_killed_at_the_end() {
    let root = Root::new();
    // The grandchild's parent ends at once; init has to reap it, or it stays as a zombie.
    let script = "sh -c 'sh -c \"exit 0\" & echo $! >/tmp/pid'; n=0; \
        while [ -e /proc/$(cat /tmp/pid) ]; do n=$((n+1)); [ $n -lt 100000 ] || exit 9; done; \
        sleep 1000 & exit 0";
    assert_eq!(try_run(root.shell(script)).unwrap().status.code, 0);
}

fn dropping_kills() {
    let root = Root::new();
    let mut running =
        Sandbox::new(root.spec(&["sleep", "1000"])).unwrap().spawn(Stdio::output_piped()).unwrap();
    let mut stdout = running.stdout.take().unwrap();
    drop(running);
    // The end of the stream: nobody holds the writing end any more.
    assert_eq!(stdout.read_to_end(&mut Vec::new()).unwrap(), 0);
}

fn many_at_once() {
    let root = Root::new();
    let roots: Vec<Root> = (0..8).map(|_| Root::empty()).collect();
    std::thread::scope(|scope| {
        for (number, own) in roots.iter().enumerate() {
            let lower = root.lower();
            scope.spawn(move || {
                for _ in 0..5 {
                    let mut spec = own.shell(&format!("echo {number} > /tmp/file; cat /tmp/file"));
                    spec.rootfs.lowers = vec![lower.clone()];
                    let _ = std::fs::remove_dir_all(own.upper());
                    std::fs::create_dir(own.upper()).unwrap();
                    assert_eq!(output(spec), format!("{number}\n"));
                }
            });
        }
    });
}

/// The other side of [`a_parent_killed_leaves_no_process`]: runs a sandbox until it is killed.
pub(crate) fn victim(root: &Path) -> ! {
    use rimg_runner::spec::{RootFs, Upper};
    let rootfs = RootFs { lowers: vec![root.join("lower")], upper: Upper::None };
    let args = ["/bin/sh", "-c", "echo ready; exec /bin/sleep 1000"].map(OsString::from);
    let spec = rimg_runner::SandboxSpec::new(rootfs, args.to_vec());
    let mut running = Sandbox::new(spec).unwrap().spawn(Stdio::output_inherited()).unwrap();
    std::process::exit(running.wait().unwrap().code);
}

fn a_parent_killed_leaves_no_process() {
    let root = Root::new();
    let mut victim = std::process::Command::new("/proc/self/exe")
        .env("RIMG_TEST_VICTIM", root.directory.path())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = BufReader::new(victim.stdout.take().unwrap());
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    victim.kill().unwrap();
    assert_eq!(victim.wait().unwrap().signal(), Some(libc::SIGKILL));
    // The payload holds the pipe: its end is the end of every process inside.
    assert_eq!(stdout.read_line(&mut line).unwrap(), 0);
}

fn piped_input() {
    let root = Root::new();
    let stdio = Stdio { stdin: StdioEnd::Pipe, stdout: StdioEnd::Pipe, stderr: StdioEnd::Null };
    let mut running = Sandbox::new(root.spec(&["cat"])).unwrap().spawn(stdio).unwrap();
    std::io::Write::write_all(running.stdin.as_mut().unwrap(), b"through").unwrap();
    drop(running.stdin.take());
    let mut text = String::new();
    running.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!((text.as_str(), running.wait().unwrap().code), ("through", 0));
    assert_eq!(output(root.spec(&["cat"])), "", "without input there is nothing to read");
}

fn invalid_specs() {
    let root = Root::new();
    let mut no_args = root.spec(&[]);
    no_args.args.clear();
    let mut long_name = root.spec(&["true"]);
    long_name.hostname = "x".repeat(65);
    let mut relative = root.spec(&["true"]);
    relative
        .files
        .push(rimg_runner::spec::EtcFile { target: PathBuf::from("etc/hosts"), content: Vec::new() });
    let mut layers = root.spec(&["true"]);
    layers.rootfs.lowers = vec![root.lower(); 501];
    for spec in [no_args, long_name, relative, layers] {
        assert!(matches!(Sandbox::new(spec), Err(SandboxError::Invalid(_))));
    }
}

fn set_up_failures_name_the_operation() {
    let root = Root::new();
    let mut spec = root.spec(&["true"]);
    spec.user = "ghost".to_owned();
    let error = try_run(spec).unwrap_err().to_string();
    assert_eq!(
        error,
        "find the user to run as: no user `ghost` in the image's /etc/passwd: use a numeric id or add the user"
    );
    let mut spec = root.spec(&["true"]);
    spec.cwd = PathBuf::from("/bin/busybox");
    let error = try_run(spec).unwrap_err().to_string();
    assert_eq!(error, "enter the working directory /bin/busybox: it is not a directory");
    let mut spec = root.spec(&["true"]);
    spec.rootfs.lowers = vec![PathBuf::from("/nowhere/at/all")];
    let error = try_run(spec).unwrap_err().to_string();
    assert_eq!(error, "open /nowhere/at/all: No such file or directory (os error 2)");
}

fn no_mount_is_left_in_the_callers_namespace() {
    let root = Root::new();
    let mounts = || std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let before = mounts();
    output(root.spec(&["/bin/true"]));
    assert_eq!(mounts(), before);
}
