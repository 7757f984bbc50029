//! Physical lines to logical lines: byte-order mark, comments, continuations, heredoc bodies.
//!
//! What a logical line means is left to [`super::instruction`].

use std::collections::HashMap;

use super::heredoc::{Heredoc, HeredocMarker};
use super::text::LineText;
use crate::diagnostic::Diagnostic;
use crate::source::{SourceFile, Span};

/// Walks over the physical lines of a file.
pub(crate) struct Lines<'a> {
    source: &'a SourceFile,
    /// Number of the next physical line, from 1.
    next: usize,
    pub(crate) escape: char,
    origin: Option<Span>,
    /// The last line of each text, with and without the tabs before it; made when it is first asked for.
    last_lines: Option<[HashMap<&'a str, usize>; 2]>,
}

/// A physical line: where it starts and its text without the line end.
#[derive(Clone, Copy)]
pub(crate) struct PhysicalLine<'a> {
    pub(crate) start: usize,
    pub(crate) text: &'a str,
}

impl<'a> Lines<'a> {
    pub(crate) fn new(source: &'a SourceFile, escape: char, origin: Option<Span>) -> Lines<'a> {
        Lines { source, next: 1, escape, origin, last_lines: None }
    }

    /// The next physical line, which stays the next one.
    pub(crate) fn peek(&self) -> Option<PhysicalLine<'a>> {
        if self.next > self.source.line_count() {
            return None;
        }
        let start = self.source.line_range(self.next).start;
        let text = self.source.line(self.next);
        match text.strip_prefix('\u{feff}') {
            Some(text) if self.next == 1 => Some(PhysicalLine { start: start + '\u{feff}'.len_utf8(), text }),
            _ => Some(PhysicalLine { start, text }),
        }
    }

    pub(crate) fn advance(&mut self) {
        self.next += 1;
    }

    /// Whether `text` makes up a line that has not been read, the tabs before it apart if `strip_tabs`.
    pub(crate) fn has_line_ahead(&mut self, text: &str, strip_tabs: bool) -> bool {
        let source = self.source;
        let lines = self.last_lines.get_or_insert_with(|| {
            let lines = || (1..=source.line_count()).map(|number| (source.line(number), number));
            [
                lines().collect(),
                lines().map(|(line, number)| (line.trim_start_matches('\t'), number)).collect(),
            ]
        });
        lines[usize::from(strip_tabs)].get(text).is_some_and(|last| *last >= self.next)
    }

    /// The next logical line that is neither blank nor a comment.
    pub(crate) fn logical_line(&mut self, warnings: &mut Vec<Diagnostic>) -> Option<LineText> {
        loop {
            let line = self.peek()?;
            self.advance();
            let text = line.text.trim_start();
            let start = line.start + (line.text.len() - text.len());
            if text.is_empty() || text.starts_with('#') {
                continue;
            }
            let mut logical = LineText::new(self.origin);
            let (text, continued) = self.cut_continuation(text);
            logical.push(text, start);
            if continued {
                self.join_continuations(&mut logical, warnings);
            }
            if !logical.whole().trim().is_empty() {
                return Some(logical);
            }
        }
    }

    fn join_continuations(&mut self, logical: &mut LineText, warnings: &mut Vec<Diagnostic>) {
        let mut blank: Option<Span> = None;
        while let Some(line) = self.peek() {
            self.advance();
            let trimmed = line.text.trim_start();
            if trimmed.starts_with('#') {
                continue;
            }
            if trimmed.is_empty() {
                blank.get_or_insert(self.origin.unwrap_or(Span::new(line.start, line.start)));
                continue;
            }
            let (text, continued) = self.cut_continuation(line.text);
            logical.push(text, line.start);
            if !continued {
                break;
            }
        }
        if let Some(blank) = blank {
            warnings.push(
                Diagnostic::warning(
                    "NoEmptyContinuation",
                    blank,
                    "blank line inside a continued instruction",
                )
                .help("remove the blank line, or the continuation before it if the instruction ends there"),
            );
        }
    }

    /// The line without its continuation character, and whether there was one. A doubled escape
    /// character is an escaped escape, not a continuation.
    fn cut_continuation<'t>(&self, text: &'t str) -> (&'t str, bool) {
        let trimmed = text.trim_end_matches([' ', '\t']);
        match trimmed.strip_suffix(self.escape) {
            Some(before) if !before.ends_with(self.escape) => (before, true),
            _ => (text, false),
        }
    }

    /// Reads the body that belongs to `marker`; the terminator line is consumed.
    ///
    /// Without a terminator the body would swallow the rest of the file, hiding every later
    /// mistake, so the file position is then left where it was.
    pub(crate) fn heredoc_body(&mut self, marker: HeredocMarker) -> Result<Heredoc, Diagnostic> {
        let first = self.next;
        let mut near = None;
        let mut content = String::new();
        let begin = self.peek().map_or(self.source.text().len(), |line| line.start);
        while let Some(line) = self.peek() {
            self.advance();
            let raw = &self.source.text()[line.start..self.source.line_range(self.next - 1).end];
            let text = match marker.strip_tabs {
                true => line.text.trim_start_matches('\t'),
                false => line.text,
            };
            if text == marker.name {
                let span = self.origin.unwrap_or(Span::new(begin, line.start));
                return Ok(marker.with_content(content, span));
            }
            if near.is_none() && text.trim() == marker.name {
                near = Some(self.next - 1);
            }
            content.push_str(raw);
            if content.len() > super::HEREDOC_BYTES_MAX {
                let limit = super::HEREDOC_BYTES_MAX;
                return Err(Diagnostic::error(
                    marker.span,
                    format!("here-document is larger than {limit} bytes"),
                )
                .help("put the text into a file of the context and `COPY` that"));
            }
        }
        self.next = first;
        let error =
            Diagnostic::error(marker.span, format!("here-document `{}` is never closed", marker.name))
                .label("opened here")
                .help(format!("end it with a line that holds only `{}`", marker.name));
        Err(match near {
            Some(line) if marker.strip_tabs => error.note(format!(
                "line {line} holds it with blanks around it; `<<-` allows tabs before it only"
            )),
            Some(line) => error.note(format!("line {line} holds it with blanks around it")),
            None => error,
        })
    }

    /// Offset where the last line that was read ends, its line end not included.
    pub(crate) fn end_of_read(&self) -> usize {
        let range = self.source.line_range(self.next - 1);
        range.start + self.source.line(self.next - 1).len()
    }

    pub(crate) fn origin(&self) -> Option<Span> {
        self.origin
    }
}
