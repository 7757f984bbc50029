//! Why a build failed, by what the caller can do about it.

use rimg_formats::store::StoreError;

use crate::diagnostic::Diagnostic;
use crate::source::Span;

/// Why a build failed.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// Something in the Buildfile cannot be done; each diagnostic has its place in it.
    #[error("{}", first_message(.0))]
    Buildfile(Vec<Diagnostic>),
    /// The process of a RUN step failed.
    #[error("{}", .0.diagnostic.message)]
    Run(Box<RunFailure>),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The build was stopped because another stage failed; that stage's error is returned instead.
    #[error("the build was stopped")]
    Stopped,
    /// [`Interrupt`](super::Interrupt) was set.
    #[error("the build was interrupted")]
    Interrupted,
}

/// A RUN step that failed.
#[derive(Debug)]
pub struct RunFailure {
    /// What happened, at the instruction.
    pub diagnostic: Diagnostic,
    /// The process's exit code, 128 + signal for a signal; `None` when it could not be started.
    pub exit_code: Option<u8>,
    /// The last lines it wrote.
    pub last_lines: Vec<String>,
}

fn first_message(diagnostics: &[Diagnostic]) -> &str {
    diagnostics.first().map_or("the Buildfile cannot be built", |diagnostic| &diagnostic.message)
}

impl BuildError {
    /// An error at a place of the Buildfile.
    pub(crate) fn at(span: Span, message: impl Into<String>) -> BuildError {
        Diagnostic::error(span, message).into()
    }

    /// Whether the step did not fail, but was not to go on.
    pub(crate) fn is_stop(&self) -> bool {
        matches!(self, BuildError::Stopped | BuildError::Interrupted)
    }

    /// The diagnostics to be rendered with the Buildfile; empty for errors that belong to no place.
    pub fn diagnostics(&self) -> &[Diagnostic] {
        match self {
            BuildError::Buildfile(diagnostics) => diagnostics,
            BuildError::Run(failure) => std::slice::from_ref(&failure.diagnostic),
            BuildError::Store(_) | BuildError::Stopped | BuildError::Interrupted => &[],
        }
    }
}

impl From<Diagnostic> for BuildError {
    fn from(diagnostic: Diagnostic) -> BuildError {
        BuildError::Buildfile(vec![diagnostic])
    }
}

impl From<Vec<Diagnostic>> for BuildError {
    fn from(diagnostics: Vec<Diagnostic>) -> BuildError {
        BuildError::Buildfile(diagnostics)
    }
}
