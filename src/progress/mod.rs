//! Progress of builds and transfers, on standard error: live on a terminal, plain lines elsewhere, JSON for programs.
//!
//! Commands translate library events into [`Change`]s of numbered tasks; a [`Display`] shows them.

mod frame;
mod live;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::printable::printable;
use crate::terminal::{colour_on_stderr, harmless, live_on_stderr, note};
use crate::units;

/// How progress is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Mode {
    /// Live on a terminal, plain elsewhere.
    #[default]
    Auto,
    /// A live display.
    #[value(alias = "live")]
    Tty,
    /// One line for each thing that happens.
    Plain,
    /// One JSON object a line for each thing that happens.
    #[value(alias = "rawjson")]
    Json,
    /// Nothing but errors.
    #[value(alias = "none")]
    Quiet,
}

/// A task of the display: a build step, a blob.
pub(crate) type TaskId = u64;

/// How a task ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It did its work.
    Done,
    /// Its result was there already.
    Cached,
    /// It failed.
    Failed,
    /// It was ended before its end, by no fault of its own.
    Stopped,
}

impl Outcome {
    fn name(self) -> &'static str {
        match self {
            Outcome::Done => "done",
            Outcome::Cached => "cached",
            Outcome::Failed => "failed",
            Outcome::Stopped => "stopped",
        }
    }
}

/// Something that happened to a task.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    /// It began.
    Begin {
        /// Its number, unique in this display.
        task: TaskId,
        /// What it is.
        title: String,
        /// How many bytes it has to move, when that is known.
        total_bytes: Option<u64>,
    },
    /// It moved on to so many bytes.
    Advance {
        /// Its number.
        task: TaskId,
        /// Bytes moved since it began.
        bytes: u64,
    },
    /// It said something.
    Log {
        /// Its number.
        task: TaskId,
        /// One line without its end.
        line: String,
    },
    /// It said something that it is going to overwrite, as progress bars are. Shown live, kept nowhere.
    Partial {
        /// Its number.
        task: TaskId,
        /// The line so far.
        line: String,
    },
    /// It ended.
    End {
        /// Its number.
        task: TaskId,
        /// How.
        outcome: Outcome,
        /// Anything worth knowing, such as why it was not cached.
        detail: String,
    },
    /// Something that belongs to no task.
    Note {
        /// One line.
        line: String,
    },
    /// A rendered warning, which may have colours and is harmless.
    Diagnostic {
        /// Its lines.
        text: String,
    },
}

/// Lines of a task kept to be shown should it fail: more than a screen, whatever it prints.
const LOG_LINES_MAX: usize = 500;

struct Task {
    title: String,
    begun: Instant,
    /// The end of what it said, where that is shown only if it fails.
    log: VecDeque<String>,
}

impl Task {
    fn new(title: &str) -> Task {
        Task { title: harmless(title), begun: Instant::now(), log: VecDeque::new() }
    }

    fn remember(&mut self, line: &str) {
        if self.log.len() == LOG_LINES_MAX {
            self.log.pop_front();
        }
        self.log.push_back(printable(line));
    }
}

/// Shows changes; shared between threads.
pub(crate) struct Display {
    mode: Mode,
    tasks: Mutex<BTreeMap<TaskId, Task>>,
    live: Option<live::Live>,
    /// Tasks so far.
    count: AtomicU64,
}

impl Display {
    /// A display on standard error.
    pub(crate) fn new(mode: Mode) -> Display {
        let mode = match mode {
            Mode::Auto if live_on_stderr() => Mode::Tty,
            Mode::Auto => Mode::Plain,
            chosen => chosen,
        };
        let live = (mode == Mode::Tty).then(live::Live::new);
        Display { mode, tasks: Mutex::default(), live, count: AtomicU64::new(0) }
    }

    /// A number for a new task: 1, 2, 3, …
    pub(crate) fn number(&self) -> TaskId {
        self.count.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Whether rendered text may have colours.
    pub(crate) fn has_colour(&self) -> bool {
        self.mode != Mode::Json && colour_on_stderr()
    }

    /// Ends the display: a live one takes its foot away. Changes that come later are not shown live.
    pub(crate) fn close(&self) {
        if let Some(live) = &self.live {
            live.close();
        }
    }

    /// Shows one change.
    pub(crate) fn apply(&self, change: Change) {
        let mut tasks = self.tasks.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match &change {
            Change::Begin { task, title, .. } => drop(tasks.insert(*task, Task::new(title))),
            Change::Log { task, line } if matches!(self.mode, Mode::Tty | Mode::Quiet) => {
                if let Some(task) = tasks.get_mut(task) {
                    task.remember(line);
                }
            }
            _ => {}
        }
        match (&self.live, self.mode) {
            (_, Mode::Quiet) => quiet_lines(&change, &tasks).iter().for_each(|line| note(line)),
            (Some(live), _) => {
                live.apply(&change);
                live.scroll(&live_lines(&change, &tasks));
            }
            (None, Mode::Json) => json_line(&change, &tasks).iter().for_each(|line| note(line)),
            (None, _) => {
                if let Some(line) = plain_line(&change, &tasks) {
                    note(&line);
                }
            }
        }
        if let Change::End { task, .. } = &change {
            tasks.remove(task);
        }
    }
}

fn elapsed(tasks: &BTreeMap<TaskId, Task>, task: TaskId) -> Duration {
    tasks.get(&task).map(|task| task.begun.elapsed()).unwrap_or_default()
}

fn title(tasks: &BTreeMap<TaskId, Task>, task: TaskId) -> &str {
    tasks.get(&task).map_or("", |task| task.title.as_str())
}

/// What a change leaves on a live display for good.
fn live_lines(change: &Change, tasks: &BTreeMap<TaskId, Task>) -> Vec<String> {
    match change {
        Change::End { task, outcome, detail } => {
            let failed = tasks.get(task).filter(|_| *outcome == Outcome::Failed);
            let log = failed.into_iter().flat_map(|task| task.log.iter().cloned());
            live::Live::finished(title(tasks, *task), *outcome, elapsed(tasks, *task), detail, log)
        }
        Change::Note { line } => vec![harmless(line)],
        Change::Diagnostic { text } => text.lines().map(str::to_owned).collect(),
        _ => Vec::new(),
    }
}

/// Of a quiet build only what a failed task said is of use: without it nobody knows why it failed.
fn quiet_lines(change: &Change, tasks: &BTreeMap<TaskId, Task>) -> Vec<String> {
    match change {
        Change::End { task, outcome: Outcome::Failed, .. } => {
            tasks.get(task).map(|task| task.log.iter().cloned().collect()).unwrap_or_default()
        }
        _ => Vec::new(),
    }
}

/// BuildKit's plain form: `#3 text`, so that tools which read it keep working.
fn plain_line(change: &Change, tasks: &BTreeMap<TaskId, Task>) -> Option<String> {
    Some(match change {
        Change::Begin { task, .. } => format!("#{task} {}", title(tasks, *task)),
        Change::Advance { .. } | Change::Partial { .. } => return None,
        Change::Log { task, line } => {
            format!("#{task} {:.2} {}", elapsed(tasks, *task).as_secs_f64(), printable(line))
        }
        Change::End { task, outcome, detail } => {
            let took = units::duration(elapsed(tasks, *task));
            let detail = if detail.is_empty() { String::new() } else { format!(" ({detail})") };
            match outcome {
                Outcome::Cached => format!("#{task} CACHED{detail}"),
                Outcome::Done => format!("#{task} DONE {took}{detail}"),
                Outcome::Failed => format!("#{task} ERROR {took}{detail}"),
                Outcome::Stopped => format!("#{task} CANCELED{detail}"),
            }
        }
        Change::Note { line } => harmless(line),
        Change::Diagnostic { text } => text.clone(),
    })
}

fn json_line(change: &Change, tasks: &BTreeMap<TaskId, Task>) -> Option<String> {
    let value = match change {
        Change::Begin { task, total_bytes, .. } => {
            json!({"event": "begin", "task": task, "title": title(tasks, *task), "totalBytes": total_bytes})
        }
        Change::Advance { task, bytes } => json!({"event": "advance", "task": task, "bytes": bytes}),
        Change::Log { task, line } => json!({"event": "log", "task": task, "line": line}),
        Change::End { task, outcome, detail } => {
            let seconds = elapsed(tasks, *task).as_secs_f64();
            json!({"event": "end", "task": task, "outcome": outcome.name(), "detail": detail, "seconds": seconds})
        }
        Change::Note { line } => json!({"event": "note", "line": line}),
        Change::Diagnostic { text } => json!({"event": "warning", "text": text}),
        Change::Partial { .. } => return None,
    };
    Some(value.to_string())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn tasks() -> BTreeMap<TaskId, Task> {
        BTreeMap::from([(3, Task::new("RUN x"))])
    }

    #[test]
    fn a_quiet_build_tells_what_its_failed_step_said() {
        let mut tasks = tasks();
        for number in 0..=LOG_LINES_MAX {
            tasks.get_mut(&3).unwrap().remember(&format!("line {number}"));
        }
        let end = |outcome| Change::End { task: 3, outcome, detail: String::new() };
        let lines = quiet_lines(&end(Outcome::Failed), &tasks);
        assert_eq!((lines.len(), lines[0].as_str()), (LOG_LINES_MAX, "line 1"));
        assert!(quiet_lines(&end(Outcome::Done), &tasks).is_empty());
    }

    #[test]
    fn plain_lines_are_buildkits() {
        let begin = Change::Begin { task: 3, title: String::new(), total_bytes: None };
        assert_eq!(plain_line(&begin, &tasks()).as_deref(), Some("#3 RUN x"));
        let end = Change::End { task: 3, outcome: Outcome::Cached, detail: String::new() };
        assert_eq!(plain_line(&end, &tasks()).as_deref(), Some("#3 CACHED"));
        assert_eq!(plain_line(&Change::Advance { task: 3, bytes: 1 }, &tasks()), None);
    }

    #[test]
    fn json_lines_are_objects() {
        let log = Change::Log { task: 3, line: "a\"b".to_owned() };
        assert_eq!(json_line(&log, &tasks()).unwrap(), r#"{"event":"log","task":3,"line":"a\"b"}"#);
    }
}
