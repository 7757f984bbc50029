//! Here-documents: recognising `<<NAME` in an instruction, and the file that its body makes.

use std::borrow::Cow;

use super::text::Piece;
use super::words;
use crate::expand::Expander;
use crate::source::Span;

/// A here-document with its body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heredoc {
    /// The delimiter word, quotes removed; also the name of the file that COPY and ADD make of it.
    pub name: String,
    /// Whether variables in the body are expanded (by COPY and ADD): false if the word was quoted.
    pub expand: bool,
    /// Whether the tabs before each line are no part of the text (`<<-`).
    pub strip_tabs: bool,
    /// The file descriptor digits before `<<`, if any.
    pub descriptor: Option<u32>,
    /// The body as written, every line with its line end.
    pub content: String,
    /// Where the `<<NAME` stands.
    pub span: Span,
    /// Where the body stands, without the terminator.
    pub content_span: Span,
}

impl Heredoc {
    /// What the body says: `content` without the tabs that are no part of it.
    pub fn text(&self) -> Cow<'_, str> {
        match self.strip_tabs {
            true => self.content.split_inclusive('\n').map(|line| line.trim_start_matches('\t')).collect(),
            false => Cow::Borrowed(&self.content),
        }
    }

    /// Whether the here-document is all that an instruction's `arguments` say.
    pub(crate) fn is_all_of(&self, arguments: &str) -> bool {
        let mut words = arguments.split_whitespace();
        let first = words.next().unwrap_or_default();
        if is_operator(first) {
            words.next();
        }
        words.next().is_none()
    }
}

/// A `<<NAME` whose body has not been read yet.
#[derive(Clone, Debug)]
pub(crate) struct HeredocMarker {
    pub(crate) name: String,
    expand: bool,
    pub(crate) strip_tabs: bool,
    descriptor: Option<u32>,
    pub(crate) span: Span,
    /// Whether a blank stands before the name. Such a `<<` may as well shift a number: the terminator decides.
    pub(crate) is_spaced: bool,
}

impl HeredocMarker {
    pub(crate) fn with_content(self, content: String, content_span: Span) -> Heredoc {
        let HeredocMarker { name, expand, strip_tabs, descriptor, span, is_spaced: _ } = self;
        Heredoc { name, expand, strip_tabs, descriptor, content, span, content_span }
    }
}

/// All markers of an instruction's arguments, in order.
pub(crate) fn markers(arguments: Piece<'_>, escape: char) -> Vec<HeredocMarker> {
    if !arguments.text().contains("<<") {
        return Vec::new();
    }
    let mut words = words::shell_words(arguments, escape).into_iter().peekable();
    let mut markers = Vec::new();
    while let Some(word) = words.next() {
        if !is_operator(word.text()) {
            markers.extend(marker(word, escape));
        } else if let Some(name) = words.peek() {
            markers.extend(read(word.text(), name.text(), word.to(name).span(), escape));
        }
    }
    markers
}

/// Whether a word is `[digits]<<[-]` and no more.
fn is_operator(word: &str) -> bool {
    ["<<", "<<-"].contains(&word.trim_start_matches(|c: char| c.is_ascii_digit()))
}

/// Reads one word as `[digits]<<[-]word`.
pub(crate) fn marker(piece: Piece<'_>, escape: char) -> Option<HeredocMarker> {
    let text = piece.text();
    let name = text.find("<<")? + 2;
    let name = if text[name..].starts_with('-') { name + 1 } else { name };
    let mut marker = read(&text[..name], &text[name..], piece.span(), escape)?;
    marker.is_spaced = false;
    Some(marker)
}

/// Reads an operator and the name behind it, both of which stand at `span`.
fn read(operator: &str, name: &str, span: Span, escape: char) -> Option<HeredocMarker> {
    let text = operator;
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (descriptor, rest) = text.split_at(digits);
    let strip_tabs = match rest {
        "<<" => false,
        "<<-" => true,
        _ => return None,
    };
    let written = name;
    if written.is_empty() || written.contains('<') {
        return None;
    }
    let name = Expander::new(&|_| None, escape).keep_unset().expand(written).ok()?.text;
    if name.is_empty() {
        return None;
    }
    let descriptor = if descriptor.is_empty() { None } else { Some(descriptor.parse().ok()?) };
    Some(HeredocMarker { expand: name == written, name, strip_tabs, descriptor, span, is_spaced: true })
}
