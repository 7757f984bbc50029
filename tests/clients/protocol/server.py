"""`rimg serve` on a scratch store, which can be killed and started again in the middle of things."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import time

from uploads import close, progress
from wire import digest, equal, expect


class Server:
    def __init__(self, rimg, root):
        self.rimg, self.root = rimg, root
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = "127.0.0.1:%d" % free.getsockname()[1]
        self.start()

    def start(self):
        host, port = self.address.split(":")
        command = [self.rimg, "--root", self.root, "serve", "--listen", self.address]
        with open(self.root + ".log", "ab") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        if not self.wait_for_port(self.process, int(port), host):
            raise SystemExit("the server did not start:\n" + pathlib.Path(self.root + ".log").read_text(errors="replace")[-2000:])

    @staticmethod
    def wait_for_port(process, port, host="127.0.0.1"):
        """Whether the server that is starting answers."""
        for _ in range(400):
            try:
                socket.create_connection((host, port)).close()
                return True
            except ConnectionRefusedError:
                if process.poll() is not None:
                    break
                time.sleep(0.05)
        return False

    def stop(self, how):
        self.process.send_signal(how)
        self.process.wait(timeout=20)


def survives_a_kill(server, registry):
    """kill -9 in the middle of an upload: it goes on where it was, and what was acknowledged is there"""
    content = os.urandom(500_000)
    raw = json.dumps(registry.image("crash/one", "acknowledged")).encode()
    expect(registry.put("crash/one", "kept", raw), 201)
    location = registry.start_upload("crash/one")
    answer = expect(registry("PATCH", location, content[:300_000], Content_Range="0-299999"), 202)
    server.stop(signal.SIGKILL)
    server.start()
    equal(registry("GET", "/v2/crash/one/manifests/kept").body, raw)
    answer = progress(registry, answer.headers["location"], 300_000)
    answer = expect(registry("PATCH", answer.headers["location"], content[300_000:], Content_Range="300000-499999"), 202)
    expect(close(registry, answer, digest(content)), 201)
    equal(registry("GET", f"/v2/crash/one/blobs/{digest(content)}").body, content)


def store_is_whole(server, _registry):
    """after all of it the server ends on SIGTERM and `rimg fsck` finds nothing damaged"""
    server.stop(signal.SIGTERM)
    equal(server.process.returncode, 0)
    subprocess.run([server.rimg, "--root", server.root, "fsck"], check=True, stdin=subprocess.DEVNULL)
