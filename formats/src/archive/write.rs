//! Writing archives: a layout in a tar, with Docker's `manifest.json` beside it.
//!
//! Everything is written once and in the order it comes, so an archive can go down a pipe. Times, owners and order
//! are fixed: the same images give the same bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::io::{Read, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{DOCKER_MANIFEST_FILE, DockerImage};
use crate::descriptor::Descriptor;
use crate::digest::{Digest, VerifyReader};
use crate::epoch::Epoch;
use crate::layout::{LAYOUT_MARKER, LayoutName, merge_entries};
use crate::manifest::{Index, Manifest, ManifestOrIndex};
use crate::platform::Platform;
use crate::store::{ResolvedImage, Store};
use crate::transfer::{CopyOptions, ImageSink, Platforms, TransferError, Version, copy_image};
use crate::variant::{Documents, choose};

/// Writes images of the store to one archive.
pub fn save<W: Write + Send>(
    store: &Store,
    images: &[ResolvedImage],
    out: W,
    options: &CopyOptions<'_>,
) -> Result<W, TransferError> {
    let archive = ArchiveWriter::new(out)?;
    for image in images {
        let named = image.tag.is_some();
        let name = LayoutName { name: Some(image.name.clone()), tag: image.tag.clone() };
        let sink = archive.image(if named { vec![name] } else { Vec::new() });
        let platforms = match &options.platforms {
            // What was never pulled cannot be saved.
            Platforms::All => Platforms::Present,
            chosen => chosen.clone(),
        };
        let options = CopyOptions { platforms, ..options.clone() };
        copy_image(&store.repository(&image.name), &sink, &Version::Digest(image.digest), &options)?;
    }
    archive.finish()
}

/// An archive in the making.
pub struct ArchiveWriter<W: Write> {
    state: Mutex<State<W>>,
}

struct State<W: Write> {
    tar: tar::Builder<W>,
    written: BTreeSet<Digest>,
    /// Image manifests that are in the archive.
    manifests: BTreeMap<Digest, Manifest>,
    indexes: BTreeMap<Digest, Index>,
    /// The entries of `index.json`.
    entries: Vec<Descriptor>,
    /// What was published, in order, with its names.
    published: Vec<(Digest, Vec<LayoutName>)>,
}

impl<W: Write + Send> ArchiveWriter<W> {
    /// Begins an archive.
    pub fn new(out: W) -> Result<ArchiveWriter<W>, TransferError> {
        let mut state = State {
            tar: tar::Builder::new(out),
            written: BTreeSet::new(),
            manifests: BTreeMap::new(),
            indexes: BTreeMap::new(),
            entries: Vec::new(),
            published: Vec::new(),
        };
        for directory in ["blobs/", "blobs/sha256/"] {
            state.append(directory, 0, &mut std::io::empty())?;
        }
        state.append("oci-layout", LAYOUT_MARKER.len() as u64, &mut LAYOUT_MARKER.as_bytes())?;
        Ok(ArchiveWriter { state: Mutex::new(state) })
    }

    /// The end of a copy of one image, which will have `names` in the archive.
    pub fn image(&self, names: Vec<LayoutName>) -> ArchiveImage<'_, W> {
        ArchiveImage { archive: self, names }
    }

    /// Writes what says what is in the archive, and ends it.
    pub fn finish(self) -> Result<W, TransferError> {
        let mut state = self.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        let images = state.docker_images();
        let images = serde_json::to_vec(&images).expect("a list of plain strings serialises");
        state.append(DOCKER_MANIFEST_FILE, images.len() as u64, &mut images.as_slice())?;
        let index = Index::build(std::mem::take(&mut state.entries), BTreeMap::new());
        state.append("index.json", index.raw().len() as u64, &mut index.raw())?;
        let mut out = state.tar.into_inner().map_err(TransferError::io("write the archive"))?;
        out.flush().map_err(TransferError::io("write the archive"))?;
        Ok(out)
    }

    fn state(&self) -> MutexGuard<'_, State<W>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<W: Write> State<W> {
    fn append(&mut self, path: &str, size: u64, content: &mut dyn Read) -> Result<(), TransferError> {
        let directory = path.ends_with('/');
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(if directory { tar::EntryType::Directory } else { tar::EntryType::Regular });
        header.set_mode(if directory { 0o755 } else { 0o644 });
        header.set_mtime(Epoch::DEFAULT.seconds().unsigned_abs());
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(size);
        let appended = self.tar.append_data(&mut header, path, content);
        appended.map_err(TransferError::io(format!("write {path} to the archive")))
    }

    fn append_blob(
        &mut self,
        digest: &Digest,
        size: u64,
        content: &mut dyn Read,
    ) -> Result<(), TransferError> {
        self.append(&blob_path(digest), size, &mut VerifyReader::new(content, *digest, size))?;
        self.written.insert(*digest);
        Ok(())
    }

    /// The images for `manifest.json`. It knows no indexes: of one, the variant that this machine would run stands
    /// for it, or else the first.
    fn docker_images(&self) -> Vec<DockerImage> {
        let mut images: Vec<DockerImage> = Vec::new();
        for (root, names) in &self.published {
            let Some(manifest) = self.single(root) else { continue };
            let repo_tags = names.iter().filter_map(|name| match (&name.name, &name.tag) {
                (Some(name), Some(tag)) => Some(format!("{name}:{tag}")),
                _ => None,
            });
            let config = blob_path(&manifest.config().digest);
            match images.iter_mut().find(|image| image.config == config) {
                Some(image) => image.repo_tags.extend(repo_tags),
                None => images.push(DockerImage {
                    config,
                    repo_tags: repo_tags.collect(),
                    layers: manifest.layers().iter().map(|layer| blob_path(&layer.digest)).collect(),
                }),
            }
        }
        images
    }

    fn single(&self, root: &Digest) -> Option<&Manifest> {
        let is_image = |manifest: &&Manifest| manifest.is_image();
        let Some(index) = self.indexes.get(root) else {
            return self.manifests.get(root).filter(is_image);
        };
        let host = choose(index, &Platform::host(), self).unwrap_or_else(|never| match never {});
        if let Some(chosen) = host.best.or(host.only) {
            return self.manifests.get(&chosen.entry.digest).filter(is_image);
        }
        index.manifests().iter().filter_map(|entry| self.manifests.get(&entry.digest)).find(is_image)
    }
}

/// What has been written. Configurations have gone by, so entries without a platform have none here.
impl<W: Write> Documents for State<W> {
    type Error = Infallible;

    fn document(&self, entry: &Descriptor) -> Result<Option<ManifestOrIndex>, Infallible> {
        let manifest = self.manifests.get(&entry.digest).cloned().map(ManifestOrIndex::Manifest);
        Ok(manifest.or_else(|| self.indexes.get(&entry.digest).cloned().map(ManifestOrIndex::Index)))
    }

    fn platform(&self, _: &Manifest) -> Result<Option<Platform>, Infallible> {
        Ok(None)
    }
}

fn blob_path(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm(), digest.hex())
}

/// One image on its way into an archive.
pub struct ArchiveImage<'a, W: Write> {
    archive: &'a ArchiveWriter<W>,
    names: Vec<LayoutName>,
}

impl<W: Write + Send> ImageSink for ArchiveImage<'_, W> {
    fn contains(&self, blob: &Descriptor) -> Result<bool, TransferError> {
        Ok(self.archive.state().written.contains(&blob.digest))
    }

    fn write(&self, blob: &Descriptor, content: &mut (dyn Read + Send)) -> Result<(), TransferError> {
        self.archive.state().append_blob(&blob.digest, blob.size, content)
    }

    fn put_manifest(&self, descriptor: &Descriptor, mut raw: &[u8]) -> Result<(), TransferError> {
        let mut state = self.archive.state();
        let parsed = ManifestOrIndex::parse(raw, Some(&descriptor.media_type))
            .map_err(|source| TransferError::Manifest { what: descriptor.digest.to_string(), source })?;
        match parsed {
            ManifestOrIndex::Manifest(manifest) => drop(state.manifests.insert(descriptor.digest, manifest)),
            ManifestOrIndex::Index(index) => drop(state.indexes.insert(descriptor.digest, index)),
        }
        if state.written.contains(&descriptor.digest) {
            return Ok(());
        }
        let size = raw.len() as u64;
        state.append_blob(&descriptor.digest, size, &mut raw)
    }

    fn publish(&self, root: &Descriptor) -> Result<(), TransferError> {
        let mut state = self.archive.state();
        let entries = std::mem::take(&mut state.entries);
        state.entries = merge_entries(entries, root, &self.names);
        state.published.push((root.digest, self.names.clone()));
        Ok(())
    }

    /// A tar is written front to back.
    fn parallel_max(&self) -> usize {
        1
    }
}
