//! [`Seen`]: what a cache mount has been used with, so that times can be compared with those of its files.
//!
//! The files in a cache keep real times, while those of layers have logical ones, of long ago. Compared with each other
//! they would make every source look older than what an earlier build made of another version of it. So beside a cache
//! the files of a step are given the times that they would have in a working directory:
//!
//! - a path keeps its time as long as what is there stays the same;
//! - when it changes, appears or comes back, it gets the present, which is later than all that the cache holds.
//!
//! A cache remembers for that, of each path, what was there last and since when. Several projects may use one cache, so
//! a path that a step does not have is only taken for removed if the same instruction had it before. Paths and contents
//! are kept as digests, cut to 16 bytes.

use std::collections::{HashMap, HashSet};

/// What the file begins with.
const MAGIC: &[u8; 12] = b"rimg seen 1\n";

/// Paths that are remembered: 48 bytes each. A cache that has seen more forgets all, and takes everything for changed.
const PATHS_MAX: usize = 1 << 20;

/// The first 16 bytes of a digest.
pub(super) type Short = [u8; 16];

/// In the place of an identity: nothing was there, or nobody knows what.
const NOTHING: Short = [0; 16];

/// A path as a step is going to see it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sight {
    /// Digest of the path.
    pub(super) path: Short,
    /// Digest of what is there.
    pub(super) identity: Short,
    /// The time that it has by itself, if that is a real one: nanoseconds since 1970.
    pub(super) real_ns: Option<i64>,
    /// How much earlier than the present it has to be, when it has changed: layers stay one after the other.
    pub(super) before_now_ns: i64,
}

/// What is remembered of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Memory {
    identity: Short,
    /// Since when, in nanoseconds since 1970; `None` for the time that the file has by itself.
    since_ns: Option<i64>,
    /// The instruction that had it last.
    slot: u64,
}

/// What one cache has seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    paths: HashMap<Short, Memory>,
    /// When it was used last; 0 for never.
    used_ns: i64,
    /// Something was there before this was begun.
    is_lost: bool,
}

impl Seen {
    /// For a cache whose memory is lost, but not what is in it.
    pub(super) fn lost() -> Seen {
        Seen { is_lost: true, ..Seen::default() }
    }

    /// The times at which a step of the instruction `slot` sees `sights`, and takes note of them. `None` for the time
    /// that a path has by itself. `now_ns`, less what the sights take off, must be later than every file in the cache. While others use the cache
    /// (not `alone`), nobody knows from which of two versions it is made, and the next one has to make it again.
    pub(super) fn look(&mut self, sights: &[Sight], slot: u64, now_ns: i64, alone: bool) -> Vec<Option<i64>> {
        let is_known = self.paths.values().any(|memory| memory.slot == slot);
        let mut present = HashSet::with_capacity(sights.len());
        let mut times = Vec::with_capacity(sights.len());
        for sight in sights {
            present.insert(sight.path);
            let before = self.paths.get(&sight.path);
            let same = before.is_some_and(|memory| memory.identity == sight.identity);
            let is_new = !same && (before.is_some() || is_known || self.is_lost);
            // What was written after the last use is newer than all that came of it.
            let in_between = |real| real > self.used_ns && real <= now_ns;
            let speaks_for_itself = !self.is_lost && sight.real_ns.is_some_and(in_between);
            let since_ns = match before {
                Some(memory) if same => memory.since_ns,
                _ if is_new && !speaks_for_itself => Some(now_ns - sight.before_now_ns),
                _ => None,
            };
            let identity = if is_new && !alone { NOTHING } else { sight.identity };
            self.paths.insert(sight.path, Memory { identity, since_ns, slot });
            times.push(since_ns);
        }
        for (path, memory) in &mut self.paths {
            if memory.slot == slot && !present.contains(path) {
                memory.identity = NOTHING;
            }
        }
        self.used_ns = now_ns;
        self.is_lost = false;
        times
    }

    /// For a file.
    pub(super) fn encode(&self) -> Vec<u8> {
        if self.paths.len() > PATHS_MAX {
            return Vec::new();
        }
        let mut bytes = MAGIC.to_vec();
        bytes.extend(self.used_ns.to_le_bytes());
        for (path, memory) in &self.paths {
            bytes.extend(path);
            bytes.extend(memory.identity);
            bytes.extend(memory.since_ns.unwrap_or(0).to_le_bytes());
            bytes.extend(memory.slot.to_le_bytes());
        }
        bytes
    }

    /// From a file; `None` when it is damaged.
    pub(super) fn decode(bytes: &[u8]) -> Option<Seen> {
        let rest = bytes.strip_prefix(MAGIC)?;
        let (used, rest) = rest.split_first_chunk::<8>()?;
        let (records, []) = rest.as_chunks::<48>() else { return None };
        let mut paths = HashMap::with_capacity(records.len());
        for record in records {
            let (path, rest) = record.split_first_chunk::<16>()?;
            let (identity, rest) = rest.split_first_chunk::<16>()?;
            let (since, slot) = rest.split_first_chunk::<8>()?;
            let since_ns = Some(i64::from_le_bytes(*since)).filter(|since| *since != 0);
            let slot = u64::from_le_bytes(slot.try_into().ok()?);
            paths.insert(*path, Memory { identity: *identity, since_ns, slot });
        }
        Some(Seen { paths, used_ns: i64::from_le_bytes(*used), is_lost: false })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn sights(files: &[(u8, u8)]) -> Vec<Sight> {
        files
            .iter()
            .map(|(path, content)| Sight {
                path: [*path; 16],
                identity: [*content; 16],
                real_ns: None,
                before_now_ns: 0,
            })
            .collect()
    }

    /// One use after the other; for each the times of its paths.
    fn uses(table: &[(u64, &[(u8, u8)])]) -> Vec<Vec<Option<i64>>> {
        let mut seen = Seen::default();
        let mut now = 0;
        let mut look = |(slot, files): &(u64, &[(u8, u8)])| {
            now += 10;
            let times = seen.look(&sights(files), *slot, now, true);
            seen = Seen::decode(&seen.encode()).unwrap();
            times
        };
        table.iter().map(&mut look).collect()
    }

    #[test]
    fn a_path_keeps_its_time_until_it_changes() {
        let times = uses(&[
            (1, &[(1, 1), (2, 2)]),
            (1, &[(1, 1), (2, 2)]),
            (1, &[(1, 1), (2, 3)]),
            (1, &[(1, 1), (2, 3)]),
            (1, &[(1, 1), (2, 2)]),
            (1, &[(2, 2)]),
            (1, &[(1, 1), (2, 2), (3, 3)]),
        ]);
        let expected: [&[Option<i64>]; 7] = [
            &[None, None],
            &[None, None],
            &[None, Some(30)],
            &[None, Some(30)],
            &[None, Some(50)],
            &[Some(50)],
            &[Some(70), Some(50), Some(70)],
        ];
        assert_eq!(times, expected);
    }

    #[test]
    fn projects_that_share_a_cache_only_meet_where_they_differ() {
        let times = uses(&[
            (1, &[(1, 1), (2, 2)]),
            (2, &[(1, 1), (5, 5)]),
            (1, &[(1, 1), (2, 2)]),
            (2, &[(1, 9), (5, 5)]),
            (1, &[(1, 1), (2, 2)]),
        ]);
        let expected: [&[Option<i64>]; 5] =
            [&[None, None], &[None, None], &[None, None], &[Some(40), None], &[Some(50), None]];
        assert_eq!(times, expected);
    }

    #[test]
    fn what_two_make_at_once_is_made_again() {
        let mut seen = Seen::default();
        let look =
            |seen: &mut Seen, content, now, alone| seen.look(&sights(&[(1, content)]), 1, now, alone)[0];
        assert_eq!(look(&mut seen, 1, 10, true), None);
        assert_eq!(look(&mut seen, 2, 20, false), Some(20));
        assert_eq!(look(&mut seen, 2, 30, true), Some(30));
        assert_eq!(look(&mut seen, 2, 40, true), Some(30));
    }

    #[test]
    fn a_lost_memory_makes_everything_new() {
        let mut seen = Seen::lost();
        assert_eq!(seen.look(&sights(&[(1, 1)]), 1, 10, true), [Some(10)]);
        assert_eq!(seen.look(&sights(&[(1, 1)]), 1, 20, true), [Some(10)]);
        for damaged in [&b""[..], b"rimg seen 1\n", b"rimg seen 1\n12345678x"] {
            assert_eq!(Seen::decode(damaged), None);
        }
    }

    #[test]
    fn real_times_stand_where_they_are_later_than_the_last_use() {
        let mut seen = Seen::default();
        let mut look = |content: u8, real, now| {
            let sight =
                Sight { path: [1; 16], identity: [content; 16], real_ns: Some(real), before_now_ns: 0 };
            seen.look(&[sight], 1, now, true)[0]
        };
        assert_eq!(look(1, 5, 100), None);
        assert_eq!(look(2, 150, 200), None);
        assert_eq!(look(3, 5, 300), Some(300));
        assert_eq!(look(3, 5, 400), Some(300));
        assert_eq!(look(4, 999, 500), Some(500));
    }
}
