# shellcheck shell=sh
# What the build scripts have in common: versions, and everything that would make two builds of the same
# source differ. It is sourced, in the root of the source tree.

fail() {
	echo "${0##*/}: $*" >&2
	exit 1
}

need() {
	command -v "$1" >/dev/null || fail "$1 is missing; $2"
}

# A tool of cargo's. Unoptimised: building it is most of its run time.
need_cargo_tool() {
	PATH="$PATH:${CARGO_HOME:-$HOME/.cargo}/bin"
	command -v "$1" >/dev/null || {
		echo "${0##*/}: $1 is missing; installing it with 'cargo install --locked $1'" >&2
		cargo install --locked --debug "$1" >&2
	}
}

need cargo "see https://rustup.rs; on Debian 13, 'apt-get install -t trixie-backports cargo'"
need dpkg-parsechangelog "'apt-get install dpkg-dev'"

# What a file or an archive contains must not depend on who builds it, and where.
umask 022
export LC_ALL=C.UTF-8 TZ=UTC
# All time stamps are those of the last changelog entry.
SOURCE_DATE_EPOCH=$(dpkg-parsechangelog -l packaging/deb/changelog -S Timestamp)
export SOURCE_DATE_EPOCH

# As in 0.2.0-1: version and release. Cargo.toml has the former.
package_version=$(dpkg-parsechangelog -l packaging/deb/changelog -S Version)
version=${package_version%-*}
# shellcheck disable=SC2034 # For the rpm.
release=${package_version##*-}
# As in path+file:///…#echo-uring@0.2.0.
manifest=$(cargo pkgid --locked --package echo-uring)
[ "$version" = "${manifest##*[#@]}" ] ||
	fail "the version in packaging/deb/changelog is $version, and in Cargo.toml ${manifest##*[#@]}"

target=${CARGO_TARGET_DIR:-target}
mkdir -p "$target"
target=$(cd "$target" && pwd)
# shellcheck disable=SC2034 # For the scripts that produce one file.
artifacts=$target/artifacts

# Exports the flags for the compiler, with those that are given. No path of the building machine gets into
# a program: neither that of the source tree, nor those of cargo's registries, which depend on the mirror.
export_rustflags() {
	cargo fetch --locked --quiet
	CARGO_ENCODED_RUSTFLAGS="--remap-path-prefix=$PWD=/usr/src/echo-uring"
	# The separator allows for blanks in paths.
	for registry in "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*; do
		CARGO_ENCODED_RUSTFLAGS=$(printf '%s\037%s' "$CARGO_ENCODED_RUSTFLAGS" \
			"--remap-path-prefix=$registry=/usr/src/cargo")
	done
	for flag; do
		CARGO_ENCODED_RUSTFLAGS=$(printf '%s\037%s' "$CARGO_ENCODED_RUSTFLAGS" "$flag")
	done
	export CARGO_ENCODED_RUSTFLAGS
}
