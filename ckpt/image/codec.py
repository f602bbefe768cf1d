"""How a chunk is stored: zstd, lz4 or none.

``compress`` may be called from several threads at once (each has its own zstd context, and both libraries release the
interpreter's lock); ``decompress`` never allocates more than the raw length that the chunk declares, whatever the
stored bytes claim of themselves.
"""

from __future__ import annotations

import threading
from typing import Final

import lz4.block
import zstandard

from ckpt.errors import UsageError
from ckpt.image.defect import Defect, Place

CODECS: Final = ("zstd", "lz4", "none")
# The group stands still while its memory is compressed: level 1 is about twice as fast as zstd's default of 3 and
# makes chunks of memory hardly larger.
DEFAULT_LEVELS: Final = {"zstd": 1, "lz4": 1, "none": 0}

_local = threading.local()


def check_codec(codec: str, level: int | None) -> int:
    """The level to use with ``codec``; raises UsageError for an unknown codec, or a level that it does not have."""
    if codec not in CODECS:
        raise UsageError(f"there is no compression {codec!r}", code="codec-unknown", hint=f"choose {', '.join(CODECS)}")
    if level is None:
        return DEFAULT_LEVELS[codec]
    least, most = {"zstd": (-22, 22), "lz4": (1, 12), "none": (0, 0)}[codec]
    if not least <= level <= most:
        raise UsageError(
            f"{codec} has no level {level}", code="codec-level", hint=f"choose one from {least} to {most}, or none"
        )
    return level


def compress(codec: str, level: int, raw: memoryview) -> tuple[str, bytes | memoryview]:
    """``raw`` stored with ``codec``, or as it is where that is not smaller: the codec that was used, and the bytes."""
    stored: bytes | memoryview = raw
    if codec == "zstd":
        stored = _compressor(level).compress(raw)
    elif codec == "lz4":
        mode = {"mode": "fast"} if level == 1 else {"mode": "high_compression", "compression": level}
        stored = lz4.block.compress(raw, store_size=False, **mode)
    return (codec, stored) if len(stored) < len(raw) else ("none", raw)


def decompress(codec: str, stored: bytes | bytearray, raw: int, place: Place) -> bytes | bytearray:
    """Exactly ``raw`` bytes from ``stored``; raises ImageError where they do not come out."""
    data: bytes | bytearray
    try:
        if codec == "none":
            data = stored
        elif codec == "zstd":
            data = _decompress_zstd(stored, raw)
        elif codec == "lz4":
            data = lz4.block.decompress(stored, uncompressed_size=raw)
        else:
            raise place.error(Defect.CODEC, f"codec {codec!r}")
    except (zstandard.ZstdError, lz4.block.LZ4BlockError, ValueError, MemoryError) as error:
        # In our words: the libraries' own differ from one version to the next.
        raise place.error(Defect.COMPRESSION, f"the stored bytes are not {raw} bytes under {codec}") from error
    if len(data) != raw:
        raise place.error(Defect.COMPRESSION, f"the stored bytes are {len(data)} bytes under {codec}, not {raw}")
    return data


def _decompress_zstd(stored: bytes | bytearray, raw: int) -> bytes:
    # decompress() allocates what the zstd frame says of itself: hold that against the bounded length first.
    says = zstandard.get_frame_parameters(stored).content_size
    if says != raw:
        raise ValueError(f"its frame says {says} bytes instead of {raw}")
    if not hasattr(_local, "decompressor"):
        _local.decompressor = zstandard.ZstdDecompressor()
    data: bytes = _local.decompressor.decompress(stored, max_output_size=raw, allow_extra_data=False)
    return data


def _compressor(level: int) -> zstandard.ZstdCompressor:
    made: dict[int, zstandard.ZstdCompressor] | None = getattr(_local, "compressors", None)
    if made is None:
        made = _local.compressors = {}
    if level not in made:
        made[level] = zstandard.ZstdCompressor(level=level, write_content_size=True, write_checksum=False)
    return made[level]
