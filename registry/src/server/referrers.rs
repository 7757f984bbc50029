//! Referrers (end-12): the manifests that name another one as their subject.

use std::sync::Arc;

use axum::http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use rimg_formats::descriptor::Descriptor;
use rimg_formats::digest::Digest;
use rimg_formats::media_type::OCI_INDEX;
use rimg_formats::reference::{ImageName, RepositoryName};

use super::State;
use super::error::ApiError;
use super::limits::REFERRERS_BYTES_MAX;
use super::query::percent_encode;
use super::service::{Call, Reply, json, set_next};

const FILTERS_APPLIED: HeaderName = HeaderName::from_static("oci-filters-applied");

/// GET: an index of the referrers, empty when there are none or the subject is unknown.
pub(super) async fn list(
    state: &Arc<State>,
    name: RepositoryName,
    subject: Digest,
    call: Call,
) -> Result<Reply, ApiError> {
    // Media types have no spaces but do have `+`, which careless clients send bare.
    let filter = call.query.get("artifactType").filter(|filter| !filter.is_empty());
    let filter = filter.map(|filter| filter.replace(' ', "+"));
    let last: Option<Digest> = call.query.get("last").map(str::parse).transpose()?;
    let repository = ImageName::from(name.clone());
    let wanted = filter.clone();
    let found =
        state.run(move |store| store.repository(&repository).referrers(&subject, wanted.as_deref())).await?;
    let page = Page::cut(&found, last.as_ref())?;
    let mut reply = json(page.document.into_bytes());
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(OCI_INDEX));
    if filter.is_some() {
        reply.headers_mut().insert(FILTERS_APPLIED, HeaderValue::from_static("artifactType"));
    }
    if let Some(next) = page.next {
        let filter = filter.map(|filter| format!("artifactType={}&", percent_encode(&filter)));
        let filter = filter.unwrap_or_default();
        let last = percent_encode(&next.to_string());
        set_next(&mut reply, &format!("/v2/{name}/referrers/{subject}?{filter}last={last}"));
    }
    Ok(reply)
}

/// One page of a listing.
struct Page {
    document: String,
    /// The digest behind which the next page begins.
    next: Option<Digest>,
}

impl Page {
    /// As many descriptors behind `last` as an index may hold. At least one: a page without progress would be
    /// asked for for ever.
    fn cut(found: &[Descriptor], last: Option<&Digest>) -> Result<Page, ApiError> {
        let head = format!("{{\"schemaVersion\":2,\"mediaType\":\"{OCI_INDEX}\",\"manifests\":[");
        let mut document = head.clone();
        let mut previous = None;
        for descriptor in found.iter().filter(|descriptor| last.is_none_or(|last| descriptor.digest > *last))
        {
            let entry = serde_json::to_string(descriptor).map_err(ApiError::internal)?;
            if previous.is_some() && document.len() + entry.len() + ",]}".len() > REFERRERS_BYTES_MAX {
                document.push_str("]}");
                return Ok(Page { document, next: previous });
            }
            if previous.is_some() {
                document.push(',');
            }
            document.push_str(&entry);
            previous = Some(descriptor.digest);
        }
        document.push_str("]}");
        Ok(Page { document, next: None })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn pages_hold_everything_once_and_stay_small() {
        let mut found: Vec<Descriptor> = (0..40u32)
            .map(|number| {
                let mut descriptor = Descriptor::new("x/y", Digest::sha256(&number.to_le_bytes()), 1);
                descriptor.annotations.insert("a".to_owned(), "b".repeat(500_000));
                descriptor
            })
            .collect();
        found.sort_by_key(|descriptor| descriptor.digest);
        let (mut seen, mut last) = (Vec::new(), None);
        loop {
            let page = Page::cut(&found, last.as_ref()).unwrap();
            assert!(page.document.len() <= REFERRERS_BYTES_MAX);
            let index: serde_json::Value = serde_json::from_str(&page.document).unwrap();
            let entries = index["manifests"].as_array().unwrap();
            seen.extend(entries.iter().map(|entry| entry["digest"].as_str().unwrap().to_owned()));
            match page.next {
                Some(next) => last = Some(next),
                None => break,
            }
        }
        assert_eq!(seen, found.iter().map(|descriptor| descriptor.digest.to_string()).collect::<Vec<_>>());
    }
}
