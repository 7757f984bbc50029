//! [`Proxy`]: a TCP connection that stops after so many bytes, so that "in the middle of a transfer" is a place and
//! not a time.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// The way on which bytes are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// From the client to the server.
    Up,
    /// From the server to the client.
    Down,
}

/// Passes connections on to a server.
pub(crate) struct Proxy {
    /// `127.0.0.1:port`.
    pub(crate) address: String,
    shared: Arc<Shared>,
}

struct Shared {
    direction: Direction,
    server: Mutex<String>,
    passed: AtomicU64,
    /// Bytes that may pass in all.
    allowed: AtomicU64,
    /// Connections that have been told to end: all older than this.
    generation: AtomicU64,
}

impl Proxy {
    /// A proxy that lets everything pass, to begin with.
    pub(crate) fn start(server: &str, direction: Direction) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let shared = Arc::new(Shared {
            direction,
            server: Mutex::new(server.to_owned()),
            passed: AtomicU64::new(0),
            allowed: AtomicU64::new(u64::MAX),
            generation: AtomicU64::new(0),
        });
        let accepting = shared.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                accepting.connect(client);
            }
        });
        Proxy { address, shared }
    }

    /// Sends new connections to another server.
    pub(crate) fn redirect(&self, server: &str) {
        server.clone_into(&mut self.shared.server.lock().unwrap());
    }

    /// Forgets what has passed, ends all connections and lets so many bytes pass from now on.
    pub(crate) fn allow(&self, bytes: u64) {
        self.shared.generation.fetch_add(1, Ordering::SeqCst);
        self.shared.passed.store(0, Ordering::SeqCst);
        self.shared.allowed.store(bytes, Ordering::SeqCst);
    }

    /// Bytes that have passed.
    pub(crate) fn passed(&self) -> u64 {
        self.shared.passed.load(Ordering::SeqCst)
    }

    /// Whether everything that may pass has passed.
    pub(crate) fn is_exhausted(&self) -> bool {
        self.passed() >= self.shared.allowed.load(Ordering::SeqCst)
    }
}

impl Shared {
    fn connect(self: &Arc<Shared>, client: TcpStream) {
        let server = self.server.lock().unwrap().clone();
        let Ok(server) = TcpStream::connect(server) else { return };
        let generation = self.generation.load(Ordering::SeqCst);
        let ends = [
            (client.try_clone().unwrap(), server.try_clone().unwrap(), Direction::Up),
            (server, client, Direction::Down),
        ];
        for (from, to, direction) in ends {
            let shared = self.clone();
            std::thread::spawn(move || shared.pump(from, to, direction, generation));
        }
    }

    fn pump(&self, mut from: TcpStream, mut to: TcpStream, direction: Direction, generation: u64) {
        let mut buffer = [0; 16 << 10];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            let mut rest = &buffer[..count];
            while !rest.is_empty() {
                let most = if direction == self.direction {
                    self.reserve(rest.len(), generation)
                } else {
                    rest.len()
                };
                if most == 0 || to.write_all(&rest[..most]).is_err() {
                    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
                    return;
                }
                rest = &rest[most..];
            }
        }
        let _ = to.shutdown(Shutdown::Write);
    }

    /// Waits until bytes may pass, and says how many; none when the connection is to end.
    fn reserve(&self, wanted: usize, generation: u64) -> usize {
        loop {
            if self.generation.load(Ordering::SeqCst) != generation {
                return 0;
            }
            let allowed = self.allowed.load(Ordering::SeqCst);
            let passed = self.passed.load(Ordering::SeqCst);
            let most = allowed.saturating_sub(passed).min(wanted as u64);
            if most == 0 {
                std::thread::sleep(Duration::from_millis(1));
            } else if self
                .passed
                .compare_exchange(passed, passed + most, Ordering::SeqCst, Ordering::SeqCst)
                .is_ok()
            {
                return usize::try_from(most).unwrap();
            }
        }
    }
}
