//! Names of images: [`RepositoryName`], [`Tag`], [`RegistryHost`], [`ImageName`] and the [`Reference`] that
//! people type.
//!
//! Grammars are the distribution specification's (*Pulling manifests*); the way a short name is completed is
//! docker's (`debian` is Docker Hub's `library/debian`). rimg keeps names in their *familiar* form: Docker Hub
//! is the registry of names that show none, so `docker.io/library/debian:12` and `debian:12` are one name.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::digest::{Digest, DigestError};

/// Longest repository name: the specification asks clients to keep host and name within 255 characters, and
/// most implementations store them so.
pub const REPOSITORY_NAME_CHARS_MAX: usize = 255;
/// Longest tag (distribution-spec: `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`).
pub const TAG_CHARS_MAX: usize = 128;
/// The tag meant when none is given.
pub const DEFAULT_TAG: &str = "latest";
/// The registry meant by a name without one.
pub const DOCKER_HUB: &str = "docker.io";
/// Where Docker Hub actually answers the protocol.
pub const DOCKER_HUB_HOST: &str = "registry-1.docker.io";

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// Nothing there.
    #[error("an image name cannot be empty")]
    Empty,
    /// The repository part breaks the grammar.
    #[error("`{name}` is not a repository name: {reason}")]
    Repository {
        /// The refused text.
        name: String,
        /// The rule it breaks.
        reason: &'static str,
    },
    /// The tag breaks the grammar.
    #[error(
        "`{0}` is not a tag: expected up to 128 of letters, digits, `_`, `.` and `-`, not starting with `.` or `-`"
    )]
    Tag(String),
    /// The registry host breaks the grammar.
    #[error("`{0}` is not a registry host: expected `host`, `host:port` or `[address]:port`")]
    Host(String),
    /// The digest after `@` is not one.
    #[error(transparent)]
    Digest(#[from] DigestError),
}

fn shown(text: &str) -> String {
    text.chars().take(REPOSITORY_NAME_CHARS_MAX).collect()
}

/// A repository's name as the distribution protocol carries it: `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/…)*`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RepositoryName(String);

impl RepositoryName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RepositoryName {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let refuse = |reason| Err(ReferenceError::Repository { name: shown(text), reason });
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        if text.len() > REPOSITORY_NAME_CHARS_MAX {
            return refuse("it is longer than 255 characters");
        }
        if text.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return refuse("it must be lower case");
        }
        for component in text.split('/') {
            if component.is_empty() {
                return refuse("a component between slashes is empty");
            }
            if !is_name_component(component) {
                return refuse(
                    "components are letters and digits, joined by one `.`, one or two `_`, or `-`",
                );
            }
        }
        Ok(RepositoryName(text.to_owned()))
    }
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_name_component(component: &str) -> bool {
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = component.as_bytes();
    let ends_well = |byte: Option<&u8>| byte.copied().is_some_and(alphanumeric);
    if !ends_well(bytes.first()) || !ends_well(bytes.last()) {
        return false;
    }
    bytes
        .split(|&byte| alphanumeric(byte))
        .filter(|run| !run.is_empty())
        .all(|run| run == b"." || run == b"_" || run == b"__" || run.iter().all(|&byte| byte == b'-'))
}

impl fmt::Display for RepositoryName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// A tag: `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag(String);

impl Tag {
    /// The tag `latest`.
    pub fn latest() -> Tag {
        Tag(DEFAULT_TAG.to_owned())
    }

    /// The tag as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Tag {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        let starts_well = text.bytes().next().is_some_and(word);
        let fits = text.len() <= TAG_CHARS_MAX;
        if starts_well && fits && text.bytes().all(|byte| word(byte) || byte == b'.' || byte == b'-') {
            Ok(Tag(text.to_owned()))
        } else {
            Err(ReferenceError::Tag(shown(text)))
        }
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// A registry's `host[:port]`, lower-cased.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RegistryHost(String);

impl RegistryHost {
    /// The host and port as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The host without its port and without brackets.
    pub fn host(&self) -> &str {
        let host = match self.0.rsplit_once(':') {
            Some((host, port)) if !host.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) => host,
            _ => &self.0,
        };
        host.trim_start_matches('[').trim_end_matches(']')
    }

    /// Whether it can only be this machine: `localhost` or a loopback address. Plain HTTP is safe there.
    pub fn is_loopback(&self) -> bool {
        let host = self.host();
        let address = host.parse::<std::net::IpAddr>();
        host == "localhost"
            || host.ends_with(".localhost")
            || address.is_ok_and(|address| address.is_loopback())
    }
}

impl FromStr for RegistryHost {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let refuse = || ReferenceError::Host(shown(text));
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (address, rest) = rest.split_once(']').ok_or_else(refuse)?;
                address.parse::<std::net::Ipv6Addr>().map_err(|_| refuse())?;
                (None, rest.strip_prefix(':').or(rest.is_empty().then_some("")).ok_or_else(refuse)?)
            }
            None => match text.split_once(':') {
                Some((host, port)) if !port.is_empty() => (Some(host), port),
                Some(_) => return Err(refuse()),
                None => (Some(text), ""),
            },
        };
        if !port.is_empty() && port.parse::<u16>().is_err() {
            return Err(refuse());
        }
        let label = |label: &str| {
            let word = label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
            !label.is_empty() && word && !label.starts_with('-') && !label.ends_with('-')
        };
        let fits = text.len() <= REPOSITORY_NAME_CHARS_MAX;
        if fits && host.is_none_or(|host| host.split('.').all(label)) {
            Ok(RegistryHost(text.to_ascii_lowercase()))
        } else {
            Err(refuse())
        }
    }
}

impl fmt::Display for RegistryHost {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// The name a store keeps an image under: `app`, `ghcr.io/a/b`, `localhost:5000/app`.
///
/// It is a [`Reference`] without tag and digest. Names without a port are also valid repository names, which
/// is how `rimg serve` offers what was built and pulled.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageName(String);

impl ImageName {
    /// The name as text, as it is shown and stored.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The repository name this image is served under; `None` when the name has a port in it.
    pub fn as_repository(&self) -> Option<RepositoryName> {
        self.0.parse().ok()
    }

    /// The reference to `tag` of this image.
    pub fn with_tag(&self, tag: Tag) -> Result<Reference, ReferenceError> {
        let mut reference: Reference = self.0.parse()?;
        reference.tag = Some(tag);
        Ok(reference)
    }
}

impl From<RepositoryName> for ImageName {
    fn from(name: RepositoryName) -> ImageName {
        ImageName(name.0)
    }
}

impl FromStr for ImageName {
    type Err = ReferenceError;

    /// Parses a name as the store keeps it, thus without completing it.
    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if let Some((host, repository)) = text.split_once('/')
            && host.contains(':')
        {
            let (host, repository): (RegistryHost, RepositoryName) = (host.parse()?, repository.parse()?);
            return Ok(ImageName(format!("{host}/{repository}")));
        }
        text.parse::<RepositoryName>().map(ImageName::from)
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// What a person types to mean an image: `[registry/]repository[:tag][@digest]`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    /// The registry named; `None` means a local image or, when it has to be fetched, Docker Hub.
    pub registry: Option<RegistryHost>,
    /// The repository within the registry, in its familiar form (no `library/` of Docker Hub).
    pub repository: RepositoryName,
    /// The tag, if one was given.
    pub tag: Option<Tag>,
    /// The manifest digest, if one was given; it decides over the tag.
    pub digest: Option<Digest>,
}

impl Reference {
    /// The name without tag and digest: the store's key.
    pub fn name(&self) -> ImageName {
        match &self.registry {
            None => ImageName(self.repository.0.clone()),
            Some(registry) => ImageName(format!("{registry}/{}", self.repository)),
        }
    }

    /// The tag given, else `latest`.
    pub fn tag_or_latest(&self) -> Tag {
        self.tag.clone().unwrap_or_else(Tag::latest)
    }

    /// The host to talk to when the image is fetched or pushed.
    pub fn registry_host(&self) -> RegistryHost {
        self.registry.clone().unwrap_or_else(|| RegistryHost(DOCKER_HUB_HOST.to_owned()))
    }

    /// The repository to ask that host for: Docker Hub keeps one-word names under `library/`.
    pub fn remote_repository(&self) -> RepositoryName {
        match &self.registry {
            None if !self.repository.0.contains('/') => {
                RepositoryName(format!("library/{}", self.repository))
            }
            _ => self.repository.clone(),
        }
    }
}

/// Docker's rule: the first component is a registry if it could not be a part of a Docker Hub name.
fn split_registry(text: &str) -> (Option<&str>, &str) {
    match text.split_once('/') {
        Some((first, rest)) => {
            let upper = first.bytes().any(|byte| byte.is_ascii_uppercase());
            match first.contains(['.', ':', '[']) || first == "localhost" || upper {
                true => (Some(first), rest),
                false => (None, text),
            }
        }
        None => (None, text),
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse::<Digest>()?)),
            None => (text, None),
        };
        let (registry, rest) = split_registry(rest);
        let (repository, tag) = match rest.rsplit_once(':') {
            Some((repository, tag)) => (repository, Some(tag.parse::<Tag>()?)),
            None => (rest, None),
        };
        let hub = [DOCKER_HUB, "index.docker.io", DOCKER_HUB_HOST];
        let on_hub = registry.is_none_or(|registry| hub.contains(&registry));
        let familiar = match repository.strip_prefix("library/") {
            Some(short) if on_hub && !short.contains('/') => short,
            _ => repository,
        };
        let registry = if on_hub { None } else { registry.map(str::parse).transpose()? };
        Ok(Reference { registry, repository: familiar.parse()?, tag, digest })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.name())?;
        if let Some(tag) = &self.tag {
            write!(formatter, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(formatter, "@{digest}")?;
        }
        Ok(())
    }
}

macro_rules! serde_as_text {
    ($($name:ty),*) => {$(
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}
serde_as_text!(RepositoryName, Tag, RegistryHost, ImageName, Reference);

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn repository_grammar() {
        for good in ["a", "a/b", "a.b/c__d/e---f", "ghcr.io/x/y", "0/1", "a_b"] {
            assert!(good.parse::<RepositoryName>().is_ok(), "{good}");
        }
        let long = "a".repeat(256);
        for bad in [
            "", "/", "a/", "/a", "a//b", "A", "a..b", "a___b", "a._b", "-a", "a-", "..", "a/../b", "a:b",
            "é", &long,
        ] {
            assert!(bad.parse::<RepositoryName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn tag_grammar() {
        let (fits, long) = ("t".repeat(128), "t".repeat(129));
        for good in ["latest", "1.2", "_x", "V1-rc.2", &fits] {
            assert!(good.parse::<Tag>().is_ok(), "{good}");
        }
        for bad in ["", ".x", "-x", "a/b", "a:b", "a b", &long] {
            assert!(bad.parse::<Tag>().is_err(), "{bad}");
        }
    }

    #[test]
    fn references_are_read_as_docker_reads_them() {
        // text, registry, repository, shown, host asked, repository asked
        let table = [
            ("debian", None, "debian", "debian", DOCKER_HUB_HOST, "library/debian"),
            ("docker.io/library/debian:12", None, "debian", "debian:12", DOCKER_HUB_HOST, "library/debian"),
            (
                "index.docker.io/grafana/loki",
                None,
                "grafana/loki",
                "grafana/loki",
                DOCKER_HUB_HOST,
                "grafana/loki",
            ),
            ("library/debian", None, "debian", "debian", DOCKER_HUB_HOST, "library/debian"),
            ("localhost/app:1", Some("localhost"), "app", "localhost/app:1", "localhost", "app"),
            (
                "localhost:5000/a/b",
                Some("localhost:5000"),
                "a/b",
                "localhost:5000/a/b",
                "localhost:5000",
                "a/b",
            ),
            ("GHCR.io/a/b:x", Some("ghcr.io"), "a/b", "ghcr.io/a/b:x", "ghcr.io", "a/b"),
            ("[::1]:5000/a", Some("[::1]:5000"), "a", "[::1]:5000/a", "[::1]:5000", "a"),
            ("quay.io/library/x", Some("quay.io"), "library/x", "quay.io/library/x", "quay.io", "library/x"),
        ];
        for (text, registry, repository, display, host, asked) in table {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(reference.registry.as_ref().map(RegistryHost::as_str), registry, "{text}");
            assert_eq!(reference.repository.as_str(), repository, "{text}");
            assert_eq!(reference.to_string(), display, "{text}");
            assert_eq!(reference.registry_host().as_str(), host, "{text}");
            assert_eq!(reference.remote_repository().as_str(), asked, "{text}");
            assert_eq!(reference.name().as_str().parse::<ImageName>().unwrap(), reference.name(), "{text}");
        }
        let digest = Digest::sha256(b"x");
        let both: Reference = format!("a/b:t@{digest}").parse().unwrap();
        assert_eq!((both.tag.unwrap().as_str(), both.digest), ("t", Some(digest)));
    }

    #[test]
    fn bad_references() {
        for bad in [
            "",
            ":tag",
            "@sha256:0",
            "a@",
            "a:",
            "A",
            "a/B",
            "host:99999/a",
            "host:x/a",
            "http://a/b",
            "a b",
            "..",
            "./a",
            "a/../../b",
        ] {
            assert!(bad.parse::<Reference>().is_err(), "{bad}");
        }
    }

    #[test]
    fn loopback_hosts() {
        for (host, loopback) in [
            ("localhost", true),
            ("localhost:5000", true),
            ("127.0.0.1:1", true),
            ("127.9.9.9", true),
            ("[::1]:5000", true),
            ("x.localhost", true),
            ("localhost.evil.com", false),
            ("10.0.0.1", false),
            ("127.0.0.1.evil.com", false),
        ] {
            assert_eq!(host.parse::<RegistryHost>().unwrap().is_loopback(), loopback, "{host}");
        }
    }
}
