//! Tests of what is kept and what is collected.

#![allow(clippy::unwrap_used)]

use super::prune::{CachePolicy, InUse, PruneOptions};
use super::tests::{name, put_image, store, tag, uploads};
use super::*;
use crate::media_type;

/// Ends every lease and lets everything look old: time travel for collectors.
fn make_everything_old(store: &Store) {
    let sql = "DELETE FROM lease WHERE expires_at IS NOT NULL; UPDATE repository_blob SET leased_until = 0;
               UPDATE manifest SET pushed_at = 0; UPDATE tag SET updated_at = 0;
               UPDATE cache_entry SET used_at = used_at - 100000";
    let old = store.metadata().write(metadata::Durability::Soft, "age", |transaction| {
        transaction.execute_batch(sql).map_err(StoreError::sql("age"))
    });
    old.unwrap();
}

fn blobs(store: &Store) -> usize {
    let files = store.blob_files().unwrap().len();
    assert_eq!(uploads(store), 0);
    files
}

#[test]
fn prune_keeps_what_is_reachable_leased_or_cached() {
    let (_directory, store) = store();
    put_image(&store, "app", &["a"], b"tagged");
    let untagged = put_image(&store, "app", &[], b"untagged");
    let leased = store.put_bytes(b"leased").unwrap().digest;
    let cached = store.put_bytes(b"cached").unwrap().digest;
    let loose = store.put_bytes(b"loose").unwrap().digest;
    store.cache_put("k", "", b"", &[cached]).unwrap();
    assert_eq!(store.prune(&PruneOptions::default()).unwrap(), Default::default());
    assert_eq!(blobs(&store), 9);
    make_everything_old(&store);
    let lease = store.lease(&leased).unwrap();
    let plan = PruneOptions { dry_run: true, ..PruneOptions::default() };
    let report = store.prune(&plan).unwrap();
    assert_eq!((report.blobs, report.bytes), (1, 5));
    assert_eq!(store.prune(&PruneOptions::default()).unwrap(), report);
    assert!(store.blob(&loose).unwrap().is_none());
    assert_eq!(blobs(&store), 8);
    drop(lease);
    let report = store.prune(&PruneOptions { untagged: true, ..plan }).unwrap();
    assert_eq!((report.manifests.len(), report.blobs), (1, 4));
    let report = store.prune(&PruneOptions { untagged: true, ..PruneOptions::default() }).unwrap();
    assert_eq!((report.manifests, report.blobs), (vec![(name("app"), untagged)], 4));
    let cache = CachePolicy { unused_seconds_max: Some(200_000), bytes_max: Some(6) };
    assert_eq!(store.prune(&PruneOptions { cache, ..PruneOptions::default() }).unwrap().cache_entries, 0);
    let cache = CachePolicy { unused_seconds_max: Some(2000), bytes_max: None };
    let report = store.prune(&PruneOptions { cache, ..PruneOptions::default() }).unwrap();
    assert_eq!((report.cache_entries, report.blobs), (1, 1));
    store.hold("container:c", &[store.resolve_text("app:a").unwrap().digest]).unwrap();
    let all = PruneOptions { all: true, ..PruneOptions::default() };
    assert_eq!(store.prune(&all).unwrap(), Default::default());
    store.release("container:c").unwrap();
    let report = store.prune(&all).unwrap();
    assert_eq!((report.tags, report.blobs), (vec![(name("app"), tag("a"))], 3));
    assert_eq!(blobs(&store), 0);
}

#[test]
fn indexes_keep_their_variants_and_subjects_their_referrers() {
    let (_directory, store) = store();
    let app = store.repository(&name("app"));
    let child = put_image(&store, "app", &[], b"child");
    let child = app.manifest(&child).unwrap().descriptor();
    let index = crate::manifest::Index::build(vec![child.clone()], Default::default());
    let index = app.put_manifest(index.raw(), None, &[tag("multi")], &PutOptions::local()).unwrap().digest;
    let empty = store.put_bytes(b"{}").unwrap().digest;
    let raw = format!(
        r#"{{"schemaVersion":2,"mediaType":"{0}","config":{{"mediaType":"{1}","digest":"{empty}","size":2}},
        "layers":[],"subject":{{"mediaType":"{0}","digest":"{index}","size":8}}}}"#,
        media_type::OCI_MANIFEST,
        media_type::OCI_EMPTY,
    );
    let referrer = app.put_manifest(raw.as_bytes(), None, &[], &PutOptions::local()).unwrap().digest;
    make_everything_old(&store);
    let untagged = PruneOptions { untagged: true, ..PruneOptions::default() };
    assert_eq!(store.prune(&untagged).unwrap(), Default::default());
    // A part alone does not go, and not in silence.
    let part = store.resolve_text(&child.digest.to_string()).unwrap();
    for force in [false, true] {
        let refused = store.remove_image_by_id(&part, &InUse::default(), force).unwrap_err().to_string();
        assert_eq!(refused, format!("{} is a part of app:multi; delete that first", child.digest));
    }
    let part = store.resolve_text(&format!("app@{}", child.digest)).unwrap();
    let refused = store.remove_image(&part, &InUse::default(), false);
    assert!(matches!(refused, Err(StoreError::PartOfTag { .. })), "{refused:?}");
    let removed =
        store.remove_image(&store.resolve_text("app:multi").unwrap(), &InUse::default(), false).unwrap();
    assert_eq!(removed.untagged, [(name("app"), tag("multi"))]);
    let deleted: std::collections::BTreeSet<Digest> = removed.deleted.into_iter().collect();
    assert_eq!(deleted, [index, child.digest, referrer].into());
    assert_eq!(blobs(&store), 0);
    assert_eq!(store.prune(&untagged).unwrap(), Default::default());
}

#[test]
fn removing_the_last_name_frees_what_only_that_image_needs() {
    let (_directory, store) = store();
    put_image(&store, "app", &["a", "b"], b"one");
    let other = put_image(&store, "other", &["latest"], b"one");
    let id = store.resolve_text(&other.hex()[..12]);
    assert!(id.is_ok(), "the same image under two names is not ambiguous");
    let find = |typed: &str| store.resolve_text(typed).unwrap();
    assert_eq!(store.remove_image(&find("app:a"), &InUse::default(), false).unwrap().deleted, []);
    let removed = store.remove_image(&find("app:b"), &InUse::default(), false).unwrap();
    assert_eq!((removed.deleted.len(), removed.bytes), (0, 0), "another repository has it");
    store.hold("container:c", &[other]).unwrap();
    let refused = store.remove_image(&find("other"), &InUse::default(), false);
    assert!(matches!(refused, Err(StoreError::InUse { holder, .. }) if holder.starts_with("container:c")));
    store.release("container:c").unwrap();
    let removed = store.remove_image(&find("other"), &InUse::default(), false).unwrap();
    assert!(removed.bytes > 0);
    assert_eq!(blobs(&store), 0);
    assert!(store.images().unwrap().is_empty());
}

#[test]
fn an_id_means_every_repository_and_a_name_its_own() {
    let (_directory, store) = store();
    let digest = put_image(&store, "zeta", &[], b"one");
    for name in ["beta", "alpha"] {
        put_image(&store, name, &["1"], b"one");
    }
    let none = InUse::default();
    let by_id = store.resolve_text(&digest.to_string()).unwrap();
    let refused = store.remove_image_by_id(&by_id, &none, false).unwrap_err().to_string();
    assert!(refused.contains("in multiple repositories (alpha:1, beta:1)"), "{refused}");
    assert!(refused.contains("--force"), "{refused}");
    // Without a name, by name and digest: that one alone.
    let zeta = store.resolve_text(&format!("zeta@{digest}")).unwrap();
    let removed = store.remove_image(&zeta, &none, false).unwrap();
    assert_eq!((removed.untagged.len(), removed.deleted.len()), (0, 0));
    let left = |store: &Store| -> Vec<String> {
        store.images().unwrap().iter().map(|image| image.name.to_string()).collect()
    };
    assert_eq!(left(&store), ["alpha", "beta"]);
    let beta = store.resolve_text("beta:1").unwrap();
    let removed = store.remove_image(&beta, &none, false).unwrap();
    assert_eq!((removed.untagged, removed.deleted), (vec![(name("beta"), tag("1"))], Vec::new()));
    // One name is left, and what nothing names goes with it.
    put_image(&store, "zeta", &[], b"one");
    let removed = store.remove_image_by_id(&by_id, &none, false).unwrap();
    assert_eq!((removed.untagged, removed.deleted), (vec![(name("alpha"), tag("1"))], vec![digest]));
    assert_eq!(left(&store), [""; 0]);
    for repository in ["a", "b"] {
        put_image(&store, repository, &["1", "2"], b"one");
    }
    let removed = store.remove_image_by_id(&by_id, &none, true).unwrap();
    assert_eq!((removed.untagged.len(), removed.deleted), (4, vec![digest]));
    assert_eq!(blobs(&store), 0);
}

#[test]
fn what_is_in_use_stays_with_the_tags_that_lead_to_it() {
    let (_directory, store) = store();
    let app = store.repository(&name("app"));
    let old = put_image(&store, "app", &[], b"old");
    let child = put_image(&store, "app", &[], b"child");
    let descriptor = app.manifest(&child).unwrap().descriptor();
    let index = crate::manifest::Index::build(vec![descriptor], Default::default());
    app.put_manifest(index.raw(), None, &[tag("multi")], &PutOptions::local()).unwrap();
    put_image(&store, "other", &["latest"], b"other");
    make_everything_old(&store);
    let in_use: InUse =
        [old, child].into_iter().map(|digest| (digest, "container `web`".to_owned())).collect();
    for dry_run in [true, false] {
        let options = PruneOptions { all: true, dry_run, in_use: in_use.clone(), ..PruneOptions::default() };
        assert_eq!(store.prune(&options).unwrap().tags, [(name("other"), tag("latest"))]);
    }
    for (typed, used) in [("app:multi".to_owned(), true), (old.to_string(), true)] {
        let found = store.resolve_text(&typed).unwrap();
        let refused = store.remove_image(&found, &in_use, false);
        assert_eq!(matches!(refused, Err(StoreError::InUse { .. })), used, "{typed}");
    }
    let found = store.resolve_text("app:multi").unwrap();
    // Another name keeps it, so this one may go.
    app.set_tag(&tag("again"), &found.digest, Precondition::None).unwrap();
    store.remove_image(&found, &in_use, false).unwrap();
    store.remove_image(&store.resolve_text("app:again").unwrap(), &in_use, true).unwrap();
    assert_eq!(
        store.prune(&PruneOptions { all: true, ..PruneOptions::default() }).unwrap().manifests.len(),
        1
    );
    assert_eq!(blobs(&store), 0);
}

#[test]
fn a_rehearsal_waits_for_nobody_and_changes_nothing() {
    let (directory, store) = store();
    put_image(&store, "app", &["a"], b"tagged");
    put_image(&store, "app", &[], b"untagged");
    let cached = store.put_bytes(b"cached").unwrap().digest;
    store.cache_put("k", "", b"", &[cached]).unwrap();
    make_everything_old(&store);
    let another = Store::open(directory.path()).unwrap();
    let everything = PruneOptions { all: true, cache: CachePolicy::CLEAR, ..PruneOptions::default() };
    let rehearsal = PruneOptions { dry_run: true, ..everything.clone() };
    // While somebody writes: a rehearsal that wrote as well would wait for the end of that, which is after its own.
    let planned =
        store.metadata().write(metadata::Durability::Soft, "hold the lock", |_| another.prune(&rehearsal));
    let planned = planned.unwrap();
    assert_eq!((planned.manifests.len(), planned.cache_entries, planned.blobs), (2, 1, 7));
    assert_eq!(another.images().unwrap().len(), 2);
    assert_eq!(store.prune(&everything).unwrap(), planned);
    assert_eq!(blobs(&store), 0);
}

#[test]
fn leases_end_with_their_handle() {
    let (directory, store) = store();
    let collect = || store.prune(&PruneOptions::default()).unwrap().blobs;
    let another = Store::open(directory.path()).unwrap();
    let lease = another.lease(&another.put_bytes(b"leased").unwrap().digest).unwrap();
    assert_eq!(collect(), 0);
    let files = || fs::read_dir(store.sessions_dir()).unwrap().count();
    assert_eq!(files(), 1);
    drop((lease, another));
    assert_eq!((files(), collect()), (0, 1));
    // A file that nobody locks is a killed handle's.
    let killed = Store::open(directory.path()).unwrap();
    killed.put_bytes(b"killed").unwrap();
    let session = killed.holder().unwrap().replace("session:", "");
    drop(killed);
    fs::write(store.sessions_dir().join(session), b"").unwrap();
    let rehearsal = PruneOptions { dry_run: true, ..PruneOptions::default() };
    assert_eq!((store.prune(&rehearsal).unwrap().blobs, files()), (1, 1));
    assert_eq!((collect(), files()), (1, 0));
}

#[test]
fn what_a_server_received_can_be_removed_while_it_goes_on() {
    let (_directory, store) = store();
    let app = store.repository(&name("app"));
    let mut ingest = app.ingest_with(Algorithm::Sha256).unwrap();
    ingest.append(b"{}").unwrap();
    let config = ingest.commit(None).unwrap();
    let config = crate::descriptor::Descriptor::new(media_type::OCI_EMPTY, config.digest, config.size);
    let manifest = crate::manifest::Manifest::build(config, Vec::new(), Default::default());
    app.put_manifest(manifest.raw(), None, &[tag("a")], &PutOptions::registry()).unwrap();
    let all = PruneOptions { all: true, older_than_seconds: 0, ..PruneOptions::default() };
    let report = store.prune(&all).unwrap();
    // The blob stays for an hour: the client was told that it is here.
    assert_eq!((report.tags.len(), report.manifests.len(), report.blobs), (1, 1, 1));
}
