//! The plan of a sandbox: the list of set-up operations that init carries out, as data.
//!
//! Owns [`Plan`], [`Op`] and the pure function from what a caller wants to what has to be done, and in which order.
//! Leaves to others: opening anything ([`crate::sandbox`]) and carrying the operations out ([`crate::tree`],
//! [`crate::init`]).
//!
//! Order of the operations, and why:
//! 1. cgroups of version 1 are joined, and namespaces get their names (host name, loopback, cgroup root);
//! 2. the root is attached on top of the old one, in sight of the host's `/dev` that device nodes come from;
//! 3. our own file systems, then the caller's mounts (parents first), then our small files, which a mount on `/etc` or on
//!    what their links lead to would hide, then masks: what is mounted later wins, so no caller's mount below `/proc` can
//!    undo a mask;
//! 4. the root becomes read-only once every mount point exists;
//! 5. the old root is left behind.

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::{Component, Path};

use serde::{Deserialize, Serialize};

use crate::idmap::IdMaps;
use crate::spec::{MountKind, Network, SandboxSpec, Seccomp, Tmpfs, WindowSize};

/// Paths of `/proc` and `/sys` that show or change the host: covered, as by Docker and podman.
const MASKED_PATHS: [&str; 15] = [
    "proc/acpi",
    "proc/asound",
    "proc/dynamic_debug",
    "proc/interrupts",
    "proc/kcore",
    "proc/keys",
    "proc/latency_stats",
    "proc/sched_debug",
    "proc/scsi",
    "proc/timer_list",
    "proc/timer_stats",
    "sys/dev/block",
    "sys/devices/virtual/powercap",
    "sys/firmware",
    "sys/fs/selinux",
];

/// Paths of `/proc` that change the host: read-only, as by Docker.
const READ_ONLY_PATHS: [&str; 5] = ["proc/bus", "proc/fs", "proc/irq", "proc/sys", "proc/sysrq-trigger"];

/// The largest group id that `net.ipv4.ping_group_range` takes.
const PING_GROUP_MAX: u32 = i32::MAX as u32;

/// What a sandbox's init has to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// Descriptor of the packet socket to the parent.
    pub(crate) control: RawFd,
    /// Set-up operations, in order.
    pub(crate) ops: Vec<Op>,
    /// Whether process 1 stays an init beside the payload, or becomes the payload.
    pub(crate) init: bool,
    /// The process to run in the end.
    pub(crate) payload: Payload,
}

/// One set-up operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Op {
    /// Stop mount events between this mount namespace and the host's.
    IsolateMounts,
    /// Join the cgroups of version 1 by these files of them.
    JoinCgroups(Vec<RawFd>),
    /// A cgroup namespace rooted at the cgroup we were put into.
    UnshareCgroup,
    /// Set the host name.
    Hostname(String),
    /// Bring loopback up.
    LoopbackUp,
    /// Receive the root's mount from the parent and put it on top of the current root.
    AttachRoot,
    /// A fresh procfs at `/proc`.
    Proc,
    /// A tmpfs at `/dev` with the standard nodes, links, pts, shm and mqueue.
    Dev { shm_size_bytes: u64 },
    /// A terminal in the new devpts, as `/dev/console` and the payload's standard descriptors.
    Terminal(WindowSize),
    /// sysfs at `/sys`, read-only.
    Sys(SysMount),
    /// The cgroup hierarchies we are limited by, read-only, below `/sys/fs/cgroup`.
    Cgroups(Vec<CgroupMount>),
    /// What users other than root may do in a network of their own.
    NetworkSettings { ping_group_last: u32 },
    /// A file with this content. An optional one is left out where a read-only mount has no place for it.
    EtcFile { target: OsString, content: Vec<u8>, mode: u32, owner: (u32, u32), optional: bool },
    /// A mount the parent prepared.
    Attach { mount: RawFd, directory: bool, target: OsString },
    /// An empty tmpfs.
    Tmpfs { target: OsString, tmpfs: Tmpfs, read_only: bool },
    /// Take the root's own directory for a volume, before any mount can lie over it.
    OpenVolume { target: OsString },
    /// Mount what was taken for the volume at this place.
    Volume { target: OsString, read_only: bool },
    /// Cover a path of our own procfs or sysfs.
    Mask(String),
    /// Cover what each processor tells of its temperature.
    MaskThrottling,
    /// Make a path of our own procfs read-only.
    ReadOnly(String),
    /// Make the working directory if it is missing.
    MakeCwd(OsString),
    /// Forbid changes of the root.
    RootReadOnly,
    /// Make the new root the root and let go of the old one.
    LeaveOldRoot,
}

/// Which sysfs is shown inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum SysMount {
    /// A new one, of our own network namespace.
    Fresh,
    /// A new one of the host's network namespace, which the parent has made.
    Prepared(RawFd),
    /// The host's own.
    Host,
}

/// A cgroup file system to show inside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum CgroupMount {
    /// The unified hierarchy, at `/sys/fs/cgroup` itself.
    Unified,
    /// One controller of version 1, in a directory of its name.
    Controller(String),
}

/// The process a sandbox is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Payload {
    pub(crate) args: Vec<OsString>,
    pub(crate) env: Vec<(OsString, OsString)>,
    pub(crate) cwd: OsString,
    pub(crate) user: String,
    pub(crate) capabilities: u64,
    pub(crate) seccomp: Seccomp,
    pub(crate) no_new_privileges: bool,
    pub(crate) terminal: bool,
    pub(crate) ids: IdMaps,
}

/// Descriptors and facts that the parent found out, which the plan refers to.
#[derive(Debug, Clone, Default)]
pub(crate) struct Prepared {
    /// Our end of the control socket as the child will know it.
    pub(crate) control: RawFd,
    /// For each bind of `spec.mounts`, in their order: its detached mount and whether it is a directory.
    pub(crate) binds: Vec<(RawFd, bool)>,
    /// Ids there are inside.
    pub(crate) ids: IdMaps,
    /// cgroup file systems to show.
    pub(crate) cgroups: Vec<CgroupMount>,
    /// The files by which to join cgroups of version 1.
    pub(crate) joins: Vec<RawFd>,
    /// A sysfs of the host's network namespace, where that is the sandbox's and this process may make one.
    pub(crate) sys: Option<RawFd>,
}

impl Plan {
    /// The operations for `spec`. Pure.
    pub(crate) fn of(spec: &SandboxSpec, prepared: &Prepared) -> Plan {
        let mut ops = vec![Op::IsolateMounts];
        if !prepared.joins.is_empty() {
            ops.push(Op::JoinCgroups(prepared.joins.clone()));
        }
        ops.extend([Op::UnshareCgroup, Op::Hostname(spec.hostname.clone())]);
        let own_network = spec.network == Network::None;
        if own_network {
            ops.push(Op::LoopbackUp);
        }
        ops.push(Op::AttachRoot);
        ops.push(Op::Proc);
        if own_network {
            ops.push(Op::NetworkSettings { ping_group_last: prepared.ids.groups.last().min(PING_GROUP_MAX) });
        }
        ops.push(Op::Dev { shm_size_bytes: spec.shm_size_bytes });
        ops.extend(spec.tty.map(Op::Terminal));
        ops.push(Op::Sys(match (own_network, prepared.sys) {
            (true, _) => SysMount::Fresh,
            (false, Some(fd)) => SysMount::Prepared(fd),
            (false, None) => SysMount::Host,
        }));
        if !prepared.cgroups.is_empty() {
            ops.push(Op::Cgroups(prepared.cgroups.clone()));
        }
        let volumes = spec.mounts.iter().filter(|mount| mount.kind == MountKind::Volume);
        ops.extend(volumes.map(|mount| Op::OpenVolume { target: mount.target.clone().into_os_string() }));
        ops.extend(caller_mounts(spec, prepared));
        ops.extend(files(spec));
        let cwd = spec.cwd.clone().into_os_string();
        if spec.cwd.components().any(|c| matches!(c, Component::Normal(_))) {
            ops.push(Op::MakeCwd(cwd.clone()));
        }
        ops.extend(MASKED_PATHS.iter().map(|path| Op::Mask((*path).to_owned())));
        ops.push(Op::MaskThrottling);
        ops.extend(READ_ONLY_PATHS.iter().map(|path| Op::ReadOnly((*path).to_owned())));
        if spec.read_only {
            ops.push(Op::RootReadOnly);
        }
        ops.push(Op::LeaveOldRoot);
        let payload = payload(spec, cwd, prepared.ids.clone());
        Plan { control: prepared.control, ops, init: spec.init, payload }
    }

    /// Overwrites files that only some may read, before a process that has them in memory can be looked into.
    pub(crate) fn wipe_private_files(&mut self) {
        for op in &mut self.ops {
            if let Op::EtcFile { content, .. } = op {
                wipe(content);
            }
        }
    }
}

/// Overwrites bytes for good.
pub(crate) fn wipe(bytes: &mut [u8]) {
    bytes.fill(0);
    // Somebody might look: the writes have to be made.
    std::hint::black_box(bytes);
}

fn payload(spec: &SandboxSpec, cwd: OsString, ids: IdMaps) -> Payload {
    Payload {
        args: spec.args.clone(),
        env: spec.env.clone(),
        cwd,
        user: spec.user.clone(),
        capabilities: spec.capabilities.bits(),
        seccomp: spec.seccomp,
        no_new_privileges: spec.no_new_privileges,
        terminal: spec.tty.is_some(),
        ids,
    }
}

/// The small files. What the caller mounts in the place of one replaces it.
fn files(spec: &SandboxSpec) -> impl Iterator<Item = Op> {
    let is_replaced = |target: &Path| spec.mounts.iter().any(|mount| mount.target == target);
    let common = spec.files.iter().filter(move |file| !is_replaced(&file.target)).map(|file| Op::EtcFile {
        target: file.target.clone().into_os_string(),
        content: file.content.clone(),
        mode: 0o644,
        owner: (0, 0),
        optional: true,
    });
    let private = spec.private_files.iter().map(|private| Op::EtcFile {
        target: private.file.target.clone().into_os_string(),
        content: private.file.content.clone(),
        mode: private.mode,
        owner: (private.uid, private.gid),
        optional: false,
    });
    common.chain(private)
}

/// The caller's mounts, shallow targets first; equally deep ones keep the caller's order.
fn caller_mounts(spec: &SandboxSpec, prepared: &Prepared) -> Vec<Op> {
    let mut binds = prepared.binds.iter();
    let mut ops: Vec<(usize, Op)> = Vec::with_capacity(spec.mounts.len());
    for mount in &spec.mounts {
        let target = mount.target.clone().into_os_string();
        let op = match &mount.kind {
            MountKind::Bind { .. } => {
                let Some(&(fd, directory)) = binds.next() else {
                    continue;
                };
                Op::Attach { mount: fd, directory, target }
            }
            MountKind::Tmpfs(tmpfs) => Op::Tmpfs { target, tmpfs: tmpfs.clone(), read_only: mount.read_only },
            MountKind::Volume => Op::Volume { target, read_only: mount.read_only },
        };
        ops.push((depth(&mount.target), op));
    }
    ops.sort_by_key(|(depth, _)| *depth);
    ops.into_iter().map(|(_, op)| op).collect()
}

fn depth(path: &Path) -> usize {
    path.components().filter(|c| matches!(c, Component::Normal(_))).count()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::spec::{EtcFile, Mount, RootFs, Upper};
    use std::path::PathBuf;

    fn spec() -> SandboxSpec {
        let rootfs = RootFs { lowers: vec![PathBuf::from("/lower")], upper: Upper::None };
        SandboxSpec::new(rootfs, vec![OsString::from("/bin/true")])
    }

    fn position(plan: &Plan, wanted: &Op) -> usize {
        plan.ops.iter().position(|op| op == wanted).unwrap()
    }

    #[test]
    fn a_plan_survives_its_encoding() {
        let plan = Plan::of(&spec(), &Prepared::default());
        let bytes = postcard::to_stdvec(&plan).unwrap();
        assert_eq!(postcard::from_bytes::<Plan>(&bytes).unwrap(), plan);
    }

    #[test]
    fn callers_mounts_come_parents_first_and_before_masks() {
        let mut spec = spec();
        let tmpfs = |target: &str| Mount {
            kind: MountKind::Tmpfs(Tmpfs::default()),
            target: PathBuf::from(target),
            read_only: false,
        };
        spec.mounts = vec![tmpfs("/a/b/c"), tmpfs("/proc"), tmpfs("/a")];
        let plan = Plan::of(&spec, &Prepared::default());
        let targets: Vec<_> = plan
            .ops
            .iter()
            .filter_map(|op| match op {
                Op::Tmpfs { target, .. } => Some(target.to_str().unwrap()),
                _ => None,
            })
            .collect();
        assert_eq!(targets, ["/proc", "/a", "/a/b/c"]);
        let last = plan.ops.iter().rposition(|op| matches!(op, Op::Tmpfs { .. })).unwrap();
        assert!(last < position(&plan, &Op::Mask("proc/kcore".to_owned())));
        assert_eq!(plan.ops.last(), Some(&Op::LeaveOldRoot));
    }

    #[test]
    fn our_files_come_after_what_would_hide_them_and_give_way_to_the_callers() {
        let mut spec = spec();
        let file = |target: &str| EtcFile { target: PathBuf::from(target), content: Vec::new() };
        spec.files = vec![file("/etc/hosts"), file("/etc/hostname")];
        let mount = |target: &str| Mount {
            kind: MountKind::Tmpfs(Tmpfs::default()),
            target: PathBuf::from(target),
            read_only: false,
        };
        spec.mounts = vec![mount("/etc"), mount("/run"), mount("/etc/hostname")];
        let plan = Plan::of(&spec, &Prepared::default());
        let files: Vec<usize> =
            (0..plan.ops.len()).filter(|at| matches!(plan.ops[*at], Op::EtcFile { .. })).collect();
        let mounts = plan.ops.iter().rposition(|op| matches!(op, Op::Tmpfs { .. })).unwrap();
        assert!(files.len() == 1 && files[0] > mounts, "{:?}", plan.ops);
    }

    #[test]
    fn network_decides_loopback_and_sysfs() {
        let mut spec = spec();
        assert!(!Plan::of(&spec, &Prepared::default()).ops.contains(&Op::LoopbackUp));
        spec.network = Network::None;
        let plan = Plan::of(&spec, &Prepared::default());
        assert!(plan.ops.contains(&Op::LoopbackUp));
        assert!(plan.ops.contains(&Op::Sys(SysMount::Fresh)));
        spec.network = Network::Host;
        assert!(Plan::of(&spec, &Prepared::default()).ops.contains(&Op::Sys(SysMount::Host)));
        let prepared = Prepared { sys: Some(7), ..Prepared::default() };
        assert!(Plan::of(&spec, &prepared).ops.contains(&Op::Sys(SysMount::Prepared(7))));
    }

    #[test]
    fn the_root_becomes_read_only_after_its_mount_points_were_made() {
        let mut spec = spec();
        spec.read_only = true;
        spec.cwd = PathBuf::from("/srv");
        let plan = Plan::of(&spec, &Prepared::default());
        let cwd = position(&plan, &Op::MakeCwd(OsString::from("/srv")));
        assert!(cwd < position(&plan, &Op::RootReadOnly));
    }
}
