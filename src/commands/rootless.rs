//! Becoming root in a user namespace, for commands of ordinary users that mount or own files.

use rimg_runner::userns;

use crate::failure::Failure;

/// Enters a user namespace unless this is root already. Only while the process has one thread; afterwards a second
/// call finds it privileged and changes nothing.
pub(crate) fn enter() -> Result<(), Failure> {
    userns::enter().map(drop).map_err(|error| Failure::from(error).hint("`rimg doctor` tells what this machine allows"))
}
