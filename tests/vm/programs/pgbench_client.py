"""pgbench on a fresh database, until it is told to stop; then what the tables say has to agree.

pgbench_client.py ADDRESS PROGRAMS
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading

from tests.vm.programs.reporting import Report, connected

MOVED = "(select coalesce(sum(delta), 0) from pgbench_history)"
SUMS = [f"(select sum({kind[0]}balance) from pgbench_{kind})" for kind in ("accounts", "tellers", "branches")]
BALANCED = "select " + " and ".join(f"{one} = {MOVED}" for one in SUMS)

report, (address, programs) = Report(), sys.argv[1:3]
at = ["-h", address, "-U", "postgres"]
connected(address, 5432).close()
subprocess.run(
    [f"{programs}/pgbench", *at, "-i", "-q", "-I", "dtGp", "postgres"], check=True, stderr=subprocess.DEVNULL
)
bench = subprocess.Popen(
    [f"{programs}/pgbench", *at, "-c", "2", "-R", "10", "-T", "3600", "-P", "1", "--no-vacuum", "postgres"],
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    text=True,
)


def read() -> None:
    """Count the transactions that it tells of; anything else that it says is wrong."""
    assert bench.stderr is not None
    for line in bench.stderr:
        told = re.match(r"progress: [\d.]+ s, ([\d.]+) tps, .* (\d+) failed", line)
        if told and told[2] == "0":
            report.count += round(float(told[1]))
        else:
            print(line.strip(), flush=True)


threading.Thread(target=read, daemon=True).start()
while report.going and bench.poll() is None:
    report.wait(0.2)
if bench.poll() is not None:
    sys.exit(f"pgbench ended with {bench.returncode}")
bench.send_signal(signal.SIGINT)
bench.wait()
agreed = subprocess.run([f"{programs}/psql", *at, "-AtX", "-c", BALANCED, "postgres"], capture_output=True, text=True)
if agreed.stdout.strip() != "t":
    sys.exit(f"the tables do not agree: {agreed.stdout}{agreed.stderr}")
print("the tables agree")
