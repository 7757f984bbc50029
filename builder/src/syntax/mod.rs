//! The Dockerfile language: text to a spanned syntax tree. Nothing is expanded or executed here.
//!
//! 1. [`directives`] reads `# syntax=`, `# escape=` and `# check=` at the top.
//! 2. [`lines`] joins continued lines, drops comments and reads here-document bodies.
//! 3. [`instruction`] takes the name, the flags ([`flags`]) and the arguments apart ([`words`]).
//! 4. [`lint`] looks over the finished tree for what is doubtful.
//!
//! A mistake costs its instruction only: parsing goes on behind it, so one call reports them all.

mod directives;
mod dump;
mod duration;
mod flags;
mod from;
mod heredoc;
mod instruction;
mod lines;
mod lint;
mod metadata;
mod mount;
mod run;
mod text;
mod transfer;
mod tree;
mod words;

pub use directives::{CheckOptions, Directives};
pub use duration::{Duration, DurationError};
pub use heredoc::Heredoc;
pub use mount::{CacheSharing, Mount, MountField, MountKind, MountText};
pub use tree::{
    Add, ArgDeclaration, Buildfile, Command, Copy, From, Healthcheck, INSTRUCTION_NAMES, Instruction,
    InstructionKind, KeyValue, Onbuild, Run, Switch, Transfer, TransferSource, Word,
};

pub(crate) use run::check_choice;
pub(crate) use transfer::check_mode;

use crate::diagnostic::Diagnostic;
use crate::source::{SOURCE_BYTES_MAX, SourceFile, Span};
use instruction::Parser;

/// Instructions in one file. Machine-written files reach a few hundred; an image holds 127 layers.
pub const INSTRUCTIONS_MAX: usize = 10_000;
/// Stages in one file. Generated files reach a few dozen; every stage carries its own variables.
pub const STAGES_MAX: usize = 500;
/// The largest body of one here-document, in bytes. Larger files belong into the context, where they
/// are streamed; this text is held in memory and goes through expansion.
pub const HEREDOC_BYTES_MAX: usize = 1 << 20;
/// Warnings kept of one pass over a file or an instruction. Nobody reads more, and each takes far more
/// memory than the few bytes that can cause it.
pub const WARNINGS_MAX: usize = 100;
/// Errors reported at once. Further ones are nearly always consequences.
pub const ERRORS_MAX: usize = 20;

/// Parses a whole file.
///
/// # Errors
/// Every mistake found, in the order of the file, at most [`ERRORS_MAX`]. Warnings are then not returned.
pub fn parse(source: &SourceFile) -> Result<Buildfile, Vec<Diagnostic>> {
    if source.text().len() > SOURCE_BYTES_MAX {
        let message = format!("`{}` is larger than {SOURCE_BYTES_MAX} bytes", source.name());
        return Err(vec![Diagnostic::error_without_place(message)]);
    }
    let mut parser = Parser::new(source, '\\', None);
    let directives = parser.directives();
    let instructions = parser.instructions();
    let escape = parser.escape();
    let (mut errors, mut warnings) = parser.finish();
    if errors.is_empty() && instructions.is_empty() {
        errors.push(
            Diagnostic::error_without_place(format!("`{}` holds no instructions", source.name()))
                .help("begin with `FROM image` or `FROM scratch`"),
        );
    }
    if !errors.is_empty() {
        errors.truncate(ERRORS_MAX);
        return Err(errors);
    }
    lint::check(source, &instructions, &mut warnings);
    warnings.retain(|warning| !warning.code.is_some_and(|code| directives.check.skips(code)));
    warnings.sort_by_key(|warning| warning.span);
    warnings.truncate(WARNINGS_MAX);
    if directives.check.error && !warnings.is_empty() {
        warnings.iter_mut().for_each(|warning| warning.severity = crate::diagnostic::Severity::Error);
        return Err(warnings);
    }
    Ok(Buildfile { directives, escape, instructions, warnings })
}

/// What helps when a `#` stands behind an instruction.
pub(crate) const COMMENT_HELP: &str = "a comment stands on a line of its own";

/// Parses the text of an ONBUILD trigger, as found in a base image's config. All spans in the result
/// are `origin`, the place of the FROM that brought the trigger in.
///
/// # Errors
/// Diagnostics at `origin`; also if the trigger is not exactly one instruction, or one that no trigger
/// may be (FROM, MAINTAINER, ONBUILD).
pub fn parse_trigger(text: &str, escape: char, origin: Span) -> Result<Instruction, Vec<Diagnostic>> {
    let source = SourceFile::new("ONBUILD", text);
    let mut parser = Parser::new(&source, escape, Some(origin));
    let instruction = parser.trigger();
    let (errors, _) = parser.finish();
    let note = format!("in the ONBUILD trigger `{}` of the base image", text.lines().next().unwrap_or(""));
    if !errors.is_empty() {
        return Err(errors.into_iter().map(|error| error.note(note.clone())).collect());
    }
    instruction
        .ok_or_else(|| vec![Diagnostic::error(origin, "a trigger holds exactly one instruction").note(note)])
}
