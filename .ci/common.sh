# shellcheck shell=bash
# Shared by the gate and the nightly run: the timing of the steps, and the installation of tools.

began=$SECONDS
step() { printf '\n=== [%4ds] %s\n' $((SECONDS - began)) "$*"; }

# Cargo tools that `install_tool` installs.
export PATH="$PATH:${CARGO_HOME:-$HOME/.cargo}/bin"

# By apt, if that is possible; if all is installed, it takes a second.
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
    # the keyring: signatures of kernels and machines. The other scripts install their own tools.
    install_packages gcc libc6-dev dpkg-dev strace util-linux python3 debian-archive-keyring
}

# Starts a command that is not waited for yet: `begin NAME COMMAND …`. It gets only the time that nothing else
# wants, so that tests keep their pace: the idle policy holds among the processes of a session, and the nice
# value of an autogroup among the sessions (sched(7)).
declare -A begun
background=$(mktemp -d)
begin() {
    local name=$1
    shift
    # shellcheck disable=SC2016 # These are expanded by the shell that is started.
    setsid chrt --idle 0 bash -c '{ echo 19 >"/proc/$$/autogroup"; } 2>/dev/null || true; exec "$@"' begin "$@" \
        >"$background/$name" 2>&1 </dev/null &
    begun[$name]=$!
}

# Waits for it. If it failed, its output is shown.
finish() {
    local status=0
    wait "${begun[$1]}" || status=$?
    unset "begun[$1]"
    ((status == 0)) || cat "$background/$1" >&2
    return "$status"
}

end_background() {
    local process
    for process in "${begun[@]}"; do
        kill -- "-$process" 2>/dev/null || true
    done
    rm -rf "$background"
}
trap end_background EXIT

# A cargo tool, unoptimised: building it takes most of its run time.
install_tool() {
    command -v "$1" >/dev/null || cargo install --quiet --locked --debug "$1"
}
