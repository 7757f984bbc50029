//! End-8 and `_catalog`: pages of sorted names.

use rimg_formats::reference::Tag;
use rimg_formats::store::PutOptions;
use rimg_registry::server::{Action, Decision};

use crate::harness::{Answer, Registry, manifest};

fn names(answer: &Answer, field: &str) -> Vec<String> {
    let names = answer.json()[field].as_array().unwrap().clone();
    names.iter().map(|name| name.as_str().unwrap().to_owned()).collect()
}

/// The target that `Link` names.
fn next(answer: &Answer) -> Option<String> {
    let link = answer.header("link")?;
    let target = link.strip_prefix('<').unwrap().strip_suffix(">; rel=\"next\"").unwrap();
    Some(target.to_owned())
}

#[test]
fn pages_of_tags() {
    let registry = Registry::start();
    let raw = registry.push_image("a", "b");
    for tag in ["d", "A", "_c", "c.1", "e"] {
        registry.put_manifest("a", tag, crate::harness::OCI_MANIFEST, &raw);
    }
    let sorted = ["A", "_c", "b", "c.1", "d", "e"];
    let all = registry.get("/v2/a/tags/list");
    assert_eq!((names(&all, "tags"), next(&all)), (sorted.map(str::to_owned).to_vec(), None));
    assert_eq!(all.json()["name"], "a");
    assert_eq!(names(&registry.get("/v2/a/tags/list?last=b"), "tags"), ["c.1", "d", "e"]);
    assert_eq!(names(&registry.get("/v2/a/tags/list?last=bb"), "tags"), ["c.1", "d", "e"]);
    let none = registry.get("/v2/a/tags/list?n=0");
    assert_eq!((names(&none, "tags").len(), next(&none)), (0, None));
    let mut target = Some("/v2/a/tags/list?n=4".to_owned());
    let mut seen = Vec::new();
    while let Some(page) = target {
        let answer = registry.get(&page);
        seen.push(names(&answer, "tags"));
        target = next(&answer);
    }
    assert_eq!(seen, [sorted[..4].to_vec(), sorted[4..].to_vec()]);
    let exact = registry.get("/v2/a/tags/list?n=6");
    assert_eq!((names(&exact, "tags").len(), next(&exact)), (6, None));
    assert_eq!(registry.get("/v2/a/tags/list?n=x").status, 400);
    assert_eq!(registry.get("/v2/a/tags/list?n=-1").status, 400);
    assert_eq!(registry.get("/v2/a/tags/list?n=99999999999999999999").status, 200);
    assert_eq!(registry.get("/v2/none/tags/list").refusal(), (404, "NAME_UNKNOWN".to_owned()));
}

#[test]
fn every_tag_of_many_is_on_one_page() {
    let registry = Registry::start();
    let store = registry.store();
    let (config, layer) = (store.put_bytes(b"{}").unwrap(), store.put_bytes(b"layer").unwrap());
    let raw = manifest(&config.digest, 2, &layer.digest, 5, "");
    let tags: Vec<_> = (0..12_000).map(|number| format!("tag-{number:06}").parse().unwrap()).collect();
    let repository = store.repository(&"many".parse().unwrap());
    repository.put_manifest(&raw, None, &tags, &PutOptions::local()).unwrap();
    for (first, sizes) in [
        // Without `n`, and with one beyond reason, a page has its bound.
        ("/v2/many/tags/list", vec![10_000, 2_000]),
        ("/v2/many/tags/list?n=1000000", vec![10_000, 2_000]),
        ("/v2/many/tags/list?n=7000", vec![7_000, 5_000]),
    ] {
        let (mut target, mut seen, mut pages) = (Some(first.to_owned()), Vec::new(), Vec::new());
        while let Some(page) = target {
            let answer = registry.get(&page);
            pages.push(names(&answer, "tags").len());
            seen.extend(names(&answer, "tags"));
            target = next(&answer);
        }
        assert_eq!(pages, sizes, "{first}");
        assert!(seen.iter().map(String::as_str).eq(tags.iter().map(|tag: &Tag| tag.as_str())));
    }
}

#[test]
fn the_catalog() {
    let registry = Registry::start();
    for name in ["b/c", "a", "d"] {
        registry.push_image(name, "v1");
    }
    // Nothing to show for a name without manifests, nor for images of other registries.
    registry.push("blobs-only", b"content");
    let store = registry.store();
    let raw = registry.get("/v2/a/manifests/v1").body;
    let elsewhere = store.repository(&"localhost:5000/x".parse().unwrap());
    elsewhere.put_manifest(&raw, None, &[], &PutOptions::local()).unwrap();
    assert_eq!(names(&registry.get("/v2/_catalog"), "repositories"), ["a", "b/c", "d"]);
    let first = registry.get("/v2/_catalog?n=2");
    assert_eq!(names(&first, "repositories"), ["a", "b/c"]);
    assert_eq!(next(&first).as_deref(), Some("/v2/_catalog?n=2&last=b%2Fc"));
    let second = registry.get(&next(&first).unwrap());
    assert_eq!((names(&second, "repositories"), second.status), (vec!["d".to_owned()], 200));
}

#[test]
fn the_catalog_tells_no_names_that_its_reader_may_not_pull() {
    let registry = Registry::start_with(|options| {
        options.authorize = std::sync::Arc::new(|request| match (request.action, request.repository) {
            (Action::Pull, Some(name)) if name.as_str() == "private" => {
                Decision::Deny { message: "not yours".to_owned() }
            }
            _ => Decision::Allow,
        });
    });
    registry.push_image("private", "v1");
    registry.push_image("public", "v1");
    assert_eq!(names(&registry.get("/v2/_catalog"), "repositories"), ["public"]);
    assert_eq!(registry.get("/v2/private/tags/list").refusal(), (403, "DENIED".to_owned()));
}
