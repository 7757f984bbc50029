//! Foreground runs: the payload on the caller's terminal and under the caller's signals.
//!
//! The caller is this program again, with its standard descriptors on a terminal or pipes of the test's.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rimg_runner::SandboxSpec;
use rimg_runner::spec::{RootFs, Upper, WindowSize};
use rustix::pty::OpenptFlags;
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

use crate::harness::{Root, Test};

pub(crate) const TESTS: &[Test] = &[
    ("terminal", terminal),
    ("terminal_interrupt", terminal_interrupt),
    ("terminal_size_follows", terminal_size_follows),
    ("terminal_large_output_and_exit_code", terminal_large_output_and_exit_code),
    ("signals_are_passed_on", signals_are_passed_on),
    ("unhandled_signals_end_the_run", unhandled_signals_end_the_run),
    ("input_only_when_interactive", input_only_when_interactive),
    ("the_callers_terminal_is_not_given_away", the_callers_terminal_is_not_given_away),
    ("ignored_signals_stay_ignored", ignored_signals_stay_ignored),
    ("signals_of_the_terminal_arrive_once", signals_of_the_terminal_arrive_once),
];

/// The caller's side, in a process of its own.
pub(crate) fn caller(root: &Path) -> ! {
    let variable = |name: &str| std::env::var(name).unwrap();
    let rootfs = RootFs { lowers: vec![root.join("lower")], upper: Upper::None };
    let args = ["/bin/sh", "-c", &variable("RIMG_TEST_SCRIPT")].map(Into::into);
    let mut spec = SandboxSpec::new(rootfs, args.to_vec());
    spec.env = vec![("PATH".into(), "/bin".into())];
    let mode = variable("RIMG_TEST_MODE");
    spec.init = mode.contains('n');
    if mode.contains('u') {
        spec.user = "app".to_owned();
    }
    spec.tty = mode.contains('t').then_some(WindowSize { rows: 11, columns: 22 });
    let status = rimg_runner::run_foreground(spec, mode.contains('i'), |_| {}).unwrap();
    std::process::exit(if status.lost_output.is_some() { LOST_OUTPUT } else { status.code });
}

/// The caller's exit code when output was lost.
pub(crate) const LOST_OUTPUT: i32 = 200;

pub(crate) fn command(root: &Root, mode: &str, script: &str) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command
        .env("RIMG_TEST_FOREGROUND", root.directory.path())
        .env("RIMG_TEST_MODE", mode)
        .env("RIMG_TEST_SCRIPT", script);
    command
}

struct Session {
    master: File,
    slave: OwnedFd,
    child: Child,
    seen: String,
}

impl Session {
    fn start(root: &Root, script: &str) -> Session {
        Session::start_mode(root, "it", script)
    }

    fn start_mode(root: &Root, mode: &str, script: &str) -> Session {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = rustix::pty::openpt(flags).unwrap();
        rustix::pty::unlockpt(&master).unwrap();
        let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags).unwrap();
        let size = Winsize { ws_row: 33, ws_col: 44, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&master, size).unwrap();
        let end = || Stdio::from(slave.try_clone().unwrap());
        let child = command(root, mode, script).stdin(end()).stdout(end()).stderr(end()).spawn().unwrap();
        Session { master: File::from(master), slave, child, seen: String::new() }
    }

    /// Reads until `text` has been shown.
    fn expect(&mut self, text: &str) {
        let mut bytes = [0; 4096];
        while !self.seen.contains(text) {
            let count = self.master.read(&mut bytes).unwrap();
            self.seen.push_str(&String::from_utf8_lossy(&bytes[..count]));
        }
    }

    fn type_in(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).unwrap();
    }

    /// Waits for the end; the terminal must be as it was. Returns the exit code.
    fn end(mut self) -> i32 {
        let code = self.child.wait().unwrap().code().unwrap();
        let modes = tcgetattr(&self.slave).unwrap().local_modes;
        assert!(modes.contains(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG), "{modes:?}");
        code
    }
}

fn terminal() {
    let root = Root::new();
    let mut session = Session::start(
        &root,
        "tty; ls -l /dev/console | wc -l; sleep 0.3; stty size; read line; echo got:$line; exit 4",
    );
    session.expect("/dev/pts/0\r\n1\r\n");
    session.expect("33 44");
    session.type_in("typed\r");
    session.expect("got:typed");
    assert_eq!(session.end(), 4);
}

fn terminal_interrupt() {
    let root = Root::new();
    let mut session =
        Session::start(&root, "trap 'echo interrupted; exit 5' INT; echo ready; while :; do sleep 1; done");
    session.expect("ready");
    // Raw mode hands the character through, and the payload's own terminal makes a signal of it.
    session.type_in("\u{3}");
    session.expect("interrupted");
    assert_eq!(session.end(), 5);
}

fn terminal_size_follows() {
    let root = Root::new();
    let mut session =
        Session::start(&root, "trap 'stty size' WINCH; echo ready; while :; do read line && exit 0; done");
    session.expect("ready");
    tcsetwinsize(&session.master, Winsize { ws_row: 55, ws_col: 66, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
    // The terminal is nobody's controlling one here, so its driver sends no signal.
    let pid = rustix::process::Pid::from_child(&session.child);
    rustix::process::kill_process(pid, rustix::process::Signal::WINCH).unwrap();
    session.expect("55 66");
    session.type_in("x\r");
    assert_eq!(session.end(), 0);
}

fn terminal_large_output_and_exit_code() {
    let root = Root::new();
    let mut session =
        Session::start(&root, "i=0; while [ $i -lt 3000 ]; do echo line $i; i=$((i+1)); done; exit 9");
    session.expect("line 2999\r\n");
    assert_eq!(session.end(), 9);
}

fn signals_are_passed_on() {
    let root = Root::new();
    for name in
        ["TERM", "INT", "HUP", "USR1", "ALRM", "IO", "WINCH", "CONT", "TSTP", "TTIN", "TTOU", "37", "64"]
    {
        let script =
            format!("trap 'echo {name}; exit 6' {name}; echo ready; while :; do sleep 1 & wait; done");
        let mut child = command(&root, "", &script).stdout(Stdio::piped()).spawn().unwrap();
        let mut stdout = child.stdout.take().unwrap();
        let mut ready = [0; 6];
        stdout.read_exact(&mut ready).unwrap();
        send(name, &child);
        let mut rest = String::new();
        stdout.read_to_string(&mut rest).unwrap();
        assert_eq!((rest.trim(), child.wait().unwrap().code()), (name, Some(6)));
    }
}

/// By name or number, real-time ones included.
fn send(signal: &str, child: &Child) {
    let pid = child.id().to_string();
    assert!(Command::new("/bin/kill").args(["-s", signal, &pid]).status().unwrap().success());
}

/// Process 1 has no handler, and the kernel would drop them.
fn unhandled_signals_end_the_run() {
    let root = Root::new();
    for (name, code) in [("TERM", 143), ("INT", 130), ("HUP", 129), ("USR2", 140), ("37", 165)] {
        let script = "echo ready; exec sleep 1000";
        let mut child = command(&root, "", script).stdout(Stdio::piped()).spawn().unwrap();
        let mut stdout = child.stdout.take().unwrap();
        stdout.read_exact(&mut [0; 6]).unwrap();
        send(name, &child);
        assert_eq!(child.wait().unwrap().code(), Some(code), "{name}");
    }
}

fn input_only_when_interactive() {
    let root = Root::new();
    for (mode, expected) in [("i", "input"), ("", "")] {
        let mut child =
            command(&root, mode, "cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        // Without -i nobody reads it, and the pipe may be closed already.
        let _ = child.stdin.take().unwrap().write_all(b"input");
        let output = child.wait_with_output().unwrap();
        assert_eq!(
            (String::from_utf8_lossy(&output.stdout).as_ref(), output.status.code()),
            (expected, Some(0))
        );
    }
}

/// Without a terminal of its own a payload could otherwise read what is typed on the caller's.
fn the_callers_terminal_is_not_given_away() {
    let root = Root::new();
    let script = "for fd in 0 1 2; do test -t $fd && echo terminal; done; (: </dev/tty) 2>/dev/null && echo tty; \
        echo ready; read line; echo got:$line >&2; exit 3";
    let mut session = Session::start_mode(&root, "i", script);
    session.expect("ready\r\n");
    assert!(!session.seen.contains("terminal") && !session.seen.contains("tty"), "{}", session.seen);
    session.type_in("typed\r");
    session.expect("got:typed");
    assert_eq!(session.end(), 3);
    let mut session =
        Session::start_mode(&root, "", "cat; i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); done");
    session.expect("line 1999\r\n");
    assert_eq!(session.end(), 0);
}

/// `nohup rimg run …`
fn ignored_signals_stay_ignored() {
    let root = Root::new();
    let caller = "trap '' HUP; exec /proc/self/exe";
    let script = "trap 'echo hup' HUP; trap 'exit 4' TERM; echo ready; while :; do sleep 1 & wait; done";
    let mut child = Command::new("/bin/sh")
        .args(["-c", &caller.replace("/proc/self/exe", "\"$0\"")])
        .arg(std::env::current_exe().unwrap())
        .env("RIMG_TEST_FOREGROUND", root.directory.path())
        .env("RIMG_TEST_MODE", "")
        .env("RIMG_TEST_SCRIPT", script)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0; 6]).unwrap();
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    assert_eq!((rest.as_str(), child.wait().unwrap().code()), ("", Some(4)));
}

/// Ctrl-C goes to a whole process group, in which init must not be.
fn signals_of_the_terminal_arrive_once() {
    use std::os::unix::process::CommandExt;
    let root = Root::new();
    let script = "cut() { read -r _ _ _ _ group session _ </proc/1/stat; echo $group $session; }; cut";
    let mut child = command(&root, "", script).process_group(0).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdout = String::new();
    child.stdout.take().unwrap().read_to_string(&mut stdout).unwrap();
    assert_eq!((stdout.trim(), child.wait().unwrap().code()), ("1 1", Some(0)), "group and session of init");
}
