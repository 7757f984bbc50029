//! Archives as tools and people make them: indexes within indexes, variants that are not there, names that are none.
//! What `load` says it loaded is what can be run.

#![allow(clippy::unwrap_used)]

use rimg_formats::archive::{self, LoadOptions, Loaded};
use rimg_formats::digest::Digest;
use rimg_formats::media_type::{OCI_CONFIG, OCI_INDEX, OCI_LAYER_TAR, OCI_MANIFEST};
use rimg_formats::platform::Platform;
use rimg_formats::store::{Store, StoreError};
use serde_json::{Value, json};
use tempfile::TempDir;

const NAME: &str = "org.opencontainers.image.ref.name";

fn store() -> (TempDir, Store) {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    (directory, store)
}

fn tar(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        builder.append_data(&mut header, path, content.as_slice()).unwrap();
    }
    builder.into_inner().unwrap()
}

fn descriptor(raw: &[u8], media_type: &str) -> Value {
    json!({"mediaType": media_type, "digest": Digest::sha256(raw), "size": raw.len()})
}

/// `value` with more fields.
fn with(mut value: Value, more: Value) -> Value {
    value.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    value
}

fn named(entry: Value, name: &str) -> Value {
    with(entry, json!({"annotations": {NAME: name}}))
}

fn on(entry: Value, architecture: &str) -> Value {
    with(entry, json!({"platform": {"os": "linux", "architecture": architecture}}))
}

/// An image: its manifest, then its configuration and its layer.
struct Image {
    manifest: Vec<u8>,
    blobs: [Vec<u8>; 2],
}

fn image(architecture: &str) -> Image {
    odd_image(architecture, json!(null), json!(null))
}

fn odd_image(architecture: &str, labels: Value, annotations: Value) -> Image {
    let layer = tar(&[("file".to_owned(), architecture.as_bytes().to_vec())]);
    let config = json!({
        "architecture": architecture, "os": "linux", "config": {"Labels": labels},
        "rootfs": {"type": "layers", "diff_ids": [Digest::sha256(&layer)]},
    });
    let config = serde_json::to_vec(&config).unwrap();
    let manifest = json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": descriptor(&config, OCI_CONFIG),
        "layers": [descriptor(&layer, OCI_LAYER_TAR)], "annotations": annotations,
    });
    Image { manifest: serde_json::to_vec(&manifest).unwrap(), blobs: [config, layer] }
}

impl Image {
    fn entry(&self) -> Value {
        descriptor(&self.manifest, OCI_MANIFEST)
    }

    fn all(&self) -> Vec<Vec<u8>> {
        [std::slice::from_ref(&self.manifest), &self.blobs].concat()
    }
}

fn index(entries: &[Value]) -> Vec<u8> {
    serde_json::to_vec(&json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries})).unwrap()
}

/// An OCI archive.
fn layout(entries: &[Value], blobs: &[Vec<u8>]) -> Vec<u8> {
    let mut files = vec![
        ("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
        ("index.json".to_owned(), index(entries)),
    ];
    let path = |blob: &Vec<u8>| format!("blobs/sha256/{}", Digest::sha256(blob).hex());
    files.extend(blobs.iter().map(|blob| (path(blob), blob.clone())));
    tar(&files)
}

fn load(store: &Store, archive: &[u8]) -> Result<Vec<Loaded>, String> {
    archive::load(store, archive, &LoadOptions::default()).map_err(|error| error.to_string())
}

/// The architecture of what a name means for somebody who wants `wanted`.
fn architecture(store: &Store, name: &str, wanted: &str) -> Result<String, StoreError> {
    let resolved = store.resolve_text(name)?;
    let wanted: Platform = wanted.parse().unwrap();
    Ok(store.image(&resolved.digest, Some(&wanted))?.config.platform.architecture)
}

#[test]
fn one_odd_part_does_not_spoil_the_whole() {
    let (amd, arm) = (image("amd64"), image("arm64"));
    let inner = index(&[on(amd.entry(), "amd64")]);
    let outer = index(&[on(descriptor(&inner, OCI_INDEX), "amd64")]);
    let nested = layout(
        &[named(descriptor(&outer, OCI_INDEX), "x.io/p:1")],
        &[amd.all(), vec![inner, outer]].concat(),
    );
    let both = index(&[on(amd.entry(), "amd64"), on(arm.entry(), "arm64")]);
    // The manifest and the configuration are there, the layer is not.
    let partial = layout(
        &[named(descriptor(&both, OCI_INDEX), "x.io/p:1")],
        &[amd.all(), vec![both, arm.manifest.clone(), arm.blobs[0].clone()]].concat(),
    );
    let xml = b"<a/>".to_vec();
    let odd = descriptor(&xml, "application/xml");
    let beside = layout(&[named(amd.entry(), "x.io/p:1"), odd.clone()], &[amd.all(), vec![xml]].concat());
    let within = index(&[odd, on(amd.entry(), "amd64")]);
    let within =
        layout(&[named(descriptor(&within, OCI_INDEX), "x.io/p:1")], &[amd.all(), vec![within]].concat());
    let empty = index(&[with(amd.entry(), json!({"platform": {}})), on(amd.entry(), "amd64")]);
    let platform =
        layout(&[named(descriptor(&empty, OCI_INDEX), "x.io/p:1")], &[amd.all(), vec![empty]].concat());
    let untold = index(&[arm.entry(), amd.entry()]);
    let untold = layout(
        &[named(descriptor(&untold, OCI_INDEX), "x.io/p:1")],
        &[amd.all(), arm.all(), vec![untold]].concat(),
    );
    let labels = odd_image("amd64", json!({"a": null}), json!(null));
    let annotations = odd_image("amd64", json!(null), json!({"a": null}));
    let null_type = with(amd.entry(), json!({"mediaType": null}));
    let cases = [
        ("nested", nested),
        ("partial", partial),
        ("beside", beside),
        ("within", within),
        ("platform", platform),
        ("untold", untold),
        ("labels", layout(&[named(labels.entry(), "x.io/p:1")], &labels.all())),
        ("annotations", layout(&[named(annotations.entry(), "x.io/p:1")], &annotations.all())),
        ("media type", layout(&[named(null_type, "x.io/p:1")], &amd.all())),
    ];
    for (what, archive) in cases {
        let (_directory, there) = store();
        let loaded = load(&there, &archive).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(loaded.len(), 1, "{what}");
        assert_eq!(architecture(&there, "x.io/p:1", "linux/amd64").unwrap(), "amd64", "{what}");
        // It can be saved and loaded again.
        let resolved = there.resolve_text("x.io/p:1").unwrap();
        let saved = archive::save(&there, &[resolved], Vec::new(), &Default::default()).unwrap();
        let (_directory, again) = store();
        load(&again, &saved).unwrap();
        assert_eq!(architecture(&again, "x.io/p:1", "linux/amd64").unwrap(), "amd64", "{what}, again");
    }
}

#[test]
fn where_nothing_fits_the_error_lists_what_there_is() {
    let (_directory, there) = store();
    let (arm, mips) = (image("arm64"), image("mips"));
    let inner = index(&[mips.entry()]);
    let outer = index(&[
        on(arm.entry(), "arm64"),
        descriptor(&inner, OCI_INDEX),
        descriptor(b"<a/>", "application/xml"),
    ]);
    let archive = layout(
        &[named(descriptor(&outer, OCI_INDEX), "x.io/p:1")],
        &[arm.all(), mips.all(), vec![inner, outer]].concat(),
    );
    load(&there, &archive).unwrap();
    let error = architecture(&there, "x.io/p:1", "linux/amd64").unwrap_err().to_string();
    for part in ["linux/arm64", "linux/mips", "application/xml"] {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn an_archive_without_any_content_of_its_index_is_refused() {
    let (_directory, there) = store();
    let arm = image("arm64");
    let only = index(&[on(arm.entry(), "arm64")]);
    let archive = layout(&[named(descriptor(&only, OCI_INDEX), "x.io/p:1")], &[only]);
    assert!(load(&there, &archive).unwrap_err().contains("is not there"));
    let xml = b"<a/>".to_vec();
    let archive = layout(&[descriptor(&xml, "application/xml")], &[xml]);
    assert!(load(&there, &archive).unwrap_err().contains("application/xml"));
    assert!(there.resolve_text("x.io/p:1").is_err());
}

#[test]
fn several_platforms_under_one_name_are_one_image() {
    let (amd, arm) = (image("amd64"), image("arm64"));
    for told in [true, false] {
        let entry = |image: &Image, architecture| match told {
            true => named(on(image.entry(), architecture), "x.io/p:1"),
            false => named(image.entry(), "x.io/p:1"),
        };
        let archive = layout(&[entry(&amd, "amd64"), entry(&arm, "arm64")], &[amd.all(), arm.all()].concat());
        let (_directory, there) = store();
        let loaded = load(&there, &archive).unwrap();
        assert_eq!(loaded.len(), 1);
        assert_eq!(there.resolve_text("x.io/p:1").unwrap().digest, loaded[0].digest);
        assert_eq!(architecture(&there, "x.io/p:1", "linux/amd64").unwrap(), "amd64");
        assert_eq!(architecture(&there, "x.io/p:1", "linux/arm64").unwrap(), "arm64");
    }
    // Of two for the same platform the later counts, as a tag that is set twice.
    let other = odd_image("amd64", json!({"a": "b"}), json!(null));
    let entries = [named(amd.entry(), "x.io/p:1"), named(other.entry(), "x.io/p:1")];
    let (_directory, there) = store();
    let loaded = load(&there, &layout(&entries, &[amd.all(), other.all()].concat())).unwrap();
    assert_eq!(loaded[0].digest, Digest::sha256(&other.manifest));
}

#[test]
fn what_is_loaded_is_named_or_known_by_its_digest() {
    let amd = image("amd64");
    let digest = Digest::sha256(&amd.manifest);
    // The name in the archive, the name given, what it is called then.
    let cases = [
        (None, None, None),
        (None, Some("my/app"), Some("my/app:latest")),
        (Some("feature/x"), None, Some("feature/x:latest")),
        (Some("1.0"), Some("my/app"), Some("my/app:1.0")),
        (Some("x.io/p:1"), Some("my/app"), Some("x.io/p:1")),
    ];
    for (own, given, expected) in cases {
        let entry = own.map_or_else(|| amd.entry(), |own| named(amd.entry(), own));
        let (_directory, there) = store();
        let options = LoadOptions { name: given.map(|name| name.parse().unwrap()), on_event: None };
        let archive = layout(&[entry], &amd.all());
        let loaded = archive::load(&there, archive.as_slice(), &options).unwrap();
        assert_eq!((loaded.len(), loaded[0].digest), (1, digest));
        match expected {
            Some(expected) => {
                let tag = loaded[0].tag.as_ref().unwrap();
                assert_eq!(format!("{}:{tag}", loaded[0].name), expected);
                assert_eq!(there.resolve_text(expected).unwrap().digest, digest);
            }
            None => assert_eq!(loaded[0].tag, None),
        }
        assert!(there.image(&there.resolve_text(&digest.to_string()).unwrap().digest, None).is_ok());
    }
}

#[test]
fn docker_archives_may_name_nothing() {
    let amd = image("amd64");
    let [config, layer] = &amd.blobs;
    for tags in ["", r#""RepoTags":null,"#, r#""RepoTags":[],"#, r#""RepoTags":["<none>:<none>"],"#] {
        let images = format!(r#"[{{"Config":"c.json",{tags}"Layers":["l.tar"]}}]"#);
        let archive = tar(&[
            ("c.json".to_owned(), config.clone()),
            ("l.tar".to_owned(), layer.clone()),
            ("manifest.json".to_owned(), images.into_bytes()),
        ]);
        let (_directory, there) = store();
        let loaded = load(&there, &archive).unwrap();
        assert_eq!((loaded.len(), &loaded[0].tag), (1, &None), "{tags}");
        assert!(there.image(&loaded[0].digest, None).is_ok());
        let options = LoadOptions { name: Some("my/app".parse().unwrap()), on_event: None };
        archive::load(&there, archive.as_slice(), &options).unwrap();
        assert!(there.resolve_text("my/app").is_ok(), "{tags}");
    }
}

/// The second image is broken: the first has no name then either.
#[test]
fn an_archive_that_fails_names_nothing() {
    let amd = image("amd64");
    let gone = image("arm64");
    let entries = [named(amd.entry(), "one:1"), named(gone.entry(), "two:1")];
    let (_directory, there) = store();
    assert!(load(&there, &layout(&entries, &amd.all())).is_err());
    assert!(there.resolve_text("one:1").is_err());
    let [config, layer] = &amd.blobs;
    let images = r#"[{"Config":"c.json","RepoTags":["one:1"],"Layers":["l.tar"]},
        {"Config":"gone.json","RepoTags":["two:1"],"Layers":[]}]"#;
    let archive = tar(&[
        ("c.json".to_owned(), config.clone()),
        ("l.tar".to_owned(), layer.clone()),
        ("manifest.json".to_owned(), images.as_bytes().to_vec()),
    ]);
    assert!(load(&there, &archive).is_err());
    assert!(there.resolve_text("one:1").is_err());
}

#[test]
fn layouts_without_a_marker_and_with_their_index_last_load() {
    let amd = image("amd64");
    let path = |blob: &Vec<u8>| format!("blobs/sha256/{}", Digest::sha256(blob).hex());
    let mut files: Vec<(String, Vec<u8>)> = amd.all().iter().map(|blob| (path(blob), blob.clone())).collect();
    files.push(("index.json".to_owned(), index(&[named(amd.entry(), "x.io/p:1")])));
    let (_directory, there) = store();
    assert_eq!(load(&there, &tar(&files)).unwrap().len(), 1);
}

/// amd64/v3 before plain amd64, `x86_64`, attestations first, one manifest for two platforms.
#[test]
fn platforms_as_indexes_spell_them() {
    let (amd, level) = (image("amd64"), odd_image("amd64", json!({"level": "v3"}), json!(null)));
    let v3 =
        with(level.entry(), json!({"platform": {"os": "linux", "architecture": "amd64", "variant": "v3"}}));
    let unknown = with(level.entry(), json!({"platform": {"os": "unknown", "architecture": "unknown"}}));
    for entries in [
        vec![v3, on(amd.entry(), "amd64")],
        vec![unknown, on(amd.entry(), "x86_64")],
        vec![on(amd.entry(), "arm64"), on(amd.entry(), "amd64")],
    ] {
        let list = index(&entries);
        let archive = layout(
            &[named(descriptor(&list, OCI_INDEX), "x.io/p:1")],
            &[amd.all(), level.all(), vec![list.clone()]].concat(),
        );
        let (_directory, there) = store();
        assert_eq!(
            load(&there, &archive).unwrap()[0].digest,
            Digest::sha256(&list),
            "the index's digest is kept"
        );
        let wanted: Platform = "linux/amd64".parse().unwrap();
        let chosen = there.image(&Digest::sha256(&list), Some(&wanted)).unwrap();
        assert_eq!(chosen.digest, Digest::sha256(&amd.manifest), "{entries:?}");
    }
}

/// As `skopeo copy … dir:` and `podman save --format docker-dir` write them.
#[test]
fn directories_of_one_image_load() {
    let (amd, arm) = (image("amd64"), image("arm64"));
    let list = index(&[on(amd.entry(), "amd64"), on(arm.entry(), "arm64")]);
    for several in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let put = |name: &str, content: &[u8]| std::fs::write(folder.path().join(name), content).unwrap();
        put("version", b"Directory Transport Version: 1.1\n");
        put("manifest.json", if several { &list } else { &amd.manifest });
        put(&format!("{}.manifest.json", Digest::sha256(&amd.manifest).hex()), &amd.manifest);
        amd.blobs.iter().for_each(|blob| put(&Digest::sha256(blob).hex(), blob));
        let (_directory, there) = store();
        let options = LoadOptions { name: Some("my/app".parse().unwrap()), on_event: None };
        let loaded = archive::load_directory(&there, folder.path(), &options).unwrap();
        assert_eq!(loaded.len(), 1);
        assert_eq!(architecture(&there, "my/app", "linux/amd64").unwrap(), "amd64");
        let blob = folder.path().join(Digest::sha256(&amd.blobs[1]).hex());
        std::fs::remove_file(&blob).unwrap();
        std::fs::write(&blob, b"another").unwrap();
        let (_directory, there) = store();
        assert!(archive::load_directory(&there, folder.path(), &options).is_err());
    }
}
