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
from ckpt.kernel.bpf_object import KINDS

ROOT = Path(ckpt.__file__).parent.parent
SOURCE = bpf_object.PATH.with_name("context.bpf.c")


def test_object_is_built_from_its_source() -> None:
    assert bpf_object.built().digest == hashlib.sha256(SOURCE.read_bytes()).hexdigest(), "run scripts/build-bpf"


def test_build_with_the_same_compiler_gives_the_same_bytes(tmp_path: Path) -> None:
    build = ROOT / "scripts/build-bpf"
    if shutil.which("clang") is None or shutil.which("llvm-strip") is None or not build.exists():
        pytest.skip("clang and llvm are needed to build, not to run")
    subprocess.run([build, tmp_path / "object"], check=True)
    made = (tmp_path / "object").read_bytes()
    if bpf_object.parse(made).compiler != bpf_object.built().compiler:
        pytest.skip(f"built by {bpf_object.built().compiler}")
    assert made == lzma.decompress(bpf_object.PATH.read_bytes())


def test_object_has_every_program_and_its_maps() -> None:
    built = bpf_object.built()
    assert set(built.programs) == set(KINDS)
    assert {"config", "members", "sockets", "books", "listeners"} == set(built.maps)
    assert set(built.programs["floor/lookup"].maps.values()) == {"books", "listeners"}
    assert built.license == "Dual MIT/GPL"


def test_names_of_programs_differ_as_the_kernel_cuts_them() -> None:
    kinds = [(code.kind.attach, code.name[:15]) for code in bpf_object.built().programs.values()]
    assert len(set(kinds)) == len(kinds)


def test_maps_are_as_large_as_their_records() -> None:
    maps = bpf_object.built().maps
    assert maps["config"].value_size == context_maps.CONFIG_SIZE
    assert maps["members"].value_size == context_maps.MEMBER_SIZE
    assert (maps["books"].key_size, maps["books"].value_size) == (context_maps.KEY.size, context_maps.CLAIM.size)


def test_parse_other_file_is_refused() -> None:
    with pytest.raises(ValueError, match="not a little-endian ELF object"):
        bpf_object.parse(b"\x7fELF\x02\x02" + bytes(100))


def test_object_is_part_of_the_package() -> None:
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert data["ckpt.kernel"] == ["bpf/*"]
