//! Loading an archive in one pass over a stream.
//!
//! 1. Every regular file goes into the store as a blob, under the digest that its path promises or the one it turns
//!    out to have; the few documents that say what the archive means are kept in memory.
//! 2. At the end, `index.json` (or else `manifest.json`) is followed: manifests are put, and names set last.
//!
//! Nothing is unpacked, so paths and links of the archive are names in a table and can lead nowhere else. What an
//! archive that turns out to be wrong left in the store is unnamed, and collected like any other leftover.

use std::collections::BTreeMap;
use std::io::{self, Cursor, Read};
use std::path::Path;

use super::directory::DirectorySource;
use super::{DOCKER_MANIFEST_FILE, DockerImage, docker};
use crate::compression::Compression;
use crate::descriptor::Descriptor;
use crate::digest::Digest;
use crate::layer::{EntryKind, LayerError, LayerReader, Limits, ReadMode};
use crate::layout::{self, LayoutName, LayoutSource};
use crate::manifest::{Index, MANIFEST_BYTES_MAX, ManifestOrIndex};
use crate::media_type::MediaKind;
use crate::platform::Platform;
use crate::reference::{ImageName, Reference, Tag};
use crate::store::{Expect, Precondition, Repository, Store, StoreError};
use crate::transfer::{
    CopyOptions, Event, ImageSink, ImageSource, ManifestBytes, OnEvent, Platforms, RepositorySink,
    TransferError, Version, copy_image,
};

/// Entries of one archive: a hundred images of five hundred layers, with three files each.
const ENTRIES_MAX: u64 = 200_000;
/// Bytes of all file names together; they are held in memory.
const NAMES_BYTES_MAX: u64 = 64 << 20;
/// Links from one name to the next: `docker save` once wrote one for a layer that occurs twice.
const LINKS_MAX: usize = 8;
/// The repository of images that an archive does not name, nor the user.
const UNNAMED: &str = "loaded";

/// How to load.
#[derive(Clone, Default)]
pub struct LoadOptions<'a> {
    /// The repository for images that the archive gives a tag only, or no name at all.
    pub name: Option<ImageName>,
    /// Progress.
    pub on_event: Option<OnEvent<'a>>,
}

/// An image that was loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// The repository it went to.
    pub name: ImageName,
    /// Its tag there, if it has one.
    pub tag: Option<Tag>,
    /// Its manifest or index.
    pub digest: Digest,
}

/// Loads every image of an archive into the store.
pub fn load(
    store: &Store,
    archive: impl Read + Send,
    options: &LoadOptions<'_>,
) -> Result<Vec<Loaded>, TransferError> {
    let contents = Contents::read(store, archive, options)?;
    let images = match contents.documents.get(DOCKER_MANIFEST_FILE) {
        Some(raw) => serde_json::from_slice(raw).map_err(|error| invalid(DOCKER_MANIFEST_FILE, error))?,
        None => Vec::new(),
    };
    match contents.documents.get("index.json") {
        Some(raw) => {
            if let Some(marker) = contents.documents.get("oci-layout") {
                layout::check_marker(marker).map_err(|reason| refused("oci-layout", &reason))?;
            }
            let index = layout::parse_index(raw, "index.json")?;
            // The blobs were shown while they came in.
            load_layout(store, &InStore { store }, &index, &images, options, None)
        }
        None if contents.files.is_empty() && contents.documents.is_empty() => {
            Err(not_read(io::ErrorKind::InvalidData, "it is empty".to_owned()))
        }
        None if images.is_empty() => {
            Err(TransferError::NotFound("index.json or manifest.json in the archive".to_owned()))
        }
        None => docker::load_images(store, &contents, &images, options),
    }
}

/// A file of the archive that became a blob.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stored {
    pub(super) digest: Digest,
    pub(super) size: u64,
    pub(super) compression: Compression,
}

/// What an archive held.
#[derive(Default)]
pub(super) struct Contents {
    documents: BTreeMap<String, Vec<u8>>,
    files: BTreeMap<String, Stored>,
    links: BTreeMap<String, String>,
}

impl Contents {
    fn read(
        store: &Store,
        archive: impl Read + Send,
        options: &LoadOptions<'_>,
    ) -> Result<Contents, TransferError> {
        let limits = Limits {
            max_entries: ENTRIES_MAX,
            max_metadata: NAMES_BYTES_MAX,
            // An archive holds whole images; the disk is the limit.
            max_uncompressed: u64::MAX,
            ..Limits::default()
        };
        let mut reader = LayerReader::with_mode(archive, limits, ReadMode::Archive).map_err(unreadable)?;
        let mut contents = Contents::default();
        while let Some(entry) = reader.next_entry().map_err(unreadable)? {
            let path = String::from_utf8_lossy(entry.path.as_bytes()).into_owned();
            match entry.kind {
                EntryKind::Regular { size } => {
                    contents.take(store, path, size, &mut reader.content(), options)?
                }
                EntryKind::Hardlink { target } => {
                    let target = String::from_utf8_lossy(target.as_bytes()).into_owned();
                    contents.link(path, Some(target))?;
                }
                EntryKind::Symlink { target } => {
                    let target = follow(&path, &String::from_utf8_lossy(&target));
                    contents.link(path, target)?;
                }
                EntryKind::Directory => {}
                _ => return Err(refused(&path, "it is neither a file nor a directory")),
            }
        }
        Ok(contents)
    }

    fn take(
        &mut self,
        store: &Store,
        path: String,
        size: u64,
        content: &mut dyn Read,
        options: &LoadOptions<'_>,
    ) -> Result<(), TransferError> {
        if matches!(path.as_str(), "index.json" | DOCKER_MANIFEST_FILE | "oci-layout" | "repositories") {
            if size > MANIFEST_BYTES_MAX as u64 {
                return Err(TransferError::Limit {
                    what: "the size of a document in the archive",
                    limit: MANIFEST_BYTES_MAX,
                });
            }
            let mut raw = Vec::new();
            content
                .read_to_end(&mut raw)
                .map_err(TransferError::io(format!("read {path} in the archive")))?;
            self.documents.insert(path, raw);
            return Ok(());
        }
        let promised = promised_digest(&path).map_err(|reason| refused(&path, reason))?;
        let stored = ingest(store, &path, promised, size, content)?;
        if let Some(on_event) = options.on_event {
            on_event(Event::BlobStarted { digest: stored.digest, size });
            on_event(Event::BlobAdvanced { digest: stored.digest, bytes: size });
            on_event(Event::BlobDone { digest: stored.digest });
        }
        self.files.insert(path, stored);
        Ok(())
    }

    fn link(&mut self, path: String, target: Option<String>) -> Result<(), TransferError> {
        if path.starts_with("blobs/") {
            return Err(refused(&path, "a blob must be a file, not a link"));
        }
        match target {
            Some(target) => drop(self.links.insert(path, target)),
            None => return Err(refused(&path, "its link leads out of the archive")),
        }
        Ok(())
    }

    /// The file that a path of `manifest.json` names.
    pub(super) fn file(&self, path: &str) -> Result<Stored, TransferError> {
        let mut current = path.strip_prefix("./").unwrap_or(path);
        for _ in 0..LINKS_MAX {
            if let Some(stored) = self.files.get(current) {
                return Ok(*stored);
            }
            match self.links.get(current) {
                Some(target) => current = target,
                None => break,
            }
        }
        Err(TransferError::NotFound(format!("file `{path}`, which manifest.json names, in the archive")))
    }
}

/// The digest that a path under `blobs/` promises; `None` elsewhere.
fn promised_digest(path: &str) -> Result<Option<Digest>, &'static str> {
    let Some(rest) = path.strip_prefix("blobs/") else { return Ok(None) };
    let digest = rest.split_once('/').and_then(|(algorithm, hex)| format!("{algorithm}:{hex}").parse().ok());
    digest.map(Some).ok_or("what lies under blobs/ must be named by its digest")
}

fn ingest(
    store: &Store,
    path: &str,
    promised: Option<Digest>,
    size: u64,
    content: &mut dyn Read,
) -> Result<Stored, TransferError> {
    let reading = || TransferError::io(format!("read {path} in the archive"));
    let mut prefix = Vec::new();
    content.take(Compression::PREFIX_BYTES as u64).read_to_end(&mut prefix).map_err(reading())?;
    let compression = Compression::detect(&prefix);
    if let Some(digest) = promised
        && store.blob_size(&digest)? == Some(size)
        && store.contains(&digest)?
    {
        return Ok(Stored { digest, size, compression });
    }
    let mut ingest = store.ingest_local()?;
    ingest.append_from(&mut Cursor::new(prefix).chain(content)).map_err(reading())??;
    let expect = promised.map(|digest| Expect { digest, size: Some(size) });
    let committed = ingest.commit(expect.as_ref())?;
    Ok(Stored { digest: committed.digest, size: committed.size, compression })
}

/// Where a symbolic link at `path` leads, as a path of the archive; `None` when it leaves it.
fn follow(path: &str, target: &str) -> Option<String> {
    let mut parts: Vec<&str> = path.split('/').collect();
    parts.pop();
    if target.starts_with('/') {
        return None;
    }
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

/// Loads every image of an OCI layout directory, or the one of a `dir:` directory, into the store.
pub fn load_directory(
    store: &Store,
    directory: &Path,
    options: &LoadOptions<'_>,
) -> Result<Vec<Loaded>, TransferError> {
    if DirectorySource::is_one(directory) {
        let source = DirectorySource::open(directory)?;
        let entry = Descriptor::new("", source.digest(), source.size());
        let index = Index::build(vec![entry], BTreeMap::new());
        return load_layout(store, &source, &index, &[], options, options.on_event);
    }
    let source = LayoutSource::open(directory)?;
    load_layout(store, &source, source.index(), &[], options, options.on_event)
}

/// The OCI way: every entry of `index.json` that is an image, under its names. Names are set when everything is in the
/// store, so that of an archive that cannot be loaded nothing is named.
fn load_layout<'e>(
    store: &Store,
    source: &dyn ImageSource,
    index: &Index,
    images: &[DockerImage],
    options: &LoadOptions<'e>,
    on_event: Option<OnEvent<'e>>,
) -> Result<Vec<Loaded>, TransferError> {
    let mut named: Vec<(LayoutName, Vec<Descriptor>)> = Vec::new();
    let mut odd = Vec::new();
    for entry in index.manifests() {
        if is_odd(entry) {
            odd.push(format!("`{}`", entry.media_type));
            continue;
        }
        for name in names_of(source, entry, images)? {
            let name = name.completed(options.name.as_ref());
            match named.iter_mut().find(|(known, _)| known.tag.is_some() && *known == name) {
                Some((_, entries)) => entries.push(entry.clone()),
                None => named.push((name, vec![entry.clone()])),
            }
        }
    }
    if named.is_empty() && !odd.is_empty() {
        return Err(TransferError::NotFound(format!("an image among entries of type {}", odd.join(", "))));
    }
    let mut copied = Vec::with_capacity(named.len());
    for (name, entries) in named {
        let repository = store.repository(&name.name.unwrap_or_else(unnamed));
        let sink = RepositorySink::new(repository.clone(), Vec::new());
        // `docker save` writes indexes whose other variants were never pulled.
        let copy = CopyOptions { platforms: Platforms::Present, on_event, ..CopyOptions::default() };
        let mut roots = Vec::with_capacity(entries.len());
        for entry in &entries {
            let root = copy_image(source, &sink, &Version::Digest(entry.digest), &copy)?;
            roots.push(Descriptor { platform: entry.platform.clone(), ..root });
        }
        let digest = combined(&repository, &sink, roots)?;
        // The sink holds what has no name yet.
        copied.push((repository, name.tag, digest, sink));
    }
    let mut loaded = Vec::with_capacity(copied.len());
    for (repository, tag, digest, _) in &copied {
        if let Some(tag) = tag {
            repository.set_tag(tag, digest, Precondition::None)?;
        }
        loaded.push(Loaded { name: repository.name().clone(), tag: tag.clone(), digest: *digest });
    }
    Ok(loaded)
}

/// Whether an entry of `index.json` is no image, and nothing that an image consists of: anybody may list anything there.
fn is_odd(entry: &Descriptor) -> bool {
    !entry.media_type.is_empty() && !matches!(entry.kind(), MediaKind::Manifest | MediaKind::Index)
}

/// The one document for all entries of a name: several variants of an image, each named, are an index. Of two for one
/// platform the later counts, as a tag that is set twice.
fn combined(
    repository: &Repository,
    sink: &RepositorySink,
    roots: Vec<Descriptor>,
) -> Result<Digest, TransferError> {
    let mut entries: Vec<Descriptor> = Vec::with_capacity(roots.len());
    for mut root in roots {
        if !root.platform.as_ref().is_some_and(Platform::is_named) {
            root.platform =
                repository.store().image(&root.digest, None).ok().map(|image| image.config.platform);
        }
        entries.retain(|entry| entry.digest != root.digest && entry.platform != root.platform);
        entries.push(root);
    }
    if let [only] = entries.as_slice() {
        return Ok(only.digest);
    }
    let index = Index::build(entries, BTreeMap::new());
    let descriptor = Descriptor::new(index.media_type(), index.digest(), index.raw().len() as u64);
    sink.put_manifest(&descriptor, index.raw())?;
    Ok(descriptor.digest)
}

pub(super) fn unnamed() -> ImageName {
    UNNAMED.parse().expect("the name follows the grammar")
}

/// The names of an entry of `index.json`: its annotations, or what `manifest.json` says of the same image.
fn names_of(
    source: &dyn ImageSource,
    entry: &Descriptor,
    images: &[DockerImage],
) -> Result<Vec<LayoutName>, TransferError> {
    let annotated = LayoutName::of(entry);
    if annotated.name.is_some() || images.is_empty() {
        return Ok(vec![annotated]);
    }
    let raw = source.manifest(&Version::Digest(entry.digest))?.raw;
    let Ok(ManifestOrIndex::Manifest(manifest)) = ManifestOrIndex::parse(&raw, None) else {
        return Ok(vec![annotated]);
    };
    let config = &manifest.config().digest;
    let path = format!("blobs/{}/{}", config.algorithm(), config.hex());
    let same = images.iter().filter(|image| image.config == path);
    let names = same.flat_map(repo_tags).collect::<Vec<_>>();
    Ok(if names.is_empty() { vec![annotated] } else { names })
}

/// The names that `manifest.json` gives an image, those that are none left out.
pub(super) fn repo_tags(image: &DockerImage) -> Vec<LayoutName> {
    let references = image.repo_tags.iter().filter_map(|text| text.parse::<Reference>().ok());
    references
        .map(|found| LayoutName { name: Some(found.name()), tag: Some(found.tag_or_latest()) })
        .collect()
}

/// What the archive brought into the store, named by digest.
struct InStore<'a> {
    store: &'a Store,
}

impl ImageSource for InStore<'_> {
    fn has(&self, blob: &Descriptor) -> Result<bool, TransferError> {
        Ok(self.store.blob_size(&blob.digest)?.is_some())
    }

    fn manifest(&self, version: &Version) -> Result<ManifestBytes, TransferError> {
        let Version::Digest(digest) = version else {
            return Err(TransferError::NotFound(format!("tag `{version}` in the archive")));
        };
        match self.store.read_blob(digest, MANIFEST_BYTES_MAX as u64) {
            Ok(raw) => Ok(ManifestBytes { raw, media_type: String::new() }),
            Err(StoreError::BlobUnknown(digest)) => Err(absent(&digest)),
            Err(error) => Err(error.into()),
        }
    }

    fn open(&self, blob: &Descriptor, _offset: u64) -> Result<Box<dyn Read + Send + '_>, TransferError> {
        // What the archive holds, the sink has. Getting here means that it does not.
        match self.store.blob(&blob.digest)? {
            Some(found) => Err(TransferError::Mismatch {
                digest: Box::new(blob.digest),
                reason: format!("it has {} bytes, expected {}", found.size(), blob.size),
            }),
            None => Err(absent(&blob.digest)),
        }
    }
}

fn absent(digest: &Digest) -> TransferError {
    TransferError::NotFound(format!("blob {digest} in the archive"))
}

pub(super) fn refused(path: &str, reason: &str) -> TransferError {
    let shown: String = path.chars().take(200).collect();
    TransferError::Io {
        action: format!("load `{}` from the archive", shown.escape_debug()),
        source: io::Error::new(io::ErrorKind::InvalidData, reason.to_owned()),
    }
}

pub(super) fn invalid(path: &str, error: serde_json::Error) -> TransferError {
    refused(path, &format!("it is not valid: {error}"))
}

fn unreadable(error: LayerError) -> TransferError {
    let kind = match &error {
        LayerError::Read(source) => source.kind(),
        _ => io::ErrorKind::InvalidData,
    };
    let reason = match &error {
        LayerError::Truncated { offset: 0, .. } => "it is not a tar archive".to_owned(),
        LayerError::Truncated { what, offset } => {
            format!("it ends in the middle of {what}, at byte {offset}")
        }
        // The first header: more than the reason would mislead.
        LayerError::Malformed { offset: 0..=512, reason } => reason.clone(),
        LayerError::Malformed { offset, reason } => format!("it is damaged at byte {offset}: {reason}"),
        error => error.to_string(),
    };
    not_read(kind, reason)
}

fn not_read(kind: io::ErrorKind, reason: String) -> TransferError {
    TransferError::Io { action: "read the archive".to_owned(), source: io::Error::new(kind, reason) }
}
