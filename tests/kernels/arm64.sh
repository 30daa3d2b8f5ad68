# shellcheck shell=bash
# shellcheck disable=SC2154 # `house` and `here` are the caller's.
# What the tests on an emulated arm64 have in common. It is sourced after common.sh.
#
# Two things are not tested. The emulator executes memory accesses in the order of the machine that
# it runs on (amd64), which is stricter than that of arm64. Debian has no kernel with pages of
# 64 KiB.

# Without pointer authentication, which the emulator computes at each call of a function, and without
# the scalable vectors, which it executes slowly.
# shellcheck disable=SC2034,SC2054 # For the caller; the commas are the emulator's.
emulator_arm64=(qemu-system-aarch64 -machine virt -accel tcg,thread=multi
    -cpu "max,pauth=off,sve=off,sme=off" -append "console=ttyAMA0 $kernel_options")

# The emulator and, as install_packages takes them, other packages.
install_for_arm64() {
    install_packages qemu-system-aarch64=qemu-system-arm "$@"
}

# Sets `debs` to the paths of the packages for arm64: that of echo-load and that of the daemon.
# ECHO_ARM64_DEB names the latter, and the other one is beside it.
make_arm64_debs() {
    local daemon=${ECHO_ARM64_DEB:-} deb
    if [[ -z $daemon ]]; then
        daemon=$("$house/packaging/build-deb" --target aarch64-unknown-linux-gnu | tail -n 1)
    fi
    debs=("${daemon/%echo-uring_*/echo-load_${daemon##*echo-uring_}}" "$daemon")
    for deb in "${debs[@]}"; do
        if [[ ! -r $deb || $(dpkg-deb --field "$deb" Architecture) != arm64 ]]; then
            echo "${0##*/}: $deb is no readable package for arm64" >&2
            exit 69
        fi
    done
}

# Adds busybox, the programs of the packages and the libraries that they need to a tree.
add_arm64_programs() {
    local directory=$1 tree=$2 fetched deb name
    shift 2
    fetched=$("$here/fetch-programs" trixie arm64 "$directory" busybox-static libc6 libgcc-s1)
    install -m 755 "$fetched/usr/bin/busybox" "$tree/bin/busybox"
    for name in ld-linux-aarch64.so.1 libc.so.6 libm.so.6 libgcc_s.so.1; do
        # The kernel looks for the loader here, and the loader for libraries.
        install -D -m 755 "$fetched/usr/lib/aarch64-linux-gnu/$name" "$tree/lib/$name"
    done
    for deb; do
        dpkg-deb --fsys-tarfile "$deb" |
            tar --extract --directory "$tree/bin" --strip-components=3 --wildcards './usr/*bin/echo-*'
    done
}
