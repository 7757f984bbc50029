//! A payload's terminal on the caller's: raw mode and the size.
//!
//! Owns putting the caller's terminal back on every way out. Leaves to others: copying ([`crate::copies`]).

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize};

use crate::spec::WindowSize;

/// The size of the terminal on one of the standard descriptors; 24 × 80 when none is a terminal.
#[must_use]
pub fn window_size() -> WindowSize {
    let standard = [rustix::stdio::stdout(), rustix::stdio::stderr(), rustix::stdio::stdin()];
    standard.into_iter().find_map(|fd| tcgetwinsize(fd).ok()).map_or(
        WindowSize { rows: 24, columns: 80 },
        |size| WindowSize { rows: size.ws_row, columns: size.ws_col },
    )
}

/// The caller's terminal in raw mode; as it was again when dropped.
pub(crate) struct RawMode {
    before: Termios,
}

impl RawMode {
    /// `None` when standard input is no terminal.
    pub(crate) fn enter() -> io::Result<Option<RawMode>> {
        let stdin = rustix::stdio::stdin();
        let Ok(before) = tcgetattr(stdin) else {
            return Ok(None);
        };
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin, OptionalActions::Now, &raw)?;
        Ok(Some(RawMode { before }))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // After the output that is still on its way. If the terminal is gone there is nothing to put back.
        let _ = tcsetattr(rustix::stdio::stdin(), OptionalActions::Drain, &self.before);
    }
}

/// The master of the payload's terminal.
pub(crate) struct Master(Arc<OwnedFd>);

impl Master {
    pub(crate) fn new(master: OwnedFd) -> Master {
        Master(Arc::new(master))
    }

    /// The descriptor, for those who copy.
    pub(crate) fn descriptor(&self) -> &Arc<OwnedFd> {
        &self.0
    }

    /// Gives it the size of the caller's terminal. `false` when it has it: then nobody inside is told.
    pub(crate) fn resize(&self) -> bool {
        let standard = [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()];
        let Some(size) = standard.into_iter().find_map(|fd| tcgetwinsize(fd).ok()) else { return false };
        let changed = tcgetwinsize(&*self.0).is_ok_and(|old| {
            (old.ws_row, old.ws_col, old.ws_xpixel, old.ws_ypixel)
                != (size.ws_row, size.ws_col, size.ws_xpixel, size.ws_ypixel)
        });
        changed && tcsetwinsize(&*self.0, size).is_ok()
    }
}
