//! Manifests, lists and referrers, retries and redirects.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rimg_formats::descriptor::Descriptor;
use rimg_formats::digest::Digest;
use rimg_formats::manifest::{Index, Manifest};
use rimg_formats::media_type::{OCI_CONFIG, OCI_INDEX, OCI_MANIFEST};
use rimg_formats::reference::Tag;
use rimg_registry::client::{Client, ClientError, ClientOptions, NoConnection, PlainHttp};

use crate::fake::{Answer, Fake, options};

const RAW: &[u8] = br#"{"schemaVersion":2}"#;

fn manifest() -> Answer {
    Answer::ok(RAW).with("content-type", format!("{OCI_MANIFEST}; charset=utf-8"))
}

#[test]
fn a_manifest_by_tag_and_by_digest() {
    let digest = Digest::sha256(RAW);
    let fake = Fake::start(move |asked| {
        assert!(asked.header("accept").contains(OCI_MANIFEST), "{:?}", asked.headers);
        assert!(asked.header("user-agent").starts_with("rimg/"));
        manifest().with("docker-content-digest", digest)
    });
    let repository = fake.repository();
    let by_tag = repository.manifest_by_tag(&Tag::latest()).unwrap();
    assert_eq!((&by_tag.raw[..], by_tag.media_type.as_str(), by_tag.digest), (RAW, OCI_MANIFEST, digest));
    assert_eq!(repository.manifest_by_digest(&digest).unwrap(), by_tag);
    assert_eq!(repository.resolve(&Tag::latest()).unwrap(), digest);
    assert_eq!(
        fake.log(),
        [
            "GET /v2/app/manifests/latest".to_owned(),
            format!("GET /v2/app/manifests/{digest}"),
            "HEAD /v2/app/manifests/latest".to_owned()
        ]
    );
}

/// Some servers compress documents although nobody asked them to.
#[test]
fn documents_may_come_compressed() {
    const GZIP: &[u8] = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\x03\xab\x56\x2a\x4e\xce\x48\xcd\x4d\x0c\x4b\x2d\x2a\xce\xcc\xcf\x53\xb2\x32\xaa\x05\x00\xc6\xf8\x27\x72\x13\x00\x00\x00";
    let digest = Digest::sha256(RAW);
    let compressed = Fake::start(move |_| {
        manifest().body(GZIP).with("content-encoding", "gzip").with("docker-content-digest", digest)
    });
    let received = compressed.repository().manifest_by_digest(&digest).unwrap();
    assert_eq!((&received.raw[..], received.digest), (RAW, digest));
    for (body, encoding, expected) in [
        (&GZIP[..10], "gzip", "is not valid"),
        (RAW, "gzip", "is not valid"),
        (RAW, "br", "was not asked for"),
    ] {
        let fake = Fake::start(move |_| manifest().body(body).with("content-encoding", encoding));
        let error = fake.repository().manifest_by_tag(&Tag::latest()).unwrap_err().to_string();
        assert!(error.contains(expected), "{encoding}: {error}");
    }
}

/// A login page of a network, or a web server that answers everything.
#[test]
fn a_web_page_is_neither_a_manifest_nor_a_registry() {
    let fake = Fake::start(|_| Answer::ok("<html>").with("content-type", "text/html; charset=utf-8"));
    let error = fake.repository().manifest_by_tag(&Tag::latest()).unwrap_err().to_string();
    assert!(error.contains("web page"), "{error}");
    let host = fake.address.to_string().parse().unwrap();
    let error = fake.client().verify(&host).unwrap_err().to_string();
    assert!(error.contains("web page"), "{error}");
}

#[test]
fn lies_about_digests_are_found() {
    let fake = Fake::start(|_| manifest().with("docker-content-digest", Digest::sha256(b"other")));
    let error = fake.repository().manifest_by_tag(&Tag::latest()).unwrap_err();
    assert!(matches!(&error, ClientError::Damaged { .. }), "{error}");
    let fake = Fake::start(|_| manifest());
    let error = fake.repository().manifest_by_digest(&Digest::sha256(b"other")).unwrap_err();
    assert!(
        error.to_string().contains("damaged") && error.to_string().contains("expected sha256:"),
        "{error}"
    );
}

#[test]
fn a_giant_manifest_is_refused_by_its_length_and_by_its_bytes() {
    let giant = Fake::start(|_| Answer::ok("").claiming(usize::MAX / 2));
    let error = giant.repository().manifest_by_tag(&Tag::latest()).unwrap_err();
    assert!(matches!(error, ClientError::TooLarge { .. }), "{error}");
    let endless = Fake::start(|_| {
        let mut raw = b"HTTP/1.1 200 OK\r\n\r\n".to_vec();
        raw.resize(5 << 20, b' ');
        Answer::raw(&raw)
    });
    let error = endless.repository().manifest_by_tag(&Tag::latest()).unwrap_err();
    assert!(matches!(error, ClientError::TooLarge { .. }), "{error}");
}

#[test]
fn a_missing_manifest_names_itself_and_the_registrys_words() {
    let fake = Fake::start(|_| {
        Answer::status(404)
            .body("{\"errors\":[{\"code\":\"MANIFEST_UNKNOWN\",\"message\":\"unknown \\u001b[31mtag\"}]}")
    });
    let error = fake.repository().manifest_by_tag(&"1.2".parse().unwrap()).unwrap_err();
    let expected =
        format!("manifest app:1.2 was not found on {}: unknown [31mtag (MANIFEST_UNKNOWN)", fake.address);
    assert_eq!(error.to_string(), expected);
    assert!(error.is_not_found());
    assert_eq!(fake.log().len(), 1);
}

/// Answers with `failures` first, then with the manifest.
fn flaky(failures: Vec<fn() -> Answer>) -> Fake {
    let asked = AtomicUsize::new(0);
    Fake::start(move |_| match failures.get(asked.fetch_add(1, Ordering::SeqCst)) {
        Some(failure) => failure(),
        None => manifest(),
    })
}

#[test]
fn what_may_pass_is_tried_again() {
    type Failures = Vec<fn() -> Answer>;
    let table: [(Failures, bool); 6] = [
        (vec![|| Answer::status(503), || Answer::status(500), || Answer::status(502)], true),
        (vec![|| Answer::status(429).with("retry-after", 0)], true),
        (vec![Answer::hang_up, Answer::hang_up], true),
        (vec![|| manifest().claiming(1000)], false),
        (vec![|| Answer::status(503); 4], false),
        (vec![|| Answer::status(501)], false),
    ];
    for (failures, passes) in table {
        let count = failures.len();
        let fake = flaky(failures);
        let got = fake.repository().manifest_by_tag(&Tag::latest());
        assert_eq!(got.is_ok(), passes, "{got:?}");
        assert_eq!(fake.log().len(), if passes { count + 1 } else { count });
    }
}

#[test]
fn a_long_retry_after_is_for_the_user_to_decide() {
    let fake = Fake::start(|_| Answer::status(429).with("retry-after", 21600).body("pull rate limit"));
    let error = fake.repository().manifest_by_tag(&Tag::latest()).unwrap_err();
    match &error {
        ClientError::TooManyRequests { retry_after, detail, .. } => {
            assert_eq!(
                (*retry_after, detail.as_str()),
                (Some(Duration::from_secs(21600)), "pull rate limit")
            );
        }
        other => panic!("{other}"),
    }
    assert_eq!(fake.log().len(), 1);
}

#[test]
fn redirects_are_followed_but_not_in_circles_and_not_anywhere() {
    let table = [
        ("/v2/app/manifests/here", None),
        ("/v2/app/manifests/latest", Some("redirects more than")),
        ("file:///etc/passwd", Some("`file:` URL")),
        ("ftp://127.0.0.1/x", Some("`ftp:` URL")),
        ("http://user:pw@127.0.0.1/", Some("user name")),
    ];
    for (location, why) in table {
        let fake = Fake::start(move |asked| match asked.target.ends_with("here") {
            true => manifest(),
            false => Answer::status(307).with("location", location),
        });
        match (fake.repository().manifest_by_tag(&Tag::latest()), why) {
            (Ok(_), None) => {}
            (Err(error), Some(why)) => assert!(error.to_string().contains(why), "{location}: {error}"),
            (got, _) => panic!("{location}: {got:?}"),
        }
    }
}

#[test]
fn lists_of_tags_go_page_by_page() {
    let fake = Fake::start(|asked| match asked.target.as_str() {
        "/v2/app/tags/list?n=1000" => Answer::ok(r#"{"name":"app","tags":["b","../x","a"]}"#)
            .with("link", r#"</v2/app/tags/list?n=1000&last=b>; rel="next""#),
        "/v2/app/tags/list?n=1000&last=b" => Answer::ok(r#"{"name":"app","tags":["c"]}"#)
            .with("link", r#"</v2/app/tags/list?n=1000&last=b>; rel="next""#),
        other => panic!("{other}"),
    });
    let tags = fake.repository().tags(5000).unwrap();
    assert_eq!(tags.iter().map(Tag::as_str).collect::<Vec<_>>(), ["a", "b", "c"]);
    let empty = Fake::start(|_| Answer::ok(r#"{"name":"app","tags":null}"#));
    assert!(empty.repository().tags(10).unwrap().is_empty());
    assert_eq!(empty.log(), ["GET /v2/app/tags/list?n=10"]);
}

#[test]
fn the_catalog_is_tamed() {
    let fake = Fake::start(|_| Answer::ok("{\"repositories\":[\"a\",\"b\\u001b[2J\",\"c\"]}"));
    let host = fake.address.to_string().parse().unwrap();
    assert_eq!(fake.client().catalog(&host, 2).unwrap(), ["a", "b[2J"]);
}

#[test]
fn referrers_by_the_interface_and_by_the_tag() {
    let subject = Digest::sha256(b"subject");
    let entry = |artifact_type: &str| {
        let mut entry = Descriptor::new(OCI_MANIFEST, Digest::sha256(artifact_type.as_bytes()), 1);
        entry.artifact_type = Some(artifact_type.to_owned());
        entry
    };
    let index = Index::build(vec![entry("a/sig"), entry("a/sbom")], Default::default()).raw().to_vec();
    for has_interface in [true, false] {
        let index = index.clone();
        let fake = Fake::start(move |asked| {
            let by_interface = asked.target.contains("/referrers/");
            let by_tag = asked.target.ends_with(&format!("sha256-{}", subject.hex()));
            match (by_interface && has_interface) || by_tag {
                true => Answer::ok(index.clone()).with("content-type", OCI_INDEX),
                false => Answer::status(404),
            }
        });
        let repository = fake.repository();
        assert_eq!(repository.referrers(&subject, None).unwrap().len(), 2);
        let signatures = repository.referrers(&subject, Some("a/sig")).unwrap();
        assert_eq!(signatures, [entry("a/sig")]);
    }
    let nothing = Fake::start(|_| Answer::status(404));
    assert!(nothing.repository().referrers(&subject, None).unwrap().is_empty());
}

/// A subject, and a manifest that refers to it.
fn referrer() -> (Descriptor, Vec<u8>) {
    let subject = Descriptor::new(OCI_MANIFEST, Digest::sha256(b"subject"), 7);
    let config = Descriptor::new(OCI_CONFIG, Digest::sha256(b"{}"), 2);
    let mut value: serde_json::Value =
        serde_json::from_slice(Manifest::build(config, vec![], Default::default()).raw()).unwrap();
    value["subject"] = serde_json::to_value(&subject).unwrap();
    (subject, serde_json::to_vec(&value).unwrap())
}

#[test]
fn a_subject_is_filed_by_the_client_when_the_registry_does_not() {
    let (subject, raw) = referrer();
    for filed in [true, false] {
        let put = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&put);
        let fake = Fake::start(move |asked| match asked.method.as_str() {
            "PUT" => {
                let body = asked.body();
                kept.lock().unwrap().push((asked.line(), asked.header("content-type").to_owned(), body));
                let answer = Answer::status(201);
                if filed { answer.with("oci-subject", Digest::sha256(b"subject")) } else { answer }
            }
            _ => Answer::status(404),
        });
        let digest = fake.repository().put_manifest(&raw, OCI_MANIFEST, None).unwrap();
        let put = put.lock().unwrap();
        assert_eq!(put[0], (format!("PUT /v2/app/manifests/{digest}"), OCI_MANIFEST.to_owned(), raw.clone()));
        assert_eq!(put.len(), if filed { 1 } else { 2 });
        if !filed {
            assert_eq!(put[1].0, format!("PUT /v2/app/manifests/sha256-{}", subject.digest.hex()));
            assert!(String::from_utf8_lossy(&put[1].2).contains(&digest.to_string()));
        }
    }
}

#[test]
fn deleting_names_the_version() {
    let fake = Fake::start(|_| Answer::status(202));
    let digest = Digest::sha256(b"x");
    fake.repository().delete_manifest(&digest).unwrap();
    fake.repository().delete_tag(&Tag::latest()).unwrap();
    assert_eq!(
        fake.log(),
        [
            format!("GET /v2/app/manifests/{digest}"),
            format!("DELETE /v2/app/manifests/{digest}"),
            "DELETE /v2/app/manifests/latest".to_owned()
        ]
    );
}

#[test]
fn a_deleted_referrer_leaves_the_list_that_clients_keep() {
    let (subject, raw) = referrer();
    let digest = Digest::sha256(&raw);
    let entry = |digest: Digest| Descriptor::new(OCI_MANIFEST, digest, 1);
    let other = Digest::sha256(b"other");
    let tag = format!("/v2/app/manifests/sha256-{}", subject.digest.hex());
    let full = Index::build(vec![entry(digest), entry(other)], Default::default()).raw().to_vec();
    let without = Index::build(vec![entry(other)], Default::default()).raw().to_vec();
    // What the registry lists by itself, what it has under the tag, and what is put there.
    let table = [
        (true, Some(&full), None),
        (false, Some(&full), Some(&without)),
        (false, Some(&without), None),
        (false, None, None),
    ];
    for (has_interface, listed, expected) in table {
        let put = Arc::new(Mutex::new(None));
        let (kept, raw, tag, listed) = (Arc::clone(&put), raw.clone(), tag.clone(), listed.cloned());
        let fake = Fake::start(move |asked| match asked.method.as_str() {
            "DELETE" => Answer::status(202),
            "PUT" => {
                assert_eq!(asked.target, tag);
                *kept.lock().unwrap() = Some(asked.body());
                Answer::status(201)
            }
            _ if asked.target.ends_with(&digest.to_string()) => {
                Answer::ok(raw.clone()).with("content-type", OCI_MANIFEST)
            }
            _ if asked.target.contains("/referrers/") && has_interface => {
                Answer::ok(r#"{"schemaVersion":2,"manifests":[]}"#).with("content-type", OCI_INDEX)
            }
            _ => match listed.clone().filter(|_| asked.target == tag) {
                Some(listed) => Answer::ok(listed).with("content-type", OCI_INDEX),
                None => Answer::status(404),
            },
        });
        fake.repository().delete_manifest(&digest).unwrap();
        assert_eq!(fake.count(&format!("DELETE /v2/app/manifests/{digest}")), 1);
        assert_eq!(put.lock().unwrap().as_ref(), expected, "{:?}", fake.log());
    }
}

#[test]
fn nobody_listening_is_an_error_that_names_the_host() {
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let reference = format!("{address}/app").parse().unwrap();
    let client = Client::new(options());
    let error = client.repository(&reference).manifest_by_tag(&Tag::latest()).unwrap_err();
    assert!(matches!(error, ClientError::NoConnection { reason: NoConnection::Refused, .. }), "{error}");
    assert_eq!(
        error.to_string(),
        format!("failed to reach {address}: nothing listens there (connection refused)")
    );
    assert!(error.hint().unwrap().contains("rimg serve"));
}

#[test]
fn a_server_that_wants_tls_is_not_spoken_to_without() {
    // A TLS alert, as servers send when they are spoken to in the clear.
    let fake = Fake::saying(b"\x15\x03\x03\x00\x02\x02\x32");
    let error = fake.repository().manifest_by_tag(&Tag::latest()).unwrap_err();
    assert!(matches!(error, ClientError::HttpExpected { tls: false, .. }), "{error}");
    assert!(error.hint().unwrap().contains("--plain-http"));
}

#[test]
fn plain_http_where_tls_is_expected_is_named_as_such() {
    // A certificate folder for the host makes even a registry on this machine one that must speak TLS.
    let folder = tempfile::tempdir().unwrap();
    let fake = Fake::saying(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n");
    std::fs::create_dir(folder.path().join(fake.address.to_string())).unwrap();
    let certificate_folders = vec![folder.path().to_owned()];
    let client =
        Client::new(ClientOptions { plain_http: PlainHttp::Loopback, certificate_folders, ..options() });
    let error = client.repository(&fake.reference()).manifest_by_tag(&Tag::latest()).unwrap_err();
    assert!(matches!(error, ClientError::TlsExpected { .. }), "{error:?}");
    assert!(error.hint().unwrap().contains("--plain-http"));
}

#[test]
fn a_registry_that_never_answers_is_given_up() {
    let fake = Fake::start(|_| {
        loop {
            std::thread::park();
        }
    });
    for plain_http in [PlainHttp::Loopback, PlainHttp::Always] {
        let idle_timeout = Duration::from_millis(20);
        let client = Client::new(ClientOptions { plain_http, idle_timeout, ..options() });
        let error = client.repository(&fake.reference()).manifest_by_tag(&Tag::latest()).unwrap_err();
        assert!(matches!(error, ClientError::Unreachable { .. }), "{error}");
    }
}

#[test]
fn a_registry_on_this_machine_is_asked_in_the_clear_first() {
    let loopback = || ClientOptions { plain_http: PlainHttp::Loopback, ..options() };
    let fake = Fake::start(|_| manifest());
    Client::new(loopback()).repository(&fake.reference()).manifest_by_tag(&Tag::latest()).unwrap();
    assert_eq!(fake.log(), ["GET /v2/", "GET /v2/app/manifests/latest"]);
    // One that wants TLS is then spoken to by TLS: here, the handshake is what arrives next.
    for words in [
        &b"HTTP/1.1 400 X\r\ncontent-length: 28\r\n\r\nsent HTTP to an HTTPS server"[..],
        b"\x15\x03\x01\x00\x02\x02\x0a",
    ] {
        let fake = Fake::start(move |_| Answer::raw(words));
        let error = Client::new(loopback())
            .repository(&fake.reference())
            .manifest_by_tag(&Tag::latest())
            .unwrap_err();
        assert_eq!(fake.count("GET /v2/app"), 0, "{error:?}");
        assert_eq!(fake.count("GET /v2/"), 1, "{error:?}");
    }
}
