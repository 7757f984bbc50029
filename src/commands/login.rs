//! `rimg login` and `rimg logout`: credentials of registries.

use std::io::{self, BufRead, IsTerminal, Read, Write};

use rimg_formats::reference::{DOCKER_HUB, ReferenceError, RegistryHost};
use rimg_registry::client::{AuthFiles, Client, ClientError, Credential};

use super::remote::RemoteArgs;
use crate::failure::Failure;
use crate::session::Session;
use crate::terminal::{note, print_line};

/// Longest password read from standard input: tokens have a few kilobytes.
const PASSWORD_BYTES_MAX: u64 = 64 << 10;

/// Flags of `rimg login`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Credentials that docker or podman keep are used as well, without logging in again.")]
pub(crate) struct LoginArgs {
    /// The registry
    #[arg(default_value = DOCKER_HUB, value_name = "REGISTRY", value_parser = registry)]
    registry: RegistryHost,
    /// The user name
    #[arg(short, long)]
    username: Option<String>,
    /// The password; other users of the host can see it: prefer --password-stdin
    #[arg(short, long, conflicts_with = "password_stdin")]
    password: Option<String>,
    /// Read the password from standard input
    #[arg(long)]
    password_stdin: bool,
    /// Reach the registry over plain HTTP
    #[arg(long)]
    plain_http: bool,
}

/// Flags of `rimg logout`.
#[derive(Debug, clap::Args)]
pub(crate) struct LogoutArgs {
    /// The registry
    #[arg(default_value = DOCKER_HUB, value_name = "REGISTRY", value_parser = registry)]
    registry: RegistryHost,
}

/// A registry as people type it: scheme and path of a URL are left out, as docker does.
fn registry(text: &str) -> Result<RegistryHost, ReferenceError> {
    let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")).unwrap_or(text);
    host.split('/').next().unwrap_or(host).parse()
}

pub(crate) fn login(_: &Session, args: LoginArgs) -> Result<(), Failure> {
    let remote = RemoteArgs { plain_http: args.plain_http, ..RemoteArgs::default() };
    let username = match args.username {
        Some(username) => username,
        None if args.password_stdin => return Err(Failure::usage("--password-stdin needs --username")),
        None => ask("Username: ")?,
    };
    let password = match (args.password, args.password_stdin) {
        (Some(password), _) => {
            note("warning: a password on the command line can be seen by others; use --password-stdin");
            password
        }
        (None, true) => password_from_stdin()?,
        (None, false) => ask_hidden("Password: ")?,
    };
    let files = AuthFiles::from_environment();
    let credential = Credential::password(username, password);
    let login =
        Client::login(remote.client_options(), &args.registry, credential, &files).map_err(explain)?;
    note(&format!("credentials for {} are kept in {}", args.registry, login.saved_in));
    print_line("Login Succeeded")
}

pub(crate) fn logout(_: &Session, args: LogoutArgs) -> Result<(), Failure> {
    let (had, elsewhere) = Client::logout(&args.registry, &AuthFiles::from_environment()).map_err(explain)?;
    for file in elsewhere {
        note(&format!("warning: {} still holds credentials for {}", file.display(), args.registry));
    }
    match had {
        true => print_line(&format!("Removed credentials for {}", args.registry)),
        false => print_line(&format!("Not logged in to {}", args.registry)),
    }
}

fn explain(error: ClientError) -> Failure {
    let hint = error.hint();
    let failure = Failure::from(error);
    match hint {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

fn password_from_stdin() -> Result<String, Failure> {
    let mut text = String::new();
    io::stdin().lock().take(PASSWORD_BYTES_MAX).read_to_string(&mut text)?;
    let password = text.trim_end_matches(['\r', '\n']);
    match password.is_empty() {
        true => Err(Failure::new("standard input held no password")),
        false => Ok(password.to_owned()),
    }
}

fn ask(question: &str) -> Result<String, Failure> {
    if !io::stdin().is_terminal() {
        return Err(
            Failure::new("there is no terminal to ask on").hint("use --username NAME --password-stdin")
        );
    }
    let mut stderr = io::stderr().lock();
    stderr.write_all(question.as_bytes()).and_then(|()| stderr.flush())?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    match answer.trim() {
        "" => Err(Failure::new("nothing was entered")),
        answer => Ok(answer.to_owned()),
    }
}

/// Asks without showing what is typed, and shows again whatever happens.
fn ask_hidden(question: &str) -> Result<String, Failure> {
    use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
    let stdin = io::stdin();
    let Ok(shown) = tcgetattr(&stdin) else { return ask(question) };
    let mut hidden = shown.clone();
    hidden.local_modes.remove(LocalModes::ECHO);
    tcsetattr(&stdin, OptionalActions::Flush, &hidden).map_err(io::Error::from)?;
    let answer = ask(question);
    tcsetattr(&stdin, OptionalActions::Flush, &shown).map_err(io::Error::from)?;
    note("");
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_its_host() {
        for text in
            ["reg.test:5000", "https://reg.test:5000", "http://reg.test:5000/", "https://reg.test:5000/v1/x"]
        {
            assert_eq!(
                registry(text).map(|host| host.as_str().to_owned()).ok().as_deref(),
                Some("reg.test:5000")
            );
        }
        for bad in ["", "https://", "ftp://reg.test", "https:///x"] {
            assert!(registry(bad).is_err(), "{bad}");
        }
    }
}
