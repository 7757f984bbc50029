//! Reads the log of `strace -f -y -xx`: system calls in the order in which the kernel began and finished them.
//!
//! ```text
//! 17 pwrite64(5</a/file>, "…", 9, 4096) = 9
//! 17 fsync(5</a/file> <unfinished ...>
//! 18 openat(AT_FDCWD</a>, "file", O_RDWR|O_CREAT, 0644) = 6</a/file>
//! 17 <... fsync resumed>) = 0
//! ```
//!
//! All text is in hexadecimal escapes, so quotes and brackets are always the log's own.

use std::collections::HashMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// What is asked of strace.
pub(super) const OPTIONS: &[&str] = &[
    "-f",
    "-qqq",
    "-y",
    "-xx",
    "-s",
    // The largest single write that tests make is far smaller; a shortened one is an error.
    "8388608",
    "--signal=none",
    "-e",
    "trace=openat,openat2,open,creat,write,writev,pwrite64,pwritev,pwritev2,sendto,sendmsg,sendfile,copy_file_range,\
     splice,ftruncate,truncate,fallocate,fsync,fdatasync,rename,renameat,renameat2,link,linkat,symlink,symlinkat,\
     unlink,unlinkat,mkdir,mkdirat,rmdir,exit_group",
];

/// One argument, or a part of a structure that is one.
#[derive(Clone, Debug, Default)]
pub(super) struct Argument {
    /// What is written plainly: numbers, flags.
    pub(super) word: String,
    /// The path behind a file descriptor.
    pub(super) path: Option<PathBuf>,
    /// A quoted text.
    pub(super) text: Option<Vec<u8>>,
}

/// A system call.
#[derive(Clone, Debug)]
pub(super) struct Call {
    /// The thread.
    pub(super) thread: u32,
    /// Its name.
    pub(super) name: String,
    /// Its arguments, as far as they are known.
    pub(super) arguments: Vec<Argument>,
    /// What it returned; `None` when it failed or has not returned.
    pub(super) result: Option<u64>,
}

impl Call {
    /// The path behind the descriptor that is argument `number`.
    pub(super) fn fd_path(&self, number: usize) -> Option<&PathBuf> {
        self.arguments.get(number)?.path.as_ref()
    }

    /// The path that argument `number` names, below the folder behind the descriptor before it (`…at` calls).
    pub(super) fn path_at(&self, number: usize) -> Option<PathBuf> {
        let below = number.checked_sub(1).and_then(|before| self.fd_path(before)).cloned();
        Some(below.unwrap_or_default().join(self.path(number)?))
    }

    /// The path that argument `number` is.
    pub(super) fn path(&self, number: usize) -> Option<PathBuf> {
        let text = self.arguments.get(number)?.text.clone()?;
        Some(PathBuf::from(OsString::from_vec(text)))
    }

    /// All quoted texts together: the buffers of a write.
    pub(super) fn bytes(&self) -> Vec<u8> {
        self.arguments.iter().filter_map(|argument| argument.text.clone()).flatten().collect()
    }

    /// The number that argument `number` is.
    pub(super) fn number(&self, number: usize) -> u64 {
        self.arguments[number].word.parse().unwrap()
    }

    /// Whether a flag is among the arguments.
    pub(super) fn has_flag(&self, flag: &str) -> bool {
        self.arguments
            .iter()
            .any(|argument| argument.word.split(['|', '=', '{', '}']).any(|word| word == flag))
    }
}

/// A moment of the log.
pub(super) enum Moment {
    /// The kernel begins.
    Begun(Call),
    /// The kernel has finished.
    Finished(Call),
}

/// The moments of a log.
pub(super) fn moments(log: &str) -> Vec<Moment> {
    let (mut moments, mut open) = (Vec::new(), HashMap::<u32, (String, String)>::new());
    for line in log.lines() {
        let (thread, rest) = line.split_once(' ').unwrap();
        let (thread, rest) = (thread.parse().unwrap(), rest.trim_start());
        if let Some(begun) = rest.strip_suffix(" <unfinished ...>") {
            let (name, arguments) = begun.split_once('(').unwrap();
            moments.push(Moment::Begun(call(thread, name, arguments, None)));
            open.insert(thread, (name.to_owned(), arguments.to_owned()));
        } else if let Some(resumed) = rest.strip_prefix("<... ") {
            let (_, end) = resumed.split_once("resumed>").unwrap();
            // One that strace did not see begin is of no interest: it is one of those that end a thread.
            let Some((name, begun)) = open.remove(&thread) else { continue };
            moments.push(Moment::Finished(finished(thread, &name, &format!("{begun}{end}"))));
        } else if let Some((name, rest)) = rest.split_once('(') {
            let finished = finished(thread, name, rest);
            moments.push(Moment::Begun(Call { result: None, ..finished.clone() }));
            moments.push(Moment::Finished(finished));
        }
    }
    moments
}

fn finished(thread: u32, name: &str, rest: &str) -> Call {
    let (arguments, result) = rest.rsplit_once(" = ").unwrap_or((rest, "?"));
    let arguments = arguments.trim_end();
    let arguments = arguments.strip_suffix(')').unwrap_or(arguments);
    let digits = result.split(|c: char| !c.is_ascii_digit()).next().unwrap();
    call(thread, name, arguments, digits.parse().ok())
}

fn call(thread: u32, name: &str, arguments: &str, result: Option<u64>) -> Call {
    Call { thread, name: name.to_owned(), arguments: parse(arguments), result }
}

fn parse(text: &str) -> Vec<Argument> {
    let (mut arguments, mut current, mut rest) = (Vec::new(), Argument::default(), text);
    while let Some(c) = rest.chars().next() {
        rest = &rest[c.len_utf8()..];
        match c {
            // A shift, as in the states that a question to sock_diag names.
            '<' if rest.starts_with('<') => rest = &rest[1..],
            '"' | '<' => {
                let end = if c == '"' { '"' } else { '>' };
                let (quoted, behind) = rest.split_once(end).unwrap();
                assert!(!behind.starts_with("..."), "strace has shortened a text");
                rest = behind;
                match c {
                    '"' => current.text = Some(unescape(quoted)),
                    _ => current.path = Some(OsString::from_vec(unescape(quoted)).into()),
                }
            }
            ',' => arguments.push(std::mem::take(&mut current)),
            ' ' => {}
            c => current.word.push(c),
        }
    }
    arguments.push(current);
    arguments
}

/// `\x41B` is `AB`.
fn unescape(text: &str) -> Vec<u8> {
    let (bytes, mut out, mut at) = (text.as_bytes(), Vec::with_capacity(text.len() / 4), 0);
    let digit = |byte: u8| char::from(byte).to_digit(16).unwrap() as u8;
    while at < bytes.len() {
        if bytes[at] == b'\\' && bytes[at + 1] == b'x' {
            out.push(digit(bytes[at + 2]) << 4 | digit(bytes[at + 3]));
            at += 4;
        } else {
            out.push(bytes[at]);
            at += 1;
        }
    }
    out
}
