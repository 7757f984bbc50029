//! [`RemoteRepository`]: one repository of one registry, as commands and copies work with it.

use std::collections::HashMap;
use std::io::Read;
use std::sync::{Arc, Mutex, PoisonError};

use rimg_formats::descriptor::Descriptor;
use rimg_formats::digest::Digest;
use rimg_formats::manifest::ManifestOrIndex;
use rimg_formats::reference::{Reference, RegistryHost, RepositoryName, Tag};

use super::error::ClientError;
use super::pipe::PipeReader;
use super::session::{Access, Session};
use super::transfer::RecentManifests;
use super::upload::{BlobOpener, Upload, UploadSession};
use super::{Client, download, listing, manifests, referrers, upload};

/// Most repositories that a blob is asked to be mounted from: one that is known to have had it mostly still has.
const MOUNT_SOURCES_MAX: usize = 3;

/// One repository of one registry. It is also an end of copies, from or to: see
/// [`copy_image`](rimg_formats::transfer::copy_image).
#[derive(Debug)]
pub struct RemoteRepository {
    client: Client,
    host: RegistryHost,
    name: RepositoryName,
    mount_sources: MountSources,
    /// The names that a copy ends with.
    pub(super) tags: Vec<Tag>,
    /// Manifests that were put, for naming them afterwards.
    pub(super) put: Mutex<RecentManifests>,
    /// Uploads that the registry opened when it declined a mount, by the blob they are for.
    opened: Mutex<HashMap<Digest, UploadSession>>,
}

/// Names the repositories that may have a blob.
type NameSources = dyn Fn(&Digest) -> Vec<RepositoryName> + Send + Sync;

struct MountSources(Box<NameSources>);

impl std::fmt::Debug for MountSources {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("MountSources")
    }
}

/// A manifest as the registry sent it, its digest verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteManifest {
    /// The exact bytes.
    pub raw: Vec<u8>,
    /// The media type it was sent as; empty when the registry named none of use.
    pub media_type: String,
    /// The digest of `raw`.
    pub digest: Digest,
}

impl RemoteRepository {
    pub(super) fn new(client: Client, reference: &Reference) -> RemoteRepository {
        RemoteRepository {
            client,
            host: reference.registry_host(),
            name: reference.remote_repository(),
            mount_sources: MountSources(Box::new(|_| Vec::new())),
            tags: Vec::new(),
            put: Mutex::default(),
            opened: Mutex::default(),
        }
    }

    /// This repository, which may take a blob without its bytes being sent from those repositories of the same
    /// registry that `sources` names for it: the likeliest first, since each that lacks it costs a request or two.
    pub fn mounting_from(
        mut self,
        sources: impl Fn(&Digest) -> Vec<RepositoryName> + Send + Sync + 'static,
    ) -> RemoteRepository {
        self.mount_sources = MountSources(Box::new(sources));
        self
    }

    /// This repository as the end of a copy that points `tags` at the image.
    pub fn publishing(mut self, tags: impl IntoIterator<Item = Tag>) -> RemoteRepository {
        self.tags = tags.into_iter().collect();
        self
    }

    /// The registry it belongs to.
    pub fn host(&self) -> &RegistryHost {
        &self.host
    }

    /// Its name within the registry.
    pub fn name(&self) -> &RepositoryName {
        &self.name
    }

    /// The manifest that `tag` names.
    pub fn manifest_by_tag(&self, tag: &Tag) -> Result<RemoteManifest, ClientError> {
        self.get_manifest(tag.as_str(), None)
    }

    /// The manifest with this digest.
    pub fn manifest_by_digest(&self, digest: &Digest) -> Result<RemoteManifest, ClientError> {
        self.get_manifest(&digest.to_string(), Some(digest))
    }

    fn get_manifest(&self, version: &str, digest: Option<&Digest>) -> Result<RemoteManifest, ClientError> {
        let received = self.with_session(async |session| {
            manifests::get(&session, &Access::pull(&self.name), &self.name, version, digest).await
        })?;
        let (raw, media_type, digest) = (received.raw, received.media_type, received.digest);
        Ok(RemoteManifest { raw, media_type, digest })
    }

    /// The digest that `tag` stands for, mostly without fetching the manifest.
    pub fn resolve(&self, tag: &Tag) -> Result<Digest, ClientError> {
        self.with_session(async |session| {
            manifests::resolve(&session, &Access::pull(&self.name), &self.name, tag.as_str()).await
        })
    }

    /// Puts a manifest under its SHA-256 digest, or under `tag`. A subject is made to list it, if need be by
    /// the referrers tag.
    pub fn put_manifest(
        &self,
        raw: &[u8],
        media_type: &str,
        tag: Option<&Tag>,
    ) -> Result<Digest, ClientError> {
        let digest = Digest::sha256(raw);
        self.put_manifest_as(raw, media_type, &digest, tag)?;
        Ok(digest)
    }

    /// As [`RemoteRepository::put_manifest`], for manifests known by a digest of another algorithm too.
    pub(super) fn put_manifest_as(
        &self,
        raw: &[u8],
        media_type: &str,
        digest: &Digest,
        tag: Option<&Tag>,
    ) -> Result<(), ClientError> {
        let version = tag.map_or_else(|| digest.to_string(), Tag::to_string);
        let access = Access::push(&self.name);
        self.with_session(async |session| {
            let filed = manifests::put(&session, &access, &self.name, &version, raw, media_type).await?;
            // What is no manifest to rimg has no subject either; the registry took it.
            if let Ok(manifest) = ManifestOrIndex::parse(raw, Some(media_type))
                && let Some(subject) = manifest.subject()
                && !filed
            {
                let mut entry = Descriptor::new(media_type, *digest, raw.len() as u64);
                entry.artifact_type = manifest.artifact_type().map(str::to_owned);
                entry.annotations = manifest.annotations().clone();
                referrers::add_by_tag(&session, &access, &self.name, &subject.digest, entry).await?;
            }
            Ok(())
        })
    }

    /// Deletes `tag`. Few public registries allow it.
    pub fn delete_tag(&self, tag: &Tag) -> Result<(), ClientError> {
        self.with_session(async |session| manifests::delete(&session, &self.name, tag.as_str()).await)
    }

    /// Deletes a manifest with all tags on it. Its subject ceases to list it, if need be by the referrers tag.
    pub fn delete_manifest(&self, digest: &Digest) -> Result<(), ClientError> {
        let version = digest.to_string();
        let pull = Access::pull(&self.name);
        self.with_session(async |session| {
            // One that cannot be read, a damaged one for instance, can be deleted all the same.
            let received = manifests::get(&session, &pull, &self.name, &version, Some(digest)).await.ok();
            let manifest = received.and_then(|received| {
                let named = Some(received.media_type.as_str()).filter(|named| !named.is_empty());
                ManifestOrIndex::parse(&received.raw, named).ok()
            });
            manifests::delete(&session, &self.name, &version).await?;
            match manifest.as_ref().and_then(ManifestOrIndex::subject) {
                Some(subject) => {
                    let access = Access::push(&self.name);
                    referrers::remove_by_tag(&session, &access, &self.name, &subject.digest, digest).await
                }
                None => Ok(()),
            }
        })
    }

    /// The tags, sorted, at most `limit`.
    pub fn tags(&self, limit: usize) -> Result<Vec<Tag>, ClientError> {
        self.with_session(async |session| listing::tags(&session, &self.name, limit).await)
    }

    /// The manifests that have `subject`, of `artifact_type` if one is given.
    pub fn referrers(
        &self,
        subject: &Digest,
        artifact_type: Option<&str>,
    ) -> Result<Vec<Descriptor>, ClientError> {
        self.with_session(async |session| referrers::list(&session, &self.name, subject, artifact_type).await)
    }

    /// Opens `blob` for reading from byte `offset`. The stream survives broken connections and has exactly the
    /// promised length, but its digest is for the reader to verify. Not to be read within asynchronous code.
    pub fn open_blob(&self, blob: &Descriptor, offset: u64) -> Result<Box<dyn Read + Send>, ClientError> {
        let pieces =
            self.with_session(async |session| download::start(session, &self.name, blob, offset).await)?;
        let length = blob.size.saturating_sub(offset);
        Ok(Box::new(PipeReader::new(pieces, length, self.client.clone())))
    }

    /// Whether the repository has `blob`; it is mounted from one of the sources if that is possible.
    pub fn has_blob(&self, blob: &Descriptor) -> Result<bool, ClientError> {
        self.with_session(async |session| {
            if upload::exists(&session, &Access::push(&self.name), &self.name, blob).await? {
                return Ok(true);
            }
            let sources = (self.mount_sources.0)(&blob.digest).into_iter();
            for source in sources.filter(|source| *source != self.name).take(MOUNT_SOURCES_MAX) {
                match upload::mount(&session, &self.name, &source, &blob.digest).await {
                    Ok(None) => return Ok(true),
                    Ok(Some(upload)) => {
                        let earlier = self.opened().insert(blob.digest, upload);
                        if let Some(earlier) = earlier {
                            upload::cancel(&session, &self.name, &earlier).await;
                        }
                    }
                    // Mounting saves bytes; without it they are sent. A registry that refuses the wider
                    // permission may well grant the narrow one.
                    Err(_) => break,
                }
            }
            Ok(false)
        })
    }

    /// Uploads `blob`, whose content `open` opens at any offset. Success means that the registry has verified
    /// it. A broken upload goes on from where it broke.
    pub fn push_blob(&self, blob: &Descriptor, open: &mut BlobOpener<'_>) -> Result<(), ClientError> {
        let begun = self.opened().remove(&blob.digest);
        let session = self.with_session(async |session| Ok(session))?;
        Upload::new(&self.client, session, &self.name, blob, open).run(begun)
    }

    fn opened(&self) -> std::sync::MutexGuard<'_, HashMap<Digest, UploadSession>> {
        self.opened.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with_session<T>(
        &self,
        work: impl AsyncFnOnce(Arc<Session>) -> Result<T, ClientError>,
    ) -> Result<T, ClientError> {
        self.client.run(async { work(self.client.session(&self.host).await?).await })
    }
}
