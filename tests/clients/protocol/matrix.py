"""Every sample through every endpoint: pushed, told of, listed, pulled, referred to, and deleted piece by piece.

All of it in one repository, one sample after another, so that what one leaves behind is in the way of the next.
"""

import urllib.parse

from samples import made
from uploads import WAYS, is_deleted, is_served, is_stored, post_then_put
from wire import INDEX, MANIFEST, NotOffered, add, check, equal, error, expect, with_query

REPOSITORY = "matrix/all"
ACCEPT = f"{INDEX}, {MANIFEST}, application/vnd.docker.distribution.manifest.v2+json, application/vnd.docker.distribution.manifest.list.v2+json"


def register():
    turn = 0
    for s in made():
        for number, (name, content) in enumerate(s.blobs.items(), 1):
            # The ways take turns; those that need a place are not for empty blobs, and the last is later than 1.1.
            ways = [way for _, way, with_places in WAYS[:-1] if content or not with_places]
            register_blob(s, f"blob {number} of {len(s.blobs)}", name, content, ways[turn % len(ways)])
            turn += 1
        for number, name in enumerate(s.manifests, 1):
            register_push(s, f"manifest {number} of {len(s.manifests)}", name)
        if s.refused:
            register_deletion(s)
            continue
        for tag, name in s.tags.items():
            register_tag(s, tag, name)
        register_listing(s)
        for number, name in enumerate(s.manifests, 1):
            register_pull(s, f"manifest {number} of {len(s.manifests)}", name)
        for subject, entries in s.referrers.items():
            register_referrers(s, subject, entries)
        register_deletion(s)


def register_blob(s, what, name, content, way):
    def push(registry):
        try:
            is_stored(registry, REPOSITORY, content, name, way(registry, REPOSITORY, content, name))
        except (AssertionError, NotOffered):
            # One way that fails is one failure; what comes after has its blob nevertheless.
            expect(post_then_put(registry, REPOSITORY, content, name), 201)
            raise

    add(s.name, f"{s.name}: {what} pushed ({way.__name__.replace('_', ' ')})", push)
    add(s.name, f"{s.name}: {what} pulled", lambda registry: is_served(registry, REPOSITORY, content, name))


def add_for(s, name, function):
    """A check that there is nothing of once a registry has declined the sample."""

    def unless_declined(registry):
        registry.offered(not s.declined, s.needs)
        function(registry)

    add(s.name, name, unless_declined)


def register_push(s, what, name):
    kind, raw = s.manifests[name]
    subject = next((subject for subject, entries in s.referrers.items() if any(entry["digest"] == name for entry in entries)), None)
    tags = [tag for tag, tagged in s.tags.items() if tagged == name] if s.in_query else []

    def refused(registry):
        error(registry.put(REPOSITORY, name, raw, kind), 400, "DIGEST_INVALID", "MANIFEST_INVALID")
        for method in ("HEAD", "GET"):
            expect(registry(method, f"/v2/{REPOSITORY}/manifests/{name}"), 404)

    def push(registry):
        query = urllib.parse.urlencode([("tag", tag) for tag in tags])
        answer = registry.put(REPOSITORY, f"{name}?{query}" if tags else name, raw, kind)
        taken = answer.status == 201 and (not tags or "oci-tag" in answer.headers)
        if s.needs and not taken:
            s.declined = not registry.ours
            registry.offered(False, s.needs)
        manifest_is_stored(registry, answer, name, kind, raw, subject)
        equal(sorted(value for header, value in answer.all_headers if header == "oci-tag"), sorted(tags))

    add_for(s, f"{s.name}: {what} {'refused' if s.refused else 'pushed by digest'}", refused if s.refused else push)


def manifest_is_stored(registry, answer, name, kind, raw, subject=None):
    """A 201 whose `Location` gives the manifest, byte for byte."""
    expect(answer, 201)
    registry.named(answer, name, raw)
    if subject and (registry.ours or "oci-subject" in answer.headers):
        equal(answer.headers.get("oci-subject"), subject)
    found = expect(registry("GET", answer.headers["location"], Accept=ACCEPT), 200)
    equal((found.headers["content-type"], found.headers["content-length"]), (kind, str(len(raw))))
    equal(found.body, raw)


def manifest_is_served(registry, method, reference, name, kind, raw):
    answer = expect(registry(method, f"/v2/{REPOSITORY}/manifests/{reference}", Accept=ACCEPT), 200)
    equal((answer.headers["content-type"], answer.headers["content-length"]), (kind, str(len(raw))))
    registry.named(answer, name, raw)
    equal(answer.body, raw if method == "GET" else b"")


def register_tag(s, tag, name):
    kind, raw = s.manifests[name]
    subject = next((subject for subject, entries in s.referrers.items() if any(entry["digest"] == name for entry in entries)), None)

    def push(registry):
        manifest_is_stored(registry, registry.put(REPOSITORY, tag, raw, kind), name, kind, raw, subject)

    shown = tag if len(tag) < 30 else f"of {len(tag)} letters"
    if not s.in_query:
        add_for(s, f"{s.name}: tag {shown} pushed", push)
    for method in ("HEAD", "GET"):
        add_for(s, f"{s.name}: tag {shown}, {method}",
            lambda registry, method=method: manifest_is_served(registry, method, tag, name, kind, raw))


def register_pull(s, what, name):
    kind, raw = s.manifests[name]
    for method in ("HEAD", "GET"):
        add_for(s, f"{s.name}: {what} by digest, {method}",
            lambda registry, method=method: manifest_is_served(registry, method, name, name, kind, raw))


def register_listing(s):
    def listed(registry):
        equal(sorted(registry.tags(REPOSITORY)[0]), sorted(s.tags))

    def listed_in_parts(registry):
        tags = registry.tags(REPOSITORY)[0]
        for number, tag in enumerate(tags):
            equal(registry.tags(REPOSITORY, f"?last={tag}")[0], tags[number + 1:])

    # Deletion is optional: without it the repository holds what came before, too.
    if s.tags:
        add_for(s, f"{s.name}: tags listed", listed)
        add_for(s, f"{s.name}: tags listed after each", listed_in_parts)


def register_referrers(s, subject, entries):
    def as_listed(found):
        return sorted(({field: entry.get(field) for field in ("mediaType", "digest", "size", "artifactType", "annotations")} for entry in found),
                      key=lambda entry: entry["digest"])

    def all_of_them(registry):
        equal(as_listed(registry.referrers(REPOSITORY, subject)[0]), as_listed(entries))

    def of_kind(registry, kind):
        found, answer = registry.referrers(REPOSITORY, subject, with_query("", artifactType=kind))
        applied = answer.headers.get("oci-filters-applied") == "artifactType"
        registry.offered(applied, "filtering referrers")
        equal(as_listed(found), as_listed([entry for entry in entries if entry["artifactType"] == kind]))

    what = f"{s.name}: referrers of {subject[:15]}"
    add_for(s, f"{what} listed", all_of_them)
    for kind in sorted({entry["artifactType"] for entry in entries} - {None}) + ["application/vnd.example.never"]:
        add_for(s, f"{what} of type {kind}", lambda registry, kind=kind: of_kind(registry, kind))


def register_deletion(s):
    def delete(registry, reference):
        answer = registry("DELETE", f"/v2/{REPOSITORY}/manifests/{reference}")
        registry.offered(answer.status not in (400, 405), "deleting tags" if ":" not in reference else "deleting manifests")
        expect(answer, 202)
        for method in ("HEAD", "GET"):
            expect(registry(method, f"/v2/{REPOSITORY}/manifests/{reference}"), 404)

    def delete_tag(registry, tag):
        delete(registry, tag)
        expect(registry("HEAD", f"/v2/{REPOSITORY}/manifests/{s.tags[tag]}", Accept=ACCEPT), 200)

    def nothing_left(registry):
        answer = registry("GET", f"/v2/{REPOSITORY}/tags/list")
        if answer.status != 404:
            equal(expect(answer, 200).json()["tags"] or [], [])
        for subject in s.referrers:
            equal(registry.referrers(REPOSITORY, subject)[0], [])

    if not s.refused:
        for tag in s.tags:
            shown = tag if len(tag) < 30 else f"of {len(tag)} letters"
            add_for(s, f"{s.name}: tag {shown} deleted", lambda registry, tag=tag: delete_tag(registry, tag))
        for number, name in reversed(list(enumerate(s.manifests, 1))):
            add_for(s, f"{s.name}: manifest {number} of {len(s.manifests)} deleted", lambda registry, name=name: delete(registry, name))
        add_for(s, f"{s.name}: no tag and no referrer left", nothing_left)
    for number, name in enumerate(s.blobs, 1):
        add(s.name, f"{s.name}: blob {number} of {len(s.blobs)} deleted", lambda registry, name=name: is_deleted(registry, REPOSITORY, name))


@check()
def before_anything(registry):
    """matrix: a repository that nobody has pushed to lists nothing"""
    answer = expect(registry("GET", f"/v2/{REPOSITORY}/tags/list"), 200, 404)
    assert answer.status == 404 or not answer.json()["tags"]
    equal(registry.referrers(REPOSITORY, "sha256:" + "0" * 64)[0], [])


register()
