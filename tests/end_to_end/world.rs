//! [`World`]: a store, a scratch folder and the binary under test; every command is followed by a check of the
//! whole store, because a command that leaves damage behind has failed whatever it printed.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// The test's own corner of the machine.
pub(crate) struct World {
    folder: tempfile::TempDir,
}

/// What a command did.
pub(crate) struct Outcome {
    /// Its exit code; 128 + n for a signal.
    pub(crate) code: i32,
    /// What it printed.
    pub(crate) stdout: String,
    /// What it said.
    pub(crate) stderr: String,
}

impl Outcome {
    pub(crate) fn of(output: Output) -> Outcome {
        use std::os::unix::process::ExitStatusExt;
        let code = output.status.code().or(output.status.signal().map(|signal| 128 + signal)).unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Outcome { code, stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// Asserts success and gives what was printed.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, 0, "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        self.stdout
    }

    /// Asserts the exit code and gives what was said.
    #[track_caller]
    pub(crate) fn fails(self, code: i32) -> String {
        assert_eq!(self.code, code, "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        self.stderr
    }
}

impl World {
    /// An empty store in an empty folder.
    pub(crate) fn new() -> World {
        let folder = tempfile::Builder::new().prefix("rimg-test-").tempdir().unwrap();
        // Tests also run commands as other users, who must get in.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(folder.path().join("tmp")).unwrap();
        fs::set_permissions(folder.path().join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
        World { folder }
    }

    /// A path in the test's folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The default store.
    pub(crate) fn root(&self) -> PathBuf {
        self.path("store")
    }

    /// Writes a file, making its folders.
    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    /// A root file system of busybox with `/etc/passwd`, in the folder `name`.
    pub(crate) fn busybox_root(&self, name: &str) -> PathBuf {
        let root = self.path(name);
        for folder in ["bin", "etc", "tmp", "root", "home/app"] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
        fs::copy(busybox(), root.join("bin/busybox")).unwrap();
        fs::set_permissions(root.join("bin/busybox"), fs::Permissions::from_mode(0o755)).unwrap();
        let applets = "sh ls cat echo true false id env pwd sleep kill hostname test mkdir rm touch stat ps mount wc head \
                       grep seq ln cp mv chmod chown find sort tr dd sync nc wget httpd printf sed readlink ip date yes";
        for applet in applets.split_whitespace() {
            std::os::unix::fs::symlink("busybox", root.join("bin").join(applet)).unwrap();
        }
        fs::write(
            root.join("etc/passwd"),
            "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n",
        )
        .unwrap();
        fs::write(root.join("etc/group"), "root:x:0:\napp:x:1000:\nextra:x:2000:app\n").unwrap();
        root
    }

    /// A command of rimg on the default store.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rimg"));
        command.args(arguments).current_dir(self.folder.path()).stdin(Stdio::null());
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("HOME", self.folder.path());
        command.env("RIMG_ROOT", self.root()).env("TMPDIR", self.path("tmp"));
        command
    }

    /// The default store's folder, made for an ordinary user; for the tests' own user when that is not root.
    pub(crate) fn store_of(&self, user: u32) {
        fs::create_dir_all(self.root()).unwrap();
        if is_root() {
            std::os::unix::fs::chown(self.root(), Some(user), Some(user)).unwrap();
        }
    }

    /// As [`World::command`], as an ordinary user; as the tests' own when that is not root.
    pub(crate) fn command_as(&self, user: u32, arguments: &[&str]) -> Command {
        use std::os::unix::process::CommandExt;
        let mut command = self.command(arguments);
        if is_root() {
            command.uid(user).gid(user);
        }
        command
    }

    /// What `rimg inspect` says of an image in the default store.
    #[track_caller]
    pub(crate) fn inspect(&self, image: &str) -> serde_json::Value {
        serde_json::from_str(&self.rimg(&["inspect", image]).ok()).unwrap()
    }

    /// Where the blob of a digest lies in the store `root`.
    pub(crate) fn blob(&self, root: &str, digest: &str) -> PathBuf {
        self.path(root).join("blobs/sha256").join(digest.trim_start_matches("sha256:"))
    }

    /// Runs rimg on the default store, then checks the store.
    #[track_caller]
    pub(crate) fn rimg(&self, arguments: &[&str]) -> Outcome {
        let outcome = Outcome::of(self.command(arguments).output().unwrap());
        self.verify_store(&self.root());
        outcome
    }

    /// Runs any command that [`World::command`] made, changed by the test.
    #[track_caller]
    pub(crate) fn run(&self, mut command: Command) -> Outcome {
        Outcome::of(command.output().unwrap())
    }

    /// Asserts that nothing in a store is damaged.
    #[track_caller]
    pub(crate) fn verify_store(&self, root: &Path) {
        if root.exists() {
            let mut fsck = self.command(&["fsck"]);
            let outcome = Outcome::of(fsck.env("RIMG_ROOT", root).output().unwrap());
            assert_eq!(outcome.code, 0, "fsck of {}: {}{}", root.display(), outcome.stdout, outcome.stderr);
        }
    }

    /// Builds the folder `context` and gives the digest.
    #[track_caller]
    pub(crate) fn build(&self, context: &str, arguments: &[&str]) -> String {
        let mut all = vec!["build"];
        all.extend(arguments);
        all.push(context);
        self.rimg(&all).ok().trim().to_owned()
    }
}

/// The static busybox that test roots are made of.
pub(crate) fn busybox() -> PathBuf {
    let path = PathBuf::from("/bin/busybox");
    assert!(path.exists(), "/bin/busybox is missing: apt-get install busybox-static");
    path
}

/// Whether tests run as root.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// An ordinary user without subordinate ids.
pub(crate) const USER: u32 = 12_345;

/// What the disk does to a blob.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Damage {
    /// One bit in the middle is another.
    Flip,
    /// The second half is missing.
    Truncate,
    /// The file is missing.
    Remove,
}

impl Damage {
    /// All kinds.
    pub(crate) const ALL: [Damage; 3] = [Damage::Flip, Damage::Truncate, Damage::Remove];

    /// Does it to a file.
    pub(crate) fn apply(self, path: &Path) {
        fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
        let mut bytes = fs::read(path).unwrap();
        let middle = bytes.len() / 2;
        match self {
            Damage::Flip => bytes[middle] ^= 1,
            Damage::Truncate => bytes.truncate(middle),
            Damage::Remove => return fs::remove_file(path).unwrap(),
        }
        fs::write(path, bytes).unwrap();
    }
}

/// Bytes that no compression makes smaller, the same each time.
pub(crate) fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..length.div_ceil(8)).flat_map(|_| next()).take(length).collect()
}
