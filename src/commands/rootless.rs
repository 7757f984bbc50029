//! Becoming root in a user namespace, for commands of ordinary users that mount or own files.

use rimg_runner::snapshots::Owners;
use rimg_runner::userns::{self, Mapping, SingleReason, UsernsError};

use crate::failure::Failure;

/// Enters a user namespace unless this is root already, and says whose files will be. Only while the process has one
/// thread; afterwards a second call finds it privileged and changes nothing.
pub(crate) fn enter() -> Result<Owners, Failure> {
    enter_mapped().map(owners)
}

/// The same, and says which ids there are.
pub(crate) fn enter_mapped() -> Result<Mapping, Failure> {
    userns::enter().map_err(|error| Failure::from(error).hint("`rimg doctor` shows what the host allows"))
}

/// Enters where the system lets this user; where it does not, nothing has changed and nothing is wrong.
pub(crate) fn enter_if_allowed() -> Result<(), Failure> {
    match userns::enter() {
        Ok(_) | Err(UsernsError::Refused(_) | UsernsError::Helper(_)) => Ok(()),
        // In a namespace without ids no file can be made any more.
        Err(error @ UsernsError::Map { .. }) => Err(error.into()),
    }
}

/// Whose unpacked files are.
pub(crate) fn owners(mapping: Mapping) -> Owners {
    match mapping {
        Mapping::Single(_) => Owners::Squash,
        Mapping::Privileged | Mapping::Ranges { .. } => Owners::Keep,
    }
}

/// What helps where an image has files of several owners and the caller has one id.
pub(crate) const MORE_IDS: &str =
    "`rimg doctor` tells how to get subordinate ids; `--squash-owners` gives all files to root";

/// Why there is only one id, and what gives more.
pub(crate) fn explain(reason: SingleReason) -> (&'static str, &'static str) {
    match reason {
        SingleReason::NoRanges => (
            "you have no ranges in /etc/subuid and /etc/subgid",
            "as root: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER",
        ),
        SingleReason::NoHelpers => ("newuidmap is missing", "as root: apt-get install uidmap"),
        SingleReason::HelpersFailed => (
            "newuidmap refused",
            "check that newuidmap is set-user-ID root, and that the ranges in /etc/subuid do not overlap",
        ),
    }
}
