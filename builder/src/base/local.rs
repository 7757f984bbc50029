//! `FROM ./directory` and `FROM ./archive.tar`: an operating system on this machine becomes one layer.
//!
//! The layer is written like every other: sorted, with the build's times, deterministic. Modes, owners, links, devices
//! and capabilities are kept. A directory is taken as the caller sees it: root, or a user in a user namespace, sees
//! true owners; an ordinary user's own files become root's, since such a user could not have made root's, and so do
//! those of owners that the user namespace has no number for. Sockets are left out. Nothing is read again for an unchanged directory beyond its stats.

use std::io;

use rustix::process::{getegid, geteuid};

use crate::add;
use crate::cache::Slot;
use crate::context::{DiskTree, Owners, without_number};
use crate::diagnostic::Diagnostic;
use crate::engine::{Build, BuildError, read_error, step_error, unreadable};
use crate::events::{Event, StepId};
use crate::layer_plan::LayerPlan;
use crate::layer_step::StepOutcome;
use crate::plan::LocalPath;
use crate::source::Span;
use crate::source_tree::land;
use rimg_formats::layer::LayerPath;

/// Makes the layer of the directory or archive at `path`, or finds it in the cache.
pub(crate) fn make(
    build: &Build<'_>,
    id: StepId,
    path: &LocalPath,
    span: Span,
) -> Result<StepOutcome, BuildError> {
    let place = build.local_path(&path.path);
    let slot = Slot::new(&format!("FROM {}", path.name));
    let path = &path.path;
    let stat = std::fs::metadata(&place).map_err(|error| missing(span, path, &error))?;
    let failed = |error: io::Error| unreadable(span, &place, &error);
    let plan = if stat.is_dir() {
        let tree = DiskTree::open(&place, path, owners()).map_err(failed)?;
        LayerPlan::of_tree(&tree)
    } else {
        let (Some(directory), Some(name)) = (place.parent(), place.file_name()) else {
            return Err(BuildError::at(span, format!("`{path}` is neither a directory nor an archive")));
        };
        let tree = DiskTree::open(directory, path, Owners::Dropped).map_err(failed)?;
        let name = LayerPath::parse(name.as_encoded_bytes())
            .map_err(|error| BuildError::at(span, error.to_string()))?;
        // A link to the archive, such as `latest.tar`, is followed within its directory.
        let found = land(&tree, &name).map_err(failed)?.node;
        let archive = found.map(|node| add::archive_of(&build.maker, path, &node)).transpose();
        let archive = archive.map_err(|error| BuildError::at(span, error.to_string()))?.flatten();
        let Some(archive) = archive else {
            let error = Diagnostic::error(span, format!("`{path}` is neither a directory nor a tar archive"));
            return Err(error.help("expected a tar, plain or compressed by gzip, zstd, xz or bzip2").into());
        };
        LayerPlan::of_tree(&archive)
    };
    let plan = plan.map_err(|error| read_error(span, &error))?;
    let missed = |miss| (build.events)(Event::StepMissed { id, miss });
    build.maker.make(plan, slot, &missed).map_err(|error| step_error(error, span))
}

fn owners() -> Owners {
    let (uid, gid) = (geteuid(), getegid());
    let as_root = match (uid.is_root(), in_user_namespace()) {
        (false, _) => Some((uid.as_raw(), gid.as_raw())),
        (true, true) => Some((overflow_id("uid"), overflow_id("gid"))),
        (true, false) => None,
    };
    Owners::Kept { as_root }
}

/// Whether the host has owners that cannot be named here (user_namespaces(7), "unmapped user and group IDs").
fn in_user_namespace() -> bool {
    let all = |map: &str| map.split_ascii_whitespace().eq(["0", "0", "4294967295"]);
    !std::fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| all(&map))
}

/// The number that owners without a number are shown as.
fn overflow_id(kind: &str) -> u32 {
    const USUAL: u32 = 65_534;
    let text = std::fs::read_to_string(format!("/proc/sys/kernel/overflow{kind}"));
    text.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(USUAL)
}

fn missing(span: Span, path: &str, error: &io::Error) -> BuildError {
    let diagnostic = Diagnostic::error(span, format!("failed to open `{path}`: {}", without_number(error)));
    diagnostic.help("paths after FROM start at the context, or are absolute").into()
}
