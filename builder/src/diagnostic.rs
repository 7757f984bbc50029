//! What is wrong, or only doubtful, in a Buildfile, and its rendering as plain text:
//!
//! ```text
//! error: unknown instruction `CPOY`
//!  --> Buildfile:3:1
//!   |
//! 3 | CPOY . /src
//!   | ^^^^ no such instruction
//!   |
//!   = help: did you mean `COPY`?
//! ```
//!
//! Printing, and whether colour is wanted, is left to the command line.

use crate::source::{SourceFile, Span};
use std::fmt::Write as _;

/// How much a diagnostic weighs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The build cannot go on.
    Error,
    /// The build goes on; the user should look.
    Warning,
}

/// One finding at one place. Kept small, because it travels in many results.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// Error or warning.
    pub severity: Severity,
    /// The name of the check, for those that `# check=skip=NAME` can name.
    pub code: Option<&'static str>,
    /// One sentence, lower-case, no final period.
    pub message: String,
    /// The place; `None` where the command line is to blame.
    pub span: Option<Span>,
    /// A few words behind the underline.
    pub label: Option<Box<str>>,
    /// What to do next.
    pub help: Option<Box<str>>,
    /// Further facts.
    pub notes: Box<[String]>,
}

impl Diagnostic {
    /// An error at `span`.
    pub fn error(span: Span, message: impl Into<String>) -> Diagnostic {
        Diagnostic {
            severity: Severity::Error,
            code: None,
            message: shortened(message.into()),
            span: Some(span),
            label: None,
            help: None,
            notes: Box::default(),
        }
    }

    /// An error that belongs to no place in the file, such as a bad `--target`.
    pub fn error_without_place(message: impl Into<String>) -> Diagnostic {
        Diagnostic { span: None, ..Diagnostic::error(Span::default(), message) }
    }

    /// A warning at `span`, by the check `code`.
    pub fn warning(code: &'static str, span: Span, message: impl Into<String>) -> Diagnostic {
        Diagnostic { severity: Severity::Warning, code: Some(code), ..Diagnostic::error(span, message) }
    }

    /// "not supported yet", for an instruction, flag or argument that parses but cannot be executed.
    pub fn not_supported(span: Span, what: &str) -> Diagnostic {
        Diagnostic::error(span, format!("{what} is not supported yet")).label("not supported yet")
    }

    /// Adds the words behind the underline.
    #[must_use]
    pub fn label(mut self, label: impl Into<String>) -> Diagnostic {
        self.label = Some(label.into().into_boxed_str());
        self
    }

    /// Adds what to do next.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Diagnostic {
        self.help = Some(help.into().into_boxed_str());
        self
    }

    /// Adds "did you mean …" if there is a suggestion.
    #[must_use]
    pub(crate) fn did_you_mean(self, suggestion: Option<&str>) -> Diagnostic {
        match suggestion {
            Some(suggestion) => self.help(format!("did you mean `{suggestion}`?")),
            None => self,
        }
    }

    /// Adds a further fact.
    #[must_use]
    pub fn note(mut self, note: impl Into<String>) -> Diagnostic {
        self.notes = self.notes.into_iter().chain([note.into()]).collect();
        self
    }

    /// Whether this is an error.
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }

    /// The text of this diagnostic, with a line end. `source` is the file its span belongs to.
    pub fn render(&self, source: &SourceFile, style: Style) -> String {
        let mut out = String::new();
        let (word, colour) = match self.severity {
            Severity::Error => ("error", RED),
            Severity::Warning => ("warning", YELLOW),
        };
        let code = self.code.map(|code| format!("[{code}]")).unwrap_or_default();
        let head = style.paint(colour, &format!("{word}{code}"));
        let message = style.paint(BOLD, &format!(": {}", printable(&self.message)));
        let _ = writeln!(out, "{head}{message}");
        let gutter = match self.span {
            Some(span) => self.render_snippet(&mut out, source, span, style, colour),
            None => 1,
        };
        let equals = style.paint(BLUE, "=");
        for (word, text) in self
            .help
            .iter()
            .map(|text| ("help", &**text))
            .chain(self.notes.iter().map(|text| ("note", text.as_str())))
        {
            let indent = " ".repeat(gutter + 12);
            let text = text.lines().map(printable).collect::<Vec<_>>().join(&format!("\n{indent}"));
            let _ = writeln!(out, "{:gutter$} {equals} {word}: {text}", "");
        }
        out
    }

    /// Draws place, line and underline; returns the width of the line-number column.
    fn render_snippet(
        &self,
        out: &mut String,
        source: &SourceFile,
        span: Span,
        style: Style,
        colour: &'static str,
    ) -> usize {
        let place = source.line_column(span.start);
        let number = place.line.to_string();
        let gutter = number.len();
        let bar = style.paint(BLUE, "|");
        let arrow = style.paint(BLUE, "-->");
        let _ = writeln!(out, "{:gutter$}{arrow} {}:{}:{}", "", source.name(), place.line, place.column);
        let _ = writeln!(out, "{:gutter$} {bar}", "");
        let window = Window::new(source, place.line, span);
        let number = style.paint(BLUE, &number);
        let line = window.text.trim_end();
        let _ = writeln!(out, "{number} {bar}{}{line}", if line.is_empty() { "" } else { " " });
        let mut underline = "^".repeat(window.underline);
        if let Some(label) = &self.label {
            let _ = write!(underline, " {}", printable(label));
        }
        let underline = style.paint(colour, &underline);
        let _ = writeln!(out, "{:gutter$} {bar} {:indent$}{underline}", "", "", indent = window.indent);
        if self.help.is_some() || !self.notes.is_empty() {
            let _ = writeln!(out, "{:gutter$} {bar}", "");
        }
        gutter
    }
}

/// The text of several diagnostics, a blank line between them.
pub fn render_all(diagnostics: &[Diagnostic], source: &SourceFile, style: Style) -> String {
    diagnostics.iter().map(|diagnostic| diagnostic.render(source, style)).collect::<Vec<_>>().join("\n")
}

/// Whether the text carries ANSI colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// No escape sequences at all.
    Plain,
    /// ANSI colours, for a terminal.
    Colour,
}

const BOLD: &str = "\x1b[1m";
const RED: &str = "\x1b[1;31m";
const YELLOW: &str = "\x1b[1;33m";
const BLUE: &str = "\x1b[1;34m";

impl Style {
    fn paint(self, colour: &str, text: &str) -> String {
        match self {
            Style::Plain => text.to_owned(),
            Style::Colour => format!("{colour}{text}\x1b[0m"),
        }
    }
}

/// The most columns of a line that are shown. Longer lines are cut around the underline.
const WINDOW_COLUMNS: usize = 140;
/// Columns kept before the underline when the line is cut.
const WINDOW_BEFORE: usize = 40;

/// The visible part of a source line, and where the underline goes.
struct Window {
    text: String,
    indent: usize,
    underline: usize,
}

impl Window {
    fn new(source: &SourceFile, number: usize, span: Span) -> Window {
        let start = source.line_range(number).start;
        let line = source.line(number);
        // Only the neighbourhood is looked at: a hostile line of megabytes costs no more than a short one.
        let at = span.start.saturating_sub(start).min(line.len());
        let near = boundary(line, at.saturating_sub(4 * WINDOW_COLUMNS));
        let far = boundary(line, at.saturating_add(8 * WINDOW_COLUMNS).min(line.len()));
        let line = &line[near..far];
        let from = at - near;
        let to = span.end.saturating_sub(start + near).clamp(from, line.len());
        // Cells: what each character prints as, its columns, and whether it is underlined.
        let cells: Vec<(String, usize, bool)> = line
            .char_indices()
            .map(|(at, character)| {
                let text = cell(character);
                let columns = text.chars().map(columns).sum();
                (text, columns, at >= from && at < to)
            })
            .collect();
        let column = |index: usize| cells[..index].iter().map(|cell| cell.1).sum::<usize>();
        let first = line[..from].chars().count();
        let cut = near > 0 || column(cells.len()) > WINDOW_COLUMNS;
        let skip = if cut { column(first).saturating_sub(WINDOW_BEFORE) } else { 0 };
        let mut window = Window { text: String::new(), indent: 0, underline: 0 };
        let mut at = 0;
        if skip > 0 {
            window.text.push_str("...");
            window.indent = 3;
        }
        for (index, (text, width, marked)) in cells.iter().enumerate() {
            at += width;
            if at <= skip {
                continue;
            }
            if at > skip + WINDOW_COLUMNS {
                window.text.push_str("...");
                break;
            }
            window.text.push_str(text);
            if *marked {
                window.underline += width;
            } else if index < first {
                window.indent += width;
            }
        }
        window.underline = window.underline.max(1);
        window
    }
}

/// A message that quotes a word of megabytes is cut: the place shows the rest.
fn shortened(mut message: String) -> String {
    const MESSAGE_BYTES_MAX: usize = 1000;
    if message.len() > MESSAGE_BYTES_MAX {
        message.truncate(boundary(&message, MESSAGE_BYTES_MAX));
        message.push_str("...");
    }
    message
}

/// The last character boundary at or before `offset`.
fn boundary(text: &str, offset: usize) -> usize {
    (0..=offset).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}

/// What a character prints as: tabs become spaces, control characters cannot reach the terminal.
fn cell(character: char) -> String {
    match character {
        '\t' => "    ".to_owned(),
        _ if is_unprintable(character) => "\u{fffd}".to_owned(),
        _ => character.to_string(),
    }
}

fn printable(text: impl AsRef<str>) -> String {
    text.as_ref().chars().map(cell).collect()
}

/// Control characters, and the marks that reorder or hide text on a terminal.
fn is_unprintable(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200b}' | '\u{feff}')
}

/// Columns of a character on a terminal: two for East Asian wide and emoji, none for combining marks.
fn columns(character: char) -> usize {
    match character as u32 {
        0x0300..=0x036f | 0x200c..=0x200f | 0xfe00..=0xfe0f | 0x1ab0..=0x1aff | 0x20d0..=0x20ff => 0,
        0x1100..=0x115f
        | 0x2e80..=0x303e
        | 0x3041..=0xa4cf
        | 0xac00..=0xd7a3
        | 0xf900..=0xfaff
        | 0xfe30..=0xfe6f
        | 0xff00..=0xff60
        | 0xffe0..=0xffe6
        | 0x1f300..=0x1f64f
        | 0x1f680..=0x1f6ff
        | 0x1f900..=0x1f9ff
        | 0x20000..=0x3fffd => 2,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(text: &str, needle: &str) -> String {
        let source = SourceFile::new("Buildfile", text);
        let start = text.find(needle).expect("needle");
        let span = Span::new(start, start + needle.len());
        Diagnostic::error(span, "bad thing")
            .label("here")
            .help("do\nthat")
            .note("so")
            .render(&source, Style::Plain)
    }

    #[test]
    fn plain_text_with_tabs_and_wide_characters() {
        assert_eq!(
            show("FROM a\r\n\tRUN 日本 x\r\n", "日本"),
            "error: bad thing\n --> Buildfile:2:6\n  |\n2 |     RUN 日本 x\n  |         ^^^^ here\n  |\n  = help: do\n             that\n  = note: so\n"
        );
    }

    #[test]
    fn long_lines_are_cut_around_the_place() {
        let text = format!("RUN {}needle{}", "a".repeat(5000), "b".repeat(5000));
        let shown = show(&text, "needle");
        assert!(shown.lines().all(|line| line.chars().count() < 160), "{shown}");
        let lines: Vec<&str> = shown.lines().collect();
        let caret = lines[4].find('^').expect("caret");
        assert_eq!(&lines[3][caret..caret + 6], "needle");
        assert!(lines[3].contains("| ...aaa") && lines[3].ends_with("bbb..."));
    }

    #[test]
    fn several_lines_are_underlined_on_the_first() {
        let shown = show("RUN a \\\n  b", "a \\\n  b");
        assert!(shown.contains("  |     ^^^ here\n"), "{shown}");
    }

    #[test]
    fn an_empty_span_at_the_end_still_has_a_caret() {
        let source = SourceFile::new("B", "RUN");
        let shown = Diagnostic::error(Span::new(3, 3), "m").render(&source, Style::Plain);
        assert_eq!(shown, "error: m\n --> B:1:4\n  |\n1 | RUN\n  |    ^\n");
    }

    #[test]
    fn escape_sequences_of_strangers_do_not_reach_the_terminal() {
        let shown = show("RUN \x1b[31mred", "red");
        assert!(!shown.contains('\x1b'));
        let source = SourceFile::new("B", "x");
        let shown = Diagnostic::error_without_place("no \x1b[2J").render(&source, Style::Plain);
        assert_eq!(shown, "error: no \u{fffd}[2J\n");
    }

    #[test]
    fn colour_only_when_asked_for() {
        let source = SourceFile::new("B", "RUN");
        let warning = Diagnostic::warning("Check", Span::new(0, 3), "m");
        assert!(warning.render(&source, Style::Colour).starts_with("\x1b[1;33mwarning[Check]\x1b[0m"));
        assert!(warning.render(&source, Style::Plain).starts_with("warning[Check]: m\n"));
    }
}
