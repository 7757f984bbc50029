//! Requests that nobody means well with.

use std::io::{Read, Write};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rimg_formats::digest::Digest;
use rimg_registry::server::{Decision, Event};

use crate::harness::{OCI_MANIFEST, Registry, read_answer};

#[test]
fn the_base() {
    let registry = Registry::start();
    for target in ["/v2", "/v2/"] {
        let answer = registry.get(target);
        assert_eq!(
            (answer.status, answer.header("docker-distribution-api-version")),
            (200, Some("registry/2.0"))
        );
        assert_eq!(registry.head(target).status, 200);
    }
}

#[test]
fn names_digests_and_paths() {
    let registry = Registry::start();
    let digest = Digest::sha256(b"x");
    let long = "a/".repeat(200);
    let cases = [
        ("/".to_owned(), 404),
        ("/v1/".to_owned(), 404),
        ("/v3/a/tags/list".to_owned(), 404),
        ("/v2/a".to_owned(), 404),
        ("/v2//tags/list".to_owned(), 400),
        ("/v2/../../etc/passwd".to_owned(), 404),
        ("/v2/../a/tags/list".to_owned(), 400),
        ("/v2/%2e%2e/%2e%2e/tags/list".to_owned(), 400),
        ("/v2/a%2f..%2fb/tags/list".to_owned(), 400),
        ("/v2/a\\b/tags/list".to_owned(), 400),
        ("/v2/%00/tags/list".to_owned(), 400),
        ("/v2/%ff%fe/tags/list".to_owned(), 404),
        ("/v2/UPPER/tags/list".to_owned(), 400),
        ("/v2/-a/tags/list".to_owned(), 400),
        (format!("/v2/{long}a/tags/list"), 400),
        (format!("/v2/a/blobs/{}", digest.to_string().to_uppercase()), 400),
        ("/v2/a/blobs/sha256:..%2f..%2f..%2fetc%2fpasswd".to_owned(), 400),
        ("/v2/a/blobs/sha256:".to_owned(), 400),
        ("/v2/a/blobs/uploads/../../../metadata.db".to_owned(), 404),
        ("/v2/a/blobs/uploads/..%2fmetadata.db".to_owned(), 400),
        ("/v2/a/blobs/uploads/0".to_owned(), 404),
        (format!("/v2/a/blobs/uploads/{}", "0".repeat(32)), 404),
        ("/v2/a/tags/list?n=1&last=%".to_owned(), 400),
        (format!("/v2/a/tags/list?last={}", "x".repeat(10_000)), 414),
        (format!("/v2/{}/tags/list", "x".repeat(10_000)), 414),
    ];
    for (target, status) in cases {
        let answer = registry.get(&target);
        assert_eq!(answer.status, status, "{target}");
        assert!(!answer.code().is_empty());
    }
}

#[test]
fn methods() {
    let registry = Registry::start();
    let digest = Digest::sha256(b"x");
    let cases = [
        ("POST", "/v2/".to_owned(), "GET, HEAD"),
        ("DELETE", "/v2/_catalog".to_owned(), "GET, HEAD"),
        ("PUT", "/v2/a/tags/list".to_owned(), "GET, HEAD"),
        ("PUT", format!("/v2/a/blobs/{digest}"), "GET, HEAD, DELETE"),
        ("POST", "/v2/a/manifests/v1".to_owned(), "GET, HEAD, PUT, DELETE"),
        ("GET", "/v2/a/blobs/uploads/".to_owned(), "POST"),
        ("POST", format!("/v2/a/blobs/uploads/{}", "0".repeat(32)), "GET, HEAD, PATCH, PUT, DELETE"),
        ("DELETE", format!("/v2/a/referrers/{digest}"), "GET, HEAD"),
        ("TRACE", "/v2/".to_owned(), "GET, HEAD"),
        ("G", "/v2/".to_owned(), "GET, HEAD"),
    ];
    for (method, target, allowed) in cases {
        let answer = registry.send(method, &target, &[], b"some body");
        assert_eq!(answer.refusal(), (405, "UNSUPPORTED".to_owned()), "{method} {target}");
        assert_eq!(answer.header("allow"), Some(allowed));
    }
}

#[test]
fn broken_http() {
    let registry = Registry::start();
    let many_headers = "X-Filler: y\r\n".repeat(300);
    let cases = [
        "nonsense\r\n\r\n".to_owned(),
        "GET /v2/ HTTP/9.9\r\n\r\n".to_owned(),
        "PUT /v2/a/manifests/v1 HTTP/1.1\r\nHost: x.example\r\nContent-Length: -5\r\n\r\n".to_owned(),
        "PUT /v2/a/manifests/v1 HTTP/1.1\r\nHost: x.example\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello"
            .to_owned(),
        "POST /v2/a/blobs/uploads/ HTTP/1.1\r\nHost: x.example\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFF\r\n"
            .to_owned(),
        format!("GET /v2/ HTTP/1.1\r\nHost: x.example\r\n{many_headers}\r\n"),
        format!("GET /v2/ HTTP/1.1\r\nHost: x.example\r\nX-Long: {}\r\n\r\n", "y".repeat(1 << 20)),
    ];
    for case in cases {
        let status = registry.send_raw(case.as_bytes()).status;
        assert!((400..500).contains(&status), "{status} for {:.60}", case);
    }
    assert_eq!(registry.get("/v2/").status, 200);
}

/// A refusal must reach a client that has not finished writing.
#[test]
fn a_refused_body_is_read_far_enough_to_deliver_the_refusal() {
    let registry = Registry::start();
    let body = vec![0; 3 << 20];
    let cases = [
        ("PUT", "/v2/UPPER/manifests/v1", 400),
        ("PATCH", "/v2/a/blobs/uploads/unknown", 404),
        ("PUT", "/v2/a/blobs/uploads/unknown", 400),
        ("POST", "/v2/a/tags/list", 405),
    ];
    for (method, target, status) in cases {
        assert_eq!(registry.send(method, target, &[], &body).status, status, "{method} {target}");
    }
}

/// `Expect: 100-continue` spares a client the body of a request that is refused.
#[test]
fn expectations_are_answered_before_the_body() {
    let registry = Registry::start();
    for (line, refusal) in [
        ("PUT /v2/a/blobs/uploads/unknown?digest=sha256:bad", (400, "DIGEST_INVALID")),
        ("PUT /v2/a/tags/list", (405, "UNSUPPORTED")),
        ("PUT /v2/UPPER/manifests/v1", (400, "NAME_INVALID")),
    ] {
        let head = format!(
            "{line} HTTP/1.1\r\nHost: x.example\r\nExpect: 100-continue\r\nContent-Length: 1000000000\r\n\r\n"
        );
        // Not shut down for writing: whoever waits to be told to go on keeps the connection open.
        let mut stream = registry.connect();
        stream.write_all(head.as_bytes()).unwrap();
        let mut start = [0; 12];
        stream.read_exact(&mut start).unwrap();
        assert_eq!(std::str::from_utf8(&start).unwrap(), format!("HTTP/1.1 {}", refusal.0), "{line}");
        assert_eq!(registry.send_raw(head.as_bytes()).refusal(), (refusal.0, refusal.1.to_owned()), "{line}");
    }
}

#[test]
fn rights_are_asked_before_anything_is_looked_up() {
    let registry = Registry::start_with(|options| {
        options.authorize = Arc::new(|request| match request.authorization {
            Some(value) if value == "Basic good" => Decision::Allow,
            _ => Decision::Authenticate { challenge: "Basic realm=\"rimg\"".to_owned() },
        });
    });
    for target in ["/v2/", "/v2/_catalog", "/v2/a/tags/list", "/v2/a/manifests/v1"] {
        let answer = registry.get(target);
        assert_eq!(answer.refusal(), (401, "UNAUTHORIZED".to_owned()), "{target}");
        assert_eq!(answer.header("www-authenticate"), Some("Basic realm=\"rimg\""));
    }
    assert_eq!(registry.send("GET", "/v2/", &[("Authorization", "Basic good")], b"").status, 200);
}

#[test]
fn requests_are_told_to_the_observer() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = seen.clone();
    let registry = Registry::start_with(move |options| {
        options.observer = Some(Arc::new(move |event| log.lock().unwrap().push(event)));
    });
    registry.get("/v2/a/tags/list?n=1");
    let seen = seen.lock().unwrap();
    let Event::Request { method, target, status, .. } = &seen[0] else { panic!("{seen:?}") };
    assert_eq!((method.as_str(), target.as_str(), *status), ("GET", "/v2/a/tags/list?n=1", 404));
}

/// A client that stops writing in the middle is told so; one that never says anything is cut off.
#[test]
fn silence_ends_a_request() {
    let registry = Registry::start_with(|options| {
        options.limits.body_idle = Duration::from_millis(200);
        options.limits.head = Duration::from_millis(200);
    });
    let location = registry.open_upload("a");
    let mut stream = registry.connect();
    let head = format!("PATCH {location} HTTP/1.1\r\nHost: x.example\r\nContent-Length: 100\r\n\r\nhalf");
    stream.write_all(head.as_bytes()).unwrap();
    assert_eq!(read_answer(&mut stream, "PATCH").status, 408);
    assert_eq!(registry.get(&location).header("range"), Some("0-3"));
    for beginning in ["", "GET /v2/ HT"] {
        let mut stream = registry.connect();
        stream.write_all(beginning.as_bytes()).unwrap();
        let mut rest = Vec::new();
        // The end of the stream, or a reset: either way the server has let go.
        let _ = stream.read_to_end(&mut rest);
    }
}

/// Manifests that never end must not fill the memory: only so many may grow large at once.
#[test]
fn large_documents_at_once_are_bounded() {
    let registry = Registry::start();
    let mut endless = Vec::new();
    for _ in 0..32 {
        let mut stream = registry.connect();
        stream
            .write_all(
                b"PUT /v2/a/manifests/v1 HTTP/1.1\r\nHost: x.example\r\nContent-Length: 100001\r\n\r\n",
            )
            .unwrap();
        stream.write_all(&[b' '; 100_000]).unwrap();
        endless.push(stream);
    }
    let large = [b' '; 100_000];
    let until = |expected: u16| {
        // Far beyond what a busy machine needs.
        let end = Instant::now() + Duration::from_secs(60);
        while Instant::now() < end {
            if registry.put_manifest("a", "v1", OCI_MANIFEST, &large).status == expected {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("never answered {expected}");
    };
    until(429);
    assert_eq!(registry.put_manifest("a", "v1", OCI_MANIFEST, b"small").status, 400);
    registry.push_image("a", "v1");
    drop(endless);
    until(400);
}

#[test]
fn warnings_are_on_every_answer() {
    let registry = Registry::start_with(|options| options.warnings = vec!["closes \"soon\"".to_owned()]);
    for target in ["/v2/", "/v2/a/tags/list"] {
        assert_eq!(registry.get(target).header("warning"), Some("299 - \"closes \\\"soon\\\"\""));
    }
}

#[test]
fn pages_of_other_sites_change_nothing() {
    let registry = Registry::start();
    for (origin, status) in [("http://evil.example", 403), ("null", 403), ("http://registry.example", 202)] {
        let answer = registry.send("POST", "/v2/a/blobs/uploads/", &[("Origin", origin)], b"");
        assert_eq!(answer.status, status, "{origin}");
    }
    assert_eq!(registry.send("GET", "/v2/", &[("Origin", "http://evil.example")], b"").status, 200);
}

/// Each pause is shorter than what silence may last: without a least speed this upload would never end.
#[test]
fn a_trickle_ends_a_request() {
    let registry = Registry::start_with(|options| options.limits.body_idle = Duration::from_millis(400));
    let location = registry.open_upload("a");
    let mut stream = registry.connect();
    let head = format!("PATCH {location} HTTP/1.1\r\nHost: x.example\r\nContent-Length: 100000\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    let mut sent = 0;
    stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    while stream.peek(&mut [0]).is_err() {
        stream.write_all(b"x").unwrap();
        sent += 1;
        assert!(sent < 50, "a byte now and then is borne for ever");
    }
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    assert_eq!(read_answer(&mut stream, "PATCH").status, 408);
}

/// DNS rebinding: the page's own name leads here, so the browser takes it all for the page's own site.
#[test]
fn a_page_whose_name_leads_here_reads_and_writes_nothing() {
    let registry = Registry::start_with(|options| options.names.clear());
    let ask = |method: &str, host: &str| {
        let origin = if method == "GET" { String::new() } else { format!("Origin: http://{host}\r\n") };
        let target = if method == "GET" { "/v2/_catalog" } else { "/v2/a/blobs/uploads/" };
        let head = format!("{method} {target} HTTP/1.1\r\nHost: {host}\r\n{origin}Content-Length: 0\r\n\r\n");
        let mut stream = registry.connect();
        stream.write_all(head.as_bytes()).unwrap();
        read_answer(&mut stream, method)
    };
    for method in ["GET", "POST"] {
        assert_eq!(ask(method, "evil.example:5000").refusal(), (421, "DENIED".to_owned()), "{method}");
    }
    for host in ["127.0.0.1:5000", "localhost:5000", "[::1]:5000"] {
        assert_eq!((ask("GET", host).status, ask("POST", host).status), (200, 202), "{host}");
    }
}
