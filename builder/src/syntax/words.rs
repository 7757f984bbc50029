//! Splitting the arguments of an instruction: flags, JSON arrays, blank-separated words, shell words.
//! Quotes and escapes stay in the words (except in flags); expansion removes them.

use super::text::{Piece, Word};

/// `--name[=value]` before the arguments of an instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Flag {
    pub(crate) name: Word,
    pub(crate) value: Option<Word>,
    pub(crate) span: crate::source::Span,
}

/// Takes the flags off the front. A lone `--` ends them.
pub(crate) fn flags<'a>(arguments: Piece<'a>, escape: char) -> (Vec<Flag>, Piece<'a>) {
    let mut flags = Vec::new();
    let mut rest = arguments.trim_start();
    while rest.text().starts_with("--") {
        let end = flag_end(rest.text(), escape);
        let piece = rest.part(0, end);
        rest = rest.from(end).trim_start();
        if piece.text() == "--" {
            break;
        }
        let raw = piece.from(2);
        let equals = raw.text().find('=');
        let name = raw.part(0, equals.unwrap_or(raw.text().len())).word();
        let value = equals.map(|at| {
            let value = raw.from(at + 1);
            Word { text: without_quotes(value.text(), escape), span: value.span() }
        });
        flags.push(Flag { name, value, span: piece.span() });
    }
    (flags, rest)
}

fn flag_end(text: &str, escape: char) -> usize {
    let mut quote = None;
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match quote {
            None if character.is_whitespace() => return at,
            None if character == '"' || character == '\'' => quote = Some(character),
            Some(open) if open == character => quote = None,
            _ if character == escape => {
                characters.next();
            }
            _ => {}
        }
    }
    text.len()
}

/// Flag values lose their quotes before anything else looks at them; `\$` stays for expansion.
fn without_quotes(text: &str, escape: char) -> String {
    let mut out = String::with_capacity(text.len());
    let mut quote = None;
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        match quote {
            None if character == '"' || character == '\'' => quote = Some(character),
            Some(open) if open == character => quote = None,
            _ if character == escape => match characters.next() {
                Some('$') => out.extend([escape, '$']),
                Some(next) => out.push(next),
                None => {}
            },
            _ => out.push(character),
        }
    }
    out
}

/// Words separated by white space; quotes mean nothing.
pub(crate) fn blank_separated(arguments: Piece<'_>) -> Vec<Piece<'_>> {
    let mut words = Vec::new();
    let mut rest = arguments.trim_start();
    while !rest.is_empty() {
        let (word, after) = rest.split_word();
        words.push(word);
        rest = after;
    }
    words
}

/// Words separated by white space outside quotes, with quotes and escapes kept.
pub(crate) fn quoted_words(arguments: Piece<'_>, escape: char) -> Vec<Piece<'_>> {
    split(arguments, escape, |_, _| 0)
}

/// Like [`quoted_words`], but `${…}` is never cut.
pub(crate) fn shell_words(arguments: Piece<'_>, escape: char) -> Vec<Piece<'_>> {
    let last_close = arguments.text().rfind('}').unwrap_or(0);
    split(arguments, escape, |text, at| {
        // Without the first test, a line of opening braces would be searched to its end for each.
        if at > last_close || !text[at..].starts_with("${") {
            return 0;
        }
        text[at..].find('}').map_or(0, |length| length + 1)
    })
}

fn split<'a>(arguments: Piece<'a>, escape: char, atom: impl Fn(&str, usize) -> usize) -> Vec<Piece<'a>> {
    let text = arguments.text();
    let mut words = Vec::new();
    let mut start: Option<usize> = None;
    let mut quote: Option<char> = None;
    let mut at = 0;
    while let Some(character) = text[at..].chars().next() {
        let next = at + character.len_utf8();
        if quote.is_none() && character.is_whitespace() {
            words.extend(start.take().map(|start| arguments.part(start, at)));
            at = next;
            continue;
        }
        start.get_or_insert(at);
        let length = if quote == Some('\'') { 0 } else { atom(text, at) };
        at = match (quote, character) {
            _ if length > 0 => at + length,
            (None, '"' | '\'') => {
                quote = Some(character);
                next
            }
            (Some(open), _) if open == character => {
                quote = None;
                next
            }
            // Nothing can be escaped between single quotes.
            (open, _) if character == escape && open != Some('\'') => {
                next + text[next..].chars().next().map_or(0, char::len_utf8)
            }
            _ => next,
        };
    }
    words.extend(start.map(|start| arguments.part(start, text.len())));
    words
}

/// What the JSON form of an instruction came to.
pub(crate) enum JsonForm {
    /// A valid array of strings.
    Strings(Vec<Word>),
    /// A valid array that holds something other than strings.
    NotStrings,
    /// No JSON array: the shell form.
    Not,
}

/// Tries to read the arguments as a JSON array of strings.
pub(crate) fn json_form(arguments: Piece<'_>) -> JsonForm {
    if !arguments.text().starts_with('[') {
        return JsonForm::Not;
    }
    let values: Vec<serde_json::Value> = match serde_json::from_str(arguments.text()) {
        Ok(values) => values,
        Err(_) => return JsonForm::Not,
    };
    let places = json_strings(arguments);
    let mut words = Vec::with_capacity(values.len());
    for (index, value) in values.into_iter().enumerate() {
        let serde_json::Value::String(text) = value else {
            return JsonForm::NotStrings;
        };
        words.push(Word { text, span: places.get(index).unwrap_or(&arguments).span() });
    }
    JsonForm::Strings(words)
}

/// The contents of the string literals in valid JSON, without their quotes.
fn json_strings(arguments: Piece<'_>) -> Vec<Piece<'_>> {
    let mut places = Vec::new();
    let mut start: Option<usize> = None;
    let mut bytes = arguments.text().bytes().enumerate();
    while let Some((at, byte)) = bytes.next() {
        match (byte, start) {
            (b'"', None) => start = Some(at + 1),
            (b'"', Some(begin)) => {
                places.push(arguments.part(begin, at));
                start = None;
            }
            (b'\\', Some(_)) => {
                bytes.next();
            }
            _ => {}
        }
    }
    places
}
