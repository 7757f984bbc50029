//! Images between stores, layouts and archives, and archives that mean harm.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use rimg_formats::archive::{self, LoadOptions};
use rimg_formats::config::ImageConfig;
use rimg_formats::descriptor::Descriptor;
use rimg_formats::digest::{DiffId, Digest};
use rimg_formats::epoch::Epoch;
use rimg_formats::layer::{LayerOptions, LayerWriter};
use rimg_formats::layout::{LayoutName, LayoutSink, LayoutSource};
use rimg_formats::manifest::{Index, Manifest};
use rimg_formats::media_type;
use rimg_formats::platform::Platform;
use rimg_formats::reference::{ImageName, Tag};
use rimg_formats::store::fsck::FsckOptions;
use rimg_formats::store::prune::PruneOptions;
use rimg_formats::store::{PutOptions, Store};
use rimg_formats::transfer::{
    CopyOptions, Event, ImageSink, ImageSource, ManifestBytes, Platforms, RepositorySink, TransferError,
    Version, copy_image,
};
use rustix::fs::{CWD, FileType, Mode, mknodat};

struct World {
    _directory: tempfile::TempDir,
    store: Store,
}

fn world() -> World {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    World { _directory: directory, store }
}

impl Drop for World {
    /// Whatever a test did, the store is whole afterwards.
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let report = self.store.fsck(&FsckOptions::default()).unwrap();
            assert!(report.is_clean(), "{report:?}");
        }
    }
}

fn name(text: &str) -> ImageName {
    text.parse().unwrap()
}

fn tag(text: &str) -> Tag {
    text.parse().unwrap()
}

fn latest() -> Version {
    Version::Tag(Tag::latest())
}

/// An image for `platform` with one empty gzip layer.
fn put_image(store: &Store, repository: &str, tags: &[&str], platform: &str) -> Descriptor {
    let layer =
        LayerWriter::new(store.ingest_local().unwrap(), LayerOptions::default()).unwrap().finish().unwrap();
    let blob = store.commit_layer(layer.out, &layer.index).unwrap();
    let mut config = ImageConfig::scratch(platform.parse().unwrap(), Epoch::DEFAULT);
    config.rootfs.diff_ids.push(layer.index.diff_id);
    let config = store.put_bytes(&config.to_bytes()).unwrap();
    let manifest = Manifest::build(
        Descriptor::new(media_type::OCI_CONFIG, config.digest, config.size),
        vec![Descriptor::new(media_type::OCI_LAYER_GZIP, blob.digest, blob.size)],
        BTreeMap::new(),
    );
    let tags: Vec<Tag> = tags.iter().map(|text| tag(text)).collect();
    store
        .repository(&name(repository))
        .put_manifest(manifest.raw(), None, &tags, &PutOptions::local())
        .unwrap();
    let mut descriptor = manifest.descriptor();
    descriptor.platform = Some(platform.parse().unwrap());
    descriptor
}

fn put_index(store: &Store, repository: &str, platforms: &[&str]) -> Digest {
    let entries = platforms.iter().map(|platform| put_image(store, repository, &[], platform)).collect();
    let index = Index::build(entries, BTreeMap::new());
    let repository = store.repository(&name(repository));
    repository.put_manifest(index.raw(), None, &[Tag::latest()], &PutOptions::local()).unwrap().digest
}

fn sink(store: &Store, repository: &str) -> RepositorySink {
    RepositorySink::new(store.repository(&name(repository)), vec![Tag::latest()])
}

fn save(store: &Store, images: &[&str]) -> Vec<u8> {
    let images: Vec<_> = images.iter().map(|typed| store.resolve_text(typed).unwrap()).collect();
    archive::save(store, &images, Vec::new(), &CopyOptions::default()).unwrap()
}

fn load(store: &Store, tar: &[u8]) -> Result<Vec<String>, String> {
    let loaded = archive::load(store, tar, &LoadOptions::default()).map_err(|error| error.to_string())?;
    let text = |image: archive::Loaded| match image.tag {
        Some(tag) => format!("{}:{tag}", image.name),
        None => image.name.to_string(),
    };
    Ok(loaded.into_iter().map(text).collect())
}

fn tar_of(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, content) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        if let Some(target) = path.strip_prefix("link:") {
            let (path, target) = target.split_once("->").unwrap();
            header.set_size(0);
            header.set_entry_type(tar::EntryType::Symlink);
            builder.append_link(&mut header, path, target).unwrap();
        } else {
            header.set_size(content.len() as u64);
            // Past the builder's own checks of the path: hostile archives do not ask it.
            let name = &mut header.as_old_mut().name;
            name[..path.len()].copy_from_slice(path.as_bytes());
            header.set_cksum();
            builder.append(&header, *content).unwrap();
        }
    }
    builder.into_inner().unwrap()
}

/// A sink whose store is collected, as greedily as possible, before each step.
struct Collected<'a> {
    store: &'a Store,
    sink: RepositorySink,
}

impl Collected<'_> {
    fn collect(&self) {
        let options =
            PruneOptions { untagged: true, all: true, older_than_seconds: 0, ..PruneOptions::default() };
        self.store.prune(&options).unwrap();
    }
}

impl ImageSink for Collected<'_> {
    fn contains(&self, blob: &Descriptor) -> Result<bool, TransferError> {
        self.collect();
        self.sink.contains(blob)
    }

    fn write(&self, blob: &Descriptor, content: &mut (dyn Read + Send)) -> Result<(), TransferError> {
        self.collect();
        self.sink.write(blob, content)
    }

    fn put_manifest(&self, descriptor: &Descriptor, raw: &[u8]) -> Result<(), TransferError> {
        self.collect();
        self.sink.put_manifest(descriptor, raw)
    }

    fn publish(&self, root: &Descriptor) -> Result<(), TransferError> {
        self.collect();
        self.sink.publish(root)
    }
}

#[test]
fn a_collector_leaves_alone_what_is_being_copied() {
    let (here, there) = (world(), world());
    let index = put_index(&here.store, "app", &["linux/amd64", "linux/arm64"]);
    let source = here.store.repository(&name("app"));
    let collected = Collected { store: &there.store, sink: sink(&there.store, "app") };
    let copied = copy_image(&source, &collected, &latest(), &CopyOptions::default()).unwrap();
    assert_eq!(copied.digest, index);
    let repository = there.store.repository(&name("app"));
    assert_eq!(repository.resolve(&Tag::latest()).unwrap(), Some(index));
    drop(collected.sink);
    Collected { store: &there.store, sink: sink(&there.store, "app") }.collect();
    assert_eq!(repository.resolve(&Tag::latest()).unwrap(), None, "nothing is held for good");
}

#[test]
fn a_copy_between_stores_is_exact_and_skips_what_is_there() {
    let (here, there) = (world(), world());
    let index = put_index(&here.store, "app", &["linux/amd64", "linux/arm64"]);
    let events = Mutex::new(Vec::new());
    let on_event = |event| events.lock().unwrap().push(event);
    let options = CopyOptions { on_event: Some(&on_event), ..CopyOptions::default() };
    let source = here.store.repository(&name("app"));
    for round in 0..2 {
        let root = copy_image(&source, &sink(&there.store, "copy"), &latest(), &options).unwrap();
        assert_eq!(root.digest, index);
        let events = std::mem::take(&mut *events.lock().unwrap());
        let skipped = events.iter().filter(|event| matches!(event, Event::BlobSkipped { .. })).count();
        let done = events.iter().filter(|event| matches!(event, Event::BlobDone { .. })).count();
        assert_eq!((done, skipped), if round == 0 { (3, 0) } else { (0, 3) });
        assert!(matches!(events[0], Event::Planned { blobs: 3, .. }));
    }
    assert_eq!(there.store.resolve_text("copy").unwrap().digest, index);
    let image = there.store.image(&index, Some(&Platform::new("linux", "arm64"))).unwrap();
    assert_eq!(image.config.platform, Platform::new("linux", "arm64"));
}

#[test]
fn chosen_platforms_leave_a_sparse_index_or_one_image() {
    let (here, there) = (world(), world());
    let index = put_index(&here.store, "app", &["linux/amd64", "linux/arm64"]);
    let source = here.store.repository(&name("app"));
    let arm = Platform::new("linux", "arm64");
    let only = CopyOptions { platforms: Platforms::Only(vec![arm.clone()]), ..CopyOptions::default() };
    let root = copy_image(&source, &sink(&there.store, "sparse"), &latest(), &only).unwrap();
    assert_eq!(root.digest, index);
    assert!(there.store.image(&index, Some(&arm)).is_ok());
    assert!(there.store.image(&index, Some(&Platform::new("linux", "amd64"))).is_err());
    let flat = CopyOptions { flatten: true, ..only };
    let root = copy_image(&source, &sink(&there.store, "flat"), &latest(), &flat).unwrap();
    assert_eq!(root.media_type, media_type::OCI_MANIFEST);
    let none = CopyOptions {
        platforms: Platforms::Only(vec![Platform::new("linux", "s390x")]),
        ..CopyOptions::default()
    };
    let error = copy_image(&source, &sink(&there.store, "none"), &latest(), &none).unwrap_err();
    assert!(
        error.to_string().contains("no variant for linux/s390x; it has: linux/amd64, linux/arm64"),
        "{error}"
    );
    assert!(there.store.resolve_text("none").is_err());
    // A sparse index goes on as sparse as it is.
    let third = world();
    let present = CopyOptions { platforms: Platforms::Present, ..CopyOptions::default() };
    let source = there.store.repository(&name("sparse"));
    assert!(copy_image(&source, &sink(&third.store, "all"), &latest(), &CopyOptions::default()).is_err());
    assert_eq!(copy_image(&source, &sink(&third.store, "app"), &latest(), &present).unwrap().digest, index);
}

/// A source that breaks off or lies.
struct Faulty<'a> {
    inner: &'a dyn ImageSource,
    opened: AtomicUsize,
    breaks: usize,
    lie: bool,
}

impl ImageSource for Faulty<'_> {
    fn manifest(&self, version: &Version) -> Result<ManifestBytes, TransferError> {
        self.inner.manifest(version)
    }

    fn open(&self, blob: &Descriptor, offset: u64) -> Result<Box<dyn Read + Send + '_>, TransferError> {
        let content = self.inner.open(blob, offset)?;
        if self.lie {
            return Ok(Box::new(io::repeat(b'x').take(blob.size - offset)));
        }
        match self.opened.fetch_add(1, Ordering::Relaxed) < self.breaks {
            true => Ok(Box::new(content.take(3))),
            false => Ok(content),
        }
    }
}

#[test]
fn broken_streams_are_taken_up_where_they_broke() {
    let (here, there) = (world(), world());
    put_image(&here.store, "app", &["latest"], "linux/amd64");
    let repository = here.store.repository(&name("app"));
    let faulty = Faulty { inner: &repository, opened: AtomicUsize::new(0), breaks: 5, lie: false };
    copy_image(&faulty, &sink(&there.store, "app"), &latest(), &CopyOptions::default()).unwrap();
    assert_eq!(faulty.opened.load(Ordering::Relaxed), 7);
}

#[test]
fn wrong_bytes_publish_nothing() {
    let (here, there) = (world(), world());
    put_image(&here.store, "app", &["latest"], "linux/amd64");
    let repository = here.store.repository(&name("app"));
    let faulty = Faulty { inner: &repository, opened: AtomicUsize::new(0), breaks: 0, lie: true };
    let error =
        copy_image(&faulty, &sink(&there.store, "app"), &latest(), &CopyOptions::default()).unwrap_err();
    assert!(error.to_string().contains("does not match its digest"), "{error}");
    assert!(there.store.images().unwrap().is_empty());
}

#[test]
fn layout_directories_hold_several_images() {
    let (here, there) = (world(), world());
    let one = put_image(&here.store, "app", &["latest"], "linux/amd64");
    let two = put_index(&here.store, "multi", &["linux/amd64", "linux/arm64"]);
    let directory = tempfile::tempdir().unwrap();
    for repository in ["app", "multi", "app"] {
        let names = vec![LayoutName { name: Some(name(repository)), tag: Some(tag(repository)) }];
        let sink = LayoutSink::create(directory.path(), names).unwrap();
        let source = here.store.repository(&name(repository));
        copy_image(&source, &sink, &latest(), &CopyOptions::default()).unwrap();
    }
    let source = LayoutSource::open(directory.path()).unwrap();
    assert_eq!(source.index().manifests().len(), 2);
    for (version, digest) in [("app", one.digest), ("multi", two)] {
        let version = Version::Tag(tag(version));
        let root = copy_image(&source, &sink(&there.store, "x"), &version, &CopyOptions::default()).unwrap();
        assert_eq!(root.digest, digest);
    }
    let missing = copy_image(&source, &sink(&there.store, "x"), &latest(), &CopyOptions::default());
    assert!(matches!(missing, Err(TransferError::NotFound(_))));
    let whole = archive::load_directory(&there.store, directory.path(), &LoadOptions::default()).unwrap();
    let loaded: BTreeMap<_, _> = whole.iter().map(|image| (image.name.to_string(), image.digest)).collect();
    assert_eq!(loaded, BTreeMap::from([("app".to_owned(), one.digest), ("multi".to_owned(), two)]));
}

#[test]
fn layout_directories_are_not_trusted() {
    let (here, there) = (world(), world());
    let image = put_image(&here.store, "app", &["latest"], "linux/amd64");
    let directory = tempfile::tempdir().unwrap();
    let layout = LayoutSink::create(directory.path(), Vec::new()).unwrap();
    copy_image(&here.store.repository(&name("app")), &layout, &latest(), &CopyOptions::default()).unwrap();
    let blob = |digest: &Digest| directory.path().join("blobs/sha256").join(digest.hex());
    let config = here.store.image(&image.digest, None).unwrap().manifest.config().digest;
    let copy = || {
        let source = LayoutSource::open(directory.path()).unwrap();
        copy_image(&source, &sink(&there.store, "app"), &latest(), &CopyOptions::default())
    };
    let good = std::fs::read(blob(&config)).unwrap();
    // What a link leads to is right: it is refused for being a link.
    let outside = directory.path().join("outside");
    std::fs::write(&outside, &good).unwrap();
    let spoil: [&dyn Fn(&Path); 4] = [
        &|path| std::fs::write(path, b"{}").unwrap(),
        &|path| std::os::unix::fs::symlink(&outside, path).unwrap(),
        // Opened without care, this would wait for a writer.
        &|path| mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap(),
        &|_| {},
    ];
    for spoil in spoil {
        std::fs::remove_file(blob(&config)).unwrap();
        spoil(&blob(&config));
        assert!(copy().is_err());
        assert!(there.store.images().unwrap().is_empty());
        // Whatever lies there goes first: writing would follow the link.
        let _ = std::fs::remove_file(blob(&config));
        std::fs::write(blob(&config), &good).unwrap();
    }
    copy().unwrap();
}

#[test]
fn archives_carry_images_with_their_names() {
    let (here, there) = (world(), world());
    put_image(&here.store, "app", &["latest", "1"], "linux/amd64");
    let index = put_index(&here.store, "ghcr.io/a/multi", &["linux/amd64", "linux/arm64"]);
    let images = ["app", "app:1", "ghcr.io/a/multi"];
    let tar = save(&here.store, &images);
    assert_eq!(tar, save(&here.store, &images), "the same images give the same bytes");
    assert_eq!(load(&there.store, &tar).unwrap(), ["app:latest", "app:1", "ghcr.io/a/multi:latest"]);
    assert_eq!(there.store.resolve_text("ghcr.io/a/multi").unwrap().digest, index);
    let app = |store: &Store| store.resolve_text("app:1").unwrap().digest;
    assert_eq!(app(&there.store), app(&here.store));
    assert_eq!(save(&there.store, &images), tar);
}

#[test]
fn archives_say_what_docker_wants_to_know() {
    let here = world();
    put_image(&here.store, "app", &["latest", "1"], "linux/amd64");
    let tar = save(&here.store, &["app", "app:1"]);
    let mut archive = tar::Archive::new(tar.as_slice());
    let mut files = BTreeMap::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let (path, mut content) = (entry.path().unwrap().display().to_string(), Vec::new());
        entry.read_to_end(&mut content).unwrap();
        files.insert(path, content);
    }
    let images: serde_json::Value = serde_json::from_slice(&files["manifest.json"]).unwrap();
    assert_eq!(images.as_array().unwrap().len(), 1);
    assert_eq!(images[0]["RepoTags"], serde_json::json!(["app:latest", "app:1"]));
    assert!(files.contains_key(images[0]["Config"].as_str().unwrap()));
    assert!(files.contains_key(images[0]["Layers"][0].as_str().unwrap()));
}

/// What `docker save` wrote before it knew the OCI.
fn old_docker_archive(layers: &[&str], link: &str) -> Vec<u8> {
    let layer = tar_of(&[("hello", b"world")]);
    let mut config = ImageConfig::scratch(Platform::new("linux", "amd64"), Epoch::DEFAULT);
    config.rootfs.diff_ids = layers.iter().map(|_| DiffId::new(Digest::sha256(&layer))).collect();
    let images = serde_json::json!([{
        "Config": "cfg.json", "RepoTags": ["app:1", "registry.example:5000/app:2"], "Layers": layers
    }]);
    tar_of(&[
        ("a/", b""),
        ("a/VERSION", b"1.0"),
        ("a/layer.tar", &layer),
        (link, b""),
        ("cfg.json", &config.to_bytes()),
        ("manifest.json", images.to_string().as_bytes()),
    ])
}

#[test]
fn old_docker_archives_are_loaded_with_their_layers_as_they_are() {
    let tar = old_docker_archive(&["a/layer.tar", "b/layer.tar"], "link:b/layer.tar->../a/layer.tar");
    let mut digests = Vec::new();
    for packed in [tar.clone(), zstd::encode_all(tar.as_slice(), 1).unwrap()] {
        let there = world();
        assert_eq!(load(&there.store, &packed).unwrap(), ["app:1", "registry.example:5000/app:2"]);
        let image = there.store.resolve_text("app:1").unwrap();
        digests.push(image.digest);
        let image = there.store.image(&image.digest, None).unwrap();
        assert_eq!(image.layers.len(), 2);
        assert_eq!(image.layers[0].0.media_type, media_type::OCI_LAYER_TAR);
        assert_eq!(there.store.layer_index(&image.layers[0].0.digest).unwrap().entries.len(), 1);
    }
    assert_eq!(digests[0], digests[1]);
}

#[test]
fn compressed_layers_of_docker_archives_are_checked_against_the_configuration() {
    let (here, there) = (world(), world());
    put_image(&here.store, "app", &["latest"], "linux/amd64");
    let image = here.store.image(&here.store.resolve_text("app").unwrap().digest, None).unwrap();
    let read = |digest: &Digest| here.store.read_blob(digest, 1 << 20).unwrap();
    let layer = read(&image.layers[0].0.digest);
    let images = br#"[{"Config":"c","RepoTags":null,"Layers":["l"]}]"#;
    let config = read(&image.manifest.config().digest);
    let archive = |config: &[u8]| tar_of(&[("l", &layer), ("c", config), ("manifest.json", images)]);
    assert_eq!(load(&there.store, &archive(&config)).unwrap(), ["loaded"]);
    let mut wrong = image.config.clone();
    wrong.rootfs.diff_ids = vec![DiffId::new(Digest::sha256(b"another layer"))];
    let error = load(&there.store, &archive(&wrong.to_bytes())).unwrap_err();
    assert!(error.contains("diff_id"), "{error}");
}

#[test]
fn hostile_archives_are_refused_and_leave_no_image() {
    let there = world();
    let images =
        |layer: &str| format!(r#"[{{"Config":"cfg.json","RepoTags":["a:1"],"Layers":["{layer}"]}}]"#);
    let blob = format!("blobs/sha256/{}", Digest::sha256(b"right").hex());
    let linked = format!("link:{blob}->../../cfg.json");
    let index = |digest: Digest| {
        let entry = Descriptor::new(media_type::OCI_MANIFEST, digest, 5);
        Index::build(vec![entry], BTreeMap::new()).raw().to_vec()
    };
    let mut config = ImageConfig::scratch(Platform::new("linux", "amd64"), Epoch::DEFAULT);
    config.rootfs.diff_ids = vec![DiffId::new(Digest::sha256(b"layer"))];
    let config = config.to_bytes();
    let oversized = vec![b' '; (4 << 20) + 1];
    let cases: &[(&str, Vec<u8>)] = &[
        ("index.json or manifest.json", tar_of(&[("x", b"y")])),
        ("read the archive: it is empty", Vec::new()),
        ("read the archive: it is not a tar archive", b"FROM scratch".to_vec()),
        ("read the archive: it is not a tar archive", vec![b'x'; 1024]),
        ("does not match its digest", tar_of(&[(&blob, b"wrong")])),
        ("must be named by its digest", tar_of(&[("blobs/sha256/../../etc/passwd", b"x")])),
        ("must be named by its digest", tar_of(&[("blobs/md5/00", b"x")])),
        ("must be a file", tar_of(&[(&linked, b"")])),
        ("out of the archive", tar_of(&[("link:l->/etc/passwd", b"")])),
        ("out of the archive", tar_of(&[("link:l->../../etc/passwd", b"")])),
        ("exceeds the limit", tar_of(&[("index.json", &oversized)])),
        ("not valid", tar_of(&[("manifest.json", b"[{]")])),
        (
            "`/etc/passwd`",
            tar_of(&[("cfg.json", &config), ("manifest.json", images("/etc/passwd").as_bytes())]),
        ),
        (
            "configuration says",
            tar_of(&[("cfg.json", &config), ("l", b"x"), ("manifest.json", images("l").as_bytes())]),
        ),
        ("is not there", tar_of(&[("index.json", &index(Digest::sha256(b"gone")))])),
        ("not valid", tar_of(&[(&blob, b"right"), ("index.json", &index(Digest::sha256(b"right")))])),
        ("read the archive: it ends in the middle of", tar_of(&[("a", b"x")])[..700].to_vec()),
    ];
    for (expected, tar) in cases {
        let error = load(&there.store, tar).unwrap_err();
        assert!(error.contains(expected) || error.contains("refused"), "expected {expected}, got {error}");
        assert!(there.store.images().unwrap().is_empty());
    }
    for link in ["link:b/layer.tar->../b/layer.tar", "link:b/layer.tar->../c/layer.tar"] {
        let error = load(&there.store, &old_docker_archive(&["b/layer.tar"], link)).unwrap_err();
        assert!(error.contains("b/layer.tar"), "{error}");
    }
}
