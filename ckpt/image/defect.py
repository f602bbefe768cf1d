"""What can be wrong with an image, and how it is said.

Each kind of defect has one stable code, one phrase that completes "IMAGE …", and where there is something to do, a
hint. A ``Place`` is carried along while reading, so that every message names the image and the frame or the field.
"""

from __future__ import annotations

import enum

from ckpt.errors import ImageError
from ckpt.records import dataclass


class Defect(enum.StrEnum):
    """A kind of defect: the value is the error's code."""

    NOT_CKPT = "image-not-ckpt"
    VERSION = "image-version"
    TRUNCATED = "image-truncated"
    TRAILING = "image-trailing"
    DIGEST = "image-digest"
    MALFORMED = "image-malformed"
    LIMIT = "image-limit"
    NAME = "image-name"
    DUPLICATE = "image-duplicate"
    FRAME = "image-frame"
    CODEC = "image-codec"
    ALGORITHM = "image-algorithm"
    COMPRESSION = "image-compression"
    INDEX = "image-index"
    SECTION_UNKNOWN = "image-section-unknown"
    SECTION_MISSING = "image-section-missing"
    FIELD = "image-field"
    FILE_MISSING = "image-file-missing"
    IS_DIRECTORY = "image-is-directory"
    NOT_FILE = "image-not-file"


_NEWER = "use the ckpt that wrote the image, or a newer one"
_AGAIN = "take the image again from where it was written; ckpt verify tells whether a copy is whole"

_PHRASES: dict[Defect, tuple[str, str | None]] = {
    Defect.NOT_CKPT: ("is not a ckpt image", None),
    Defect.VERSION: ("is of a format version that this ckpt cannot read", _NEWER),
    Defect.TRUNCATED: ("is cut off", _AGAIN),
    Defect.TRAILING: ("has bytes after its end", _AGAIN),
    Defect.DIGEST: ("is damaged", _AGAIN),
    Defect.MALFORMED: ("does not follow the format", _AGAIN),
    Defect.LIMIT: ("exceeds a limit of the format", None),
    Defect.NAME: ("holds a name that is not allowed", None),
    Defect.DUPLICATE: ("holds a name twice", None),
    Defect.FRAME: ("holds a frame of unknown type", _NEWER),
    Defect.CODEC: ("uses an unknown compression", _NEWER),
    Defect.ALGORITHM: ("uses an unknown digest", _NEWER),
    Defect.COMPRESSION: ("holds a chunk that does not decompress", None),
    Defect.INDEX: ("has an index that does not fit its frames", None),
    Defect.SECTION_UNKNOWN: ("needs a section that this ckpt does not know", _NEWER),
    Defect.SECTION_MISSING: ("lacks a section", None),
    Defect.FIELD: ("holds a record that this ckpt does not understand", _NEWER),
    Defect.FILE_MISSING: ("lacks a file", None),
    Defect.IS_DIRECTORY: ("is a directory", "name an image (*.ckpt) in it"),
    Defect.NOT_FILE: ("is not a regular file", "read it through a pipe, or name the image itself"),
}


@dataclass(frozen=True, slots=True)
class Place:
    """Where in which image: ``image`` is its path or what else the user knows it by."""

    image: str
    at: str = ""

    def inside(self, at: str) -> Place:
        """The same image at ``at``."""
        return Place(self.image, at)

    def error(self, defect: Defect, detail: str = "") -> ImageError:
        """The error for ``defect`` here; ``detail`` says what was found."""
        phrase, hint = _PHRASES[defect]
        details = ": ".join(part for part in (self.at, detail) if part)
        return ImageError(f"{self.image} {phrase}", code=str(defect), details=details or None, hint=hint)
