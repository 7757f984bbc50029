//! The flags of one instruction: known names, how often each may stand, and what kind of value it takes.

use super::ERRORS_MAX;
use super::mount::boolean;
use super::text::Word;
use super::tree::Switch;
use super::words::Flag;
use crate::diagnostic::Diagnostic;
use crate::source::Span;
use crate::suggest;

/// The flags of an instruction, taken one by one by name. Mistakes are collected.
pub(crate) struct Flags {
    flags: Vec<Flag>,
    known: Vec<&'static str>,
    pub(crate) errors: Vec<Diagnostic>,
}

impl Flags {
    pub(crate) fn new(flags: Vec<Flag>) -> Flags {
        Flags { flags, known: Vec::new(), errors: Vec::new() }
    }

    fn take(&mut self, name: &'static str) -> Vec<Flag> {
        self.known.push(name);
        let (taken, rest) =
            std::mem::take(&mut self.flags).into_iter().partition(|flag| flag.name.text == name);
        self.flags = rest;
        taken
    }

    fn take_one(&mut self, name: &'static str) -> Option<Flag> {
        let mut taken = self.take(name).into_iter();
        let first = taken.next();
        for again in taken {
            self.errors.push(
                Diagnostic::error(again.span, format!("flag `--{name}` is given twice"))
                    .help("keep one of them"),
            );
        }
        first
    }

    fn value(&mut self, flag: Flag) -> Option<(Word, Span)> {
        match flag.value {
            Some(value) if !value.text.is_empty() => Some((value, flag.span)),
            _ => {
                let name = flag.name.text;
                self.errors.push(
                    Diagnostic::error(flag.span, format!("flag `--{name}` wants a value"))
                        .help(format!("write `--{name}=VALUE`, without blanks around `=`")),
                );
                None
            }
        }
    }

    /// `--name=value`, at most once.
    pub(crate) fn text(&mut self, name: &'static str) -> Option<Word> {
        let flag = self.take_one(name)?;
        self.value(flag).map(|(value, _)| value)
    }

    /// As [`Flags::text`], of a flag that may as well be left out: `--name=` says nothing.
    pub(crate) fn optional(&mut self, name: &'static str) -> Option<Word> {
        let flag = self.take_one(name)?;
        match &flag.value {
            Some(value) if value.text.is_empty() => None,
            _ => self.value(flag).map(|(value, _)| value),
        }
    }

    /// As [`Flags::list`], without the empty values.
    pub(crate) fn optional_list(&mut self, name: &'static str) -> Vec<Word> {
        let is_empty = |flag: &Flag| flag.value.as_ref().is_some_and(|value| value.text.is_empty());
        let taken: Vec<Flag> = self.take(name).into_iter().filter(|flag| !is_empty(flag)).collect();
        taken.into_iter().filter_map(|flag| self.value(flag)).map(|(value, _)| value).collect()
    }

    /// `--name=value`, any number, each with the place of the whole flag.
    pub(crate) fn list(&mut self, name: &'static str) -> Vec<(Word, Span)> {
        self.take(name).into_iter().filter_map(|flag| self.value(flag)).collect()
    }

    /// `--name` or `--name=true|false`, at most once.
    pub(crate) fn switch(&mut self, name: &'static str) -> Option<Switch> {
        let flag = self.take_one(name)?;
        let on = match &flag.value {
            None => Some(true),
            Some(value) => boolean(&value.text),
        };
        if on.is_none() {
            self.errors.push(
                Diagnostic::error(flag.span, format!("flag `--{name}` is either true or false"))
                    .help(format!("write `--{name}` or `--{name}=false`")),
            );
        }
        on.map(|on| Switch { on, span: flag.span })
    }

    /// Complains about every flag that nobody took.
    pub(crate) fn finish(mut self, instruction: &str) -> Vec<Diagnostic> {
        for flag in std::mem::take(&mut self.flags).into_iter().take(ERRORS_MAX) {
            let name = &flag.name.text;
            let error = Diagnostic::error(flag.span, format!("unknown flag `--{name}` of {instruction}"));
            let error = match suggest::nearest(name, self.known.iter().copied()) {
                Some(near) => error.help(format!("did you mean `--{near}`?")),
                None if self.known.is_empty() => error.help(format!("{instruction} takes no flags")),
                None => error.help(format!("{instruction} knows --{}", self.known.join(", --"))),
            };
            self.errors.push(error);
        }
        self.errors
    }
}
