"""A UDP server: every datagram comes back with the number of datagrams seen before it.

    udp_echo.py PORT

It has one socket for both families.
"""

from __future__ import annotations

import itertools
import socket
import sys


def main() -> None:
    """Echo for ever."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as echo:
        echo.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, False)
        echo.bind(("", int(sys.argv[1])))
        print("ready", flush=True)
        for number in itertools.count():
            data, sender = echo.recvfrom(1 << 16)
            echo.sendto(b"%d " % number + data, sender)


if __name__ == "__main__":
    main()
