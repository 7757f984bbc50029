//! `--chown` and `USER`: numbers, or names looked up in the image's own `/etc/passwd` and `/etc/group`.

use std::io;

use rimg_formats::layer::LayerPath;

use crate::layer_tree::read_small_file;
use crate::source_tree::SourceTree;

/// Why an owner could not be made out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OwnerError {
    /// There is no such user.
    #[error("user `{0}` is not in the image's /etc/passwd")]
    User(String),
    /// There is no such group.
    #[error("group `{0}` is not in the image's /etc/group")]
    Group(String),
    /// The text has not the form `user[:group]`.
    #[error("`{0}` is not of the form `user`, `user:group` or `:group`")]
    Form(String),
    /// The files could not be read.
    #[error("failed to read {0} of the image: {1}")]
    Read(&'static str, io::Error),
}

/// The numbers that `text` (`user[:group]`) means in the image `root`. Without a group, a name brings the group of
/// its line in passwd, and a number is the group's as well, as BuildKit has it. An empty user is 0: `$UID:$GID` of
/// variables that are not set is root.
pub(crate) fn look_up_owner(text: &str, root: &dyn SourceTree) -> Result<(u64, u64), OwnerError> {
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (text, None),
    };
    if text.is_empty() || group.is_some_and(|group| group.contains(':')) {
        return Err(OwnerError::Form(text.to_owned()));
    }
    let (uid, own_gid) = match user {
        "" => (0, 0),
        _ => look_up(user, PASSWD, root)?.ok_or_else(|| OwnerError::User(user.to_owned()))?,
    };
    let gid = match group {
        None => own_gid,
        Some(group) => look_up(group, GROUP, root)?.ok_or_else(|| OwnerError::Group(group.to_owned()))?.0,
    };
    Ok((uid, gid))
}

/// The user and the group 0, in every image.
const ROOT: &str = "root";

/// What a RUN step is started as. Where the runner looks names up in the image's files, as an engine does for
/// containers, `root` is 0 for builds.
pub(crate) fn without_root(user: &str) -> String {
    let number = |name: &str| if name == ROOT { "0".to_owned() } else { name.to_owned() };
    match user.split_once(':') {
        Some((user, group)) => format!("{}:{}", number(user), number(group)),
        None => number(user),
    }
}

const PASSWD: &str = "/etc/passwd";
const GROUP: &str = "/etc/group";

/// The number of a user or group, and the group that comes with it.
fn look_up(name: &str, file: &'static str, root: &dyn SourceTree) -> Result<Option<(u64, u64)>, OwnerError> {
    if name.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(parse_id(name).map(|id| (id, id)));
    }
    // In BuildKit as well: images without these files, or with another name for 0, have a root too.
    if name == ROOT {
        return Ok(Some((0, 0)));
    }
    let path = LayerPath::parse(file).expect("the constants are clean paths");
    let bytes = read_small_file(root, &path).map_err(|error| OwnerError::Read(file, error))?;
    Ok(bytes.and_then(|bytes| find_ids(&bytes, name)))
}

/// A number that the kernel takes as an id.
fn parse_id(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse::<u32>().ok().filter(|id| digits && *id != u32::MAX).map(u64::from)
}

/// The third and fourth field of the line whose first field is `name`, in a file of the form of passwd(5). A line of
/// group(5) has no number in its fourth: the third stands in.
fn find_ids(file: &[u8], name: &str) -> Option<(u64, u64)> {
    let number = |field: &[u8]| parse_id(std::str::from_utf8(field).ok()?);
    file.split(|byte| *byte == b'\n').find_map(|line| {
        let mut fields = line.split(|byte| *byte == b':');
        if fields.next()? != name.as_bytes() {
            return None;
        }
        let id = number(fields.nth(1)?)?;
        Some((id, fields.next().and_then(number).unwrap_or(id)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_names() {
        let passwd = b"root:x:0:0:root:/root:/bin/sh\nbroken\nweb:x:33\nnode:x:1000:1001::/:\nneg:x:-1:0\n";
        let table = [
            ("root", Some((0, 0))),
            ("node", Some((1000, 1001))),
            ("web", Some((33, 33))),
            ("neg", None),
            ("x", None),
        ];
        for (name, ids) in table {
            assert_eq!(find_ids(passwd, name), ids, "{name}");
        }
        let without = ["root", "root:root", "a:root", "root:1", "", "a"].map(without_root);
        assert_eq!(without, ["0", "0:0", "a:0", "0:1", "", "a"]);
        for (text, id) in
            [("0", Some(0)), ("4294967294", Some(4_294_967_294)), ("4294967295", None), ("+1", None)]
        {
            assert_eq!(parse_id(text), id, "{text}");
        }
    }
}
