"""The sections of an image, written and read: the one place that says which record is which section.

The two functions are mirrors. What CRIU wrote is not here: those are files of the image, not sections.
"""

from __future__ import annotations

from ckpt.image import Writer
from ckpt.incoming import ImageSource
from ckpt.model.carried import CarriedFiles
from ckpt.model.checkpoint import (
    Checkpoint,
    ContextRecord,
    CriuNotes,
    Group,
    NestedNetwork,
    NestedNetworks,
    Processes,
    Sockets,
)
from ckpt.model.host import HostFacts
from ckpt.model.network import Network

KNOWN = ("group", "source", "criu", "processes", "sockets", "network", "nested-networks", "context", "files")
"""All sections of this version. `network` is missing where the group lives in the host's namespace, `nested-networks`
where it lives in one only, `context` where nothing confines it, and `files` where no file travels along."""


def write(writer: Writer, checkpoint: Checkpoint) -> None:
    """Write everything of ``checkpoint``."""
    writer.section("group", checkpoint.group)
    writer.section("source", checkpoint.source)
    writer.section("criu", checkpoint.criu)
    writer.section("processes", Processes(processes=checkpoint.processes))
    writer.section("sockets", Sockets(sockets=checkpoint.sockets))
    if checkpoint.network is not None:
        writer.section("network", checkpoint.network)
    if checkpoint.nested:
        writer.section("nested-networks", NestedNetworks(networks=checkpoint.nested))
    if checkpoint.carried:
        writer.section("files", CarriedFiles(files=checkpoint.carried))
    if checkpoint.context is not None:
        writer.section("context", checkpoint.context)


def read(reader: ImageSource) -> Checkpoint:
    """Read all of it back. Raises ImageError where a section is missing or is not what it should be."""
    return Checkpoint(
        group=reader.section("group", Group),
        source=reader.section("source", HostFacts),
        criu=reader.section("criu", CriuNotes),
        processes=reader.section("processes", Processes).processes,
        sockets=reader.section("sockets", Sockets).sockets,
        network=reader.section("network", Network) if "network" in reader.sections else None,
        nested=_nested(reader),
        carried=reader.section("files", CarriedFiles).files if "files" in reader.sections else (),
        context=reader.section("context", ContextRecord) if "context" in reader.sections else None,
    )


def _nested(reader: ImageSource) -> tuple[NestedNetwork, ...]:
    found = "nested-networks" in reader.sections
    return reader.section("nested-networks", NestedNetworks).networks if found else ()
