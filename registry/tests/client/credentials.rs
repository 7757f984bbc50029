//! Files with credentials in every shape they are found in, helper programs, logging in and out.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rimg_formats::reference::Tag;
use rimg_registry::client::{
    AuthFiles, Client, ClientError, ClientOptions, Credential, CredentialSource, OnWarning, SavedIn, Secret,
};
use tempfile::TempDir;

use crate::fake::{Answer, Fake, options};

/// A home of its own with a place for helper programs.
struct Home {
    folder: TempDir,
    extra: HashMap<&'static str, OsString>,
}

impl Home {
    fn new() -> Home {
        Home { folder: tempfile::tempdir().unwrap(), extra: HashMap::new() }
    }

    fn files(&self) -> AuthFiles {
        AuthFiles::from_variables(|name| match name {
            "HOME" => Some(self.folder.path().into()),
            "PATH" => Some(format!("{}:/usr/bin:/bin", self.folder.path().join("bin").display()).into()),
            other => self.extra.get(other).cloned(),
        })
    }

    fn write(&self, path: &str, text: &str) -> &Home {
        let path = self.folder.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        self
    }

    fn docker(&self, text: &str) -> &Home {
        self.write(".docker/config.json", text)
    }

    fn helper(&self, name: &str, script: &str) -> &Home {
        let path = format!("bin/docker-credential-{name}");
        self.write(&path, &format!("#!/bin/sh\n{script}\n"));
        let mode = fs::Permissions::from_mode(0o755);
        fs::set_permissions(self.folder.path().join(path), mode).unwrap();
        self
    }

    fn lookup(&self, host: &str) -> Option<Credential> {
        let looked_up = self.files().lookup(&host.parse().unwrap(), None);
        assert!(looked_up.problems.is_empty(), "{:?}", looked_up.problems);
        looked_up.credential
    }

    fn failure(&self, host: &str) -> String {
        let looked_up = self.files().lookup(&host.parse().unwrap(), None);
        assert_eq!(looked_up.credential, None);
        looked_up.problems.iter().map(ToString::to_string).collect()
    }
}

fn auth(pair: &str) -> String {
    STANDARD.encode(pair)
}

#[test]
fn entries_in_every_shape() {
    let home = Home::new();
    assert_eq!(home.lookup("r.io"), None);
    home.docker(&format!(
        r#"{{"auths":{{
            "https://index.docker.io/v1/":{{"auth":"{}"}},
            "https://old.io/v2/":{{"auth":"{}"}},
            "r.io":{{"auth":"{}"}},
            "r.io/team":{{"auth":"{}"}},
            "r.io/team/app":{{"auth":"{}"}},
            "named.io:5000":{{"username":"u","password":"p"}},
            "identity.io":{{"auth":"{}","identitytoken":"i"}},
            "token.io":{{"registrytoken":"t"}},
            "helper-left-this.io":{{}}
        }},"HttpHeaders":{{"User-Agent":"x"}},"psFormat":"x"}}"#,
        auth("hub:p"),
        auth("old:p"),
        auth("whole:p"),
        auth("team:p"),
        auth("app:p"),
        auth("<token>:"),
    ));
    let password = |name: &str| Some(Credential::password(name, "p"));
    for (host, expected) in [
        ("registry-1.docker.io", password("hub")),
        ("docker.io", password("hub")),
        ("old.io", password("old")),
        ("r.io", password("whole")),
        ("named.io:5000", password("u")),
        ("named.io", None),
        ("identity.io", Some(Credential::IdentityToken(Secret::new("i")))),
        ("token.io", Some(Credential::RegistryToken(Secret::new("t")))),
        ("helper-left-this.io", None),
        ("xr.io", None),
    ] {
        assert_eq!(home.lookup(host), expected, "{host}");
    }
    for (repository, name) in
        [("team/app", "app"), ("team/app/x", "app"), ("team/apple", "team"), ("teams/app", "whole")]
    {
        let found = home.files().lookup(&"r.io".parse().unwrap(), Some(&repository.parse().unwrap()));
        assert_eq!(found.credential, password(name), "{repository}");
    }
}

#[test]
fn passwords_may_have_colons_padding_and_letters_of_any_kind() {
    let home = Home::new();
    for (pair, name, password) in
        [("u:a:b", "u", "a:b"), ("u:p\0\0", "u", "p"), ("ü:pä\"ß", "ü", "pä\"ß"), ("u:", "u", "")]
    {
        home.docker(&format!(r#"{{"auths":{{"r.io":{{"auth":"{}"}}}}}}"#, auth(pair)));
        assert_eq!(home.lookup("r.io"), Some(Credential::password(name, password)));
    }
    home.docker(r#"{"auths":null,"credHelpers":null,"credsStore":null}"#);
    assert_eq!(home.lookup("r.io"), None);
    home.docker("");
    assert_eq!(home.lookup("r.io"), None);
}

#[test]
fn files_that_cannot_be_understood_are_named_without_their_secrets() {
    let home = Home::new();
    let cases = [
        "{",
        "[]",
        r#"{"auths":[]}"#,
        r#"{"auths":{"r.io":{"auth":"s3cret!"}}}"#,
        r#"{"auths":{"r.io":{"auth":12345678}}}"#,
        r#"{"auths":{"r.io":{"auth":"bm9jb2xvbg=="}}}"#,
        r#"{"auths":{"r.io":{"identitytoken":{"s3cret":1}}}}"#,
    ];
    for text in cases {
        home.docker(text);
        let failure = home.failure("r.io");
        assert!(failure.contains(".docker/config.json"), "{text}: {failure}");
        assert!(!failure.contains("s3cret") && !failure.contains("nocolon"), "{text}: {failure}");
    }
    fs::write(home.folder.path().join(".docker/config.json"), vec![b' '; 5 << 20]).unwrap();
    assert!(home.failure("r.io").contains("larger than"));
}

#[test]
fn null_is_nothing_as_for_go_programs() {
    let home = Home::new();
    for text in [
        r#"{"auths":{"r.io":{"auth":null,"username":null,"password":null}}}"#,
        r#"{"auths":{"r.io":null}}"#,
        r#"{"auths":{"r.io":{"identitytoken":null,"registrytoken":null}}}"#,
        r#"{"credHelpers":{"r.io":null}}"#,
        r#"{"credHelpers":{"r.io":""}}"#,
        r#"{"credsStore":""}"#,
    ] {
        home.docker(text);
        assert_eq!(home.lookup("r.io"), None, "{text}");
    }
}

/// A registry that needs no credentials is reached although those of the user cannot be read.
#[test]
fn what_cannot_be_used_is_a_warning_and_the_registry_decides() {
    let home = Home::new();
    home.write(".config/containers/auth.json", r#"{"credsStore":"nothere"}"#);
    fs::create_dir_all(home.folder.path().join(".docker/config.json")).unwrap();
    let warnings = Arc::new(Mutex::new(Vec::new()));
    let told = warnings.clone();
    let on_warning = OnWarning(Arc::new(move |warning: &str| told.lock().unwrap().push(warning.to_owned())));
    let repository = |fake: &Fake| {
        let credentials = CredentialSource::Files(home.files());
        let options = ClientOptions { credentials, on_warning: Some(on_warning.clone()), ..options() };
        Client::new(options).repository(&fake.reference())
    };
    // Nobody asks who it is: nothing is looked up.
    let open = Fake::start(|_| Answer::ok(r#"{"schemaVersion":2}"#));
    repository(&open).manifest_by_tag(&Tag::latest()).unwrap();
    assert_eq!(*warnings.lock().unwrap(), [""; 0]);
    // The registry gives tokens to anybody.
    let anonymous = Fake::start(|asked| match asked.line().as_str() {
        "GET /token" => Answer::ok(r#"{"token":"anyone"}"#),
        _ if asked.header("authorization") == "Bearer anyone" => Answer::ok(r#"{"schemaVersion":2}"#),
        _ => {
            let realm = format!("Bearer realm=\"http://{}/token\",service=\"s\"", asked.header("host"));
            Answer::status(401).with("www-authenticate", realm)
        }
    });
    let pulled = repository(&anonymous);
    pulled.manifest_by_tag(&Tag::latest()).unwrap();
    pulled.manifest_by_tag(&Tag::latest()).unwrap();
    let told = std::mem::take(&mut *warnings.lock().unwrap());
    assert_eq!(told.len(), 2, "each once: {told:?}");
    assert!(told[0].contains("docker-credential-nothere") && told[1].contains("config.json"), "{told:?}");
    let closed = Fake::start(|_| Answer::status(401).with("www-authenticate", "Basic realm=\"r\""));
    let error = repository(&closed).manifest_by_tag(&Tag::latest()).unwrap_err();
    assert!(matches!(error, ClientError::Unauthorized { .. }), "{error}");
}

#[test]
fn files_are_asked_in_order() {
    let mut home = Home::new();
    for name in ["REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "DOCKER_CONFIG"] {
        home.extra.insert(name, home.folder.path().join(name).into());
    }
    let paths = [
        "REGISTRY_AUTH_FILE",
        "XDG_CONFIG_HOME/rimg/auth.json",
        "XDG_RUNTIME_DIR/containers/auth.json",
        "XDG_CONFIG_HOME/containers/auth.json",
        "DOCKER_CONFIG/config.json",
    ];
    // A file that comes earlier takes over; those that do not know the registry are passed.
    home.docker("never read, since DOCKER_CONFIG is set");
    for path in paths.iter().rev() {
        home.write(path, &format!(r#"{{"auths":{{"r.io":{{"auth":"{}"}}}}}}"#, auth(&format!("{path}:p"))));
        assert_eq!(home.lookup("r.io"), Some(Credential::password(*path, "p")));
    }
    home.write(paths[0], "{}");
    assert_eq!(home.lookup("r.io"), Some(Credential::password(paths[1], "p")));
}

const KEEPER: &str = r#"dir=$(dirname "$0"); read -r input; echo "$1 $input" >> "$dir/log"
case "$1 $input" in
  "get r.io") echo '{"ServerURL":"r.io","Username":"helped","Secret":"p"}' ;;
  "get https://index.docker.io/v1/") echo '{"ServerURL":"","Username":"<token>","Secret":"id"}' ;;
  "get broken.io") echo 'not JSON s3cret' ;;
  "get failing.io") echo 'the key ring is locked'; exit 2 ;;
  "get silent.io") exit 3 ;;
  store*|erase*) ;;
  *) echo 'credentials not found in native keychain'; exit 1 ;;
esac"#;

#[test]
fn helpers_are_asked_by_their_protocol() {
    let home = Home::new();
    home.helper("keeper", KEEPER);
    home.docker(&format!(
        r#"{{"credsStore":"keeper","credHelpers":{{"other.io":"keeper","r.io":"keeper"}},
            "auths":{{"r.io":{{"auth":"{}"}},"plain.io":{{"auth":"{}"}}}}}}"#,
        auth("file:p"),
        auth("plain:p"),
    ));
    assert_eq!(home.lookup("r.io"), Some(Credential::password("helped", "p")));
    assert_eq!(home.lookup("docker.io"), Some(Credential::IdentityToken(Secret::new("id"))));
    assert_eq!(home.lookup("plain.io"), Some(Credential::password("plain", "p")));
    assert_eq!(home.lookup("other.io"), None);
    let broken = home.failure("broken.io");
    assert!(broken.contains("`keeper`") && !broken.contains("s3cret"), "{broken}");
    assert!(home.failure("failing.io").contains("the key ring is locked"));
    assert!(home.failure("silent.io").contains("`get` failed: exit status: 3"));
}

#[test]
fn helpers_are_plain_names_in_the_path() {
    let home = Home::new();
    home.write("evil/docker-credential-x", "");
    for (name, why) in [
        ("absent", "not in PATH"),
        ("../evil/x", "must be of letters"),
        ("x y", "must be of letters"),
        ("x;y", "must be"),
    ] {
        home.docker(&format!(r#"{{"credHelpers":{{"r.io":"{name}"}}}}"#));
        let failure = home.failure("r.io");
        assert!(failure.contains(why), "{failure}");
    }
    // A helper that writes without end is stopped.
    home.helper("endless", "exec cat /dev/zero").docker(r#"{"credsStore":"endless"}"#);
    assert!(home.failure("r.io").contains("answered more than"));
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn logging_in_keeps_what_was_proved_and_logging_out_forgets_it() {
    let home = Home::new();
    let (files, own) = (home.files(), home.folder.path().join(".config/rimg/auth.json"));
    let right = format!("Basic {}", auth("me:s3cret"));
    let fake = Fake::start(move |asked| match asked.header("authorization") == right {
        true => Answer::ok("{}"),
        false => Answer::status(401).with("www-authenticate", "Basic"),
    });
    let host = fake.address.to_string().parse().unwrap();

    let wrong = Client::login(options(), &host, Credential::password("me", "wrong"), &files);
    assert!(matches!(wrong, Err(ClientError::Unauthorized { with_credentials: true, .. })), "{wrong:?}");
    assert!(!own.exists());

    home.write(".config/rimg/auth.json", r#"{"auths":{"kept.io":{"auth":"x","email":"e"}},"note":1}"#);
    let login = Client::login(options(), &host, Credential::password("me", "s3cret"), &files).unwrap();
    assert_eq!(login.saved_in, SavedIn::File(own.clone()));
    assert_eq!(mode(&own), 0o600);
    assert_eq!(home.lookup(host.as_str()), Some(Credential::password("me", "s3cret")));
    let text = fs::read_to_string(&own).unwrap();
    assert!(text.contains("kept.io") && text.contains("email") && text.contains("note"), "{text}");

    home.docker(&format!(r#"{{"auths":{{"{host}":{{"auth":"{}"}}}}}}"#, auth("docker:p")));
    let docker = home.folder.path().join(".docker/config.json");
    assert_eq!(Client::logout(&host, &files).unwrap(), (true, vec![docker.clone()]));
    assert_eq!(Client::logout(&host, &files).unwrap(), (false, vec![docker]));
    assert_eq!(home.lookup(host.as_str()), Some(Credential::password("docker", "p")));
    assert!(fs::read_to_string(&own).unwrap().contains("kept.io"));
    assert_eq!(fs::read_dir(own.parent().unwrap()).unwrap().count(), 1, "a temporary file was left");
}

#[test]
fn docker_hub_is_kept_under_the_name_that_everybody_uses() {
    let home = Home::new();
    let files = home.files();
    let hub = "registry-1.docker.io".parse().unwrap();
    files.save(&hub, &Credential::password("me", "p")).unwrap();
    let own = home.folder.path().join(".config/rimg/auth.json");
    assert!(fs::read_to_string(&own).unwrap().contains("\"https://index.docker.io/v1/\""));
    assert_eq!(mode(own.parent().unwrap()), 0o700);
    assert_eq!(home.lookup("docker.io"), Some(Credential::password("me", "p")));
    assert_eq!(files.erase(&"docker.io".parse().unwrap()).unwrap(), (true, vec![]));
    assert_eq!(home.lookup("docker.io"), None);
}

#[test]
fn a_helper_of_our_own_file_keeps_what_login_proved() {
    let home = Home::new();
    home.helper("keeper", KEEPER).write(".config/rimg/auth.json", r#"{"credsStore":"keeper"}"#);
    let saved = home.files().save(&"r.io".parse().unwrap(), &Credential::password("me", "p")).unwrap();
    assert_eq!(saved, SavedIn::Helper("keeper".to_owned()));
    assert!(home.files().erase(&"r.io".parse().unwrap()).unwrap().0);
    let log = fs::read_to_string(home.folder.path().join("bin/log")).unwrap();
    let expected = "store {\"ServerURL\":\"r.io\",\"Username\":\"me\",\"Secret\":\"p\"}\nerase r.io\n";
    assert_eq!(log, expected);
    let own = fs::read_to_string(home.folder.path().join(".config/rimg/auth.json")).unwrap();
    assert!(!own.contains("auths"), "{own}");
}

#[test]
fn without_a_home_nothing_can_be_kept() {
    let files = AuthFiles::from_variables(|_| None);
    assert_eq!(files.lookup(&"r.io".parse().unwrap(), None).credential, None);
    assert!(files.save(&"r.io".parse().unwrap(), &Credential::password("me", "p")).is_err());
}
