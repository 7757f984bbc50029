//! Here-documents: recognising `<<NAME` in an instruction, and the file that its body makes.

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
    /// Whether leading tabs were stripped (`<<-`).
    pub strip_tabs: bool,
    /// The file descriptor digits before `<<`, if any.
    pub descriptor: Option<u32>,
    /// The body, every line with its line end.
    pub content: String,
    /// Where the `<<NAME` stands.
    pub span: Span,
    /// Where the body stands, without the terminator.
    pub content_span: Span,
}

/// A `<<NAME` whose body has not been read yet.
#[derive(Clone, Debug)]
pub(crate) struct HeredocMarker {
    pub(crate) name: String,
    expand: bool,
    pub(crate) strip_tabs: bool,
    descriptor: Option<u32>,
    pub(crate) span: Span,
}

impl HeredocMarker {
    pub(crate) fn with_content(self, content: String, content_span: Span) -> Heredoc {
        let HeredocMarker { name, expand, strip_tabs, descriptor, span } = self;
        Heredoc { name, expand, strip_tabs, descriptor, content, span, content_span }
    }
}

/// All markers of an instruction's arguments, in order.
pub(crate) fn markers(arguments: Piece<'_>, escape: char) -> Vec<HeredocMarker> {
    if !arguments.text().contains("<<") {
        return Vec::new();
    }
    words::shell_words(arguments, escape).into_iter().filter_map(|piece| marker(piece, escape)).collect()
}

/// Reads one word as `[digits]<<[-]word`.
pub(crate) fn marker(piece: Piece<'_>, escape: char) -> Option<HeredocMarker> {
    let text = piece.text();
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (descriptor, rest) = text.split_at(digits);
    let rest = rest.strip_prefix("<<")?;
    let (strip_tabs, rest) = match rest.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, rest),
    };
    if rest.is_empty() || rest.contains('<') {
        return None;
    }
    let name = Expander::new(&|_| None, escape).keep_unset().expand(rest).ok()?.text;
    if name.is_empty() {
        return None;
    }
    let descriptor = if descriptor.is_empty() { None } else { Some(descriptor.parse().ok()?) };
    Some(HeredocMarker { expand: name == rest, name, strip_tabs, descriptor, span: piece.span() })
}
