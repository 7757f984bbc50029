//! Where COPY and ADD put things: the destination's text against WORKDIR.
//!
//! Following the image's links from there is [`crate::source_tree::land`].

use rimg_formats::layer::{LayerPath, LayerPathError};

/// A destination as written, cleaned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Destination {
    /// The path from the image's root.
    pub(crate) path: LayerPath,
    /// Whether the text says that it is a directory: `dir/`, `.`, `dir/.`.
    pub(crate) is_directory: bool,
}

impl Destination {
    /// Reads `text`; a relative one lies below `working_directory`. `..` is folded lexically and stops at the root.
    pub(crate) fn parse(text: &str, working_directory: &str) -> Result<Destination, LayerPathError> {
        let last = text.rsplit('/').next().unwrap_or("");
        let is_directory = matches!(last, "" | "." | "..");
        let joined =
            if text.starts_with('/') { text.to_owned() } else { format!("{working_directory}/{text}") };
        Ok(Destination { path: clean(joined.as_bytes())?, is_directory })
    }
}

/// Cleans a path lexically, as Go's `path.Clean` does for an absolute one: `..` removes what stands before it.
pub(crate) fn clean(text: &[u8]) -> Result<LayerPath, LayerPathError> {
    let mut names: Vec<&[u8]> = Vec::new();
    for name in text.split(|byte| *byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => {
                names.pop();
            }
            _ => names.push(name),
        }
    }
    LayerPath::parse(names.join(&b'/'))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn destinations() {
        let table = [
            ("/app", "/", "app", false),
            ("/app/", "/", "app", true),
            ("app", "/srv", "srv/app", false),
            (".", "/srv", "srv", true),
            ("./", "/srv", "srv", true),
            ("a/.", "/srv", "srv/a", true),
            ("..", "/srv/x", "srv", true),
            ("../../../../x", "/srv", "x", false),
            ("/", "/srv", "", true),
            ("/a//b/../c", "/", "a/c", false),
            ("x", "", "x", false),
        ];
        for (text, working_directory, path, is_directory) in table {
            let found = Destination::parse(text, working_directory).unwrap();
            assert_eq!((found.path.to_string().as_str(), found.is_directory), (path, is_directory), "{text}");
        }
    }
}
