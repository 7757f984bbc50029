//! Runs stages, each as soon as those it needs are done; stages without an edge between them at the same time, as far
//! as the bound allows. A stage takes its place under the bound only when nothing it needs is missing, and never waits
//! for one that has no place: so the bound cannot lock anything up.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::mpsc;
use std::sync::{Arc, OnceLock};

use super::error::BuildError;

/// What is done for an item.
type Work<'a, T> = dyn Fn(usize, &Results<T>) -> Result<T, BuildError> + Sync + 'a;

/// Runs `run` for each of `dependencies.len()` items; item `n` after all of `dependencies[n]`, whose results it can
/// ask for. At most `at_once` run at a time, lower numbers first. The first error ends the run: what has begun is waited for, nothing more begins.
pub(crate) fn run_in_order<T: Send + Sync>(
    dependencies: &[BTreeSet<usize>],
    at_once: usize,
    run: &Work<'_, T>,
) -> Result<Vec<Arc<T>>, BuildError> {
    let results = Results(dependencies.iter().map(|_| OnceLock::new()).collect());
    let mut waiting: BTreeSet<usize> = (0..dependencies.len()).collect();
    let mut failure: Option<BuildError> = None;
    std::thread::scope(|scope| {
        let (sender, receiver) = mpsc::channel();
        let mut running: usize = 0;
        loop {
            let is_ready = |item: &usize| dependencies[*item].iter().all(|needed| results.is_done(*needed));
            let ready: Vec<usize> = waiting.iter().copied().filter(is_ready).collect();
            if failure.is_none() {
                for item in ready.into_iter().take(at_once.max(1) - running) {
                    waiting.remove(&item);
                    running += 1;
                    let (sender, results) = (sender.clone(), &results);
                    scope.spawn(move || {
                        // A panic has to be sent as well: this loop would wait for it for ever.
                        let result = catch_unwind(AssertUnwindSafe(|| run(item, results)));
                        let _ = sender.send((item, result));
                    });
                }
            }
            if running == 0 {
                break;
            }
            let Ok((item, result)) = receiver.recv() else { break };
            running -= 1;
            match result.unwrap_or_else(|panic| resume_unwind(panic)) {
                Ok(result) => drop(results.0[item].set(Arc::new(result))),
                // Of several failures the first to be noticed is told, but never "stopped" if there is another.
                Err(error) => match &failure {
                    Some(told) if !told.is_stop() || error.is_stop() => {}
                    _ => failure = Some(error),
                },
            }
        }
    });
    match failure {
        Some(error) => Err(error),
        None => Ok(results.0.into_iter().filter_map(OnceLock::into_inner).collect()),
    }
}

/// What has been done so far.
pub(crate) struct Results<T>(Vec<OnceLock<Arc<T>>>);

impl<T> Results<T> {
    fn is_done(&self, item: usize) -> bool {
        self.0.get(item).is_some_and(|result| result.get().is_some())
    }

    /// The result of an item that the asking one depends on.
    pub(crate) fn get(&self, item: usize) -> &Arc<T> {
        self.0[item].get().expect("an item runs after all it depends on")
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn dependencies_are_done_first() {
        let dependencies =
            [BTreeSet::new(), BTreeSet::from([0]), BTreeSet::from([0]), BTreeSet::from([1, 2])];
        let sums = run_in_order(&dependencies, 2, &|item, results| {
            Ok(dependencies[item].iter().map(|needed| **results.get(*needed)).sum::<usize>() + 1)
        });
        assert_eq!(sums.unwrap().iter().map(|sum| **sum).collect::<Vec<_>>(), [1, 2, 2, 5]);
    }

    #[test]
    fn the_first_failure_ends_the_run() {
        let dependencies = [BTreeSet::new(), BTreeSet::from([0])];
        let failed = run_in_order::<()>(&dependencies, 2, &|item, _| {
            assert_eq!(item, 0);
            Err(BuildError::Buildfile(Vec::new()))
        });
        assert!(matches!(failed, Err(BuildError::Buildfile(_))));
    }

    #[test]
    fn a_panic_is_passed_on() {
        let dependencies = [BTreeSet::new(), BTreeSet::from([0])];
        let run = || run_in_order::<()>(&dependencies, 2, &|_, _| panic!("on purpose"));
        assert!(catch_unwind(run).is_err());
    }

    #[test]
    fn as_many_at_once_as_allowed_and_no_more() {
        const AT_ONCE: usize = 7;
        // The last needs all others, and each of the second half one of the first.
        let mut dependencies: Vec<BTreeSet<usize>> = (0..200)
            .map(|item| if item < 100 { BTreeSet::new() } else { BTreeSet::from([item - 100]) })
            .collect();
        dependencies.push((0..200).collect());
        let (running, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        // The first seven wait for each other: fewer at once would never end.
        let together = std::sync::Barrier::new(AT_ONCE);
        let done = run_in_order(&dependencies, AT_ONCE, &|item, _| {
            most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            if item < AT_ONCE {
                together.wait();
            }
            running.fetch_sub(1, Ordering::SeqCst);
            Ok(item)
        });
        assert_eq!(done.unwrap().len(), 201);
        assert_eq!(most.into_inner(), AT_ONCE);
    }
}
