//! `RUN --mount=`: comma-separated fields, unexpanded, and their typed meaning once expanded.

use super::text::Word;
use crate::diagnostic::Diagnostic;
use crate::source::Span;
use crate::suggest;

/// One `--mount`, as written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountText {
    /// The fields in order.
    pub fields: Vec<MountField>,
    /// The whole flag.
    pub span: Span,
}

/// `key[=value]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountField {
    /// The key, in lower case.
    pub key: String,
    /// The value, unexpanded.
    pub value: Option<Word>,
    /// The whole field.
    pub span: Span,
}

/// A mount with everything expanded and checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// What is mounted.
    pub kind: MountKind,
    /// Where in the container; `None` means the working directory for a bind, their default place for secrets and ssh.
    pub target: Option<String>,
    /// Whether the command cannot write to it.
    pub read_only: bool,
    /// `from=` as written and expanded; the planner resolves it.
    pub from: Option<Word>,
    /// The whole flag.
    pub span: Span,
}

/// The types of mounts with what is particular to each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MountKind {
    /// Files of the context, a stage or an image. Writes are discarded.
    Bind {
        /// Path in the source; `/` is all of it.
        source: String,
    },
    /// A directory that outlives the build; never in the layer, never in the key.
    Cache {
        /// Identity; the target if not given.
        id: Option<String>,
        /// Who may use it at the same time.
        sharing: CacheSharing,
        /// Path in `from` whose content it starts with.
        source: String,
        /// Permission bits of the directory.
        mode: u32,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
    },
    /// Empty memory.
    Tmpfs {
        /// Limit in bytes.
        size: Option<u64>,
    },
    /// A secret, as a file, a variable, or both.
    Secret {
        /// Which secret.
        id: String,
        /// The variable it goes to; without a target there is then no file.
        env: Option<String>,
        /// Whether the build fails without it.
        required: bool,
        /// Permission bits of the file.
        mode: u32,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
    },
    /// A socket of an ssh agent.
    Ssh {
        /// Which agent.
        id: String,
        /// Whether the build fails without it.
        required: bool,
        /// Permission bits of the socket.
        mode: u32,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
    },
}

/// `sharing=` of a cache mount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CacheSharing {
    /// Any number of users at once.
    #[default]
    Shared,
    /// Each concurrent user gets one of its own.
    Private,
    /// One user after the other.
    Locked,
}

const KEYS: [&str; 18] = [
    "type",
    "from",
    "source",
    "src",
    "target",
    "dst",
    "destination",
    "readonly",
    "ro",
    "readwrite",
    "rw",
    "id",
    "sharing",
    "required",
    "size",
    "mode",
    "uid",
    "gid",
];

impl MountText {
    /// Cuts the flag's value into fields. Keys are checked here, values when they are known.
    pub(crate) fn parse(value: &Word, span: Span) -> Result<MountText, Diagnostic> {
        let mut fields = Vec::new();
        for field in csv_fields(value)? {
            let (key, value) = match field.text.find('=') {
                Some(at) => (field.text[..at].to_owned(), Some(field.part(at + 1..field.text.len()))),
                None => (field.text.clone(), None),
            };
            let key = key.trim().to_lowercase();
            if key != "env" && !KEYS.contains(&key.as_str()) {
                return Err(Diagnostic::error(field.span, format!("unknown key `{key}` in `--mount`"))
                    .did_you_mean(suggest::nearest(&key, KEYS)));
            }
            fields.push(MountField { key, value, span: field.span });
        }
        Ok(MountText { fields, span })
    }

    /// The value of `from=`, unexpanded.
    pub fn from(&self) -> Option<&Word> {
        self.fields.iter().rev().find(|field| field.key == "from").and_then(|field| field.value.as_ref())
    }

    /// Whether any value holds variables.
    pub(crate) fn has_variables(&self) -> bool {
        self.fields.iter().any(|field| field.value.as_ref().is_some_and(Word::has_variables))
    }

    /// Gives the mount its meaning; `expand` fills in variables.
    ///
    /// # Errors
    /// A diagnostic at the field to blame.
    pub fn resolve(
        &self,
        expand: &mut dyn FnMut(&Word) -> Result<String, Diagnostic>,
    ) -> Result<Mount, Diagnostic> {
        let mut settings = Settings::default();
        for field in &self.fields {
            let value = field.value.as_ref().map(&mut *expand).transpose()?;
            settings.set(field, value)?;
        }
        settings.finish(self.span)
    }
}

/// RFC 4180 fields of one record: a field may be quoted, a doubled quote stands for one.
fn csv_fields(value: &Word) -> Result<Vec<Word>, Diagnostic> {
    let text = &value.text;
    let mut fields = Vec::new();
    let mut at = 0;
    loop {
        let rest = &text[at..];
        let end = match rest.strip_prefix('"') {
            None => rest.find(',').unwrap_or(rest.len()),
            Some(quoted) => {
                let Some(close) = closing_quote(quoted) else {
                    return Err(Diagnostic::error(
                        value.span_of(at..text.len()),
                        "unclosed quote in `--mount`",
                    ));
                };
                close + 2
            }
        };
        let mut field = value.part(at..at + end);
        if rest.starts_with('"') {
            let inner = value.part(at + 1..at + end - 1);
            field = Word { text: inner.text.replace("\"\"", "\""), span: inner.span };
        }
        if field.text.is_empty() {
            return Err(Diagnostic::error(value.span_of(at..at + end), "empty field in `--mount`")
                .help("write fields as `key=value`, separated by single commas"));
        }
        fields.push(field);
        at += end;
        match text[at..].chars().next() {
            None => return Ok(fields),
            Some(',') => at += 1,
            Some(_) => {
                return Err(Diagnostic::error(
                    value.span_of(at..text.len()),
                    "text behind a quoted field in `--mount`",
                ));
            }
        }
    }
}

fn closing_quote(text: &str) -> Option<usize> {
    let mut at = 0;
    loop {
        at += text[at..].find('"')?;
        if !text[at + 1..].starts_with('"') {
            return Some(at);
        }
        at += 2;
    }
}

/// Fields on the way to a [`Mount`], each with its place for later complaints.
#[derive(Default)]
struct Settings {
    kind: Option<String>,
    target: Option<String>,
    source: Option<(String, Span)>,
    from: Option<Word>,
    read_only: Option<bool>,
    id: Option<(String, Span)>,
    env: Option<(String, Span)>,
    sharing: Option<(CacheSharing, Span)>,
    required: Option<(bool, Span)>,
    size: Option<(u64, Span)>,
    mode: Option<(u32, Span)>,
    uid: Option<(u32, Span)>,
    gid: Option<(u32, Span)>,
}

const TYPES: [&str; 5] = ["bind", "cache", "tmpfs", "secret", "ssh"];

impl Settings {
    fn set(&mut self, field: &MountField, value: Option<String>) -> Result<(), Diagnostic> {
        let span = field.value.as_ref().map_or(field.span, |value| value.span);
        let key = field.key.as_str();
        let Some(value) = value else {
            match key {
                "readonly" | "ro" => self.read_only = Some(true),
                "readwrite" | "rw" => self.read_only = Some(false),
                "required" => self.required = Some((true, field.span)),
                _ => {
                    return Err(Diagnostic::error(field.span, format!("`{key}` in `--mount` wants a value"))
                        .help(format!("write `{key}=VALUE`")));
                }
            }
            return Ok(());
        };
        let invalid =
            |what: &str| Diagnostic::error(span, format!("invalid value `{value}` for `{key}`")).label(what);
        let number = |radix| u32::from_str_radix(&value, radix).ok().filter(|_| !value.starts_with('+'));
        match key {
            "type" => self.kind = Some(kind(&value, span)?),
            "from" => self.from = Some(Word { text: value, span }),
            "source" | "src" => self.source = Some((value, field.span)),
            "target" | "dst" | "destination" => self.target = Some(value),
            "readonly" | "ro" => {
                self.read_only = Some(boolean(&value).ok_or_else(|| invalid("not a boolean"))?)
            }
            "readwrite" | "rw" => {
                self.read_only = Some(!boolean(&value).ok_or_else(|| invalid("not a boolean"))?)
            }
            "id" => self.id = Some((value, field.span)),
            "env" => self.env = Some((value, field.span)),
            "sharing" => self.sharing = Some((sharing(&value, span)?, field.span)),
            "required" => {
                self.required = Some((boolean(&value).ok_or_else(|| invalid("not a boolean"))?, field.span));
            }
            "size" => self.size = Some((bytes(&value).ok_or_else(|| invalid("not a size"))?, field.span)),
            "mode" => {
                let mode = number(8).filter(|mode| *mode <= 0o7777);
                self.mode = Some((mode.ok_or_else(|| invalid("not an octal mode"))?, field.span));
            }
            "uid" => self.uid = Some((number(10).ok_or_else(|| invalid("not a number"))?, field.span)),
            "gid" => self.gid = Some((number(10).ok_or_else(|| invalid("not a number"))?, field.span)),
            _ => return Err(Diagnostic::error(field.span, format!("unknown key `{key}` in `--mount`"))),
        }
        Ok(())
    }

    /// Refuses what the type does not know.
    fn check(&self, kind: &str) -> Result<(), Diagnostic> {
        let (file, cache) = (["cache", "secret", "ssh"].contains(&kind), kind == "cache");
        let secret = ["secret", "ssh"].contains(&kind);
        let place = |setting: &Option<(u32, Span)>| setting.map(|(_, span)| span);
        let misplaced = [
            ("mode", place(&self.mode), file),
            ("uid", place(&self.uid), file),
            ("gid", place(&self.gid), file),
            ("sharing", self.sharing.map(|(_, span)| span), cache),
            ("required", self.required.map(|(_, span)| span), secret),
            ("size", self.size.map(|(_, span)| span), kind == "tmpfs"),
            ("env", self.env.as_ref().map(|(_, span)| *span), kind == "secret"),
            ("from", self.from.as_ref().map(|from| from.span), kind == "bind" || cache),
        ];
        match misplaced.into_iter().find(|(_, span, allowed)| span.is_some() && !allowed) {
            Some((key, Some(span), _)) => {
                Err(Diagnostic::error(span, format!("`{key}` is not allowed for a mount of type `{kind}`")))
            }
            _ => Ok(()),
        }
    }

    fn finish(self, span: Span) -> Result<Mount, Diagnostic> {
        let kind = self.kind.as_deref().unwrap_or("bind").to_owned();
        self.check(&kind)?;
        if self.target.as_ref().is_none_or(String::is_empty) && ["cache", "tmpfs"].contains(&kind.as_str()) {
            return Err(Diagnostic::error(span, format!("a mount of type `{kind}` wants a target"))
                .help("add `target=/path/in/the/container`"));
        }
        let read_only = self.read_only.unwrap_or(!["cache", "tmpfs"].contains(&kind.as_str()));
        let target = self.target.clone();
        let from = self.from.clone();
        let kind = match kind.as_str() {
            "cache" => self.cache(),
            "tmpfs" => MountKind::Tmpfs { size: self.size.map(|(size, _)| size) },
            "secret" => self.secret(span)?,
            "ssh" => self.ssh(),
            _ => MountKind::Bind { source: self.source.map_or_else(|| "/".to_owned(), |(source, _)| source) },
        };
        Ok(Mount { kind, target, read_only, from, span })
    }

    fn owner(&self, mode: u32) -> (u32, u32, u32) {
        let or = |setting: &Option<(u32, Span)>, default| setting.map_or(default, |(value, _)| value);
        (or(&self.mode, mode), or(&self.uid, 0), or(&self.gid, 0))
    }

    fn cache(self) -> MountKind {
        let (mode, uid, gid) = self.owner(0o755);
        MountKind::Cache {
            id: self.id.map(|(id, _)| id).filter(|id| !id.is_empty()),
            sharing: self.sharing.map(|(sharing, _)| sharing).unwrap_or_default(),
            source: self.source.map_or_else(|| "/".to_owned(), |(source, _)| source),
            mode,
            uid,
            gid,
        }
    }

    fn secret(self, span: Span) -> Result<MountKind, Diagnostic> {
        let (mode, uid, gid) = self.owner(0o400);
        if let (Some(_), Some((_, place))) = (&self.source, &self.id) {
            return Err(Diagnostic::error(*place, "a secret mount takes either `id` or `source`, not both"));
        }
        let named = self.id.or(self.source).map(|(id, _)| id).filter(|id| !id.is_empty());
        let base = self.target.as_deref().and_then(|target| target.trim_end_matches('/').rsplit('/').next());
        let id =
            named.or_else(|| base.filter(|base| !base.is_empty()).map(str::to_owned)).ok_or_else(|| {
                Diagnostic::error(span, "a secret mount wants `id` or `target`")
                    .help("write `--mount=type=secret,id=NAME`")
            })?;
        let required = self.required.is_some_and(|(required, _)| required);
        Ok(MountKind::Secret { id, env: self.env.map(|(env, _)| env), required, mode, uid, gid })
    }

    fn ssh(self) -> MountKind {
        let (mode, uid, gid) = self.owner(0o600);
        let id = self.id.or(self.source).map(|(id, _)| id).filter(|id| !id.is_empty());
        let required = self.required.is_some_and(|(required, _)| required);
        MountKind::Ssh { id: id.unwrap_or_else(|| "default".to_owned()), required, mode, uid, gid }
    }
}

fn kind(value: &str, span: Span) -> Result<String, Diagnostic> {
    let kind = value.to_lowercase();
    if TYPES.contains(&kind.as_str()) {
        return Ok(kind);
    }
    let error = Diagnostic::error(span, format!("unknown mount type `{value}`"));
    Err(match suggest::nearest(value, TYPES) {
        Some(_) => error.did_you_mean(suggest::nearest(value, TYPES)),
        None => error.help("the types are bind, cache, tmpfs, secret and ssh"),
    })
}

fn sharing(value: &str, span: Span) -> Result<CacheSharing, Diagnostic> {
    match value.to_lowercase().as_str() {
        "shared" => Ok(CacheSharing::Shared),
        "private" => Ok(CacheSharing::Private),
        "locked" => Ok(CacheSharing::Locked),
        _ => Err(Diagnostic::error(span, format!("unknown sharing mode `{value}`"))
            .help("the modes are shared, private and locked")),
    }
}

/// The booleans that Go's `strconv.ParseBool` knows.
pub(crate) fn boolean(value: &str) -> Option<bool> {
    match value {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// A size with an optional binary unit: `64`, `64m`, `64MB`, `64MiB`.
fn bytes(value: &str) -> Option<u64> {
    let lower = value.trim().to_ascii_lowercase();
    let end = lower.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(lower.len());
    let (number, unit) = lower.split_at(end);
    let unit = unit.trim();
    let unit = unit.strip_suffix("ib").or_else(|| unit.strip_suffix('b')).unwrap_or(unit);
    let shift = ["", "k", "m", "g", "t", "p"].iter().position(|name| *name == unit)? * 10;
    match number.split_once('.') {
        None => number.parse::<u64>().ok()?.checked_mul(1 << shift),
        Some(_) => {
            let size = number.parse::<f64>().ok()? * (1u64 << shift) as f64;
            (size < u64::MAX as f64).then_some(size as u64)
        }
    }
}
