//! What rimg uses of the kernel, since which version it is there, and what is done without it.
//!
//! Owns [`FEATURES`], the one table that `rimg doctor` prints and docs/running.md repeats, and the running kernel's
//! version. Versions only inform: whether a call is there is found out by making it. The exception is
//! [`overlay_attributes`], which has to be known before a mount could tell.

use std::fmt;
use std::sync::OnceLock;

/// Major and minor version of a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32);

/// The oldest kernel on which root's containers run.
pub const ROOT_SINCE: Version = Version(5, 10);

/// The oldest kernel on which an ordinary user's containers run: overlayfs in a user namespace.
pub const USERS_SINCE: Version = Version(5, 11);

/// The first version on whose every file system overlayfs can keep `user.overlay.*`: tmpfs was the last.
const USER_ATTRIBUTES_SINCE: Version = Version(6, 6);

/// Something of the kernel that rimg uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Feature {
    /// What it is called in the kernel's documentation.
    pub name: &'static str,
    /// The first version that has it.
    pub since: Version,
    /// What rimg does on older ones.
    pub without: &'static str,
}

const fn feature(name: &'static str, since: Version, without: &'static str) -> Feature {
    Feature { name, since, without }
}

/// What is used beyond [`ROOT_SINCE`], or is what makes that the oldest; by version.
pub const FEATURES: [Feature; 15] = [
    feature("`open_tree`, `move_mount`, `fsopen`", Version(5, 2), "needed"),
    feature("`clone3`, pidfds that can be waited for", Version(5, 4), "needed"),
    feature("`openat2`", Version(5, 6), "needed"),
    feature("`clone3` into a cgroup", Version(5, 7), "needed"),
    feature("`close_range`", Version(5, 9), "needed"),
    feature("overlay option `volatile`", Version(5, 10), "needed"),
    feature("overlay for ordinary users (`userxattr`)", Version(5, 11), "root only"),
    feature("`close_range` with close-on-exec", Version(5, 11), "descriptors are marked one by one"),
    feature("`mount_setattr`", Version(5, 12), "remounted in a mount namespace made for it"),
    feature("`cgroup.kill`", Version(5, 14), "the kernel ends all with process 1"),
    feature(
        "files without a name on overlayfs (`O_TMPFILE`)",
        Version(6, 1),
        "a file that loses its name at once",
    ),
    feature("`memfd_create` for programs (`MFD_EXEC`)", Version(6, 3), "programs are always allowed"),
    feature(
        "`user.*` attributes on tmpfs",
        Version(6, 6),
        "root's overlays use `trusted.*`; another user's store cannot be there",
    ),
    feature(
        "overlay layers by name, one by one (`lowerdir+`)",
        Version(6, 8),
        "all layers in one option of `mount`",
    ),
    feature("overlay layers by descriptor", Version(6, 13), "by name"),
];

impl Version {
    /// Of the running kernel; `(0, 0)` when it does not tell.
    #[must_use]
    pub fn running() -> Version {
        static RUNNING: OnceLock<Version> = OnceLock::new();
        *RUNNING.get_or_init(|| Version::parse(&rustix::system::uname().release().to_string_lossy()))
    }

    fn parse(release: &str) -> Version {
        let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
        Version(numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

/// Where overlayfs keeps its marks on files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OverlayAttributes {
    /// `user.overlay.*`, which root and ordinary users can write.
    User,
    /// `trusted.overlay.*`, which only the host's root can write.
    Trusted,
}

/// Which of them this process's overlays use: `user.overlay.*`, but for root on kernels that do not have it
/// everywhere. Snapshots are made anew after each start of the machine, so whoever reads a mark uses the same ones.
#[must_use]
pub fn overlay_attributes() -> OverlayAttributes {
    static ATTRIBUTES: OnceLock<OverlayAttributes> = OnceLock::new();
    *ATTRIBUTES.get_or_init(|| match Version::running() < USER_ATTRIBUTES_SINCE && is_host_root() {
        true => OverlayAttributes::Trusted,
        false => OverlayAttributes::User,
    })
}

/// The number of the first user namespace (`PROC_USER_INIT_INO`, include/linux/proc_ns.h).
const HOST_USER_NAMESPACE: u64 = 0xEFFF_FFFD;

/// Whether this is root, and in no user namespace but the host's.
pub(crate) fn is_host_root() -> bool {
    rustix::process::geteuid().is_root()
        && rustix::fs::stat("/proc/self/ns/user").is_ok_and(|stat| stat.st_ino == HOST_USER_NAMESPACE)
}

impl OverlayAttributes {
    /// The attribute that marks a directory which hides what lies below it in lower layers.
    #[must_use]
    pub fn opaque(self) -> &'static [u8] {
        match self {
            OverlayAttributes::User => b"user.overlay.opaque",
            OverlayAttributes::Trusted => b"trusted.overlay.opaque",
        }
    }

    /// The attribute that makes overlayfs look for whiteouts in a directory of one layer alone. Without it the names of
    /// whiteouts there are listed, though nothing can be found under them.
    #[must_use]
    pub fn origin(self) -> &'static [u8] {
        match self {
            OverlayAttributes::User => b"user.overlay.origin",
            OverlayAttributes::Trusted => b"trusted.overlay.origin",
        }
    }

    /// The mount options that choose them. Directories that were renamed and files without their content would need
    /// marks that no layer can express; with `userxattr` there are none.
    pub(crate) fn options(self) -> &'static [(&'static str, Option<&'static str>)] {
        match self {
            OverlayAttributes::User => &[("userxattr", None)],
            OverlayAttributes::Trusted => &[("redirect_dir", Some("off")), ("metacopy", Some("off"))],
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        assert_eq!(Version::parse("6.18.44-fc-v595"), Version(6, 18));
        assert_eq!(Version::parse("5.15"), Version(5, 15));
        assert_eq!(Version::parse("5.10.0-33-cloud-amd64"), Version(5, 10));
        assert_eq!(Version::parse("strange"), Version(0, 0));
        assert!(Version(5, 9) < Version(5, 10) && Version(5, 10).to_string() == "5.10");
    }

    #[test]
    fn what_is_needed_is_what_the_oldest_kernel_has() {
        for feature in FEATURES {
            assert_eq!(feature.without == "needed", feature.since <= ROOT_SINCE, "{feature:?}");
        }
        assert!(FEATURES.is_sorted_by_key(|feature| feature.since));
    }

    /// The table for readers is this one.
    #[test]
    fn the_documentation_has_the_same_table() {
        let page = include_str!("../../docs/running.md");
        let row =
            |feature: &Feature| format!("| {} | {} | {} |\n", feature.name, feature.since, feature.without);
        let table: String = FEATURES.iter().map(row).collect();
        assert!(page.contains(&table), "docs/running.md should have:\n{table}");
        let oldest = format!("Linux {ROOT_SINCE} for root, {USERS_SINCE} for other users");
        assert!(page.contains(&oldest), "docs/running.md should say `{oldest}`");
    }
}
