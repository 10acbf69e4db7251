#!/usr/bin/env bash
# The front door: finds or installs the tools, builds what is out of date, and hands over to the `boot` program.
# Everything that is not "find a compiler" is in boot/ (Rust); the text of --help is boot/help.txt.
set -euo pipefail

root=$(cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")" && pwd)
wanted='1.96'   # the compiler that the pinned `bootloader` crate (see Cargo.toml) is known to build with
packages=(rustc-web cargo-web rust-web-src rust-web-llvm lld-22 rustfmt-web rust-web-clippy gcc libc6-dev qemu-system-x86 ovmf gdb)

say() { printf 'run-qemu: %s\n' "$*" >&2; }

# `fs` has options and a help text of its own, which the program prints, and output that others read.
verbosity=()
for arg in "$@"; do
    case $arg in
        fs) verbosity=(--quiet) && break ;;
        --quiet) verbosity=(--quiet) ;;
        -h | --help) exec cat -- "$root/boot/help.txt" ;;
    esac
done

# Prints the bin directory of every toolchain on this machine that has the standard library's source,
# the one that is active in this directory first.
toolchains() {
    local bin sysroot
    for bin in "$(cd -- "$root" && rustc --print sysroot 2>/dev/null || echo /nowhere)/bin" \
        "${RUSTUP_HOME:-$HOME/.rustup}"/toolchains/*/bin /usr/bin; do
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

# What is missing, in words; empty when nothing is.
missing() {
    choose_toolchain
    [[ -n $toolchain ]] || printf 'a Rust %s toolchain with its source, ' "$wanted"
    [[ -z $toolchain || -x $toolchain/cargo-fmt || -n $(command -v cargo-fmt) ]] || printf 'rustfmt, '
    # Debian only recommends the package of the linker that its rust-lld points to.
    [[ -z $toolchain || -e $toolchain/rust-lld || -n $(command -v rust-lld) ||
        -n $(compgen -G "$toolchain/../lib/rustlib/*/bin/rust-lld") ]] || printf 'rust-lld, '
    command -v cc >/dev/null || printf 'a C linker (cc), '
    command -v qemu-system-x86_64 >/dev/null || printf 'qemu-system-x86_64, '
    [[ -n ${OVMF_CODE:-} || -e /usr/share/OVMF/OVMF_CODE_4M.fd || -e /usr/share/OVMF/OVMF_CODE.fd ||
        -e /usr/share/edk2/x64/OVMF_CODE.4m.fd || -e /usr/share/edk2/ovmf/OVMF_CODE.fd ]] || printf 'OVMF firmware, '
}

explain_and_stop() {
    say "missing: ${lack%, }"
    say 'On Debian 12, as root:'
    say "    apt-get update && apt-get install -y ${packages[*]}"
    say "Elsewhere: QEMU 7.2 or later, OVMF, and a Rust $wanted toolchain with its source:"
    say "    rustup toolchain install $wanted --component rust-src,rustfmt,clippy"
    exit 1
}

install_missing() {
    local as_root=()
    command -v apt-get >/dev/null || explain_and_stop
    if [[ $EUID -ne 0 ]]; then
        sudo -n true 2>/dev/null || explain_and_stop
        as_root=(sudo -n)
    fi
    say "missing: ${lack%, }"
    say "installing Debian packages: ${packages[*]}"
    "${as_root[@]}" apt-get update -q >&2 &&
        "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -q -y "${packages[@]}" >&2 || explain_and_stop
    hash -r
    lack=$(missing)
    [[ -z $lack ]] || explain_and_stop
}

lack=$(missing)
[[ -z $lack ]] || install_missing
choose_toolchain

# The directory that was asked for is relative to where the user stands, not to the project.
target=$(realpath -m -- "${CARGO_TARGET_DIR:-$root/target}")
export CARGO_TARGET_DIR=$target PATH="$toolchain:$PATH" UNPLUG_ROOT=$root
unset RUSTC RUSTC_WRAPPER RUSTFLAGS RUSTUP_TOOLCHAIN

# The UEFI loader that `boot` embeds is built for its own target from the library's source, which stable Rust must be
# told to allow. Host tests and lints never see this variable.
if ! RUSTC_BOOTSTRAP=1 "$toolchain/cargo" build "${verbosity[@]}" --manifest-path "$root/Cargo.toml" -p boot --features image --bin boot; then
    say "the host side did not build with $("$toolchain/rustc" --version) ($toolchain) and" \
        "bootloader $(sed -n 's/^bootloader = .*"=\([0-9.]*\)".*/\1/p' "$root/Cargo.toml")."
    say "Known to work: Rust $wanted with the loader pinned in Cargo.toml; another compiler may want another loader."
    exit 1
fi
exec "$target/debug/boot" "$@"
