//! Content identity: [`Digest`], its algorithms, and the identities built on it ([`DiffId`], [`ChainId`]).
//!
//! A digest is `algorithm ":" encoded` as the OCI image specification, *Descriptors → Digests*, defines it.
//! Only the two registered algorithms are accepted, each with lower-case hex of its exact length, so a parsed
//! [`Digest`] is always safe to use as two path components. Hashing goes through [`Hasher`] alone, so that the
//! backend can change in one place.

use std::fmt;
use std::io::{self, Read, Write};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::Digest as _;
use sha2::digest::common::hazmat::SerializableState as _;

/// A registered digest algorithm (image-spec, *Registered algorithms*).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Algorithm {
    /// SHA-256: what everybody uses, and rimg's default.
    Sha256,
    /// SHA-512: optional in the specification, accepted wherever a digest is.
    Sha512,
}

impl Algorithm {
    /// Every algorithm, for loops over the store's folders.
    pub const ALL: [Algorithm; 2] = [Algorithm::Sha256, Algorithm::Sha512];

    /// The name before the colon: `sha256` or `sha512`.
    pub fn name(self) -> &'static str {
        match self {
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha512 => "sha512",
        }
    }

    /// Length of the raw digest in bytes.
    pub fn size_bytes(self) -> usize {
        match self {
            Algorithm::Sha256 => 32,
            Algorithm::Sha512 => 64,
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl FromStr for Algorithm {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        match text {
            "sha256" => Ok(Algorithm::Sha256),
            "sha512" => Ok(Algorithm::Sha512),
            _ => Err(DigestError::Algorithm(shorten(text))),
        }
    }
}

/// Why a text is not a digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// There is no `algorithm:` before the hex digits.
    #[error("`{0}` is not a digest: expected `sha256:` and 64 hex digits")]
    Shape(String),
    /// The algorithm is not one of the registered ones.
    #[error("digest algorithm `{0}` is not supported: use sha256 or sha512")]
    Algorithm(String),
    /// The encoded part is not lower-case hex of the algorithm's length.
    #[error("`{text}` is not a {algorithm} digest: expected {expected} lower-case hex digits")]
    Encoded {
        /// The algorithm named.
        algorithm: Algorithm,
        /// How many hex digits it takes.
        expected: usize,
        /// The text refused, shortened.
        text: String,
    },
}

/// Keeps what a stranger sent from flooding an error message.
fn shorten(text: &str) -> String {
    const SHOWN_CHARS_MAX: usize = 80;
    if text.chars().count() <= SHOWN_CHARS_MAX {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(SHOWN_CHARS_MAX).collect();
    short.push('…');
    short
}

/// The identity of some bytes: an algorithm and its result over them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest {
    algorithm: Algorithm,
    // A SHA-256 result fills the first half; the rest stays zero, so derived comparison is exact.
    bytes: [u8; 64],
}

impl Digest {
    /// The SHA-256 digest of `bytes`.
    pub fn sha256(bytes: &[u8]) -> Digest {
        Digest::of(Algorithm::Sha256, bytes)
    }

    /// The digest of `bytes` by `algorithm`.
    pub fn of(algorithm: Algorithm, bytes: &[u8]) -> Digest {
        let mut hasher = Hasher::new(algorithm);
        hasher.update(bytes);
        hasher.finish()
    }

    /// A digest from its raw result; `None` when the length does not fit the algorithm.
    pub fn from_raw(algorithm: Algorithm, raw: &[u8]) -> Option<Digest> {
        if raw.len() != algorithm.size_bytes() {
            return None;
        }
        let mut bytes = [0; 64];
        bytes[..raw.len()].copy_from_slice(raw);
        Some(Digest { algorithm, bytes })
    }

    /// The algorithm used.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The raw result: 32 or 64 bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.algorithm.size_bytes()]
    }

    /// The encoded part: lower-case hex.
    pub fn hex(&self) -> String {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = String::with_capacity(2 * self.algorithm.size_bytes());
        for byte in self.as_bytes() {
            text.push(char::from(DIGITS[usize::from(byte >> 4)]));
            text.push(char::from(DIGITS[usize::from(byte & 15)]));
        }
        text
    }

    /// The first twelve hex digits, as lists of images show it.
    pub fn short_hex(&self) -> String {
        let mut hex = self.hex();
        hex.truncate(12);
        hex
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.algorithm, self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Digest({self})")
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let (algorithm, encoded) = text.split_once(':').ok_or_else(|| DigestError::Shape(shorten(text)))?;
        let algorithm: Algorithm = algorithm.parse()?;
        let expected = 2 * algorithm.size_bytes();
        let refused = || DigestError::Encoded { algorithm, expected, text: shorten(text) };
        if encoded.len() != expected {
            return Err(refused());
        }
        let mut bytes = [0; 64];
        for (slot, pair) in bytes.iter_mut().zip(encoded.as_bytes().chunks_exact(2)) {
            let (high, low) = (nibble(pair[0]), nibble(pair[1]));
            *slot = high.zip(low).map(|(high, low)| high << 4 | low).ok_or_else(refused)?;
        }
        Ok(Digest { algorithm, bytes })
    }
}

/// The value of one lower-case hex digit.
fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// The digest of a layer's *uncompressed* tar (image-spec, *Layer DiffID*). Never a blob's digest by accident.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DiffId(Digest);

impl DiffId {
    /// States that `digest` is of an uncompressed layer tar.
    pub fn new(digest: Digest) -> DiffId {
        DiffId(digest)
    }

    /// The digest itself.
    pub fn digest(&self) -> &Digest {
        &self.0
    }
}

impl fmt::Display for DiffId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

impl FromStr for DiffId {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        text.parse().map(DiffId)
    }
}

/// The identity of a *stack* of layers (image-spec, *Layer ChainID*).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ChainId(Digest);

impl ChainId {
    /// The chain that `layer` makes on top of `parent`; without a parent it is the layer's own DiffID.
    pub fn of(parent: Option<&ChainId>, layer: &DiffId) -> ChainId {
        match parent {
            None => ChainId(layer.0),
            Some(parent) => ChainId(Digest::sha256(format!("{} {}", parent.0, layer.0).as_bytes())),
        }
    }

    /// The digest itself.
    pub fn digest(&self) -> &Digest {
        &self.0
    }
}

impl fmt::Display for ChainId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// A running digest computation.
#[derive(Clone)]
pub struct Hasher(State);

#[derive(Clone)]
enum State {
    Sha256(sha2::Sha256),
    Sha512(sha2::Sha512),
}

impl Hasher {
    /// A computation over nothing yet.
    pub fn new(algorithm: Algorithm) -> Hasher {
        Hasher(match algorithm {
            Algorithm::Sha256 => State::Sha256(sha2::Sha256::new()),
            Algorithm::Sha512 => State::Sha512(sha2::Sha512::new()),
        })
    }

    /// The algorithm it was made with.
    pub fn algorithm(&self) -> Algorithm {
        match self.0 {
            State::Sha256(_) => Algorithm::Sha256,
            State::Sha512(_) => Algorithm::Sha512,
        }
    }

    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            State::Sha256(state) => state.update(bytes),
            State::Sha512(state) => state.update(bytes),
        }
    }

    /// The state of the computation, for [`Hasher::restore`] in another process.
    pub fn save(&self) -> Vec<u8> {
        match &self.0 {
            State::Sha256(state) => state.serialize().to_vec(),
            State::Sha512(state) => state.serialize().to_vec(),
        }
    }

    /// Goes on from a saved state; `None` when it is not one of this algorithm's.
    pub fn restore(algorithm: Algorithm, saved: &[u8]) -> Option<Hasher> {
        let state = match algorithm {
            Algorithm::Sha256 => State::Sha256(sha2::Sha256::deserialize(saved.try_into().ok()?).ok()?),
            Algorithm::Sha512 => State::Sha512(sha2::Sha512::deserialize(saved.try_into().ok()?).ok()?),
        };
        Some(Hasher(state))
    }

    /// The digest of everything added.
    pub fn finish(self) -> Digest {
        let algorithm = self.algorithm();
        let mut bytes = [0; 64];
        match self.0 {
            State::Sha256(state) => bytes[..32].copy_from_slice(&state.finalize()),
            State::Sha512(state) => bytes.copy_from_slice(&state.finalize()),
        }
        Digest { algorithm, bytes }
    }
}

impl fmt::Debug for Hasher {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Hasher({})", self.algorithm())
    }
}

/// Passes bytes on while hashing and counting them.
#[derive(Debug)]
pub struct DigestWriter<W> {
    inner: W,
    hasher: Hasher,
    written_bytes: u64,
}

impl<W: Write> DigestWriter<W> {
    /// Wraps `inner`.
    pub fn new(inner: W, algorithm: Algorithm) -> Self {
        DigestWriter { inner, hasher: Hasher::new(algorithm), written_bytes: 0 }
    }

    /// How many bytes `inner` has accepted.
    pub fn written_bytes(&self) -> u64 {
        self.written_bytes
    }

    /// The digest of what was accepted, its length, and the inner writer (not flushed).
    pub fn finish(self) -> (Digest, u64, W) {
        (self.hasher.finish(), self.written_bytes, self.inner)
    }
}

impl<W: Write> Write for DigestWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let accepted = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..accepted]);
        self.written_bytes += accepted as u64;
        Ok(accepted)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Reads exactly the bytes that a descriptor promised: at the end of the stream the size and the digest must
/// match, and no more than the size is ever handed out.
#[derive(Debug)]
pub struct VerifyReader<R> {
    inner: R,
    hasher: Option<Hasher>,
    expected: Digest,
    left_bytes: u64,
}

impl<R: Read> VerifyReader<R> {
    /// Wraps `inner`, which must hold `size` bytes whose digest is `expected`.
    pub fn new(inner: R, expected: Digest, size: u64) -> Self {
        let hasher = Some(Hasher::new(expected.algorithm()));
        VerifyReader { inner, hasher, expected, left_bytes: size }
    }

    fn check_end(&mut self) -> io::Result<()> {
        let Some(hasher) = self.hasher.take() else { return Ok(()) };
        let refuse = |message: String| Err(io::Error::new(io::ErrorKind::InvalidData, message));
        if self.left_bytes > 0 {
            return refuse(format!("{} ends {} bytes early", self.expected, self.left_bytes));
        }
        let actual = hasher.finish();
        if actual != self.expected {
            return refuse(format!("content of {} is damaged: it hashes to {actual}", self.expected));
        }
        let mut probe = [0; 1];
        match self.inner.read(&mut probe)? {
            0 => Ok(()),
            _ => refuse(format!("{} is longer than its descriptor says", self.expected)),
        }
    }
}

impl<R: Read> Read for VerifyReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let room = usize::try_from(self.left_bytes).unwrap_or(usize::MAX).min(buffer.len());
        if buffer.is_empty() {
            return Ok(0);
        }
        let count = if room == 0 { 0 } else { self.inner.read(&mut buffer[..room])? };
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&buffer[..count]);
        }
        self.left_bytes -= count as u64;
        if count == 0 || self.left_bytes == 0 {
            self.check_end()?;
        }
        Ok(count)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn known_digests() {
        assert_eq!(Digest::sha256(b"").to_string(), EMPTY);
        let long = Digest::of(Algorithm::Sha512, b"abc");
        assert!(long.to_string().starts_with("sha512:ddaf35a193617abacc417349ae204131"));
        assert_eq!(long.as_bytes().len(), 64);
    }

    #[test]
    fn digest_grammar() {
        assert_eq!(EMPTY.parse::<Digest>().unwrap().to_string(), EMPTY);
        let upper = EMPTY.to_uppercase();
        let refused = ["", "sha256", "sha256:", "sha256:abc", "md5:d41d8cd98f00b204e9800998ecf8427e", &upper];
        for text in refused {
            assert!(text.parse::<Digest>().is_err(), "{text}");
        }
        let slash = format!("sha256:{}", "../".repeat(32)).chars().take(71).collect::<String>();
        assert!(slash.parse::<Digest>().is_err());
        let hex65 = format!("{EMPTY}0");
        assert!(hex65.parse::<Digest>().is_err());
    }

    #[test]
    fn chain_ids_follow_the_specification() {
        let (a, b) = (DiffId::new(Digest::sha256(b"a")), DiffId::new(Digest::sha256(b"b")));
        let one = ChainId::of(None, &a);
        assert_eq!(one.digest(), a.digest());
        let two = ChainId::of(Some(&one), &b);
        assert_eq!(*two.digest(), Digest::sha256(format!("{a} {b}").as_bytes()));
    }

    #[test]
    fn verify_reader_refuses_damage() {
        let digest = Digest::sha256(b"hello");
        let read = |bytes: &[u8], size| {
            let mut out = Vec::new();
            VerifyReader::new(bytes, digest, size).read_to_end(&mut out).map(|_| out)
        };
        assert_eq!(read(b"hello", 5).unwrap(), b"hello");
        for (bytes, size, why) in [
            (&b"hellO"[..], 5, "damaged"),
            (b"hell", 5, "early"),
            (b"hello!", 5, "longer"),
            (b"hello", 4, "damaged"),
        ] {
            let error = read(bytes, size).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
        let empty = Digest::sha256(b"");
        let mut out = Vec::new();
        VerifyReader::new(&b""[..], empty, 0).read_to_end(&mut out).unwrap();
        assert!(VerifyReader::new(&b""[..], digest, 0).read_to_end(&mut out).is_err());
    }
}
