//! Stages, bases, configuration and history.

#![allow(clippy::unwrap_used)]

mod kit;

use std::os::unix::fs::PermissionsExt;
use std::sync::Mutex;

use kit::Workspace;
use rimg_builder::base::{BaseImageError, BaseImages, StoredImages};
use rimg_builder::engine::Builder;
use rimg_builder::events::Event;
use rimg_formats::platform::Platform;
use rimg_formats::reference::Reference;
use rimg_formats::store::Image;

fn history(outcome: &kit::Outcome) -> Vec<String> {
    let line = |line: &rimg_formats::config::History| {
        let mark = if line.empty_layer { "-" } else { "+" };
        format!("{mark} {}", line.created_by.clone().unwrap_or_default())
    };
    outcome.config().history.iter().map(line).collect()
}

#[test]
fn metadata() {
    let workspace = Workspace::new();
    workspace.file("a", "a");
    let built = workspace.build(
        "FROM scratch\nARG V=1\nARG W\nENV A=$V B=two\nLABEL x=\"a b\" y=$A\nEXPOSE 80 90-91/udp\nVOLUME /v /w\n\
         USER 5:6\nWORKDIR /srv\nWORKDIR app\nSTOPSIGNAL SIGINT\nSHELL [\"/bin/ash\", \"-c\"]\nCMD echo hi\n\
         HEALTHCHECK --interval=5s --retries=2 CMD true\nMAINTAINER me\nONBUILD COPY x /\nCOPY --chown=1 a /b/\n",
    );
    let config = built.config();
    let exec = &config.config;
    assert_eq!(exec.env[1..], ["A=1", "B=two"]);
    assert_eq!(serde_json::to_value(&exec.labels).unwrap(), serde_json::json!({"x": "a b", "y": "1"}));
    assert_eq!(exec.exposed_ports.keys().collect::<Vec<_>>(), ["80/tcp", "90/udp", "91/udp"]);
    assert_eq!(exec.volumes.keys().collect::<Vec<_>>(), ["/v", "/w"]);
    assert_eq!((exec.user.as_str(), exec.working_dir.as_str()), ("5:6", "/srv/app"));
    assert_eq!(exec.cmd.as_ref().unwrap()[..], ["/bin/ash", "-c", "echo hi"]);
    assert_eq!(exec.on_build, ["COPY x /"]);
    assert_eq!(config.author.as_deref(), Some("me"));
    let check = exec.healthcheck.as_ref().unwrap();
    assert_eq!(
        (check.test.join("|").as_str(), check.interval, check.retries),
        ("CMD-SHELL|true", 5_000_000_000, 2)
    );
    assert_eq!(
        history(&built),
        [
            "- ARG V=1",
            "- ARG W",
            "- ENV A=1 B=two",
            "- LABEL x=a b y=1",
            "- EXPOSE [80/tcp 90/udp 91/udp]",
            "- VOLUME [/v /w]",
            "- USER 5:6",
            "+ WORKDIR /srv",
            "+ WORKDIR /srv/app",
            "- STOPSIGNAL SIGINT",
            "- SHELL [/bin/ash -c]",
            "- CMD [\"/bin/ash\" \"-c\" \"echo hi\"]",
            "- HEALTHCHECK {Test:[CMD-SHELL true] Interval:5s Timeout:0s StartPeriod:0s StartInterval:0s Retries:2}",
            "- MAINTAINER me",
            "+ COPY --chown=1 a /b/ # buildkit",
        ]
    );
    assert_eq!(built.listing(), ["d755 1:1 b", "f644 1:1 b/a = a", "d755 5:6 srv", "d755 5:6 srv/app"]);
    assert_eq!(config.rootfs.diff_ids.len(), built.manifest().layers().len());
}

#[test]
fn bases_are_inherited_and_triggers_run() {
    let workspace = Workspace::new();
    workspace.file("a", "a").file("b", "b");
    let mut options = workspace
        .options("FROM scratch\nCOPY a /\nENV V=base\nCMD [\"x\"]\nONBUILD COPY b /on\nONBUILD ENV T=$V\n");
    options.tags = vec!["base:1".parse().unwrap()];
    let base = workspace.build_with(options).unwrap();
    assert_eq!(base.result.names[0].1.as_ref().unwrap().as_str(), "1");
    let built = workspace.build("FROM base:1\nENTRYPOINT [\"e\"]\n");
    assert_eq!(built.listing(), ["f644 0:0 a = a", "f644 0:0 on = b"]);
    let exec = built.config().config;
    assert_eq!(exec.env[1..], ["V=base", "T=base"]);
    assert_eq!((exec.cmd, exec.on_build.len()), (None, 0));
    assert_eq!(built.result.layers[0], base.result.layers[0]);
    let from = workspace.build("FROM scratch\nCOPY --from=base:1 /a /copy\n");
    assert_eq!(from.listing(), ["f644 0:0 copy = a"]);
}

#[test]
fn only_what_the_target_needs_is_built() {
    let workspace = Workspace::new();
    workspace.file("a", "a");
    let text = "FROM scratch AS one\nCOPY a /one\nFROM scratch AS bad\nCOPY missing /\nFROM scratch AS two\n\
                COPY --from=one /one /two\nFROM scratch AS three\nCOPY a /three\n";
    let mut options = workspace.options(text);
    options.target = Some("two".to_owned());
    let built = workspace.build_with(options).unwrap();
    assert_eq!(built.listing(), ["f644 0:0 two = a"]);
    let steps = built.steps();
    assert!(steps.iter().all(|step| step.starts_with("0.") || step.starts_with("2.")), "{steps:?}");
    let mut options = workspace.options(text);
    options.target = Some("tow".to_owned());
    assert!(workspace.build_with(options).is_err());
}

#[test]
fn a_directory_as_base() {
    let workspace = Workspace::new();
    workspace.file("rootfs/etc/os-release", "ID=test").file("rootfs/bin/sh", "#!").file("x", "x");
    workspace.link("rootfs/sbin", "bin");
    std::fs::hard_link(workspace.context().join("rootfs/bin/sh"), workspace.context().join("rootfs/bin/zsh"))
        .unwrap();
    let socket = std::os::unix::net::UnixListener::bind(workspace.context().join("rootfs/socket")).unwrap();
    let text = "FROM ./rootfs\nCOPY x /sbin/\n";
    let built = workspace.build(text);
    drop(socket);
    assert_eq!(
        built.listing(),
        [
            "d755 0:0 bin",
            "f644 0:0 bin/sh = #!",
            "f644 0:0 bin/x = x",
            "h644 0:0 bin/zsh = #!",
            "d755 0:0 etc",
            "f644 0:0 etc/os-release = ID=test",
            "l777 0:0 sbin -> bin",
        ]
    );
    assert_eq!(history(&built), ["+ FROM ./rootfs", "+ COPY x /sbin/ # buildkit"]);
    assert_eq!(workspace.build(text).steps(), ["0.0 cached", "0.1 cached"]);
    workspace.file("rootfs/etc/os-release", "ID=other");
    assert_eq!(
        workspace.build(text).steps(),
        ["0.0 missed: file etc/os-release changed", "0.0 done 6", "0.1 cached"]
    );
    // Whoever made the folder, and under whatever umask: the root is every container's.
    let digest = workspace.build("FROM ./rootfs\n").digest();
    let private = std::fs::Permissions::from_mode(0o700);
    std::fs::set_permissions(workspace.context().join("rootfs"), private).unwrap();
    assert_eq!(workspace.build("FROM ./rootfs\n").digest(), digest);
    let text = workspace.fails("FROM ./rotfs\n");
    assert!(text.starts_with("error: failed to open `./rotfs`: No such file or directory"), "{text}");
}

/// Images by reference and platform: `lib` for `linux/arm64` is `lib:arm64` in the store.
struct ByArchitecture<'a>(&'a Workspace, Mutex<Vec<String>>);

impl BaseImages for ByArchitecture<'_> {
    fn resolve(&self, reference: &Reference, platform: &Platform) -> Result<Image, BaseImageError> {
        self.1.lock().unwrap().push(format!("{} {platform}", reference.name()));
        let named = format!("{}:{}", reference.name(), platform.architecture).parse().unwrap();
        StoredImages(self.0.store.clone()).resolve(&named, platform)
    }
}

#[test]
fn sources_are_for_the_target_and_bases_for_what_from_says() {
    let workspace = Workspace::new();
    for architecture in ["amd64", "arm64"] {
        workspace.file("f", architecture);
        let mut options = workspace.options("FROM scratch\nCOPY f /\n");
        options.platform = Platform::new("linux", architecture);
        options.tags = vec![format!("lib:{architecture}").parse().unwrap()];
        workspace.build_with(options).unwrap();
    }
    let text = "FROM --platform=linux/arm64 lib AS tool\nCOPY --from=lib /f /of-source\n\
                FROM --platform=linux/arm64 scratch\nCOPY --from=tool / /\n";
    let built = |text: &str, is_given: bool| {
        let mut options = workspace.options(text);
        options.platform_is_given = is_given;
        let images = ByArchitecture(&workspace, Mutex::default());
        let builder = Builder::new(workspace.store.clone(), &images, options);
        let result = builder.build(&|_| {}).unwrap();
        let outcome = kit::Outcome { result, events: Vec::new(), store: workspace.store.clone() };
        let mut asked = images.1.into_inner().unwrap();
        asked.sort();
        (outcome, asked)
    };
    let (outcome, asked) = built(text, false);
    let asked: Vec<_> = asked.iter().map(|line| line.rsplit('/').next().unwrap()).collect();
    assert_eq!(asked, ["amd64", "arm64"]);
    assert_eq!(outcome.listing(), ["f644 0:0 f = arm64", "f644 0:0 of-source = amd64"]);
    // Nothing is for every platform.
    assert_eq!(outcome.config().platform.to_string(), "linux/amd64");
    // An image says what it is for: what was asked for, else what its base is for.
    let text = "FROM --platform=linux/arm64 lib\n";
    assert_eq!(built(text, false).0.config().platform.to_string(), "linux/arm64");
    assert_eq!(built(text, true).0.config().platform.to_string(), "linux/amd64");
}

#[test]
fn root_is_zero_without_a_look_up() {
    let workspace = Workspace::new();
    workspace.file("f", "f").file("etc/passwd", "admin:x:0:0::/:/\nroot:x:7:8::/:/\n");
    let built = workspace.build(
        "FROM scratch\nCOPY --chown=root f /a\nCOPY --chown=root:root f /b\nCOPY --chown=5:root f /c\n\
         COPY --chown=:root f /d\nUSER root:root\nWORKDIR /e\nCOPY etc /etc\nCOPY --chown=root:root f /f\n\
         COPY --chown=admin f /g\n",
    );
    let expected = [
        "f644 0:0 a = f",
        "f644 0:0 b = f",
        "f644 5:0 c = f",
        "f644 0:0 d = f",
        "d755 0:0 e",
        "d755 0:0 etc",
    ];
    assert_eq!(built.listing()[..6], expected);
    assert_eq!(built.listing()[7..], ["f644 0:0 f = f", "f644 0:0 g = f"]);
    assert_eq!(built.config().config.user, "root:root");
}

#[test]
fn variables_that_are_empty_change_nothing() {
    let workspace = Workspace::new();
    workspace.file("f", "f");
    let built = workspace.build(
        "FROM scratch\nARG N\nWORKDIR /w\nWORKDIR $N\nUSER 5\nUSER $N\nCOPY f $N\n\
         COPY --chown=$N --chmod=$N f /a\nWORKDIR sub\n",
    );
    let exec = built.config().config;
    assert_eq!((exec.user.as_str(), exec.working_dir.as_str()), ("", "/w/sub"));
    assert_eq!(built.listing(), ["f644 0:0 a = f", "d755 0:0 w", "f644 0:0 w/f = f", "d755 0:0 w/sub"]);
}

#[test]
fn the_epoch_is_an_argument_of_the_file_too() {
    let workspace = Workspace::new();
    let built = |text: &str, given: Option<&str>| {
        let mut options = workspace.options(text);
        options.named_contexts.insert("other".into(), "/".into());
        options.context_time = rimg_formats::epoch::Epoch::from_seconds(77);
        options.build_args.extend(given.map(|value| ("SOURCE_DATE_EPOCH".to_owned(), value.to_owned())));
        let config = workspace.build_with(options).unwrap().config();
        (config.created.unwrap(), config.config.labels.get("epoch").cloned().unwrap_or_default())
    };
    let stage = "FROM scratch\nARG SOURCE_DATE_EPOCH\nLABEL epoch=$SOURCE_DATE_EPOCH\n";
    let file = |value: &str| format!("ARG SOURCE_DATE_EPOCH={value}\n{stage}");
    let pair = |created: &str, label: &str| (created.to_owned(), label.to_owned());
    let none = pair("1980-01-02T00:00:00Z", "");
    assert_eq!(built(&file("86400"), None), pair("1970-01-02T00:00:00Z", "86400"));
    assert_eq!(built(&file("86400"), Some("86401")), pair("1970-01-02T00:00:01Z", "86401"));
    assert_eq!(built(&file("context"), None), pair("1970-01-01T00:01:17Z", "77"));
    assert_eq!(built(stage, Some("context")), pair("1970-01-01T00:01:17Z", "77"));
    assert_eq!(built(&file("other"), None), none);
    assert_eq!(built(&file("\"\""), None), none);
    assert_eq!(built(stage, None), none);
    let text = workspace.fails("ARG SOURCE_DATE_EPOCH=tomorrow\nFROM scratch\nENV A=1\n");
    let expected = "error: SOURCE_DATE_EPOCH is `tomorrow`: expected seconds since 1970, or `context`\n --> Buildfile:1:23";
    assert!(text.starts_with(expected), "{text}");
    let text = workspace.fails("ARG SOURCE_DATE_EPOCH=src\nFROM scratch AS Src\nENV A=1\n");
    assert!(text.starts_with("error: SOURCE_DATE_EPOCH from the stage `src` is not supported"), "{text}");
}

#[test]
fn working_directories_are_kept_as_they_are_written() {
    let workspace = Workspace::new();
    let built = workspace.build(
        "FROM scratch\nWORKDIR rel\nWORKDIR /a/../b/./c/\nWORKDIR ..\nWORKDIR //x//y\nWORKDIR\\\n ./z/\n\
         WORKDIR /w/\nWORKDIR \"\"\n",
    );
    // No layer where the folder is there already.
    let lines = ["+ /rel", "+ /a/../b/./c/", "- /b", "+ //x//y", "+ /x/y/z", "+ /w/", "- /w/"];
    assert_eq!(history(&built), lines.map(|line| line.replacen(' ', " WORKDIR ", 1)));
    assert_eq!(
        built.listing(),
        [
            "d755 0:0 b",
            "d755 0:0 b/c",
            "d755 0:0 rel",
            "d755 0:0 w",
            "d755 0:0 x",
            "d755 0:0 x/y",
            "d755 0:0 x/y/z"
        ]
    );
    assert_eq!(built.config().config.working_dir, "/w/");
}

#[test]
fn unknown_images_are_told_at_their_line() {
    let text = Workspace::new().fails("FROM scratch AS a\nFROM nowhere:1\nCOPY --from=elsewhere /x /\n");
    let help = |name| {
        format!("  |\n  = help: for a directory write `./{name}`; `rimg images` lists what the store has\n")
    };
    let expected = "error: failed to get the image `nowhere:1`: image `nowhere:1` is not known\n --> Buildfile:2:6\n  |\n\
                    2 | FROM nowhere:1\n  |      ^^^^^^^^^ neither in the store nor in a registry\n";
    let other = "error: failed to get the image `elsewhere`: image `elsewhere` is not known\n --> Buildfile:3:13\n  |\n\
                 3 | COPY --from=elsewhere /x /\n  |             ^^^^^^^^^ neither in the store nor in a registry\n";
    assert_eq!(text, format!("{expected}{}\n{other}{}", help("nowhere:1"), help("elsewhere")));
}

#[test]
fn named_contexts_stand_for_stages_and_images() {
    let workspace = Workspace::new();
    let outside = |place: &str| {
        let folder = workspace.root().join(place);
        std::fs::create_dir_all(folder.join("etc")).unwrap();
        for (name, content) in [("etc/own", "own"), ("hidden", "no"), (".dockerignore", "hidden\n")] {
            std::fs::write(folder.join(name), content).unwrap();
            std::fs::set_permissions(folder.join(name), std::fs::Permissions::from_mode(0o644)).unwrap();
        }
        std::fs::set_permissions(folder.join("etc"), std::fs::Permissions::from_mode(0o755)).unwrap();
        folder.display().to_string()
    };
    let buildfile =
        "FROM scratch AS files\nCOPY Buildfile /never\nFROM base:latest\nCOPY --from=files / /srv/\n";
    let built = |place: &str| {
        let mut options = workspace.options(buildfile);
        options.named_contexts.insert("base".into(), outside(place));
        options.named_contexts.insert("files".into(), outside(place));
        workspace.build_with(options).unwrap()
    };
    let first = built("one");
    let names: Vec<String> =
        first.listing().iter().map(|line| line.split(' ').nth(2).unwrap().to_owned()).collect();
    assert_eq!(
        names,
        [".dockerignore", "etc", "etc/own", "hidden", "srv", "srv/.dockerignore", "srv/etc", "srv/etc/own"]
    );
    // Where a context lies is no matter of the image.
    assert_eq!(history(&first)[0], "+ FROM base:latest");
    assert_eq!(built("another/place").digest(), first.digest());
}

#[test]
fn hundreds_of_stages_are_built_a_few_at_a_time() {
    let workspace = Workspace::new();
    workspace.file("a", "a");
    let mut text: String =
        (0..200).map(|number| format!("FROM scratch AS s{number}\nCOPY a /{number}\n")).collect();
    text.push_str("FROM scratch\n");
    (0..200).for_each(|number| text.push_str(&format!("COPY --from=s{number} / /\n")));
    let built = workspace.build(&text);
    assert_eq!(built.listing().len(), 200);
    // What the events say: no more stages began and did not end than may be at work at once.
    let (mut running, mut most) = (std::collections::BTreeSet::new(), 0);
    for event in &built.events {
        match event {
            Event::StepStarted { id } => drop(running.insert(id.stage)),
            Event::StepDone { id, .. } | Event::StepCached { id, .. } if id.step == 1 => {
                running.remove(&id.stage);
            }
            _ => {}
        }
        most = most.max(running.len());
    }
    let processors = std::thread::available_parallelism().unwrap().get();
    assert!(most <= (4 * processors).max(8), "{most} stages at once");
}
