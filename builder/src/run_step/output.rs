//! The output of a RUN step: lines to events, and the last of them for the error.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rimg_runner::Running;
use rustix::process::{Signal, pidfd_send_signal};

use crate::engine::Build;
use crate::events::{Event, OutputStream, StepId};

/// Lines that an error shows.
const LAST_LINES_MAX: usize = 20;

/// Longest line that is told as one: progress bars and binary output must not fill memory.
const LINE_BYTES_MAX: usize = 16 << 10;

/// How often a running step looks whether another stage has failed.
const STOP_CHECK: Duration = Duration::from_millis(50);

/// Tells the output until it ends; returns the last lines. A failing sibling stage ends the process.
pub(super) fn follow(build: &Build<'_>, id: StepId, running: &mut Running) -> Vec<String> {
    let last = Mutex::new(VecDeque::new());
    let done = AtomicBool::new(false);
    let (stdout, stderr) = (running.stdout.take(), running.stderr.take());
    let pidfd = running.pidfd();
    std::thread::scope(|scope| {
        let tell = |stream, line: &[u8]| {
            let line = String::from_utf8_lossy(line).into_owned();
            let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
            if last.len() == LAST_LINES_MAX {
                last.pop_front();
            }
            last.push_back(line.clone());
            drop(last);
            (build.events)(Event::StepOutput { id, stream, line });
        };
        let readers = [(OutputStream::Stdout, stdout), (OutputStream::Stderr, stderr)]
            .map(|(stream, pipe)| scope.spawn(move || read_lines(pipe, &|line| tell(stream, line))));
        let watcher = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                if build.check_stopped().is_err() {
                    // A process that has just ended by itself is no error.
                    let _ = pidfd_send_signal(pidfd, Signal::KILL);
                    return;
                }
                std::thread::park_timeout(STOP_CHECK);
            }
        });
        for reader in readers {
            // Reading neither fails nor panics; a panic of the event sink is passed on by the scope.
            let _ = reader.join();
        }
        done.store(true, Ordering::Relaxed);
        // Without this every step would end with a wait for the watcher's next look.
        watcher.thread().unpark();
    });
    last.into_inner().unwrap_or_else(PoisonError::into_inner).into()
}

/// Reads a pipe to its end and cuts it into lines; carriage returns are dropped.
fn read_lines(pipe: Option<File>, tell: &dyn Fn(&[u8])) {
    let Some(mut pipe) = pipe else { return };
    let (mut chunk, mut line) = (vec![0; 8192], Vec::new());
    loop {
        let length = match pipe.read(&mut chunk) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Ok(0) | Err(_) => break,
            Ok(length) => length,
        };
        for byte in &chunk[..length] {
            match byte {
                b'\n' => {
                    tell(&line);
                    line.clear();
                }
                b'\r' => {}
                byte => {
                    line.push(*byte);
                    if line.len() == LINE_BYTES_MAX {
                        tell(&line);
                        line.clear();
                    }
                }
            }
        }
    }
    if !line.is_empty() {
        tell(&line);
    }
}
