//! A build's input from a stream: a Buildfile alone, or a context as a tar.
//!
//! A context is unpacked into a folder beside the snapshots, locked while the build lives and swept when it died:
//!
//! ```text
//! snapshots/.new-<process>-context-<number>/
//!     received     the stream as it came
//!     context/     what the tar holds
//! ```
//!
//! It may be anybody's: paths are kept within the folder, and so are the Buildfile and the ignore file, links or not.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rimg_formats::epoch::Epoch;
use rimg_formats::layer::{EntryKind, LayerCompression, LayerOptions, LayerPath, MtimePolicy};
use rimg_formats::store::Store;
use rimg_runner::claim;

use crate::add;
use crate::cache::Cache;
use crate::context::{DiskTree, Owners};
use crate::engine::{BuildOptions, InputError, Interrupt, Stop};
use crate::layer_plan::LayerPlan;
use crate::layer_step::LayerMaker;
use crate::materialise::materialise;
use crate::source::{SOURCE_BYTES_MAX, SourceFile};
use crate::source_tree::land;
use crate::stat_cache::StatCache;

/// What a Buildfile from a stream is called.
pub const STREAM_NAME: &str = "standard input";

const RECEIVED: &str = "received";
const CONTEXT: &str = "context";

/// What came.
pub enum Received {
    /// A Buildfile; the build has no context.
    Buildfile(SourceFile),
    /// A context.
    Context(ReceivedContext),
}

/// An unpacked context, gone when dropped.
#[derive(Debug)]
pub struct ReceivedContext {
    parent: PathBuf,
    name: String,
    /// The time of the newest regular file.
    newest: Option<Epoch>,
    _lock: File,
}

/// Takes in what `input` brings.
///
/// # Errors
/// [`InputError`]: the stream breaks, is no Buildfile, or is a tar that cannot be unpacked.
pub fn receive(store: &Store, mut input: impl Read) -> Result<Received, InputError> {
    let parent = store.snapshots_dir();
    let mut context = ReceivedContext::claim(&parent).map_err(failed(&parent))?;
    let path = context.path().join(RECEIVED);
    let copied = File::create_new(&path).and_then(|mut file| {
        io::copy(&mut input, &mut file)?;
        file.flush()
    });
    copied.map_err(failed(&path))?;
    match context.unpack(store)? {
        true => Ok(Received::Context(context)),
        false => {
            let file = File::open(&path).map_err(failed(&path))?;
            let mut bytes = Vec::new();
            // One byte more than is allowed is enough to refuse it.
            let most = SOURCE_BYTES_MAX as u64 + 1;
            file.take(most).read_to_end(&mut bytes).map_err(failed(&path))?;
            Ok(Received::Buildfile(SourceFile::from_bytes(STREAM_NAME, bytes)?))
        }
    }
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> InputError {
    let path = path.to_owned();
    move |source| InputError::Read { path, source }
}

impl ReceivedContext {
    fn claim(parent: &Path) -> io::Result<ReceivedContext> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        fs::create_dir_all(parent)?;
        loop {
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let name = format!(".new-{}-context-{number}", std::process::id());
            if let Some(lock) = claim::make(&parent.join(&name), 0o700)? {
                return Ok(ReceivedContext { parent: parent.to_owned(), name, newest: None, _lock: lock });
            }
        }
    }

    fn path(&self) -> PathBuf {
        self.parent.join(&self.name)
    }

    /// Unpacks what was received; false when it is no tar.
    fn unpack(&mut self, store: &Store) -> Result<bool, InputError> {
        let maker = LayerMaker {
            store: store.clone(),
            cache: Cache::new(store.clone(), false),
            stat_cache: StatCache::default(),
            stop: Stop::new(Interrupt::default()),
            options: LayerOptions {
                compression: LayerCompression::None,
                threads: 1,
                mtime: MtimePolicy::Preserve,
            },
        };
        let path = self.path();
        let refused = |error: String| InputError::Archive(error);
        let tree = DiskTree::open(&path, STREAM_NAME, Owners::Dropped).map_err(failed(&path))?;
        let name = LayerPath::parse(RECEIVED).expect("the constant is a clean path");
        let node = land(&tree, &name).map_err(failed(&path))?.node;
        let archive = node.map(|node| add::archive_of(&maker, STREAM_NAME, &node)).transpose();
        let Some(archive) = archive.map_err(|error| refused(error.to_string()))?.flatten() else {
            return Ok(false);
        };
        let plan = LayerPlan::of_tree(&archive).map_err(failed(&path))?;
        let mut entries = plan.into_entries();
        // No instruction copies devices out of a context, and making them takes rights.
        entries.retain(|planned| {
            !matches!(planned.entry.kind, EntryKind::CharDevice { .. } | EntryKind::BlockDevice { .. })
        });
        let files = entries.iter().filter(|planned| matches!(planned.entry.kind, EntryKind::Regular { .. }));
        self.newest = files.filter_map(|planned| Epoch::from_seconds(planned.entry.mtime.secs)).max();
        let context = path.join(CONTEXT);
        fs::create_dir(&context).map_err(failed(&context))?;
        materialise(&entries, &context, MtimePolicy::Preserve).map_err(|error| refused(error.to_string()))?;
        let received = path.join(RECEIVED);
        fs::remove_file(&received).map_err(failed(&received))?;
        Ok(true)
    }

    /// The options of a build from this context. `file` names its Buildfile, from the context's root.
    ///
    /// # Errors
    /// [`InputError`], also when a file that is to be read leads out of the context.
    pub fn options(&self, file: Option<&Path>) -> Result<BuildOptions, InputError> {
        let root = self.path().join(CONTEXT);
        let inside = |path: &Path| {
            let real = fs::canonicalize(path).map_err(failed(path))?;
            let root = fs::canonicalize(&root).map_err(failed(&root))?;
            match real.starts_with(&root) {
                true => Ok(()),
                false => Err(InputError::Archive(format!(
                    "`{}` leads out of the context",
                    path.strip_prefix(&root).unwrap_or(path).display()
                ))),
            }
        };
        // Each of them may be a link to a file of the host.
        let own = file.map(|file| root.join(file.strip_prefix("/").unwrap_or(file)));
        let known = BuildOptions::files_of(&root, own.as_deref());
        known.iter().filter(|path| fs::symlink_metadata(path).is_ok()).try_for_each(|path| inside(path))?;
        // Where the context was unpacked means nothing to the user.
        let mut options = BuildOptions::for_context(&root, own.as_deref()).map_err(|error| match error {
            InputError::NoBuildfile(_) => {
                InputError::Archive("it holds neither Buildfile, Dockerfile nor Containerfile".to_owned())
            }
            InputError::Read { path, source } => InputError::Archive(format!(
                "failed to read `{}`: {source}",
                path.strip_prefix(&root).unwrap_or(&path).display()
            )),
            error => error,
        })?;
        let name = options.buildfile.name().to_owned();
        let name =
            Path::new(&name).strip_prefix(&root).map_or(name.clone(), |name| name.display().to_string());
        options.buildfile = SourceFile::new(name, options.buildfile.text());
        options.context_time = self.newest;
        Ok(options)
    }
}

impl Drop for ReceivedContext {
    fn drop(&mut self) {
        // What stays is swept by a later build.
        let _ = claim::remove(&self.parent, &self.name);
    }
}
