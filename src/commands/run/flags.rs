//! Flags of `rimg run` that have a grammar of their own: volumes, tmpfs, environment, CPUs. Docker's grammars.

use std::path::{Component, Path, PathBuf};

use rimg_runner::spec;

use crate::failure::{Context, Failure};

/// Largest `--env-file`: an environment that does not fit the kernel's argument space is a mistake.
const ENV_FILE_BYTES_MAX: u64 = 1 << 20;

/// `-v SOURCE:TARGET[:ro|rw]`, or `-v TARGET` for a volume without a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Volume {
    /// The host's path, absolute or relative to the current directory; `None` for a volume without a name.
    pub(crate) source: Option<PathBuf>,
    /// The container's absolute path.
    pub(crate) target: String,
    /// Whether writes are refused.
    pub(crate) read_only: bool,
}

/// Parses the value of `-v`.
pub(crate) fn volume(text: &str) -> Result<Volume, String> {
    let parts: Vec<&str> = text.split(':').collect();
    let (source, target, options) = match parts[..] {
        [source, target] => (source, target, ""),
        [source, target, options] => (source, target, options),
        [target] if target.starts_with('/') => {
            return Ok(Volume { source: None, target: target.to_owned(), read_only: false });
        }
        [_] => return Err(format!("`{text}` names no place in the container: expected HOST:CONTAINER[:ro]")),
        _ => return Err(format!("`{text}` has too many colons: expected HOST:CONTAINER[:ro]")),
    };
    if !target.starts_with('/') {
        return Err(format!("`{target}` is not an absolute path in the container"));
    }
    if !source.starts_with(['/', '.', '~']) {
        return Err(format!(
            "`{source}` looks like a named volume, which is not supported yet: give a path, such as ./{source}"
        ));
    }
    let mut read_only = false;
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option {
            "ro" | "readonly" => read_only = true,
            "rw" | "z" | "Z" | "rprivate" | "cached" | "delegated" | "consistent" => {}
            other => return Err(format!("volume option `{other}` is not supported: use ro or rw")),
        }
    }
    Ok(Volume { source: Some(PathBuf::from(source)), target: target.to_owned(), read_only })
}

/// `--tmpfs TARGET[:size=64m,mode=1777,ro]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tmpfs {
    /// The container's absolute path.
    pub(crate) target: String,
    /// What it is like.
    pub(crate) options: spec::Tmpfs,
    /// Whether writes are refused.
    pub(crate) read_only: bool,
}

/// Options of docker's list that mean nothing to a file system in memory which nobody else sees.
const TMPFS_WITHOUT_EFFECT: [&str; 22] = [
    "defaults",
    "rw",
    "nodev",
    "async",
    "sync",
    "dirsync",
    "mand",
    "nomand",
    "atime",
    "noatime",
    "diratime",
    "nodiratime",
    "relatime",
    "norelatime",
    "strictatime",
    "nostrictatime",
    "private",
    "rprivate",
    "slave",
    "rslave",
    "shared",
    "rshared",
];

/// Parses the value of `--tmpfs`. Of options that say the opposite of each other the last counts.
pub(crate) fn tmpfs(text: &str) -> Result<Tmpfs, String> {
    let (target, options) = text.split_once(':').unwrap_or((text, ""));
    if !target.starts_with('/') {
        return Err(format!("`{target}` is not an absolute path in the container"));
    }
    let mut tmpfs = Tmpfs { target: target.to_owned(), options: spec::Tmpfs::default(), read_only: false };
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option.split_once('=') {
            Some((name, value)) => tmpfs_parameter(&mut tmpfs.options, name, value)?,
            None => match option {
                "ro" => tmpfs.read_only = true,
                "rw" => tmpfs.read_only = false,
                "exec" | "noexec" => tmpfs.options.exec = option == "exec",
                "suid" | "nosuid" => tmpfs.options.suid = option == "suid",
                word if TMPFS_WITHOUT_EFFECT.contains(&word) => {}
                _ => return Err(unknown_tmpfs_option(option)),
            },
        }
    }
    Ok(tmpfs)
}

/// A parameter that the kernel takes; values are checked here, as it says no more than that something is wrong.
fn tmpfs_parameter(options: &mut spec::Tmpfs, name: &str, value: &str) -> Result<(), String> {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let amount =
        |text: &str| digits(text.strip_suffix(|last: char| "kKmMgGtTpPeE".contains(last)).unwrap_or(text));
    let is_right = match name {
        "mode" => {
            options.mode = u32::from_str_radix(value, 8).ok().filter(|mode| digits(value) && *mode <= 0o7777);
            options.mode.is_some()
        }
        "size" => amount(value) || value.strip_suffix('%').is_some_and(digits),
        "nr_inodes" | "nr_blocks" => amount(value),
        "uid" | "gid" => digits(value) && value.parse::<u32>().is_ok(),
        "mpol" => !value.is_empty(),
        _ => return Err(unknown_tmpfs_option(name)),
    };
    if !is_right {
        return Err(format!("`{value}` is no value for the tmpfs option `{name}`"));
    }
    if name != "mode" {
        options.parameters.retain(|(known, _)| known != name);
        options.parameters.push((name.to_owned(), value.to_owned()));
    }
    Ok(())
}

fn unknown_tmpfs_option(option: &str) -> String {
    format!(
        "tmpfs option `{option}` is not supported: there are ro, exec, suid, size=, mode=, uid=, gid=, nr_inodes=, nr_blocks= \
         and mpol="
    )
}

/// Which network a container sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NetworkChoice {
    /// The host's network.
    Host,
    /// Nothing but a loopback of its own.
    None,
}

/// Parses the value of `--network`.
pub(crate) fn network(text: &str) -> Result<NetworkChoice, String> {
    match text {
        "host" => Ok(NetworkChoice::Host),
        "none" => Ok(NetworkChoice::None),
        _ => Err(format!("network `{text}` is not supported yet: use none, or host for the host's own")),
    }
}

/// Refuses two mounts at one place, as docker does. A volume that is repeated word by word is one; of two tmpfs at one
/// place the last counts.
pub(crate) fn check_targets(volumes: &[Volume], tmpfs: &[Tmpfs]) -> Result<(), Failure> {
    let mut seen: Vec<PathBuf> = tmpfs.iter().map(|tmpfs| lexical(&tmpfs.target)).collect();
    for (number, volume) in volumes.iter().enumerate() {
        if volumes[..number].contains(volume) {
            continue;
        }
        let target = lexical(&volume.target);
        if seen.contains(&target) {
            return Err(Failure::usage(format!("Duplicate mount point: {}", target.display())));
        }
        seen.push(target);
    }
    Ok(())
}

/// The path below the root, without `.`, `..`, repeated and trailing slashes, as Go's `path.Clean` makes it.
pub(crate) fn lexical(path: &str) -> PathBuf {
    let mut clean = PathBuf::from("/");
    for component in Path::new(path).components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => drop(clean.pop()),
            _ => {}
        }
    }
    clean
}

/// Parses `--cpus`: how many processors' time, in millionths of one; 0 is no limit.
pub(crate) fn cpus(text: &str) -> Result<u64, String> {
    let value: f64 =
        text.parse().map_err(|_| format!("`{text}` is not a number of processors, such as 1.5"))?;
    // The kernel's smallest quota is 1 ms in its 100 ms period.
    if value != 0.0 && !(0.01..=1_000_000.0).contains(&value) {
        return Err(format!("`{text}` is not a number of processors between 0.01 and 1000000"));
    }
    Ok((value * 1e6).round() as u64)
}

/// `-e NAME=value`; `-e NAME` passes on the caller's value, and stays a name alone where the caller has none.
///
/// Docker lets a name be anything but empty.
pub(crate) fn environment(text: &str) -> Result<String, Failure> {
    match text.split_once('=') {
        Some(("", _)) => Err(not_a_variable(text)),
        Some(_) => Ok(text.to_owned()),
        None if text.is_empty() => Err(not_a_variable(text)),
        None => Ok(std::env::var(text).map_or_else(|_| text.to_owned(), |value| format!("{text}={value}"))),
    }
}

fn not_a_variable(text: &str) -> Failure {
    Failure::usage(format!("`{text}` is not an environment variable: expected NAME=VALUE or NAME"))
}

/// Reads `--env-file`: a variable a line, `#` comments, nothing unquoted or expanded (docker's rules).
pub(crate) fn environment_file(path: &Path) -> Result<Vec<String>, Failure> {
    let shown = path.display();
    let size = std::fs::metadata(path).context(format!("failed to read {shown}"))?.len();
    if size > ENV_FILE_BYTES_MAX {
        return Err(Failure::new(format!(
            "{shown} has {size} bytes; an environment file may have {ENV_FILE_BYTES_MAX}"
        )));
    }
    let text = std::fs::read_to_string(path).context(format!("failed to read {shown}"))?;
    let mut variables = Vec::new();
    for (number, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let name = line.split('=').next().unwrap_or("");
        if name.contains(char::is_whitespace) {
            return Err(not_a_variable(line)).context(format!("{shown}:{}", number + 1));
        }
        let variable = environment(line).context(format!("{shown}:{}", number + 1))?;
        variables.extend(Some(variable).filter(|variable| variable.contains('=')));
    }
    Ok(variables)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn volumes() {
        let parsed = volume("./a:/b:ro").unwrap();
        assert_eq!(parsed, Volume { source: Some("./a".into()), target: "/b".to_owned(), read_only: true });
        assert!(!volume("/a:/b:rw,z").unwrap().read_only);
        let anonymous = Volume { source: None, target: "/data".to_owned(), read_only: false };
        assert_eq!(volume("/data"), Ok(anonymous));
        for (bad, why) in [
            ("a", "names no place"),
            ("/d:ro", "absolute"),
            ("/a:b", "absolute"),
            ("data:/b", "named volume"),
            ("/a:/b:xx", "`xx`"),
            ("/a:/b:ro:ro", "too many"),
        ] {
            assert!(volume(bad).unwrap_err().contains(why), "{bad}");
        }
    }

    #[test]
    fn tmpfs_options() {
        let parsed =
            tmpfs("/t:size=64m,mode=1777,noexec,size=1g,uid=1000,suid,nosuid,exec,ro,noatime").unwrap();
        let parameters =
            [("size", "1g"), ("uid", "1000")].map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(parsed.options.parameters, parameters);
        assert_eq!(
            (parsed.options.mode, parsed.options.exec, parsed.options.suid),
            (Some(0o1777), true, false)
        );
        assert!(parsed.read_only);
        let plain = tmpfs("/t").unwrap();
        assert_eq!((plain.options, plain.read_only), (spec::Tmpfs::default(), false));
        for good in
            ["size=50%", "size=65536", "gid=5", "nr_inodes=1k", "nr_blocks=7", "mpol=default", "defaults,rw"]
        {
            assert!(tmpfs(&format!("/t:{good}")).is_ok(), "{good}");
        }
        for (bad, named) in [
            ("what", "`what`"),
            ("dev", "`dev`"),
            ("bind", "`bind`"),
            ("nosuch=1", "`nosuch`"),
            ("size=x", "`size`"),
            ("size=", "`size`"),
            ("mode=9", "`mode`"),
            ("mode=77777", "`mode`"),
            ("mode=+7", "`mode`"),
            ("uid=app", "`uid`"),
            ("uid=4294967296", "`uid`"),
            ("nr_inodes=zz", "`nr_inodes`"),
        ] {
            let error = tmpfs(&format!("/t:{bad}")).unwrap_err();
            assert!(error.contains(named), "{bad}: {error}");
        }
        assert!(tmpfs("t").is_err());
    }

    #[test]
    fn processors() {
        assert_eq!((cpus("0.5"), cpus("0"), cpus("0.0")), (Ok(500_000), Ok(0), Ok(0)));
        for bad in ["", "0.001", "-1", "x", "NaN", "inf"] {
            assert!(cpus(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn environment_files() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("env");
        std::fs::write(&path, "\u{feff}# c\n\n A=1 2 # x\nB=\nNOT_SET_ANYWHERE\n").unwrap();
        assert_eq!(environment_file(&path).unwrap(), ["A=1 2 # x", "B="]);
        for (content, expected) in [("A=1\n=2\n", "env:2: `=2` is not"), ("A B=1\n", "env:1: `A B=1` is not")]
        {
            std::fs::write(&path, content).unwrap();
            let (_, text) = environment_file(&path).unwrap_err().report();
            assert!(text.unwrap().contains(expected), "{content}");
        }
    }

    #[test]
    fn environment_variables_may_have_any_name() {
        for text in ["A B=1", "a-b=", "A==", " =x"] {
            assert_eq!(environment(text).unwrap(), text);
        }
        assert_eq!(environment("NOT_SET_ANYWHERE").unwrap(), "NOT_SET_ANYWHERE");
        for bad in ["", "=", "=x"] {
            assert!(environment(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn one_place_for_one_mount() {
        let check = |volumes: &[&str], targets: &[&str]| {
            let volumes: Vec<Volume> = volumes.iter().map(|text| volume(text).unwrap()).collect();
            let tmpfs: Vec<Tmpfs> = targets.iter().map(|text| tmpfs(text).unwrap()).collect();
            check_targets(&volumes, &tmpfs).map_err(|failure| failure.message().to_owned())
        };
        let duplicate = || Err("Duplicate mount point: /x".to_owned());
        assert_eq!(check(&["/a:/x", "/b:/x/y"], &["/y", "/y"]), Ok(()));
        assert_eq!(check(&["/a:/x", "/b:/y", "/a:/x"], &[]), Ok(()));
        assert_eq!(check(&["/a:/x", "/a:/x:ro"], &[]), duplicate());
        assert_eq!(check(&["/a:/x", "/a:/x/"], &[]), duplicate());
        assert_eq!(check(&["/a:/x", "/b:/x"], &[]), duplicate());
        assert_eq!(check(&["/a:/x", "/b:/y/.././x/"], &[]), duplicate());
        assert_eq!(check(&["/a:/x"], &["/x/"]), duplicate());
    }

    #[test]
    fn networks() {
        assert_eq!((network("none"), network("host")), (Ok(NetworkChoice::None), Ok(NetworkChoice::Host)));
        for bad in ["", "bridge", "None", "container:x"] {
            assert!(network(bad).unwrap_err().contains("not supported yet"), "{bad}");
        }
    }
}
