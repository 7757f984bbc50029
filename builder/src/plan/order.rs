//! Which stages the target needs, every one behind those it needs itself.

use super::stages::Drafts;
use super::{Base, CopySource, Graph, PlanOptions, Stage};
use crate::diagnostic::Diagnostic;
use crate::suggest;
use crate::syntax::Buildfile;

pub(super) fn order(
    drafts: Drafts,
    file: &Buildfile,
    options: &PlanOptions,
    mut warnings: Vec<Diagnostic>,
) -> Result<Graph, Vec<Diagnostic>> {
    let target = target(&drafts.stages, options.target.as_deref()).map_err(|error| vec![error])?;
    let needed = needed(&drafts.stages, target).map_err(|error| vec![error])?;
    let mut places = vec![None; drafts.stages.len()];
    for (place, number) in needed.iter().enumerate() {
        places[*number] = Some(place);
    }
    let place = |number: usize| places[number].expect("every stage that is needed was given a place");
    let stages = needed.iter().map(|number| renumber(drafts.stages[*number].clone(), &place)).collect();
    warnings.extend(drafts.globals.unused(&drafts.declared));
    Ok(Graph { stages, target: place(target), globals: drafts.globals, escape: file.escape, warnings })
}

fn target(stages: &[Stage], target: Option<&str>) -> Result<usize, Diagnostic> {
    let Some(text) = target else {
        return stages
            .len()
            .checked_sub(1)
            .ok_or_else(|| Diagnostic::error_without_place("there is no FROM instruction"));
    };
    let lower = text.to_lowercase();
    let named = stages.iter().rposition(|stage| stage.name.as_deref() == Some(lower.as_str()));
    let numbered = || text.parse::<usize>().ok().filter(|number| *number < stages.len());
    named.or_else(numbered).ok_or_else(|| {
        let names: Vec<&str> = stages.iter().filter_map(|stage| stage.name.as_deref()).collect();
        let error = Diagnostic::error_without_place(format!("target stage `{text}` does not exist"));
        match suggest::nearest(text, names.iter().copied()) {
            Some(near) => error.did_you_mean(Some(near)),
            None if names.is_empty() => {
                error.help("no stage has a name; give it one with `FROM image AS name`")
            }
            None => error.help(format!("the stages are {}", names.join(", "))),
        }
    })
}

/// Numbers of the needed stages in order of execution. Without recursion: a file may chain thousands.
fn needed(stages: &[Stage], target: usize) -> Result<Vec<usize>, Diagnostic> {
    let mut is_done = vec![false; stages.len()];
    let mut order = Vec::new();
    let mut path = vec![target];
    while let Some(&number) = path.last() {
        let dependencies = &stages[number].dependencies;
        // Earlier stages alone, so that no circle can close.
        if let Some(&later) = dependencies.iter().find(|dependency| **dependency > number) {
            return Err(from_later(stages, number, later));
        }
        match dependencies.iter().find(|dependency| !is_done[**dependency]) {
            Some(&next) => path.push(next),
            None => {
                is_done[number] = true;
                order.push(number);
                path.pop();
            }
        }
    }
    Ok(order)
}

fn from_later(stages: &[Stage], number: usize, later: usize) -> Diagnostic {
    let name = |number: usize| stages[number].name.clone().unwrap_or_else(|| number.to_string());
    let is_later = |source: &CopySource| *source == CopySource::Stage(later);
    let stage = &stages[number];
    let step =
        stage.steps.iter().find(|step| is_later(&step.source) || step.mount_sources.iter().any(is_later));
    let span = step.map_or(stage.from.span, |step| step.triggered_by.unwrap_or(step.instruction.span));
    let message = format!("stage `{}` comes after stage `{}`, which needs it", name(later), name(number));
    Diagnostic::error(span, message).label("only earlier stages can be copied from").help(format!(
        "move stage `{}` in front of stage `{}`",
        name(later),
        name(number)
    ))
}

/// Numbers of the file to places in the graph.
fn renumber(mut stage: Stage, place: &impl Fn(usize) -> usize) -> Stage {
    if let Base::Stage(number) = &mut stage.base {
        *number = place(*number);
    }
    for step in &mut stage.steps {
        for source in step.mount_sources.iter_mut().chain([&mut step.source]) {
            if let CopySource::Stage(number) = source {
                *number = place(*number);
            }
        }
    }
    stage.dependencies = stage.dependencies.iter().map(|number| place(*number)).collect();
    stage
}
