//! Referrers: the manifests (signatures, SBOMs, …) that name another as their subject (distribution-spec,
//! *Listing Referrers*), and the tag that takes the list's place on registries without that API.

use reqwest::Method;
use reqwest::header::{ACCEPT, HeaderValue};
use rimg_formats::descriptor::Descriptor;
use rimg_formats::digest::Digest;
use rimg_formats::manifest::{Index, MANIFEST_BYTES_MAX, ManifestOrIndex};
use rimg_formats::media_type::OCI_INDEX;
use rimg_formats::reference::RepositoryName;

use super::endpoint;
use super::error::ClientError;
use super::listing::next_page;
use super::manifests;
use super::session::{Access, Session};
use super::wire::{Request, protocol};

/// Most pages followed.
const PAGES_MAX: usize = 1000;

/// The manifests that refer to `subject`, of `artifact_type` if one is given.
pub(super) async fn list(
    session: &Session,
    name: &RepositoryName,
    subject: &Digest,
    artifact_type: Option<&str>,
) -> Result<Vec<Descriptor>, ClientError> {
    let access = Access::pull(name);
    let mut found = match by_interface(session, &access, name, subject, artifact_type).await {
        Err(ClientError::NotFound { .. }) => by_tag(session, &access, name, subject).await?,
        other => other?,
    };
    // The registry may ignore the filter, and the tag knows none.
    found.retain(|entry| artifact_type.is_none_or(|wanted| entry.artifact_type.as_deref() == Some(wanted)));
    Ok(found)
}

async fn by_interface(
    session: &Session,
    access: &Access,
    name: &RepositoryName,
    subject: &Digest,
    artifact_type: Option<&str>,
) -> Result<Vec<Descriptor>, ClientError> {
    let what = format!("referrers of {name}@{subject}");
    let mut url = session.endpoint.referrers(name, subject);
    if let Some(wanted) = artifact_type {
        url.query_pairs_mut().append_pair("artifactType", wanted);
    }
    let mut found = Vec::new();
    for _ in 0..PAGES_MAX {
        let request =
            Request::new(Method::GET, url.clone(), &what).header(ACCEPT, HeaderValue::from_static(OCI_INDEX));
        let response = session.send(access, &request).await?;
        let next = next_page(response.headers()).map(|link| endpoint::follow(&url, &link)).transpose();
        let next = next.map_err(|reason| protocol(&url, &what, reason))?;
        let body = session.wire.read(response, &what, MANIFEST_BYTES_MAX).await?;
        let before = found.len();
        found.extend(entries(&body).map_err(|reason| protocol(&url, &what, reason))?);
        match next {
            Some(next) if found.len() > before && next != url => url = next,
            _ => return Ok(found),
        }
    }
    Err(protocol(&url, &what, format!("the list has more than {PAGES_MAX} pages")))
}

/// The list kept under the referrers tag; none is an empty one.
async fn by_tag(
    session: &Session,
    access: &Access,
    name: &RepositoryName,
    subject: &Digest,
) -> Result<Vec<Descriptor>, ClientError> {
    let tag = referrers_tag(subject);
    match manifests::get(session, access, name, &tag, None).await {
        Ok(received) => entries(&received.raw).map_err(|reason| {
            protocol(&session.endpoint.manifest(name, &tag), &format!("manifest {name}:{tag}"), reason)
        }),
        Err(ClientError::NotFound { .. }) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Adds `manifest` to the list under its subject's referrers tag, as clients must when the registry did not
/// answer the push with `OCI-Subject` (distribution-spec, *Pushing Manifests with Subject*). Two clients doing
/// this at once can lose an entry: the scheme has no way to prevent it.
pub(super) async fn add_by_tag(
    session: &Session,
    access: &Access,
    name: &RepositoryName,
    subject: &Digest,
    manifest: Descriptor,
) -> Result<(), ClientError> {
    let mut listed = by_tag(session, access, name, subject).await?;
    if listed.iter().any(|entry| entry.digest == manifest.digest) {
        return Ok(());
    }
    listed.push(manifest);
    put_list(session, access, name, subject, listed).await
}

/// Takes `manifest`, which was deleted, from the list under its subject's referrers tag, as clients should where
/// the registry has no list of its own (distribution-spec, *Deleting Manifests*).
pub(super) async fn remove_by_tag(
    session: &Session,
    access: &Access,
    name: &RepositoryName,
    subject: &Digest,
    manifest: &Digest,
) -> Result<(), ClientError> {
    match by_interface(session, access, name, subject, None).await {
        Err(ClientError::NotFound { .. }) => {}
        answered => return answered.map(drop),
    }
    let mut listed = by_tag(session, access, name, subject).await?;
    let before = listed.len();
    listed.retain(|entry| entry.digest != *manifest);
    if listed.len() == before {
        return Ok(());
    }
    put_list(session, access, name, subject, listed).await
}

async fn put_list(
    session: &Session,
    access: &Access,
    name: &RepositoryName,
    subject: &Digest,
    listed: Vec<Descriptor>,
) -> Result<(), ClientError> {
    let index = Index::build(listed, Default::default());
    manifests::put(session, access, name, &referrers_tag(subject), index.raw(), index.media_type())
        .await
        .map(drop)
}

/// `<algorithm>-<encoded>`, each part cut to its limit (distribution-spec, *Referrers Tag Schema*).
fn referrers_tag(subject: &Digest) -> String {
    let hex = subject.hex();
    format!("{}-{}", subject.algorithm(), &hex[..hex.len().min(64)])
}

fn entries(body: &[u8]) -> Result<Vec<Descriptor>, String> {
    match ManifestOrIndex::parse(body, Some(OCI_INDEX)) {
        Ok(ManifestOrIndex::Index(index)) => Ok(index.manifests().to_vec()),
        Ok(ManifestOrIndex::Manifest(_)) => Err("the list of referrers is not an index".to_owned()),
        Err(error) => Err(format!("the list of referrers is not an index: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_of_the_schema() {
        use rimg_formats::digest::Algorithm;
        for algorithm in Algorithm::ALL {
            let tag = referrers_tag(&Digest::of(algorithm, b"x"));
            assert_eq!(tag.len(), algorithm.name().len() + 1 + 64);
            assert!(tag.parse::<rimg_formats::reference::Tag>().is_ok());
        }
    }
}
