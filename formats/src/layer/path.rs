//! [`LayerPath`]: where an entry of a layer lies, cleaned once at the door and never resolved as text again.
//!
//! A layer path is bytes, as in the kernel; most are UTF-8, some are not. Cleaning is purely lexical: leading `/`,
//! empty components and `.` vanish, `..` is refused rather than folded, because `a/..` is not `.` when `a` is a
//! symbolic link.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Longest path, in bytes: the kernel's PATH_MAX. A longer one could not be opened by its name.
pub const PATH_BYTES_MAX: usize = 4096;

/// Longest component, in bytes: NAME_MAX of every file system rimg meets.
pub const NAME_BYTES_MAX: usize = 255;

/// A relative path inside a layer: no leading `/`, no empty, `.` or `..` component. The root is the empty path.
///
/// Ordered by components, so that a directory is followed by everything in it: `a`, `a/b`, `a-b`.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct LayerPath(Box<[u8]>);

/// Why a name is not a layer path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayerPathError {
    /// A component is `..`.
    #[error("the path leaves its directory by `..`")]
    Parent,
    /// There is a NUL byte in it.
    #[error("the path holds a NUL byte")]
    Nul,
    /// Longer than [`PATH_BYTES_MAX`].
    #[error("the path is longer than {PATH_BYTES_MAX} bytes")]
    PathLength,
    /// A component is longer than [`NAME_BYTES_MAX`].
    #[error("a component of the path is longer than {NAME_BYTES_MAX} bytes")]
    NameLength,
}

impl LayerPath {
    /// The root of the layer.
    pub fn root() -> LayerPath {
        LayerPath::default()
    }

    /// Cleans `name`: absolute paths become relative, `.` and repeated slashes vanish.
    ///
    /// # Errors
    /// On `..`, NUL, and more than [`PATH_BYTES_MAX`] or [`NAME_BYTES_MAX`] bytes.
    pub fn parse(name: impl AsRef<[u8]>) -> Result<LayerPath, LayerPathError> {
        LayerPath::clean(name.as_ref())?.measured()
    }

    /// Cleans a name without measuring it: in a tar, a whiteout's name is four bytes longer than the name removed.
    pub(super) fn clean(name: &[u8]) -> Result<LayerPath, LayerPathError> {
        if name.contains(&0) {
            return Err(LayerPathError::Nul);
        }
        if is_clean(name) {
            return Ok(LayerPath(name.into()));
        }
        let mut cleaned = Vec::with_capacity(name.len());
        for component in name.split(|&byte| byte == b'/') {
            match component {
                b"" | b"." => continue,
                b".." => return Err(LayerPathError::Parent),
                _ => {}
            }
            if !cleaned.is_empty() {
                cleaned.push(b'/');
            }
            cleaned.extend_from_slice(component);
        }
        Ok(LayerPath(cleaned.into_boxed_slice()))
    }

    /// This path, when it is not too long.
    pub(super) fn measured(self) -> Result<LayerPath, LayerPathError> {
        if self.0.len() > PATH_BYTES_MAX {
            return Err(LayerPathError::PathLength);
        }
        if self.0.split(|&byte| byte == b'/').any(|name| name.len() > NAME_BYTES_MAX) {
            return Err(LayerPathError::NameLength);
        }
        Ok(self)
    }

    /// The path's bytes, without a leading or trailing slash.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The same bytes as a relative [`Path`]; the root is the empty path.
    pub fn as_path(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.0))
    }

    /// Whether this is the root.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The last component; `None` for the root.
    pub fn file_name(&self) -> Option<&[u8]> {
        (!self.is_root()).then(|| self.split_name().1)
    }

    /// The path without its last component; `None` for the root.
    pub fn parent(&self) -> Option<LayerPath> {
        (!self.is_root()).then(|| LayerPath(self.split_name().0.into()))
    }

    /// The bytes of the parent and the last component; two empty ones for the root.
    pub fn split_name(&self) -> (&[u8], &[u8]) {
        match self.0.iter().rposition(|&byte| byte == b'/') {
            Some(slash) => (&self.0[..slash], &self.0[slash + 1..]),
            None => (b"", &self.0),
        }
    }

    /// The components, from the root down.
    pub fn components(&self) -> impl DoubleEndedIterator<Item = &[u8]> + Clone {
        self.0.split(|&byte| byte == b'/').filter(|name| !name.is_empty())
    }

    /// This path with `name` (one or more components) below it.
    ///
    /// # Errors
    /// As [`LayerPath::parse`].
    pub fn join(&self, name: impl AsRef<[u8]>) -> Result<LayerPath, LayerPathError> {
        LayerPath::parse([self.as_bytes(), b"/", name.as_ref()].concat())
    }

    /// Whether this path is `ancestor` or lies below it.
    pub fn starts_with(&self, ancestor: &LayerPath) -> bool {
        self.strip_prefix(ancestor).is_some()
    }

    /// What is left of this path below `ancestor`; the root path when they are equal.
    pub fn strip_prefix(&self, ancestor: &LayerPath) -> Option<LayerPath> {
        if ancestor.is_root() {
            return Some(self.clone());
        }
        match self.0.strip_prefix(&*ancestor.0)? {
            b"" => Some(LayerPath::root()),
            [b'/', rest @ ..] => Some(LayerPath(rest.into())),
            _ => None,
        }
    }
}

/// Whether `name` needs no cleaning, which is nearly always so.
fn is_clean(name: &[u8]) -> bool {
    name.is_empty() || !name.split(|&byte| byte == b'/').any(|part| matches!(part, b"" | b"." | b".."))
}

/// Compares by components: `/` sorts before every other byte, and NUL, which would tie with it, cannot occur.
pub(super) fn compare(left: &[u8], right: &[u8]) -> Ordering {
    let common = left.iter().zip(right).position(|(a, b)| a != b);
    let rank = |byte: u8| if byte == b'/' { 0 } else { byte };
    match common {
        Some(at) => rank(left[at]).cmp(&rank(right[at])),
        None => left.len().cmp(&right.len()),
    }
}

impl Ord for LayerPath {
    fn cmp(&self, other: &Self) -> Ordering {
        compare(&self.0, &other.0)
    }
}

impl PartialOrd for LayerPath {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for LayerPath {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&printable(&self.0))
    }
}

impl fmt::Debug for LayerPath {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "`{self}`")
    }
}

/// `bytes` as text that cannot steer a terminal: control characters are escaped, bad UTF-8 is replaced.
pub(super) fn printable(bytes: &[u8]) -> String {
    const SHOWN_BYTES_MAX: usize = 512;
    let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(SHOWN_BYTES_MAX)]);
    let escaped = if shown.chars().any(char::is_control) {
        Cow::Owned(shown.chars().map(picture).collect())
    } else {
        shown
    };
    if bytes.len() > SHOWN_BYTES_MAX { format!("{escaped}…") } else { escaped.into_owned() }
}

/// A control character's picture: U+2400 onward for C0, the replacement character for the rest.
fn picture(character: char) -> char {
    match u32::from(character) {
        code @ 0..0x20 => char::from_u32(0x2400 + code).unwrap_or(char::REPLACEMENT_CHARACTER),
        _ if character.is_control() => char::REPLACEMENT_CHARACTER,
        _ => character,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn cleaning() {
        let cases = [
            ("", ""),
            ("/", ""),
            (".", ""),
            ("./", ""),
            ("a", "a"),
            ("./a/./b//c/", "a/b/c"),
            ("///etc/passwd", "etc/passwd"),
            ("...", "..."),
            ("a/..b", "a/..b"),
        ];
        for (name, cleaned) in cases {
            assert_eq!(LayerPath::parse(name).unwrap().as_bytes(), cleaned.as_bytes(), "{name}");
        }
    }

    #[test]
    fn refusals() {
        let long_name = "n".repeat(NAME_BYTES_MAX + 1);
        let long_path = "n/".repeat(PATH_BYTES_MAX);
        let cases = [
            ("..", LayerPathError::Parent),
            ("a/../b", LayerPathError::Parent),
            ("/../etc", LayerPathError::Parent),
            ("a\0b", LayerPathError::Nul),
            (long_name.as_str(), LayerPathError::NameLength),
            (long_path.as_str(), LayerPathError::PathLength),
        ];
        for (name, error) in cases {
            assert_eq!(LayerPath::parse(name), Err(error));
        }
    }

    #[test]
    fn order_is_by_components() {
        let mut paths: Vec<LayerPath> = ["b", "a-b", "a/b", "a", "", "a/b/c", "a.b", "a/a"]
            .iter()
            .map(|p| LayerPath::parse(p).unwrap())
            .collect();
        paths.sort();
        let sorted: Vec<String> = paths.iter().map(ToString::to_string).collect();
        assert_eq!(sorted, ["", "a", "a/a", "a/b", "a/b/c", "a-b", "a.b", "b"]);
    }

    #[test]
    fn parts() {
        let path = LayerPath::parse("usr/lib/os-release").unwrap();
        assert_eq!(path.file_name(), Some(&b"os-release"[..]));
        assert_eq!(path.parent().unwrap().to_string(), "usr/lib");
        assert_eq!(path.components().count(), 3);
        assert_eq!(LayerPath::root().file_name(), None);
        assert_eq!(LayerPath::root().parent(), None);
        assert_eq!(LayerPath::root().components().count(), 0);
        let usr = LayerPath::parse("usr").unwrap();
        assert!(path.starts_with(&usr));
        assert!(path.starts_with(&LayerPath::root()));
        assert!(!LayerPath::parse("usrlocal").unwrap().starts_with(&usr));
        assert_eq!(path.strip_prefix(&usr).unwrap().to_string(), "lib/os-release");
        assert_eq!(LayerPath::root().join("x").unwrap().to_string(), "x");
        assert!(usr.join("..").is_err());
    }

    #[test]
    fn display_cannot_steer_a_terminal() {
        let path = LayerPath::parse(b"a\x1b[2Jb\xff\nc").unwrap();
        assert_eq!(path.to_string(), "a\u{241b}[2Jb\u{fffd}\u{240a}c");
    }
}
