"""A download that takes its time, of a file of 8-byte counters; told to stop, it fetches the rest at once.

download_client.py ADDRESS BYTES
"""

from __future__ import annotations

import sys
import time

from tests.criu.programs.stream_server import counters
from tests.vm.programs.reporting import PAUSE, Report, connected

CHUNK = 1 << 12

report, size, got = Report(), int(sys.argv[2]), 0
with connected(sys.argv[1], 80, receive_buffer=1 << 15) as connection:
    connection.sendall(b"GET /file HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    answers = connection.makefile("rb", buffering=CHUNK)
    while answers.readline() != b"\r\n":
        pass
    while data := answers.read(CHUNK):
        if data != counters(got, len(data)):
            sys.exit(f"not what was asked for, after byte {got}")
        got += len(data)
        report.count += 1
        if report.going:
            time.sleep(PAUSE)
            if got == size:
                sys.exit("it is over before it was to end")
print(f"all of {got} bytes")
