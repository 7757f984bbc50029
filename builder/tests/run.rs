//! RUN steps, in real sandboxes on a root of one static busybox; as root, or as the ordinary user who runs the tests.

#![allow(clippy::unwrap_used, unused_qualifications)]

mod kit;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use kit::{Outcome, Workspace};
use rimg_builder::events::Event;
use rimg_formats::store::Store;
use rimg_runner::userns::Mapping;

/// How this process's ids are mapped; set once by `main`.
static MAPPING: std::sync::OnceLock<Mapping> = std::sync::OnceLock::new();

fn main() {
    rimg_runner::child_main_if_requested();
    MAPPING.set(rimg_runner::userns::enter().unwrap()).unwrap();
    let tests: &[(&str, fn())] = &[
        ("changes_become_a_layer", changes_become_a_layer),
        ("the_cache_spares_runs", the_cache_spares_runs),
        ("cached_and_uncached_steps_see_the_same_files", cached_and_uncached_steps_see_the_same_files),
        ("forms_of_commands", forms_of_commands),
        ("other_users", other_users),
        ("failures_are_told_at_their_line", failures_are_told_at_their_line),
        ("mounts", mounts),
        ("stages_run_side_by_side", stages_run_side_by_side),
        ("bound_files_are_roots_and_keep_their_times", bound_files_are_roots_and_keep_their_times),
        ("equal_steps_of_two_stages_run_once", equal_steps_of_two_stages_run_once),
        ("later_steps_write_newer_files", later_steps_write_newer_files),
        (
            "a_step_that_compares_times_builds_what_was_copied_last",
            a_step_that_compares_times_builds_what_was_copied_last,
        ),
        (
            "times_do_not_depend_on_checkouts_or_on_the_base_being_a_stage",
            times_do_not_depend_on_checkouts_or_on_the_base_being_a_stage,
        ),
        ("preserved_times_are_seen_as_they_are", preserved_times_are_seen_as_they_are),
        ("source_date_epoch_is_given_to_processes", source_date_epoch_is_given_to_processes),
        ("files_of_etc_are_committed_as_by_buildkit", files_of_etc_are_committed_as_by_buildkit),
        ("mount_points_are_no_change", mount_points_are_no_change),
        ("mounts_without_target_or_on_the_root", mounts_without_target_or_on_the_root),
        ("programs_run_from_tmpfs_and_from_secrets", programs_run_from_tmpfs_and_from_secrets),
        ("no_error_shows_a_secret", no_error_shows_a_secret),
        ("caches_of_other_owners_are_others", caches_of_other_owners_are_others),
        (
            "a_cache_is_newer_than_what_it_was_made_of_and_older_than_what_changed",
            a_cache_is_newer_than_what_it_was_made_of_and_older_than_what_changed,
        ),
        ("beside_a_cache_only_changed_files_are_new", beside_a_cache_only_changed_files_are_new),
        ("bind_mounts_beside_a_cache", bind_mounts_beside_a_cache),
        ("a_build_holds_the_images_that_it_reads", a_build_holds_the_images_that_it_reads),
        ("owners_are_dropped_only_where_told", owners_are_dropped_only_where_told),
        ("fifos_and_their_links_are_kept", fifos_and_their_links_are_kept),
        ("caches_start_with_content", caches_start_with_content),
        ("touched_files_are_newer_for_later_steps", touched_files_are_newer_for_later_steps),
        ("waiting_for_a_cache_can_be_interrupted", waiting_for_a_cache_can_be_interrupted),
    ];
    assert!(Path::new("/bin/busybox").exists(), "/bin/busybox is missing: apt-get install busybox-static");
    let mut arguments = libtest_mimic::Arguments::from_args();
    arguments.test_threads = Some(1);
    let trial = |&(name, test): &(&str, fn())| {
        libtest_mimic::Trial::test(name, move || {
            test();
            Ok(())
        })
    };
    libtest_mimic::run(&arguments, tests.iter().map(trial).collect()).exit()
}

/// Whether there are users besides root; says so if a test has to do without.
fn has_other_users(test: &str) -> bool {
    let only_root = matches!(MAPPING.get(), Some(Mapping::Single(_)));
    if only_root {
        eprintln!("\nSKIPPED {test}: this user has no subordinate ids");
    }
    !only_root
}

const BASE: &str = "FROM ./rootfs\nENV PATH=/bin\n";

/// A workspace whose `rootfs` is busybox.
fn workspace() -> Workspace {
    let workspace = Workspace::new();
    workspace.file("rootfs/etc/passwd", "root:x:0:0::/root:/bin/sh\nweb:x:33:44::/home/web:/bin/sh\n");
    workspace.file("rootfs/etc/group", "root:x:0:\nweb:x:44:\n").file("rootfs/bin/.keep", "");
    workspace.file("rootfs/dir/a", "a").file("rootfs/dir/b", "b").file("rootfs/tmp/.keep", "");
    let bin = workspace.context().join("rootfs/bin");
    fs::copy("/bin/busybox", bin.join("busybox")).unwrap();
    for applet in [
        "sh", "cat", "echo", "ls", "rm", "mv", "touch", "mkdir", "ln", "id", "env", "test", "true", "sleep",
        "chmod", "stat", "pwd", "printf", "hostname", "head", "cp", "mkfifo", "mknod",
    ] {
        symlink("busybox", bin.join(applet)).unwrap();
    }
    workspace
}

/// The entries of the last layer.
fn last_layer(outcome: &Outcome) -> Vec<String> {
    let (layer, _) = outcome.result.layers.last().unwrap();
    let index = outcome.store.layer_index(&layer.digest).unwrap();
    index
        .entries
        .iter()
        .map(|entry| {
            let kind = format!("{:?}", entry.entry.kind);
            let kind = kind.split([' ', '{']).next().unwrap_or_default();
            format!("{kind} {}", entry.path())
        })
        .collect()
}

fn output(outcome: &Outcome) -> Vec<String> {
    let line = |event: &Event| match event {
        Event::StepOutput { line, .. } => Some(line.clone()),
        _ => None,
    };
    outcome.events.iter().filter_map(line).collect()
}

fn changes_become_a_layer() {
    let workspace = workspace();
    let built = workspace.build(&format!(
        "{BASE}RUN echo new > /dir/new && rm /dir/a && touch /dir/b && mkdir -p /deep/er && ln -s x /deep/link && ln /dir/new /deep/hard && : >> /etc/passwd\n"
    ));
    assert_eq!(
        last_layer(&built),
        [
            "Directory deep",
            "Directory deep/er",
            "Regular deep/hard",
            "Symlink deep/link",
            "Directory dir",
            "Whiteout dir/a",
            "Hardlink dir/new",
        ]
    );
    let listing = built.listing();
    assert!(listing.contains(&"f644 0:0 dir/b = b".to_owned()), "{listing:?}");
    assert!(
        !listing
            .iter()
            .any(|line| line.contains("dir/a") || line.contains("resolv") || line.contains("hosts")),
        "{listing:?}"
    );
    let history = built.config().history;
    assert!(history.last().unwrap().created_by.as_ref().unwrap().starts_with("RUN /bin/sh -c echo new"));
    // What a killed build left; no process has that number.
    fs::create_dir_all(workspace.store.snapshots_dir().join(".new-4194305-run-0/upper/x")).unwrap();
    let nothing = workspace.build(&format!("{BASE}RUN true\nRUN cat /dir/a\n"));
    assert_eq!(nothing.result.layers.len(), 1);
    assert_eq!(nothing.config().history.iter().filter(|line| line.empty_layer).count(), 3);
    assert_eq!(output(&nothing), ["a"]);
    let left: Vec<_> = fs::read_dir(workspace.store.snapshots_dir())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().starts_with(".new")), "{left:?}");
}

fn the_cache_spares_runs() {
    let workspace = workspace();
    let text =
        |value: &str| format!("{BASE}ARG V={value}\nLABEL l={value}\nRUN echo $V > /v\nRUN cat /v > /w\n");
    let first = workspace.build(&text("1"));
    let second = workspace.build(&text("1"));
    assert_eq!(second.digest(), first.digest());
    assert_eq!(
        second.steps(),
        ["0.0 cached", "0.1 cached", "0.2 cached", "0.3 cached", "0.4 cached", "0.5 cached"]
    );
    let third = workspace.build(&text("2"));
    assert_eq!(third.steps()[4], "0.4 missed: environment V changed");
    assert_eq!(third.steps()[6], "0.5 missed: the layers below changed");
    // Without an ARG in scope, and with the same result below, a step is found again.
    let cut = workspace.build(&format!("{BASE}RUN echo same > /v\nRUN cat /v > /w\n"));
    let other = workspace.build(&format!("{BASE}RUN echo same    > /v\nRUN cat /v > /w\n"));
    assert_eq!(other.steps().last().unwrap(), "0.3 cached");
    assert_eq!(other.result.layers, cut.result.layers);
    let clean = Store::open(&workspace.root().join("clean")).unwrap();
    assert_eq!(kit::build_in(&clean, workspace.options(&text("1"))).unwrap().digest(), first.digest());
}

fn cached_and_uncached_steps_see_the_same_files() {
    let workspace = workspace();
    let text = format!("{BASE}RUN echo x > /dir/x && mkdir /made\nCOPY rootfs/dir/a /copied\n");
    let look = "RUN stat -c '%n %Y %a %u' /dir /dir/x /made /copied /etc/passwd\n";
    let at_once = output(&workspace.build(&format!("{text}{look}")));
    assert_eq!(
        at_once,
        [
            "/dir 315619201 755 0",
            "/dir/x 315619201 644 0",
            "/made 315619201 755 0",
            "/copied 315619202 644 0",
            "/etc/passwd 315619200 644 0",
        ]
    );
    workspace.build(&text);
    fs::remove_dir_all(workspace.store.snapshots_dir()).unwrap();
    let from_cache = output(&workspace.build(&format!("{text}ENV A=b\n{look}")));
    assert_eq!(from_cache, at_once);
}

fn forms_of_commands() {
    let workspace = workspace();
    let table: &[(&str, &[&str])] = &[
        ("RUN [\"echo\", \"$PATH\"]", &["$PATH"]),
        ("RUN <<EOF\necho one\necho two\nEOF", &["one", "two"]),
        ("RUN <<EOF\n#!/bin/cat\nline\nEOF", &["#!/bin/cat", "line"]),
        ("RUN cat <<EOF && echo end\nbody $PATH\nEOF", &["body /bin", "end"]),
        ("SHELL [\"/bin/echo\", \"said:\"]\nRUN what", &["said: what"]),
        ("ARG A=1\nENV B=2\nRUN echo $A$B", &["12"]),
        ("RUN hostname", &["buildkitsandbox"]),
        ("RUN umask", &["0022"]),
        ("RUN --network=none test ! -e /sys/class/net/eth0 && echo alone", &["alone"]),
        ("RUN printf 'no end'; echo err >&2", &["err", "no end"]),
        ("RUN head -c 3 /etc/hosts && echo", &["127"]),
    ];
    for (lines, expected) in table {
        let mut lines_told = output(&workspace.build(&format!("{BASE}{lines}\n")));
        if lines.contains(">&2") {
            lines_told.sort();
        }
        assert_eq!(lines_told, *expected, "{lines}");
    }
}

fn other_users() {
    if !has_other_users("other_users") {
        return;
    }
    let workspace = workspace();
    let built = workspace.build(&format!("{BASE}USER web\nWORKDIR /w\nRUN id -u && pwd && touch mine\n"));
    assert_eq!(output(&built), ["33", "/w"]);
    let built = workspace.build(&format!(
        "FROM scratch AS other\nCOPY --chown=33 rootfs/dir /d\n{BASE}\
         RUN --mount=from=other,source=/d,target=/m stat -c %u /m/a\n"
    ));
    assert_eq!(output(&built), ["33"]);
}

fn failures_are_told_at_their_line() {
    let workspace = workspace();
    let text = workspace.fails(&format!("{BASE}RUN true\nRUN echo said && exit 3\n"));
    assert!(
        text.starts_with(
            "error: `/bin/sh -c echo said && exit 3` failed with exit code 3\n --> Buildfile:4:1\n"
        ),
        "{text}"
    );
    let text = workspace.fails(&format!("{BASE}RUN [\"/nothing\"]\n"));
    assert!(text.contains("error: failed to execute /nothing: No such file"), "{text}");
    assert!(text.contains("the image has no such program"), "{text}");
    let text = workspace.fails("FROM scratch\nRUN true\n");
    assert!(text.contains("failed to execute /bin/sh"), "{text}");
    let text = workspace.fails(&format!("{BASE}RUN --security=insecure true\n"));
    assert!(text.contains("`--security=insecure` is not supported yet"), "{text}");
    let text = workspace.fails(&format!("{BASE}RUN --mount=type=ssh true\n"));
    assert!(text.contains("`--mount=type=ssh` is not supported yet"), "{text}");
    let text = workspace.fails(&format!("{BASE}USER ghost\nRUN true\n"));
    assert!(text.contains("ghost"), "{text}");
    // Nothing of a failed step stays.
    let left = fs::read_dir(workspace.store.snapshots_dir())
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with(".new"));
    assert_eq!(left.count(), 0);
}

fn mounts() {
    let workspace = workspace();
    workspace.file("data/x", "mounted\n").file("data/hidden", "h");
    let build = |line: &str| workspace.build(&format!("FROM scratch AS other\nCOPY data /d\n{BASE}{line}\n"));
    let bound = build("RUN --mount=target=/m,source=data cat /m/x && ! touch /m/y 2>/dev/null");
    assert_eq!(output(&bound), ["mounted"]);
    assert_eq!(bound.result.layers.len(), 1, "the mount point is in the layer");
    workspace.file("data/x", "mounted again\n");
    let again = build("RUN --mount=target=/m,source=data cat /m/x && ! touch /m/y 2>/dev/null");
    assert!(
        again.steps().iter().any(|step| step.ends_with("missed: the content of mount /m changed")),
        "{:?}",
        again.steps()
    );
    let written = build("RUN --mount=target=/m,source=data,rw echo more > /m/x");
    assert_eq!(written.result.layers.len(), 1);
    assert_eq!(fs::read_to_string(workspace.context().join("data/x")).unwrap(), "mounted again\n");
    let stage = build("RUN --mount=from=other,source=/d,target=/m cat /m/x");
    assert_eq!(output(&stage), ["mounted again"]);
    let cache = "RUN --mount=type=cache,target=/c echo x >> /c/n; cat /c/n";
    assert_eq!(output(&build(cache)), ["x"]);
    assert_eq!(output(&build(&format!("ENV A=1\n{cache}"))), ["x", "x"]);
    assert_eq!(build(cache).result.layers.len(), 1);
    assert_eq!(output(&build("RUN --mount=type=tmpfs,target=/t touch /t/x && ls /t")), ["x"]);
    let mut options = workspace.options(&format!(
        "{BASE}RUN --mount=type=secret,id=s --mount=type=secret,id=t,env=T --mount=type=secret,id=no cat /run/secrets/s && echo $T && stat -c %a /run/secrets/s\n"
    ));
    options.secrets.insert("s".to_owned(), b"hush\n".to_vec());
    options.secrets.insert("t".to_owned(), b"quiet".to_vec());
    let secret = workspace.build_with(options).unwrap();
    assert_eq!(output(&secret), ["hush", "quiet", "400"]);
    assert_eq!(secret.result.layers.len(), 1);
    assert!(
        workspace
            .fails(&format!("{BASE}RUN --mount=type=secret,id=s,required true\n"))
            .contains("the secret `s` is required")
    );
    workspace.file(".dockerignore", "data/hidden\n");
    assert_eq!(output(&build("RUN --mount=target=/m,source=data ls /m")), ["x"]);
}

/// Each of two stages waits for what the other does in a shared cache.
fn stages_run_side_by_side() {
    let workspace = workspace();
    let wait = |mine: &str, other: &str| {
        format!(
            "RUN --mount=type=cache,target=/c touch /c/{mine}; n=0; until test -e /c/{other}; do sleep 0.05; n=$((n+1)); test $n -lt 400 || exit 1; done; echo {mine} > /{mine}\n"
        )
    };
    let text = format!(
        "FROM ./rootfs AS base\nENV PATH=/bin\nFROM base AS a\n{}FROM base AS b\n{}FROM scratch\nCOPY --from=a /a /\nCOPY --from=b /b /\n",
        wait("a", "b"),
        wait("b", "a"),
    );
    assert_eq!(workspace.build(&text).listing(), ["f644 0:0 a = a", "f644 0:0 b = b"]);
}

/// Whoever checked the files out, and whether or not they had to be copied.
fn bound_files_are_roots_and_keep_their_times() {
    let workspace = workspace();
    workspace.file("data/x", "x").file("data/hidden", "h");
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    for name in ["data/x", "data/hidden"] {
        let file = fs::File::options().write(true).open(workspace.context().join(name)).unwrap();
        file.set_modified(time).unwrap();
    }
    let look = |again: u32| {
        output(&workspace.build(&format!(
            "{BASE}ENV AGAIN={again}\nRUN --mount=target=/m,source=data stat -c '%u %g %Y' /m/x && stat -c %u /m\n"
        )))
    };
    let expected = ["0 0 1000000000", "0"];
    assert_eq!(look(1), expected);
    workspace.file(".dockerignore", "data/hidden\n");
    assert_eq!(look(2), expected);
    fs::remove_file(workspace.context().join(".dockerignore")).unwrap();
    if has_other_users("bound_files_are_roots: of another owner") {
        std::os::unix::fs::chown(workspace.context().join("data/x"), Some(1000), Some(1000)).unwrap();
        assert_eq!(look(3), expected);
    }
}

fn equal_steps_of_two_stages_run_once() {
    let workspace = workspace();
    let step = "RUN --mount=type=cache,target=/c echo ran >> /c/n && sleep 0.3 && cat /c/n > /n\n";
    let built = workspace.build(&format!(
        "FROM ./rootfs AS base\nENV PATH=/bin\nFROM base AS a\n{step}FROM base AS b\n{step}FROM scratch\nCOPY --from=a /n /a\nCOPY --from=b /n /b\n"
    ));
    assert_eq!(built.listing(), ["f644 0:0 a = ran", "f644 0:0 b = ran"]);
}

/// Compares as make, ninja and cargo do: built anew where a source is newer, and not where it is of the same age.
const MAKE: &str = "if ! test -e /out || test /src -nt /out; then cat /src > /out; fi";

fn later_steps_write_newer_files() {
    let workspace = workspace();
    workspace.file("data/x", "x");
    let built = workspace.build(&format!(
        "{BASE}RUN echo 1 > /one && echo 1 > /same\nCOPY data/x /two\nCOPY --link data /linked\nWORKDIR /three\nADD data/x /four\n\
         RUN echo 5 > /five\nRUN for pair in '/one /two' '/two /linked/x' '/linked/x /three' '/three /four' '/four /five'; do\
         \tset -- $pair; test $2 -nt $1 && echo $2 is newer; done; test /one -nt /same || echo one and the same; test /five -nt /etc/passwd && echo newer than the base\n"
    ));
    let expected = [
        "/two is newer",
        "/linked/x is newer",
        "/three is newer",
        "/four is newer",
        "/five is newer",
        "one and the same",
        "newer than the base",
    ];
    assert_eq!(output(&built), expected);
    // The layers know nothing of it.
    for (layer, _) in &built.result.layers {
        let index = built.store.layer_index(&layer.digest).unwrap();
        assert!(index.entries.iter().all(|entry| entry.entry.mtime.secs == 315_619_200));
    }
}

/// The trick to build dependencies first: a dummy in the place of the sources, which are copied later.
fn a_step_that_compares_times_builds_what_was_copied_last() {
    let workspace = workspace();
    workspace.file("src", "real\n");
    let text = format!(
        "{BASE}RUN echo dummy > /src && {MAKE}\nRUN rm /src\nCOPY src /src\nRUN {MAKE}\nRUN {MAKE} && cat /out\n"
    );
    let first = workspace.build(&text);
    assert_eq!(output(&first), ["real"]);
    // Found in the cache up to the last, and unpacked from the layers.
    fs::remove_dir_all(workspace.store.snapshots_dir()).unwrap();
    let again = workspace.build(&format!("{text}RUN {MAKE} && cat /out && stat -c '%n %Y' /src /out\n"));
    assert_eq!(again.result.layers, first.result.layers);
    assert_eq!(output(&again), ["real", "/src 315619202", "/out 315619203"]);
}

fn times_do_not_depend_on_checkouts_or_on_the_base_being_a_stage() {
    let workspace = workspace();
    workspace.file("src", "real\n");
    let steps = format!("RUN echo dummy > /src && {MAKE}\nCOPY src /src\n");
    let look = format!("RUN {MAKE} && cat /out && stat -c %Y /src /out\n");
    let expected = ["real", "315619202", "315619203"];
    let whole =
        output(&workspace.build(&format!("{BASE}{steps}RUN {MAKE}\nRUN stat -c %Y /src /out\n{look}")));
    assert_eq!(whole[..2], expected[1..]);
    // Another time of the checkout.
    let old = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    fs::File::options().write(true).open(workspace.context().join("src")).unwrap().set_modified(old).unwrap();
    let split =
        format!("FROM ./rootfs AS first\nENV PATH=/bin\n{steps}FROM first\nRUN {MAKE}\nENV A=1\n{look}");
    assert_eq!(output(&workspace.build(&split)), expected);
    // An image of the store as base: its layers carry one time, and are still one after the other.
    let mut options = workspace.options(&format!("{BASE}{steps}"));
    options.tags = vec!["base".parse().unwrap()];
    workspace.build_with(options).unwrap();
    let mut options = workspace.options(&format!("FROM base\nRUN {MAKE}\nENV A=2\n{look}"));
    options.tags = vec!["top".parse().unwrap()];
    assert_eq!(output(&workspace.build_with(options).unwrap()), expected);
}

fn preserved_times_are_seen_as_they_are() {
    let workspace = workspace();
    workspace.file("src", "real\n");
    let old = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    fs::File::options().write(true).open(workspace.context().join("src")).unwrap().set_modified(old).unwrap();
    let mut options = workspace
        .options(&format!("{BASE}COPY src /src\nRUN stat -c %Y /src && echo ${{SOURCE_DATE_EPOCH-none}}\n"));
    options.timestamps = rimg_builder::engine::Timestamps::Preserve;
    assert_eq!(output(&workspace.build_with(options).unwrap()), ["1000000000", "none"]);
}

fn source_date_epoch_is_given_to_processes() {
    let workspace = workspace();
    let table: &[(&str, &str)] = &[
        ("", "315619200"),
        ("ENV SOURCE_DATE_EPOCH=5\n", "5"),
        ("ENV SOURCE_DATE_EPOCH=\n", ""),
        ("ARG SOURCE_DATE_EPOCH=6\n", "6"),
        ("ARG SOURCE_DATE_EPOCH\n", "315619200"),
    ];
    for (number, (lines, expected)) in table.iter().enumerate() {
        let built = workspace.build(&format!("{BASE}{lines}RUN echo $SOURCE_DATE_EPOCH && : {number}\n"));
        assert_eq!(output(&built), [*expected], "{lines}");
        let is_said =
            built.config().config.env.iter().any(|variable| variable.starts_with("SOURCE_DATE_EPOCH"));
        assert_eq!(is_said, lines.starts_with("ENV"), "{lines}");
    }
    let mut options = workspace.options(&format!("{BASE}RUN echo $SOURCE_DATE_EPOCH\n"));
    options.epoch = rimg_formats::epoch::Epoch::parse("1700000000").unwrap();
    assert_eq!(output(&workspace.build_with(options).unwrap()), ["1700000000"]);
}

fn files_of_etc_are_committed_as_by_buildkit() {
    let workspace = workspace();
    workspace.file("rootfs/etc/hosts", "the image's\n");
    let built = workspace.build(&format!(
        "{BASE}RUN echo mine > /etc/hostname && echo x >> /etc/hosts && echo y > /etc/resolv.conf && head -n 1 /etc/hosts\n\
         RUN cat /etc/hostname && hostname\n"
    ));
    assert_eq!(output(&built), ["127.0.0.1\tlocalhost buildkitsandbox", "mine", "buildkitsandbox"]);
    assert_eq!(last_layer(&built), ["Directory etc", "Regular etc/hostname"]);
    assert!(built.listing().contains(&"f644 0:0 etc/hosts = the image's".to_owned()));
    let mut options = workspace.options(&format!("{BASE}RUN hostname && head -n 1 /etc/hosts\n"));
    options.build_args.insert("BUILDKIT_SANDBOX_HOSTNAME".to_owned(), "builder-1".to_owned());
    let named = workspace.build_with(options).unwrap();
    assert_eq!(output(&named), ["builder-1", "127.0.0.1\tlocalhost builder-1"]);
}

fn mount_points_are_no_change() {
    let workspace = workspace();
    workspace.link("rootfs/etc/resolv.conf", "../run/resolve/stub.conf");
    workspace.file("rootfs/covered", "below");
    let table: &[(&str, &[&str])] = &[
        ("true", &[]),
        ("--mount=type=tmpfs,target=/a/b/c --mount=type=cache,target=/d/e true", &[]),
        ("--mount=type=tmpfs,target=/a/b/c touch /a/b/f", &["Directory a", "Directory a/b", "Regular a/b/f"]),
        ("--mount=type=secret,id=s,target=/k/l/s cat /k/l/s", &[]),
        ("--mount=type=bind,source=rootfs/etc/group,target=/covered,rw echo x > /covered", &[]),
        ("--mount=type=bind,source=rootfs/etc,target=/dir,rw touch /dir/x", &[]),
    ];
    for (words, expected) in table {
        let mut options = workspace.options(&format!("{BASE}RUN {words}\n"));
        options.secrets.insert("s".to_owned(), b"hush\n".to_vec());
        let built = workspace.build_with(options).unwrap();
        let layer = if built.result.layers.len() == 1 { Vec::new() } else { last_layer(&built) };
        assert_eq!(layer, *expected, "{words}");
    }
}

fn mounts_without_target_or_on_the_root() {
    let workspace = workspace();
    workspace.file("data/x", "mounted\n");
    let table: &[(&str, &[&str])] = &[
        ("WORKDIR /w\nRUN --mount=type=bind,source=data cat x /w/x", &["mounted", "mounted"]),
        ("WORKDIR /w\nRUN --mount=from=other,source=/d cat x", &["mounted"]),
        ("WORKDIR /w\nRUN --mount=ro,source=data ls", &["x"]),
    ];
    for (lines, expected) in table {
        let built = workspace.build(&format!("FROM scratch AS other\nCOPY data /d\n{BASE}{lines}\n"));
        assert_eq!(output(&built), *expected, "{lines}");
        assert_eq!(built.result.layers.len(), 2, "{lines}");
    }
    for mount in ["source=data", "target=.", "target=/", "type=tmpfs,target=/x/.."] {
        let text = workspace.fails(&format!("{BASE}RUN --mount={mount} true\n"));
        assert!(text.contains("a mount cannot cover `/`") && !text.contains("doctor"), "{mount}: {text}");
    }
    let text = workspace.fails(&format!("{BASE}RUN --mount=type=cache true\n"));
    assert!(text.contains("a mount of type `cache` wants a target"), "{text}");
}

fn programs_run_from_tmpfs_and_from_secrets() {
    let workspace = workspace();
    let script = "printf '#!/bin/sh\\necho ran\\n' > /t/x && chmod 755 /t/x && /t/x";
    let built = workspace.build(&format!("{BASE}RUN --mount=type=tmpfs,target=/t {script}\n"));
    assert_eq!(output(&built), ["ran"]);
    let mut options = workspace.options(&format!(
        "{BASE}RUN --mount=type=secret,id=s,target=/x,mode=0700 --mount=type=secret,id=s,target=/y \\\n /x && ! /y 2> /dev/null && stat -c %a /x /y && ls -A /dev | head -n 100\n"
    ));
    options.secrets.insert("s".to_owned(), b"#!/bin/sh\necho ran\n".to_vec());
    let built = workspace.build_with(options).unwrap();
    let lines = output(&built);
    assert_eq!(lines[..3], ["ran", "700", "400"]);
    assert!(!lines.iter().any(|line| line.contains("rimg")), "{lines:?}");
    assert_eq!(built.result.layers.len(), 1);
}

fn no_error_shows_a_secret() {
    let workspace = workspace();
    let error = |line: &str, content: &[u8]| {
        let mut options = workspace.options(&format!("{BASE}RUN {line}\n"));
        options.secrets.insert("s".to_owned(), content.to_vec());
        let source = options.buildfile.clone();
        let error = workspace.build_with(options).err().unwrap();
        let shown = rimg_builder::diagnostic::render_all(
            error.diagnostics(),
            &source,
            rimg_builder::diagnostic::Style::Plain,
        );
        let last = match &error {
            rimg_builder::engine::BuildError::Run(failure) => failure.last_lines.join(" "),
            _ => String::new(),
        };
        format!("{error} {error:?} {shown} {last}")
    };
    for (line, content) in [
        ("--mount=type=secret,id=s,env=T true", &b"hush\0tail"[..]),
        ("--mount=type=secret,id=s,env=PATH nothing", b"/hush:/hush/bin"),
        ("--mount=type=secret,id=s,env=T [\"/nothing\"]", b"hush"),
        ("--mount=type=secret,id=s,target=/ true", b"hush"),
        ("--mount=type=secret,id=s,target=/dir true", b"hush"),
    ] {
        let text = error(line, content);
        assert!(!text.contains("hush"), "{line}: {text}");
    }
    let text = error("--mount=type=secret,id=s,env=T true", b"hush\0tail");
    assert!(text.contains("the secret `s` holds a NUL byte and cannot be a variable"), "{text}");
}

fn caches_of_other_owners_are_others() {
    let workspace = workspace();
    let touch = "touch /c/x && stat -c '%a %u:%g' /c";
    let mounted =
        |keys: &str, n: u32| {
            output(&workspace.build(&format!(
                "{BASE}ENV N={n}\nRUN --mount=type=cache,target=/c{keys} ls /c && {touch}\n"
            )))
        };
    assert_eq!(mounted("", 1), ["755 0:0"]);
    assert_eq!(mounted(",mode=1777", 1), ["1777 0:0"]);
    assert_eq!(mounted(",mode=1777", 2), ["x", "1777 0:0"]);
    assert_eq!(mounted("", 2), ["x", "755 0:0"]);
    let mut options = workspace.options(&format!("{BASE}ENV N=3\nRUN --mount=type=cache,target=/c ls /c\n"));
    options.build_args.insert("BUILDKIT_CACHE_MOUNT_NS".to_owned(), "other".to_owned());
    assert_eq!(output(&workspace.build_with(options).unwrap()), Vec::<String>::new());
    if has_other_users("caches_of_other_owners_are_others") {
        assert_eq!(mounted(",uid=33,gid=44,mode=2750", 1), ["2750 33:44"]);
        assert_eq!(mounted(",uid=33,gid=44,mode=2750", 2), ["x", "2750 33:44"]);
        assert_eq!(mounted("", 3), ["x", "755 0:0"]);
    }
}

fn waiting_for_a_cache_can_be_interrupted() {
    let workspace = workspace();
    let step = "RUN --mount=type=cache,target=/c,sharing=locked echo ran\n";
    workspace.build(&format!("{BASE}{step}"));
    let caches = workspace.store.root().join("cache-mounts");
    let cache = fs::read_dir(caches).unwrap().next().unwrap().unwrap().path();
    let held = fs::File::options().write(true).open(cache.join("lock")).unwrap();
    held.lock().unwrap();
    let images = rimg_builder::base::StoredImages(workspace.store.clone());
    let options = workspace.options(&format!("{BASE}ENV A=1\n{step}"));
    let builder = rimg_builder::engine::Builder::new(workspace.store.clone(), &images, options);
    let interrupt = builder.interrupt();
    let began = std::time::Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(std::time::Duration::from_millis(300));
            interrupt.set();
        });
        let result = builder.build(&|_| {});
        assert!(matches!(result, Err(rimg_builder::engine::BuildError::Interrupted)), "{result:?}");
    });
    assert!(began.elapsed() < std::time::Duration::from_secs(20));
    drop(held);
    assert_eq!(output(&workspace.build(&format!("{BASE}ENV A=1\n{step}"))), ["ran"]);
}

/// As [`MAKE`], with the result in a cache mount: tells when it built.
const MAKE_IN_CACHE: &str = "--mount=type=cache,target=/c \
    if ! test -e /c/out || test /src -nt /c/out; then cat /src > /c/out && echo built; fi; cat /c/out";

/// Gives a file of the context a new content and a modification time of long ago, as a checkout may.
fn checked_out(workspace: &Workspace, name: &str, content: &str) {
    workspace.file(name, content);
    let old = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    fs::File::options().write(true).open(workspace.context().join(name)).unwrap().set_modified(old).unwrap();
}

fn a_cache_is_newer_than_what_it_was_made_of_and_older_than_what_changed() {
    let workspace = workspace();
    let mut number = 0;
    let mut make = |source: &str, content: &str| {
        number += 1;
        checked_out(&workspace, "src", content);
        output(&workspace.build(&format!("{BASE}{source}\nENV N={number}\nRUN {MAKE_IN_CACHE}\n")))
    };
    for source in ["COPY src /src", "COPY --link src /src", "RUN --mount=target=/m,source=src cp /m /src"] {
        let content = |version: &str| format!("{version} by {}\n", &source[..6]);
        let line = |version: &str| content(version).trim_end().to_owned();
        assert_eq!(make(source, &content("one")), ["built".to_owned(), line("one")], "{source}");
        assert_eq!(make(source, &content("one")), [line("one")], "{source}: made again for nothing");
        assert_eq!(make(source, &content("two")), ["built".to_owned(), line("two")], "{source}");
        assert_eq!(make(source, &content("two")), [line("two")], "{source}: made again for nothing");
        // The layer is in the build cache, older than what was made of the other version.
        assert_eq!(make(source, &content("one")), ["built".to_owned(), line("one")], "{source}: back");
        assert_eq!(make(source, &content("one")), [line("one")], "{source}: made again for nothing");
    }
}

fn beside_a_cache_only_changed_files_are_new() {
    let workspace = workspace();
    for name in ["a", "b", "sub/c"] {
        workspace.file(&format!("data/{name}"), name);
    }
    let look = |number: u32, dockerfile: &str| {
        let built = workspace.build(&format!(
            "{BASE}{dockerfile}COPY --chmod=4751 data /data\nENV N={number}\n\
             RUN --mount=type=cache,target=/c cd /data && for f in a b new sub sub/c; do test -e $f || continue; \
             if test $f -nt /c/mark; then echo $f; fi; done; stat -c '%a %h' /data/a; touch /c/mark\n"
        ));
        assert_eq!(built.result.layers.len(), 2 + dockerfile.lines().count(), "copies are no change");
        output(&built)
    };
    assert_eq!(look(1, ""), ["4751 1"], "there is no mark yet");
    assert_eq!(look(2, ""), ["4751 1"]);
    workspace.file("data/a", "A");
    assert_eq!(look(3, ""), ["a", "4751 1"]);
    // A layer below moves the others, and changes none of them.
    assert_eq!(look(4, "RUN echo x > /etc/x\n"), ["4751 1"]);
    workspace.file("data/new", "new");
    assert_eq!(look(5, ""), ["new", "4751 1"]);
    fs::remove_file(workspace.context().join("data/sub/c")).unwrap();
    workspace.file("data/sub/d", "d");
    assert_eq!(look(6, ""), ["sub", "4751 1"]);
    workspace.file("data/sub/c", "sub/c");
    assert_eq!(look(7, ""), ["sub", "sub/c", "4751 1"], "it came back");
    // Nobody knows any more what was there.
    let caches = workspace.store.root().join("cache-mounts");
    let cache = fs::read_dir(caches).unwrap().next().unwrap().unwrap().path();
    fs::write(cache.join("seen"), "damaged").unwrap();
    assert_eq!(look(8, ""), ["a", "b", "new", "sub", "sub/c", "4751 1"]);
    assert_eq!(look(9, ""), ["4751 1"]);
}

fn bind_mounts_beside_a_cache() {
    let workspace = workspace();
    let mut number = 0;
    for mount in ["target=/src,source=src", "target=/src,source=src,rw", "target=/src,from=other,source=/src"]
    {
        let mut make = |is_old: bool, content: &str| {
            number += 1;
            checked_out(&workspace, "src", content);
            if !is_old {
                // busybox compares whole seconds, as everybody's working directory would have it.
                std::thread::sleep(std::time::Duration::from_millis(1100));
                workspace.file("src", content);
            }
            output(&workspace.build(&format!(
                "FROM scratch AS other\nCOPY src /src\n{BASE}ENV N={number}\nRUN --mount={mount} {MAKE_IN_CACHE}\n"
            )))
        };
        let content = |version: u32| format!("{version} {}\n", mount.len());
        let line = |version: u32| content(version).trim_end().to_owned();
        assert_eq!(make(true, &content(1)), ["built".to_owned(), line(1)], "{mount}");
        assert_eq!(make(true, &content(1)), [line(1)], "{mount}");
        assert_eq!(make(false, &content(2)), ["built".to_owned(), line(2)], "{mount}");
        assert_eq!(make(true, &content(3)), ["built".to_owned(), line(3)], "{mount}: older, and other");
        assert_eq!(make(true, &content(3)), [line(3)], "{mount}");
    }
}

/// Everything is collected that nobody holds, while the step runs.
fn a_build_holds_the_images_that_it_reads() {
    let workspace = workspace();
    for (name, text) in
        [("base", BASE.to_owned()), ("other", "FROM scratch\nCOPY rootfs/dir /d\n".to_owned())]
    {
        let mut options = workspace.options(&text);
        options.tags = vec![name.parse().unwrap()];
        workspace.build_with(options).unwrap();
    }
    let options = workspace.options(
        "FROM base\nRUN echo first > /x\nRUN echo now\nRUN --mount=from=other,source=/d,target=/m cat /m/a\nCOPY --from=other /d/b /\n",
    );
    let images = rimg_builder::base::StoredImages(workspace.store.clone());
    let builder = rimg_builder::engine::Builder::new(workspace.store.clone(), &images, options);
    let another = Store::open(workspace.store.root()).unwrap();
    let pruned = std::sync::Mutex::new(Vec::new());
    let prune = rimg_formats::store::prune::PruneOptions {
        all: true,
        untagged: true,
        // What was made in this second too.
        older_than_seconds: -60,
        cache: rimg_formats::store::prune::CachePolicy::CLEAR,
        ..Default::default()
    };
    let result = builder.build(&|event| {
        if matches!(&event, Event::StepOutput { line, .. } if line == "now") {
            let kept = another.prune(&prune).unwrap();
            // Names may go; what they led to is still read.
            for name in ["base", "other"] {
                let image = another.resolve_text(name).unwrap();
                another.remove_image(&image, &prune.in_use, true).unwrap();
            }
            another.prune(&prune).unwrap();
            pruned.lock().unwrap().push(kept);
        }
    });
    let result = result.unwrap();
    let pruned = pruned.into_inner().unwrap();
    assert_eq!((pruned.len(), pruned[0].tags.len()), (1, 0), "{pruned:?}");
    for (layer, _) in &result.layers {
        assert!(another.verified_blob(&layer.digest).unwrap().is_some());
    }
}

/// For users without subordinate ids; all others have the owners.
fn owners_are_dropped_only_where_told() {
    let workspace = workspace();
    let text = format!("{BASE}COPY --chown=33:44 rootfs/dir/a /mine\nRUN stat -c %u:%g /mine\n");
    if !matches!(MAPPING.get(), Some(Mapping::Single(_))) {
        assert_eq!(output(&workspace.build(&text)), ["33:44"]);
        return;
    }
    for _ in 0..2 {
        let error = workspace.fails(&text);
        assert!(error.contains("`/mine` belongs to 33:44") && error.contains("--squash-owners"), "{error}");
        let mut options = workspace.options(&text);
        options.squash_owners = true;
        let built = workspace.build_with(options).unwrap();
        assert!(built.listing().contains(&"f644 33:44 mine = a".to_owned()));
    }
}

fn fifos_and_their_links_are_kept() {
    let workspace = workspace();
    let built = workspace.build(
        "FROM ./rootfs AS a\nENV PATH=/bin\nRUN mkfifo /p && ln /p /q\nRUN stat -c '%F %h' /p /q\n\
         FROM ./rootfs\nENV PATH=/bin\nCOPY --from=a /p /q /o/\nRUN stat -c %F /o/p /o/q\n",
    );
    assert_eq!(output(&built), ["fifo 2", "fifo 2", "fifo", "fifo"]);
}

fn caches_start_with_content() {
    let workspace = workspace();
    let mut number = 0;
    let mut look = |content: &str| {
        number += 1;
        workspace.file("data/x", content);
        output(&workspace.build(&format!(
            "FROM scratch AS other\nCOPY --chmod=750 data /d\n{BASE}ENV N={number}\n\
             RUN --mount=type=cache,target=/c,from=other,source=/d cat /c/* && stat -c %a /c && echo more > /c/y\n"
        )))
    };
    assert_eq!(look("one\n"), ["one", "750"]);
    assert_eq!(look("one\n"), ["one", "more", "750"]);
    assert_eq!(look("two\n"), ["two", "750"], "another start is another cache");
    assert_eq!(look("one\n"), ["one", "more", "750"]);
    let text = workspace.fails(&format!(
        "FROM scratch AS other\nCOPY data /d\n{BASE}RUN --mount=type=cache,target=/c,from=other,source=/d/x true\n"
    ));
    assert!(text.contains("a cache is a directory, and `/d/x` is none"), "{text}");
}

/// Stamps of make and cargo are written anew with what they had.
fn touched_files_are_newer_for_later_steps() {
    let workspace = workspace();
    workspace.file("src", "new\n");
    let text = format!(
        "{BASE}RUN echo old > /src && touch /stamp\nCOPY src /src\nRUN test /src -nt /stamp && touch /stamp && echo made\n\
         RUN touch /dir/a && : >> /dir/b && chmod 644 /dir/b\n"
    );
    let look =
        "RUN test /src -nt /stamp || echo made before; stat -c '%n %Y' /src /stamp /dir /dir/a /dir/b\n";
    let first = workspace.build(&format!("{text}{look}"));
    let expected = [
        "made",
        "made before",
        "/src 315619202",
        "/stamp 315619203",
        "/dir 315619200",
        "/dir/a 315619204",
        "/dir/b 315619200",
    ];
    assert_eq!(output(&first), expected);
    assert_eq!(first.result.layers.len(), 3, "what was only touched is in no layer");
    fs::remove_dir_all(workspace.store.snapshots_dir()).unwrap();
    let again =
        workspace.build(&format!("{text}ENV A=1\n{look}RUN echo other > /stamp\nRUN stat -c %Y /stamp\n"));
    assert_eq!(output(&again)[..6], expected[1..]);
    assert_eq!(output(&again)[6], "315619205", "{:?}", output(&again));
    // A stage that goes on has them too.
    let stage = format!("{}FROM one\nENV A=2\n{look}", text.replace("FROM ./rootfs", "FROM ./rootfs AS one"));
    assert_eq!(output(&workspace.build(&stage)), expected[1..]);
}
