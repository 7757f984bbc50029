//! End-12: what refers to a manifest.

use rimg_formats::digest::Digest;
use serde_json::Value;

use crate::harness::{OCI_INDEX, OCI_MANIFEST, Registry};

fn artifact(registry: &Registry, subject: &Digest, artifact_type: Option<&str>, tag: &str) -> Digest {
    let config = registry.push("a", b"{}");
    let artifact_type =
        artifact_type.map(|named| format!(r#""artifactType":"{named}","#)).unwrap_or_default();
    let raw = format!(
        r#"{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}",{artifact_type}"config":{{"mediaType":"application/vnd.oci.empty.v1+json","digest":"{config}","size":2}},"layers":[],"subject":{{"mediaType":"{OCI_MANIFEST}","digest":"{subject}","size":7}},"annotations":{{"tag":"{tag}"}}}}"#
    );
    let answer = registry.put_manifest("a", tag, OCI_MANIFEST, raw.as_bytes());
    assert_eq!(answer.status, 201, "{answer:?}");
    assert_eq!(answer.header("oci-subject"), Some(subject.to_string().as_str()));
    Digest::sha256(raw.as_bytes())
}

fn listed(registry: &Registry, target: &str) -> Vec<Value> {
    let answer = registry.get(target);
    assert_eq!((answer.status, answer.header("content-type")), (200, Some(OCI_INDEX)));
    let index = answer.json();
    assert_eq!((&index["schemaVersion"], &index["mediaType"]), (&Value::from(2), &Value::from(OCI_INDEX)));
    index["manifests"].as_array().unwrap().clone()
}

#[test]
fn of_a_subject_that_is_there_or_not() {
    let registry = Registry::start();
    let present = Digest::sha256(&registry.push_image("a", "v1"));
    for subject in [present, Digest::sha256(b"absent")] {
        let target = format!("/v2/a/referrers/{subject}");
        assert!(listed(&registry, &target).is_empty());
        let signature = artifact(&registry, &subject, Some("application/vnd.x+json"), &subject.hex()[..8]);
        let plain = artifact(&registry, &subject, None, &subject.hex()[..9]);
        let mut expected = [signature, plain];
        expected.sort();
        let all = listed(&registry, &target);
        let digests: Vec<&str> = all.iter().map(|entry| entry["digest"].as_str().unwrap()).collect();
        assert_eq!(digests, expected.iter().map(Digest::to_string).collect::<Vec<_>>());
        for encoded in ["application/vnd.x%2Bjson", "application/vnd.x+json"] {
            let target = format!("{target}?artifactType={encoded}");
            assert_eq!(registry.get(&target).header("oci-filters-applied"), Some("artifactType"));
            let found = listed(&registry, &target);
            assert_eq!(found.len(), 1);
            assert_eq!(found[0]["digest"], signature.to_string());
            assert_eq!(found[0]["artifactType"], "application/vnd.x+json");
            assert_eq!(found[0]["mediaType"], OCI_MANIFEST);
            assert_eq!(found[0]["annotations"]["tag"], subject.hex()[..8]);
            assert!(found[0]["size"].as_u64().unwrap() > 0);
        }
        // Without an artifact type of its own, a manifest counts as what its configuration is.
        let found = listed(&registry, &format!("{target}?artifactType=application/vnd.oci.empty.v1%2Bjson"));
        assert_eq!(found[0]["digest"], plain.to_string());
        assert_eq!(registry.delete(&format!("/v2/a/manifests/{signature}")).status, 202);
        assert_eq!(listed(&registry, &target).len(), 1);
    }
}

#[test]
fn of_nothing() {
    let registry = Registry::start();
    let subject = Digest::sha256(b"x");
    assert!(listed(&registry, &format!("/v2/never/seen/referrers/{subject}")).is_empty());
    assert_eq!(registry.get("/v2/a/referrers/sha256:bad").refusal(), (400, "DIGEST_INVALID".to_owned()));
    assert_eq!(registry.get("/v2/a/referrers/latest").status, 400);
}
