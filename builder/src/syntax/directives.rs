//! Parser directives: `# syntax=`, `# escape=`, `# check=` at the very top of a file, and the other
//! places where `syntax` is recognised (`// syntax=`, a JSON key, after a `#!` line).

use super::lines::Lines;
use super::text::Word;
use crate::diagnostic::Diagnostic;
use crate::source::Span;
use crate::suggest;

/// What the directives of a file say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Directives {
    /// `syntax`: a frontend image; rimg understands the language itself and only records it.
    pub syntax: Option<Word>,
    /// `escape`, if given.
    pub escape: Option<char>,
    /// `check`.
    pub check: CheckOptions,
}

/// The `check` directive: which warnings are wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckOptions {
    /// Names after `skip=`; `all` among them silences everything.
    pub skip: Vec<String>,
    /// `error=true`: warnings fail the build.
    pub error: bool,
    /// Names after `experimental=`.
    pub experimental: Vec<String>,
}

impl CheckOptions {
    /// Whether the check of this name is to stay silent.
    pub fn skips(&self, code: &str) -> bool {
        self.skip.iter().any(|name| name.eq_ignore_ascii_case("all") || name.eq_ignore_ascii_case(code))
    }
}

/// Reads the directives and leaves `lines` at the first line that is none.
pub(crate) fn read(lines: &mut Lines<'_>, diagnostics: &mut Vec<Diagnostic>) -> Directives {
    let mut directives = Directives::default();
    let mut seen: Vec<String> = Vec::new();
    while let Some(line) = lines.peek() {
        let Some((key, value)) = split(line.text, line.start) else { break };
        let name = key.text.to_ascii_lowercase();
        if !["syntax", "escape", "check"].contains(&name.as_str()) {
            break;
        }
        lines.advance();
        if seen.contains(&name) {
            diagnostics.push(
                Diagnostic::error(key.span, format!("only one `{name}` directive can be used"))
                    .help("remove all but the first"),
            );
            continue;
        }
        match name.as_str() {
            "syntax" => directives.syntax = Some(value),
            "escape" => directives.escape = escape(&value, diagnostics),
            _ => directives.check = check(&value, diagnostics),
        }
        seen.push(name);
    }
    if let Some(escape) = directives.escape {
        lines.escape = escape;
    }
    if directives.syntax.is_none() {
        directives.syntax = syntax_elsewhere(lines);
    }
    directives
}

/// `# key = value`, with the places of key and value.
fn split(line: &str, start: usize) -> Option<(Word, Word)> {
    let body = line.trim_start().strip_prefix('#')?;
    let (key, value) = body.split_once('=')?;
    let key = trimmed(line, start, key);
    let value = trimmed(line, start, value);
    let mut characters = key.text.chars();
    let named = characters.next().is_some_and(|c| c.is_ascii_alphabetic())
        && characters.all(|c| c.is_ascii_alphanumeric());
    (named && !value.text.is_empty()).then_some((key, value))
}

/// `part`, a slice of `line`, without surrounding blanks.
fn trimmed(line: &str, start: usize, part: &str) -> Word {
    let text = part.trim();
    let at = text.as_ptr() as usize - line.as_ptr() as usize;
    Word { text: text.to_owned(), span: Span::new(start + at, start + at + text.len()) }
}

fn escape(value: &Word, diagnostics: &mut Vec<Diagnostic>) -> Option<char> {
    match value.text.as_str() {
        "\\" => Some('\\'),
        "`" => Some('`'),
        other => {
            diagnostics.push(
                Diagnostic::error(value.span, format!("invalid escape character `{other}`"))
                    .help("use a backslash or a backquote"),
            );
            None
        }
    }
}

fn check(value: &Word, diagnostics: &mut Vec<Diagnostic>) -> CheckOptions {
    let mut options = CheckOptions::default();
    let list = |text: &str| -> Vec<String> {
        text.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect()
    };
    for part in value.text.split(';').filter(|part| !part.trim().is_empty()) {
        let (key, setting) = part.split_once('=').unwrap_or((part, ""));
        let (key, setting) = (key.trim().to_ascii_lowercase(), setting.trim());
        match (key.as_str(), setting.to_ascii_lowercase().as_str()) {
            ("skip", _) => options.skip = list(setting),
            ("experimental", _) => options.experimental = list(setting),
            ("error", "true" | "1" | "t") => options.error = true,
            ("error", "false" | "0" | "f") => options.error = false,
            ("error", _) => diagnostics.push(
                Diagnostic::error(value.span, format!("invalid value `{setting}` for `error`"))
                    .help("use `true` or `false`"),
            ),
            _ => diagnostics.push(
                Diagnostic::error(value.span, format!("unknown check option `{key}`"))
                    .did_you_mean(suggest::nearest(&key, ["skip", "error", "experimental"])),
            ),
        }
    }
    options
}

/// `syntax` after a first `#!` line or in `// syntax=`. Neither ends up as an instruction: the first
/// is a comment, and of the second form the lines are skipped here.
fn syntax_elsewhere(lines: &mut Lines<'_>) -> Option<Word> {
    let line = lines.peek()?;
    if line.text.starts_with("#!") {
        lines.advance();
        let next = lines.peek()?;
        let (key, value) = split(next.text, next.start)?;
        return key.text.eq_ignore_ascii_case("syntax").then_some(value);
    }
    let body = line.text.strip_prefix("//")?;
    let (key, value) = body.split_once('=')?;
    if !key.trim().eq_ignore_ascii_case("syntax") {
        return None;
    }
    lines.advance();
    Some(trimmed(line.text, line.start, value))
}
