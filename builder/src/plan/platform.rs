//! A platform as build arguments and `FROM --platform=` name it: `os[(version)]/architecture[/variant]`.

use std::fmt;

/// Operating system, architecture and the like, in the names of the OCI image configuration.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Platform {
    /// `linux`
    pub os: String,
    /// `amd64`, `arm64`, …
    pub architecture: String,
    /// `v7`, …
    pub variant: Option<String>,
    /// `os.version`
    pub os_version: Option<String>,
}

/// The text names no platform.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no platform: write `os/architecture[/variant]`, such as `linux/arm64`")]
pub struct PlatformError(String);

impl Platform {
    /// The platform this program was built for.
    pub fn host() -> Platform {
        let (architecture, variant) = architecture(std::env::consts::ARCH, None);
        Platform { os: std::env::consts::OS.to_owned(), architecture, variant, os_version: None }
    }

    /// Reads `os/architecture[/variant]`, `os` alone or an architecture alone; what is left out is the host's.
    ///
    /// # Errors
    /// [`PlatformError`] for anything else.
    pub fn parse(text: &str) -> Result<Platform, PlatformError> {
        let error = || PlatformError(text.to_owned());
        let parts: Vec<&str> = text.split('/').collect();
        let (first, version) = match parts[0].split_once('(') {
            Some((os, version)) => (os, Some(version.strip_suffix(')').ok_or_else(error)?.to_owned())),
            None => (parts[0], None),
        };
        let name = |part: &str| {
            !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
        };
        if !name(first) || !parts[1..].iter().all(|part| name(part)) {
            return Err(error());
        }
        let lower: Vec<String> =
            std::iter::once(first).chain(parts[1..].iter().copied()).map(str::to_lowercase).collect();
        let (os, (architecture, variant)) = match lower.as_slice() {
            [os] if is_os(os) => (os.clone(), (Platform::host().architecture, Platform::host().variant)),
            [arch] if is_architecture(arch) => (Platform::host().os, architecture(arch, None)),
            [os, arch] => (os.clone(), architecture(arch, None)),
            [os, arch, variant] => (os.clone(), architecture(arch, Some(variant))),
            _ => return Err(error()),
        };
        let os = if os == "macos" { "darwin".to_owned() } else { os };
        Ok(Platform { os, architecture, variant, os_version: version })
    }
}

fn is_os(text: &str) -> bool {
    ["linux", "windows", "darwin", "macos", "freebsd", "netbsd", "openbsd"].contains(&text)
}

fn is_architecture(text: &str) -> bool {
    const NAMES: [&str; 16] = [
        "386", "amd64", "arm", "arm64", "loong64", "mips64le", "ppc64le", "riscv64", "s390x", "i386",
        "x86_64", "x86-64", "x86", "aarch64", "armhf", "armel",
    ];
    NAMES.contains(&text)
}

/// The names images use, for the names systems use.
fn architecture(name: &str, variant: Option<&str>) -> (String, Option<String>) {
    let (name, variant) = match (name, variant) {
        ("x86_64" | "x86-64" | "amd64", None | Some("v1")) => ("amd64", None),
        ("x86_64" | "x86-64", variant) => ("amd64", variant),
        ("i386" | "x86", variant) => ("386", variant),
        ("aarch64" | "arm64", None | Some("v8" | "8")) => ("arm64", None),
        ("aarch64", variant) => ("arm64", variant),
        ("armhf", _) | ("arm", None | Some("7")) => ("arm", Some("v7")),
        ("armel", _) | ("arm", Some("6")) => ("arm", Some("v6")),
        ("powerpc64" | "powerpc64le", variant) => ("ppc64le", variant),
        other => other,
    };
    (name.to_owned(), variant.map(str::to_owned))
}

impl fmt::Display for Platform {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.os)?;
        if let Some(version) = &self.os_version {
            write!(formatter, "({version})")?;
        }
        write!(formatter, "/{}", self.architecture)?;
        match &self.variant {
            Some(variant) => write!(formatter, "/{variant}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn platforms() {
        let table = [
            ("linux/amd64", "linux/amd64"),
            ("linux/x86_64", "linux/amd64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/aarch64", "linux/arm64"),
            ("linux/arm", "linux/arm/v7"),
            ("linux/arm/v6", "linux/arm/v6"),
            ("Linux/AMD64", "linux/amd64"),
            ("windows(10.0.17763)/amd64", "windows(10.0.17763)/amd64"),
        ];
        for (text, expected) in table {
            assert_eq!(Platform::parse(text).unwrap().to_string(), expected, "{text}");
        }
        assert_eq!(Platform::parse("linux").unwrap(), Platform { os: "linux".into(), ..Platform::host() });
        for text in ["", "linux/", "/amd64", "a/b/c/d", "nonsense", "linux amd64", "windows(1/amd64"] {
            assert!(Platform::parse(text).is_err(), "{text}");
        }
    }
}
