//! `--chmod`: octal (`0755`) or symbolic (`u=rwX,go=rX`), as BuildKit reads it: the way of BSD's chmod(1), which differs
//! from GNU's in that `u=` and `g=` clear the set-id bits of folders too, that `g=u` leaves them alone, and that `X` goes
//! by the mode before any change.

/// A change of permission bits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ModeChange {
    /// These bits, whatever they were.
    Set(u32),
    /// Changes, made one after the other.
    Symbolic(Vec<Change>),
}

/// One step of a symbolic mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// Sets bits.
    Set(u32),
    /// Clears bits.
    Clear(u32),
    /// Sets bits of directories, and of files that somebody could execute before: `X`.
    SetExecutable(u32),
    /// Takes over the permissions of one class: `g=u`.
    Copy { from: u32, to: u32, operator: Operator },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operator {
    Add,
    Remove,
    Assign,
}

/// Classes as masks of their permissions.
const USER: u32 = 0o700;
const GROUP: u32 = 0o070;
const OTHER: u32 = 0o007;
/// The bits that a class stands for.
const OF_USER: u32 = USER | 0o4000;
const OF_GROUP: u32 = GROUP | 0o2000;
const OF_ALL: u32 = OF_USER | OF_GROUP | OTHER;
const SET_ID: u32 = 0o6000;
const STICKY: u32 = 0o1000;
const EXECUTE: u32 = 0o111;

impl ModeChange {
    /// Reads the value of `--chmod`; the error says what is wrong with it.
    pub(crate) fn parse(text: &str) -> Result<ModeChange, String> {
        if text.starts_with(|first: char| first.is_ascii_digit()) {
            let digits = text.len() <= 5 && text.bytes().all(|byte| matches!(byte, b'0'..=b'7'));
            let mode = u32::from_str_radix(text, 8).ok().filter(|mode| digits && *mode <= 0o7777);
            return mode.map(ModeChange::Set).ok_or_else(|| format!("`{text}` is no octal mode up to 7777"));
        }
        let mut changes = Vec::new();
        for part in text.split(',') {
            parse_part(part, &mut changes).ok_or_else(|| {
                format!(
                    "`{text}` is no mode: write octal digits such as 0755, or symbols such as u=rwX,go=rX"
                )
            })?;
        }
        Ok(ModeChange::Symbolic(changes))
    }

    /// The bits that `mode` becomes.
    pub(crate) fn apply(&self, mode: u32, is_directory: bool) -> u32 {
        match self {
            ModeChange::Set(mode) => *mode,
            ModeChange::Symbolic(changes) => {
                let is_executable = is_directory || mode & EXECUTE != 0;
                changes.iter().fold(mode, |now, change| change.apply(now, is_executable))
            }
        }
    }
}

/// Reads one comma-separated part: classes, then one or more operators with their letters.
fn parse_part(text: &str, changes: &mut Vec<Change>) -> Option<()> {
    let operator_at = text.find(['+', '-', '='])?;
    let mut who = 0;
    for class in text[..operator_at].chars() {
        who |= match class {
            'u' => OF_USER,
            'g' => OF_GROUP,
            'o' => OTHER,
            'a' => OF_ALL,
            _ => return None,
        };
    }
    let mut rest = &text[operator_at..];
    while let Some(sign) = rest.chars().next() {
        let operator = match sign {
            '+' => Operator::Add,
            '-' => Operator::Remove,
            '=' => Operator::Assign,
            _ => return None,
        };
        let end = rest[1..].find(['+', '-', '=']).map_or(rest.len(), |at| at + 1);
        parse_letters(if who == 0 { OF_ALL } else { who }, operator, &rest[1..end], changes)?;
        rest = &rest[end..];
    }
    Some(())
}

fn parse_letters(who: u32, operator: Operator, letters: &str, changes: &mut Vec<Change>) -> Option<()> {
    // For others alone there are neither set-id bits nor a sticky one.
    let special = if who == OTHER { 0 } else { SET_ID | STICKY };
    let (mut bits, mut executable) = (0, 0);
    let mut copies = Vec::new();
    for letter in letters.chars() {
        match letter {
            'r' => bits |= 0o444,
            'w' => bits |= 0o222,
            'x' => bits |= EXECUTE,
            'X' if operator == Operator::Remove => bits |= EXECUTE,
            'X' => executable = EXECUTE,
            's' => bits |= SET_ID & special,
            't' => bits |= STICKY & special,
            'u' => copies.push(USER),
            'g' => copies.push(GROUP),
            'o' => copies.push(OTHER),
            _ => return None,
        }
    }
    let named = bits & (who | STICKY);
    match operator {
        // What classes are copied from replaces their permissions by itself.
        Operator::Assign if bits == 0 && !copies.is_empty() => {}
        Operator::Assign => changes.extend([Change::Clear(who), Change::Set(named)]),
        Operator::Add => changes.push(Change::Set(named)),
        Operator::Remove => changes.push(Change::Clear(named)),
    }
    changes.push(Change::SetExecutable(executable & who));
    for (number, from) in copies.into_iter().enumerate() {
        let adds_up = operator == Operator::Assign && (number > 0 || bits != 0);
        let operator = if adds_up { Operator::Add } else { operator };
        changes.push(Change::Copy { from, to: who & 0o777, operator });
    }
    Some(())
}

impl Change {
    fn apply(self, mode: u32, is_executable: bool) -> u32 {
        match self {
            Change::Set(bits) => mode | bits,
            Change::Clear(bits) => mode & !bits,
            Change::SetExecutable(bits) => mode | if is_executable { bits } else { 0 },
            Change::Copy { from, to, operator } => {
                let digit = (mode & from) >> from.trailing_zeros();
                let bits = (digit * EXECUTE) & to;
                match operator {
                    Operator::Add => mode | bits,
                    Operator::Remove => mode & !bits,
                    Operator::Assign => (mode & !to) | bits,
                }
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn modes() {
        let table = [
            ("755", 0o644, false, 0o755),
            ("0755", 0o644, true, 0o755),
            ("04755", 0o644, false, 0o4755),
            ("0", 0o777, false, 0),
            ("u=rwX,go=rX", 0o600, false, 0o644),
            ("u=rwX,go=rX", 0o700, false, 0o755),
            ("u=rwX,go=rX", 0o600, true, 0o755),
            ("+x", 0o644, false, 0o755),
            ("a-w", 0o666, false, 0o444),
            ("u+s", 0o755, false, 0o4755),
            ("g+s,o-rx", 0o755, true, 0o2750),
            ("+t", 0o777, true, 0o1777),
            ("go=", 0o777, false, 0o700),
            ("u=rw,g=u", 0o000, false, 0o660),
            ("u=rw", 0o4755, false, 0o655),
            ("u-x+w", 0o500, false, 0o600),
            // As BuildKit, not as GNU's chmod.
            ("g=rx", 0o2775, true, 0o755),
            ("u=rwX,go=rX", 0o2755, true, 0o755),
            ("u=rwX,go=rX", 0o4755, false, 0o755),
            ("g=u", 0o2755, true, 0o2775),
            ("g=u", 0o4755, false, 0o4775),
            ("a-x+X", 0o4755, false, 0o4755),
            ("a-x+X", 0o644, false, 0o644),
            ("a-X", 0o755, true, 0o644),
            ("go=u-w", 0o755, false, 0o755),
            ("o=g,g=", 0o750, false, 0o705),
            ("o+s,o+t", 0o755, true, 0o755),
            ("=rx", 0o6777, false, 0o555),
            ("g=ru", 0o300, false, 0o370),
        ];
        for (text, before, is_directory, after) in table {
            let found = ModeChange::parse(text).unwrap().apply(before, is_directory);
            assert_eq!(found, after, "{text}: {found:o} instead of {after:o}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in ["", "8", "799", "77777", "0o755", "rwx", "z+x", "u+q", "u", "u=rw,", ",", "7_5", "+5"] {
            assert!(ModeChange::parse(bad).is_err(), "{bad}");
        }
    }
}
