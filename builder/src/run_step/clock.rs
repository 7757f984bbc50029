//! The logical clock of a build: which times the layers' files have for a RUN step.
//!
//! Layers made here carry one constant time, so that equal content is one layer. To `make` or `cargo` everything would
//! be of the same age, and what an earlier step built would never be out of date. So a step sees each such layer with a
//! time of its own, a second later than all that lies below it.
//!
//! - A layer whose entries all have one time is *clocked*: it gets the newest time below it plus a second, or its own
//!   time if that is later.
//! - Any other layer keeps the times that its entries say.
//!
//! Files that a step wrote anew with the content that they had are in no layer; they get the step's time all the same.
//!
//! The times are a function of the stack of layers and of these files, and of nothing else: neither of the wall clock, nor of whether a
//! step was run or found in the cache, nor of which of the layers came with the base.

use std::collections::BTreeMap;
use std::sync::Arc;

use rimg_formats::layer::{LayerIndex, LayerPath, Mtime, MtimePolicy};
use rimg_runner::snapshots::SnapshotTimes;

use crate::assemble::Touch;

/// The latest time that moves the clock, 2038-01-01: entries that claim to be later would bring what a step writes to
/// where file systems with 32-bit times end.
const CLOCK_MAX: i64 = 2_145_916_800;

/// The times of a stack of layers.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct LayerTimes {
    /// Of each layer, the lowest first.
    pub(super) layers: Vec<SnapshotTimes>,
    /// Of each layer, the one time that all its files have for a step; `None` for one that keeps its own.
    pub(super) clocked: Vec<Option<i64>>,
    /// Of files that steps only touched, and the number of layers that were there then.
    pub(super) touched: BTreeMap<LayerPath, (i64, usize)>,
    /// Of what is written on top.
    pub(super) next: SnapshotTimes,
}

impl LayerTimes {
    /// The times of `layers`, the lowest first, and of what steps touched, for a build whose entries get times by
    /// `policy`.
    pub(super) fn of(layers: &[Arc<LayerIndex>], touches: &[Touch], policy: MtimePolicy) -> LayerTimes {
        let MtimePolicy::Fixed(epoch) = policy else {
            return LayerTimes {
                layers: vec![SnapshotTimes::Exported; layers.len()],
                clocked: vec![None; layers.len()],
                touched: BTreeMap::new(),
                next: SnapshotTimes::Exported,
            };
        };
        let mut newest: Option<i64> = None;
        let above = |newest: Option<i64>, own: i64| newest.map_or(own, |below| own.max(below + 1));
        let mut times = LayerTimes {
            layers: Vec::new(),
            clocked: Vec::new(),
            touched: BTreeMap::new(),
            next: SnapshotTimes::Exported,
        };
        for (number, layer) in layers.iter().enumerate() {
            let (own, clocked) = match Span::of(layer, epoch.seconds()) {
                Span::Empty => (SnapshotTimes::Exported, None),
                Span::One(own) => {
                    let time = above(newest, own);
                    newest = Some(time);
                    let is_own = time == own;
                    (if is_own { SnapshotTimes::Exported } else { SnapshotTimes::Build(time) }, Some(time))
                }
                Span::Until(latest) => {
                    newest = newest.max(Some(latest));
                    (SnapshotTimes::Exported, None)
                }
            };
            times.layers.push(own);
            times.clocked.push(clocked);
            for touch in touches.iter().filter(|touch| touch.layers == number + 1) {
                // With its layer, a step has the time of that; else one of its own.
                let time = match (touch.has_layer, clocked) {
                    (true, Some(time)) => time,
                    _ => above(newest, epoch.seconds()),
                };
                newest = newest.max(Some(time));
                let paths = touch.paths.iter().map(|path| (path.clone(), (time, touch.layers)));
                times.touched.extend(paths);
            }
        }
        times.next = SnapshotTimes::Build(above(newest, epoch.seconds()));
        times
    }
}

impl LayerTimes {
    /// The one time of what is written on top; `None` where files keep their own.
    pub(super) fn next_time(&self) -> Option<Mtime> {
        match self.next {
            SnapshotTimes::Build(secs) => Some(Mtime { secs, nanos: 0 }),
            SnapshotTimes::Exported => None,
        }
    }
}

/// The times in a layer.
enum Span {
    /// There are none.
    Empty,
    /// All entries have this one.
    One(i64),
    /// The latest of several that moves the clock.
    Until(i64),
}

impl Span {
    fn of(layer: &LayerIndex, epoch: i64) -> Span {
        let mut times = layer.entries.iter().map(|entry| &entry.entry).filter(|entry| !entry.is_marker());
        let Some(first) = times.next().map(|entry| entry.mtime) else { return Span::Empty };
        let mut is_one = first.nanos == 0;
        let mut latest = i64::MIN;
        for Mtime { secs, nanos } in std::iter::once(first).chain(times.map(|entry| entry.mtime)) {
            is_one &= secs == first.secs && nanos == 0;
            if secs <= CLOCK_MAX {
                latest = latest.max(secs);
            }
        }
        if is_one && (first.secs <= CLOCK_MAX || first.secs == epoch) {
            Span::One(first.secs)
        } else {
            Span::Until(latest)
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use rimg_formats::epoch::Epoch;
    use rimg_formats::layer::{Entry, EntryKind, LayerOptions, LayerPath, LayerWriter};

    use super::*;

    fn layer(times: &[(i64, u32)]) -> Arc<LayerIndex> {
        let options = LayerOptions { mtime: MtimePolicy::Preserve, ..LayerOptions::default() };
        let mut writer = LayerWriter::new(Vec::new(), options).unwrap();
        for (number, (secs, nanos)) in times.iter().enumerate() {
            let path = LayerPath::parse(format!("{number:03}")).unwrap();
            let mut entry = Entry::new(path, EntryKind::Regular { size: 0 }, 0o644);
            entry.mtime = Mtime { secs: *secs, nanos: *nanos };
            writer.append_empty(&entry).unwrap();
        }
        Arc::new(writer.finish().unwrap().index)
    }

    /// The times of a layer's entries: seconds and nanoseconds.
    type Times<'t> = &'t [(i64, u32)];

    fn shown(layers: &[Times<'_>]) -> String {
        let layers: Vec<_> = layers.iter().map(|times| layer(times)).collect();
        let times = LayerTimes::of(&layers, &[], MtimePolicy::Fixed(Epoch::from_seconds(100).unwrap()));
        let word = |times: &SnapshotTimes| match times {
            SnapshotTimes::Exported => "own".to_owned(),
            SnapshotTimes::Build(secs) => secs.to_string(),
        };
        let words: Vec<String> = times.layers.iter().chain([&times.next]).map(word).collect();
        words.join(" ")
    }

    #[test]
    fn every_layer_is_later_than_what_lies_below() {
        let constant: Times<'_> = &[(100, 0), (100, 0)];
        let real: Times<'_> = &[(5000, 1), (6000, 2)];
        let future: Times<'_> = &[(50, 0), (CLOCK_MAX + 1, 0)];
        let table: &[(&[Times<'_>], &str)] = &[
            (&[], "100"),
            (&[constant], "own 101"),
            (&[constant, constant, constant], "own 101 102 103"),
            (&[real, constant, constant], "own 6001 6002 6003"),
            (&[constant, real, constant], "own own 6001 6002"),
            (&[constant, &[], constant], "own own 101 102"),
            (&[constant, &[(900, 0)]], "own own 901"),
            (&[real, &[(900, 0)]], "own 6001 6002"),
            (&[&[(-5, 0)], &[(-5, 0)]], "own -4 100"),
            (&[future], "own 100"),
            (&[&[(CLOCK_MAX + 1, 0)]], "own 100"),
        ];
        for (layers, expected) in table {
            assert_eq!(shown(layers), *expected, "{layers:?}");
        }
    }

    #[test]
    fn kept_times_are_left_alone() {
        let layers = [layer(&[(100, 0)]), layer(&[(100, 0)])];
        let times = LayerTimes::of(&layers, &[], MtimePolicy::Preserve);
        assert_eq!(times.layers, [SnapshotTimes::Exported; 2]);
        assert_eq!(times.next, SnapshotTimes::Exported);
    }
}
