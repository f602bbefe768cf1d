"""The other end of ``tests/criu/programs/stream_server.py``: every byte of both directions is verified.

stream_client.py ADDRESS PORT
"""

from __future__ import annotations

import sys
import time

from tests.criu import stream as streams
from tests.vm.programs.reporting import CONNECT_SECONDS, PAUSE, Report, connected

streams.PAUSE = PAUSE
streams.PATIENCE = CONNECT_SECONDS

report = Report()
with streams.Stream(connected(sys.argv[1], int(sys.argv[2]))) as stream:
    while report.going:
        stream.check()
        report.count = min(stream.records, stream.verified_by_server // 8)
        time.sleep(0.05)
    stream.finish()
    report.count = stream.records
