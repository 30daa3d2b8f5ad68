"""Checks of the manual pages and shell completions of the packages, on the host. This file must
know nothing about the machines.
"""

import os
import pathlib
import subprocess
import tempfile

# What each shell must complete.
ZSH = r"""
fpath=($1/usr/share/zsh/vendor-completions $fpath)
autoload -U compinit && compinit -u -D
for program in echo-uring echo-load; do
    [[ ${_comps[$program]} = _$program ]] || print "zsh has no completion for $program"
    autoload +X _$program || print "zsh cannot load _$program"
    zsh -n $1/usr/share/zsh/vendor-completions/_$program
done
"""
FISH = r"""
for program in echo-uring echo-load
    source $argv[1]/usr/share/fish/vendor_completions.d/$program.fish
end
complete -C 'echo-uring che' | string match -q 'check*'; or echo 'fish does not complete check'
complete -C 'echo-uring check --conf' | string match -q -- '--config*'; or echo 'nor --config'
complete -C 'echo-load --mode pi' | string match -q 'ping-pong*'; or echo 'nor ping-pong'
"""
BASH = r"""
for program in echo-uring echo-load; do
    . $1/usr/share/bash-completion/completions/$program
    complete -p $program >/dev/null || echo "bash has no completion for $program"
done
"""


def said_by(*command, **environment):
    """All that a command prints, on either stream, when it has nothing to say."""
    process = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **environment},
    )
    status = f"{command[0]} ended with {process.returncode}\n" if process.returncode else ""
    return status + process.stdout


def complaints(*packages):
    """What is wrong with the pages and completions of these packages; empty if nothing."""
    with tempfile.TemporaryDirectory(prefix="echo-uring-documents-") as tree:
        for package in packages:
            subprocess.run(["dpkg-deb", "--extract", str(package), tree], check=True)
        found = said_by("bash", "--norc", "-c", BASH, "bash", tree)
        found += said_by("zsh", "-f", "-c", ZSH, "zsh", tree)
        found += said_by("fish", "--no-config", "-c", FISH, tree, HOME=tree)
        pages = sorted(pathlib.Path(tree, "usr/share/man").rglob("*.gz"))
        if len(pages) < 3:
            found += f"only {len(pages)} manual pages: {pages}"
        for page in pages:
            found += said_by("mandoc", "-T", "lint", "-W", "warning", str(page))
            # To a file, as man prints fewer warnings when it writes to a pipe.
            render = f"man --warnings --local-file {page} 2>&1 >{tree}/page && test -s {tree}/page"
            found += said_by("sh", "-c", render, MANWIDTH="80")
        return found
