//! Writing for people: standard output that survives a closed pipe, tables, and the choice of colour.

use std::io::{self, IsTerminal, Write};

use crate::failure::{Failure, printing};

/// Writes `text` to standard output as it is.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(printing)
}

/// Writes `line` and a newline to standard output.
pub(crate) fn print_line(line: &str) -> Result<(), Failure> {
    print(&format!("{line}\n"))
}

/// Writes a value as indented JSON.
pub(crate) fn print_json(value: &impl serde::Serialize) -> Result<(), Failure> {
    print_line(&serde_json::to_string_pretty(value)?)
}

/// Writes a line to standard error; that it cannot be written is no reason to fail.
pub(crate) fn note(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// Whether standard error is a terminal on which lines can be drawn again.
pub(crate) fn live_on_stderr() -> bool {
    let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    !dumb && io::stderr().is_terminal()
}

/// Whether standard error is a terminal that wants colour (<https://no-color.org>).
pub(crate) fn colour_on_stderr() -> bool {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    !refused && live_on_stderr()
}

/// `text` in at most `chars_max` characters, the last of them an ellipsis if anything is missing.
pub(crate) fn shortened(text: &str, chars_max: usize) -> String {
    if text.chars().count() <= chars_max {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(chars_max.saturating_sub(1)).collect();
    short.push('…');
    short
}

/// Text from a stranger, made harmless for a terminal: control characters are shown, not obeyed.
pub(crate) fn harmless(text: &str) -> String {
    let keep = |c: char| c == '\t' || !c.is_control();
    if text.chars().all(keep) {
        return text.to_owned();
    }
    text.chars().map(|c| if keep(c) { c.to_string() } else { c.escape_default().to_string() }).collect()
}

/// A table with a heading, columns padded to their widest cell and three spaces apart, as docker prints them.
pub(crate) fn table(heading: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = heading.iter().map(|cell| cell.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let heading: Vec<String> = heading.iter().map(|&cell| cell.to_owned()).collect();
    let mut text = String::new();
    for row in std::iter::once(&heading).chain(rows) {
        let mut line = String::new();
        for (cell, &width) in row.iter().zip(&widths) {
            line.push_str(&format!("{cell:width$}   "));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_line_up() {
        let rows =
            vec![vec!["a".to_owned(), "long cell".to_owned()], vec!["wide one".to_owned(), String::new()]];
        assert_eq!(table(&["X", "Y"], &rows), "X          Y\na          long cell\nwide one\n");
    }

    #[test]
    fn long_text_ends_in_an_ellipsis() {
        for (text, most, shown) in [("abc", 3, "abc"), ("abcd", 3, "ab…"), ("é", 1, "é"), ("ab", 0, "…")]
        {
            assert_eq!(shortened(text, most), shown);
        }
    }

    #[test]
    fn strangers_cannot_steer_the_terminal() {
        assert_eq!(harmless("a\x1b[31mb\n"), "a\\u{1b}[31mb\\n");
        assert_eq!(harmless("é\tx"), "é\tx");
    }
}
