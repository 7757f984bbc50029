//! Failed system calls: whichever call of a start fails, the payload is fully protected, or it does not run.
//!
//! strace lists the calls of one start and then makes each of them fail in turn, in the caller and in the sandbox's
//! first process (it counts calls of each process separately). A probe prints what protects it; what it prints has to
//! be what it prints when nothing fails. Everything else is a start that failed: exit code 125 and a message; never a
//! hang, a panic or another code.
//!
//! By default a sample is tried. `RIMG_FAULTS=all` tries every call with every error (docs/development.md).

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::world::{Outcome, USER, World, is_root};

/// What is injected: no such right, memory, descriptor or device, an argument or a call that this kernel does not know.
const ERRORS: [&str; 6] = ["EPERM", "EINVAL", "ENOMEM", "EMFILE", "EIO", "ENOSYS"];

/// Calls that take something from the payload or make its view: each of them is in the sample.
const PROTECTIVE: [&str; 26] = [
    "capget",
    "capset",
    "clone3",
    "close_range",
    "fsconfig",
    "fsmount",
    "fsopen",
    "mount",
    "mount_setattr",
    "move_mount",
    "open_tree",
    "openat2",
    "pivot_root",
    "prctl",
    "seccomp",
    "setgroups",
    "sethostname",
    "setresgid",
    "setresuid",
    "setsid",
    "umount2",
    "unshare",
    "chroot",
    "setns",
    "sendmsg",
    "recvmsg",
];

/// Every that many of the other calls is in the sample.
const SAMPLE: usize = 12;

/// Far more than a start below strace takes on a loaded machine.
const TIMEOUT_SECONDS: &str = "60";

/// Calls that end a process or go on with an interrupted one, and calls that never fail: their callers need not look.
const LEFT_OUT: [&str; 14] = [
    "exit",
    "exit_group",
    "restart_syscall",
    "rt_sigreturn",
    "getegid",
    "geteuid",
    "getgid",
    "getpid",
    "getppid",
    "gettid",
    "getuid",
    "set_tid_address",
    "umask",
    "uname",
];

/// Prints what protects a payload, a fact a line; the same facts in every run.
const PROBE: &str = r#"
while read name values; do
    case $name in
    Uid:|Gid:|Groups:|CapInh:|CapPrm:|CapEff:|CapBnd:|CapAmb:|NoNewPrivs:|Seccomp:) echo "$name $values";;
    esac
done < /proc/self/status
while read id parent device root point options rest; do echo "mount $point $options"; done < /proc/self/mountinfo
for f in kcore keys timer_list interrupts latency_stats sched_debug; do
    test -c /proc/$f && echo "covered $f"
    read -r line 2>/dev/null < /proc/$f && echo "open $f"
done
for d in /proc/acpi /proc/scsi /proc/asound /sys/firmware /sys/dev/block /sys/devices/virtual/powercap; do
    for entry in $d/*; do test -e $entry && echo "open $entry"; done
done
for other in /sys/fs/cgroup/*/*/; do test -e $other && echo "open $other"; done
for f in /proc/sys/kernel/printk /proc/sys/kernel/core_pattern /proc/sysrq-trigger /proc/irq/default_smp_affinity \
    /ro/file /new /ro/new /sys/new /sys/fs/cgroup/new /proc/sys/new; do
    (: >> $f) 2>/dev/null && echo "writable $f"
done
chmod 666 /dev/null 2>/dev/null && echo "writable /dev/null"
read host < /proc/sys/kernel/hostname; echo "host $host"
set -- /proc/self/fd/*; echo "descriptors $#"
stat -c 'device %n %t:%T' /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty
stat -c 'namespace %N' /proc/self/ns/cgroup /proc/self/ns/ipc /proc/self/ns/mnt /proc/self/ns/net /proc/self/ns/pid \
    /proc/self/ns/user /proc/self/ns/uts
"#;

/// One way to start the probe.
struct Start<'w> {
    world: &'w World,
    user: Option<u32>,
    flags: Vec<&'static str>,
    expected: BTreeSet<String>,
    /// How often the program makes each call before it comes to anything of ours, and a few more.
    before_main: BTreeMap<String, usize>,
}

impl<'w> Start<'w> {
    fn new(world: &'w World, user: Option<u32>, flags: &[&'static str]) -> Start<'w> {
        let mut start = Start {
            world,
            user,
            flags: flags.to_vec(),
            expected: BTreeSet::new(),
            before_main: BTreeMap::new(),
        };
        // The first run unpacks, and later ones take other ways.
        for _ in 0..2 {
            start.expected = facts(&start.run(&[], &world.path("none")).ok());
        }
        assert!(start.expected.len() > 30, "{:?}", start.expected);
        let text = Vec::from_iter(&start.expected);
        let bad = |fact: &str| {
            ["writable", "open"].iter().any(|word| fact.starts_with(word)) || fact.contains("the host's")
        };
        assert!(!text.iter().any(|fact| bad(fact)), "{text:?}");
        let log = world.path("tmp/strace-version");
        let mut version = Command::new("strace");
        version.args(["-f", "-qq", "-o"]).arg(&log).args([env!("CARGO_BIN_EXE_rimg"), "version"]);
        world.run(version).ok();
        start.before_main = most_of_each(&std::fs::read_to_string(&log).unwrap());
        start
    }

    fn is_before_main(&self, call: &str, number: usize) -> bool {
        self.before_main.get(call).is_some_and(|count| number <= *count)
    }

    /// Runs the probe below strace, whose log goes to `log`; without options, without strace.
    fn run(&self, strace: &[String], log: &Path) -> Outcome {
        let mut arguments: Vec<&str> = vec!["run", "--network", "none", "-h", "probe", "-v", "./ro:/ro:ro"];
        arguments.extend(["--tmpfs", "/scratch", "--read-only"]);
        arguments.extend(&self.flags);
        arguments.extend(["box", "sh", "/probe"]);
        let rimg = match self.user {
            Some(user) => self.world.command_as(user, &arguments),
            None => self.world.command(&arguments),
        };
        if strace.is_empty() {
            return self.world.run(rimg);
        }
        let mut command = Command::new("timeout");
        command
            .args(["-k", "5", TIMEOUT_SECONDS, "strace", "-f", "-qq", "-o"])
            .arg(log)
            .args(strace)
            .arg("--");
        command.arg(rimg.get_program()).args(rimg.get_args()).stdin(Stdio::null());
        command.current_dir(rimg.get_current_dir().unwrap()).env_clear();
        command.envs(rimg.get_envs().filter_map(|(name, value)| Some((name, value?))));
        if let Some(user) = self.user.filter(|_| is_root()) {
            use std::os::unix::process::CommandExt;
            command.uid(user).gid(user);
        }
        self.world.run(command)
    }

    /// Every call of a start, and how often the process that makes most of them makes it.
    fn calls(&self, log: &Path) -> BTreeMap<String, usize> {
        self.run(&["-e".to_owned(), "trace=all".to_owned()], log).ok();
        most_of_each(&std::fs::read_to_string(log).unwrap())
    }

    /// Makes the `number`th occurrence of a call fail; what went wrong, if it did.
    fn inject(&self, call: &str, number: usize, error: &str, log: &Path) -> Result<bool, String> {
        let trace = format!("trace={call},execve");
        let inject = format!("inject={call}:error={error}:when={number}");
        let outcome = self.run(&["-e".to_owned(), trace, "-e".to_owned(), inject], log);
        let (mut start_hit, mut payload_hit) = (false, false);
        for_each_call(&std::fs::read_to_string(log).unwrap_or_default(), |_, _, line, is_payload| {
            if line.contains("(INJECTED)") {
                *(if is_payload { &mut payload_hit } else { &mut start_hit }) = true;
            }
        });
        if !start_hit {
            return Ok(false);
        }
        let seen = facts(&outcome.stdout);
        let told = format!("code {}, {seen:?}, said {}", outcome.code, outcome.stderr);
        // A payload that was hit itself may see less, print halves of lines, and end as it likes.
        let counts = |fact: &&String| !payload_hit || shows_more(fact);
        if let Some(strange) = seen.difference(&self.expected).find(counts) {
            return Err(format!("the payload ran, and saw `{strange}`: {told}"));
        }
        let is_told = !outcome.stderr.trim().is_empty() && !outcome.stderr.contains("panicked");
        match outcome.code {
            _ if payload_hit => Ok(true),
            0 if seen == self.expected => Ok(true),
            125..=127 if is_told => Ok(true),
            // The loader and the language's runtime end a program as they like.
            126..=139 if seen.is_empty() && self.is_before_main(call, number) => Ok(true),
            _ => Err(told),
        }
    }
}

/// Whether a fact that is not expected can only mean less protection.
fn shows_more(fact: &str) -> bool {
    ["open ", "writable ", "Cap", "Uid", "Gid", "Groups", "NoNewPrivs", "Seccomp"]
        .iter()
        .any(|word| fact.starts_with(word))
}

/// The lines of a probe's output, with what differs from run to run taken out.
fn facts(output: &str) -> BTreeSet<String> {
    output
        .lines()
        // What limits the container is shown where the kernel allows it, and informs only.
        .filter(|line| !line.starts_with("mount /sys/fs/cgroup/"))
        .map(|line| match line.strip_prefix("namespace ").and_then(|rest| rest.split_once(" -> ")) {
            Some((name, link)) => {
                let own = std::fs::read_link(name.trim_matches('\'')).unwrap();
                let whose = if link.contains(own.to_str().unwrap()) { "the host's" } else { "own" };
                format!("namespace {name} {whose}")
            }
            None => line.to_owned(),
        })
        .collect()
}

/// Every call in a log of strace but the payload's, and how often the process that makes most of them makes it.
fn most_of_each(log: &str) -> BTreeMap<String, usize> {
    let mut counts: BTreeMap<(String, String), usize> = BTreeMap::new();
    for_each_call(log, |process, call, _, is_payload| {
        if !is_payload && !LEFT_OUT.contains(&call) && call != "execve" {
            *counts.entry((call.to_owned(), process.to_owned())).or_default() += 1;
        }
    });
    let mut most = BTreeMap::new();
    for ((call, _), count) in counts {
        let entry = most.entry(call).or_default();
        *entry = count.max(*entry);
    }
    most
}

/// Calls `look` for every line of a log of strace: the process, the call, the line, and whether the process is the
/// payload already or was started by it.
fn for_each_call(log: &str, mut look: impl FnMut(&str, &str, &str, bool)) {
    let payloads = payloads(log);
    for (number, line) in log.lines().enumerate() {
        let Some((process, rest)) = line.split_once(' ') else { continue };
        let Some((call, _)) = rest.trim_start().split_once('(').filter(|(call, _)| !call.starts_with('<'))
        else {
            continue;
        };
        look(process, call, line, payloads.get(process).is_some_and(|since| number > *since));
    }
}

/// The processes that become the payload, and those that it starts, with the line since which they are.
///
/// What a payload starts are the processes that come after it: the ids that it gets of them are its own namespace's.
fn payloads(log: &str) -> BTreeMap<&str, usize> {
    let (mut known, mut since) = (BTreeSet::new(), BTreeMap::new());
    let mut is_first_execution = true;
    for (number, line) in log.lines().enumerate() {
        let Some((process, rest)) = line.split_once(' ') else { continue };
        let is_new = known.insert(process);
        // The first execution is strace's own, of the program; every other one is the payload's, or a helper's of ours.
        let executes = rest.trim_start().starts_with("execve(");
        if executes && !std::mem::replace(&mut is_first_execution, false) {
            since.entry(process).or_insert(number);
        } else if is_new && !since.is_empty() {
            since.insert(process, 0);
        }
    }
    since
}

/// Every call that is to fail, with its errors: all, or a sample that is the same each time.
fn cases(calls: &BTreeMap<String, usize>) -> Vec<(&str, usize, &'static str)> {
    let all = std::env::var("RIMG_FAULTS").is_ok_and(|value| value == "all");
    let mut cases = Vec::new();
    let mut others = 0;
    for (call, count) in calls {
        for number in 1..=*count {
            if all {
                cases.extend(ERRORS.map(|error| (call.as_str(), number, error)));
                continue;
            }
            let protective = PROTECTIVE.contains(&call.as_str());
            others += usize::from(!protective);
            if protective || others % SAMPLE == 0 {
                cases.push((call.as_str(), number, ERRORS[cases.len() % ERRORS.len()]));
            }
        }
    }
    cases
}

fn try_all(start: &Start<'_>) {
    let log = start.world.path("tmp/strace");
    let calls = start.calls(&log);
    assert!(calls.contains_key("seccomp") && calls.contains_key("setresuid"), "{calls:?}");
    let (mut hit, mut wrong) = (0, Vec::new());
    for (call, number, error) in cases(&calls) {
        match start.inject(call, number, error, &log) {
            Ok(was_hit) => hit += usize::from(was_hit),
            Err(told) => {
                wrong.push(format!("{call} number {number} {error}: {told}"));
                // All of them may take long: each is shown when it is found.
                eprintln!("{}", wrong[wrong.len() - 1]);
            }
        }
    }
    eprintln!("{hit} failed calls of a start were tried");
    assert!(hit > 50, "only {hit} calls were hit: {calls:?}");
    assert!(wrong.is_empty(), "{} of {hit} failures went wrong:\n{}", wrong.len(), wrong.join("\n"));
}

/// A world with the image `box`, which has the probe, and a directory to mount.
fn world(user: Option<u32>) -> World {
    let strace: PathBuf = ["/usr/bin/strace", "/bin/strace"]
        .iter()
        .map(PathBuf::from)
        .find(|path| path.exists())
        .unwrap_or_default();
    assert!(strace.exists(), "strace is missing: apt-get install strace");
    let world = World::new();
    let root = world.busybox_root("rootfs");
    std::fs::create_dir(root.join("ro")).unwrap();
    world.write("rootfs/probe", PROBE);
    world.write("ro/file", "");
    world.write("Buildfile", "FROM ./rootfs\n");
    if let Some(user) = user {
        world.store_of(user);
    }
    let arguments = ["build", "-q", "-t", "box", "."];
    let build = user.map_or_else(|| world.command(&arguments), |user| world.command_as(user, &arguments));
    world.run(build).ok();
    world
}

#[test]
fn a_start_with_a_failed_call_is_protected_or_fails() {
    let world = world(None);
    try_all(&Start::new(&world, None, &[]));
}

/// The user changes, and with it what has to be taken away.
#[test]
fn a_start_of_another_user_with_a_failed_call_is_protected_or_fails() {
    if !is_root() {
        return eprintln!("SKIPPED: only root has other users here");
    }
    let world = world(None);
    try_all(&Start::new(&world, None, &["-u", "app"]));
}

#[test]
fn an_ordinary_users_start_with_a_failed_call_is_protected_or_fails() {
    let world = world(Some(USER));
    try_all(&Start::new(&world, Some(USER), &[]));
}
