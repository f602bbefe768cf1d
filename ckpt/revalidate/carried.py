"""Files that travel in the image: what becomes of each on the target. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ckpt.model.carried import CarriedFile, Placement
from ckpt.model.checkpoint import Checkpoint
from ckpt.model.finding import Finding
from ckpt.model.host import FileFacts, TargetFacts
from ckpt.model.process import FileKind
from ckpt.revalidate.verdict import block, counted, ok, warn

PLACED = frozenset({Placement.PLACE, Placement.REPLACE})
"""After these a file is as in the image, whatever was there."""


def placements(checkpoint: Checkpoint, target: TargetFacts, *, replace: bool = False) -> dict[str, Placement]:
    """What becomes of each carried file, by its path; with ``replace`` others make way."""
    same_host = checkpoint.source.hostname == target.host.hostname
    return {one.path: _placement(one, target.files.get(one.path), same_host, replace) for one in checkpoint.carried}


def _placement(file: CarriedFile, facts: FileFacts | None, same_host: bool, replace: bool) -> Placement:
    if facts is None:
        return Placement.PLACE
    if file.kind is FileKind.SYMLINK:
        return Placement.LEAVE  # what it leads to is looked at where it is used
    if facts.kind is not file.kind:
        return Placement.REFUSE
    if file.kind is FileKind.DIRECTORY or (file.size and not file.member):
        return Placement.LEAVE
    if facts.digest is not None and facts.digest == file.digest:
        if facts.size == file.size:
            return Placement.LEAVE
        if file.append:
            return Placement.LEAVE_GROWN
    if not file.size and (not facts.size or file.append):
        return Placement.LEAVE_GROWN if facts.size else Placement.LEAVE
    if replace:
        return Placement.REPLACE
    is_very_file = same_host and (facts.inode, facts.device) == (file.inode, file.device)
    return Placement.LEAVE_CHANGED if is_very_file else Placement.REFUSE


def check_carried(checkpoint: Checkpoint, target: TargetFacts, placed: Mapping[str, Placement]) -> Iterator[Finding]:
    """A finding for each file that is placed, replaced or in the way, and one that counts those that are the same."""
    same = 0
    for one in checkpoint.carried:
        found, facts = placed[one.path], target.files.get(one.path)
        same += found in (Placement.LEAVE, Placement.LEAVE_GROWN) and one.kind is FileKind.REGULAR
        if not one.is_sound:
            yield block("carried-invalid", repr(one.path), "the image has this as a file", "do not trust this image")
        elif found is Placement.PLACE:
            yield _place(one)
        elif found is Placement.REPLACE:
            yield warn(
                "file-replaced",
                one.path,
                "here it is another one; it makes way for the image's, and is kept beside it as .ckpt-backup",
                "restore without --replace-files to keep it in its place",
            )
        elif found is Placement.LEAVE_CHANGED:
            yield warn(
                "file-changed",
                one.path,
                "it was written to since the image was made, and is left as it is",
                "--replace-files brings back what the image holds",
                needed=f"{one.size} bytes, {one.digest}",
                there=f"{facts.size if facts else 0} bytes, {(facts and facts.digest) or 'others'}",
            )
        elif found is Placement.REFUSE and facts is not None:
            yield _refuse(one, facts)
    if same:
        yield ok("files-carried", counted(same, "file") + " of the image", "the same here; left as it is")


def _place(one: CarriedFile) -> Finding:
    if one.kind is FileKind.REGULAR and one.size and not one.member:
        return ok("file-begun", one.path, "not here, and its content does not travel: the group appends to a new one")
    what = {FileKind.DIRECTORY: "this directory", FileKind.SYMLINK: "this link"}.get(one.kind, "what the image holds")
    return ok("file-placed", one.path, f"not here; ckpt makes {what}")


def _refuse(one: CarriedFile, facts: FileFacts) -> Finding:
    if facts.kind is not one.kind:
        return block(
            "file-kind",
            one.path,
            f"the image has a {one.kind} for it, and here it is a {facts.kind}",
            f"move {one.path} out of the way",
            needed=one.kind,
            there=facts.kind,
        )
    return block(
        "file-differs",
        one.path,
        "the image has another content for it than this host",
        "--replace-files takes the image's and keeps this one beside it; or move it out of the way",
        needed=f"{one.size} bytes, {one.digest}",
        there=f"{facts.size} bytes, {facts.digest or 'others'}",
    )
