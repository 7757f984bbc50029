//! Which endpoint a path means. Repository names contain slashes, so a path is read from its end; everything in
//! it is parsed here, before anything looks at the store.
//!
//! | path | endpoint of the specification |
//! |---|---|
//! | `/v2`, `/v2/` | end-1 |
//! | `/v2/_catalog` | (Docker's) |
//! | `/v2/<name>/blobs/<digest>` | end-2, end-10 |
//! | `/v2/<name>/manifests/<reference>` | end-3, end-7, end-9 |
//! | `/v2/<name>/blobs/uploads[/]` | end-4, end-11 |
//! | `/v2/<name>/blobs/uploads/<id>` | end-5, end-6, end-13, end-14 |
//! | `/v2/<name>/tags/list` | end-8 |
//! | `/v2/<name>/referrers/<digest>` | end-12 |

use std::borrow::Cow;

use axum::http::StatusCode;
use rimg_formats::digest::Digest;
use rimg_formats::reference::{RepositoryName, Tag};

use super::error::{ApiError, Code};
use super::limits::TARGET_BYTES_MAX;
use super::query::percent_decode;

/// An endpoint and what its path names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Route {
    Base,
    Catalog,
    Blob { name: RepositoryName, digest: Digest },
    Manifest { name: RepositoryName, version: Version },
    UploadStart { name: RepositoryName },
    Upload { name: RepositoryName, id: String },
    Tags { name: RepositoryName },
    Referrers { name: RepositoryName, digest: Digest },
}

/// How a manifest is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Version {
    Tag(Tag),
    Digest(Digest),
}

impl Route {
    /// Parses the path of a request's target.
    pub(super) fn parse(path: &str) -> Result<Route, ApiError> {
        if path.len() > TARGET_BYTES_MAX {
            return Err(ApiError::new(StatusCode::URI_TOO_LONG, Code::NameInvalid, "the path is too long"));
        }
        let rest = match path {
            "/v2" | "/v2/" => return Ok(Route::Base),
            "/v2/_catalog" => return Ok(Route::Catalog),
            _ => path.strip_prefix("/v2/").ok_or_else(unknown)?,
        };
        let segments: Option<Vec<Cow<'_, str>>> = rest.split('/').map(percent_decode).collect();
        let segments = segments.ok_or_else(unknown)?;
        // A decoded slash would move the borders that have just been found.
        if segments.iter().any(|segment| segment.contains('/')) {
            return Err(ApiError::bad_request(Code::NameInvalid, "a slash of the path must not be escaped"));
        }
        let segments: Vec<&str> = segments.iter().map(Cow::as_ref).collect();
        match segments.as_slice() {
            [name @ .., "blobs", "uploads"] | [name @ .., "blobs", "uploads", ""] if !name.is_empty() => {
                Ok(Route::UploadStart { name: repository(name)? })
            }
            [name @ .., "blobs", "uploads", id] if !name.is_empty() => {
                Ok(Route::Upload { name: repository(name)?, id: (*id).to_owned() })
            }
            [name @ .., "blobs", digest] if !name.is_empty() => {
                Ok(Route::Blob { name: repository(name)?, digest: digest.parse()? })
            }
            [name @ .., "manifests", version] if !name.is_empty() => {
                Ok(Route::Manifest { name: repository(name)?, version: version.parse()? })
            }
            [name @ .., "tags", "list"] if !name.is_empty() => Ok(Route::Tags { name: repository(name)? }),
            [name @ .., "referrers", digest] if !name.is_empty() => {
                Ok(Route::Referrers { name: repository(name)?, digest: digest.parse()? })
            }
            _ => Err(unknown()),
        }
    }

    /// The repository that the path names.
    pub(super) fn repository(&self) -> Option<&RepositoryName> {
        match self {
            Route::Base | Route::Catalog => None,
            Route::Blob { name, .. }
            | Route::Manifest { name, .. }
            | Route::UploadStart { name }
            | Route::Upload { name, .. }
            | Route::Tags { name }
            | Route::Referrers { name, .. } => Some(name),
        }
    }

    /// The methods that the endpoint answers, as the `Allow` header lists them.
    pub(super) fn methods(&self) -> &'static str {
        match self {
            Route::Base | Route::Catalog | Route::Tags { .. } | Route::Referrers { .. } => "GET, HEAD",
            Route::Blob { .. } => "GET, HEAD, DELETE",
            Route::Manifest { .. } => "GET, HEAD, PUT, DELETE",
            Route::UploadStart { .. } => "POST",
            Route::Upload { .. } => "GET, HEAD, PATCH, PUT, DELETE",
        }
    }
}

impl std::str::FromStr for Version {
    type Err = ApiError;

    fn from_str(text: &str) -> Result<Version, ApiError> {
        // No tag has a colon, and every digest has one.
        match text.contains(':') {
            true => Ok(Version::Digest(text.parse()?)),
            false => Ok(Version::Tag(text.parse()?)),
        }
    }
}

fn repository(segments: &[&str]) -> Result<RepositoryName, ApiError> {
    Ok(segments.join("/").parse()?)
}

fn unknown() -> ApiError {
    ApiError::not_found(Code::Unsupported, "no such endpoint; the registry's are below /v2/")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn name(text: &str) -> RepositoryName {
        text.parse().unwrap()
    }

    #[test]
    fn paths_are_read_from_their_end() {
        let digest = Digest::sha256(b"x");
        let tag = |text: &str| Version::Tag(text.parse().unwrap());
        let encoded = digest.to_string().replace(':', "%3A");
        let cases = [
            ("/v2".to_owned(), Route::Base),
            ("/v2/".to_owned(), Route::Base),
            ("/v2/_catalog".to_owned(), Route::Catalog),
            (format!("/v2/a/blobs/{digest}"), Route::Blob { name: name("a"), digest }),
            (format!("/v2/a/b/c/blobs/{encoded}"), Route::Blob { name: name("a/b/c"), digest }),
            (format!("/v2/a/manifests/blobs/{digest}"), Route::Blob { name: name("a/manifests"), digest }),
            (
                "/v2/a/blobs/uploads/manifests/v1".to_owned(),
                Route::Manifest { name: name("a/blobs/uploads"), version: tag("v1") },
            ),
            (
                format!("/v2/a/manifests/{digest}"),
                Route::Manifest { name: name("a"), version: Version::Digest(digest) },
            ),
            ("/v2/a/blobs/uploads".to_owned(), Route::UploadStart { name: name("a") }),
            ("/v2/a/blobs/uploads/".to_owned(), Route::UploadStart { name: name("a") }),
            ("/v2/a/blobs/uploads/7".to_owned(), Route::Upload { name: name("a"), id: "7".to_owned() }),
            ("/v2/a/tags/list".to_owned(), Route::Tags { name: name("a") }),
            (format!("/v2/a/referrers/{digest}"), Route::Referrers { name: name("a"), digest }),
        ];
        for (path, route) in cases {
            assert_eq!(Route::parse(&path).unwrap(), route, "{path}");
        }
    }

    #[test]
    fn hostile_paths_are_refused() {
        let cases = [
            ("/", 404),
            ("/v1/", 404),
            ("/v2/a", 404),
            ("/v2/blobs/uploads/", 404),
            ("/v2//tags/list", 400),
            ("/v2/../etc/tags/list", 400),
            ("/v2/%2e%2e/tags/list", 400),
            ("/v2/a%2Fb/tags/list", 400),
            ("/v2/A/tags/list", 400),
            ("/v2/a/blobs/sha256:../../x", 404),
            ("/v2/a/blobs/sha256:abc", 400),
            ("/v2/a/blobs/nothing", 400),
            ("/v2/a/manifests/sha256:baddigeststring", 400),
            ("/v2/a/manifests/.hidden", 400),
            ("/v2/a/manifests/%00", 400),
            ("/v2/a/manifests/%ff", 404),
            ("/v2/a/tags/", 404),
        ];
        for (path, status) in cases {
            assert_eq!(Route::parse(path).unwrap_err().status.as_u16(), status, "{path}");
        }
        let long = format!("/v2/{}/tags/list", "a/".repeat(8000));
        assert_eq!(Route::parse(&long).unwrap_err().status.as_u16(), 414);
    }
}
