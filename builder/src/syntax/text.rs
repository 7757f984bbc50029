//! Text of one logical line (continuations joined, comments inside removed) that still knows which
//! bytes of the source file each of its parts came from.

use crate::source::Span;

/// A logical line and the way back to the source.
#[derive(Clone, Debug, Default)]
pub(crate) struct LineText {
    text: String,
    /// (offset in `text`, offset in the source) where each stretch starts; ascending in both.
    stretches: Vec<(usize, usize)>,
    /// Where the whole text stands if it is not in the source itself, such as a base image's trigger.
    origin: Option<Span>,
}

impl LineText {
    pub(crate) fn new(origin: Option<Span>) -> LineText {
        LineText { origin, ..LineText::default() }
    }

    /// Appends `text`, which stands at `source` in the file.
    pub(crate) fn push(&mut self, text: &str, source: usize) {
        self.stretches.push((self.text.len(), source));
        self.text.push_str(text);
    }

    pub(crate) fn whole(&self) -> Piece<'_> {
        Piece { line: self, start: 0, end: self.text.len() }
    }

    fn offset(&self, at: usize) -> usize {
        let index = self.stretches.partition_point(|(start, _)| *start <= at).saturating_sub(1);
        self.stretches.get(index).map_or(0, |(start, source)| source + (at - start))
    }

    fn span(&self, start: usize, end: usize) -> Span {
        if let Some(origin) = self.origin {
            return origin;
        }
        if start >= end {
            // The place right behind what stands before, so that an empty rest stays on its line.
            let at = match self.text[..start].char_indices().next_back() {
                Some((last, character)) => self.offset(last) + character.len_utf8(),
                None => self.offset(start),
            };
            return Span::new(at, at);
        }
        let last =
            self.text[..end].char_indices().next_back().map_or((start, 0), |(at, c)| (at, c.len_utf8()));
        Span::new(self.offset(start), self.offset(last.0) + last.1)
    }
}

/// A part of a logical line.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece<'a> {
    line: &'a LineText,
    start: usize,
    end: usize,
}

impl<'a> Piece<'a> {
    pub(crate) fn text(&self) -> &'a str {
        &self.line.text[self.start..self.end]
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    pub(crate) fn span(&self) -> Span {
        self.line.span(self.start, self.end)
    }

    /// The part between two offsets, which must be character boundaries of [`Piece::text`].
    pub(crate) fn part(&self, start: usize, end: usize) -> Piece<'a> {
        Piece { line: self.line, start: self.start + start, end: self.start + end }
    }

    pub(crate) fn from(&self, start: usize) -> Piece<'a> {
        self.part(start, self.end - self.start)
    }

    /// From the start of this part to the end of `last`, a later one of the same line.
    pub(crate) fn to(&self, last: &Piece<'a>) -> Piece<'a> {
        Piece { line: self.line, start: self.start, end: last.end }
    }

    pub(crate) fn trim_start(&self) -> Piece<'a> {
        self.from(self.text().len() - self.text().trim_start().len())
    }

    pub(crate) fn trim(&self) -> Piece<'a> {
        let piece = self.trim_start();
        piece.part(0, piece.text().trim_end().len())
    }

    /// Everything up to the first white space, and the rest without that white space.
    pub(crate) fn split_word(&self) -> (Piece<'a>, Piece<'a>) {
        let piece = self.trim_start();
        let end = piece.text().find(char::is_whitespace).unwrap_or(piece.text().len());
        (piece.part(0, end), piece.from(end).trim_start())
    }

    pub(crate) fn word(&self) -> Word {
        Word { text: self.text().to_owned(), span: self.span() }
    }
}

/// A stretch of text with its place, unexpanded: variables and quotes are as written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Word {
    /// The text as written (of a JSON form: the decoded string).
    pub text: String,
    /// Where it stands.
    pub span: Span,
}

impl Word {
    /// The place of a part of the text. Exact unless a continuation, an escape or a quote was removed
    /// inside the word; then it is the place of the whole word.
    pub fn span_of(&self, range: std::ops::Range<usize>) -> Span {
        if self.span.len() == self.text.len() && range.start <= range.end && range.end <= self.text.len() {
            Span::new(self.span.start + range.start, self.span.start + range.end)
        } else {
            self.span
        }
    }

    /// The part of the word at `range`, with its own place.
    pub(crate) fn part(&self, range: std::ops::Range<usize>) -> Word {
        Word { text: self.text[range.clone()].to_owned(), span: self.span_of(range) }
    }

    /// Whether expansion could change the text.
    pub fn has_variables(&self) -> bool {
        self.text.contains('$')
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_survive_a_continuation() {
        let mut line = LineText::new(None);
        line.push("RUN a ", 0);
        line.push("  b", 10);
        let whole = line.whole();
        assert_eq!(whole.text(), "RUN a   b");
        let (run, rest) = whole.split_word();
        assert_eq!((run.text(), run.span()), ("RUN", Span::new(0, 3)));
        assert_eq!((rest.text(), rest.span()), ("a   b", Span::new(4, 13)));
        let (_, b) = rest.split_word();
        assert_eq!((b.text(), b.span()), ("b", Span::new(12, 13)));
        assert_eq!(b.from(1).span(), Span::new(13, 13));
    }
}
