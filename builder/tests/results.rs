//! Whole builds with known results, what is written of them, and files that change under the builder's hands.

#![allow(clippy::unwrap_used)]

mod kit;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use kit::{Workspace, build_in};
use rimg_builder::engine::BuildOptions;
use rimg_builder::output::{Others, write_directory, write_tar};
use rimg_formats::layer::{LayerPath, LayerReader, Limits};
use rimg_formats::platform::Platform;
use rimg_formats::store::{ResolvedImage, Store};
use rimg_formats::transfer::CopyOptions;

/// Copies a directory of the repository, with the modes a checkout under the usual umask has.
fn check_out(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    fs::set_permissions(to, fs::Permissions::from_mode(0o755)).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if source.is_dir() {
            check_out(&source, &target);
        } else {
            fs::copy(&source, &target).unwrap();
            let program = fs::read(&source).unwrap().starts_with(b"#!");
            fs::set_permissions(&target, fs::Permissions::from_mode(if program { 0o755 } else { 0o644 }))
                .unwrap();
        }
    }
}

/// The same inputs give the same digests, on any machine and with any version of the same key format.
#[test]
fn fixtures_have_their_digests() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/builds");
    let mut seen = 0;
    for fixture in
        fs::read_dir(fixtures).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir())
    {
        let directory = tempfile::tempdir().unwrap();
        let context = directory.path().join("context");
        check_out(&fixture.join("context"), &context);
        let mut options = BuildOptions::for_context(&context, None).unwrap();
        options.platform = Platform::new("linux", "amd64");
        let store = Store::open(&directory.path().join("store")).unwrap();
        let built = build_in(&store, options).unwrap();
        let expected = fs::read_to_string(fixture.join("expected")).unwrap_or_default();
        assert_eq!(built.digest(), expected.trim(), "{}: {:#?}", fixture.display(), built.listing());
        seen += 1;
    }
    assert!(seen > 0);
}

#[test]
fn results_as_tar_and_directory() {
    let workspace = Workspace::new();
    workspace.file("d/a", "a").file("d/b", "b").link("d/l", "a");
    let built = workspace.build("FROM scratch\nCOPY --chmod=750 d /x\nCOPY d/b /x/a\n");
    let (mut tar, mut again) = (Vec::new(), Vec::new());
    write_tar(&workspace.store, &built.result, &mut tar).unwrap();
    write_tar(&workspace.store, &built.result, &mut again).unwrap();
    assert_eq!(tar, again);
    let mut reader = LayerReader::new(tar.as_slice(), Limits::default()).unwrap();
    let mut names = Vec::new();
    while let Some(entry) = reader.next_entry().unwrap() {
        names.push(format!("{:o} {}", entry.mode, entry.path));
    }
    assert_eq!(names, ["750 x", "644 x/a", "750 x/b", "777 x/l"]);
    let out = workspace.root().join("out");
    write_directory(&workspace.store, &built.result, &out, Others::Kept).unwrap();
    assert_eq!(fs::read_to_string(out.join("x/l")).unwrap(), "b");
    assert_eq!(fs::metadata(out.join("x/b")).unwrap().permissions().mode() & 0o7777, 0o750);
    let modified = fs::metadata(out.join("x/b")).unwrap().modified().unwrap();
    assert_eq!(modified.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs(), 315_619_200);
    let file = out.join("x/b");
    let error =
        write_directory(&workspace.store, &built.result, &file, Others::Kept).unwrap_err().to_string();
    assert_eq!(error, format!("failed to write to the folder `{}`: not a directory", file.display()));
}

#[test]
fn a_directory_is_written_over_and_nothing_outside_of_it() {
    let workspace = Workspace::new();
    workspace.file("d/a", "new").file("d/sub/b", "b").file("d/file", "f").link("d/l", "a");
    let built = workspace.build("FROM scratch\nCOPY d /x\n");
    let out = workspace.root().join("out");
    let outside = workspace.root().join("outside");
    fs::create_dir_all(out.join("x/file/full")).unwrap();
    fs::create_dir_all(&outside).unwrap();
    for name in ["a", "b", "kept"] {
        fs::write(outside.join(name), "outside").unwrap();
    }
    // A link in the way of a file, of a directory, and a file in the way of a link; one file has a second name.
    std::os::unix::fs::symlink(outside.join("a"), out.join("x/a")).unwrap();
    std::os::unix::fs::symlink(&outside, out.join("x/sub")).unwrap();
    fs::hard_link(outside.join("kept"), out.join("x/l")).unwrap();
    fs::write(out.join("other"), "other").unwrap();
    let write = |others| write_directory(&workspace.store, &built.result, &out, others).unwrap();
    for _ in 0..2 {
        write(Others::Kept);
        let read = |path: &str| fs::read_to_string(out.join(path)).unwrap();
        assert_eq!((read("x/a"), read("x/sub/b"), read("x/file")), ("new".into(), "b".into(), "f".into()));
        assert_eq!(fs::read_link(out.join("x/l")).unwrap(), Path::new("a"));
        assert_eq!(read("other"), "other");
        assert!(!fs::symlink_metadata(out.join("x/sub")).unwrap().is_symlink());
        for name in ["a", "b", "kept"] {
            assert_eq!(fs::read_to_string(outside.join(name)).unwrap(), "outside", "{name}");
        }
        // What a directory forbids its owner is no obstacle.
        fs::set_permissions(out.join("x/sub"), fs::Permissions::from_mode(0o500)).unwrap();
    }
    fs::set_permissions(out.join("x/sub"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir_all(out.join("x/sub/more/deep")).unwrap();
    fs::set_permissions(out.join("x/sub"), fs::Permissions::from_mode(0o500)).unwrap();
    std::os::unix::fs::symlink(&outside, out.join("x/elsewhere")).unwrap();
    write(Others::Removed);
    let names = |path: &str| {
        let entries = fs::read_dir(out.join(path)).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    assert_eq!(
        (names(""), names("x"), names("x/sub")),
        (vec!["x".to_owned()], ["a", "file", "l", "sub"].map(str::to_owned).to_vec(), vec!["b".to_owned()],)
    );
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 3);
}

#[test]
fn layouts_as_bases() {
    let workspace = Workspace::new();
    workspace.file("a", "a");
    let mut options = workspace.options("FROM scratch\nCOPY a /\n");
    options.tags = vec!["base:1".parse().unwrap()];
    let base = workspace.build_with(options).unwrap();
    let (name, tag) = base.result.names[0].clone();
    let image = ResolvedImage {
        name,
        tag,
        digest: base.result.manifest.digest,
        media_type: base.result.manifest.media_type.clone(),
    };
    let archive =
        rimg_formats::archive::save(&workspace.store, &[image], Vec::new(), &CopyOptions::default()).unwrap();
    fs::write(workspace.context().join("base.tar"), archive).unwrap();
    let other = Store::open(&workspace.root().join("other")).unwrap();
    let built = build_in(&other, workspace.options("FROM oci:./base.tar\nENV A=1\n")).unwrap();
    assert_eq!(built.result.layers, base.result.layers);
    let copied =
        build_in(&other, workspace.options("FROM scratch\nCOPY --from=oci:./base.tar /a /b\n")).unwrap();
    assert_eq!(copied.listing(), ["f644 0:0 b = a"]);
    let text = workspace.fails("FROM oci:./nowhere\n");
    assert!(text.starts_with("error: failed to get the image from `./nowhere`"), "{text}");
}

/// A file that is written all the time: a build either says so, or its layer is one moment's whole content and the
/// cache never takes another content for it.
#[test]
fn files_that_change_while_they_are_read() {
    let workspace = Workspace::new();
    workspace.file("changing", &"0".repeat(300_000)).file("steady", "s");
    let path = workspace.context().join("changing");
    let stop = AtomicBool::new(false);
    // Nothing is asserted while the writer writes: it would not hear of a failure.
    let errors: Vec<String> = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut digit = 0_u8;
            while !stop.load(Ordering::Relaxed) {
                digit = (digit + 1) % 10;
                let length = 300_000 + usize::from(digit % 2);
                fs::write(&path, vec![b'0' + digit; length]).unwrap();
            }
        });
        let build = |_| workspace.build_with(workspace.options("FROM scratch\nCOPY . /x/\n")).err();
        let errors = (0..30).filter_map(build).map(|error| error.to_string()).collect();
        stop.store(true, Ordering::Relaxed);
        errors
    });
    assert!(errors.iter().all(|error| error.contains("changed while it was read")), "{errors:?}");
    fs::write(&path, "final").unwrap();
    let last = workspace.build("FROM scratch\nCOPY . /x/\n");
    let path = LayerPath::parse("x/changing").unwrap();
    let tree = last.tree();
    let open = |digest: &_| Ok(workspace.store.blob(digest).unwrap().unwrap().into_file());
    let mut content = String::new();
    std::io::Read::read_to_string(
        &mut tree.read_file(tree.lookup(&path).unwrap(), open).unwrap(),
        &mut content,
    )
    .unwrap();
    assert_eq!(content, "final");
}
