//! Running the tests of a program that re-executes itself, and a tiny root to run in.
//!
//! The root is made of busybox-static; its absence is an error that says what to install.

use std::ffi::OsString;
use std::fs;
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rimg_runner::spec::{RootFs, Stdio, Upper};
use rimg_runner::userns::Mapping;
use rimg_runner::{ExitStatus, Sandbox, SandboxError, SandboxSpec};

pub(crate) type Test = (&'static str, fn());

/// Runs the tests that the command line asks for, as `cargo test` always does, and exits.
pub(crate) fn run(tests: &[Test]) -> ! {
    let mut arguments = libtest_mimic::Arguments::from_args();
    // One after the other: a foreground run has the process's signals to itself.
    arguments.test_threads = Some(1);
    let trial = |&(name, test): &Test| {
        libtest_mimic::Trial::test(name, move || {
            test();
            Ok(())
        })
    };
    libtest_mimic::run(&arguments, tests.iter().map(trial).collect()).exit()
}

/// How this process's ids are mapped; set once by `main`.
pub(crate) static MAPPING: std::sync::OnceLock<Mapping> = std::sync::OnceLock::new();

pub(crate) fn mapping() -> Mapping {
    *MAPPING.get().unwrap()
}

/// Says loudly that something could not be tested here.
pub(crate) fn skipped(what: &str, why: &str) {
    // The harness has begun a line.
    eprintln!("\nSKIPPED {what}: {why}");
}

/// A root of one busybox layer with an upper directory; removed when dropped.
pub(crate) struct Root {
    pub(crate) directory: tempfile::TempDir,
}

impl Root {
    pub(crate) fn new() -> Root {
        let root = Root::empty();
        let busybox = Path::new("/bin/busybox");
        assert!(busybox.exists(), "/bin/busybox is missing: apt-get install busybox-static");
        fs::create_dir_all(root.lower().join("bin")).unwrap();
        for directory in ["etc", "tmp", "proc", "dev", "sys"] {
            fs::create_dir_all(root.lower().join(directory)).unwrap();
        }
        fs::copy(busybox, root.lower().join("bin/busybox")).unwrap();
        let applets = [
            "sh", "cat", "echo", "ls", "true", "false", "id", "sleep", "stat", "mount", "touch", "mkdir",
            "rm", "test", "readlink", "hostname", "kill", "tty", "stty", "grep", "wc", "unshare", "dd",
            "env", "ip", "head", "mknod", "pwd", "chmod", "setsid", "printf", "ps", "ln", "mv", "rmdir",
            "chown", "nproc", "tr", "cut", "yes",
        ];
        for applet in applets {
            symlink("busybox", root.lower().join("bin").join(applet)).unwrap();
        }
        let passwd = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000:app:/srv/app:/bin/sh\n";
        fs::write(root.lower().join("etc/passwd"), passwd).unwrap();
        fs::write(root.lower().join("etc/group"), "root:x:0:\napp:x:1000:\nextra:x:2000:app\n").unwrap();
        root
    }

    /// A layer with nothing in it.
    pub(crate) fn empty() -> Root {
        let directory = tempfile::Builder::new().prefix("rimg-test-").tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        for name in ["lower", "upper", "work"] {
            fs::create_dir(directory.path().join(name)).unwrap();
        }
        Root { directory }
    }

    pub(crate) fn lower(&self) -> PathBuf {
        self.directory.path().join("lower")
    }

    pub(crate) fn upper(&self) -> PathBuf {
        self.directory.path().join("upper")
    }

    /// Every path in the upper directory, sorted.
    pub(crate) fn upper_paths(&self) -> Vec<String> {
        fn walk(base: &Path, directory: &Path, paths: &mut Vec<String>) {
            for entry in fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                paths.push(path.strip_prefix(base).unwrap().display().to_string());
                if path.is_dir() && !path.is_symlink() {
                    walk(base, &path, paths);
                }
            }
        }
        let mut paths = Vec::new();
        walk(&self.upper(), &self.upper(), &mut paths);
        paths.sort();
        paths
    }

    pub(crate) fn spec(&self, args: &[&str]) -> SandboxSpec {
        // A volatile overlay refuses a second mount, which tests do not need.
        let _ = fs::remove_dir_all(self.directory.path().join("work"));
        fs::create_dir(self.directory.path().join("work")).unwrap();
        let rootfs = RootFs {
            lowers: vec![self.lower()],
            upper: Upper::Directory {
                upper: self.upper(),
                work: self.directory.path().join("work"),
                volatile: true,
            },
        };
        let mut spec = SandboxSpec::new(rootfs, args.iter().map(OsString::from).collect());
        spec.env = vec![(OsString::from("PATH"), OsString::from("/bin"))];
        spec
    }

    pub(crate) fn shell(&self, script: &str) -> SandboxSpec {
        self.spec(&["sh", "-c", script])
    }
}

/// What a run left to look at.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

pub(crate) fn try_run(spec: SandboxSpec) -> Result<Outcome, SandboxError> {
    let mut running = Sandbox::new(spec)?.spawn(Stdio::output_piped())?;
    let (mut stdout, mut stderr) = (String::new(), String::new());
    let mut errors = running.stderr.take().unwrap();
    let mut output = running.stdout.take().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| errors.read_to_string(&mut stderr).unwrap());
        output.read_to_string(&mut stdout).unwrap();
    });
    let status = running.wait()?;
    Ok(Outcome { status, stdout, stderr })
}

/// Runs to the end and insists on exit code 0.
pub(crate) fn output(spec: SandboxSpec) -> String {
    let outcome = try_run(spec).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(outcome.status.code, 0, "{outcome:?}");
    outcome.stdout
}
