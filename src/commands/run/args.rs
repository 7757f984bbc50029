//! [`RunArgs`]: the flags of `rimg run`, and what is said of docker's that it lacks.

use std::ffi::OsString;
use std::path::PathBuf;

use rimg_formats::platform::Platform;

use super::flags;
use crate::failure::Failure;

/// Flags of `rimg run`.
#[derive(Debug, clap::Args)]
#[command(
    disable_help_flag = true,
    override_usage = "rimg run [OPTIONS] IMAGE [COMMAND] [ARG]...",
    after_help = "Exit codes: the command's own (128 + n for signal n); 125 when the container could not be set up, \
126 when the command cannot be executed, 127 when it cannot be found."
)]
pub(crate) struct RunArgs {
    /// Keep standard input open: pass it on
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// Run an init inside the container that forwards signals and reaps processes
    #[arg(long)]
    pub(crate) init: bool,
    /// Allocate a terminal for the container
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// Set an environment variable; NAME alone passes on the caller's
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub(crate) env: Vec<String>,
    /// Read environment variables from a file
    #[arg(long, value_name = "FILE")]
    pub(crate) env_file: Vec<PathBuf>,
    /// Working directory inside the container, an absolute path
    #[arg(short, long, value_name = "DIR")]
    pub(crate) workdir: Option<String>,
    /// The user to run as: a name or number of the image, optionally with a group
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub(crate) user: Option<String>,
    /// Executable to start instead of the image's entrypoint
    #[arg(long, value_name = "COMMAND")]
    pub(crate) entrypoint: Option<String>,
    /// The container's host name
    #[arg(short = 'h', long, value_name = "NAME")]
    pub(crate) hostname: Option<String>,
    /// Bind mount a path of the host
    #[arg(short, long, value_name = "HOST:CONTAINER[:ro]", value_parser = flags::volume)]
    pub(crate) volume: Vec<flags::Volume>,
    /// Mount a tmpfs
    #[arg(long, value_name = "DIR[:OPTIONS]", value_parser = flags::tmpfs)]
    pub(crate) tmpfs: Vec<flags::Tmpfs>,
    /// Give all files to root, where you have no subordinate ids for other owners
    #[arg(long)]
    pub(crate) squash_owners: bool,
    /// Mount the container's root read-only
    #[arg(long)]
    pub(crate) read_only: bool,
    /// Memory limit, such as 512m; beyond it the kernel kills. 0 is no limit
    #[arg(short, long, value_name = "SIZE", value_parser = crate::units::parse_size)]
    pub(crate) memory: Option<u64>,
    /// CPU limit in cores, such as 1.5; 0 is no limit
    #[arg(long, value_name = "NUMBER", value_parser = flags::cpus)]
    pub(crate) cpus: Option<u64>,
    /// Limit of processes and threads; 0 or -1 is no limit
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true, value_parser = clap::value_parser!(i64).range(-1..=i64::from(u32::MAX)))]
    pub(crate) pids_limit: Option<i64>,
    /// Network: none but a loopback of its own, or the host's
    #[arg(long, alias = "net", default_value = "none", value_name = "none|host", value_parser = flags::network)]
    pub(crate) network: flags::NetworkChoice,
    /// Publish a port: not supported yet
    #[arg(short, long, hide = true, value_name = "PORT")]
    pub(crate) publish: Vec<String>,
    /// Publish all ports: not supported yet
    #[arg(short = 'P', long, hide = true)]
    pub(crate) publish_all: bool,
    /// Run in the background: not supported yet
    #[arg(short, long, hide = true)]
    pub(crate) detach: bool,
    /// Remove the container when it ends; what it wrote is always removed
    #[arg(long)]
    pub(crate) rm: bool,
    /// A name for the container, and its host name; no two that run can have the same
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// When to pull the image
    #[arg(long, value_enum, default_value_t, value_name = "WHEN")]
    pub(crate) pull: PullPolicy,
    /// Suppress the pull output
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Which platform's image to run [default: the host's]
    #[arg(long, value_name = "OS/ARCH")]
    pub(crate) platform: Option<Platform>,
    /// Pull over plain HTTP
    #[arg(long)]
    pub(crate) plain_http: bool,
    /// Print help
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
    // One list for the image and what follows it: as soon as it has its first word, everything is a word.
    /// The image (a name, a digest or a digest prefix), then the command and its arguments in place of the image's
    #[arg(trailing_var_arg = true, required = true, num_args = 1.., value_name = "IMAGE [COMMAND]")]
    words: Vec<OsString>,
}

/// When `run` pulls the image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum PullPolicy {
    /// Each time.
    Always,
    /// When it is not here.
    #[default]
    Missing,
    /// Never.
    Never,
}

impl RunArgs {
    /// The image's name. One that is no text names no image.
    pub(crate) fn image(&self) -> &str {
        self.words.first().and_then(|word| word.to_str()).unwrap_or_default()
    }

    /// The words behind the image.
    pub(crate) fn command(&self) -> &[OsString] {
        self.words.get(1..).unwrap_or_default()
    }

    /// Docker's flags that people try first and that are not here: what to do instead, before anything is done.
    pub(super) fn unsupported(&self) -> Option<Failure> {
        if !self.publish.is_empty() || self.publish_all {
            let failure = Failure::usage("publishing ports (-p, -P) is not supported yet");
            return Some(failure.hint("--network host: the container listens on the host's own ports"));
        }
        self.detach.then(|| {
            let failure = Failure::usage("running in the background (-d) is not supported yet");
            failure.hint("leave out -d; a shell's `&`, or systemd-run, keeps it running")
        })
    }
}

/// Flags of `docker run` (28.2) that `rimg run` lacks, and what to do instead where there is something.
const UNSUPPORTED: &[(&str, &str)] = &[
    ("--add-host", ""),
    ("--annotation", ""),
    ("--attach", "standard output and error are always attached; -i attaches standard input"),
    ("-a", "standard output and error are always attached; -i attaches standard input"),
    ("--blkio-weight", ""),
    ("--blkio-weight-device", ""),
    ("--cap-add", ""),
    ("--cap-drop", ""),
    ("--cgroup-parent", ""),
    ("--cgroupns", ""),
    ("--cidfile", ""),
    ("--cpu-count", ""),
    ("--cpu-percent", ""),
    ("--cpu-period", "--cpus NUMBER limits processor time"),
    ("--cpu-quota", "--cpus NUMBER limits processor time"),
    ("--cpu-rt-period", ""),
    ("--cpu-rt-runtime", ""),
    ("--cpu-shares", "--cpus NUMBER limits processor time"),
    ("-c", "--cpus NUMBER limits processor time"),
    ("--cpuset-cpus", ""),
    ("--cpuset-mems", ""),
    ("--detach-keys", ""),
    ("--device", "-v /dev/NAME:/dev/NAME bind mounts a device node"),
    ("--device-cgroup-rule", ""),
    ("--device-read-bps", ""),
    ("--device-read-iops", ""),
    ("--device-write-bps", ""),
    ("--device-write-iops", ""),
    ("--disable-content-trust", ""),
    ("--dns", ""),
    ("--dns-opt", ""),
    ("--dns-option", ""),
    ("--dns-search", ""),
    ("--domainname", ""),
    ("--expose", "--network host: the container listens on the host's own ports"),
    ("--gpus", ""),
    ("--group-add", ""),
    ("--health-cmd", ""),
    ("--health-interval", ""),
    ("--health-retries", ""),
    ("--health-start-interval", ""),
    ("--health-start-period", ""),
    ("--health-timeout", ""),
    ("--io-maxbandwidth", ""),
    ("--io-maxiops", ""),
    ("--ip", ""),
    ("--ip6", ""),
    ("--ipc", ""),
    ("--isolation", ""),
    ("--kernel-memory", "--memory SIZE limits memory"),
    ("--label", ""),
    ("-l", ""),
    ("--label-file", ""),
    ("--link", ""),
    ("--link-local-ip", ""),
    ("--log-driver", ""),
    ("--log-opt", ""),
    ("--mac-address", ""),
    ("--memory-reservation", "--memory SIZE limits memory"),
    ("--memory-swap", "--memory SIZE limits memory and swap"),
    ("--memory-swappiness", ""),
    ("--mount", "-v HOST:CONTAINER[:ro] bind mounts a path of the host, --tmpfs DIR mounts memory"),
    ("--network-alias", ""),
    ("--net-alias", ""),
    ("--no-healthcheck", "leave it out: health checks are never run"),
    ("--oom-kill-disable", ""),
    ("--oom-score-adj", ""),
    ("--pid", ""),
    ("--privileged", ""),
    ("--restart", "a unit of systemd, or a loop of the shell, starts it again"),
    ("--runtime", ""),
    ("--security-opt", ""),
    ("--shm-size", "--tmpfs /dev/shm:size=SIZE"),
    ("--sig-proxy", ""),
    ("--stop-signal", ""),
    ("--stop-timeout", ""),
    ("--storage-opt", ""),
    ("--sysctl", ""),
    ("--ulimit", "`ulimit` of the shell that starts rimg: limits are inherited"),
    ("--use-api-socket", ""),
    ("--userns", ""),
    ("--uts", ""),
    ("--volume-driver", ""),
    ("--volumes-from", ""),
];

/// What to say of a flag that docker knows and rimg does not; `None` for a flag that docker does not know either.
pub(crate) fn unsupported_flag(flag: &str) -> Option<Failure> {
    let (name, instead) = UNSUPPORTED.iter().find(|(name, _)| *name == flag)?;
    let failure = Failure::usage(format!("`{name}` is not supported by rimg run"));
    Some(if instead.is_empty() { failure } else { failure.hint(instead) })
}
