"""Every image in images/broken is refused, by a file's reader and by a pipe's, with the same whole message."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ckpt.errors import ImageError
from ckpt.image import Reader, StreamReader, extract
from tests.unit import broken_images
from tests.unit.broken_images import DEFECTS, IMAGES, SOUND

BROKEN = IMAGES / "broken"

# By image: the code, and the message after the image's name. Written by hand, never by what is tested.
MESSAGES: dict[str, dict[str, str]] = json.loads((BROKEN / "messages.json").read_text())


def read_file(name: str) -> None:
    with Reader(f"{name}.ckpt") as reader:
        reader.verify()


def read_stream(name: str) -> None:
    stream = StreamReader(io.BytesIO(Path(f"{name}.ckpt").read_bytes()), label=f"{name}.ckpt")
    for _ in stream.events():
        pass


@pytest.fixture(autouse=True)
def _among_the_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(BROKEN)


def test_broken_has_one_image_for_each_defect_and_message() -> None:
    assert sorted(path.stem for path in BROKEN.glob("*.ckpt")) == sorted(DEFECTS) == sorted(MESSAGES)


@pytest.mark.parametrize("name", DEFECTS)
def test_broken_image_is_what_its_maker_makes(name: str) -> None:
    assert Path(f"{name}.ckpt").read_bytes() == broken_images.make(name)


@pytest.mark.parametrize("read", [read_file, read_stream])
@pytest.mark.parametrize("name", DEFECTS)
def test_broken_image_is_refused_with_its_whole_message(name: str, read: Callable[[str], None]) -> None:
    with pytest.raises(ImageError) as refused:
        read(name)
    wanted = MESSAGES[name]
    assert (refused.value.code, str(refused.value)) == (wanted["code"], f"{name}.ckpt {wanted['message']}")


@pytest.mark.parametrize("name", DEFECTS)
def test_extract_of_a_broken_image_leaves_no_file(name: str, tmp_path: Path) -> None:
    with pytest.raises(ImageError):
        extract(StreamReader(io.BytesIO(Path(f"{name}.ckpt").read_bytes())).events(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_sound_image_is_accepted() -> None:
    read_file(str(SOUND.with_suffix("")))
    read_stream(str(SOUND.with_suffix("")))
