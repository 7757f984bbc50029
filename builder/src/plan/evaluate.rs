//! Every instruction to its final form: which words are expanded, and the checks that need values.

use super::expanded::{
    ArgValue, Expanded, ExpandedAdd, ExpandedCommand, ExpandedCopy, ExpandedHealthcheck, ExpandedRun,
    ExpandedSource, ExpandedTransfer, RunCommand,
};
use super::ports;
use super::scope::{ENVIRONMENT_BYTES_MAX, StageScope, entry_bytes};
use crate::diagnostic::Diagnostic;
use crate::expand::EXPANSION_BYTES_MAX;
use crate::source::Span;
use crate::syntax::{
    ArgDeclaration, Command, Healthcheck, Heredoc, Instruction, InstructionKind, KeyValue, Run, Transfer,
    TransferSource, Word, check_choice, check_mode,
};

/// One expansion of one instruction.
pub(super) struct Evaluation<'a> {
    scope: &'a StageScope,
    pub(super) warnings: Vec<Diagnostic>,
    /// Bytes this instruction expanded to so far.
    bytes: usize,
}

/// Bytes all words of one instruction may expand to. One word may reach half of it; without a limit
/// on the sum, many short references to one long variable would fill the memory.
const INSTRUCTION_BYTES_MAX: usize = 2 * EXPANSION_BYTES_MAX;
/// Ports one EXPOSE may name, ranges written out: every port of every protocol.
const PORTS_MAX: usize = 3 << 16;

type Result<T> = std::result::Result<T, Diagnostic>;

impl<'a> Evaluation<'a> {
    pub(super) fn new(scope: &'a StageScope) -> Evaluation<'a> {
        Evaluation { scope, warnings: Vec::new(), bytes: 0 }
    }

    pub(super) fn instruction(&mut self, instruction: &Instruction) -> Result<Expanded> {
        Ok(match &instruction.kind {
            InstructionKind::Add(add) => Expanded::Add(ExpandedAdd {
                transfer: self.transfer(&add.transfer)?,
                checksum: self.optional(&add.checksum)?,
                keep_git_dir: add.keep_git_dir,
                unpack: add.unpack,
            }),
            InstructionKind::Arg(declarations) => Expanded::Arg(self.arguments(declarations)?),
            InstructionKind::Cmd(command) => Expanded::Cmd(plain(command)),
            InstructionKind::Copy(copy) => Expanded::Copy(ExpandedCopy {
                transfer: self.transfer(&copy.transfer)?,
                parents: copy.parents,
            }),
            InstructionKind::Entrypoint(command) => Expanded::Entrypoint(plain(command)),
            InstructionKind::Env(pairs) => {
                let pairs = self.pairs(pairs)?;
                self.check_size(instruction, pairs.iter().map(|(key, value)| (key.len(), value.len())))?;
                Expanded::Env(pairs)
            }
            InstructionKind::Expose(words) => Expanded::Expose(self.expose(words)?),
            InstructionKind::From(_) => {
                return Err(Diagnostic::error(instruction.keyword, "FROM cannot be executed within a stage"));
            }
            InstructionKind::Healthcheck(check) => Expanded::Healthcheck(healthcheck(check)),
            InstructionKind::Label(pairs) => Expanded::Label(self.pairs(pairs)?),
            InstructionKind::Maintainer(name) => Expanded::Maintainer(name.text.clone()),
            InstructionKind::Onbuild(onbuild) => Expanded::Onbuild(onbuild.trigger.text.clone()),
            InstructionKind::Run(run) => Expanded::Run(self.run(run)?),
            InstructionKind::Shell(words) => Expanded::Shell(texts(words)),
            InstructionKind::Stopsignal(word) => Expanded::Stopsignal(self.signal(word)?),
            InstructionKind::User(word) => Expanded::User(self.text(word)?),
            InstructionKind::Volume(words) => {
                let paths = words.iter().map(|word| self.filled(word, "VOLUME"));
                Expanded::Volume(paths.collect::<Result<_>>()?)
            }
            InstructionKind::Workdir(word) => Expanded::Workdir(self.text(word)?),
        })
    }

    /// Refuses what no process could be started with.
    fn check_size(
        &self,
        instruction: &Instruction,
        pairs: impl Iterator<Item = (usize, usize)>,
    ) -> Result<()> {
        let added: usize = pairs.map(|(name, value)| entry_bytes(name, value)).sum();
        match self.scope.bytes() + added > ENVIRONMENT_BYTES_MAX {
            false => Ok(()),
            true => Err(too_large(instruction.span)),
        }
    }

    fn text(&mut self, word: &Word) -> Result<String> {
        self.fill(word, true).map(|(text, _)| text)
    }

    fn fill(&mut self, word: &Word, quotes: bool) -> Result<(String, Vec<String>)> {
        let filled = self.scope.fill(word, quotes, &mut self.warnings)?;
        self.bytes += filled.0.len();
        match self.bytes > INSTRUCTION_BYTES_MAX {
            false => Ok(filled),
            true => Err(Diagnostic::error(
                word.span,
                format!("the instruction expands to more than {INSTRUCTION_BYTES_MAX} bytes"),
            )),
        }
    }

    /// The expanded text at the place of the original.
    fn word(&mut self, word: &Word) -> Result<Word> {
        Ok(Word { text: self.text(word)?, span: word.span })
    }

    fn option(&mut self, word: &Option<Word>) -> Result<Option<Word>> {
        word.as_ref().map(|word| self.word(word)).transpose()
    }

    /// As [`Evaluation::option`]; a value that comes out empty is as good as none.
    fn optional(&mut self, word: &Option<Word>) -> Result<Option<Word>> {
        Ok(self.option(word)?.filter(|word| !word.text.is_empty()))
    }

    /// The expanded text, which must not be empty.
    fn filled(&mut self, word: &Word, name: &str) -> Result<String> {
        let text = self.text(word)?;
        match text.is_empty() {
            false => Ok(text),
            true => {
                Err(Diagnostic::error(word.span, format!("{name} is empty after variables were filled in")))
            }
        }
    }

    /// Later arguments of one ARG see the earlier ones; a default that is not needed is not expanded.
    fn arguments(&mut self, declarations: &[ArgDeclaration]) -> Result<Vec<ArgValue>> {
        let mut scope = self.scope.clone();
        let mut bytes = scope.bytes();
        let mut values = Vec::new();
        for declaration in declarations {
            let value = match (scope.given_argument(declaration), &declaration.default) {
                (None, Some(default)) => Some(scope.fill(default, true, &mut self.warnings)?.0),
                (given, _) => given,
            };
            let argument = ArgValue { name: declaration.name.text.clone(), value };
            bytes += entry_bytes(argument.name.len(), argument.value.as_ref().map_or(0, String::len));
            if bytes > ENVIRONMENT_BYTES_MAX {
                return Err(too_large(declaration.name.span));
            }
            scope.declare(argument.clone());
            values.push(argument);
        }
        Ok(values)
    }

    fn pairs(&mut self, pairs: &[KeyValue]) -> Result<Vec<(String, String)>> {
        let mut out = Vec::new();
        for pair in pairs {
            let key = self.text(&pair.key)?;
            if key.is_empty() {
                return Err(Diagnostic::error(
                    pair.key.span,
                    "the key is empty after variables were filled in",
                ));
            }
            out.push((key, self.text(&pair.value)?));
        }
        Ok(out)
    }

    fn expose(&mut self, words: &[Word]) -> Result<Vec<String>> {
        let mut ports = Vec::new();
        // Sorted as they are written, before variables are filled in: so the history has them.
        let mut words: Vec<&Word> = words.iter().collect();
        words.sort_by(|one, other| one.text.cmp(&other.text));
        for word in words {
            let (_, texts) = self.fill(word, true)?;
            for text in texts {
                ports.extend(ports::parse(&text, word.span, &mut self.warnings)?);
                if ports.len() > PORTS_MAX {
                    return Err(Diagnostic::error(
                        word.span,
                        format!("EXPOSE names more than {PORTS_MAX} ports"),
                    ));
                }
            }
        }
        Ok(ports)
    }

    fn signal(&mut self, word: &Word) -> Result<String> {
        let text = self.filled(word, "STOPSIGNAL")?;
        match is_signal(&text) {
            true => Ok(text),
            false => Err(Diagnostic::error(word.span, format!("unknown signal `{text}`"))
                .help("write a name such as `SIGTERM` or a number from 1 to 64")),
        }
    }

    fn transfer(&mut self, transfer: &Transfer) -> Result<ExpandedTransfer> {
        let mut sources = Vec::new();
        for source in &transfer.sources {
            sources.push(match source {
                TransferSource::Path(path) => ExpandedSource::Path(self.word(path).map_err(blank_in_path)?),
                TransferSource::Heredoc(heredoc) => self.file(heredoc)?,
            });
        }
        let destination = self.word(&transfer.destination).map_err(blank_in_path)?;
        if sources.len() > 1 && !is_directory(&destination.text) {
            return Err(Diagnostic::error(destination.span, "several sources want a directory")
                .label("does not end in `/`")
                .help(format!("write `{}/`", destination.text)));
        }
        let chmod = self.optional(&transfer.chmod)?;
        chmod.as_ref().map(check_mode).transpose()?;
        let mut excludes =
            transfer.excludes.iter().map(|word| self.word(word)).collect::<Result<Vec<_>>>()?;
        excludes.retain(|pattern| !pattern.text.is_empty());
        Ok(ExpandedTransfer {
            sources,
            destination,
            chown: self.optional(&transfer.chown)?,
            chmod,
            link: transfer.link,
            excludes,
        })
    }

    fn file(&mut self, heredoc: &Heredoc) -> Result<ExpandedSource> {
        let content = match heredoc.expand {
            true => {
                let word = Word { text: heredoc.text().into_owned(), span: heredoc.content_span };
                self.fill(&word, false)?.0
            }
            false => heredoc.text().into_owned(),
        };
        Ok(ExpandedSource::File { name: heredoc.name.clone(), content, span: heredoc.span })
    }

    fn run(&mut self, run: &Run) -> Result<ExpandedRun> {
        let mut mounts = Vec::new();
        for mount in &run.mounts {
            mounts.push(mount.resolve(&mut |word| self.text(word))?);
        }
        let network = self.option(&run.network)?;
        check_choice("network", network.as_ref(), &["default", "none", "host"])?;
        let security = self.option(&run.security)?;
        check_choice("security", security.as_ref(), &["sandbox", "insecure"])?;
        let devices = run.devices.iter().map(|word| self.word(word)).collect::<Result<_>>()?;
        Ok(ExpandedRun { mounts, network, security, devices, command: run_command(run) })
    }
}

fn too_large(span: Span) -> Diagnostic {
    let message = format!("the variables of the stage come to more than {ENVIRONMENT_BYTES_MAX} bytes");
    Diagnostic::error(span, message)
}

/// Paths are cut at blanks before quotes are looked at, so a quoted path with a blank falls apart.
fn blank_in_path(error: Diagnostic) -> Diagnostic {
    match error.message.starts_with("unclosed") {
        true => error.help("paths with blanks want the JSON form: `[\"a b\", \"/c d/\"]`"),
        false => error,
    }
}

/// RUN's own text is never expanded: the shell does that.
fn run_command(run: &Run) -> RunCommand {
    match (&run.command, run.heredocs.as_slice()) {
        (Command::Exec(words), _) => RunCommand::Exec(texts(words)),
        (Command::Shell(text), [only]) if only.is_all_of(&text.text) => {
            let content = only.text().into_owned();
            match content.starts_with("#!") {
                true => RunCommand::Script { name: only.name.clone(), content },
                false => RunCommand::Shell(content),
            }
        }
        (Command::Shell(text), heredocs) => {
            let mut script = text.text.clone();
            for heredoc in heredocs {
                script.push_str(&format!("\n{}{}", heredoc.content, heredoc.name));
            }
            RunCommand::Shell(script)
        }
    }
}

fn plain(command: &Command) -> ExpandedCommand {
    match command {
        Command::Exec(words) => ExpandedCommand::Exec(texts(words)),
        Command::Shell(text) => ExpandedCommand::Shell(text.text.clone()),
    }
}

fn healthcheck(check: &Healthcheck) -> ExpandedHealthcheck {
    match check {
        Healthcheck::None => ExpandedHealthcheck::None,
        Healthcheck::Command { command, interval, timeout, start_period, start_interval, retries } => {
            ExpandedHealthcheck::Command {
                command: plain(command),
                interval: *interval,
                timeout: *timeout,
                start_period: *start_period,
                start_interval: *start_interval,
                retries: *retries,
            }
        }
    }
}

fn texts(words: &[Word]) -> Vec<String> {
    words.iter().map(|word| word.text.clone()).collect()
}

/// Whether a destination is one by its form. An empty one is the working directory.
fn is_directory(path: &str) -> bool {
    path.is_empty()
        || path.ends_with('/')
        || path == "."
        || path == ".."
        || path.ends_with("/.")
        || path.ends_with("/..")
}

/// The signals of Linux, with or without `SIG`, or their numbers.
fn is_signal(text: &str) -> bool {
    const NAMES: [&str; 35] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "IOT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
        "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
        "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "POLL", "PWR", "SYS", "UNUSED",
    ];
    if let Ok(number) = text.parse::<u8>() {
        return (1..=64).contains(&number);
    }
    let upper = text.to_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let realtime = |rest: &str| rest.is_empty() || rest[1..].parse::<u8>().is_ok_and(|number| number <= 30);
    NAMES.contains(&name)
        || name
            .strip_prefix("RTMIN")
            .is_some_and(|rest| (rest.is_empty() || rest.starts_with('+')) && realtime(rest))
        || name
            .strip_prefix("RTMAX")
            .is_some_and(|rest| (rest.is_empty() || rest.starts_with('-')) && realtime(rest))
}
