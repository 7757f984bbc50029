//! Who a payload runs as: `--user`/`USER` text against the root's own `/etc/passwd` and `/etc/group`.
//!
//! Owns the grammar of the text, of passwd(5) and of group(5), and Docker's rules for what is looked up. A pure
//! function of bytes: reading the files safely is [`crate::init`]'s. Numbers are parsed strictly: a text such as
//! `0x0`, `+5` or `1000 ` must never become another user than the one that was meant.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use serde::{Deserialize, Serialize};

/// Larger passwd and group files are refused: real ones are a few KiB, and the content is a stranger's.
pub const FILE_SIZE_MAX: u64 = 8 << 20;

/// The kernel's limit on supplementary groups (`NGROUPS_MAX`).
const GROUPS_MAX: usize = 65_536;

/// Ids of a payload and the home directory that goes with them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credentials {
    /// User id inside the sandbox.
    pub uid: u32,
    /// Primary group id inside the sandbox.
    pub gid: u32,
    /// Supplementary groups, ascending, without `gid`.
    pub groups: Vec<u32>,
    /// The passwd entry's home directory, else `/`.
    pub home: OsString,
}

/// Why a user text cannot be resolved.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum UserError {
    /// No such user name in /etc/passwd.
    #[error("no user `{0}` in the image's /etc/passwd: use a numeric id or add the user")]
    NoUser(String),
    /// No such group name in /etc/group.
    #[error("no group `{0}` in the image's /etc/group: use a numeric id or add the group")]
    NoGroup(String),
    /// A number that is no id.
    #[error("`{0}` is not a user or group id: ids go from 0 to 4294967294")]
    Number(String),
    /// A text of another shape.
    #[error("`{0}` is not a user: write name, uid, name:group or uid:gid")]
    Shape(String),
}

/// Resolves `text` (`name|uid[:group|gid]`, empty for root) by Docker's rules.
///
/// A name has to be in `passwd`; a number need not be. Without a group the primary group is the entry's (0 when a
/// number has no entry) and supplementary groups are those in `group` that list the user.
///
/// # Errors
/// [`UserError`] says which part is wrong.
pub fn resolve(text: &str, passwd: &[u8], group: &[u8]) -> Result<Credentials, UserError> {
    let (user, wanted_group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    let malformed = wanted_group.is_some_and(|g| g.contains(':')) || text.contains(['\0', '\n', '/']);
    if malformed {
        return Err(UserError::Shape(text.to_owned()));
    }
    let account = find_account(if user.is_empty() { "0" } else { user }, passwd)?;
    let (gid, groups) = match wanted_group.filter(|g| !g.is_empty()) {
        Some(wanted) => (find_group(wanted, group)?, Vec::new()),
        None => (account.gid, supplementary(&account, group)),
    };
    Ok(Credentials { uid: account.uid, gid, groups, home: account.home })
}

struct Account {
    name: Option<Vec<u8>>,
    uid: u32,
    gid: u32,
    home: OsString,
}

fn find_account(user: &str, passwd: &[u8]) -> Result<Account, UserError> {
    let number = parse_id(user)?;
    for line in passwd.split(|b| *b == b'\n') {
        // What lacks behind the ids is empty, and blanks around the line do not count, as for runc.
        let fields: Vec<&[u8]> = line.trim_ascii().split(|b| *b == b':').collect();
        let [name, _, uid, gid, ref further @ ..] = fields[..] else {
            continue;
        };
        let home = further.get(1).copied().unwrap_or_default();
        let (Some(uid), Some(gid)) = (id_field(uid), id_field(gid)) else {
            continue;
        };
        // A name that consists of digits is a number to Docker, and to us.
        let matches = match number {
            Some(number) => number == uid,
            None => name == user.as_bytes(),
        };
        if matches {
            let home = if home.is_empty() { b"/" } else { home };
            return Ok(Account {
                name: Some(name.to_vec()),
                uid,
                gid,
                home: OsString::from_vec(home.to_vec()),
            });
        }
    }
    match number {
        Some(uid) => Ok(Account {
            name: None,
            uid,
            gid: 0,
            home: OsString::from(if uid == 0 { "/root" } else { "/" }),
        }),
        None => Err(UserError::NoUser(user.to_owned())),
    }
}

fn find_group(wanted: &str, group: &[u8]) -> Result<u32, UserError> {
    if let Some(number) = parse_id(wanted)? {
        return Ok(number);
    }
    group_lines(group)
        .find(|(name, _, _)| *name == wanted.as_bytes())
        .map(|(_, gid, _)| gid)
        .ok_or_else(|| UserError::NoGroup(wanted.to_owned()))
}

fn supplementary(account: &Account, group: &[u8]) -> Vec<u32> {
    let Some(name) = &account.name else {
        return Vec::new();
    };
    let mut groups: Vec<u32> = group_lines(group)
        .filter(|(_, gid, members)| {
            *gid != account.gid && members.split(|b| *b == b',').any(|m| m.trim_ascii() == name)
        })
        .map(|(_, gid, _)| gid)
        .take(GROUPS_MAX)
        .collect();
    groups.sort_unstable();
    groups.dedup();
    groups
}

/// Well-formed lines of group(5): name, id, member list.
fn group_lines(group: &[u8]) -> impl Iterator<Item = (&[u8], u32, &[u8])> {
    group.split(|b| *b == b'\n').filter_map(|line| {
        let fields: Vec<&[u8]> = line.trim_ascii().split(|b| *b == b':').collect();
        match fields[..] {
            [name, _, gid, ref further @ ..] if !name.is_empty() => {
                Some((name, id_field(gid)?, further.first().copied().unwrap_or_default()))
            }
            _ => None,
        }
    })
}

/// `Some` for a number, `None` for a name, an error for a number that is no id.
fn parse_id(text: &str) -> Result<Option<u32>, UserError> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return if text.starts_with(['-', '+']) { Err(UserError::Number(text.to_owned())) } else { Ok(None) };
    }
    id_field(text.as_bytes()).map(Some).ok_or_else(|| UserError::Number(text.to_owned()))
}

/// A decimal id of at most ten digits; the last id (`(uid_t)-1`) means "unchanged" to the kernel and is no id.
fn id_field(field: &[u8]) -> Option<u32> {
    if field.is_empty() || field.len() > 10 || !field.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(field).ok()?.parse().ok().filter(|id| *id != u32::MAX)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\n# comment\nbroken:x:12\n\
        app:x:1000:1001:App:/srv/app:/bin/false\n123:x:77:77::/named:/bin/sh\nhuge:x:4294967295:0::/:/\n\
        neg:x:-1:0::/:/\nnohome:x:5:5:::\nfour:x:8:9\n \tblank:x:10:11::/b:/\r\nletters:x:a:b\n\
        three:x:12\ntwin:x:1000:5:second:/twin:/bin/sh\n";
    const GROUP: &[u8] =
        b"root:x:0:\nwheel:x:10:root,app\napp:x:1001:app\naudio:x:29:app\nbad:x::app\nbad2:x:+7:app\n\
        short:x:40\n  padded:x:41:four\n";

    fn shown(text: &str) -> String {
        match resolve(text, PASSWD, GROUP) {
            Ok(c) => format!("{}:{} {:?} {}", c.uid, c.gid, c.groups, c.home.display()),
            Err(error) => format!("{error:?}"),
        }
    }

    #[test]
    fn texts() {
        for (text, expected) in [
            ("", "0:0 [10] /root"),
            ("root", "0:0 [10] /root"),
            ("app", "1000:1001 [10, 29] /srv/app"),
            ("1000", "1000:1001 [10, 29] /srv/app"),
            ("app:wheel", "1000:10 [] /srv/app"),
            ("app:0", "1000:0 [] /srv/app"),
            ("app:", "1000:1001 [10, 29] /srv/app"),
            (":wheel", "0:10 [] /root"),
            ("4242", "4242:0 [] /"),
            ("4242:4343", "4242:4343 [] /"),
            ("nohome", "5:5 [] /"),
            // Digits are a number even if a user is called so.
            ("123", "123:0 [] /"),
            ("00000", "0:0 [10] /root"),
            ("four", "8:9 [41] /"),
            ("blank", "10:11 [] /b"),
            ("four:short", "8:40 [] /"),
            ("four:padded", "8:41 [] /"),
            ("letters", r#"NoUser("letters")"#),
            ("three", r#"NoUser("three")"#),
            ("ghost", r#"NoUser("ghost")"#),
            ("broken", r#"NoUser("broken")"#),
            ("huge", r#"NoUser("huge")"#),
            ("neg", r#"NoUser("neg")"#),
            ("app:ghosts", r#"NoGroup("ghosts")"#),
            ("app:bad", r#"NoGroup("bad")"#),
            ("app:bad2", r#"NoGroup("bad2")"#),
            ("4294967295", r#"Number("4294967295")"#),
            ("4294967296", r#"Number("4294967296")"#),
            ("00000000000000", r#"Number("00000000000000")"#),
            ("-1", r#"Number("-1")"#),
            ("+5", r#"Number("+5")"#),
            ("0:-1", r#"Number("-1")"#),
            ("0x0", r#"NoUser("0x0")"#),
            ("1000 ", r#"NoUser("1000 ")"#),
            (" root", r#"NoUser(" root")"#),
            ("a:b:c", r#"Shape("a:b:c")"#),
            ("a/b", r#"Shape("a/b")"#),
            ("root\n", r#"Shape("root\n")"#),
        ] {
            assert_eq!(shown(text), expected, "{text:?}");
        }
    }

    #[test]
    fn numbers_need_no_files() {
        let credentials = resolve("7:8", b"", b"").unwrap();
        assert_eq!((credentials.uid, credentials.gid, credentials.groups), (7, 8, vec![]));
        assert_eq!(resolve("", b"", b"").unwrap().home, "/root");
    }

    proptest::proptest! {
        #[test]
        fn never_panics_and_never_makes_root_of_a_stranger(text in "\\PC{0,12}", passwd: Vec<u8>, group: Vec<u8>) {
            if let Ok(credentials) = resolve(&text, &passwd, &group)
                && credentials.uid == 0 && !text.is_empty() && !text.starts_with(':')
            {
                let user = text.split(':').next().unwrap();
                let listed = passwd.windows(user.len()).any(|w| w == user.as_bytes());
                proptest::prop_assert!(user.bytes().all(|b| b == b'0') || listed);
            }
        }
    }
}
