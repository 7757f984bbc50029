//! Tar headers as rimg writes them: POSIX ustar, with a PAX extended header only where ustar cannot say it.
//!
//! The form is the one that Go's archive/tar gives its readers, because those read most layers in the world: what
//! does not fit a ustar field goes into a PAX record and leaves 0 (or an ASCII approximation) in the field. User and
//! group names stay empty: they would be looked up on the machine that builds.

use super::entry::{Entry, EntryKind, Mtime};
use super::path::LayerPath;
use super::pax::PAX_BYTES_MAX;

/// Headers and content are padded to multiples of this.
pub(super) const BLOCK_BYTES: usize = 512;

const NAME_BYTES: usize = 100;
const PREFIX_BYTES: usize = 155;
/// Seven octal digits.
const ID_MAX: u64 = 0o7_777_777;
/// Eleven octal digits: 8 GiB less one.
const SIZE_MAX: u64 = 0o77_777_777_777;

/// The prefix that makes a name a whiteout (image-spec, *Whiteouts*).
pub(super) const WHITEOUT_PREFIX: &[u8] = b".wh.";
/// The file that makes its directory opaque.
pub(super) const OPAQUE_NAME: &[u8] = b".wh..wh..opq";

/// Why an entry cannot be written as a layer says it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unrepresentable {
    /// A component begins with `.wh.`.
    #[error("names that begin with `.wh.` mean removal in a layer and cannot be files")]
    ReservedName,
    /// The root cannot be this.
    #[error("the root of a layer can only be a directory")]
    Root,
    /// The target of a symbolic link is empty, too long or holds a NUL.
    #[error("the target of the symbolic link is empty, longer than 4095 bytes or holds a NUL byte")]
    SymlinkTarget,
    /// A device number is out of range.
    #[error("device number {0} is larger than a tar header can say")]
    Device(u32),
    /// An extended attribute's name cannot be a PAX key.
    #[error("extended attribute name `{0}` is empty or holds `=` or a NUL byte")]
    XattrName(String),
    /// Long name, target and attributes together are too long.
    #[error("name and extended attributes need {0} bytes of header: the limit is {PAX_BYTES_MAX}")]
    HeaderSize(usize),
    /// Mode bits above 0o7777.
    #[error("mode {0:#o} has bits beyond 0o7777")]
    Mode(u32),
    /// Nanoseconds of a second and more.
    #[error("modification time has {0} nanoseconds")]
    Nanoseconds(u32),
}

/// Appends the header blocks of `entry` to `out`.
///
/// # Errors
/// When the entry cannot be said in a layer; `out` is then as it was.
pub(super) fn encode(entry: &Entry, out: &mut Vec<u8>) -> Result<(), Unrepresentable> {
    check(entry)?;
    let name = tar_name(entry)?;
    let mut records = Records::default();
    for (key, value) in &entry.xattrs {
        records.push(&[b"SCHILY.xattr.", key.as_slice()].concat(), value);
    }
    let link = link_name(&entry.kind);
    let mut block = Block::new();
    block.number(Field::GID, records.fit(b"gid", entry.gid, ID_MAX));
    if std::str::from_utf8(&name).is_err() || std::str::from_utf8(link).is_err() {
        // POSIX.1-2001 pax: values are UTF-8 unless hdrcharset says otherwise.
        records.push(b"hdrcharset", b"BINARY");
    }
    if link.len() > NAME_BYTES || !link.is_ascii() {
        records.push(b"linkpath", link);
    }
    block.text(Field::LINK_NAME, link);
    block.number(Field::MTIME, records.mtime(entry.mtime));
    match split_name(&name) {
        Some((prefix, rest)) => {
            block.text(Field::PREFIX, prefix);
            block.text(Field::NAME, rest);
        }
        None => {
            records.push(b"path", &name);
            block.text(Field::NAME, &name);
        }
    }
    block.number(Field::SIZE, records.fit(b"size", entry.size(), SIZE_MAX));
    block.number(Field::UID, records.fit(b"uid", entry.uid, ID_MAX));
    let (type_flag, major, minor) = type_of(&entry.kind)?;
    block.number(Field::MODE, u64::from(entry.mode));
    block.number(Field::DEVICE_MAJOR, u64::from(major));
    block.number(Field::DEVICE_MINOR, u64::from(minor));
    records.encode(&entry.path, out)?;
    out.extend_from_slice(&block.finish(type_flag));
    Ok(())
}

fn check(entry: &Entry) -> Result<(), Unrepresentable> {
    if entry.path.components().any(|name| name.starts_with(WHITEOUT_PREFIX)) {
        return Err(Unrepresentable::ReservedName);
    }
    if entry.path.is_root() && !matches!(entry.kind, EntryKind::Directory | EntryKind::OpaqueMarker) {
        return Err(Unrepresentable::Root);
    }
    if entry.mode > 0o7777 {
        return Err(Unrepresentable::Mode(entry.mode));
    }
    if entry.mtime.nanos >= 1_000_000_000 {
        return Err(Unrepresentable::Nanoseconds(entry.mtime.nanos));
    }
    if let EntryKind::Symlink { target } = &entry.kind
        && (target.is_empty() || target.contains(&0) || target.len() >= super::path::PATH_BYTES_MAX)
    {
        return Err(Unrepresentable::SymlinkTarget);
    }
    match entry.xattrs.keys().find(|key| key.is_empty() || key.contains(&b'=') || key.contains(&0)) {
        Some(key) => Err(Unrepresentable::XattrName(super::path::printable(key))),
        None => Ok(()),
    }
}

/// The name as it stands in the tar: relative, directories with a trailing slash, markers under their `.wh.` names.
fn tar_name(entry: &Entry) -> Result<Vec<u8>, Unrepresentable> {
    let path = entry.path.as_bytes();
    let (parent, name) = entry.path.split_name();
    let below = |directory: &[u8], name: &[&[u8]]| {
        let slash: &[u8] = if directory.is_empty() { b"" } else { b"/" };
        [directory, slash, &name.concat()].concat()
    };
    match entry.kind {
        EntryKind::Directory if path.is_empty() => Ok(b"./".to_vec()),
        EntryKind::Directory => Ok([path, b"/"].concat()),
        EntryKind::OpaqueMarker => Ok(below(path, &[OPAQUE_NAME])),
        EntryKind::Whiteout => Ok(below(parent, &[WHITEOUT_PREFIX, name])),
        _ => Ok(path.to_vec()),
    }
}

fn link_name(kind: &EntryKind) -> &[u8] {
    match kind {
        EntryKind::Symlink { target } => target,
        EntryKind::Hardlink { target } => target.as_bytes(),
        _ => b"",
    }
}

fn type_of(kind: &EntryKind) -> Result<(u8, u32, u32), Unrepresentable> {
    let device =
        |flag, major: u32, minor: u32| match [major, minor].into_iter().find(|&n| u64::from(n) > ID_MAX) {
            Some(number) => Err(Unrepresentable::Device(number)),
            None => Ok((flag, major, minor)),
        };
    match *kind {
        EntryKind::Regular { .. } | EntryKind::Whiteout | EntryKind::OpaqueMarker => Ok((b'0', 0, 0)),
        EntryKind::Hardlink { .. } => Ok((b'1', 0, 0)),
        EntryKind::Symlink { .. } => Ok((b'2', 0, 0)),
        EntryKind::CharDevice { major, minor } => device(b'3', major, minor),
        EntryKind::BlockDevice { major, minor } => device(b'4', major, minor),
        EntryKind::Directory => Ok((b'5', 0, 0)),
        EntryKind::Fifo => Ok((b'6', 0, 0)),
    }
}

/// Splits a name into the ustar prefix and name fields; `None` when only PAX can say it.
fn split_name(name: &[u8]) -> Option<(&[u8], &[u8])> {
    if !name.is_ascii() {
        return None;
    }
    if name.len() <= NAME_BYTES {
        return Some((b"", name));
    }
    // A directory's own trailing slash is no place to split.
    let body = &name[..name.len() - 1];
    let reach = body.len().min(PREFIX_BYTES + 1);
    let slash = body[..reach].iter().rposition(|&byte| byte == b'/')?;
    let (prefix, rest) = (&name[..slash], &name[slash + 1..]);
    (slash > 0 && rest.len() <= NAME_BYTES).then_some((prefix, rest))
}

/// PAX records of one entry, in the order of their keys.
#[derive(Default)]
struct Records {
    bytes: Vec<u8>,
}

impl Records {
    /// `"%d %s=%s\n"`, where the number counts the whole record, itself included (POSIX.1-2001 pax, *pax Extended
    /// Header*).
    fn push(&mut self, key: &[u8], value: &[u8]) {
        let rest = key.len() + value.len() + 3;
        let mut length = rest + digits(rest);
        length = rest + digits(length);
        self.bytes.extend_from_slice(format!("{length} ").as_bytes());
        self.bytes.extend_from_slice(key);
        self.bytes.push(b'=');
        self.bytes.extend_from_slice(value);
        self.bytes.push(b'\n');
    }

    /// The value for the ustar field; a value too large for it becomes a record, and 0 in the field.
    fn fit(&mut self, key: &[u8], value: u64, max: u64) -> u64 {
        if value <= max {
            return value;
        }
        self.push(key, value.to_string().as_bytes());
        0
    }

    fn mtime(&mut self, mtime: Mtime) -> u64 {
        match u64::try_from(mtime.secs) {
            Ok(seconds) if mtime.nanos == 0 => self.fit(b"mtime", seconds, SIZE_MAX),
            plain => {
                self.push(b"mtime", decimal(mtime).as_bytes());
                plain.ok().filter(|&seconds| seconds <= SIZE_MAX).unwrap_or(0)
            }
        }
    }

    /// Appends the extended header and its records to `out`, or nothing when there are none.
    fn encode(self, path: &LayerPath, out: &mut Vec<u8>) -> Result<(), Unrepresentable> {
        if self.bytes.is_empty() {
            return Ok(());
        }
        if self.bytes.len() > PAX_BYTES_MAX {
            return Err(Unrepresentable::HeaderSize(self.bytes.len()));
        }
        let mut block = Block::new();
        let name = [b"PaxHeaders.0/", path.split_name().1].concat();
        block.text(Field::NAME, &name);
        for field in
            [Field::MODE, Field::UID, Field::GID, Field::MTIME, Field::DEVICE_MAJOR, Field::DEVICE_MINOR]
        {
            block.number(field, 0);
        }
        block.number(Field::SIZE, self.bytes.len() as u64);
        out.extend_from_slice(&block.finish(b'x'));
        let padding = padding_of(self.bytes.len() as u64);
        out.extend_from_slice(&self.bytes);
        out.resize(out.len() + padding, 0);
        Ok(())
    }
}

/// Bytes from `length` to the next block boundary.
pub(super) fn padding_of(length: u64) -> usize {
    // The remainder is below BLOCK_BYTES, so the conversion cannot truncate.
    let over = (length % BLOCK_BYTES as u64) as usize;
    (BLOCK_BYTES - over) % BLOCK_BYTES
}

fn digits(number: usize) -> usize {
    number.checked_ilog10().unwrap_or(0) as usize + 1
}

/// Seconds with a decimal fraction; before the epoch the fraction counts away from it, as in any decimal number.
fn decimal(mtime: Mtime) -> String {
    if mtime.nanos == 0 {
        return mtime.secs.to_string();
    }
    let (sign, seconds, nanos) = match mtime.secs {
        secs @ 0.. => ("", secs.unsigned_abs(), mtime.nanos),
        secs => ("-", secs.unsigned_abs() - 1, 1_000_000_000 - mtime.nanos),
    };
    let text = format!("{sign}{seconds}.{nanos:09}");
    text.trim_end_matches('0').to_owned()
}

/// A field of the ustar header block.
#[derive(Clone, Copy)]
struct Field {
    offset: usize,
    length: usize,
}

impl Field {
    const NAME: Field = Field { offset: 0, length: NAME_BYTES };
    const MODE: Field = Field { offset: 100, length: 8 };
    const UID: Field = Field { offset: 108, length: 8 };
    const GID: Field = Field { offset: 116, length: 8 };
    const SIZE: Field = Field { offset: 124, length: 12 };
    const MTIME: Field = Field { offset: 136, length: 12 };
    const CHECKSUM: Field = Field { offset: 148, length: 8 };
    const TYPE_FLAG: usize = 156;
    const LINK_NAME: Field = Field { offset: 157, length: NAME_BYTES };
    const MAGIC: Field = Field { offset: 257, length: 8 };
    const DEVICE_MAJOR: Field = Field { offset: 329, length: 8 };
    const DEVICE_MINOR: Field = Field { offset: 337, length: 8 };
    const PREFIX: Field = Field { offset: 345, length: PREFIX_BYTES };
}

struct Block([u8; BLOCK_BYTES]);

impl Block {
    fn new() -> Block {
        Block([0; BLOCK_BYTES])
    }

    fn slice(&mut self, field: Field) -> &mut [u8] {
        &mut self.0[field.offset..field.offset + field.length]
    }

    /// As much of `text` as fits, in ASCII; what is lost stands in a PAX record.
    fn text(&mut self, field: Field, text: &[u8]) {
        for (slot, &byte) in self.slice(field).iter_mut().zip(text) {
            *slot = if byte.is_ascii() { byte } else { b'_' };
        }
    }

    /// Zero-padded octal and a NUL; `number` is known to fit.
    fn number(&mut self, field: Field, number: u64) {
        let digits = format!("{number:0width$o}\0", width = field.length - 1);
        self.slice(field).copy_from_slice(digits.as_bytes());
    }

    fn finish(mut self, type_flag: u8) -> [u8; BLOCK_BYTES] {
        self.slice(Field::MAGIC).copy_from_slice(b"ustar\x0000");
        self.0[Field::TYPE_FLAG] = type_flag;
        self.slice(Field::CHECKSUM).fill(b' ');
        let sum: u32 = self.0.iter().copied().map(u32::from).sum();
        self.slice(Field::CHECKSUM).copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn encoded(entry: &Entry) -> Vec<u8> {
        let mut out = Vec::new();
        encode(entry, &mut out).unwrap();
        assert_eq!(out.len() % BLOCK_BYTES, 0);
        out
    }

    fn file(path: &str) -> Entry {
        Entry::new(LayerPath::parse(path).unwrap(), EntryKind::Regular { size: 3 }, 0o644)
    }

    #[test]
    fn a_plain_file_is_one_block() {
        let block = encoded(&file("etc/motd"));
        assert_eq!(block.len(), BLOCK_BYTES);
        assert_eq!(&block[..9], b"etc/motd\0");
        assert_eq!(&block[100..108], b"0000644\0");
        assert_eq!(&block[124..136], b"00000000003\0");
        assert_eq!(&block[257..265], b"ustar\x0000");
        assert!(block[265..329].iter().all(|&byte| byte == 0), "user and group names are empty");
    }

    #[test]
    fn record_lengths_count_their_own_digits() {
        for length in 0..1200 {
            let mut records = Records::default();
            records.push(b"path", &vec![b'x'; length]);
            let text = String::from_utf8(records.bytes).unwrap();
            let (stated, _) = text.split_once(' ').unwrap();
            assert_eq!(stated.parse::<usize>().unwrap(), text.len());
        }
    }

    #[test]
    fn names_use_the_prefix_before_pax() {
        let split = [
            ("d/".repeat(60), true),
            ("x".repeat(101), false),
            (format!("{}/{}", "d".repeat(155), "f".repeat(100)), true),
        ];
        for (name, fits) in split {
            assert_eq!(split_name(name.as_bytes()).is_some(), fits, "{name}");
        }
        assert_eq!(split_name("ä".as_bytes()), None);
    }

    #[test]
    fn times_as_decimals() {
        let cases = [
            ((5, 500_000_000), "5.5"),
            ((-2, 500_000_000), "-1.5"),
            ((-1, 999_999_999), "-0.000000001"),
            ((-7, 0), "-7"),
        ];
        for ((secs, nanos), text) in cases {
            assert_eq!(decimal(Mtime { secs, nanos }), text);
        }
    }

    #[test]
    fn what_a_layer_cannot_say_is_refused() {
        let mut xattr = file("a");
        xattr.xattrs.insert(b"user.a=b".to_vec(), Vec::new());
        let mut huge = file("a");
        huge.xattrs.insert(b"user.a".to_vec(), vec![0; PAX_BYTES_MAX]);
        let link = |target: &[u8]| {
            Entry::new(LayerPath::parse("a").unwrap(), EntryKind::Symlink { target: target.to_vec() }, 0o777)
        };
        let mut mode = file("a");
        mode.mode = 0o10_000;
        for entry in [file(".wh.a"), file("a/.wh.b/c"), file(""), xattr, huge, link(b""), link(b"a\0"), mode]
        {
            let mut out = Vec::new();
            assert!(encode(&entry, &mut out).is_err(), "{entry:?}");
            assert!(out.is_empty());
        }
    }
}
