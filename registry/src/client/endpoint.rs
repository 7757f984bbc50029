//! [`Endpoint`]: a registry's base URL, the URLs under it, and which URLs that a registry hands out are followed.
//!
//! `Location` headers come from strangers. They may name another host (uploads and downloads are often served
//! by an object store), but never another kind of resource (`file:`), never a user name, and never plain HTTP
//! when the conversation so far was private. One exception helps registries behind a proxy that ends TLS
//! without telling them: plain HTTP to the *same* host is taken as HTTPS.

use reqwest::Url;
use rimg_formats::digest::Digest;
use rimg_formats::reference::{RegistryHost, RepositoryName};

/// Longest URL accepted from a registry. Signed storage URLs reach 2 KiB.
const LOCATION_BYTES_MAX: usize = 16 * 1024;

/// How a registry is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scheme {
    /// In the clear.
    Http,
    /// Over TLS.
    Https,
}

/// A registry and the scheme chosen for it.
#[derive(Clone, Debug)]
pub(super) struct Endpoint {
    /// The registry.
    pub(super) host: RegistryHost,
    base: Url,
}

impl Endpoint {
    /// The registry at `host`. Fails for the few hosts that parse as such but not within a URL.
    pub(super) fn new(host: &RegistryHost, scheme: Scheme) -> Result<Endpoint, String> {
        let scheme = match scheme {
            Scheme::Http => "http",
            Scheme::Https => "https",
        };
        let base = Url::parse(&format!("{scheme}://{host}/v2/")).map_err(|error| error.to_string())?;
        Ok(Endpoint { host: host.clone(), base })
    }

    /// `/v2/`, which answers whether the caller is known (distribution-spec, end-1).
    pub(super) fn root(&self) -> Url {
        self.base.clone()
    }

    /// `/v2/_catalog`.
    pub(super) fn catalog(&self) -> Url {
        self.under("_catalog")
    }

    /// `/v2/<name>/manifests/<reference>`.
    pub(super) fn manifest(&self, name: &RepositoryName, reference: &str) -> Url {
        self.under(&format!("{name}/manifests/{reference}"))
    }

    /// `/v2/<name>/blobs/<digest>`.
    pub(super) fn blob(&self, name: &RepositoryName, digest: &Digest) -> Url {
        self.under(&format!("{name}/blobs/{digest}"))
    }

    /// `/v2/<name>/blobs/uploads/`.
    pub(super) fn uploads(&self, name: &RepositoryName) -> Url {
        self.under(&format!("{name}/blobs/uploads/"))
    }

    /// `/v2/<name>/tags/list`.
    pub(super) fn tags(&self, name: &RepositoryName) -> Url {
        self.under(&format!("{name}/tags/list"))
    }

    /// `/v2/<name>/referrers/<digest>`.
    pub(super) fn referrers(&self, name: &RepositoryName, digest: &Digest) -> Url {
        self.under(&format!("{name}/referrers/{digest}"))
    }

    /// Names, tags and digests are free of characters that mean something in a path, by their grammars.
    fn under(&self, path: &str) -> Url {
        let mut url = self.base.clone();
        url.set_path(&format!("/v2/{path}"));
        url
    }

    /// Whether `url` belongs to this registry, so that its credentials may be sent there.
    pub(super) fn owns(&self, url: &Url) -> bool {
        same_origin(&self.base, url)
    }
}

/// Same scheme, host and port (RFC 6454).
pub(super) fn same_origin(one: &Url, other: &Url) -> bool {
    one.scheme() == other.scheme()
        && one.host_str() == other.host_str()
        && one.port_or_known_default() == other.port_or_known_default()
}

/// The URL that `location` means in an answer to a request for `from`; an error names the rule it breaks.
pub(super) fn follow(from: &Url, location: &str) -> Result<Url, String> {
    if location.len() > LOCATION_BYTES_MAX {
        return Err(format!("it sends a URL longer than {LOCATION_BYTES_MAX} bytes"));
    }
    let mut url = from.join(location).map_err(|error| format!("it sends a URL that is none: {error}"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(format!("it points to a `{}:` URL", super::error::sanitise(url.scheme())));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("it points to a URL with a user name".to_owned());
    }
    url.set_fragment(None);
    if from.scheme() == "https" && url.scheme() == "http" {
        let same_host = url.host_str() == from.host_str();
        let same_port = url.port().is_none() || url.port() == from.port();
        let raised = same_host && same_port && url.set_scheme("https").is_ok();
        if !raised || (url.port().is_none() && url.set_port(from.port()).is_err()) {
            return Err("it points from HTTPS to plain HTTP".to_owned());
        }
    }
    Ok(url)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn locations_are_followed_or_refused() {
        let table = [
            ("https://r.io/v2/a/", "/v2/b?x=1", Ok("https://r.io/v2/b?x=1")),
            ("https://r.io/v2/a/", "c#f", Ok("https://r.io/v2/a/c")),
            ("https://r.io/v2/a/", "https://s3.example/x?sig=1", Ok("https://s3.example/x?sig=1")),
            ("https://r.io/v2/a/", "//other/x", Ok("https://other/x")),
            ("https://r.io/v2/a/", "http://r.io/v2/b", Ok("https://r.io/v2/b")),
            ("https://r.io:444/v2/a/", "http://r.io/v2/b", Ok("https://r.io:444/v2/b")),
            ("https://r.io/v2/a/", "http://r.io:80/v2/b", Ok("https://r.io/v2/b")),
            ("https://r.io/v2/a/", "http://r.io:81/v2/b", Err("plain HTTP")),
            ("https://r.io/v2/a/", "http://s3.example/x", Err("plain HTTP")),
            ("http://r.io/v2/a/", "http://s3.example/x", Ok("http://s3.example/x")),
            ("http://r.io/v2/a/", "file:///etc/passwd", Err("file:")),
            ("http://r.io/v2/a/", "javascript:alert(1)", Err("javascript:")),
            ("https://r.io/v2/a/", "https://u:p@r.io/", Err("user name")),
            ("https://r.io/v2/a/", "https://[bad", Err("none")),
        ];
        for (from, location, expected) in table {
            let got = follow(&from.parse().unwrap(), location);
            match (got, expected) {
                (Ok(url), Ok(expected)) => assert_eq!(url.as_str(), expected, "{location}"),
                (Err(reason), Err(why)) => assert!(reason.contains(why), "{location}: {reason}"),
                (got, _) => panic!("{location}: {got:?}"),
            }
        }
        assert!(follow(&"http://r/".parse().unwrap(), &"x".repeat(LOCATION_BYTES_MAX + 1)).is_err());
    }

    #[test]
    fn credentials_stay_with_their_origin() {
        let endpoint = Endpoint::new(&"r.io:444".parse().unwrap(), Scheme::Https).unwrap();
        for (url, owned) in [
            ("https://r.io:444/v2/x", true),
            ("https://r.io/v2/x", false),
            ("http://r.io:444/v2/x", false),
            ("https://r.io.evil.com:444/", false),
        ] {
            assert_eq!(endpoint.owns(&url.parse().unwrap()), owned, "{url}");
        }
    }

    #[test]
    fn urls_of_the_protocol() {
        let endpoint = Endpoint::new(&"[::1]:5000".parse().unwrap(), Scheme::Http).unwrap();
        let name = "a/b".parse().unwrap();
        assert_eq!(endpoint.root().as_str(), "http://[::1]:5000/v2/");
        assert_eq!(endpoint.manifest(&name, "1.0").as_str(), "http://[::1]:5000/v2/a/b/manifests/1.0");
        assert_eq!(endpoint.uploads(&name).as_str(), "http://[::1]:5000/v2/a/b/blobs/uploads/");
    }
}
