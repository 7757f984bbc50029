//! A compact, stable text of a syntax tree: one line an instruction, its parts indented below.
//! For golden tests and for people who look into the parser.

use super::heredoc::Heredoc;
use super::tree::{
    Buildfile, Command, Healthcheck, Instruction, InstructionKind, KeyValue, Run, Transfer, TransferSource,
    Word,
};
use std::fmt::Write as _;

impl Buildfile {
    /// The whole tree as text.
    pub fn dump(&self) -> String {
        let mut out = String::new();
        if let Some(syntax) = &self.directives.syntax {
            let _ = writeln!(out, "# syntax {:?}", syntax.text);
        }
        if self.escape != '\\' {
            let _ = writeln!(out, "# escape {:?}", self.escape);
        }
        if !self.directives.check.skip.is_empty() {
            let _ = writeln!(out, "# check skip {:?}", self.directives.check.skip);
        }
        for instruction in &self.instructions {
            dump_instruction(&mut out, 0, instruction);
        }
        for warning in &self.warnings {
            let place =
                warning.span.map_or_else(String::new, |span| format!(" at {}..{}", span.start, span.end));
            let _ = writeln!(out, "! {}{place}", warning.code.unwrap_or("-"));
        }
        out
    }
}

fn dump_instruction(out: &mut String, depth: usize, instruction: &Instruction) {
    let indent = "  ".repeat(depth);
    let span = instruction.span;
    let _ = writeln!(out, "{indent}{} {}..{}", instruction.kind.name(), span.start, span.end);
    let mut parts = Parts { out, indent: "  ".repeat(depth + 1) };
    match &instruction.kind {
        InstructionKind::Add(add) => {
            parts.transfer(&add.transfer);
            parts.word("checksum", add.checksum.as_ref());
            parts.switch("keep-git-dir", add.keep_git_dir.map(|switch| switch.on));
            parts.switch("unpack", add.unpack.map(|switch| switch.on));
        }
        InstructionKind::Arg(declarations) => {
            for declaration in declarations {
                let default = declaration.default.as_ref().map(|default| &default.text);
                parts.line("arg", &format!("{:?} {default:?}", declaration.name.text));
            }
        }
        InstructionKind::Cmd(command) | InstructionKind::Entrypoint(command) => parts.command(command),
        InstructionKind::Copy(copy) => {
            parts.word("from", copy.from.as_ref());
            parts.transfer(&copy.transfer);
            parts.switch("parents", copy.parents.map(|switch| switch.on));
        }
        InstructionKind::Env(pairs) | InstructionKind::Label(pairs) => parts.pairs(pairs),
        InstructionKind::Expose(words) | InstructionKind::Volume(words) | InstructionKind::Shell(words) => {
            parts.words("word", words);
        }
        InstructionKind::From(from) => {
            parts.word("platform", from.platform.as_ref());
            parts.word("base", Some(&from.base));
            parts.word("name", from.name.as_ref());
        }
        InstructionKind::Healthcheck(check) => parts.healthcheck(check),
        InstructionKind::Onbuild(onbuild) => {
            parts.word("trigger", Some(&onbuild.trigger));
            dump_instruction(out, depth + 1, &onbuild.instruction);
        }
        InstructionKind::Run(run) => parts.run(run),
        InstructionKind::Maintainer(word)
        | InstructionKind::Stopsignal(word)
        | InstructionKind::User(word)
        | InstructionKind::Workdir(word) => parts.word("word", Some(word)),
    }
}

struct Parts<'a> {
    out: &'a mut String,
    indent: String,
}

impl Parts<'_> {
    fn line(&mut self, name: &str, text: &str) {
        let _ = writeln!(self.out, "{}{name} {text}", self.indent);
    }

    fn word(&mut self, name: &str, word: Option<&Word>) {
        if let Some(word) = word {
            self.line(name, &format!("{:?}", word.text));
        }
    }

    fn words(&mut self, name: &str, words: &[Word]) {
        words.iter().for_each(|word| self.word(name, Some(word)));
    }

    fn switch(&mut self, name: &str, on: Option<bool>) {
        if let Some(on) = on {
            self.line(name, &on.to_string());
        }
    }

    fn pairs(&mut self, pairs: &[KeyValue]) {
        for pair in pairs {
            self.line("set", &format!("{:?} {:?}", pair.key.text, pair.value.text));
        }
    }

    fn command(&mut self, command: &Command) {
        match command {
            Command::Exec(words) => {
                let words: Vec<&str> = words.iter().map(|word| word.text.as_str()).collect();
                self.line("exec", &format!("{words:?}"));
            }
            Command::Shell(text) => self.word("shell", Some(text)),
        }
    }

    fn heredoc(&mut self, heredoc: &Heredoc) {
        let expand = if heredoc.expand { " expand" } else { "" };
        let tabs = if heredoc.strip_tabs { " strip-tabs" } else { "" };
        let descriptor = heredoc.descriptor.map_or_else(String::new, |number| format!(" {number}"));
        self.line("heredoc", &format!("{:?}{expand}{tabs}{descriptor} {:?}", heredoc.name, heredoc.text()));
    }

    fn transfer(&mut self, transfer: &Transfer) {
        self.word("chown", transfer.chown.as_ref());
        self.word("chmod", transfer.chmod.as_ref());
        self.switch("link", transfer.link.map(|switch| switch.on));
        self.words("exclude", &transfer.excludes);
        for source in &transfer.sources {
            match source {
                TransferSource::Path(path) => self.word("source", Some(path)),
                TransferSource::Heredoc(heredoc) => self.heredoc(heredoc),
            }
        }
        self.word("destination", Some(&transfer.destination));
    }

    fn run(&mut self, run: &Run) {
        for mount in &run.mounts {
            let field = |field: &super::MountField| match &field.value {
                Some(value) => format!("{}={:?}", field.key, value.text),
                None => field.key.clone(),
            };
            self.line("mount", &mount.fields.iter().map(field).collect::<Vec<_>>().join(" "));
        }
        self.word("network", run.network.as_ref());
        self.word("security", run.security.as_ref());
        self.words("device", &run.devices);
        self.command(&run.command);
        run.heredocs.iter().for_each(|heredoc| self.heredoc(heredoc));
    }

    fn healthcheck(&mut self, check: &Healthcheck) {
        let Healthcheck::Command { command, interval, timeout, start_period, start_interval, retries } =
            check
        else {
            return self.line("none", "");
        };
        self.command(command);
        let durations = [
            ("interval", interval),
            ("timeout", timeout),
            ("start-period", start_period),
            ("start-interval", start_interval),
        ];
        for (name, duration) in durations {
            if let Some(duration) = duration {
                self.line(name, &duration.to_string());
            }
        }
        if let Some(retries) = retries {
            self.line("retries", &retries.to_string());
        }
    }
}
