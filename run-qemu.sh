#!/usr/bin/env bash
# The front door: finds or installs the tools, builds what is out of date, and hands over to the `boot` program.
# Everything that is not "find a compiler" is in boot/ (Rust); the text of --help is boot/help.txt.
set -euo pipefail

root=$(cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")" && pwd)
wanted='1.96'   # the compiler that the pinned `bootloader` crate (see Cargo.toml) is known to build with
# Without what Debian merely recommends; so what cargo needs for its downloads is named, and a linker without the whole
# of LLVM's tools (rust-web-llvm).
packages=(rustc-web cargo-web rust-web-src lld-22 gcc libc6-dev ca-certificates qemu-system-x86 ovmf)

say() { printf 'run-qemu: %s\n' "$*" >&2; }

# `fs` has options and a help text of its own, which the program prints, and output that others read. What only some
# jobs need is installed for those.
program=boot verbosity=() tests='' debugs='' peers='' junit='' before=''
[[ ${1:-} != fs ]] || program=fsimage verbosity=(--quiet)
[[ ${1:-} != lab ]] || program=lab
[[ ${1:-} != report ]] || program=report
[[ ${1:-} != trace ]] || program=trace verbosity=(--quiet)
[[ ${1:-} != book ]] || program=book
for arg in "$@"; do
    [[ $program = boot ]] || break
    case $before:$arg in
        # The value of an option or the file of a job, whatever word it is. A test compares this list with the program's.
        --smp:* | --mem:* | --pmem:* | --pmem-file:* | --virtio-pmem:* | --nvme:* | --dimm:* | --dimm-file:* | \
            --pull-every:* | --seed:* | --accel:* | --acpitable:* | --bug:* | --mode:* | --append:* | --timeout:* | \
            --junit:* | --baseline:* | --save:* | --scenario:* | --seeds:* | --strategy:* | --depth:* | --threads:* | \
            --replay:* | media:[!-]*) ;;
        *:--quiet) verbosity=(--quiet) ;;
        *:test) tests=1 debugs=1 ;;
        *:--debug) debugs=1 ;;
        *:--junit | *:--junit=*) junit=1 ;;
        *:--linux | *:--linux=*) peers=1 ;;
        *:-h | *:--help) exec cat -- "$root/boot/help.txt" ;;
    esac
    before=$arg
done
[[ -z $tests ]] || packages+=(rustfmt-web rust-web-clippy)
[[ -z $debugs ]] || packages+=(gdb)
[[ -z $peers ]] || packages+=(gcc-12 make xz-utils libelf1)

# Prints the bin directory of every toolchain on this machine that has the standard library's source,
# the one that is active in this directory first.
toolchains() {
    local bin sysroot
    for bin in "$(cd -- "$root" && rustc --print sysroot 2>/dev/null || echo /nowhere)/bin" \
        "${RUSTUP_HOME:-${HOME:-/nonexistent}/.rustup}"/toolchains/*/bin /usr/bin; do
        [[ -x $bin/rustc && -x $bin/cargo ]] || continue
        # /usr/bin/rustc may be rustup's proxy on some systems; the sysroot that it answers with is what counts.
        sysroot=$("$bin/rustc" --print sysroot 2>/dev/null) || continue
        if [[ -e $sysroot/lib/rustlib/src/rust/library/core/Cargo.toml ]]; then printf '%s\n' "$bin"; fi
    done
}

# Sets `toolchain` to the wanted version if it is there, else to any that has the source.
choose_toolchain() {
    local bin
    toolchain=''
    while read -r bin; do
        case $("$bin/rustc" --version) in
            "rustc $wanted."*) toolchain=$bin && return ;;
            *) toolchain=${toolchain:-$bin} ;;
        esac
    done < <(toolchains)
}

# rustup puts it into the toolchain; Debian's link to it is in a package that is only recommended.
has_rust_lld() { has rust-lld || [[ -n $(compgen -G "$toolchain/../lib/rustlib/*/bin/rust-lld") ]]; }

# Is there a program of the toolchain, or on the path?
has() { [[ -x $toolchain/$1 || -n $(command -v "$1") ]]; }

# What is missing, in words; empty when nothing is.
missing() {
    choose_toolchain
    [[ -n $toolchain ]] || printf 'a Rust %s toolchain with its source, ' "$wanted"
    [[ -z $tests || -z $toolchain ]] || has cargo-fmt || printf 'rustfmt, '
    [[ -z $tests || -z $toolchain ]] || has cargo-clippy || printf 'clippy, '
    [[ -z $debugs ]] || command -v gdb >/dev/null || printf 'gdb, '
    [[ -z $peers ]] || command -v gcc-12 >/dev/null || printf 'gcc-12, '
    [[ -z $peers ]] || command -v make >/dev/null || printf 'make, '
    [[ -z $peers ]] || command -v xz >/dev/null || printf 'xz, '
    [[ -z $toolchain ]] || has_rust_lld || has lld-22 || printf 'a linker (rust-lld or lld-22), '
    [[ $toolchain != /usr/bin || -e /etc/ssl/certs/ca-certificates.crt ||
        -n ${SSL_CERT_FILE:-}${CARGO_HTTP_CAINFO:-} ]] || printf 'certificates for downloads (ca-certificates), '
    command -v cc >/dev/null || printf 'a C linker (cc), '
    command -v qemu-system-x86_64 >/dev/null || printf 'qemu-system-x86_64, '
    [[ -n ${OVMF_CODE:-} || -e /usr/share/OVMF/OVMF_CODE_4M.fd || -e /usr/share/OVMF/OVMF_CODE.fd ||
        -e /usr/share/edk2/x64/OVMF_CODE.4m.fd || -e /usr/share/edk2/ovmf/OVMF_CODE.fd ]] || printf 'OVMF firmware, '
}

explain_and_stop() {
    say "missing: ${lack%, }"
    say 'On Debian 12, as root:'
    say "    apt-get update && apt-get install -y --no-install-recommends ${packages[*]}"
    say "Elsewhere: QEMU 7.2 or later, OVMF, and a Rust $wanted toolchain with its source:"
    say "    rustup toolchain install $wanted --component rust-src,rustfmt,clippy"
    exit 1
}

install_missing() {
    local as_root=() options=(-y --no-install-recommends)
    command -v apt-get >/dev/null || explain_and_stop
    if [[ $EUID -ne 0 ]]; then
        sudo -n true 2>/dev/null || explain_and_stop
        as_root=(sudo -n)
    fi
    say "missing: ${lack%, }"
    say "installing Debian packages: ${packages[*]}"
    # On a terminal apt-get shows percentages, first of the download and then of the installation.
    if [[ -t 2 ]]; then options+=(-o Dpkg::Progress-Fancy=1); else options+=(-q); fi
    "${as_root[@]}" apt-get update -q >&2 &&
        "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install "${options[@]}" "${packages[@]}" >&2 ||
        explain_and_stop
    hash -r
    lack=$(missing)
    [[ -z $lack ]] || explain_and_stop
}

lack=$(missing)
[[ -z $lack ]] || install_missing
choose_toolchain

# What stopped a build of these arguments, where it was neither the code nor the compiler: each is tried by itself. Prints
# nothing where it is none of these.
what_stopped() {
    local said
    if ! said=$({ head -c 16777216 /dev/zero >"$target/room"; } 2>&1); then
        printf '%s cannot take 16 MiB more (%s): make room, or name another directory with CARGO_TARGET_DIR' \
            "$target" "${said##*: }"
    # Without the network cargo says so only where it lacks something.
    elif said=$("$toolchain/cargo" build --offline "$@" 2>&1) || [[ $said == *--offline* ]] &&
        ! said=$("$toolchain/cargo" fetch --locked --manifest-path "$root/Cargo.toml" 2>&1); then
        said=${said##*$'\n'}
        printf "the crates that Cargo.lock names cannot be fetched (%s): cargo needs the network (HTTPS_PROXY), certificates (CARGO_HTTP_CAINFO) or a mirror (cargo's source replacement)" \
            "${said#"${said%%[![:space:]]*}"}"
    fi
    rm -f -- "$target/room"
}

# The directory that was asked for is relative to where the user stands, not to the project.
target=$(realpath -m -- "${CARGO_TARGET_DIR:-$root/target}")
export CARGO_TARGET_DIR=$target PATH="$toolchain:$PATH" UNPLUG_ROOT=$root
unset RUSTC RUSTC_WRAPPER RUSTFLAGS RUSTUP_TOOLCHAIN
if ! said=$(mkdir -p -- "$target" 2>&1) || [[ ! -w $target ]]; then
    say "$target cannot be written (${said##*: }): name another directory with CARGO_TARGET_DIR"
    exit 1
fi

# Debian's lld without Debian's link to it: it is told by its first argument which linker it is.
if ! has_rust_lld; then
    export CARGO_TARGET_X86_64_TARGET_LINKER=lld-22 CARGO_TARGET_X86_64_UNKNOWN_UEFI_LINKER=lld-22
fi

# `boot` builds the kernel and the loader; without the file system's commands it needs nothing of the kernel's itself, and
# without the report nothing that draws, without JUnit nothing that writes XML.
features=(--no-default-features)
[[ $program != fsimage ]] || features+=(--features fs)
[[ $program != lab ]] || features+=(--features lab)
[[ $program != report ]] || features+=(--features report)
[[ $program != trace ]] || features+=(--features trace)
[[ -z $junit ]] || features+=(--features junit)
[[ $program != book ]] || features+=(--features book)
[[ -n ${verbosity[*]} || -x $target/tool/$program ]] || say 'building for the first time, which takes some minutes'
build=("${verbosity[@]}" --manifest-path "$root/Cargo.toml" --profile tool -p boot --bin "$program" "${features[@]}")
if ! "$toolchain/cargo" build "${build[@]}"; then
    said=$(what_stopped "${build[@]}")
    say "${said:-"the host side did not build with $("$toolchain/rustc" --version) ($toolchain); known to work: Rust $wanted."}"
    exit 1
fi
exec "$target/tool/$program" "$@"
