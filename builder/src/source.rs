//! The text of a Buildfile: its name, byte spans in it, and the line and column of an offset.
//!
//! Reading the file is left to the caller; rendering to [`crate::diagnostic`].

use std::ops::Range;

/// The largest Buildfile accepted, in bytes. The largest generated ones in public repositories stay
/// under 200 KiB; 4 MiB leaves room for inline heredoc files and keeps a hostile file cheap.
pub const SOURCE_BYTES_MAX: usize = 4 << 20;

/// A half-open range of bytes in a [`SourceFile`], on character boundaries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Span {
    /// Offset of the first byte.
    pub start: usize,
    /// Offset behind the last byte.
    pub end: usize,
}

impl Span {
    /// The span from `start` up to, not including, `end`.
    pub fn new(start: usize, end: usize) -> Span {
        Span { start, end: end.max(start) }
    }

    /// Number of bytes.
    pub fn len(&self) -> usize {
        self.end - self.start
    }

    /// Whether the span holds no byte.
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// The smallest span that holds both.
    pub fn to(self, other: Span) -> Span {
        Span { start: self.start.min(other.start), end: self.end.max(other.end) }
    }

    /// The span as a range, for slicing.
    pub fn range(&self) -> Range<usize> {
        self.start..self.end
    }
}

/// A place for people: both numbers count from 1, columns count characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LineColumn {
    /// Line number, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
}

/// Why bytes are no source file.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The file is not UTF-8; the offset is that of the first bad byte.
    #[error("`{name}` is not UTF-8 text: bad byte at offset {offset} (line {line}); save it as UTF-8")]
    NotUtf8 {
        /// Name of the file as shown to the user.
        name: String,
        /// Offset of the first byte that is not UTF-8.
        offset: usize,
        /// Line of that byte, from 1.
        line: usize,
    },
    /// The file is text, but as Windows' editors write "Unicode".
    #[error("`{name}` is UTF-16 text; save it as UTF-8")]
    Utf16 {
        /// Name of the file as shown to the user.
        name: String,
    },
    /// The file is larger than [`SOURCE_BYTES_MAX`].
    #[error("`{name}` has {size} bytes, more than the {SOURCE_BYTES_MAX} allowed for a Buildfile")]
    TooLarge {
        /// Name of the file as shown to the user.
        name: String,
        /// Its size in bytes.
        size: usize,
    },
}

/// A named text with an index of its lines.
#[derive(Clone, Debug)]
pub struct SourceFile {
    name: String,
    text: String,
    line_starts: Vec<usize>,
}

impl SourceFile {
    /// Takes text as it is. `name` is what diagnostics show, usually the path as the user wrote it.
    pub fn new(name: impl Into<String>, text: impl Into<String>) -> SourceFile {
        let text = text.into();
        let line_starts =
            std::iter::once(0).chain(text.match_indices('\n').map(|(offset, _)| offset + 1)).collect();
        SourceFile { name: name.into(), text, line_starts }
    }

    /// Takes bytes as read from a file or a pipe.
    ///
    /// # Errors
    /// [`SourceError`] when they are not UTF-8 or too many.
    pub fn from_bytes(name: impl Into<String>, bytes: Vec<u8>) -> Result<SourceFile, SourceError> {
        let name = name.into();
        if bytes.len() > SOURCE_BYTES_MAX {
            return Err(SourceError::TooLarge { name, size: bytes.len() });
        }
        // Its byte order marks (RFC 2781, section 3.2) are no UTF-8.
        if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
            return Err(SourceError::Utf16 { name });
        }
        match String::from_utf8(bytes) {
            Ok(text) => Ok(SourceFile::new(name, text)),
            Err(error) => {
                let offset = error.utf8_error().valid_up_to();
                let line = 1 + error.as_bytes()[..offset].iter().filter(|byte| **byte == b'\n').count();
                Err(SourceError::NotUtf8 { name, offset, line })
            }
        }
    }

    /// The name diagnostics show.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The whole text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The text a span covers; empty for a span that does not belong to this file.
    pub fn slice(&self, span: Span) -> &str {
        self.text.get(span.range()).unwrap_or("")
    }

    /// The number of the line that holds `offset`, from 1. Offsets behind the end count to the last line.
    pub fn line_of(&self, offset: usize) -> usize {
        self.line_starts.partition_point(|start| *start <= offset)
    }

    /// Line and column of `offset`.
    pub fn line_column(&self, offset: usize) -> LineColumn {
        let line = self.line_of(offset);
        let start = self.line_starts[line - 1];
        let column = 1 + self.text.get(start..offset).map_or(0, |before| before.chars().count());
        LineColumn { line, column }
    }

    /// The text of line `number` (from 1) without its line end; empty if there is no such line.
    pub fn line(&self, number: usize) -> &str {
        let range = self.line_range(number);
        self.text[range].trim_end_matches(['\n', '\r'])
    }

    /// The bytes of line `number` (from 1) with its line end; empty if there is no such line.
    pub fn line_range(&self, number: usize) -> Range<usize> {
        let length = self.text.len();
        let start = number.checked_sub(1).and_then(|index| self.line_starts.get(index)).copied();
        let end = self.line_starts.get(number).copied().unwrap_or(length);
        start.map_or(length..length, |start| start..end)
    }

    /// Number of lines; a line end at the end of the file opens no further line.
    pub fn line_count(&self) -> usize {
        let open = self.text.len() > *self.line_starts.last().expect("there is always a first line");
        self.line_starts.len() - usize::from(!open)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_columns() {
        let source = SourceFile::new("Buildfile", "FROM a\r\nRÜN x\n");
        assert_eq!(source.line_count(), 2);
        assert_eq!(source.line(1), "FROM a");
        assert_eq!(source.line(2), "RÜN x");
        assert_eq!(source.line(3), "");
        assert_eq!(source.line(0), "");
        assert_eq!(source.line_column(0), LineColumn { line: 1, column: 1 });
        assert_eq!(source.line_column(11), LineColumn { line: 2, column: 3 });
        assert_eq!(source.line_column(999).line, 3);
    }

    #[test]
    fn bad_bytes_are_named() {
        let error = SourceFile::from_bytes("B", b"FROM a\nRUN \xff".to_vec()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "`B` is not UTF-8 text: bad byte at offset 11 (line 2); save it as UTF-8"
        );
        let error = SourceFile::from_bytes("B", b"\xff\xfeF\0R\0".to_vec()).unwrap_err();
        assert_eq!(error.to_string(), "`B` is UTF-16 text; save it as UTF-8");
        let error = SourceFile::from_bytes("B", vec![b' '; SOURCE_BYTES_MAX + 1]).unwrap_err();
        assert!(matches!(error, SourceError::TooLarge { .. }));
    }
}
