//! [`LayerTree`]: the merged layers of an image or stage as a source of files. Nothing is unpacked: names come from
//! the layers' indexes, contents straight out of the blobs.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rimg_formats::compression::{Compression, decoder};
use rimg_formats::digest::Digest;
use rimg_formats::layer::{EntryKind, IndexEntry, LayerIndex, LayerPath, MergedTree, Node};
use rimg_formats::store::{Store, StoreError};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::cache::LayerRecord;
use crate::context::DiskFile;
use crate::source_tree::{Content, FileIdentity, SourceNode, SourceTree, land};

/// Files wanted of one layer from which on the layer is decompressed once into a temporary file: finding each file in
/// the compressed blob decompresses up to a member (1 MiB in rimg's layers, all of it in other people's) for nothing.
const SPILL_FILES_MIN: usize = 32;
/// The same for layers that are one member.
const SPILL_FILES_MIN_WHOLE: usize = 2;

/// Merged layers as a source tree.
#[derive(Clone, Debug)]
pub(crate) struct LayerTree {
    name: String,
    merged: MergedTree,
    layers: Vec<Arc<LayerContents>>,
}

/// A layer whose files can be opened.
#[derive(Debug)]
struct LayerContents {
    /// Different for all layers and archives that this process opens.
    number: u64,
    index: Arc<LayerIndex>,
    origin: Origin,
    store: Store,
    spilled: OnceLock<File>,
    spilling: Mutex<()>,
}

/// Where a layer's bytes are.
#[derive(Debug)]
enum Origin {
    /// A blob of the store.
    Blob,
    /// An archive on disk.
    Archive(DiskFile),
}

/// A regular file in a layer.
#[derive(Clone, Debug)]
pub(crate) struct LayerFile {
    layer: Arc<LayerContents>,
    entry: Arc<IndexEntry>,
}

impl LayerTree {
    /// The tree of `layers`, lowest first. `name` is what messages call it.
    pub(crate) fn new(name: &str, store: &Store, layers: &[LayerRecord]) -> Result<LayerTree, StoreError> {
        let empty = LayerTree { name: name.to_owned(), merged: MergedTree::new(&[]), layers: Vec::new() };
        layers.iter().try_fold(empty, |tree, layer| tree.with_layer(store, layer))
    }

    /// This tree with one more layer on top.
    pub(crate) fn with_layer(&self, store: &Store, layer: &LayerRecord) -> Result<LayerTree, StoreError> {
        let index = store.layer_index_of(&layer.descriptor.digest, Some(&layer.diff_id))?;
        Ok(self.with_contents(LayerContents::new(store, index, Origin::Blob)))
    }

    /// The tree of an archive on disk with this index.
    pub(crate) fn of_archive(name: &str, store: &Store, index: Arc<LayerIndex>, file: DiskFile) -> LayerTree {
        let empty = LayerTree { name: name.to_owned(), merged: MergedTree::new(&[]), layers: Vec::new() };
        empty.with_contents(LayerContents::new(store, index, Origin::Archive(file)))
    }

    fn with_contents(&self, contents: LayerContents) -> LayerTree {
        let merged = self.merged.with_layer(contents.index.clone());
        let mut layers = self.layers.clone();
        layers.push(Arc::new(contents));
        LayerTree { name: self.name.clone(), merged, layers }
    }

    /// What the layers make.
    pub(crate) fn merged(&self) -> &MergedTree {
        &self.merged
    }

    /// The same tree under another name.
    pub(crate) fn called(&self, name: &str) -> LayerTree {
        LayerTree { name: name.to_owned(), ..self.clone() }
    }

    /// Whether the directory at `path` has no entry of its own, and is there for what is in it.
    pub(crate) fn is_implied(&self, path: &LayerPath) -> bool {
        self.merged.lookup(path).is_some_and(|node| node.entry.is_none())
    }

    fn source_node(&self, node: Node<'_>) -> SourceNode {
        // A hard link's content and attributes are its target's, which lies in the same layer.
        let node = self.merged.link_source(node).unwrap_or(node);
        let mut source = SourceNode {
            kind: node.kind().clone(),
            mode: node.mode(),
            owner: Some((node.uid(), node.gid())),
            mtime: node.mtime(),
            xattrs: node.entry.map(|entry| entry.entry.xattrs.clone()).unwrap_or_default(),
            unread: None,
            content: Content::None,
            excluded: false,
            identity: None,
        };
        if let (EntryKind::Regular { .. }, Some(layer), Some(entry)) = (node.kind(), node.layer, node.entry) {
            let layer = self.layers[layer].clone();
            source.identity = Some(FileIdentity::Layer { layer: layer.number, offset: entry.offset });
            source.content = Content::Layer(LayerFile { layer, entry: Arc::new(entry.clone()) });
        }
        source
    }
}

impl SourceTree for LayerTree {
    fn lookup(&self, path: &LayerPath) -> io::Result<Option<SourceNode>> {
        Ok(self.merged.lookup(path).map(|node| self.source_node(node)))
    }

    fn children(&self, path: &LayerPath) -> io::Result<Vec<(Vec<u8>, SourceNode)>> {
        let names = self.merged.read_dir(path).into_iter().flatten();
        Ok(names.map(|(name, node)| (name.to_vec(), self.source_node(node))).collect())
    }

    fn describe(&self) -> String {
        self.name.clone()
    }

    fn explain_missing(&self, _path: &LayerPath) -> Option<String> {
        None
    }
}

impl LayerFile {
    /// The content's digest; `None` for sparse files with holes too large to have been read.
    pub(crate) fn digest(&self) -> Option<Digest> {
        self.entry.content
    }

    /// Opens the content; its digest is verified when the last byte is read.
    pub(crate) fn open(&self) -> io::Result<Box<dyn Read + Send>> {
        let index = &self.layer.index;
        if let Some(file) = self.layer.spilled.get() {
            let plain = LayerIndex {
                diff_id: index.diff_id,
                blob: index.blob,
                blob_size: index.uncompressed_size,
                compression: Compression::None,
                uncompressed_size: index.uncompressed_size,
                entries: Vec::new(),
                members: Vec::new(),
            };
            return Ok(Box::new(plain.read_file(&self.entry, file.try_clone()?)?));
        }
        Ok(Box::new(index.read_file(&self.entry, self.layer.blob()?)?))
    }
}

impl LayerContents {
    fn new(store: &Store, index: Arc<LayerIndex>, origin: Origin) -> LayerContents {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        LayerContents {
            number: NEXT.fetch_add(1, Ordering::Relaxed),
            index,
            origin,
            store: store.clone(),
            spilled: OnceLock::new(),
            spilling: Mutex::new(()),
        }
    }

    fn blob(&self) -> io::Result<File> {
        if let Origin::Archive(file) = &self.origin {
            return file.open();
        }
        let digest = self.index.blob;
        let blob = self.store.verified_blob(&digest).map_err(io::Error::other)?;
        let missing =
            || io::Error::new(io::ErrorKind::NotFound, format!("layer {digest} is not in the store"));
        Ok(blob.ok_or_else(missing)?.into_file())
    }

    /// Decompresses the layer into a file without a name, which vanishes with the build.
    fn spill(&self) -> io::Result<()> {
        let _one_at_a_time = self.spilling.lock().unwrap_or_else(PoisonError::into_inner);
        if self.spilled.get().is_some() {
            return Ok(());
        }
        let mut file = unnamed_file(&self.store.root().join("uploads"))?;
        let mut stream = decoder(self.index.compression, Box::new(self.blob()?));
        let length = io::copy(&mut (&mut stream).take(self.index.uncompressed_size), &mut file)?;
        if length < self.index.uncompressed_size {
            let message = format!("layer {} ends early", self.index.blob);
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, message));
        }
        let _ = self.spilled.set(file);
        Ok(())
    }
}

/// A file without a name on the file system of `directory`.
fn unnamed_file(directory: &Path) -> io::Result<File> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    match rustix::fs::open(directory, flags, Mode::RUSR | Mode::WUSR) {
        // What a file system that has none of them answers: network file systems, overlayfs before Linux 6.1.
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => briefly_named_file(directory),
        opened => Ok(File::from(opened?)),
    }
}

/// A file that loses its name at once.
fn briefly_named_file(directory: &Path) -> io::Result<File> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let name = format!(".layer-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let path = directory.join(name);
    let mut options = File::options();
    let file = options.read(true).write(true).create_new(true).mode(0o600).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

/// Gets layers ready from which many files are going to be read.
pub(crate) fn prepare_sources<'a>(contents: impl Iterator<Item = &'a Content>) -> io::Result<()> {
    let mut wanted: HashMap<Digest, (usize, &Arc<LayerContents>)> = HashMap::new();
    for content in contents {
        if let Content::Layer(file) = content {
            wanted.entry(file.layer.index.blob).or_insert((0, &file.layer)).0 += 1;
        }
    }
    for (count, layer) in wanted.into_values() {
        let limit = if layer.index.members.len() > 1 { SPILL_FILES_MIN } else { SPILL_FILES_MIN_WHOLE };
        if layer.index.compression != Compression::None && count >= limit {
            layer.spill()?;
        }
    }
    Ok(())
}

/// Largest file that is read whole to look something up in it: real passwd files are a few kilobytes.
const SMALL_FILE_BYTES_MAX: u64 = 8 << 20;

/// The content of a small regular file of a tree, links followed; `None` when there is none.
pub(crate) fn read_small_file(tree: &dyn SourceTree, path: &LayerPath) -> io::Result<Option<Vec<u8>>> {
    let Some(node) = land(tree, path)?.node else { return Ok(None) };
    let mut bytes = Vec::new();
    match &node.content {
        Content::None => return Ok(None),
        Content::Bytes(content) => bytes.extend_from_slice(content),
        Content::Disk(file) => drop(file.open()?.take(SMALL_FILE_BYTES_MAX).read_to_end(&mut bytes)?),
        Content::Layer(file) => drop(file.open()?.take(SMALL_FILE_BYTES_MAX).read_to_end(&mut bytes)?),
    }
    Ok(Some(bytes))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::io::{Seek, Write};

    #[test]
    fn files_of_layers_leave_no_name_on_any_file_system() {
        let folder = tempfile::tempdir().unwrap();
        for make in [unnamed_file, briefly_named_file] {
            let mut file = make(folder.path()).unwrap();
            file.write_all(b"layer").unwrap();
            file.rewind().unwrap();
            assert_eq!(io::read_to_string(file).unwrap(), "layer");
            assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        }
    }
}
