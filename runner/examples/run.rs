//! The smallest caller: runs a program over directories, with everything of a default sandbox.
//!
//! `run LOWER[:LOWER…] PROGRAM [ARGUMENT…]`, the base first. Changes are thrown away. `RIMG_NETWORK=none` gives it a
//! network of its own. With `RIMG_REPEAT=n` it runs n times and prints the median time to standard error.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Instant;

use rimg_runner::SandboxSpec;
use rimg_runner::containers::Containers;
use rimg_runner::spec::{Network, RootFs};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    rimg_runner::child_main_if_requested();
    let mut arguments = std::env::args_os().skip(1);
    let lowers = arguments.next().ok_or("usage: run LOWER[:LOWER…] PROGRAM [ARGUMENT…]")?;
    let lowers: Vec<PathBuf> = std::env::split_paths(&lowers).collect();
    let args: Vec<OsString> = arguments.collect();
    rimg_runner::userns::enter()?;
    let state = std::env::temp_dir().join("rimg-run-example");
    std::fs::create_dir_all(&state)?;
    let containers = Containers::new(&state);
    let repeat = std::env::var("RIMG_REPEAT").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    let mut times = Vec::with_capacity(repeat);
    let mut code = 0;
    for _ in 0..repeat {
        let start = Instant::now();
        let container = containers.create()?;
        let rootfs = RootFs { lowers: lowers.clone(), upper: container.upper() };
        let mut spec = SandboxSpec::new(rootfs, args.clone());
        if std::env::var_os("RIMG_NETWORK").is_some_and(|network| network == "none") {
            spec.network = Network::None;
        }
        code = rimg_runner::run_foreground(spec, true, |_| {})?.code;
        drop(container);
        times.push(start.elapsed());
    }
    times.sort();
    if repeat > 1 {
        eprintln!("median {:?} of {repeat}, minimum {:?}", times[repeat / 2], times[0]);
    }
    std::process::exit(code);
}
