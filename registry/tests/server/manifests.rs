//! End-3, end-7 and end-9: manifests and their tags.

use rimg_formats::digest::{Algorithm, Digest};
use rimg_formats::store::prune::PruneOptions;
use std::sync::Barrier;

use crate::harness::{ALGORITHMS, OCI_INDEX, OCI_MANIFEST, Registry, manifest, noise};

fn index(children: &[(&str, &Digest, usize)]) -> Vec<u8> {
    let children: Vec<String> = children
        .iter()
        .map(|(media_type, digest, size)| {
            format!(r#"{{"mediaType":"{media_type}","digest":"{digest}","size":{size}}}"#)
        })
        .collect();
    format!(r#"{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","manifests":[{}]}}"#, children.join(","))
        .into_bytes()
}

#[test]
fn by_tag_and_by_digest() {
    let registry = Registry::start();
    let raw = registry.image("a", "one");
    let digest = Digest::sha256(&raw);
    let answer = registry.put_manifest("a", "v1", OCI_MANIFEST, &raw);
    assert_eq!(answer.status, 201);
    assert_eq!(answer.header("location"), Some(format!("/v2/a/manifests/{digest}").as_str()));
    assert_eq!(answer.header("docker-content-digest"), Some(digest.to_string().as_str()));
    for version in ["v1".to_owned(), digest.to_string()] {
        let target = format!("/v2/a/manifests/{version}");
        // No `Accept`, one that asks for something else, and one that fits.
        for accept in ["", "application/vnd.docker.distribution.manifest.v2+json", OCI_MANIFEST] {
            let headers = [("Accept", accept)];
            let headers = if accept.is_empty() { &[][..] } else { &headers[..] };
            let get = registry.send("GET", &target, headers, b"");
            assert_eq!(get.body, raw);
            for answer in [get, registry.send("HEAD", &target, headers, b"")] {
                assert_eq!(answer.status, 200, "{version} {accept}");
                assert_eq!(answer.header("content-type"), Some(OCI_MANIFEST));
                assert_eq!(answer.header("content-length"), Some(raw.len().to_string().as_str()));
                assert_eq!(answer.header("docker-content-digest"), Some(digest.to_string().as_str()));
            }
        }
        let etag = format!("\"{digest}\"");
        let answer = registry.send("GET", &target, &[("If-None-Match", &etag)], b"");
        assert_eq!((answer.status, answer.body.len()), (304, 0));
        let answer = registry.send("GET", &target, &[("If-None-Match", "\"other\"")], b"");
        assert_eq!(answer.status, 200);
    }
}

/// What docker push, oras and crane each depend on.
#[test]
fn answers_carry_what_clients_depend_on() {
    let registry = Registry::start();
    let start = registry.send("POST", "/v2/a/blobs/uploads/", &[], b"");
    let location = start.header("location").unwrap().to_owned();
    let chunk = registry.send("PATCH", &location, &[], b"abc");
    for (answer, range) in [(&start, "0-0"), (&chunk, "0-2")] {
        assert_eq!((answer.status, answer.header("range")), (202, Some(range)));
        assert!(answer.header("location").unwrap().starts_with("/v2/a/"), "relative, for proxies");
    }
    let raw = registry.push_image("a", "one");
    registry.put_manifest("a", "two", OCI_MANIFEST, &raw);
    // Types as careless clients write them.
    for media_type in [format!("{OCI_MANIFEST}; charset=utf-8"), OCI_MANIFEST.to_uppercase()] {
        let answer = registry.put_manifest("a", "odd", &media_type, &raw);
        assert_eq!(answer.status, 201, "{media_type}");
        assert_eq!(answer.header("docker-content-digest"), Some(Digest::sha256(&raw).to_string().as_str()));
        assert!(answer.header("location").unwrap().starts_with("/v2/a/manifests/sha256:"));
        assert_eq!(registry.head("/v2/a/manifests/odd").header("content-type"), Some(OCI_MANIFEST));
    }
    let page = registry.get("/v2/a/tags/list?n=1");
    assert!(page.header("link").unwrap().starts_with("</v2/a/tags/list?"), "{page:?}");
}

#[test]
fn indexes_of_indexes_in_both_algorithms() {
    let registry = Registry::start();
    for algorithm in ALGORITHMS {
        let layer = noise(500, 1);
        let config = br#"{"os":"linux","architecture":"amd64"}"#;
        let layer_digest = registry.push_with("a", &layer, algorithm);
        let config_digest = registry.push_with("a", config, algorithm);
        let image = manifest(&config_digest, config.len(), &layer_digest, layer.len(), "");
        let image_digest = Digest::of(algorithm, &image);
        let inner = index(&[(OCI_MANIFEST, &image_digest, image.len())]);
        let inner_digest = Digest::of(algorithm, &inner);
        let outer = index(&[(OCI_INDEX, &inner_digest, inner.len())]);
        let outer_digest = Digest::of(algorithm, &outer);
        for (raw, digest, media_type) in [
            (&image, &image_digest, OCI_MANIFEST),
            (&inner, &inner_digest, OCI_INDEX),
            (&outer, &outer_digest, OCI_INDEX),
        ] {
            let answer = registry.put_manifest("a", &digest.to_string(), media_type, raw);
            assert_eq!(answer.status, 201, "{answer:?}");
            assert_eq!(answer.header("docker-content-digest"), Some(digest.to_string().as_str()));
            let answer = registry.get(answer.header("location").unwrap());
            assert_eq!((&answer.body, answer.header("content-type")), (raw, Some(media_type)));
        }
    }
    let empty = index(&[]);
    assert_eq!(registry.put_manifest("a", "empty", OCI_INDEX, &empty).status, 201);
    assert_eq!(registry.get("/v2/a/manifests/empty").body, empty);
}

#[test]
fn many_tags_in_one_put() {
    let registry = Registry::start();
    for algorithm in ALGORITHMS {
        let raw = registry.image("a", "one");
        let digest = Digest::of(algorithm, &raw);
        let tags: Vec<String> = (0..12).map(|number| format!("{algorithm}-{number}")).collect();
        let query: Vec<String> = tags.iter().map(|tag| format!("tag={tag}")).collect();
        let answer = registry.put_manifest("a", &format!("{digest}?{}", query.join("&")), OCI_MANIFEST, &raw);
        assert_eq!(answer.status, 201);
        assert_eq!(answer.all("oci-tag").collect::<Vec<_>>(), tags);
        for tag in tags {
            let answer = registry.head(&format!("/v2/a/manifests/{tag}"));
            assert_eq!(answer.header("docker-content-digest"), Some(digest.to_string().as_str()));
        }
    }
    let raw = registry.image("a", "one");
    let digest = Digest::sha256(&raw);
    let query = "tag=x&".repeat(60);
    assert_eq!(registry.put_manifest("a", &format!("{digest}?{query}"), OCI_MANIFEST, &raw).status, 414);
    assert_eq!(registry.put_manifest("a", &format!("{digest}?tag=.no"), OCI_MANIFEST, &raw).status, 400);
}

#[test]
fn docker_images_are_welcome() {
    let registry = Registry::start();
    let manifest_type = "application/vnd.docker.distribution.manifest.v2+json";
    let list_type = "application/vnd.docker.distribution.manifest.list.v2+json";
    let config = br#"{"os":"linux","architecture":"amd64"}"#;
    let (config_digest, layer) = (registry.push("a", config), registry.push("a", b"layer"));
    let raw = format!(
        r#"{{"schemaVersion":2,"mediaType":"{manifest_type}","config":{{"mediaType":"application/vnd.docker.container.image.v1+json","digest":"{config_digest}","size":{}}},"layers":[{{"mediaType":"application/vnd.docker.image.rootfs.diff.tar.gzip","digest":"{layer}","size":5}}]}}"#,
        config.len()
    );
    assert_eq!(registry.put_manifest("a", "v2", manifest_type, raw.as_bytes()).status, 201);
    let digest = Digest::sha256(raw.as_bytes());
    let list = format!(
        r#"{{"schemaVersion":2,"mediaType":"{list_type}","manifests":[{{"mediaType":"{manifest_type}","digest":"{digest}","size":{},"platform":{{"os":"linux","architecture":"amd64"}}}}]}}"#,
        raw.len()
    );
    let with_parameter = format!("{list_type}; charset=utf-8");
    assert_eq!(registry.put_manifest("a", "list", &with_parameter, list.as_bytes()).status, 201);
    assert_eq!(registry.get("/v2/a/manifests/list").header("content-type"), Some(list_type));
    assert_eq!(registry.get("/v2/a/manifests/v2").header("content-type"), Some(manifest_type));
    let schema1 = br#"{"schemaVersion":1,"name":"a","tag":"v1","fsLayers":[]}"#;
    let answer = registry.put_manifest(
        "a",
        "v1",
        "application/vnd.docker.distribution.manifest.v1+prettyjws",
        schema1,
    );
    assert_eq!(answer.refusal(), (400, "MANIFEST_INVALID".to_owned()));
}

#[test]
fn content_must_be_there_first() {
    let registry = Registry::start();
    let (config, layer) = (Digest::sha256(b"config"), Digest::sha256(b"layer"));
    let raw = manifest(&config, 6, &layer, 5, "");
    let answer = registry.put_manifest("a", "v1", OCI_MANIFEST, &raw);
    assert_eq!(answer.refusal(), (400, "MANIFEST_BLOB_UNKNOWN".to_owned()));
    let missing = answer.json();
    assert_eq!(missing["errors"].as_array().unwrap().len(), 2);
    assert_eq!(missing["errors"][0]["detail"]["digest"], config.to_string());
    // Content of another repository does not count.
    registry.push("b", b"config");
    registry.push("b", b"layer");
    assert_eq!(registry.put_manifest("a", "v1", OCI_MANIFEST, &raw).status, 400);
    let child = Digest::sha256(b"child");
    let raw = index(&[(OCI_MANIFEST, &child, 5)]);
    assert_eq!(registry.put_manifest("a", "v1", OCI_INDEX, &raw).refusal().1, "MANIFEST_BLOB_UNKNOWN");
    assert_eq!(registry.head("/v2/a/manifests/v1").status, 404);
}

#[test]
fn sparse_images_and_indexes_where_they_are_allowed() {
    let registry = Registry::start_with(|options| options.allow_sparse_manifests = true);
    let config = registry.push("a", b"{}");
    let raw = manifest(&config, 2, &Digest::sha256(b"absent"), 6, "");
    assert_eq!(registry.put_manifest("a", "image", OCI_MANIFEST, &raw).status, 201);
    let raw = index(&[(OCI_MANIFEST, &Digest::sha256(b"absent"), 6)]);
    assert_eq!(registry.put_manifest("a", "index", OCI_INDEX, &raw).status, 201);
}

#[test]
fn fields_that_nobody_knows_and_embedded_content_are_kept() {
    let registry = Registry::start();
    let (config, layer) = (registry.push("a", b"{}"), registry.push("a", b"layer"));
    let raw = manifest(&config, 2, &layer, 5, r#","x-custom":{"b":1,"a":[null]}"#);
    let raw = String::from_utf8(raw).unwrap().replace(r#""size":2}"#, r#""size":2,"data":"e30=","x":"y"}"#);
    assert_eq!(registry.put_manifest("a", "v1", OCI_MANIFEST, raw.as_bytes()).status, 201);
    assert_eq!(registry.get("/v2/a/manifests/v1").body, raw.as_bytes());
}

#[test]
fn foreign_layers_need_not_be_there() {
    let registry = Registry::start();
    let config = registry.push("a", b"{}");
    let raw = String::from_utf8(manifest(&config, 2, &Digest::sha256(b"elsewhere"), 9, "")).unwrap();
    let foreign = "application/vnd.oci.image.layer.nondistributable.v1.tar";
    let raw = raw.replace("application/vnd.oci.image.layer.v1.tar", foreign);
    assert_eq!(registry.put_manifest("a", "v1", OCI_MANIFEST, raw.as_bytes()).status, 201);
}

#[test]
fn bad_manifests_are_refused() {
    let registry = Registry::start();
    let raw = registry.image("a", "one");
    let cases: [(&str, &str, &[u8], u16, &str); 7] = [
        ("v1", OCI_MANIFEST, b"", 400, "MANIFEST_INVALID"),
        ("v1", OCI_MANIFEST, b"not json", 400, "MANIFEST_INVALID"),
        ("v1", OCI_INDEX, &raw, 400, "MANIFEST_INVALID"),
        ("v1", "text/plain", &raw, 400, "MANIFEST_INVALID"),
        ("sha256:baddigeststring", OCI_MANIFEST, &raw, 400, "DIGEST_INVALID"),
        (&format!("sha256:{}", "0".repeat(64)), OCI_MANIFEST, &raw, 400, "DIGEST_INVALID"),
        (&format!("sha512:{}", "0".repeat(128)), OCI_MANIFEST, &raw, 400, "DIGEST_INVALID"),
    ];
    for (version, media_type, raw, status, code) in cases {
        let answer = registry.put_manifest("a", version, media_type, raw);
        assert_eq!(answer.refusal(), (status, code.to_owned()), "{version} {media_type}");
    }
    let nested = format!(r#"{{"schemaVersion":2,"x":{}{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
    assert_eq!(registry.put_manifest("a", "v1", OCI_MANIFEST, nested.as_bytes()).status, 400);
}

#[test]
fn four_mebibytes_are_accepted_and_more_are_not() {
    let registry = Registry::start();
    let (config, layer) = (registry.push("a", b"{}"), registry.push("a", b"layer"));
    let bare = manifest(&config, 2, &layer, 5, r#","annotations":{"a":""}"#).len();
    let sized = |size: usize| {
        let annotations = format!(r#","annotations":{{"a":"{}"}}"#, "x".repeat(size - bare));
        manifest(&config, 2, &layer, 5, &annotations)
    };
    let raw = sized(4 << 20);
    assert_eq!(registry.put_manifest("a", "large", OCI_MANIFEST, &raw).status, 201);
    assert!(registry.get("/v2/a/manifests/large").body == raw);
    let raw = sized((4 << 20) + 1);
    assert_eq!(registry.put_manifest("a", "larger", OCI_MANIFEST, &raw).refusal().0, 413);
    let parts: Vec<&[u8]> = raw.chunks(1 << 20).collect();
    assert_eq!(registry.send_chunked("PUT", "/v2/a/manifests/larger", &parts).refusal().0, 413);
    assert_eq!(registry.head("/v2/a/manifests/larger").status, 404);
}

#[test]
fn deleting_tags_and_manifests() {
    let registry = Registry::start();
    let raw = registry.push_image("a", "v1");
    let digest = Digest::sha256(&raw);
    registry.put_manifest("a", "v2", OCI_MANIFEST, &raw);
    registry.put_manifest("a", "v3", OCI_MANIFEST, &raw);
    assert_eq!(registry.delete("/v2/a/manifests/v1").status, 202);
    assert_eq!(registry.head("/v2/a/manifests/v1").status, 404);
    assert_eq!(registry.delete("/v2/a/manifests/v1").refusal(), (404, "MANIFEST_UNKNOWN".to_owned()));
    assert_eq!(registry.head(&format!("/v2/a/manifests/{digest}")).status, 200);
    // A digest takes its tags along.
    assert_eq!(registry.delete(&format!("/v2/a/manifests/{digest}")).status, 202);
    for version in ["v2".to_owned(), "v3".to_owned(), digest.to_string()] {
        assert_eq!(registry.get(&format!("/v2/a/manifests/{version}")).refusal().1, "MANIFEST_UNKNOWN");
    }
    assert_eq!(registry.delete(&format!("/v2/a/manifests/{digest}")).status, 404);
    assert_eq!(registry.get("/v2/a/tags/list").json()["tags"].as_array().unwrap().len(), 0);
}

/// A tag goes on leading to a whole image: its parts are deleted after it.
#[test]
fn what_a_tag_leads_to_keeps_its_parts() {
    let registry = Registry::start();
    let image = registry.image("a", "one");
    let digest = Digest::sha256(&image);
    registry.put_manifest("a", &digest.to_string(), OCI_MANIFEST, &image);
    let inner = index(&[(OCI_MANIFEST, &digest, image.len())]);
    let inner_digest = Digest::sha256(&inner);
    registry.put_manifest("a", &inner_digest.to_string(), OCI_INDEX, &inner);
    let outer = index(&[(OCI_INDEX, &inner_digest, inner.len())]);
    let outer_digest = Digest::sha256(&outer);
    registry.put_manifest("a", "v1", OCI_INDEX, &outer);
    let (layer, config) = (Digest::sha256(b"one"), {
        let manifest: serde_json::Value = serde_json::from_slice(&image).unwrap();
        manifest["config"]["digest"].as_str().unwrap().to_owned()
    });
    let parts = [
        format!("/v2/a/manifests/{inner_digest}"),
        format!("/v2/a/manifests/{digest}"),
        format!("/v2/a/blobs/{layer}"),
        format!("/v2/a/blobs/{config}"),
    ];
    for part in &parts {
        let answer = registry.delete(part);
        assert_eq!(answer.refusal(), (409, "DENIED".to_owned()), "{part}");
        let message = answer.json()["errors"][0]["message"].as_str().unwrap().to_owned();
        assert!(message.contains("a part of a:v1"), "{message}");
    }
    // The same blob in another repository is no part of it.
    registry.push("b", b"one");
    assert_eq!(registry.delete(&format!("/v2/b/blobs/{layer}")).status, 202);
    assert_eq!(registry.delete(&format!("/v2/a/manifests/{outer_digest}")).status, 202, "with its tag");
    for part in &parts {
        assert_eq!(registry.delete(part).status, 202, "{part}");
    }
}

#[test]
fn an_index_may_list_blobs() {
    let registry = Registry::start();
    let (layer, other) = (registry.push("a", b"layer"), registry.push("a", b"{}"));
    let list_type = "application/vnd.docker.distribution.manifest.list.v2+json";
    let entries = [
        ("application/vnd.oci.image.layer.v1.tar+gzip", &layer, 5),
        ("application/vnd.buildkit.cacheconfig.v0", &other, 2),
    ];
    let cache = index(&entries);
    assert_eq!(registry.put_manifest("a", "cache", OCI_INDEX, &cache).status, 201);
    assert_eq!(registry.get("/v2/a/manifests/cache").body, cache);
    let list = String::from_utf8(cache).unwrap().replace(OCI_INDEX, list_type);
    assert_eq!(registry.put_manifest("a", "list", list_type, list.as_bytes()).status, 201);
    // A manifest's type says nothing about what is here.
    let typed = index(&[(OCI_MANIFEST, &layer, 5)]);
    assert_eq!(registry.put_manifest("a", "typed", OCI_INDEX, &typed).status, 201);
    let absent = Digest::sha256(b"absent");
    let lacking = index(&[entries[0], ("application/x", &absent, 6)]);
    let answer = registry.put_manifest("a", "lacking", OCI_INDEX, &lacking);
    assert_eq!(answer.refusal(), (400, "MANIFEST_BLOB_UNKNOWN".to_owned()));
    let message = answer.json()["errors"][0]["message"].as_str().unwrap().to_owned();
    assert!(message.contains(&absent.to_string()), "{message}");
    assert_eq!(
        registry.put_manifest("b", "cache", OCI_INDEX, &index(&entries)).status,
        400,
        "another repository"
    );
    // What an index lists stays as long as it does.
    registry.store().prune(&PruneOptions { all: false, ..PruneOptions::default() }).unwrap();
    assert_eq!(registry.head(&format!("/v2/a/blobs/{layer}")).status, 200);
    assert_eq!(registry.delete(&format!("/v2/a/blobs/{layer}")).status, 409);
}

#[test]
fn compare_and_swap_on_tags() {
    let registry = Registry::start();
    let (one, two) = (registry.image("a", "one"), registry.image("a", "two"));
    let tag_of = |raw: &[u8]| format!("\"{}\"", Digest::sha256(raw));
    let (one_tag, two_tag) = (tag_of(&one), tag_of(&two));
    let both = format!("{two_tag}, {one_tag}");
    let put = |raw: &[u8], name: &str, value: &str| {
        registry.send("PUT", "/v2/a/manifests/v1", &[("Content-Type", OCI_MANIFEST), (name, value)], raw)
    };
    let failed = (412, "PRECONDITION_FAILED".to_owned());
    assert_eq!(put(&one, "If-Match", "*").refusal(), failed, "not there yet");
    assert_eq!(put(&one, "If-Match", &one_tag).refusal(), failed, "not there yet");
    assert_eq!(put(&one, "If-None-Match", "*").status, 201);
    assert_eq!(put(&two, "If-None-Match", "*").refusal(), failed, "there already");
    assert_eq!(put(&two, "If-Match", &two_tag).refusal(), failed, "something else");
    assert_eq!(put(&two, "If-None-Match", &one_tag).refusal(), failed, "just that");
    assert_eq!(registry.get("/v2/a/manifests/v1").body, one);
    assert_eq!(put(&two, "If-Match", &one_tag).status, 201);
    assert_eq!(put(&one, "If-Match", &both).status, 201);
    assert_eq!(put(&two, "If-Match", "*").status, 201);
    assert_eq!(put(&one, "If-None-Match", &one_tag).status, 201);
    let refused = registry.send("DELETE", "/v2/a/manifests/v1", &[("If-Match", &two_tag)], b"");
    assert_eq!(refused.refusal(), failed);
    assert_eq!(registry.send("DELETE", "/v2/a/manifests/v1", &[("If-Match", &one_tag)], b"").status, 202);
}

#[test]
fn of_many_who_create_a_tag_one_succeeds() {
    let registry = Registry::start();
    let images: Vec<Vec<u8>> = (0..6).map(|number| registry.image("a", &number.to_string())).collect();
    let start = Barrier::new(images.len());
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let tasks: Vec<_> = images
            .iter()
            .map(|raw| {
                let (registry, start) = (&registry, &start);
                scope.spawn(move || {
                    start.wait();
                    let headers = [("Content-Type", OCI_MANIFEST), ("If-None-Match", "*")];
                    registry.send("PUT", "/v2/a/manifests/v1", &headers, raw).status
                })
            })
            .collect();
        tasks.into_iter().map(|task| task.join().unwrap()).collect()
    });
    assert_eq!(statuses.iter().filter(|status| **status == 201).count(), 1, "{statuses:?}");
    assert_eq!(statuses.iter().filter(|status| **status == 412).count(), 5, "{statuses:?}");
}

#[test]
fn what_was_built_here_is_served_without_a_push() {
    let registry = Registry::start();
    let store = registry.store();
    let config = store.put_bytes(b"{}").unwrap();
    let layer = store.put_bytes(b"layer").unwrap();
    let raw = manifest(&config.digest, 2, &layer.digest, 5, "");
    let repository = store.repository(&"app".parse().unwrap());
    let options = rimg_formats::store::PutOptions::local();
    repository.put_manifest(&raw, None, &["latest".parse().unwrap()], &options).unwrap();
    assert_eq!(registry.get("/v2/app/manifests/latest").body, raw);
    assert_eq!(registry.get(&format!("/v2/app/blobs/{}", layer.digest)).body, b"layer");
}

#[test]
fn an_unknown_manifest() {
    let registry = Registry::start();
    for version in ["missing".to_owned(), Digest::of(Algorithm::Sha512, b"x").to_string()] {
        let target = format!("/v2/a/manifests/{version}");
        assert_eq!(registry.get(&target).refusal(), (404, "MANIFEST_UNKNOWN".to_owned()));
        assert_eq!(registry.head(&target).status, 404);
    }
}
