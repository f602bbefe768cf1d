"""Sends its count to a datagram socket at a path, as syslog(3) sends its lines, and connects only once.

python3 -I -S syslog_sender.py PATH
"""

from __future__ import annotations

import itertools
import socket
import sys
import time

with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
    sender.connect(sys.argv[1])
    for number in itertools.count():
        sender.send(b"%d" % number)
        time.sleep(0.02)
