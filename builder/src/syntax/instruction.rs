//! One logical line to one instruction: its name, its flags, its here-documents, its arguments.
//!
//! The arguments of each family are left to [`super::from`], [`super::run`], [`super::transfer`] and
//! [`super::metadata`].

use super::directives::{self, Directives};
use super::flags::Flags;
use super::heredoc::{self, Heredoc};
use super::lines::Lines;
use super::text::{Piece, Word};
use super::tree::{INSTRUCTION_NAMES, Instruction, InstructionKind, Onbuild};
use super::{ERRORS_MAX, INSTRUCTIONS_MAX, STAGES_MAX, from, metadata, run, transfer, words};
use crate::diagnostic::Diagnostic;
use crate::source::{SourceFile, Span};
use crate::suggest;

/// The state of one pass over a file.
pub(crate) struct Parser<'a> {
    lines: Lines<'a>,
    errors: Vec<Diagnostic>,
    warnings: Vec<Diagnostic>,
    stage_begun: bool,
    stages: usize,
    /// A here-document was not closed: what follows may be its body.
    heredoc_is_open: bool,
}

/// What the parsers of arguments get to see.
pub(crate) struct Arguments<'a, 'p> {
    /// The text behind the flags.
    pub(crate) rest: Piece<'a>,
    pub(crate) flags: &'p mut Flags,
    pub(crate) heredocs: Vec<Heredoc>,
    pub(crate) escape: char,
    /// The instruction's name as written.
    pub(crate) keyword: Piece<'a>,
    pub(crate) warnings: &'p mut Vec<Diagnostic>,
}

impl<'a> Parser<'a> {
    pub(crate) fn new(source: &'a SourceFile, escape: char, origin: Option<Span>) -> Parser<'a> {
        let lines = Lines::new(source, escape, origin);
        Parser {
            lines,
            errors: Vec::new(),
            warnings: Vec::new(),
            stage_begun: false,
            stages: 0,
            heredoc_is_open: false,
        }
    }

    pub(crate) fn escape(&self) -> char {
        self.lines.escape
    }

    pub(crate) fn directives(&mut self) -> Directives {
        directives::read(&mut self.lines, &mut self.errors)
    }

    /// Errors and warnings.
    pub(crate) fn finish(self) -> (Vec<Diagnostic>, Vec<Diagnostic>) {
        (self.errors, self.warnings)
    }

    /// All instructions of a file.
    pub(crate) fn instructions(&mut self) -> Vec<Instruction> {
        let mut instructions = Vec::new();
        while self.errors.len() < ERRORS_MAX {
            let Some(line) = self.lines.logical_line(&mut self.warnings) else { break };
            let whole = line.whole().trim();
            if instructions.len() >= INSTRUCTIONS_MAX {
                let message = format!("more than {INSTRUCTIONS_MAX} instructions");
                self.errors.push(Diagnostic::error(whole.span(), message));
                break;
            }
            self.check_order(whole);
            instructions.extend(self.instruction(whole));
        }
        if !self.stage_begun && self.errors.is_empty() && !instructions.is_empty() {
            let last = instructions.last().map_or(Span::default(), |instruction| instruction.span);
            self.errors.push(
                Diagnostic::error(last, "no build stage: there is no FROM instruction")
                    .help("add `FROM image` or `FROM scratch`"),
            );
        }
        instructions
    }

    /// The only instruction of a trigger.
    pub(crate) fn trigger(&mut self) -> Option<Instruction> {
        let line = self.lines.logical_line(&mut self.warnings)?;
        let whole = line.whole().trim();
        if !self.trigger_allowed(whole.split_word().0) {
            return None;
        }
        let instruction = self.instruction(whole);
        match self.lines.logical_line(&mut self.warnings) {
            None => instruction,
            Some(_) => None,
        }
    }

    /// Only ARG may stand before the first FROM. Said once: the rest follows from it.
    fn check_order(&mut self, whole: Piece<'_>) {
        let keyword = whole.split_word().0;
        let name = keyword.text().to_uppercase();
        if name == "FROM" {
            self.stage_begun = true;
            self.stages += 1;
            if self.stages == STAGES_MAX + 1 {
                let message = format!("more than {STAGES_MAX} stages");
                self.errors.push(Diagnostic::error(keyword.span(), message));
            }
        } else if !self.stage_begun && name != "ARG" && INSTRUCTION_NAMES.contains(&name.as_str()) {
            self.stage_begun = true;
            self.errors.push(
                Diagnostic::error(keyword.span(), format!("{name} stands before the first FROM"))
                    .help("begin with `FROM image`; only ARG may stand before it"),
            );
        }
    }

    fn instruction(&mut self, whole: Piece<'_>) -> Option<Instruction> {
        let (keyword, rest) = whole.split_word();
        let Some(name) = INSTRUCTION_NAMES.into_iter().find(|name| name.eq_ignore_ascii_case(keyword.text()))
        else {
            // Behind a body whose end is missing, which has been told, most lines are that body's.
            if !self.heredoc_is_open || looks_misspelt(keyword) {
                self.errors.push(unknown_instruction(keyword, !self.stage_begun && self.errors.is_empty()));
            }
            return None;
        };
        let errors_before = self.errors.len();
        let heredocs = if name == "ONBUILD" { Vec::new() } else { self.heredocs(name, rest) };
        let (flags, rest) = words::flags(rest, self.lines.escape);
        let mut flags = Flags::new(flags);
        let mut failure = None;
        let kind = if name == "ONBUILD" {
            self.onbuild(rest)
        } else {
            let arguments = Arguments {
                rest,
                flags: &mut flags,
                heredocs,
                escape: self.lines.escape,
                keyword,
                warnings: &mut self.warnings,
            };
            match parse_arguments(name, arguments) {
                Ok(kind) => Some(kind),
                Err(error) => {
                    failure = Some(error);
                    None
                }
            }
        };
        // A wrong flag or here-document explains whatever else is missing.
        let flag_errors = flags.finish(name);
        let is_explained = !flag_errors.is_empty() || self.errors.len() > errors_before;
        self.errors.extend(failure.filter(|_| !is_explained));
        self.errors.extend(flag_errors);
        if self.errors.len() > errors_before {
            return None;
        }
        let span = match self.lines.origin() {
            Some(origin) => origin,
            None => Span::new(whole.span().start, self.lines.end_of_read().max(whole.span().end)),
        };
        Some(Instruction { span, keyword: keyword.span(), text: whole.text().to_owned(), kind: kind? })
    }

    /// Reads the bodies that the arguments refer to.
    fn heredocs(&mut self, name: &str, rest: Piece<'_>) -> Vec<Heredoc> {
        if !["RUN", "COPY", "ADD"].contains(&name) {
            return Vec::new();
        }
        let mut heredocs = Vec::new();
        for marker in heredoc::markers(rest, self.lines.escape) {
            if marker.is_spaced && !self.lines.has_line_ahead(&marker.name, marker.strip_tabs) {
                continue;
            }
            if marker.is_spaced && name != "RUN" {
                self.errors.push(
                    Diagnostic::error(marker.span, "a blank stands behind `<<`")
                        .help(format!("write `<<{}` to begin a here-document", marker.name)),
                );
            }
            match self.lines.heredoc_body(marker) {
                Ok(heredoc) => heredocs.push(heredoc),
                // What follows in the file can no longer be told from the bodies.
                Err(error) => {
                    self.errors.push(error);
                    self.heredoc_is_open = true;
                    break;
                }
            }
        }
        heredocs
    }

    fn onbuild(&mut self, rest: Piece<'_>) -> Option<InstructionKind> {
        if rest.is_empty() {
            self.errors.push(Diagnostic::error(rest.span(), "ONBUILD wants an instruction"));
            return None;
        }
        if !self.trigger_allowed(rest.split_word().0) {
            return None;
        }
        let instruction = self.instruction(rest)?;
        let mut trigger = rest.word();
        for heredoc in heredocs_of(&instruction.kind) {
            trigger.text.push_str(&format!("\n{}{}", heredoc.content, heredoc.name));
        }
        Some(InstructionKind::Onbuild(Onbuild { trigger, instruction: Box::new(instruction) }))
    }

    fn trigger_allowed(&mut self, keyword: Piece<'_>) -> bool {
        let name = keyword.text().to_uppercase();
        let forbidden = ["FROM", "MAINTAINER", "ONBUILD"].contains(&name.as_str());
        if forbidden {
            self.errors
                .push(Diagnostic::error(keyword.span(), format!("{name} cannot be an ONBUILD trigger")));
        }
        !forbidden
    }
}

/// The here-documents of an instruction, in order.
pub(crate) fn heredocs_of(kind: &InstructionKind) -> Vec<&Heredoc> {
    use super::tree::TransferSource;
    let transfer = match kind {
        InstructionKind::Run(run) => return run.heredocs.iter().collect(),
        InstructionKind::Copy(copy) => &copy.transfer,
        InstructionKind::Add(add) => &add.transfer,
        _ => return Vec::new(),
    };
    let heredocs = transfer.sources.iter().filter_map(|source| match source {
        TransferSource::Heredoc(heredoc) => Some(heredoc),
        TransferSource::Path(_) => None,
    });
    heredocs.collect()
}

/// Whether a word is written as instructions are, and near to one.
fn looks_misspelt(keyword: Piece<'_>) -> bool {
    let is_upper = keyword.text().chars().all(|c| c.is_ascii_uppercase());
    is_upper && suggest::nearest(keyword.text(), INSTRUCTION_NAMES).is_some()
}

/// `is_first` says that no instruction stands before it.
fn unknown_instruction(keyword: Piece<'_>, is_first: bool) -> Diagnostic {
    let error = Diagnostic::error(keyword.span(), format!("unknown instruction `{}`", keyword.text()));
    match suggest::nearest(keyword.text(), INSTRUCTION_NAMES) {
        Some(near) => error.did_you_mean(Some(near)),
        None if is_first => error.help("a Buildfile begins with `FROM image`; is this one?"),
        None => error
            .help("if the line belongs to the instruction above, end the line before it with a continuation"),
    }
}

fn parse_arguments(name: &str, arguments: Arguments<'_, '_>) -> Result<InstructionKind, Diagnostic> {
    Ok(match name {
        "ADD" => InstructionKind::Add(transfer::add(arguments)?),
        "ARG" => InstructionKind::Arg(metadata::arg(arguments)?),
        "CMD" => InstructionKind::Cmd(metadata::command(arguments)?),
        "COPY" => InstructionKind::Copy(transfer::copy(arguments)?),
        "ENTRYPOINT" => InstructionKind::Entrypoint(metadata::command(arguments)?),
        "ENV" => InstructionKind::Env(metadata::key_values(arguments)?),
        "EXPOSE" => InstructionKind::Expose(metadata::expose(arguments)?),
        "FROM" => InstructionKind::From(from::from(arguments)?),
        "HEALTHCHECK" => InstructionKind::Healthcheck(metadata::healthcheck(arguments)?),
        "LABEL" => InstructionKind::Label(metadata::key_values(arguments)?),
        "MAINTAINER" => InstructionKind::Maintainer(metadata::text(arguments)?),
        "RUN" => InstructionKind::Run(run::run(arguments)?),
        "SHELL" => InstructionKind::Shell(metadata::shell(arguments)?),
        "STOPSIGNAL" => InstructionKind::Stopsignal(metadata::text(arguments)?),
        "USER" => InstructionKind::User(metadata::text(arguments)?),
        "VOLUME" => InstructionKind::Volume(metadata::volume(arguments)?),
        _ => InstructionKind::Workdir(metadata::text(arguments)?),
    })
}

impl Arguments<'_, '_> {
    /// The instruction's name in capitals.
    pub(crate) fn name(&self) -> String {
        self.keyword.text().to_uppercase()
    }

    /// An error unless there is at least one argument.
    pub(crate) fn want_some(&self, example: &str) -> Result<(), Diagnostic> {
        if !self.rest.is_empty() {
            return Ok(());
        }
        let name = self.name();
        Err(Diagnostic::error(self.keyword.span(), format!("{name} wants at least one argument"))
            .help(format!("for example `{name} {example}`")))
    }

    /// The JSON form, if the arguments are one.
    pub(crate) fn json(&self) -> Result<Option<Vec<Word>>, Diagnostic> {
        match words::json_form(self.rest) {
            words::JsonForm::Strings(words) => Ok(Some(words)),
            words::JsonForm::Not => Ok(None),
            words::JsonForm::NotStrings => {
                Err(Diagnostic::error(self.rest.span(), "the JSON form takes strings only")
                    .help("put every element between double quotes"))
            }
        }
    }
}
