"""Manifests that are not as they should be, what is said of them, and how tags move and go."""

import concurrent.futures
import json
import os

from wire import (ALGORITHMS, CONFIG, DOCKER_CONFIG, DOCKER_LAYER, DOCKER_MANIFEST, INDEX, LAYER, MANIFEST,
                  check, digest, equal, error, expect, with_query)


def tagged(registry, repository, *tags, text="tagged"):
    """Pushes a small image under the tags and gives its bytes."""
    raw = json.dumps(registry.image(repository, text)).encode()
    for tag in tags:
        expect(registry.put(repository, tag, raw), 201)
    return raw


# --- reading


@check("GET", "HEAD")
def missing(registry, method):
    """manifest: one that is not there is 404, by tag and by digest"""
    tagged(registry, "manifests/one", "latest")
    for repository in ("manifests/one", "manifests/never"):
        for reference in ("missing", digest(os.urandom(9)), digest(os.urandom(9), "sha512")):
            answer = expect(registry(method, f"/v2/{repository}/manifests/{reference}"), 404)
            if method == "GET":
                error(answer, 404, "MANIFEST_UNKNOWN", "NAME_UNKNOWN")


@check(("nothing", {}), ("its type", {"Accept": MANIFEST}), ("another type", {"Accept": INDEX}), ("any type", {"Accept": "*/*"}),
       ("several types", {"Accept": f"{INDEX}, {MANIFEST};q=0.5, */*;q=0.1"}), ("nonsense", {"Accept": "no type at all"}))
def accept(registry, headers):
    """manifest: served byte for byte under its own type to whoever accepts"""
    raw = tagged(registry, "manifests/one", "latest")
    fits = registry.ours or MANIFEST in headers.get("Accept", "")
    for reference in ("latest", digest(raw)):
        for method in ("GET", "HEAD"):
            answer = expect(registry(method, f"/v2/manifests/one/manifests/{reference}", **headers), *((200,) if fits else (200, 404, 406)))
            if answer.status == 200:
                equal(answer.headers["content-type"], MANIFEST)
                equal(answer.headers.get("docker-content-digest"), digest(raw))
                equal(answer.headers["content-length"], str(len(raw)))
                equal(answer.body, raw if method == "GET" else b"")


@check()
def known_already(registry):
    """manifest: who has it already is told so (304)"""
    raw = tagged(registry, "manifests/one", "latest")
    for reference in ("latest", digest(raw)):
        tag = expect(registry("HEAD", f"/v2/manifests/one/manifests/{reference}", Accept=MANIFEST), 200).headers.get("etag")
        registry.offered(tag, "entity tags")
        equal(expect(registry("GET", f"/v2/manifests/one/manifests/{reference}", Accept=MANIFEST, If_None_Match=tag), 304).body, b"")
        expect(registry("GET", f"/v2/manifests/one/manifests/{reference}", Accept=MANIFEST, If_None_Match='"other"'), 200)


# --- pushing


@check(*ALGORITHMS)
def by_digest_alone(registry, algorithm):
    """manifest: pushed by digest has no tag; a wrong digest is refused"""
    raw = json.dumps(registry.image("manifests/two", f"by digest {algorithm}")).encode()
    name = digest(raw, algorithm)
    answer = registry.put("manifests/two", name, raw)
    registry.offered(answer.status == 201 or algorithm == "sha256", "manifests under sha512 digests")
    expect(answer, 201)
    equal(answer.headers.get("docker-content-digest"), name)
    equal(registry("GET", f"/v2/manifests/two/manifests/{name}", Accept=MANIFEST).body, raw)
    listed = registry("GET", "/v2/manifests/two/tags/list")
    assert listed.status == 404 or not listed.json()["tags"]
    error(registry.put("manifests/two", digest(b"other", algorithm), raw), 400, "DIGEST_INVALID", "MANIFEST_INVALID")


@check("sha256:baddigeststring", "sha256:", "sha256:" + "A" * 64, "sha512:" + "0" * 64, "sha999:" + "0" * 64, "sha256:" + "0" * 65,
       ".hidden", "-dash", "a%20b", "%C3%BC", "x" * 129, "a%00b", "a%2Fb", "a@b", "a+b")
def reference(registry, text):
    """manifest: what is neither tag nor digest is refused, in PUT, GET and DELETE"""
    raw = json.dumps(registry.image("manifests/two", "reference")).encode()
    for method in ("PUT", "GET", "HEAD", "DELETE"):
        body = {"body": raw, "Content_Type": MANIFEST} if method == "PUT" else {}
        answer = registry(method, f"/v2/manifests/two/manifests/{text}", **body)
        registry.offered(answer.status < 500, "a refusal of this")
        # A path that is no reference at all may be no path of the registry's, too.
        expect(answer, *registry.either(400, 404, 405))


@check("config", "layer", "manifest of an index", "layer of another repository", "manifest of another repository")
def unwhole(registry, part):
    """manifest: one whose content is missing is refused"""
    manifest, kind = registry.image("manifests/three", "whole"), MANIFEST
    if part == "config":
        manifest["config"] = {"mediaType": CONFIG, "digest": digest(os.urandom(9)), "size": 9}
    elif part == "layer":
        manifest["layers"].append({"mediaType": LAYER, "digest": digest(os.urandom(9)), "size": 9})
    elif part == "layer of another repository":
        manifest["layers"].append(registry.push_blob("manifests/elsewhere", os.urandom(50)))
    else:
        name = digest(tagged(registry, "manifests/elsewhere", "x", text="elsewhere")) if "another" in part else digest(os.urandom(9))
        manifest, kind = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [{"mediaType": MANIFEST, "digest": name, "size": 9}]}, INDEX
    answer = registry.put("manifests/three", "x", manifest, kind)
    if answer.status == 201 and "manifest" in part:
        registry.offered(False, "refusing an index with gaps")
    error(answer, registry.either(400, 404), "MANIFEST_BLOB_UNKNOWN")
    expect(registry("GET", "/v2/manifests/three/manifests/x", Accept=f"{MANIFEST}, {INDEX}"), 404)


WHOLE = {"schemaVersion": 2, "mediaType": MANIFEST, "config": {"mediaType": CONFIG, "digest": "sha256:" + "0" * 64, "size": 1}, "layers": []}


@check(("nothing", b""), ("half", b"{"), ("a list", b"[]"), ("null", b"null"), ("a number", b"2"), ("not UTF-8", b"\xff\xfe"),
       ("deep", b"[" * 100_000), ("deep objects", b'{"a":' * 100_000), ("no config", b'{"schemaVersion": 2}'), ("version 1", b'{"schemaVersion": 1}'),
       ("wrong types", b'{"schemaVersion":2,"mediaType":"%s","config":{},"layers":{}}' % MANIFEST.encode()),
       ("bad digest", json.dumps(WHOLE).replace("sha256:000", "sha256:xyz").encode()),
       ("negative size", json.dumps(WHOLE).replace('"size": 1', '"size": -1').encode()),
       ("text behind", json.dumps(WHOLE).encode() + b"x"), ("two documents", json.dumps(WHOLE).encode() * 2))
def nonsense(registry, raw):
    """manifest: what is none is refused"""
    answer = registry.put("manifests/four", "x", raw)
    registry.offered(answer.status < 500, "a refusal of this")
    expect(answer, 400, 404, 413, 415)
    expect(registry("GET", "/v2/manifests/four/manifests/x"), 404)


@check(("none", None, 201), ("parameters", MANIFEST + "; charset=utf-8", 201), ("upper case", MANIFEST.replace("application", "Application"), 201),
       ("another than the manifest says", INDEX, 400), ("no manifest's", "application/json", 400), ("of an image", "image/png", 400),
       ("nonsense", "no type at all", 400))
def content_type(registry, kind, status):
    """manifest: `Content-Type`"""
    raw = json.dumps(registry.image("manifests/type", "typed")).encode()
    answer = registry("PUT", "/v2/manifests/type/manifests/typed", raw, **({"Content_Type": kind} if kind else {}))
    expect(answer, *registry.either(status, 201, 400, 415))
    if answer.status == 201:
        equal(registry("GET", "/v2/manifests/type/manifests/typed", Accept=MANIFEST).headers["content-type"], MANIFEST)
        expect(registry("DELETE", f"/v2/manifests/type/manifests/{digest(raw)}"), 202, 405)


@check(("4 MiB", 4 << 20, 201), ("4 MiB and 1", (4 << 20) + 1, 413), ("32 MiB", 32 << 20, 413))
def size(registry, length, status):
    """manifest: size"""
    manifest = registry.image("manifests/five", "large", annotations={"fill": ""})
    manifest["annotations"]["fill"] = "x" * (length - len(json.dumps(manifest)))
    try:
        # How large one may be beyond 4 MB, and how it is refused, is left open.
        expect(registry.put("manifests/five", "large", manifest), *registry.either(status, 201, 400, 413))
    except (BrokenPipeError, ConnectionResetError):
        assert status == 413  # refused before all was sent: a client that keeps sending sees a closed connection
    expect(registry("HEAD", "/v2/manifests/five/manifests/large", Accept=MANIFEST), *registry.either(404 if status == 413 else 200, 200))
    registry("DELETE", "/v2/manifests/five/manifests/large")


@check()
def pushed_again(registry):
    """manifest: pushed again is 201 again and changes nothing"""
    raw = tagged(registry, "manifests/again", "a", "a", "a")
    expect(registry.put("manifests/again", digest(raw), raw), 201)
    equal(registry.tags("manifests/again")[0], ["a"])


@check()
def docker_accepts(registry):
    """manifest: Docker's schema 2 as `docker pull` asks for it"""
    manifest = registry.image("manifests/docker", "schema2")
    manifest.update(mediaType=DOCKER_MANIFEST, config=dict(manifest["config"], mediaType=DOCKER_CONFIG),
                    layers=[dict(manifest["layers"][0], mediaType=DOCKER_LAYER)])
    raw = json.dumps(manifest).encode()
    expect(registry.put("manifests/docker", "latest", raw, DOCKER_MANIFEST), 201)
    answer = expect(registry("GET", "/v2/manifests/docker/manifests/latest", Accept=DOCKER_MANIFEST), 200)
    equal((answer.headers["content-type"], answer.body), (DOCKER_MANIFEST, raw))


@check()
def schema1(registry):
    """manifest: Docker's schema 1 is refused clearly"""
    raw = {"schemaVersion": 1, "name": "a", "tag": "b", "fsLayers": [], "history": [], "signatures": []}
    expect(registry.put("manifests/docker", "one", raw, "application/vnd.docker.distribution.manifest.v1+prettyjws"), 400, 404, 415)


# --- tags


@check("x", "_", "0", "A.b-c_D", "x" * 128, "latest", "sha256")
def tag(registry, text):
    """tag: its grammar"""
    raw = tagged(registry, "manifests/tag", text, text=text)
    equal(expect(registry("GET", f"/v2/manifests/tag/manifests/{text}", Accept=MANIFEST), 200).body, raw)
    assert text in registry.tags("manifests/tag")[0]


@check()
def tag_moves(registry):
    """tag: it moves, and the old digest stays"""
    first = tagged(registry, "manifests/moves", "latest", text="first")
    second = tagged(registry, "manifests/moves", "latest", text="second")
    equal(registry("GET", "/v2/manifests/moves/manifests/latest", Accept=MANIFEST).body, second)
    equal(registry("GET", f"/v2/manifests/moves/manifests/{digest(first)}", Accept=MANIFEST).body, first)
    equal(registry.tags("manifests/moves")[0], ["latest"])


@check()
def tag_goes(registry):
    """tag: deleting one leaves the others and the manifest"""
    raw = tagged(registry, "manifests/delete", "a", "b")
    answer = registry("DELETE", "/v2/manifests/delete/manifests/a")
    registry.offered(answer.status not in (400, 405), "deleting tags")
    expect(answer, 202)
    expect(registry("GET", "/v2/manifests/delete/manifests/a", Accept=MANIFEST), 404)
    for reference in ("b", digest(raw)):
        expect(registry("GET", f"/v2/manifests/delete/manifests/{reference}", Accept=MANIFEST), 200)
    equal(registry.tags("manifests/delete")[0], ["b"])
    error(registry("DELETE", "/v2/manifests/delete/manifests/a"), 404, "MANIFEST_UNKNOWN")


@check()
def tags_go_with_their_manifest(registry):
    """manifest: deleting it takes its tags; it can be pushed again"""
    raw = tagged(registry, "manifests/gone", "a", "b")
    answer = registry("DELETE", f"/v2/manifests/gone/manifests/{digest(raw)}")
    registry.offered(answer.status not in (400, 405), "deleting manifests")
    expect(answer, 202)
    for reference in ("a", "b", digest(raw)):
        expect(registry("GET", f"/v2/manifests/gone/manifests/{reference}", Accept=MANIFEST), 404)
    error(registry("DELETE", f"/v2/manifests/gone/manifests/{digest(raw)}"), 404, "MANIFEST_UNKNOWN")
    tagged(registry, "manifests/gone", "again")
    expect(registry("GET", f"/v2/manifests/gone/manifests/{digest(raw)}", Accept=MANIFEST), 200)
    equal(registry.tags("manifests/gone")[0], ["again"])


@check("missing", "sha256:" + "0" * 64, "sha512:" + "0" * 128)
def deleting_nothing(registry, reference):
    """manifest: deleting what is not there is 404"""
    tagged(registry, "manifests/delete", "b")
    for repository in ("manifests/delete", "manifests/never"):
        answer = registry("DELETE", f"/v2/{repository}/manifests/{reference}")
        registry.offered(answer.status not in (400, 405), "deleting tags")
        error(answer, 404, "MANIFEST_UNKNOWN", "NAME_UNKNOWN")


# --- what comes after version 1.1, and what rimg adds


@check()
def tag_in_path_and_query(registry):
    """tag: in the path and in the query of one PUT"""
    registry.only_ours("tags in the query, which come after version 1.1,")
    raw = json.dumps(registry.image("manifests/both", "both")).encode()
    expect(registry.put("manifests/both", "one?tag=two&tag=one&tag=three", raw), 201)
    equal(registry.tags("manifests/both")[0], ["one", "three", "two"])


@check(("ten", 10, 201), ("fifty", 50, 201), ("too many", 51, 414))
def tags_in_the_query(registry, count, status):
    """tag: several in the query of a PUT"""
    registry.only_ours("tags in the query, which come after version 1.1,")
    repository = f"manifests/query-{count}"
    raw = json.dumps(registry.image(repository, "many tags")).encode()
    names = [f"t{number:02}" for number in range(count)]
    answer = expect(registry.put(repository, digest(raw) + "?" + "&".join(f"tag={name}" for name in names), raw), status)
    if status == 201:
        equal(sorted(value for header, value in answer.all_headers if header == "oci-tag"), names)
        equal(registry.tags(repository)[0], names)
    else:
        equal(registry.tags(repository)[0], [])


@check(("a bad tag", "?tag=good&tag=.bad"), ("an empty tag", "?tag=good&tag="), ("a digest", "?tag=good&tag=sha256:" + "0" * 64))
def all_or_nothing(registry, query):
    """tag: of several in the query one that is none refuses all"""
    registry.only_ours("tags in the query, which come after version 1.1,")
    raw = json.dumps(registry.image("manifests/query", "refused")).encode()
    expect(registry.put("manifests/query", digest(raw) + query, raw), 400)
    expect(registry("GET", f"/v2/manifests/query/manifests/{digest(raw)}"), 404)
    equal(registry.tags("manifests/query")[0], [])


@check()
def compare_and_swap(registry):
    """tag: set only where it is new, moved only from where it was"""
    registry.only_ours("`If-Match` and `If-None-Match` in a PUT")
    first, second = (json.dumps(registry.image("manifests/swap", text)).encode() for text in ("first", "second"))
    expect(registry.put("manifests/swap", "t", first, If_Match=f'"{digest(first)}"'), 412)
    expect(registry.put("manifests/swap", "t", first, If_None_Match="*"), 201)
    error(registry.put("manifests/swap", "t", second, If_None_Match="*"), 412, "PRECONDITION_FAILED")
    expect(registry.put("manifests/swap", "t", second, If_Match=f'"{digest(second)}"'), 412)
    expect(registry.put("manifests/swap", "t", second, If_Match=f'"{digest(first)}"'), 201)
    expect(registry("DELETE", "/v2/manifests/swap/manifests/t", If_Match=f'"{digest(first)}"'), 412)
    expect(registry("DELETE", "/v2/manifests/swap/manifests/t", If_Match=f'"{digest(second)}"'), 202)


@check()
def one_of_many(registry):
    """tag: of sixteen who create it at once one succeeds"""
    registry.only_ours("`If-None-Match` in a PUT")
    raws = [json.dumps(registry.image("manifests/race", f"runner {number}")).encode() for number in range(16)]
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda raw: registry.put("manifests/race", "t", raw, If_None_Match="*").status, raws))
    equal(sorted(answers), [201] + [412] * 15)
    equal(registry("GET", "/v2/manifests/race/manifests/t").body, raws[answers.index(201)])


@check(("one part", "a"), ("many parts", "a/b/c/d/e/f/g"), ("separators", "a.b/c_d/e__f/g-h/i---j"), ("digits", "0/1"),
       ("like an endpoint", "manifests/blobs/tags/list/referrers"), ("255 letters", "n" * 127 + "/" + "n" * 127))
def repository(registry, name):
    """repository: its name"""
    if len(name) > 200 and not registry.ours:
        registry.offered(False, "names of 255 letters")
    raw = tagged(registry, name, "v1")
    equal(registry("GET", f"/v2/{name}/manifests/v1", Accept=MANIFEST).body, raw)
    equal(expect(registry("GET", f"/v2/{name}/tags/list"), 200).json(), {"name": name, "tags": ["v1"]})
    expect(registry("GET", with_query(f"/v2/{name}/tags/list", n=1)), 200)
