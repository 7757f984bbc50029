//! `.dockerignore` files and `--exclude` patterns, with the meaning moby's patternmatcher gives them:
//!
//! - paths are relative to the context root, separated by `/`, without a leading one;
//! - the last pattern that matches decides; `!` makes it an exception, which takes a match back;
//! - a pattern that matches a directory matches everything below it. This holds for an exception only where the
//!   directory was matched when the exception was reached: `*.key`, `!src` does not bring `src/a.key` back;
//! - `*` and `?` stay within one component, `**` spans any number.
//!
//! Whether a path is matched thus depends on what the directories above it were matched by: [`Inherited`]. Walking is
//! left to [`crate::tree_walk`] and [`crate::context`]; [`IgnorePatterns::may_match_below`] tells where they may stop.

use crate::glob::{GlobError, Matcher};

/// The largest ignore file, in bytes: room for the patterns below at a hundred bytes each.
pub const IGNORE_BYTES_MAX: usize = 1 << 20;
/// The most patterns. Each is tried against every path of the context.
pub const IGNORE_PATTERNS_MAX: usize = 10_000;

/// What is wrong with an ignore file.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum IgnoreError {
    /// A pattern that is none.
    #[error("line {line}: {reason}")]
    Pattern {
        /// Line in the file, or number of the pattern, from 1.
        line: usize,
        /// What is wrong with it.
        reason: GlobError,
    },
    /// A lone `!`.
    #[error("line {line}: `!` wants a pattern behind it")]
    LoneNegation {
        /// Line in the file, or number of the pattern, from 1.
        line: usize,
    },
    /// More than [`IGNORE_BYTES_MAX`] bytes or [`IGNORE_PATTERNS_MAX`] patterns.
    #[error("ignore file is larger than {IGNORE_BYTES_MAX} bytes or {IGNORE_PATTERNS_MAX} patterns")]
    TooLarge,
}

/// An ordered list of patterns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IgnorePatterns {
    patterns: Vec<Pattern>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Pattern {
    negated: bool,
    matcher: Matcher,
}

impl IgnorePatterns {
    /// Reads the text of an ignore file: one pattern a line, `#` in the first column for comments.
    /// Bytes that are no UTF-8 match nothing.
    ///
    /// # Errors
    /// [`IgnoreError`] at the first bad line.
    pub fn parse(text: &[u8]) -> Result<IgnorePatterns, IgnoreError> {
        if text.len() > IGNORE_BYTES_MAX {
            return Err(IgnoreError::TooLarge);
        }
        let text = String::from_utf8_lossy(text);
        let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
        let lines = text.split('\n').enumerate().filter(|(_, line)| !line.starts_with('#'));
        IgnorePatterns::collect(lines.map(|(index, line)| (index + 1, line)))
    }

    /// Takes patterns one by one, such as the values of `--exclude`.
    ///
    /// # Errors
    /// [`IgnoreError`] with the number of the first bad pattern.
    pub fn from_patterns<'a>(
        patterns: impl IntoIterator<Item = &'a str>,
    ) -> Result<IgnorePatterns, IgnoreError> {
        IgnorePatterns::collect(patterns.into_iter().enumerate().map(|(index, text)| (index + 1, text)))
    }

    /// One pattern, taken as it is.
    pub(crate) fn only(pattern: &str) -> Result<IgnorePatterns, GlobError> {
        Ok(IgnorePatterns { patterns: vec![Pattern { negated: false, matcher: compile(pattern)? }] })
    }

    fn collect<'a>(lines: impl Iterator<Item = (usize, &'a str)>) -> Result<IgnorePatterns, IgnoreError> {
        let mut patterns = Vec::new();
        for (line, text) in lines {
            let text = text.trim();
            let (negated, text) = match text.strip_prefix('!') {
                Some(rest) => (true, rest.trim()),
                None => (false, text),
            };
            if text.is_empty() {
                if negated {
                    return Err(IgnoreError::LoneNegation { line });
                }
                continue;
            }
            if patterns.len() >= IGNORE_PATTERNS_MAX {
                return Err(IgnoreError::TooLarge);
            }
            let matcher = compile(&clean(text)).map_err(|reason| IgnoreError::Pattern { line, reason })?;
            patterns.push(Pattern { negated, matcher });
        }
        Ok(IgnorePatterns { patterns })
    }

    /// Whether there is no pattern at all.
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// Whether the patterns match `path`, whose directory hands `above` down.
    pub fn matches(&self, path: &str, above: &Inherited) -> bool {
        self.evaluate(path, above, |_| {})
    }

    /// Whether the patterns match `directory`, and what it hands down.
    pub fn enter(&self, directory: &str, above: &Inherited) -> (bool, Inherited) {
        let mut own = Inherited(vec![0; self.patterns.len().div_ceil(WORD_BITS)]);
        let matched = self.evaluate(directory, above, |number| own.insert(number));
        (matched, own)
    }

    /// What the directory at `path` hands down; the empty path is the root.
    pub fn inherited_from(&self, path: &str) -> Inherited {
        let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]).filter(|end| *end > 0);
        ends.fold(Inherited::default(), |above, end| self.enter(&path[..end], &above).1)
    }

    /// Whether the patterns match the path, as a walk from the root would find.
    pub fn matches_from_root(&self, path: &str) -> bool {
        let parent = path.rfind('/').map_or("", |at| &path[..at]);
        self.matches(path, &self.inherited_from(parent))
    }

    /// Whether some path below `directory` may be matched by an exception (`negated`), or by another pattern. Where
    /// not, nothing below differs from the directory itself.
    pub fn may_match_below(&self, directory: &str, negated: bool) -> bool {
        let below = format!("{directory}/");
        self.patterns.iter().any(|pattern| pattern.negated == negated && pattern.matcher.can_continue(&below))
    }

    /// Tries the patterns in their order; `note` hears which ones match.
    fn evaluate(&self, path: &str, above: &Inherited, mut note: impl FnMut(usize)) -> bool {
        let mut matched = false;
        for (number, pattern) in self.patterns.iter().enumerate() {
            // A pattern that would change nothing is not tried, so that nothing inherits its match.
            let tried = || pattern.negated == matched && pattern.matcher.matches(path);
            if above.contains(number) || tried() {
                note(number);
                matched = !pattern.negated;
            }
        }
        matched
    }
}

/// Which patterns matched a directory and therefore match everything below it. The root's are none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inherited(Vec<u64>);

const WORD_BITS: usize = u64::BITS as usize;

impl Inherited {
    fn contains(&self, number: usize) -> bool {
        self.0.get(number / WORD_BITS).is_some_and(|word| word >> (number % WORD_BITS) & 1 == 1)
    }

    fn insert(&mut self, number: usize) {
        self.0[number / WORD_BITS] |= 1 << (number % WORD_BITS);
    }
}

fn compile(pattern: &str) -> Result<Matcher, GlobError> {
    // A leading `**` before plain text means any path that ends so, even in the middle of a name.
    match pattern.strip_prefix("**") {
        Some(end)
            if !end.is_empty() && !end.starts_with('/') && !end.contains(['*', '?', '[', ']', '\\']) =>
        {
            Ok(Matcher::ending_in(end))
        }
        _ => Matcher::parse(pattern, true),
    }
}

/// The lexical cleaning of Go's `filepath.Clean`, then without a leading `/`.
fn clean(path: &str) -> String {
    let rooted = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => {
                parts.pop();
            }
            ".." if rooted => {}
            part => parts.push(part),
        }
    }
    match (parts.is_empty(), rooted) {
        (true, true) => "/".to_owned(),
        (true, false) => ".".to_owned(),
        _ => parts.join("/"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn ignored(patterns: &str, path: &str) -> bool {
        IgnorePatterns::parse(patterns.as_bytes()).unwrap().matches_from_root(path)
    }

    #[test]
    fn one_pattern() {
        let table = [
            ("**", "file", true),
            ("**", "dir/file", true),
            ("**/", "dir/file", true),
            ("**/**", "dir/file", true),
            ("dir/**", "dir/file", true),
            ("dir/**", "dir/dir2/file", true),
            ("dir/**", "dir", false),
            ("dir/**/", "dir/file", true),
            ("**/dir2/*", "dir/dir2/file", true),
            ("**/dir2/**", "dir/dir2/dir2/file", true),
            ("**file", "file", true),
            ("**file", "dir/file", true),
            ("**file", "dir/afile", true),
            ("**/file", "dir/file", true),
            ("**/file", "dir/afile", false),
            ("**/file*", "dir/dir/file.txt", true),
            ("**/file*txt", "dir/dir/file.txt", true),
            ("**/file*.txt", "dir/dir/file.txt", true),
            ("**/**/*.txt", "dir/dir/file.txt", true),
            ("**/**/*.txt2", "dir/dir/file.txt", false),
            ("**/*.txt", "file.txt", true),
            ("a**/*.txt", "a/file.txt", true),
            ("a**/*.txt", "a/dir/dir/file.txt", true),
            ("a/*.txt", "a/dir/file.txt", false),
            ("a/*.txt", "a/file.txt", true),
            ("a/*.txt**", "a/file.txt", true),
            ("a[b-d]e", "ae", false),
            ("a[b-d]e", "ace", true),
            ("a[b-d]e", "aze", false),
            ("a[^b-d]e", "aze", true),
            (".*", ".foo", true),
            (".*", "foo", false),
            ("abc.def", "abcdef", false),
            ("abc.def", "abc.def", true),
            ("abc?def", "abcZdef", true),
            ("a\\\\", "a\\", true),
            ("**/foo/bar", "in/foo/bar", true),
            ("**/foo/bar", "foo/bar/below", true),
            ("abc/**", "abc/def/ghi", true),
            ("**/.foo", "bar.foo", false),
            ("a(b)c/def", "a(b)c/def", true),
            ("a.|)$(}+{bc", "a.|)$(}+{bc", true),
            ("dist", "dist/deep/file", true),
            ("dist", "src/dist", false),
            ("/dist", "dist", true),
            ("./dist/", "dist/x", true),
            ("a/../b", "b", true),
            ("*", "a/b", true),
            ("*/b", "a/b/c", true),
            (".", "file", false),
            ("日本/*", "日本/x", true),
        ];
        for (pattern, path, expected) in table {
            assert_eq!(ignored(pattern, path), expected, "{pattern} on {path}");
        }
    }

    #[test]
    fn the_last_match_wins() {
        let table = [
            ("*\n!a", "a", false),
            ("*\n!a", "a/b", false),
            ("*\n!a\na/b", "a/b/c", true),
            ("*\n!a/b", "a", true),
            ("*\n!a/b", "a/b/c", false),
            ("*\n!a/b", "a/c", true),
            ("!a\n*", "a", true),
            ("*.md\n!README*.md\nREADME-secret.md", "README.md", false),
            ("*.md\n!README*.md\nREADME-secret.md", "README-secret.md", true),
            ("node_modules\n!**/keep", "node_modules/x/keep", false),
            ("a\n!a/b\na/b/c", "a/b/d", false),
        ];
        for (patterns, path, expected) in table {
            assert_eq!(ignored(patterns, path), expected, "{patterns:?} on {path}");
        }
    }

    #[test]
    fn files_are_read_as_docker_reads_them() {
        let text = "\u{feff}# comment\r\n\n  /a/b/ \r\n #not a comment\n! c \n";
        let patterns = IgnorePatterns::parse(text.as_bytes()).unwrap();
        let expected = IgnorePatterns::from_patterns(["a/b", "#not a comment", "!c"]);
        assert_eq!(Ok(patterns), expected);
        assert_eq!(IgnorePatterns::parse(b"a\n!"), Err(IgnoreError::LoneNegation { line: 2 }));
        let error = IgnorePatterns::parse(b"a\n[").unwrap_err();
        assert!(error.to_string().starts_with("line 2: bad pattern `[`"), "{error}");
        assert_eq!(IgnorePatterns::parse(&vec![b'a'; IGNORE_BYTES_MAX + 1]), Err(IgnoreError::TooLarge));
        assert!(IgnorePatterns::parse(b"\xff\n").unwrap().matches_from_root("\u{fffd}"));
    }

    #[test]
    fn walks_stop_only_where_nothing_can_come_back() {
        let table = [
            ("dist", "dist", true),
            ("*\n!src", "dist", true),
            ("*\n!src/lib", "src", false),
            ("*\n!src/lib", "source", true),
            ("*\n!src/lib", "src/doc", true),
            ("*\n!src/lib/**", "src", false),
            ("node_modules\n!**/keep", "node_modules", false),
            ("a\n!b*/x", "a", true),
            ("*\n!*/x", "a", false),
            ("*\n!*/x", "a/b", true),
            ("*\n!src\nsrc/x", "src/x", true),
        ];
        for (patterns, directory, stops) in table {
            let patterns = IgnorePatterns::parse(patterns.as_bytes()).unwrap();
            assert_eq!(!patterns.may_match_below(directory, true), stops, "{patterns:?} on {directory}");
        }
    }

    #[test]
    fn excludes_come_one_by_one() {
        let patterns = IgnorePatterns::from_patterns(["*.o", "!keep.o", "#x"]).unwrap();
        assert!(patterns.matches_from_root("a.o") && patterns.matches_from_root("#x"));
        assert!(!patterns.matches_from_root("keep.o") && !patterns.is_empty());
    }
}
