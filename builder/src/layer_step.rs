//! From a [`LayerPlan`] to a layer in the store: its key, the look into the cache, and the one pass that writes it.
//!
//! When an earlier build knew the instruction, all contents are hashed first (most come from the stat cache) and the
//! key decides. When none did, there is nothing to find: the layer is written at once, and the key is made of the
//! digests that the writer took. In both cases the entry is stored under what was *written*, so a file that changes
//! between hashing and writing spoils nothing.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rimg_formats::descriptor::Descriptor;
use rimg_formats::digest::Digest;
use rimg_formats::layer::{
    Entry, EntryKind, FinishedLayer, LayerCompression, LayerIndex, LayerOptions, LayerPath, LayerWriter,
    MtimePolicy, WriteError,
};
use rimg_formats::media_type;
use rimg_formats::sparse_file::SparseFile;
use rimg_formats::store::cache::FileStamp;
use rimg_formats::store::{Ingest, Store, StoreError};

use crate::cache::{Cache, CacheKey, FieldHasher, LayerRecord, Lookup, Miss, Slot, StepInputs, StepRecord};
use crate::context::{DiskFile, processors};
use crate::engine::{Stop, Stopped};
use crate::layer_plan::{LayerPlan, PlannedEntry, read_xattrs};
use crate::layer_tree::prepare_sources;
use crate::memo::Memo;
use crate::source_tree::Content;
use crate::stat_cache::{StatCache, hash, now_ns, stamp_of};

/// Why a layer could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LayerStepError {
    /// An entry could not be written, or its content not be read.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// A content could not be read.
    #[error(transparent)]
    Read(#[from] io::Error),
    /// A file was written to while it was read.
    #[error("{place} changed while it was read: it had {expected} bytes, then {found}")]
    Changed {
        /// Where it is.
        place: String,
        /// Its size in bytes when it was looked at.
        expected: u64,
        /// `exactly N` or `more than N`.
        found: String,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The step was not to go on.
    #[error("the step was stopped")]
    Stopped(Stopped),
}

/// Makes the layers of one build.
#[derive(Debug)]
pub(crate) struct LayerMaker {
    pub(crate) store: Store,
    pub(crate) cache: Cache,
    pub(crate) stat_cache: StatCache,
    pub(crate) stop: Stop,
    pub(crate) options: LayerOptions,
}

/// Of each entry the digest of its content, if it has one.
type ContentDigests = Vec<Option<Digest>>;

/// What became of a step.
#[derive(Clone, Debug)]
pub(crate) struct StepOutcome {
    /// Its key.
    pub(crate) key: CacheKey,
    /// Whether it was found in the cache.
    pub(crate) cached: bool,
    /// Its layer; `None` when it changed no file.
    pub(crate) layer: Option<LayerRecord>,
    /// How many entries the layer has, if it was written now.
    pub(crate) entries: Option<usize>,
    /// Paths of files that it wrote anew with the content that they had.
    pub(crate) touched: Vec<LayerPath>,
}

impl StepOutcome {
    /// Of a step that wrote nothing but its layer.
    fn of_layer(
        key: CacheKey,
        cached: bool,
        layer: Option<LayerRecord>,
        entries: Option<usize>,
    ) -> StepOutcome {
        StepOutcome { key, cached, layer, entries, touched: Vec::new() }
    }
}

impl LayerMaker {
    /// Inputs of a step of `kind` with the first rows of the table filled in.
    pub(crate) fn inputs(&self, kind: &str) -> StepInputs {
        let compression = match self.options.compression {
            LayerCompression::Gzip { level } => format!("gzip {level}"),
            LayerCompression::Zstd { level } => format!("zstd {level}"),
            LayerCompression::None => "none".to_owned(),
        };
        let times = match self.options.mtime {
            MtimePolicy::Fixed(epoch) => epoch.seconds().to_string(),
            MtimePolicy::Preserve => "preserve".to_owned(),
        };
        StepInputs::new(kind, &compression, &times)
    }

    /// Makes the layer of `plan`, or finds it. `on_miss` hears why it has to be made.
    pub(crate) fn make(
        &self,
        plan: LayerPlan,
        slot: Slot,
        on_miss: &dyn Fn(Miss),
    ) -> Result<StepOutcome, LayerStepError> {
        let began_ns = plan.began_ns;
        let mut entries = plan.into_entries();
        if entries.is_empty() {
            // Nothing is to be done, and nothing was: no different from having found it.
            let nothing = entries_digest(std::iter::empty(), self.keeps_times());
            let key = self.files_inputs(nothing).key();
            return Ok(StepOutcome::of_layer(key, true, None, None));
        }
        let memo = Memo::of(&entries, self.keeps_times(), began_ns);
        if self.cache.knows(slot)? {
            let (files, digests) = self.files_digest(&mut entries, memo)?;
            let inputs = self.files_inputs(files);
            match self.cache.look_up(slot, &inputs)? {
                Lookup::Hit(record) => {
                    return Ok(StepOutcome::of_layer(inputs.key(), true, record.layer, None));
                }
                Lookup::Miss(miss, earlier) => on_miss(self.explain(miss, earlier, &mut entries, digests)?),
            }
        } else {
            on_miss(self.unknown());
        }
        let finished = self.write(&mut entries);
        self.stop.check().map_err(LayerStepError::Stopped)?;
        let finished = finished?;
        let count = finished.index.entries.len();
        let written = finished.index.entries.iter().map(|entry| (&entry.entry, entry.content));
        let files = entries_digest(written, self.keeps_times());
        let inputs = self.files_inputs(files);
        let layer = Some(self.commit(finished)?);
        let key = inputs.key();
        self.cache.remember(slot, &StepRecord { inputs, layer: layer.clone(), touched: Vec::new() })?;
        if let Some(memo) = memo {
            memo.remember(&self.store, &files)?;
        }
        Ok(StepOutcome::of_layer(key, false, layer, Some(count)))
    }

    /// Why nothing was found for an instruction that was never seen, or is not to be looked for.
    fn unknown(&self) -> Miss {
        if self.cache.is_enabled() { Miss::New } else { Miss::Disabled }
    }

    /// The inputs of a layer that is its entries: see the table in [`crate::cache`].
    fn files_inputs(&self, files: Digest) -> StepInputs {
        let mut inputs = self.inputs("files");
        inputs.add_digest("files", files);
        inputs
    }

    fn keeps_times(&self) -> bool {
        self.options.mtime == MtimePolicy::Preserve
    }

    /// The digest of entries with their contents: remembered, else made of what is read; then those of the contents
    /// come with it.
    fn files_digest(
        &self,
        entries: &mut [PlannedEntry],
        memo: Option<Memo>,
    ) -> Result<(Digest, Option<ContentDigests>), LayerStepError> {
        if let Some(memo) = memo
            && let Some(files) = memo.recall(&self.store)?
        {
            return Ok((files, None));
        }
        let digests = self.digests(entries)?;
        let contents = digests.iter().copied();
        let files =
            entries_digest(entries.iter().map(|planned| &planned.entry).zip(contents), self.keeps_times());
        if let Some(memo) = memo {
            memo.remember(&self.store, &files)?;
        }
        Ok((files, Some(digests)))
    }

    /// Ingests a finished layer with its index.
    pub(crate) fn commit(&self, finished: FinishedLayer<Ingest>) -> Result<LayerRecord, StoreError> {
        let kind = media_type::oci_layer(finished.compression.compression()).expect("layers have OCI types");
        let record = LayerRecord {
            diff_id: finished.diff_id,
            descriptor: Descriptor::new(kind, finished.digest, finished.size),
        };
        self.store.commit_layer(finished.out, &finished.index)?;
        Ok(record)
    }

    /// Writes the entries as a layer into the store, without committing it.
    fn write(&self, entries: &mut [PlannedEntry]) -> Result<FinishedLayer<Ingest>, LayerStepError> {
        read_xattrs(entries)?;
        prepare_sources(entries.iter().map(|planned| &planned.content))?;
        let mut writer = LayerWriter::new(self.store.ingest_local()?, self.options)?;
        let mut looks = Vec::new();
        for (at, planned) in entries.iter().enumerate() {
            self.stop.check().map_err(LayerStepError::Stopped)?;
            let content = |source| WriteError::Content { path: planned.entry.path.clone(), source };
            match &planned.content {
                Content::None => writer.append_empty(&planned.entry)?,
                Content::Bytes(bytes) => writer.append(&planned.entry, &bytes[..])?,
                Content::Layer(file) => writer.append(&planned.entry, file.open().map_err(content)?)?,
                Content::Disk(disk) => {
                    let began_ns = now_ns();
                    let file = disk.open()?;
                    let before = stamp(&file)?;
                    let reader = self.stop.reader(SparseFile::new(&file)?);
                    writer.append(&planned.entry, reader).map_err(|error| of_file(error, disk))?;
                    looks.push((at, before, stamp(&file)?, began_ns));
                }
            }
        }
        let finished = writer.finish()?;
        for (at, before, after, began_ns) in looks {
            if let Some(digest) = finished.index.entries.get(at).and_then(|entry| entry.content) {
                self.stat_cache.learn(&before, &after, began_ns, digest);
            }
        }
        Ok(finished)
    }

    /// The content digest of each entry, whose attributes are read as well, by as little reading as is safe, on all threads.
    pub(crate) fn digests(&self, entries: &mut [PlannedEntry]) -> Result<ContentDigests, LayerStepError> {
        read_xattrs(entries)?;
        let entries = &*entries;
        let stamps: Vec<FileStamp> = entries
            .iter()
            .filter_map(|planned| match &planned.content {
                Content::Disk(file) => Some(file.stamp),
                _ => None,
            })
            .collect();
        let known = self.store.stat_cache_get(&stamps)?;
        self.stat_cache
            .add_known(stamps.into_iter().zip(known).filter_map(|(stamp, digest)| Some((stamp, digest?))));
        let threads = match self.options.threads {
            0 => processors(),
            threads => threads,
        };
        let next = AtomicUsize::new(0);
        let work = || -> io::Result<Vec<(usize, Digest)>> {
            let mut done = Vec::new();
            while let Some((at, planned)) = claim(&next, entries).filter(|_| self.stop.check().is_ok()) {
                if let Some(digest) = self.digest(&planned.content)? {
                    done.push((at, digest));
                }
            }
            Ok(done)
        };
        let mut digests = vec![None; entries.len()];
        let parts: Vec<io::Result<Vec<(usize, Digest)>>> = std::thread::scope(|scope| {
            let workers: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
            let own = work();
            workers
                .into_iter()
                .map(|worker| worker.join().expect("hashing does not panic"))
                .chain([own])
                .collect()
        });
        self.stop.check().map_err(LayerStepError::Stopped)?;
        for part in parts {
            for (at, digest) in part? {
                digests[at] = Some(digest);
            }
        }
        Ok(digests)
    }

    /// The digest of entries with their contents, as a bind mount's key wants it.
    pub(crate) fn content_digest(
        &self,
        entries: &mut [PlannedEntry],
        began_ns: i128,
    ) -> Result<Digest, LayerStepError> {
        let memo = Memo::of(entries, self.keeps_times(), began_ns);
        Ok(self.files_digest(entries, memo)?.0)
    }

    /// The digest of one file on disk.
    pub(crate) fn file_digest(&self, file: &DiskFile) -> io::Result<Digest> {
        let known = self.store.stat_cache_get(&[file.stamp]).map_err(io::Error::other)?;
        self.stat_cache.add_known(known.into_iter().flatten().map(|digest| (file.stamp, digest)));
        self.stat_cache.digest(file, &self.stop)
    }

    fn digest(&self, content: &Content) -> io::Result<Option<Digest>> {
        match content {
            Content::None => Ok(None),
            Content::Disk(file) => self.stat_cache.digest(file, &self.stop).map(Some),
            Content::Bytes(_) | Content::Layer(_) => match (content.known_digest(), content) {
                (None, Content::Layer(file)) => hash(file.open()?).map(Some),
                (known, _) => Ok(known),
            },
        }
    }

    /// Names the file that differs, where the difference is in the files.
    fn explain(
        &self,
        miss: Miss,
        earlier: Option<Box<StepRecord>>,
        entries: &mut [PlannedEntry],
        digests: Option<ContentDigests>,
    ) -> Result<Miss, LayerStepError> {
        let in_files = miss == Miss::Changed("files".to_owned());
        let layer = earlier.and_then(|record| record.layer).filter(|_| in_files);
        let Some(layer) = layer else { return Ok(miss) };
        // An index that cannot be read only makes the explanation poorer.
        let Ok(index) = self.store.layer_index(&layer.descriptor.digest) else { return Ok(miss) };
        let digests = match digests {
            Some(digests) => digests,
            None => self.digests(entries)?,
        };
        let now = entries.iter().map(|planned| &planned.entry).zip(digests);
        Ok(first_file_difference(now, &index, self.keeps_times()).map_or(miss, Miss::Changed))
    }

    /// Stores what was learnt about files on disk.
    pub(crate) fn save_stat_cache(&self) -> Result<(), StoreError> {
        self.store.stat_cache_put(&self.stat_cache.take_learnt())
    }
}

/// An error of writing an entry, told of the file that it comes from.
fn of_file(error: WriteError, file: &DiskFile) -> LayerStepError {
    match error {
        WriteError::Size { expected, found, .. } => {
            LayerStepError::Changed { place: file.place(), expected, found }
        }
        other => other.into(),
    }
}

fn claim<'a, T>(next: &AtomicUsize, items: &'a [T]) -> Option<(usize, &'a T)> {
    let at = next.fetch_add(1, Ordering::Relaxed);
    Some((at, items.get(at)?))
}

fn stamp(file: &File) -> io::Result<FileStamp> {
    Ok(stamp_of(&rustix::fs::fstat(file)?))
}

/// The digest of entries with their contents: everything that the layer's bytes depend on.
pub(crate) fn entries_digest<'a>(
    entries: impl Iterator<Item = (&'a Entry, Option<Digest>)>,
    keep_times: bool,
) -> Digest {
    let mut fields = FieldHasher::new();
    for (entry, content) in entries {
        entry_fields(entry, &mut fields);
        fields.field(content.as_ref().map_or(b"", Digest::as_bytes));
        if keep_times {
            time_fields(entry, &mut fields);
        }
    }
    fields.finish()
}

/// What an entry says of itself, but for its time.
pub(crate) fn entry_fields(entry: &Entry, fields: &mut FieldHasher) {
    fields.field(entry.path.as_bytes());
    kind_fields(&entry.kind, fields);
    for number in [u64::from(entry.mode), entry.uid, entry.gid, entry.xattrs.len() as u64] {
        fields.number(number);
    }
    for (name, value) in &entry.xattrs {
        fields.field(name);
        fields.field(value);
    }
}

pub(crate) fn time_fields(entry: &Entry, fields: &mut FieldHasher) {
    fields.number(entry.mtime.secs.cast_unsigned());
    fields.number(u64::from(entry.mtime.nanos));
}

fn kind_fields(kind: &EntryKind, fields: &mut FieldHasher) {
    let device = |fields: &mut FieldHasher, letter: &[u8], major: u32, minor: u32| {
        fields.field(letter);
        fields.number(u64::from(major));
        fields.number(u64::from(minor));
    };
    match kind {
        EntryKind::Directory => fields.field(b"d"),
        EntryKind::Regular { size } => {
            fields.field(b"f");
            fields.number(*size);
        }
        EntryKind::Symlink { target } => {
            fields.field(b"l");
            fields.field(target);
        }
        EntryKind::Hardlink { target } => {
            fields.field(b"h");
            fields.field(target.as_bytes());
        }
        EntryKind::CharDevice { major, minor } => device(fields, b"c", *major, *minor),
        EntryKind::BlockDevice { major, minor } => device(fields, b"b", *major, *minor),
        EntryKind::Fifo => fields.field(b"p"),
        EntryKind::Whiteout => fields.field(b"w"),
        EntryKind::OpaqueMarker => fields.field(b"o"),
    }
}

/// The first file, in layer order, that is not what it was in an earlier layer: `file app/x.py`.
fn first_file_difference<'a>(
    now: impl Iterator<Item = (&'a Entry, Option<Digest>)>,
    earlier: &Arc<LayerIndex>,
    keep_times: bool,
) -> Option<String> {
    let mut seen = std::collections::HashSet::new();
    for (entry, content) in now {
        let Some(before) = earlier.get(&entry.path) else {
            return Some(format!("the set of files ({} is new)", entry.path));
        };
        seen.insert(entry.path.clone());
        if entry.kind != before.entry.kind || content != before.content {
            return Some(format!("file {}", entry.path));
        }
        if (entry.mode, entry.uid, entry.gid) != (before.entry.mode, before.entry.uid, before.entry.gid) {
            return Some(format!("mode or owner of {}", entry.path));
        }
        if entry.xattrs != before.entry.xattrs {
            return Some(format!("extended attributes of {}", entry.path));
        }
        if keep_times && entry.mtime != before.entry.mtime {
            return Some(format!("modification time of {}", entry.path));
        }
    }
    let gone = earlier.entries.iter().find(|entry| !seen.contains(entry.path()));
    gone.map(|gone| format!("the set of files ({} is gone)", gone.path()))
}
