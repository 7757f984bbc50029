//! [`Platform`]: what an image runs on (image-spec, *Image Index*), in Go's words for systems and processors.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An operating system, a processor architecture and its variant.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Platform {
    /// Processor architecture: `amd64`, `arm64`, …
    pub architecture: String,
    /// Operating system: `linux`, …
    pub os: String,
    /// Version of the operating system.
    #[serde(rename = "os.version", default, skip_serializing_if = "Option::is_none")]
    pub os_version: Option<String>,
    /// Features of the operating system that the image needs.
    #[serde(
        rename = "os.features",
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "crate::descriptor::null_is_empty"
    )]
    pub os_features: Vec<String>,
    /// Variant of the architecture: `v7`, `v8`, …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// Why a text is not a platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a platform: expected `os/architecture` or `os/architecture/variant`, such as `linux/arm64`"
)]
pub struct PlatformError(String);

impl Platform {
    /// The platform of `os`/`architecture` without a variant.
    pub fn new(os: &str, architecture: &str) -> Platform {
        let (architecture, variant) = canonical(architecture, None);
        Platform { architecture, os: os.to_owned(), os_version: None, os_features: Vec::new(), variant }
    }

    /// The platform this program runs on.
    pub fn host() -> Platform {
        Platform::new("linux", std::env::consts::ARCH)
    }

    /// Whether an image for `self` is what somebody who wants `wanted` means: the same system and
    /// architecture, and the same variant unless none was asked for.
    pub fn satisfies(&self, wanted: &Platform) -> bool {
        let (architecture, variant) = canonical(&self.architecture, self.variant.as_deref());
        let (wanted_architecture, wanted_variant) =
            canonical(&wanted.architecture, wanted.variant.as_deref());
        let same = self.os == wanted.os && architecture == wanted_architecture;
        same && (wanted_variant.is_none() || wanted_variant == variant)
    }
}

/// Folds the several names of one architecture into Go's, and drops the variants that mean "the usual one"
/// (containerd's `platforms` package does the same, and registries carry both spellings).
fn canonical(architecture: &str, variant: Option<&str>) -> (String, Option<String>) {
    let variant = variant.map(str::to_ascii_lowercase).filter(|variant| !variant.is_empty());
    let (architecture, variant) = match (architecture.to_ascii_lowercase().as_str(), variant.as_deref()) {
        ("x86_64" | "x86-64" | "amd64", None | Some("v1")) => ("amd64".to_owned(), None),
        ("x86_64" | "x86-64" | "amd64", _) => ("amd64".to_owned(), variant),
        ("aarch64" | "arm64", None | Some("8" | "v8")) => ("arm64".to_owned(), None),
        ("aarch64" | "arm64", _) => ("arm64".to_owned(), variant),
        ("armhf", _) => ("arm".to_owned(), None),
        ("armel", _) => ("arm".to_owned(), Some("v6".to_owned())),
        ("arm", None | Some("7" | "v7")) => ("arm".to_owned(), None),
        ("x86" | "i386" | "i486" | "i586" | "i686", _) => ("386".to_owned(), None),
        ("powerpc64le", _) => ("ppc64le".to_owned(), variant),
        (other, _) => (other.to_owned(), variant),
    };
    (architecture, variant)
}

impl fmt::Display for Platform {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(formatter, "/{variant}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let refuse = || PlatformError(text.chars().take(80).collect());
        let word = |part: &&str| {
            !part.is_empty()
                && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
        };
        let parts: Vec<&str> = text.split('/').collect();
        if !(1..=3).contains(&parts.len()) || !parts.iter().all(word) {
            return Err(refuse());
        }
        let (os, architecture, variant) = match parts[..] {
            ["linux"] => ("linux", std::env::consts::ARCH, None),
            [architecture] => ("linux", architecture, None),
            [os, architecture] => (os, architecture, None),
            [os, architecture, variant] => (os, architecture, Some(variant)),
            _ => return Err(refuse()),
        };
        let (architecture, variant) = canonical(architecture, variant);
        let os = os.to_ascii_lowercase();
        Ok(Platform { architecture, os, os_version: None, os_features: Vec::new(), variant })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn platforms_are_canonical() {
        for (text, shown) in [
            ("linux/amd64", "linux/amd64"),
            ("linux/x86_64", "linux/amd64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/arm/v6", "linux/arm/v6"),
            ("arm64", "linux/arm64"),
            ("Windows/amd64", "windows/amd64"),
        ] {
            assert_eq!(text.parse::<Platform>().unwrap().to_string(), shown, "{text}");
        }
        for bad in ["", "/", "a//b", "a/b/c/d", "linux/a b"] {
            assert!(bad.parse::<Platform>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_wanted_variant_must_be_there() {
        let of = |text: &str| text.parse::<Platform>().unwrap();
        assert!(of("linux/arm64").satisfies(&of("linux/arm64/v8")));
        assert!(of("linux/arm/v6").satisfies(&of("linux/arm")));
        assert!(!of("linux/arm").satisfies(&of("linux/arm/v6")));
        assert!(!of("windows/amd64").satisfies(&of("linux/amd64")));
    }
}
