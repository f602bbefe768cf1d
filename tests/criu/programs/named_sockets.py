"""A server that uses every kind of socket that names an address, and says of each whether it works.

    named_sockets.py V4 V6 [PORT]

It listens on both addresses and on UDP, and holds connections with itself: TCP over its own address, UDP over
loopback, and a raw socket on its own address. Who connects is told in one line what still works, and where it is.
"""

from __future__ import annotations

import select
import socket
import sys

PROTOCOL = 253
"""For experiments (RFC 3692)."""


def main() -> None:
    """Answer for ever."""
    v4, v6, port = sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 7000
    listeners = [socket.create_server((v4, port)), socket.create_server((v6, port), family=socket.AF_INET6)]
    echo = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    echo.bind((v4, port))
    # Over its own address, which moves with both of its ends.
    near = socket.create_connection((v4, port))
    far = listeners[0].accept()[0]
    one, other = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
    one.bind(("127.0.0.1", port + 1))
    other.connect(("127.0.0.1", port + 1))
    raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, PROTOCOL)
    raw.bind((v4, 0))
    print("ready", flush=True)
    while True:
        for ready in select.select([*listeners, echo], [], [])[0]:
            if ready is echo:
                data, sender = echo.recvfrom(100)
                echo.sendto(data + b" back", sender)
                continue
            client, _ = ready.accept()
            near.sendall(b"tcp")
            other.send(b"udp")
            words = [far.recv(3).decode(), one.recv(3).decode(), raw.getsockname()[0], near.getpeername()[0]]
            client.sendall(" ".join(words).encode() + b"\n")
            client.close()


if __name__ == "__main__":
    main()
