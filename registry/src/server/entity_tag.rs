//! Entity tags (RFC 9110 §8.8.3 and §13): a manifest's or blob's is its digest in quotes. They make `GET`
//! conditional on what a client has, and `PUT` of a tag on what it believes the tag to be.

use axum::http::header::{HeaderMap, HeaderName, HeaderValue};
use rimg_formats::digest::Digest;

use super::error::{ApiError, Code};
use super::limits::ENTITY_TAGS_MAX;

/// The header value of a digest's entity tag.
pub(super) fn of(digest: &Digest) -> HeaderValue {
    HeaderValue::try_from(format!("\"{digest}\"")).expect("a digest is made of hex digits and a colon")
}

/// What `If-Match` or `If-None-Match` lists.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum EntityTags {
    /// `*`: whatever there is.
    Any,
    /// These. Tags that are no digest are none of ours and match nothing.
    Digests(Vec<Digest>),
}

impl EntityTags {
    /// Reads all lines of the header `name`; `None` when there is none.
    pub(super) fn from(headers: &HeaderMap, name: HeaderName) -> Result<Option<EntityTags>, ApiError> {
        if !headers.contains_key(&name) {
            return Ok(None);
        }
        let malformed = || ApiError::bad_request(Code::ParameterInvalid, format!("`{name}` cannot be read"));
        let mut digests = Vec::new();
        let mut count = 0;
        for value in headers.get_all(&name) {
            for tag in value.to_str().map_err(|_| malformed())?.split(',').map(str::trim) {
                count += 1;
                if count > ENTITY_TAGS_MAX {
                    return Err(malformed());
                }
                if tag == "*" {
                    return Ok(Some(EntityTags::Any));
                }
                // Our tags contain no quotes and no commas, so splitting before unquoting is safe for them.
                let opaque = tag.strip_prefix("W/").unwrap_or(tag).trim_matches('"');
                digests.extend(opaque.parse::<Digest>());
            }
        }
        Ok(Some(EntityTags::Digests(digests)))
    }

    pub(super) fn contains(&self, digest: &Digest) -> bool {
        match self {
            EntityTags::Any => true,
            EntityTags::Digests(digests) => digests.contains(digest),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use axum::http::header::IF_NONE_MATCH;

    use super::*;

    #[test]
    fn lists_of_tags() {
        let (one, two) = (Digest::sha256(b"1"), Digest::sha256(b"2"));
        let parse = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.append(IF_NONE_MATCH, HeaderValue::from_str(text).unwrap());
            EntityTags::from(&headers, IF_NONE_MATCH)
        };
        assert_eq!(EntityTags::from(&HeaderMap::new(), IF_NONE_MATCH).unwrap(), None);
        assert_eq!(parse("*").unwrap(), Some(EntityTags::Any));
        let both = parse(&format!("W/\"{one}\", \"{two}\"")).unwrap().unwrap();
        assert!(both.contains(&one) && both.contains(&two));
        assert!(!parse("\"other\"").unwrap().unwrap().contains(&one));
        assert!(parse(&"\"x\",".repeat(ENTITY_TAGS_MAX + 1)).is_err());
    }
}
