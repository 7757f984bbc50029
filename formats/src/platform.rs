//! [`Platform`]: what an image runs on (image-spec, *Image Index*), in Go's words for systems and processors.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An operating system, a processor architecture and its variant.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Platform {
    /// Processor architecture: `amd64`, `arm64`, …; empty when nobody said.
    #[serde(default, deserialize_with = "crate::descriptor::null_is_empty")]
    pub architecture: String,
    /// Operating system: `linux`, …; empty when nobody said.
    #[serde(default, deserialize_with = "crate::descriptor::null_is_empty")]
    pub os: String,
    /// Version of the operating system.
    #[serde(rename = "os.version", default, skip_serializing_if = "Option::is_none")]
    pub os_version: Option<String>,
    /// Features of the operating system that the image needs.
    #[serde(
        rename = "os.features",
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "crate::descriptor::text_list"
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

    /// Whether it says what it is for.
    pub fn is_named(&self) -> bool {
        !self.os.is_empty() && !self.architecture.is_empty()
    }

    /// Whether an image for `self` runs where somebody wants `wanted`.
    pub fn satisfies(&self, wanted: &Platform) -> bool {
        self.distance_from(wanted).is_some()
    }

    /// How far an image for `self` is from what somebody who wants `wanted` means: 0 is just that, more are the
    /// earlier levels of the architecture, which later ones run too; `None` does not run there.
    pub fn distance_from(&self, wanted: &Platform) -> Option<u8> {
        let (own, own_variant) = canonical(&self.architecture, self.variant.as_deref());
        let (asked, asked_variant) = canonical(&wanted.architecture, wanted.variant.as_deref());
        if self.os != wanted.os || own != asked {
            return None;
        }
        match (level(&own, own_variant.as_deref()), level(&asked, asked_variant.as_deref())) {
            (Some(own), Some(asked)) => asked.checked_sub(own),
            _ => (asked_variant.is_none() || asked_variant == own_variant).then_some(0),
        }
    }
}

/// The level of a processor whose variants run what those before them run: 7 for `v7`. `None` for others.
fn level(architecture: &str, variant: Option<&str>) -> Option<u8> {
    let usual = match architecture {
        "amd64" => 1,
        "arm" => 7,
        "arm64" => 8,
        _ => return None,
    };
    variant.map_or(Some(usual), |variant| variant.strip_prefix('v')?.parse().ok())
}

/// Folds the several names of one architecture into Go's, and its variants into one spelling. 64-bit ones drop
/// the variant that means "the usual one", 32-bit ARM always names its own, `v7` when nobody said: so do
/// containerd's `platforms` package and BuildKit, and registries carry all spellings.
fn canonical(architecture: &str, variant: Option<&str>) -> (String, Option<String>) {
    let variant = variant.map(str::to_ascii_lowercase).filter(|variant| !variant.is_empty());
    let (architecture, variant) = match (architecture.to_ascii_lowercase().as_str(), variant.as_deref()) {
        ("x86_64" | "x86-64" | "amd64", None | Some("v1")) => ("amd64".to_owned(), None),
        ("x86_64" | "x86-64" | "amd64", _) => ("amd64".to_owned(), variant),
        ("aarch64" | "arm64", None | Some("8" | "v8")) => ("arm64".to_owned(), None),
        ("aarch64" | "arm64", _) => ("arm64".to_owned(), variant),
        ("armhf", _) | ("arm", None) => ("arm".to_owned(), Some("v7".to_owned())),
        ("armel", _) => ("arm".to_owned(), Some("v6".to_owned())),
        ("arm", Some(bare @ ("5" | "6" | "7" | "8"))) => ("arm".to_owned(), Some(format!("v{bare}"))),
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
            ("linux/arm", "linux/arm/v7"),
            ("linux/arm/7", "linux/arm/v7"),
            ("armhf", "linux/arm/v7"),
            ("armel", "linux/arm/v6"),
            ("linux/amd64/v1", "linux/amd64"),
            ("linux/amd64/v3", "linux/amd64/v3"),
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
    fn later_processors_run_what_was_made_for_earlier_ones() {
        for (image, wanted, distance) in [
            ("linux/arm64", "linux/arm64/v8", Some(0)),
            ("linux/arm", "linux/arm/v7", Some(0)),
            ("linux/arm/v6", "linux/arm", Some(1)),
            ("linux/arm/v5", "linux/arm", Some(2)),
            ("linux/arm", "linux/arm/v6", None),
            ("linux/amd64", "linux/amd64/v3", Some(2)),
            ("linux/amd64/v3", "linux/amd64", None),
            ("linux/arm64/v8.1", "linux/arm64/v8.1", Some(0)),
            ("linux/mips/x", "linux/mips", Some(0)),
            ("linux/mips", "linux/mips/x", None),
            ("windows/amd64", "linux/amd64", None),
            ("linux/arm", "linux/arm64", None),
        ] {
            let of = |text: &str| text.parse::<Platform>().unwrap();
            assert_eq!(of(image).distance_from(&of(wanted)), distance, "{image} for {wanted}");
        }
        // As old configurations and indexes have it: no variant at all.
        let mut bare: Platform = "linux/arm".parse().unwrap();
        bare.variant = None;
        assert_eq!(bare.distance_from(&"linux/arm/v7".parse().unwrap()), Some(0));
    }
}
