//! PAX extended headers, read: `"%d %s=%s\n"` records, strictly.
//!
//! Two readers that understand one header differently are an attack (one sees a harmless file where the other sees
//! a second archive), so whatever is ambiguous is refused: wrong lengths, a missing newline, numbers that are not
//! plain decimal, NULs in names.

use std::collections::BTreeMap;

use super::entry::Mtime;
use super::sparse::{SEGMENTS_MAX, Segment};

/// Records of one header together. Go reads no more than this either, so no layer in use has more.
pub(super) const PAX_BYTES_MAX: usize = 1 << 20;

/// Extended attributes of one entry: the kernel lists no more than 64 KiB of their names.
const XATTRS_MAX: usize = 1024;
/// XATTR_NAME_MAX of the kernel.
const XATTR_NAME_BYTES_MAX: usize = 255;
/// XATTR_SIZE_MAX of the kernel.
const XATTR_VALUE_BYTES_MAX: usize = 64 * 1024;

/// What extended headers say about the next entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Extensions {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link_path: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) mtime: Option<Mtime>,
    pub(super) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(super) sparse: SparseRecords,
}

/// GNU's sparse records, formats 0.0, 0.1 and 1.0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct SparseRecords {
    pub(super) major: Option<u64>,
    pub(super) minor: Option<u64>,
    pub(super) name: Option<Vec<u8>>,
    pub(super) real_size: Option<u64>,
    /// The map of formats 0.0 and 0.1.
    pub(super) segments: Vec<Segment>,
    pub(super) map_seen: bool,
    offset: Option<u64>,
}

impl Extensions {
    /// Parses the records of one extended header. When a key occurs twice the last one counts ("the last one shall
    /// take precedence", POSIX.1-2001 pax, *pax Extended Header Keyword Precedence*).
    pub(super) fn parse(records: &[u8]) -> Result<Extensions, String> {
        let mut extensions = Extensions::default();
        let mut rest = records;
        while !rest.is_empty() {
            let (key, value, after) = split_record(rest)?;
            extensions.apply(key, value)?;
            rest = after;
        }
        if extensions.sparse.offset.is_some() {
            return Err("a sparse offset has no length".to_owned());
        }
        Ok(extensions)
    }

    /// Whether a *global* header says something that may not hold for every entry. Readers disagree on whether global
    /// records apply to entries at all; for times and owners that is harmless, for these it is not.
    pub(super) fn unfit_for_global(&self) -> Option<&'static str> {
        let Extensions { path, link_path, size, xattrs, sparse, .. } = self;
        [
            ("path", path.is_some()),
            ("linkpath", link_path.is_some()),
            ("size", size.is_some()),
            ("SCHILY.xattr", !xattrs.is_empty()),
            ("GNU.sparse", *sparse != SparseRecords::default()),
        ]
        .into_iter()
        .find_map(|(key, present)| present.then_some(key))
    }

    fn apply(&mut self, key: &[u8], value: &[u8]) -> Result<(), String> {
        if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
            return self.xattr(name, value);
        }
        if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
            return self.sparse.apply(key, value);
        }
        // "If the <value> field is zero length, it shall delete any header block field" (POSIX): the block counts.
        let given = !value.is_empty();
        let number = || decimal(value).map(|number| given.then_some(number));
        match key {
            b"path" => self.path = given.then(|| without_nul(key, value)).transpose()?,
            b"linkpath" => self.link_path = given.then(|| without_nul(key, value)).transpose()?,
            b"size" => self.size = number()?,
            b"uid" => self.uid = number()?,
            b"gid" => self.gid = number()?,
            b"mtime" => self.mtime = given.then(|| time(value)).transpose()?,
            b"hdrcharset" if given && value != b"BINARY" && value != b"ISO-IR 10646 2000 UTF-8" => {
                return Err("hdrcharset is neither BINARY nor UTF-8".to_owned());
            }
            // Names of users and groups, access times, comments, and what other programs keep for themselves.
            _ => {}
        }
        Ok(())
    }

    fn xattr(&mut self, name: &[u8], value: &[u8]) -> Result<(), String> {
        if name.is_empty() || name.contains(&0) || name.len() > XATTR_NAME_BYTES_MAX {
            return Err("the name of an extended attribute is empty, too long or holds a NUL byte".to_owned());
        }
        if value.len() > XATTR_VALUE_BYTES_MAX {
            return Err(format!("an extended attribute is longer than {XATTR_VALUE_BYTES_MAX} bytes"));
        }
        self.xattrs.insert(name.to_vec(), value.to_vec());
        if self.xattrs.len() > XATTRS_MAX {
            return Err(format!("there are more than {XATTRS_MAX} extended attributes"));
        }
        Ok(())
    }
}

impl SparseRecords {
    /// Whether the map stands before the file's content: format 1.0.
    pub(super) fn map_in_content(&self) -> bool {
        self.major == Some(1) && self.minor == Some(0)
    }

    /// Whether there is a map, here or in the content.
    pub(super) fn is_map(&self) -> bool {
        self.map_seen || self.map_in_content()
    }

    fn apply(&mut self, key: &[u8], value: &[u8]) -> Result<(), String> {
        match key {
            b"major" => self.major = Some(decimal(value)?),
            b"minor" => self.minor = Some(decimal(value)?),
            b"name" => self.name = Some(without_nul(key, value)?),
            b"size" | b"realsize" => self.real_size = Some(decimal(value)?),
            b"offset" if self.offset.is_some() => {
                return Err("two sparse offsets without a length between them".to_owned());
            }
            b"offset" => self.offset = Some(decimal(value)?),
            b"numbytes" => {
                let offset = self.offset.take().ok_or("a sparse length without an offset")?;
                self.push(offset, decimal(value)?)?;
            }
            b"numblocks" => self.map_seen = true,
            b"map" => {
                self.segments.clear();
                self.map_seen = true;
                let mut numbers = value.split(|&byte| byte == b',').filter(|text| !text.is_empty());
                while let Some(offset) = numbers.next() {
                    let length = numbers.next().ok_or("the sparse map has an odd number of fields")?;
                    self.push(decimal(offset)?, decimal(length)?)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn push(&mut self, offset: u64, length: u64) -> Result<(), String> {
        self.map_seen = true;
        if self.segments.len() >= SEGMENTS_MAX {
            return Err(format!("the sparse map has more than {SEGMENTS_MAX} segments"));
        }
        self.segments.push(Segment { offset, length });
        Ok(())
    }
}

/// Key, value, and what follows.
type Record<'r> = (&'r [u8], &'r [u8], &'r [u8]);

/// Takes the first record off `rest`.
fn split_record(rest: &[u8]) -> Result<Record<'_>, String> {
    const LENGTH_DIGITS_MAX: usize = 8;
    let bad = || "an extended header record has a wrong length".to_owned();
    let space = rest.iter().take(LENGTH_DIGITS_MAX).position(|&byte| byte == b' ').ok_or_else(bad)?;
    let length = usize::try_from(decimal(&rest[..space])?).map_err(|_| bad())?;
    if space == 0 || length > rest.len() || length < space + 3 || rest[length - 1] != b'\n' {
        return Err(bad());
    }
    let (record, after) = rest.split_at(length);
    let body = &record[space + 1..length - 1];
    let equals = body.iter().position(|&byte| byte == b'=').ok_or("an extended header record has no `=`")?;
    let (key, value) = (&body[..equals], &body[equals + 1..]);
    if key.is_empty() || key.contains(&0) {
        return Err("an extended header record has a bad key".to_owned());
    }
    Ok((key, value, after))
}

fn without_nul(key: &[u8], value: &[u8]) -> Result<Vec<u8>, String> {
    match value.contains(&0) {
        true => Err(format!("the record `{}` holds a NUL byte", super::path::printable(key))),
        false => Ok(value.to_vec()),
    }
}

/// A plain decimal number; the empty text is 0. No sign, no spaces: `i64::MAX` is the most, as for the kernel's sizes.
pub(super) fn decimal(text: &[u8]) -> Result<u64, String> {
    let bad = || format!("`{}` is not a decimal number in range", super::path::printable(text));
    let number = text.iter().try_fold(0_i64, |sum, &byte| match byte {
        b'0'..=b'9' => sum.checked_mul(10)?.checked_add(i64::from(byte - b'0')),
        _ => None,
    });
    number.map(i64::unsigned_abs).ok_or_else(bad)
}

/// Seconds with an optional sign and fraction; digits beyond nanoseconds are dropped.
fn time(text: &[u8]) -> Result<Mtime, String> {
    let bad = || format!("`{}` is not a time", super::path::printable(text));
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let dot = text.iter().position(|&byte| byte == b'.');
    let (whole, fraction) = dot.map_or((text, &b""[..]), |dot| (&text[..dot], &text[dot + 1..]));
    if whole.is_empty() || !fraction.iter().all(u8::is_ascii_digit) {
        return Err(bad());
    }
    let seconds = decimal(whole)?.cast_signed();
    let digit = |at: usize| u32::from(fraction.get(at).map_or(0, |byte| byte - b'0'));
    let nanos = (0..9).fold(0, |sum, at| sum * 10 + digit(at));
    Ok(match (negative, nanos) {
        (false, nanos) => Mtime { secs: seconds, nanos },
        (true, 0) => Mtime { secs: -seconds, nanos: 0 },
        (true, nanos) => Mtime { secs: -seconds - 1, nanos: 1_000_000_000 - nanos },
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn records() {
        let parsed =
            Extensions::parse(b"12 path=a b\n11 size=12\n19 SCHILY.xattr.k=\0=\n6 a=b\n").unwrap_err();
        assert!(parsed.contains("length"), "{parsed}");
        let parsed = Extensions::parse(b"12 path=a b\n11 size=12\n22 SCHILY.xattr.k=\0=\n\n6 a=b\n").unwrap();
        assert_eq!(parsed.path.as_deref(), Some(&b"a b"[..]));
        assert_eq!(parsed.size, Some(12));
        assert_eq!(parsed.xattrs[&b"k"[..]], b"\0=\n");
        let twice = Extensions::parse(b"9 path=a\n9 path=b\n8 uid=7\n7 uid=\n").unwrap();
        assert_eq!(twice.path.as_deref(), Some(&b"b"[..]));
        assert_eq!(twice.uid, None, "an empty value gives the field back to the block");
    }

    #[test]
    fn refusals() {
        let cases: [&[u8]; 15] = [
            b"9 path=a",
            b"99 path=a\n",
            b"8 path=a\n",
            b"0 path=a\n",
            b"-9 path=a\n",
            b" 9 path=a\n",
            b"99999999999999999999 path=a\n",
            b"9 path=\0\n",
            b"7 patha\n",
            b"5 =a\n",
            b"10 size=-1\n",
            b"28 size=9223372036854775808\n",
            b"11 size=0x1\n",
            b"11 mtime=.5\n",
            b"24 GNU.sparse.offset=12\n",
        ];
        for records in cases {
            assert!(Extensions::parse(records).is_err(), "{}", String::from_utf8_lossy(records));
        }
    }

    #[test]
    fn times() {
        let cases: [(&[u8], i64, u32); 6] = [
            (b"1", 1, 0),
            (b"1.5", 1, 500_000_000),
            (b"-1.5", -2, 500_000_000),
            (b"-3", -3, 0),
            (b"0.0000000019", 0, 1),
            (b"7.", 7, 0),
        ];
        for (text, secs, nanos) in cases {
            assert_eq!(time(text).unwrap(), Mtime { secs, nanos });
        }
        for text in [&b""[..], b"-", b".", b"1.x", b"1e5", b"+1"] {
            assert!(time(text).is_err(), "{text:?}");
        }
    }
}
