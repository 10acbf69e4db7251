#!/usr/bin/env bash
# Linux 6.1.192, tools/testing/kunit/kunit.py parse: its exit status follows neither its errors nor its failures.
#
# Expected: 0 where nothing failed and nothing was wrong with the results, and another status where it counts errors.
# Seen: results whose second test has the number 3 are told as "errors: 1", and the status is 0; results of which every test
# is skipped have no failure and no error, and the status is 1. So who calls it in a CI reads its last line ("Ran N tests:
# passed: …, failed: …, errors: …"), and not the status alone.
#
# Needs apt-get with the lists of Debian 12's mirror (139 MB are fetched), dpkg-deb, tar, xz and python3. Exit status: see
# common.sh.
source "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/common.sh"
need apt-get dpkg-deb tar xz python3

cd -- "$work"
version=6.1.192-3
apt-get download -q "linux-source-6.1=$version" >apt.log 2>&1 ||
    not_to_be_had "linux-source-6.1 $version (apt-get update may help)" apt.log
dpkg-deb --fsys-tarfile ./*.deb | tar -xO ./usr/src/linux-source-6.1.tar.xz |
    tar -xJ linux-source-6.1/tools/testing/kunit
kunit=$work/linux-source-6.1/tools/testing/kunit/kunit.py
echo "kunit.py of Linux ${version%-*}"

changed=0
# Name, results, the end of the last line and the status that were seen.
parse() {
    local status=0 said
    printf '%b' "$2" >results
    said=$(python3 "$kunit" parse "$work/results" 2>&1) || status=$?
    said=${said##*Testing complete. }
    echo "$1: \"$said\", status $status"
    [[ "$said" == "$3" && $status == "$4" ]] || changed=1
}
parse "in order" 'KTAP version 1\n1..2\nok 1 a\nok 2 b\n' "Ran 2 tests: passed: 2" 0
parse "a wrong number" 'KTAP version 1\n1..2\nok 1 a\nok 3 b\n' "Ran 2 tests: passed: 2, errors: 1" 0
parse "one failed" 'KTAP version 1\n1..2\nok 1 a\nnot ok 2 b\n' "Ran 2 tests: passed: 1, failed: 1" 1
parse "all skipped" 'KTAP version 1\n1..2\nok 1 a # SKIP no device\nok 2 b # SKIP no device\n' \
    "Ran 2 tests: skipped: 2" 1
((changed == 0)) && echo "as found" || echo "it has CHANGED"
exit $changed
