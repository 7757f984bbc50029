//! Which local user asks: what `Authorize` is told of the other end of a connection.

use std::io::Write;
use std::net::TcpStream;
use std::os::unix::fs::{MetadataExt, fchown};
use std::sync::{Arc, Mutex};

use rimg_registry::server::Decision;

use crate::harness::{Registry, read_answer};

type Users = Arc<Mutex<Vec<Option<u32>>>>;

/// A server that serves `served` alone and remembers who asked.
fn registry(listen: &str, served: u32, identify: bool) -> (Registry, Users) {
    let users = Users::default();
    let asked = users.clone();
    let registry = Registry::start_with(|options| {
        options.listen = listen.parse().unwrap();
        options.identify_users = identify;
        options.authorize = Arc::new(move |request| {
            asked.lock().unwrap().push(request.user);
            match request.user == Some(served) {
                true => Decision::Allow,
                false => Decision::Deny { message: "start it with `--flag`".to_owned() },
            }
        });
    });
    (registry, users)
}

fn me() -> u32 {
    std::fs::metadata("/proc/self").unwrap().uid()
}

fn ask(stream: &mut TcpStream) -> u16 {
    stream.write_all(b"GET /v2/ HTTP/1.1\r\nHost: registry.example\r\n\r\n").unwrap();
    read_answer(stream, "GET").status
}

#[test]
fn the_user_of_a_connection_is_told_in_both_families() {
    for listen in ["127.0.0.1:0", "[::1]:0", "[::ffff:127.0.0.1]:0"] {
        if std::net::TcpListener::bind(listen).is_err() {
            eprintln!("not tried, this machine lacks the family: {listen}");
            continue;
        }
        let (registry, users) = registry(listen, me(), true);
        let mut stream = registry.connect();
        assert_eq!((ask(&mut stream), ask(&mut stream)), (200, 200));
        assert_eq!(*users.lock().unwrap(), [Some(me()); 2], "{listen}");
    }
}

#[test]
fn another_user_is_refused_and_told_what_helps() {
    let (registry, users) = registry("127.0.0.1:0", me().wrapping_add(1), true);
    let answer = registry.get("/v2/a/tags/list");
    assert_eq!(answer.refusal(), (403, "DENIED".to_owned()));
    assert_eq!(answer.json()["errors"][0]["message"], "start it with `--flag`");
    assert_eq!(users.lock().unwrap().last(), Some(&Some(me())));
    // Only root may give a socket away.
    if me() != 0 {
        eprintln!("not tried without root: a socket of another user");
        return;
    }
    let mut stream = registry.connect();
    fchown(&stream, Some(65534), None).unwrap();
    assert_eq!(ask(&mut stream), 403);
    assert_eq!(users.lock().unwrap().last(), Some(&Some(65534)));
    let mut stream = registry.connect();
    fchown(&stream, Some(1), None).unwrap();
    assert_eq!(ask(&mut stream), 200);
}

#[test]
fn nobody_is_looked_up_unless_it_was_asked_for() {
    let (registry, users) = registry("127.0.0.1:0", me(), false);
    assert_eq!(registry.get("/v2/").status, 403);
    assert_eq!(*users.lock().unwrap(), [None]);
}
