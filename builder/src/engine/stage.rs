//! One stage: its base, then its steps in order.

use std::sync::Arc;
use std::time::Instant;

use super::error::BuildError;
use super::schedule::Results;
use super::{Build, files};
use crate::assemble::{ImageState, Touch};
use crate::base;
use crate::cache::LayerRecord;
use crate::events::{Event, LayerSummary, StepId};
use crate::layer_step::StepOutcome;
use crate::layer_tree::LayerTree;
use crate::metadata;
use crate::plan::{Base, Expanded, Stage, StageScope, Step};
use crate::run_step;
use crate::source::Span;
use crate::syntax::InstructionKind;

/// A stage that is done: what stages based on it, or copying from it, start from.
pub(crate) struct StageResult {
    /// The image.
    pub(crate) image: ImageState,
    /// The variables.
    scope: StageScope,
    /// The files.
    pub(crate) tree: Arc<LayerTree>,
}

/// A stage at work.
pub(crate) struct StageRun<'a> {
    pub(crate) build: &'a Build<'a>,
    pub(crate) stage: &'a Stage,
    pub(crate) results: &'a Results<StageResult>,
    pub(crate) image: ImageState,
    pub(crate) scope: StageScope,
    pub(crate) tree: Arc<LayerTree>,
}

/// Runs the stage `index` of the graph; what it depends on is in `results`.
pub(crate) fn run(
    build: &Build<'_>,
    index: usize,
    results: &Results<StageResult>,
) -> Result<StageResult, BuildError> {
    let stage = &build.graph.stages[index];
    let mut idle = true;
    let mut run = observed(build, StepId { stage: stage.number, step: 0 }, &mut idle, || {
        let (run, outcome) = begin(build, stage, results)?;
        Ok((run, outcome))
    })?;
    for (at, step) in stage.steps.iter().enumerate() {
        build.check_stopped()?;
        let id = StepId { stage: stage.number, step: at + 1 };
        observed(build, id, &mut idle, || Ok(((), run.step(step, id)?)))?;
    }
    Ok(StageResult { image: run.image, scope: run.scope, tree: run.tree })
}

/// Does something as step `id`, with events before and after. `idle` tells whether the stage has found everything in
/// the cache so far: then a step that only changes the configuration changes nothing either.
fn observed<T>(
    build: &Build<'_>,
    id: StepId,
    idle: &mut bool,
    work: impl FnOnce() -> Result<(T, Option<StepOutcome>), BuildError>,
) -> Result<T, BuildError> {
    (build.events)(Event::StepStarted { id });
    let began = Instant::now();
    let (result, outcome) = work().inspect_err(|error| {
        let stopped = error.is_stop();
        (build.events)(if stopped { Event::StepStopped { id } } else { Event::StepFailed { id } });
    })?;
    let summary = |layer: &LayerRecord, entries| LayerSummary {
        digest: layer.descriptor.digest,
        size_bytes: layer.descriptor.size,
        entries,
    };
    *idle &= outcome.as_ref().is_none_or(|outcome| outcome.cached);
    let event = match outcome {
        Some(outcome) if outcome.cached => Event::StepCached {
            id,
            key: Some(outcome.key),
            layer: outcome.layer.as_ref().map(|layer| summary(layer, None)),
        },
        None if *idle => Event::StepCached { id, key: None, layer: None },
        outcome => {
            let layer = outcome.as_ref().and_then(|outcome| Some((outcome.layer.as_ref()?, outcome.entries)));
            let layer = layer.map(|(layer, entries)| summary(layer, entries));
            Event::StepDone { id, duration: began.elapsed(), layer }
        }
    };
    (build.events)(event);
    Ok(result)
}

/// FROM: the state that the stage starts from.
fn begin<'a>(
    build: &'a Build<'a>,
    stage: &'a Stage,
    results: &'a Results<StageResult>,
) -> Result<(StageRun<'a>, Option<StepOutcome>), BuildError> {
    let span = from_span(stage);
    let epoch = build.options.epoch;
    let mut outcome = None;
    let (mut image, parent) = match &stage.base {
        // Nothing is for every platform, so `FROM --platform=… scratch` is as if it said none.
        Base::Scratch => (build.scratch(&build.options.platform), None),
        Base::Stage(parent) => {
            let parent = results.get(*parent);
            (ImageState::from_stage(&parent.image), Some(parent))
        }
        Base::Image(name) => {
            let image = build.image(name, build.platform_of(stage));
            (ImageState::from_image(image.clone(), epoch), None)
        }
        Base::OciLayout(layout) => {
            let image = base::layout::import(build, layout, build.platform_of(stage), span)?;
            (ImageState::from_image(image, epoch), None)
        }
        Base::Path(path) => {
            let mut image = build.scratch(build.platform_of(stage));
            let found = base::local::make(build, StepId { stage: stage.number, step: 0 }, path, span)?;
            image.add_step(found.layer.clone(), format!("FROM {}", path.name));
            outcome = Some(found);
            (image, None)
        }
    };
    // The plan has put them among the steps already.
    image.drop_triggers();
    let tree = match parent {
        Some(parent) => parent.tree.clone(),
        None => Arc::new(LayerTree::new("the image", build.store, &image.layers)?),
    };
    let scope = match parent {
        Some(parent) => StageScope::inherit(&parent.scope),
        None => StageScope::new(&build.graph.globals, build.graph.escape, environment(&image)),
    };
    Ok((StageRun { build, stage, results, image, scope, tree }, outcome))
}

/// The place of the base's name.
fn from_span(stage: &Stage) -> Span {
    match &stage.from.kind {
        InstructionKind::From(from) => from.base.span,
        _ => stage.from.span,
    }
}

fn environment(image: &ImageState) -> Vec<(String, String)> {
    let pair = |variable: &String| {
        let (name, value) = variable.split_once('=').unwrap_or((variable, ""));
        (name.to_owned(), value.to_owned())
    };
    image.exec().env.iter().map(pair).collect()
}

impl StageRun<'_> {
    /// Does one step.
    fn step(&mut self, step: &Step, id: StepId) -> Result<Option<StepOutcome>, BuildError> {
        let evaluated = self.scope.expand(&step.instruction)?;
        // The plan has told those that were certain before the base image was known.
        if matches!(self.stage.base, Base::Image(_) | Base::OciLayout(_)) {
            evaluated.warnings.into_iter().for_each(|warning| (self.build.events)(Event::Warning(warning)));
        }
        let instruction = evaluated.instruction;
        let outcome = match &instruction {
            Expanded::Copy(copy) => Some(files::copy(self, step, copy, id)?),
            Expanded::Add(add) => Some(files::add(self, step, add, id)?),
            Expanded::Workdir(path) => Some(files::workdir(self, step, path, id)?),
            Expanded::Run(run) => Some(run_step::run(self, step, run, id)?),
            said => {
                metadata::apply(&mut self.image, said);
                None
            }
        };
        self.scope.apply(&instruction);
        Ok(outcome)
    }

    /// Takes a step's layer in: into the image, its history and the tree of files.
    pub(crate) fn take(&mut self, outcome: &StepOutcome, created_by: String) -> Result<(), BuildError> {
        self.image.add_step(outcome.layer.clone(), created_by);
        if let Some(layer) = &outcome.layer {
            self.tree = Arc::new(self.tree.with_layer(self.build.store, layer)?);
        }
        if !outcome.touched.is_empty() {
            let (layers, has_layer) = (self.image.layers.len(), outcome.layer.is_some());
            self.image.touches.push(Touch { layers, has_layer, paths: outcome.touched.clone().into() });
        }
        Ok(())
    }
}
