//! Who is asking: challenges, tokens, and what must never be sent where.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rimg_formats::reference::Tag;
use rimg_registry::client::{
    Client, ClientError, ClientOptions, Credential, CredentialSource, RemoteRepository, Secret,
};

use crate::download::descriptor;
use crate::fake::{Answer, Asked, Fake, options};

fn with_credential(fake: &Fake, credential: Credential) -> RemoteRepository {
    let host = fake.address.to_string().parse().unwrap();
    let credentials = CredentialSource::Fixed { host, credential };
    Client::new(ClientOptions { credentials, ..options() }).repository(&fake.reference())
}

fn basic() -> String {
    format!("Basic {}", STANDARD.encode("me:s3cret"))
}

fn me() -> Credential {
    Credential::password("me", "s3cret")
}

fn manifest() -> Answer {
    Answer::ok("{}")
}

#[test]
fn basic_is_asked_for_once_and_then_sent_unasked() {
    let fake = Fake::start(|asked| match asked.header("authorization") == basic() {
        true => manifest(),
        false => Answer::status(401).with("www-authenticate", "Basic realm=\"x, y\""),
    });
    let repository = with_credential(&fake, me());
    repository.manifest_by_tag(&Tag::latest()).unwrap();
    repository.manifest_by_tag(&Tag::latest()).unwrap();
    assert_eq!(fake.log().len(), 3);
}

#[test]
fn without_and_with_wrong_credentials_the_hints_differ() {
    let fake = Fake::start(|_| Answer::status(401).with("www-authenticate", "Basic"));
    let anonymous = fake.repository().manifest_by_tag(&Tag::latest()).unwrap_err();
    assert!(matches!(anonymous, ClientError::Unauthorized { with_credentials: false, .. }), "{anonymous}");
    assert!(anonymous.hint().unwrap().contains(&format!("rimg login {}", fake.address)));
    let wrong = with_credential(&fake, me()).manifest_by_tag(&Tag::latest()).unwrap_err();
    assert!(matches!(wrong, ClientError::Unauthorized { with_credentials: true, .. }), "{wrong}");
    assert!(!format!("{wrong:?} {wrong}").contains("s3cret"));
    // One bare request, one with the name, and no more of a password that is not accepted.
    assert_eq!(fake.log().len(), 3);
}

/// A registry and its token server, both at one address. `judge` says which token a token request gets.
fn guarded(
    good: impl Fn(&str) -> bool + Send + Sync + 'static,
    judge: impl Fn(&mut Asked) -> Answer + Send + Sync + 'static,
) -> Fake {
    let address = Arc::new(Mutex::new(String::new()));
    let known = Arc::clone(&address);
    let fake = Fake::start(move |asked| {
        if asked.target.starts_with("/token") {
            return judge(asked);
        }
        if asked.header("authorization").strip_prefix("Bearer ").is_some_and(&good) {
            return manifest();
        }
        let realm = format!("http://{}/token?from=realm", known.lock().unwrap());
        let scope = "repository:app:pull";
        let challenge = format!(r#"Bearer realm="{realm}",service="the registry",scope="{scope}""#);
        Answer::status(401).with("www-authenticate", challenge)
    });
    *address.lock().unwrap() = fake.address.to_string();
    fake
}

#[test]
fn a_token_is_fetched_kept_and_used_for_its_scope() {
    let fake = guarded(
        |token| token == "good",
        |asked| {
            assert_eq!(asked.header("authorization"), basic());
            Answer::ok(r#"{"token":"good","expires_in":3600}"#)
        },
    );
    let repository = with_credential(&fake, me());
    for _ in 0..3 {
        repository.manifest_by_tag(&Tag::latest()).unwrap();
    }
    assert_eq!(
        fake.log()[..3],
        [
            "GET /v2/app/manifests/latest",
            "GET /token?from=realm&service=the+registry&scope=repository%3Aapp%3Apull",
            "GET /v2/app/manifests/latest"
        ]
    );
    assert_eq!(fake.log().len(), 5);
}

#[test]
fn anonymous_tokens_are_tokens() {
    let fake = guarded(
        |token| token == "anyone",
        |asked| {
            assert_eq!(asked.header("authorization"), "");
            Answer::ok(r#"{"access_token":"anyone"}"#)
        },
    );
    fake.repository().manifest_by_tag(&Tag::latest()).unwrap();
}

#[test]
fn a_token_that_is_refused_is_replaced_once() {
    let fetched = Arc::new(AtomicUsize::new(0));
    let (given, accepted) = (Arc::clone(&fetched), Arc::clone(&fetched));
    // Only the newest token is good, and none is any more after the third.
    let fake = guarded(
        move |token| {
            let newest = accepted.load(Ordering::SeqCst);
            newest < 3 && token == format!("t{newest}")
        },
        move |_| Answer::ok(format!(r#"{{"token":"t{}"}}"#, given.fetch_add(1, Ordering::SeqCst) + 1)),
    );
    let repository = fake.repository();
    repository.manifest_by_tag(&Tag::latest()).unwrap();
    assert_eq!(fetched.load(Ordering::SeqCst), 1);
    fetched.fetch_add(1, Ordering::SeqCst);
    // `t1` has ended meanwhile, and `t3` is good for nobody.
    let error = repository.manifest_by_tag(&Tag::latest()).unwrap_err();
    assert!(matches!(error, ClientError::Unauthorized { .. }), "{error}");
    assert_eq!(fetched.load(Ordering::SeqCst), 3);
    assert_eq!(fake.count("GET /v2/"), 4);
}

#[test]
fn identity_tokens_are_exchanged_by_post_and_registry_tokens_sent_as_they_are() {
    let fake = guarded(
        |token| token == "access" || token == "direct",
        |asked| {
            assert_eq!(asked.method, "POST");
            assert_eq!(asked.header("content-type"), "application/x-www-form-urlencoded");
            let form = String::from_utf8(asked.body()).unwrap();
            let expected = "grant_type=refresh_token&client_id=rimg&service=the+registry\
                            &scope=repository%3Aapp%3Apull&refresh_token=id%26token";
            assert_eq!(form, expected);
            Answer::ok(r#"{"access_token":"access","token_type":"Bearer"}"#)
        },
    );
    let identity = Credential::IdentityToken(Secret::new("id&token"));
    with_credential(&fake, identity).manifest_by_tag(&Tag::latest()).unwrap();
    let direct = Credential::RegistryToken(Secret::new("direct"));
    with_credential(&fake, direct).manifest_by_tag(&Tag::latest()).unwrap();
    assert_eq!(fake.count("POST /token"), 1);
}

#[test]
fn a_token_server_that_refuses_speaks_for_the_registry() {
    let fake =
        guarded(|_| false, |_| Answer::status(401).body(r#"{"details":"incorrect username or password"}"#));
    let error = with_credential(&fake, me()).manifest_by_tag(&Tag::latest()).unwrap_err();
    let expected =
        format!("{} denies access to manifest app:latest: incorrect username or password", fake.address);
    assert_eq!(error.to_string(), expected);
}

#[test]
fn token_servers_that_misbehave_are_errors() {
    type Misbehaviour = (fn() -> Answer, &'static str);
    let table: [Misbehaviour; 4] = [
        (|| Answer::ok("{}"), "no token"),
        (|| Answer::ok("nonsense"), "no token"),
        (|| Answer::ok("").claiming(1 << 40), "larger than"),
        (|| Answer::status(302).with("location", "file:///etc/passwd"), "`file:` URL"),
    ];
    for (answer, why) in table {
        let fake = guarded(|_| false, move |_| answer());
        let error = fake.repository().manifest_by_tag(&Tag::latest()).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
}

#[test]
fn realms_that_lead_astray_are_not_asked() {
    for realm in ["file:///etc/shadow", "gopher://127.0.0.1/", "http://u:p@127.0.0.1/", "token", ""] {
        let challenge = format!(r#"Bearer realm="{realm}",service="x""#);
        let fake = Fake::start(move |_| Answer::status(401).with("www-authenticate", &challenge));
        let error = with_credential(&fake, me()).manifest_by_tag(&Tag::latest()).unwrap_err();
        let expected = matches!(&error, ClientError::Protocol { .. } | ClientError::Unauthorized { .. });
        assert!(expected, "{realm}: {error}");
        assert_eq!(fake.log().len(), 1, "{realm}");
    }
}

#[test]
fn mounting_asks_for_both_repositories() {
    let fake = guarded(|_| false, |_| Answer::status(403));
    let repository = fake.repository().mounting_from(|_| vec!["base".parse().unwrap()]);
    assert!(repository.has_blob(&descriptor(b"x")).is_err());
    // The check already needs to push; the mount would need `base` besides.
    let asked = fake.log().into_iter().find(|line| line.contains("/token")).unwrap();
    assert!(asked.contains("repository%3Aapp%3Apull%2Cpush"), "{asked}");
}

#[test]
fn authorization_does_not_follow_a_redirect_to_another_host() {
    let elsewhere = Fake::start(|asked| {
        assert_eq!(asked.header("authorization"), "", "credentials were sent to another host");
        assert_eq!(asked.header("cookie"), "");
        Answer::ok("layer")
    });
    let storage = format!("http://{}/bucket?X-Signature=1", elsewhere.address);
    let fake = Fake::start(move |asked| match asked.header("authorization") == basic() {
        false => Answer::status(401).with("www-authenticate", "Basic"),
        true if asked.target.ends_with("/here") => Answer::ok("layer"),
        true if asked.target.contains("/blobs/") => Answer::status(307).with("location", &storage),
        true => Answer::status(302).with("location", "/v2/here"),
    });
    let repository = with_credential(&fake, me());
    // Within the host it does follow.
    assert_eq!(repository.manifest_by_tag(&Tag::latest()).unwrap().raw, b"layer");
    let mut layer = String::new();
    let mut reader = repository.open_blob(&descriptor(b"layer"), 0).unwrap();
    std::io::Read::read_to_string(&mut reader, &mut layer).unwrap();
    assert_eq!(layer, "layer");
    assert_eq!(elsewhere.log(), ["GET /bucket?X-Signature=1"]);
}

/// A storage server that a download leads to is no part of the registry: it may not name a token server.
#[test]
fn a_challenge_from_another_host_is_not_answered() {
    let astray = Fake::start(|asked| {
        let realm = format!("http://{}/token", asked.header("host"));
        match asked.target.starts_with("/token") {
            true => Answer::ok(r#"{"token":"t"}"#),
            false => Answer::status(401).with("www-authenticate", format!("Bearer realm=\"{realm}\"")),
        }
    });
    let storage = format!("http://{}/bucket", astray.address);
    let fake = Fake::start(move |asked| match asked.header("authorization") == basic() {
        true => Answer::status(307).with("location", &storage),
        false => Answer::status(401).with("www-authenticate", "Basic"),
    });
    let repository = with_credential(&fake, me());
    for _ in 0..2 {
        let error = repository.open_blob(&descriptor(b"layer"), 0).err().unwrap();
        assert!(matches!(error, ClientError::Unauthorized { .. }), "{error}");
    }
    assert_eq!(astray.log(), ["GET /bucket", "GET /bucket"]);
}

#[test]
fn an_identity_token_does_not_follow_a_redirect_to_another_host() {
    let elsewhere = Fake::start(|_| Answer::ok(r#"{"access_token":"access"}"#));
    let location = format!("http://{}/token", elsewhere.address);
    let fake = guarded(|_| false, move |_| Answer::status(307).with("location", &location));
    let identity = Credential::IdentityToken(Secret::new("secret"));
    let error = with_credential(&fake, identity).manifest_by_tag(&Tag::latest()).unwrap_err();
    assert!(error.to_string().contains("redirects a secret"), "{error}");
    assert_eq!(elsewhere.log().len(), 0);
}

#[test]
fn an_upload_to_another_host_goes_without_credentials() {
    let elsewhere = Fake::start(|asked| {
        assert_eq!(asked.header("authorization"), "", "credentials were sent to another host");
        asked.body();
        Answer::status(201)
    });
    let storage = format!("http://{}/upload", elsewhere.address);
    let fake = Fake::start(move |asked| match asked.header("authorization") == basic() {
        true => Answer::status(202).with("location", &storage),
        false => Answer::status(401).with("www-authenticate", "Basic"),
    });
    let repository = with_credential(&fake, me());
    let mut open = |_| -> std::io::Result<Box<dyn std::io::Read + Send>> { Ok(Box::new(&b"layer"[..])) };
    repository.push_blob(&descriptor(b"layer"), &mut open).unwrap();
    assert_eq!(elsewhere.count("PUT /upload?digest=sha256"), 1);
}

#[test]
fn a_redirected_upload_takes_credentials_along_within_the_registry_only() {
    let elsewhere = Fake::start(|asked| {
        assert_eq!(asked.header("authorization"), "", "credentials were sent to another host");
        assert_eq!(asked.body(), b"layer");
        Answer::status(201)
    });
    let storage = format!("http://{}/upload", elsewhere.address);
    let fake =
        Fake::start(move |asked| match (asked.header("authorization") == basic(), asked.method.as_str()) {
            (false, _) => Answer::status(401).with("www-authenticate", "Basic"),
            (true, "POST") => Answer::status(202).with("location", "/u"),
            (true, _) if asked.target.starts_with("/u?") => Answer::status(307).with("location", "/moved"),
            (true, _) => Answer::status(307).with("location", &storage),
        });
    let repository = with_credential(&fake, me());
    let mut open = |_| -> std::io::Result<Box<dyn std::io::Read + Send>> { Ok(Box::new(&b"layer"[..])) };
    repository.push_blob(&descriptor(b"layer"), &mut open).unwrap();
    assert_eq!((fake.count("PUT /u?"), fake.count("PUT /moved"), elsewhere.count("PUT /upload")), (1, 1, 1));
}

#[test]
fn a_401_in_the_middle_of_an_upload_is_answered_with_a_new_token() {
    let fetched = Arc::new(AtomicUsize::new(0));
    let given = Arc::clone(&fetched);
    let address = Arc::new(Mutex::new(String::new()));
    let known = Arc::clone(&address);
    let fake = Fake::start(move |asked| {
        let newest = format!("Bearer t{}", given.load(Ordering::SeqCst));
        let challenge = format!(r#"Bearer realm="http://{}/token""#, known.lock().unwrap());
        match (asked.method.as_str(), asked.header("authorization") == newest) {
            _ if asked.target.starts_with("/token") => {
                Answer::ok(format!(r#"{{"token":"t{}"}}"#, given.fetch_add(1, Ordering::SeqCst) + 1))
            }
            (_, false) => Answer::status(401).with("www-authenticate", challenge),
            ("POST", _) => {
                // The permission ends as soon as it was used.
                given.fetch_add(usize::from(given.load(Ordering::SeqCst) == 1), Ordering::SeqCst);
                Answer::status(202).with("location", "/u")
            }
            ("PUT", _) => Answer::status(201),
            _ => Answer::status(404),
        }
    });
    *address.lock().unwrap() = fake.address.to_string();
    let mut open = |_| -> std::io::Result<Box<dyn std::io::Read + Send>> { Ok(Box::new(&b"layer"[..])) };
    fake.repository().push_blob(&descriptor(b"layer"), &mut open).unwrap();
    assert_eq!(fake.count("PUT"), 2);
}
