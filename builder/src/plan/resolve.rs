//! What a name after FROM, `--from=` or `from=` means: a named context, a stage, an image, a path.

use super::{Base, CopySource, LocalPath, OciLayout, PlanOptions};
use crate::diagnostic::Diagnostic;
use crate::source::Span;
use crate::suggest;

/// The names of all stages of a file.
pub(super) struct Names<'a> {
    pub(super) options: &'a PlanOptions,
    /// Of every stage its name in lower case.
    pub(super) stages: Vec<Option<String>>,
}

impl Names<'_> {
    /// The base of stage `current`. Only earlier stages count: a later one, or the stage itself, may
    /// well bear the name of an image (`FROM nginx AS nginx`).
    pub(super) fn base(
        &self,
        text: &str,
        span: Span,
        current: usize,
        warnings: &mut Vec<Diagnostic>,
    ) -> Result<Base, Diagnostic> {
        if text.is_empty() {
            return Err(Diagnostic::error(span, "the image is empty after variables were filled in")
                .help("give the ARG a default before the first FROM: `ARG NAME=value`"));
        }
        check_length(text, span)?;
        if let Some(context) = self.named_context(text) {
            return base_of_context(text, context, span);
        }
        if text == "scratch" {
            return Ok(Base::Scratch);
        }
        if let Some(stage) = self.stage(text, current) {
            return Ok(Base::Stage(stage));
        }
        if let Some(local) = local(text, span)? {
            return Ok(local);
        }
        let lower = text.to_lowercase();
        if self.stages[current + 1..].contains(&Some(lower.clone())) {
            let message = format!("`{text}` also names a stage further down; here it means the image");
            warnings.push(
                Diagnostic::warning("ForwardStageReference", span, message)
                    .help("move that stage before this one if it is meant"),
            );
        }
        check_image(text, span)?;
        Ok(Base::Image(text.to_owned()))
    }

    /// The source of a COPY or mount in stage `current`. Later stages count too: where such a stage is needed, that is refused.
    pub(super) fn source(
        &self,
        text: &str,
        span: Span,
        current: usize,
        warnings: &mut Vec<Diagnostic>,
    ) -> Result<CopySource, Diagnostic> {
        if text.is_empty() {
            return Ok(CopySource::Context);
        }
        check_length(text, span)?;
        if let Some(context) = self.named_context(text) {
            return source_of_context(text, context, span);
        }
        if text == "context" {
            return Ok(CopySource::Context);
        }
        if let Some(stage) = self.number(text, span)?.or_else(|| self.stage(text, self.stages.len())) {
            if stage == current {
                return Err(Diagnostic::error(span, format!("stage `{text}` cannot copy from itself")));
            }
            return Ok(CopySource::Stage(stage));
        }
        if text == "scratch" {
            return Err(Diagnostic::error(span, "`scratch` is empty: there is nothing to copy from it"));
        }
        if let Some(Base::OciLayout(layout)) = local(text, span)? {
            return Ok(CopySource::OciLayout(layout));
        }
        if let Some(near) = suggest::nearest(text, self.stages.iter().flatten().map(String::as_str)) {
            let message = format!("no stage is named `{text}`, so it means the image of that name");
            warnings.push(Diagnostic::warning("UnknownStage", span, message).did_you_mean(Some(near)));
        }
        check_image(text, span)?;
        Ok(CopySource::Image(text.to_owned()))
    }

    fn named_context(&self, text: &str) -> Option<&str> {
        let contexts = &self.options.named_contexts;
        let lower = text.to_lowercase();
        // `docker.io/library/debian:latest` is what `debian` means, so a context of either name is meant by both.
        let familiar = |name: &str| {
            let name = name.strip_prefix("docker.io/").unwrap_or(name);
            let name = name.strip_prefix("library/").unwrap_or(name);
            name.strip_suffix(":latest").unwrap_or(name).to_lowercase()
        };
        let wanted = familiar(text);
        let hit = contexts.get(text).or_else(|| contexts.get(&lower));
        let hit =
            hit.or_else(|| contexts.iter().find_map(|(name, is)| (familiar(name) == wanted).then_some(is)));
        hit.map(String::as_str)
    }

    /// The last stage of that name among the first `count`.
    fn stage(&self, text: &str, count: usize) -> Option<usize> {
        let lower = text.to_lowercase();
        self.stages[..count].iter().rposition(|name| name.as_deref() == Some(lower.as_str()))
    }

    fn number(&self, text: &str, span: Span) -> Result<Option<usize>, Diagnostic> {
        if !text.chars().all(|c| c.is_ascii_digit()) {
            return Ok(None);
        }
        match text.parse::<usize>().ok().filter(|number| *number < self.stages.len()) {
            Some(number) => Ok(Some(number)),
            None => {
                let last = self.stages.len() - 1;
                Err(Diagnostic::error(span, format!("there is no stage {text}"))
                    .help(format!("stages are numbered from 0 to {last}")))
            }
        }
    }
}

/// The longest name of an image or path: the longest path the kernel takes.
const NAME_BYTES_MAX: usize = 4096;

fn check_length(text: &str, span: Span) -> Result<(), Diagnostic> {
    match text.len() > NAME_BYTES_MAX {
        true => Err(Diagnostic::error(span, format!("the name is longer than {NAME_BYTES_MAX} bytes"))),
        false => Ok(()),
    }
}

/// Things on this machine.
fn local(text: &str, span: Span) -> Result<Option<Base>, Diagnostic> {
    if let Some(layout) = text.strip_prefix("oci:") {
        return oci_layout(layout, span).map(|layout| Some(Base::OciLayout(layout)));
    }
    let path = text == "." || text == ".." || ["./", "../", "/"].iter().any(|start| text.starts_with(start));
    Ok(path.then(|| Base::Path(LocalPath { path: text.to_owned(), name: text.to_owned() })))
}

/// `path[:tag]` or `path@digest`.
fn oci_layout(text: &str, span: Span) -> Result<OciLayout, Diagnostic> {
    let (path, reference) = match text.split_once('@') {
        Some((path, digest)) => (path, Some(digest)),
        None => match text.rsplit_once(':') {
            Some((path, tag)) if !tag.contains('/') => (path, Some(tag)),
            _ => (text, None),
        },
    };
    if path.is_empty() || reference.is_some_and(str::is_empty) {
        return Err(Diagnostic::error(span, format!("`oci:{text}` names no layout"))
            .help("write `oci:path`, `oci:path:tag` or `oci:path@sha256:…`"));
    }
    Ok(OciLayout { path: path.to_owned(), reference: reference.map(str::to_owned) })
}

fn base_of_context(name: &str, context: &str, span: Span) -> Result<Base, Diagnostic> {
    match source_of_context(name, context, span)? {
        CopySource::Image(image) => Ok(Base::Image(image)),
        CopySource::OciLayout(layout) => Ok(Base::OciLayout(layout)),
        CopySource::Path(path) => Ok(Base::Path(path)),
        CopySource::Context | CopySource::Stage(_) => {
            Err(Diagnostic::error(span, format!("`{context}` cannot be a base")))
        }
    }
}

/// `--build-context name=context`
fn source_of_context(name: &str, context: &str, span: Span) -> Result<CopySource, Diagnostic> {
    if let Some(image) = context.strip_prefix("docker-image://") {
        return Ok(CopySource::Image(image.to_owned()));
    }
    if let Some(layout) = context.strip_prefix("oci-layout://").or_else(|| context.strip_prefix("oci:")) {
        return oci_layout(layout, span).map(CopySource::OciLayout);
    }
    if ["http://", "https://", "git://", "ssh://", "git@"].iter().any(|start| context.starts_with(start)) {
        return Err(Diagnostic::not_supported(span, &format!("the build context `{context}`")));
    }
    Ok(CopySource::Path(LocalPath { path: context.to_owned(), name: name.to_owned() }))
}

/// A first look at an image reference, so that slips show their line; the rest is checked where it is used.
fn check_image(text: &str, span: Span) -> Result<(), Diagnostic> {
    let name = text.split('@').next().unwrap_or(text);
    let repository = match name.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => repository,
        _ => name,
    };
    if text.ends_with([':', '@']) {
        return Err(Diagnostic::error(
            span,
            format!("`{text}` has nothing behind its `{}`", &text[text.len() - 1..]),
        )
        .help(
            "a variable may be empty: give its ARG a default before the first FROM, or pass `--build-arg`",
        ));
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-/:[]".contains(c);
    if repository.is_empty() || !text.chars().all(|c| plain(c) || c == '@') {
        return Err(Diagnostic::error(span, format!("invalid image reference `{text}`"))
            .help("write `name[:tag][@digest]`, or `./path` for a directory"));
    }
    let path =
        repository.split_once('/').filter(|(host, _)| host.contains(['.', ':']) || *host == "localhost");
    let path = path.map_or(repository, |(_, path)| path);
    if path.chars().any(|c| c.is_ascii_uppercase()) {
        return Err(Diagnostic::error(span, format!("image name `{path}` is not in lower case"))
            .help(format!("write `{}`", text.replace(path, &path.to_lowercase()))));
    }
    Ok(())
}
