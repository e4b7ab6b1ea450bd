#!/usr/bin/env bash
# Check owner_writes.pml exhaustively with spin: the protocol must hold, its mutants must not.
#
#   check.sh           all configurations, as many at a time as there are processors
#   check.sh NAME      one of them
#   check.sh --list    their names
#
# One line each: name, states stored, result, seconds. Exit status 0 if everything is as expected,
# 1 if not, 2 if it could not be checked.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
model=$here/owner_writes.pml

# Not -O2: gcc 12.2 then miscompiles what spin 6.5.2 generates. For mutant-own-unclaimed it reported
# a violated sum where -O0, -O1, and -O2 with any one of -fno-strict-aliasing, -fwrapv and
# -fno-tree-vectorize report the violated contraction. A wrong "holds" would be as easy.
cflags=${CFLAGS:--O1 -fno-strict-aliasing -fwrapv}

# name | expected | flags. "holds": no error. "finite": no error, and no cycle, so that every run
# ends. Otherwise a mutant: spin's first error must contain the text, which says what it breaks.
configurations() {
    cat <<'END'
average                  | holds  |
average-again            | holds  | -DTWICE=2
local-add                | holds  | -DLOCAL=2
remote-add               | holds  | -DADDERS=1
remote-adds-mutual       | holds  | -DADDERS=7 -DAVERAGES=0
remote-add-beside        | holds  | -DADDERS=1 -DADD_BESIDE -DAVERAGES=0 -DTWICE=5
pair-contracts           | holds  | -DN=2
pair-contracts-thrice    | holds  | -DN=2 -DAVERAGES=3
pair-everything          | holds  | -DN=2 -DAVERAGES=2 -DADDERS=3 -DLOCAL=3
every-run-ends           | finite |
closed-end               | holds  | -DCLOSED_END
closed-end-together      | holds  | -DCLOSED_END -DTOGETHER
closed-end-remote-add    | holds  | -DCLOSED_END -DADDERS=1
closed-end-no-last-drain | holds  | -DCLOSED_END -DADDERS=1 -DNO_LAST_DRAIN
mutant-publish-first     | expected[0]==0 | -DPUBLISH_FIRST -DLAWS_ONLY
mutant-free-first        | expected[0]==0 | -DFREE_FIRST -DLAWS_ONLY
mutant-own-unclaimed     | x[0]==x[2]     | -DOWN_UNCLAIMED -DN=2 -DLAWS_ONLY
mutant-caller-first      | successes>0    | -DCALLER_FIRST -DLAWS_ONLY
mutant-no-last-drain     | expected[0]==0 | -DNO_LAST_DRAIN -DLAWS_ONLY
mutant-stale-payload     | expected[0]==0 | -DSTALE_PAYLOAD -DLAWS_ONLY
mutant-read-first        | x[((me*2)+0)]  | -DREAD_BEFORE_CLAIM
mutant-add-no-drain      | invalid end state | -DADD_WITHOUT_DRAIN -DADDERS=3 -DAVERAGES=0
mutant-close-flag-early  | invalid end state | -DCLOSED_END -DCLOSE_FLAG_EARLY
END
}

names() { configurations | cut -d'|' -f1 | tr -d ' '; }

require() {
    command -v "$1" >/dev/null && return
    echo "check.sh: $1 is not installed; remedy: apt-get install $2" >&2
    exit 2
}

check() { # name
    local line expected flags mode=-DSAFETY cycles='' result ok=0 states begin=$EPOCHREALTIME
    line=$(configurations | grep "^$1 ") || {
        echo "check.sh: no configuration '$1'; one of: $(names | xargs)" >&2
        exit 2
    }
    expected=$(cut -d'|' -f2 <<<"$line" | xargs)
    flags=$(cut -d'|' -f3 <<<"$line")
    [[ $expected == finite ]] && mode=-DNP cycles=-l

    work=$(mktemp -d) # not local: the trap outlives this function
    trap 'rm -rf "$work"' EXIT
    cd "$work"
    # shellcheck disable=SC2086  # flags are words
    if ! { spin $flags -a "$model" && gcc $cflags -w $mode -DCOLLAPSE -DMEMLIM=2000 -o pan pan.c &&
        ./pan -m100000 $cycles; } >log 2>&1; then
        echo "$1: could not be checked:" >&2
        tail -20 log >&2
        exit 2
    fi
    states=$(awk '/states, stored/ { print $1; exit }' log)
    result=$(sed -n 's/^pan:1: //p' log)
    if [[ $expected == holds || $expected == finite ]]; then
        # A search cut short (depth, memory) proves nothing.
        if grep -q 'errors: 0' log && ! grep -Eq 'Search not completed|max search depth' log; then
            ok=1 result=$expected
        fi
    elif [[ $result == *"$expected"* ]]; then
        ok=1 result="caught: ${result% (at depth*}"
    fi
    ((ok)) || result="UNEXPECTED: ${result:-no error} (expected: $expected)"
    awk -v n="$1" -v s="$states" -v r="$result" -v a="$begin" -v b="$EPOCHREALTIME" \
        'BEGIN { printf "%-25s %9d states  %5.1f s  %s\n", n, s, b - a, r }'
    ((ok))
}

case ${1:-} in
--list) names ;;
'')
    require spin spin
    require gcc gcc
    names | xargs -P "$(nproc)" -n 1 "$here/check.sh" || exit 1
    ;;
*)
    require spin spin
    require gcc gcc
    check "$1"
    ;;
esac
