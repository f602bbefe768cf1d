"""Sends datagrams without a pause and says what went wrong.

python3 -I -S udp_sender.py ADDRESS PORT
"""

from __future__ import annotations

import itertools
import socket
import sys

with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
    sender.connect((sys.argv[1], int(sys.argv[2])))
    for number in itertools.count():
        try:
            sender.send(b"%d" % number)
        except ConnectionRefusedError:
            pass  # nobody listens there: an answer of the peer, not of the lock
        except OSError as error:
            print("failed:", error, flush=True)
        if number == 0:
            print("sending", flush=True)
