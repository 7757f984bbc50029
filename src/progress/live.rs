//! The live display: running tasks at the foot of the terminal, finished ones scrolling up as plain lines.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Mutex;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{Change, Outcome, Task, TaskId, elapsed, title};
use crate::terminal::harmless;
use crate::units;

/// How often spinners move: enough to look alive, too little to cost.
const TICK: Duration = Duration::from_millis(120);
/// Lines of a task kept to be shown should it fail: more than a screen, whatever it prints.
const LOG_LINES_MAX: usize = 500;
/// Redraws a second at most, whatever the number of events.
const REDRAWS_PER_SECOND: u8 = 12;

/// The bars of running tasks.
pub(super) struct Live {
    screen: MultiProgress,
    bars: Mutex<BTreeMap<TaskId, Bar>>,
    running: ProgressStyle,
    moving: ProgressStyle,
}

struct Bar {
    bar: ProgressBar,
    log: VecDeque<String>,
}

impl Live {
    pub(super) fn new() -> Live {
        let screen = MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(REDRAWS_PER_SECOND));
        let style =
            |template: &str| ProgressStyle::with_template(template).expect("the template is a constant");
        Live {
            screen,
            bars: Mutex::default(),
            running: style(" {spinner:.cyan} {prefix} {elapsed:.dim}  {wide_msg:.dim}"),
            moving: style(
                " {spinner:.cyan} {prefix} {bar:20.cyan/dim} {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec:.dim}",
            ),
        }
    }

    /// Prints a line above the running tasks.
    fn scroll(&self, line: &str) {
        // A terminal that has gone away takes no more lines; the work goes on.
        let _ = self.screen.println(line);
    }

    pub(super) fn apply(&self, change: &Change, tasks: &BTreeMap<TaskId, Task>) {
        let mut bars = self.bars.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match change {
            Change::Begin { task, total_bytes, .. } => {
                let bar = match total_bytes {
                    Some(total) => ProgressBar::new(*total).with_style(self.moving.clone()),
                    None => ProgressBar::new_spinner().with_style(self.running.clone()),
                };
                let bar = self.screen.add(bar.with_prefix(title(tasks, *task).to_owned()));
                bar.enable_steady_tick(TICK);
                bars.insert(*task, Bar { bar, log: VecDeque::new() });
            }
            Change::Advance { task, bytes } => {
                if let Some(bar) = bars.get(task) {
                    bar.bar.set_position(*bytes);
                }
            }
            Change::Log { task, line } => {
                if let Some(bar) = bars.get_mut(task) {
                    let line = harmless(line);
                    bar.bar.set_message(line.clone());
                    if bar.log.len() == LOG_LINES_MAX {
                        bar.log.pop_front();
                    }
                    bar.log.push_back(line);
                }
            }
            Change::End { task, outcome, detail } => {
                if let Some(bar) = bars.remove(task) {
                    bar.bar.finish_and_clear();
                    self.screen.remove(&bar.bar);
                    self.finished(tasks, *task, *outcome, detail, &bar.log);
                }
            }
            Change::Note { line } => self.scroll(&harmless(line)),
        }
    }

    fn finished(
        &self,
        tasks: &BTreeMap<TaskId, Task>,
        task: TaskId,
        outcome: Outcome,
        detail: &str,
        log: &VecDeque<String>,
    ) {
        let took = units::duration(elapsed(tasks, task));
        let title = title(tasks, task);
        let detail = if detail.is_empty() { String::new() } else { format!("  \x1b[2m{detail}\x1b[0m") };
        match outcome {
            Outcome::Done => self.scroll(&format!(" \x1b[32m✓\x1b[0m {title} \x1b[2m{took}\x1b[0m{detail}")),
            Outcome::Cached => {
                self.scroll(&format!(" \x1b[34m=\x1b[0m {title} \x1b[34mcached\x1b[0m{detail}"))
            }
            Outcome::Failed => {
                for line in log {
                    self.scroll(&format!("   {line}"));
                }
                self.scroll(&format!(" \x1b[31m✗\x1b[0m {title} \x1b[31mfailed\x1b[0m {took}{detail}"));
            }
        }
    }
}
