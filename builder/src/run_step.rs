//! RUN: a process in a sandbox on the image's files; what it changed becomes the layer.

use crate::diagnostic::Diagnostic;
use crate::engine::{BuildError, StageRun};
use crate::events::StepId;
use crate::layer_step::StepOutcome;
use crate::plan::{ExpandedRun, Step};

/// RUN.
pub(crate) fn run(
    _run: &mut StageRun<'_>,
    step: &Step,
    _instruction: &ExpandedRun,
    _id: StepId,
) -> Result<StepOutcome, BuildError> {
    Err(Diagnostic::not_supported(step.instruction.span, "RUN").into())
}
