//! What a payload sees: identity, files, devices, mounts, limits on what it may do.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use rimg_runner::capabilities::CapabilitySet;
use rimg_runner::limits::{Limits, PidsLimit};
use rimg_runner::spec::{EtcFile, Mount, MountKind, Network, Seccomp, Tmpfs, Upper};
use rimg_runner::userns::Mapping;

use crate::harness::{Root, Test, mapping, output, skipped, try_run};

pub(crate) const TESTS: &[Test] = &[
    ("identity", identity),
    ("environment", environment),
    ("working_directory", working_directory),
    ("devices", devices),
    ("process_namespace", process_namespace),
    ("no_descriptor_leaks", no_descriptor_leaks),
    ("privileges", privileges),
    ("unconfined_and_wider", unconfined_and_wider),
    ("masked_and_read_only_paths", masked_and_read_only_paths),
    ("the_hosts_sys_and_cgroups_are_not_shown", the_hosts_sys_and_cgroups_are_not_shown),
    ("programs_of_32_bits_run", programs_of_32_bits_run),
    ("files_do_not_land_in_the_upper", files_do_not_land_in_the_upper),
    ("bind_mounts", bind_mounts),
    ("tmpfs_mounts", tmpfs_mounts),
    ("tmpfs_takes_the_mode_of_what_it_covers", tmpfs_takes_the_mode_of_what_it_covers),
    ("volumes_are_the_images_and_writable", volumes_are_the_images_and_writable),
    ("mounts_do_not_hide_our_files", mounts_do_not_hide_our_files),
    ("the_callers_umask_stays_outside", the_callers_umask_stays_outside),
    ("users_may_listen_and_ping", users_may_listen_and_ping),
    ("the_hosts_network_without_a_user_namespace", the_hosts_network_without_a_user_namespace),
    ("accounts_are_read_as_mounted", accounts_are_read_as_mounted),
    ("read_only_root", read_only_root),
    ("network_none_has_loopback_only", network_none_has_loopback_only),
    ("layers_stack", layers_stack),
    ("an_image_of_one_file", an_image_of_one_file),
    ("limits_hold", limits_hold),
];

fn identity() {
    let root = Root::new();
    let id = |user: &str| {
        let mut spec = root.shell("id -u; id -g; id -G; echo $HOME");
        spec.user = user.to_owned();
        try_run(spec).map(|outcome| outcome.stdout.split_whitespace().collect::<Vec<_>>().join(" "))
    };
    assert_eq!(id("").unwrap(), "0 0 0 /root");
    if matches!(mapping(), Mapping::Single(_)) {
        let error = id("app").unwrap_err().to_string();
        assert!(error.starts_with("run as the user `app` (1000:1000): only one id is mapped"), "{error}");
        return skipped("other users", "only one id is mapped");
    }
    assert_eq!(id("app").unwrap(), "1000 1000 1000 2000 /srv/app");
    assert_eq!(id("1234:99").unwrap(), "1234 99 99 /");
}

fn environment() {
    let root = Root::new();
    let mut spec = root.spec(&["env"]);
    spec.env.push((OsString::from("A"), OsString::from("b=c\nd")));
    assert_eq!(output(spec), "PATH=/bin\nA=b=c\nd\nHOME=/root\n");
    let mut spec = root.spec(&["hostname"]);
    spec.hostname = "named".to_owned();
    assert_eq!(output(spec), "named\n");
}

fn working_directory() {
    let root = Root::new();
    let mut spec = root.spec(&["pwd"]);
    spec.cwd = PathBuf::from("/srv/deep/er");
    assert_eq!(output(spec), "/srv/deep/er\n");
    // Unlike mount points it stays: the image's configuration asked for it.
    assert_eq!(root.upper_paths(), ["srv", "srv/deep", "srv/deep/er"]);
}

fn devices() {
    let root = Root::new();
    let listed = output(root.spec(&["ls", "/dev"]));
    let names: Vec<&str> = listed.split_whitespace().collect();
    let expected = [
        "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout", "tty",
        "urandom", "zero",
    ];
    assert_eq!(names, expected);
    let script = "echo x > /dev/null && head -c 4 /dev/zero | wc -c && ! echo x 2>/dev/null > /dev/full && \
        head -c 2 /dev/urandom | wc -c && echo shm > /dev/shm/f && cat /dev/shm/f && echo err > /dev/stderr";
    assert_eq!(output(root.shell(script)), "4\n2\nshm\n");
    assert_ne!(try_run(root.shell("mknod /tmp/sda b 8 0")).unwrap().status.code, 0);
}

fn process_namespace() {
    let root = Root::new();
    let script = "echo $$; cat /proc/1/comm; set -- /proc/[0-9]*; echo $#";
    assert_eq!(output(root.shell(script)), "1\nsh\n1\n");
    let mut spec = root.shell(script);
    spec.init = true;
    assert_eq!(output(spec), "2\nrimg-init\n2\n");
}

fn no_descriptor_leaks() {
    let root = Root::new();
    let open = fs::File::open("/").unwrap();
    // Inheritable on purpose, as careless libraries make them.
    let leaky = rustix::io::dup(&open).unwrap();
    let listed = output(root.spec(&["ls", "/proc/self/fd"]));
    // 3 is the directory being listed.
    assert_eq!(listed.split_whitespace().collect::<Vec<_>>(), ["0", "1", "2", "3"]);
    drop(leaky);
}

fn privileges() {
    let root = Root::new();
    let status = output(root.shell("grep -E '^(Cap|NoNewPrivs|Seccomp:|Groups)' /proc/self/status"));
    let docker = "00000000a80425fb";
    let lines: Vec<Vec<&str>> = status.lines().map(|line| line.split_whitespace().collect()).collect();
    let field = |name: &str| lines.iter().find(|line| line[0] == name).unwrap().get(1).copied();
    assert_eq!(field("CapInh:"), Some("0000000000000000"));
    assert_eq!(field("CapAmb:"), Some("0000000000000000"));
    for set in ["CapPrm:", "CapEff:", "CapBnd:"] {
        assert_eq!(field(set), Some(docker), "{set}");
    }
    assert_eq!((field("NoNewPrivs:"), field("Seccomp:")), (Some("1"), Some("2")));
    for script in ["unshare -U true", "mount -t tmpfs x /tmp", "hostname other", "ip link add d type dummy"] {
        assert_ne!(try_run(root.shell(script)).unwrap().status.code, 0, "{script}");
    }
    let mut user = root.shell("grep -E 'CapEff|CapPrm' /proc/self/status");
    user.user = "app".to_owned();
    if !matches!(mapping(), Mapping::Single(_)) {
        assert_eq!(output(user), "CapPrm:\t0000000000000000\nCapEff:\t0000000000000000\n");
    }
}

fn unconfined_and_wider() {
    let root = Root::new();
    let mut spec = root.shell("grep -E 'CapEff|NoNewPrivs|Seccomp:' /proc/self/status");
    spec.capabilities = CapabilitySet::docker_with(&[], &["ALL".to_owned()]).unwrap();
    spec.seccomp = Seccomp::Unconfined;
    spec.no_new_privileges = false;
    assert_eq!(output(spec), "CapEff:\t0000000000000000\nNoNewPrivs:\t0\nSeccomp:\t0\n");
    let mut spec =
        root.shell("grep -E 'CapEff|NoNewPrivs|Seccomp:' /proc/self/status; mount -t tmpfs x /tmp");
    spec.capabilities = CapabilitySet::docker_with(&["SYS_ADMIN".to_owned()], &[]).unwrap();
    spec.no_new_privileges = false;
    assert_eq!(output(spec), "CapEff:\t00000000a82425fb\nNoNewPrivs:\t0\nSeccomp:\t2\n");
}

fn masked_and_read_only_paths() {
    let root = Root::new();
    let script = "cat /proc/kcore | wc -c; cat /proc/keys /proc/timer_list | wc -c; ls /sys/firmware | wc -l; \
        echo x 2>/dev/null > /proc/sys/kernel/domainname || echo ro; \
        echo x 2>/dev/null > /proc/sysrq-trigger || echo ro; \
        touch /sys/x 2>/dev/null || echo ro; mkdir /sys/fs/cgroup/x 2>/dev/null || echo ro";
    assert_eq!(output(root.shell(script)), "0\n0\n0\nro\nro\nro\nro\n");
}

fn the_hosts_sys_and_cgroups_are_not_shown() {
    let root = Root::new();
    for network in [Network::Host, Network::None] {
        let mut spec = root.shell("cat /proc/self/mountinfo");
        spec.network = network;
        let mounts = output(spec);
        let below_sys: Vec<&str> = mounts
            .lines()
            .filter(|line| line.split(' ').nth(4).is_some_and(|point| point.starts_with("/sys")))
            .collect();
        assert!(!below_sys.is_empty(), "{mounts}");
        for mount in below_sys {
            // A file is covered by the null device, which has to be one.
            if mount.contains("/null ") {
                continue;
            }
            let options: Vec<&str> = mount.split(' ').nth(5).unwrap().split(',').collect();
            for option in ["ro", "nosuid", "nodev", "noexec"] {
                assert!(options.contains(&option), "{network:?}: {mount}");
            }
        }
        // No cgroup of anybody else, no debugging file systems, no block devices, no temperatures.
        let script = "ls /sys/fs/cgroup | wc -l; ls -d /sys/fs/cgroup/*/* 2>/dev/null | wc -l; ls /sys/dev/block | wc -l
            ls /sys/kernel/debug /sys/kernel/tracing /sys/kernel/config /sys/fs/bpf /sys/fs/selinux 2>/dev/null | grep -vc ':$'
            for t in /sys/devices/system/cpu/cpu[0-9]*/thermal_throttle; do test -d $t && ls $t; done; true";
        let mut spec = root.shell(script);
        spec.network = network;
        // Without a limit there is not even the sandbox's own cgroup to show.
        spec.limits.pids = PidsLimit::Unlimited;
        let seen = output(spec);
        let words: Vec<&str> = seen.split_whitespace().collect();
        assert_eq!(words[..3], ["0", "0", "0"], "{network:?}: {seen}");
        assert_eq!(words.len(), 4, "{network:?}: {seen}");
    }
}

/// i386's `write(1, "32\n", 3)` and `exit(0)`, by its own numbers through interrupt 0x80.
fn programs_of_32_bits_run() {
    if !cfg!(target_arch = "x86_64") {
        return;
    }
    let mut program = b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let code: &[u8] = b"\xb8\x04\0\0\0\xbb\x01\0\0\0\xb9\x73\x80\x04\x08\xba\x03\0\0\0\xcd\x80\
        \xb8\x01\0\0\0\x31\xdb\xcd\x8032\n";
    let size = (84 + code.len()) as u32;
    // An executable of i386, entered right behind this header and one loaded segment.
    program.extend([2u16, 3].iter().flat_map(|half| half.to_le_bytes()));
    program.extend([1u32, 0x0804_8054, 52, 0, 0].iter().flat_map(|word| word.to_le_bytes()));
    program.extend([52u16, 32, 1, 0, 0, 0].iter().flat_map(|half| half.to_le_bytes()));
    program.extend(
        [1u32, 0, 0x0804_8000, 0x0804_8000, size, size, 5, 4096].iter().flat_map(|word| word.to_le_bytes()),
    );
    program.extend(code);
    let root = Root::new();
    let path = root.lower().join("bin/small");
    fs::write(&path, program).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    if std::process::Command::new(&path).output().map_or(true, |ran| ran.stdout != b"32\n") {
        return skipped("programs_of_32_bits_run", "this kernel runs none");
    }
    assert_eq!(output(root.spec(&["/bin/small"])), "32\n");
}

fn files_do_not_land_in_the_upper() {
    let root = Root::new();
    fs::write(root.lower().join("etc/hostname"), "image\n").unwrap();
    let file = |target: &str, text: &str| EtcFile {
        target: PathBuf::from(target),
        content: text.as_bytes().to_vec(),
    };
    let mut spec =
        root.shell("cat /etc/hosts /etc/hostname /run/deep/resolv.conf && echo more >> /etc/hosts");
    spec.files = vec![
        file("/etc/hosts", "hosts\n"),
        file("/etc/hostname", "name\n"),
        file("/run/deep/resolv.conf", "dns\n"),
    ];
    assert_eq!(output(spec), "hosts\nname\ndns\n");
    // The directory that had to be copied up to make a mount point in stays; `changes` sees that it did not change.
    assert_eq!(root.upper_paths(), ["etc"]);
}

fn bind_mounts() {
    let root = Root::new();
    let host = tempfile::tempdir().unwrap();
    fs::set_permissions(host.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(host.path().join("file"), "host\n").unwrap();
    let bind = |source: PathBuf, target: &str, read_only| Mount {
        kind: MountKind::Bind { source },
        target: PathBuf::from(target),
        read_only,
    };
    let script = "cat /data/file /one /ro/file; echo new > /data/new; touch /ro/x 2>/dev/null || echo ro";
    let mut spec = root.shell(script);
    spec.mounts = vec![
        bind(host.path().join("file"), "/one", false),
        bind(host.path().to_owned(), "/ro", true),
        bind(host.path().to_owned(), "/data", false),
    ];
    assert_eq!(output(spec), "host\nhost\nhost\nro\n");
    assert_eq!(fs::read_to_string(host.path().join("new")).unwrap(), "new\n");
    assert_eq!(root.upper_paths(), Vec::<String>::new());
    let mut spec = root.spec(&["true"]);
    spec.mounts = vec![bind(host.path().join("absent"), "/x", false)];
    let error = try_run(spec).unwrap_err().to_string();
    assert!(error.starts_with("open ") && error.contains("absent"), "{error}");
}

fn tmpfs_mounts() {
    let root = Root::new();
    let tmpfs = |target: &str, size_bytes, read_only| Mount {
        kind: MountKind::Tmpfs(Tmpfs {
            mode: Some(0o1777),
            parameters: Option::map_or(size_bytes, Vec::new(), |size: u64| {
                vec![("size".to_owned(), size.to_string())]
            }),
            ..Tmpfs::default()
        }),
        target: PathBuf::from(target),
        read_only,
    };
    let mut spec = root.shell(
        "stat -c %a /cache; echo x > /cache/sub/x; dd if=/dev/zero of=/cache/big bs=1024 count=200 2>/dev/null || echo full; \
         touch /ro/x 2>/dev/null || echo ro",
    );
    spec.mounts =
        vec![tmpfs("/cache/sub", None, false), tmpfs("/cache", Some(65536), false), tmpfs("/ro", None, true)];
    assert_eq!(output(spec), "1777\nfull\nro\n");
    assert_eq!(root.upper_paths(), Vec::<String>::new());
}

fn tmpfs(target: &str, options: Tmpfs) -> Mount {
    Mount { kind: MountKind::Tmpfs(options), target: PathBuf::from(target), read_only: false }
}

fn tmpfs_takes_the_mode_of_what_it_covers() {
    let root = Root::new();
    let private = root.lower().join("private");
    fs::create_dir(&private).unwrap();
    fs::set_permissions(&private, fs::Permissions::from_mode(0o2750)).unwrap();
    fs::copy("/bin/busybox", root.lower().join("program")).unwrap();
    let script = "stat -c '%a %u:%g' /private /missing /given; cp /program /given/echo && /given/echo ran
        cp /program /private/echo && /private/echo ran 2>/dev/null || echo noexec; grep -c nr_inodes=64 /proc/mounts";
    let mut spec = root.shell(&script.replace("cp ", "/bin/busybox cp "));
    let parameters =
        [("uid", "0"), ("nr_inodes", "64")].map(|(name, value)| (name.to_owned(), value.to_owned()));
    let given = Tmpfs { mode: Some(0o700), exec: true, parameters: parameters.to_vec(), ..Tmpfs::default() };
    spec.mounts = vec![
        tmpfs("/private", Tmpfs::default()),
        tmpfs("/missing", Tmpfs::default()),
        tmpfs("/given", given),
    ];
    assert_eq!(output(spec), "2750 0:0\n1777 0:0\n700 0:0\nran\nnoexec\n1\n");
    let mut spec = root.spec(&["true"]);
    let unknown = Tmpfs { parameters: vec![("nosuch".to_owned(), "1".to_owned())], ..Tmpfs::default() };
    spec.mounts = vec![tmpfs("/t", unknown)];
    let error = try_run(spec).unwrap_err().to_string();
    assert!(error.contains("mount a tmpfs at /t nosuch=1"), "{error}");
}

fn volumes_are_the_images_and_writable() {
    let root = Root::new();
    let data = root.lower().join("data");
    fs::create_dir(&data).unwrap();
    fs::set_permissions(&data, fs::Permissions::from_mode(0o751)).unwrap();
    fs::write(data.join("file"), "image\n").unwrap();
    let volume =
        |target: &str| Mount { kind: MountKind::Volume, target: PathBuf::from(target), read_only: false };
    let mut spec = root.shell(
        "stat -c %a /data /new/deep; cat /data/file /data/cache/x 2>/dev/null; echo y > /data/y && echo z > /new/deep/z
            cat /data/y /new/deep/z; touch /x 2>/dev/null || echo ro; grep -cE ' /(data|new/deep) ' /proc/mounts",
    );
    spec.read_only = true;
    spec.mounts = vec![tmpfs("/data/cache", Tmpfs::default()), volume("/data"), volume("/new/deep")];
    assert_eq!(output(spec), "751\n755\nimage\ny\nz\nro\n2\n");
    assert!(!data.join("y").exists(), "the image's own layer was written to");
    // Below a directory of the host it is the image's all the same.
    let host = tempfile::tempdir().unwrap();
    fs::set_permissions(host.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir(host.path().join("inner")).unwrap();
    fs::create_dir_all(root.lower().join("outer/inner")).unwrap();
    fs::write(root.lower().join("outer/inner/file"), "image\n").unwrap();
    let mut spec =
        root.shell("cat /outer/inner/file; echo y > /outer/inner/y; touch /outer/x 2>/dev/null || echo ro");
    let outer = Mount {
        kind: MountKind::Bind { source: host.path().to_owned() },
        target: PathBuf::from("/outer"),
        read_only: true,
    };
    spec.mounts = vec![volume("/outer/inner"), outer];
    assert_eq!(output(spec), "image\nro\n");
    assert_eq!(fs::read_dir(host.path().join("inner")).unwrap().count(), 0);
    let mut spec = root.spec(&["true"]);
    spec.mounts = vec![volume("/etc/passwd")];
    let error = try_run(spec).unwrap_err().to_string();
    assert!(error.contains("mount on /etc/passwd: it is a file"), "{error}");
}

fn mounts_do_not_hide_our_files() {
    let root = Root::new();
    let host = tempfile::tempdir().unwrap();
    fs::set_permissions(host.path(), fs::Permissions::from_mode(0o755)).unwrap();
    std::os::unix::fs::symlink("../run/r.conf", root.lower().join("etc/resolv.conf")).unwrap();
    let file = |target: &str, text: &str| EtcFile {
        target: PathBuf::from(target),
        content: text.as_bytes().to_vec(),
    };
    let bind = |source: PathBuf, target: &str, read_only| Mount {
        kind: MountKind::Bind { source },
        target: PathBuf::from(target),
        read_only,
    };
    let files = vec![file("/etc/resolv.conf", "dns\n"), file("/etc/hosts", "hosts\n")];
    let mut spec = root.shell("cat /etc/resolv.conf /etc/hosts");
    spec.files = files.clone();
    spec.mounts = vec![tmpfs("/run", Tmpfs::default())];
    assert_eq!(output(spec), "dns\nhosts\n");
    // What the caller mounts in a file's place is the file; a read-only directory without a place goes without.
    fs::write(host.path().join("own"), "own\n").unwrap();
    fs::write(host.path().join("hosts"), "").unwrap();
    let mut spec = root.shell("cat /etc/hosts; ls /etc");
    spec.files = files.clone();
    spec.mounts = vec![bind(host.path().to_owned(), "/etc", true)];
    assert_eq!(output(spec), "hosts\nhosts\nown\n");
    let mut spec = root.shell("cat /etc/hosts");
    spec.files = files.clone();
    spec.mounts = vec![bind(host.path().join("own"), "/etc/hosts", true)];
    assert_eq!(output(spec), "own\n");
    let mut spec = root.shell("cat /etc/resolv.conf /etc/hosts");
    spec.files = files;
    spec.mounts = vec![bind(host.path().to_owned(), "/etc", false)];
    assert_eq!(output(spec), "dns\nhosts\n");
}

fn the_callers_umask_stays_outside() {
    let root = Root::new();
    let mut spec = root.shell("stat -c %a /o /o/p /n /n/d /etc/hosts; umask");
    spec.mounts = vec![tmpfs("/o/p/q", Tmpfs::default())];
    spec.files = vec![EtcFile { target: PathBuf::from("/etc/hosts"), content: Vec::new() }];
    spec.cwd = PathBuf::from("/n/d");
    let before = rustix::process::umask(rustix::fs::Mode::from(0o077));
    let outcome = try_run(spec);
    rustix::process::umask(before);
    assert_eq!(outcome.unwrap().stdout, "755\n755\n755\n755\n644\n0022\n");
}

fn users_may_listen_and_ping() {
    let root = Root::new();
    let mut spec =
        root.shell("cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/net/ipv4/ping_group_range");
    spec.network = Network::None;
    let seen = output(spec);
    let words: Vec<&str> = seen.split_whitespace().collect();
    let last = match mapping() {
        Mapping::Privileged => "2147483647".to_owned(),
        Mapping::Ranges { uids } => uids.to_string(),
        Mapping::Single(_) => "0".to_owned(),
    };
    assert_eq!(words, ["0", "0", &last], "{seen}");
}

/// Root has its capabilities over the host's network, and no more of the host than with a user namespace.
fn the_hosts_network_without_a_user_namespace() {
    if mapping() != Mapping::Privileged {
        return skipped("the_hosts_network_without_a_user_namespace", "only root has such a sandbox");
    }
    let root = Root::new();
    let mut spec = root.shell(
        "readlink /proc/self/ns/user; ping -c 1 -W 2 127.0.0.1 | grep -c '1 packets received'; ls /sys/class/net | grep lo
            for d in / /tmp /dev /dev/shm /scratch /data; do
                mknod $d/zero0 c 1 5 && head -c 1 $d/zero0 2>/dev/null && echo OPENED $d
            done
            mount -t tmpfs x /tmp 2>/dev/null && echo MOUNTED; hostname other 2>/dev/null && echo NAMED
            (: >> /proc/sys/kernel/printk) 2>/dev/null && echo WRITABLE; ls -d /sys/fs/cgroup/*/*/ 2>/dev/null
            grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status"
            .replace("ping ", "/bin/busybox ping ")
            .as_str(),
    );
    let host = tempfile::tempdir().unwrap();
    spec.user_namespace = false;
    spec.mounts = vec![
        tmpfs("/scratch", Tmpfs::default()),
        Mount {
            kind: MountKind::Bind { source: host.path().to_owned() },
            target: PathBuf::from("/data"),
            read_only: false,
        },
    ];
    let own = fs::read_link("/proc/self/ns/user").unwrap();
    let expected = format!(
        "{}\n1\nlo\nCapEff:\t00000000a80425fb\nCapBnd:\t00000000a80425fb\nNoNewPrivs:\t1\nSeccomp:\t2\n",
        own.display()
    );
    assert_eq!(output(spec), expected);
}

fn accounts_are_read_as_mounted() {
    if matches!(mapping(), Mapping::Single(_)) {
        return skipped("accounts_are_read_as_mounted", "only one id is mapped");
    }
    let root = Root::new();
    let host = tempfile::tempdir().unwrap();
    let passwd = host.path().join("passwd");
    fs::write(&passwd, " guest:x:1234:1235\n").unwrap();
    let mut spec = root.shell("id -u; id -g");
    spec.user = "guest".to_owned();
    spec.mounts = vec![Mount {
        kind: MountKind::Bind { source: passwd },
        target: PathBuf::from("/etc/passwd"),
        read_only: true,
    }];
    assert_eq!(output(spec), "1234\n1235\n");
}

fn read_only_root() {
    let root = Root::new();
    let mut spec = root.shell("touch /x 2>/dev/null || echo ro; echo ok > /dev/shm/x && cat /dev/shm/x");
    spec.read_only = true;
    assert_eq!(output(spec), "ro\nok\n");
    let mut spec = root.shell("touch /x 2>/dev/null || echo ro");
    spec.rootfs.upper = Upper::None;
    assert_eq!(output(spec), "ro\n");
}

fn network_none_has_loopback_only() {
    let root = Root::new();
    let mut spec = root.shell("ls /sys/class/net; cat /sys/class/net/lo/flags");
    spec.network = Network::None;
    assert_eq!(output(spec), "lo\n0x9\n");
}

fn layers_stack() {
    let root = Root::new();
    let (second, third) = (Root::empty(), Root::empty());
    fs::create_dir(second.lower().join("etc")).unwrap();
    fs::write(second.lower().join("etc/file"), "second\n").unwrap();
    fs::create_dir(third.lower().join("etc")).unwrap();
    fs::write(third.lower().join("etc/file"), "third\n").unwrap();
    let mut spec = root.spec(&["cat", "/etc/file", "/etc/group"]);
    spec.rootfs.lowers = vec![root.lower(), second.lower(), third.lower()];
    assert!(output(spec).starts_with("third\nroot:x:0:\n"));
    let mut many = root.spec(&["cat", "/etc/file"]);
    many.rootfs.lowers = vec![root.lower()];
    let layers: Vec<PathBuf> = (0..400)
        .map(|number| {
            let path = second.directory.path().join(format!("layer{number}/etc"));
            fs::create_dir_all(&path).unwrap();
            fs::write(path.join("file"), format!("{number}\n")).unwrap();
            path.parent().unwrap().to_owned()
        })
        .collect();
    many.rootfs.lowers.extend(layers);
    assert_eq!(output(many), "399\n");
}

/// `FROM scratch` with one static binary: everything the mounts stand on is missing, and is gone again afterwards.
fn an_image_of_one_file() {
    let root = Root::empty();
    fs::copy("/bin/busybox", root.lower().join("echo")).unwrap();
    let mut spec = root.spec(&["/echo", "hello"]);
    spec.files = vec![EtcFile { target: PathBuf::from("/etc/hosts"), content: Vec::new() }];
    assert_eq!(output(spec), "hello\n");
    assert_eq!(root.upper_paths(), Vec::<String>::new());
}

fn limits_hold() {
    let usable = rimg_runner::doctor::facts().limits();
    if !["memory", "cpu", "pids"].iter().all(|controller| usable.contains(controller)) {
        let root = Root::new();
        let mut spec = root.spec(&["true"]);
        spec.limits = Limits { pids: PidsLimit::Max(5), memory_bytes: Some(64 << 20), cpu_millis: None };
        let error = try_run(spec).unwrap_err().to_string();
        assert!(error.contains("limit"), "{error}");
        return skipped(
            "limits_hold",
            "the controllers cannot be written to; that it is refused was checked",
        );
    }
    let root = Root::new();
    let mut spec = root.shell("for i in 1 2 3 4 5 6 7 8 9; do sleep 100 & done");
    spec.limits = Limits { pids: PidsLimit::Max(6), memory_bytes: Some(64 << 20), cpu_millis: Some(500) };
    let outcome = try_run(spec).unwrap();
    assert!(outcome.stderr.contains("fork"), "{outcome:?}");
    let mut spec = root.shell("cat /sys/fs/cgroup/pids/pids.max 2>/dev/null || cat /sys/fs/cgroup/pids.max");
    spec.limits = Limits { pids: PidsLimit::Max(6), ..Limits::default() };
    assert_eq!(output(spec), "6\n");
    let mut spec =
        root.shell("head -c 200000000 /dev/zero | dd bs=200000000 count=1 of=/dev/null iflag=fullblock");
    spec.limits = Limits { memory_bytes: Some(32 << 20), ..Limits::default() };
    assert_eq!(try_run(spec).unwrap().status.code, 137);
    let mut spec = root.shell("cat /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max 2>/dev/null; true");
    spec.limits = Limits::default();
    match output(spec).as_str() {
        // As in a unit of systemd, where the test shares its cgroup with the script that started it.
        "" => skipped("the default limit on processes", "it would take moving this process's neighbours"),
        limit => assert_eq!(limit, "4096\n"),
    }
    let leftovers = format!("{}-", std::process::id());
    let found = walk_cgroups(&leftovers);
    assert!(found.is_empty(), "{found:?}");
}

fn walk_cgroups(prefix: &str) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let points =
        mounts.lines().filter(|line| line.contains(" - cgroup")).filter_map(|line| line.split(' ').nth(4));
    let mut found = Vec::new();
    let mut queue: Vec<PathBuf> = points.map(PathBuf::from).collect();
    while let Some(path) = queue.pop() {
        for entry in fs::read_dir(&path).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                if path.ends_with("rimg") && entry.file_name().to_string_lossy().starts_with(prefix) {
                    found.push(entry.path());
                }
                queue.push(entry.path());
            }
        }
    }
    found
}
