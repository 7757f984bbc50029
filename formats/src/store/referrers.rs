//! Referrers: the manifests that name another one as their `subject` (distribution-spec, *Listing Referrers*).
//!
//! What clients published by the older tag schema, an index under the tag `<alg>-<hex>` of the subject, is
//! listed too: a registry that enables the API must go on serving it.

use std::collections::BTreeMap;

use rusqlite::params;

use super::error::StoreError;
use super::metadata::{from_sql, parsed, rows, text};
use super::repository::Repository;
use crate::descriptor::Descriptor;
use crate::digest::Digest;
use crate::manifest::ManifestOrIndex;
use crate::reference::Tag;

impl Repository {
    /// Descriptors of what refers to `subject`, by digest, with artifact type and annotations; only those of
    /// `artifact_type` if given. The subject itself need not exist.
    pub fn referrers(
        &self,
        subject: &Digest,
        artifact_type: Option<&str>,
    ) -> Result<Vec<Descriptor>, StoreError> {
        let mut found = self.referrer_rows(subject)?;
        for descriptor in self.tagged_referrers(subject)? {
            found.entry(descriptor.digest).or_insert(descriptor);
        }
        let wanted = |descriptor: &Descriptor| {
            artifact_type.is_none_or(|wanted| descriptor.artifact_type.as_deref() == Some(wanted))
        };
        Ok(found.into_values().filter(wanted).collect())
    }

    fn referrer_rows(&self, subject: &Digest) -> Result<BTreeMap<Digest, Descriptor>, StoreError> {
        self.read("list referrers", |connection, id| {
            let sql = "SELECT media_type, digest, size, artifact_type, annotations FROM manifest
                       WHERE repository_id = ?1 AND subject = ?2 ORDER BY digest";
            let found = rows(connection, sql, params![id, text(subject)], |row| {
                let (media_type, annotations): (String, String) = (row.get(0)?, row.get(4)?);
                let mut descriptor = Descriptor::new(&media_type, parsed(row, 1)?, from_sql(row.get(2)?));
                descriptor.artifact_type = row.get(3)?;
                // The column is written by this program; were it not JSON, a listing could still be useful.
                descriptor.annotations = serde_json::from_str(&annotations).unwrap_or_default();
                Ok((descriptor.digest, descriptor))
            });
            Ok(found.map_err(StoreError::sql("list referrers"))?.into_iter().collect())
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

/// The tag under which clients of old keep an index of a manifest's referrers (distribution-spec, *Referrers Tag
/// Schema*): the algorithm cut to 32 and the digits cut to 64 characters, joined by a hyphen.
pub fn fallback_tag(subject: &Digest) -> Tag {
    let mut hex = subject.hex();
    hex.truncate(64);
    format!("{}-{hex}", subject.algorithm()).parse().expect("algorithm and hex digits make a valid tag")
}
