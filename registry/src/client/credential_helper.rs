//! [`Helper`]: programs that keep credentials, by docker's protocol: `docker-credential-<name> get|store|erase`
//! with the registry (or a JSON object) on standard input and a JSON object on standard output.
//!
//! The name comes from a configuration file and must be a plain word, so that it cannot name another program.
//! A helper gets limited time and may answer only so much. What it prints to standard output is never
//! shown, apart from its refusals, since it may hold secrets; its standard error is the caller's, as docker has it.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::credentials::{Credential, CredentialError};
use super::error::sanitise;

/// Longest wait for an answer: helpers may ask the user to unlock a key ring.
const HELPER_WAIT: Duration = Duration::from_secs(60);
/// Largest answer. Tokens of cloud registries reach 8 KiB.
const HELPER_BYTES_MAX: u64 = 1024 * 1024;
/// The user name by which helpers say that the secret is an identity token.
const TOKEN_USER: &str = "<token>";

/// One credential helper program.
#[derive(Debug)]
pub(super) struct Helper {
    name: String,
    program: PathBuf,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    #[serde(rename = "ServerURL", default)]
    server_url: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    secret: String,
}

impl Helper {
    /// The helper called `name`, found along `path`, a list of folders as in `PATH`.
    pub(super) fn new(name: &str, path: Option<&OsStr>) -> Result<Helper, CredentialError> {
        let refuse =
            |reason: &str| CredentialError::Helper { helper: sanitise(name), reason: reason.to_owned() };
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        if name.is_empty() || !name.bytes().all(plain) {
            return Err(refuse("the name must be of letters, digits, `-`, `_` and `.`"));
        }
        let file = format!("docker-credential-{name}");
        let mut folders = path.into_iter().flat_map(std::env::split_paths);
        let found = folders.find(|folder| folder.is_absolute() && folder.join(&file).is_file());
        let folder = found.ok_or_else(|| refuse(&format!("`{file}` is not in PATH")))?;
        Ok(Helper { name: name.to_owned(), program: folder.join(file) })
    }

    /// The credential kept for `server`, if any.
    pub(super) fn get(&self, server: &str) -> Result<Option<Credential>, CredentialError> {
        let Some(output) = self.run("get", server.as_bytes())? else { return Ok(None) };
        let answer: Answer = serde_json::from_slice(&output)
            .map_err(|_| self.failed("its answer is not what the protocol says"))?;
        if answer.secret.is_empty() {
            return Ok(None);
        }
        Ok(Some(match answer.username.as_str() {
            TOKEN_USER => Credential::IdentityToken(super::credentials::Secret::new(answer.secret)),
            username => Credential::password(username, answer.secret),
        }))
    }

    /// Keeps `credential` for `server`.
    pub(super) fn store(&self, server: &str, credential: &Credential) -> Result<(), CredentialError> {
        let (username, secret) = match credential {
            Credential::Password { username, password } => (username.as_str(), password),
            Credential::IdentityToken(token) => (TOKEN_USER, token),
            Credential::RegistryToken(_) => return Err(self.failed("helpers do not keep registry tokens")),
        };
        let (server_url, username, secret) =
            (server.to_owned(), username.to_owned(), secret.reveal().to_owned());
        let input = serde_json::to_vec(&Answer { server_url, username, secret })
            .map_err(|_| self.failed("the credential cannot be written as JSON"))?;
        self.run("store", &input)?.map(drop).ok_or_else(|| self.failed("it did not keep the credential"))
    }

    /// Forgets what is kept for `server`; returns whether there was anything.
    pub(super) fn erase(&self, server: &str) -> Result<bool, CredentialError> {
        Ok(self.run("erase", server.as_bytes())?.is_some())
    }

    /// Runs the helper; `None` when it says that it keeps nothing for this registry.
    fn run(&self, action: &str, input: &[u8]) -> Result<Option<Vec<u8>>, CredentialError> {
        let mut child = Command::new(&self.program)
            .arg(action)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // What it says there is for the user: a prompt to touch a key, or why it fails.
            .stderr(Stdio::inherit())
            .spawn()
            .map_err(|error| self.failed(&format!("{}: {error}", self.program.display())))?;
        let output = self.converse(&mut child, input.to_vec());
        // Reaps the child on every path; a helper that still runs has had its time.
        let _ = child.kill();
        let status = child.wait();
        let output = output?;
        if status.as_ref().is_ok_and(ExitStatus::success) {
            return Ok(Some(output));
        }
        let mut words = String::from_utf8_lossy(&output).trim().to_owned();
        if words.is_empty() {
            words = status.map_or_else(|error| error.to_string(), |status| status.to_string());
        }
        match words.contains("credentials not found") || words.contains("no credentials") {
            true => Ok(None),
            false => Err(self.failed(&format!("`{action}` failed: {}", sanitise(&words)))),
        }
    }

    /// Writes the question and waits for the end of the answer, which is also how helpers end.
    fn converse(&self, child: &mut Child, input: Vec<u8>) -> Result<Vec<u8>, CredentialError> {
        let (mut stdin, stdout) =
            child.stdin.take().zip(child.stdout.take()).ok_or_else(|| self.failed("no pipes"))?;
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || {
            let mut output = Vec::new();
            let read = stdout.take(HELPER_BYTES_MAX + 1).read_to_end(&mut output);
            // Nobody listens any more once the time is up.
            let _ = sender.send(read.map(|_| output));
        });
        // A helper may answer without reading, or never read: that it did is seen in its answer, and nobody here
        // waits for it.
        std::thread::spawn(move || {
            let _ = stdin.write_all(&input);
        });
        match receiver.recv_timeout(HELPER_WAIT) {
            Ok(Ok(output)) if output.len() as u64 <= HELPER_BYTES_MAX => {
                // An answer is complete; give the process the moment it needs to exit by itself.
                self.await_exit(child);
                Ok(output)
            }
            Ok(Ok(_)) => Err(self.failed(&format!("it answered more than {HELPER_BYTES_MAX} bytes"))),
            Ok(Err(error)) => Err(self.failed(&error.to_string())),
            Err(_) => Err(self.failed(&format!("it did not answer within {} s", HELPER_WAIT.as_secs()))),
        }
    }

    fn await_exit(&self, child: &mut Child) {
        for _ in 0..500 {
            if !matches!(child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn failed(&self, reason: &str) -> CredentialError {
        CredentialError::Helper { helper: self.name.clone(), reason: reason.to_owned() }
    }
}
