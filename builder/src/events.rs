//! What a build tells while it works. The library prints nothing; the command line renders these.
//!
//! Events come from several threads, but those of one stage come in order: `StepStarted`, then any of `StepMissed`,
//! `StepProgress` and `StepOutput`, then exactly one of `StepCached`, `StepDone`, `StepFailed` and
//! `StepStopped`.

use std::time::Duration;

use rimg_formats::digest::Digest;

use crate::cache::{CacheKey, Miss};
use crate::diagnostic::Diagnostic;

/// Which step of which stage, both counted from 0. Step 0 of a stage is its `FROM`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StepId {
    /// The stage's place in the Buildfile.
    pub stage: usize,
    /// The step's place in the stage.
    pub step: usize,
}

/// A stage, as announced before any step runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StageOutline {
    /// Its name, or its number when it has none.
    pub name: String,
    /// Whether the target needs it. Stages that it does not need are skipped.
    pub needed: bool,
    /// Its instructions as written, on one line each, `FROM` first.
    pub steps: Vec<String>,
}

/// Where a line of output came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// A layer that a step made or found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerSummary {
    /// Digest of its blob.
    pub digest: Digest,
    /// Length of the blob in bytes.
    pub size_bytes: u64,
    /// Entries in it; `None` when that is not known without reading its index.
    pub entries: Option<usize>,
}

/// Something that happened during a build.
#[derive(Clone, Debug)]
pub enum Event {
    /// The plan is made; nothing has run yet.
    Planned {
        /// All stages of the file, in order.
        stages: Vec<StageOutline>,
    },
    /// A warning about the Buildfile.
    Warning(Diagnostic),
    /// A step began: its key is being computed, or it runs.
    StepStarted {
        /// Which.
        id: StepId,
    },
    /// The cache did not have the step's result; it runs.
    StepMissed {
        /// Which.
        id: StepId,
        /// Why.
        miss: Miss,
    },
    /// A line that the step's process wrote, without its line end.
    StepOutput {
        /// Which.
        id: StepId,
        /// Where.
        stream: OutputStream,
        /// The line; bytes that are not UTF-8 are replaced.
        line: String,
    },
    /// What the step's process wrote and then went back over with a carriage return, as progress bars do. The line that
    /// stands in the end follows as `StepOutput`.
    StepProgress {
        /// Which.
        id: StepId,
        /// The line as it is now.
        line: String,
    },
    /// The step's result was in the cache.
    StepCached {
        /// Which.
        id: StepId,
        /// Its key; `None` for steps that make no layer, which are as cached as what stands before them.
        key: Option<CacheKey>,
        /// Its layer; `None` when it changed no file.
        layer: Option<LayerSummary>,
    },
    /// The step ran.
    StepDone {
        /// Which.
        id: StepId,
        /// How long it took.
        duration: Duration,
        /// Its layer; `None` when it changed no file.
        layer: Option<LayerSummary>,
    },
    /// The step failed; the error follows as the build's result.
    StepFailed {
        /// Which.
        id: StepId,
    },
    /// The step was ended before its end, because another stage failed or the build was interrupted.
    StepStopped {
        /// Which.
        id: StepId,
    },
    /// The image is in the store.
    Finished {
        /// Digest of its manifest.
        manifest: Digest,
    },
}

/// Receives events, from several threads.
pub type EventSink<'a> = dyn Fn(Event) + Sync + 'a;
