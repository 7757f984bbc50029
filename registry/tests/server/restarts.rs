//! What a server owes its clients over its own end.

use std::io::Write;
use std::time::Duration;

use rimg_formats::digest::Digest;

use crate::harness::{Registry, noise};
use crate::uploads::{wait_for_length, wait_for_progress};

#[test]
fn an_upload_goes_on_after_a_restart() {
    let mut registry = Registry::start();
    let content = noise(600_000, 1);
    let location = registry.open_upload("a");
    assert_eq!(registry.send("PATCH", &location, &[], &content[..250_000]).status, 202);
    registry.restart();
    let status = registry.get(&location);
    assert_eq!((status.status, status.header("range")), (204, Some("0-249999")));
    let answer =
        registry.send("PATCH", &location, &[("Content-Range", "250000-599999")], &content[250_000..]);
    assert_eq!(answer.status, 202);
    let digest = Digest::sha256(&content);
    assert_eq!(registry.send("PUT", &format!("{location}?digest={digest}"), &[], b"").status, 201);
    registry.restart();
    assert!(registry.get(&format!("/v2/a/blobs/{digest}")).body == content);
}

/// The server ends while a body is on its way: it waits as long as it was told, cuts off, and keeps the bytes.
#[test]
fn a_shutdown_keeps_what_has_arrived() {
    let mut registry = Registry::start_with(|options| options.limits.shutdown = Duration::from_millis(50));
    let content = noise(300_000, 1);
    let location = registry.open_upload("a");
    let mut stream = registry.connect();
    let head = format!("PATCH {location} HTTP/1.1\r\nHost: x.example\r\nContent-Length: 300000\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(&content[..200_000]).unwrap();
    wait_for_progress(&registry, &location);
    registry.restart();
    let range = registry.get(&location).header("range").unwrap().to_owned();
    let kept: usize = range.strip_prefix("0-").unwrap().parse::<usize>().unwrap() + 1;
    assert!(kept <= 200_000);
    let range = format!("{kept}-299999");
    let answer = registry.send("PATCH", &location, &[("Content-Range", &range)], &content[kept..]);
    assert_eq!(answer.status, 202);
    wait_for_length(&registry, &location, 300_000);
    let digest = Digest::sha256(&content);
    assert_eq!(registry.send("PUT", &format!("{location}?digest={digest}"), &[], b"").status, 201);
}

/// Clients that neither read nor send hold nothing up.
#[test]
fn a_shutdown_does_not_wait_for_stalled_clients() {
    let limits = rimg_registry::server::Limits::default();
    assert!(limits.shutdown * 3 / 2 < Duration::from_secs(10), "`docker stop` kills then");
    let mut registry = Registry::start_with(|options| options.limits.shutdown = Duration::from_millis(200));
    let digest = registry.push("a", &noise(32 << 20, 1));
    let _streams: Vec<_> = (0..8)
        .map(|_| {
            let mut stream = registry.connect();
            let head = format!("GET /v2/a/blobs/{digest} HTTP/1.1\r\nHost: x.example\r\n\r\n");
            stream.write_all(head.as_bytes()).unwrap();
            stream
        })
        .collect();
    std::thread::sleep(Duration::from_millis(200));
    let started = std::time::Instant::now();
    registry.stop();
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
}

#[test]
fn abandoned_uploads_are_swept_when_a_server_starts() {
    let mut registry = Registry::start_with(|options| options.limits.session_idle = Duration::ZERO);
    let location = registry.open_upload("a");
    // Idle times are counted in whole seconds.
    std::thread::sleep(Duration::from_millis(1100));
    registry.restart();
    for _ in 0..2000 {
        if registry.get(&location).status == 404 {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("the upload is still there");
}

#[test]
fn manifests_and_tags_survive() {
    let mut registry = Registry::start();
    let raw = registry.push_image("a", "v1");
    registry.restart();
    assert_eq!(registry.get("/v2/a/manifests/v1").body, raw);
}
