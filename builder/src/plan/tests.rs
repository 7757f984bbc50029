//! Stages, bases, sources, scopes and precedence.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::diagnostic::{Style, render_all};
use crate::source::SourceFile;
use crate::syntax::{InstructionKind, Mount, MountKind, parse};

fn platform(text: &str) -> Platform {
    text.parse().unwrap()
}

fn amd64() -> PlanOptions {
    PlanOptions {
        target_platform: platform("linux/arm/v6"),
        build_platform: platform("linux/amd64"),
        ..PlanOptions::default()
    }
}

fn plan_with(text: &str, options: &PlanOptions) -> Result<Graph, String> {
    let source = SourceFile::new("Buildfile", text);
    let file = parse(&source).map_err(|errors| render_all(&errors, &source, Style::Plain))?;
    Graph::plan(&file, options).map_err(|errors| render_all(&errors, &source, Style::Plain))
}

fn plan(text: &str) -> Graph {
    plan_with(text, &amd64()).unwrap()
}

fn refused(text: &str) -> String {
    plan_with(text, &amd64()).unwrap_err()
}

fn codes(graph: &Graph) -> Vec<&str> {
    graph.warnings.iter().map(|warning| warning.code.unwrap_or("-")).collect()
}

/// Runs all steps of the target stage; the final scope and the last instruction.
fn execute(graph: &Graph, environment: &[(&str, &str)]) -> (StageScope, Option<Evaluated>) {
    let environment = environment.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
    let mut scope = StageScope::new(&graph.globals, graph.escape, environment);
    let mut last = None;
    for step in &graph.target_stage().steps {
        let evaluated = scope.expand(&step.instruction).unwrap();
        scope.apply(&evaluated.instruction);
        last = Some(evaluated);
    }
    (scope, last)
}

fn last(text: &str, environment: &[(&str, &str)]) -> Expanded {
    execute(&plan(text), environment).1.unwrap().instruction
}

#[test]
fn bases_are_told_apart() {
    let layout = |path: &str, reference: Option<&str>| {
        Base::OciLayout(OciLayout { path: path.into(), reference: reference.map(str::to_owned) })
    };
    let path = |path: &str, name: &str| Base::Path(LocalPath { path: path.into(), name: name.into() });
    let table = [
        ("scratch", Base::Scratch),
        ("alpine", Base::Image("alpine".into())),
        ("ghcr.io:443/a/b:1@sha256:ab", Base::Image("ghcr.io:443/a/b:1@sha256:ab".into())),
        ("./rootfs", path("./rootfs", "./rootfs")),
        ("/srv/base.tar", path("/srv/base.tar", "/srv/base.tar")),
        ("../x", path("../x", "../x")),
        ("oci:./layout", layout("./layout", None)),
        ("oci:./layout:v1", layout("./layout", Some("v1"))),
        ("oci:/l@sha256:ab", layout("/l", Some("sha256:ab"))),
        ("named", path("/ctx", "named")),
        ("debian:latest", Base::Image("mirror/debian:12".into())),
        ("docker.io/library/Debian", Base::Image("mirror/debian:12".into())),
        ("debian:11", Base::Image("debian:11".into())),
    ];
    let mut options = amd64();
    options.named_contexts.insert("named".into(), "/ctx".into());
    options.named_contexts.insert("debian".into(), "docker-image://mirror/debian:12".into());
    for (text, expected) in table {
        let graph = plan_with(&format!("FROM {text}"), &options).unwrap();
        assert_eq!(graph.target_stage().base, expected, "{text}");
    }
}

#[test]
fn only_what_the_target_needs_is_planned() {
    let text = "FROM a AS one\nFROM b AS unused\nRUN x\nFROM one AS Two\nFROM scratch\nCOPY --from=two /x /\n\
                RUN --mount=type=bind,from=1,target=/m y\n";
    let graph = plan(text);
    let numbers: Vec<usize> = graph.stages.iter().map(|stage| stage.number).collect();
    assert_eq!((numbers, graph.target), (vec![1, 0, 2, 3], 3));
    let target = graph.target_stage();
    let two = graph.stages.iter().position(|stage| stage.name.as_deref() == Some("two")).unwrap();
    assert_eq!(target.steps[0].source, CopySource::Stage(two));
    assert_eq!(graph.stages[two].base, Base::Stage(1));
    let mut options = amd64();
    options.target = Some("ONE".into());
    assert_eq!(plan_with(text, &options).unwrap().stages.len(), 1);
    options.target = Some("2".into());
    assert_eq!(plan_with(text, &options).unwrap().stages.len(), 2);
}

#[test]
fn only_earlier_stages_are_copied_from() {
    for from in ["y", "1"] {
        let text = refused(&format!("FROM a AS x\nCOPY --from={from} /f /\nFROM b AS y\nFROM x"));
        let expected = "error: stage `y` comes after stage `x`, which needs it\n --> Buildfile:2:1";
        assert!(text.starts_with(expected), "{text}");
    }
    let text = refused("FROM a AS x\nRUN --mount=from=y,target=/y true\nFROM b AS y\nCOPY --from=x /f /\n");
    assert!(text.starts_with("error: stage `y` comes after stage `x`"), "{text}");
    let text = refused("FROM a AS x\nCOPY --from=x /f /\n");
    assert!(text.starts_with("error: stage `x` cannot copy from itself\n --> Buildfile:2:13"), "{text}");
    // What nobody needs may do as it likes.
    let graph = plan("FROM a AS x\nCOPY --from=y /f /\nFROM b AS y\n");
    assert_eq!(graph.stages.len(), 1);
}

#[test]
fn mistakes_are_shown_at_their_place() {
    let table = [
        ("FROM $NOPE", "error: the image is empty after variables were filled in\n --> Buildfile:1:6"),
        ("FROM a b", "error: FROM takes one image"),
        ("FROM Alpine", "error: image name `Alpine` is not in lower case\n --> Buildfile:1:6"),
        ("FROM a!b", "error: invalid image reference"),
        ("FROM --platform=a//b a", "error: `a//b` is not a platform"),
        ("FROM a\nCOPY --from=7 x y", "error: there is no stage 7\n --> Buildfile:2:13"),
        ("FROM a\nCOPY --from=$X x y", "error: variable `X` is not defined\n --> Buildfile:2:13"),
        ("FROM a\nCOPY --from=scratch x y", "error: `scratch` is empty"),
        ("FROM ${a:?gone}", "error: a: gone\n --> Buildfile:1:6"),
        ("ARG A=${\nFROM x", "error: missing `}` in `${…}`\n --> Buildfile:1:7"),
        ("FROM oci:", "error: `oci:` names no layout"),
        ("FROM a\nCOPY --from=${X x y", "error: missing `}` in `${…}`\n --> Buildfile:2:13"),
    ];
    for (text, expected) in table {
        let error = refused(text);
        assert!(error.starts_with(expected), "{text}\n{error}");
    }
    let mut options = amd64();
    options.target = Some("bulid".into());
    let error = plan_with("FROM a AS build", &options).unwrap_err();
    assert_eq!(error, "error: target stage `bulid` does not exist\n  = help: did you mean `build`?\n");
}

#[test]
fn global_arguments_serve_from_and_defaults() {
    let text =
        "ARG V=1\nARG IMAGE=app:$V\nFROM --platform=$BUILDPLATFORM $IMAGE AS x\nARG V\nARG W=w$V\nRUN a";
    let mut options = amd64();
    let graph = plan_with(text, &options).unwrap();
    assert_eq!(graph.target_stage().base, Base::Image("app:1".into()));
    assert_eq!(graph.target_stage().platform, Some(platform("linux/amd64")));
    let arguments = |graph: &Graph| execute(graph, &[]).0.arguments();
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    assert_eq!(arguments(&graph), [pair("V", "1"), pair("W", "w1")]);
    options.build_args.insert("V".into(), "2".into());
    let graph = plan_with(text, &options).unwrap();
    assert_eq!(graph.target_stage().base, Base::Image("app:2".into()));
    assert_eq!(arguments(&graph), [pair("V", "2"), pair("W", "w2")]);
}

#[test]
fn precedence_of_variables() {
    let value = |text: &str, args: &[(&str, &str)], environment: &[(&str, &str)]| {
        let mut options = amd64();
        options.build_args = args.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        let graph = plan_with(text, &options).unwrap();
        execute(&graph, environment).0.value("A")
    };
    let text = "ARG A=global\nFROM a\nARG A=default\n";
    assert_eq!(value(text, &[], &[]).as_deref(), Some("default"));
    assert_eq!(value(text, &[("A", "given")], &[]).as_deref(), Some("given"));
    // The later of ENV and ARG counts; what the base brings comes before both.
    assert_eq!(value(text, &[("A", "given")], &[("A", "env")]).as_deref(), Some("given"));
    assert_eq!(value("ARG A=global\nFROM a\nARG A\n", &[], &[]).as_deref(), Some("global"));
    assert_eq!(value("ARG A=global\nFROM a\n", &[("A", "given")], &[]), None);
    assert_eq!(value("FROM a\nARG A\n", &[], &[]), None);
    assert_eq!(value("FROM a\nENV A=env\nARG A=default\n", &[("A", "given")], &[]).as_deref(), Some("given"));
    assert_eq!(value("FROM a\nENV A=env\nARG A=default\n", &[], &[]).as_deref(), Some("default"));
    assert_eq!(value("FROM a\nENV A=env\nARG A=\n", &[], &[]).as_deref(), Some(""));
    assert_eq!(value("FROM a\nENV A=env\nARG A\n", &[], &[]).as_deref(), Some("env"));
    assert_eq!(value("FROM a\nENV A=env\nARG A\n", &[("A", "given")], &[]).as_deref(), Some("given"));
    assert_eq!(value("ARG A=global\nFROM a\nENV A=env\nARG A\n", &[], &[]).as_deref(), Some("global"));
    assert_eq!(value("FROM a\nARG A=arg\nENV A=env\n", &[], &[]).as_deref(), Some("env"));
    assert_eq!(value("FROM a\nARG A=arg\nENV A=env\nARG A\n", &[], &[]).as_deref(), Some("env"));
    assert_eq!(value("FROM a\nENV A=1\nARG A=2\nENV A=3\nARG A=4\n", &[], &[]).as_deref(), Some("4"));
    assert_eq!(value("FROM a\nARG A=one\nARG A=two\n", &[], &[]).as_deref(), Some("two"));
    assert_eq!(value("FROM a\nARG A=one\nARG A\n", &[], &[]).as_deref(), Some("one"));
    assert_eq!(value("FROM a\nARG B=b A=x$B\n", &[], &[]).as_deref(), Some("xb"));
    assert_eq!(value("FROM a\nENV B=b\nENV B=c A=$B\n", &[], &[]).as_deref(), Some("b"));
}

#[test]
fn an_argument_behind_a_variable_hides_it_and_leaves_the_configuration() {
    let graph = plan("FROM a\nENV V=1 W=w\nARG V=2 X Y=y\nRUN x\n");
    let (scope, _) = execute(&graph, &[("PATH", "/bin")]);
    let pairs = |list: &[(&str, &str)]| -> Vec<(String, String)> {
        list.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
    };
    assert_eq!(scope.environment(), pairs(&[("PATH", "/bin"), ("V", "1"), ("W", "w")]));
    let seen = [("PATH", "/bin"), ("V", "2"), ("W", "w"), ("Y", "y")];
    assert_eq!(scope.run_environment(), pairs(&seen));
    assert_eq!(scope.arguments(), pairs(&[("V", "2"), ("X", ""), ("Y", "y")]));
    // A stage on top starts with what the configuration says; the other arguments go on.
    let above = StageScope::inherit(&scope);
    let values = ["V", "W", "Y"].map(|name| above.value(name).unwrap());
    assert_eq!(values, ["1", "w", "y"]);
    // Also for PATH, and before an ENV that hides the argument again.
    let (scope, _) = execute(&plan("FROM a\nARG PATH=/opt\n"), &[("PATH", "/bin")]);
    assert_eq!((scope.value("PATH").as_deref(), scope.environment()), (Some("/opt"), &*pairs(&seen[..1])));
    let (scope, _) = execute(&plan("FROM a\nARG V=2\nENV V=3$V\n"), &[]);
    assert_eq!(scope.arguments(), pairs(&[("V", "32")]));
}

#[test]
fn a_proxy_sets_both_spellings_before_every_variable() {
    let environment = |args: &[(&str, &str)], text: &str| -> Vec<String> {
        let mut options = amd64();
        options.build_args = args.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        let graph = plan_with(text, &options).unwrap();
        assert_eq!(codes(&graph), [""; 0]);
        let pairs = execute(&graph, &[]).0.process_environment();
        pairs.iter().map(|(name, value)| format!("{name}={value}")).collect()
    };
    assert_eq!(environment(&[("HTTP_PROXY", "p")], "FROM a\n"), ["HTTP_PROXY=p", "http_proxy=p"]);
    assert_eq!(environment(&[("no_proxy", "p")], "FROM a\n"), ["NO_PROXY=p", "no_proxy=p"]);
    let both = [("HTTPS_PROXY", "p"), ("https_proxy", "q")];
    assert_eq!(environment(&both, "FROM a\n"), ["HTTPS_PROXY=q", "https_proxy=q"]);
    let declared = environment(&[("FTP_PROXY", "p")], "FROM a\nENV ftp_proxy=env\nARG FTP_PROXY\n");
    assert_eq!(declared, ["ftp_proxy=p", "FTP_PROXY=p"]);
    assert_eq!(environment(&[("All_Proxy", "p")], "FROM a\n"), ["ALL_PROXY=p", "all_proxy=p"]);
    assert_eq!(environment(&[("HTTP_PROXY", "")], "FROM a\n"), [""; 0]);
}

#[test]
fn the_target_stage_is_named() {
    let value = |text: &str, target: Option<&str>| {
        let options = PlanOptions { target: target.map(str::to_owned), ..amd64() };
        let graph = plan_with(text, &options).unwrap();
        execute(&graph, &[]).0.value("TARGETSTAGE").unwrap()
    };
    let text = "FROM a AS One\nARG TARGETSTAGE\nFROM a AS Two\nARG TARGETSTAGE\n";
    assert_eq!(value(text, None), "two");
    assert_eq!(value(text, Some("one")), "one");
    assert_eq!(value(text, Some("0")), "0");
    assert_eq!(value("FROM a AS b\nFROM b\nARG TARGETSTAGE\n", None), "default");
}

#[test]
fn automatic_and_proxy_arguments() {
    let mut options = amd64();
    options.target = Some("x".into());
    options.build_args.insert("http_proxy".into(), "p".into());
    options.build_args.insert("HTTPS_PROXY".into(), "q".into());
    options.source_date_epoch = Some("7".into());
    let text = "FROM a AS x\nARG TARGETPLATFORM\nARG TARGETVARIANT\nARG BUILDARCH\nARG TARGETSTAGE\n\
                ARG SOURCE_DATE_EPOCH\nARG HTTPS_PROXY\nRUN x";
    let graph = plan_with(text, &options).unwrap();
    let (scope, _) = execute(&graph, &[("PATH", "/bin")]);
    let arguments: Vec<String> =
        scope.run_environment().iter().map(|(key, value)| format!("{key}={value}")).collect();
    let expected = "PATH=/bin TARGETPLATFORM=linux/arm/v6 TARGETVARIANT=v6 BUILDARCH=amd64 TARGETSTAGE=x \
                    SOURCE_DATE_EPOCH=7 HTTPS_PROXY=q";
    assert_eq!(arguments.join(" "), expected);
    let only = |name: &str| scope.process_environment().into_iter().find(|(known, _)| known == name);
    assert_eq!(only("http_proxy"), Some(("http_proxy".to_owned(), "p".to_owned())));
    assert_eq!(codes(&graph), [""; 0]);
}

#[test]
fn the_usual_arm_is_v7_in_arguments() {
    let options = PlanOptions { target_platform: platform("linux/arm"), ..amd64() };
    let graph = plan_with("FROM a\nARG TARGETPLATFORM TARGETVARIANT", &options).unwrap();
    let values: Vec<String> =
        execute(&graph, &[]).0.arguments().into_iter().map(|(_, value)| value).collect();
    assert_eq!(values, ["linux/arm/v7", "v7"]);
}

#[test]
fn instructions_get_their_final_form() {
    let base = [("X", "ex"), ("TWO", "a b"), ("N", "8000")];
    let strings = |texts: &[&str]| texts.iter().map(|text| text.to_string()).collect::<Vec<_>>();
    let table = [
        (
            "ENV A=\"$X y\" B='$X'",
            Expanded::Env(vec![("A".into(), "ex y".into()), ("B".into(), "$X".into())]),
        ),
        ("ENV legacy $X  \"y\"", Expanded::Env(vec![("legacy".into(), "ex  y".into())])),
        ("LABEL \"a $X\"=1", Expanded::Label(vec![("a ex".into(), "1".into())])),
        (
            "EXPOSE 80 $N-8001/UDP 80/tcp",
            Expanded::Expose(strings(&["8000/udp", "8001/udp", "80/tcp", "80/tcp"])),
        ),
        ("USER $NONE", Expanded::User(String::new())),
        ("USER \"\"", Expanded::User(String::new())),
        ("WORKDIR $NONE", Expanded::Workdir(String::new())),
        ("VOLUME /a$X /b", Expanded::Volume(strings(&["/aex", "/b"]))),
        ("USER $X:1", Expanded::User("ex:1".into())),
        ("WORKDIR /$TWO", Expanded::Workdir("/a b".into())),
        ("STOPSIGNAL SIGRTMIN+3", Expanded::Stopsignal("SIGRTMIN+3".into())),
        ("CMD echo $X", Expanded::Cmd(ExpandedCommand::Shell("echo $X".into()))),
        ("ENTRYPOINT [\"$X\"]", Expanded::Entrypoint(ExpandedCommand::Exec(strings(&["$X"])))),
        ("ONBUILD ENV A=$X", Expanded::Onbuild("ENV A=$X".into())),
    ];
    for (text, expected) in table {
        assert_eq!(last(&format!("FROM a\n{text}"), &base), expected, "{text}");
    }
}

#[test]
fn run_in_all_its_forms() {
    let command = |text: &str| match last(&format!("FROM a\n{text}"), &[("X", "ex")]) {
        Expanded::Run(run) => run.command,
        other => panic!("{other:?}"),
    };
    assert_eq!(command("RUN echo $X"), RunCommand::Shell("echo $X".into()));
    assert_eq!(command("RUN [\"a\", \"$X\"]"), RunCommand::Exec(vec!["a".into(), "$X".into()]));
    assert_eq!(command("RUN <<EOF\na $X\nb\nEOF"), RunCommand::Shell("a $X\nb\n".into()));
    let script = RunCommand::Script { name: "EOF".into(), content: "#!/bin/x\ny\n".into() };
    assert_eq!(command("RUN <<EOF\n#!/bin/x\ny\nEOF"), script);
    // The shell strips the tabs of what it reads itself.
    let whole = "cat <<A - 3<<-\"B\"\na\nA\n\tb\nB";
    assert_eq!(command("RUN cat <<A - 3<<-\"B\"\na\nA\n\tb\n\tB\n"), RunCommand::Shell(whole.into()));
}

#[test]
fn mounts_are_typed_once_variables_are_known() {
    let text = "FROM a\nARG D=/d\nRUN --mount=type=cache,target=$D --mount=type=secret,id=s,target=$D/s x";
    let Expanded::Run(run) = last(text, &[]) else { panic!("no RUN") };
    let [cache, secret]: [Mount; 2] = run.mounts.try_into().unwrap();
    assert_eq!((cache.target.as_deref(), cache.read_only), (Some("/d"), false));
    assert!(matches!(cache.kind, MountKind::Cache { id: None, mode: 0o755, uid: 0, .. }), "{cache:?}");
    assert!(
        matches!(secret.kind, MountKind::Secret { ref id, required: false, mode: 0o400, .. } if id == "s")
    );
    let graph = plan("FROM a\nARG T=nonsense\nRUN --mount=type=$T,target=/x y");
    let mut scope = StageScope::new(&graph.globals, '\\', Vec::new());
    let steps = &graph.target_stage().steps;
    scope.apply(&scope.expand(&steps[0].instruction).unwrap().instruction);
    let error = scope.expand(&steps[1].instruction).unwrap_err().remove(0);
    assert_eq!(error.message, "unknown mount type `nonsense`");
}

#[test]
fn copies_with_everything() {
    let text = "FROM a AS b\nFROM a\nARG S=b U=7\nCOPY --from=$S --chown=$U --chmod=6$U --link --exclude=*.$U \
                a$U \"c$U\" <<f /d/\nx=$U '$U'\nf\n";
    let graph = plan(text);
    let (_, evaluated) = execute(&graph, &[]);
    let evaluated = evaluated.unwrap();
    let Expanded::Copy(copy) = evaluated.instruction else { panic!("no COPY") };
    let path = |source: &ExpandedSource| match source {
        ExpandedSource::Path(word) => word.text.clone(),
        ExpandedSource::File { name, content, .. } => format!("{name}:{content}"),
    };
    let sources: Vec<String> = copy.transfer.sources.iter().map(path).collect();
    assert_eq!(sources, ["a7", "c7", "f:x=7 '7'\n"]);
    assert_eq!(copy.transfer.chown.unwrap().text, "7");
    assert_eq!(copy.transfer.chmod.unwrap().text, "67");
    assert_eq!(copy.transfer.excludes[0].text, "*.7");
    assert!(copy.transfer.link.unwrap().on);
    assert_eq!(graph.target_stage().steps.last().unwrap().source, CopySource::Stage(0));
}

#[test]
fn an_option_that_comes_out_empty_is_none() {
    let text = "ADD --chown=$N --chmod=$N --exclude=$N --checksum=$N a $N";
    let Expanded::Add(add) = last(&format!("FROM a\n{text}"), &[]) else { panic!("no ADD") };
    assert_eq!((add.checksum, add.transfer.chown, add.transfer.chmod), (None, None, None));
    assert_eq!((add.transfer.excludes.len(), add.transfer.destination.text.as_str()), (0, ""));
    // The same where nothing stands there.
    let text = "COPY --from= --chown= --chmod= --exclude= a \"\"";
    let Expanded::Copy(copy) = last(&format!("FROM a\n{text}"), &[]) else { panic!("no COPY") };
    assert_eq!((copy.transfer.chown, copy.transfer.chmod), (None, None));
    assert_eq!((copy.transfer.excludes.len(), copy.transfer.destination.text.as_str()), (0, ""));
    let text = "HEALTHCHECK --interval= --retries= CMD true";
    let Expanded::Healthcheck(ExpandedHealthcheck::Command { interval, retries, .. }) =
        last(&format!("FROM a\n{text}"), &[])
    else {
        panic!("no HEALTHCHECK")
    };
    assert_eq!((interval, retries), (None, None));
}

#[test]
fn a_blank_may_stand_behind_the_operator_of_a_here_document() {
    let command = |text: &str| match last(&format!("FROM a\n{text}"), &[]) {
        Expanded::Run(run) => run.command,
        other => panic!("{other:?}"),
    };
    let shell = |text: &str| RunCommand::Shell(text.into());
    assert_eq!(command("RUN << EOF\na\nb\nEOF\n"), shell("a\nb\n"));
    assert_eq!(command("RUN <<\tEOF\na\nEOF\n"), shell("a\n"));
    assert_eq!(command("RUN <<-  'EOF'\n\ta\n\tEOF\n"), shell("a\n"));
    let script = RunCommand::Script { name: "X".into(), content: "#!/bin/x\n".into() };
    assert_eq!(command("RUN << X\n#!/bin/x\nX\n"), script);
    let whole = "cat << \"EOF\" > /f\na\nEOF";
    assert_eq!(command("RUN cat << \"EOF\" > /f\na\nEOF\n"), shell(whole));
    assert_eq!(command("RUN cat 3<< A <<B\na\nA\nb\nB\n"), shell("cat 3<< A <<B\na\nA\nb\nB"));
    // Shifts stay what they are.
    assert_eq!(command("RUN echo $((1 << 3))"), shell("echo $((1 << 3))"));
    assert_eq!(command("RUN echo $(( 1 << 3 ))\nRUN echo 3"), shell("echo 3"));
    assert_eq!(command("RUN echo $((x << y))"), shell("echo $((x << y))"));
    let text = refused("FROM a\nCOPY << EOF /x\nbody\nEOF\n");
    let expected = "error: a blank stands behind `<<`\n --> Buildfile:2:6";
    assert!(text.starts_with(expected) && text.matches("error:").count() == 1, "{text}");
}

#[test]
fn expansion_fails_at_the_word() {
    let table = [
        ("COPY \"a b\" /c/", "unclosed double quote", 12..14),
        ("COPY a b $NOPE/c", "several sources want a directory", 16..23),
        ("ENV A=1 $NOPE=2", "the key is empty after variables were filled in", 15..20),
        ("EXPOSE 80 x", "invalid port `x`", 17..18),
        ("EXPOSE 9-8", "invalid port `9-8`", 14..17),
        ("EXPOSE 80/icmp", "unknown protocol `icmp`", 14..21),
        ("STOPSIGNAL SIGNOPE", "unknown signal `SIGNOPE`", 18..25),
        ("WORKDIR ${NOPE?no}", "NOPE: no", 15..25),
        ("RUN --network=${NOPE:-x} y", "invalid value `x` for `--network`", 21..31),
        ("ENV A=${A", "missing `}` in `${…}`", 13..16),
    ];
    for (text, message, range) in table {
        let graph = plan(&format!("FROM a\n{text}"));
        let scope = StageScope::new(&graph.globals, graph.escape, Vec::new());
        let error = scope.expand(&graph.target_stage().steps[0].instruction).unwrap_err().remove(0);
        assert_eq!((error.message.as_str(), error.span.unwrap().range()), (message, range), "{text}");
    }
}

#[test]
fn triggers_run_first_in_stages_and_images() {
    let text =
        "FROM a AS base\nONBUILD ENV A=1\nONBUILD COPY --from=tool /t /\nFROM t AS tool\nFROM base\nRUN x\n";
    let graph = plan(text);
    let target = graph.target_stage();
    let names: Vec<&str> = target.steps.iter().map(|step| step.instruction.kind.name()).collect();
    assert_eq!(names, ["ENV", "COPY", "RUN"]);
    let tool = graph.stages.iter().position(|stage| stage.name.as_deref() == Some("tool")).unwrap();
    assert_eq!(target.steps[1].source, CopySource::Stage(tool));
    assert!(target.steps[0].triggered_by.is_some() && target.steps[2].triggered_by.is_none());

    let mut options = amd64();
    let triggers = ["COPY . /app", "RUN <<EOF cat\nhi\nEOF"].map(str::to_owned).to_vec();
    options.triggers.insert("node".into(), triggers);
    let graph = plan_with("FROM node\n", &options).unwrap();
    let [copy, run] = graph.target_stage().steps.as_slice() else { panic!("two triggers") };
    assert_eq!(copy.instruction.span, Span::new(5, 9));
    assert!(matches!(&run.instruction.kind, InstructionKind::Run(run) if run.heredocs[0].content == "hi\n"));
    let bad = [
        ("FROM x", "FROM cannot be"),
        ("RNU x", "unknown instruction"),
        ("", "exactly one"),
        ("RUN a\nRUN b", "exactly one"),
    ];
    for (trigger, expected) in bad {
        options.triggers.insert("node".into(), vec![trigger.into()]);
        let error = plan_with("FROM node\n", &options).unwrap_err();
        assert!(error.contains(expected) && error.contains("Buildfile:1:6"), "{error}");
    }
}

#[test]
fn warnings_of_the_plan() {
    let table: [(&str, &[&str]); 8] = [
        ("FROM scratch\nENV A=$B", &["UndefinedVar"]),
        ("FROM a\nENV A=$B", &[]),
        ("FROM scratch\nARG B\nENV A=$B P=$PATH", &[]),
        ("# check=skip=UndefinedVar\nFROM scratch\nENV A=$B", &[]),
        ("ARG X=b\nFROM a$Y", &["UndefinedArgInFrom"]),
        ("FROM a AS build\nFROM b\nCOPY --from=biuld x y", &["UnknownStage"]),
        (
            "FROM b\nFROM b AS b\nFROM --platform=$TARGETPLATFORM b",
            &["ForwardStageReference", "RedundantTargetPlatform"],
        ),
        ("FROM scratch\nEXPOSE 1:80/TCP", &["ExposeProtoCasing", "ExposeInvalidFormat"]),
    ];
    for (text, expected) in table {
        assert_eq!(codes(&plan(text)), expected, "{text}");
    }
    let mut options = amd64();
    options.build_args.insert("VERISON".into(), "1".into());
    let graph = plan_with("FROM a\nARG VERSION", &options).unwrap();
    assert_eq!(graph.warnings[0].message, "build argument `VERISON` is not used: no ARG declares it");
    assert_eq!(graph.warnings[0].help.as_deref(), Some("did you mean `VERSION`?"));
}

#[test]
fn growth_is_bounded() {
    let doubling: String = (0..64).map(|_| "ENV A=$A$A\n").collect();
    let graph = plan(&format!("FROM scratch\nENV A=0123456789abcdef\n{doubling}"));
    let mut scope = StageScope::new(&graph.globals, '\\', Vec::new());
    let failed = graph.target_stage().steps.iter().find_map(|step| match scope.expand(&step.instruction) {
        Ok(evaluated) => {
            scope.apply(&evaluated.instruction);
            None
        }
        Err(errors) => Some(errors[0].message.clone()),
    });
    assert!(failed.unwrap().starts_with("the variables of the stage come to more than"));
    let stages = "FROM a\n".repeat(crate::syntax::STAGES_MAX + 1);
    assert!(refused(&stages).starts_with("error: more than 500 stages"));
    let chain: String = (1..500).map(|stage| format!("FROM s{} AS s{stage}\n", stage - 1)).collect();
    assert_eq!(plan(&format!("FROM a AS s0\n{chain}")).stages.len(), 500);
}
