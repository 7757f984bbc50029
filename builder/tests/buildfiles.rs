//! Golden folders of the parser: `fixtures/buildfiles/NAME/{Buildfile,result}` and, for files that are
//! refused, `fixtures/buildfiles-bad/NAME/{Buildfile,stderr}`. `RIMG_BLESS=1` writes the results anew.
//! Another parser of the language is the judge of which instructions a good file holds, and random
//! text tells whether anything panics.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use rimg_builder::diagnostic::{Diagnostic, Style, render_all};
use rimg_builder::expand::Expander;
use rimg_builder::glob::Glob;
use rimg_builder::ignore::IgnorePatterns;
use rimg_builder::plan::{
    Base, CopySource, Expanded, ExpandedSource, ExpandedTransfer, Graph, PlanOptions, StageScope,
};
use rimg_builder::source::{SourceFile, Span};
use rimg_builder::syntax::{Buildfile, INSTRUCTION_NAMES, parse};
use std::path::{Path, PathBuf};

fn fixtures(folder: &str) -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures").join(folder);
    let mut folders: Vec<PathBuf> =
        std::fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    assert!(folders.len() > 5, "fixtures are missing");
    folders
}

fn source(folder: &Path) -> SourceFile {
    SourceFile::from_bytes("Buildfile", std::fs::read(folder.join("Buildfile")).unwrap()).unwrap()
}

/// Compares with the file, or writes it; collects what differs.
fn compare(path: &Path, actual: &str, failures: &mut Vec<String>) {
    if std::env::var_os("RIMG_BLESS").is_some() {
        std::fs::write(path, actual).unwrap();
        return;
    }
    let expected = std::fs::read_to_string(path).unwrap_or_default();
    if expected != actual {
        failures.push(format!("{}\n--- expected\n{expected}\n--- actual\n{actual}", path.display()));
    }
}

#[test]
fn good_files_have_the_expected_trees() {
    let mut failures = Vec::new();
    for folder in fixtures("buildfiles") {
        let source = source(&folder);
        let text = match parse(&source) {
            Ok(file) => file.dump(),
            Err(errors) => panic!("{}: {}", folder.display(), render_all(&errors, &source, Style::Plain)),
        };
        compare(&folder.join("result"), &text, &mut failures);
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn bad_files_are_refused_with_the_expected_text() {
    let mut failures = Vec::new();
    for folder in fixtures("buildfiles-bad") {
        let source = source(&folder);
        let errors = parse(&source).expect_err(&folder.display().to_string());
        compare(&folder.join("stderr"), &render_all(&errors, &source, Style::Plain), &mut failures);
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Files as people write them, planned and with variables filled in: `fixtures/buildfiles/real-*/plan`.
#[test]
fn real_files_have_the_expected_plans() {
    let mut failures = Vec::new();
    let mut planned = 0;
    for folder in fixtures("buildfiles") {
        if !folder.file_name().unwrap().to_str().unwrap().starts_with("real-") {
            continue;
        }
        let source = source(&folder);
        let file = parse(&source).unwrap();
        let options = PlanOptions {
            target_platform: "linux/arm64".parse().unwrap(),
            build_platform: "linux/amd64".parse().unwrap(),
            build_args: [("VERSION".to_owned(), "1.2".to_owned())].into(),
            ..PlanOptions::default()
        };
        let graph = match Graph::plan(&file, &options) {
            Ok(graph) => graph,
            Err(errors) => panic!("{}: {}", folder.display(), render_all(&errors, &source, Style::Plain)),
        };
        compare(&folder.join("plan"), &plan_text(&graph), &mut failures);
        planned += 1;
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(planned >= 8, "only {planned} files were planned");
}

/// Stages with their bases and needs, and of each step what it comes to.
fn plan_text(graph: &Graph) -> String {
    let mut out = String::new();
    let mut scopes: Vec<StageScope> = Vec::new();
    for stage in &graph.stages {
        let name = stage.name.as_deref().unwrap_or("-");
        out += &format!("stage {} {name}: {:?}, needs {:?}\n", stage.number, stage.base, stage.dependencies);
        let mut scope = match &stage.base {
            Base::Stage(parent) => StageScope::inherit(&scopes[*parent]),
            _ => StageScope::new(&graph.globals, graph.escape, vec![("PATH".to_owned(), "/bin".to_owned())]),
        };
        for step in &stage.steps {
            let expanded = scope.expand(&step.instruction).unwrap().instruction;
            out += &format!("  {}\n", step_text(&expanded, &step.source, &scope));
            scope.apply(&expanded);
        }
        scopes.push(scope);
    }
    graph.warnings.iter().for_each(|warning| out += &format!("! {}\n", warning.message));
    out
}

fn step_text(expanded: &Expanded, source: &CopySource, scope: &StageScope) -> String {
    let transfer = |name: &str, transfer: &ExpandedTransfer| {
        let sources = transfer.sources.iter().map(|source| match source {
            ExpandedSource::Path(path) => path.text.clone(),
            ExpandedSource::File { name, content, .. } => format!("{name} = {content:?}"),
        });
        let sources: Vec<String> = sources.collect();
        format!("{name} {source:?} {sources:?} -> {:?}", transfer.destination.text)
    };
    match expanded {
        Expanded::Copy(copy) => transfer("COPY", &copy.transfer),
        Expanded::Add(add) => transfer("ADD", &add.transfer),
        Expanded::Run(run) => {
            let mounts: Vec<_> = run.mounts.iter().map(|mount| (&mount.target, &mount.kind)).collect();
            format!("RUN {:?} {mounts:?} in {:?}", run.command, scope.run_environment())
        }
        other => format!("{other:?}"),
    }
}

/// Good files the other parser reads otherwise, and why ours is right.
const ORACLE_DIFFERS: [(&str, &str); 3] = [
    ("escaped-escape", "BuildKit takes a doubled escape at the end of a line for no continuation"),
    ("flags-end", "BuildKit ends the flags at a lone `--`"),
    ("heredoc-descriptors", "BuildKit allows file descriptor digits before `<<`"),
];

#[test]
fn another_parser_sees_the_same_instructions() {
    let (mut compared, mut differing) = (0, Vec::new());
    for folder in fixtures("buildfiles") {
        let name = folder.file_name().unwrap().to_str().unwrap();
        let source = source(&folder);
        let ours = parse(&source).unwrap();
        let ours: Vec<&str> = ours.instructions.iter().map(|instruction| instruction.kind.name()).collect();
        let theirs = parse_dockerfile::parse(source.text()).map_err(|error| error.to_string());
        let theirs = theirs.map(|file| file.instructions.iter().map(oracle_name).collect::<Vec<_>>());
        let expected = !ORACLE_DIFFERS.iter().any(|(differs, _)| *differs == name);
        if (theirs.as_ref() == Ok(&ours)) != expected {
            differing.push(format!("{name}\n  ours {ours:?}\ntheirs {theirs:?}"));
        }
        compared += 1;
    }
    assert!(differing.is_empty(), "{}", differing.join("\n"));
    assert!(compared >= 8, "only {compared} files were compared");
}

fn oracle_name(instruction: &parse_dockerfile::Instruction<'_>) -> &'static str {
    use parse_dockerfile::Instruction;
    match instruction {
        Instruction::Add(_) => "ADD",
        Instruction::Arg(_) => "ARG",
        Instruction::Cmd(_) => "CMD",
        Instruction::Copy(_) => "COPY",
        Instruction::Entrypoint(_) => "ENTRYPOINT",
        Instruction::Env(_) => "ENV",
        Instruction::Expose(_) => "EXPOSE",
        Instruction::From(_) => "FROM",
        Instruction::Healthcheck(_) => "HEALTHCHECK",
        Instruction::Label(_) => "LABEL",
        Instruction::Maintainer(_) => "MAINTAINER",
        Instruction::Onbuild(_) => "ONBUILD",
        Instruction::Run(_) => "RUN",
        Instruction::Shell(_) => "SHELL",
        Instruction::Stopsignal(_) => "STOPSIGNAL",
        Instruction::User(_) => "USER",
        Instruction::Volume(_) => "VOLUME",
        Instruction::Workdir(_) => "WORKDIR",
        _ => "?",
    }
}

/// Text that looks like a Buildfile often enough to get past the first character.
fn buildfile_text() -> impl Strategy<Value = String> {
    let pieces = [
        " ",
        "\t",
        "\n",
        "\r\n",
        "\\\n",
        "`\n",
        "#",
        "=",
        "\"",
        "'",
        "$",
        "${",
        "}",
        ":-",
        "//",
        "/",
        "*",
        "<<EOF",
        "EOF\n",
        "<<-\"x y\"",
        "--",
        "--from=",
        "--mount=type=",
        "cache",
        ",",
        "target=",
        "[\"",
        "\", \"",
        "\"]",
        "a",
        "0",
        "é",
        "日",
        "\u{feff}",
        "\\",
        "# escape=`\n",
        "AS",
        "scratch",
        "--chmod=",
        "--link",
        "CMD ",
        "NONE",
        "5s",
        "-",
        "$A",
        "${A",
        "b c",
        "a=b",
        "./x",
        "/d/",
    ];
    let names = INSTRUCTION_NAMES.map(|name| format!("\n{name} "));
    let piece = prop_oneof![
        4 => proptest::sample::select(pieces.to_vec()).prop_map(str::to_owned),
        3 => proptest::sample::select(names.to_vec()),
        1 => any::<char>().prop_map(String::from),
    ];
    (any::<bool>(), proptest::collection::vec(piece, 0..40)).prop_map(|(from, pieces)| {
        let start = if from { "FROM scratch\n" } else { "" };
        start.to_owned() + &pieces.concat()
    })
}

fn check_span(source: &SourceFile, span: Span) {
    assert!(span.start <= span.end && span.end <= source.text().len(), "{span:?}");
    assert!(
        source.text().is_char_boundary(span.start) && source.text().is_char_boundary(span.end),
        "{span:?}"
    );
}

/// Plans the file and expands every step, as an engine would.
fn evaluate(file: &Buildfile) -> Vec<Diagnostic> {
    let graph = match Graph::plan(file, &PlanOptions::default()) {
        Ok(graph) => graph,
        Err(errors) => return errors,
    };
    let mut findings = graph.warnings.clone();
    for stage in &graph.stages {
        let mut scope = StageScope::new(&graph.globals, graph.escape, Vec::new());
        for step in &stage.steps {
            match scope.expand(&step.instruction) {
                Ok(evaluated) => {
                    scope.apply(&evaluated.instruction);
                    findings.extend(evaluated.warnings);
                }
                Err(errors) => findings.extend(errors),
            }
        }
    }
    findings
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_text_makes_the_parser_panic_and_spans_are_sound(text in buildfile_text()) {
        let source = SourceFile::new("Buildfile", text);
        let findings = match parse(&source) {
            Ok(file) => {
                for instruction in &file.instructions {
                    check_span(&source, instruction.span);
                    let name = source.slice(instruction.keyword).to_uppercase();
                    prop_assert_eq!(name, instruction.kind.name());
                }
                prop_assert!(!file.dump().is_empty());
                file.warnings.iter().cloned().chain(evaluate(&file)).collect()
            }
            Err(errors) => errors,
        };
        for span in findings.iter().filter_map(|finding| finding.span) {
            check_span(&source, span);
        }
        let _ = render_all(&findings, &source, Style::Colour);
    }

    #[test]
    fn no_word_makes_expansion_panic(word in "[\\$\\{\\}aA:/#%?+*'\"\\\\é -]{0,24}") {
        let lookup = |name: &str| (name == "A").then(|| "välue/a".to_owned());
        match Expander::new(&lookup, '\\').expand(&word) {
            Ok(expansion) => {
                for (_, range) in expansion.undefined {
                    prop_assert!(word.get(range).is_some());
                }
            }
            Err(error) => prop_assert!(word.get(error.range.clone()).is_some(), "{error:?}"),
        }
    }

    #[test]
    fn no_pattern_makes_matching_panic(pattern in "[*?\\[\\]^a-c/\\\\!.é-]{0,16}", path in "[a-c.é]{1,6}(/[a-c.é]{1,4}){0,3}") {
        if let Ok(glob) = Glob::parse(&pattern, true) {
            let _ = glob.matches(&path);
        }
        if let Ok(patterns) = IgnorePatterns::from_patterns([pattern.as_str(), "b", "!c"])
            && patterns.matches_from_root(&path)
            && !patterns.may_match_below(&path, true)
        {
            for name in ["a", "b", "c", "a/c"] {
                let below = format!("{path}/{name}");
                prop_assert!(patterns.matches_from_root(&below), "{} below {}", pattern, path);
            }
        }
    }
}
