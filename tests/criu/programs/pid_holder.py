"""A process with a PID of one's choice: the parent waits for its end of stream, the child has the PID.

    pid_holder.py PID

Says ``ready`` when the PID is taken; clone3(2) with set_tid, which needs CAP_CHECKPOINT_RESTORE.
"""

from __future__ import annotations

import ctypes
import os
import signal
import struct
import sys

SYS_CLONE3 = 435


def main() -> None:
    """Take the PID until standard input ends."""
    wanted = ctypes.c_int(int(sys.argv[1]))
    # struct clone_args: flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, set_tid_size
    arguments = struct.pack("10Q", 0, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, ctypes.addressof(wanted), 1)
    # PyDLL keeps the interpreter's lock, so that the child can go on.
    libc = ctypes.PyDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    pid = libc.syscall(SYS_CLONE3, arguments, len(arguments))
    if pid < 0:
        sys.exit(os.strerror(ctypes.get_errno()))
    if pid == 0:
        while True:
            signal.pause()
    print("ready", flush=True)
    sys.stdin.read()
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
