#!/usr/bin/env python3
"""The distribution protocol, endpoint by endpoint, from a client that shares no code with rimg.

    protocol --rimg PATH               starts `rimg serve` on a scratch store, and restarts it in between
    protocol --registry HOST:PORT      against a server that is already there (plain HTTP)
    protocol … --only TEXT             the checks whose name holds TEXT, and those that they build on

Every check asserts what the distribution specification 1.1 says, or what real clients rely on beyond it. Where the
specification leaves something open, rimg has decided and is held to it; another registry that does not offer it is
reported as such (SKIPPED).
"""

import argparse
import os
import signal
import sys
import tempfile
import time

sys.dont_write_bytecode = True  # a run leaves nothing beside the sources

import hostile  # noqa: F401 - importing a subject registers its checks, in this order
import uploads  # noqa: F401
import blobs  # noqa: F401
import manifests  # noqa: F401
import listings  # noqa: F401
import matrix  # noqa: F401
import operation
from server import Server, store_is_whole, survives_a_kill
from wire import CHECKS, NotOffered, Registry


def attempt(counts, name, function, *arguments):
    start = time.monotonic()
    try:
        function(*arguments)
    except NotOffered as what:
        counts["skipped"] += 1
        print(f"SKIPPED {name}: the registry does not offer {what}", flush=True)
    except Exception as problem:  # noqa: BLE001 - whatever went wrong is the check's result
        counts["failed"] += 1
        text = str(problem) or type(problem).__name__
        print(f"FAILED  {name}: {type(problem).__name__}: {text[:600]}", flush=True)
    else:
        counts["passed"] += 1
        print(f"ok      {name} ({time.monotonic() - start:.1f} s)", flush=True)


def main():
    options = argparse.ArgumentParser(prog="protocol")
    options.add_argument("--rimg")
    options.add_argument("--registry")
    options.add_argument("--only", default="")
    options = options.parse_args()
    if bool(options.rimg) == bool(options.registry):
        raise SystemExit("give one of --rimg PATH and --registry HOST:PORT")
    groups = {group for group, name, _ in CHECKS if options.only in name}
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    with tempfile.TemporaryDirectory(prefix="rimg-protocol.") as folder:
        server = Server(options.rimg, folder + "/store") if options.rimg else None
        registry = Registry(server.address if server else options.registry, ours=bool(server))
        for group, name, function in CHECKS:
            if group in groups:
                attempt(counts, name, function, registry)
        if server:
            for function in (*operation.CHECKS, survives_a_kill, store_is_whole):
                if options.only in function.__doc__:
                    attempt(counts, function.__doc__, function, server, registry)
            if server.process.poll() is None:
                server.stop(signal.SIGKILL)
    print("\nprotocol: " + ", ".join(f"{number} {name}" for name, number in counts.items()))
    if os.environ.get("RIMG_COUNTS"):
        with open(os.environ["RIMG_COUNTS"], "a", encoding="ascii") as file:
            print(*counts.values(), file=file)
    sys.exit(1 if counts["failed"] or not counts["passed"] else 0)


if __name__ == "__main__":
    main()
