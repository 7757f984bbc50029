//! What the live display shows, as rows of text: a pure function of the tasks, the time and the terminal's size.
//! Putting rows onto the terminal is left to [`super::live`].

use std::time::Duration;

use anstyle::{AnsiColor, Style};

use super::Outcome;
use crate::printable::{columns, fitting};
use crate::units;

/// What turns at the head of a running task.
const SPINNER: [char; 10] = ['⠋', '⠙', '⠹', '⠸', '⠼', '⠴', '⠦', '⠧', '⠇', '⠏'];
/// Fewest columns of a title: below, nobody knows what runs.
const TITLE_COLUMNS_MIN: usize = 12;
/// Fewest columns of what a task printed last: below, it says nothing.
const SAID_COLUMNS_MIN: usize = 10;
/// Columns of a bar, where there is room.
const BAR_COLUMNS: usize = 20;

const DIM: Style = Style::new().dimmed();
const CYAN: Style = AnsiColor::Cyan.on_default();
const GREEN: Style = AnsiColor::Green.on_default();
const BLUE: Style = AnsiColor::Blue.on_default();
const RED: Style = AnsiColor::Red.on_default();
const YELLOW: Style = AnsiColor::Yellow.on_default();

/// The terminal, as far as it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Screen {
    /// Columns of a row.
    pub(super) columns: usize,
    /// Rows.
    pub(super) rows: usize,
    /// Whether colours are wanted.
    pub(super) colour: bool,
}

/// A task that runs.
#[derive(Clone, Debug, Default)]
pub(super) struct Running {
    /// What it is; harmless.
    pub(super) title: String,
    /// Since when.
    pub(super) elapsed: Duration,
    /// What it printed last; printable.
    pub(super) said: String,
    /// Bytes moved, and to be moved, where that is what it does.
    pub(super) bytes: Option<(u64, u64)>,
}

/// One row: its text with colours, and its width without them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Row {
    /// The text.
    pub(super) text: String,
    /// Its columns.
    pub(super) columns: usize,
}

impl Row {
    fn push(&mut self, text: &str, style: Style, screen: Screen) {
        self.columns += columns(text);
        if screen.colour && style != Style::new() && !text.is_empty() {
            self.text.push_str(&format!("{style}{text}{style:#}"));
        } else {
            self.text.push_str(text);
        }
    }
}

/// The rows of running tasks: each on one row, so many as leave a row for what scrolls up; then how many more.
pub(super) fn running_rows(running: &[Running], turn: usize, screen: Screen) -> Vec<Row> {
    let rows_max = screen.rows.saturating_sub(2).max(1);
    let shown = if running.len() > rows_max { rows_max - 1 } else { running.len() };
    let mut rows: Vec<Row> = running[..shown].iter().map(|task| running_row(task, turn, screen)).collect();
    if shown < running.len() {
        let mut row = Row::default();
        let text = match shown {
            0 => format!(" {} steps run", running.len()),
            _ => format!(" … and {} more", running.len() - shown),
        };
        row.push(&fitting(&text, room(screen)), DIM, screen);
        rows.push(row);
    }
    rows
}

/// Columns of a row that are written: writing the last one makes some terminals go to the next row.
fn room(screen: Screen) -> usize {
    screen.columns.saturating_sub(1)
}

fn running_row(task: &Running, turn: usize, screen: Screen) -> Row {
    let mut row = Row::default();
    row.push(&format!(" {} ", SPINNER[turn % SPINNER.len()]), CYAN, screen);
    let room = room(screen).saturating_sub(row.columns);
    match task.bytes {
        Some((moved, total)) => push_transfer(&mut row, task, (moved, total), room, screen),
        None => push_step(&mut row, task, room, screen),
    }
    row
}

/// `title 1.2s  what it printed last`
fn push_step(row: &mut Row, task: &Running, room: usize, screen: Screen) {
    let took = format!(" {}", units::duration(task.elapsed));
    let room = room.saturating_sub(columns(&took));
    // A long title leaves two fifths to what the task prints, where that is enough to say something.
    let part = (room * 3 / 5).max(TITLE_COLUMNS_MIN);
    let shares = !task.said.is_empty() && part + 2 + SAID_COLUMNS_MIN <= room;
    let most = if shares { part } else { room };
    let title = fitting(&task.title, most);
    let left = room.saturating_sub(columns(&title) + 2);
    row.push(&title, Style::new(), screen);
    row.push(&took, DIM, screen);
    if left >= SAID_COLUMNS_MIN && !task.said.is_empty() {
        row.push(&format!("  {}", fitting(&task.said, left)), DIM, screen);
    }
}

/// `title ━━━━━╌╌╌╌╌ 1.2MB/3.4MB 5.6MB/s`
fn push_transfer(row: &mut Row, task: &Running, (moved, total): (u64, u64), room: usize, screen: Screen) {
    let sizes = format!(" {}/{}", units::size(moved), units::size(total));
    let seconds = task.elapsed.as_secs_f64();
    let speed = match seconds > 0.5 {
        // A speed needs no digit that an f64 does not have.
        true => format!(" {}/s", units::size((moved as f64 / seconds) as u64)),
        false => String::new(),
    };
    let title = fitting(&task.title, room.saturating_sub(columns(&sizes)).max(TITLE_COLUMNS_MIN).min(room));
    let left = room.saturating_sub(columns(&title) + columns(&sizes));
    row.push(&title, Style::new(), screen);
    let full = match total {
        0 => BAR_COLUMNS,
        _ => (moved.min(total) as u128 * BAR_COLUMNS as u128 / u128::from(total)) as usize,
    };
    if left > BAR_COLUMNS {
        row.push(&format!(" {}", "━".repeat(full)), CYAN, screen);
        row.push(&"╌".repeat(BAR_COLUMNS - full), DIM, screen);
    }
    row.push(&fitting(&sizes, room.saturating_sub(columns(&title))), Style::new(), screen);
    if left > BAR_COLUMNS + columns(&speed) {
        row.push(&speed, DIM, screen);
    }
}

/// The rows that a finished task leaves: one, and a further one for a detail that is too long for it.
pub(super) fn finished_rows(
    title: &str,
    outcome: Outcome,
    took: Duration,
    detail: &str,
    screen: Screen,
) -> Vec<Row> {
    let took = units::duration(took);
    let (mark, colour, word, took) = match outcome {
        Outcome::Done => ("✓", GREEN, "", took),
        Outcome::Cached => ("=", BLUE, "cached", String::new()),
        Outcome::Failed => ("✗", RED, "failed", took),
        Outcome::Stopped => ("-", YELLOW, "stopped", took),
    };
    let words: Vec<(&str, Style)> =
        [(word, colour), (took.as_str(), DIM)].into_iter().filter(|(word, _)| !word.is_empty()).collect();
    let behind: usize = words.iter().map(|(word, _)| 1 + columns(word)).sum();
    let room = room(screen).saturating_sub(3 + behind);
    let detail_fits = !detail.is_empty() && columns(title).min(room) + 2 + columns(detail) <= room;
    // A short detail, such as a size, is worth more than the end of a long title.
    let short_detail = !detail.is_empty() && columns(detail) + 2 + TITLE_COLUMNS_MIN <= room;
    let beside = if detail_fits || short_detail { columns(detail) + 2 } else { 0 };
    let mut row = Row::default();
    row.push(&format!(" {mark} "), colour, screen);
    row.push(&fitting(title, room.saturating_sub(beside)), Style::new(), screen);
    for (word, style) in words {
        row.push(&format!(" {word}"), style, screen);
    }
    if beside > 0 {
        row.push(&format!("  {detail}"), DIM, screen);
        return vec![row];
    }
    let mut rows = vec![row];
    if !detail.is_empty() {
        let mut row = Row::default();
        row.push(&format!("     {detail}"), DIM, screen);
        rows.push(row);
    }
    rows
}

/// How many rows of a terminal of so many columns rows take that were written for another width: terminals wrap them
/// when they become narrower.
pub(super) fn height(widths: &[usize], columns: usize) -> usize {
    widths.iter().map(|width| width.div_ceil(columns.max(1)).max(1)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn screen(columns: usize, rows: usize) -> Screen {
        Screen { columns, rows, colour: false }
    }

    fn task(title: &str, said: &str) -> Running {
        Running { title: title.into(), elapsed: Duration::from_secs(3), said: said.into(), bytes: None }
    }

    fn texts(rows: &[Row]) -> Vec<&str> {
        rows.iter().map(|row| row.text.as_str()).collect()
    }

    #[test]
    fn running_tasks_fit_any_terminal() {
        let title = "[web 2/5] RUN 漢字漢字 apt-get install -y --no-install-recommends build-essential";
        let said = "Get:1 http://deb.debian.org/debian 🦀 bookworm InRelease";
        let mut transfer = task("0123456789ab 1.2 GB", "");
        transfer.bytes = Some((300_000_000, 1_200_000_000));
        let tasks: Vec<Running> = (0..30)
            .map(|number| match number % 3 {
                0 => task(title, said),
                1 => task("short", ""),
                _ => transfer.clone(),
            })
            .collect();
        for columns in [1, 5, 20, 40, 60, 80, 200] {
            for rows in [1, 2, 8, 24, 100] {
                let shown = running_rows(&tasks, 7, screen(columns, rows));
                assert!(shown.len() < rows.max(2), "{columns}x{rows}");
                for row in shown.iter().filter(|_| columns >= 20) {
                    assert!(row.columns < columns, "{columns}: {}", row.text);
                    assert_eq!(row.columns, crate::printable::columns(&row.text));
                }
            }
        }
    }

    #[test]
    fn rows_of_running_tasks() {
        let rows = running_rows(&[task("[1/2] RUN make all-of-it", "cc -o main main.c")], 0, screen(40, 24));
        assert_eq!(texts(&rows), [" ⠋ [1/2] RUN make al… 3.0s  cc -o main…"]);
        let rows = running_rows(&[task("[1/2] RUN make all-of-it", "")], 0, screen(40, 24));
        assert_eq!(texts(&rows), [" ⠋ [1/2] RUN make all-of-it 3.0s"]);
        let five: Vec<Running> = (0..5).map(|number| task(&number.to_string(), "")).collect();
        assert_eq!(
            texts(&running_rows(&five, 0, screen(40, 5))),
            [" ⠋ 0 3.0s", " ⠋ 1 3.0s", " … and 3 more"]
        );
        assert_eq!(texts(&running_rows(&five, 0, screen(40, 1))), [" 5 steps run"]);
    }

    #[test]
    fn finished_tasks_keep_to_one_row_where_they_can() {
        let title = "[2/5] RUN apt-get install -y --no-install-recommends gcc";
        let done = |detail, columns| {
            let took = Duration::from_millis(1200);
            finished_rows(title, Outcome::Done, took, detail, screen(columns, 24))
        };
        for columns in [20, 40, 60, 80, 200] {
            for row in done("1.2 MB", columns).iter().filter(|row| !row.text.starts_with("    ")) {
                assert!(row.columns < columns, "{columns}: {}", row.text);
            }
        }
        assert_eq!(
            texts(&done("1.2 MB", 60)),
            [" ✓ [2/5] RUN apt-get install -y --no-install-… 1.2s  1.2 MB"]
        );
        let why = "1.2 MB, ran because file src/deep/in/the/tree/main.c changed";
        let rows = done(why, 60);
        assert_eq!(rows.len(), 2);
        assert_eq!(rows[1].text, format!("     {why}"));
        let rows = finished_rows("t", Outcome::Stopped, Duration::ZERO, "", screen(60, 24));
        assert_eq!(texts(&rows), [" - t stopped 0.0s"]);
    }

    #[test]
    fn wrapped_rows_are_counted() {
        assert_eq!(height(&[79, 10, 0], 80), 3);
        assert_eq!(height(&[79, 10, 0], 40), 4);
        assert_eq!(height(&[79], 0), 79);
    }

    #[test]
    fn colours_have_no_width() {
        let screen = Screen { colour: true, ..screen(40, 24) };
        let rows = running_rows(&[task("t", "s")], 0, screen);
        assert!(rows[0].text.contains('\x1b') && rows[0].columns < 20, "{rows:?}");
    }
}
