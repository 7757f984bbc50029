//! Starting and ending: exit codes, signals, orphans, parents that die, and what is left afterwards.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};

use rimg_runner::capabilities::CapabilitySet;
use rimg_runner::spec::{EtcFile, PrivateFile, Stdio, StdioEnd};
use rimg_runner::userns::Mapping;
use rimg_runner::{Sandbox, SandboxError, SandboxSpec};

use crate::harness::{Root, Test, mapping, output, skipped, try_run};

pub(crate) const TESTS: &[Test] = &[
    ("true_leaves_nothing", true_leaves_nothing),
    ("exit_codes", exit_codes),
    ("programs_that_cannot_be_executed", programs_that_cannot_be_executed),
    ("signals_reach_the_payload", signals_reach_the_payload),
    ("a_signal_that_kills_is_reported", a_signal_that_kills_is_reported),
    ("the_payload_is_process_1", the_payload_is_process_1),
    ("an_init_sheds_everything_and_can_be_looked_into", an_init_sheds_everything_and_can_be_looked_into),
    ("an_init_keeps_no_private_files", an_init_keeps_no_private_files),
    ("real_time_and_other_signals_reach_the_payload", real_time_and_other_signals_reach_the_payload),
    ("a_signal_that_is_not_handled_ends_the_sandbox", a_signal_that_is_not_handled_ends_the_sandbox),
    ("a_root_that_cannot_be_sent_is_an_error", a_root_that_cannot_be_sent_is_an_error),
    ("callers_may_ignore_children_and_block_signals", callers_may_ignore_children_and_block_signals),
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
        ("sh -c 'kill -TERM $$'; exit $?", 143, None),
        ("sh -c 'kill -SEGV $$'; exit $?", 139, None),
        // The kernel drops what process 1 of a namespace sends itself, as under docker.
        ("kill -TERM $$; kill -KILL $$; exit 4", 4, None),
    ] {
        let status = try_run(root.shell(script)).unwrap().status;
        assert_eq!((status.code, status.signal), (code, signal), "{script}");
    }
    for (script, code, signal) in
        [("exit 3", 3, None), ("kill -TERM $$", 143, Some(15)), ("kill -KILL $$; exit 4", 137, Some(9))]
    {
        let status = try_run(with_init(root.shell(script))).unwrap().status;
        assert_eq!((status.code, status.signal), (code, signal), "beside an init: {script}");
    }
}

fn with_init(mut spec: SandboxSpec) -> SandboxSpec {
    spec.init = true;
    spec
}

fn with_user(mut spec: SandboxSpec, user: &str) -> SandboxSpec {
    spec.user = user.to_owned();
    spec
}

/// Users that this process can have inside.
fn users() -> &'static [&'static str] {
    match mapping() {
        Mapping::Single(_) => &[""],
        _ => &["", "app"],
    }
}

fn the_payload_is_process_1() {
    let root = Root::new();
    let script = "echo $$; echo through >/proc/1/fd/1; cat /proc/1/cmdline | head -c 2; echo; \
        grep -c ^PATH= /proc/1/environ; set -- /proc/[0-9]*; echo $#";
    for user in users() {
        assert_eq!(output(with_user(root.shell(script), user)), "1\nthrough\nsh\n1\n1\n", "{user}");
    }
}

/// What process 1 keeps, it keeps in sight of the payload.
fn an_init_sheds_everything_and_can_be_looked_into() {
    let root = Root::new();
    let script = "echo $$; echo through >/proc/1/fd/1; cat /proc/1/environ; \
        grep -E '^(CapInh|CapBnd|CapAmb|NoNewPrivs|Seccomp):' /proc/1/status";
    let none = "0000000000000000";
    let shed = format!("CapInh:\t{none}\nCapBnd:\t{none}\nCapAmb:\t{none}\nNoNewPrivs:\t1\nSeccomp:\t2\n");
    for user in users() {
        let seen = output(with_init(with_user(root.shell(script), user)));
        assert_eq!(seen, format!("2\nthrough\n{shed}"), "{user}");
        let script = "grep -E '^(Uid|Groups|CapEff|CapPrm):' /proc/1/status";
        let seen = output(with_init(with_user(root.shell(script), user)));
        let (uid, kept) = if *user == "app" { (1000, none) } else { (0, "0000000000000020") };
        assert!(seen.starts_with(&format!("Uid:\t{uid}\t{uid}\t{uid}\t{uid}\n")), "{seen}");
        assert!(seen.ends_with(&format!("CapPrm:\t{kept}\nCapEff:\t{kept}\n")), "{seen}");
        if !matches!(mapping(), Mapping::Single(_)) {
            let own = output(with_user(root.shell("grep Groups: /proc/self/status"), user));
            assert!(seen.contains(&own), "not its payload's groups: {seen}{own}");
        }
    }
    let mut bare = with_init(root.shell("grep CapPrm: /proc/1/status; echo x >/proc/1/fd/1"));
    bare.capabilities = CapabilitySet::EMPTY;
    assert_eq!(output(bare), format!("CapPrm:\t{none}\nx\n"));
}

/// The files that a payload may not read are not to be had from its init's memory.
fn an_init_keeps_no_private_files() {
    let root = Root::new();
    // In pieces, as the script is in memory too.
    let secret = ["hush", "hush", "42"].concat();
    let file = EtcFile { target: PathBuf::from("/etc/secret"), content: secret.clone().into_bytes() };
    let script = "p=hush; r=$(grep -E 'rw-p' /proc/1/maps | cut -d' ' -f1); n=0; for r in $r; do \
        a=$((0x${r%-*} / 4096)); b=$((0x${r#*-} / 4096)); n=$((n + 1)); \
        dd if=/proc/1/mem bs=4096 skip=$a count=$((b - a)) 2>/dev/null; done | grep -c \"$p${p}42\"; test -n \"$r\"";
    let mut spec = with_init(root.shell(script));
    spec.private_files = vec![PrivateFile { file, mode: 0o400, uid: 0, gid: 0 }];
    // Where ptrace is not to be had, memory is not either.
    let outcome = try_run(spec).unwrap();
    assert_eq!(outcome.stdout, "0\n", "{outcome:?}");
}

fn real_time_and_other_signals_reach_the_payload() {
    let root = Root::new();
    for init in [false, true] {
        for signal in [37, 64, libc::SIGALRM, libc::SIGIO, libc::SIGWINCH, libc::SIGCONT, libc::SIGTSTP] {
            let script =
                format!("trap 'echo got; exit 7' {signal}; echo ready; while :; do sleep 1 & wait; done");
            let mut spec = root.shell(&script);
            spec.init = init;
            let mut running = Sandbox::new(spec).unwrap().spawn(Stdio::output_piped()).unwrap();
            let mut lines = BufReader::new(running.stdout.take().unwrap()).lines();
            assert_eq!(lines.next().unwrap().unwrap(), "ready");
            running.signal(signal).unwrap();
            assert_eq!(lines.next().unwrap().unwrap(), "got", "{signal}");
            assert_eq!(running.wait().unwrap().code, 7);
        }
    }
}

/// The kernel would drop them: the payload is process 1 and has no handler.
fn a_signal_that_is_not_handled_ends_the_sandbox() {
    let root = Root::new();
    for (number, code) in [(libc::SIGTERM, 143), (libc::SIGUSR1, 138), (libc::SIGALRM, 142), (40, 168)] {
        let mut running =
            Sandbox::new(root.spec(&["sleep", "1000"])).unwrap().spawn(Stdio::default()).unwrap();
        // Harmless by default, for process 1 as for others.
        running.signal(libc::SIGWINCH).unwrap();
        running.signal(libc::SIGCONT).unwrap();
        running.signal(number).unwrap();
        let status = running.wait().unwrap();
        assert_eq!((status.code, status.signal), (code, Some(number)));
    }
    let script = "trap '' TERM USR1; echo ready; sleep 1; exit 5";
    let mut running = Sandbox::new(root.shell(script)).unwrap().spawn(Stdio::output_piped()).unwrap();
    let mut lines = BufReader::new(running.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "ready");
    running.signal(libc::SIGTERM).unwrap();
    running.signal(libc::SIGUSR1).unwrap();
    assert_eq!(running.wait().unwrap().code, 5, "ignored signals stay ignored");
}

/// Neither a failed send nor a process 1 that died leaves anybody waiting, and the cause is told.
fn a_root_that_cannot_be_sent_is_an_error() {
    let root = Root::new();
    for (failing, cause) in [("ENOBUFS", "No buffer space"), ("ETOOMANYREFS", "Too many references")] {
        for (when, said) in [(1, "talk to"), (2, "send the root")] {
            let strace = std::process::Command::new("timeout")
                .args(["-k", "1", "20", "strace", "-qq", "-o", "/dev/null", "-e", "trace=sendmsg", "-e"])
                .arg(format!("inject=sendmsg:error={failing}:when={when}"))
                .arg(std::env::current_exe().unwrap())
                .env("RIMG_TEST_VICTIM", root.directory.path())
                .output()
                .unwrap();
            let text = String::from_utf8_lossy(&strace.stderr);
            let unusable = ["failed to run command", "can't execute", "Operation not permitted"];
            if unusable.iter().any(|words| text.contains(words)) {
                return skipped("a_root_that_cannot_be_sent_is_an_error", "strace cannot be used here");
            }
            assert_eq!(strace.status.code(), Some(101), "{text}");
            assert!(text.contains(cause) && text.contains("to the sandbox"), "{said}: {text}");
        }
    }
}

fn callers_may_ignore_children_and_block_signals() {
    let blocking = std::process::Command::new("env").args(["--block-signal=TERM", "true"]).output();
    if !blocking.is_ok_and(|output| output.status.success()) {
        return skipped("callers_may_ignore_children_and_block_signals", "env cannot block signals here");
    }
    let root = Root::new();
    for init in ["", "n"] {
        let mut child = std::process::Command::new("/bin/sh")
            .args(["-c", "trap '' CHLD; exec env --block-signal=TERM \"$0\""])
            .arg(std::env::current_exe().unwrap())
            .env("RIMG_TEST_FOREGROUND", root.directory.path())
            .env("RIMG_TEST_MODE", init)
            .env("RIMG_TEST_SCRIPT", "grep -E '^Sig(Blk|Ign)' /proc/self/status; trap 'exit 6' TERM; echo ready; while :; do sleep 1 & wait; done")
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let none = "0000000000000000";
        assert_eq!(lines.next().unwrap().unwrap(), format!("SigBlk:\t{none}"));
        assert_eq!(lines.next().unwrap().unwrap(), format!("SigIgn:\t{none}"));
        assert_eq!(lines.next().unwrap().unwrap(), "ready");
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(6));
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
    assert_eq!(try_run(with_init(root.shell(script))).unwrap().status.code, 0);
    assert_eq!(output(root.shell("sleep 1000 & echo done")), "done\n");
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
    // A change of user, where there is another one, clears what the kernel would do at a parent's death.
    let script = "echo ready; exec /bin/sleep 1000";
    let args = ["/bin/sh", "-c", script].map(OsString::from);
    let mut spec = SandboxSpec::new(rootfs, args.to_vec());
    spec.init = std::env::var_os("RIMG_TEST_INIT").is_some();
    let stdout = std::io::stdout().as_fd().try_clone_to_owned().unwrap();
    let stdio = Stdio { stdin: StdioEnd::Null, stdout: StdioEnd::Fd(stdout), stderr: StdioEnd::Null };
    let mut running = Sandbox::new(spec).unwrap().spawn(stdio).unwrap_or_else(|error| panic!("{error}"));
    std::process::exit(running.wait().unwrap().code);
}

fn a_parent_killed_leaves_no_process() {
    a_parent_killed("RIMG_TEST_NO_INIT");
    a_parent_killed("RIMG_TEST_INIT");
}

fn a_parent_killed(mode: &str) {
    let root = Root::new();
    let mut victim = std::process::Command::new("/proc/self/exe")
        .env("RIMG_TEST_VICTIM", root.directory.path())
        .env(mode, "1")
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
    relative.files.push(EtcFile { target: PathBuf::from("etc/hosts"), content: Vec::new() });
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
