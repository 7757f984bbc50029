//! Manifests: getting, asking after, putting and deleting them (distribution-spec, *Pulling manifests*,
//! *Pushing manifests*, *Content management*).
//!
//! The digest is computed over the exact bytes received. A manifest asked for by digest must have that digest;
//! one asked for by tag must have the digest that its own header claims.

use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Method, Response};
use rimg_formats::digest::Digest;
use rimg_formats::manifest::MANIFEST_BYTES_MAX;
use rimg_formats::media_type::MANIFEST_ACCEPT;
use rimg_formats::reference::RepositoryName;

use super::error::ClientError;
use super::session::{Access, Session};
use super::wire::{Request, host_of, protocol, refuse_page};

/// The header with the digest of what is sent.
const CONTENT_DIGEST: &str = "docker-content-digest";
/// The header by which a registry says that it files a manifest under its subject.
const OCI_SUBJECT: &str = "oci-subject";

/// A manifest as it was received.
pub(super) struct Received {
    pub(super) raw: Vec<u8>,
    pub(super) media_type: String,
    pub(super) digest: Digest,
}

/// Gets the manifest that `version` (a tag or digest) names; `digest` is what it must have, if that is known.
pub(super) async fn get(
    session: &Session,
    access: &Access,
    name: &RepositoryName,
    version: &str,
    digest: Option<&Digest>,
) -> Result<Received, ClientError> {
    let request = request(session, Method::GET, name, version);
    let response = session.send(access, &request).await?;
    refuse_page(&response, &request.what)?;
    let media_type = content_type(&response);
    let (host, claimed) = (host_of(response.url()), claimed_digest(response.headers()));
    let raw = session.wire.read(response, &request.what, MANIFEST_BYTES_MAX).await?;
    for expected in digest.into_iter().chain(&claimed) {
        let actual = Digest::of(expected.algorithm(), &raw);
        if actual != *expected {
            let reason = format!("expected {expected}, but its {} bytes hash to {actual}", raw.len());
            return Err(ClientError::Damaged { host, what: request.what, reason });
        }
    }
    let digest = digest.copied().or(claimed).unwrap_or_else(|| Digest::sha256(&raw));
    Ok(Received { raw, media_type, digest })
}

/// The digest that `tag` stands for, without fetching the manifest where the registry allows it.
pub(super) async fn resolve(
    session: &Session,
    access: &Access,
    name: &RepositoryName,
    tag: &str,
) -> Result<Digest, ClientError> {
    let response = session.send(access, &request(session, Method::HEAD, name, tag)).await?;
    match claimed_digest(response.headers()) {
        Some(digest) => Ok(digest),
        // The header is optional in older registries.
        None => Ok(get(session, access, name, tag, None).await?.digest),
    }
}

/// Puts a manifest under `version`, a tag or its digest. Returns whether the registry takes care of its
/// subject by itself.
pub(super) async fn put(
    session: &Session,
    access: &Access,
    name: &RepositoryName,
    version: &str,
    raw: &[u8],
    media_type: &str,
) -> Result<bool, ClientError> {
    let mut request = request(session, Method::PUT, name, version);
    request.headers.remove(ACCEPT);
    let content_type = HeaderValue::from_str(media_type)
        .map_err(|_| protocol(&request.url, &request.what, "its media type cannot be sent in a header"))?;
    request = request.header(CONTENT_TYPE, content_type);
    request.body = raw.to_vec().into();
    let response = session.send(access, &request).await?;
    if let Some(claimed) = claimed_digest(response.headers())
        && claimed != Digest::of(claimed.algorithm(), raw)
    {
        let reason = format!("it was received as {claimed}");
        return Err(ClientError::Damaged { host: host_of(response.url()), what: request.what, reason });
    }
    Ok(response.headers().contains_key(OCI_SUBJECT))
}

/// Deletes a tag, or a manifest by its digest with all tags on it.
pub(super) async fn delete(
    session: &Session,
    name: &RepositoryName,
    version: &str,
) -> Result<(), ClientError> {
    let request = request(session, Method::DELETE, name, version);
    session.send(&Access::delete(name), &request).await.map(drop)
}

fn request(session: &Session, method: Method, name: &RepositoryName, version: &str) -> Request {
    let separator = if version.contains(':') { '@' } else { ':' };
    let what = format!("manifest {name}{separator}{version}");
    Request::new(method, session.endpoint.manifest(name, version), what)
        .header(ACCEPT, HeaderValue::from_static(MANIFEST_ACCEPT))
}

fn claimed_digest(headers: &HeaderMap) -> Option<Digest> {
    headers.get(CONTENT_DIGEST)?.to_str().ok()?.trim().parse().ok()
}

/// The media type without parameters. Servers that know none say so in several ways; the document itself
/// decides then.
fn content_type(response: &Response) -> String {
    let value = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    let media_type = value.split(';').next().unwrap_or("").trim();
    match media_type {
        "application/json" | "application/octet-stream" | "text/plain" => String::new(),
        other => other.to_owned(),
    }
}
