//! Commands of docker that rimg lacks, and what does their work here.

use crate::failure::Failure;

/// Of commands that find a container by its name.
const FOREGROUND: &str = "a container is a process in the foreground: it ends with `rimg run` (Ctrl-C, SIGTERM) and is then removed";
/// Of commands that need a container which does not run.
const NO_CONTAINERS: &str = "a container runs from `rimg run` to its command's end; its image stays as it is";

/// The command, and what to use in its place.
const COMMANDS: [(&str, &str); 39] = [
    ("attach", FOREGROUND),
    ("builder", "`rimg build` builds, `rimg prune` removes what the build cache does not need"),
    ("buildx", "`rimg build` takes buildx's flags"),
    ("commit", "write a Buildfile: `FROM` the image, and a `RUN` step"),
    ("compose", "start each service with `rimg run`, as from a unit of systemd"),
    ("container", FOREGROUND),
    ("context", ""),
    (
        "cp",
        "`rimg cat` prints a file of an image, `rimg build --output DIR` writes all of them, `rimg run -v` shares",
    ),
    ("create", NO_CONTAINERS),
    ("diff", NO_CONTAINERS),
    ("events", ""),
    ("exec", "`rimg run` starts a container of its own for a command"),
    ("export", "`rimg build --output type=tar,dest=FILE` writes an image's root file system"),
    ("image", "`rimg images`, `rimg rmi`, `rimg tag`, `rimg inspect` … are commands of their own"),
    ("info", "`rimg doctor` shows what the host allows"),
    ("kill", FOREGROUND),
    ("logs", "output of a container goes to that of `rimg run`: redirect it"),
    ("manifest", "`rimg inspect` shows manifests and indexes"),
    ("network", "`rimg run --network none` or `--network host`"),
    ("pause", FOREGROUND),
    ("plugin", ""),
    ("port", "`rimg run --network host`: the container listens on the host's own ports"),
    ("ps", FOREGROUND),
    ("rename", FOREGROUND),
    ("restart", FOREGROUND),
    ("rm", FOREGROUND),
    ("search", ""),
    ("secret", "`rimg build --secret` gives secrets to RUN steps"),
    ("service", ""),
    ("start", NO_CONTAINERS),
    ("stats", ""),
    ("stop", FOREGROUND),
    ("swarm", ""),
    ("system", "`rimg prune` frees space, `rimg doctor` shows what the host allows"),
    ("top", "`ps` of the host shows the processes of containers"),
    ("unpause", FOREGROUND),
    ("update", NO_CONTAINERS),
    ("volume", "`rimg run -v HOST:CONTAINER` bind mounts a path of the host"),
    ("wait", FOREGROUND),
];

/// What to say of a command that docker knows and rimg does not; `None` for one that docker does not know either.
pub(crate) fn unsupported(command: &str) -> Option<Failure> {
    let (name, instead) = COMMANDS.iter().find(|(name, _)| *name == command)?;
    let failure = Failure::usage(format!("`rimg {name}` is not supported"));
    Some(if instead.is_empty() { failure } else { failure.hint(instead) })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cli::Cli;

    #[test]
    fn commands_of_docker_are_named_with_what_does_their_work() {
        assert_eq!(
            unsupported("network").unwrap().report(),
            (
                2,
                Some(
                    "error: `rimg network` is not supported\n  hint: `rimg run --network none` or `--network host`\n"
                        .to_owned()
                )
            )
        );
        assert!(unsupported("psuh").is_none());
        let own = Cli::command();
        for (name, _) in COMMANDS {
            assert!(own.find_subcommand(name).is_none(), "rimg has `{name}`");
        }
    }
}
