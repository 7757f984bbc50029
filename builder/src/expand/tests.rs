//! Table tests of every form of expansion.
#![allow(clippy::unwrap_used)]

use super::*;

fn lookup(name: &str) -> Option<String> {
    let value = match name {
        "A" => "alpha",
        "B" => "two words",
        "E" => "",
        "P" => "/usr/local/lib/lib.tar.gz",
        "S" => "a*b?c",
        "U" => "äöü/日本",
        "N" => "A",
        "Q" => "it's \"so\"",
        _ => return None,
    };
    Some(value.to_owned())
}

fn expand(word: &str) -> Result<Expansion, ExpandError> {
    Expander::new(&lookup, '\\').expand(word)
}

#[test]
fn every_form() {
    let table = [
        ("", ""),
        ("plain", "plain"),
        ("$A", "alpha"),
        ("${A}", "alpha"),
        ("x${A}y$A", "xalphayalpha"),
        ("$A_x", ""),
        ("$A.x", "alpha.x"),
        ("$1x", "x"),
        ("$12x", "x"),
        ("$", "$"),
        ("a$", "a$"),
        ("$.", "$."),
        ("$@x", "x"),
        ("$$A", "A"),
        ("\\$A", "$A"),
        ("\\\\$A", "\\alpha"),
        ("\\a\\b", "ab"),
        ("tail\\", "tail"),
        ("'$A'", "$A"),
        ("'a\\'b", "a\\b"),
        ("\"$A\"", "alpha"),
        ("\"\\$A\"", "$A"),
        ("\"\\\"\"", "\""),
        ("\"\\n\\\\\"", "\\n\\"),
        ("\"it's\"", "it's"),
        ("'a\"b'", "a\"b"),
        ("$Q", "it's \"so\""),
        ("${M:-d}", "d"),
        ("${E:-d}", "d"),
        ("${A:-d}", "alpha"),
        ("${M-d}", "d"),
        ("${E-d}", ""),
        ("${A:+s}", "s"),
        ("${E:+s}", ""),
        ("${E+s}", "s"),
        ("${M+s}", ""),
        ("${M:+s}", ""),
        ("${A:?no}", "alpha"),
        ("${E?no}", ""),
        ("${M:-}", ""),
        ("${M:-$A}", "alpha"),
        ("${M:-${E:-${A}}}", "alpha"),
        ("${M:-a b}", "a b"),
        ("${M:-'$A'}", "$A"),
        ("${M:-\"}\"}", "}"),
        ("${M:-\\}}", "}"),
        ("\"${M:-\"x y\"}\"", "x y"),
        ("${P#*/}", "usr/local/lib/lib.tar.gz"),
        ("${P##*/}", "lib.tar.gz"),
        ("${P%.*}", "/usr/local/lib/lib.tar"),
        ("${P%%.*}", "/usr/local/lib/lib"),
        ("${P%/*}", "/usr/local/lib"),
        ("${P#nope}", "/usr/local/lib/lib.tar.gz"),
        ("${A#a}", "lpha"),
        ("${A%a}", "alph"),
        ("${A#?}", "lpha"),
        ("${A%%*}", ""),
        ("${A##*}", ""),
        ("${A#*}", "alpha"),
        ("${S#a\\*}", "b?c"),
        ("${S%\\?c}", "a*b"),
        ("${A#$N}", "alpha"),
        ("${U#äö}", "ü/日本"),
        ("${U%本}", "äöü/日"),
        ("${P/lib/LIB}", "/usr/local/LIB/lib.tar.gz"),
        ("${P//lib/LIB}", "/usr/local/LIB/LIB.tar.gz"),
        ("${P//\\//-}", "-usr-local-lib-lib.tar.gz"),
        ("${P/\\/usr/}", "/local/lib/lib.tar.gz"),
        ("${A/l*h/X}", "aXa"),
        ("${A//a/}", "lph"),
        ("${A/a/$N}", "Alpha"),
        ("${A/a/\\}}", "}lpha"),
        ("${A/a/\\/}", "/lpha"),
        ("${A//?/x}", "xxxxx"),
        ("${A//*/x}", "x"),
        ("${A//*q/x}", "alpha"),
        ("${U//日/ö}", "äöü/ö本"),
        ("${M/a/b}", ""),
        ("${M#a}", ""),
        ("a b  c", "a b  c"),
    ];
    for (word, expected) in table {
        assert_eq!(expand(word).map(|e| e.text), Ok(expected.to_owned()), "{word}");
    }
}

#[test]
fn every_error_has_its_place() {
    let table = [
        ("x'a", "unclosed single quote", 1..3),
        ("x\"a", "unclosed double quote", 1..3),
        ("${A", "missing `}` in `${…}`", 0..3),
        ("a${", "missing `}` in `${…}`", 1..3),
        ("${A:", "missing `}` in `${…}`", 0..4),
        ("${A:-x", "missing `}` in `${…}`", 0..6),
        ("${}", "bad substitution: `${` wants the name of a variable", 0..3),
        ("${:x}", "bad substitution: `${` wants the name of a variable", 0..3),
        ("${{A}", "bad substitution: `${` wants the name of a variable", 0..3),
        ("${.A}", "bad substitution: `${` wants the name of a variable", 0..3),
        ("${A:#x}", "unsupported modifier `:#` in substitution", 0..5),
        ("${A:%x}", "unsupported modifier `:%` in substitution", 0..5),
        ("${A:x}", "unsupported modifier `:x` in substitution", 0..5),
        ("${A!x}", "unsupported modifier `!` in substitution", 0..4),
        ("${A/x}", "missing `/` in `${…}`", 0..6),
        ("${A/x/", "missing `}` in `${…}`", 0..6),
        ("-${M:?gone}", "M: gone", 1..11),
        ("${M?}", "M: is not allowed to be unset", 0..5),
        ("${E:?}", "E: is not allowed to be empty", 0..6),
        ("${A#\\a}", "invalid escape `\\a` in a pattern", 0..7),
        ("${M:-${X:?deep}}", "X: deep", 5..15),
    ];
    for (word, message, range) in table {
        let error = expand(word).unwrap_err();
        assert_eq!((error.to_string().as_str(), error.range), (message, range), "{word}");
    }
}

#[test]
fn words_are_split_after_variables_are_filled_in() {
    let table: [(&str, &[&str]); 9] = [
        ("a b", &["a", "b"]),
        ("  a\t b ", &["a", "b"]),
        ("$B", &["two", "words"]),
        ("\"$B\"", &["two words"]),
        ("x$B", &["xtwo", "words"]),
        ("'a b' c", &["a b", "c"]),
        ("a\\ b c", &["a b", "c"]),
        ("$E", &[]),
        ("${M:-a b}", &["a", "b"]),
    ];
    for (word, expected) in table {
        assert_eq!(expand(word).unwrap().words, expected, "{word}");
    }
}

#[test]
fn the_escape_character_is_configurable() {
    let backquote = |word| Expander::new(&lookup, '`').expand(word).unwrap().text;
    assert_eq!(backquote("c:\\x`$A"), "c:\\x$A");
    assert_eq!(backquote("\"`\"\""), "\"");
    assert_eq!(backquote("${P//`//-}"), "-usr-local-lib-lib.tar.gz");
}

#[test]
fn bodies_of_heredocs_keep_their_quotes() {
    let body = |word| Expander::new(&lookup, '\\').without_quotes().expand(word).unwrap().text;
    assert_eq!(body("'$A' \"${M:-x}\" it's \\$A\n"), "'alpha' \"x\" it's $A\n");
}

#[test]
fn undefined_variables_are_reported() {
    let expansion = expand("$A ${M} ${N2:-x$A} ${Z#a} '$no'").unwrap();
    assert_eq!(expansion.undefined, [("M".to_owned(), 3..7), ("Z".to_owned(), 19..25)]);
}

#[test]
fn limits_hold() {
    let deep = format!("{}{}", "${M:-".repeat(1000), "}".repeat(1000));
    assert_eq!(expand(&deep).unwrap_err().kind, ExpandErrorKind::TooDeep);
    let long = |_: &str| Some("x".repeat(EXPANSION_BYTES_MAX / 2 + 1));
    let error = Expander::new(&long, '\\').expand("$A$A").unwrap_err();
    assert_eq!(error.kind, ExpandErrorKind::TooLong);
    let error = Expander::new(&long, '\\').expand("${A//x*y/z}").unwrap_err();
    assert_eq!(error.kind, ExpandErrorKind::TooExpensive);
}
