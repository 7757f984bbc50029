//! Globs of COPY and ADD sources: Go's `filepath.Match` (`*`, `?`, `[a-z]`, `[^…]`, `\` escapes); and the matcher that
//! [`crate::ignore`] shares, where `**` spans separators and a class may hold one, as in moby's patternmatcher.
//!
//! A pattern is followed along all its ways at once, so matching costs at most pattern length times
//! path length, whatever a stranger writes.

/// The longest pattern, in bytes: the longest path the kernel takes.
pub const PATTERN_BYTES_MAX: usize = 4096;

/// Why a text is no pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GlobError {
    /// `[` without `]`, an empty class or range, or an escape at the end.
    #[error("bad pattern `{0}`: a class is not closed or empty, or it ends in an escape")]
    Bad(String),
    /// Longer than [`PATTERN_BYTES_MAX`].
    #[error("pattern of {0} bytes is longer than {PATTERN_BYTES_MAX}")]
    TooLong(usize),
}

/// A source of COPY or ADD as a pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Glob {
    matcher: Matcher,
}

impl Glob {
    /// Reads a pattern. `double_star` makes `**` span separators, as `--parents` does; without it `**`
    /// is the same as `*`.
    ///
    /// # Errors
    /// [`GlobError`] as `filepath.Match` would give `ErrBadPattern`.
    pub fn parse(pattern: &str, double_star: bool) -> Result<Glob, GlobError> {
        Ok(Glob { matcher: Matcher::parse(pattern, double_star)? })
    }

    /// Whether the pattern matches the whole path (separated by `/`, no leading one unless the pattern
    /// has it).
    pub fn matches(&self, path: &str) -> bool {
        self.matcher.matches(path)
    }
}

/// Whether a text holds an unescaped `*`, `?` or `[`.
pub fn has_wildcards(text: &str) -> bool {
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => {
                characters.next();
            }
            '*' | '?' | '[' => return true,
            _ => {}
        }
    }
    false
}

/// The text that a pattern without wildcards means.
pub(crate) fn without_escapes(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        out.extend(if character == '\\' { characters.next() } else { Some(character) });
    }
    out
}

/// One element of a pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Token {
    /// This character.
    Literal(char),
    /// `?`: any character but `/`.
    Any,
    /// `*`: any text without `/`.
    Star,
    /// `**` at the end: any text.
    Rest,
    /// Stands before [`Token::Directories`], which may be left out where it begins and only there.
    Optional,
    /// `**/`: any text that ends in `/`.
    Directories,
    /// `[…]`; with `separators` also `/`, where the class holds it.
    Class { negated: bool, separators: bool, ranges: Vec<(char, char)> },
}

/// A sequence of tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Matcher {
    tokens: Vec<Token>,
}

impl Matcher {
    /// Reads a pattern; `double_star` makes `**` span separators.
    pub(crate) fn parse(pattern: &str, double_star: bool) -> Result<Matcher, GlobError> {
        if pattern.len() > PATTERN_BYTES_MAX {
            return Err(GlobError::TooLong(pattern.len()));
        }
        let bad = || GlobError::Bad(pattern.to_owned());
        let mut tokens = Vec::new();
        let mut characters = pattern.chars().peekable();
        while let Some(character) = characters.next() {
            let token = match character {
                '*' if double_star && characters.next_if_eq(&'*').is_some() => {
                    characters.next_if_eq(&'/');
                    match characters.peek() {
                        None => Token::Rest,
                        // Repeated, it says no more than once.
                        Some(_) if tokens.last() == Some(&Token::Directories) => continue,
                        Some(_) => {
                            tokens.push(Token::Optional);
                            Token::Directories
                        }
                    }
                }
                '*' => Token::Star,
                '?' => Token::Any,
                '[' => class(&mut characters, double_star).ok_or_else(bad)?,
                '\\' => Token::Literal(characters.next().ok_or_else(bad)?),
                other => Token::Literal(other),
            };
            if token != Token::Star || tokens.last() != Some(&Token::Star) {
                tokens.push(token);
            }
        }
        Ok(Matcher { tokens })
    }

    /// Any text, then exactly `end`.
    pub(crate) fn ending_in(end: &str) -> Matcher {
        let end = end.chars().map(Token::Literal);
        Matcher { tokens: std::iter::once(Token::Rest).chain(end).collect() }
    }

    /// Whether the pattern matches the whole path.
    pub(crate) fn matches(&self, path: &str) -> bool {
        self.run(path).is_some_and(|states| states[self.tokens.len()])
    }

    /// Whether the pattern matches some path that begins with `prefix`.
    pub(crate) fn can_continue(&self, prefix: &str) -> bool {
        self.run(prefix).is_some_and(|states| states[..self.tokens.len()].contains(&true))
    }

    /// The states after `path`; `None` as soon as there is none left.
    fn run(&self, path: &str) -> Option<Vec<bool>> {
        let mut states = vec![false; self.tokens.len() + 1];
        let mut after = states.clone();
        states[0] = true;
        self.pass_empty(&mut states);
        for character in path.chars() {
            after.fill(false);
            for (index, token) in self.tokens.iter().enumerate().filter(|(index, _)| states[*index]) {
                match token {
                    Token::Optional => {}
                    Token::Rest => after[index] = true,
                    Token::Directories => {
                        after[index] = true;
                        after[index + 1] |= character == '/';
                    }
                    Token::Star => after[index] |= character != '/',
                    Token::Any => after[index + 1] |= character != '/',
                    Token::Literal(literal) => after[index + 1] |= *literal == character,
                    Token::Class { negated, separators, ranges } => {
                        let inside = ranges.iter().any(|(low, high)| (*low..=*high).contains(&character));
                        after[index + 1] |= inside != *negated && (*separators || character != '/');
                    }
                }
            }
            std::mem::swap(&mut states, &mut after);
            self.pass_empty(&mut states);
            if !states.contains(&true) {
                return None;
            }
        }
        Some(states)
    }

    /// Goes on where a token may match nothing. Such steps only lead forwards, so one pass is enough.
    fn pass_empty(&self, states: &mut [bool]) {
        for (index, token) in self.tokens.iter().enumerate().filter(|(_, token)| token.may_be_empty()) {
            if states[index] {
                states[index + 1] = true;
                if *token == Token::Optional {
                    states[index + 2] = true;
                }
            }
        }
    }
}

impl Token {
    fn may_be_empty(&self) -> bool {
        matches!(self, Token::Star | Token::Rest | Token::Optional)
    }
}

/// The class behind `[`.
fn class(characters: &mut std::iter::Peekable<std::str::Chars<'_>>, separators: bool) -> Option<Token> {
    let negated = characters.next_if_eq(&'^').is_some();
    let mut ranges = Vec::new();
    loop {
        if !ranges.is_empty() && characters.next_if_eq(&']').is_some() {
            return Some(Token::Class { negated, separators, ranges });
        }
        let low = class_character(characters)?;
        let high = match characters.next_if_eq(&'-') {
            Some(_) => class_character(characters)?,
            None => low,
        };
        ranges.push((low, high));
    }
}

fn class_character(characters: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Option<char> {
    match characters.next()? {
        '-' | ']' => None,
        '\\' => characters.next(),
        other => Some(other),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn as_filepath_match() {
        let table = [
            ("abc", "abc", true),
            ("*", "abc", true),
            ("*c", "abc", true),
            ("a*", "a", true),
            ("a*", "abc", true),
            ("a*", "ab/c", false),
            ("a*/b", "abc/b", true),
            ("a*/b", "a/c/b", false),
            ("a*b*c*d*e*/f", "axbxcxdxe/f", true),
            ("a*b*c*d*e*/f", "axbxcxdxexxx/fff", false),
            ("a*b?c*x", "abxbbxdbxebxczzx", true),
            ("a*b?c*x", "abxbbxdbxebxczzy", false),
            ("ab[c]", "abc", true),
            ("ab[b-d]", "abc", true),
            ("ab[e-g]", "abc", false),
            ("ab[^c]", "abc", false),
            ("ab[^e-g]", "abc", true),
            ("a\\*b", "a*b", true),
            ("a\\*b", "ab", false),
            ("a?b", "a☺b", true),
            ("a[^a]b", "a☺b", true),
            ("a???b", "a☺b", false),
            ("[a-ζ]*", "α", true),
            ("*[a-ζ]", "A", false),
            ("a?b", "a/b", false),
            ("a*b", "a/b", false),
            ("[\\]a]", "]", true),
            ("[\\-x]", "-", true),
            ("[x\\-]", "z", false),
            ("*x", "xxx", true),
            ("a[^x]c", "a/c", false),
            ("", "", true),
            ("", "a", false),
            ("**", "abc", true),
            ("**", "a/b", false),
        ];
        for (pattern, path, expected) in table {
            assert_eq!(Glob::parse(pattern, false).unwrap().matches(path), expected, "{pattern} {path}");
        }
    }

    #[test]
    fn bad_patterns() {
        for pattern in ["[]a]", "[-]", "[x-]", "[-x]", "[", "[^", "[^bc", "a[", "[a-b-c]", "a\\", "[\\"] {
            assert!(matches!(Glob::parse(pattern, false), Err(GlobError::Bad(_))), "{pattern}");
        }
        let long = "a".repeat(PATTERN_BYTES_MAX + 1);
        assert_eq!(Glob::parse(&long, false), Err(GlobError::TooLong(long.len())));
    }

    #[test]
    fn double_stars_span_directories() {
        let table = [
            ("**/a", "a", true),
            ("**/a", "x/y/a", true),
            ("**/a", "xa", false),
            ("a/**/b", "a/b", true),
            ("a/**/b", "a/x/y/b", true),
            ("a/**/b", "a/xb", false),
            ("a/**", "a/x/y", true),
            ("a/**", "ab", false),
            ("**/*.go", "x/y.go", true),
            ("**/**/a", "a", true),
            ("a**b", "ax/yb", false),
            ("a**b", "ax/b", true),
            ("a**b", "ab", true),
            ("pkg_**/x.xml", "pkg_a/x.xml", true),
            ("pkg_**/x.xml", "pkg_a/deep/er/x.xml", true),
            ("pkg_**/x.xml", "pkg/x.xml", false),
            ("a[^b]c", "a/c", true),
            ("a[+-9]c", "a/c", true),
            ("a[b]c", "a/c", false),
        ];
        for (pattern, path, expected) in table {
            assert_eq!(Glob::parse(pattern, true).unwrap().matches(path), expected, "{pattern} {path}");
        }
    }

    #[test]
    fn escapes_hide_wildcards() {
        assert!(has_wildcards("a/*") && has_wildcards("a[b") && !has_wildcards("a\\*b\\["));
        assert_eq!(without_escapes("a/b\\*c\\"), "a/b*c");
    }

    #[test]
    fn hostile_patterns_cost_little() {
        let pattern = "*a".repeat(1000);
        assert!(!Glob::parse(&pattern, true).unwrap().matches(&"a".repeat(999)));
    }
}
