//! Patterns of `${v#p}`, `${v%p}` and `${v/p/r}`: `*` is any text, `?` any character; no brackets.

use super::{EXPANSION_BYTES_MAX, ExpandErrorKind};
use std::ops::Range;

/// Steps one substitution may take. A pattern that fails late at every start costs the square of the
/// value's length; this many steps are a fraction of a second.
const MATCH_STEPS_MAX: usize = 10_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    Literal(char),
    Any,
    Star,
}

/// A parsed pattern.
#[derive(Debug)]
pub(super) struct Pattern {
    tokens: Vec<Token>,
}

impl Pattern {
    pub(super) fn parse(text: &str, escape: char) -> Result<Pattern, ExpandErrorKind> {
        let mut tokens = Vec::new();
        let mut characters = text.chars();
        while let Some(character) = characters.next() {
            tokens.push(match character {
                // One star says as much as several, and keeps the state set small.
                '*' if tokens.last() == Some(&Token::Star) => continue,
                '*' => Token::Star,
                '?' => Token::Any,
                '\\' => Self::escaped(characters.next(), escape)?,
                _ if character == escape => Self::escaped(characters.next(), escape)?,
                _ => Token::Literal(character),
            });
        }
        Ok(Pattern { tokens })
    }

    fn escaped(character: Option<char>, escape: char) -> Result<Token, ExpandErrorKind> {
        match character {
            Some(character @ ('*' | '?' | '\\' | '}' | '/' | '$')) => Ok(Token::Literal(character)),
            Some(character) if character == escape => Ok(Token::Literal(character)),
            other => Err(ExpandErrorKind::InvalidEscape(other.map(String::from).unwrap_or_default())),
        }
    }

    /// What is left of `value` without the shortest or longest beginning that matches.
    pub(super) fn trim_start(&self, value: &str, longest: bool) -> Result<Range<usize>, ExpandErrorKind> {
        let mut steps = MATCH_STEPS_MAX;
        let length = matched(&self.tokens, value.chars(), longest, &mut steps)?;
        Ok(length.unwrap_or(0)..value.len())
    }

    /// What is left of `value` without the shortest or longest end that matches.
    pub(super) fn trim_end(&self, value: &str, longest: bool) -> Result<Range<usize>, ExpandErrorKind> {
        let mut steps = MATCH_STEPS_MAX;
        let reversed: Vec<Token> = self.tokens.iter().rev().copied().collect();
        let length = matched(&reversed, value.chars().rev(), longest, &mut steps)?;
        Ok(0..value.len() - length.unwrap_or(0))
    }

    /// `value` with the first or every longest match replaced. An empty pattern matches nothing.
    pub(super) fn replace(
        &self,
        value: &str,
        replacement: &str,
        all: bool,
    ) -> Result<String, ExpandErrorKind> {
        let mut steps = MATCH_STEPS_MAX;
        let mut out = String::new();
        let mut at = 0;
        while let Some(character) = value[at..].chars().next() {
            match matched(&self.tokens, value[at..].chars(), true, &mut steps)? {
                Some(length) if length > 0 => {
                    out.push_str(replacement);
                    at += length;
                    if !all {
                        break;
                    }
                }
                // What a leading star cannot match from here, it cannot match from further on.
                None if self.tokens.first() == Some(&Token::Star) => break,
                _ => {
                    out.push(character);
                    at += character.len_utf8();
                }
            }
            if out.len() > EXPANSION_BYTES_MAX {
                return Err(ExpandErrorKind::TooLong);
            }
        }
        out.push_str(&value[at..]);
        Ok(out)
    }
}

/// Length in bytes of the shortest or longest match at the beginning of `value`. Follows all ways
/// through the pattern at once, so no pattern takes more than its length times the value's.
fn matched(
    tokens: &[Token],
    value: impl Iterator<Item = char>,
    longest: bool,
    steps: &mut usize,
) -> Result<Option<usize>, ExpandErrorKind> {
    let mut states = vec![false; tokens.len() + 1];
    states[0] = true;
    pass_stars(tokens, &mut states);
    let mut found = states[tokens.len()].then_some(0);
    let mut length = 0;
    for character in value {
        if (found.is_some() && !longest) || !states.contains(&true) {
            break;
        }
        *steps = steps.checked_sub(states.len()).ok_or(ExpandErrorKind::TooExpensive)?;
        let mut after = vec![false; states.len()];
        for (index, token) in tokens.iter().enumerate().filter(|(index, _)| states[*index]) {
            match token {
                Token::Star => after[index] = true,
                Token::Any => after[index + 1] = true,
                Token::Literal(literal) => after[index + 1] |= *literal == character,
            }
        }
        states = after;
        pass_stars(tokens, &mut states);
        length += character.len_utf8();
        if states[tokens.len()] {
            found = Some(length);
        }
    }
    Ok(found)
}

/// A star may match nothing.
fn pass_stars(tokens: &[Token], states: &mut [bool]) {
    for (index, token) in tokens.iter().enumerate() {
        if states[index] && *token == Token::Star {
            states[index + 1] = true;
        }
    }
}
