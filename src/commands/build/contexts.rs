//! `--build-context NAME=VALUE`: sources beside the context, in docker's grammar.
//!
//! Only the form is checked here, and that folders exist; the plan decides what a name overrides.

use std::path::Path;

use crate::failure::Failure;

/// What a value may be, for messages.
const SUPPORTED: &str = "a folder, docker-image://NAME[:TAG], or oci-layout://DIR[:TAG|@DIGEST]";

/// Reads one `NAME=VALUE`. Paths start at the working folder, as docker's do, and come out absolute: in the Buildfile
/// they would start at the context.
pub(super) fn parse(text: &str, working_folder: &Path) -> Result<(String, String), Failure> {
    let refuse = |why: String| Failure::usage(format!("--build-context `{text}`: {why}"));
    let Some((name, value)) = text.split_once('=') else {
        return Err(refuse("expected NAME=VALUE".to_owned()).hint(format!("a VALUE is {SUPPORTED}")));
    };
    if name.is_empty() || name.contains(char::is_whitespace) {
        return Err(refuse("the name in front of `=` is missing, or has spaces".to_owned()));
    }
    if value.is_empty() {
        return Err(refuse("the value is empty".to_owned()).hint(format!("give {SUPPORTED}")));
    }
    if let Some(image) = value.strip_prefix("docker-image://") {
        let image = image.parse::<rimg_formats::reference::Reference>();
        return match image {
            Ok(_) => Ok((name.to_owned(), value.to_owned())),
            Err(error) => Err(refuse(error.to_string())),
        };
    }
    if let Some(layout) = value.strip_prefix("oci-layout://") {
        return match layout.is_empty() {
            true => Err(refuse("the layout's folder is missing".to_owned())),
            false => Ok((name.to_owned(), format!("oci-layout://{}", absolute(layout, working_folder)))),
        };
    }
    if let Some(scheme) = unsupported_scheme(value) {
        let why = format!("`{scheme}` is not supported yet");
        return Err(refuse(why).hint(format!("give {SUPPORTED}; fetch anything else into a folder first")));
    }
    let folder = absolute(value, working_folder);
    match std::fs::metadata(&folder) {
        // A tar is good for FROM; COPY says so where it is none for it.
        Ok(_) => Ok((name.to_owned(), folder)),
        Err(error) => {
            Err(Failure::new(format!("the build context `{name}` cannot be opened: {value}: {error}"))
                .hint(format!("a context is {SUPPORTED}")))
        }
    }
}

/// What docker would fetch, by how it begins.
fn unsupported_scheme(value: &str) -> Option<&str> {
    if let Some((scheme, _)) = value.split_once("://") {
        return Some(&value[..scheme.len() + 3]);
    }
    ["git@", "target:", "input:"].into_iter().find(|start| value.starts_with(start))
}

fn absolute(path: &str, working_folder: &Path) -> String {
    if Path::new(path).is_absolute() {
        return path.to_owned();
    }
    // The folder's name as text, for it travels among the plan's texts; any other name cannot be typed here either.
    format!("{}/{path}", working_folder.display())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn values_are_dockers() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("a")).unwrap();
        let here = folder.path().display();
        let table = [
            ("x=a", format!("{here}/a")),
            ("x=.", format!("{here}/.")),
            ("x=/", "/".to_owned()),
            ("x=docker-image://debian:12", "docker-image://debian:12".to_owned()),
            ("x=oci-layout://l:v1", format!("oci-layout://{here}/l:v1")),
            ("x=oci-layout:///l@sha256:ab", "oci-layout:///l@sha256:ab".to_owned()),
        ];
        for (text, value) in table {
            assert_eq!(parse(text, folder.path()).unwrap(), ("x".to_owned(), value), "{text}");
        }
    }

    #[test]
    fn what_is_refused_names_what_is_supported() {
        let folder = tempfile::tempdir().unwrap();
        let table = [
            ("x", 2, "expected NAME=VALUE"),
            ("=a", 2, "the name in front of `=`"),
            ("x=", 2, "the value is empty"),
            ("x=docker-image://UPPER", 2, "docker-image://UPPER"),
            ("x=oci-layout://", 2, "the layout's folder is missing"),
            ("x=https://example.com/a.tar", 2, "`https://` is not supported yet"),
            ("x=git@example.com:a/b", 2, "`git@` is not supported yet"),
            ("x=target:stage", 2, "`target:` is not supported yet"),
            ("x=missing", 1, "the build context `x` cannot be opened: missing: No such file"),
        ];
        for (text, code, message) in table {
            let (exit, shown) = parse(text, folder.path()).unwrap_err().report();
            let shown = shown.unwrap();
            assert_eq!(exit, code, "{shown}");
            assert!(shown.contains(message), "{shown}");
        }
    }
}
