//! `--secret`: docker's grammar, and where the bytes come from.

use std::path::{Path, PathBuf};

use super::csv;
use crate::failure::{Context, Failure};

/// Largest secret: they are keys and tokens.
const SECRET_BYTES_MAX: u64 = 500 << 10;

/// What a value may be, for messages.
const FORMS: &str = "id=NAME,src=FILE or id=NAME,env=VARIABLE";

/// Where a secret comes from.
#[derive(Debug, PartialEq, Eq)]
enum Origin {
    File(PathBuf),
    Variable(String),
    /// The variable of the secret's name, else the file of that name.
    Named,
}

/// Reads the secret that one `--secret` names.
pub(super) fn read(spec: &str) -> Result<(String, Vec<u8>), Failure> {
    let (id, origin) = parse(spec)?;
    let bytes = match origin {
        Origin::File(path) => file(&id, &path)?,
        Origin::Variable(variable) => match std::env::var_os(&variable) {
            Some(value) => value.into_encoded_bytes(),
            None => {
                return Err(Failure::new(format!(
                    "the secret `{id}` is to come from the variable `{variable}`, which is not set"
                )));
            }
        },
        Origin::Named => match std::env::var_os(&id) {
            Some(value) => value.into_encoded_bytes(),
            None if Path::new(&id).exists() => file(&id, Path::new(&id))?,
            None => {
                return Err(Failure::new(format!(
                    "the secret `{id}` is neither a variable nor a file of that name"
                ))
                .hint(format!("say where it comes from: --secret {FORMS}")));
            }
        },
    };
    Ok((id, bytes))
}

fn parse(spec: &str) -> Result<(String, Origin), Failure> {
    let refuse = |why: String| Failure::usage(format!("--secret {why}")).hint(format!("write {FORMS}"));
    let (mut kind, mut id, mut source, mut variable) = (None, None, None, None);
    for field in csv::fields(spec).map_err(refuse)? {
        let (key, value) = field.split_once('=').unwrap_or((&field, ""));
        match key.to_lowercase().as_str() {
            "id" => id = Some(value.to_owned()),
            "src" | "source" => source = Some(value.to_owned()),
            "env" => variable = Some(value.to_owned()),
            "type" if ["file", "env"].contains(&value) => kind = Some(value.to_owned()),
            "type" => return Err(refuse(format!("`{field}`: a secret's type is `file` or `env`"))),
            _ => return Err(refuse(format!("`{field}` is not understood"))),
        }
    }
    let id = id.filter(|id| !id.is_empty()).ok_or_else(|| refuse(format!("`{spec}` has no id=NAME")))?;
    let [source, variable] = [source, variable].map(|value| value.filter(|value| !value.is_empty()));
    Ok((
        id,
        match (kind.as_deref(), source, variable) {
            (_, None, Some(variable)) => Origin::Variable(variable),
            // As in buildx: of this type, `src` names the variable.
            (Some("env"), Some(source), None) => Origin::Variable(source),
            (Some("env"), Some(_), Some(variable)) => Origin::Variable(variable),
            (_, Some(source), None) => Origin::File(source.into()),
            (_, Some(_), Some(_)) => {
                return Err(refuse(format!("`{spec}` names a file and a variable: keep one of them")));
            }
            (_, None, None) => Origin::Named,
        },
    ))
}

fn file(id: &str, path: &Path) -> Result<Vec<u8>, Failure> {
    let failed = || format!("failed to read the secret `{id}` from {}", path.display());
    let size = std::fs::metadata(path).context(failed())?.len();
    if size > SECRET_BYTES_MAX {
        return Err(Failure::new(format!(
            "the secret {} has {size} bytes; at most {SECRET_BYTES_MAX} are taken",
            path.display()
        )));
    }
    std::fs::read(path).context(failed())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn origins() {
        let file = |path: &str| Origin::File(path.into());
        let variable = |name: &str| Origin::Variable(name.into());
        let table = [
            ("id=s", Origin::Named),
            ("id=s,src=f", file("f")),
            ("source=f,id=s", file("f")),
            ("id=s,type=file,src=f", file("f")),
            ("id=s,env=V", variable("V")),
            ("id=s,type=env,env=V", variable("V")),
            ("id=s,type=env,src=V", variable("V")),
            ("type=env,id=s,source=V", variable("V")),
            ("id=s,type=env", Origin::Named),
            ("ID=s,\"src=a,b\"", file("a,b")),
        ];
        for (spec, origin) in table {
            assert_eq!(parse(spec).unwrap(), ("s".to_owned(), origin), "{spec}");
        }
        for (spec, word) in [
            ("src=f", "id=NAME"),
            ("id=", "id=NAME"),
            ("id=s,type=bogus", "type is `file` or `env`"),
            ("id=s,what=f", "`what=f` is not understood"),
            ("id=s,src=f,env=V", "keep one of them"),
        ] {
            let (code, text) = parse(spec).unwrap_err().report();
            let text = text.unwrap();
            assert!(code == 2 && text.contains(word), "{text}");
        }
    }
}
