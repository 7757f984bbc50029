//! Flags of `rimg run` that have a grammar of their own: volumes, tmpfs, environment, CPUs. Docker's grammars.

use std::path::{Component, Path, PathBuf};

use crate::failure::{Context, Failure};
use crate::units;

/// Largest `--env-file`: an environment that does not fit the kernel's argument space is a mistake.
const ENV_FILE_BYTES_MAX: u64 = 1 << 20;

/// `-v SOURCE:TARGET[:ro|rw]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Volume {
    /// The host's path, absolute or relative to the current folder.
    pub(crate) source: PathBuf,
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
    Ok(Volume { source: PathBuf::from(source), target: target.to_owned(), read_only })
}

/// `--tmpfs TARGET[:size=64m,mode=1777,ro]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tmpfs {
    /// The container's absolute path.
    pub(crate) target: String,
    /// Bytes it may hold; half of the memory when not given.
    pub(crate) size_bytes: Option<u64>,
    /// Permission bits of its root.
    pub(crate) mode: Option<u32>,
    /// Whether writes are refused.
    pub(crate) read_only: bool,
}

/// Parses the value of `--tmpfs`.
pub(crate) fn tmpfs(text: &str) -> Result<Tmpfs, String> {
    let (target, options) = text.split_once(':').unwrap_or((text, ""));
    if !target.starts_with('/') {
        return Err(format!("`{target}` is not an absolute path in the container"));
    }
    let mut tmpfs = Tmpfs { target: target.to_owned(), size_bytes: None, mode: None, read_only: false };
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option.split_once('=') {
            Some(("size", size)) => tmpfs.size_bytes = Some(units::parse_size(size)?),
            Some(("mode", mode)) => {
                let octal = u32::from_str_radix(mode, 8).ok().filter(|mode| *mode <= 0o7777);
                tmpfs.mode = Some(octal.ok_or_else(|| format!("`{mode}` is not an octal mode"))?);
            }
            None if option == "ro" => tmpfs.read_only = true,
            None if matches!(option, "rw" | "noexec" | "nosuid" | "nodev") => {}
            _ => return Err(format!("tmpfs option `{option}` is not supported: use size=, mode= or ro")),
        }
    }
    Ok(tmpfs)
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

/// The path without `.`, `..`, repeated and trailing slashes, as Go's `path.Clean` makes it.
fn lexical(path: &str) -> PathBuf {
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
        assert_eq!(parsed, Volume { source: "./a".into(), target: "/b".to_owned(), read_only: true });
        assert!(!volume("/a:/b:rw,z").unwrap().read_only);
        for (bad, why) in [
            ("/a", "names no place"),
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
        let parsed = tmpfs("/t:size=64m,mode=1777,noexec").unwrap();
        assert_eq!((parsed.size_bytes, parsed.mode), (Some(64 << 20), Some(0o1777)));
        for bad in ["t", "/t:size=x", "/t:mode=9", "/t:mode=77777", "/t:what"] {
            assert!(tmpfs(bad).is_err(), "{bad}");
        }
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
