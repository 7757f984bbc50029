//! The rules of the house, asserted over the source tree itself: who may import whom, where `unsafe` may stand,
//! and that every file opens with what it owns.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

use walkdir::WalkDir;

/// Crate, its folder, and the workspace crates it may depend on.
const DIRECTIONS: [(&str, &str, &[&str]); 5] = [
    ("rimg-formats", "formats", &[]),
    ("rimg-runner", "runner", &["rimg-formats"]),
    ("rimg-registry", "registry", &["rimg-formats"]),
    ("rimg-builder", "builder", &["rimg-formats", "rimg-runner"]),
    ("rimg", ".", &["rimg-formats", "rimg-runner", "rimg-registry", "rimg-builder"]),
];
/// The one file that may say `unsafe`.
const UNSAFE_HOME: &str = "runner/src/sys.rs";
/// Crates that bring an asynchronous runtime; they live in `registry` alone (and start it in the command line).
const ASYNC_CRATES: [&str; 4] = ["tokio", "hyper", "axum", "reqwest"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every Rust file of the project, by its path from the root.
fn all_sources() -> Vec<(String, String)> {
    let folders = ["src", "tests", "benches", "formats", "runner", "registry", "builder"];
    let walks = folders.map(|folder| root().join(folder)).into_iter().filter(|folder| folder.is_dir());
    let paths = walks.flat_map(WalkDir::new).map(|entry| entry.unwrap().into_path());
    let files: Vec<PathBuf> =
        paths.filter(|path| path.extension().is_some_and(|extension| extension == "rs")).collect();
    assert!(files.len() > 20, "the walk over the sources is broken: {files:?}");
    let relative = |path: &Path| path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
    files.iter().map(|path| (relative(path), fs::read_to_string(path).unwrap())).collect()
}

/// The names under `[dependencies]` of a Cargo.toml.
fn dependencies(folder: &str) -> Vec<String> {
    let text = fs::read_to_string(root().join(folder).join("Cargo.toml")).unwrap();
    let section = text.split("\n[dependencies]\n").nth(1).unwrap();
    let lines = section.lines().take_while(|line| !line.starts_with('['));
    lines
        .filter_map(|line| line.split(['.', ' ', '=']).next())
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

#[test]
fn imports_go_one_way() {
    for (name, folder, allowed) in DIRECTIONS {
        let dependencies = dependencies(folder);
        assert!(!dependencies.is_empty(), "{name}: no dependencies were read");
        for dependency in dependencies.iter().filter(|dependency| dependency.starts_with("rimg")) {
            assert!(allowed.contains(&dependency.as_str()), "{name} must not depend on {dependency}");
        }
    }
}

#[test]
fn only_the_registry_is_asynchronous() {
    for folder in ["formats", "runner", "builder"] {
        for dependency in dependencies(folder) {
            assert!(!ASYNC_CRATES.contains(&dependency.as_str()), "{folder} must not depend on {dependency}");
        }
    }
}

#[test]
fn unsafe_lives_in_one_file() {
    let word = ["uns", "afe"].concat();
    for (path, text) in all_sources() {
        let opens = |line: &str| {
            let code = line.split("//").next().unwrap_or("");
            ["{", "fn", "impl", "extern"].iter().any(|next| code.contains(&format!("{word} {next}")))
        };
        if path != UNSAFE_HOME
            && let Some(line) = text.lines().find(|line| opens(line))
        {
            panic!("{path}: `{}` belongs in {UNSAFE_HOME}", line.trim());
        }
    }
}

#[test]
fn every_file_opens_with_what_it_owns() {
    for (path, text) in all_sources() {
        assert!(text.starts_with("//!"), "{path} does not open with a `//!` line saying what it owns");
    }
}

#[test]
fn files_stay_small_enough_to_hold_in_mind() {
    for (path, text) in all_sources() {
        let lines = text.lines().take_while(|line| line.trim() != "#[cfg(test)]").count();
        let test_file = path.starts_with("tests/") || path.contains("/tests/");
        assert!(
            test_file || lines <= 600,
            "{path} has {lines} lines before its tests; split it along what it owns"
        );
    }
}

#[test]
fn libraries_never_print() {
    for (path, text) in all_sources() {
        let library = ["formats/src", "runner/src", "registry/src", "builder/src"]
            .iter()
            .any(|folder| path.starts_with(folder));
        if path.ends_with("tests.rs") {
            continue;
        }
        let code: String = text.split("#[cfg(test)]").next().unwrap_or("").to_owned();
        for call in ["println!", "eprintln!", "print!(", "eprint!(", "dbg!"] {
            let prints = code.lines().any(|line| !line.trim_start().starts_with("//") && line.contains(call));
            assert!(!library || !prints, "{path} prints with {call}: libraries return values and events");
        }
    }
}
