//! The file cut at FROM: every stage with its base, its steps, and where they take files from.
//! Numbers of stages here are those of the file.

use super::globals::Globals;
use super::resolve::Names;
use super::scope::{DEFAULT_PATH, StageScope};
use super::{Base, CopySource, PlanOptions, Stage, Step};
use crate::diagnostic::Diagnostic;
use crate::source::Span;
use crate::syntax::{
    Buildfile, From, INSTRUCTIONS_MAX, Instruction, InstructionKind, WARNINGS_MAX, Word, parse_trigger,
};
use rimg_formats::platform::Platform;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Steps of all stages together. ONBUILD repeats instructions in every stage built on its own; without
/// a limit a small file could ask for millions.
const STEPS_MAX: usize = 2 * INSTRUCTIONS_MAX;

/// All stages of a file and its global arguments.
pub(super) struct Drafts {
    pub(super) stages: Vec<Stage>,
    pub(super) globals: Globals,
    /// Every name that some ARG declares.
    pub(super) declared: BTreeSet<String>,
}

/// What is known of a stage's variables without its base image.
struct Known {
    scope: StageScope,
    /// Whether no image stands behind it, so that an unknown variable is unknown for certain.
    complete: bool,
    /// Its own ONBUILD triggers.
    triggers: Vec<Arc<Instruction>>,
}

struct Drafting<'a> {
    file: &'a Buildfile,
    options: &'a PlanOptions,
    names: Names<'a>,
    globals: Globals,
    errors: Vec<Diagnostic>,
    warnings: &'a mut Vec<Diagnostic>,
}

pub(super) fn drafts(
    file: &Buildfile,
    options: &PlanOptions,
    warnings: &mut Vec<Diagnostic>,
) -> Result<Drafts, Vec<Diagnostic>> {
    let names: Vec<_> =
        file.instructions.iter().filter_map(as_from).map(|(_, from)| lower_name(from)).collect();
    let globals = Globals::new(options, names.last().and_then(Option::as_deref));
    let mut drafting = Drafting {
        file,
        options,
        names: Names { options, stages: names },
        globals,
        errors: Vec::new(),
        warnings,
    };
    drafting.global_arguments();
    let stages = drafting.stages();
    if !drafting.errors.is_empty() {
        return Err(drafting.errors);
    }
    let declared = file.instructions.iter().flat_map(declared_names).collect();
    Ok(Drafts { stages, globals: drafting.globals, declared })
}

fn as_from(instruction: &Instruction) -> Option<(&Instruction, &From)> {
    match &instruction.kind {
        InstructionKind::From(from) => Some((instruction, from)),
        _ => None,
    }
}

fn lower_name(from: &From) -> Option<String> {
    from.name.as_ref().map(|name| name.text.to_lowercase())
}

fn declared_names(instruction: &Instruction) -> Vec<String> {
    match &instruction.kind {
        InstructionKind::Arg(declarations) => declarations.iter().map(|arg| arg.name.text.clone()).collect(),
        InstructionKind::Onbuild(onbuild) => declared_names(&onbuild.instruction),
        _ => Vec::new(),
    }
}

impl Drafting<'_> {
    fn global_arguments(&mut self) {
        for instruction in
            self.file.instructions.iter().take_while(|instruction| as_from(instruction).is_none())
        {
            let InstructionKind::Arg(declarations) = &instruction.kind else { continue };
            for declaration in declarations {
                if let Err(error) = self.globals.declare(declaration, self.file.escape, self.warnings) {
                    self.errors.push(error);
                    return;
                }
            }
        }
    }

    fn stages(&mut self) -> Vec<Stage> {
        let mut stages: Vec<Stage> = Vec::new();
        let mut known: Vec<Known> = Vec::new();
        let mut steps = 0;
        let mut rest = self.file.instructions.as_slice();
        while let Some(begin) = rest.iter().position(|instruction| as_from(instruction).is_some()) {
            let (from, behind) = (&rest[begin], &rest[begin + 1..]);
            let length = behind.iter().position(|instruction| as_from(instruction).is_some());
            let (own, after) = behind.split_at(length.unwrap_or(behind.len()));
            rest = after;
            let Some((_, text)) = as_from(from) else { break };
            let (stage, variables) = self.stage(stages.len(), from, text, own, &known);
            steps += stage.steps.len();
            stages.push(stage);
            known.push(variables);
            if steps > STEPS_MAX {
                let message = format!("the triggers make it more than {STEPS_MAX} steps");
                self.errors.push(Diagnostic::error(text.base.span, message));
                break;
            }
        }
        stages
    }

    fn stage(
        &mut self,
        number: usize,
        instruction: &Instruction,
        from: &From,
        own: &[Instruction],
        known: &[Known],
    ) -> (Stage, Known) {
        let base = self.base(number, from);
        let platform = self.platform(from);
        let mut variables = match &base {
            Base::Stage(parent) => Known {
                scope: StageScope::inherit(&known[*parent].scope),
                complete: known[*parent].complete,
                triggers: Vec::new(),
            },
            _ => {
                let path = vec![("PATH".to_owned(), DEFAULT_PATH.to_owned())];
                let scope = StageScope::new(&self.globals, self.file.escape, path);
                Known { scope, complete: base == Base::Scratch, triggers: Vec::new() }
            }
        };
        let place = from.base.span;
        let triggers = self.triggers(&base, place, known);
        let steps = triggers.into_iter().map(|trigger| (trigger, Some(place)));
        let steps = steps.chain(own.iter().map(|instruction| (Arc::new(instruction.clone()), None)));
        let steps: Vec<Step> = steps
            .map(|(instruction, origin)| self.step(number, instruction, origin, &mut variables))
            .collect();
        let dependencies = dependencies(&base, &steps);
        let name = lower_name(from);
        (Stage { number, name, base, platform, from: instruction.clone(), steps, dependencies }, variables)
    }

    fn base(&mut self, number: usize, from: &From) -> Base {
        let text = self.globals.expand(&from.base, self.file.escape, "UndefinedArgInFrom", self.warnings);
        let base = text.and_then(|text| self.names.base(&text, from.base.span, number, self.warnings));
        base.unwrap_or_else(|error| {
            self.errors.push(error);
            Base::Scratch
        })
    }

    fn platform(&mut self, from: &From) -> Option<Platform> {
        let word = from.platform.as_ref()?;
        if ["$TARGETPLATFORM", "${TARGETPLATFORM}"].contains(&word.text.as_str()) {
            let message = "`--platform=$TARGETPLATFORM` is what FROM does by itself";
            self.warnings.push(
                Diagnostic::warning("RedundantTargetPlatform", word.span, message).help("leave the flag out"),
            );
        }
        let text = self.globals.expand(word, self.file.escape, "UndefinedArgInFrom", self.warnings);
        let platform = text.and_then(|text| {
            text.parse::<Platform>().map_err(|error| Diagnostic::error(word.span, error.to_string()))
        });
        platform.map_err(|error| self.errors.push(error)).ok()
    }

    /// The triggers that the base brings in.
    fn triggers(&mut self, base: &Base, place: Span, known: &[Known]) -> Vec<Arc<Instruction>> {
        match base {
            Base::Stage(parent) => known[*parent].triggers.clone(),
            Base::Image(image) => {
                let texts = self.options.triggers.get(image).cloned().unwrap_or_default();
                let mut triggers = Vec::new();
                for text in texts {
                    match parse_trigger(&text, self.file.escape, place) {
                        Ok(trigger) => triggers.push(Arc::new(trigger)),
                        Err(errors) => self.errors.extend(errors),
                    }
                }
                triggers
            }
            _ => Vec::new(),
        }
    }

    fn step(
        &mut self,
        number: usize,
        instruction: Arc<Instruction>,
        triggered_by: Option<Span>,
        variables: &mut Known,
    ) -> Step {
        let mut source = CopySource::Context;
        let mut mount_sources = Vec::new();
        match &instruction.kind {
            InstructionKind::Copy(copy) => {
                if let Some(from) = &copy.from {
                    source = self.source(number, from, &variables.scope);
                }
            }
            InstructionKind::Run(run) => {
                for mount in &run.mounts {
                    mount_sources.push(match mount.from() {
                        Some(from) => self.source(number, from, &variables.scope),
                        None => CopySource::Context,
                    });
                }
            }
            InstructionKind::Onbuild(onbuild) => {
                variables.triggers.push(Arc::new((*onbuild.instruction).clone()))
            }
            _ => {}
        }
        // Whatever is wrong with other words is reported when the stage executes: the base image
        // may still define what is missing here.
        let sets = matches!(instruction.kind, InstructionKind::Env(_) | InstructionKind::Arg(_));
        if (sets || (variables.complete && self.warnings.len() < WARNINGS_MAX))
            && let Ok(evaluated) = variables.scope.expand(&instruction)
        {
            variables.scope.apply(&evaluated.instruction);
            if variables.complete && self.warnings.len() < WARNINGS_MAX {
                self.warnings.extend(evaluated.warnings);
            }
        }
        Step { instruction, source, mount_sources, triggered_by }
    }

    /// What `from` means. Only variables that are known before the build can be used in it.
    fn source(&mut self, number: usize, from: &Word, scope: &StageScope) -> CopySource {
        let mut undefined = Vec::new();
        let text = scope.fill(from, true, &mut undefined);
        let source = text.and_then(|(text, _)| match undefined.into_iter().next() {
            Some(warning) => Err(Diagnostic::error(warning.span.unwrap_or(from.span), warning.message)
                .label("must be known before the build")
                .help("declare it with ARG in this stage; variables of the base image cannot be used here")),
            None => self.names.source(&text, from.span, number, self.warnings),
        });
        source.unwrap_or_else(|error| {
            self.errors.push(error);
            CopySource::Context
        })
    }
}

fn dependencies(base: &Base, steps: &[Step]) -> BTreeSet<usize> {
    let mut dependencies = BTreeSet::new();
    if let Base::Stage(stage) = base {
        dependencies.insert(*stage);
    }
    for source in steps.iter().flat_map(|step| step.mount_sources.iter().chain([&step.source])) {
        if let CopySource::Stage(stage) = source {
            dependencies.insert(*stage);
        }
    }
    dependencies
}
