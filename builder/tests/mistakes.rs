//! Buildfiles as people get them wrong, and what they are told: the place, and what helps.

#![allow(clippy::unwrap_used)]

mod kit;

use kit::Workspace;
use rimg_builder::events::Event;

fn workspace() -> Workspace {
    let workspace = Workspace::new();
    workspace.file("a.txt", "a").file("rootfs/file", "f");
    workspace
}

#[test]
fn errors_say_where_and_what_helps() {
    let workspace = workspace();
    let table = [
        ("COPPY a.txt /", "Buildfile:2:1", "did you mean `COPY`?"),
        ("ENV A=1 \\\n    B=2\n    C=3", "Buildfile:4:5", "end the line before it with a continuation"),
        ("COPY [\"a.txt\", \"/x\"", "Buildfile:2:6", "the JSON form is `[\"source\", \"/destination\"]`"),
        ("COPY --form=x a.txt /", "Buildfile:2:6", "did you mean `--from`?"),
        ("COPY <<EOF /x\nhello", "Buildfile:2:6", "end it with a line that holds only `EOF`"),
        (
            "COPY <<-EOF /x\n\thello\n  EOF",
            "Buildfile:2:6",
            "line 4 holds it with blanks around it; `<<-` allows tabs",
        ),
        ("COPY <<EOF /x\nhello\nEOF ", "Buildfile:2:6", "line 4 holds it with blanks around it"),
        ("COPY --chown=nobody a.txt /", "Buildfile:2:14", "write numbers, such as `1000:1000`"),
        ("COPY a.tx /", "Buildfile:2:6", "did you mean `a.txt`?"),
        ("COPY ../x /", "Buildfile:2:6", "no path leads out of the build context"),
        ("COPY /etc/passwd /", "Buildfile:2:6", "this means `etc/passwd` in it"),
        ("COPY ~/x /", "Buildfile:2:6", "no shell reads this path"),
        ("COPY $(pwd)/x /", "Buildfile:2:6", "no shell reads this path"),
        ("COPY a.txt / # all of it", "Buildfile:2:14", "a comment stands on a line of its own"),
        ("COPY a.txt # /", "Buildfile:2:12", "a comment stands on a line of its own"),
        ("FROM scratch # base", "Buildfile:2:14", "a comment stands on a line of its own"),
        ("ARG V\nFROM debian:$V", "Buildfile:3:6", "a variable may be empty"),
        ("FROM rootfs", "Buildfile:2:6", "write `./rootfs`"),
        (
            "FROM scratch AS build\nFROM scratch\nCOPY --from=bulid /x /",
            "Buildfile:4:13",
            "did you mean `build`?",
        ),
    ];
    for (line, place, help) in table {
        let error = workspace.fails(&format!("FROM scratch\n{line}\n"));
        assert!(error.contains(&format!(" --> {place}\n")), "{line}\n{error}");
        assert!(error.contains(help), "{line}\n{error}");
        assert_eq!(error.matches("error: ").count(), 1, "{line}\n{error}");
    }
    let error = workspace.fails("services:\n  web: x\n");
    assert!(error.contains("a Buildfile begins with `FROM image`; is this one?"), "{error}");
}

#[test]
fn an_argument_from_before_the_first_from_is_told_from_an_unknown_one() {
    let built = workspace().build("ARG V=1\nFROM scratch\nENV A=$V\nENV B=$TARGETARCH\nENV C=$W\n");
    let warnings = built.events.iter().filter_map(|event| match event {
        Event::Warning(warning) => Some(warning.help.as_deref().unwrap_or("").to_owned()),
        _ => None,
    });
    let declare = |name| {
        format!("outside of stages it has a value, for FROM alone: write `ARG {name}` in this stage as well")
    };
    assert_eq!(warnings.collect::<Vec<_>>(), [declare("V"), declare("TARGETARCH"), String::new()]);
}
