//! Blobs going out: whole, in chunks, mounted, and over connections that break.

use std::io::{self, Read};
use std::sync::{Arc, Mutex};

use rimg_formats::digest::Digest;
use rimg_registry::client::{Client, ClientError, ClientOptions, RemoteRepository};

use crate::download::{content, descriptor};
use crate::fake::{Answer, Asked, Fake, options};

/// What a registry that follows the specification has received.
#[derive(Default)]
struct Received {
    upload: Vec<u8>,
    sessions: usize,
    /// Lengths of the bodies that arrived in full.
    bodies: Vec<usize>,
    done: Option<Vec<u8>>,
}

type Shared = Arc<Mutex<Received>>;

/// What a registry that follows the specification answers.
fn proper(asked: &mut Asked, received: &Shared) -> Answer {
    let mut received = received.lock().unwrap();
    let range = |received: &Received| format!("0-{}", received.upload.len().saturating_sub(1));
    match asked.method.as_str() {
        "HEAD" => match &received.done {
            Some(blob) => Answer::status(200).with("content-length", blob.len()),
            None => Answer::status(404),
        },
        "POST" => {
            received.sessions += 1;
            received.upload.clear();
            Answer::status(202).with("location", format!("/u/{}?_state=a%2Fb", received.sessions))
        }
        "GET" => Answer::status(204).with("location", &asked.target).with("range", range(&received)),
        "PATCH" => {
            let first: usize = asked.header("content-range").split('-').next().unwrap().parse().unwrap();
            if first != received.upload.len() {
                return Answer::status(416);
            }
            take(asked, &mut received);
            Answer::status(202).with("location", &asked.target).with("range", range(&received))
        }
        "PUT" => {
            take(asked, &mut received);
            let digest = Digest::sha256(&received.upload);
            assert!(asked.target.contains("_state=a%2Fb&digest="), "{}", asked.target);
            match asked.target.ends_with(&digest.hex()) {
                true => received.done = Some(received.upload.clone()),
                false => return Answer::status(400).body(r#"{"errors":[{"code":"DIGEST_INVALID"}]}"#),
            }
            Answer::status(201)
        }
        other => panic!("{other}"),
    }
}

fn take(asked: &mut Asked, received: &mut Received) {
    let body = asked.body();
    received.bodies.push(body.len());
    received.upload.extend(body);
}

/// A registry that follows the specification except where `twist` answers first.
fn registry(twist: impl Fn(&mut Asked, &Shared) -> Option<Answer> + Send + Sync + 'static) -> (Fake, Shared) {
    let shared = Shared::default();
    let received = Arc::clone(&shared);
    let fake = Fake::start(move |asked| twist(asked, &received).unwrap_or_else(|| proper(asked, &received)));
    (fake, shared)
}

fn push(repository: &RemoteRepository, content: &[u8]) -> Result<(), ClientError> {
    let mut open = |offset: u64| -> io::Result<Box<dyn Read + Send>> {
        Ok(Box::new(io::Cursor::new(content[usize::try_from(offset).unwrap()..].to_vec())))
    };
    repository.push_blob(&descriptor(content), &mut open)
}

fn methods(fake: &Fake) -> Vec<String> {
    fake.log().iter().map(|line| line.split(' ').next().unwrap().to_owned()).collect()
}

#[test]
fn a_blob_goes_out_in_one_piece() {
    for content in [content(), b"small".to_vec(), Vec::new()] {
        let (fake, received) = registry(|_, _| None);
        push(&fake.repository(), &content).unwrap();
        assert!(received.lock().unwrap().done.as_ref() == Some(&content));
        assert_eq!(methods(&fake), ["POST", "PUT"]);
    }
}

/// Takes `arriving` bytes of the `nth` body-carrying request, then hangs up.
fn dropping(nth: usize, arriving: usize) -> impl Fn(&mut Asked, &Shared) -> Option<Answer> + Send + Sync {
    let seen = Mutex::new(0);
    move |asked, received| {
        if asked.body_length == 0 {
            return None;
        }
        let mut seen = seen.lock().unwrap();
        *seen += 1;
        (*seen == nth).then(|| {
            let part = asked.body_part(arriving);
            received.lock().unwrap().upload.extend(part);
            Answer::hang_up()
        })
    }
}

#[test]
fn an_upload_that_broke_goes_on_from_where_it_broke() {
    let content = content();
    let (fake, received) = registry(dropping(1, 1_000_000));
    push(&fake.repository(), &content).unwrap();
    let received = received.lock().unwrap();
    assert!(received.done.as_ref() == Some(&content));
    assert_eq!((received.sessions, &received.bodies[..]), (1, &[1_800_000, 0][..]));
    assert_eq!(methods(&fake), ["POST", "PUT", "GET", "HEAD", "PATCH", "PUT"]);
}

/// A registry that has not noticed that a connection broke takes its upload for busy.
#[test]
fn an_upload_that_is_busy_is_tried_again() {
    let content = content();
    let (broken, busy) = (dropping(1, 1_000_000), Mutex::new(2));
    let (fake, received) = registry(move |asked, received| {
        let mut busy = busy.lock().unwrap();
        if asked.method == "PATCH" && *busy > 0 {
            *busy -= 1;
            return Some(Answer::status(409).with("retry-after", 1));
        }
        broken(asked, received)
    });
    push(&fake.repository(), &content).unwrap();
    let received = received.lock().unwrap();
    assert!((received.done.as_ref(), received.sessions) == (Some(&content), 1));
}

#[test]
fn an_upload_that_was_forgotten_begins_anew() {
    let content = content();
    let broken = dropping(1, 1_000_000);
    let (fake, received) = registry(move |asked, received| match asked.method.as_str() {
        "GET" => Some(Answer::status(404)),
        _ => broken(asked, received),
    });
    push(&fake.repository(), &content).unwrap();
    let received = received.lock().unwrap();
    assert!((received.done.as_ref(), received.sessions) == (Some(&content), 2));
}

#[test]
fn an_upload_whose_answer_was_lost_is_not_repeated() {
    let content = content();
    let (fake, received) = registry(|asked, received| {
        (asked.method == "PUT").then(|| {
            proper(asked, received);
            Answer::hang_up()
        })
    });
    push(&fake.repository(), &content).unwrap();
    assert_eq!(received.lock().unwrap().bodies, [content.len()]);
}

#[test]
fn a_server_error_in_the_middle_is_tried_again() {
    let content = content();
    let failures = Mutex::new(2);
    let (fake, received) = registry(move |asked, _| {
        let mut failures = failures.lock().unwrap();
        (asked.method == "PUT" && *failures > 0).then(|| {
            *failures -= 1;
            Answer::status(if *failures == 1 { 503 } else { 429 })
        })
    });
    push(&fake.repository(), &content).unwrap();
    assert!(received.lock().unwrap().done.as_ref() == Some(&content));
}

#[test]
fn too_large_for_one_request_goes_in_chunks() {
    let content = content();
    let (fake, received) = registry(|asked, _| {
        (asked.method == "PUT" && asked.body_length > 2_000_000).then(|| {
            asked.body();
            Answer::status(413)
        })
    });
    push(&fake.repository(), &content).unwrap();
    assert!(received.lock().unwrap().done.as_ref() == Some(&content));
    assert_eq!(methods(&fake), ["POST", "PUT", "POST", "PATCH", "PATCH", "PUT"]);
}

fn chunked(fake: &Fake, chunk_bytes: u64) -> RemoteRepository {
    let client = Client::new(ClientOptions { chunk_bytes: Some(chunk_bytes), ..options() });
    client.repository(&fake.reference())
}

#[test]
fn chunks_are_as_long_as_wanted_but_no_shorter_than_the_registry_takes() {
    let content = content();
    for (minimum, lengths) in
        [("0", vec![1_000_000, 1_000_000, 800_000, 0]), ("1500000", vec![1_500_000, 1_300_000, 0])]
    {
        let (fake, received) = registry(move |asked, received| {
            (asked.method == "POST").then(|| proper(asked, received).with("oci-chunk-min-length", minimum))
        });
        push(&chunked(&fake, 1_000_000), &content).unwrap();
        let received = received.lock().unwrap();
        assert!(received.done.as_ref() == Some(&content));
        assert_eq!(received.bodies, lengths, "{minimum}");
    }
}

#[test]
fn a_chunk_that_broke_goes_on_from_where_it_broke() {
    let content = content();
    let (fake, received) = registry(dropping(2, 500_000));
    push(&chunked(&fake, 1_000_000), &content).unwrap();
    let received = received.lock().unwrap();
    assert!(received.done.as_ref() == Some(&content));
    assert_eq!(received.bodies, [1_000_000, 1_000_000, 300_000, 0]);
}

/// A network that breaks long requests, before a registry that keeps nothing of them.
#[test]
fn what_never_arrives_whole_goes_in_chunks() {
    let content = content();
    let (fake, received) = registry(|asked, received| {
        if asked.body_length > 1_500_000 {
            asked.body_part(1_000_000);
            received.lock().unwrap().upload.clear();
            return Some(Answer::hang_up());
        }
        // Whatever had begun is forgotten.
        (asked.method == "GET").then(|| Answer::status(404))
    });
    push(&fake.repository(), &content).unwrap();
    let received = received.lock().unwrap();
    assert!(received.done.as_ref() == Some(&content));
    assert_eq!(received.bodies, [1_400_000, 1_400_000, 0]);
    assert_eq!(fake.count("PUT"), 3);
}

#[test]
fn impossible_progress_is_not_believed() {
    let (fake, _) = registry(|asked, _| {
        (asked.method == "PATCH").then(|| {
            asked.body();
            Answer::status(202).with("location", &asked.target).with("range", "0-99999999")
        })
    });
    let error = push(&chunked(&fake, 1_000_000), &content()).unwrap_err();
    assert!(error.to_string().contains("claims to have 100000000 bytes"), "{error}");
}

#[test]
fn content_that_does_not_fit_its_digest_is_refused_by_the_registry() {
    let (fake, _) = registry(|_, _| None);
    let content = content();
    let mut blob = descriptor(&content);
    blob.digest = Digest::sha256(b"other");
    let mut open = |_| -> io::Result<Box<dyn Read + Send>> { Ok(Box::new(io::Cursor::new(content.clone()))) };
    let error = fake.repository().push_blob(&blob, &mut open).unwrap_err();
    assert!(matches!(error, ClientError::Refused { status: 400, .. }), "{error}");
    assert!(error.to_string().contains("DIGEST_INVALID"), "{error}");
}

#[test]
fn content_that_cannot_be_read_is_our_own_fault() {
    let (fake, received) = registry(|asked, _| {
        // What is sent stops early; waiting for more would wait for ever.
        (asked.method == "PUT").then(Answer::hang_up)
    });
    let blob = descriptor(&content());
    let mut open = |_| -> io::Result<Box<dyn Read + Send>> { Ok(Box::new(&b"too short"[..])) };
    let error = fake.repository().push_blob(&blob, &mut open).unwrap_err();
    assert!(matches!(error, ClientError::Source { .. }), "{error}");
    assert!(received.lock().unwrap().done.is_none());
}

#[test]
fn locations_that_lead_astray_are_not_followed() {
    for location in ["file:///etc/passwd", "gopher://x/", "http://u:p@127.0.0.1/"] {
        let fake = Fake::start(move |_| Answer::status(202).with("location", location));
        let error = push(&fake.repository(), b"x").unwrap_err();
        assert!(matches!(error, ClientError::Protocol { .. }), "{location}: {error}");
    }
    let fake = Fake::start(|_| Answer::status(202));
    assert!(push(&fake.repository(), b"x").unwrap_err().to_string().contains("does not say where"));
}

#[test]
fn what_exists_is_found_unless_it_was_cut_short() {
    let content = content();
    for (length, exists) in [(content.len(), true), (0, false)] {
        let fake = Fake::start(move |_| Answer::status(200).with("content-length", length));
        assert_eq!(fake.repository().has_blob(&descriptor(&content)).unwrap(), exists);
        assert_eq!(methods(&fake), ["HEAD"]);
    }
}

#[test]
fn a_mount_saves_the_bytes() {
    let fake = Fake::start(|asked| match asked.method.as_str() {
        "HEAD" => Answer::status(404),
        _ => Answer::status(201).with("location", "/v2/app/blobs/x"),
    });
    let repository =
        fake.repository().mounting_from(|_| vec!["app".parse().unwrap(), "base/os".parse().unwrap()]);
    let blob = descriptor(b"layer");
    assert!(repository.has_blob(&blob).unwrap());
    let hex = blob.digest.hex();
    let mount = format!("POST /v2/app/blobs/uploads/?mount=sha256%3A{hex}&from=base%2Fos");
    assert_eq!(fake.log()[1..], [mount]);
}

#[test]
fn a_declined_mount_is_an_open_upload() {
    let (fake, received) = registry(|_, _| None);
    let content = content();
    let repository = fake.repository().mounting_from(|_| vec!["base".parse().unwrap()]);
    assert!(!repository.has_blob(&descriptor(&content)).unwrap());
    push(&repository, &content).unwrap();
    assert_eq!(received.lock().unwrap().sessions, 1);
    assert_eq!(methods(&fake), ["HEAD", "POST", "PUT"]);
}

#[test]
fn a_refused_mount_does_not_stop_a_push() {
    let (fake, received) = registry(|asked, _| asked.target.contains("mount=").then(|| Answer::status(403)));
    let repository = fake.repository().mounting_from(|_| vec!["base".parse().unwrap()]);
    assert!(!repository.has_blob(&descriptor(b"x")).unwrap());
    push(&repository, b"x").unwrap();
    assert!(received.lock().unwrap().done.is_some());
}

/// A registry whose uploads are taken elsewhere: `moved` says where a request with content goes.
fn moving(moved: impl Fn(&Asked) -> Option<(u16, String)> + Send + Sync + 'static) -> (Fake, Shared) {
    registry(move |asked, _| {
        let (status, to) = moved(asked).filter(|_| asked.body_length > 0)?;
        Some(Answer::status(status).with("location", to))
    })
}

#[test]
fn a_redirected_upload_is_sent_again_to_where_it_leads() {
    let content = content();
    let storage = Arc::new(Mutex::new(Vec::new()));
    let arrived = Arc::clone(&storage);
    let elsewhere = Fake::start(move |asked| {
        arrived.lock().unwrap().push((asked.line(), asked.body()));
        Answer::status(201)
    });
    for status in [307, 308] {
        let to = format!("http://{}/bucket?signature=1", elsewhere.address);
        let (fake, _) = moving(move |_| Some((status, to.clone())));
        push(&fake.repository(), &content).unwrap();
        assert_eq!(methods(&fake), ["POST", "PUT"]);
        let arrived = std::mem::take(&mut *storage.lock().unwrap());
        assert!(arrived == [("PUT /bucket".to_owned(), content.clone())], "{status}");
    }
}

#[test]
fn redirected_chunks_go_on_where_they_were_led() {
    let content = content();
    let (fake, received) = moving(|asked| {
        let query = asked.target.strip_prefix("/u/1")?;
        Some((307, format!("/elsewhere{query}")))
    });
    push(&chunked(&fake, 1_000_000), &content).unwrap();
    assert!(received.lock().unwrap().done.as_ref() == Some(&content));
    // The first chunk is led away once; the rest follows what is said there.
    assert_eq!(methods(&fake), ["POST", "PATCH", "PATCH", "PATCH", "PATCH", "PUT"]);
}

#[test]
fn uploads_are_not_redirected_for_ever_nor_anywhere() {
    let table = [
        (307, "/u/1?_state=a%2Fb", "redirects more than 5 times", 6),
        (307, "file:///etc/passwd", "points to a `file:` URL", 1),
        (303, "/elsewhere", "redirects a PUT by status 303", 1),
        (302, "/elsewhere", "redirects a PUT by status 302", 1),
    ];
    for (status, to, reason, requests) in table {
        let (fake, _) = moving(move |_| Some((status, to.to_owned())));
        let error = push(&fake.repository(), b"layer").unwrap_err();
        assert!(error.to_string().contains(reason), "{error}");
        assert_eq!(fake.count("PUT"), requests, "{to}");
    }
}
