//! Standard descriptors of every kind: what a payload may do to them, and that all output arrives.
//!
//! The caller is this program again, as in [`crate::foreground`].

use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use rimg_runner::userns::Mapping;
use rustix::pty::OpenptFlags;

use crate::foreground::{LOST_OUTPUT, command};
use crate::harness::{Root, Test, mapping};

pub(crate) const TESTS: &[Test] = &[
    ("a_file_as_output_stays_the_callers", a_file_as_output_stays_the_callers),
    ("outputs_can_be_opened_again", outputs_can_be_opened_again),
    ("one_file_for_both_outputs_keeps_their_order", one_file_for_both_outputs_keeps_their_order),
    ("output_waits_for_descriptors_that_do_not_block", output_waits_for_descriptors_that_do_not_block),
    ("input_that_does_not_block", input_that_does_not_block),
    ("input_from_a_file_is_left_where_it_was_read_to", input_from_a_file_is_left_where_it_was_read_to),
    ("a_reader_that_goes_ends_the_run", a_reader_that_goes_ends_the_run),
    ("writes_that_fail_are_told", writes_that_fail_are_told),
    ("devices_are_the_sandboxs_own", devices_are_the_sandboxs_own),
    ("descriptors_may_be_closed", descriptors_may_be_closed),
    ("large_output_to_files_is_whole", large_output_to_files_is_whole),
];

/// Of a mapping with a single id there is no other user.
fn modes() -> &'static [&'static str] {
    match mapping() {
        Mapping::Single(_) => &["", "n"],
        _ => &["", "n", "u", "nu"],
    }
}

/// A root inside that is root outside could otherwise leave a set-user-ID file with content of its own.
fn a_file_as_output_stays_the_callers() {
    let root = Root::new();
    let path = root.directory.path().join("out");
    for script in [
        "chmod 4755 /proc/self/fd/1; chmod 4755 /dev/stderr",
        "chown 1000:1000 /proc/self/fd/1",
        ": >/dev/stdout",
        "test -f /proc/self/fd/1 && echo file",
        "cat </proc/self/fd/1 >&2 &",
    ] {
        fs::write(&path, "keep\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let out = File::options().append(true).open(&path).unwrap();
        let status = command(&root, "", script).stdout(out).stderr(Stdio::null()).status().unwrap();
        assert!(status.code().is_some_and(|code| code < 125), "{script}: {status:?}");
        let after = fs::metadata(&path).unwrap();
        assert_eq!(after.permissions().mode() & 0o7777, 0o600, "{script}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "keep\n", "{script}");
    }
}

fn outputs_can_be_opened_again() {
    let root = Root::new();
    let path = root.directory.path().join("out");
    let script = "echo 1; echo 2 >/dev/stdout; echo 3; echo 4 >/proc/self/fd/1; echo 5 >/dev/fd/1";
    for mode in modes() {
        let out = File::create(&path).unwrap();
        assert!(command(&root, mode, script).stdout(out).status().unwrap().success());
        assert_eq!(fs::read_to_string(&path).unwrap(), "1\n2\n3\n4\n5\n", "file, mode {mode}");
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        assert!(command(&root, mode, script).stdout(OwnedFd::from(theirs)).status().unwrap().success());
        let mut text = String::new();
        ours.read_to_string(&mut text).unwrap();
        assert_eq!(text, "1\n2\n3\n4\n5\n", "socket, mode {mode}");
        let output = command(&root, mode, script).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "1\n2\n3\n4\n5\n", "pipe, mode {mode}");
    }
}

fn one_file_for_both_outputs_keeps_their_order() {
    let root = Root::new();
    let path = root.directory.path().join("out");
    let script = "i=0; while [ $i -lt 200 ]; do echo $i; echo $i >&2; i=$((i+1)); done";
    let expected: String = (0..200).map(|number| format!("{number}\n{number}\n")).collect();
    let out = File::create(&path).unwrap();
    let again = out.try_clone().unwrap();
    assert!(command(&root, "", script).stdout(out).stderr(again).status().unwrap().success());
    assert_eq!(fs::read_to_string(&path).unwrap(), expected, "one description");
    fs::write(&path, "").unwrap();
    let open = || File::options().append(true).open(&path).unwrap();
    assert!(command(&root, "", script).stdout(open()).stderr(open()).status().unwrap().success());
    assert_eq!(fs::read_to_string(&path).unwrap(), expected, "two descriptions");
}

/// Both ends of a pipe that children do not inherit.
fn pipe() -> (OwnedFd, OwnedFd) {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap()
}

/// Reads slowly to the end; how much there was.
fn slowly(mut from: File) -> usize {
    let (mut bytes, mut sum) = ([0; 4000], 0);
    std::thread::sleep(Duration::from_millis(200));
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        sum += count;
        std::thread::sleep(Duration::from_micros(300));
    }
    sum
}

fn output_waits_for_descriptors_that_do_not_block() {
    let root = Root::new();
    let script = "head -c 300000 /dev/zero | tr '\\0' x";
    for mode in ["", "t", "it"] {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = rustix::pty::openpt(flags).unwrap();
        rustix::pty::unlockpt(&master).unwrap();
        let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags).unwrap();
        let mut raw = rustix::termios::tcgetattr(&slave).unwrap();
        raw.make_raw();
        rustix::termios::tcsetattr(&slave, rustix::termios::OptionalActions::Now, &raw).unwrap();
        rustix::io::ioctl_fionbio(&slave, true).unwrap();
        let end = || Stdio::from(slave.try_clone().unwrap());
        let stdin = if mode == "it" { end() } else { Stdio::null() };
        let mut child = command(&root, mode, script).stdin(stdin).stdout(end()).spawn().unwrap();
        drop(slave);
        assert_eq!((slowly(File::from(master)), child.wait().unwrap().code()), (300_000, Some(0)), "{mode}");
    }
    let (reader, writer) = pipe();
    let (ours, theirs) = UnixStream::pair().unwrap();
    for (ours, theirs) in [(reader, writer), (OwnedFd::from(ours), OwnedFd::from(theirs))] {
        rustix::io::ioctl_fionbio(&theirs, true).unwrap();
        let mut child = command(&root, "", script).stdout(theirs).spawn().unwrap();
        assert_eq!((slowly(File::from(ours)), child.wait().unwrap().code()), (300_000, Some(0)));
    }
}

fn input_that_does_not_block() {
    let root = Root::new();
    let (reader, writer) = pipe();
    let (theirs, ours) = UnixStream::pair().unwrap();
    for (theirs, ours) in [(reader, writer), (OwnedFd::from(theirs), OwnedFd::from(ours))] {
        rustix::io::ioctl_fionbio(&theirs, true).unwrap();
        let child = command(&root, "i", "cat | wc -c").stdin(theirs).stdout(Stdio::piped()).spawn().unwrap();
        let mut ours = File::from(ours);
        for _ in 0..5 {
            ours.write_all(&[b'x'; 30_000]).unwrap();
            std::thread::sleep(Duration::from_millis(20));
        }
        drop(ours);
        let output = child.wait_with_output().unwrap();
        assert_eq!((output.stdout.as_slice(), output.status.code()), (&b"150000\n"[..], Some(0)));
    }
}

/// `while read line; do rimg run -i …; done <list`
fn input_from_a_file_is_left_where_it_was_read_to() {
    let root = Root::new();
    let path = root.directory.path().join("in");
    fs::write(&path, "first\nsecond\n").unwrap();
    for (script, read, left) in
        [("true", "", 0), ("read line; echo $line", "first\n", 6), ("cat", "first\nsecond\n", 13)]
    {
        let mut file = File::open(&path).unwrap();
        let output = command(&root, "i", script).stdin(file.try_clone().unwrap()).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), read, "{script}");
        assert_eq!(file.stream_position().unwrap(), left, "{script}");
    }
    fs::write(&path, vec![b'x'; 3_000_000]).unwrap();
    let script = "wc -c; chmod 4755 /proc/self/fd/0 2>/dev/null; test -f /dev/stdin && echo file; true";
    let output = command(&root, "i", script).stdin(File::open(&path).unwrap()).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "3000000\n");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o6000, 0);
}

fn a_reader_that_goes_ends_the_run() {
    let root = Root::new();
    // The shell does not look at the errors of its writes, and the kernel spares process 1 the signal.
    let for_ever = "while :; do echo x; done 2>/dev/null";
    let (reader, writer) = pipe();
    let (ours, theirs) = UnixStream::pair().unwrap();
    for (ours, theirs) in [(reader, writer), (OwnedFd::from(ours), OwnedFd::from(theirs))] {
        let mut child = command(&root, "", for_ever).stdout(theirs).spawn().unwrap();
        let mut ours = File::from(ours);
        ours.read_exact(&mut [0; 2]).unwrap();
        drop(ours);
        assert_eq!(child.wait().unwrap().code(), Some(141));
    }
    // Only whoever writes is ended.
    let script = "yes; sleep 0.3; echo end >&2; exit 3";
    let mut child = command(&root, "", script).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdout.take().unwrap().read_exact(&mut [0; 2]).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.stderr.as_slice(), output.status.code()), (&b"end\n"[..], Some(3)));
}

fn writes_that_fail_are_told() {
    let root = Root::new();
    let path = root.directory.path().join("out");
    let caller = "trap '' XFSZ; ulimit -f 1; exec \"$0\" >\"$1\"";
    let status = Command::new("/bin/sh")
        .args(["-c", caller])
        .arg(std::env::current_exe().unwrap())
        .arg(&path)
        .env("RIMG_TEST_FOREGROUND", root.directory.path())
        .env("RIMG_TEST_MODE", "")
        .env("RIMG_TEST_SCRIPT", "head -c 100000 /dev/zero; exit 0")
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(LOST_OUTPUT));
}

fn devices_are_the_sandboxs_own() {
    let root = Root::new();
    let open = |name: &str| File::options().read(true).write(true).open(name).unwrap();
    let script = "echo x || exit 5";
    let status = |name: &str| command(&root, "", script).stdout(open(name)).stderr(Stdio::null()).status();
    assert_eq!(status("/dev/full").unwrap().code(), Some(5));
    assert_eq!(status("/dev/null").unwrap().code(), Some(0));
    let output = command(&root, "i", "head -c 5 | wc -c; chmod 666 /dev/stdin 2>/dev/null || echo refused");
    let output = { output }.stdin(open("/dev/zero")).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "5\nrefused\n");
}

fn descriptors_may_be_closed() {
    let root = Root::new();
    for closed in ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"] {
        let status = Command::new("/bin/sh")
            .args(["-c", &format!("exec \"$0\" {closed}")])
            .arg(std::env::current_exe().unwrap())
            .env("RIMG_TEST_FOREGROUND", root.directory.path())
            .env("RIMG_TEST_MODE", "i")
            .env("RIMG_TEST_SCRIPT", "cat; echo out; echo err >&2; exit 4")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap();
        assert_eq!(status.code(), Some(4), "{closed}");
    }
}

fn large_output_to_files_is_whole() {
    let root = Root::new();
    let path = root.directory.path().join("out");
    let script = "head -c 5000000 /dev/zero | tr '\\0' x; echo end";
    for append in [false, true] {
        fs::write(&path, "").unwrap();
        let out = File::options().write(true).append(append).open(&path).unwrap();
        assert!(
            command(&root, "", script)
                .stdout(out.as_fd().try_clone_to_owned().unwrap())
                .status()
                .unwrap()
                .success()
        );
        let text = fs::read(&path).unwrap();
        assert_eq!(text.len(), 5_000_004);
        assert!(text[..5_000_000].iter().all(|byte| *byte == b'x') && text.ends_with(b"end\n"));
    }
}
