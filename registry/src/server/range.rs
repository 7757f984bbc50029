//! `Range` on blobs (RFC 9110 §14) and `Content-Range` on upload chunks (distribution-spec, *Pushing a blob in
//! chunks*): two headers of one family and two grammars.

use super::limits::RANGES_MAX;

/// A run of bytes within a blob; never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) offset: u64,
    pub(super) length: u64,
}

impl Span {
    /// The first `bytes` of the span, at least one, and what is left behind them.
    pub(super) fn split(self, bytes: usize) -> (Span, Option<Span>) {
        let length = self.length.min(bytes.max(1) as u64);
        let left = self.length - length;
        let rest = (left > 0).then_some(Span { offset: self.offset + length, length: left });
        (Span { offset: self.offset, length }, rest)
    }

    /// As `Content-Range` writes it.
    pub(super) fn content_range(&self, size: u64) -> String {
        format!("bytes {}-{}/{size}", self.offset, self.offset + self.length - 1)
    }
}

/// What part of a blob a request wants.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Selection {
    /// All of it: no range, a unit or a grammar we do not know (which a server must ignore), or a request so
    /// greedy that the whole is cheaper.
    Whole,
    /// One or more spans, in the order asked for.
    Spans(Vec<Span>),
    /// Nothing that was asked for exists (416).
    Unsatisfiable,
}

/// Reads a `Range` header for a blob of `size` bytes.
pub(super) fn select(header: &str, size: u64) -> Selection {
    let Some((unit, set)) = header.split_once('=') else {
        return Selection::Whole;
    };
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return Selection::Whole;
    }
    let mut spans = Vec::new();
    for (count, spec) in set.split(',').map(str::trim).filter(|spec| !spec.is_empty()).enumerate() {
        if count >= RANGES_MAX {
            return Selection::Whole;
        }
        match span(spec, size) {
            Err(Malformed) => return Selection::Whole,
            Ok(None) => {}
            Ok(Some(span)) => spans.push(span),
        }
    }
    if spans.is_empty() {
        return Selection::Unsatisfiable;
    }
    // Ranges that overlap until they outweigh the blob are an attack on bandwidth, or a mistake.
    let asked = spans.iter().fold(0u64, |sum, span| sum.saturating_add(span.length));
    if spans.len() > 1 && asked > size {
        return Selection::Whole;
    }
    Selection::Spans(spans)
}

struct Malformed;

/// One range of the set; `None` when it lies outside the blob, or runs backwards. RFC 9110 calls a backwards
/// range invalid and lets a server answer 416, which tells the client of its mistake.
fn span(spec: &str, size: u64) -> Result<Option<Span>, Malformed> {
    let (first, last) = spec.split_once('-').ok_or(Malformed)?;
    let (first, last) = (first.trim(), last.trim());
    if first.is_empty() {
        let length = number(last).ok_or(Malformed)?.min(size);
        return Ok((length > 0).then(|| Span { offset: size - length, length }));
    }
    let first = number(first).ok_or(Malformed)?;
    let last = match last {
        "" => u64::MAX,
        last => number(last).ok_or(Malformed)?,
    };
    if first >= size || last < first {
        return Ok(None);
    }
    Ok(Some(Span { offset: first, length: last.min(size - 1) - first + 1 }))
}

/// The place of an upload's chunk: `<start>-<end>`, both included. `None` when it is not that.
pub(super) fn chunk(header: &str) -> Option<Chunk> {
    let (start, end) = header.split_once('-')?;
    let (start, end) = (number(start)?, number(end)?);
    let length = end.checked_sub(start)?.checked_add(1)?;
    Some(Chunk { start, length })
}

/// A chunk announced by `Content-Range`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Chunk {
    pub(super) start: u64,
    pub(super) length: u64,
}

/// Digits alone: `parse` would take a sign too. A number too large to hold lies beyond any blob.
fn number(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some(text.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spans(list: &[(u64, u64)]) -> Selection {
        Selection::Spans(list.iter().map(|&(offset, length)| Span { offset, length }).collect())
    }

    #[test]
    fn ranges_of_a_blob_of_2048_bytes() {
        let cases = [
            ("bytes=500-1499", spans(&[(500, 1000)])),
            ("bytes=500-", spans(&[(500, 1548)])),
            ("bytes=-500", spans(&[(1548, 500)])),
            ("bytes=-5000", spans(&[(0, 2048)])),
            ("bytes=2000-5000", spans(&[(2000, 48)])),
            ("bytes=0-0", spans(&[(0, 1)])),
            ("bytes=0-0,-1", spans(&[(0, 1), (2047, 1)])),
            ("bytes= 1-2 , 5-6 ", spans(&[(1, 2), (5, 2)])),
            ("BYTES=1-1", spans(&[(1, 1)])),
            ("bytes=1-1,9000-", spans(&[(1, 1)])),
            ("bytes=0-99999999999999999999999", spans(&[(0, 2048)])),
            ("bytes=500-0", Selection::Unsatisfiable),
            ("bytes=5000-10000", Selection::Unsatisfiable),
            ("bytes=2048-", Selection::Unsatisfiable),
            ("bytes=-0", Selection::Unsatisfiable),
            ("bytes=99999999999999999999999-", Selection::Unsatisfiable),
            ("bytes=", Selection::Unsatisfiable),
            ("bytes=a-b", Selection::Whole),
            ("bytes=+1-2", Selection::Whole),
            ("bytes=1", Selection::Whole),
            ("lines=1-2", Selection::Whole),
            ("bytes", Selection::Whole),
            ("bytes=0-,0-,0-", Selection::Whole),
        ];
        for (header, expected) in cases {
            assert_eq!(select(header, 2048), expected, "{header}");
        }
        let many = format!("bytes={}", "0-0,".repeat(RANGES_MAX + 1));
        assert_eq!(select(&many, 2048), Selection::Whole);
    }

    #[test]
    fn a_span_is_split_where_there_is_more_of_it() {
        let split = |offset, length| {
            let (first, rest) = Span { offset, length }.split(10);
            ((first.offset, first.length), rest.map(|rest| (rest.offset, rest.length)))
        };
        assert_eq!(split(7, 25), ((7, 10), Some((17, 15))));
        assert_eq!(split(7, 10), ((7, 10), None));
        assert_eq!(split(7, 1), ((7, 1), None));
    }

    #[test]
    fn nothing_of_an_empty_blob_can_be_selected() {
        for header in ["bytes=0-", "bytes=-1", "bytes=0-0"] {
            assert_eq!(select(header, 0), Selection::Unsatisfiable, "{header}");
        }
    }

    #[test]
    fn chunks() {
        let cases = [
            ("0-0", Some((0, 1))),
            ("10-19", Some((10, 10))),
            ("19-10", None),
            ("bytes 0-5/*", None),
            ("0-", None),
            ("-5", None),
            ("a-b", None),
            ("0-18446744073709551615", None),
            ("1-18446744073709551615", Some((1, u64::MAX))),
        ];
        for (header, expected) in cases {
            let expected = expected.map(|(start, length)| Chunk { start, length });
            assert_eq!(chunk(header), expected, "{header}");
        }
    }
}
