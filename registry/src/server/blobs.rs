//! Blobs (end-2 and end-10): reading them whole or in part, and taking them out of a repository.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use axum::body::Body;
use axum::http::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderValue,
    IF_NONE_MATCH, IF_RANGE, RANGE,
};
use axum::http::{Method, StatusCode};
use axum::response::IntoResponse;
use bytes::Bytes;
use rimg_formats::digest::Digest;
use rimg_formats::reference::{ImageName, RepositoryName};
use rimg_formats::store::Blob;

use super::State;
use super::body::{self, Part, Reader};
use super::entity_tag::{self, EntityTags};
use super::error::{ApiError, Code};
use super::event::Event;
use super::range::{self, Selection, Span};
use super::service::{Call, Reply, set_digest};
use super::verification;

/// Content under a digest never changes.
const FOR_EVER: HeaderValue = HeaderValue::from_static("private, max-age=31536000, immutable");
const OCTETS: HeaderValue = HeaderValue::from_static("application/octet-stream");

/// GET and HEAD. Either leases the blob: a client that was told it is here may name it in a manifest.
pub(super) async fn get(
    state: &Arc<State>,
    name: RepositoryName,
    digest: Digest,
    call: Call,
) -> Result<Reply, ApiError> {
    let repository = ImageName::from(name);
    let blob = verification::open(state, repository, digest).await?.ok_or_else(|| unknown(&digest))?;
    let known = EntityTags::from(&call.headers, IF_NONE_MATCH)?;
    if known.is_some_and(|known| known.contains(&digest)) {
        return Ok(describe(StatusCode::NOT_MODIFIED, Body::empty(), &digest));
    }
    let size = blob.size();
    if call.method == Method::HEAD {
        let mut reply = describe(StatusCode::OK, Body::empty(), &digest);
        reply.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(size));
        return Ok(reply);
    }
    match selection(&call, &digest, size) {
        Selection::Unsatisfiable => Err(unsatisfiable(size)),
        Selection::Spans(spans) if spans.len() == 1 => {
            let mut reply = partial(state, blob, vec![Part::Span(spans[0])]);
            reply.headers_mut().insert(CONTENT_RANGE, content_range(&spans[0], size));
            Ok(reply)
        }
        Selection::Spans(spans) => Ok(multipart(state, blob, &spans)),
        Selection::Whole => {
            let whole = (size > 0).then_some(Part::Span(Span { offset: 0, length: size }));
            Ok(send(state, StatusCode::OK, blob, whole.into_iter().collect()))
        }
    }
}

/// DELETE: takes the blob out of this repository; its bytes go with the next collection, if nobody else has it.
pub(super) async fn delete(
    state: &Arc<State>,
    name: RepositoryName,
    digest: Digest,
) -> Result<Reply, ApiError> {
    let repository = ImageName::from(name);
    match state.run(move |store| store.repository(&repository).delete_blob(&digest)).await? {
        true => Ok(StatusCode::ACCEPTED.into_response()),
        false => Err(unknown(&digest)),
    }
}

fn unknown(digest: &Digest) -> ApiError {
    ApiError::not_found(Code::BlobUnknown, format!("blob {digest} is not in this repository"))
}

/// `Range`, unless `If-Range` shows that the client holds something else.
fn selection(call: &Call, digest: &Digest, size: u64) -> Selection {
    let same = call.headers.get(IF_RANGE).is_none_or(|validator| validator == entity_tag::of(digest));
    match call.header(RANGE) {
        Some(header) if same => range::select(header, size),
        _ => Selection::Whole,
    }
}

fn unsatisfiable(size: u64) -> ApiError {
    let value = HeaderValue::try_from(format!("bytes */{size}")).expect("a number is ASCII");
    let message = format!("the blob has {size} bytes; nothing of it is in that range");
    ApiError::new(StatusCode::RANGE_NOT_SATISFIABLE, Code::SizeInvalid, message)
        .with_header(CONTENT_RANGE, value)
}

fn content_range(span: &Span, size: u64) -> HeaderValue {
    HeaderValue::try_from(span.content_range(size)).expect("numbers are ASCII")
}

fn partial(state: &State, blob: Blob, parts: Vec<Part>) -> Reply {
    send(state, StatusCode::PARTIAL_CONTENT, blob, parts)
}

/// Several ranges as `multipart/byteranges` (RFC 9110 §14.6).
fn multipart(state: &State, blob: Blob, spans: &[Span]) -> Reply {
    let size = blob.size();
    // A blob's author cannot foresee it, so cannot forge a border inside the content.
    let boundary = format!("rimg-{:016x}", RandomState::new().hash_one(size));
    let mut parts = Vec::with_capacity(spans.len() * 2 + 1);
    for span in spans {
        let range = span.content_range(size);
        let head = format!(
            "\r\n--{boundary}\r\nContent-Type: application/octet-stream\r\nContent-Range: {range}\r\n\r\n"
        );
        parts.push(Part::Text(Bytes::from(head)));
        parts.push(Part::Span(*span));
    }
    parts.push(Part::Text(Bytes::from(format!("\r\n--{boundary}--\r\n"))));
    let mut reply = partial(state, blob, parts);
    let content_type = HeaderValue::try_from(format!("multipart/byteranges; boundary={boundary}"));
    reply.headers_mut().insert(CONTENT_TYPE, content_type.expect("the boundary is hex digits"));
    reply
}

fn send(state: &State, status: StatusCode, blob: Blob, parts: Vec<Part>) -> Reply {
    let digest = *blob.digest();
    let length: u64 = parts.iter().map(Part::length).sum();
    let observer = state.options.observer.clone();
    let reader = Reader::new(blob.into_file(), state.jobs.clone(), state.read_blocks.clone());
    let body = body::of_blob(reader, parts, move |error| {
        if let Some(observer) = &observer {
            observer(Event::BodyFailed { digest: digest.to_string(), cause: error.to_string() });
        }
    });
    let mut reply = describe(status, body, &digest);
    reply.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(length));
    reply
}

fn describe(status: StatusCode, body: Body, digest: &Digest) -> Reply {
    let mut reply = (status, body).into_response();
    set_digest(&mut reply, digest);
    let headers = reply.headers_mut();
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(CACHE_CONTROL, FOR_EVER);
    headers.insert(CONTENT_TYPE, OCTETS);
    headers.insert(ETAG, entity_tag::of(digest));
    reply
}
