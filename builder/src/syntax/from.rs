//! `FROM [--platform=] image [AS name]`.

use super::instruction::Arguments;
use super::tree::From;
use super::words;
use crate::diagnostic::Diagnostic;

pub(crate) fn from(arguments: Arguments<'_, '_>) -> Result<From, Diagnostic> {
    let platform = arguments.flags.text("platform");
    arguments.want_some("alpine:3.22")?;
    let words = words::blank_separated(arguments.rest);
    let (base, name) = match words.as_slice() {
        [base] => (base, None),
        [base, keyword, name] if keyword.text().eq_ignore_ascii_case("AS") => {
            let upper = |text: &str| text.chars().all(|c| !c.is_ascii_lowercase());
            if upper(keyword.text()) != upper(arguments.keyword.text()) {
                arguments.warnings.push(
                    Diagnostic::warning(
                        "FromAsCasing",
                        keyword.span(),
                        "`AS` and `FROM` are cased differently",
                    )
                    .help("write both in capitals"),
                );
            }
            (base, Some(name))
        }
        [_, word, ..] => {
            let help = match word.text().starts_with('#') {
                true => super::COMMENT_HELP,
                false => "write `FROM image AS name`",
            };
            return Err(Diagnostic::error(word.span(), "FROM takes one image, or `image AS name`")
                .label("not expected here")
                .help(help));
        }
        [] => return Err(Diagnostic::error(arguments.keyword.span(), "FROM wants an image")),
    };
    if let Some(name) = name.filter(|name| !is_stage_name(&name.text().to_lowercase())) {
        let message = format!("invalid name `{}` for a stage", name.text());
        return Err(Diagnostic::error(name.span(), message)
            .help("a name begins with a letter and holds letters, digits, `-`, `_` and `.`"));
    }
    Ok(From { platform, base: base.word(), name: name.map(|name| name.word()) })
}

/// `^[a-z][a-z0-9-_.]*$`
fn is_stage_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c))
}
