"""A parent that holds what belongs to the network namespace of its child: a listener, and the namespace itself.

    crossing.py [--namespace]

The child makes a namespace of its own, listens in it on port 7001 and hands the socket to its parent. With
``--namespace`` the parent also keeps a descriptor of the namespace open.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys

CLONE_NEWNET = 0x40000000


def child(to_parent: socket.socket) -> None:
    """Listen in a fresh namespace, and let the parent have both."""
    if ctypes.CDLL(None).unshare(CLONE_NEWNET):
        os._exit(1)
    listener = socket.create_server(("127.0.0.1", 7001))
    namespace = os.open("/proc/self/ns/net", os.O_RDONLY)
    socket.send_fds(to_parent, [b"both"], [listener.fileno(), namespace])
    os.close(namespace)
    to_parent.close()
    signal.pause()


def main() -> None:
    """Fork, receive, wait."""
    ours, theirs = socket.socketpair()
    if os.fork() == 0:
        ours.close()
        child(theirs)
    theirs.close()
    _, (_, namespace), _, _ = socket.recv_fds(ours, 64, 2)
    ours.close()
    if "--namespace" not in sys.argv:
        os.close(namespace)
    print("ready", flush=True)
    signal.pause()


if __name__ == "__main__":
    main()
