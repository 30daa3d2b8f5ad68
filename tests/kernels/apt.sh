# shellcheck shell=bash
# apt with a configuration of its own: packages of any Debian release and architecture are fetched
# with their signatures checked, and the machine's sources and package lists stay as they are,
# whatever release the machine itself runs. The mirror is the one that the machine's own sources
# name.

keyring=/usr/share/keyrings/debian-archive-keyring.gpg

# The sources may be in either of apt's two formats; apt itself knows how to read them. Security
# archives carry no full release, so they are passed over.
debian_mirror() {
    # shellcheck disable=SC2016 # apt expands them.
    apt-get indextargets --format '$(REPO_URI) $(COMPONENT)' 'Created-By: Packages' |
        awk '$2 == "main" && $1 ~ /debian\/?$/ && $1 !~ /security/ && !seen++ { print $1 }'
}

# Makes a configuration below a directory, exports it and loads the package lists.
private_apt() {
    local release=$1 architecture=$2 directory=$3 mirror
    mirror=$(debian_mirror)
    if [[ -z $mirror ]]; then
        echo "${0##*/}: apt's sources on this machine name no Debian mirror" >&2
        exit 1
    fi
    if [[ ! -r $keyring ]]; then
        echo "${0##*/}: $keyring is missing; install debian-archive-keyring" >&2
        exit 1
    fi
    mkdir -p "$directory"/{lists/partial,cache/archives/partial,parts}
    : >"$directory/status"
    printf 'deb [arch=%s signed-by=%s] %s %s main\n' "$architecture" "$keyring" "$mirror" \
        "$release" >"$directory/sources.list"
    # How to reach the mirror (a proxy, say) is the machine's to tell; what it does after an update
    # is not wanted here.
    apt-config dump | grep '^Acquire::' >"$directory/apt.conf"
    cat >>"$directory/apt.conf" <<CONFIGURATION
Dir::Etc::main "/dev/null";
Dir::Etc::parts "$directory/parts";
Dir::State "$directory";
Dir::State::lists "$directory/lists";
Dir::State::status "$directory/status";
Dir::Cache "$directory/cache";
Dir::Etc::sourcelist "$directory/sources.list";
Dir::Etc::sourceparts "$directory/parts";
APT::Architecture "$architecture";
APT::Architectures { "$architecture"; };
APT::Sandbox::User "root";
Acquire::Languages "none";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
CONFIGURATION
    export APT_CONFIG=$directory/apt.conf
    # A mirror may hiccup; three tries tell a hiccup from a fault.
    apt-get -qq -o Acquire::Retries=3 update >&2
}

# Downloads packages into the working directory.
download() {
    apt-get -qq -o Acquire::Retries=3 download "$@" >&2
}
