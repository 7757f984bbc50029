//! Starting, ending, and what the payload is told about its surroundings.

use crate::harness::{Root, Test, output, try_run};

pub(crate) const TESTS: &[Test] =
    &[("true_exits_with_zero", true_exits_with_zero), ("exit_codes", exit_codes)];

fn true_exits_with_zero() {
    let root = Root::new();
    assert_eq!(output(root.spec(&["/bin/true"])), "");
    assert_eq!(root.upper_paths(), Vec::<String>::new());
}

fn exit_codes() {
    let root = Root::new();
    for (script, code) in [("exit 3", 3), ("kill -TERM $$", 143), ("kill -KILL $$", 137)] {
        assert_eq!(try_run(root.shell(script)).unwrap().status.code, code, "{script}");
    }
}
