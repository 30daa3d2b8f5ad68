# shellcheck shell=bash
# What the tests in the emulator have in common: tools, cargo's products, programs for an initramfs.

# The newest of cargo's messages about an executable of this kind and name.
artifact() {
    python3 -c '
import json, sys
kind, name = sys.argv[1:]
found = ""
for line in sys.stdin:
    message = json.loads(line)
    target = message.get("target", {})
    if message.get("executable") and target.get("name") == name and kind in target.get("kind", []):
        found = message["executable"]
print(found)' "$@"
}

# What the tests on the kernels for amd64 need.
install_missing() {
    local packages=()
    # Only a static busybox runs without a C library beside it.
    if ! busybox true 2>/dev/null || ldd "$(command -v busybox)" >/dev/null 2>&1; then
        packages+=(busybox-static)
    fi
    install_packages qemu-system-x86_64=qemu-system-x86 cpio=cpio python3=python3-minimal \
        "${packages[@]}"
}

# Installs packages by apt: each one that is named, and of PROGRAM=PACKAGE those whose program is
# missing.
install_packages() {
    local name packages=()
    for name; do
        [[ $name == *=* ]] && command -v "${name%%=*}" >/dev/null || packages+=("${name#*=}")
    done
    ((${#packages[@]})) || return 0
    if ((EUID != 0)); then
        echo "${0##*/}: install ${packages[*]} first (as root this script does it)" >&2
        exit 69
    fi
    apt-get -qq update
    DEBIAN_FRONTEND=noninteractive \
        apt-get -qq install --yes --no-install-recommends "${packages[@]}" >/dev/null
}

# Packs a tree for the kernel to unpack at its start.
pack() {
    (cd "$1" && find . | cpio --quiet --create --format=newc --owner=0:0)
}

report_failure() {
    echo "kernels: $1: $2"
    echo "kernels: the console's last lines ($3):"
    tail -n 60 "$3" | tr -d '\r' | sed 's/^/    | /'
}

# What every kernel is told.
# shellcheck disable=SC2034 # For the scripts that boot one.
kernel_options='panic=-1 loglevel=4'

# Boots a machine and judges its console. Returns 0 if everything has passed.
#
#   prove NAME CONSOLE SECONDS EMULATOR…
prove() {
    local kernel=$1 console=$2 deadline=$3 status began=$SECONDS attempt
    shift 3
    for attempt in 1 2 3; do
        status=0
        : >"$console"
        timeout --kill-after=5 "$deadline" "$@" -smp 2 -no-reboot -no-user-config -nodefaults \
            -nic none -display none -serial "file:$console" </dev/null || status=$?
        # A machine that has not come as far as `init` has said nothing about the daemon.
        ! grep -q 'kernel-smoke: release' "$console" || break
        # One that hangs has used up its time.
        ((status != 124 && status != 137)) || break
        echo "kernels: $kernel: boot $attempt did not reach user space"
    done
    if ! grep -q 'kernel-smoke: verdict failures=' "$console"; then
        local cause="the machine ended without a verdict (qemu: status $status)"
        ((status != 124 && status != 137)) || cause="no verdict within $deadline s"
        report_failure "$kernel" "$cause" "$console"
        return 1
    fi
    if ! tr -d '\r' <"$console" | grep -qx 'kernel-smoke: verdict failures=0'; then
        local failures
        failures=$(tr -d '\r' <"$console" | sed -n 's/.*FAILED: //p' | paste -sd ';')
        report_failure "$kernel" "$failures" "$console"
        return 1
    fi
    tr -d '\r' <"$console" | grep -E '^(kernel-smoke|daemon|refusal|doctor|load|test )' |
        sed 's/^/    /'
    echo "kernels: $kernel: passed in $((SECONDS - began)) s"
}

# Copies a program into the tree, stripped, with each shared library and the loader at the places
# where it looks.
add_program() {
    local program=$1 name=$2 tree=$3 library
    install -D -m 755 "$program" "$tree/bin/$name"
    # Debugging information is most of a test binary and all of it would be unpacked into the
    # machine's memory.
    strip --strip-debug "$tree/bin/$name" 2>/dev/null || true
    while read -r library; do
        install -D -m 755 "$library" "$tree$library"
    done < <(ldd "$program" | grep -o '/[^ ]*')
}
