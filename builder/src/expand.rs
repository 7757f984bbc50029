//! Expansion of variables, quotes and escapes in the words of an instruction.
//!
//! Forms: `$v ${v} ${v:-w} ${v-w} ${v:+w} ${v+w} ${v:?e} ${v?e} ${v#p} ${v##p} ${v%p} ${v%%p}
//! ${v/p/r} ${v//p/r}`. The word, message or pattern of a form may hold further forms. Patterns are
//! left to [`pattern`]; which variables exist to the caller.

mod pattern;

use self::pattern::Pattern;
use std::ops::Range;

/// How deep forms may nest. People write two or three; the limit keeps the stack safe.
pub const EXPANSION_DEPTH_MAX: usize = 32;
/// The longest text one expansion may yield, in bytes. The kernel takes at most 128 KiB an argument or
/// variable; the rest is room for here-documents. Doubling a variable in a chain of ENV lines stops here.
pub const EXPANSION_BYTES_MAX: usize = 4 << 20;

/// How variables are looked up.
pub type Lookup<'a> = dyn Fn(&str) -> Option<String> + 'a;

/// The result of an expansion.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expansion {
    /// The text as one word: quotes and escapes removed, blanks kept.
    pub text: String,
    /// The text split at blanks outside quotes, after variables were filled in.
    pub words: Vec<String>,
    /// Variables that were not set where the form says nothing of that case, with their places in the word.
    pub undefined: Vec<(String, Range<usize>)>,
}

/// Why a word cannot be expanded, and where in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind}")]
pub struct ExpandError {
    /// What is wrong.
    pub kind: ExpandErrorKind,
    /// The bytes of the word to blame.
    pub range: Range<usize>,
}

/// What can be wrong with a word.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExpandErrorKind {
    /// A quote without its partner.
    #[error("unclosed {0} quote")]
    UnclosedQuote(&'static str),
    /// `${` without `}`, or `${v/p` without the second `/`.
    #[error("missing `{0}` in `${{…}}`")]
    Missing(char),
    /// `${}`, `${:x}`, `${{x}`.
    #[error("bad substitution: `${{` wants the name of a variable")]
    BadSubstitution,
    /// An operator that is none.
    #[error("unsupported modifier `{0}` in substitution")]
    UnsupportedModifier(String),
    /// `${v:?message}` with `v` unset or empty.
    #[error("{name}: {message}")]
    Required {
        /// The variable.
        name: String,
        /// The message the author gave, or a general one.
        message: String,
    },
    /// A backslash before something that needs none in a pattern.
    #[error("invalid escape `\\{0}` in a pattern")]
    InvalidEscape(String),
    /// Nested deeper than [`EXPANSION_DEPTH_MAX`].
    #[error("substitutions nest deeper than {EXPANSION_DEPTH_MAX}")]
    TooDeep,
    /// Longer than [`EXPANSION_BYTES_MAX`].
    #[error("expands to more than {EXPANSION_BYTES_MAX} bytes")]
    TooLong,
    /// A pattern and a value whose matching would take too long.
    #[error("pattern is too expensive for a value of this length")]
    TooExpensive,
}

/// The rules of one kind of word.
#[derive(Clone, Copy)]
pub struct Expander<'a> {
    lookup: &'a Lookup<'a>,
    escape: char,
    quotes: bool,
    keep_unset: bool,
}

impl<'a> Expander<'a> {
    /// Expands with these variables and this escape character.
    pub fn new(lookup: &'a Lookup<'a>, escape: char) -> Expander<'a> {
        Expander { lookup, escape, quotes: true, keep_unset: false }
    }

    /// Treats quotes as ordinary text, as in the body of a here-document.
    #[must_use]
    pub fn without_quotes(mut self) -> Expander<'a> {
        self.quotes = false;
        self
    }

    /// Leaves plain references to unset variables as they are.
    #[must_use]
    pub(crate) fn keep_unset(mut self) -> Expander<'a> {
        self.keep_unset = true;
        self
    }

    /// Expands a word.
    ///
    /// # Errors
    /// [`ExpandError`] with the place in `word`.
    pub fn expand(&self, word: &str) -> Result<Expansion, ExpandError> {
        let mut run = Run { rules: self, word, at: 0, depth: 0, undefined: Vec::new() };
        let (text, words) = run.until(None, false)?;
        Ok(Expansion { text, words: words.finish(), undefined: run.undefined })
    }
}

/// Words under construction: blanks end a word unless they were quoted or escaped.
#[derive(Default)]
struct Words {
    word: String,
    words: Vec<String>,
}

impl Words {
    fn push(&mut self, text: &str) {
        for character in text.chars() {
            if !character.is_whitespace() {
                self.word.push(character);
            } else if !self.word.is_empty() {
                self.words.push(std::mem::take(&mut self.word));
            }
        }
    }

    fn push_raw(&mut self, text: &str) {
        self.word.push_str(text);
    }

    fn finish(mut self) -> Vec<String> {
        if !self.word.is_empty() {
            self.words.push(self.word);
        }
        self.words
    }
}

/// One pass over one word.
struct Run<'a, 'w> {
    rules: &'a Expander<'a>,
    word: &'w str,
    at: usize,
    depth: usize,
    undefined: Vec<(String, Range<usize>)>,
}

type Expanded<T> = Result<T, ExpandError>;

impl Run<'_, '_> {
    fn peek(&self) -> Option<char> {
        self.word[self.at..].chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let character = self.peek()?;
        self.at += character.len_utf8();
        Some(character)
    }

    fn error<T>(&self, start: usize, kind: ExpandErrorKind) -> Expanded<T> {
        Err(ExpandError { kind, range: start..self.at.max(start) })
    }

    /// Reads up to `stop` (consumed) or the end. `raw_escapes` keeps the escape character in the text,
    /// for patterns, where it has a meaning of its own.
    fn until(&mut self, stop: Option<char>, raw_escapes: bool) -> Expanded<(String, Words)> {
        let (mut text, mut words) = (String::new(), Words::default());
        let mut buffer = [0; 4];
        let start = self.at;
        while let Some(character) = self.peek() {
            if text.len() > EXPANSION_BYTES_MAX {
                return self.error(start, ExpandErrorKind::TooLong);
            }
            if Some(character) == stop {
                self.next();
                return Ok((text, words));
            }
            match character {
                '$' => {
                    let value = self.dollar()?;
                    text.push_str(&value);
                    words.push(&value);
                }
                '\'' | '"' if self.rules.quotes => {
                    let quoted = if character == '"' {
                        self.double_quoted(raw_escapes)
                    } else {
                        self.single_quoted()
                    }?;
                    text.push_str(&quoted);
                    words.push_raw(&quoted);
                }
                _ if character == self.rules.escape => {
                    self.next();
                    let escaped = self.next();
                    let escape = raw_escapes.then_some(character);
                    for character in escape.into_iter().chain(escaped) {
                        text.push(character);
                        words.push_raw(character.encode_utf8(&mut buffer));
                    }
                }
                _ => {
                    self.next();
                    text.push(character);
                    words.push(character.encode_utf8(&mut buffer));
                }
            }
        }
        match stop {
            Some(stop) => self.error(start, ExpandErrorKind::Missing(stop)),
            None if text.len() > EXPANSION_BYTES_MAX => self.error(start, ExpandErrorKind::TooLong),
            None => Ok((text, words)),
        }
    }

    fn single_quoted(&mut self) -> Expanded<String> {
        let start = self.at;
        self.next();
        match self.word[self.at..].find('\'') {
            Some(length) => {
                let text = self.word[self.at..self.at + length].to_owned();
                self.at += length + 1;
                Ok(text)
            }
            None => {
                self.at = self.word.len();
                self.error(start, ExpandErrorKind::UnclosedQuote("single"))
            }
        }
    }

    /// Between double quotes only `"`, `$` and the escape character itself can be escaped.
    fn double_quoted(&mut self, raw_escapes: bool) -> Expanded<String> {
        let start = self.at;
        let escape = self.rules.escape;
        let mut text = String::new();
        self.next();
        while let Some(character) = self.peek() {
            if text.len() > EXPANSION_BYTES_MAX {
                return self.error(start, ExpandErrorKind::TooLong);
            }
            if character == '$' {
                text.push_str(&self.dollar()?);
                continue;
            }
            self.next();
            if character == '"' {
                return Ok(text);
            }
            match self.peek() {
                Some(next) if character == escape && (next == '"' || next == '$' || next == escape) => {
                    text.extend(raw_escapes.then_some(escape));
                    text.push(next);
                    self.next();
                }
                None if character == escape => {}
                _ => text.push(character),
            }
        }
        self.error(start, ExpandErrorKind::UnclosedQuote("double"))
    }

    fn dollar(&mut self) -> Expanded<String> {
        let start = self.at;
        self.next();
        if self.peek() != Some('{') {
            let name = self.name();
            if name.is_empty() {
                return Ok("$".to_owned());
            }
            return Ok(self.plain(name, start));
        }
        self.next();
        match self.peek() {
            None => return self.error(start, ExpandErrorKind::Missing('}')),
            Some('{' | '}' | ':') => {
                self.next();
                return self.error(start, ExpandErrorKind::BadSubstitution);
            }
            Some(_) => {}
        }
        let name = self.name();
        if self.depth >= EXPANSION_DEPTH_MAX {
            return self.error(start, ExpandErrorKind::TooDeep);
        }
        self.depth += 1;
        let value = self.braced(name, start);
        self.depth -= 1;
        value
    }

    /// What follows the name in `${name…}`.
    fn braced(&mut self, name: String, start: usize) -> Expanded<String> {
        let Some(operator) = self.next() else {
            return self.error(start, ExpandErrorKind::Missing('}'));
        };
        if operator == '}' && !name.is_empty() {
            return Ok(self.plain(name, start));
        }
        if name.is_empty() {
            return self.error(start, ExpandErrorKind::BadSubstitution);
        }
        match operator {
            ':' => match self.next() {
                Some(operator @ ('-' | '+' | '?')) => self.conditional(name, operator, true, start),
                Some(other) => self.error(start, ExpandErrorKind::UnsupportedModifier(format!(":{other}"))),
                None => self.error(start, ExpandErrorKind::Missing('}')),
            },
            '-' | '+' | '?' => self.conditional(name, operator, false, start),
            '#' | '%' => self.trim(name, operator, start),
            '/' => self.replace(name, start),
            other => self.error(start, ExpandErrorKind::UnsupportedModifier(other.to_string())),
        }
    }

    fn conditional(
        &mut self,
        name: String,
        operator: char,
        empty_is_unset: bool,
        start: usize,
    ) -> Expanded<String> {
        let (word, _) = self.operand(start, '}', false)?;
        let value = (self.rules.lookup)(&name);
        let set = value.as_ref().is_some_and(|value| !(empty_is_unset && value.is_empty()));
        let state = if value.is_some() { "empty" } else { "unset" };
        match (operator, set) {
            ('-', false) | ('+', true) => Ok(word),
            ('+', false) => Ok(String::new()),
            ('?', false) => {
                let message = if word.is_empty() { format!("is not allowed to be {state}") } else { word };
                self.error(start, ExpandErrorKind::Required { name, message })
            }
            _ => Ok(value.unwrap_or_default()),
        }
    }

    fn trim(&mut self, name: String, operator: char, start: usize) -> Expanded<String> {
        let longest = self.peek() == Some(operator);
        if longest {
            self.next();
        }
        let pattern = self.pattern('}', start)?;
        let value = self.value_or_undefined(name, start);
        let range = match operator {
            '#' => pattern.trim_start(&value, longest),
            _ => pattern.trim_end(&value, longest),
        };
        match range {
            Ok(range) => Ok(value[range].to_owned()),
            Err(kind) => self.error(start, kind),
        }
    }

    fn replace(&mut self, name: String, start: usize) -> Expanded<String> {
        let all = self.peek() == Some('/');
        if all {
            self.next();
        }
        let pattern = self.pattern('/', start)?;
        let (replacement, _) = self.operand(start, '}', true)?;
        let replacement = self.without_needless_escapes(&replacement);
        let value = self.value_or_undefined(name, start);
        match pattern.replace(&value, &replacement, all) {
            Ok(value) => Ok(value),
            Err(kind) => self.error(start, kind),
        }
    }

    fn pattern(&mut self, stop: char, start: usize) -> Expanded<Pattern> {
        let (text, _) = self.operand(start, stop, true)?;
        match Pattern::parse(&text, self.rules.escape) {
            Ok(pattern) => Ok(pattern),
            Err(kind) => self.error(start, kind),
        }
    }

    /// `until`, blaming the whole form if its end is missing.
    fn operand(&mut self, start: usize, stop: char, raw_escapes: bool) -> Expanded<(String, Words)> {
        self.until(Some(stop), raw_escapes).map_err(|mut error| {
            if error.kind == ExpandErrorKind::Missing(stop) {
                error.range.start = start;
            }
            error
        })
    }

    /// In a replacement `}`, `/`, `$` and the escape character need an escape that is not meant for the value.
    fn without_needless_escapes(&self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        let mut characters = text.chars().peekable();
        while let Some(character) = characters.next() {
            if character == self.rules.escape
                && let Some(next) =
                    characters.next_if(|next| ['}', '/', '$', self.rules.escape].contains(next))
            {
                out.push(next);
            } else {
                out.push(character);
            }
        }
        out
    }

    /// A name: letters, digits and `_`; digits alone; or one of the shell's special parameters.
    fn name(&mut self) -> String {
        let rest = &self.word[self.at..];
        let end = |accept: fn(char) -> bool| rest.find(|c: char| !accept(c)).unwrap_or(rest.len());
        let length = match rest.chars().next() {
            Some(first) if first.is_ascii_digit() => end(|c| c.is_ascii_digit()),
            Some('@' | '*' | '#' | '?' | '-' | '$' | '!') => 1,
            _ => end(|c| c.is_alphanumeric() || c == '_'),
        };
        self.at += length;
        rest[..length].to_owned()
    }

    fn value_or_undefined(&mut self, name: String, start: usize) -> String {
        (self.rules.lookup)(&name).unwrap_or_else(|| {
            self.undefined.push((name, start..self.at));
            String::new()
        })
    }

    fn plain(&mut self, name: String, start: usize) -> String {
        match (self.rules.lookup)(&name) {
            Some(value) => value,
            None if self.rules.keep_unset => self.word[start..self.at].to_owned(),
            None => {
                self.undefined.push((name, start..self.at));
                String::new()
            }
        }
    }
}

#[cfg(test)]
#[path = "expand/tests.rs"]
mod tests;
