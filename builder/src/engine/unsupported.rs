//! What parses and cannot be executed yet: said at its line, and before anything is fetched or run.
//!
//! Words with variables are known only when their stage executes; the same questions are asked again then.

use crate::diagnostic::Diagnostic;
use crate::plan::Graph;
use crate::source::Span;
use crate::syntax::{InstructionKind, Mount, MountKind, Run, TransferSource, Word};

/// Refuses what the stages of a plan cannot do, everything at once.
///
/// # Errors
/// A diagnostic for each place.
pub(crate) fn check(graph: &Graph) -> Result<(), Vec<Diagnostic>> {
    let mut errors = Vec::new();
    for step in graph.stages.iter().flat_map(|stage| &stage.steps) {
        match &step.instruction.kind {
            InstructionKind::Add(add) => {
                let paths = add.transfer.sources.iter().filter_map(|source| match source {
                    TransferSource::Path(path) => Some(path),
                    TransferSource::Heredoc(_) => None,
                });
                errors.extend(paths.filter_map(unsupported_source));
            }
            InstructionKind::Run(run) => run_errors(run, &mut errors),
            _ => {}
        }
    }
    errors.sort_by_key(|error| error.span);
    errors.dedup();
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

fn run_errors(run: &Run, errors: &mut Vec<Diagnostic>) {
    errors.extend(unsupported_in_run(run.security.as_ref(), &run.devices));
    for mount in run.mounts.iter().filter(|mount| !mount.has_variables()) {
        let resolved = mount.resolve(&mut |word| Ok(word.text.clone()));
        errors.extend(resolved.ok().as_ref().and_then(unsupported_mount));
    }
}

/// A source of ADD that lies on a network.
pub(crate) fn unsupported_source(path: &Word) -> Option<Diagnostic> {
    const STARTS: [&str; 5] = ["http://", "https://", "git://", "ssh://", "git@"];
    let remote = STARTS.iter().any(|start| path.text.starts_with(start));
    remote.then(|| {
        Diagnostic::not_supported(path.span, "ADD of a URL or git repository")
            .help("download it into the context, or fetch it in a RUN step")
    })
}

/// Flags of RUN that would give the process more than a sandbox.
pub(crate) fn unsupported_in_run(security: Option<&Word>, devices: &[Word]) -> Vec<Diagnostic> {
    let security = security.filter(|security| security.text == "insecure");
    let refused = |span: Span, what: &str| Diagnostic::not_supported(span, what);
    let security = security.map(|security| refused(security.span, "`--security=insecure`"));
    let device = devices.first().map(|device| refused(device.span, "`--device`"));
    security.into_iter().chain(device).collect()
}

/// Mounts of RUN.
pub(crate) fn unsupported_mount(mount: &Mount) -> Option<Diagnostic> {
    match &mount.kind {
        MountKind::Cache { source, .. } if mount.from.is_none() && source != "/" => {
            let error = "`source` of a cache mount names a path in what `from` names";
            Some(Diagnostic::error(mount.span, error).help("add `from=STAGE` or `from=IMAGE`"))
        }
        MountKind::Ssh { .. } => Some(Diagnostic::not_supported(mount.span, "`--mount=type=ssh`")),
        _ => None,
    }
}
