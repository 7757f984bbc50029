//! End-4, 5, 6, 11, 13 and 14: every way to push a blob, and the ways it can go wrong.

use std::io::Write;
use std::sync::Barrier;

use rimg_formats::digest::Digest;
use rimg_formats::store::prune::PruneOptions;
use rimg_registry::server::{Decision, ServerOptions};

use crate::harness::{ALGORITHMS, Answer, OCI_MANIFEST, Registry, noise, read_answer};

fn assert_created(registry: &Registry, answer: &Answer, digest: &Digest, content: &[u8]) {
    assert_eq!(answer.status, 201, "{answer:?}");
    assert_eq!(answer.header("docker-content-digest"), Some(digest.to_string().as_str()));
    let location = answer.header("location").unwrap();
    assert!(location.starts_with("/v2/"), "{location}");
    assert!(registry.get(location).body == content);
}

#[test]
fn in_a_single_post() {
    let registry = Registry::start();
    for algorithm in ALGORITHMS {
        let content = noise(300_000, 1);
        let digest = Digest::of(algorithm, &content);
        let target = format!("/v2/a/blobs/uploads/?digest={digest}");
        assert_created(&registry, &registry.send("POST", &target, &[], &content), &digest, &content);
    }
    let empty = Digest::sha256(b"");
    let target = format!("/v2/a/blobs/uploads/?digest={empty}");
    assert_created(&registry, &registry.send("POST", &target, &[], b""), &empty, b"");
    assert!(registry.store().uploads().unwrap().is_empty());
}

#[test]
fn a_post_that_names_a_digest_and_brings_nothing_opens_a_session() {
    let registry = Registry::start();
    let digest = Digest::sha256(b"later");
    let answer = registry.send("POST", &format!("/v2/a/blobs/uploads/?digest={digest}"), &[], b"");
    assert_eq!(answer.status, 202);
    let target = format!("{}?digest={digest}", answer.header("location").unwrap());
    assert_created(&registry, &registry.send("PUT", &target, &[], b"later"), &digest, b"later");
}

#[test]
fn in_a_post_and_a_put() {
    let registry = Registry::start();
    for slash in ["", "/"] {
        let answer = registry.send("POST", &format!("/v2/a/blobs/uploads{slash}"), &[], b"");
        assert_eq!(answer.status, 202);
        assert_eq!(answer.header("range"), Some("0-0"));
        let location = answer.header("location").unwrap();
        assert!(location.ends_with(answer.header("docker-upload-uuid").unwrap()));
        let digest = Digest::sha256(b"content");
        let target = format!("{location}?digest={}", digest.to_string().replace(':', "%3A"));
        assert_created(&registry, &registry.send("PUT", &target, &[], b"content"), &digest, b"content");
        assert_eq!(registry.get(location).refusal(), (404, "BLOB_UPLOAD_UNKNOWN".to_owned()));
    }
    assert!(registry.store().uploads().unwrap().is_empty());
}

/// docker and podman: one streamed PATCH without `Content-Range` or length, then an empty PUT.
#[test]
fn streamed() {
    let registry = Registry::start();
    let content = noise(700_000, 1);
    for algorithm in ALGORITHMS {
        let digest = Digest::of(algorithm, &content);
        let location = registry.open_upload("a");
        let parts: Vec<&[u8]> = content.chunks(70_001).collect();
        let answer = registry.send_chunked("PATCH", &location, &parts);
        assert_eq!((answer.status, answer.header("range")), (202, Some("0-699999")));
        let answer = registry.send("PUT", &format!("{location}?digest={digest}"), &[], b"");
        assert_created(&registry, &answer, &digest, &content);
    }
}

#[test]
fn in_chunks_with_the_last_one_in_the_put_or_not() {
    let registry = Registry::start();
    let content = noise(30_000, 1);
    for algorithm in ALGORITHMS {
        for last_in_put in [false, true] {
            let digest = Digest::of(algorithm, &content);
            let target = format!("/v2/a/blobs/uploads/?digest-algorithm={algorithm}");
            let answer = registry.send("POST", &target, &[], b"");
            let location = answer.header("location").unwrap().to_owned();
            let ends = if last_in_put { vec![10_000, 20_000] } else { vec![10_000, 20_000, 30_000] };
            let mut start = 0;
            for end in ends {
                let range = format!("{start}-{}", end - 1);
                let answer =
                    registry.send("PATCH", &location, &[("Content-Range", &range)], &content[start..end]);
                assert_eq!(
                    (answer.status, answer.header("range")),
                    (202, Some(format!("0-{}", end - 1).as_str()))
                );
                start = end;
            }
            let range = format!("{start}-{}", content.len().max(start + 1) - 1);
            let headers = [("Content-Range", range.as_str())];
            let headers = if last_in_put { &headers[..] } else { &[] };
            let answer =
                registry.send("PUT", &format!("{location}?digest={digest}"), headers, &content[start..]);
            assert_created(&registry, &answer, &digest, &content);
        }
    }
}

#[test]
fn a_chunk_out_of_order_changes_nothing_and_says_where_to_go_on() {
    let registry = Registry::start();
    let location = registry.open_upload("a");
    let digest = Digest::sha256(b"0123456789");
    let put = format!("{location}?digest={digest}");
    let refuse = |method: &str, target: &str, range: &str, body: &[u8], so_far: &str| {
        let answer = registry.send(method, target, &[("Content-Range", range)], body);
        assert_eq!(answer.refusal(), (416, "BLOB_UPLOAD_INVALID".to_owned()), "{method} {range}");
        assert_eq!(answer.header("range"), Some(so_far));
        assert_eq!(answer.header("location"), Some(location.as_str()));
        let status = registry.get(&location);
        assert_eq!((status.status, status.header("range")), (204, Some(so_far)));
        assert_eq!(status.header("location"), Some(location.as_str()));
    };
    refuse("PATCH", &location, "5-9", b"56789", "0-0");
    refuse("PUT", &put, "5-9", b"56789", "0-0");
    assert_eq!(registry.send("PATCH", &location, &[("Content-Range", "0-4")], b"01234").status, 202);
    refuse("PATCH", &location, "0-4", b"01234", "0-4");
    refuse("PATCH", &location, "6-9", b"6789", "0-4");
    refuse("PUT", &put, "0-4", b"01234", "0-4");
    let answer = registry.send("PUT", &put, &[("Content-Range", "5-9")], b"56789");
    assert_created(&registry, &answer, &digest, b"0123456789");
}

#[test]
fn a_chunk_must_be_as_long_as_it_says() {
    let registry = Registry::start();
    let location = registry.open_upload("a");
    let cases = [
        ("0-9", 400, "SIZE_INVALID"),
        ("0-3", 400, "SIZE_INVALID"),
        ("bytes 0-4/*", 400, "BLOB_UPLOAD_INVALID"),
        ("4-0", 400, "BLOB_UPLOAD_INVALID"),
        ("zero-4", 400, "BLOB_UPLOAD_INVALID"),
        ("0-18446744073709551615", 400, "BLOB_UPLOAD_INVALID"),
    ];
    for (range, status, code) in cases {
        let answer = registry.send("PATCH", &location, &[("Content-Range", range)], b"01234");
        assert_eq!(answer.refusal(), (status, code.to_owned()), "{range}");
    }
    assert_eq!(registry.get(&location).header("range"), Some("0-0"));
    let answer = registry.send("PATCH", &location, &[("Content-Range", "0-4")], b"01234");
    assert_eq!(answer.status, 202);
}

#[test]
fn wrong_digests_are_refused_whichever_way_they_come() {
    let registry = Registry::start();
    for algorithm in ALGORITHMS {
        let digest = Digest::of(algorithm, b"announced");
        let invalid = (400, "DIGEST_INVALID".to_owned());
        let post = registry.send("POST", &format!("/v2/a/blobs/uploads/?digest={digest}"), &[], b"sent");
        assert_eq!(post.refusal(), invalid);
        let location = registry.open_upload("a");
        let put = format!("{location}?digest={digest}");
        assert_eq!(registry.send("PUT", &put, &[], b"sent").refusal(), invalid);
        let location = registry.open_upload("a");
        let put = format!("{location}?digest={digest}");
        assert_eq!(registry.send("PATCH", &location, &[], b"sent").status, 202);
        assert_eq!(registry.send("PUT", &put, &[], b"").refusal(), invalid);
        assert_eq!(registry.head(&format!("/v2/a/blobs/{digest}")).status, 404);
    }
    assert!(registry.store().uploads().unwrap().is_empty());
    let location = registry.open_upload("a");
    for query in ["", "?digest=", "?digest=sha256:abc", "?digest=md5:d41d8cd98f00b204e9800998ecf8427e"] {
        let answer = registry.send("PUT", &format!("{location}{query}"), &[], b"x");
        assert_eq!(answer.refusal(), (400, "DIGEST_INVALID".to_owned()), "{query}");
    }
    let answer = registry.send("POST", "/v2/a/blobs/uploads/?digest-algorithm=crc32", &[], b"");
    assert_eq!(answer.status, 400);
}

/// A push in two requests of what another repository has: there is nothing left of it beside the blob.
#[test]
fn a_blob_that_is_there_already_leaves_no_second_copy() {
    let registry = Registry::start();
    let content = noise(300_000, 1);
    for name in ["a", "b", "b"] {
        let digest = registry.push(name, &content);
        let uploads = registry.blob_path(&digest).ancestors().nth(3).unwrap().join("uploads");
        assert_eq!(std::fs::read_dir(uploads).unwrap().count(), 0, "{name}");
    }
}

#[test]
fn a_cancelled_upload_is_gone() {
    let registry = Registry::start();
    let location = registry.open_upload("a");
    assert_eq!(registry.send("PATCH", &location, &[], b"some").status, 202);
    let cancelled = registry.delete(&location);
    // An answer without content has no length either (RFC 9110 §8.6).
    assert_eq!((cancelled.status, cancelled.header("content-length")), (204, None));
    for method in ["GET", "PATCH", "DELETE"] {
        let answer = registry.send(method, &location, &[], b"");
        assert_eq!(answer.refusal(), (404, "BLOB_UPLOAD_UNKNOWN".to_owned()), "{method}");
    }
    assert!(registry.store().uploads().unwrap().is_empty());
}

#[test]
fn an_upload_belongs_to_its_repository() {
    let registry = Registry::start();
    let location = registry.open_upload("a");
    let elsewhere = location.replace("/v2/a/", "/v2/b/");
    for method in ["GET", "PATCH", "PUT", "DELETE"] {
        let answer =
            registry.send(method, &format!("{elsewhere}?digest={}", Digest::sha256(b"x")), &[], b"x");
        assert_eq!(answer.refusal(), (404, "BLOB_UPLOAD_UNKNOWN".to_owned()), "{method}");
    }
    assert_eq!(registry.get(&location).header("range"), Some("0-0"));
}

#[test]
fn mounting() {
    let registry = Registry::start();
    for algorithm in ALGORITHMS {
        let content = noise(1000, 1);
        let digest = registry.push_with("source", &content, algorithm);
        let target = format!("/v2/target/blobs/uploads/?mount={digest}&from=source");
        assert_created(&registry, &registry.send("POST", &target, &[], b""), &digest, &content);
        let target = format!("/v2/anonymous/blobs/uploads/?mount={digest}");
        assert_created(&registry, &registry.send("POST", &target, &[], b""), &digest, &content);
    }
    let unknown = Digest::sha256(b"nowhere");
    for query in [format!("mount={unknown}&from=source"), format!("mount={unknown}")] {
        let answer = registry.send("POST", &format!("/v2/target/blobs/uploads/?{query}"), &[], b"");
        assert_eq!(answer.status, 202, "{query}");
        let put = format!("{}?digest={unknown}", answer.header("location").unwrap());
        assert_created(&registry, &registry.send("PUT", &put, &[], b"nowhere"), &unknown, b"nowhere");
        registry.delete(&format!("/v2/target/blobs/{unknown}"));
    }
    let broken = registry.send("POST", "/v2/target/blobs/uploads/?mount=sha256:zz&from=source", &[], b"");
    assert_eq!(broken.refusal(), (400, "DIGEST_INVALID".to_owned()));
}

/// A mount must not read what its caller may not: neither by name nor by digest alone.
#[test]
fn mounting_needs_the_right_to_read_the_source() {
    let registry = Registry::start_with(|options| {
        options.authorize = std::sync::Arc::new(|request| {
            let private = request.repository.is_some_and(|name| name.as_str() == "private");
            let owner = request.authorization.is_some_and(|value| value == "Basic owner");
            if private && !owner {
                Decision::Deny { message: "not yours".to_owned() }
            } else {
                Decision::Allow
            }
        });
    });
    let owner = [("Authorization", "Basic owner")];
    let digest = Digest::sha256(b"secret");
    let target = format!("/v2/private/blobs/uploads/?digest={digest}");
    assert_eq!(registry.send("POST", &target, &[], b"secret").refusal(), (403, "DENIED".to_owned()));
    assert_eq!(registry.send("POST", &target, &owner, b"secret").status, 201);
    for query in [format!("mount={digest}&from=private"), format!("mount={digest}")] {
        let target = format!("/v2/public/blobs/uploads/?{query}");
        assert_eq!(registry.send("POST", &target, &[], b"").status, 202, "{query}");
    }
    assert_eq!(registry.head(&format!("/v2/public/blobs/{digest}")).status, 404);
    let target = format!("/v2/public/blobs/uploads/?mount={digest}&from=private");
    assert_eq!(registry.send("POST", &target, &owner, b"").status, 201);
}

#[test]
fn anonymous_mounts_can_be_switched_off() {
    let registry = Registry::start_with(|options: &mut ServerOptions| options.allow_anonymous_mount = false);
    let digest = registry.push("source", b"content");
    let target = format!("/v2/target/blobs/uploads/?mount={digest}");
    assert_eq!(registry.send("POST", &target, &[], b"").status, 202);
}

#[test]
fn the_size_of_a_blob_is_bounded() {
    let registry = Registry::start_with(|options| options.limits.blob_bytes = 1000);
    let content = noise(1001, 1);
    let digest = Digest::sha256(&content);
    let too_large = (413, "SIZE_INVALID".to_owned());
    let post = registry.send("POST", &format!("/v2/a/blobs/uploads/?digest={digest}"), &[], &content);
    assert_eq!(post.refusal(), too_large);
    let location = registry.open_upload("a");
    assert_eq!(registry.send("PATCH", &location, &[], &content).refusal(), too_large);
    assert_eq!(registry.get(&location).header("range"), Some("0-0"));
    let chunked = registry.send_chunked("PATCH", &location, &[&content[..600], &content[600..]]);
    assert_eq!(chunked.refusal(), too_large);
    assert_eq!(registry.get(&location).header("range"), Some("0-999"));
    assert_eq!(registry.push("a", &content[..1000]), Digest::sha256(&content[..1000]));
}

#[test]
fn the_number_of_sessions_is_bounded() {
    let registry = Registry::start_with(|options| options.limits.sessions_per_repository = 2);
    let locations = [registry.open_upload("a"), registry.open_upload("a")];
    let answer = registry.send("POST", "/v2/a/blobs/uploads/", &[], b"");
    assert_eq!(answer.refusal(), (429, "TOOMANYREQUESTS".to_owned()));
    assert!(answer.header("retry-after").is_some());
    registry.open_upload("b");
    assert_eq!(registry.delete(&locations[0]).status, 204);
    registry.open_upload("a");
}

/// Begins a PATCH of `length` bytes, sends `sent` of them and leaves the connection open.
fn begin_patch(registry: &Registry, location: &str, length: usize, sent: &[u8]) -> std::net::TcpStream {
    let mut stream = registry.connect();
    let head = format!("PATCH {location} HTTP/1.1\r\nHost: x.example\r\nContent-Length: {length}\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(sent).unwrap();
    stream
}

/// Asks for the state of an upload until it has `length` bytes: a broken connection is noticed in its own time.
pub(crate) fn wait_for_length(registry: &Registry, location: &str, length: usize) {
    let expected = format!("0-{}", length - 1);
    for _ in 0..2000 {
        let answer = registry.get(location);
        if answer.status == 204 && answer.header("range") == Some(&expected) {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    panic!("the upload never had {length} bytes: {:?}", registry.get(location));
}

/// Asks for the state of an upload until something has arrived.
pub(crate) fn wait_for_progress(registry: &Registry, location: &str) {
    for _ in 0..2000 {
        if registry.get(location).header("range") != Some("0-0") {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    panic!("nothing of the upload ever arrived");
}

#[test]
fn a_dropped_patch_keeps_every_byte_that_arrived() {
    let registry = Registry::start();
    let content = noise(1_000_000, 1);
    let digest = Digest::sha256(&content);
    let location = registry.open_upload("a");
    drop(begin_patch(&registry, &location, content.len(), &content[..333_333]));
    wait_for_length(&registry, &location, 333_333);
    let range = format!("333333-{}", content.len() - 1);
    let answer = registry.send("PATCH", &location, &[("Content-Range", &range)], &content[333_333..]);
    assert_eq!(answer.status, 202, "{answer:?}");
    let answer = registry.send("PUT", &format!("{location}?digest={digest}"), &[], b"");
    assert_created(&registry, &answer, &digest, &content);
}

#[test]
fn of_two_writers_one_is_told_to_come_back() {
    let registry = Registry::start();
    let content = noise(500_000, 1);
    let location = registry.open_upload("a");
    let mut first = begin_patch(&registry, &location, content.len(), &content[..400_000]);
    // The first has begun once its progress shows.
    wait_for_progress(&registry, &location);
    for method in ["PATCH", "DELETE"] {
        let second = registry.send(method, &location, &[], b"");
        assert_eq!(second.refusal(), (409, "BLOB_UPLOAD_INVALID".to_owned()), "{method}");
    }
    first.write_all(&content[400_000..]).unwrap();
    assert_eq!(read_answer(&mut first, "PATCH").status, 202);
    let digest = Digest::sha256(&content);
    let answer = registry.send("PUT", &format!("{location}?digest={digest}"), &[], b"");
    assert_created(&registry, &answer, &digest, &content);
}

/// A client that has lost its connection goes on over another one, long before the server notices the loss.
#[test]
fn a_chunk_that_says_where_it_belongs_takes_an_upload_over() {
    let registry = Registry::start();
    let content = noise(500_000, 1);
    let digest = Digest::sha256(&content);
    let location = registry.open_upload("a");
    let mut first = begin_patch(&registry, &location, content.len(), &content[..400_000]);
    wait_for_progress(&registry, &location);
    let chunk = |location: &str, start: usize| {
        let range = format!("{start}-{}", content.len() - 1);
        registry.send("PATCH", location, &[("Content-Range", &range)], &content[start..])
    };
    let elsewhere = chunk(&location.replace("/v2/a/", "/v2/b/"), 0);
    assert_eq!(elsewhere.refusal(), (404, "BLOB_UPLOAD_UNKNOWN".to_owned()));
    // How much had arrived is for the server to say.
    let wrong = chunk(&location, 499_999);
    assert_eq!(wrong.status, 416);
    let last = wrong.header("range").and_then(|range| range.strip_prefix("0-")).unwrap();
    let length = last.parse::<usize>().unwrap() + 1;
    assert!((1..=400_000).contains(&length), "{length}");
    assert_eq!(read_answer(&mut first, "PATCH").refusal(), (409, "BLOB_UPLOAD_INVALID".to_owned()));
    assert_eq!(chunk(&location, length - 1).status, 416, "nobody was there to take it from");
    assert_eq!(chunk(&location, length).status, 202);
    let answer = registry.send("PUT", &format!("{location}?digest={digest}"), &[], b"");
    assert_created(&registry, &answer, &digest, &content);
}

/// Between asking how far it came and going on, more of the old connection's bytes arrive.
#[test]
fn what_is_sent_twice_in_taking_over_is_stored_once() {
    let registry = Registry::start();
    let content = noise(500_000, 1);
    let digest = Digest::sha256(&content);
    let location = registry.open_upload("a");
    let first = begin_patch(&registry, &location, content.len(), &content[..400_000]);
    wait_for_progress(&registry, &location);
    let answer = registry.send("PATCH", &location, &[("Content-Range", "1000-499999")], &content[1000..]);
    assert_eq!((answer.status, answer.header("range")), (202, Some("0-499999")));
    let answer = registry.send("PUT", &format!("{location}?digest={digest}"), &[], b"");
    assert_created(&registry, &answer, &digest, &content);
    drop(first);
}

#[test]
fn uploads_at_once_are_bounded() {
    let registry = Registry::start_with(|options| options.limits.concurrent_uploads = 1);
    let location = registry.open_upload("a");
    let other = registry.open_upload("a");
    let mut first = begin_patch(&registry, &location, 200_000, &noise(100_000, 1));
    wait_for_progress(&registry, &location);
    let refused = registry.send("PATCH", &other, &[], b"x");
    assert_eq!(refused.refusal(), (429, "TOOMANYREQUESTS".to_owned()));
    first.write_all(&noise(100_000, 2)).unwrap();
    assert_eq!(read_answer(&mut first, "PATCH").status, 202);
    assert_eq!(registry.send("PATCH", &other, &[], b"x").status, 202);
}

#[test]
fn the_same_blob_pushed_by_many_at_once() {
    let registry = Registry::start();
    let content = noise(400_000, 1);
    let digest = Digest::sha256(&content);
    let start = Barrier::new(8);
    std::thread::scope(|scope| {
        for number in 0..8 {
            let (registry, content, start) = (&registry, &content, &start);
            scope.spawn(move || {
                start.wait();
                assert_eq!(registry.push(&format!("repository{}", number % 3), content), digest);
            });
        }
    });
    for number in 0..3 {
        assert!(registry.get(&format!("/v2/repository{number}/blobs/{digest}")).body == content);
    }
}

/// Between a blob and the manifest that names it lies a gap in which nothing holds it but a promise.
#[test]
fn a_blob_that_was_confirmed_survives_a_collection() {
    let registry = Registry::start();
    let raw = registry.image("a", "one");
    let layer = Digest::sha256(b"one");
    let mount = format!("/v2/b/blobs/uploads/?mount={layer}&from=a");
    assert_eq!(registry.send("POST", &mount, &[], b"").status, 201);
    registry.store().prune(&PruneOptions { all: true, ..PruneOptions::default() }).unwrap();
    assert_eq!(registry.put_manifest("a", "v1", OCI_MANIFEST, &raw).status, 201);
    assert_eq!(registry.head(&format!("/v2/b/blobs/{layer}")).status, 200);
}
