"""The built programs of contexts: they are those of their source, and the reader finds what the loader needs."""

from __future__ import annotations

import hashlib
import lzma
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

import ckpt
from ckpt.kernel import bpf_object, context_maps
from ckpt.kernel.bpf_object import KINDS, Object

ROOT = Path(ckpt.__file__).parent.parent
ORDERS = ("little", "big")


@pytest.mark.parametrize("order", ORDERS)
def test_object_is_built_from_its_source(order: str) -> None:
    found = committed(order).digest
    assert found == hashlib.sha256(bpf_object.SOURCE.read_bytes()).hexdigest(), "run scripts/build-bpf"


def committed(order: str) -> Object:
    return bpf_object.parse(lzma.decompress(bpf_object.PATHS[order].read_bytes()))


def test_build_with_the_same_compiler_gives_the_same_bytes(tmp_path: Path) -> None:
    build = ROOT / "scripts/build-bpf"
    if shutil.which("clang") is None or shutil.which("llvm-strip") is None or not build.exists():
        pytest.skip("clang and llvm are needed to build, not to run")
    subprocess.run([build, tmp_path], check=True)
    for order, path in bpf_object.PATHS.items():
        made = lzma.decompress((tmp_path / path.name).read_bytes())
        if bpf_object.parse(made).compiler != committed(order).compiler:
            pytest.skip(f"built by {committed(order).compiler}")
        assert made == lzma.decompress(path.read_bytes())


@pytest.mark.parametrize("order", ORDERS)
def test_object_has_every_program_and_its_maps(order: str) -> None:
    built = committed(order)
    assert built.order == {"little": "<", "big": ">"}[order]
    assert set(built.programs) == set(KINDS)
    assert {"config", "members", "sockets", "books", "listeners"} == set(built.maps)
    assert set(built.programs["floor/lookup"].maps.values()) == {"books", "listeners"}
    assert built.license == "Dual MIT/GPL"


def test_names_of_programs_differ_as_the_kernel_cuts_them() -> None:
    kinds = [(code.kind.attach, code.name[:15]) for code in bpf_object.built().programs.values()]
    assert len(set(kinds)) == len(kinds)


@pytest.mark.parametrize("order", ORDERS)
def test_maps_are_as_large_as_their_records(order: str) -> None:
    maps = committed(order).maps
    assert maps["config"].value_size == context_maps.CONFIG_SIZE
    assert maps["members"].value_size == context_maps.MEMBER_SIZE
    assert (maps["books"].key_size, maps["books"].value_size) == (context_maps.KEY.size, context_maps.CLAIM.size)


def test_parse_other_file_is_refused() -> None:
    with pytest.raises(ValueError, match="not an ELF object of 64 bits"):
        bpf_object.parse(b"\x7fELF\x01\x01" + bytes(100))


def test_object_is_part_of_the_package() -> None:
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert data["ckpt.kernel"] == ["bpf/*"]
