//! COPY, ADD and WORKDIR: the steps whose layers are made of entries that are known beforehand.

use std::sync::Arc;

use rimg_formats::layer::WriteError;

use super::error::BuildError;
use super::sources::{NO_SIZES, QUIET_FOLDER, read_error, source_tree};
use super::stage::StageRun;
use super::unsupported::unsupported_source;
use crate::add;
use crate::cache::Slot;
use crate::copy::destination::{Destination, clean};
use crate::copy::mode::ModeChange;
use crate::copy::owner::{OwnerError, look_up_owner};
use crate::copy::{CopyError, CopyPlanner, CopyRules, find_sources, find_with_parents};
use crate::diagnostic::Diagnostic;
use crate::events::{Event, StepId};
use crate::ignore::IgnorePatterns;
use crate::layer_plan::{LayerPlan, NewDirectory, Nothing, PlanConflict};
use crate::layer_step::{LayerStepError, StepOutcome};
use crate::plan::{ExpandedAdd, ExpandedCopy, ExpandedSource, ExpandedTransfer, Step};
use crate::source::Span;
use crate::source_tree::{SourceTree, land};
use crate::syntax::Word;

/// COPY.
pub(crate) fn copy(
    run: &mut StageRun<'_>,
    step: &Step,
    copy: &ExpandedCopy,
    id: StepId,
) -> Result<StepOutcome, BuildError> {
    let transfer = &copy.transfer;
    let tree = source_tree(run, &step.source, step.instruction.span)?;
    let parents = copy.parents.is_some_and(|parents| parents.on);
    let plan = plan_transfer(run, transfer, |planner, source, several| {
        if parents {
            return planner.add_with_parents(&*tree, &find_with_parents(&*tree, &source.text)?);
        }
        let mut matches = find_sources(&*tree, &source.text, |name| planner.excludes_name(name))?;
        let several = several || matches.len() > 1;
        matches.retain(|found| !planner.leaves_out(found));
        for found in matches {
            planner.add(&*tree, found, several)?;
        }
        Ok(())
    })?;
    make(run, step, plan, if parents { "COPY --parents" } else { "COPY" }, transfer, id)
}

/// ADD: as COPY, but archives are unpacked.
pub(crate) fn add(
    run: &mut StageRun<'_>,
    step: &Step,
    add: &ExpandedAdd,
    id: StepId,
) -> Result<StepOutcome, BuildError> {
    refuse_remote(add)?;
    let transfer = &add.transfer;
    let tree = source_tree(run, &step.source, step.instruction.span)?;
    let unpack = add.unpack.is_none_or(|unpack| unpack.on);
    let maker = &run.build.maker;
    let plan = plan_transfer(run, transfer, |planner, source, several| {
        let mut matches = find_sources(&*tree, &source.text, |name| planner.excludes_name(name))?;
        let several = several || matches.len() > 1;
        matches.retain(|found| !planner.leaves_out(found));
        for found in matches {
            match if unpack { add::archive(maker, &found)? } else { None } {
                Some(archive) => planner.add_archive(&archive)?,
                None => planner.add(&*tree, found, several)?,
            }
        }
        Ok(())
    })?;
    make(run, step, plan, "ADD", transfer, id)
}

/// What ADD would fetch over a network, and what only such sources take.
fn refuse_remote(add: &ExpandedAdd) -> Result<(), BuildError> {
    let sources = add.transfer.sources.iter().filter_map(|source| match source {
        ExpandedSource::Path(path) => unsupported_source(path),
        ExpandedSource::File { .. } => None,
    });
    let mut errors: Vec<Diagnostic> = sources.collect();
    if let (Some(checksum), true) = (&add.checksum, errors.is_empty()) {
        errors.push(
            Diagnostic::error(checksum.span, "`--checksum` is for sources from a network")
                .help("files of the context need none: their content is in the cache key"),
        );
    }
    if errors.is_empty() { Ok(()) } else { Err(errors.into()) }
}

/// Plans all sources of COPY or ADD; `add` plans one that is a path.
fn plan_transfer(
    run: &StageRun<'_>,
    transfer: &ExpandedTransfer,
    mut add: impl FnMut(&mut CopyPlanner<'_>, &Word, bool) -> Result<(), CopyError>,
) -> Result<LayerPlan, BuildError> {
    let written = &transfer.destination;
    let text = if written.text.is_empty() { "./" } else { &written.text };
    let destination = Destination::parse(text, run.image.working_directory());
    let destination = destination.map_err(|error| BuildError::at(written.span, error.to_string()))?;
    let rules = rules(run, transfer)?;
    // `--link`: the layer is made on nothing, so that it is the same on every base. What the base has at its paths,
    // links and attributes of directories among it, is covered by it and not looked at.
    let independent = transfer.link.is_some_and(|link| link.on);
    let below: &dyn SourceTree = if independent { &Nothing } else { &*run.tree };
    let mut planner = CopyPlanner { below, destination: &destination, rules: &rules, plan: LayerPlan::new() };
    let several = transfer.sources.len() > 1;
    for source in &transfer.sources {
        let (span, planned) = match source {
            ExpandedSource::Path(path) => (path.span, add(&mut planner, path, several)),
            ExpandedSource::File { name, content, span } => {
                (*span, planner.add_inline(name, Arc::from(content.as_bytes()), several))
            }
        };
        planned.map_err(|error| copy_error(error, span, written.span))?;
    }
    Ok(planner.plan)
}

/// What the flags say.
fn rules(run: &StageRun<'_>, transfer: &ExpandedTransfer) -> Result<CopyRules, BuildError> {
    let owner = match &transfer.chown {
        Some(word) => {
            let owner = look_up_owner(&word.text, &*run.tree);
            Some(owner.map_err(|error| owner_error(&error, word.span))?)
        }
        None => None,
    };
    let mode = match &transfer.chmod {
        Some(word) => {
            Some(ModeChange::parse(&word.text).map_err(|message| BuildError::at(word.span, message))?)
        }
        None => None,
    };
    let excludes = match transfer.excludes.first() {
        Some(first) => {
            let patterns =
                IgnorePatterns::from_patterns(transfer.excludes.iter().map(|word| word.text.as_str()));
            Some(patterns.map_err(|error| BuildError::at(first.span, error.to_string()))?)
        }
        None => None,
    };
    Ok(CopyRules { owner, mode, excludes })
}

fn owner_error(error: &OwnerError, span: Span) -> BuildError {
    let diagnostic = Diagnostic::error(span, error.to_string());
    match error {
        OwnerError::User(_) | OwnerError::Group(_) => diagnostic
            .help("make it in a RUN step before this one, or write numbers, such as `1000:1000`")
            .into(),
        OwnerError::Form(_) | OwnerError::Read(..) => diagnostic.into(),
    }
}

fn copy_error(error: CopyError, source: Span, destination: Span) -> BuildError {
    let diagnostic = match &error {
        CopyError::Missing(_) | CopyError::Broken(_) => absent_source(&error, source),
        CopyError::Pattern(_) => Diagnostic::error(source, error.to_string())
            .help("the JSON form is `[\"source\", \"/destination\"]`; a `[` of a name is written `[[]`"),
        CopyError::NeedsDirectory(_) => {
            Diagnostic::error(destination, error.to_string()).help("end the destination with `/`")
        }
        CopyError::Conflict(_) => Diagnostic::error(destination, error.to_string()),
        CopyError::Read(error) => read_error(source, error),
        CopyError::Path(_) | CopyError::Archive { .. } | CopyError::Excluded(_) => {
            Diagnostic::error(source, error.to_string())
        }
    };
    diagnostic.into()
}

/// A source that is not there, of COPY, ADD or a mount.
pub(crate) fn absent_source(error: &CopyError, span: Span) -> Diagnostic {
    let diagnostic = Diagnostic::error(span, error.to_string());
    match error {
        CopyError::Missing(missing) => {
            let mut diagnostic = diagnostic.label("not found");
            if let Some(reason) = &missing.reason {
                diagnostic = diagnostic.note(reason.clone());
            }
            match (&missing.near, missing.advice()) {
                (Some(near), _) => diagnostic.did_you_mean(Some(near)),
                (None, Some(advice)) => diagnostic.help(advice),
                (None, None) => diagnostic,
            }
        }
        CopyError::Broken(link) => diagnostic.label("leads nowhere").help(link.advice()),
        _ => diagnostic,
    }
}

/// Makes the layer of a planned COPY or ADD; `name` is how its line of history begins.
fn make(
    run: &mut StageRun<'_>,
    step: &Step,
    plan: LayerPlan,
    name: &str,
    transfer: &ExpandedTransfer,
    id: StepId,
) -> Result<StepOutcome, BuildError> {
    let outcome = make_layer(run, step, plan, id)?;
    let mut words = vec![name.to_owned()];
    words.extend(transfer.chown.iter().map(|chown| format!("--chown={}", chown.text)));
    words.extend(transfer.chmod.iter().map(|chmod| format!("--chmod={}", chmod.text)));
    // Here-documents come last, wherever they are written.
    words.extend(transfer.sources.iter().filter_map(|source| match source {
        ExpandedSource::Path(path) => Some(path.text.clone()),
        ExpandedSource::File { .. } => None,
    }));
    words.extend(transfer.sources.iter().filter_map(|source| match source {
        ExpandedSource::Path(_) => None,
        ExpandedSource::File { name, .. } => Some(format!("<<{name}")),
    }));
    words.push(transfer.destination.text.clone());
    run.take(&outcome, format!("{} # buildkit", words.join(" ")))?;
    Ok(outcome)
}

fn make_layer(
    run: &StageRun<'_>,
    step: &Step,
    plan: LayerPlan,
    id: StepId,
) -> Result<StepOutcome, BuildError> {
    let slot = Slot::new(&step.instruction.text);
    let missed = |miss| (run.build.events)(Event::StepMissed { id, miss });
    run.build.maker.make(plan, slot, &missed).map_err(|error| step_error(error, step.instruction.span))
}

/// An error of making a layer, at its instruction.
pub(crate) fn step_error(error: LayerStepError, span: Span) -> BuildError {
    match error {
        LayerStepError::Store(error) => error.into(),
        LayerStepError::Stopped(stopped) => stopped.into(),
        LayerStepError::Read(error) => read_error(span, &error).into(),
        LayerStepError::Changed { expected, .. } => {
            let help = if expected == 0 { NO_SIZES } else { QUIET_FOLDER };
            Diagnostic::error(span, error.to_string()).help(help).into()
        }
        LayerStepError::Write(WriteError::Unrepresentable { .. }) => Diagnostic::error(
            span,
            error.to_string(),
        )
        .help("give it another name, or leave it out: with .dockerignore or `--exclude`, in RUN by `rm`")
        .into(),
        other => BuildError::at(span, other.to_string()),
    }
}

/// WORKDIR: makes the directory when it is missing, owned by the current USER.
pub(crate) fn workdir(
    run: &mut StageRun<'_>,
    step: &Step,
    path: &str,
    id: StepId,
) -> Result<StepOutcome, BuildError> {
    let span = step.instruction.span;
    let current = run.image.working_directory();
    let joined = match path {
        "" => current.to_owned(),
        absolute if absolute.starts_with('/') => absolute.to_owned(),
        relative => format!("{current}/{relative}"),
    };
    let cleaned = clean(joined.as_bytes()).map_err(|error| BuildError::at(span, error.to_string()))?;
    // As BuildKit has it: what is absolute stays as it is written, what is joined is cleaned.
    let text = match joined == path || path.is_empty() {
        true => joined,
        false => format!("/{}", String::from_utf8_lossy(cleaned.as_bytes())),
    };
    let below: &dyn SourceTree = &*run.tree;
    let mut plan = LayerPlan::new();
    let landing = land(below, &cleaned).map_err(|error| BuildError::at(span, error.to_string()))?;
    let exists = landing.node.as_ref().is_some_and(crate::source_tree::SourceNode::is_directory);
    if !exists {
        let user = run.image.exec().user.as_str();
        let owner = if user.is_empty() { Ok((0, 0)) } else { look_up_owner(user, below) };
        let owner = owner.map_err(|error| BuildError::at(span, error.to_string()))?;
        let planned = plan.ensure_directory(below, &landing.path, NewDirectory { mode: 0o755, owner });
        planned.map_err(|error| match error {
            PlanConflict::OtherByDirectory(path, kind) => {
                BuildError::at(span, format!("`/{path}` cannot be a working directory: it is {kind}"))
            }
            other => BuildError::at(span, other.to_string()),
        })?;
    }
    let outcome = make_layer(run, step, plan, id)?;
    run.image.config.config.working_dir.clone_from(&text);
    run.take(&outcome, format!("WORKDIR {text}"))?;
    Ok(outcome)
}
