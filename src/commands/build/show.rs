//! A build's events as tasks of the display: a task for each step, numbered in the order in which they begin.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use rimg_builder::diagnostic::Style;
use rimg_builder::events::{Event, LayerSummary, StageOutline, StepId};
use rimg_builder::source::SourceFile;

use crate::progress::{Change, Display, Outcome, TaskId};
use crate::units;

/// Longest instruction shown in a title.
const INSTRUCTION_CHARS_MAX: usize = 100;

/// Shows the steps of one build.
pub(super) struct Steps<'a> {
    display: &'a Display,
    source: &'a SourceFile,
    explain: bool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    stages: Vec<StageOutline>,
    tasks: BTreeMap<StepId, TaskId>,
    misses: BTreeMap<StepId, String>,
}

impl<'a> Steps<'a> {
    pub(super) fn new(display: &'a Display, source: &'a SourceFile, explain: bool) -> Steps<'a> {
        Steps { display, source, explain, state: Mutex::default() }
    }

    pub(super) fn show(&self, event: Event) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Planned { stages } => state.stages = stages,
            Event::Warning(diagnostic) => {
                let style = if self.display.has_colour() { Style::Colour } else { Style::Plain };
                let text = diagnostic.render(self.source, style).trim_end().to_owned();
                self.display.apply(Change::Diagnostic { text });
            }
            Event::StepStarted { id } => {
                let task = self.display.number();
                state.tasks.insert(id, task);
                let title = title(&state.stages, id);
                self.display.apply(Change::Begin { task, title, total_bytes: None });
            }
            Event::StepMissed { id, miss } => {
                state.misses.insert(id, miss.to_string());
            }
            Event::StepOutput { id, line, .. } => {
                if let Some(&task) = state.tasks.get(&id) {
                    self.display.apply(Change::Log { task, line });
                }
            }
            Event::StepProgress { id, line } => {
                if let Some(&task) = state.tasks.get(&id) {
                    self.display.apply(Change::Partial { task, line });
                }
            }
            Event::StepCached { id, key, .. } => {
                let key = key.filter(|_| self.explain);
                let detail = key.map_or_else(String::new, |key| format!("key {key}"));
                self.end(&state, id, Outcome::Cached, detail);
            }
            Event::StepDone { id, layer, .. } => {
                let detail = self.detail(&state, id, layer);
                self.end(&state, id, Outcome::Done, detail);
            }
            Event::StepFailed { id } => self.end(&state, id, Outcome::Failed, String::new()),
            Event::StepStopped { id } => self.end(&state, id, Outcome::Stopped, String::new()),
            Event::Finished { .. } => {}
        }
    }

    fn detail(&self, state: &State, id: StepId, layer: Option<LayerSummary>) -> String {
        let size = layer.map(|layer| units::size(layer.size_bytes));
        let why = state.misses.get(&id).filter(|_| self.explain).map(|why| format!("ran because {why}"));
        [size, why].into_iter().flatten().collect::<Vec<_>>().join(", ")
    }

    fn end(&self, state: &State, id: StepId, outcome: Outcome, detail: String) {
        if let Some(&task) = state.tasks.get(&id) {
            self.display.apply(Change::End { task, outcome, detail });
        }
    }
}

/// `[web 2/5] COPY site /srv`, as BuildKit titles steps.
fn title(stages: &[StageOutline], id: StepId) -> String {
    let Some(stage) = stages.get(id.stage) else { return format!("step {}", id.step) };
    let instruction = stage.steps.get(id.step).map_or("", String::as_str);
    let mut short: String = instruction.chars().take(INSTRUCTION_CHARS_MAX).collect();
    if short.len() < instruction.len() {
        short.push('…');
    }
    let needed = stages.iter().filter(|stage| stage.needed).count();
    let name = if needed > 1 { format!("{} ", stage.name) } else { String::new() };
    format!("[{name}{}/{}] {short}", id.step + 1, stage.steps.len())
}
