"""A server whose every byte can be verified, in both directions, on any number of connections.

It sends records of two numbers: the record's own, counting from 0, and how many bytes of the client it has verified
so far. The client sends 8-byte counters from 0 on. A byte that is lost, doubled or out of place is noticed by the
other end at once: the client by the record's number, the server by comparing, whereupon it drops the connection.

    stream_server.py [--family v4|v6|dual] [--port N] [--buffer BYTES] [--records N] [--pause SECONDS] [--hold]

``--pause`` is between two batches of records. ``--records`` shuts the sending side down after that many; ``--hold``
reads nothing before SIGUSR1. SIGUSR2 closes every connection. ``tests/criu/stream.py`` is the other end.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import signal
import socket
import struct

RECORD = struct.Struct(">QQ")
BATCH = 32
PAUSE = 0.003


def counters(offset: int, length: int) -> bytes:
    """The bytes ``offset`` to ``offset + length`` of the endless row of 8-byte counters."""
    first, skipped = divmod(offset, 8)
    count = (skipped + length + 7) // 8
    return struct.pack(f">{count}Q", *range(first, first + count))[skipped : skipped + length]


class Connection:
    """One client."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, options: argparse.Namespace) -> None:
        self.reader = reader
        self.writer = writer
        self.records = options.records
        self.pause = options.pause
        self.verified = 0

    async def receive(self, go: asyncio.Event) -> None:
        """Compare what comes, to the client's end of stream."""
        await go.wait()
        while data := await self.reader.read(1 << 16):
            if data != counters(self.verified, len(data)):
                print(f"not what was sent, after byte {self.verified}", flush=True)
                self.writer.transport.abort()
                return
            self.verified += len(data)
        print(f"end of stream after {self.verified} bytes", flush=True)

    async def send(self) -> None:
        """Send records until the client is gone, or so many as were asked for."""
        numbers = itertools.count() if self.records is None else iter(range(self.records))
        while batch := list(itertools.islice(numbers, BATCH)):
            self.writer.write(b"".join(RECORD.pack(number, self.verified) for number in batch))
            await self.writer.drain()
            await asyncio.sleep(self.pause)
        self.writer.write_eof()


async def serve(options: argparse.Namespace) -> None:
    """Accept connections for ever."""
    go = asyncio.Event()
    if not options.hold:
        go.set()
    connections: set[Connection] = set()

    def close_all() -> None:
        for connection in connections:
            connection.writer.close()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Connection(reader, writer, options)
        connections.add(connection)
        done = await asyncio.gather(connection.receive(go), connection.send(), return_exceptions=True)
        print(f"done: {done}", flush=True)
        connections.discard(connection)
        writer.close()

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, go.set)
    loop.add_signal_handler(signal.SIGUSR2, close_all)
    server = await asyncio.start_server(connected, sock=listener(options), backlog=options.backlog)
    print("ready", flush=True)
    await server.serve_forever()


def listener(options: argparse.Namespace) -> socket.socket:
    """The listening socket; its buffers are those of its connections."""
    family = socket.AF_INET if options.family == "v4" else socket.AF_INET6
    found = socket.socket(family, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        found.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, options.family == "v6")
    if options.buffer:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, options.buffer)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, options.buffer)
    found.bind(("", options.port))
    return found


def main() -> None:
    """Parse the options and serve."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--family", choices=["v4", "v6", "dual"], default="dual")
    parser.add_argument("--port", type=int, default=7000)
    parser.add_argument("--backlog", type=int, default=100)
    parser.add_argument("--buffer", type=int)
    parser.add_argument("--records", type=int)
    parser.add_argument("--pause", type=float, default=PAUSE)
    parser.add_argument("--hold", action="store_true")
    asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
