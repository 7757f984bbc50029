//! One 512-byte tar header block as anybody may have written it: v7, ustar, GNU, star.
//!
//! Only fields are parsed here; what several blocks mean together is the reader's business.

use super::header::BLOCK_BYTES;
use super::sparse::Segment;

/// A header block whose checksum is right.
#[derive(Clone)]
pub(super) struct HeaderBlock([u8; BLOCK_BYTES]);

/// A numeric field that is not a number; the text names the field.
pub(super) type BadField = String;

impl HeaderBlock {
    /// A header, or `None` when all is zero: the end of the archive, or half of it.
    ///
    /// # Errors
    /// When the checksum is wrong: what follows is not a header, and nothing behind it can be found.
    pub(super) fn parse(block: [u8; BLOCK_BYTES]) -> Result<Option<HeaderBlock>, BadField> {
        if block.iter().all(|&byte| byte == 0) {
            return Ok(None);
        }
        let header = HeaderBlock(block);
        let stated = header.number(148, 8, "checksum")?;
        // "The sum of all octets in the header, each treated as an unsigned 8-bit value" (POSIX, ustar), with the
        // field itself as spaces; some old writers summed signed bytes.
        let bytes =
            || block.iter().enumerate().map(|(at, &byte)| if (148..156).contains(&at) { b' ' } else { byte });
        let unsigned: i64 = bytes().map(i64::from).sum();
        let signed: i64 = bytes().map(|byte| i64::from(byte.cast_signed())).sum();
        if stated != unsigned && stated != signed {
            return Err(format!("the header's checksum is {stated}, its bytes add up to {unsigned}"));
        }
        Ok(Some(header))
    }

    pub(super) fn type_flag(&self) -> u8 {
        self.0[156]
    }

    /// The name, with the prefix where the format has one.
    pub(super) fn name(&self) -> Vec<u8> {
        let name = self.text(0, 100);
        // GNU's magic is `ustar  `, and it keeps times where ustar keeps the prefix; star ends the block with `tar`.
        let prefix = match (&self.0[257..263], &self.0[508..512]) {
            (b"ustar\0", b"tar\0") => self.text(345, 131),
            (b"ustar\0", _) => self.text(345, 155),
            _ => b"",
        };
        if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
    }

    pub(super) fn link_name(&self) -> Vec<u8> {
        self.text(157, 100).to_vec()
    }

    pub(super) fn size(&self) -> Result<u64, BadField> {
        self.unsigned(124, 12, "size")
    }

    pub(super) fn mode(&self) -> Result<u32, BadField> {
        // Some writers put the file type into the upper bits.
        Ok((self.number(100, 8, "mode")? & 0o7777) as u32)
    }

    pub(super) fn uid(&self) -> Result<u64, BadField> {
        self.unsigned(108, 8, "uid")
    }

    pub(super) fn gid(&self) -> Result<u64, BadField> {
        self.unsigned(116, 8, "gid")
    }

    pub(super) fn mtime(&self) -> Result<i64, BadField> {
        self.number(136, 12, "mtime")
    }

    /// Major and minor number of a device.
    pub(super) fn device(&self) -> Result<(u32, u32), BadField> {
        let narrow =
            |number: u64| u32::try_from(number).map_err(|_| format!("device number {number} is too large"));
        Ok((narrow(self.unsigned(329, 8, "device major")?)?, narrow(self.unsigned(337, 8, "device minor")?)?))
    }

    /// The first four segments of an old GNU sparse file, and whether more blocks of them follow.
    pub(super) fn gnu_segments(&self) -> Result<(Vec<Segment>, bool), BadField> {
        gnu_segments(&self.0[386..482], self.0[482])
    }

    /// The expanded size of an old GNU sparse file.
    pub(super) fn gnu_real_size(&self) -> Result<u64, BadField> {
        self.unsigned(483, 12, "real size")
    }

    fn text(&self, offset: usize, length: usize) -> &[u8] {
        let field = &self.0[offset..offset + length];
        let end = field.iter().position(|&byte| byte == 0).unwrap_or(length);
        &field[..end]
    }

    fn number(&self, offset: usize, length: usize, name: &str) -> Result<i64, BadField> {
        number(&self.0[offset..offset + length]).ok_or_else(|| format!("the header's {name} is not a number"))
    }

    fn unsigned(&self, offset: usize, length: usize, name: &str) -> Result<u64, BadField> {
        let number = self.number(offset, length, name)?;
        u64::try_from(number).map_err(|_| format!("the header's {name} is negative"))
    }
}

/// A continuation block of an old GNU sparse map: 21 segments, and whether another follows.
pub(super) fn gnu_continuation(block: &[u8; BLOCK_BYTES]) -> Result<(Vec<Segment>, bool), BadField> {
    gnu_segments(&block[..504], block[504])
}

fn gnu_segments(slots: &[u8], more: u8) -> Result<(Vec<Segment>, bool), BadField> {
    let mut segments = Vec::new();
    for slot in slots.chunks_exact(24) {
        if slot[0] == 0 {
            break;
        }
        let parse = |field| number(field).and_then(|number| u64::try_from(number).ok());
        let (Some(offset), Some(length)) = (parse(&slot[..12]), parse(&slot[12..])) else {
            return Err("the sparse map holds something that is not a number".to_owned());
        };
        segments.push(Segment { offset, length });
    }
    Ok((segments, more != 0))
}

/// An octal number with spaces or NULs around it, or GNU's base-256 when the first bit is set; empty is 0. `None` for
/// anything else, and for numbers beyond 63 bits.
fn number(field: &[u8]) -> Option<i64> {
    match field.first()? {
        0x80.. => base256(field),
        _ => octal(field),
    }
}

fn octal(field: &[u8]) -> Option<i64> {
    let blank = |byte: &u8| matches!(byte, b' ' | 0);
    let start = field.iter().position(|byte| !blank(byte)).unwrap_or(field.len());
    let digits = &field[start..];
    let end = digits.iter().position(blank).unwrap_or(digits.len());
    digits[..end].iter().try_fold(0_i64, |sum, &byte| match byte {
        b'0'..=b'7' => sum.checked_mul(8)?.checked_add(i64::from(byte - b'0')),
        _ => None,
    })
}

/// Two's complement over the whole field, its first bit being the marker and the second the sign.
fn base256(field: &[u8]) -> Option<i64> {
    let negative = field[0] & 0x40 != 0;
    // A negative number's first byte is part of its sign extension; a positive one's only carries the marker.
    let (start, first) = if negative { (-1, field[0]) } else { (0, field[0] & 0x7f) };
    let bytes = std::iter::once(first).chain(field[1..].iter().copied());
    // Twelve bytes always fit 128 bits; the result has to fit 64.
    let number = bytes.fold(start, |sum: i128, byte| sum * 256 + i128::from(byte));
    i64::try_from(number).ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        let cases: [(&[u8], Option<i64>); 14] = [
            (b"0000644\0", Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"644\0junk", Some(0o644)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"        ", Some(0)),
            (b"0000648\0", None),
            (b"-1\0\0\0\0\0\0", None),
            (b"77777777777\0", Some(0o77_777_777_777)),
            (b"\x80\0\0\0\0\0\0\x05", Some(5)),
            (b"\x80\0\0\0\0\x2d\xc6\xc0", Some(3_000_000)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfb", Some(-5)),
            (b"\x80\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff", None),
            (b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", Some(i64::MAX)),
            (b"\xff\xff\xff\xff\x80\0\0\0\0\0\0\0", Some(i64::MIN)),
        ];
        for (field, expected) in cases {
            assert_eq!(number(field), expected, "{field:?}");
        }
    }

    #[test]
    fn a_wrong_checksum_is_refused() {
        let mut block = [0; BLOCK_BYTES];
        block[0] = b'a';
        assert!(HeaderBlock::parse(block).is_err());
        assert!(matches!(HeaderBlock::parse([0; BLOCK_BYTES]), Ok(None)));
    }
}
