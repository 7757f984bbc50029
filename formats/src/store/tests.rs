//! Tests of the store's pieces together, within one process.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::*;
use crate::config::ImageConfig;
use crate::descriptor::Descriptor;
use crate::epoch::Epoch;
use crate::manifest::Manifest;
use crate::media_type;
use crate::platform::Platform;
use crate::reference::{ImageName, Tag};

pub(super) fn store() -> (tempfile::TempDir, Store) {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    (directory, store)
}

pub(super) fn name(text: &str) -> ImageName {
    text.parse().unwrap()
}

pub(super) fn tag(text: &str) -> Tag {
    text.parse().unwrap()
}

/// An image whose one layer is `content`; its manifest's digest.
pub(super) fn put_image(store: &Store, repository: &str, tags: &[&str], content: &[u8]) -> Digest {
    let layer = store.put_bytes(content).unwrap();
    let mut config = ImageConfig::scratch(Platform::new("linux", "amd64"), Epoch::DEFAULT);
    config.rootfs.diff_ids.push(crate::digest::DiffId::new(layer.digest));
    let config = store.put_bytes(&config.to_bytes()).unwrap();
    let manifest = Manifest::build(
        Descriptor::new(media_type::OCI_CONFIG, config.digest, config.size),
        vec![Descriptor::new(media_type::OCI_LAYER_TAR, layer.digest, layer.size)],
        Default::default(),
    );
    let tags: Vec<Tag> = tags.iter().map(|text| tag(text)).collect();
    let put =
        store.repository(&name(repository)).put_manifest(manifest.raw(), None, &tags, &PutOptions::local());
    put.unwrap().digest
}

fn overwrite(path: &Path, content: &[u8]) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(path, content).unwrap();
}

pub(super) fn uploads(store: &Store) -> usize {
    fs::read_dir(store.uploads_dir()).unwrap().count()
}

#[test]
fn a_new_store_is_its_owners_alone() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&directory.path().join("a/store")).unwrap();
    for path in [store.root().to_owned(), store.snapshots_dir(), store.root().join("blobs/sha256")] {
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700, "{}", path.display());
    }
    // A directory that somebody prepared keeps the mode it was given.
    let prepared = directory.path().join("prepared");
    fs::create_dir(&prepared).unwrap();
    fs::set_permissions(&prepared, fs::Permissions::from_mode(0o750)).unwrap();
    Store::open(&prepared).unwrap();
    assert_eq!(fs::metadata(&prepared).unwrap().permissions().mode() & 0o777, 0o750);
}

#[test]
fn bytes_come_back_as_they_went_in() {
    let (_directory, store) = store();
    for algorithm in Algorithm::ALL {
        let mut ingest = store.ingest_with(algorithm).unwrap();
        let content = vec![7u8; 300_000];
        ingest.write_all(&content[..10]).unwrap();
        ingest.append_from(&mut &content[10..]).unwrap().unwrap();
        assert_eq!(ingest.len(), 300_000);
        let committed = ingest.commit(None).unwrap();
        assert_eq!(committed, Committed { digest: Digest::of(algorithm, &content), size: 300_000 });
        let mut read = Vec::new();
        store.blob(&committed.digest).unwrap().unwrap().read_to_end(&mut read).unwrap();
        assert_eq!(read, content);
    }
    assert_eq!(uploads(&store), 0);
}

#[test]
fn a_commit_refuses_what_was_not_announced() {
    let (_directory, store) = store();
    let digest = Digest::sha256(b"right");
    for (content, size) in [(&b"wrong"[..], None), (b"right", Some(4)), (b"righ", Some(5))] {
        let mut ingest = store.ingest().unwrap();
        ingest.write_all(content).unwrap();
        let error = ingest.commit(Some(&Expect { digest, size })).unwrap_err();
        assert!(
            matches!(error, StoreError::DigestMismatch { .. } | StoreError::SizeMismatch { .. }),
            "{error}"
        );
        assert!(store.blob(&digest).unwrap().is_none());
        assert_eq!(uploads(&store), 0);
    }
}

#[test]
fn another_algorithm_at_commit_reads_the_file_again() {
    let (_directory, store) = store();
    let mut ingest = store.ingest().unwrap();
    ingest.write_all(b"hello").unwrap();
    let digest = Digest::of(Algorithm::Sha512, b"hello");
    assert_eq!(ingest.commit(Some(&digest.into())).unwrap().digest, digest);
}

#[test]
fn a_dropped_ingest_leaves_nothing() {
    let (_directory, store) = store();
    let mut ingest = store.ingest().unwrap();
    ingest.write_all(b"half").unwrap();
    assert_eq!(uploads(&store), 1);
    drop(ingest);
    assert_eq!(uploads(&store), 0);
}

#[test]
fn an_upload_is_resumed_byte_for_byte() {
    let (directory, store) = store();
    for algorithm in Algorithm::ALL {
        let mut ingest = store.ingest_with(algorithm).unwrap();
        ingest.write_all(b"hello ").unwrap();
        let id = ingest.suspend().unwrap();
        // Another process goes on, and dies after the kernel took more bytes.
        let other = Store::open(directory.path()).unwrap();
        assert_eq!(other.upload(&id).unwrap().unwrap().size, 6);
        fs::OpenOptions::new().append(true).open(other.upload_path(&id)).unwrap().write_all(b"wor").unwrap();
        let mut ingest = other.resume(&id).unwrap();
        assert_eq!(ingest.len(), 9);
        assert!(matches!(store.resume(&id), Err(StoreError::UploadBusy(_))));
        ingest.write_all(b"ld").unwrap();
        let digest = Digest::of(algorithm, b"hello world");
        ingest.commit(Some(&digest.into())).unwrap();
        assert!(matches!(store.resume(&id), Err(StoreError::UploadUnknown(_))));
        assert!(store.uploads().unwrap().is_empty());
    }
}

#[test]
fn a_resumed_upload_survives_its_writer_but_not_wrong_content() {
    let (_directory, store) = store();
    let id = store.ingest().unwrap().suspend().unwrap();
    let mut ingest = store.resume(&id).unwrap();
    ingest.write_all(b"half").unwrap();
    drop(ingest);
    let ingest = store.resume(&id).unwrap();
    assert_eq!(ingest.len(), 4);
    let wrong = ingest.commit(Some(&Digest::sha256(b"whole").into()));
    assert!(matches!(wrong, Err(StoreError::DigestMismatch { .. })));
    assert!(matches!(store.resume(&id), Err(StoreError::UploadUnknown(_))));
    assert_eq!((uploads(&store), store.uploads().unwrap().len()), (0, 0));
}

#[test]
fn what_an_upload_held_before_a_power_cut_is_hashed_again() {
    let (_directory, store) = store();
    let (sent, digest) = (b"sent before, sent after", Digest::sha256(b"sent before, sent after"));
    for (left, whole) in [(&b"sent before"[..], true), (&[0; 11], false), (b"sent", false)] {
        let mut ingest = store.ingest().unwrap();
        ingest.write_all(b"sent before").unwrap();
        let id = ingest.suspend().unwrap();
        overwrite(&store.upload_path(&id), left);
        let aged = store.metadata().write(metadata::Durability::Soft, "start again", |transaction| {
            let sql = "SELECT hash_state FROM upload";
            let state: Vec<u8> = metadata::first(transaction, sql, [], |row| row.get(0)).unwrap().unwrap();
            let boot = crate::boot::id().unwrap();
            let behind = state.strip_prefix(boot.as_bytes()).unwrap();
            let earlier = [&[b'0'].repeat(boot.len()), behind].concat();
            metadata::run(transaction, "UPDATE upload SET hash_state = ?1", [earlier])
                .map_err(StoreError::sql("start again"))
        });
        aged.unwrap();
        let mut ingest = store.resume(&id).unwrap();
        assert_eq!(ingest.len(), left.len() as u64);
        ingest.write_all(&sent[11..]).unwrap();
        let committed = ingest.commit(Some(&digest.into()));
        assert_eq!(committed.is_ok(), whole, "{committed:?}");
        if whole {
            fs::remove_file(store.blob_path(&digest)).unwrap();
        }
    }
    assert_eq!(uploads(&store), 0);
}

#[test]
fn uploads_belong_to_their_repository() {
    let (_directory, store) = store();
    let ingest = store.repository(&name("a")).ingest_with(Algorithm::Sha256).unwrap();
    let id = ingest.suspend().unwrap();
    let stranger = store.repository(&name("b")).resume(&id);
    assert!(matches!(stranger, Err(StoreError::UploadUnknown(_))));
    store.repository(&name("a")).resume(&id).unwrap().cancel().unwrap();
    assert!(matches!(store.resume(&id), Err(StoreError::UploadUnknown(_))));
}

#[test]
fn sweeping_spares_the_living_and_the_suspended() {
    let (_directory, store) = store();
    let living = store.ingest().unwrap();
    let suspended = store.ingest().unwrap().suspend().unwrap();
    fs::write(store.uploads_dir().join("0123456789abcdef0123456789abcdef"), b"dead").unwrap();
    assert_eq!(store.sweep_uploads(0, true).unwrap(), (1, 4));
    assert_eq!(store.sweep_uploads(0, false).unwrap(), (1, 4));
    assert_eq!(uploads(&store), 2);
    store.resume(&suspended).unwrap().suspend().unwrap();
    assert_eq!(store.sweep_uploads(i64::MAX, false).unwrap().0, 1);
    drop(living);
}

#[test]
fn damage_is_noticed_quarantined_and_healed() {
    let (_directory, store) = store();
    let good = b"some content";
    type Reader = fn(&Store, &Digest) -> Result<(), StoreError>;
    let readers: [(&[u8], Reader); 3] = [
        (b"", |store, digest| store.blob(digest).map(drop)),
        (b"sOme content", |store, digest| store.verified_blob(digest).map(drop)),
        (b"somE content", |store, digest| store.read_blob(digest, 100).map(drop)),
    ];
    for (bad, read) in readers {
        let digest = store.put_bytes(good).unwrap().digest;
        read(&store, &digest).unwrap();
        overwrite(&store.blob_path(&digest), bad);
        for _ in 0..2 {
            assert!(matches!(read(&store, &digest), Err(StoreError::Damaged { .. })));
        }
        assert!(!store.contains(&digest).unwrap());
        assert!(!store.blob_path(&digest).exists());
        assert_eq!(store.put_bytes(good).unwrap().digest, digest);
        assert!(store.contains(&digest).unwrap());
        assert_eq!(store.read_blob(&digest, 100).unwrap(), good);
    }
    assert_eq!(fs::read_dir(store.quarantine_dir()).unwrap().count(), 3);
}

#[test]
fn a_push_heals_a_bit_flip_that_nobody_noticed_yet() {
    let (_directory, store) = store();
    let digest = store.put_bytes(b"some content").unwrap().digest;
    overwrite(&store.blob_path(&digest), b"sOme content");
    store.put_bytes(b"some content").unwrap();
    assert_eq!(store.read_blob(&digest, 100).unwrap(), b"some content");
}

#[test]
fn a_touched_but_right_blob_is_verified_again_and_remembered() {
    let (_directory, store) = store();
    let digest = store.put_bytes(b"some content").unwrap().digest;
    overwrite(&store.blob_path(&digest), b"some content");
    assert!(!store.is_whole(&digest, 12).unwrap());
    store.verified_blob(&digest).unwrap().unwrap();
    assert!(store.is_whole(&digest, 12).unwrap());
}

#[test]
fn equal_content_is_kept_once() {
    use std::os::unix::fs::MetadataExt;
    let (_directory, store) = store();
    let digest = store.put_bytes(b"x").unwrap().digest;
    let inode = fs::metadata(store.blob_path(&digest)).unwrap().ino();
    store.put_bytes(b"x").unwrap();
    assert_eq!(fs::metadata(store.blob_path(&digest)).unwrap().ino(), inode);
}

#[test]
fn repositories_do_not_leak_blobs() {
    let (_directory, store) = store();
    let (ours, theirs) = (store.repository(&name("ours")), store.repository(&name("theirs")));
    let mut ingest = ours.ingest_with(Algorithm::Sha256).unwrap();
    ingest.write_all(b"secret").unwrap();
    let digest = ingest.commit(None).unwrap().digest;
    assert_eq!(ours.has_blob(&digest).unwrap(), Some(6));
    assert_eq!(theirs.has_blob(&digest).unwrap(), None);
    assert!(theirs.blob(&digest).unwrap().is_none());
    let config = Descriptor::new(media_type::OCI_CONFIG, digest, 6);
    let manifest = Manifest::build(config, Vec::new(), Default::default());
    let put = theirs.put_manifest(manifest.raw(), None, &[], &PutOptions::registry());
    assert!(matches!(put, Err(StoreError::ContentMissing { missing, .. }) if missing == [digest]));
    assert!(!theirs.mount_blob(&digest, &name("nobody")).unwrap());
    assert!(theirs.mount_blob(&digest, &name("ours")).unwrap());
    theirs.put_manifest(manifest.raw(), None, &[], &PutOptions::registry()).unwrap();
    assert!(theirs.delete_blob(&digest).unwrap());
    assert_eq!(theirs.has_blob(&digest).unwrap(), None);
    assert_eq!(ours.has_blob(&digest).unwrap(), Some(6));
}

#[test]
fn tags_page_in_byte_order_and_swap_only_as_asked() {
    let (_directory, store) = store();
    let first = put_image(&store, "app", &["b", "a", "_x", "B"], b"one");
    let second = put_image(&store, "app", &[], b"two");
    let app = store.repository(&name("app"));
    let names = |after, limit| app.tags(after, limit).unwrap().iter().map(Tag::to_string).collect::<Vec<_>>();
    assert_eq!(names(None, 10), ["B", "_x", "a", "b"]);
    assert_eq!(names(Some("B"), 2), ["_x", "a"]);
    assert!(names(Some("b"), 10).is_empty());
    let failed = |result| matches!(result, Err(StoreError::PreconditionFailed { .. }));
    assert!(failed(app.set_tag(&tag("a"), &second, Precondition::Absent)));
    assert!(failed(app.set_tag(&tag("a"), &second, Precondition::Is(second))));
    assert!(failed(app.set_tag(&tag("new"), &second, Precondition::Is(first))));
    app.set_tag(&tag("a"), &second, Precondition::Is(first)).unwrap();
    app.set_tag(&tag("new"), &first, Precondition::Absent).unwrap();
    assert_eq!(app.resolve(&tag("a")).unwrap(), Some(second));
    assert_eq!(app.tags_of(&second).unwrap(), [tag("a")]);
    assert!(app.delete_manifest(&second).unwrap());
    assert!(!app.delete_manifest(&second).unwrap());
    assert_eq!(app.resolve(&tag("a")).unwrap(), None);
    assert_eq!(app.delete_tag(&tag("new"), Precondition::None).unwrap(), Some(first));
    assert_eq!(app.delete_tag(&tag("new"), Precondition::None).unwrap(), None);
}

#[test]
fn referrers_are_listed_from_both_schemas() {
    let (_directory, store) = store();
    let app = store.repository(&name("app"));
    let subject = Digest::sha256(b"not here");
    let empty = store.put_bytes(b"{}").unwrap();
    let put = |artifact_type: &str| {
        let raw = format!(
            r#"{{"schemaVersion":2,"mediaType":"{}","artifactType":"{artifact_type}",
            "config":{{"mediaType":"{}","digest":"{}","size":2}},"layers":[],
            "subject":{{"mediaType":"{}","digest":"{subject}","size":8}},"annotations":{{"k":"v"}}}}"#,
            media_type::OCI_MANIFEST,
            media_type::OCI_EMPTY,
            empty.digest,
            media_type::OCI_MANIFEST
        );
        app.put_manifest(raw.as_bytes(), None, &[], &PutOptions::local()).unwrap()
    };
    let signature = put("a/signature");
    assert_eq!(signature.subject, Some(subject));
    put("a/sbom");
    let mut old = Descriptor::new(media_type::OCI_MANIFEST, Digest::sha256(b"old"), 3);
    old.artifact_type = Some("a/signature".to_owned());
    let index = crate::manifest::Index::build(vec![old.clone()], Default::default());
    let fallback = referrers::fallback_tag(&subject);
    app.put_manifest(index.raw(), None, &[fallback], &PutOptions::local()).unwrap();
    assert_eq!(app.referrers(&subject).unwrap().len(), 3);
    let query = ReferrersQuery {
        subject,
        artifact_type: Some("a/signature".to_owned()),
        after: None,
        bytes_max: 1 << 20,
        at_least_one: true,
    };
    let page = app.referrers_page(&query).unwrap();
    let found: Vec<Descriptor> =
        page.entries.iter().map(|entry| serde_json::from_str(entry).unwrap()).collect();
    let digests: std::collections::BTreeSet<Digest> = found.iter().map(|found| found.digest).collect();
    assert_eq!(digests, [signature.digest, old.digest].into());
    let ours = found.iter().find(|found| found.digest == signature.digest).unwrap();
    assert_eq!(ours.annotations.get("k").map(String::as_str), Some("v"));
}

#[test]
fn manifests_may_have_sha512_digests() {
    let (_directory, store) = store();
    let app = store.repository(&name("app"));
    let config = store.put_bytes(b"{}").unwrap();
    let config = Descriptor::new(media_type::OCI_EMPTY, config.digest, config.size);
    let manifest = Manifest::build(config, Vec::new(), Default::default());
    let digest = Digest::of(Algorithm::Sha512, manifest.raw());
    let options = PutOptions { digest: Some(digest), ..PutOptions::local() };
    app.put_manifest(manifest.raw(), None, &[tag("t")], &options).unwrap();
    assert_eq!(app.resolve(&tag("t")).unwrap(), Some(digest));
    assert_eq!(&*app.manifest(&digest).unwrap().raw, manifest.raw());
    let wrong = PutOptions { digest: Some(Digest::sha256(b"")), ..PutOptions::local() };
    let error = app.put_manifest(manifest.raw(), None, &[], &wrong).unwrap_err();
    assert!(matches!(error, StoreError::DigestMismatch { .. }));
}

#[test]
fn users_find_images_by_name_and_short_id() {
    let (_directory, store) = store();
    let one = put_image(&store, "app", &["latest", "1"], b"one");
    let two = put_image(&store, "ghcr.io/a/b", &["2"], b"two");
    let image = store.image(&one, None).unwrap();
    assert_eq!(image.layers.len(), 1);
    let config = image.manifest.config().digest;
    for typed in ["app", "app:1", &one.to_string(), &one.hex()[..8], &config.hex()[..12], &config.to_string()]
    {
        assert_eq!(store.resolve_text(typed).unwrap().digest, one, "{typed}");
    }
    assert_eq!(store.resolve_text("ghcr.io/a/b:2").unwrap().digest, two);
    for typed in ["ghcr.io/a/b", "nothing", &one.hex()[..5], "app:3", "app@sha256:00"] {
        assert!(matches!(store.resolve_text(typed), Err(StoreError::ImageUnknown(_))), "{typed}");
    }
    let listed = store.images().unwrap();
    let lines: Vec<_> =
        listed.iter().map(|image| (image.name.as_str(), image.tag.clone(), image.digest)).collect();
    let expected = [
        ("app", Some(tag("1")), one),
        ("app", Some(tag("latest")), one),
        ("ghcr.io/a/b", Some(tag("2")), two),
    ];
    assert_eq!(lines, expected);
    assert!(listed.iter().all(|image| image.unique_size == image.size && image.damaged.is_none()));
    assert_eq!(listed[0].platforms, [Platform::new("linux", "amd64")]);
}

#[test]
fn sizes_that_lie_do_not_break_the_listing() {
    let (_directory, store) = store();
    let blob = |content: &[u8]| {
        let committed = store.put_bytes(content).unwrap();
        Descriptor::new(media_type::OCI_LAYER_TAR, committed.digest, u64::MAX)
    };
    let layers = [&b"a"[..], b"b", b"c", b"d"].map(blob).to_vec();
    let manifest = Manifest::build(blob(b"{}"), layers, Default::default());
    let repository = store.repository(&name("app"));
    repository.put_manifest(manifest.raw(), None, &[Tag::latest()], &PutOptions::local()).unwrap();
    assert_eq!(store.images().unwrap()[0].size, u64::MAX);
}

#[test]
fn caches_remember_until_told_otherwise() {
    let (_directory, store) = store();
    store.cache_put("k1", "p", b"v1", &[]).unwrap();
    store.cache_put("k2", "p", b"v2", &[Digest::sha256(b"b")]).unwrap();
    assert_eq!(store.cache_get("k1").unwrap().unwrap(), b"v1");
    assert_eq!(store.cache_candidates("p", 9).unwrap().len(), 2);
    store.cache_remove("k1").unwrap();
    assert_eq!(store.cache_get("k1").unwrap(), None);
    let stamp = cache::FileStamp { device: u64::MAX, inode: 1, size: 2, mtime_ns: 3, ctime_ns: 4 };
    store.stat_cache_put(&[(stamp, Digest::sha256(b"f"))]).unwrap();
    let touched = cache::FileStamp { ctime_ns: 5, ..stamp };
    assert_eq!(store.stat_cache_get(&[stamp, touched]).unwrap(), [Some(Digest::sha256(b"f")), None]);
    let started_again = store.metadata().write(metadata::Durability::Soft, "start again", |transaction| {
        metadata::run(transaction, "UPDATE stat_cache SET boot = 'another'", [])
            .map_err(StoreError::sql("start again"))
    });
    started_again.unwrap();
    assert_eq!(store.stat_cache_get(&[stamp]).unwrap(), [None]);
}

#[test]
fn fsck_finds_every_kind_of_damage_and_repairs_what_it_can() {
    use fsck::FsckOptions;
    let (_directory, store) = store();
    let check = FsckOptions::default();
    let repair = FsckOptions { repair: true, ..check };
    let good = put_image(&store, "app", &["good"], b"good");
    put_image(&store, "app", &["rotten"], b"rotten");
    put_image(&store, "app", &["gone"], b"gone");
    let report = store.fsck(&check).unwrap();
    assert!(report.is_clean(), "{report:?}");
    assert_eq!(report.blobs, 9);
    let (rotten, gone) = (Digest::sha256(b"rotten"), Digest::sha256(b"gone"));
    overwrite(&store.blob_path(&rotten), b"rottEn");
    fs::remove_file(store.blob_path(&gone)).unwrap();
    fs::write(store.blob_path(&Digest::sha256(b"orphan")), b"orphan").unwrap();
    let strangers = [b"link", b"dirs"].map(|content| store.blob_path(&Digest::sha256(content)));
    std::os::unix::fs::symlink("nowhere", &strangers[0]).unwrap();
    fs::create_dir(&strangers[1]).unwrap();
    fs::write(store.blob_path(&rotten).with_file_name("README"), b"stranger").unwrap();
    fs::write(store.index_path(&Digest::sha256(b"nobody")), b"").unwrap();
    for options in [check, repair] {
        let report = store.fsck(&options).unwrap();
        assert_eq!(report.damaged.iter().map(|(digest, _)| *digest).collect::<Vec<_>>(), [rotten]);
        assert_eq!((report.missing, report.unknown), (vec![gone], vec![Digest::sha256(b"orphan")]));
        assert_eq!((report.strangers.len(), report.stale_indexes), (3, 1));
        let broken: Vec<_> = report.broken.iter().map(|broken| broken.missing.clone()).collect();
        assert_eq!(broken.len(), 2, "{broken:?}");
        assert!(broken.contains(&vec![rotten]) && broken.contains(&vec![gone]));
    }
    fs::remove_file(store.blob_path(&rotten).with_file_name("README")).unwrap();
    fs::remove_file(&strangers[0]).unwrap();
    fs::remove_dir(&strangers[1]).unwrap();
    for content in [&b"rotten"[..], b"gone"] {
        store.put_bytes(content).unwrap();
    }
    let report = store.fsck(&check).unwrap();
    assert!(report.is_clean() && report.unknown.is_empty(), "{report:?}");
    assert_eq!(store.resolve_text("app:good").unwrap().digest, good);
}

#[test]
fn a_store_whose_metadata_is_lost_is_rebuilt_from_its_blobs() {
    let (directory, store) = store();
    let image = put_image(&store, "app", &["latest"], b"layer");
    drop(store);
    for suffix in ["-wal", "-shm"] {
        let _ = fs::remove_file(directory.path().join(format!("metadata.db{suffix}")));
    }
    fs::write(directory.path().join("metadata.db"), b"this is not a database at all").unwrap();
    let error = Store::open(directory.path()).unwrap_err();
    assert!(matches!(error, StoreError::MetadataDamaged { .. }), "{error}");
    let (store, report) = Store::rebuild(directory.path(), &Default::default()).unwrap();
    assert_eq!(report.unknown.len(), 3);
    assert_eq!(store.image(&image, None).unwrap().layers.len(), 1);
    assert_eq!(store.resolve_text(&image.hex()[..12]).unwrap().name, name("recovered"));
}

#[test]
fn a_newer_schema_is_refused_by_name() {
    let (directory, store) = store();
    drop(store);
    let connection = rusqlite::Connection::open(directory.path().join("metadata.db")).unwrap();
    connection.pragma_update(None, "user_version", 1000).unwrap();
    assert!(matches!(Store::open(directory.path()), Err(StoreError::SchemaNewer { found: 1000, .. })));
}
