//! Becoming root in a user namespace, for commands of ordinary users that mount or own files.

use rimg_runner::snapshots::Owners;
use rimg_runner::userns::{self, Mapping};

use crate::failure::Failure;

/// Enters a user namespace unless this is root already, and says whose files will be. Only while the process has one
/// thread; afterwards a second call finds it privileged and changes nothing.
pub(crate) fn enter() -> Result<Owners, Failure> {
    let entered = userns::enter();
    let mapping =
        entered.map_err(|error| Failure::from(error).hint("`rimg doctor` tells what this machine allows"))?;
    Ok(match mapping {
        Mapping::Single(_) => Owners::Squash,
        Mapping::Privileged | Mapping::Ranges { .. } => Owners::Keep,
    })
}
