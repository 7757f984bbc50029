//! `SOURCE_DATE_EPOCH` as a build argument: of the command line, else of an ARG before the first FROM.
//!
//! | value | time of files and configuration |
//! |---|---|
//! | a number | that many seconds after 1970 |
//! | `context` | the newest file of a context that came as a tar; a folder has no time |
//! | the name of a further context | none: folders and images have no time |
//! | the name of a stage | not supported: such a stage is an ADD from a network |
//!
//! Where the value has no time, it is as if it was not given. Steps never see the word itself.

use rimg_formats::epoch::Epoch;

use super::options::BuildOptions;
use crate::diagnostic::Diagnostic;
use crate::plan::{self, PlanOptions};
use crate::source::Span;
use crate::syntax::{Buildfile, InstructionKind};

/// The argument's name.
const NAME: &str = "SOURCE_DATE_EPOCH";

/// Lets the argument take effect.
///
/// # Errors
/// When the value is none of the table's.
pub(super) fn settle(
    options: &mut BuildOptions,
    file: &Buildfile,
    plan_options: &PlanOptions,
) -> Result<(), Diagnostic> {
    let (value, place) = match options.build_args.remove(NAME) {
        Some(value) => (value, None),
        // The environment's comes before the file's.
        None if options.epoch_is_given => return Ok(()),
        None => match plan::global_argument(file, plan_options, NAME) {
            Some((value, place)) => (value, Some(place)),
            None => return Ok(()),
        },
    };
    if value.is_empty() {
        return Ok(());
    }
    let time = match time(options, file, &value) {
        Ok(time) => time,
        Err(message) => return Err(refused(message, place)),
    };
    options.epoch_is_given = time.is_some();
    options.epoch = time.unwrap_or(Epoch::DEFAULT);
    Ok(())
}

fn time(options: &BuildOptions, file: &Buildfile, value: &str) -> Result<Option<Epoch>, String> {
    if value.bytes().all(|byte| byte.is_ascii_digit()) {
        return Epoch::parse(value).map(Some).map_err(|error| error.to_string());
    }
    if value == "context" {
        return Ok(options.context_time);
    }
    if options.named_contexts.contains_key(value) {
        return Ok(None);
    }
    let is_stage = file.instructions.iter().any(|instruction| match &instruction.kind {
        InstructionKind::From(from) => {
            from.name.as_ref().is_some_and(|name| name.text.eq_ignore_ascii_case(value))
        }
        _ => false,
    });
    match is_stage {
        true => Err(format!("{NAME} from the stage `{value}` is not supported: it would have to be fetched")),
        false => Err(format!("{NAME} is `{value}`: expected seconds since 1970, or `context`")),
    }
}

fn refused(message: String, place: Option<Span>) -> Diagnostic {
    match place {
        Some(place) => Diagnostic::error(place, message),
        None => Diagnostic::error_without_place(message),
    }
}
