//! Large files of strangers: each must be refused or read in moments and little memory.
//! There is no clock here; what is not linear would not come to an end.
#![allow(clippy::unwrap_used)]

use rimg_builder::diagnostic::{Style, render_all};
use rimg_builder::plan::{Graph, PlanOptions};
use rimg_builder::source::SourceFile;
use rimg_builder::syntax::{WARNINGS_MAX, parse};

/// Large enough that whatever takes the square of it does not come back.
const FLOOD_BYTES: usize = 256 << 10;

/// Fills a file with `piece`; the first error or warning, or nothing.
fn flood(start: &str, piece: &str) -> String {
    let count = (FLOOD_BYTES - start.len()) / piece.len();
    let source = SourceFile::from_bytes("B", format!("{start}{}", piece.repeat(count)).into_bytes()).unwrap();
    let findings = match parse(&source) {
        Ok(file) => match Graph::plan(&file, &PlanOptions::default()) {
            Ok(graph) => file.warnings.into_iter().chain(graph.warnings).collect(),
            Err(errors) => errors,
        },
        Err(errors) => errors,
    };
    assert!(findings.len() <= 3 * WARNINGS_MAX);
    let text = render_all(&findings, &source, Style::Plain);
    assert!(text.len() < 1 << 20, "{} bytes of text", text.len());
    text.lines().next().unwrap_or("").to_owned()
}

#[test]
fn global_arguments_do_not_double_for_ever() {
    let text = format!("ARG A=0123456789abcdef {}\nFROM a", "A=$A$A ".repeat(100));
    let file = parse(&SourceFile::new("B", text)).unwrap();
    let errors = Graph::plan(&file, &PlanOptions::default()).unwrap_err();
    assert_eq!(errors[0].message, "the global arguments come to more than 524288 bytes");
}

#[test]
fn floods_are_harmless() {
    let table = [
        ("FROM a\nRUN ", "x", ""),
        ("FROM a\nRUN << ", "${", ""),
        ("FROM a\nRUN ", "<<a ", "error: here-document `a` is never closed"),
        ("FROM a\n", "RUN <<a\n", "error: here-document `a` is never closed"),
        ("FROM a\nRUN x", "\\\n", ""),
        ("FROM a\n", "#\n", ""),
        ("FROM a\n", "X\n", "error: unknown instruction `X`"),
        ("", "FROM a\n", "error: more than 500 stages"),
        ("FROM a\n", "USER a\n", "error: more than 10000 instructions"),
        (
            "FROM a\nENV ",
            "KEY=1 ",
            "warning[SecretsUsedInArgOrEnv]: `KEY` looks like a secret, and ENV stores it",
        ),
        ("FROM scratch\nENV A=", "$B", "warning[UndefinedVar]: variable `B` is not defined"),
        ("FROM scratch\nARG ", "a b c ", ""),
        ("FROM a\nENV A=", "${A:-", ""),
        ("FROM scratch\nLABEL A=", "'", ""),
        ("ARG A=0123456789abcdef\n", "ARG A=$A$A\n", "error: more than 10000 instructions"),
        ("FROM scratch\nEXPOSE ", "0-65535 ", ""),
        ("FROM a\nCOPY ", "a ", "error: COPY with several sources wants a directory"),
        ("FROM a\nRUN --mount=", "a,", "error: empty field in `--mount`"),
        ("FROM a\nRUN ", "--x=1 ", "error: unknown flag `--x` of RUN"),
        ("FROM a\nCMD [", "[", "warning[JSONArgsRecommended]: CMD in shell form"),
        ("FROM a\nCMD ", "[\"", "warning[JSONArgsRecommended]: CMD in shell form"),
    ];
    let mut wrong = Vec::new();
    for (start, piece, expected) in table {
        let first = flood(start, piece);
        if first.is_empty() != expected.is_empty() || !first.starts_with(expected) {
            wrong.push(format!("{start:?} {piece:?}: {first}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
