//! Listings page by page: the tags of a repository (end-8), and the repositories (Docker's `_catalog`).

use std::sync::Arc;

use rimg_formats::reference::{ImageName, RepositoryName};
use rimg_formats::store::Store;
use serde_json::json;

use super::State;
use super::access::Action;
use super::error::{ApiError, Code};
use super::query::{Page, percent_encode};
use super::service::{Call, Reply, json, set_next};

/// GET: tags in byte order. A page costs what it shows, however many tags there are.
pub(super) async fn tags(state: &Arc<State>, name: RepositoryName, call: Call) -> Result<Reply, ApiError> {
    let Page { entries, after } = call.query.page()?;
    let after = after.map(str::to_owned);
    let repository = ImageName::from(name.clone());
    let found = move |store: &Store| -> Result<_, ApiError> {
        let repository = store.repository(&repository);
        // One more than asked for tells whether there is a next page.
        let tags = if entries == 0 { Vec::new() } else { repository.tags(after.as_deref(), entries + 1)? };
        if tags.is_empty() && !repository.exists()? {
            return Err(ApiError::not_found(
                Code::NameUnknown,
                format!("no repository {}", repository.name()),
            ));
        }
        Ok(tags)
    };
    let mut tags = state.run(found).await?;
    let more = tags.len() > entries;
    tags.truncate(entries);
    let names: Vec<&str> = tags.iter().map(|tag| tag.as_str()).collect();
    let mut reply = json(json!({ "name": name.as_str(), "tags": names }).to_string().into_bytes());
    if let Some(last) = names.last().filter(|_| more) {
        set_next(&mut reply, &format!("/v2/{name}/tags/list?n={entries}&last={}", percent_encode(last)));
    }
    Ok(reply)
}

/// GET: repositories in byte order, those that the caller may read. A page can be shorter than asked for; the
/// `Link` says whether there is more.
pub(super) async fn catalog(state: &Arc<State>, call: Call) -> Result<Reply, ApiError> {
    let Page { entries, after } = call.query.page()?;
    let after = after.map(str::to_owned);
    let found = move |store: &Store| match entries {
        0 => Ok(Vec::new()),
        _ => store.repositories(after.as_deref(), entries + 1),
    };
    let mut found = state.run(found).await?;
    let more = found.len() > entries;
    found.truncate(entries);
    // Names with a host and port belong to images pulled from there, and are not served.
    let served = found.iter().filter_map(ImageName::as_repository);
    let readable: Vec<RepositoryName> = served.filter(|name| call.caller.may(Action::Pull, name)).collect();
    let names: Vec<&str> = readable.iter().map(RepositoryName::as_str).collect();
    let mut reply = json(json!({ "repositories": names }).to_string().into_bytes());
    if let Some(last) = found.last().filter(|_| more) {
        set_next(&mut reply, &format!("/v2/_catalog?n={entries}&last={}", percent_encode(last.as_str())));
    }
    Ok(reply)
}
