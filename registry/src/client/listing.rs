//! Lists: tags of a repository and repositories of a registry, page by page (distribution-spec, *Listing Tags*;
//! `_catalog` of the docker registry).

use std::collections::BTreeSet;

use reqwest::header::{HeaderMap, LINK};
use reqwest::{Method, Url};
use rimg_formats::reference::{RepositoryName, Tag};
use serde::Deserialize;

use super::endpoint;
use super::error::{ClientError, sanitise};
use super::session::{Access, Session};
use super::wire::{Request, protocol};

/// Largest page read: 10,000 of the longest tags fit.
const PAGE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Names asked for at once.
const PAGE_NAMES: usize = 1000;
/// Most pages followed, so that a server cannot lead in circles.
const PAGES_MAX: usize = 10_000;

#[derive(Deserialize)]
struct Page {
    #[serde(default)]
    tags: Option<Vec<String>>,
    #[serde(default)]
    repositories: Option<Vec<String>>,
}

/// The tags of `name`, sorted, at most `limit`. What is not a tag by its grammar is left out.
pub(super) async fn tags(
    session: &Session,
    name: &RepositoryName,
    limit: usize,
) -> Result<Vec<Tag>, ClientError> {
    let url = session.endpoint.tags(name);
    let found = list(session, &Access::pull(name), url, &format!("tags of {name}"), limit).await?;
    let tags: BTreeSet<Tag> = found.iter().filter_map(|tag| tag.parse().ok()).collect();
    Ok(tags.into_iter().take(limit).collect())
}

/// The repositories of a registry, at most `limit`.
pub(super) async fn catalog(session: &Session, limit: usize) -> Result<Vec<String>, ClientError> {
    let url = session.endpoint.catalog();
    let mut found = list(session, &Access::catalog(), url, "the list of repositories", limit).await?;
    found.truncate(limit);
    Ok(found.iter().map(|name| sanitise(name)).collect())
}

async fn list(
    session: &Session,
    access: &Access,
    mut url: Url,
    what: &str,
    limit: usize,
) -> Result<Vec<String>, ClientError> {
    url.query_pairs_mut().append_pair("n", &limit.clamp(1, PAGE_NAMES).to_string());
    let mut names = Vec::new();
    for _ in 0..PAGES_MAX {
        let response = session.send(access, &Request::new(Method::GET, url.clone(), what)).await?;
        let next = next_page(response.headers())
            .map(|link| endpoint::follow(&url, &link))
            .transpose()
            .map_err(|reason| protocol(&url, what, reason))?;
        let body = session.wire.read(response, what, PAGE_BYTES_MAX).await?;
        let page: Page =
            serde_json::from_slice(&body).map_err(|_| protocol(&url, what, "the list is not valid JSON"))?;
        let before = names.len();
        names.extend(page.tags.or(page.repositories).unwrap_or_default());
        match next {
            Some(next) if names.len() < limit && names.len() > before && next != url => url = next,
            _ => return Ok(names),
        }
    }
    Err(protocol(&url, what, format!("the list has more than {PAGES_MAX} pages")))
}

/// The target of `Link: <…>; rel="next"` (RFC 8288).
pub(super) fn next_page(headers: &HeaderMap) -> Option<String> {
    headers.get_all(LINK).iter().filter_map(|value| value.to_str().ok()).find_map(|value| {
        let mut rest = value;
        while let Some((_, opened)) = rest.split_once('<') {
            let (target, after) = opened.split_once('>')?;
            let parameters = after.split('<').next().unwrap_or("");
            let next = parameters.split([';', ',']).any(|parameter| {
                let relation = parameter.trim().to_ascii_lowercase();
                relation == "rel=next" || relation == "rel=\"next\""
            });
            if next {
                return Some(target.to_owned());
            }
            rest = after;
        }
        None
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn links_to_the_next_page() {
        let table = [
            (r#"</v2/a/tags/list?n=2&last=b>; rel="next""#, Some("/v2/a/tags/list?n=2&last=b")),
            (r#"</p>; rel="prev", </n>; title="x"; Rel=next"#, Some("/n")),
            (r#"</p>; rel="prev""#, None),
            ("nonsense", None),
            ("<unclosed; rel=next", None),
        ];
        for (text, expected) in table {
            let mut headers = HeaderMap::new();
            headers.insert(LINK, text.parse().unwrap());
            assert_eq!(next_page(&headers).as_deref(), expected, "{text}");
        }
    }
}
