//! Images and callers that want out. Each test is one row of HOSTILE.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use rimg_runner::Sandbox;
use rimg_runner::spec::{EtcFile, Mount, MountKind, Stdio, StdioEnd, Tmpfs};

use crate::harness::{Root, Test, output, try_run};

pub(crate) const TESTS: &[Test] = &[
    ("system_directories_as_links_are_refused", system_directories_as_links_are_refused),
    ("system_directories_as_files_are_refused", system_directories_as_files_are_refused),
    ("a_fake_proc_is_covered", a_fake_proc_is_covered),
    ("fake_devices_are_not_used", fake_devices_are_not_used),
    ("passwd_as_a_link_stays_inside", passwd_as_a_link_stays_inside),
    ("passwd_that_is_no_file_is_refused", passwd_that_is_no_file_is_refused),
    ("passwd_too_large_is_refused", passwd_too_large_is_refused),
    ("mount_targets_stay_inside", mount_targets_stay_inside),
    ("etc_files_through_links_stay_inside", etc_files_through_links_stay_inside),
    ("mount_targets_through_magic_links_are_refused", mount_targets_through_magic_links_are_refused),
    ("link_loops_end", link_loops_end),
    ("working_directory_stays_inside", working_directory_stays_inside),
    ("working_directory_through_leaked_descriptors", working_directory_through_leaked_descriptors),
    ("the_binary_cannot_be_written", the_binary_cannot_be_written),
    ("the_binary_as_entrypoint_is_no_init", the_binary_as_entrypoint_is_no_init),
    ("process_1_leads_to_nothing_of_the_hosts", process_1_leads_to_nothing_of_the_hosts),
    ("process_1_cannot_be_killed_from_inside", process_1_cannot_be_killed_from_inside),
    ("device_nodes_of_an_image_do_not_work", device_nodes_of_an_image_do_not_work),
    ("parent_environment_does_not_leak", parent_environment_does_not_leak),
    ("the_hosts_mounts_are_gone", the_hosts_mounts_are_gone),
    ("init_runs_from_a_read_only_mount", init_runs_from_a_read_only_mount),
    ("the_hosts_device_nodes_keep_their_mode", the_hosts_device_nodes_keep_their_mode),
    (
        "masks_are_the_null_device_whatever_is_mounted_there",
        masks_are_the_null_device_whatever_is_mounted_there,
    ),
    ("a_mount_cannot_land_on_the_root", a_mount_cannot_land_on_the_root),
    ("device_nodes_in_a_shared_folder_do_not_work", device_nodes_in_a_shared_folder_do_not_work),
];

const SECRET: &str = "/tmp/rimg-test-secret";

fn tmpfs(target: &str) -> Mount {
    Mount {
        kind: MountKind::Tmpfs(Tmpfs { mode: Some(0o755), ..Tmpfs::default() }),
        target: PathBuf::from(target),
        read_only: false,
    }
}

/// CVE-2026-41579, CVE-2026-47766.
fn system_directories_as_links_are_refused() {
    for name in ["dev", "proc", "sys"] {
        for target in ["/tmp", "tmp", "/", "..", "/etc/../tmp"] {
            let root = Root::new();
            fs::remove_dir(root.lower().join(name)).unwrap();
            symlink(target, root.lower().join(name)).unwrap();
            let error = try_run(root.spec(&["true"])).unwrap_err().to_string();
            assert!(
                error.contains(&format!("mount /{name}: the image ships it as something other")),
                "{error}"
            );
        }
    }
}

fn system_directories_as_files_are_refused() {
    let root = Root::new();
    fs::remove_dir(root.lower().join("proc")).unwrap();
    fs::write(root.lower().join("proc"), "x").unwrap();
    let error = try_run(root.spec(&["true"])).unwrap_err().to_string();
    assert!(error.contains("mount /proc: the image ships it"), "{error}");
}

/// CVE-2019-19921, CVE-2023-27561, CVE-2025-52881: writes to /proc must go to a true procfs.
fn a_fake_proc_is_covered() {
    let root = Root::new();
    fs::create_dir_all(root.lower().join("proc/self/attr")).unwrap();
    fs::write(root.lower().join("proc/self/attr/exec"), "fake").unwrap();
    fs::write(root.lower().join("proc/uptime"), "fake").unwrap();
    assert_eq!(output(root.shell("grep -c fake /proc/uptime || stat -f -c %T /proc")), "0\nproc\n");
}

/// CVE-2025-31133, CVE-2025-52565.
fn fake_devices_are_not_used() {
    let root = Root::new();
    fs::write(root.lower().join("dev/null"), "fake").unwrap();
    symlink("/proc/sysrq-trigger", root.lower().join("dev/console")).unwrap();
    symlink("/etc", root.lower().join("dev/pts")).unwrap();
    assert_eq!(output(root.shell("stat -c %t:%T /dev/null; cat /proc/kcore; ls /dev/pts")), "1:3\nptmx\n");
}

fn passwd_as_a_link_stays_inside() {
    let root = Root::new();
    fs::write(SECRET, "intruder:x:0:0::/:\n").unwrap();
    for target in [SECRET, "../../../../../../tmp/rimg-test-secret"] {
        fs::remove_file(root.lower().join("etc/passwd")).unwrap();
        symlink(target, root.lower().join("etc/passwd")).unwrap();
        let mut spec = root.spec(&["id"]);
        spec.user = "intruder".to_owned();
        let error = try_run(spec).unwrap_err().to_string();
        assert!(error.contains("no user `intruder`"), "{error}");
    }
    fs::remove_file(SECRET).unwrap();
}

fn passwd_that_is_no_file_is_refused() {
    let root = Root::new();
    fs::remove_file(root.lower().join("etc/passwd")).unwrap();
    let fifo = root.lower().join("etc/passwd");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, rustix::fs::Mode::from(0o644), 0)
        .unwrap();
    let error = try_run(root.spec(&["true"])).unwrap_err().to_string();
    assert!(error.contains("/etc/passwd: it is not a regular file"), "{error}");
}

fn passwd_too_large_is_refused() {
    let root = Root::new();
    let file = fs::File::create(root.lower().join("etc/group")).unwrap();
    file.set_len(9 << 20).unwrap();
    let error = try_run(root.spec(&["true"])).unwrap_err().to_string();
    assert!(error.contains("/etc/group: it is not a regular file of at most"), "{error}");
}

/// CVE-2021-30465, CVE-2024-45310.
fn mount_targets_stay_inside() {
    let outside = tempfile::tempdir().unwrap();
    let root = Root::new();
    symlink(outside.path(), root.lower().join("absolute")).unwrap();
    let climb = Path::new("../../../../../../../..").join(outside.path().strip_prefix("/").unwrap());
    symlink(&climb, root.lower().join("climbing")).unwrap();
    let mut spec = root.shell("ls -d /absolute/made /climbing/made2; ls /tmp | wc -l");
    spec.mounts = vec![tmpfs("/absolute/made"), tmpfs("/climbing/made2"), tmpfs("/tmp/../../../a/b")];
    let outcome = try_run(spec);
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    assert_eq!(outcome.unwrap().status.code, 0);
}

fn etc_files_through_links_stay_inside() {
    let root = Root::new();
    fs::write(SECRET.to_owned() + "-resolv", "host\n").unwrap();
    symlink("../run/systemd/resolve/stub-resolv.conf", root.lower().join("etc/resolv.conf")).unwrap();
    symlink(SECRET.to_owned() + "-resolv", root.lower().join("etc/hosts")).unwrap();
    let file = |target: &str| EtcFile { target: PathBuf::from(target), content: b"ours\n".to_vec() };
    let mut spec = root.shell("cat /etc/resolv.conf /etc/hosts");
    spec.files = vec![file("/etc/resolv.conf"), file("/etc/hosts")];
    assert_eq!(output(spec), "ours\nours\n");
    assert_eq!(fs::read_to_string(SECRET.to_owned() + "-resolv").unwrap(), "host\n");
    assert!(!root.upper_paths().iter().any(|path| path.contains("resolv")), "{:?}", root.upper_paths());
    fs::remove_file(SECRET.to_owned() + "-resolv").unwrap();
}

fn mount_targets_through_magic_links_are_refused() {
    let root = Root::new();
    symlink("/proc/self/fd/0", root.lower().join("magic")).unwrap();
    symlink("/proc/self/root", root.lower().join("magic-root")).unwrap();
    for target in ["/magic", "/magic-root/tmp", "/proc/self/cwd/x", "/proc/1/root/x"] {
        let mut spec = root.spec(&["true"]);
        spec.mounts = vec![tmpfs(target)];
        assert!(try_run(spec).is_err(), "{target}");
    }
}

fn link_loops_end() {
    let root = Root::new();
    symlink("loop", root.lower().join("loop")).unwrap();
    symlink("b/x", root.lower().join("a")).unwrap();
    symlink("a/x", root.lower().join("b")).unwrap();
    for target in ["/loop", "/loop/x", "/a", "/b/c", "/missing/.."] {
        let mut spec = root.spec(&["true"]);
        spec.mounts = vec![tmpfs(target)];
        assert!(try_run(spec).is_err(), "{target}");
    }
}

fn working_directory_stays_inside() {
    let root = Root::new();
    symlink("/tmp", root.lower().join("absolute")).unwrap();
    fs::write(root.lower().join("tmp/inside"), "").unwrap();
    for cwd in ["/absolute", "/tmp/../../../../tmp", "../../tmp"] {
        let mut spec = root.shell("ls; cd ../../../../..; ls -d bin/busybox");
        spec.cwd = PathBuf::from(cwd);
        assert_eq!(output(spec), "inside\nbin/busybox\n", "{cwd}");
    }
}

/// CVE-2024-21626.
fn working_directory_through_leaked_descriptors() {
    let root = Root::new();
    let _host = fs::File::open("/").unwrap();
    symlink("/proc/self/fd/7", root.lower().join("seven")).unwrap();
    let mut directories: Vec<String> = (0..16).map(|number| format!("/proc/self/fd/{number}")).collect();
    directories.extend(["/seven".to_owned(), "/proc/self/cwd".to_owned(), "/proc/1/cwd".to_owned()]);
    for cwd in directories {
        let mut spec = root.spec(&["ls"]);
        spec.cwd = PathBuf::from(&cwd);
        assert!(try_run(spec).is_err(), "{cwd}");
    }
}

/// CVE-2019-5736.
fn the_binary_cannot_be_written() {
    let root = Root::new();
    let before = fs::metadata("/proc/self/exe").unwrap().len();
    // A binary of the container's may be written: overlayfs of Linux 5.10 allows it even while it runs.
    let script =
        "for f in /proc/1/exe /proc/self/exe; do (echo broken > $f) 2>/dev/null && echo WROTE $f; done; true";
    output(root.shell(script));
    let root = Root::new();
    let mut spec = root.shell("(echo broken > /proc/1/exe) 2>/dev/null && echo WROTE; true");
    spec.init = true;
    assert_eq!(output(spec), "");
    assert_eq!(fs::metadata("/proc/self/exe").unwrap().len(), before);
}

/// CVE-2019-5736: an entrypoint that makes the runtime execute itself inside.
fn the_binary_as_entrypoint_is_no_init() {
    let root = Root::new();
    symlink("/proc/self/exe", root.lower().join("entry")).unwrap();
    // It runs as any program of the image would: not as an init, from a read-only mount, and with nothing inherited. A
    // dynamically linked program does not even find its loader (127).
    let mut spec = root.spec(&["/entry", "3"]);
    spec.env.push(("RIMG_TEST_INSIDE".into(), "1".into()));
    let outcome = try_run(spec).unwrap();
    assert!(outcome.status.code == 127 || outcome.stdout == "inside\n", "{outcome:?}");
}

fn process_1_leads_to_nothing_of_the_hosts() {
    let root = Root::new();
    for init in [false, true] {
        let mut spec = root.shell(
            "ls /proc/1/root/ | tr '\\n' ' '; readlink /proc/1/cwd; for fd in /proc/1/fd/*; do ls $fd/. 2>/dev/null; done; true",
        );
        spec.init = init;
        assert_eq!(output(spec), "bin dev etc proc sys tmp /\n", "init: {init}");
    }
}

fn process_1_cannot_be_killed_from_inside() {
    let root = Root::new();
    for init in [false, true] {
        let mut spec = root.shell("kill -KILL 1; kill -STOP 1; echo alive");
        spec.init = init;
        assert_eq!(output(spec), "alive\n");
    }
}

fn device_nodes_of_an_image_do_not_work() {
    let root = Root::new();
    let node = root.lower().join("bin/zero");
    let made = rustix::fs::mknodat(
        rustix::fs::CWD,
        &node,
        rustix::fs::FileType::CharacterDevice,
        rustix::fs::Mode::from(0o666),
        rustix::fs::makedev(1, 5),
    );
    if made.is_err() {
        return crate::harness::skipped(
            "device_nodes_of_an_image_do_not_work",
            "making one needs the host's root",
        );
    }
    assert_ne!(try_run(root.shell("head -c 1 /bin/zero")).unwrap().status.code, 0);
}

fn parent_environment_does_not_leak() {
    let root = Root::new();
    let script = "cat /proc/1/environ | tr '\\0' '\\n'; env | wc -l";
    // The shell adds PWD and SHLVL itself.
    assert_eq!(output(root.shell(script)), "PATH=/bin\nHOME=/root\n4\n");
    let mut spec = root.shell("cat /proc/1/environ; env | wc -l");
    spec.init = true;
    assert_eq!(output(spec), "4\n");
}

fn the_hosts_mounts_are_gone() {
    let root = Root::new();
    let host = root.directory.path().display().to_string();
    let mounts = output(root.shell("cat /proc/self/mountinfo"));
    let points: Vec<&str> = mounts.lines().filter_map(|line| line.split(' ').nth(4)).collect();
    assert!(points.iter().all(|point| !point.starts_with(&host)), "{mounts}");
    assert!(!mounts.contains("shared:"), "{mounts}");
    assert!(
        points.iter().all(|point| {
            ["/", "/proc", "/dev", "/sys"].iter().any(|own| point == own)
                || ["/proc/", "/dev/", "/sys/"].iter().any(|own| point.starts_with(own))
        }),
        "{mounts}"
    );
}

/// CVE-2019-5736: not even a process that got hold of init's binary could write it.
fn init_runs_from_a_read_only_mount() {
    let root = Root::new();
    let mut spec = root.spec(&["sleep", "1000"]);
    spec.init = true;
    let mut running = Sandbox::new(spec).unwrap().spawn(Stdio::default()).unwrap();
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", running.pidfd().as_raw_fd())).unwrap();
    let pid = info.lines().find_map(|line| line.strip_prefix("Pid:")).unwrap().trim().to_owned();
    let mount = rustix::fs::statvfs(format!("/proc/{pid}/exe")).unwrap();
    assert!(mount.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY), "{:?}", mount.f_flag);
    running.signal(libc::SIGKILL).unwrap();
    running.wait().unwrap();
}

/// Root inside is the owner of the host's nodes when it is root outside. The mode asked for is the one they have.
fn the_hosts_device_nodes_keep_their_mode() {
    let root = Root::new();
    for name in ["/dev/null", "/dev/tty", "/dev/urandom", "/proc/self/fd/0"] {
        let outcome = try_run(root.shell(&format!("chmod 666 {name}"))).unwrap();
        assert!(outcome.status.code != 0, "{name}: {outcome:?}");
    }
    let null = || StdioEnd::Fd(fs::File::options().write(true).open("/dev/null").unwrap().into());
    let stdio = Stdio { stdin: StdioEnd::Null, stdout: null(), stderr: null() };
    let spec = root.shell("chmod 666 /proc/self/fd/1 || chmod 666 /proc/self/fd/2");
    assert_ne!(Sandbox::new(spec).unwrap().spawn(stdio).unwrap().wait().unwrap().code, 0);
    assert_eq!(output(root.shell("echo x > /dev/null; cat /dev/null; head -c 3 /dev/zero | wc -c")), "3\n");
}

/// CVE-2025-31133, by way of a file that the caller provides and a link of the image.
fn masks_are_the_null_device_whatever_is_mounted_there() {
    let root = Root::new();
    symlink("/dev/null", root.lower().join("etc/hosts")).unwrap();
    let mut spec = root.shell("cat /dev/null; stat -c %t:%T /proc/keys /proc/timer_list");
    spec.files = vec![EtcFile { target: PathBuf::from("/etc/hosts"), content: b"ours\n".to_vec() }];
    assert_eq!(output(spec), "ours\n1:3\n1:3\n");
}

fn a_mount_cannot_land_on_the_root() {
    let root = Root::new();
    symlink("/", root.lower().join("data")).unwrap();
    for target in ["/data", "/tmp/../.."] {
        let mut spec = root.spec(&["true"]);
        spec.mounts = vec![tmpfs(target)];
        let error = try_run(spec).unwrap_err().to_string();
        assert!(error.contains("that is the root itself"), "{target}: {error}");
    }
}

fn device_nodes_in_a_shared_folder_do_not_work() {
    let root = Root::new();
    let shared = tempfile::tempdir().unwrap();
    let made = rustix::fs::mknodat(
        rustix::fs::CWD,
        shared.path().join("zero"),
        rustix::fs::FileType::CharacterDevice,
        rustix::fs::Mode::from(0o666),
        rustix::fs::makedev(1, 5),
    );
    if made.is_err() {
        return crate::harness::skipped(
            "device_nodes_in_a_shared_folder_do_not_work",
            "making one needs the host's root",
        );
    }
    let mut spec = root.shell("head -c 1 /shared/zero");
    let kind = MountKind::Bind { source: shared.path().to_owned() };
    spec.mounts = vec![Mount { kind, target: PathBuf::from("/shared"), read_only: false }];
    assert_ne!(try_run(spec).unwrap().status.code, 0);
}
