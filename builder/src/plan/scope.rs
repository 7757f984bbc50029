//! The variables of a stage while it executes, and the expansion of its instructions with them.
//!
//! | asked for              | first found in                                              |
//! |------------------------|-------------------------------------------------------------|
//! | a variable in a stage  | the later one of ENV and ARG with a value                   |
//! | the value of an ARG    | `--build-arg`, its default, the global ARG or automatic one |
//!
//! The base's variables, an earlier stage's among them, count as an ENV at the stage's beginning. The configuration
//! holds what ENV says, whatever hides it.
//!
//! An instruction sees one snapshot: [`StageScope::expand`] reads, [`StageScope::apply`] writes.

use super::evaluate::Evaluation;
use super::expanded::{ArgValue, Expanded};
use super::globals::{Globals, undefined};
use crate::diagnostic::Diagnostic;
use crate::expand::Expander;
use crate::syntax::{ArgDeclaration, Instruction, WARNINGS_MAX, Word};

/// PATH where the base image has none; images from scratch store it.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Bytes the variables of a stage may take. The kernel starts no process whose single variable exceeds
/// 128 KiB, and by default none whose variables and arguments exceed 2 MiB together; every stage of a
/// plan holds its own copy.
pub const ENVIRONMENT_BYTES_MAX: usize = 512 << 10;

/// What one variable takes: its text, and a fixed part that bounds how many there can be, because
/// looking one up passes all others.
pub(super) fn entry_bytes(name: usize, value: usize) -> usize {
    const OVERHEAD: usize = 256;
    name + value + OVERHEAD
}

/// The variables in force at one point of a stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StageScope {
    globals: Globals,
    escape: char,
    /// ENV: what the configuration holds.
    environment: Vec<(String, String)>,
    /// ARG, in order of first declaration.
    arguments: Vec<Argument>,
}

/// A declared argument.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Argument {
    name: String,
    value: Option<String>,
    /// Whether its value came behind the last ENV of that name.
    hides_environment: bool,
}

/// An expanded instruction and what is doubtful about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evaluated {
    /// The instruction's final form.
    pub instruction: Expanded,
    /// `UndefinedVar` and similar, at their places.
    pub warnings: Vec<Diagnostic>,
}

impl StageScope {
    /// The scope at the start of a stage whose base is an image or nothing. `environment` is the base
    /// image's; for scratch `PATH` with [`DEFAULT_PATH`].
    pub fn new(globals: &Globals, escape: char, environment: Vec<(String, String)>) -> StageScope {
        StageScope { globals: globals.clone(), escape, environment, arguments: Vec::new() }
    }

    /// The scope at the start of a stage whose base is another stage: it inherits the declared arguments of that
    /// stage's end, and its variables, which come behind them.
    pub fn inherit(parent: &StageScope) -> StageScope {
        let mut scope = parent.clone();
        scope.arguments.iter_mut().for_each(|argument| argument.hides_environment = false);
        scope
    }

    /// The instruction in its final form, with the variables as they are now.
    ///
    /// # Errors
    /// Diagnostics at the words to blame. FROM is refused: it has no final form.
    pub fn expand(&self, instruction: &Instruction) -> Result<Evaluated, Vec<Diagnostic>> {
        let mut evaluation = Evaluation::new(self);
        match evaluation.instruction(instruction) {
            Ok(expanded) => Ok(Evaluated { instruction: expanded, warnings: evaluation.warnings }),
            Err(error) => Err(vec![error]),
        }
    }

    /// Lets ENV and ARG take effect; nothing else changes variables.
    pub fn apply(&mut self, expanded: &Expanded) {
        match expanded {
            Expanded::Env(pairs) => pairs.iter().for_each(|(key, value)| self.set(key, value)),
            Expanded::Arg(arguments) => arguments.iter().for_each(|argument| self.declare(argument.clone())),
            _ => {}
        }
    }

    /// What all variables take, counted with [`entry_bytes`].
    pub(super) fn bytes(&self) -> usize {
        let environment = self.environment.iter().map(|(key, value)| entry_bytes(key.len(), value.len()));
        let size = |argument: &Argument| {
            entry_bytes(argument.name.len(), argument.value.as_ref().map_or(0, String::len))
        };
        environment.sum::<usize>() + self.arguments.iter().map(size).sum::<usize>()
    }

    fn set(&mut self, key: &str, value: &str) {
        self.arguments
            .iter_mut()
            .filter(|argument| argument.name == key)
            .for_each(|argument| argument.hides_environment = false);
        match self.environment.iter_mut().find(|(name, _)| name == key) {
            Some(pair) => pair.1 = value.to_owned(),
            None => self.environment.push((key.to_owned(), value.to_owned())),
        }
    }

    /// An ARG without any value leaves everything as it was.
    pub(super) fn declare(&mut self, ArgValue { name, value }: ArgValue) {
        let hides_environment = value.is_some();
        match self.arguments.iter_mut().find(|known| known.name == name) {
            Some(known) if value.is_some() => {
                known.value = value;
                known.hides_environment = true;
            }
            Some(_) => {}
            None => self.arguments.push(Argument { name, value, hides_environment }),
        }
    }

    /// The value of a variable in this stage.
    pub fn value(&self, name: &str) -> Option<String> {
        let argument = self.arguments.iter().find(|argument| argument.name == name);
        let environment = || self.environment.iter().find(|(key, _)| key == name).map(|(_, value)| value);
        let value = match argument {
            Some(argument) if argument.hides_environment => argument.value.as_ref(),
            argument => environment().or_else(|| argument?.value.as_ref()),
        };
        value.cloned()
    }

    /// The variables that go into the image's config.
    pub fn environment(&self) -> &[(String, String)] {
        &self.environment
    }

    /// The declared arguments in order of declaration, with the values that their names have: what a RUN's history
    /// entry tells (`|N a=b …`). One without a value is told empty.
    pub fn arguments(&self) -> Vec<(String, String)> {
        let told =
            |argument: &Argument| (argument.name.clone(), self.value(&argument.name).unwrap_or_default());
        self.arguments.iter().map(told).collect()
    }

    /// The environment of a RUN without the undeclared proxy arguments: what belongs in its key.
    pub fn run_environment(&self) -> Vec<(String, String)> {
        let is_set = |name: &str| self.environment.iter().any(|(key, _)| key == name);
        let arguments = self.arguments.iter().map(|argument| &argument.name).filter(|name| !is_set(name));
        let names = self.environment.iter().map(|(key, _)| key).chain(arguments);
        names.filter_map(|name| Some((name.clone(), self.value(name)?))).collect()
    }

    /// The environment that the process of a RUN sees. A proxy that the user gave is there without any ARG, in both
    /// spellings, and in front of every ENV; it belongs in neither key nor history.
    pub fn process_environment(&self) -> Vec<(String, String)> {
        let mut environment = self.run_environment();
        for (name, value) in self.globals.proxies() {
            match environment.iter_mut().find(|(known, _)| *known == name) {
                Some(known) => known.1 = value,
                None => environment.push((name, value)),
            }
        }
        environment
    }

    /// Whether the name is a variable or a declared argument, with or without a value.
    fn knows(&self, name: &str) -> bool {
        self.environment.iter().any(|(key, _)| key == name)
            || self.arguments.iter().any(|argument| argument.name == name)
    }

    /// The value a declaration takes, the default apart.
    pub(super) fn given_argument(&self, declaration: &ArgDeclaration) -> Option<String> {
        let name = &declaration.name.text;
        let given = self.globals.build_arg(name).map(str::to_owned);
        given.or_else(|| if declaration.default.is_none() { self.globals.value(name) } else { None })
    }

    /// Fills in a word; `words` splits the result at blanks.
    pub(super) fn fill(
        &self,
        word: &Word,
        quotes: bool,
        warnings: &mut Vec<Diagnostic>,
    ) -> Result<(String, Vec<String>), Diagnostic> {
        let lookup = |name: &str| self.value(name);
        let mut expander = Expander::new(&lookup, self.escape);
        if !quotes {
            // The bodies of here-documents know the backslash only, whatever `# escape=` says.
            expander = Expander::new(&lookup, '\\').without_quotes();
        }
        let expansion = expander
            .expand(&word.text)
            .map_err(|error| Diagnostic::error(word.span_of(error.range.clone()), error.to_string()))?;
        for (name, range) in expansion.undefined {
            if warnings.len() < WARNINGS_MAX && !self.knows(&name) {
                let environment = self.environment.iter().map(|(key, _)| key.as_str());
                let arguments = self.arguments.iter().map(|argument| argument.name.as_str());
                let names = environment.chain(arguments);
                let warning = undefined("UndefinedVar", word.span_of(range), &name, names);
                warnings.push(match self.globals.is_declared(&name) {
                    true => warning.help(format!(
                        "outside of stages it has a value, for FROM alone: write `ARG {name}` in this stage as well"
                    )),
                    false => warning,
                });
            }
        }
        Ok((expansion.text, expansion.words))
    }
}
