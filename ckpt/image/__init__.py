"""The .ckpt image: see images/FORMAT.md for the format, and each module for its part in it.

``created`` and ``Writer`` make one; ``Reader`` reads one that lies in a file, ``StreamReader`` one that comes out of
a pipe.
"""

from __future__ import annotations

from ckpt.image.extraction import extract
from ckpt.image.layout import Header, Summary
from ckpt.image.publish import created
from ckpt.image.reader import FileInfo, ImageFile, Reader, SectionInfo
from ckpt.image.stream import FileClosed, FileData, FileOpened, StreamReader
from ckpt.image.writer import FileWriter, Writer

__all__ = [
    "FileClosed",
    "FileData",
    "FileInfo",
    "FileOpened",
    "FileWriter",
    "Header",
    "ImageFile",
    "Reader",
    "SectionInfo",
    "StreamReader",
    "Summary",
    "Writer",
    "created",
    "extract",
]
