//! Referrers: the manifests that name another one as their `subject` (distribution-spec, *Listing Referrers*).
//!
//! What clients published by the older tag schema, an index under the tag `<alg>-<hex>` of the subject, is
//! listed too: a registry that enables the API must go on serving it.
//!
//! A listing is filtered and cut by the query, row by row: annotations, of which a manifest may have four megabytes, are
//! read for the entries of one page only, and are passed on as the text that they are.

use std::iter::Peekable;

use rusqlite::{Connection, params};
use serde::de::IgnoredAny;

use super::error::StoreError;
use super::metadata::{first, from_sql, parsed, rows, text};
use super::repository::Repository;
use crate::descriptor::Descriptor;
use crate::digest::Digest;
use crate::manifest::ManifestOrIndex;
use crate::reference::Tag;

/// Bytes of an entry beside its descriptor and its annotations: the comma and the name of the field.
const ENTRY_EXTRA_BYTES: usize = ",\"annotations\":,".len();

/// Which referrers a page lists.
#[derive(Clone, Debug)]
pub struct ReferrersQuery {
    /// What they refer to. Need not exist.
    pub subject: Digest,
    /// Only those of this artifact type.
    pub artifact_type: Option<String>,
    /// Only those behind this digest.
    pub after: Option<Digest>,
    /// Bytes of the page's entries together.
    pub bytes_max: usize,
    /// Whether a first entry larger than that is listed all the same: a listing without progress has no end.
    pub at_least_one: bool,
}

/// A page of a listing of referrers, in the order of their digests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReferrersPage {
    /// Descriptors as JSON, with artifact type and annotations.
    pub entries: Vec<String>,
    /// The digest of the last entry.
    pub last: Option<Digest>,
    /// Whether there are more behind it.
    pub more: bool,
}

impl Repository {
    /// All referrers of `subject`, without annotations.
    pub fn referrers(&self, subject: &Digest) -> Result<Vec<Descriptor>, StoreError> {
        let mut found = self.read("list referrers", |connection, id| {
            let sql =
                "SELECT media_type, digest, size FROM manifest WHERE repository_id = ?1 AND subject = ?2";
            let found = rows(connection, sql, params![id, text(subject)], |row| {
                Ok(Descriptor::new(&row.get::<_, String>(0)?, parsed(row, 1)?, from_sql(row.get(2)?)))
            });
            found.map_err(StoreError::sql("list referrers"))
        })?;
        found.extend(self.tagged_referrers(subject)?.into_iter().map(|mut descriptor| {
            descriptor.annotations.clear();
            descriptor
        }));
        found.sort_by_key(|descriptor| descriptor.digest);
        found.dedup_by_key(|descriptor| descriptor.digest);
        Ok(found)
    }

    /// One page of the referrers. An unknown subject has none.
    pub fn referrers_page(&self, query: &ReferrersQuery) -> Result<ReferrersPage, StoreError> {
        let tag = fallback_tag(&query.subject);
        let index = self.resolve(&tag)?;
        if let Some(index) = &index
            && !query.at_least_one
            && self.store.blob_size(index)?.is_some_and(|size| size > query.bytes_max as u64)
        {
            // Too much to read for a page of that size.
            return Ok(ReferrersPage { more: true, ..ReferrersPage::default() });
        }
        let mut tagged = match index {
            Some(_) => self.tagged_referrers(&query.subject)?,
            None => Vec::new(),
        };
        tagged.retain(|descriptor| query.lists(descriptor));
        tagged.sort_by_key(|descriptor| descriptor.digest);
        tagged.dedup_by_key(|descriptor| descriptor.digest);
        self.read("list referrers", |connection, id| {
            fill_page(connection, id, query, tagged.into_iter().peekable())
        })
    }

    /// What the index under the subject's fallback tag lists.
    fn tagged_referrers(&self, subject: &Digest) -> Result<Vec<Descriptor>, StoreError> {
        let Some(digest) = self.resolve(&fallback_tag(subject))? else { return Ok(Vec::new()) };
        match self.manifest(&digest)?.parse()? {
            ManifestOrIndex::Index(index) => Ok(index.manifests().to_vec()),
            ManifestOrIndex::Manifest(_) => Ok(Vec::new()),
        }
    }
}

impl ReferrersQuery {
    fn lists(&self, descriptor: &Descriptor) -> bool {
        self.after.is_none_or(|after| descriptor.digest > after)
            && self
                .artifact_type
                .as_ref()
                .is_none_or(|wanted| descriptor.artifact_type.as_ref() == Some(wanted))
    }
}

impl ReferrersPage {
    /// Whether an entry of so many bytes is still due; if not, there is more.
    fn has_room(&mut self, query: &ReferrersQuery, used: usize, bytes: usize) -> bool {
        let fits = used.saturating_add(bytes) <= query.bytes_max;
        let has_room = fits || (query.at_least_one && self.entries.is_empty());
        self.more = !has_room;
        has_room
    }
}

/// Merges the rows with `tagged`, both in the order of their digests, until the page is full.
fn fill_page(
    connection: &Connection,
    id: Option<i64>,
    query: &ReferrersQuery,
    mut tagged: Peekable<impl Iterator<Item = Descriptor>>,
) -> Result<ReferrersPage, StoreError> {
    let failed = || StoreError::sql("list referrers");
    // The length is known without reading the annotations.
    let sql =
        "SELECT digest, media_type, size, artifact_type, octet_length(annotations), annotations FROM manifest
               WHERE repository_id = ?1 AND subject = ?2 AND digest > ?3
               AND (?4 IS NULL OR artifact_type = ?4) ORDER BY digest";
    let mut statement = connection.prepare_cached(sql).map_err(failed())?;
    let after = query.after.as_ref().map(text).unwrap_or_default();
    let mut listed =
        statement.query(params![id, text(&query.subject), after, query.artifact_type]).map_err(failed())?;
    let (mut page, mut used) = (ReferrersPage::default(), 0);
    loop {
        let row = listed.next().map_err(failed())?;
        let digest: Option<Digest> = row.map(|row| parsed(row, 0)).transpose().map_err(failed())?;
        while let Some(other) = tagged.next_if(|other| digest.is_none_or(|digest| other.digest < digest)) {
            if is_row(connection, id, &query.subject, &other.digest)? {
                continue;
            }
            let entry = serde_json::to_string(&other).expect("a descriptor serialises");
            let bytes = entry.len() + ENTRY_EXTRA_BYTES;
            if !page.has_room(query, used, bytes) {
                return Ok(page);
            }
            used += bytes;
            page.last = Some(other.digest);
            page.entries.push(entry);
        }
        let (Some(row), Some(digest)) = (row, digest) else { return Ok(page) };
        tagged.next_if(|other| other.digest == digest);
        let annotations_bytes = from_sql(row.get(4).map_err(failed())?);
        let descriptor = row_descriptor(row, digest).map_err(failed())?;
        let entry = serde_json::to_string(&descriptor).expect("a descriptor serialises");
        let annotations_bytes = usize::try_from(annotations_bytes).unwrap_or(usize::MAX);
        let bytes = annotations_bytes.saturating_add(entry.len() + ENTRY_EXTRA_BYTES);
        if !page.has_room(query, used, bytes) {
            return Ok(page);
        }
        used += bytes;
        page.last = Some(digest);
        page.entries.push(with_annotations(entry, &row.get::<_, String>(5).map_err(failed())?));
    }
}

fn row_descriptor(row: &rusqlite::Row<'_>, digest: Digest) -> rusqlite::Result<Descriptor> {
    let mut descriptor = Descriptor::new(&row.get::<_, String>(1)?, digest, from_sql(row.get(2)?));
    descriptor.artifact_type = row.get(3)?;
    Ok(descriptor)
}

/// Whether a manifest here names `subject` itself: what it says then counts, not what the tag's index says of it.
fn is_row(
    connection: &Connection,
    id: Option<i64>,
    subject: &Digest,
    digest: &Digest,
) -> Result<bool, StoreError> {
    let sql = "SELECT 1 FROM manifest WHERE repository_id = ?1 AND digest = ?2 AND subject = ?3";
    let found = first(connection, sql, params![id, text(digest), text(subject)], |_| Ok(()));
    Ok(found.map_err(StoreError::sql("list referrers"))?.is_some())
}

/// Adds the column's text to a descriptor's. This program writes the column; were it not an object, the listing would
/// still be useful without it.
fn with_annotations(mut descriptor: String, annotations: &str) -> String {
    let is_object = annotations.starts_with('{') && serde_json::from_str::<IgnoredAny>(annotations).is_ok();
    if is_object && annotations != "{}" && descriptor.pop() == Some('}') {
        descriptor.push_str(",\"annotations\":");
        descriptor.push_str(annotations);
        descriptor.push('}');
    }
    descriptor
}

/// The tag under which clients of old keep an index of a manifest's referrers (distribution-spec, *Referrers Tag
/// Schema*): the algorithm cut to 32 and the digits cut to 64 characters, joined by a hyphen.
pub fn fallback_tag(subject: &Digest) -> Tag {
    let mut hex = subject.hex();
    hex.truncate(64);
    format!("{}-{hex}", subject.algorithm()).parse().expect("algorithm and hex digits make a valid tag")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::manifest::{Index, Manifest};
    use crate::media_type::{OCI_EMPTY, OCI_MANIFEST};
    use crate::store::{PutOptions, Store};

    /// A repository with referrers that have `bytes` of annotations each, every third of type `a/b`.
    fn repository(store: &Store, subject: Digest, count: usize, bytes: usize) -> Repository {
        let repository = store.repository(&"r".parse().unwrap());
        let config = store.put_bytes(b"{}").unwrap();
        for number in 0..count {
            let artifact_type = if number % 3 == 0 { "a/b" } else { "c/d" };
            let manifest = serde_json::json!({
                "schemaVersion": 2, "mediaType": OCI_MANIFEST, "artifactType": artifact_type,
                "config": Descriptor::new(OCI_EMPTY, config.digest, 2), "layers": [],
                "subject": Descriptor::new(OCI_MANIFEST, subject, 7),
                "annotations": {"n": number.to_string(), "fill": "x".repeat(bytes)},
            });
            repository
                .put_manifest(manifest.to_string().as_bytes(), None, &[], &PutOptions::local())
                .unwrap();
        }
        repository
    }

    fn query(subject: Digest, bytes_max: usize) -> ReferrersQuery {
        ReferrersQuery { subject, artifact_type: None, after: None, bytes_max, at_least_one: true }
    }

    /// All pages; the digests of their entries.
    fn all(repository: &Repository, mut query: ReferrersQuery) -> Vec<Digest> {
        let mut seen = Vec::new();
        loop {
            let page = repository.referrers_page(&query).unwrap();
            let bytes: usize = page.entries.iter().map(String::len).sum();
            assert!(bytes <= query.bytes_max || page.entries.len() == 1);
            for entry in &page.entries {
                let descriptor: Descriptor = serde_json::from_str(entry).unwrap();
                seen.push(descriptor.digest);
            }
            assert_eq!(page.last.as_ref(), page.entries.last().and(seen.last()));
            if !page.more {
                return seen;
            }
            query.after = page.last;
        }
    }

    #[test]
    fn pages_hold_everything_once_and_stay_small() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let subject = Digest::sha256(b"subject");
        let repository = repository(&store, subject, 40, 50_000);
        let expected: Vec<Digest> =
            repository.referrers(&subject).unwrap().iter().map(|descriptor| descriptor.digest).collect();
        assert_eq!(expected.len(), 40);
        for bytes_max in [1, 60_000, 400_000, 100 << 20] {
            assert_eq!(all(&repository, query(subject, bytes_max)), expected, "{bytes_max}");
        }
        let small = ReferrersQuery { at_least_one: false, ..query(subject, 1000) };
        let page = repository.referrers_page(&small).unwrap();
        assert_eq!(page, ReferrersPage { more: true, ..ReferrersPage::default() });
    }

    #[test]
    fn a_filter_is_part_of_the_query_and_annotations_come_along() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let subject = Digest::sha256(b"subject");
        let repository = repository(&store, subject, 9, 10);
        let filtered = ReferrersQuery { artifact_type: Some("a/b".to_owned()), ..query(subject, 1 << 20) };
        let page = repository.referrers_page(&filtered).unwrap();
        assert_eq!((page.entries.len(), page.more), (3, false));
        let entry: serde_json::Value = serde_json::from_str(&page.entries[0]).unwrap();
        assert_eq!((&entry["artifactType"], &entry["mediaType"]), (&"a/b".into(), &OCI_MANIFEST.into()));
        assert_eq!(entry["annotations"]["fill"], "x".repeat(10));
        // What does not match takes no room.
        let tight = ReferrersQuery {
            bytes_max: 3 * (page.entries[0].len() + ENTRY_EXTRA_BYTES),
            at_least_one: false,
            ..filtered
        };
        assert_eq!(repository.referrers_page(&tight).unwrap().entries.len(), 3);
        let other = query(Digest::sha256(b"other"), 1);
        assert_eq!(repository.referrers_page(&other).unwrap(), ReferrersPage::default());
    }

    #[test]
    fn the_index_of_the_fallback_tag_is_merged_in() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let subject = Digest::sha256(b"subject");
        let repository = repository(&store, subject, 6, 10);
        let own = repository.referrers(&subject).unwrap();
        let config = Descriptor::new(OCI_EMPTY, store.put_bytes(b"{}").unwrap().digest, 2);
        let mut tagged = vec![own[1].clone()];
        for number in 0..6u8 {
            let annotations = BTreeMap::from([("n".to_owned(), number.to_string())]);
            let manifest = Manifest::build(config.clone(), Vec::new(), annotations);
            repository.put_manifest(manifest.raw(), None, &[], &PutOptions::local()).unwrap();
            tagged.push(Descriptor { artifact_type: Some("e/f".to_owned()), ..manifest.descriptor() });
        }
        let index = Index::build(tagged, BTreeMap::new());
        repository.put_manifest(index.raw(), None, &[fallback_tag(&subject)], &PutOptions::local()).unwrap();
        let found = all(&repository, query(subject, 300));
        assert_eq!(found.len(), 12);
        assert!(found.is_sorted());
        let filtered = ReferrersQuery { artifact_type: Some("e/f".to_owned()), ..query(subject, 1 << 20) };
        assert_eq!(all(&repository, filtered).len(), 6);
        // The index itself may be too large to be read for a small page.
        let small = ReferrersQuery { at_least_one: false, ..query(subject, 100) };
        assert!(repository.referrers_page(&small).unwrap().more);
    }
}
