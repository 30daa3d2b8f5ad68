"""What the user of a process can do inside its sandbox: `inside.py PID` prints it as JSON.

It enters the process's namespaces, becomes its user without any capability, and tries to create a
file in each visible directory. It is run by root on the host, and needs no file inside the sandbox.
"""

import ctypes
import json
import os
import socket
import sys

# The kernel makes their content; what a process may write there concerns only itself.
KERNEL = ("/proc", "/sys")


def enter(pid):
    """Enters the namespaces of the process and becomes its user."""
    status = {}
    with open(f"/proc/{pid}/status") as file:
        for line in file:
            name, _, value = line.partition(":")
            status[name] = value.split()
    library = ctypes.CDLL(None, use_errno=True)
    # The user namespace is last: only outside of it may this process enter the others.
    handles = [os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY) for kind in ("mnt", "net", "user")]
    # Inside the user namespace no process may give up groups.
    os.setgroups([])
    for handle in handles:
        if library.setns(handle, 0) != 0:
            raise OSError(ctypes.get_errno(), "setns")
    group, user = int(status["Gid"][1]), int(status["Uid"][1])
    os.setresgid(group, group, group)
    os.setresuid(user, user, user)
    os.chdir("/")


def writable():
    """Every directory in which a file can be created."""
    found = []
    seen = 0
    for directory, names, _ in os.walk("/"):
        names[:] = [name for name in names if os.path.join(directory, name) not in KERNEL]
        seen += 1
        path = os.path.join(directory, ".echo-uring-test")
        try:
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
        except OSError:
            continue
        os.unlink(path)
        found.append(directory)
    return found, seen


def main():
    enter(sys.argv[1])
    found, seen = writable()
    interfaces = [name for _, name in socket.if_nameindex()]
    print(json.dumps({"writable": found, "seen": seen, "interfaces": interfaces}))


main()
