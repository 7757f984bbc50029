//! The live display: running tasks at the foot of the terminal, finished ones scrolling up as plain lines.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{Change, Outcome, Task, TaskId, elapsed, title};
use crate::terminal::{colour_on_stderr, harmless, shortened};
use crate::units;

/// How often spinners move: enough to look alive, too little to cost.
const TICK: Duration = Duration::from_millis(120);
/// Columns of a running task's line that its title leaves to the spinner, the time and the last line it printed.
const BESIDE_TITLE_COLUMNS: usize = 20;
/// Columns of a blob's line that its title leaves to the bar, the bytes and the speed.
const BESIDE_BAR_COLUMNS: usize = 60;
/// Fewest columns of a title: below, nobody knows what runs.
const TITLE_COLUMNS_MIN: usize = 12;
/// Redraws a second at most, whatever the number of events.
const REDRAWS_PER_SECOND: u8 = 12;

const DIM: Style = Style::new().dimmed();
const GREEN: Style = AnsiColor::Green.on_default();
const BLUE: Style = AnsiColor::Blue.on_default();
const RED: Style = AnsiColor::Red.on_default();

/// The bars of running tasks.
pub(super) struct Live {
    screen: MultiProgress,
    bars: Mutex<BTreeMap<TaskId, ProgressBar>>,
    colour: bool,
    running: ProgressStyle,
    moving: ProgressStyle,
}

impl Live {
    pub(super) fn new() -> Live {
        let screen = MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(REDRAWS_PER_SECOND));
        let style =
            |template: &str| ProgressStyle::with_template(template).expect("the template is a constant");
        Live {
            screen,
            bars: Mutex::default(),
            colour: colour_on_stderr(),
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
                let beside = if total_bytes.is_some() { BESIDE_BAR_COLUMNS } else { BESIDE_TITLE_COLUMNS };
                let bar = self.screen.add(bar.with_prefix(fitting(title(tasks, *task), beside)));
                bar.enable_steady_tick(TICK);
                bars.insert(*task, bar);
            }
            Change::Advance { task, bytes } => {
                if let Some(bar) = bars.get(task) {
                    bar.set_position(*bytes);
                }
            }
            Change::Log { task, line } => {
                if let Some(bar) = bars.get(task) {
                    bar.set_message(harmless(line));
                }
            }
            Change::End { task, outcome, detail } => {
                if let Some(bar) = bars.remove(task) {
                    bar.finish_and_clear();
                    self.screen.remove(&bar);
                    self.finished(tasks, *task, *outcome, detail);
                }
            }
            Change::Note { line } => self.scroll(&harmless(line)),
        }
    }

    fn finished(&self, tasks: &BTreeMap<TaskId, Task>, task: TaskId, outcome: Outcome, detail: &str) {
        let took = units::duration(elapsed(tasks, task));
        let title = title(tasks, task);
        let detail = if detail.is_empty() { String::new() } else { format!("  {}", self.paint(DIM, detail)) };
        match outcome {
            Outcome::Done => {
                let (mark, took) = (self.paint(GREEN, "✓"), self.paint(DIM, &took));
                self.scroll(&format!(" {mark} {title} {took}{detail}"));
            }
            Outcome::Cached => {
                let (mark, cached) = (self.paint(BLUE, "="), self.paint(BLUE, "cached"));
                self.scroll(&format!(" {mark} {title} {cached}{detail}"));
            }
            Outcome::Failed => {
                for line in tasks.get(&task).iter().flat_map(|task| &task.log) {
                    self.scroll(&format!("   {line}"));
                }
                let (mark, failed) = (self.paint(RED, "✗"), self.paint(RED, "failed"));
                self.scroll(&format!(" {mark} {title} {failed} {took}{detail}"));
            }
        }
    }

    /// `text` in a colour, where colours are wanted.
    fn paint(&self, colour: Style, text: &str) -> String {
        if self.colour { format!("{colour}{text}{colour:#}") } else { text.to_owned() }
    }
}

/// A title short enough for its task to stay on one line: a wrapped line would make the display jump.
fn fitting(title: &str, beside: usize) -> String {
    let columns = rustix::termios::tcgetwinsize(std::io::stderr()).map_or(0, |size| usize::from(size.ws_col));
    // Where the width is unknown, 80 is what terminals begin with.
    let columns = if columns == 0 { 80 } else { columns };
    shortened(title, columns.saturating_sub(beside).max(TITLE_COLUMNS_MIN))
}
