//! The boot of this machine: what was not synced is as it was written for as long as the machine runs, and nobody knows
//! what of it is left afterwards.

use std::io;
use std::path::Path;

/// Where the kernel tells it.
const PATH: &str = "/proc/sys/kernel/random/boot_id";

/// The id of the boot; another one after each start of the machine.
///
/// # Errors
/// When `/proc` is not there.
pub fn id() -> io::Result<String> {
    std::fs::read_to_string(Path::new(PATH))
        .map(|id| id.trim_end().to_owned())
        .map_err(|error| io::Error::new(error.kind(), format!("failed to read {PATH}: {error}")))
}
