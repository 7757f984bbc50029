//! Flags of `docker build` and `docker buildx build` that rimg has no use for: those that change nothing here are
//! accepted, the others are refused by one line that says why.

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};
use rimg_formats::platform::{Platform, PlatformError};

use crate::failure::Failure;

/// Flags that ask for what happens anyway, or for something that a build here does not leave behind. The second field
/// tells which values do; all do where it is empty.
const WITHOUT_EFFECT: [(&str, &[&str]); 9] = [
    ("load", &[]),
    ("rm", &[]),
    ("force-rm", &[]),
    ("provenance", &["false", "0", "mode=none"]),
    ("sbom", &["false", "0"]),
    ("network", &["default", "host"]),
    ("builder", &[]),
    ("disable-content-trust", &[]),
    ("isolation", &["", "default"]),
];

/// Flags that are refused: the name, and why or what else to do.
const REFUSED: [(&str, &str); 31] = [
    ("provenance", "attestations are not written"),
    ("sbom", "attestations are not written"),
    ("attest", "attestations are not written"),
    ("network", "the network is a matter of each step: write `RUN --network=none`"),
    ("isolation", "it is for Windows"),
    ("add-host", "names for RUN steps cannot be added yet"),
    ("allow", "no step gets more rights than a sandbox has"),
    ("cache-from", "the cache is the store; copy the store's folder to take it along"),
    ("cache-to", "the cache is the store; copy the store's folder to take it along"),
    ("call", "only builds are done: a build shows the file's warnings"),
    ("cgroup-parent", "RUN steps stay within the caller's cgroup: start rimg in another one"),
    ("check", "only builds are done: a build shows the file's warnings"),
    ("compress", "the context is read in place and never sent"),
    ("cpu-period", "limit the caller: RUN steps stay within its cgroup"),
    ("cpu-quota", "limit the caller: RUN steps stay within its cgroup"),
    ("cpu-shares", "limit the caller: RUN steps stay within its cgroup"),
    ("cpuset-cpus", "limit the caller: RUN steps stay within its cgroup"),
    ("cpuset-mems", "limit the caller: RUN steps stay within its cgroup"),
    ("device", "no step gets devices"),
    ("memory", "limit the caller: RUN steps stay within its cgroup"),
    ("memory-swap", "limit the caller: RUN steps stay within its cgroup"),
    ("no-cache-filter", "use --no-cache, or --target with it for one stage"),
    ("policy", "policies are not evaluated"),
    ("print", "only builds are done: a build shows the file's warnings"),
    ("resource", "limit the caller: RUN steps stay within its cgroup"),
    ("security-opt", "no step gets more rights than a sandbox has"),
    ("shm-size", "its size cannot be set for RUN steps yet"),
    ("squash", "merge the steps in the Buildfile, or copy the result into a stage `FROM scratch`"),
    ("ssh", "agents are not passed on yet; use --secret for keys"),
    ("ulimit", "limits of the caller hold for RUN steps: set them with `ulimit`"),
    ("userns", "builds choose their user namespace themselves"),
];

/// The value of `--platform`. docker's takes several.
pub(super) fn one_platform(text: &str) -> Result<Platform, String> {
    if text.contains(',') {
        return Err("one platform is built at a time: build each of them, under a name of its own".to_owned());
    }
    text.parse().map_err(|error: PlatformError| error.to_string())
}

/// What was given of these flags.
#[derive(Clone, Debug, Default)]
pub(super) struct DockerFlags {
    given: Vec<(&'static str, String)>,
}

impl DockerFlags {
    /// Refuses the first flag that would have to change something.
    pub(super) fn check(&self) -> Result<(), Failure> {
        for (name, value) in &self.given {
            let harmless = WITHOUT_EFFECT.iter().find(|(flag, _)| flag == name);
            let is_harmless = |values: &[&str]| values.is_empty() || values.contains(&value.as_str());
            if harmless.is_some_and(|(_, values)| is_harmless(values)) {
                continue;
            }
            let why = REFUSED.iter().find(|(flag, _)| flag == name).map_or("", |(_, why)| why);
            return Err(Failure::usage(format!("--{name} is docker's and not supported: {why}")));
        }
        Ok(())
    }
}

fn names() -> Vec<&'static str> {
    let harmless = WITHOUT_EFFECT.iter().map(|(name, _)| *name);
    let mut names: Vec<&str> = harmless.chain(REFUSED.iter().map(|(name, _)| *name)).collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// Flags that stand alone or with `=VALUE`; all others take a value, the next word if need be.
const SWITCHES: [&str; 7] =
    ["load", "rm", "force-rm", "check", "compress", "disable-content-trust", "squash"];

/// Flags of one letter.
const SHORT: [(&str, char); 2] = [("memory", 'm'), ("cpu-shares", 'c')];

impl Args for DockerFlags {
    fn augment_args(command: Command) -> Command {
        names().into_iter().fold(command, |command, name| {
            let flag = Arg::new(name).long(name).hide(true).action(ArgAction::Append);
            let flag = match SHORT.iter().find(|(long, _)| *long == name) {
                Some((_, letter)) => flag.short(*letter),
                None => flag,
            };
            command.arg(match SWITCHES.contains(&name) {
                true => flag.num_args(0..=1).require_equals(true).default_missing_value("true"),
                false => flag.num_args(1).allow_hyphen_values(true),
            })
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for DockerFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<DockerFlags, clap::Error> {
        let mut flags = DockerFlags::default();
        flags.update_from_arg_matches(matches)?;
        Ok(flags)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        for name in names() {
            let values = matches.get_many::<String>(name).into_iter().flatten();
            self.given.extend(values.map(|value| (name, value.clone())));
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn check(words: &[&str]) -> Result<(), String> {
        let command = DockerFlags::augment_args(Command::new("build").arg(Arg::new("context")));
        let words = std::iter::once("build").chain(words.iter().copied());
        let matches = command.try_get_matches_from(words).map_err(|error| error.to_string())?;
        let flags = DockerFlags::from_arg_matches(&matches).map_err(|error| error.to_string())?;
        flags.check().map_err(|failure| failure.report().1.unwrap())
    }

    #[test]
    fn what_changes_nothing_is_accepted() {
        for words in [
            &["--load", "."][..],
            &["--load=false"],
            &["--rm", "--force-rm=true", "."],
            &["--provenance=false", "--sbom", "false", "."],
            &["--network=host"],
            &["--network", "default"],
            &["--builder", "default", "."],
            &["--disable-content-trust", "."],
        ] {
            check(words).unwrap();
        }
    }

    #[test]
    fn what_would_change_something_is_refused_with_the_reason() {
        for (words, part) in [
            (&["--provenance=true"][..], "--provenance is docker's and not supported: attestations"),
            (&["--sbom=true"], "--sbom"),
            (&["--network=none"], "RUN --network=none"),
            (&["--cache-from", "type=gha"], "the cache is the store"),
            (&["--ssh", "default", "."], "--secret"),
            (&["--shm-size=1g", "."], "--shm-size"),
            (&["--check", "."], "only builds"),
            (&["--memory", "-1", "."], "--memory"),
            (&["-m", "1g", "."], "--memory"),
            (&["-c512", "."], "--cpu-shares"),
        ] {
            let text = check(words).unwrap_err();
            assert!(text.contains(part) && text.lines().count() == 1, "{text}");
        }
        let platform = one_platform("linux/amd64,linux/arm64").unwrap_err();
        assert!(platform.starts_with("one platform is built at a time"), "{platform}");
        assert_eq!(one_platform("linux/arm64"), Ok(Platform::new("linux", "arm64")));
        let why = |name: &&str| REFUSED.iter().any(|(flag, why)| flag == name && !why.is_empty());
        let (_, limited): (Vec<_>, Vec<_>) = WITHOUT_EFFECT.iter().partition(|(_, values)| values.is_empty());
        assert!(limited.iter().map(|(name, _)| name).all(why));
    }
}
