//! Capabilities by name, and the sets a payload starts with.
//!
//! Owns the table of names of `capabilities(7)`, Docker's default fourteen, and `--cap-add`/`--cap-drop` arithmetic.
//! Leaves the dropping itself to [`crate::payload`].

use serde::{Deserialize, Serialize};

/// Names in the order of their numbers, without the `CAP_` prefix.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// A set of capabilities; bit n is the capability of number n.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CapabilitySet(u64);

impl CapabilitySet {
    /// No capability.
    pub const EMPTY: CapabilitySet = CapabilitySet(0);
    /// Every capability this table knows.
    pub const ALL: CapabilitySet = CapabilitySet((1 << NAMES.len()) - 1);
    /// The fourteen Docker grants by default: `CHOWN DAC_OVERRIDE FOWNER FSETID KILL SETGID SETUID SETPCAP
    /// NET_BIND_SERVICE NET_RAW SYS_CHROOT MKNOD AUDIT_WRITE SETFCAP`.
    pub const DOCKER: CapabilitySet = CapabilitySet(0xa804_25fb);

    /// Docker's default with `--cap-add` and `--cap-drop` applied as Docker does: `ALL` first, then names; a name
    /// that is both added and dropped is dropped unless all were dropped before.
    ///
    /// # Errors
    /// The first name that is no capability.
    pub fn docker_with(add: &[String], drop: &[String]) -> Result<CapabilitySet, UnknownCapability> {
        let is_all = |name: &String| name.eq_ignore_ascii_case("all") || name.eq_ignore_ascii_case("cap_all");
        let (add_all, drop_all) = (add.iter().any(is_all), drop.iter().any(is_all));
        let mut set = match (add_all, drop_all) {
            (true, false) => CapabilitySet::ALL,
            (_, true) => CapabilitySet::EMPTY,
            (false, false) => CapabilitySet::DOCKER,
        };
        for name in add.iter().filter(|name| !is_all(name)) {
            set.0 |= 1 << number_of(name)?;
        }
        for name in drop.iter().filter(|name| !is_all(name)) {
            set.0 &= !(1 << number_of(name)?);
        }
        Ok(set)
    }

    /// Whether it holds the capability `name` (without the `CAP_` prefix).
    #[must_use]
    pub fn has(self, name: &str) -> bool {
        NAMES.iter().position(|n| *n == name).is_some_and(|number| self.0 >> number & 1 == 1)
    }

    /// The bits, as the kernel numbers them.
    pub(crate) fn bits(self) -> u64 {
        self.0
    }
}

/// A name that is no capability.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is not a capability: see capabilities(7) for the names, such as NET_ADMIN")]
pub struct UnknownCapability(pub String);

fn number_of(name: &str) -> Result<usize, UnknownCapability> {
    let upper = name.to_ascii_uppercase();
    let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
    NAMES.iter().position(|n| *n == bare).ok_or_else(|| UnknownCapability(name.to_owned()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|s| (*s).to_owned()).collect()
    }

    #[test]
    fn dockers_fourteen_are_the_documented_ones() {
        let expected = [
            "CHOWN",
            "DAC_OVERRIDE",
            "FOWNER",
            "FSETID",
            "KILL",
            "SETGID",
            "SETUID",
            "SETPCAP",
            "NET_BIND_SERVICE",
            "NET_RAW",
            "SYS_CHROOT",
            "MKNOD",
            "AUDIT_WRITE",
            "SETFCAP",
        ];
        let held: Vec<_> = NAMES.iter().filter(|n| CapabilitySet::DOCKER.has(n)).copied().collect();
        assert_eq!(held, expected);
    }

    #[test]
    fn adding_and_dropping() {
        let with = |add: &[&str], drop: &[&str]| CapabilitySet::docker_with(&names(add), &names(drop));
        assert_eq!(with(&[], &[]), Ok(CapabilitySet::DOCKER));
        assert_eq!(with(&["all"], &[]), Ok(CapabilitySet::ALL));
        assert_eq!(with(&[], &["ALL"]), Ok(CapabilitySet::EMPTY));
        assert_eq!(with(&["cap_chown"], &["ALL"]).unwrap().bits(), 1);
        assert!(with(&["SYS_ADMIN"], &[]).unwrap().has("SYS_ADMIN"));
        assert!(!with(&[], &["NET_RAW"]).unwrap().has("NET_RAW"));
        assert!(!with(&["ALL"], &["SYS_ADMIN"]).unwrap().has("SYS_ADMIN"));
        assert_eq!(with(&["FLY"], &[]), Err(UnknownCapability("FLY".to_owned())));
    }
}
