//! What is doubtful in a tree that parsed: checks named as in BuildKit, so that `# check=skip=` works
//! for both. Checks that need only one instruction's text stand with its parser; those that need
//! values (UndefinedVar, UndefinedArgInFrom) with [`crate::plan`].

use super::WARNINGS_MAX;
use super::tree::{Command, Instruction, InstructionKind};
use crate::diagnostic::Diagnostic;
use crate::source::{SourceFile, Span};

/// Adds warnings for all instructions of a file.
pub(super) fn check(source: &SourceFile, instructions: &[Instruction], warnings: &mut Vec<Diagnostic>) {
    casing(source, instructions, warnings);
    stage_names(instructions, warnings);
    repeated(instructions, warnings);
    let mut shell_set = false;
    for instruction in instructions {
        match &instruction.kind {
            InstructionKind::From(_) => shell_set = false,
            InstructionKind::Shell(_) => shell_set = true,
            InstructionKind::Cmd(Command::Shell(_)) | InstructionKind::Entrypoint(Command::Shell(_))
                if !shell_set && !warnings.iter().any(|warning| within(warning, instruction.span)) =>
            {
                warnings.push(json_recommended(instruction));
            }
            InstructionKind::Maintainer(name) => warnings.push(
                Diagnostic::warning("MaintainerDeprecated", instruction.keyword, "MAINTAINER is deprecated")
                    .help(format!("write `LABEL org.opencontainers.image.authors=\"{}\"`", name.text)),
            ),
            _ => secrets(instruction, warnings),
        }
    }
}

fn within(warning: &Diagnostic, span: Span) -> bool {
    warning.code == Some("JSONArgsRecommended")
        && warning.span.is_some_and(|at| span.start <= at.start && at.end <= span.end)
}

fn json_recommended(instruction: &Instruction) -> Diagnostic {
    let name = instruction.kind.name();
    Diagnostic::warning("JSONArgsRecommended", instruction.span, format!("{name} in shell form"))
        .label("runs below a shell, which does not pass signals on")
        .help(format!("write the JSON form: `{name} [\"program\", \"argument\"]`"))
}

/// ConsistentInstructionCasing: against what most instructions of the file do.
fn casing(source: &SourceFile, instructions: &[Instruction], warnings: &mut Vec<Diagnostic>) {
    let lower = |instruction: &Instruction| {
        let name = source.slice(instruction.keyword);
        (name.to_lowercase() == name, name.to_uppercase() == name)
    };
    let lowers = instructions.iter().filter(|instruction| lower(instruction).0).count();
    let uppers = instructions.iter().filter(|instruction| lower(instruction).1).count();
    let want_lower = lowers > uppers;
    for instruction in instructions {
        let (is_lower, is_upper) = lower(instruction);
        if (want_lower && !is_lower) || (!want_lower && !is_upper) {
            let (word, name) = match want_lower {
                true => ("lower", instruction.kind.name().to_lowercase()),
                false => ("upper", instruction.kind.name().to_owned()),
            };
            let message = format!("the other instructions are in {word} case");
            warnings.push(
                Diagnostic::warning("ConsistentInstructionCasing", instruction.keyword, message)
                    .help(format!("write `{name}`")),
            );
        }
    }
}

/// StageNameCasing, ReservedStageName, DuplicateStageName.
fn stage_names(instructions: &[Instruction], warnings: &mut Vec<Diagnostic>) {
    let mut seen: Vec<String> = Vec::new();
    for instruction in instructions {
        let InstructionKind::From(from) = &instruction.kind else { continue };
        let Some(name) = &from.name else { continue };
        let lower = name.text.to_lowercase();
        if lower != name.text {
            let message = format!("stage name `{}` is not in lower case", name.text);
            warnings.push(
                Diagnostic::warning("StageNameCasing", name.span, message).help(format!("write `{lower}`")),
            );
        }
        if ["scratch", "context"].contains(&lower.as_str()) {
            let message = format!("stage name `{lower}` is reserved");
            warnings.push(Diagnostic::warning("ReservedStageName", name.span, message));
        }
        if seen.contains(&lower) {
            let message = format!("stage name `{lower}` is used twice");
            warnings.push(
                Diagnostic::warning("DuplicateStageName", name.span, message)
                    .help("later references mean the last stage of that name before them"),
            );
        }
        seen.push(lower);
    }
}

/// MultipleInstructionsDisallowed: only the last CMD, ENTRYPOINT or HEALTHCHECK of a stage counts.
fn repeated(instructions: &[Instruction], warnings: &mut Vec<Diagnostic>) {
    let mut earlier: Vec<&Instruction> = Vec::new();
    for instruction in instructions {
        match &instruction.kind {
            InstructionKind::From(_) => earlier.clear(),
            InstructionKind::Cmd(_) | InstructionKind::Entrypoint(_) | InstructionKind::Healthcheck(_) => {
                let name = instruction.kind.name();
                if let Some(at) = earlier.iter().position(|earlier| earlier.kind.name() == name) {
                    let message = format!("a later {name} of the same stage replaces this one");
                    let span = earlier.remove(at).keyword;
                    warnings.push(Diagnostic::warning("MultipleInstructionsDisallowed", span, message));
                }
                earlier.push(instruction);
            }
            _ => {}
        }
    }
}

/// SecretsUsedInArgOrEnv.
fn secrets(instruction: &Instruction, warnings: &mut Vec<Diagnostic>) {
    let names: Vec<_> = match &instruction.kind {
        InstructionKind::Arg(declarations) => {
            declarations.iter().map(|declaration| &declaration.name).collect()
        }
        InstructionKind::Env(pairs) => pairs.iter().map(|pair| &pair.key).collect(),
        _ => return,
    };
    let room = WARNINGS_MAX.saturating_sub(warnings.len());
    for name in names.into_iter().filter(|name| names_secret(&name.text)).take(room) {
        let message =
            format!("`{}` looks like a secret, and {} stores it", name.text, instruction.kind.name());
        warnings.push(
            Diagnostic::warning("SecretsUsedInArgOrEnv", name.span, message)
                .help("hand it to the step that needs it with `RUN --mount=type=secret,id=…`"),
        );
    }
}

fn names_secret(name: &str) -> bool {
    const SECRETS: [&str; 10] = [
        "apikey",
        "auth",
        "credential",
        "credentials",
        "key",
        "password",
        "pword",
        "passwd",
        "secret",
        "token",
    ];
    let name = name.to_lowercase();
    let mut parts = name.split('_');
    parts.clone().any(|part| SECRETS.contains(&part)) && !parts.any(|part| part == "public")
}
