//! OCI image layouts (image-spec, *Image Layout*) as directories: both ends of a copy.
//!
//! ```text
//! oci-layout             {"imageLayoutVersion":"1.0.0"}
//! index.json             an index whose entries carry org.opencontainers.image.ref.name
//! blobs/<alg>/<hex>
//! ```
//!
//! The naming of entries is shared with archives ([`crate::archive`]), which hold the same files in a tar.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::descriptor::Descriptor;
use crate::digest::{Algorithm, Digest, VerifyReader};
use crate::manifest::{Index, MANIFEST_BYTES_MAX, ManifestOrIndex};
use crate::media_type;
use crate::reference::{ImageName, Reference, Tag};
use crate::root_dir::open_regular;
use crate::transfer::{ImageSink, ImageSource, ManifestBytes, TransferError, Version};

/// Annotation that names an entry of `index.json` (image-spec, *Annotations*): a tag, or a whole reference.
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Annotation by which containerd and Docker carry the whole reference.
pub const CONTAINERD_NAME: &str = "io.containerd.image.name";
/// The content of `oci-layout`.
pub const LAYOUT_MARKER: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;

/// A name of an image within a layout or archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayoutName {
    /// The repository, where the layout tells.
    pub name: Option<ImageName>,
    /// The tag, where the layout tells.
    pub tag: Option<Tag>,
}

impl LayoutName {
    /// What the annotations of an entry say. `org.opencontainers.image.ref.name` is a tag in the specification,
    /// and a whole reference in what some tools write.
    pub fn of(entry: &Descriptor) -> LayoutName {
        let whole = entry.annotations.get(CONTAINERD_NAME).and_then(|text| text.parse::<Reference>().ok());
        let short = entry.annotations.get(REF_NAME);
        let reference = whole.or_else(|| {
            let text = short.filter(|text| text.contains([':', '/']))?;
            text.parse::<Reference>().ok()
        });
        let tag = short.and_then(|text| text.parse::<Tag>().ok());
        match reference {
            Some(reference) => {
                let tag = reference.tag.clone().or(tag);
                LayoutName { name: Some(reference.name()), tag }
            }
            None => LayoutName { name: None, tag },
        }
    }

    /// The name to load under: `given` where the layout tells none, and `latest` where it tells no tag.
    pub(crate) fn completed(self, given: Option<&ImageName>) -> LayoutName {
        let name = self.name.or_else(|| given.cloned());
        let tag = self.tag.or_else(|| name.is_some().then(Tag::latest));
        LayoutName { name, tag }
    }

    /// Writes the name into the annotations of an entry, for every tool that may read it.
    pub fn annotate(&self, entry: &mut Descriptor) {
        if let Some(tag) = &self.tag {
            entry.annotations.insert(REF_NAME.to_owned(), tag.to_string());
        }
        if let (Some(name), Some(tag)) = (&self.name, &self.tag) {
            entry.annotations.insert(CONTAINERD_NAME.to_owned(), full_name(name, tag));
        }
    }
}

/// A name with its registry, as containerd wants it: Docker Hub's is spelled out.
fn full_name(name: &ImageName, tag: &Tag) -> String {
    let first = name.as_str().split('/').next().unwrap_or_default();
    let has_registry = name.as_str().contains('/') && (first.contains(['.', ':']) || first == "localhost");
    match (has_registry, name.as_str().contains('/')) {
        (true, _) => format!("{name}:{tag}"),
        (false, true) => format!("docker.io/{name}:{tag}"),
        (false, false) => format!("docker.io/library/{name}:{tag}"),
    }
}

/// Finds the entry of an index that `version` means. A layout of one image needs no name.
pub(crate) fn find_entry<'i>(index: &'i Index, version: &Version) -> Option<&'i Descriptor> {
    let entries = index.manifests();
    match version {
        Version::Digest(digest) => entries.iter().find(|entry| entry.digest == *digest),
        Version::Tag(tag) => {
            let named = entries.iter().find(|entry| LayoutName::of(entry).tag.as_ref() == Some(tag));
            let only = entries.first().filter(|_| entries.len() == 1 && *tag == Tag::latest());
            named.or(only)
        }
    }
}

/// An OCI layout directory to copy from.
#[derive(Clone, Debug)]
pub struct LayoutSource {
    root: PathBuf,
    index: Index,
}

impl LayoutSource {
    /// Opens the layout in `root`.
    pub fn open(root: &Path) -> Result<LayoutSource, TransferError> {
        let marker = read_bounded(&root.join("oci-layout"), 1 << 10)?;
        check_marker(&marker).map_err(|reason| TransferError::Io {
            action: format!("read {}", root.join("oci-layout").display()),
            source: io::Error::new(io::ErrorKind::InvalidData, reason),
        })?;
        let path = root.join("index.json");
        let index =
            parse_index(&read_bounded(&path, MANIFEST_BYTES_MAX as u64)?, &path.display().to_string())?;
        Ok(LayoutSource { root: root.to_owned(), index })
    }

    /// What the layout holds.
    pub fn index(&self) -> &Index {
        &self.index
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        blob_path(&self.root, digest)
    }
}

impl ImageSource for LayoutSource {
    fn manifest(&self, version: &Version) -> Result<ManifestBytes, TransferError> {
        let entry = find_entry(&self.index, version);
        let (digest, media_type) = match (entry, version) {
            (Some(entry), _) => (entry.digest, entry.media_type.clone()),
            (None, Version::Digest(digest)) => (*digest, String::new()),
            (None, Version::Tag(tag)) => {
                return Err(TransferError::NotFound(format!("tag `{tag}` in {}", self.root.display())));
            }
        };
        let raw = read_bounded(&self.blob_path(&digest), MANIFEST_BYTES_MAX as u64)?;
        Ok(ManifestBytes { raw, media_type })
    }

    fn has(&self, blob: &Descriptor) -> Result<bool, TransferError> {
        Ok(fs::symlink_metadata(self.blob_path(&blob.digest)).is_ok())
    }

    fn open(&self, blob: &Descriptor, offset: u64) -> Result<Box<dyn Read + Send + '_>, TransferError> {
        let path = self.blob_path(&blob.digest);
        let mut file = open_plain(&path)?;
        let seek = file.seek(SeekFrom::Start(offset));
        seek.map_err(TransferError::io(format!("seek in {}", path.display())))?;
        Ok(Box::new(file))
    }
}

/// An OCI layout directory to copy to. Images already there stay; one of the same name is replaced.
#[derive(Debug)]
pub struct LayoutSink {
    root: PathBuf,
    names: Vec<LayoutName>,
    /// Two publishes must not each write the index without the other's entry.
    index: Mutex<()>,
    temporary: AtomicU64,
}

impl LayoutSink {
    /// Makes `root` a layout if it is none, and will publish an image in it under `names`.
    pub fn create(root: &Path, names: Vec<LayoutName>) -> Result<LayoutSink, TransferError> {
        for algorithm in Algorithm::ALL {
            let path = root.join("blobs").join(algorithm.name());
            fs::create_dir_all(&path).map_err(TransferError::io(format!("create {}", path.display())))?;
        }
        let sink = LayoutSink {
            root: root.to_owned(),
            names,
            index: Mutex::default(),
            temporary: AtomicU64::new(0),
        };
        sink.write_file(&root.join("oci-layout"), &mut LAYOUT_MARKER.as_bytes())?;
        Ok(sink)
    }

    fn write_file(&self, target: &Path, content: &mut dyn Read) -> Result<(), TransferError> {
        let number = self.temporary.fetch_add(1, Ordering::Relaxed);
        let temporary = self.root.join(format!(".rimg-{}-{number}", std::process::id()));
        let written = File::create_new(&temporary).and_then(|mut file| {
            io::copy(content, &mut file)?;
            file.sync_data()?;
            fs::rename(&temporary, target)
        });
        written.map_err(|source| {
            let _ = fs::remove_file(&temporary);
            TransferError::Io { action: format!("write {}", target.display()), source }
        })
    }
}

impl ImageSink for LayoutSink {
    fn contains(&self, blob: &Descriptor) -> Result<bool, TransferError> {
        let path = blob_path(&self.root, &blob.digest);
        // A file of the right length may still be another's unfinished or damaged one: it is not ours to trust.
        let whole = open_regular(&path)
            .and_then(|file| io::copy(&mut VerifyReader::new(file, blob.digest, blob.size), &mut io::sink()));
        Ok(whole.is_ok())
    }

    fn write(&self, blob: &Descriptor, content: &mut (dyn Read + Send)) -> Result<(), TransferError> {
        let mut verified = VerifyReader::new(content, blob.digest, blob.size);
        self.write_file(&blob_path(&self.root, &blob.digest), &mut verified)
    }

    fn put_manifest(&self, descriptor: &Descriptor, mut raw: &[u8]) -> Result<(), TransferError> {
        self.write_file(&blob_path(&self.root, &descriptor.digest), &mut raw)
    }

    fn publish(&self, root: &Descriptor) -> Result<(), TransferError> {
        let _guard = self.index.lock().unwrap_or_else(PoisonError::into_inner);
        let path = self.root.join("index.json");
        let old = match read_bounded(&path, MANIFEST_BYTES_MAX as u64) {
            Ok(raw) => parse_index(&raw, &path.display().to_string())?.manifests().to_vec(),
            Err(TransferError::NotFound(_)) => Vec::new(),
            Err(error) => return Err(error),
        };
        // What the index names must be on disk before the index is.
        for algorithm in Algorithm::ALL {
            sync_directory(&self.root.join("blobs").join(algorithm.name()))?;
        }
        let index = Index::build(merge_entries(old, root, &self.names), Default::default());
        self.write_file(&path, &mut index.raw())?;
        sync_directory(&self.root)
    }
}

/// The entries of an index after `root` was published under `names`: names move, other entries stay.
pub(crate) fn merge_entries(
    old: Vec<Descriptor>,
    root: &Descriptor,
    names: &[LayoutName],
) -> Vec<Descriptor> {
    let taken = |entry: &Descriptor| {
        let name = LayoutName::of(entry);
        let unnamed = names.is_empty() || name == LayoutName { name: None, tag: None };
        names.contains(&name) || (unnamed && entry.digest == root.digest)
    };
    let mut entries: Vec<Descriptor> = old.into_iter().filter(|entry| !taken(entry)).collect();
    let bare = Descriptor::new(&root.media_type, root.digest, root.size);
    if names.is_empty() {
        entries.push(bare);
        return entries;
    }
    for name in names {
        let mut entry = bare.clone();
        name.annotate(&mut entry);
        entries.push(entry);
    }
    entries
}

pub(crate) fn parse_index(raw: &[u8], what: &str) -> Result<Index, TransferError> {
    match ManifestOrIndex::parse(raw, Some(media_type::OCI_INDEX)) {
        Ok(ManifestOrIndex::Index(index)) => Ok(index),
        Ok(ManifestOrIndex::Manifest(_)) => Err(TransferError::NotFound(format!("an image index in {what}"))),
        Err(source) => Err(TransferError::Manifest { what: what.to_owned(), source }),
    }
}

/// Whether the bytes of `oci-layout` name a version of the format that this is.
pub(crate) fn check_marker(raw: &[u8]) -> Result<(), String> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Marker {
        image_layout_version: String,
    }
    let marker: Marker =
        serde_json::from_slice(raw).map_err(|error| format!("it is not a layout marker: {error}"))?;
    match marker.image_layout_version.starts_with("1.") {
        true => Ok(()),
        false => Err(format!("layout version `{}` is not supported, only 1.x", marker.image_layout_version)),
    }
}

fn blob_path(root: &Path, digest: &Digest) -> PathBuf {
    root.join("blobs").join(digest.algorithm().name()).join(digest.hex())
}

/// Opens a regular file of a layout. A symbolic link in a blob's place could point at anything of the reader's.
fn open_plain(path: &Path) -> Result<File, TransferError> {
    open_regular(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => TransferError::NotFound(path.display().to_string()),
        _ => TransferError::Io { action: format!("open {}", path.display()), source },
    })
}

fn sync_directory(path: &Path) -> Result<(), TransferError> {
    let synced = File::open(path).and_then(|directory| directory.sync_all());
    synced.map_err(TransferError::io(format!("sync {}", path.display())))
}

fn read_bounded(path: &Path, bytes_max: u64) -> Result<Vec<u8>, TransferError> {
    let mut content = Vec::new();
    let read = open_plain(path)?.take(bytes_max + 1).read_to_end(&mut content);
    read.map_err(TransferError::io(format!("read {}", path.display())))?;
    if content.len() as u64 > bytes_max {
        let limit = usize::try_from(bytes_max).unwrap_or(usize::MAX);
        return Err(TransferError::Limit { what: "the size of a document in the layout", limit });
    }
    Ok(content)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn entry(annotations: &[(&str, &str)]) -> Descriptor {
        let mut entry = Descriptor::new(media_type::OCI_MANIFEST, Digest::sha256(b"m"), 1);
        entry.annotations =
            annotations.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
        entry
    }

    #[test]
    fn names_are_read_from_what_tools_write() {
        for (annotations, name, tag) in [
            (&[][..], None, None),
            (&[(REF_NAME, "1.2")], None, Some("1.2")),
            (&[(REF_NAME, "ghcr.io/a/b:1")], Some("ghcr.io/a/b"), Some("1")),
            (&[(REF_NAME, "docker.io/library/app:1")], Some("app"), Some("1")),
            (&[(REF_NAME, "x"), (CONTAINERD_NAME, "docker.io/library/app:2")], Some("app"), Some("2")),
            (&[(REF_NAME, "../../etc")], None, None),
        ] {
            let found = LayoutName::of(&entry(annotations));
            assert_eq!(found.name.as_ref().map(ImageName::as_str), name, "{annotations:?}");
            assert_eq!(found.tag.as_ref().map(Tag::as_str), tag, "{annotations:?}");
        }
    }

    #[test]
    fn names_survive_writing_and_reading() {
        for (name, full) in [
            ("app", "docker.io/library/app:1"),
            ("a/b", "docker.io/a/b:1"),
            ("ghcr.io/a/b", "ghcr.io/a/b:1"),
            ("localhost/x", "localhost/x:1"),
        ] {
            let name = LayoutName { name: Some(name.parse().unwrap()), tag: Some("1".parse().unwrap()) };
            let mut written = entry(&[]);
            name.annotate(&mut written);
            assert_eq!(written.annotations[CONTAINERD_NAME], full);
            assert_eq!(LayoutName::of(&written), name);
        }
    }

    #[test]
    fn publishing_moves_a_name_and_keeps_the_others() {
        let named = |tag: &str| LayoutName { name: None, tag: Some(tag.parse().unwrap()) };
        let (one, mut two) = (entry(&[]), entry(&[]));
        two.digest = Digest::sha256(b"two");
        let entries = merge_entries(Vec::new(), &one, &[named("a"), named("b")]);
        let entries = merge_entries(entries, &two, &[named("b")]);
        let listed: Vec<_> = entries.iter().map(|entry| (LayoutName::of(entry), entry.digest)).collect();
        assert_eq!(listed, [(named("a"), one.digest), (named("b"), two.digest)]);
    }

    #[test]
    fn markers_of_other_versions_are_refused() {
        assert!(check_marker(LAYOUT_MARKER.as_bytes()).is_ok());
        for bad in ["", "{}", r#"{"imageLayoutVersion":"2.0.0"}"#, r#"{"imageLayoutVersion":1}"#] {
            assert!(check_marker(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
