//! From the process that has set the sandbox up to the payload: ids, capabilities, filter, working directory, exec.
//!
//! Owns the order in which privileges go away. Everything that can be worked out beforehand is ([`prepare`]), so that the
//! rest can only fail at a few named points, each of which is reported.

use std::ffi::{CString, OsStr, OsString};
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::idmap::UnmappedUser;
use crate::init::EXIT_SETUP;
use crate::kernel_fs::Terminal;
use crate::message::{self, Message, SetupFailure};
use crate::plan::Payload;
use crate::privileges::{self, limit_capabilities, set_capabilities, set_ids};
use crate::seccomp;
use crate::spec::Seccomp;
use crate::stdio;
use crate::sys::{self, BpfInstruction};
use crate::tree::{OrFail, Tree, open_in_root};
use crate::user::{self, Credentials};

/// Where programs are searched when the environment has no `PATH`.
const DEFAULT_PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What the standard library ignores before `main`: bit n - 1 is signal n.
const RUNTIME_IGNORES: u64 = 1 << (libc::SIGPIPE - 1);

/// Everything the payload's process needs, worked out in advance.
pub(crate) struct Launch {
    /// Candidates for the program, in the order of `PATH`.
    programs: Vec<CString>,
    args: Vec<CString>,
    env: Vec<CString>,
    pub(crate) credentials: Credentials,
    pub(crate) capabilities: u64,
    no_new_privileges: bool,
    filter: Vec<BpfInstruction>,
    /// The sandbox's procfs, whatever is mounted over it.
    pub(crate) proc: OwnedFd,
    /// Signals that this process was started with ignored.
    ignored_signals: u64,
}

/// What [`prepare`] found out.
pub(crate) enum Prepared {
    /// The payload can be started.
    Launch(Launch),
    /// It cannot: its user does not exist here.
    UserUnmapped(UnmappedUser),
}

/// Works out a launch. The tree's root is this process's root already; its `/etc/passwd` is a stranger's file.
pub(crate) fn prepare(
    payload: &Payload,
    tree: &Tree,
    ignored_signals: u64,
) -> Result<Prepared, SetupFailure> {
    let root = &tree.root;
    let passwd = read_account_file(root, "etc/passwd")?;
    let group = read_account_file(root, "etc/group")?;
    let credentials = user::resolve(&payload.user, &passwd, &group)
        .map_err(|error| SetupFailure { operation: format!("find the user to run as: {error}"), errno: 0 })?;
    if let Some(missing) = payload.ids.missing(&payload.user, &credentials) {
        return Ok(Prepared::UserUnmapped(missing));
    }
    enter_cwd(root, &payload.cwd)?;
    let mut env = payload.env.clone();
    if !env.iter().any(|(name, _)| name == "HOME") {
        env.push((OsString::from("HOME"), credentials.home.clone()));
    }
    let program = payload.args.first().filter(|program| !program.is_empty()).ok_or_else(|| SetupFailure {
        operation: "run an empty command: name a program".to_owned(),
        errno: 0,
    })?;
    let filter = match payload.seccomp {
        Seccomp::Default => seccomp::default_profile(payload.capabilities),
        Seccomp::Unconfined => Vec::new(),
    };
    // The variables first: what else fails over one of them would show its value.
    let variables = env.iter().map(|(name, value)| pair(name, value)).collect::<Result<_, _>>()?;
    Ok(Prepared::Launch(Launch {
        programs: candidates(program, &env)?,
        args: payload.args.iter().map(|arg| c_string(arg.as_bytes())).collect::<Result<_, _>>()?,
        env: variables,
        credentials,
        capabilities: payload.capabilities,
        no_new_privileges: payload.no_new_privileges,
        filter,
        proc: tree.proc()?.try_clone().or_fail(|| "keep the sandbox's procfs".to_owned())?,
        ignored_signals,
    }))
}

/// Turns this process, which leads a session, into the payload.
pub(crate) fn become_payload(launch: &Launch, terminal: Option<Terminal>, control: &OwnedFd) -> ! {
    if let Err(failure) = enter(launch, terminal) {
        let _ = message::send(control.as_fd(), &Message::Failed(failure), None);
        sys::exit_now(EXIT_SETUP);
    }
    let errno = execute(launch);
    let program = OsString::from_vec(launch.args[0].as_bytes().to_vec());
    let failed = Message::ExecFailed { program, errno: errno.raw_os_error() };
    let _ = message::send(control.as_fd(), &failed, None);
    sys::exit_now(if errno == Errno::NOENT { 127 } else { 126 });
}

fn enter(launch: &Launch, terminal: Option<Terminal>) -> Result<(), SetupFailure> {
    let credentials = &launch.credentials;
    if let Some(terminal) = terminal {
        adopt_terminal(&terminal, credentials).or_fail(|| "make the terminal the payload's".to_owned())?;
    }
    stdio::own_pipes(credentials.uid);
    limit_capabilities(launch.capabilities)?;
    // Without no-new-privs only a process with CAP_SYS_ADMIN may load a filter.
    if !launch.no_new_privileges {
        load_filter(launch)?;
    }
    let groups = set_ids(credentials, launch.proc.as_fd())?;
    if credentials.uid == 0 {
        set_capabilities(launch.capabilities).or_fail(|| "set capabilities".to_owned())?;
    }
    rustix::process::umask(Mode::from(0o022));
    sys::reset_signals(launch.ignored_signals | RUNTIME_IGNORES);
    if launch.no_new_privileges {
        rustix::thread::set_no_new_privs(true).or_fail(|| "set no_new_privs".to_owned())?;
        load_filter(launch)?;
    }
    let expected = privileges::Expected {
        credentials,
        groups,
        capabilities: launch.capabilities,
        no_new_privileges: launch.no_new_privileges,
        filter: !launch.filter.is_empty(),
    };
    expected.check(launch.proc.as_fd())
}

fn load_filter(launch: &Launch) -> Result<(), SetupFailure> {
    if launch.filter.is_empty() {
        return Ok(());
    }
    sys::load_seccomp(&launch.filter).or_fail(|| "load the seccomp filter".to_owned())
}

fn adopt_terminal(terminal: &Terminal, credentials: &Credentials) -> rustix::io::Result<()> {
    use rustix::process::Uid;
    rustix::process::ioctl_tiocsctty(&terminal.slave)?;
    // The group stays tty's; where that is not mapped the terminal keeps its mode and works all the same.
    let _ = rustix::fs::fchown(&terminal.slave, Some(Uid::from_raw(credentials.uid)), None);
    rustix::stdio::dup2_stdin(&terminal.slave)?;
    rustix::stdio::dup2_stdout(&terminal.slave)?;
    rustix::stdio::dup2_stderr(&terminal.slave)
}

/// Tries the candidates as execvp(3) does; returns only when none could be executed.
fn execute(launch: &Launch) -> Errno {
    // Last as well as first: nothing opened since then may pass into the payload (CVE-2024-21626).
    if let Err(error) = sys::close_on_exec_from_3() {
        return Errno::from_io_error(&error).unwrap_or(Errno::IO);
    }
    let mut verdict = Errno::NOENT;
    for program in &launch.programs {
        let Err(error) = nix::unistd::execve(program, &launch.args, &launch.env);
        match Errno::from_raw_os_error(error as i32) {
            Errno::NOENT | Errno::NOTDIR => {}
            error @ Errno::ACCESS => verdict = error,
            error => return error,
        }
    }
    verdict
}

/// Enters the working directory without magic links and makes sure that it lies inside the root.
fn enter_cwd(root: &OwnedFd, cwd: &OsStr) -> Result<(), SetupFailure> {
    let operation = || format!("enter the working directory {}", cwd.display());
    let path = Path::new("/").join(cwd);
    let directory = open_in_root(root.as_fd(), &path, OFlags::PATH | OFlags::DIRECTORY).or_fail(operation)?;
    rustix::process::fchdir(&directory).or_fail(operation)?;
    let reached = rustix::process::getcwd(Vec::new()).or_fail(operation)?;
    if reached.as_bytes().starts_with(b"/") {
        Ok(())
    } else {
        Err(SetupFailure { operation: format!("{}: it lies outside the root", operation()), errno: 0 })
    }
}

/// Reads `etc/passwd` or `etc/group` of the root: inside it, regular, and not too large. A missing one is empty.
fn read_account_file(root: &OwnedFd, path: &str) -> Result<Vec<u8>, SetupFailure> {
    let operation = || format!("read the image's /{path}");
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = match open_in_root(root.as_fd(), Path::new(path), flags) {
        Ok(file) => file,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(Vec::new()),
        Err(error) => return Err(error).or_fail(operation),
    };
    let stat = rustix::fs::fstat(&file).or_fail(operation)?;
    let regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    if !regular || stat.st_size as u64 > user::FILE_SIZE_MAX {
        return Err(SetupFailure {
            operation: format!(
                "{}: it is not a regular file of at most {} bytes",
                operation(),
                user::FILE_SIZE_MAX
            ),
            errno: 0,
        });
    }
    let mut bytes = Vec::new();
    let mut limited = std::fs::File::from(file).take(user::FILE_SIZE_MAX);
    limited.read_to_end(&mut bytes).or_fail(operation)?;
    Ok(bytes)
}

fn candidates(program: &OsStr, env: &[(OsString, OsString)]) -> Result<Vec<CString>, SetupFailure> {
    if program.as_bytes().contains(&b'/') {
        return Ok(vec![c_string(program.as_bytes())?]);
    }
    let path =
        env.iter().find(|(name, _)| name == "PATH").map_or(DEFAULT_PATH, |(_, value)| value.as_bytes());
    path.split(|byte| *byte == b':')
        .map(|directory| {
            let directory: &[u8] = if directory.is_empty() { b"." } else { directory };
            c_string(&[directory, b"/", program.as_bytes()].concat())
        })
        .collect()
}

/// `NAME=value`. An error names the variable and never shows its value, which may be a secret.
fn pair(name: &OsStr, value: &OsStr) -> Result<CString, SetupFailure> {
    CString::new([name.as_bytes(), b"=", value.as_bytes()].concat()).map_err(|_| SetupFailure {
        operation: format!("pass the variable `{}`: it contains a NUL byte", name.display()),
        errno: 0,
    })
}

fn c_string(bytes: &[u8]) -> Result<CString, SetupFailure> {
    CString::new(bytes).map_err(|_| SetupFailure {
        operation: format!("pass `{}`: it contains a NUL byte", String::from_utf8_lossy(bytes)),
        errno: 0,
    })
}
