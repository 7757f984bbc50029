//! Ending a build before its end: [`Interrupt`] from outside, `Stop` for both reasons together.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::error::BuildError;

/// Ends a build from outside, as on Ctrl-C: no further step begins, processes of RUN steps are killed, and the build
/// returns [`BuildError::Interrupted`]. Clones are one.
#[derive(Clone, Debug, Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Ends the build. Cannot be taken back; does not wait.
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it was.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Whether the steps of one build are to go on. Clones are one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stop {
    failed: Arc<AtomicBool>,
    interrupt: Interrupt,
}

/// Why a step does not go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stopped {
    /// Another stage failed.
    Sibling,
    /// The caller wants it so.
    Interrupted,
}

impl Stop {
    pub(crate) fn new(interrupt: Interrupt) -> Stop {
        Stop { failed: Arc::default(), interrupt }
    }

    /// A stage failed: the others need not go on.
    pub(crate) fn fail(&self) {
        self.failed.store(true, Ordering::Relaxed);
    }

    /// An error when the asking step is not to go on.
    pub(crate) fn check(&self) -> Result<(), Stopped> {
        match (self.interrupt.is_set(), self.failed.load(Ordering::Relaxed)) {
            (true, _) => Err(Stopped::Interrupted),
            (false, true) => Err(Stopped::Sibling),
            (false, false) => Ok(()),
        }
    }
}

impl From<Stopped> for BuildError {
    fn from(stopped: Stopped) -> BuildError {
        match stopped {
            Stopped::Sibling => BuildError::Stopped,
            Stopped::Interrupted => BuildError::Interrupted,
        }
    }
}
