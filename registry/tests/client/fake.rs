//! A registry that does what a test tells it to: HTTP/1.1 by hand, so that it can also break off in the middle,
//! lie about lengths and speak nonsense.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rimg_registry::client::{
    Client, ClientOptions, CredentialSource, PlainHttp, RemoteRepository, RetryPolicy,
};

/// One request as it arrived. The body is read by whoever wants it.
pub struct Asked {
    pub method: String,
    /// Path and query.
    pub target: String,
    pub headers: BTreeMap<String, String>,
    pub body_length: usize,
    reader: BufReader<TcpStream>,
}

impl Asked {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    /// `GET /v2/…` without the query.
    pub fn line(&self) -> String {
        format!("{} {}", self.method, self.target.split('?').next().unwrap())
    }

    pub fn body(&mut self) -> Vec<u8> {
        self.body_part(self.body_length)
    }

    /// The next `length` bytes of the body.
    pub fn body_part(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.reader.read_exact(&mut bytes).unwrap();
        self.body_length -= length;
        bytes
    }
}

/// What the registry answers.
pub struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    length: Option<usize>,
    /// Close the connection without a word, or with these bytes.
    raw: Option<Vec<u8>>,
}

impl Answer {
    pub fn status(status: u16) -> Answer {
        Answer { status, headers: Vec::new(), body: Vec::new(), length: None, raw: None }
    }

    pub fn ok(body: impl Into<Vec<u8>>) -> Answer {
        Answer { body: body.into(), ..Answer::status(200) }
    }

    pub fn raw(bytes: &[u8]) -> Answer {
        Answer { raw: Some(bytes.to_vec()), ..Answer::status(0) }
    }

    pub fn hang_up() -> Answer {
        Answer::raw(b"")
    }

    pub fn with(mut self, name: &str, value: impl ToString) -> Answer {
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }

    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Answer {
        self.body = body.into();
        self
    }

    /// Claims another length than the body has; the connection is closed after the body.
    pub fn claiming(mut self, length: usize) -> Answer {
        self.length = Some(length);
        self
    }
}

/// A running fake registry; it ends with the process.
pub struct Fake {
    pub address: SocketAddr,
    log: Arc<Mutex<Vec<String>>>,
}

impl Fake {
    pub fn start(answer: impl Fn(&mut Asked) -> Answer + Send + Sync + 'static) -> Fake {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let (answer, seen) = (Arc::new(answer), Arc::clone(&log));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (answer, seen) = (Arc::clone(&answer), Arc::clone(&seen));
                std::thread::spawn(move || converse(stream, &*answer, &seen));
            }
        });
        Fake { address, log }
    }

    /// A server that says `words` to whatever it is told.
    pub fn saying(words: &'static [u8]) -> Fake {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                // Closing with bytes unread would reset the connection before the words arrive.
                let mut told = [0; 4096];
                let _ = stream.read(&mut told);
                let _ = stream.write_all(words);
            }
        });
        Fake { address, log: Arc::default() }
    }

    /// The requests so far, as `METHOD target`, or with what the handler noted by the header `x-note`.
    pub fn log(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }

    pub fn count(&self, line: &str) -> usize {
        self.log().iter().filter(|entry| entry.starts_with(line)).count()
    }

    pub fn client(&self) -> Client {
        Client::new(options())
    }

    pub fn repository(&self) -> RemoteRepository {
        self.client().repository(&self.reference())
    }

    pub fn reference(&self) -> rimg_formats::reference::Reference {
        format!("{}/app:1", self.address).parse().unwrap()
    }
}

/// Options without the wait and without the user's own files.
pub fn options() -> ClientOptions {
    ClientOptions {
        plain_http: PlainHttp::Always,
        credentials: CredentialSource::Anonymous,
        retry: RetryPolicy {
            tries_max: 4,
            first_wait: Duration::from_millis(1),
            wait_max: Duration::from_millis(2),
            retry_after_max: Duration::from_secs(5),
        },
        certificate_folders: Vec::new(),
        ..ClientOptions::default()
    }
}

fn converse(stream: TcpStream, answer: &dyn Fn(&mut Asked) -> Answer, log: &Mutex<Vec<String>>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    loop {
        let Some(mut asked) = read_head(reader) else { return };
        log.lock().unwrap().push(format!("{} {}", asked.method, asked.target));
        let answered = answer(&mut asked);
        let write = |bytes: &[u8]| (&stream).write_all(bytes).is_ok();
        if let Some(raw) = answered.raw {
            write(&raw);
            return;
        }
        if asked.body_length > 0 {
            asked.body();
        }
        let length = answered.length.unwrap_or(answered.body.len());
        let mut head = format!("HTTP/1.1 {} X\r\n", answered.status);
        if !answered.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-length")) {
            head += &format!("content-length: {length}\r\n");
        }
        for (name, value) in &answered.headers {
            head += &format!("{name}: {value}\r\n");
        }
        head += "\r\n";
        let body = if asked.method == "HEAD" { &[][..] } else { &answered.body[..] };
        if !write(head.as_bytes()) || !write(body) || answered.length.is_some() {
            return;
        }
        reader = asked.reader;
    }
}

fn read_head(mut reader: BufReader<TcpStream>) -> Option<Asked> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let mut words = lines.first()?.split(' ');
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let headers: BTreeMap<String, String> = lines[1..]
        .iter()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    assert!(!headers.contains_key("transfer-encoding"), "bodies must have a length: {lines:?}");
    let body_length = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
    Some(Asked { method, target, headers, body_length, reader })
}
