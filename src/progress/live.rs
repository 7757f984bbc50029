//! The live display: running tasks at the foot of the terminal, finished ones scrolling up as plain lines.
//!
//! A thread redraws the foot while anything runs; what is finished is written at once. Every drawing is one write:
//! up to the first row of the old foot, erase, what scrolls, the new foot. The cursor rests on the row below and is
//! never hidden, so whatever ends the program leaves the terminal in order.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::frame::{self, Row, Running, Screen};
use super::{Change, Outcome, TaskId};
use crate::printable::printable;
use crate::terminal::{colour_on_stderr, harmless};

/// How often the foot is drawn again: enough to look alive, too little to cost.
const TICK: Duration = Duration::from_millis(100);

/// What terminals begin with, where the size is unknown.
const COLUMNS_USUAL: u16 = 80;
/// The same in rows.
const ROWS_USUAL: u16 = 24;

/// The live display.
pub(super) struct Live {
    state: Arc<Mutex<State>>,
    /// Ends the drawing thread when dropped. There is none before the first task: a process that is to enter a user
    /// namespace must have one thread.
    ticking: Mutex<Option<mpsc::Sender<()>>>,
}

#[derive(Default)]
struct State {
    tasks: BTreeMap<TaskId, Task>,
    /// Widths of the rows at the foot, as they were written.
    foot: Vec<usize>,
    turn: usize,
    closed: bool,
}

struct Task {
    begun: Instant,
    shown: Running,
}

impl Live {
    pub(super) fn new() -> Live {
        Live { state: Arc::default(), ticking: Mutex::default() }
    }

    pub(super) fn apply(&self, change: &Change) {
        let mut state = lock(&self.state);
        if state.closed {
            return;
        }
        match change {
            Change::Begin { task, title, total_bytes } => {
                let bytes = total_bytes.map(|total| (0, total));
                let shown = Running { title: harmless(title), bytes, ..Running::default() };
                state.tasks.insert(*task, Task { begun: Instant::now(), shown });
                drop(state);
                self.tick();
            }
            Change::Advance { task, bytes } => {
                if let Some(Running { bytes: Some((moved, _)), .. }) = state.shown(*task) {
                    *moved = *bytes;
                }
            }
            Change::Log { task, line } | Change::Partial { task, line } => {
                if let Some(shown) = state.shown(*task) {
                    shown.said = printable(line);
                }
            }
            Change::End { task, .. } => drop(state.tasks.remove(task)),
            Change::Note { .. } | Change::Diagnostic { .. } => {}
        }
    }

    /// Writes what a change leaves for good.
    pub(super) fn scroll(&self, lines: &[String]) {
        if !lines.is_empty() {
            lock(&self.state).draw(lines);
        }
    }

    /// The lines of a task that ended, after those that it printed if it failed.
    pub(super) fn finished(
        title: &str,
        outcome: Outcome,
        took: Duration,
        detail: &str,
        log: impl Iterator<Item = String>,
    ) -> Vec<String> {
        let rows = frame::finished_rows(title, outcome, took, &harmless(detail), screen());
        log.map(|line| format!("   {line}")).chain(rows.into_iter().map(|row| row.text)).collect()
    }

    /// Takes the foot away for good: the terminal is as any program leaves it.
    pub(super) fn close(&self) {
        let mut state = lock(&self.state);
        state.tasks.clear();
        if !state.foot.is_empty() {
            state.draw(&[]);
        }
        state.closed = true;
    }

    /// Starts the drawing thread, unless it runs.
    fn tick(&self) {
        let mut ticking = lock(&self.ticking);
        if ticking.is_some() {
            return;
        }
        let (sender, stop) = mpsc::channel::<()>();
        let state = self.state.clone();
        let draw = move || {
            while stop.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
                let mut state = lock(&state);
                if !state.tasks.is_empty() {
                    state.turn += 1;
                    state.draw(&[]);
                }
            }
        };
        // Without the thread lines still appear when something ends.
        if std::thread::Builder::new().name("display".to_owned()).spawn(draw).is_ok() {
            *ticking = Some(sender);
        }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.close();
    }
}

impl State {
    fn shown(&mut self, task: TaskId) -> Option<&mut Running> {
        self.tasks.get_mut(&task).map(|task| &mut task.shown)
    }

    /// Writes `lines` above the foot, and the foot anew.
    fn draw(&mut self, lines: &[String]) {
        if self.closed {
            return;
        }
        let screen = screen();
        let running: Vec<Running> = self
            .tasks
            .values()
            .map(|task| Running { elapsed: task.begun.elapsed(), ..task.shown.clone() })
            .collect();
        let rows = frame::running_rows(&running, self.turn, screen);
        // A terminal that has gone away takes no more lines; the work goes on.
        let _ = std::io::stderr().lock().write_all(drawing(&self.foot, lines, &rows, screen).as_bytes());
        self.foot = rows.iter().map(|row| row.columns).collect();
    }
}

/// What takes the terminal from the old foot to `lines` and the new one.
fn drawing(foot: &[usize], lines: &[String], rows: &[Row], screen: Screen) -> String {
    let mut text = String::new();
    // What has scrolled out at the top cannot be reached any more.
    let up = frame::height(foot, screen.columns).min(screen.rows.saturating_sub(1));
    if up > 0 {
        // Not from the first column: tmux takes erasing from the top left corner for `clear`, and keeps what was there in
        // its history, ten times a second.
        text.push_str(&format!("\r\x1b[{up}A\x1b[K\x1b[C\x1b[J\r"));
    }
    for line in lines.iter().map(String::as_str).chain(rows.iter().map(|row| row.text.as_str())) {
        text.push_str(line);
        text.push('\n');
    }
    text
}

fn screen() -> Screen {
    let size = rustix::termios::tcgetwinsize(std::io::stderr()).ok();
    let known = |number: Option<u16>, usual: u16| usize::from(number.filter(|n| *n > 0).unwrap_or(usual));
    Screen {
        columns: known(size.map(|size| size.ws_col), COLUMNS_USUAL),
        rows: known(size.map(|size| size.ws_row), ROWS_USUAL),
        colour: colour_on_stderr(),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drawing_replaces_the_foot() {
        let screen = Screen { columns: 40, rows: 8, colour: false };
        let row = |text: &str| Row { text: text.into(), columns: text.len() };
        let first = drawing(&[], &["done".into()], &[row("one"), row("two")], screen);
        assert_eq!(first, "done\none\ntwo\n");
        assert_eq!(drawing(&[3, 3], &[], &[row("one")], screen), "\r\x1b[2A\x1b[K\x1b[C\x1b[J\rone\n");
        // Rows that were written for a wider terminal were wrapped; those above its top are out of reach.
        assert_eq!(drawing(&[79, 3], &[], &[], screen), "\r\x1b[3A\x1b[K\x1b[C\x1b[J\r");
        assert_eq!(drawing(&[79; 20], &[], &[], screen), "\r\x1b[7A\x1b[K\x1b[C\x1b[J\r");
    }
}
