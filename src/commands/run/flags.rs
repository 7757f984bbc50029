//! Flags of `rimg run` that have a grammar of their own: volumes, tmpfs, environment, CPUs. Docker's grammars.

use std::path::{Path, PathBuf};

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

/// Parses `--cpus`: how many processors' time, in millionths of one.
pub(crate) fn cpus(text: &str) -> Result<u64, String> {
    let value: f64 =
        text.parse().map_err(|_| format!("`{text}` is not a number of processors, such as 1.5"))?;
    // The kernel's smallest quota is 1 ms in its 100 ms period.
    if !(0.01..=1_000_000.0).contains(&value) {
        return Err(format!("`{text}` is not a number of processors between 0.01 and 1000000"));
    }
    Ok((value * 1e6).round() as u64)
}

/// `-e NAME=value`, or `-e NAME` to pass on the caller's value; `None` when the caller has none.
pub(crate) fn environment(text: &str) -> Result<Option<String>, Failure> {
    let name = text.split('=').next().unwrap_or("");
    if name.is_empty() || name.contains(char::is_whitespace) {
        return Err(Failure::usage(format!(
            "`{text}` is not an environment variable: expected NAME=VALUE or NAME"
        )));
    }
    if text.contains('=') {
        return Ok(Some(text.to_owned()));
    }
    Ok(std::env::var(name).ok().map(|value| format!("{name}={value}")))
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
        variables.extend(environment(line).context(format!("{shown}:{}", number + 1))?);
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
        assert_eq!(cpus("0.5"), Ok(500_000));
        for bad in ["", "0", "-1", "x", "NaN", "inf"] {
            assert!(cpus(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn environment_files() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("env");
        std::fs::write(&path, "\u{feff}# c\n\n A=1 2 # x\nB=\nNOT_SET_ANYWHERE\n").unwrap();
        assert_eq!(environment_file(&path).unwrap(), ["A=1 2 # x", "B="]);
        std::fs::write(&path, "A=1\n=2\n").unwrap();
        let (_, text) = environment_file(&path).unwrap_err().report();
        assert!(text.unwrap().contains("env:2: `=2` is not"));
    }
}
