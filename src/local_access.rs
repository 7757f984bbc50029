//! [`LocalAccess`]: which users of this machine `rimg serve` on loopback answers.
//!
//! A port on loopback is open to every local user, as the store's files are not. So the owner of the store and root are
//! served, and others when the command line says so.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rimg_registry::server::{AccessRequest, Action, Decision};

use crate::failure::{Context, Failure};

/// Local users, as `--allow-read` and `--allow-write` name them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Users {
    Every,
    One(u32),
}

/// How the flags say "every local user": a flag without a value.
pub(crate) const EVERY: &str = "*";

/// Reads the value of `--allow-read` and `--allow-write`: a UID, or a name of `/etc/passwd`.
pub(crate) fn users(text: &str) -> Result<Users, String> {
    if text == EVERY {
        return Ok(Users::Every);
    }
    if let Ok(id) = text.parse() {
        return Ok(Users::One(id));
    }
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    uid_in(&passwd, text)
        .map(Users::One)
        .ok_or_else(|| format!("no user `{text}` in /etc/passwd; give the UID"))
}

fn uid_in(passwd: &str, name: &str) -> Option<u32> {
    let mut lines = passwd.lines().map(|line| line.split(':'));
    lines.find_map(|mut fields| (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok())?)
}

/// Who may read and who may write.
#[derive(Clone, Debug)]
pub(crate) struct LocalAccess {
    /// May do everything.
    owners: Vec<u32>,
    readers: Vec<Users>,
    writers: Vec<Users>,
}

impl LocalAccess {
    /// Root, the owner of the store at `root` and the user of this process do everything, `readers` read, `writers`
    /// read and write.
    pub(crate) fn new(root: &Path, readers: Vec<Users>, writers: Vec<Users>) -> Result<LocalAccess, Failure> {
        let owner = fs::metadata(root).context(format!("failed to look at {}", root.display()))?.uid();
        let owners = vec![0, owner, rustix::process::geteuid().as_raw()];
        Ok(LocalAccess { owners, readers, writers })
    }

    /// Whether a decision may depend on who asks.
    pub(crate) fn needs_users(&self) -> bool {
        !self.writers.contains(&Users::Every)
    }

    pub(crate) fn decide(&self, request: &AccessRequest<'_>) -> Decision {
        let writes = matches!(request.action, Action::Push | Action::Delete);
        let granted = |users: &Users| match users {
            Users::Every => true,
            Users::One(id) => Some(*id) == request.user,
        };
        let is_owner = request.user.is_some_and(|user| self.owners.contains(&user));
        let reads = || !writes && self.readers.iter().any(granted);
        if is_owner || self.writers.iter().any(granted) || reads() {
            return Decision::Allow;
        }
        let who = match request.user {
            Some(user) => format!("user {user}"),
            None => "a client whose user the kernel does not tell".to_owned(),
        };
        let (act, flags) = match writes {
            true => ("write to", "`--allow-write`"),
            false => ("read from", "`--allow-read` or `--allow-write`"),
        };
        Decision::Deny {
            message: format!(
                "{who} may not {act} this registry: it serves the owner of its store and root; others when `rimg \
                 serve` was started with {flags}"
            ),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn ask(access: &LocalAccess, action: Action, user: Option<u32>) -> Decision {
        let peer = ([127, 0, 0, 1], 1).into();
        access.decide(&AccessRequest { action, repository: None, authorization: None, peer, user })
    }

    #[test]
    fn owners_do_everything_and_others_what_a_flag_says() {
        let access = |readers: &[Users], writers: &[Users]| LocalAccess {
            owners: vec![0, 1000],
            readers: readers.to_vec(),
            writers: writers.to_vec(),
        };
        let one = |id| [Users::One(id)];
        // Access, user, whether it reads and writes.
        let table = [
            (access(&[], &[]), Some(0), true, true),
            (access(&[], &[]), Some(1000), true, true),
            (access(&[], &[]), Some(65534), false, false),
            (access(&[], &[]), None, false, false),
            (access(&[Users::Every], &[]), Some(65534), true, false),
            (access(&[Users::Every], &[]), None, true, false),
            (access(&[], &[Users::Every]), None, true, true),
            (access(&one(33), &[]), Some(33), true, false),
            (access(&one(33), &[]), Some(34), false, false),
            (access(&[], &one(33)), Some(33), true, true),
            (access(&[], &one(33)), None, false, false),
        ];
        for (access, user, reads, writes) in table {
            for action in [Action::Discover, Action::List, Action::Pull] {
                assert_eq!(ask(&access, action, user) == Decision::Allow, reads, "{access:?} {user:?}");
            }
            for action in [Action::Push, Action::Delete] {
                assert_eq!(ask(&access, action, user) == Decision::Allow, writes, "{access:?} {user:?}");
            }
        }
        let Decision::Deny { message } = ask(&access(&[Users::Every], &[]), Action::Push, Some(65534)) else {
            panic!("allowed")
        };
        assert!(message.contains("user 65534") && message.contains("`--allow-write`"), "{message}");
        assert!(!message.contains("--allow-read"), "{message}");
    }

    #[test]
    fn users_by_number_and_by_name() {
        assert_eq!(users("*"), Ok(Users::Every));
        assert_eq!(users("33"), Ok(Users::One(33)));
        assert_eq!(users("root"), Ok(Users::One(0)));
        assert!(users("no-such-user").is_err() && users("-1").is_err() && users("").is_err());
        let passwd = "root:x:0:0::/:/\n\nbroken\nwww-data:x:33:33::/:/\nodd:x:y:1::/:/\n";
        assert_eq!(uid_in(passwd, "www-data"), Some(33));
        assert_eq!(uid_in(passwd, "odd"), None);
    }
}
