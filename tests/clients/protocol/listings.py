"""Lists: tags, repositories, referrers; whole and page by page."""

import json

from manifests import tagged
from samples import KIND_ONE, KIND_TWO
from wire import ALGORITHMS, EMPTY, INDEX, MANIFEST, check, digest, equal, error, expect, pages, with_query

NAMES = [f"v{number:02}" for number in range(25)]


def with_tags(registry):
    """A repository with NAMES, pushed in another order."""
    raw = json.dumps(registry.image("lists/tags", "tagged")).encode()
    if registry("HEAD", f"/v2/lists/tags/manifests/{NAMES[0]}", Accept=MANIFEST).status == 404:
        for tag in reversed(NAMES):
            expect(registry.put("lists/tags", tag, raw), 201)


# --- tags


@check()
def tags(registry):
    """tags: all of them, sorted"""
    with_tags(registry)
    answer = expect(registry("GET", "/v2/lists/tags/tags/list"), 200)
    equal(answer.json(), {"name": "lists/tags", "tags": NAMES})
    assert answer.headers["content-type"].startswith("application/json")
    assert "link" not in answer.headers


@check(*[(str(number), number) for number in (1, 2, 7, 10, 24, 25, 26, 1000)])
def pages_of_tags(registry, number):
    """tags: page by page"""
    with_tags(registry)
    found = [expect(answer, 200).json()["tags"] for answer in pages(registry, f"/v2/lists/tags/tags/list?n={number}")]
    equal(found, [NAMES[start:start + number] for start in range(0, 25, number)])


@check(("the first", "v00", 1), ("one in the middle", "v09", 10), ("between two", "v099", 10), ("before all", "0", 0), ("the last", "v24", 25),
       ("behind all", "zzz", 25))
def after(registry, last, start):
    """tags: those after one, with and without a number"""
    with_tags(registry)
    equal(registry.tags("lists/tags", f"?last={last}")[0], NAMES[start:])
    found, link = registry.tags("lists/tags", f"?n=3&last={last}")
    registry.offered(len(found) <= 3, "pages of tags")
    equal(found, NAMES[start:start + 3])
    equal(link is None, start + 3 >= 25)


@check()
def page_of_nothing(registry):
    """tags: n=0 is an empty list without a next page"""
    with_tags(registry)
    found, link = registry.tags("lists/tags", "?n=0")
    registry.offered(len(found) < 25, "pages of tags")
    equal((found, link), ([], None))


@check("-1", "many", "1.5", "", "0x10", "%2B5")
def page_of_nonsense(registry, number):
    """tags: a number that is none is refused"""
    with_tags(registry)
    answer = registry("GET", f"/v2/lists/tags/tags/list?n={number}")
    registry.offered(answer.status != 200, "refusing such a number")
    expect(answer, 400)


@check()
def both_cases(registry):
    """tags: letters of both cases, each once, on pages of any size"""
    names = ["B", "a", "b", "A", "_", "a.b", "a-b", "Z", "1"]
    tagged(registry, "lists/cases", *names)
    whole = registry.tags("lists/cases")[0]
    equal(sorted(whole), sorted(names))
    # Version 1.1 says "lexical order" and explains it as disregarding case; every registry goes by bytes.
    assert whole in (sorted(names), sorted(names, key=str.lower)), whole
    for number in range(1, 5):
        found = [expect(answer, 200).json()["tags"] for answer in pages(registry, f"/v2/lists/cases/tags/list?n={number}")]
        equal(sum(found, []), whole)


@check()
def no_tags(registry):
    """tags: none where there is a manifest without one, 404 where there is nothing"""
    raw = json.dumps(registry.image("lists/untagged", "untagged")).encode()
    expect(registry.put("lists/untagged", digest(raw), raw), 201)
    answer = expect(registry("GET", "/v2/lists/untagged/tags/list"), *registry.either(200, 404))
    assert answer.status == 404 or answer.json()["tags"] in ([], None)
    error(registry("GET", "/v2/lists/never/tags/list"), 404, "NAME_UNKNOWN")


# --- repositories


@check()
def catalog(registry):
    """repositories: listed page by page"""
    for name in ("lists/a", "lists/b"):
        tagged(registry, name, "1")
    seen = []
    for answer in pages(registry, "/v2/_catalog?n=5"):
        registry.offered(answer.status != 404, "a list of repositories")
        seen += expect(answer, 200).json()["repositories"]
    assert {"lists/a", "lists/b"} <= set(seen) and len(seen) == len(set(seen)), seen
    assert not registry.ours or seen == sorted(seen), seen
    expect(registry("GET", "/v2/_catalog?n=1000000000"), 200, 400)


# --- referrers


def refer(registry, repository, subject, kind, extra=None):
    """Pushes an artifact about the subject and gives its digest."""
    empty = registry.push_blob(repository, b"{}", kind=EMPTY)
    document = {"schemaVersion": 2, "mediaType": MANIFEST, "artifactType": kind, "config": empty, "layers": [empty], "subject": subject,
                "annotations": extra or {}}
    raw = json.dumps(document).encode()
    answer = expect(registry.put(repository, digest(raw), raw), 201)
    registry.offered(answer.headers.get("oci-subject"), "the referrers API")
    equal(answer.headers["oci-subject"], subject["digest"])
    return digest(raw)


def descriptor(raw, algorithm="sha256"):
    return {"mediaType": MANIFEST, "digest": digest(raw, algorithm), "size": len(raw)}


@check(*ALGORITHMS)
def no_referrers(registry, algorithm):
    """referrers: none of a subject or in a repository that does not exist"""
    tagged(registry, "lists/refer", "a")
    for repository in ("lists/refer", "lists/never"):
        for query in ("", "?artifactType=a/b"):
            equal(registry.referrers(repository, digest(b"no such subject", algorithm), query)[0], [])


@check("nonsense", "sha256:abc", "sha256:" + "Z" * 64, "latest", "sha999:" + "0" * 64)
def malformed_subject(registry, text):
    """referrers: of what is no digest are refused"""
    answer = registry("GET", f"/v2/lists/refer/referrers/{text}")
    registry.offered(answer.status != 404, "the referrers API")
    error(answer, 400, "DIGEST_INVALID")


@check(*ALGORITHMS)
def referrers_come_and_go(registry, algorithm):
    """referrers: listed once however often pushed, also under a tag; gone when deleted, not with their subject"""
    repository = f"lists/refer-{algorithm}"
    subject = json.dumps(registry.image(repository, "subject")).encode()
    about = descriptor(subject, algorithm)
    one = refer(registry, repository, about, KIND_ONE)
    expect(registry.put(repository, about["digest"], subject), 201)
    two = refer(registry, repository, about, KIND_TWO)
    raw = registry("GET", f"/v2/{repository}/manifests/{one}", Accept=MANIFEST).body
    for reference in ("tagged", "tagged-again", one):
        expect(registry.put(repository, reference, raw), 201)

    def listed(query=""):
        return sorted(entry["digest"] for entry in registry.referrers(repository, about["digest"], query)[0])

    equal(listed(), sorted([one, two]))
    equal(listed(with_query("", artifactType=KIND_TWO)), [two])
    expect(registry("DELETE", f"/v2/{repository}/manifests/tagged"), 202)
    equal(listed(), sorted([one, two]))
    expect(registry("DELETE", f"/v2/{repository}/manifests/{one}"), 202)
    equal(listed(), [two])
    expect(registry("DELETE", f"/v2/{repository}/manifests/{about['digest']}"), 202)
    equal(listed(), [two])
    expect(registry("DELETE", f"/v2/{repository}/manifests/{two}"), 202)
    equal(listed(), [])


@check()
def referrers_stay_at_home(registry):
    """referrers: of the same subject in another repository are not listed"""
    about = descriptor(b"a subject of two repositories")
    refer(registry, "lists/refer", about, KIND_ONE)
    registry.image("lists/refer-other", "the repository exists")
    equal(registry.referrers("lists/refer-other", about["digest"])[0], [])


@check(("escaped", "artifactType=application%2Fvnd.example.first.v1%2Bjson"), ("bare", "artifactType=application/vnd.example.first.v1+json"))
def filter_with_plus(registry, query):
    """referrers: filtered by a type with a plus"""
    about = descriptor(b"a subject of types")
    plain = refer(registry, "lists/refer", about, "application/vnd.example.first.v1")
    plus = refer(registry, "lists/refer", about, "application/vnd.example.first.v1+json")
    found, answer = registry.referrers("lists/refer", about["digest"], f"?{query}")
    registry.offered(answer.headers.get("oci-filters-applied"), "filtering referrers")
    equal([entry["digest"] for entry in found], [plus])
    found, answer = registry.referrers("lists/refer", about["digest"])
    equal(sorted(entry["digest"] for entry in found), sorted([plain, plus]))
    equal(answer.headers.get("oci-filters-applied"), None)


@check()
def referrers_of_both_schemes(registry):
    """referrers: one that an older client has also put under the fallback tag is listed once"""
    about = descriptor(b"a subject known the old way")
    name = refer(registry, "lists/refer-tag", about, KIND_ONE)
    raw = registry("GET", f"/v2/lists/refer-tag/manifests/{name}", Accept=MANIFEST).body
    listing = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [dict(descriptor(raw), artifactType=KIND_ONE)]}
    tag = about["digest"].replace(":", "-")
    expect(registry.put("lists/refer-tag", tag, listing, INDEX), 201)
    equal([entry["digest"] for entry in registry.referrers("lists/refer-tag", about["digest"])[0]], [name])
    equal(expect(registry("GET", f"/v2/lists/refer-tag/manifests/{tag}", Accept=INDEX), 200).json(), listing)


@check(("all", ""), ("filtered", KIND_ONE))
def pages_of_referrers(registry, kind):
    """referrers: more than fit into one index come page by page"""
    about = descriptor(b"a subject with much to say about it " + kind.encode())
    repository = f"lists/refer-pages-{'filtered' if kind else 'all'}"
    # Nine of 900 kB are more than the 4 MiB that a client has to accept.
    names = [refer(registry, repository, about, KIND_ONE, {"number": str(number), "fill": "x" * 900_000}) for number in range(9)]
    if kind:
        refer(registry, repository, about, KIND_TWO)
    seen, count = [], 0
    for answer in pages(registry, f"/v2/{repository}/referrers/{about['digest']}" + (f"?artifactType={kind}" if kind else "")):
        expect(answer, 200)
        equal((answer.headers["content-type"], answer.json()["schemaVersion"]), (INDEX, 2))
        assert len(answer.body) <= 4 << 20 and answer.json()["manifests"]
        equal(answer.headers.get("oci-filters-applied"), "artifactType" if kind else None)
        seen, count = seen + [entry["digest"] for entry in answer.json()["manifests"]], count + 1
    equal(sorted(seen), sorted(names))
    assert count > 1
