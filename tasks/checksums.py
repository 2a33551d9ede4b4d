"""Checksums of written files, in the ledger ``.checksums`` of each folder: a file that changed on disk is not read.

    record(path, data)                 # before the file gets its name
    is_whole(path)                     # False if the file is missing or changed
    data = read_whole(path, advice="Start the same command again.")   # or DamagedFileError

A line of a ledger is the CRC-32, the size in bytes and the name of one file. A folder without a ledger, such as one
that an earlier version wrote, is read unchecked. In files that are only appended to, each line has its own checksum:
``checked_line(row)`` makes one, ``read_checked_line(line, known=...)`` reads it.
"""

import json
import os
import re
import time
import zlib
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any, NamedTuple

from tasks.errors import UserError, one_line
from tasks.files import is_file
from tasks.readers.parse import parse_json

LEDGER = ".checksums"
_LINE = re.compile(rb'(\{.*), "crc": "([0-9a-f]{8})"\}\n', re.DOTALL)
_CHUNK = 2**22  # bytes read at a time
_LARGEST = 2**26  # bytes of a ledger: a million names
_SETTLED = 10**8  # nanoseconds; a file may change twice within the resolution of its time


class Checksum(NamedTuple):
    """CRC-32 and size of a file; a CRC-32 finds every change of up to 32 consecutive bits."""

    crc: int
    size: int


class DamagedFileError(UserError):
    """A file that is not as it was written."""


# What this process has read already: path -> ((size, time, inode), contents).
_ledgers: dict[str, tuple[tuple[int, ...], dict[str, tuple[Checksum, ...]]]] = {}
_files: dict[str, tuple[tuple[int, ...], Checksum]] = {}


def record(path: Path, data: bytes) -> None:
    """Add the checksum of ``data``, which ``path`` will hold, to the ledger of its folder.

    The line is written before the file gets its name. The line before stays valid, so a process that is killed in
    between leaves the file that was there.
    """
    _add(path, Checksum(zlib.crc32(data), len(data)))


def record_files(folder: Path) -> None:
    """Add the checksums of all files of ``folder``, without hidden ones and sub-folders, to its ledger."""
    for path in sorted(folder.iterdir()):
        if is_file(path) and not path.name.startswith("."):
            _add(path, _checksum(path))


def record_found(folder: Path, names: Set[str], suffixes: Set[str]) -> None:
    """Add the files with such a name in ``folder``, and with such a suffix there and below, where there is no ledger.

    This is for a folder that was copied without its hidden files: once a ledger names one of its files, it must name
    all that are checked.
    """
    for place, _, files in os.walk(folder):
        if not (Path(place) / LEDGER).exists():
            for path in (Path(place) / name for name in sorted(files)):
                wanted = path.suffix in suffixes or (path.parent == folder and path.name in names)
                if wanted and is_file(path) and not path.name.startswith("."):
                    _add(path, _checksum(path))


def move_recorded(path: Path, target: Path) -> None:
    """Rename a recorded file into another folder, and record it there."""
    known = (_read_ledger(path.parent) or {}).get(path.name)
    _add(target, known[-1] if known else _checksum(path))
    path.replace(target)


def is_whole(path: Path) -> bool:
    """True if the file exists and is as it was written, or its folder has no ledger.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "values"
        >>> record(file, b"1 2 3")
        >>> file.write_bytes(b"1 2 3"), is_whole(file)
        (5, True)
        >>> file.write_bytes(b"1 2 4"), is_whole(file)
        (5, False)
    """
    if not is_file(path):
        return False
    ledger = _read_ledger(path.parent)
    return ledger is None or _checksum(path) in ledger.get(path.name, ())


def is_whole_folder(folder: Path) -> bool:
    """True if a folder has a ledger, and every file in it is there and as it was written."""
    known = _read_ledger(folder)
    return bool(known) and all(is_whole(folder / name) for name in known or ())


def damaged_files(folder: Path) -> tuple[str, ...]:
    """The names in the ledger of ``folder`` whose files changed; missing files are left out."""
    known = _read_ledger(folder) or {}
    return tuple(name for name in known if is_file(folder / name) and not is_whole(folder / name))


def missing_files(folder: Path) -> tuple[str, ...]:
    """The names in the ledger of ``folder`` whose files are gone."""
    return tuple(name for name in _read_ledger(folder) or {} if not is_file(folder / name))


def check_whole(path: Path, *, advice: str) -> None:
    """Raise ``DamagedFileError`` if the file exists and changed; ``advice`` is the last sentence of its message."""
    if is_file(path) and not is_whole(path):
        raise DamagedFileError(f"{path.name} must be as it was written, got changed bytes in {str(path)!r}. {advice}")


def check_recorded(path: Path, *, advice: str) -> None:
    """As `check_whole` for a file that the ledger names; one that another program wrote beside them is passed over."""
    if path.name in (_read_ledger(path.parent) or {}):
        check_whole(path, advice=advice)


def read_whole(path: Path, *, advice: str) -> bytes:
    """The bytes of a file that is as it was written; raises ``OSError`` if it cannot be read, else as `check_whole`."""
    data = path.read_bytes()
    ledger = _read_ledger(path.parent)
    if ledger is not None and Checksum(zlib.crc32(data), len(data)) not in ledger.get(path.name, ()):
        raise DamagedFileError(f"{path.name} must be as it was written, got changed bytes in {str(path)!r}. {advice}")
    return data


def read_whole_json(path: Path, *, advice: str) -> dict[str, Any]:
    """The mapping in a JSON file that this project wrote; ``advice`` is the last sentence of the errors' messages.

    Raises:
        UserError: If the file is missing, changed, no strict JSON, or no mapping.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "cost.json"
        >>> file.write_bytes(b'{"steps": 2}')
        12
        >>> read_whole_json(file, advice="Start again.")
        {'steps': 2}
    """
    try:
        found = parse_json(read_whole(path, advice=advice))
    except UserError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path.name} must be readable JSON, got {one_line(error)} at {str(path)!r}. {advice}"
        ) from error
    if not isinstance(found, dict):
        raise UserError(f"{path.name} must hold a mapping, got {type(found).__name__} in {str(path)!r}. {advice}")
    return found


def checked_line(row: Mapping[str, Any]) -> bytes:
    r"""One line of JSON whose last entry, ``crc``, is the CRC-32 of the line without it.

    Example:
        >>> checked_line({"n": 3})
        b'{"n": 3, "crc": "38c15ec0"}\n'
    """
    text = json.dumps(row)
    return f'{text[:-1]}, "crc": "{zlib.crc32(text.encode()):08x}"}}\n'.encode()


def read_checked_line(line: bytes, *, known: Set[str]) -> dict[str, Any]:
    """The mapping in a line that `checked_line` made, or in one that an earlier version wrote without a checksum.

    Args:
        line: The line with its end.
        known: The entries that a line without a checksum may have.

    Raises:
        ValueError: If the line is cut or changed.

    Example:
        >>> read_checked_line(checked_line({"n": 3}), known={"n"})
        {'n': 3}
        >>> read_checked_line(checked_line({"n": 3}).replace(b"3", b"4", 1), known={"n"})
        Traceback (most recent call last):
        ValueError: its checksum is another
    """
    match = _LINE.fullmatch(line)
    body = line if match is None else match[1] + b"}"
    if match is not None and zlib.crc32(body) != int(match[2], 16):
        raise ValueError("its checksum is another")
    row = parse_json(body)
    if not isinstance(row, dict) or not line.endswith(b"\n") or (match is None and not row.keys() <= known):
        raise ValueError("it is not as it was written")
    return row


def _add(path: Path, found: Checksum) -> None:
    known = (_read_ledger(path.parent) or {}).get(path.name)
    if known and known[-1] == found:
        return
    line = f"{found.crc:08x} {found.size} {path.name}\n".encode()
    ledger = os.open(path.parent / LEDGER, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(ledger, line)  # one call, so lines of several processes do not mix
    finally:
        os.close(ledger)


def _read_ledger(folder: Path) -> dict[str, tuple[Checksum, ...]] | None:
    """The last two checksums of each name; None if the folder has no ledger. Lines that are none are passed over."""
    path = folder / LEDGER
    if not is_file(path):
        return None
    state = _state(path)
    key = os.path.abspath(path)
    if key in _ledgers and _ledgers[key][0] == state:
        return _ledgers[key][1]
    with path.open("rb") as file:
        lines = file.read(_LARGEST).decode("utf-8", "replace").splitlines()
    found: dict[str, tuple[Checksum, ...]] = {}
    for line in lines:
        crc, _, rest = line.partition(" ")
        size, _, name = rest.partition(" ")
        try:
            one = Checksum(int(crc, 16), int(size))
        except ValueError:
            continue
        found[name] = (*found.get(name, ())[-1:], one)
    _ledgers[key] = state, found
    return found


def _checksum(path: Path) -> Checksum:
    """The checksum of a file, computed once for each state of it."""
    key, state = os.path.abspath(path), _state(path)
    if key in _files and _files[key][0] == state:
        return _files[key][1]
    crc = size = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            crc, size = zlib.crc32(chunk, crc), size + len(chunk)
    found = Checksum(crc, size)
    if time.time_ns() - path.stat().st_mtime_ns > _SETTLED:
        _files[key] = state, found
    return found


def _state(path: Path) -> tuple[int, ...]:
    about = path.stat()
    return about.st_size, about.st_mtime_ns, about.st_ino
