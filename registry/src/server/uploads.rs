//! Uploads (end-4, 5, 6, 11, 13 and 14): how a blob comes in, in one request or in many.
//!
//! A session is a suspended ingest of the store; between two requests nothing of it is in memory. Each request
//! that brings bytes runs as a task of its own, not as part of its connection: when the connection breaks, the
//! task still writes what has arrived and puts the ingest aside, and the next request goes on at that byte.

use std::sync::Arc;

use axum::http::StatusCode;
use axum::http::header::{CONTENT_RANGE, HeaderName, HeaderValue, LOCATION, RANGE};
use axum::response::IntoResponse;
use rimg_formats::digest::{Algorithm, Digest};
use rimg_formats::reference::{ImageName, RepositoryName};
use rimg_formats::store::{Expect, Ingest, Repository, Store, StoreError, UploadId};
use tokio::time::Instant;

use super::State;
use super::access::{Action, Caller};
use super::error::{ApiError, Code};
use super::limits::{TAKE_OVER_PAUSE, TAKE_OVER_TIMEOUT};
use super::places::Place;
use super::range::{self, Chunk};
use super::receive::{self, Allowance};
use super::service::{Call, Reply, set_digest, set_location};

const UPLOAD_UUID: HeaderName = HeaderName::from_static("docker-upload-uuid");

/// POST: mounts a blob, receives one whole, or opens a session.
pub(super) async fn start(state: &Arc<State>, name: RepositoryName, call: Call) -> Result<Reply, ApiError> {
    match plan(&call) {
        Err(refused) => {
            receive::refuse_body(&call.headers, call.body).await;
            Err(refused)
        }
        Ok(Start::Mount { digest, source }) => {
            receive::ignore(state, &call.headers, call.body).await?;
            match mount(state, &name, digest, source, &call.caller).await? {
                Some(reply) => Ok(reply),
                None => open(state, name, digest.algorithm()).await,
            }
        }
        Ok(Start::Session(algorithm)) => {
            receive::ignore(state, &call.headers, call.body).await?;
            open(state, name, algorithm).await
        }
        Ok(Start::Whole(digest)) => {
            in_task(state, call, |state, call, place| receive_whole(state, name, digest, call, place)).await
        }
    }
}

/// What a POST asks for.
enum Start {
    Mount { digest: Digest, source: Option<RepositoryName> },
    Whole(Digest),
    Session(Algorithm),
}

fn plan(call: &Call) -> Result<Start, ApiError> {
    if let Some(digest) = call.query.get("mount") {
        let source = call.query.get("from").filter(|source| !source.is_empty());
        let source = source.map(str::parse).transpose()?;
        return Ok(Start::Mount { digest: digest.parse()?, source });
    }
    if let Some(digest) = call.query.get("digest") {
        let digest: Digest = digest.parse()?;
        // Some clients name the digest and send the content later: declining with a session serves them.
        let empty = call.content_length() == Some(0) && digest != Digest::of(digest.algorithm(), b"");
        return Ok(if empty { Start::Session(digest.algorithm()) } else { Start::Whole(digest) });
    }
    match call.query.get("digest-algorithm") {
        None => Ok(Start::Session(Algorithm::Sha256)),
        Some(algorithm) => Ok(Start::Session(algorithm.parse()?)),
    }
}

/// Gives the repository a blob that another has; `None` when the client has to send it. Which of the reasons
/// holds (no such blob, no right to read it) is not told.
async fn mount(
    state: &Arc<State>,
    name: &RepositoryName,
    digest: Digest,
    source: Option<RepositoryName>,
    caller: &Caller,
) -> Result<Option<Reply>, ApiError> {
    let sources = match source {
        Some(source) => vec![source],
        None if !state.options.allow_anonymous_mount => Vec::new(),
        None => state.run(move |store| readable_sources(store, &digest)).await?,
    };
    for source in sources {
        if !caller.may(Action::Pull, &source) {
            continue;
        }
        let target = ImageName::from(name.clone());
        let mounted = move |store: &Store| store.repository(&target).mount_blob(&digest, &source.into());
        if state.run(mounted).await? {
            return Ok(Some(created(name, &digest)));
        }
    }
    Ok(None)
}

/// Served repositories that have a blob.
fn readable_sources(store: &Store, digest: &Digest) -> Result<Vec<RepositoryName>, StoreError> {
    /// Repositories tried: base layers are in many, and the first readable one will do.
    const SOURCES_MAX: usize = 100;
    let names = store.repositories_with_blob(digest, SOURCES_MAX)?;
    Ok(names.iter().filter_map(ImageName::as_repository).collect())
}

/// Opens a session.
async fn open(state: &Arc<State>, name: RepositoryName, algorithm: Algorithm) -> Result<Reply, ApiError> {
    let limit = state.options.limits.sessions_per_repository;
    let repository = ImageName::from(name.clone());
    let opened = move |store: &Store| -> Result<UploadId, ApiError> {
        if store.upload_count(&repository)? >= limit {
            return Err(ApiError::too_many("this repository has too many unfinished uploads; cancel some"));
        }
        Ok(store.repository(&repository).ingest_with(algorithm)?.suspend()?)
    };
    let id = state.run(opened).await?;
    Ok(progress(StatusCode::ACCEPTED, &name, &id, 0))
}

/// PATCH: appends a chunk.
pub(super) async fn append(
    state: &Arc<State>,
    name: RepositoryName,
    id: String,
    call: Call,
) -> Result<Reply, ApiError> {
    in_task(state, call, |state, call, place| async move {
        let target = Target::of(&state, &name, &id, &call);
        let Received { ingest, id, outcome } = receive(&state, target, call).await?;
        let length = ingest.len();
        // Put aside first: what arrived is kept, whatever became of the rest.
        state.run(move |_| ingest.suspend()).await?;
        drop(place);
        outcome.map(|()| progress(StatusCode::ACCEPTED, &name, &id, length))
    })
    .await
}

/// PUT: appends what the request brings and closes the session.
pub(super) async fn finish(
    state: &Arc<State>,
    name: RepositoryName,
    id: String,
    call: Call,
) -> Result<Reply, ApiError> {
    in_task(state, call, |state, call, place| async move {
        let digest = match closing_digest(&call) {
            Ok(digest) => digest,
            Err(refused) => {
                receive::refuse_body(&call.headers, call.body).await;
                return Err(refused);
            }
        };
        let target = Target::of(&state, &name, &id, &call);
        let Received { ingest, outcome, .. } = receive(&state, target, call).await?;
        if outcome.is_err() {
            state.run(move |_| ingest.suspend()).await?;
            outcome?;
        } else {
            commit(&state, ingest, digest).await?;
        }
        drop(place);
        Ok(created(&name, &digest))
    })
    .await
}

fn closing_digest(call: &Call) -> Result<Digest, ApiError> {
    let missing = || ApiError::bad_request(Code::DigestInvalid, "closing an upload needs `?digest=`");
    Ok(call.query.get("digest").ok_or_else(missing)?.parse()?)
}

/// GET: how much has arrived.
pub(super) async fn status(state: &Arc<State>, name: RepositoryName, id: String) -> Result<Reply, ApiError> {
    let id = parse_id(&id)?;
    let repository = ImageName::from(name.clone());
    let length = match state.sessions.progress(&id, &repository) {
        Some(length) => length,
        None => {
            let record = state.run(move |store| store.upload(&id)).await?;
            record.filter(|record| record.repository == Some(repository)).ok_or_else(unknown)?.size
        }
    };
    Ok(progress(StatusCode::NO_CONTENT, &name, &id, length))
}

/// DELETE: gives the session up.
pub(super) async fn cancel(state: &Arc<State>, name: RepositoryName, id: String) -> Result<Reply, ApiError> {
    let id = parse_id(&id)?;
    let repository = ImageName::from(name);
    state.run(move |store| store.repository(&repository).resume(&id)?.cancel()).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Runs the part of a request that brings bytes as a task of its own.
async fn in_task<F>(
    state: &Arc<State>,
    call: Call,
    work: impl FnOnce(Arc<State>, Call, Place) -> F,
) -> Result<Reply, ApiError>
where
    F: Future<Output = Result<Reply, ApiError>> + Send + 'static,
{
    match state.sessions.admit(call.caller.peer.ip()) {
        Ok(place) => tokio::spawn(work(state.clone(), call, place)).await.map_err(ApiError::internal)?,
        Err(refused) => {
            receive::refuse_body(&call.headers, call.body).await;
            Err(refused)
        }
    }
}

/// A single POST with the whole content. A broken one leaves nothing: nobody was told an id to go on with.
async fn receive_whole(
    state: Arc<State>,
    name: RepositoryName,
    digest: Digest,
    call: Call,
    place: Place,
) -> Result<Reply, ApiError> {
    let repository = ImageName::from(name.clone());
    let ingest =
        state.run(move |store| store.repository(&repository).ingest_with(digest.algorithm())).await?;
    let at_most = state.options.limits.blob_bytes;
    let (ingest, outcome) = fill(&state, ingest, call, Allowance { exact: None, at_most, skip: 0 }).await?;
    outcome?;
    commit(&state, ingest, digest).await?;
    drop(place);
    Ok(created(&name, &digest))
}

async fn commit(state: &State, ingest: Ingest, digest: Digest) -> Result<(), ApiError> {
    // Under another algorithm than the session was opened with, the content has to be read again.
    let long = ingest.algorithm() != digest.algorithm();
    let work = move |_: &Store| ingest.commit(Some(&Expect::from(digest)));
    let committed = if long { state.run_long(work).await } else { state.run(work).await };
    committed.map(|_| ())
}

/// The session that a request writes to, and where in it.
struct Target {
    repository: Result<Repository, ApiError>,
    name: RepositoryName,
    id: String,
    chunk: Result<Option<Chunk>, ApiError>,
}

impl Target {
    fn of(state: &State, name: &RepositoryName, id: &str, call: &Call) -> Target {
        Target {
            repository: Ok(state.store.repository(&ImageName::from(name.clone()))),
            name: name.clone(),
            id: id.to_owned(),
            chunk: announced_chunk(call),
        }
    }
}

/// What `Content-Range` says, if it is there; docker and podman stream without it.
fn announced_chunk(call: &Call) -> Result<Option<Chunk>, ApiError> {
    let Some(header) = call.headers.get(CONTENT_RANGE) else { return Ok(None) };
    let chunk = header.to_str().ok().and_then(range::chunk).ok_or_else(|| {
        ApiError::bad_request(Code::BlobUploadInvalid, "`Content-Range` must be `<start>-<end>`")
    })?;
    match call.content_length() {
        Some(length) if length != chunk.length => {
            let message = format!("`Content-Length` is {length}, `Content-Range` says {}", chunk.length);
            Err(ApiError::bad_request(Code::SizeInvalid, message))
        }
        _ => Ok(Some(chunk)),
    }
}

/// An ingest with what a request has brought, and what became of the request.
struct Received {
    ingest: Ingest,
    id: UploadId,
    outcome: Result<(), ApiError>,
}

async fn receive(state: &Arc<State>, target: Target, call: Call) -> Result<Received, ApiError> {
    let taken = match (target.repository, parse_id(&target.id), target.chunk) {
        (Ok(repository), Ok(id), Ok(chunk)) => {
            resume(state, repository, id, chunk).await.map(|resumed| (resumed, id, chunk))
        }
        (Err(refused), _, _) | (_, Err(refused), _) | (_, _, Err(refused)) => Err(refused),
    };
    let (Resumed { ingest, taken_over }, id, chunk) = match taken {
        Ok(taken) => taken,
        Err(refused) => {
            receive::refuse_body(&call.headers, call.body).await;
            return Err(refused);
        }
    };
    match allowance(state, &ingest, taken_over, chunk, &call) {
        Ok(allowance) => {
            let (ingest, outcome) = fill(state, ingest, call, allowance).await?;
            Ok(Received { ingest, id, outcome })
        }
        Err(refused) => {
            receive::refuse_body(&call.headers, call.body).await;
            let refused = match refused.status {
                StatusCode::RANGE_NOT_SATISFIABLE => with_place(refused, &target.name, &id, ingest.len()),
                _ => refused,
            };
            Ok(Received { ingest, id, outcome: Err(refused) })
        }
    }
}

/// A session that was taken up.
struct Resumed {
    ingest: Ingest,
    /// Whether from another request.
    taken_over: bool,
}

/// Takes the session up. A chunk that says where it belongs gets it even from a writer that is still there: its client
/// has given that connection up, and the server may not hear of it for a minute. Chunks that do not say so
/// could end up in the wrong place, and have to come back.
async fn resume(
    state: &State,
    repository: Repository,
    id: UploadId,
    chunk: Option<Chunk>,
) -> Result<Resumed, ApiError> {
    let (end, mut taken_over) = (Instant::now() + TAKE_OVER_TIMEOUT, false);
    loop {
        let taken = repository.clone();
        let resumed = state.run(move |_| Ok::<_, ApiError>(taken.resume(&id))).await?;
        match resumed {
            Err(StoreError::UploadBusy(_)) if chunk.is_some() && Instant::now() < end => {
                if !state.sessions.stop(&id, repository.name()) {
                    return Err(unknown());
                }
                taken_over = true;
                tokio::time::sleep(TAKE_OVER_PAUSE).await;
            }
            Ok(ingest) => return Ok(Resumed { ingest, taken_over }),
            Err(error) => return Err(error.into()),
        }
    }
}

/// How much a request may append; refuses a chunk that does not begin where the last one ended. From a session that
/// was taken over its client cannot know where that was: what it sends twice is skipped, and the digest decides.
fn allowance(
    state: &State,
    ingest: &Ingest,
    taken_over: bool,
    chunk: Option<Chunk>,
    call: &Call,
) -> Result<Allowance, ApiError> {
    let length = ingest.len();
    let skip = chunk.map_or(0, |chunk| length.saturating_sub(chunk.start));
    let fits =
        |chunk: &Chunk| chunk.start == length || (taken_over && chunk.start < length && skip <= chunk.length);
    if let Some(chunk) = chunk.filter(|chunk| !fits(chunk)) {
        let message = format!("the next byte is {length}, the chunk begins at {}", chunk.start);
        return Err(ApiError::new(StatusCode::RANGE_NOT_SATISFIABLE, Code::BlobUploadInvalid, message));
    }
    let at_most = state.options.limits.blob_bytes.saturating_sub(length).saturating_add(skip);
    let announced = chunk.map(|chunk| chunk.length).or(call.content_length());
    if announced.is_some_and(|announced| announced > at_most) {
        return Err(receive::too_large());
    }
    Ok(Allowance { exact: chunk.map(|chunk| chunk.length), at_most, skip })
}

async fn fill(
    state: &State,
    ingest: Ingest,
    call: Call,
    allowance: Allowance,
) -> Result<(Ingest, Result<(), ApiError>), ApiError> {
    let writing = state.sessions.enter(&ingest);
    match receive::into_ingest(state, ingest, call.body, allowance, &writing).await {
        (Some(ingest), outcome) => Ok((ingest, outcome)),
        (None, outcome) => Err(outcome.err().unwrap_or_else(|| ApiError::internal("an ingest was lost"))),
    }
}

fn parse_id(id: &str) -> Result<UploadId, ApiError> {
    id.parse().map_err(|_| unknown())
}

fn unknown() -> ApiError {
    ApiError::not_found(Code::BlobUploadUnknown, "no such upload: it was finished, cancelled or has expired")
}

/// 201 for a blob.
fn created(name: &RepositoryName, digest: &Digest) -> Reply {
    let mut reply = StatusCode::CREATED.into_response();
    set_location(&mut reply, &format!("/v2/{name}/blobs/{digest}"));
    set_digest(&mut reply, digest);
    reply
}

/// An answer that says where a session stands.
fn progress(status: StatusCode, name: &RepositoryName, id: &UploadId, length: u64) -> Reply {
    let mut reply = status.into_response();
    for (header, value) in place(name, id, length) {
        reply.headers_mut().insert(header, value);
    }
    reply
}

fn with_place(refused: ApiError, name: &RepositoryName, id: &UploadId, length: u64) -> ApiError {
    place(name, id, length)
        .into_iter()
        .fold(refused, |refused, (header, value)| refused.with_header(header, value))
}

/// `Range` counts inclusively, so nothing at all reads like one byte; that is how registries have always put it,
/// and clients that resume begin again at 0 when they read it.
fn place(name: &RepositoryName, id: &UploadId, length: u64) -> [(HeaderName, HeaderValue); 3] {
    let value = |text: String| HeaderValue::try_from(text).expect("names, ids and numbers are ASCII");
    [
        (LOCATION, value(format!("/v2/{name}/blobs/uploads/{id}"))),
        (RANGE, value(format!("0-{}", length.saturating_sub(1)))),
        (UPLOAD_UUID, value(id.to_string())),
    ]
}
