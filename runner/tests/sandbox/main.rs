//! Sandboxes from the outside: what a payload sees, what it must not reach, and what is left afterwards.
//!
//! Has its own `main`, because a sandbox's init is this very program executed again. Runs as root or as an ordinary
//! user; a test that needs something the host lacks says `SKIPPED` and why.
#![allow(clippy::unwrap_used, missing_docs)]

mod foreground;
mod harness;
mod hostile;
mod kernels;
mod life;
mod stdio;
mod view;

fn main() {
    rimg_runner::child_main_if_requested();
    if std::env::var_os("RIMG_TEST_INSIDE").is_some() {
        println!("inside");
        return;
    }
    let mapping = rimg_runner::userns::enter().unwrap();
    harness::MAPPING.set(mapping).unwrap();
    if let Some(root) = std::env::var_os("RIMG_TEST_VICTIM") {
        life::victim(root.as_ref());
    }
    if let Some(root) = std::env::var_os("RIMG_TEST_FOREGROUND") {
        foreground::caller(root.as_ref());
    }
    let tests: Vec<harness::Test> =
        [life::TESTS, view::TESTS, hostile::TESTS, foreground::TESTS, stdio::TESTS, kernels::TESTS].concat();
    harness::run(&tests);
}
