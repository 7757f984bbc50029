//! The plan of a build: which stages, on which bases, in which order, and where every COPY and mount
//! takes its files from. A pure value: nothing is fetched or executed to make it.
//!
//! 1. [`globals`]: build arguments, the automatic ones and ARG before the first FROM.
//! 2. [`stages`]: the file is cut at FROM; bases and sources are resolved by [`resolve`].
//! 3. [`order`]: what the target does not need is left out; cycles are errors.
//!
//! The environment of a base image is known only when a stage executes, so steps keep their
//! instructions unexpanded; [`StageScope`] gives them their final form then ([`Expanded`]).
//!
//! Triggers of a base image are known only with its config. An engine that finds `OnBuild` there
//! plans again with [`PlanOptions::triggers`]: they may need further stages.

mod evaluate;
mod expanded;
mod globals;
mod order;
mod ports;
mod resolve;
mod scope;
mod stages;

pub use expanded::{
    ArgValue, Expanded, ExpandedAdd, ExpandedCommand, ExpandedCopy, ExpandedHealthcheck, ExpandedRun,
    ExpandedSource, ExpandedTransfer, RunCommand,
};
pub use globals::Globals;
pub(crate) use globals::global_argument;
pub use scope::{DEFAULT_PATH, ENVIRONMENT_BYTES_MAX, Evaluated, StageScope};

use crate::diagnostic::{Diagnostic, Severity};
use crate::source::Span;
use crate::syntax::{Buildfile, Instruction};
use rimg_formats::platform::Platform;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What the user asked for, apart from the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanOptions {
    /// `--target`: name or number of a stage; the last one if not given.
    pub target: Option<String>,
    /// `--build-arg`
    pub build_args: BTreeMap<String, String>,
    /// `--platform`: what is built.
    pub target_platform: Platform,
    /// Where it is built.
    pub build_platform: Platform,
    /// `SOURCE_DATE_EPOCH` of the environment; also the value of that build argument.
    pub source_date_epoch: Option<String>,
    /// `--build-context name=…`: overrides stages and images of that name.
    pub named_contexts: BTreeMap<String, String>,
    /// `config.OnBuild` of base images, by the text of [`Base::Image`].
    pub triggers: BTreeMap<String, Vec<String>>,
}

impl Default for PlanOptions {
    /// Nothing asked for, everything for the host's platform.
    fn default() -> PlanOptions {
        PlanOptions {
            target: None,
            build_args: BTreeMap::new(),
            target_platform: Platform::host(),
            build_platform: Platform::host(),
            source_date_epoch: None,
            named_contexts: BTreeMap::new(),
            triggers: BTreeMap::new(),
        }
    }
}

/// The stages that the target needs. [`Base::Stage`] and [`CopySource::Stage`] count in [`Graph::stages`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Graph {
    /// The stages, every one behind those it needs.
    pub stages: Vec<Stage>,
    /// The stage that is asked for; the last of `stages`.
    pub target: usize,
    /// Build arguments outside stages, for [`StageScope::new`].
    pub globals: Globals,
    /// The file's escape character, for [`StageScope::new`].
    pub escape: char,
    /// What is doubtful; the warnings of the parser are not repeated.
    pub warnings: Vec<Diagnostic>,
}

/// One stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage {
    /// Its number in the file, from 0.
    pub number: usize,
    /// Its name, in lower case.
    pub name: Option<String>,
    /// What it begins with.
    pub base: Base,
    /// The platform of the base image and of the stage's arguments, if FROM names one.
    pub platform: Option<Platform>,
    /// The FROM instruction.
    pub from: Instruction,
    /// The steps: first the triggers of its base, then its own instructions.
    pub steps: Vec<Step>,
    /// The stages it needs, its base among them.
    pub dependencies: BTreeSet<usize>,
}

/// What a stage begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Base {
    /// Nothing.
    Scratch,
    /// An image, by the reference as written (variables filled in).
    Image(String),
    /// Another stage.
    Stage(usize),
    /// A directory or a tar archive on this machine: `./…`, `../…`, `/…`, or a named context.
    Path(LocalPath),
    /// An image in an OCI layout on this machine: `oci:path[:tag]`.
    OciLayout(OciLayout),
}

/// A directory or archive on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalPath {
    /// Where it lies; relative ones start at the context.
    pub path: String,
    /// What the Buildfile calls it. Only this may enter an image: where a named context lies is no matter of the image.
    pub name: String,
}

/// An image in an OCI layout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OciLayout {
    /// The layout's directory or archive.
    pub path: String,
    /// The tag or digest (`sha256:…`); the only image if not given.
    pub reference: Option<String>,
}

/// Where COPY, ADD or a mount takes files from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CopySource {
    /// The build context.
    Context,
    /// The final state of another stage.
    Stage(usize),
    /// An image, by the reference as written (variables filled in).
    Image(String),
    /// A named context: a directory on this machine.
    Path(LocalPath),
    /// An image in an OCI layout on this machine.
    OciLayout(OciLayout),
}

/// One instruction of a stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The instruction, unexpanded; shared, because a trigger may stand in many stages.
    pub instruction: Arc<Instruction>,
    /// Where COPY and ADD take their files from; the context for all others.
    pub source: CopySource,
    /// Where the mounts of RUN take theirs from, one for each of `Run::mounts`.
    pub mount_sources: Vec<CopySource>,
    /// The FROM that brought it in, if it is a trigger of the base. Its ONBUILD is then spent.
    pub triggered_by: Option<Span>,
}

impl Graph {
    /// Plans a build. Equal inputs give equal plans.
    ///
    /// # Errors
    /// Every mistake found, at its place; mistakes of the command line have none.
    pub fn plan(file: &Buildfile, options: &PlanOptions) -> Result<Graph, Vec<Diagnostic>> {
        let mut warnings = Vec::new();
        let drafts = stages::drafts(file, options, &mut warnings)?;
        let graph = order::order(drafts, file, options, warnings)?;
        let skips = |warning: &Diagnostic| {
            warning.severity == Severity::Warning
                && warning.code.is_some_and(|code| file.directives.check.skips(code))
        };
        let warnings: Vec<Diagnostic> =
            graph.warnings.into_iter().filter(|warning| !skips(warning)).collect();
        if file.directives.check.error && warnings.iter().any(|warning| warning.span.is_some()) {
            let error = |warning: Diagnostic| Diagnostic { severity: Severity::Error, ..warning };
            return Err(warnings.into_iter().map(error).collect());
        }
        Ok(Graph { warnings, ..graph })
    }

    /// The stage that is asked for.
    pub fn target_stage(&self) -> &Stage {
        &self.stages[self.target]
    }
}

#[cfg(test)]
mod tests;
