"""One datagram after the other, each asked again until it is answered: with itself, and a number that never falls.

udp_client.py ADDRESS PORT
"""

from __future__ import annotations

import socket
import sys
import time

from tests.vm.programs.reporting import PAUSE, Report

report, seen = Report(), -1
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
    asking.connect((sys.argv[1], int(sys.argv[2])))
    asking.settimeout(1)
    for number in report.rounds():
        answered = b""
        # What comes late is the answer to an earlier try.
        while answered != b"%d" % number:
            if not report.going:
                sys.exit(0)
            try:
                asking.send(b"%d" % number)
                count, _, answered = asking.recv(1 << 16).partition(b" ")
            except (TimeoutError, ConnectionRefusedError):
                continue
            if int(count) <= seen or int(answered) > number:
                sys.exit(f"the answer to {number} is {answered!r}, the server's {count!r}th after {seen}")
            seen = int(count)
        time.sleep(PAUSE)
