//! Sparse files: which parts of a file its archive stores; the rest reads as zeros.
//!
//! Layers that rimg writes never are sparse (image-spec wants none), layers and archives of others may be: GNU tar
//! makes them with `--sparse`, and `/var/log/lastlog` of some images is one. A hole costs nothing but its size here,
//! however large it claims to be.

use super::pax::decimal;

/// A stored part of a sparse file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where in the file it lies.
    pub offset: u64,
    /// How many bytes it has.
    pub length: u64,
}

/// Segments of one file. Each costs 16 bytes of memory; a virtual machine's disk of 20 GB has some ten thousand.
pub(super) const SEGMENTS_MAX: usize = 1 << 18;

/// Checks a map: ascending, without overlap, within `real_size`, and storing `stored` bytes altogether.
pub(super) fn check(segments: &[Segment], real_size: u64, stored: u64) -> Result<(), String> {
    let mut end = 0_u64;
    let mut sum = 0_u64;
    for segment in segments {
        if segment.offset < end {
            return Err("the sparse map overlaps or runs backwards".to_owned());
        }
        end = segment.offset.checked_add(segment.length).ok_or("the sparse map overflows")?;
        // Segments do not overlap, so their sum cannot exceed `end`.
        sum += segment.length;
    }
    if end > real_size {
        return Err(format!("the sparse map reaches to {end}, the file only to {real_size}"));
    }
    if sum != stored {
        return Err(format!("the sparse map stores {sum} bytes, the archive {stored}"));
    }
    Ok(())
}

/// Reads the map that GNU format 1.0 puts before the content: decimal lines, padded to a block.
#[derive(Default)]
pub(super) struct MapParser {
    line: Vec<u8>,
    count: Option<usize>,
    offset: Option<u64>,
    segments: Vec<Segment>,
}

impl MapParser {
    /// Takes one block; returns the map when it was the last.
    pub(super) fn block(&mut self, block: &[u8]) -> Result<Option<Vec<Segment>>, String> {
        const LINE_BYTES_MAX: usize = 20;
        for &byte in block {
            if byte != b'\n' {
                self.line.push(byte);
                if self.line.len() > LINE_BYTES_MAX {
                    return Err("the sparse map holds a line that is no number".to_owned());
                }
                continue;
            }
            let number = decimal(&self.line)?;
            self.line.clear();
            self.number(number)?;
            if self.count == Some(self.segments.len()) {
                return Ok(Some(std::mem::take(&mut self.segments)));
            }
        }
        Ok(None)
    }

    fn number(&mut self, number: u64) -> Result<(), String> {
        if self.count.is_none() {
            let count = usize::try_from(number).ok().filter(|&count| count <= SEGMENTS_MAX);
            self.count =
                Some(count.ok_or_else(|| format!("the sparse map has more than {SEGMENTS_MAX} segments"))?);
        } else if let Some(offset) = self.offset.take() {
            self.segments.push(Segment { offset, length: number });
        } else {
            self.offset = Some(number);
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn segments(pairs: &[(u64, u64)]) -> Vec<Segment> {
        pairs.iter().map(|&(offset, length)| Segment { offset, length }).collect()
    }

    #[test]
    fn maps_are_checked() {
        assert!(check(&segments(&[(0, 4), (4, 0), (10, 2)]), 12, 6).is_ok());
        assert!(check(&[], 10_000_000_000, 0).is_ok());
        for (pairs, real, stored) in [
            (&[(4, 4), (0, 1)][..], 10, 5),
            (&[(0, 4), (3, 1)], 10, 5),
            (&[(0, 4)], 3, 4),
            (&[(0, 4)], 10, 5),
            (&[(u64::MAX, 2)], u64::MAX, 2),
        ] {
            assert!(check(&segments(pairs), real, stored).is_err(), "{pairs:?}");
        }
    }

    #[test]
    fn format_1_0_map() {
        let mut parser = MapParser::default();
        assert_eq!(parser.block(b"2\n0\n5").unwrap(), None);
        assert_eq!(parser.block(b"12\n1024\n1\nrest").unwrap(), Some(segments(&[(0, 512), (1024, 1)])));
        assert_eq!(MapParser::default().block(b"0\n").unwrap(), Some(Vec::new()));
        assert!(MapParser::default().block(b"99999999\n").is_err());
        assert!(MapParser::default().block(b"x\n").is_err());
        assert!(MapParser::default().block(&[b'1'; 512]).is_err());
    }
}
