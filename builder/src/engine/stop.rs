//! Ending a build before its end: [`Interrupt`] from outside, `Stop` for both reasons together.

use std::io::{self, Read};
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

impl Stop {
    /// `inner`, as long as the asking step is to go on: one large file must not keep a build from ending.
    pub(crate) fn reader<R: Read>(&self, inner: R) -> StoppableReader<R> {
        StoppableReader { inner, stop: self.clone() }
    }
}

/// See [`Stop::reader`].
pub(crate) struct StoppableReader<R> {
    inner: R,
    stop: Stop,
}

impl<R: Read> Read for StoppableReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // Whoever gets the error asks why with `check`.
        self.stop.check().map_err(|_| io::Error::other("the step was stopped"))?;
        self.inner.read(buffer)
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn reading_ends_with_the_build() {
        let interrupt = Interrupt::default();
        let stop = Stop::new(interrupt.clone());
        let mut reader = stop.reader(io::repeat(1));
        reader.read_exact(&mut [0; 10]).unwrap();
        stop.fail();
        assert_eq!(stop.check(), Err(Stopped::Sibling));
        assert!(reader.read(&mut [0; 10]).is_err());
        interrupt.set();
        assert_eq!(stop.check(), Err(Stopped::Interrupted));
    }
}
