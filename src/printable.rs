//! Text from strangers on a terminal: what a process printed, cut down to what may be shown, and how wide it is.
//!
//! [`crate::terminal::harmless`] shows control characters; here escape sequences are taken out instead, for programs
//! that print in colours or draw progress bars mean them for a terminal of their own.

use unicode_width::UnicodeWidthChar;

use crate::terminal::harmless;

/// Columns from one tab stop to the next.
const TAB_COLUMNS: usize = 8;

/// What is left to read of a line that a process printed: no escape sequences, what a backspace or a carriage return
/// overwrote left out, other control characters shown. Nothing in it steers a terminal.
pub(crate) fn printable(line: &str) -> String {
    let mut text = String::with_capacity(line.len());
    let mut rest = line.chars().peekable();
    while let Some(character) = rest.next() {
        match character {
            '\x1b' => skip_escape(&mut rest),
            // The same as ESC [, as one character.
            '\u{9b}' => skip_control_sequence(&mut rest),
            '\x08' => drop(text.pop()),
            '\r' if rest.peek().is_some() => text.clear(),
            '\r' | '\0' | '\x07' => {}
            other => text.push(other),
        }
    }
    harmless(&text)
}

/// Takes what follows an ESC (ECMA-48, sections 5.3 to 5.6).
fn skip_escape(rest: &mut std::iter::Peekable<std::str::Chars<'_>>) {
    match rest.next() {
        Some('[') => skip_control_sequence(rest),
        // Strings for the terminal (titles, links, pictures) end with BEL or ESC \.
        Some(']' | 'P' | 'X' | '^' | '_') => {
            while let Some(character) = rest.next() {
                match character {
                    '\x07' | '\u{9c}' => return,
                    '\x1b' => {
                        rest.next_if_eq(&'\\');
                        return;
                    }
                    _ => {}
                }
            }
        }
        // Character sets and the like: intermediates, then one final character.
        Some(' '..='/') => while rest.next().is_some_and(|character| (' '..='/').contains(&character)) {},
        _ => {}
    }
}

/// Takes the rest of a control sequence: parameters, then one final character.
fn skip_control_sequence(rest: &mut std::iter::Peekable<std::str::Chars<'_>>) {
    while rest.next_if(|character| (' '..='?').contains(character)).is_some() {}
    rest.next_if(|character| ('@'..='~').contains(character));
}

/// How many columns of a terminal a text takes at most. Terminals draw joined emoji in fewer.
pub(crate) fn columns(text: &str) -> usize {
    text.chars().map(|character| character.width().unwrap_or(0)).sum()
}

/// `text` with its tabs as spaces, in at most `most` columns; the last of them an ellipsis if anything is missing.
pub(crate) fn fitting(text: &str, most: usize) -> String {
    let mut fitted = String::new();
    let (mut used, mut whole) = (0, 0);
    for character in text.chars() {
        let width = match character {
            '\t' => TAB_COLUMNS - used % TAB_COLUMNS,
            other => other.width().unwrap_or(0),
        };
        if used + width > most {
            fitted.truncate(whole);
            if most > 0 {
                fitted.push('…');
            }
            return fitted;
        }
        used += width;
        match character {
            '\t' => fitted.extend(std::iter::repeat_n(' ', width)),
            other => fitted.push(other),
        }
        if used < most {
            // Up to here there is still room for the ellipsis.
            whole = fitted.len();
        }
    }
    fitted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_process_printed_does_not_steer_the_terminal() {
        let table = [
            ("plain é 漢", "plain é 漢"),
            ("\x1b[31mred\x1b[0m and \x1b[1;38;5;200mmore\x1b[K", "red and more"),
            ("\x1b]0;title\x07a\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "alink"),
            ("\x1b(Bcharset\x1b=keys\x1b7", "charsetkeys"),
            ("\u{9b}31mred", "red"),
            ("10%\r50%\r100%\r", "100%"),
            ("typo\x08e", "type"),
            ("\x08\x08x", "x"),
            ("a\tb\x07\0", "a\tb"),
            ("\x1b[2J\x1b[H", ""),
            ("\x1b", ""),
            ("\x1b[", ""),
            ("\x1b]0;never ends", ""),
            ("\x1b[31é", "é"),
            ("a\u{85}b\x0cc", "a\\u{85}b\\u{c}c"),
        ];
        for (line, shown) in table {
            assert_eq!(printable(line), shown, "{line:?}");
        }
    }

    #[test]
    fn columns_are_counted() {
        for (text, count) in [("abc", 3), ("漢字", 4), ("e\u{301}", 1), ("🦀", 2), ("", 0)] {
            assert_eq!(columns(text), count, "{text}");
        }
    }

    #[test]
    fn texts_are_cut_at_a_column() {
        let table = [
            ("abc", 3, "abc"),
            ("abcd", 3, "ab…"),
            ("漢字漢", 6, "漢字漢"),
            ("漢字漢", 5, "漢字…"),
            ("漢字漢", 4, "漢…"),
            ("e\u{301}x", 1, "…"),
            ("a\tb", 9, "a       b"),
            ("a\tb", 8, "a…"),
            ("ab", 0, ""),
        ];
        for (text, most, shown) in table {
            let fitted = fitting(text, most);
            assert_eq!(fitted, shown, "{text} in {most}");
            assert!(columns(&fitted) <= most, "{text} in {most}");
        }
    }
}
