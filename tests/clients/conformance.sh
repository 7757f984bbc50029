#!/usr/bin/env bash
# The official conformance suite of the distribution specification against `rimg serve`: version 1.1 must have no
# failure; the coming version (dev) is run and reported as well.
#
#   RIMG=PATH tests/clients/conformance.sh            against rimg
#   REGISTRY=HOST:PORT tests/clients/conformance.sh   against a server that is already there (plain HTTP)
#   CONFORMANCE=PROGRAM                               a suite that is already built
#   CONFORMANCE_DIR=DIR                               a checkout of the suite's sources, to be built
#
# An exit code alone is not believed: the suite's own results must show that it ran.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR source=steps.sh
. "$here/steps.sh"
# shellcheck source-path=SCRIPTDIR source=peers.sh
. "$here/peers.sh"
# shellcheck source-path=SCRIPTDIR source=tools.sh
. "$here/tools.sh"

# Every registry measured passes about 850 checks of version 1.1 when all is well; far fewer means they were not run.
PASSED_MIN=800

main() {
    need 'scratch directory' peers_init
    local suite
    suite=${CONFORMANCE:-$(tool conformance 2>"$PEERS_DIR/why")} || {
        skip 'the official conformance suite' "it cannot be installed here: $(cat "$PEERS_DIR/why")"
        steps_end
        # Nothing was tried, so there is nothing to call passed; the caller counts the skip.
        exit 0
    }
    if [ -z "${REGISTRY:-}" ]; then
        need 'rimg serve starts' start_rimg_serve "$PEERS_DIR/store"
        REGISTRY=$RIMG_SERVE
    fi
    step 'conformance 1.1: no failure' run_suite "$suite" 1.1
    if run_suite "$suite" dev >"$PEERS_DIR/dev.txt" 2>&1; then
        step 'conformance dev: no failure' true
    else
        printf 'note    conformance dev (not yet required): %s\n' "$(tail -n 1 "$PEERS_DIR/dev.txt")"
    fi
    if [ -n "${RIMG_SERVE:-}" ]; then step 'the server still answers' curl -sf "http://$RIMG_SERVE/v2/"; fi
    steps_end
}

# run_suite PROGRAM VERSION
run_suite() {
    local results=$PEERS_DIR/results-$2 status=0
    mkdir -p "$results"
    (
        cd "$results" &&
            OCI_REGISTRY=$REGISTRY OCI_TLS=disabled OCI_REPO1=conformance/one OCI_REPO2=conformance/two \
                OCI_VERSION=$2 OCI_RESULTS_DIR=$results OCI_LOG=error \
                timeout 600 "$1" >"$results/output.txt" 2>&1
    ) || status=$?
    [ -z "${CONFORMANCE_RESULTS:-}" ] || cp -r "$results" "$CONFORMANCE_RESULTS/"
    python3 - "$results" "$status" "$PASSED_MIN" <<'PYTHON'
import pathlib, sys, xml.etree.ElementTree as tree
results, status, minimum = pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
cases = list(tree.parse(results / "junit.xml").getroot().iter("testcase"))
def kind(case):
    names = {child.tag for child in case}
    return "failed" if names & {"failure", "error"} else "skipped" if "skipped" in names else "passed"
counts = {"passed": 0, "failed": 0, "skipped": 0}
for case in cases:
    counts[kind(case)] += 1
    if kind(case) == "failed":
        print("failed:", case.get("classname", ""), case.get("name"))
print(", ".join(f"{number} {name}" for name, number in counts.items()), f"- exit status {status}")
sys.exit(0 if status == 0 and counts["failed"] == 0 and counts["passed"] >= minimum else 1)
PYTHON
}

main
