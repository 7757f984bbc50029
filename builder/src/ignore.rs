//! `.dockerignore` files and `--exclude` patterns, with the meaning moby's patternmatcher gives them:
//!
//! - paths are relative to the context root, separated by `/`, without a leading one;
//! - a pattern also matches everything below what it matches;
//! - `!` turns a match off again, and the last pattern that matches decides;
//! - `*` and `?` stay within one component, `**` spans any number.
//!
//! Walking the context is left to the caller; [`IgnorePatterns::can_prune`] tells it where to stop.

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

    /// Whether the path is ignored: the last pattern that matches it or a directory above it decides.
    pub fn matches_or_parent(&self, path: &str) -> bool {
        let ends: Vec<usize> = path.match_indices('/').map(|(at, _)| at).chain([path.len()]).collect();
        let mut ignored = false;
        for pattern in &self.patterns {
            if pattern.negated == ignored && ends.iter().any(|end| pattern.matcher.matches(&path[..*end])) {
                ignored = !pattern.negated;
            }
        }
        ignored
    }

    /// Whether nothing below the directory can be wanted: it is ignored, and no negated pattern could
    /// match anything below it. The walk may then skip it.
    pub fn can_prune(&self, directory: &str) -> bool {
        let below = format!("{directory}/");
        let revived = |pattern: &Pattern| pattern.negated && pattern.matcher.can_continue(&below);
        self.matches_or_parent(directory) && !self.patterns.iter().any(revived)
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
        IgnorePatterns::parse(patterns.as_bytes()).unwrap().matches_or_parent(path)
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
        assert!(IgnorePatterns::parse(b"\xff\n").unwrap().matches_or_parent("\u{fffd}"));
    }

    #[test]
    fn directories_are_pruned_only_when_nothing_below_can_come_back() {
        let table = [
            ("dist", "dist", true),
            ("dist", "src", false),
            ("*\n!src", "dist", true),
            ("*\n!src", "src", false),
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
        for (patterns, directory, expected) in table {
            let patterns = IgnorePatterns::parse(patterns.as_bytes()).unwrap();
            assert_eq!(patterns.can_prune(directory), expected, "{patterns:?} on {directory}");
        }
    }

    #[test]
    fn excludes_come_one_by_one() {
        let patterns = IgnorePatterns::from_patterns(["*.o", "!keep.o", "#x"]).unwrap();
        assert!(patterns.matches_or_parent("a.o") && patterns.matches_or_parent("#x"));
        assert!(!patterns.matches_or_parent("keep.o") && !patterns.is_empty());
    }
}
