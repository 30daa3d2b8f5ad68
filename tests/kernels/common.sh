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

install_missing() {
    local packages=()
    command -v qemu-system-x86_64 >/dev/null || packages+=(qemu-system-x86)
    # Only a static busybox runs without a C library beside it.
    if ! busybox true 2>/dev/null || ldd "$(command -v busybox)" >/dev/null 2>&1; then
        packages+=(busybox-static)
    fi
    command -v cpio >/dev/null || packages+=(cpio)
    command -v python3 >/dev/null || packages+=(python3-minimal)
    ((${#packages[@]})) || return 0
    if ((EUID != 0)); then
        echo "${0##*/}: install ${packages[*]} first (as root this script does it)" >&2
        exit 69
    fi
    apt-get -qq update
    apt-get -qq install --yes --no-install-recommends "${packages[@]}" >/dev/null
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
