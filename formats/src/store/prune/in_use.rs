//! [`InUse`]: images that others, whom the metadata does not know, stand on.

use std::collections::BTreeMap;

use rusqlite::{Connection, params};

use super::super::metadata::{parsed, rows, text};
use crate::digest::Digest;

/// Manifests in use, each with who uses it, such as ``container `web` ``. A container that runs says so in its own
/// folder: starting it should not cost a write to the metadata.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct InUse(BTreeMap<Digest, String>);

impl InUse {
    /// Whether nothing is.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the manifest itself is.
    pub fn contains(&self, manifest: &Digest) -> bool {
        self.0.contains_key(manifest)
    }

    /// Who uses a manifest, or a variant that it lists, through however many indexes.
    pub(in crate::store) fn holder(
        &self,
        connection: &Connection,
        repository: i64,
        manifest: &Digest,
    ) -> rusqlite::Result<Option<&str>> {
        let sql = "WITH RECURSIVE variant (digest) AS (
                       SELECT target FROM reference
                       WHERE repository_id = ?1 AND manifest = ?2 AND kind = 'manifest'
                       UNION
                       SELECT reference.target FROM reference JOIN variant ON reference.manifest = variant.digest
                       WHERE reference.repository_id = ?1 AND reference.kind = 'manifest')
                   SELECT digest FROM variant";
        let variants: Vec<Digest> =
            rows(connection, sql, params![repository, text(manifest)], |row| parsed(row, 0))?;
        let held = std::iter::once(manifest).chain(&variants).find_map(|digest| self.0.get(digest));
        Ok(held.map(String::as_str))
    }
}

impl FromIterator<(Digest, String)> for InUse {
    fn from_iter<T: IntoIterator<Item = (Digest, String)>>(users: T) -> InUse {
        InUse(users.into_iter().collect())
    }
}
