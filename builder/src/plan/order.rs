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

#[derive(Clone, Copy, PartialEq)]
enum Mark {
    New,
    Open,
    Done,
}

/// Numbers of the needed stages in order of execution. Without recursion: a file may chain thousands.
fn needed(stages: &[Stage], target: usize) -> Result<Vec<usize>, Diagnostic> {
    let mut marks = vec![Mark::New; stages.len()];
    let mut order = Vec::new();
    let mut path = vec![target];
    while let Some(&number) = path.last() {
        marks[number] = Mark::Open;
        let dependencies = &stages[number].dependencies;
        if let Some(&open) = dependencies.iter().find(|dependency| marks[**dependency] == Mark::Open) {
            let open_at = path.iter().position(|stage| *stage == open).unwrap_or(0);
            return Err(cycle(stages, &path[open_at..]));
        }
        match dependencies.iter().find(|dependency| marks[**dependency] == Mark::New) {
            Some(&next) => path.push(next),
            None => {
                marks[number] = Mark::Done;
                order.push(number);
                path.pop();
            }
        }
    }
    Ok(order)
}

fn cycle(stages: &[Stage], members: &[usize]) -> Diagnostic {
    let name = |number: &usize| stages[*number].name.clone().unwrap_or_else(|| number.to_string());
    let mut names: Vec<String> = members.iter().map(name).collect();
    names.push(names[0].clone());
    let last = &stages[members[members.len() - 1]];
    let to_first = |source: &CopySource| *source == CopySource::Stage(members[0]);
    let step =
        last.steps.iter().find(|step| to_first(&step.source) || step.mount_sources.iter().any(to_first));
    let span = step.map_or(last.from.span, |step| step.triggered_by.unwrap_or(step.instruction.span));
    Diagnostic::error(span, format!("stages need each other: {}", names.join(" -> ")))
        .label("this closes the circle")
        .help("move what both need into a stage of its own")
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
