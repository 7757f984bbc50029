//! End-2 and end-10: reading blobs whole and in part, and taking them away.

use rimg_formats::digest::Digest;

use crate::harness::{ALGORITHMS, Registry, noise};

#[test]
fn a_blob_comes_back_as_it_went_in() {
    let registry = Registry::start();
    for algorithm in ALGORITHMS {
        for (seed, length) in [0, 1, 100_000, 3 << 20].into_iter().enumerate() {
            let content = noise(length, seed as u64);
            let digest = registry.push_with("a/b", &content, algorithm);
            let target = format!("/v2/a/b/blobs/{digest}");
            let answer = registry.get(&target);
            assert_eq!(answer.status, 200);
            assert!(answer.body == content, "{length} bytes by {algorithm}");
            for answer in [answer, registry.head(&target)] {
                assert_eq!(answer.status, 200);
                assert_eq!(answer.header("content-length"), Some(length.to_string().as_str()));
                assert_eq!(answer.header("docker-content-digest"), Some(digest.to_string().as_str()));
                assert_eq!(answer.header("content-type"), Some("application/octet-stream"));
                assert_eq!(answer.header("accept-ranges"), Some("bytes"));
                assert_eq!(answer.header("etag"), Some(format!("\"{digest}\"").as_str()));
                assert_eq!(answer.header("docker-distribution-api-version"), Some("registry/2.0"));
            }
        }
    }
}

#[test]
fn ranges() {
    let registry = Registry::start();
    let content = noise(2048, 1);
    let digest = registry.push("a", &content);
    let target = format!("/v2/a/blobs/{digest}");
    let cases: [(&str, Option<(usize, usize)>); 8] = [
        ("bytes=500-1499", Some((500, 1500))),
        ("bytes=500-", Some((500, 2048))),
        ("bytes=-500", Some((1548, 2048))),
        ("bytes=2000-5000", Some((2000, 2048))),
        ("bytes=0-0", Some((0, 1))),
        ("bytes=500-0", None),
        ("bytes=5000-10000", None),
        ("bytes=2048-", None),
    ];
    for (range, expected) in cases {
        let answer = registry.send("GET", &target, &[("Range", range)], b"");
        match expected {
            Some((start, end)) => {
                assert_eq!(answer.status, 206, "{range}");
                assert_eq!(answer.body, content[start..end], "{range}");
                let content_range = format!("bytes {start}-{}/2048", end - 1);
                assert_eq!(answer.header("content-range"), Some(content_range.as_str()));
                assert_eq!(answer.header("content-length"), Some((end - start).to_string().as_str()));
            }
            None => {
                assert_eq!(answer.status, 416, "{range}");
                assert_eq!(answer.header("content-range"), Some("bytes */2048"));
            }
        }
    }
    for range in ["bytes=x-y", "lines=1-2", "bytes=0-,0-,0-"] {
        let answer = registry.send("GET", &target, &[("Range", range)], b"");
        assert_eq!((answer.status, answer.body.len()), (200, 2048), "{range}");
    }
    let head = registry.send("HEAD", &target, &[("Range", "bytes=0-1")], b"");
    assert_eq!((head.status, head.header("content-length")), (200, Some("2048")));
}

#[test]
fn several_ranges_come_as_one_multipart_body() {
    let registry = Registry::start();
    let content = noise(1 << 20, 1);
    let digest = registry.push("a", &content);
    let target = format!("/v2/a/blobs/{digest}");
    let answer = registry.send("GET", &target, &[("Range", "bytes=0-9,1000-600999,-5")], b"");
    assert_eq!(answer.status, 206);
    let content_type = answer.header("content-type").unwrap();
    let boundary = content_type.strip_prefix("multipart/byteranges; boundary=").unwrap();
    let mut expected = Vec::new();
    let end = content.len();
    for (start, end) in [(0, 10), (1000, 601_000), (end - 5, end)] {
        let head = format!(
            "\r\n--{boundary}\r\nContent-Type: application/octet-stream\r\nContent-Range: bytes {start}-{}/{}\r\n\r\n",
            end - 1,
            content.len()
        );
        expected.extend_from_slice(head.as_bytes());
        expected.extend_from_slice(&content[start..end]);
    }
    expected.extend_from_slice(format!("\r\n--{boundary}--\r\n").as_bytes());
    assert!(answer.body == expected);
}

#[test]
fn what_a_client_has_is_not_sent_again() {
    let registry = Registry::start();
    let digest = registry.push("a", b"content");
    let target = format!("/v2/a/blobs/{digest}");
    let etag = format!("\"{digest}\"");
    let answer = registry.send("GET", &target, &[("If-None-Match", &etag)], b"");
    assert_eq!((answer.status, answer.body.len()), (304, 0));
    // It would be the length of the blob, if anything (RFC 9110 §8.6).
    assert_eq!(answer.header("content-length"), None);
    assert_eq!(answer.header("etag"), Some(etag.as_str()));
    let answer = registry.send("GET", &target, &[("If-Range", &etag), ("Range", "bytes=0-0")], b"");
    assert_eq!(answer.status, 206);
    let answer = registry.send("GET", &target, &[("If-Range", "\"other\""), ("Range", "bytes=0-0")], b"");
    assert_eq!(answer.status, 200);
}

#[test]
fn repositories_do_not_see_each_others_blobs() {
    let registry = Registry::start();
    let digest = registry.push("a", b"secret");
    let refused = registry.get(&format!("/v2/b/blobs/{digest}")).refusal();
    assert_eq!(refused, (404, "BLOB_UNKNOWN".to_owned()));
    assert_eq!(registry.head(&format!("/v2/b/blobs/{digest}")).status, 404);
}

#[test]
fn a_deleted_blob_is_gone_from_its_repository_alone() {
    let registry = Registry::start();
    let digest = registry.push("a", b"content");
    registry.push("b", b"content");
    assert_eq!(registry.delete(&format!("/v2/a/blobs/{digest}")).status, 202);
    assert_eq!(registry.head(&format!("/v2/a/blobs/{digest}")).status, 404);
    assert_eq!(registry.delete(&format!("/v2/a/blobs/{digest}")).status, 404);
    assert_eq!(registry.head(&format!("/v2/b/blobs/{digest}")).status, 200);
}

/// The state that a power cut leaves behind on registries that do not fsync, and bits that rot.
#[test]
fn damaged_blobs_are_never_served_and_heal_with_the_next_push() {
    let registry = Registry::start();
    let content = noise(50_000, 1);
    let damages: [fn(&mut Vec<u8>); 3] = [Vec::clear, |bytes| bytes.truncate(100), |bytes| bytes[5] ^= 1];
    for (number, damage) in damages.into_iter().enumerate() {
        let digest = registry.push("a", &content);
        let target = format!("/v2/a/blobs/{digest}");
        let mut bytes = content.clone();
        damage(&mut bytes);
        let path = registry.blob_path(&digest);
        // Blobs are read-only; damage comes from below.
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(registry.get(&target).refusal(), (404, "BLOB_UNKNOWN".to_owned()), "damage {number}");
        assert_eq!(registry.head(&target).status, 404, "damage {number}");
        assert_eq!(registry.push("a", &content), digest);
        assert!(registry.get(&target).body == content, "damage {number}");
    }
}

/// A file that shrinks while it is sent: the client must see a short body, not a filled-up one.
#[test]
fn a_read_that_fails_midway_breaks_the_connection_off() {
    let registry = Registry::start();
    let content = noise(64 << 20, 1);
    let digest = registry.push("a", &content);
    let mut stream = registry.connect();
    use std::io::Write;
    write!(stream, "GET /v2/a/blobs/{digest} HTTP/1.1\r\nHost: x.example\r\nConnection: close\r\n\r\n")
        .unwrap();
    // The first bytes prove that the file was whole when it was opened; buffers hold far less than the rest.
    let mut first = [0; 1];
    std::io::Read::read_exact(&mut stream, &mut first).unwrap();
    let path = registry.blob_path(&digest);
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(1 << 20).unwrap();
    let mut rest = Vec::new();
    let _ = std::io::Read::read_to_end(&mut stream, &mut rest);
    assert!(rest.len() < content.len(), "{} bytes", rest.len());
}

#[test]
fn an_unknown_blob() {
    let registry = Registry::start();
    let digest = Digest::sha256(b"nobody pushed this");
    assert_eq!(registry.get(&format!("/v2/a/blobs/{digest}")).refusal(), (404, "BLOB_UNKNOWN".to_owned()));
    assert_eq!(registry.delete(&format!("/v2/a/blobs/{digest}")).status, 404);
}
