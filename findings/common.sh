# What the scripts here share; each sources it first.
#
# Exit status of each: 0 it is as it says; 1 it is otherwise by now, or could not be shown; 77 the version that it is about,
# or a tool, cannot be had here, so nothing is known.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf -- "$work"' EXIT

# Ends the script: the line of why, and the log, if there is one.
not_to_be_had() {
    echo "not to be had here: $1" >&2
    if [[ -n ${2:-} && -f $2 ]]; then tail -n 5 -- "$2" >&2; fi
    exit 77
}

need() {
    local tool
    for tool in "$@"; do
        command -v -- "$tool" >/dev/null || not_to_be_had "the program $tool"
    done
}

# Unpacks QEMU 7.2.22 of Debian 12 into $work, installs nothing, exports QEMU and says its version. Needs apt-get with the
# lists of Debian 12's mirror, dpkg-deb and python3.
qemu_of_debian_12() {
    local version=1:7.2+dfsg-7+deb12u18+b3
    local pinned=("qemu-system-x86=$version" "qemu-system-common=$version" "qemu-system-data=${version%+b3}")
    need apt-get dpkg-deb python3
    cd -- "$work"
    # Of the libraries that it needs, those that are not there.
    local missing
    missing=$(apt-get install -s --no-install-recommends "${pinned[@]}" 2>apt.log |
        sed -n 's/^Inst \([^ ]*\) [^(]*(\([^ ]*\).*/\1=\2/p') ||
        not_to_be_had "qemu-system-x86 $version (apt-get update may help)" apt.log
    # shellcheck disable=SC2086 # a list of words
    apt-get download -q "${pinned[@]}" $missing >apt.log 2>&1 ||
        not_to_be_had "qemu-system-x86 $version (apt-get update may help)" apt.log
    local package
    for package in ./*.deb; do dpkg-deb -x "$package" root; done
    export QEMU=$work/qemu
    printf '#!/bin/sh\nLD_LIBRARY_PATH=%s exec %s "$@"\n' "$work/root/usr/lib/x86_64-linux-gnu" \
        "$work/root/usr/bin/qemu-system-x86_64" >"$QEMU"
    chmod +x "$QEMU"
    "$QEMU" --version | head -n 1
}
