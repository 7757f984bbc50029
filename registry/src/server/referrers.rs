//! Referrers (end-12): the manifests that name another one as their subject.

use std::net::IpAddr;
use std::sync::Arc;

use axum::http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use axum::response::IntoResponse;
use bytes::Bytes;
use rimg_formats::digest::Digest;
use rimg_formats::media_type::OCI_INDEX;
use rimg_formats::reference::{ImageName, RepositoryName};
use rimg_formats::store::{ReferrersPage, ReferrersQuery};

use super::State;
use super::error::ApiError;
use super::limits::{REFERRERS_BYTES_MAX, SMALL_DOCUMENT_BYTES};
use super::places::Place;
use super::query::percent_encode;
use super::receive;
use super::service::{Call, Reply, set_next};

const FILTERS_APPLIED: HeaderName = HeaderName::from_static("oci-filters-applied");
/// Room for the index around the entries.
const INDEX_BYTES: usize = 256;

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
    let after: Option<Digest> = call.query.get("last").map(str::parse).transpose()?;
    let query = ReferrersQuery {
        subject,
        artifact_type: filter.clone(),
        after,
        bytes_max: SMALL_DOCUMENT_BYTES,
        at_least_one: false,
    };
    let repository = ImageName::from(name.clone());
    let (page, place) = read(state, repository, query, call.caller.peer.ip()).await?;
    let next = page.last.filter(|_| page.more);
    let document = Document { bytes: index(&page.entries).into_bytes(), _place: place };
    let mut reply = Bytes::from_owner(document).into_response();
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(OCI_INDEX));
    if filter.is_some() {
        reply.headers_mut().insert(FILTERS_APPLIED, HeaderValue::from_static("artifactType"));
    }
    if let Some(next) = next {
        let filter = filter.map(|filter| format!("artifactType={}&", percent_encode(&filter)));
        let filter = filter.unwrap_or_default();
        let last = percent_encode(&next.to_string());
        set_next(&mut reply, &format!("/v2/{name}/referrers/{subject}?{filter}last={last}"));
    }
    Ok(reply)
}

/// A small page if everything fits, which is nearly always so; else a large one, with its place among large documents.
async fn read(
    state: &Arc<State>,
    repository: ImageName,
    query: ReferrersQuery,
    peer: IpAddr,
) -> Result<(ReferrersPage, Option<Place>), ApiError> {
    let (name, small) = (repository.clone(), query.clone());
    let page = state.run(move |store| store.repository(&name).referrers_page(&small)).await?;
    if !page.more {
        return Ok((page, None));
    }
    let place = receive::large_document(state, peer)?;
    let large = ReferrersQuery { bytes_max: REFERRERS_BYTES_MAX - INDEX_BYTES, at_least_one: true, ..query };
    let page = state.run_long(move |store| store.repository(&repository).referrers_page(&large)).await?;
    Ok((page, Some(place)))
}

fn index(entries: &[String]) -> String {
    let head = format!("{{\"schemaVersion\":2,\"mediaType\":\"{OCI_INDEX}\",\"manifests\":[");
    head + &entries.join(",") + "]}"
}

/// A document on its way, which holds its place until it has been sent.
struct Document {
    bytes: Vec<u8>,
    _place: Option<Place>,
}

impl AsRef<[u8]> for Document {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}
