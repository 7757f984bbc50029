//! `--chmod`: octal (`0755`) or symbolic as in chmod(1) (`u=rwX,go=rX`).

/// A change of permission bits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ModeChange {
    /// These bits, whatever they were.
    Set(u32),
    /// Clauses, applied one after the other.
    Symbolic(Vec<Clause>),
}

/// `[ugoa…][+-=][rwxXst…]`, the part before one operator and the letters behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Clause {
    who: u32,
    operator: Operator,
    read: bool,
    write: bool,
    execute: Execute,
    set_id: bool,
    sticky: bool,
    /// `u`, `g` or `o` behind the operator: take over the bits of that class.
    copy_from: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    Add,
    Remove,
    Assign,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Execute {
    No,
    Yes,
    /// `X`: for directories, and for files that somebody may execute.
    Sensible,
}

/// Classes as bit masks of their rwx bits.
const USER: u32 = 0o700;
const GROUP: u32 = 0o070;
const OTHER: u32 = 0o007;

impl ModeChange {
    /// Reads the value of `--chmod`; the error says what is wrong with it.
    pub(crate) fn parse(text: &str) -> Result<ModeChange, String> {
        if text.starts_with(|first: char| first.is_ascii_digit()) {
            let digits = text.len() <= 5 && text.bytes().all(|byte| matches!(byte, b'0'..=b'7'));
            let mode = u32::from_str_radix(text, 8).ok().filter(|mode| digits && *mode <= 0o7777);
            return mode.map(ModeChange::Set).ok_or_else(|| format!("`{text}` is no octal mode up to 7777"));
        }
        let mut clauses = Vec::new();
        for part in text.split(',') {
            parse_clauses(part, &mut clauses).ok_or_else(|| {
                format!(
                    "`{text}` is no mode: write octal digits such as 0755, or symbols such as u=rwX,go=rX"
                )
            })?;
        }
        Ok(ModeChange::Symbolic(clauses))
    }

    /// The bits that `mode` becomes.
    pub(crate) fn apply(&self, mode: u32, is_directory: bool) -> u32 {
        match self {
            ModeChange::Set(mode) => *mode,
            ModeChange::Symbolic(clauses) => {
                clauses.iter().fold(mode, |mode, clause| clause.apply(mode, is_directory))
            }
        }
    }
}

/// Reads one comma-separated part: classes, then one or more operators with their letters.
fn parse_clauses(text: &str, clauses: &mut Vec<Clause>) -> Option<()> {
    let operator_at = text.find(['+', '-', '='])?;
    let mut who = 0;
    for class in text[..operator_at].chars() {
        who |= class_bits(class)?;
    }
    if who == 0 {
        who = USER | GROUP | OTHER;
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
        clauses.push(parse_letters(who, operator, &rest[1..end])?);
        rest = &rest[end..];
    }
    Some(())
}

fn parse_letters(who: u32, operator: Operator, letters: &str) -> Option<Clause> {
    let mut clause = Clause {
        who,
        operator,
        read: false,
        write: false,
        execute: Execute::No,
        set_id: false,
        sticky: false,
        copy_from: None,
    };
    for letter in letters.chars() {
        match letter {
            'r' => clause.read = true,
            'w' => clause.write = true,
            'x' => clause.execute = Execute::Yes,
            'X' if clause.execute == Execute::No => clause.execute = Execute::Sensible,
            'X' => {}
            's' => clause.set_id = true,
            't' => clause.sticky = true,
            'u' | 'g' | 'o' if letters.len() == 1 => clause.copy_from = class_bits(letter),
            _ => return None,
        }
    }
    Some(clause)
}

fn class_bits(class: char) -> Option<u32> {
    match class {
        'u' => Some(USER),
        'g' => Some(GROUP),
        'o' => Some(OTHER),
        'a' => Some(USER | GROUP | OTHER),
        _ => None,
    }
}

impl Clause {
    fn apply(&self, mode: u32, is_directory: bool) -> u32 {
        let execute = match self.execute {
            Execute::No => false,
            Execute::Yes => true,
            Execute::Sensible => is_directory || mode & 0o111 != 0,
        };
        let mut bits = self.who
            & (u32::from(self.read) * 0o444 + u32::from(self.write) * 0o222 + u32::from(execute) * 0o111);
        if let Some(class) = self.copy_from {
            let digit = (mode & class) >> class.trailing_zeros();
            bits |= self.who & (digit * 0o111);
        }
        let mut special = 0;
        if self.set_id {
            special |= if self.who & USER != 0 { 0o4000 } else { 0 };
            special |= if self.who & GROUP != 0 { 0o2000 } else { 0 };
        }
        if self.sticky {
            special |= 0o1000;
        }
        match self.operator {
            Operator::Add => mode | bits | special,
            Operator::Remove => mode & !(bits | special),
            Operator::Assign => {
                let cleared_special = if self.who & USER != 0 { 0o4000 } else { 0 }
                    | if self.who & GROUP != 0 { 0o2000 } else { 0 };
                // chmod(1): "a directory's set-user-ID and set-group-ID bits are left alone unless named".
                let kept = if is_directory && !self.set_id { 0 } else { cleared_special };
                (mode & !(self.who | kept)) | bits | special
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
            ("g=rx", 0o2775, true, 0o2755),
            ("u-x+w", 0o500, false, 0o600),
        ];
        for (text, before, is_directory, after) in table {
            let found = ModeChange::parse(text).unwrap().apply(before, is_directory);
            assert_eq!(found, after, "{text}: {found:o} instead of {after:o}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in
            ["", "8", "799", "77777", "0o755", "rwx", "z+x", "u+q", "u", "u=rw,", ",", "u=ug", "7_5", "+5"]
        {
            assert!(ModeChange::parse(bad).is_err(), "{bad}");
        }
    }
}
