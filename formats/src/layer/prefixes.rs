//! [`PathHashes`]: paths and the directories above them as numbers.
//!
//! A path of 4096 bytes has two thousand directories above it, and a layer may hold a hundred thousand such paths in a
//! blob of a few megabytes. Handling every prefix as a text of its own would cost minutes and gigabytes; a hash that
//! goes on from the directory above costs what the last component does. The keys are random, so nobody can make two
//! paths meet on purpose.

use std::collections::HashSet;
use std::hash::{BuildHasher, Hasher, RandomState};

use super::path::LayerPath;

/// Hashes paths with keys of its own.
#[derive(Clone, Debug, Default)]
pub(super) struct PathHashes(RandomState);

impl PathHashes {
    /// The hash of each path on the way from below the root down to `path`, `path` itself last.
    pub(super) fn down_to<'p>(&self, path: &'p LayerPath) -> impl Iterator<Item = u64> + use<'p> {
        let mut hasher = self.0.build_hasher();
        path.components().map(move |name| {
            hasher.write(name);
            hasher.write_u8(b'/');
            hasher.clone().finish()
        })
    }
}

/// Counts the directories that a layer's entries lie in, named by the layer or not: whoever unpacks it has to make
/// them all.
#[derive(Debug, Default)]
pub(super) struct DirectoryCount {
    hashes: PathHashes,
    seen: HashSet<u64>,
    /// The directory of the entry before, which is counted.
    parent: LayerPath,
}

impl DirectoryCount {
    /// Counts what lies above `path`; how many directories there are now, at most a little more than `max`.
    pub(super) fn add(&mut self, path: &LayerPath, max: u64) -> u64 {
        let Some(parent) = path.parent().filter(|parent| *parent != self.parent) else {
            return self.seen.len() as u64;
        };
        for hash in self.hashes.down_to(&parent) {
            self.seen.insert(hash);
            if self.seen.len() as u64 > max {
                break;
            }
        }
        self.parent = parent;
        self.seen.len() as u64
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn path(text: &str) -> LayerPath {
        LayerPath::parse(text).unwrap()
    }

    #[test]
    fn a_path_has_one_hash_wherever_it_is_met() {
        let hashes = PathHashes::default();
        let of = |text: &str| hashes.down_to(&path(text)).last().unwrap();
        let all: Vec<u64> = hashes.down_to(&path("a/b/c")).collect();
        assert_eq!(all, [of("a"), of("a/b"), of("a/b/c")]);
        assert_ne!(of("a/bc"), of("ab/c"));
        assert_eq!(hashes.down_to(&LayerPath::root()).count(), 0);
    }

    #[test]
    fn directories_count_once() {
        let mut count = DirectoryCount::default();
        for (text, directories) in
            [("a", 0), ("a/b/c", 2), ("a/b/d", 2), ("a/x/y", 3), ("a/b/c/e", 4), ("b", 4), ("", 4)]
        {
            assert_eq!(count.add(&path(text), 100), directories, "{text}");
        }
        assert_eq!(count.add(&path(&"deep/".repeat(50)), 10), 11);
    }
}
