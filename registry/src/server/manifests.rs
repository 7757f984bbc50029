//! Manifests and their tags (end-3, end-7 and end-9).
//!
//! A manifest is answered as it was put, byte for byte and under its own media type, whatever `Accept` says: a
//! client that sent no or a narrow `Accept` is served better by the type it did not name than by a 404.

use std::sync::Arc;

use axum::http::StatusCode;
use axum::http::header::{CONTENT_TYPE, ETAG, HeaderMap, HeaderName, HeaderValue, IF_MATCH, IF_NONE_MATCH};
use axum::response::IntoResponse;
use bytes::Bytes;
use rimg_formats::manifest::MANIFEST_BYTES_MAX;
use rimg_formats::reference::{ImageName, RepositoryName, Tag};
use rimg_formats::store::{
    ManifestPut, Precondition, PutOptions, Repository, Require, Store, StoreError, StoredManifest,
};

use super::State;
use super::entity_tag::{self, EntityTags};
use super::error::{ApiError, Code};
use super::limits::TAGS_PER_PUT_MAX;
use super::query::Query;
use super::receive;
use super::route::Version;
use super::service::{Call, Reply, set_digest, set_location};

const OCI_SUBJECT: HeaderName = HeaderName::from_static("oci-subject");
const OCI_TAG: HeaderName = HeaderName::from_static("oci-tag");

/// GET and HEAD.
pub(super) async fn get(
    state: &Arc<State>,
    name: RepositoryName,
    version: Version,
    call: Call,
) -> Result<Reply, ApiError> {
    let repository = ImageName::from(name);
    let manifest = state.run(move |store| find(store, &repository, &version)).await?;
    let known = EntityTags::from(&call.headers, IF_NONE_MATCH)?;
    let mut reply = if known.is_some_and(|known| known.contains(&manifest.digest)) {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        Bytes::from_owner(manifest.raw).into_response()
    };
    set_digest(&mut reply, &manifest.digest);
    let headers = reply.headers_mut();
    headers.insert(ETAG, entity_tag::of(&manifest.digest));
    // Parsing has refused types that rimg does not know, and those are ASCII.
    headers.insert(CONTENT_TYPE, HeaderValue::try_from(manifest.media_type).map_err(ApiError::internal)?);
    Ok(reply)
}

fn find(store: &Store, name: &ImageName, version: &Version) -> Result<StoredManifest, StoreError> {
    let repository = store.repository(name);
    let digest = match version {
        Version::Digest(digest) => *digest,
        Version::Tag(tag) => repository.resolve(tag)?.ok_or_else(|| tag_unknown(name, tag))?,
    };
    repository.manifest(&digest)
}

fn tag_unknown(name: &ImageName, tag: &Tag) -> StoreError {
    StoreError::TagUnknown { name: name.clone(), tag: tag.clone() }
}

/// PUT: stores the manifest and moves its tags, all at once or not at all.
pub(super) async fn put(
    state: &Arc<State>,
    name: RepositoryName,
    version: Version,
    call: Call,
) -> Result<Reply, ApiError> {
    let plan = match Put::plan(state, &version, &call) {
        Ok(plan) => plan,
        Err(refused) => {
            receive::refuse_body(&call.headers, call.body).await;
            return Err(refused);
        }
    };
    let raw =
        receive::document(state, call.caller.peer.ip(), call.body, MANIFEST_BYTES_MAX, "a manifest").await?;
    let repository = ImageName::from(name.clone());
    let (put, tags) = state.run(move |store| plan.carry_out(&store.repository(&repository), &raw)).await?;
    let mut reply = StatusCode::CREATED.into_response();
    set_location(&mut reply, &format!("/v2/{name}/manifests/{}", put.digest));
    set_digest(&mut reply, &put.digest);
    let value = |text: String| HeaderValue::try_from(text).expect("digests and tags are ASCII");
    let headers = reply.headers_mut();
    headers.insert(ETAG, entity_tag::of(&put.digest));
    if let Some(subject) = put.subject {
        headers.insert(OCI_SUBJECT, value(subject.to_string()));
    }
    for tag in tags {
        headers.append(OCI_TAG, value(tag.to_string()));
    }
    Ok(reply)
}

/// What a PUT wants, as far as its head says.
struct Put {
    media_type: Option<String>,
    tags: Vec<Tag>,
    conditions: Conditions,
    options: PutOptions,
}

impl Put {
    fn plan(state: &State, version: &Version, call: &Call) -> Result<Put, ApiError> {
        if call.content_length().is_some_and(|length| length > MANIFEST_BYTES_MAX as u64) {
            return Err(receive::document_too_large(MANIFEST_BYTES_MAX, "a manifest"));
        }
        let mut options = PutOptions::registry();
        if state.options.allow_sparse_manifests {
            options.require = Require::Nothing;
        }
        if let Version::Digest(digest) = version {
            options.digest = Some(*digest);
        }
        Ok(Put {
            media_type: media_type(&call.headers)?,
            tags: tags(version, &call.query)?,
            conditions: Conditions::from(&call.headers)?,
            options,
        })
    }

    fn carry_out(mut self, repository: &Repository, raw: &[u8]) -> Result<(ManifestPut, Vec<Tag>), ApiError> {
        self.options.precondition = match self.tags.as_slice() {
            [] => self.conditions.on_manifest()?,
            [tag] => self.conditions.on_tag(repository, tag)?,
            _ => self.conditions.on_each_tag()?,
        };
        let put = repository.put_manifest(raw, self.media_type.as_deref(), &self.tags, &self.options)?;
        Ok((put, self.tags))
    }
}

/// `Content-Type` without parameters.
fn media_type(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let Some(value) = headers.get(CONTENT_TYPE) else { return Ok(None) };
    let malformed = |_| ApiError::bad_request(Code::ManifestInvalid, "`Content-Type` cannot be read");
    let text = value.to_str().map_err(malformed)?;
    Ok(text.split(';').next().map(|text| text.trim().to_ascii_lowercase()).filter(|text| !text.is_empty()))
}

/// The tag of the path, if it is one, and those of the query.
fn tags(version: &Version, query: &Query) -> Result<Vec<Tag>, ApiError> {
    let mut tags: Vec<Tag> = match version {
        Version::Tag(tag) => vec![tag.clone()],
        Version::Digest(_) => Vec::new(),
    };
    if query.all("tag").count() > TAGS_PER_PUT_MAX {
        let message = format!("at most {TAGS_PER_PUT_MAX} tags can be set at once");
        return Err(ApiError::new(StatusCode::URI_TOO_LONG, Code::ParameterInvalid, message));
    }
    for text in query.all("tag") {
        let tag = text.parse()?;
        if !tags.contains(&tag) {
            tags.push(tag);
        }
    }
    Ok(tags)
}

/// DELETE: a tag alone, or a manifest with every tag on it.
pub(super) async fn delete(
    state: &Arc<State>,
    name: RepositoryName,
    version: Version,
    call: Call,
) -> Result<Reply, ApiError> {
    let conditions = Conditions::from(&call.headers)?;
    let name = ImageName::from(name);
    let work = move |store: &Store| -> Result<(), ApiError> {
        let repository = store.repository(&name);
        match &version {
            Version::Tag(tag) => {
                let precondition = conditions.on_tag(&repository, tag)?;
                let deleted = repository.delete_tag(tag, precondition)?;
                deleted.map(|_| ()).ok_or_else(|| tag_unknown(&name, tag).into())
            }
            Version::Digest(digest) => match repository.delete_manifest(digest)? {
                true => Ok(()),
                false => Err(StoreError::ManifestUnknown { name, digest: *digest }.into()),
            },
        }
    };
    state.run(work).await?;
    Ok(StatusCode::ACCEPTED.into_response())
}

/// `If-Match` and `If-None-Match` of a request that changes something: compare-and-swap on tags.
struct Conditions {
    must_be: Option<EntityTags>,
    must_not_be: Option<EntityTags>,
}

impl Conditions {
    fn from(headers: &HeaderMap) -> Result<Conditions, ApiError> {
        Ok(Conditions {
            must_be: EntityTags::from(headers, IF_MATCH)?,
            must_not_be: EntityTags::from(headers, IF_NONE_MATCH)?,
        })
    }

    /// Looks at the tag now and pins what was seen: the store makes the change only if it still holds then.
    fn on_tag(&self, repository: &Repository, tag: &Tag) -> Result<Precondition, ApiError> {
        match (&self.must_be, &self.must_not_be) {
            (None, None) => return Ok(Precondition::None),
            (None, Some(EntityTags::Any)) => return Ok(Precondition::Absent),
            _ => {}
        }
        let current = repository.resolve(tag)?;
        let matches = |tags: &EntityTags| current.as_ref().is_some_and(|current| tags.contains(current));
        let holds =
            self.must_be.as_ref().is_none_or(matches) && !self.must_not_be.as_ref().is_some_and(matches);
        if !holds {
            let what = format!("tag {}:{tag}", repository.name());
            return Err(StoreError::PreconditionFailed { what, current }.into());
        }
        Ok(current.map_or(Precondition::Absent, Precondition::Is))
    }

    /// Several tags at once can only be required to be new, or all to name the same manifest.
    fn on_each_tag(&self) -> Result<Precondition, ApiError> {
        match (&self.must_be, &self.must_not_be) {
            (None, None) => Ok(Precondition::None),
            (None, Some(EntityTags::Any)) => Ok(Precondition::Absent),
            (Some(EntityTags::Digests(digests)), None) if digests.len() == 1 => {
                Ok(Precondition::Is(digests[0]))
            }
            _ => Err(ApiError::bad_request(
                Code::ParameterInvalid,
                "with several tags the condition must be `If-None-Match: *` or one digest in `If-Match`",
            )),
        }
    }

    /// Without tags the manifest itself is meant, which either is there or is not.
    fn on_manifest(&self) -> Result<Precondition, ApiError> {
        match (&self.must_be, &self.must_not_be) {
            (None, Some(EntityTags::Any)) => Ok(Precondition::Absent),
            _ => self.on_each_tag(),
        }
    }
}
