"""`rimg serve` as a process: whom it serves, and what stalls do to it. Each check has a server of its own."""

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import time

from server import Server
from wire import digest, equal

# Longer than a server may take to end, and shorter than `docker stop` waits.
END_SECONDS = 9
STRANGER = 65534


@contextlib.contextmanager
def serving(server, name, *flags, stderr=subprocess.DEVNULL):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [server.rimg, "--root", f"{server.root}-{name}", "serve", "--listen", f"127.0.0.1:{port}", *flags]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr)
    try:
        equal(Server.wait_for_port(process, port), True)
        yield process, port
    finally:
        process.kill()
        process.wait()


def ask(port, method, target, body=b"", content_type="application/octet-stream"):
    with socket.create_connection(("127.0.0.1", port), timeout=20) as stream:
        head = f"{method} {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: {content_type}\r\n"
        stream.sendall(head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        answer = b""
        while chunk := stream.recv(65536):
            answer += chunk
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


def as_stranger(port, method, target, body=b""):
    """What a process of another user is answered. It is a fork: that user need not be able to run this Python."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(STRANGER)
            os.setuid(STRANGER)
            status, answer = ask(port, method, target, body)
            os.write(writer, b"%d %s" % (status, answer[:4000]))
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        status, _, answer = stream.read().decode().partition(" ")
    os.waitpid(child, 0)
    return int(status), answer


def others_need_a_flag(server, _registry):
    """another local user reads and writes nothing until a flag says so, and the refusal names it"""
    if os.geteuid() != 0:
        print("    not tried: only root can become another user")
        return
    push = "/v2/a/blobs/uploads/?digest=" + digest(b"x")
    table = [
        ((), 403, "`--allow-read` or `--allow-write`", 403, "`--allow-write`"),
        (("--allow-read",), 200, "", 403, "`--allow-write`"),
        (("--allow-write",), 200, "", 201, ""),
        ((f"--allow-write={STRANGER}",), 200, "", 201, ""),
        (("--allow-write=1",), 403, f"user {STRANGER}", 403, f"user {STRANGER}"),
    ]
    for number, (flags, read, read_says, write, write_says) in enumerate(table):
        with serving(server, f"users-{number}", *flags) as (_, port):
            status, body = as_stranger(port, "GET", "/v2/")
            equal((flags, status, read_says in body), (flags, read, True))
            status, body = as_stranger(port, "POST", push, b"x")
            equal((flags, status, write_says in body), (flags, write, True))
            equal(ask(port, "POST", push, b"x")[0], 201)


def a_log_that_nobody_reads(server, _registry):
    """a full pipe as standard error costs lines and stops nothing, and SIGTERM ends the server all the same"""
    reader, writer = os.pipe()
    try:
        with serving(server, "log", stderr=writer) as (process, port):
            for number in range(400):
                status, _ = ask(port, "GET", "/v2/a/tags/list?" + "x" * 400 + str(number))
                equal(status, 404)
            process.send_signal(signal.SIGTERM)
            equal(process.wait(timeout=END_SECONDS), 0)
    finally:
        os.close(reader)
        os.close(writer)


def stalled_clients_at_the_end(server, _registry):
    """SIGTERM ends the server in time although clients neither read their blobs nor send their uploads"""
    content = os.urandom(32 << 20)
    with serving(server, "stalled") as (process, port):
        equal(ask(port, "POST", "/v2/a/blobs/uploads/?digest=" + digest(content), content)[0], 201)
        streams = [socket.create_connection(("127.0.0.1", port)) for _ in range(12)]
        for number, stream in enumerate(streams):
            head = "GET /v2/a/blobs/%s HTTP/1.1\r\nHost: localhost\r\n\r\n" % digest(content)
            if number % 3 == 1:
                head = "POST /v2/a/blobs/uploads/?digest=%s HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nx" % digest(b"y")
            if number % 3 == 2:
                head = "GET /v2/ HT"
            stream.sendall(head.encode())
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        equal(process.wait(timeout=END_SECONDS), 0)
        for stream in streams:
            stream.close()


def peak_memory(process):
    status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) >> 10


def many_large_referrers(server, _registry):
    """listing 60 referrers of 3.9 MB takes little memory, with a filter that matches one as without"""
    subject = digest(b"subject")
    config = {"mediaType": "application/vnd.oci.empty.v1+json", "digest": digest(b"{}"), "size": 2}
    media_type = "application/vnd.oci.image.manifest.v1+json"
    with serving(server, "referrers") as (process, port):
        equal(ask(port, "POST", "/v2/a/blobs/uploads/?digest=" + config["digest"], b"{}")[0], 201)
        for number in range(60):
            manifest = json.dumps({
                "schemaVersion": 2, "mediaType": media_type, "config": config, "layers": [],
                "artifactType": "a/one" if number == 7 else "a/many",
                "subject": {"mediaType": media_type, "digest": subject, "size": 7},
                "annotations": {f"key-{number}-{key}": "v" * 97_000 for key in range(40)},
            }).encode()
            equal(ask(port, "PUT", f"/v2/a/manifests/t{number}", manifest, media_type)[0], 201)
        before = peak_memory(process)
        status, body = ask(port, "GET", f"/v2/a/referrers/{subject}?artifactType=a/one")
        equal((status, len(json.loads(body)["manifests"])), (200, 1))
        for _ in range(8):
            status, body = ask(port, "GET", f"/v2/a/referrers/{subject}")
            equal((status, len(json.loads(body)["manifests"])), (200, 1))
        grown = peak_memory(process) - before
        if grown > 64:
            raise AssertionError(f"the server grew by {grown} MiB")


CHECKS = [others_need_a_flag, a_log_that_nobody_reads, stalled_clients_at_the_end, many_large_referrers]
