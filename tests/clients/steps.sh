# shellcheck shell=bash
# How the client scripts say what they do: every step is named, timed, counted and asserts something.
#
#   step NAME COMMAND…     run it; on failure print its output and count it
#   need  NAME COMMAND…    the same, but nothing after it makes sense: a failure ends the script
#   skip  NAME WHY         count it as skipped, loudly; never silent
#   equal WHAT A B         fails, showing both, unless A = B
#   phase NAME             a heading; with ONLY="a b" the other phases are left out
#   steps_end              print the counts and set the exit code
#
# A step's command runs in this shell, so a function may set variables for later steps; what it prints is kept
# in $STEP_OUT and shown only on failure (or always with VERBOSE=1).
# With RIMG_COUNTS=FILE the counts are appended there for a caller that adds them up.

STEPS_PASSED=0
STEPS_FAILED=0
STEPS_SKIPPED=0
STEP_OUT=

step() {
    local name=$1 start=$EPOCHREALTIME status=0
    shift
    STEP_OUT=$(mktemp "${PEERS_DIR:-${TMPDIR:-/tmp}}/step.XXXXXX")
    "$@" >"$STEP_OUT" 2>&1 </dev/null || status=$?
    local seconds
    seconds=$(awk -v a="$start" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.1f", b - a }')
    if [ "$status" -eq 0 ]; then
        STEPS_PASSED=$((STEPS_PASSED + 1))
        printf 'ok      %s (%s s)\n' "$name" "$seconds"
        [ -z "${VERBOSE:-}" ] || sed 's/^/        | /' "$STEP_OUT"
    else
        STEPS_FAILED=$((STEPS_FAILED + 1))
        printf 'FAILED  %s (%s s, status %s): %s\n' "$name" "$seconds" "$status" "$*"
        tail -n "${STEP_LINES:-40}" "$STEP_OUT" | cut -c1-400 | sed 's/^/        | /'
    fi
    rm -f "$STEP_OUT"
    return "$status"
}

# Steps are called bare, and a failure must not end the script: the following steps still say something.
# `set -e` would end it, so the scripts run without it and say `need` where they cannot go on.
need() {
    step "$@" || {
        printf 'FAILED  cannot go on without: %s\n' "$1"
        steps_end
        exit 1
    }
}

skip() {
    STEPS_SKIPPED=$((STEPS_SKIPPED + 1))
    printf 'SKIPPED %s: %s\n' "$1" "$2"
}

equal() {
    [ "$2" = "$3" ] && return 0
    printf '%s differ:\n  %s\n  %s\n' "$1" "$2" "$3"
    return 1
}

# Every argument after the first is the same non-empty value.
all_equal() {
    local what=$1 first=$2 other
    [ -n "$first" ] || {
        printf '%s: the first value is empty\n' "$what"
        return 1
    }
    shift 2
    for other in "$@"; do equal "$what" "$first" "$other" || return 1; done
}

phase() {
    case " ${ONLY:-$1} " in
    *" $1 "*)
        printf '\n== %s\n' "$1"
        return 0
        ;;
    esac
    return 1
}

steps_end() {
    printf '\n%s: %d passed, %d failed, %d skipped\n' "${0##*/}" \
        "$STEPS_PASSED" "$STEPS_FAILED" "$STEPS_SKIPPED"
    if [ -n "${RIMG_COUNTS:-}" ]; then
        printf '%d %d %d\n' "$STEPS_PASSED" "$STEPS_FAILED" "$STEPS_SKIPPED" >>"$RIMG_COUNTS"
    fi
    [ "$STEPS_FAILED" -eq 0 ] && [ "$STEPS_PASSED" -gt 0 ]
}
