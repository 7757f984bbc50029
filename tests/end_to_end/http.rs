//! The least of HTTP/1.1: one request over one connection, for what no well-behaved client would send or accept.

use std::io::{Read, Write};
use std::net::TcpStream;

/// An answer as it came, which may be cut off.
pub(crate) struct Answer {
    /// The status code.
    pub(crate) status: u16,
    /// The lines of its head, in lower case.
    pub(crate) head: String,
    /// What came of the body.
    pub(crate) body: Vec<u8>,
    /// Whether the body came as long as it was announced.
    pub(crate) complete: bool,
}

impl Answer {
    /// The value of a header, in lower case.
    pub(crate) fn header(&self, name: &str) -> Option<String> {
        self.head.lines().find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(": ")?.to_owned()))
    }
}

/// Sends one request and reads until the server closes the connection.
pub(crate) fn request(address: &str, method: &str, target: &str, headers: &str, body: &[u8]) -> Answer {
    let mut stream = TcpStream::connect(address).unwrap();
    let length = body.len();
    let head = format!(
        "{method} {target} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n"
    );
    stream.write_all(&[head.as_bytes(), body].concat()).unwrap();
    let mut bytes = Vec::new();
    // A connection that is broken off is an answer too.
    let _ = stream.read_to_end(&mut bytes);
    let border = bytes.windows(4).position(|window| window == b"\r\n\r\n").expect("no HTTP answer");
    let head = String::from_utf8(bytes[..border].to_vec()).unwrap().to_ascii_lowercase();
    let body = bytes[border + 4..].to_vec();
    let announced = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { status, complete: announced.is_none_or(|length: usize| length == body.len()), head, body }
}

/// GET without a body.
pub(crate) fn get(address: &str, target: &str) -> Answer {
    request(address, "GET", target, "", b"")
}
