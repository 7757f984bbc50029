//! [`Link`]: a network that cuts every connection after so many bytes, or lets them through slowly.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// What a link does to each connection, counting the bytes of both directions.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Quality {
    /// It is cut after so many bytes.
    CutAfter(u64),
    /// After each so many bytes there is a pause.
    Slow(usize, Duration),
}

/// Passes connections on to a server.
pub(crate) struct Link {
    pub(crate) address: SocketAddr,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    connections: AtomicUsize,
    bytes: AtomicU64,
}

impl Link {
    pub(crate) fn to(server: SocketAddr, quality: Quality) -> Link {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let counts = Arc::new(Counts::default());
        let counting = Arc::clone(&counts);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                counting.connections.fetch_add(1, Ordering::SeqCst);
                let Ok(server) = TcpStream::connect(server) else { continue };
                let passed = Arc::new(AtomicU64::new(0));
                for (from, to) in [(&client, &server), (&server, &client)] {
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let (passed, counts) = (Arc::clone(&passed), Arc::clone(&counting));
                    std::thread::spawn(move || pass(from, to, quality, &passed, &counts));
                }
            }
        });
        Link { address, counts }
    }

    /// How many connections were made.
    pub(crate) fn connections(&self) -> usize {
        self.counts.connections.load(Ordering::SeqCst)
    }

    /// How many bytes were passed on, in both directions.
    pub(crate) fn bytes(&self) -> u64 {
        self.counts.bytes.load(Ordering::SeqCst)
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, quality: Quality, passed: &AtomicU64, counts: &Counts) {
    let mut buffer = vec![0; 16 * 1024];
    let step = match quality {
        Quality::Slow(step, _) => step,
        Quality::CutAfter(_) => buffer.len(),
    };
    while let Ok(count @ 1..) = from.read(&mut buffer[..step]) {
        let before = passed.fetch_add(count as u64, Ordering::SeqCst);
        let (allowed, cut) = match quality {
            Quality::CutAfter(limit) => {
                let room = usize::try_from(limit.saturating_sub(before)).unwrap();
                (count.min(room), count >= room)
            }
            Quality::Slow(_, pause) => {
                std::thread::sleep(pause);
                (count, false)
            }
        };
        counts.bytes.fetch_add(allowed as u64, Ordering::SeqCst);
        if to.write_all(&buffer[..allowed]).is_err() || cut {
            break;
        }
    }
    // Both ends see it, and what was passed on can still be read.
    let _ = (to.shutdown(Shutdown::Write), from.shutdown(Shutdown::Read));
    if matches!(quality, Quality::CutAfter(_)) {
        let _ = (to.shutdown(Shutdown::Both), from.shutdown(Shutdown::Both));
    }
}
