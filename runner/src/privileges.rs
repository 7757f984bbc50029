//! What a process loses before it becomes the payload: capabilities, groups and ids; and the proof that it has.
//!
//! Each step stops the start when the kernel refuses it. [`Expected::check`] then compares what the kernel says of this
//! process with what it should have, once, as the last thing before exec: a step that was left out, or that did less
//! than it said, stops the start as well.

use std::io::Read;
use std::os::fd::BorrowedFd;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::message::SetupFailure;
use crate::tree::OrFail;
use crate::user::Credentials;

/// As many as the kernel's sets have bits: those of future kernels are dropped as well.
const CAPABILITY_COUNT: u32 = 64;

/// Largest `/proc/self/status` that is read: 65,536 groups, as many as there can be, have ten digits each.
const STATUS_BYTES_MAX: u64 = 1 << 20;

/// More than there is to read of most processes.
const STATUS_BYTES: usize = 4 << 10;

/// The mode of a process whose calls go through a filter (`SECCOMP_MODE_FILTER`).
const FILTERED: u32 = 2;

/// Drops from the bounding set what is not in `kept`.
pub(crate) fn limit_capabilities(kept: u64) -> Result<(), SetupFailure> {
    for number in (0..CAPABILITY_COUNT).filter(|number| kept >> number & 1 == 0) {
        let set = CapabilitySet::from_bits_retain(1 << number);
        match rustix::thread::remove_capability_from_bounding_set(set) {
            // Beyond the last one that this kernel knows, if it says so when it is asked, too.
            Err(Errno::INVAL) if rustix::thread::capability_is_in_bounding_set(set) == Err(Errno::INVAL) => {
                break;
            }
            other => other.or_fail(|| format!("drop capability {number}"))?,
        }
    }
    Ok(())
}

/// Permitted and effective become `bits`; inheritable stays empty (CVE-2022-29162).
pub(crate) fn set_capabilities(bits: u64) -> rustix::io::Result<()> {
    let held = rustix::thread::capabilities(None)?.permitted.bits();
    let set = CapabilitySet::from_bits_retain(bits & held);
    rustix::thread::set_capabilities(
        None,
        CapabilitySets { effective: set, permitted: set, inheritable: CapabilitySet::empty() },
    )
}

/// What became of the supplementary groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Groups {
    /// They are the payload's.
    Set,
    /// They are the caller's: with a single id mapped, the kernel lets nobody change them.
    Kept,
}

/// Takes the payload's groups and ids. `proc` is the sandbox's own procfs.
pub(crate) fn set_ids(credentials: &Credentials, proc: BorrowedFd<'_>) -> Result<Groups, SetupFailure> {
    use rustix::process::{Gid, Uid};
    let (uid, gid) = (Uid::from_raw(credentials.uid), Gid::from_raw(credentials.gid));
    let groups: Vec<Gid> = groups_of(credentials).into_iter().map(Gid::from_raw).collect();
    let groups = match rustix::thread::set_thread_groups(&groups) {
        Err(Errno::PERM) if setgroups_is_denied(proc)? => Groups::Kept,
        other => {
            other.or_fail(|| format!("take the groups {:?}", credentials.groups))?;
            Groups::Set
        }
    };
    rustix::thread::set_thread_res_gid(gid, gid, gid)
        .or_fail(|| format!("become group {}", credentials.gid))?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)
        .or_fail(|| format!("become user {}", credentials.uid))?;
    Ok(groups)
}

/// The supplementary groups of a payload, ascending. The primary group is among them too: without it, a file closed to
/// that group would open to a process that drops it (CVE-2022-36109).
fn groups_of(credentials: &Credentials) -> Vec<u32> {
    let mut groups = credentials.groups.clone();
    groups.push(credentials.gid);
    groups.sort_unstable();
    groups.dedup();
    groups
}

/// Whether this user namespace forbids setgroups(2) for good (user_namespaces(7)).
fn setgroups_is_denied(proc: BorrowedFd<'_>) -> Result<bool, SetupFailure> {
    Ok(read_own(proc, "self/setgroups")?.trim() == "deny")
}

/// What a process should have when it becomes the payload.
pub(crate) struct Expected<'a> {
    pub(crate) credentials: &'a Credentials,
    pub(crate) groups: Groups,
    /// Capabilities it may have at most.
    pub(crate) capabilities: u64,
    pub(crate) no_new_privileges: bool,
    /// Whether a filter of system calls was loaded.
    pub(crate) filter: bool,
}

impl Expected<'_> {
    /// Compares with what the kernel says of this process. `proc` is the sandbox's own procfs.
    pub(crate) fn check(&self, proc: BorrowedFd<'_>) -> Result<(), SetupFailure> {
        self.compare(&read_own(proc, "self/status")?)
            .map_err(|operation| SetupFailure { operation, errno: 0 })
    }

    fn compare(&self, status: &str) -> Result<(), String> {
        let field = |name: &str| {
            let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            value
                .map(str::trim)
                .ok_or_else(|| format!("check the payload's privileges: no {name} in /proc/self/status"))
        };
        let more =
            |name: &str, value: &str| format!("take privileges away: {name} of the payload is {value}");
        let numbers = |name: &str| -> Result<Vec<u32>, String> {
            let value = field(name)?;
            value.split_whitespace().map(|word| word.parse().map_err(|_| more(name, value))).collect()
        };
        for (name, id) in [("Uid", self.credentials.uid), ("Gid", self.credentials.gid)] {
            if numbers(name)? != [id; 4] {
                return Err(more(name, field(name)?));
            }
        }
        let mut groups = numbers("Groups")?;
        groups.sort_unstable();
        groups.dedup();
        if self.groups == Groups::Set && groups != groups_of(self.credentials) {
            return Err(more("Groups", field("Groups")?));
        }
        let held = if self.credentials.uid == 0 { self.capabilities } else { 0 };
        let sets =
            [("CapInh", 0), ("CapPrm", held), ("CapEff", held), ("CapBnd", self.capabilities), ("CapAmb", 0)];
        for (name, most) in sets {
            let value = field(name)?;
            if u64::from_str_radix(value, 16).map_or(true, |set| set & !most != 0) {
                return Err(more(name, value));
            }
        }
        if self.no_new_privileges && numbers("NoNewPrivs")? != [1] {
            return Err(more("NoNewPrivs", field("NoNewPrivs")?));
        }
        if self.filter && numbers("Seccomp")? != [FILTERED] {
            return Err(more("Seccomp", field("Seccomp")?));
        }
        Ok(())
    }
}

/// A file that the kernel makes up about this process.
fn read_own(proc: BorrowedFd<'_>, path: &str) -> Result<String, SetupFailure> {
    let operation = || format!("read /proc/{path}");
    let opened = rustix::fs::openat(proc, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    // The kernel does not tell the size of such a file; with room for all of it there is one read.
    let mut text = String::with_capacity(STATUS_BYTES);
    let file = std::fs::File::from(opened.or_fail(operation)?);
    file.take(STATUS_BYTES_MAX).read_to_string(&mut text).or_fail(operation)?;
    Ok(text)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const STATUS: &str = "Name:\tx\nUid:\t7\t7\t7\t7\nGid:\t8\t8\t8\t8\nGroups:\t8 9 \nCapInh:\t0000000000000000\n\
        CapPrm:\t0000000000000000\nCapEff:\t0000000000000000\nCapBnd:\t00000000a80425fb\nCapAmb:\t0000000000000000\n\
        NoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t1\n";

    fn compare(uid: u32, groups: Groups, status: &str) -> Result<(), String> {
        let credentials = Credentials { uid, gid: 8, groups: vec![9], home: "/".into() };
        let expected = Expected {
            credentials: &credentials,
            groups,
            capabilities: 0xa804_25fb,
            no_new_privileges: true,
            filter: true,
        };
        expected.compare(status)
    }

    #[test]
    fn what_a_payload_has_too_much_is_named() {
        assert_eq!(compare(7, Groups::Set, STATUS), Ok(()));
        for (is, instead, name) in [
            ("Uid:\t7\t7\t7", "Uid:\t7\t7\t0", "Uid"),
            ("Gid:\t8", "Gid:\t0", "Gid"),
            ("8 9 ", "0 8 9 27 ", "Groups"),
            ("8 9 ", "", "Groups"),
            ("CapInh:\t0000000000000000", "CapInh:\t0000000000000001", "CapInh"),
            ("CapPrm:\t0000000000000000", "CapPrm:\t00000000a80425fb", "CapPrm"),
            ("CapEff:\t0000000000000000", "CapEff:\t0000000000000020", "CapEff"),
            ("CapBnd:\t00000000a80425fb", "CapBnd:\t000001ffffffffff", "CapBnd"),
            ("CapAmb:\t0000000000000000", "CapAmb:\t0000000000000400", "CapAmb"),
            ("NoNewPrivs:\t1", "NoNewPrivs:\t0", "NoNewPrivs"),
            ("Seccomp:\t2", "Seccomp:\t0", "Seccomp"),
        ] {
            let error = compare(7, Groups::Set, &STATUS.replacen(is, instead, 1)).unwrap_err();
            assert!(error.contains(&format!("{name} of the payload")), "{is}: {error}");
        }
        assert!(compare(7, Groups::Set, &STATUS.replace("CapEff", "x")).unwrap_err().contains("no CapEff"));
        assert_eq!(compare(7, Groups::Kept, &STATUS.replace("8 9 ", "27 65534 ")), Ok(()));
        let root = STATUS.replace("Uid:\t7\t7\t7\t7", "Uid:\t0\t0\t0\t0");
        let root = root.replace("0000000000000000\nCapBnd", "00000000a80425fb\nCapBnd");
        assert_eq!(compare(0, Groups::Set, &root), Ok(()));
        assert!(compare(7, Groups::Set, &root).is_err());
    }
}
