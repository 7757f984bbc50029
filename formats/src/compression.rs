//! [`Compression`]: how a layer's tar is packed, and the [`Decoder`] that unpacks any of them.
//!
//! The decoder goes through every gzip member and every zstd frame of a stream (skippable frames included) and
//! remembers where each begins, so that a reader of the whole blob learns its members by the way. Compressing is
//! not done here: rimg compresses nothing but layers, see `layer::members`.

use std::io::{self, BufRead, BufReader, Cursor, Read};

use flate2::bufread::GzDecoder;

/// A compression that rimg reads; images themselves use the first three.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Compression {
    /// Plain.
    None,
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
    /// bzip2, in archives for ADD.
    Bzip2,
    /// xz, in archives for ADD.
    Xz,
}

impl Compression {
    /// How many leading bytes [`Compression::detect`] needs to be sure.
    pub const PREFIX_BYTES: usize = 10;

    /// The compression that the first bytes of a stream announce; [`Compression::None`] when they announce nothing.
    ///
    /// bzip2 needs its whole ten-byte signature: `BZh` alone may as well begin the name of a tar's first file.
    pub fn detect(prefix: &[u8]) -> Compression {
        match prefix {
            [0x1f, 0x8b, 0x08, ..] => Compression::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Compression::Zstd,
            // RFC 8878, 3.1.2: a skippable frame may come first.
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Compression::Zstd,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Compression::Xz,
            [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41, 0x59, 0x26, 0x53, 0x59, ..]
            | [b'B', b'Z', b'h', b'1'..=b'9', 0x17, 0x72, 0x45, 0x38, 0x50, 0x90, ..] => Compression::Bzip2,
            _ => Compression::None,
        }
    }

    /// The lower-case name, as error messages and listings show it.
    pub fn name(self) -> &'static str {
        match self {
            Compression::None => "none",
            Compression::Gzip => "gzip",
            Compression::Zstd => "zstd",
            Compression::Bzip2 => "bzip2",
            Compression::Xz => "xz",
        }
    }
}

/// One independently decodable piece of a blob: a gzip member, a zstd frame, or several of them in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Where its content begins in the uncompressed stream.
    pub uncompressed_offset: u64,
    /// Where its bytes begin in the blob.
    pub blob_offset: u64,
    /// How many bytes it decodes to.
    pub uncompressed_len: u64,
    /// How many bytes it takes in the blob.
    pub blob_len: u64,
}

/// Members remembered for one stream; later ones extend the last. A member of one byte costs 21 bytes of blob, so
/// without a bound a crafted blob would cost more memory than its own size. Largest real value seen: one member a
/// file, about 100,000.
const MEMBERS_MAX: usize = 1 << 20;

/// What an xz stream may ask for its dictionary, in KiB. `xz -9` needs 64 MiB, the format allows 4 GiB.
const XZ_MEMORY_KIB_MAX: u32 = 96 * 1024;

/// Compressed bytes are asked for in pieces of this size.
const INPUT_BUFFER_BYTES: usize = 64 * 1024;

type Input<'a> = BufReader<io::Chain<Cursor<Vec<u8>>, Box<dyn Read + Send + 'a>>>;

/// A stream decoded as it is read: `Read` yields the uncompressed bytes.
///
/// Damage, a truncated end and anything after the last member are errors of kind `InvalidData` or `UnexpectedEof`.
pub struct Decoder<'a> {
    state: State<'a>,
    compression: Compression,
    padding: Padding,
    produced: u64,
    member_start: (u64, u64),
    members: Vec<Member>,
}

/// What becomes of zeros between a gzip stream's end and the end of the input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Padding {
    /// They are an error, as anything there is.
    #[default]
    Refused,
    /// They are passed over.
    Allowed,
}

enum State<'a> {
    Plain(Counted<'a>),
    /// Before the first member, or after one.
    Between(Counted<'a>),
    Gzip(Box<GzDecoder<Counted<'a>>>),
    Zstd(Box<zstd::stream::read::Decoder<'static, Counted<'a>>>),
    Bzip2(Box<bzip2::bufread::MultiBzDecoder<Counted<'a>>>),
    Xz(Box<lzma_rust2::XzReader<Counted<'a>>>),
    /// At the end, or after an error: only the count is left.
    Ended {
        consumed: u64,
    },
}

/// Decodes `input` as `compression` says.
pub fn decoder<'a>(compression: Compression, input: Box<dyn Read + Send + 'a>) -> Decoder<'a> {
    Decoder::begin(compression, Vec::new(), input)
}

impl<'a> Decoder<'a> {
    /// Reads the first bytes of `input` and decodes it as they say.
    ///
    /// # Errors
    /// Those of reading `input`.
    pub fn detect(mut input: Box<dyn Read + Send + 'a>) -> io::Result<Decoder<'a>> {
        let mut prefix = Vec::with_capacity(Compression::PREFIX_BYTES);
        (&mut input).take(Compression::PREFIX_BYTES as u64).read_to_end(&mut prefix)?;
        Ok(Decoder::begin(Compression::detect(&prefix), prefix, input))
    }

    fn begin(compression: Compression, prefix: Vec<u8>, input: Box<dyn Read + Send + 'a>) -> Decoder<'a> {
        let chained = Cursor::new(prefix).chain(input);
        let input = Counted { inner: BufReader::with_capacity(INPUT_BUFFER_BYTES, chained), consumed: 0 };
        let state = match compression {
            Compression::None => State::Plain(input),
            Compression::Gzip | Compression::Zstd => State::Between(input),
            Compression::Bzip2 => State::Bzip2(Box::new(bzip2::bufread::MultiBzDecoder::new(input))),
            Compression::Xz => {
                State::Xz(Box::new(lzma_rust2::XzReader::new_mem_limit(input, true, XZ_MEMORY_KIB_MAX)))
            }
        };
        Decoder {
            state,
            compression,
            padding: Padding::default(),
            produced: 0,
            member_start: (0, 0),
            members: Vec::new(),
        }
    }

    /// This decoder with another rule for zeros behind a gzip stream.
    #[must_use]
    pub fn with_padding(self, padding: Padding) -> Decoder<'a> {
        Decoder { padding, ..self }
    }

    /// What is being decoded.
    pub fn compression(&self) -> Compression {
        self.compression
    }

    /// How many compressed bytes have been used so far.
    pub fn consumed(&self) -> u64 {
        match &self.state {
            State::Plain(input) | State::Between(input) => input.consumed,
            State::Gzip(gzip) => gzip.get_ref().consumed,
            State::Zstd(zstd) => zstd.get_ref().consumed,
            State::Bzip2(bzip2) => bzip2.get_ref().consumed,
            State::Xz(xz) => xz.inner().consumed,
            State::Ended { consumed } => *consumed,
        }
    }

    /// How many uncompressed bytes have been handed out so far.
    pub fn produced(&self) -> u64 {
        self.produced
    }

    /// The gzip members or zstd frames gone through so far that held anything; empty for other compressions.
    pub fn into_members(self) -> Vec<Member> {
        self.members
    }

    /// Opens the next member, or ends the stream.
    fn open_member(&mut self, mut input: Counted<'a>) -> io::Result<()> {
        let next = input.fill_buf()?.first().copied();
        if next.is_none() && input.consumed > 0 {
            self.state = State::Ended { consumed: input.consumed };
            return Ok(());
        }
        if next == Some(0) && input.consumed > 0 && self.padding == Padding::Allowed {
            return self.pass_zeros(input);
        }
        self.member_start = (self.produced, input.consumed);
        self.state = match self.compression {
            Compression::Gzip if next.is_some_and(|byte| byte != 0x1f) => {
                return Err(invalid("gzip stream is followed by something that is not gzip"));
            }
            Compression::Gzip => State::Gzip(Box::new(GzDecoder::new(input))),
            _ => State::Zstd(Box::new(zstd::stream::read::Decoder::with_buffer(input)?.single_frame())),
        };
        Ok(())
    }

    /// Ends the stream where nothing but zeros is left.
    fn pass_zeros(&mut self, mut input: Counted<'a>) -> io::Result<()> {
        loop {
            let bytes = input.fill_buf()?;
            let length = bytes.len();
            if bytes.iter().any(|byte| *byte != 0) {
                return Err(invalid("gzip stream is followed by something that is not gzip"));
            }
            if length == 0 {
                self.state = State::Ended { consumed: input.consumed };
                return Ok(());
            }
            input.consume(length);
        }
    }

    fn close_member(&mut self, input: Counted<'a>) {
        let (uncompressed_offset, blob_offset) = self.member_start;
        let member = Member {
            uncompressed_offset,
            blob_offset,
            uncompressed_len: self.produced - uncompressed_offset,
            blob_len: input.consumed - blob_offset,
        };
        let full = self.members.len() >= MEMBERS_MAX;
        match self.members.last_mut() {
            _ if member.uncompressed_len == 0 => {}
            Some(last) if full => {
                last.uncompressed_len = self.produced - last.uncompressed_offset;
                last.blob_len = input.consumed - last.blob_offset;
            }
            _ => self.members.push(member),
        }
        self.state = State::Between(input);
    }

    /// One attempt at decoded bytes; `None` when a member was opened or closed instead.
    fn step(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let consumed = self.consumed();
        match std::mem::replace(&mut self.state, State::Ended { consumed }) {
            State::Between(input) => self.open_member(input).map(|()| None),
            State::Gzip(mut gzip) => {
                let count = gzip.read(buffer).map_err(as_damage)?;
                if count == 0 {
                    self.close_member(gzip.into_inner());
                    return Ok(None);
                }
                self.state = State::Gzip(gzip);
                Ok(Some(count))
            }
            State::Zstd(mut zstd) => {
                let count = zstd.read(buffer).map_err(as_damage)?;
                if count == 0 {
                    zstd.finish_frame().map_err(as_damage)?;
                    self.close_member(zstd.into_inner());
                    return Ok(None);
                }
                self.state = State::Zstd(zstd);
                Ok(Some(count))
            }
            State::Plain(mut input) => {
                let count = input.read(buffer)?;
                self.state = State::Plain(input);
                Ok(Some(count))
            }
            State::Bzip2(mut bzip2) => {
                let count = bzip2.read(buffer).map_err(as_damage)?;
                self.state = State::Bzip2(bzip2);
                Ok(Some(count))
            }
            State::Xz(mut xz) => {
                let count = xz.read(buffer).map_err(as_damage)?;
                self.state = State::Xz(xz);
                Ok(Some(count))
            }
            State::Ended { .. } => Ok(Some(0)),
        }
    }
}

impl Read for Decoder<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            if let Some(count) = self.step(buffer)? {
                self.produced += count as u64;
                return Ok(count);
            }
        }
    }
}

impl std::fmt::Debug for Decoder<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Decoder({}, {} bytes so far)", self.compression.name(), self.produced)
    }
}

/// The codecs report damage in several kinds (`InvalidInput`, `Other`); whoever reads wants one, and wants errors of
/// the underlying file, which carry an OS error code, left alone.
fn as_damage(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData => error,
        _ if error.raw_os_error().is_some() => error,
        io::ErrorKind::InvalidInput | io::ErrorKind::Other => invalid(&error.to_string()),
        _ => error,
    }
}

fn invalid(message: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

/// Counts what was consumed, which is less than what was read: the rest waits in the buffer.
struct Counted<'a> {
    inner: Input<'a>,
    consumed: u64,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.consumed += count as u64;
        Ok(count)
    }
}

impl BufRead for Counted<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.inner.fill_buf()
    }

    fn consume(&mut self, count: usize) {
        self.inner.consume(count);
        self.consumed += count as u64;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::io::Write;

    /// `again` as `xz -0` packs it; the decoder's crate is built without its encoder.
    const XZ_AGAIN: &[u8] =
        b"\xfd\x37\x7a\x58\x5a\x00\x00\x04\xe6\xd6\xb4\x46\x02\x00\x21\x01\x0c\x00\x00\x00\x8f\x98\
        \x41\x9c\x01\x00\x04\x61\x67\x61\x69\x6e\x00\x00\x00\x00\xc1\xab\xb3\xb0\x15\x4e\xf5\x25\
        \x00\x01\x1d\x05\xb8\x2d\x80\xaf\x1f\xb6\xf3\x7d\x01\x00\x00\x00\x00\x04\x59\x5a";

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn decode(blob: &[u8]) -> io::Result<(Vec<u8>, Vec<Member>, u64)> {
        let mut decoder = Decoder::detect(Box::new(blob))?;
        let mut out = Vec::new();
        decoder.read_to_end(&mut out)?;
        let consumed = decoder.consumed();
        Ok((out, decoder.into_members(), consumed))
    }

    fn member(uncompressed_offset: u64, blob_offset: u64, uncompressed_len: u64, blob_len: u64) -> Member {
        Member { uncompressed_offset, blob_offset, uncompressed_len, blob_len }
    }

    #[test]
    fn detects_by_signature_only() {
        let cases: [(&[u8], Compression); 9] = [
            (b"", Compression::None),
            (b"\x1f\x8b\x08\0", Compression::Gzip),
            (b"\x1f\x8b\x07\0", Compression::None),
            (b"\x28\xb5\x2f\xfd", Compression::Zstd),
            (b"\x53\x2a\x4d\x18", Compression::Zstd),
            (b"\xfd7zXZ\0", Compression::Xz),
            (b"BZh91AY&SY", Compression::Bzip2),
            (b"BZh9/notes", Compression::None),
            (b"usr/bin/", Compression::None),
        ];
        for (prefix, expected) in cases {
            assert_eq!(Compression::detect(prefix), expected, "{prefix:?}");
        }
    }

    #[test]
    fn gzip_members_are_found() {
        let (first, empty, second) = (gzip(b"hello "), gzip(b""), gzip(b"world"));
        let blob = [first.clone(), empty.clone(), second.clone()].concat();
        let (out, members, consumed) = decode(&blob).unwrap();
        assert_eq!(out, b"hello world");
        assert_eq!(consumed, blob.len() as u64);
        let start = (first.len() + empty.len()) as u64;
        assert_eq!(members, [member(0, 0, 6, first.len() as u64), member(6, start, 5, second.len() as u64)]);
    }

    #[test]
    fn zstd_frames_are_found_and_skippable_ones_skipped() {
        let (first, second) =
            (zstd::encode_all(&b"hello "[..], 3).unwrap(), zstd::encode_all(&b"world"[..], 3).unwrap());
        let skippable = b"\x50\x2a\x4d\x18\x04\0\0\0abcd".to_vec();
        let blob = [skippable.clone(), first.clone(), skippable.clone(), second.clone(), skippable].concat();
        let (out, members, consumed) = decode(&blob).unwrap();
        assert_eq!(out, b"hello world");
        assert_eq!(consumed, blob.len() as u64);
        let start = (12 + first.len() + 12) as u64;
        assert_eq!(members, [member(0, 12, 6, first.len() as u64), member(6, start, 5, second.len() as u64)]);
    }

    #[test]
    fn bzip2_and_xz_of_several_streams() {
        let mut bzip2 = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
        bzip2.write_all(b"twice").unwrap();
        let once = bzip2.finish().unwrap();
        assert_eq!(decode(&[once.clone(), once].concat()).unwrap().0, b"twicetwice");
        let once = XZ_AGAIN.to_vec();
        assert_eq!(decode(&[once.clone(), once].concat()).unwrap().0, b"againagain");
    }

    #[test]
    fn damage_truncation_and_garbage_are_errors() {
        let whole = gzip(&[7; 5000]);
        let mut flipped = whole.clone();
        let middle = flipped.len() - 6;
        flipped[middle] ^= 0xff;
        let frame = zstd::encode_all(&[7; 5000][..], 3).unwrap();
        let cases = [
            whole[..whole.len() - 3].to_vec(),
            whole[..4].to_vec(),
            flipped,
            [&whole[..], b"garbage"].concat(),
            [&whole[..], &[0; 512]].concat(),
            [&whole[..], b"\x1f"].concat(),
            frame[..frame.len() - 1].to_vec(),
            [&frame[..], b"garbage"].concat(),
        ];
        for (number, blob) in cases.iter().enumerate() {
            let error = decode(blob).unwrap_err();
            let kinds = [io::ErrorKind::InvalidData, io::ErrorKind::UnexpectedEof];
            assert!(kinds.contains(&error.kind()), "case {number}: {error:?}");
        }
    }
}
