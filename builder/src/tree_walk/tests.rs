//! The walk against a model of what the patterns mean, told in another way than the code goes about it.

use std::collections::BTreeSet;
use std::fs;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::*;
use crate::context::{DiskTree, Owners};

/// The files of the tree that patterns are tried on.
const FILES: &str = "a.md b.key Dockerfile .git/objects/00/o .git/config api/a.go api/b.md api/keep bin/t bin/x.go \
    src/.env src/g src/lib/f.go src/lib/keep src/lib/deep/.env src/lib/deep/f.md docs/a.md docs/b/c.md docs/b/d/e.txt \
    docs/b/d/c.md node_modules/m/keep node_modules/m/index.js node_modules/README.md foo/sub/x/y foo/sub/z foo/a1 \
    d/x/c.md d/c.md dd/c.md d/y/z/c.md aXb ab a/b a/c/b";

/// All files and directories.
fn paths() -> BTreeSet<String> {
    FILES.split_whitespace().flat_map(with_directories).map(str::to_owned).collect()
}

/// A path and the directories above it.
fn with_directories(path: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(path), |path| path.rsplit_once('/').map(|(directory, _)| directory))
}

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in FILES.split_whitespace() {
        let path = folder.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, file).unwrap();
    }
    folder
}

/// What a walk meets, sorted; a directory comes before what is in it.
fn met(tree: &DiskTree, wanted: Wanted<'_>) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    let walked = walk(tree, &LayerPath::root(), wanted, |found| -> io::Result<()> {
        let path = found.inside.to_string();
        assert!(with_directories(&path).skip(1).all(|directory| all.contains(directory)), "{path}");
        assert!(all.insert(path.clone()), "{path} comes twice");
        Ok(())
    });
    walked.unwrap();
    all
}

/// By `.dockerignore`, and by `--exclude`.
fn left_in(folder: &tempfile::TempDir, patterns: &IgnorePatterns) -> [BTreeSet<String>; 2] {
    let tree = || DiskTree::open(folder.path(), "folder", Owners::Dropped).unwrap();
    let excluded = Wanted { excluded: Some(patterns), ..Wanted::default() };
    [met(&tree().with_ignore(patterns.clone()), Wanted::default()), met(&tree(), excluded)]
}

enum Expected {
    /// These, and the directories above them.
    Only(&'static str),
    /// All but these, and what is in them.
    AllBut(&'static str),
}

use Expected::{AllBut, Only};

impl Expected {
    fn paths(&self) -> BTreeSet<String> {
        match self {
            Only(paths) => paths.split_whitespace().flat_map(with_directories).map(str::to_owned).collect(),
            AllBut(gone) => {
                let gone: Vec<&str> = gone.split_whitespace().collect();
                let stays = |path: &String| with_directories(path).all(|above| !gone.contains(&above));
                paths().into_iter().filter(stays).collect()
            }
        }
    }
}

/// What moby's patternmatcher leaves in.
#[test]
fn as_patternmatcher() {
    let table = [
        ("**|!**/*.go", Only("api/a.go bin/x.go src/lib/f.go")),
        (
            "*|!**/*.md",
            Only(
                "a.md api/b.md d/c.md d/x/c.md d/y/z/c.md dd/c.md docs/a.md docs/b/c.md docs/b/d/c.md node_modules/README.md src/lib/deep/f.md",
            ),
        ),
        ("node_modules|!**/keep", AllBut("node_modules/README.md node_modules/m/index.js")),
        (".git|!**/README.md", AllBut(".git")),
        ("**|!nothing", Only("")),
        ("**|!src/*.go", Only("")),
        ("*|!src/lib/f.go", Only("src/lib/f.go")),
        ("**/.env|!src", AllBut("src/.env src/lib/deep/.env")),
        ("docs/*|!docs", AllBut("docs/a.md docs/b")),
        ("docs/**|!docs", AllBut("docs/a.md docs/b")),
        ("docs/b/*.md|!docs/", AllBut("docs/b/c.md")),
        ("*|!docs|**/c.md", Only("docs/a.md docs/b/d/e.txt")),
        ("docs|!docs/**", AllBut("")),
        ("*|!src/**", AllBut(".git Dockerfile a a.md aXb ab api b.key bin d dd docs foo node_modules")),
        ("*|!d/**/c.md", Only("d/c.md d/x/c.md d/y/z/c.md")),
        ("*|!**/c.md", Only("d/c.md d/x/c.md d/y/z/c.md dd/c.md docs/b/c.md docs/b/d/c.md")),
        ("**|! a1", Only("")),
        ("***/c.md", AllBut("d/c.md d/x/c.md d/y/z/c.md dd/c.md docs/b/c.md docs/b/d/c.md")),
        ("d**/c.md", AllBut("d/c.md d/x/c.md d/y/z/c.md dd/c.md docs/b/c.md docs/b/d/c.md")),
        ("foo/sub/|!foo/sub/x/", AllBut("foo/sub/z")),
        ("*|!src|src/lib|!src/lib/deep", Only("src/.env src/g src/lib/deep/.env src/lib/deep/f.md")),
        ("src|!src/lib|src/lib/deep|!**/f.md", AllBut("src/.env src/g src/lib/deep/.env")),
        ("*.md|!a.md", AllBut("")),
        (
            "**/*.md|!docs/**/c.md",
            AllBut(
                "a.md api/b.md d/c.md d/x/c.md d/y/z/c.md dd/c.md docs/a.md node_modules/README.md src/lib/deep/f.md",
            ),
        ),
        ("/a|/b.key", AllBut("a b.key")),
        ("!src|*", Only("")),
        ("*|!src/lib/|**/keep", Only("src/lib/deep/.env src/lib/deep/f.md src/lib/f.go")),
        ("a*b", AllBut("aXb ab")),
        ("[^a]*", Only("a.md a/b a/c/b aXb ab api/a.go api/b.md api/keep")),
        ("a[^c]b", AllBut("a/b aXb")),
    ];
    let folder = folder();
    for (text, expected) in table {
        let patterns = IgnorePatterns::parse(text.replace('|', "\n").as_bytes()).unwrap();
        let expected = expected.paths();
        for found in left_in(&folder, &patterns) {
            assert_eq!(found, expected, "{text}");
        }
        for path in paths() {
            let matched = patterns.matches_from_root(&path);
            assert!(matched || expected.contains(&path), "{text} on {path}");
        }
    }
}

/// A pattern and a path, character by character.
fn fits(pattern: &[char], path: &[char]) -> bool {
    match pattern {
        [] => path.is_empty(),
        ['*', '*'] | ['*', '*', '/'] => true,
        ['*', '*', rest @ ..] => {
            let rest = rest.strip_prefix(&['/']).unwrap_or(rest);
            let behind = |at: usize| path[at] == '/' && fits(rest, &path[at + 1..]);
            fits(rest, path) || (0..path.len()).any(behind)
        }
        ['*', rest @ ..] => {
            let end = path.iter().position(|character| *character == '/').unwrap_or(path.len());
            (0..=end).any(|length| fits(rest, &path[length..]))
        }
        ['?', rest @ ..] => path.first().is_some_and(|first| *first != '/') && fits(rest, &path[1..]),
        ['[', rest @ ..] => {
            let end = rest.iter().position(|character| *character == ']').unwrap();
            path.first().is_some_and(|first| rest[..end].contains(first))
                && fits(&rest[end + 1..], &path[1..])
        }
        [first, rest @ ..] => path.first() == Some(first) && fits(rest, &path[1..]),
    }
}

/// Patterns in words: an exception is a pattern behind `!`.
struct Model<'a>(Vec<(bool, &'a str)>);

impl Model<'_> {
    /// Whether the path is left out after the first `count` patterns.
    fn is_out(&self, path: &str, count: usize) -> bool {
        let last = (0..count).rev().find(|number| self.counts(path, *number));
        last.is_some_and(|number| !self.0[number].0)
    }

    /// Whether a pattern counts for a path: it counts for the directory, or it fits and would change something.
    fn counts(&self, path: &str, number: usize) -> bool {
        let (is_exception, pattern) = self.0[number];
        let characters = |text: &str| text.chars().collect::<Vec<char>>();
        let plain_end = pattern
            .strip_prefix("**")
            .filter(|end| !end.is_empty() && !end.starts_with('/') && !end.contains(['*', '?', '[', ']']));
        let fits = || match plain_end {
            Some(end) => path.ends_with(end),
            None => fits(&characters(pattern), &characters(path)),
        };
        path.rsplit_once('/').is_some_and(|(directory, _)| self.counts(directory, number))
            || (self.is_out(path, number) == is_exception && fits())
    }

    fn left_in(&self) -> BTreeSet<String> {
        let all = paths();
        let stays = all.iter().filter(|path| !self.is_out(path, self.0.len()));
        stays.flat_map(|path| with_directories(path)).map(str::to_owned).collect()
    }
}

fn pattern() -> impl Strategy<Value = String> {
    let names = [
        "a",
        "b",
        "api",
        "src",
        "lib",
        "docs",
        "*",
        "**",
        "?",
        "a*",
        "*.md",
        "*.go",
        "**b",
        "a**",
        "[ab]",
        "d",
        "**keep",
        ".env",
        "keep",
        "deep",
        "node_modules",
        "m",
        "s?c",
        "x",
        ".git",
        "foo",
        "sub",
    ];
    prop::collection::vec(prop::sample::select(names.to_vec()), 1..4).prop_map(|names| names.join("/"))
}

/// Tries `test` on some hundred values, on one folder.
fn try_all<S: Strategy>(
    strategy: S,
    test: impl Fn(&tempfile::TempDir, S::Value) -> Result<(), TestCaseError>,
) {
    let folder = folder();
    let config = ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() };
    TestRunner::new(config).run(&strategy, |value| test(&folder, value)).unwrap();
}

#[test]
fn walks_leave_in_what_the_model_does() {
    let patterns = prop::collection::vec((any::<bool>(), pattern()), 1..6);
    try_all(patterns, |folder, patterns| {
        let line =
            |(is_exception, text): &(bool, String)| format!("{}{text}", if *is_exception { "!" } else { "" });
        let text = patterns.iter().map(line).collect::<Vec<String>>().join("\n");
        let model =
            Model(patterns.iter().map(|(is_exception, text)| (*is_exception, text.as_str())).collect());
        let expected = model.left_in();
        for found in left_in(folder, &IgnorePatterns::parse(text.as_bytes()).unwrap()) {
            prop_assert_eq!(&found, &expected, "{:?}", text);
        }
        Ok(())
    });
}

#[test]
fn walks_meet_what_a_pattern_names() {
    try_all(pattern(), |folder, text| {
        let model = Model(vec![(false, text.as_str())]);
        let all = paths();
        let named = all.iter().filter(|path| model.is_out(path, 1));
        let expected: BTreeSet<String> =
            named.flat_map(|path| with_directories(path)).map(str::to_owned).collect();
        let patterns = IgnorePatterns::only(&text).unwrap();
        let tree = DiskTree::open(folder.path(), "folder", Owners::Dropped).unwrap();
        let found = met(&tree, Wanted { included: Some(&patterns), ..Wanted::default() });
        prop_assert_eq!(found, expected, "{}", text);
        Ok(())
    });
}
