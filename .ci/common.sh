# shellcheck shell=bash
# What the gate and the night have in common: the clock of the steps, and what they need installed.

began=$SECONDS
step() { printf '\n=== [%4ds] %s\n' $((SECONDS - began)) "$*"; }

# Tools of cargo's that are installed by `install_tool`.
export PATH="$PATH:${CARGO_HOME:-$HOME/.cargo}/bin"

# By apt, where that is possible; what is there already costs a second.
install_packages() {
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        export DEBIAN_FRONTEND=noninteractive
        apt-get install -y -qq --no-install-recommends "$@" >/dev/null
    fi
}

prerequisites() {
    if ! command -v cargo >/dev/null; then
        echo "cargo is missing: install a Rust toolchain (https://rustup.rs)" >&2
        exit 1
    fi
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        apt-get update -qq
    fi
    # gcc and dpkg-dev: to link and to package; strace: fault injection in tests/daemon; python3: the scripts;
    # the keyring: kernels and machines come signed. The other scripts install what else they need.
    install_packages gcc libc6-dev dpkg-dev strace util-linux python3 debian-archive-keyring
}

# A tool of cargo's, unoptimised: building it is most of its run time.
install_tool() {
    command -v "$1" >/dev/null || cargo install --quiet --locked --debug "$1"
}
