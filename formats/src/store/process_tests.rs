//! Tests with several processes: each test starts its own binary again, which then plays the other part.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use super::fsck::FsckOptions;
use super::metadata::Durability;
use super::prune::{CachePolicy, PruneOptions};
use super::*;
use crate::descriptor::Descriptor;
use crate::manifest::Manifest;
use crate::media_type;
use crate::reference::Tag;

const ROOT_VARIABLE: &str = "RIMG_TEST_STORE";

/// The store that this process was started to work on, if it was.
fn started_for() -> Option<Store> {
    let root = std::env::var_os(ROOT_VARIABLE)?;
    Some(Store::open(Path::new(&root)).unwrap())
}

/// Starts this binary again, to run `test` on the store in `root`.
fn start(test: &str, root: &Path) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", &format!("store::process_tests::{test}"), "--nocapture"]);
    command.env(ROOT_VARIABLE, root).stdout(Stdio::piped()).stdin(Stdio::null());
    command.spawn().unwrap()
}

/// Ends a process that works until it is told to stop, however the test ends.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Content number `number` of a small set, so that writers meet; some larger than one buffer.
fn content(number: u32) -> Vec<u8> {
    let size = if number.is_multiple_of(3) { 300_000 } else { 100 };
    number.to_le_bytes().into_iter().cycle().take(size).collect()
}

fn manifest_of(blobs: &[Committed]) -> Manifest {
    let layer = |blob: &Committed| Descriptor::new(media_type::OCI_LAYER_TAR, blob.digest, blob.size);
    let config = Descriptor::new(media_type::OCI_EMPTY, blobs[0].digest, blobs[0].size);
    Manifest::build(config, blobs[1..].iter().map(layer).collect(), Default::default())
}

fn report_line(text: &str) {
    let mut out = io::stdout().lock();
    writeln!(out, "\n@{text}").unwrap();
    out.flush().unwrap();
}

/// Ingests for ever, and says what it was told is stored.
fn ingest_until_killed(store: &Store) -> ! {
    let _held = store.lease(&store.put_bytes(b"held").unwrap().digest).unwrap();
    let repository = store.repository(&"app".parse().unwrap());
    for round in 0u32.. {
        let mut ingest = store.ingest().unwrap();
        ingest.write_all(&content(round)).unwrap();
        let durable = ingest.commit(None).unwrap();
        report_line(&durable.digest.to_string());
        let local = store.put_bytes(&content(round + 1)).unwrap();
        let manifest = manifest_of(&[durable, local]);
        let tag: Tag = format!("t{}", round % 3).parse().unwrap();
        repository.put_manifest(manifest.raw(), None, &[tag], &PutOptions::local()).unwrap();
        report_line(&manifest.digest().to_string());
        let mut half = store.ingest().unwrap();
        half.write_all(&content(round)).unwrap();
        let suspended = half.suspend().unwrap();
        if round % 4 == 3 {
            store.resume(&suspended).unwrap().commit(None).unwrap();
            store.prune(&PruneOptions { untagged: true, ..PruneOptions::default() }).unwrap();
        }
    }
    unreachable!("the parent kills this process")
}

#[test]
fn a_killed_writer_loses_nothing_it_was_told_is_stored() {
    if let Some(store) = started_for() {
        ingest_until_killed(&store);
    }
    let directory = tempfile::tempdir().unwrap();
    for round in 0..6usize {
        let mut child =
            Killed(start("a_killed_writer_loses_nothing_it_was_told_is_stored", directory.path()));
        let lines = BufReader::new(child.0.stdout.take().unwrap()).lines();
        let told = lines.map(Result::unwrap).filter_map(|line| Some(line.strip_prefix('@')?.to_owned()));
        // A different place in the writer's round each time, and wherever it has got to by then.
        let told: Vec<Digest> = told.take(1 + round * 5).map(|line| line.parse().unwrap()).collect();
        drop(child);
        assert_eq!(told.len(), 1 + round * 5, "the writer died by itself");
        let store = Store::open(directory.path()).unwrap();
        let report = store.fsck(&FsckOptions::default()).unwrap();
        assert!(report.is_clean(), "{report:?}");
        for digest in &told {
            store.read_blob(digest, 1 << 20).unwrap();
        }
        // Suspended uploads are still there to be resumed; what was being written is swept.
        store.sweep_uploads(0, false).unwrap();
        let suspended: BTreeSet<PathBuf> =
            store.uploads().unwrap().iter().map(|upload| store.upload_path(&upload.id)).collect();
        let files = fs::read_dir(store.uploads_dir()).unwrap().map(|entry| entry.unwrap().path());
        assert_eq!(files.collect::<BTreeSet<_>>(), suspended);
        store.sweep_uploads(i64::MAX, false).unwrap();
        // Nobody lives who has leases.
        let leases = || {
            let count = store.metadata().read("count leases", |connection| {
                metadata::first(connection, "SELECT count(*) FROM lease", [], |row| row.get::<_, i64>(0))
                    .map_err(StoreError::sql("count leases"))
            });
            count.unwrap().unwrap()
        };
        assert!(leases() > 0);
        store.prune(&PruneOptions::default()).unwrap();
        assert_eq!(leases(), 0);
        assert_eq!(fs::read_dir(store.sessions_dir()).unwrap().count(), 0);
    }
}

/// Puts images made of shared contents and takes them away again, as builds and as clients of a registry do in
/// turns. While leases run a put must succeed, and what it acknowledged must be readable until it is taken away.
/// Every fourth round the leases are ended early: then content may be gone, but nothing may be half there.
fn put_and_delete(root: &Path, name: &str, rounds: u32) {
    let store = Store::open(root).unwrap();
    let repository = store.repository(&name.parse().unwrap());
    for round in 0..rounds {
        let (local, leased) = (round % 2 == 0, round % 4 != 3);
        let numbers = [round % 5, round % 7, round % 3];
        let blobs: Vec<Committed> = numbers
            .iter()
            .map(|number| {
                let begun =
                    if local { store.ingest_local() } else { repository.ingest_with(Algorithm::Sha256) };
                let mut ingest = begun.unwrap();
                ingest.write_all(&content(*number)).unwrap();
                ingest.commit(None).unwrap()
            })
            .collect();
        if !leased {
            end_leases(&store, name);
        }
        let manifest = manifest_of(&blobs);
        let options = if local { PutOptions::local() } else { PutOptions::registry() };
        match repository.put_manifest(manifest.raw(), None, &[Tag::latest()], &options) {
            Ok(_) => {}
            Err(StoreError::ContentMissing { .. }) if !leased => continue,
            Err(error) => panic!("{error}"),
        }
        for (blob, number) in blobs.iter().zip(numbers) {
            assert_eq!(store.read_blob(&blob.digest, 1 << 20).unwrap(), content(number));
        }
        assert_eq!(&*repository.manifest(&manifest.digest()).unwrap().raw, manifest.raw());
        assert!(repository.delete_manifest(&manifest.digest()).unwrap());
        end_leases(&store, name);
    }
    end_leases(&store, name);
}

/// Ends the leases of a handle and of its repository, as time would.
fn end_leases(store: &Store, name: &str) {
    let failed = || StoreError::sql("end leases");
    let ended = store.metadata().write(Durability::Soft, "end leases", |transaction| {
        let sql = "DELETE FROM lease WHERE holder = ?1";
        metadata::run(transaction, sql, [store.holder()?]).map_err(failed())?;
        let sql = "UPDATE repository_blob SET leased_until = 0
                   WHERE repository_id = (SELECT id FROM repository WHERE name = ?1)";
        metadata::run(transaction, sql, [name]).map_err(failed())
    });
    ended.unwrap();
}

fn collect_all(store: &Store) {
    let everything =
        PruneOptions { older_than_seconds: 0, cache: CachePolicy::CLEAR, ..PruneOptions::default() };
    store.prune(&everything).unwrap();
}

fn work_under_collection(root: &Path, names: &[&str]) {
    const ROUNDS: u32 = 16;
    let (store, done) = (Store::open(root).unwrap(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let writers: Vec<_> =
            names.iter().map(|name| scope.spawn(move || put_and_delete(root, name, ROUNDS))).collect();
        let collector = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                collect_all(&store);
            }
        });
        let results: Vec<_> = writers.into_iter().map(|writer| writer.join()).collect();
        done.store(true, Ordering::Relaxed);
        collector.join().unwrap();
        assert!(results.iter().all(Result::is_ok), "a writer failed");
    });
}

#[test]
fn collectors_never_take_what_a_put_acknowledged() {
    if let Some(store) = started_for() {
        return work_under_collection(store.root(), &["c", "d"]);
    }
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let mut child = start("collectors_never_take_what_a_put_acknowledged", directory.path());
    // Read to its end, so that the child never waits for us.
    let output = child.stdout.take().unwrap();
    let drain = std::thread::spawn(move || BufReader::new(output).lines().count());
    work_under_collection(directory.path(), &["a", "b"]);
    assert!(child.wait().unwrap().success(), "the other process failed");
    drain.join().unwrap();
    let report = store.fsck(&FsckOptions::default()).unwrap();
    assert!(report.is_clean() && report.unknown.is_empty(), "{report:?}");
    collect_all(&store);
    assert_eq!(store.blob_files().unwrap(), []);
    assert_eq!(fs::read_dir(store.uploads_dir()).unwrap().count(), 0);
}

#[test]
fn processes_that_ingest_the_same_content_need_not_know_of_each_other() {
    let ingest_all = |store: &Store| {
        for number in 0..30 {
            let mut ingest = store.ingest().unwrap();
            ingest.write_all(&content(number)).unwrap();
            ingest.commit(Some(&Digest::sha256(&content(number)).into())).unwrap();
        }
    };
    if let Some(store) = started_for() {
        return ingest_all(&store);
    }
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let test = "processes_that_ingest_the_same_content_need_not_know_of_each_other";
    let mut child = start(test, directory.path());
    std::thread::scope(|scope| (0..3).for_each(|_| drop(scope.spawn(|| ingest_all(&store)))));
    assert!(child.wait().unwrap().success());
    let report = store.fsck(&FsckOptions::default()).unwrap();
    assert!(report.is_clean(), "{report:?}");
    assert_eq!(report.blobs, 30);
    assert_eq!(fs::read_dir(store.uploads_dir()).unwrap().count(), 0);
}
