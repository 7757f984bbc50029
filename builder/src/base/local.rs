//! `FROM ./directory` and `FROM ./archive.tar`: an operating system on this machine becomes one layer.
//!
//! The layer is written like every other: sorted, with the build's times, deterministic. Modes, owners, links, devices
//! and capabilities are kept. A directory is taken as the caller sees it: root, or a user in a user namespace, sees
//! true owners; an ordinary user's own files become root's, since such a user could not have made root's. Sockets are
//! left out. Nothing is read again for an unchanged directory beyond its stats.

use std::io;

use rustix::process::{getegid, geteuid};

use crate::add;
use crate::cache::Slot;
use crate::context::{DiskTree, Owners};
use crate::diagnostic::Diagnostic;
use crate::engine::{Build, BuildError, step_error, unreadable};
use crate::events::{Event, StepId};
use crate::layer_plan::LayerPlan;
use crate::layer_step::StepOutcome;
use crate::source::Span;
use crate::source_tree::{SourceTree, land};
use rimg_formats::layer::LayerPath;

/// Makes the layer of the directory or archive at `path`, or finds it in the cache.
pub(crate) fn make(build: &Build<'_>, id: StepId, path: &str, span: Span) -> Result<StepOutcome, BuildError> {
    let place = build.local_path(path);
    let stat = std::fs::metadata(&place).map_err(|error| missing(span, path, &error))?;
    let failed = |error: io::Error| unreadable(span, &place, &error);
    let plan = if stat.is_dir() {
        let tree = DiskTree::open(&place, path, owners()).map_err(failed)?;
        plan_all(&tree)
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
        plan_all(&archive)
    };
    let plan = plan.map_err(|error| BuildError::at(span, error.to_string()))?;
    let missed = |miss| (build.events)(Event::StepMissed { id, miss });
    let slot = Slot::new(&format!("FROM {path}"));
    build.maker.make(plan, slot, &missed).map_err(|error| step_error(error, span))
}

fn owners() -> Owners {
    let (uid, gid) = (geteuid(), getegid());
    let invoker = (!uid.is_root()).then(|| (uid.as_raw(), gid.as_raw()));
    Owners::Kept { invoker }
}

fn missing(span: Span, path: &str, error: &io::Error) -> BuildError {
    let diagnostic = Diagnostic::error(span, format!("failed to open `{path}`: {error}"));
    diagnostic.help("paths after FROM start at the context, or are absolute").into()
}

/// Everything in a tree, as one layer on nothing.
fn plan_all(tree: &dyn SourceTree) -> io::Result<LayerPlan> {
    let mut plan = LayerPlan::default();
    let root = tree.lookup(&LayerPath::root())?;
    // Every container runtime makes the root 0755, root's; only another one has to be said.
    if let Some(root) =
        root.filter(|root| root.mode != 0o755 || root.owner.is_some_and(|owner| owner != (0, 0)))
    {
        let owner = root.owner.unwrap_or((0, 0));
        plan.put_anew(LayerPath::root(), root, owner)?;
    }
    add_contents(tree, &LayerPath::root(), &mut plan)?;
    Ok(plan)
}

fn add_contents(tree: &dyn SourceTree, directory: &LayerPath, plan: &mut LayerPlan) -> io::Result<()> {
    for (name, node) in tree.children(directory)? {
        let path = directory.join(&name).map_err(io::Error::other)?;
        let (is_directory, owner) = (node.is_directory(), node.owner.unwrap_or((0, 0)));
        plan.put_anew(path.clone(), node, owner)?;
        if is_directory {
            add_contents(tree, &path, plan)?;
        }
    }
    Ok(())
}
