//! Sandboxes from the outside: what a payload sees, what it must not reach, and what is left afterwards.
//!
//! Has its own `main`, because a sandbox's init is this very program executed again. Runs as root or as an ordinary
//! user; a test that needs something the host lacks says `SKIPPED` and why.
#![allow(clippy::unwrap_used, missing_docs)]

mod harness;
mod life;

fn main() {
    rimg_runner::child_main_if_requested();
    rimg_runner::userns::enter().unwrap();
    let tests: Vec<harness::Test> = life::TESTS.to_vec();
    harness::run(&tests);
}
