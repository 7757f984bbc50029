//! Where cgroup controllers live on this host and where this process is in them.
//!
//! Owns parsing `/proc/self/mountinfo` and `/proc/self/cgroup` (cgroups(7)). Works on every mix of versions: each
//! controller belongs to exactly one hierarchy.

use std::fs;
use std::path::{Path, PathBuf};

use super::unified;

/// The cgroup file systems this process can see, with its own place in each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Hierarchies {
    /// Mount point of version 2 and our cgroup below it.
    unified: Option<(PathBuf, PathBuf)>,
    /// Version 1: controllers mounted together, mount point, our cgroup below it.
    v1: Vec<(Vec<String>, PathBuf, PathBuf)>,
}

/// Controllers that limits need.
const CONTROLLERS: [&str; 3] = ["memory", "cpu", "pids"];

impl Hierarchies {
    /// Reads them. What cannot be read is not there.
    pub(crate) fn of_this_process() -> Hierarchies {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        Hierarchies::parse(&read("/proc/self/mountinfo"), &read("/proc/self/cgroup"))
    }

    fn parse(mountinfo: &str, membership: &str) -> Hierarchies {
        let mut found = Hierarchies::default();
        for (root, point, kind, options) in mountinfo.lines().filter_map(cgroup_mount) {
            if kind == "cgroup2" {
                let ours = own_path(membership, |controllers| controllers.is_empty());
                found.unified = found.unified.or(ours.map(|path| (point.clone(), below(&point, root, path))));
                continue;
            }
            let controllers: Vec<String> = options
                .split(',')
                .filter(|option| CONTROLLERS.contains(option) || option.starts_with("cpu"))
                .map(str::to_owned)
                .collect();
            let Some(first) = controllers.first().cloned() else { continue };
            if let Some(path) = own_path(membership, |names| names.split(',').any(|name| name == first)) {
                found.v1.push((controllers, point.clone(), below(&point, root, path)));
            }
        }
        found
    }

    /// Our cgroup in the version 1 hierarchy of `controller`, and the mount options that name the hierarchy.
    pub(crate) fn v1(&self, controller: &str) -> Option<(String, PathBuf)> {
        let (controllers, _, ours) =
            self.v1.iter().find(|(names, _, _)| names.iter().any(|name| name == controller))?;
        Some((controllers.join(","), ours.clone()))
    }

    /// The topmost cgroup of version 2 that we see.
    pub(super) fn unified_top(&self) -> Option<&Path> {
        self.unified.as_ref().map(|(top, _)| top.as_path())
    }

    /// The cgroup of version 2 to make limited children in.
    pub(super) fn unified_base(&self, controller: &str, may_move: bool) -> Option<PathBuf> {
        let (top, ours) = self.unified.as_ref()?;
        unified::base(top, ours, controller, may_move)
    }

    /// Every cgroup that sandboxes of this process may be or have been in.
    pub(super) fn bases(&self) -> Vec<PathBuf> {
        let above = |top: &Path, ours: &Path| -> Vec<PathBuf> {
            ours.ancestors().take_while(|path| path.starts_with(top)).map(Path::to_owned).collect()
        };
        let unified = self.unified.iter().flat_map(|(top, ours)| above(top, ours));
        unified.chain(self.v1.iter().flat_map(|(_, top, ours)| above(top, ours))).collect()
    }

    /// Whether version 2 is mounted.
    pub(crate) fn has_unified(&self) -> bool {
        self.unified.is_some()
    }

    /// Whether version 1 is mounted with a controller we use.
    pub(crate) fn has_v1(&self) -> bool {
        !self.v1.is_empty()
    }
}

/// Root, mount point, type and super options of a line of mountinfo, if it is a cgroup file system.
fn cgroup_mount(line: &str) -> Option<(&str, PathBuf, &str, &str)> {
    let (left, right) = line.split_once(" - ")?;
    let mut left = left.split(' ').skip(3);
    let (root, point) = (left.next()?, left.next()?);
    let mut right = right.split(' ');
    let (kind, _, options) = (right.next()?, right.next()?, right.next()?);
    matches!(kind, "cgroup" | "cgroup2").then(|| (root, PathBuf::from(point), kind, options))
}

/// Our path in the hierarchy whose controller list satisfies `is_it`.
fn own_path(membership: &str, is_it: impl Fn(&str) -> bool) -> Option<&str> {
    membership.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (number, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        (is_it(controllers) && (!controllers.is_empty() || number == "0")).then_some(path)
    })
}

/// Where a cgroup path lies below a mount whose root is `root`. A path outside of what is mounted counts as its root.
fn below(point: &Path, root: &str, path: &str) -> PathBuf {
    let inside = if root == "/" { path } else { path.strip_prefix(root).unwrap_or("") };
    if inside.split('/').any(|part| part == "..") {
        return point.to_owned();
    }
    match inside.trim_start_matches('/') {
        "" => point.to_owned(),
        relative => point.join(relative),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_hybrid_host() {
        let mountinfo = "30 23 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
            31 30 0:27 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct\n\
            32 30 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
            33 30 0:29 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n\
            34 30 0:30 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let membership = "9:name=systemd:/s\n5:memory:/a/b\n1:cpu,cpuacct:/\n0::/u\n";
        let found = Hierarchies::parse(mountinfo, membership);
        assert_eq!(
            found.v1("memory"),
            Some(("memory".to_owned(), PathBuf::from("/sys/fs/cgroup/memory/a/b")))
        );
        assert_eq!(found.v1("cpu"), Some(("cpu,cpuacct".to_owned(), PathBuf::from("/sys/fs/cgroup/cpu"))));
        assert_eq!(found.v1("pids"), None);
        let unified = PathBuf::from("/sys/fs/cgroup/unified");
        assert_eq!(found.unified, Some((unified.clone(), unified.join("u"))));
    }

    #[test]
    fn a_unified_host_inside_a_namespace() {
        let mountinfo = "30 23 0:26 /../.. /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n";
        let point = PathBuf::from("/sys/fs/cgroup");
        let found = Hierarchies::parse(mountinfo, "0::/../x\n");
        assert_eq!(found.unified, Some((point.clone(), point.clone())));
        assert!(!found.has_v1());
        let found =
            Hierarchies::parse("30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n", "0::/user.slice/x\n");
        assert_eq!(found.unified, Some((point.clone(), point.join("user.slice/x"))));
        assert_eq!(Hierarchies::parse("garbage\n", "::\n"), Hierarchies::default());
    }
}
