"""Picture files: what opens, and what is refused in one sentence before a program starts or memory is taken."""

import contextlib
import os
import socket
import stat
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tasks.errors import UserError
from tasks.examples_from import picture_from
from tasks.pictures import FORMATS, open_picture, picture_size, upright
from tasks.readers.picture_folder import PictureFolder

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\nshowpage\n%%EOF\n"


def png_header(width: int, height: int) -> bytes:
    """A PNG file that claims a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


READERS: list[Callable[[Path], object]] = [
    open_picture,
    picture_size,
    lambda path: open_picture(path.read_bytes(), path.name),
    lambda path: picture_from(path).open(),
]


@pytest.mark.parametrize("saved", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF"])
def test_raster_formats_open_whatever_their_ending(saved: str, tmp_path: Path) -> None:
    assert saved in FORMATS
    Image.new("RGB", (30, 20), "red").save(tmp_path / "x.png", format=saved)
    assert open_picture(tmp_path / "x.png").size == picture_size(tmp_path / "x.png") == (30, 20)
    assert open_picture((tmp_path / "x.png").read_bytes()).size == (30, 20)


@pytest.mark.parametrize("reader", READERS)
def test_eps_under_the_name_of_a_picture_starts_no_program(
    reader: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.png").write_bytes(EPS)
    assert Image.open(tmp_path / "x.png").format == "EPS"  # which Pillow decodes with Ghostscript
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *a, **k: pytest.fail("Ghostscript was started"))
    with pytest.raises(UserError, match="readable image file .*x.png"):
        reader(tmp_path / "x.png")


@pytest.mark.parametrize("saved", ["PDF", "SGI", "PCX", "IM", "SPIDER", "XBM"])
def test_other_formats_are_refused(saved: str, tmp_path: Path) -> None:
    Image.new("1" if saved == "XBM" else "F" if saved == "SPIDER" else "L", (20, 20)).save(tmp_path / "x", format=saved)
    with pytest.raises(UserError, match="readable image file"):
        open_picture(tmp_path / "x")


@pytest.mark.parametrize("kind", ["a named pipe", "a socket", "a folder", "a device"])
def test_what_is_no_regular_file_is_refused_without_opening_it(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    if kind == "a named pipe":
        os.mkfifo(path)
    elif kind == "a socket":
        socket.socket(socket.AF_UNIX).bind(os.path.relpath(path))  # the name of a socket is short
    elif kind == "a folder":
        path.mkdir()
    else:
        path = Path("/dev/zero")
    for reader in (open_picture, picture_size):
        with pytest.raises(UserError, match=f"must be a regular file, got {kind}"):
            reader(path)
    if kind != "a device":
        assert stat.S_IFMT(path.stat().st_mode)
        assert PictureFolder(tmp_path).size("x.png") is None


@pytest.mark.parametrize("size", [(20_000, 1), (1, 60_000), (12_000, 20)])
def test_an_elongated_picture_is_refused_before_it_is_decoded(size: tuple[int, int], tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(png_header(*size))
    for reader in READERS[:3]:
        with pytest.raises(UserError, match=f"pixels to prepare, got {size[0]} x {size[1]} in .*x.png"):
            reader(tmp_path / "x.png")


def test_a_long_picture_of_few_pixels_opens(tmp_path: Path) -> None:
    Image.new("RGB", (3000, 2)).save(tmp_path / "x.png")
    assert open_picture(tmp_path / "x.png").size == (3000, 2)


def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    for side in (10_000, 60_000):  # Pillow warns of the first and refuses the second
        (tmp_path / "x.png").write_bytes(png_header(side, side))
        with pytest.raises(UserError, match="picture must have at most"):
            open_picture(tmp_path / "x.png")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_as_pillow_does(orientation: int, tmp_path: Path) -> None:
    from PIL import ImageOps

    image = Image.linear_gradient("L").resize((30, 20)).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "x.png", exif=exif)
    with Image.open(tmp_path / "x.png") as saved:
        expected = ImageOps.exif_transpose(saved).tobytes()
    assert open_picture(tmp_path / "x.png").tobytes() == expected
    assert picture_size(tmp_path / "x.png") == open_picture(tmp_path / "x.png").size


@pytest.mark.parametrize("tag", [0x0100, 0x011A, 0x0128, 0x9000, 0x927C])
@pytest.mark.parametrize("entry", ["type", "count", "offset"])
def test_damaged_exif_beside_the_orientation_is_passed_over(tag: int, entry: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[tag] = 6, b"\x01\x02\x03\x04" if tag == 0x927C else 3
    data = exif.tobytes()
    at = data.index(struct.pack(">H", tag)) if struct.pack(">H", tag) in data else data.index(struct.pack("<H", tag))
    damaged = bytearray(data)
    place = {"type": slice(at + 2, at + 4), "count": slice(at + 4, at + 8), "offset": slice(at + 8, at + 12)}[entry]
    damaged[place] = b"\x0c" * (place.stop - place.start)
    Image.new("RGB", (30, 20)).save(tmp_path / "x.jpg", exif=bytes(damaged))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        opened = Image.open(tmp_path / "x.jpg")  # by a user's own code, which Pillow warns
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # none reaches the user
        assert open_picture(tmp_path / "x.jpg").size == picture_size(tmp_path / "x.jpg") == (20, 30)
        assert picture_from(opened).open().size == upright(opened).size == (20, 30)


def test_exif_that_is_none_leaves_the_picture_as_it_is(tmp_path: Path) -> None:
    for junk in (b"Exif\0\0", b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"\0" * 40):
        Image.new("RGB", (30, 20)).save(tmp_path / "x.jpg", exif=junk)
        assert open_picture(tmp_path / "x.jpg").size == (30, 20)


def test_every_cut_of_a_file_opens_or_is_refused(tmp_path: Path) -> None:
    for saved in ("PNG", "GIF", "TIFF", "WEBP", "AVIF", "BMP", "JPEG2000"):
        Image.effect_noise((40, 30), 50).convert("RGB").save(tmp_path / "whole", format=saved)
        data = (tmp_path / "whole").read_bytes()
        for length in range(0, len(data) - 8, max(1, len(data) // 12)):
            with contextlib.suppress(UserError):  # some formats are whole without their last bytes
                open_picture(data[:length], "cut.png")
