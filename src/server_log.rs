//! [`ServerLog`]: the log of `rimg serve`, which never makes the server wait for whoever reads it.
//!
//! Lines go through a bounded queue to a thread that writes them to standard error. A reader that stalls (a full pipe,
//! a stopped terminal) costs lines, whose number is told when it goes on.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::time::Duration;

/// Lines in the queue: a second of a busy server, and less than a megabyte.
const LINES_MAX: usize = 4096;
/// How long the end of the server waits for the lines that are left.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// Takes lines; clones share the queue.
#[derive(Clone, Debug)]
pub(crate) struct ServerLog {
    queue: SyncSender<Item>,
    lost: Arc<AtomicU64>,
}

#[derive(Debug)]
enum Item {
    Line(String),
    /// Answered when everything before it has been written.
    Flush(Sender<()>),
}

impl ServerLog {
    /// A log on standard error.
    pub(crate) fn to_stderr() -> io::Result<ServerLog> {
        ServerLog::to(io::stderr())
    }

    fn to(output: impl Write + Send + 'static) -> io::Result<ServerLog> {
        let (queue, items) = sync_channel(LINES_MAX);
        let lost = Arc::new(AtomicU64::new(0));
        let counter = lost.clone();
        std::thread::Builder::new().name("log".to_owned()).spawn(move || write(output, &items, &counter))?;
        Ok(ServerLog { queue, lost })
    }

    /// Queues a line. Returns at once: when the queue is full, the line is lost and counted.
    pub(crate) fn line(&self, line: String) {
        if self.queue.try_send(Item::Line(line)).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits until all lines are written, or for a second.
    pub(crate) fn flush(&self) {
        let (done, written) = channel();
        if self.queue.try_send(Item::Flush(done)).is_ok() {
            let _ = written.recv_timeout(FLUSH_TIMEOUT);
        }
    }
}

/// Writes what comes. That a line cannot be written is no reason to end.
fn write(mut output: impl Write, items: &Receiver<Item>, lost: &AtomicU64) {
    for item in items {
        match item {
            Item::Line(line) => _ = output.write_all(format!("{line}\n").as_bytes()),
            Item::Flush(done) => _ = done.send(()),
        }
        let lines = lost.swap(0, Ordering::Relaxed);
        if lines > 0 {
            let _ = writeln!(
                output,
                "warning: {lines} lines are missing here: whoever reads this log was too slow"
            );
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn a_reader_that_stalls_costs_lines_and_no_time() {
        let (mut reader, writer) = io::pipe().unwrap();
        let log = ServerLog::to(writer).unwrap();
        // More than a pipe and the queue hold.
        let line = "x".repeat(100);
        for _ in 0..LINES_MAX * 3 {
            log.line(line.clone());
        }
        log.flush();
        let reading = std::thread::spawn(move || {
            let mut text = String::new();
            reader.read_to_string(&mut text).unwrap();
            text
        });
        while log.lost.load(Ordering::Relaxed) > 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
        log.line("the last".to_owned());
        log.flush();
        drop(log);
        let text = reading.join().unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines.iter().any(|line| line.contains("lines are missing here")));
        assert_eq!(lines.last(), Some(&"the last"));
        assert!(lines.iter().filter(|shown| **shown == line).count() >= LINES_MAX);
    }
}
