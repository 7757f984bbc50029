//! Build arguments outside stages: what the user gave, what stands before the first FROM, and what is
//! there by itself.

use super::PlanOptions;
use super::scope::{ENVIRONMENT_BYTES_MAX, entry_bytes};
use crate::diagnostic::Diagnostic;
use crate::expand::Expander;
use crate::source::Span;
use crate::suggest;
use crate::syntax::{ArgDeclaration, Buildfile, InstructionKind, WARNINGS_MAX, Word};
use std::collections::{BTreeMap, BTreeSet};

/// Arguments that reach RUN without any ARG, in whatever case, and then take no part in keys or history.
const PROXY_ARGUMENTS: [&str; 5] = ["HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY"];

fn is_proxy(name: &str) -> bool {
    PROXY_ARGUMENTS.iter().any(|proxy| proxy.eq_ignore_ascii_case(name))
}

/// The build argument for the time of files.
const SOURCE_DATE_EPOCH: &str = "SOURCE_DATE_EPOCH";

/// The default that an ARG before the first FROM gives `name`, and where; the last one counts.
pub(crate) fn global_argument(file: &Buildfile, options: &PlanOptions, name: &str) -> Option<(String, Span)> {
    let mut globals = Globals::new(options, None);
    let mut found = None;
    let mut warnings = Vec::new();
    for instruction in &file.instructions {
        let InstructionKind::Arg(declarations) = &instruction.kind else { break };
        for declaration in declarations {
            if let (true, Some(default)) = (declaration.name.text == name, &declaration.default) {
                let value = globals.expand(default, file.escape, "UndefinedVar", &mut warnings).ok()?;
                found = Some((value, default.span));
            }
            globals.declare(declaration, file.escape, &mut warnings).ok()?;
        }
    }
    found
}

/// The global scope of a build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Globals {
    build_args: BTreeMap<String, String>,
    automatic: BTreeMap<String, String>,
    declared: BTreeMap<String, Option<String>>,
    /// What all declarations took, counted with [`entry_bytes`].
    bytes: usize,
}

impl Globals {
    /// `last_stage` is the name of the file's last stage, if it has one.
    pub(super) fn new(options: &PlanOptions, last_stage: Option<&str>) -> Globals {
        let mut build_args = options.build_args.clone();
        if let Some(epoch) = &options.source_date_epoch {
            build_args.entry(SOURCE_DATE_EPOCH.to_owned()).or_insert_with(|| epoch.clone());
        }
        let mut automatic = BTreeMap::new();
        for (prefix, platform) in [("TARGET", &options.target_platform), ("BUILD", &options.build_platform)] {
            let mut set = |name: &str, value: &str| {
                let name = format!("{prefix}{name}");
                let value = build_args.get(&name).map_or(value, String::as_str).to_owned();
                automatic.insert(name, value);
            };
            set("PLATFORM", &platform.to_string());
            set("OS", &platform.os);
            set("OSVERSION", platform.os_version.as_deref().unwrap_or(""));
            set("ARCH", &platform.architecture);
            set("VARIANT", platform.variant.as_deref().unwrap_or(""));
        }
        let target = options.target.as_deref().or(last_stage);
        let stage = build_args.get("TARGETSTAGE").cloned();
        automatic.insert(
            "TARGETSTAGE".to_owned(),
            stage.unwrap_or_else(|| target.unwrap_or("default").to_owned()),
        );
        Globals { build_args, automatic, declared: BTreeMap::new(), bytes: 0 }
    }

    /// Takes a declaration from before the first FROM.
    pub(super) fn declare(
        &mut self,
        declaration: &ArgDeclaration,
        escape: char,
        warnings: &mut Vec<Diagnostic>,
    ) -> Result<(), Diagnostic> {
        let name = declaration.name.text.clone();
        let value = match (self.build_args.get(&name), &declaration.default) {
            (Some(value), _) => Some(value.clone()),
            (None, Some(default)) => Some(self.expand(default, escape, "UndefinedVar", warnings)?),
            (None, None) => None,
        };
        self.bytes += entry_bytes(name.len(), value.as_ref().map_or(0, String::len));
        if self.bytes > ENVIRONMENT_BYTES_MAX {
            let message = format!("the global arguments come to more than {ENVIRONMENT_BYTES_MAX} bytes");
            return Err(Diagnostic::error(declaration.name.span, message));
        }
        // Other words than a number are for the build; steps see the time that they mean, or none.
        let is_time = |value: &String| value.bytes().all(|byte| byte.is_ascii_digit());
        let value = value.filter(|value| name != SOURCE_DATE_EPOCH || is_time(value));
        self.declared.insert(name, value);
        Ok(())
    }

    /// Expands a word of FROM or of a global ARG.
    pub(super) fn expand(
        &self,
        word: &Word,
        escape: char,
        code: &'static str,
        warnings: &mut Vec<Diagnostic>,
    ) -> Result<String, Diagnostic> {
        let expansion = Expander::new(&|name| self.value(name), escape)
            .expand(&word.text)
            .map_err(|error| Diagnostic::error(word.span_of(error.range.clone()), error.to_string()))?;
        for (name, range) in expansion.undefined {
            if warnings.len() < WARNINGS_MAX && !self.declared.contains_key(&name) {
                warnings.push(undefined(code, word.span_of(range), &name, self.names()));
            }
        }
        Ok(expansion.text)
    }

    /// The value of a global argument: declared, else automatic.
    pub fn value(&self, name: &str) -> Option<String> {
        match self.declared.get(name) {
            Some(Some(value)) => Some(value.clone()),
            _ => self.automatic.get(name).cloned(),
        }
    }

    /// Whether an ARG before the first FROM, or rimg itself, gives the name a value for FROM.
    pub(super) fn is_declared(&self, name: &str) -> bool {
        self.declared.contains_key(name) || self.automatic.contains_key(name)
    }

    /// The value the user gave with `--build-arg`.
    pub fn build_arg(&self, name: &str) -> Option<&str> {
        self.build_args.get(name).map(String::as_str)
    }

    /// The proxies the user gave, in both spellings. Of two spellings that were both given the lower-case one counts.
    pub(super) fn proxies(&self) -> Vec<(String, String)> {
        let mut proxies = BTreeMap::new();
        // Upper case sorts first, so the lower-case value comes last.
        for (name, value) in
            self.build_args.iter().filter(|(name, value)| is_proxy(name) && !value.is_empty())
        {
            proxies.insert(name.to_ascii_uppercase(), value);
            proxies.insert(name.to_ascii_lowercase(), value);
        }
        proxies.into_iter().map(|(name, value)| (name, value.clone())).collect()
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        self.declared.keys().chain(self.automatic.keys()).map(String::as_str)
    }

    /// A warning for every `--build-arg` that none of the declared names asks for.
    pub(super) fn unused(&self, declared: &BTreeSet<String>) -> Vec<Diagnostic> {
        let known = |name: &str| {
            declared.contains(name)
                || self.automatic.contains_key(name)
                || is_proxy(name)
                || name.starts_with("BUILDKIT_")
                || name == SOURCE_DATE_EPOCH
        };
        let unused = self.build_args.keys().filter(|name| !known(name));
        let warning = |name: &String| Diagnostic {
            severity: crate::diagnostic::Severity::Warning,
            ..Diagnostic::error_without_place(format!(
                "build argument `{name}` is not used: no ARG declares it"
            ))
            .did_you_mean(suggest::nearest(name, declared.iter().map(String::as_str)))
        };
        unused.map(warning).collect()
    }
}

/// The warning for a variable without a value.
pub(super) fn undefined<'a>(
    code: &'static str,
    span: Span,
    name: &str,
    names: impl Iterator<Item = &'a str>,
) -> Diagnostic {
    Diagnostic::warning(code, span, format!("variable `{name}` is not defined"))
        .label("empty here")
        .did_you_mean(suggest::nearest(name, names))
}
