//! [`CacheKey`]: the identity of what a step would do, and the table of what enters it.
//!
//! | input | `COPY`, `ADD`, `WORKDIR`, `FROM dir`, `FROM tar` | `RUN` |
//! |---|---|---|
//! | `format`: version of this table and of the layer format | ✓ | ✓ |
//! | `compression` and level of the blob | ✓ | ✓ |
//! | `times`: the constant time, or `preserve` | ✓ | ✓ |
//! | `files`: path, type, mode, owner, extended attributes, link target, content digest of each entry (1) | ✓ (2) | – |
//! | `the layers below`: their ChainID; `touched files`: what earlier steps wrote anew with the same content | – | ✓ |
//! | `command`: the final argument list, with heredoc bodies; `script`: a heredoc that begins with `#!` | – | ✓ |
//! | `environment NAME`: each variable, `ARG`s in scope included | – | ✓ |
//! | `user`, `working directory`, `hostname`, `network`, `platform` | – | ✓ (4) |
//! | `owners`: that all files are shown as root's, if they are not | – | ✓ |
//! | `mount TARGET`: options, and for `bind` the content that it shows | – | ✓ (3) |
//!
//! 1. The entries are what the layer will be, byte for byte: destination symlinks, names in `/etc/passwd`, missing
//!    parents, the entries of an archive are already resolved in them. A layer is therefore found again on top of any
//!    base, and whether its files came one by one or in an archive.
//! 2. Modification times only with `--timestamps=preserve`; never device, inode or path of the source.
//! 3. The content of cache mounts and secrets never enters a key; their declaration does. Of files shown by a bind
//!    mount the times do not enter either, though the process can see them.
//! 4. The times of the files that a process sees, and the `SOURCE_DATE_EPOCH` that it is given, follow from `times` and
//!    `the layers below`; the version of how they follow is in the kind of the step.
//!
//! What does not enter: the instruction's spelling, its place in the file, names of stages and images (their content
//! does), metadata instructions. The spelling serves as [`Slot`], to find the nearest earlier entry of a miss.

use std::fmt;

use rimg_formats::digest::{Algorithm, Digest, Hasher};
use serde::{Deserialize, Serialize};

/// Version of the key table and of everything that turns the same inputs into the same layer. Raise it whenever a
/// step would come out differently.
pub(crate) const KEY_FORMAT: &str = "1";

/// The identity of what a step would do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CacheKey(Digest);

impl fmt::Display for CacheKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0.hex())
    }
}

/// Where earlier results of "the same step" are looked for, to explain a miss: the instruction as written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Slot(Digest);

impl Slot {
    /// The slot of an instruction written as `text`.
    pub(crate) fn new(text: &str) -> Slot {
        Slot(Digest::sha256(text.as_bytes()))
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0.hex())
    }
}

/// The inputs of a step in the order of the table. Only digests are kept: a value may be a secret.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StepInputs {
    inputs: Vec<(String, Digest)>,
}

impl StepInputs {
    /// The inputs that every step has: the first rows of the table.
    pub(crate) fn new(kind: &str, compression: &str, times: &str) -> StepInputs {
        let mut inputs = StepInputs::default();
        inputs.add("format", &format!("{KEY_FORMAT} {kind}"));
        inputs.add("compression", compression);
        inputs.add("times", times);
        inputs
    }

    /// Adds an input by its text.
    pub(crate) fn add(&mut self, name: impl Into<String>, value: &str) {
        self.add_digest(name, Digest::sha256(value.as_bytes()));
    }

    /// Adds an input by its digest.
    pub(crate) fn add_digest(&mut self, name: impl Into<String>, value: Digest) {
        self.inputs.push((name.into(), value));
    }

    /// Adds an input that is a list of texts, unambiguously.
    pub(crate) fn add_list<'a>(&mut self, name: &str, values: impl IntoIterator<Item = &'a str>) {
        let mut list = FieldHasher::new();
        for value in values {
            list.field(value.as_bytes());
        }
        self.add_digest(name, list.finish());
    }

    /// The key of a step with these inputs.
    pub(crate) fn key(&self) -> CacheKey {
        let mut fields = FieldHasher::new();
        for (name, value) in &self.inputs {
            fields.field(name.as_bytes());
            fields.field(value.as_bytes());
        }
        CacheKey(fields.finish())
    }

    /// The name of the first input that `earlier` does not have with the same value, or has and this has not.
    pub(crate) fn first_difference<'a>(&'a self, earlier: &'a StepInputs) -> Option<&'a str> {
        let missing = |inputs: &StepInputs, wanted: &(String, Digest)| !inputs.inputs.contains(wanted);
        let changed = self.inputs.iter().find(|input| missing(earlier, input));
        let dropped = || earlier.inputs.iter().find(|input| missing(self, input));
        changed.or_else(dropped).map(|(name, _)| name.as_str())
    }

    /// How many inputs the two have in common.
    pub(crate) fn common(&self, other: &StepInputs) -> usize {
        self.inputs.iter().filter(|input| other.inputs.contains(input)).count()
    }
}

/// Hashes a sequence of byte strings so that no two sequences give the same bytes: each is preceded by its length.
pub(crate) struct FieldHasher(Hasher);

impl FieldHasher {
    pub(crate) fn new() -> FieldHasher {
        FieldHasher(Hasher::new(Algorithm::Sha256))
    }

    pub(crate) fn field(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.0.update(bytes);
    }

    pub(crate) fn number(&mut self, number: u64) {
        self.0.update(&number.to_le_bytes());
    }

    pub(crate) fn finish(self) -> Digest {
        self.0.finish()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn inputs(values: &[(&str, &str)]) -> StepInputs {
        let mut inputs = StepInputs::new("RUN", "gzip-4", "315619200");
        for (name, value) in values {
            inputs.add(*name, value);
        }
        inputs
    }

    #[test]
    fn every_input_changes_the_key() {
        let base = inputs(&[("below", "a"), ("command", "b")]);
        let table = [
            StepInputs::new("COPY", "gzip-4", "315619200"),
            StepInputs::new("RUN", "gzip-5", "315619200"),
            StepInputs::new("RUN", "gzip-4", "preserve"),
            inputs(&[("below", "x"), ("command", "b")]),
            inputs(&[("below", "a"), ("command", "x")]),
            inputs(&[("below", "a"), ("command", "b"), ("user", "")]),
            inputs(&[("below", "a")]),
            inputs(&[("command", "a"), ("below", "b")]),
        ];
        for (at, other) in table.iter().enumerate() {
            assert_ne!(base.key(), other.key(), "{at}");
        }
        assert_eq!(base.key(), inputs(&[("below", "a"), ("command", "b")]).key());
    }

    #[test]
    fn lists_are_unambiguous() {
        let key = |values: &[&str]| {
            let mut inputs = StepInputs::default();
            inputs.add_list("command", values.iter().copied());
            inputs.key()
        };
        assert_ne!(key(&["a", "b"]), key(&["ab"]));
        assert_ne!(key(&["a", ""]), key(&["a"]));
    }

    #[test]
    fn the_first_difference_is_named() {
        let earlier = inputs(&[("below", "a"), ("environment A", "1"), ("environment B", "1")]);
        let now = inputs(&[("below", "a"), ("environment A", "1"), ("environment B", "2")]);
        assert_eq!(now.first_difference(&earlier), Some("environment B"));
        let now = inputs(&[("below", "a"), ("environment A", "1")]);
        assert_eq!(now.first_difference(&earlier), Some("environment B"));
        assert_eq!(earlier.first_difference(&earlier), None);
    }
}
