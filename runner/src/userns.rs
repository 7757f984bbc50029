//! Being root without being root: the caller's own user namespace, and the id maps of sandboxes.
//!
//! Owns reading `/etc/subuid` and `/etc/subgid`, running `newuidmap` and `newgidmap`, and writing maps. Names are
//! looked up in `/etc/passwd` itself: a static binary must not load the C library's name service modules.
//! Leaves to others: telling the user what a poor mapping means.

use std::fs;
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::Command;

use nix::sched::CloneFlags;

use crate::idmap::IdMaps;
use crate::sys;

/// Host files are read up to this size; LDAP exports of subuid reach a few MiB at most.
const HOST_FILE_SIZE_MAX: u64 = 16 << 20;

/// Which ids this process can use after [`enter`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mapping {
    /// The process is privileged already; nothing was done.
    Privileged,
    /// Root maps to the caller, and so many further ids to its subordinate ranges.
    Ranges {
        /// How many subordinate user ids there are.
        uids: u32,
    },
    /// Only one id exists: root is the caller. Files of other owners cannot be kept apart and a payload cannot become
    /// another user.
    Single(SingleReason),
}

/// Why only one id could be mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SingleReason {
    /// The user has no line in /etc/subuid or /etc/subgid.
    NoRanges,
    /// `newuidmap` or `newgidmap` is missing (package uidmap or shadow-utils).
    NoHelpers,
    /// The helpers refused.
    HelpersFailed,
}

/// Why no user namespace could be had.
#[derive(Debug, thiserror::Error)]
pub enum UsernsError {
    /// The kernel refused.
    #[error(
        "make a user namespace: {0}: this system does not let ordinary users have one (run `rimg doctor`)"
    )]
    Refused(io::Error),
    /// A map could not be written.
    #[error("write {path}: {source}")]
    Map {
        /// The file in /proc.
        path: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The helper process could not be made.
    #[error("start a helper process: {0}")]
    Helper(io::Error),
}

/// Makes this process root in a user and mount namespace of its own, unless it is privileged already.
///
/// To be called at the beginning of commands that mount or change owners, while the process has a single thread.
///
/// # Errors
/// When the system forbids user namespaces. A poor mapping is no error: see [`Mapping`].
pub fn enter() -> Result<Mapping, UsernsError> {
    if privileged() {
        return Ok(Mapping::Privileged);
    }
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let ranges = subordinate_ranges(uid);
    let helper = match &ranges {
        Ok((uids, gids)) => Some(
            Helper::start(&map_arguments(uid, *uids), &map_arguments(gid, *gids))
                .map_err(UsernsError::Helper)?,
        ),
        Err(_) => None,
    };
    nix::sched::unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS)
        .map_err(|error| UsernsError::Refused(error.into()))?;
    let reason = match (helper.map(Helper::finish), ranges) {
        (Some(true), Ok((uids, _))) => {
            return Ok(Mapping::Ranges { uids: uids.count });
        }
        (_, Err(reason)) => reason,
        (_, Ok(_)) => SingleReason::HelpersFailed,
    };
    write_own("/proc/self/setgroups", "deny")?;
    write_own("/proc/self/uid_map", &format!("0 {uid} 1"))?;
    write_own("/proc/self/gid_map", &format!("0 {gid} 1"))?;
    Ok(Mapping::Single(reason))
}

/// Whether this process may mount without a user namespace of its own.
fn privileged() -> bool {
    rustix::process::geteuid().is_root()
        && rustix::thread::capabilities(None)
            .is_ok_and(|sets| sets.effective.contains(rustix::thread::CapabilitySet::SYS_ADMIN))
}

fn write_own(path: &'static str, text: &str) -> Result<(), UsernsError> {
    fs::write(path, text).map_err(|source| UsernsError::Map { path, source })
}

/// A child that stays in the old namespace to run the set-user-id helpers for us.
struct Helper {
    pid: i32,
    go: io::PipeWriter,
}

impl Helper {
    fn start(uid_arguments: &[String], gid_arguments: &[String]) -> io::Result<Helper> {
        let parent = std::process::id().to_string();
        let (mut wait, go) = io::pipe()?;
        match sys::fork()? {
            Some(pid) => Ok(Helper { pid, go }),
            None => {
                // Our copy of the writing end must go, or the parent's death would never show.
                drop(go);
                let mut byte = [0];
                let told = wait.read_exact(&mut byte).is_ok();
                let mapped = told
                    && run_helper("newuidmap", &parent, uid_arguments)
                    && run_helper("newgidmap", &parent, gid_arguments);
                sys::exit_now(i32::from(!mapped));
            }
        }
    }

    /// Lets the helper work; whether both maps are written.
    fn finish(mut self) -> bool {
        if self.go.write_all(&[1]).is_err() {
            return false;
        }
        let pid = rustix::process::Pid::from_raw(self.pid);
        loop {
            match rustix::process::waitpid(pid, rustix::process::WaitOptions::empty()) {
                Ok(Some((_, status))) => return status.exit_status() == Some(0),
                Err(rustix::io::Errno::INTR) | Ok(None) => {}
                Err(_) => return false,
            }
        }
    }
}

fn run_helper(program: &str, pid: &str, arguments: &[String]) -> bool {
    Command::new(program)
        .arg(pid)
        .args(arguments)
        .stderr(std::process::Stdio::null())
        .status()
        .is_ok_and(|s| s.success())
}

/// `inside outside count` triples: root is `id`, the rest is the range.
fn map_arguments(id: u32, range: SubordinateRange) -> Vec<String> {
    [0, id, 1, 1, range.first, range.count].iter().map(u32::to_string).collect()
}

fn subordinate_ranges(uid: u32) -> Result<(SubordinateRange, SubordinateRange), SingleReason> {
    let name = host_file("/etc/passwd").and_then(|passwd| name_of(uid, &passwd));
    let range = |path| host_file(path).and_then(|text| subordinate_range(&text, uid, name.as_deref()));
    let (Some(uids), Some(gids)) = (range("/etc/subuid"), range("/etc/subgid")) else {
        return Err(SingleReason::NoRanges);
    };
    if ["newuidmap", "newgidmap"].iter().any(|program| !on_path(program)) {
        return Err(SingleReason::NoHelpers);
    }
    Ok((uids, gids))
}

/// Whether this user has subordinate ids, and the helpers to use them.
pub(crate) fn subordinate_ids(uid: u32) -> Result<u32, SingleReason> {
    subordinate_ranges(uid).map(|(uids, _)| uids.count)
}

fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

fn host_file(path: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    fs::File::open(path).ok()?.take(HOST_FILE_SIZE_MAX).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

/// One line of subuid(5) or subgid(5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct SubordinateRange {
    first: u32,
    count: u32,
}

/// The largest range of the user, by name or by number.
fn subordinate_range(text: &[u8], uid: u32, name: Option<&[u8]>) -> Option<SubordinateRange> {
    let number = uid.to_string();
    text.split(|byte| *byte == b'\n')
        .filter_map(|line| {
            let mut fields = line.trim_ascii().split(|byte| *byte == b':');
            let (owner, first, count) = (fields.next()?, fields.next()?, fields.next()?);
            let is_ours = owner == number.as_bytes() || name.is_some_and(|name| name == owner);
            let (first, count) = (decimal(first)?, decimal(count)?);
            let valid = is_ours && fields.next().is_none() && count > 0 && first.checked_add(count).is_some();
            valid.then_some(SubordinateRange { first, count })
        })
        .max_by_key(|range| range.count)
}

fn name_of(uid: u32, passwd: &[u8]) -> Option<Vec<u8>> {
    passwd.split(|byte| *byte == b'\n').find_map(|line| {
        let mut fields = line.split(|byte| *byte == b':');
        let name = fields.next()?;
        (fields.nth(1).and_then(decimal) == Some(uid)).then(|| name.to_vec())
    })
}

fn decimal(field: &[u8]) -> Option<u32> {
    let digits = !field.is_empty() && field.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(field).ok().filter(|_| digits)?.parse().ok()
}

/// Writes the id maps of a sandbox's init: the same numbers inside as in our own namespace.
pub(crate) fn write_maps(pid: i32, ids: &IdMaps) -> io::Result<()> {
    for (kind, map) in [("uid_map", &ids.users), ("gid_map", &ids.groups)] {
        // One write: the kernel takes a map only whole.
        let path = Path::new("/proc").join(pid.to_string()).join(kind);
        fs::OpenOptions::new().write(true).open(path)?.write_all(map.identity().as_bytes())?;
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn ranges_by_name_and_number() {
        let text = b"# comment\nann:100000:65536\n1001:200000:10\nbob:300000:5\nbob:400000:70000\nbad:x:1\n\
            ann:1\n1002:4294967295:5\n1003:5:0\n1004:-5:7\n 1005:7:7 \n1006:7:7:7\n";
        let range = |uid, name: Option<&str>| {
            subordinate_range(text, uid, name.map(str::as_bytes)).map(|range| (range.first, range.count))
        };
        for (uid, name, expected) in [
            (1000, Some("ann"), Some((100_000, 65_536))),
            (1001, None, Some((200_000, 10))),
            (1000, Some("bob"), Some((400_000, 70_000))),
            (1000, Some("bad"), None),
            (1002, None, None),
            (1003, None, None),
            (1004, None, None),
            (1005, None, Some((7, 7))),
            (1006, None, None),
            (7, Some("nobody"), None),
        ] {
            assert_eq!(range(uid, name), expected, "{uid} {name:?}");
        }
    }

    #[test]
    fn names_come_from_passwd() {
        let passwd = b"root:x:0:0::/:/\nann:x:1000:5::/:/\nodd:x:abc:0\n";
        assert_eq!(name_of(1000, passwd).as_deref(), Some(&b"ann"[..]));
        assert_eq!(name_of(5, passwd), None);
    }

    #[test]
    fn maps() {
        let range = SubordinateRange { first: 100_000, count: 65_536 };
        assert_eq!(map_arguments(1000, range).join(" "), "0 1000 1 1 100000 65536");
    }
}
