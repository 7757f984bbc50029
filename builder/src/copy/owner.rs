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

/// The numbers that `text` (`user[:group]`) means in the image `root`. A user alone, by name, brings the group of
/// its line in passwd to USER, but its own number as group to `--chown`, as BuildKit has it.
pub(crate) fn look_up_owner(text: &str, root: &dyn SourceTree) -> Result<(u64, u64), OwnerError> {
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    if (user.is_empty() && group.is_none_or(str::is_empty)) || group.is_some_and(|group| group.contains(':')) {
        return Err(OwnerError::Form(text.to_owned()));
    }
    let uid = match user {
        "" => 0,
        _ => look_up(user, PASSWD, root)?.ok_or_else(|| OwnerError::User(user.to_owned()))?,
    };
    let gid = match group {
        None | Some("") => uid,
        Some(group) => look_up(group, GROUP, root)?.ok_or_else(|| OwnerError::Group(group.to_owned()))?,
    };
    Ok((uid, gid))
}

const PASSWD: &str = "/etc/passwd";
const GROUP: &str = "/etc/group";

fn look_up(name: &str, file: &'static str, root: &dyn SourceTree) -> Result<Option<u64>, OwnerError> {
    if let Some(number) = parse_id(name) {
        return Ok(Some(number));
    }
    if name.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(None);
    }
    let path = LayerPath::parse(file).expect("the constants are clean paths");
    let bytes = read_small_file(root, &path).map_err(|error| OwnerError::Read(file, error))?;
    Ok(bytes.and_then(|bytes| find_id(&bytes, name)))
}

/// A number that the kernel takes as an id.
fn parse_id(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse::<u32>().ok().filter(|id| digits && *id != u32::MAX).map(u64::from)
}

/// The third field of the line whose first field is `name`, in a file of the form of passwd(5) or group(5).
fn find_id(file: &[u8], name: &str) -> Option<u64> {
    file.split(|byte| *byte == b'\n').find_map(|line| {
        let mut fields = line.split(|byte| *byte == b':');
        if fields.next()? != name.as_bytes() {
            return None;
        }
        parse_id(std::str::from_utf8(fields.nth(1)?).ok()?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_names() {
        let passwd = b"root:x:0:0:root:/root:/bin/sh\nbroken\nweb:x:33\nnode:x:1000:1001::/:\nneg:x:-1:0\n";
        for (name, id) in [("root", Some(0)), ("node", Some(1000)), ("web", Some(33)), ("neg", None), ("x", None)] {
            assert_eq!(find_id(passwd, name), id, "{name}");
        }
        for (text, id) in [("0", Some(0)), ("4294967294", Some(4_294_967_294)), ("4294967295", None), ("+1", None)] {
            assert_eq!(parse_id(text), id, "{text}");
        }
    }
}
