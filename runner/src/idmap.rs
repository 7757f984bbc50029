//! Which ids exist in a user namespace: [`IdMap`] and [`IdMaps`], read from the kernel's `uid_map` and `gid_map`.
//!
//! A sandbox has the ids of the process that makes it, under the same numbers. Owns the text of the maps
//! (user_namespaces(7)) and the question whether a payload's ids are among them.

use std::fs;
use std::io;

use serde::{Deserialize, Serialize};

use crate::user::Credentials;

/// The user and group ids that exist.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct IdMaps {
    /// User ids.
    pub(crate) users: IdMap,
    /// Group ids.
    pub(crate) groups: IdMap,
}

/// Ranges of ids: the first and how many.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct IdMap(Vec<(u32, u32)>);

/// A payload's user who does not exist where it should run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnmappedUser {
    /// The user as the image or the caller names it; empty for root.
    pub user: String,
    /// Its user id.
    pub uid: u32,
    /// Its group id, or the one of its further groups that does not exist.
    pub gid: u32,
    /// How many user ids there are; with one, it is root's.
    pub mapped: u64,
}

impl std::fmt::Display for UnmappedUser {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let UnmappedUser { user, uid, gid, mapped } = self;
        write!(f, "run as the user `{user}` ({uid}:{gid}): ")?;
        match mapped {
            1 => write!(f, "only one id is mapped in this user namespace, root's"),
            _ => write!(f, "only {mapped} ids are mapped in this user namespace, and not this one"),
        }
    }
}

impl IdMaps {
    /// Those of this process.
    pub(crate) fn of_this_process() -> io::Result<IdMaps> {
        let read = |path| fs::read_to_string(path).map(|text| IdMap::parse(&text));
        Ok(IdMaps { users: read("/proc/self/uid_map")?, groups: read("/proc/self/gid_map")? })
    }

    /// What is missing for a process with these ids, if anything is.
    pub(crate) fn missing(&self, user: &str, credentials: &Credentials) -> Option<UnmappedUser> {
        let (uid, gid) = (credentials.uid, credentials.gid);
        let unmapped = |gid| UnmappedUser { user: user.to_owned(), uid, gid, mapped: self.users.count() };
        if !self.users.has(uid) || !self.groups.has(gid) {
            return Some(unmapped(gid));
        }
        // With a single id the kernel forbids further groups, and a payload runs without.
        let further = credentials.groups.iter().filter(|_| self.groups.count() > 1);
        further.copied().find(|group| !self.groups.has(*group)).map(unmapped)
    }
}

impl IdMap {
    fn parse(text: &str) -> IdMap {
        let range = |line: &str| {
            let mut fields = line.split_ascii_whitespace();
            Some((fields.next()?.parse().ok()?, fields.nth(1)?.parse().ok()?))
        };
        IdMap(text.lines().filter_map(range).collect())
    }

    /// The largest id that follows 0 without a gap.
    pub(crate) fn last(&self) -> u32 {
        let mut next = 0u32;
        while let Some((first, count)) = self
            .0
            .iter()
            .find(|(first, count)| next.checked_sub(*first).is_some_and(|offset| offset < *count))
        {
            // The last number of all is no id.
            let Some(end) = first.checked_add(*count) else { return u32::MAX - 1 };
            next = end;
        }
        next.saturating_sub(1)
    }

    fn has(&self, id: u32) -> bool {
        self.0.iter().any(|(first, count)| id.checked_sub(*first).is_some_and(|offset| offset < *count))
    }

    fn count(&self) -> u64 {
        self.0.iter().map(|(_, count)| u64::from(*count)).sum()
    }

    /// The map for a namespace below: every id under its own number.
    pub(crate) fn identity(&self) -> String {
        self.0.iter().map(|(first, count)| format!("{first} {first} {count}\n")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps() {
        let all = IdMap::parse("         0          0 4294967295\n");
        assert_eq!(all.identity(), "0 0 4294967295\n");
        assert!(all.has(0) && all.has(4_294_967_294) && !all.has(u32::MAX));
        let ranges = IdMap::parse("0 1000 1\n1 100000 65536\n");
        assert_eq!(ranges.identity(), "0 0 1\n1 1 65536\n");
        assert!(ranges.has(65_536) && !ranges.has(65_537));
    }

    #[test]
    fn a_user_who_does_not_exist_is_named() {
        let maps = |text| IdMaps { users: IdMap::parse(text), groups: IdMap::parse(text) };
        let user =
            |uid, gid, groups: &[u32]| Credentials { uid, gid, groups: groups.to_vec(), home: "/".into() };
        let single = maps("0 1000 1\n");
        assert_eq!(single.missing("", &user(0, 0, &[10])), None);
        assert_eq!(
            single.missing("app", &user(999, 998, &[])).map(|missing| missing.to_string()).as_deref(),
            Some("run as the user `app` (999:998): only one id is mapped in this user namespace, root's")
        );
        assert!(single.missing("0:5", &user(0, 5, &[])).is_some());
        let ranges = maps("0 1000 1\n1 100000 65536\n");
        assert_eq!(ranges.missing("app", &user(999, 998, &[10])), None);
        assert_eq!(
            ranges.missing("app", &user(999, 998, &[70_000])).map(|missing| missing.gid),
            Some(70_000)
        );
        assert_eq!(ranges.missing("big", &user(70_000, 0, &[])).map(|missing| missing.mapped), Some(65_537));
    }
}
