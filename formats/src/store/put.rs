//! Putting manifests: the moment at which content becomes reachable.
//!
//! 1. The bytes are parsed, and every blob that they name is looked for on disk.
//! 2. The manifest itself becomes a blob, and the blob directories are fsynced: whatever the manifest names, whoever
//!    stored it, is on disk from here on.
//! 3. One durable transaction checks the precondition and (again, under the lock) that everything named is there,
//!    then writes the manifest, its references and its tags. A reader sees all of it or nothing.

use std::collections::BTreeSet;

use rusqlite::{Connection, Transaction, params};

use super::blob::blob_row;
use super::error::StoreError;
use super::metadata::{first, now, run, text, to_sql};
use super::registration::link;
use super::repository::{Repository, repository_id, set_tag_row};
use crate::descriptor::Descriptor;
use crate::digest::{Algorithm, Digest};
use crate::manifest::ManifestOrIndex;
use crate::media_type::MediaKind;
use crate::reference::Tag;

/// What a put requires of the content that the manifest names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Require {
    /// Blobs must have been pushed to, or mounted into, this repository: a registry's rule.
    BlobsInRepository,
    /// Blobs must be in the store; they become the repository's: for builds, pulls and loads.
    BlobsInStore,
    /// Blobs and manifests may be missing: for registries that accept *sparse* images.
    Nothing,
}

/// What must hold for a put or a tag change to happen at all (compare-and-swap).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Precondition {
    /// Nothing.
    #[default]
    None,
    /// Each tag (or, without tags, the manifest) does not exist yet.
    Absent,
    /// Each tag names this manifest at the moment.
    Is(Digest),
}

/// How to put a manifest.
#[derive(Clone, Debug)]
pub struct PutOptions {
    /// Where its blobs must be.
    pub require: Require,
    /// Whether an index may name manifests that are not there (image-spec: a *sparse* index).
    pub allow_sparse: bool,
    /// What must hold.
    pub precondition: Precondition,
    /// The digest it was announced by; decides the algorithm too. SHA-256 when `None`.
    pub digest: Option<Digest>,
}

impl PutOptions {
    /// For builds, pulls and loads.
    pub fn local() -> PutOptions {
        PutOptions {
            require: Require::BlobsInStore,
            allow_sparse: true,
            precondition: Precondition::None,
            digest: None,
        }
    }

    /// For pushes by clients.
    pub fn registry() -> PutOptions {
        PutOptions { require: Require::BlobsInRepository, allow_sparse: false, ..PutOptions::local() }
    }
}

/// What a put stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestPut {
    /// The manifest's digest.
    pub digest: Digest,
    /// Its media type.
    pub media_type: String,
    /// Its size in bytes.
    pub size: u64,
    /// The manifest it refers to, if any.
    pub subject: Option<Digest>,
}

impl Repository {
    /// Stores a manifest and points `tags` at it. Durable when it returns, with everything it names. Fails
    /// with [`StoreError::ContentMissing`] if something it names is not there, and changes nothing then.
    pub fn put_manifest(
        &self,
        raw: &[u8],
        media_type: Option<&str>,
        tags: &[Tag],
        options: &PutOptions,
    ) -> Result<ManifestPut, StoreError> {
        let document = ManifestOrIndex::parse(raw, media_type)?;
        let algorithm = options.digest.map_or(Algorithm::Sha256, |digest| digest.algorithm());
        let digest = Digest::of(algorithm, raw);
        if let Some(expected) = options.digest.filter(|expected| *expected != digest) {
            return Err(StoreError::DigestMismatch {
                expected: Box::new(expected),
                actual: Box::new(digest),
            });
        }
        let put = ManifestPut {
            digest,
            media_type: document.media_type().to_owned(),
            size: raw.len() as u64,
            subject: document.subject().map(|subject| subject.digest),
        };
        let mentions = mentions(&document);
        if options.require != Require::Nothing {
            self.check_files(&put.digest, &mentions)?;
        }
        let mut ingest = self.store.ingest_local()?;
        ingest.append(raw)?;
        ingest.commit(Some(&digest.into()))?;
        let algorithms = mentions.iter().map(|mention| mention.digest.algorithm()).chain([algorithm]);
        let algorithms: BTreeSet<Algorithm> = algorithms.collect();
        for algorithm in algorithms {
            self.store.blob_directory(algorithm).sync()?;
        }
        self.write("put a manifest", |transaction| {
            self.put_rows(transaction, &put, &document, &mentions, tags, options)
        })?;
        self.store.inner.manifests.put(digest, raw.into());
        Ok(put)
    }

    /// The files of what a manifest names, before anything is written. Whether they are still there is checked
    /// again under the lock; this finds files of the wrong size, which go to quarantine.
    fn check_files(&self, manifest: &Digest, mentions: &[Mention]) -> Result<(), StoreError> {
        let mut missing = Vec::new();
        for mention in
            mentions.iter().filter(|mention| matches!(mention.kind, MentionKind::Blob | MentionKind::Config))
        {
            if !self.store.has_file(&mention.digest)? {
                missing.push(mention.digest);
            }
        }
        if missing.is_empty() {
            Ok(())
        } else {
            Err(StoreError::ContentMissing { manifest: *manifest, missing })
        }
    }

    fn put_rows(
        &self,
        transaction: &Transaction<'_>,
        put: &ManifestPut,
        document: &ManifestOrIndex,
        mentions: &[Mention],
        tags: &[Tag],
        options: &PutOptions,
    ) -> Result<(), StoreError> {
        let id = repository_id(transaction, &self.name)?;
        self.check_precondition(transaction, id, tags, &put.digest, options.precondition)?;
        let missing = self.missing(transaction, id, mentions, options)?;
        if !missing.is_empty() {
            return Err(StoreError::ContentMissing { manifest: put.digest, missing });
        }
        let failed = || StoreError::sql("put a manifest");
        if blob_row(transaction, &put.digest).map_err(failed())?.is_none()
            || !self.store.is_named(&put.digest)
        {
            return Err(StoreError::BlobUnknown(put.digest));
        }
        insert_manifest(transaction, id, put, document, mentions).map_err(failed())?;
        for tag in tags {
            set_tag_row(transaction, id, tag, &put.digest).map_err(failed())?;
        }
        if options.require == Require::BlobsInStore {
            self.adopt(transaction, id, mentions).map_err(failed())?;
        }
        // The manifest holds itself and what it names from now on.
        let holder = self.store.holder()?;
        for digest in mentions.iter().map(|mention| &mention.digest).chain([&put.digest]) {
            let sql = "DELETE FROM lease WHERE digest = ?1 AND holder = ?2";
            run(transaction, sql, params![text(digest), holder]).map_err(failed())?;
        }
        Ok(())
    }

    /// What of `mentions` a put with `options` lacks. The names in `blobs/` are looked at as well as the rows: a
    /// collector that died between removing one and the other leaves a row without a file.
    fn missing(
        &self,
        connection: &Connection,
        id: i64,
        mentions: &[Mention],
        options: &PutOptions,
    ) -> Result<Vec<Digest>, StoreError> {
        let blob_in_repository = "SELECT 1 FROM blob JOIN repository_blob
            ON repository_blob.digest = blob.digest WHERE repository_blob.repository_id = ?1
            AND blob.digest = ?2 AND blob.damaged IS NULL";
        let blob_in_store = "SELECT 1 FROM blob WHERE ?1 = ?1 AND digest = ?2 AND damaged IS NULL";
        // An index lists what it likes: BuildKit's cache exports list layers and a configuration.
        let listed = "SELECT 1 FROM manifest WHERE repository_id = ?1 AND digest = ?2
            UNION ALL SELECT 1 FROM blob JOIN repository_blob ON repository_blob.digest = blob.digest
            WHERE repository_blob.repository_id = ?1 AND blob.digest = ?2 AND blob.damaged IS NULL";
        let mut missing = Vec::new();
        for mention in mentions.iter().filter(|mention| mention.kind != MentionKind::Foreign) {
            let sql = match (mention.kind, options.require) {
                (_, Require::Nothing) => continue,
                (MentionKind::Manifest | MentionKind::Listed, _) if options.allow_sparse => continue,
                (MentionKind::Manifest | MentionKind::Listed, _) => listed,
                (_, Require::BlobsInRepository) => blob_in_repository,
                (_, Require::BlobsInStore) => blob_in_store,
            };
            let found = first(connection, sql, params![id, text(&mention.digest)], |_| Ok(()));
            let known = found.map_err(StoreError::sql("look for what a manifest names"))?.is_some();
            if !known || !self.store.is_named(&mention.digest) {
                missing.push(mention.digest);
            }
        }
        Ok(missing)
    }

    /// Makes the blobs a local manifest names the repository's.
    fn adopt(&self, transaction: &Connection, id: i64, mentions: &[Mention]) -> rusqlite::Result<()> {
        for mention in mentions.iter().filter(|mention| mention.kind != MentionKind::Manifest) {
            if blob_row(transaction, &mention.digest)?.is_some() {
                link(transaction, id, &mention.digest, 0)?;
            }
        }
        Ok(())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum MentionKind {
    Blob,
    /// A layer that registries need not carry (image-spec, *Non-distributable Layers*).
    Foreign,
    Config,
    Manifest,
    /// An entry of an index whose type is none of a manifest's. It may be one all the same.
    Listed,
}

impl MentionKind {
    fn name(self) -> &'static str {
        match self {
            MentionKind::Blob => "blob",
            MentionKind::Foreign => "foreign",
            MentionKind::Config => "config",
            MentionKind::Manifest | MentionKind::Listed => "manifest",
        }
    }
}

/// Content that a manifest names.
#[derive(Clone, Debug)]
struct Mention {
    digest: Digest,
    size: u64,
    kind: MentionKind,
}

fn mentions(document: &ManifestOrIndex) -> Vec<Mention> {
    let mention =
        |descriptor: &Descriptor, kind| Mention { digest: descriptor.digest, size: descriptor.size, kind };
    let layer_kind = |layer: &Descriptor| match layer.kind() {
        MediaKind::Layer { foreign: true, .. } => MentionKind::Foreign,
        _ => MentionKind::Blob,
    };
    let entry_kind = |child: &Descriptor| match child.kind() {
        MediaKind::Manifest | MediaKind::Index => MentionKind::Manifest,
        _ if child.media_type.is_empty() => MentionKind::Manifest,
        _ => MentionKind::Listed,
    };
    match document {
        ManifestOrIndex::Manifest(manifest) => {
            let layers = manifest.layers().iter().map(|layer| mention(layer, layer_kind(layer)));
            std::iter::once(mention(manifest.config(), MentionKind::Config)).chain(layers).collect()
        }
        ManifestOrIndex::Index(index) => {
            index.manifests().iter().map(|child| mention(child, entry_kind(child))).collect()
        }
    }
}

fn insert_manifest(
    connection: &Connection,
    id: i64,
    put: &ManifestPut,
    document: &ManifestOrIndex,
    mentions: &[Mention],
) -> rusqlite::Result<()> {
    let annotations = serde_json::to_string(document.annotations()).unwrap_or_else(|_| "{}".to_owned());
    run(
        connection,
        "INSERT INTO manifest (repository_id, digest, media_type, size, subject, artifact_type, annotations,
         pushed_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
         ON CONFLICT (repository_id, digest) DO UPDATE SET media_type = excluded.media_type,
         pushed_at = excluded.pushed_at",
        params![
            id,
            text(&put.digest),
            put.media_type,
            to_sql(put.size),
            put.subject.as_ref().map(text),
            document.artifact_type(),
            annotations,
            now()
        ],
    )?;
    for mention in mentions {
        run(
            connection,
            "INSERT INTO reference (repository_id, manifest, target, kind, size) VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT (repository_id, manifest, target, kind) DO NOTHING",
            params![id, text(&put.digest), text(&mention.digest), mention.kind.name(), to_sql(mention.size)],
        )?;
    }
    Ok(())
}
