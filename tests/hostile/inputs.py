"""The table of the campaign: what a user may bring, by kind. ``CASES`` holds a row for each kind, input and command."""

import gzip
import json
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from PIL import Image

from tests.hostile.commands import BENCHMARK, CAPTURE, COST, FIGURES, FOUR, INPUTS, NEWER, PATCH, PROBE, TUNE, WORD

Expect = Literal["either", "refused", "runs", "same"]


class Case(NamedTuple):
    """A row of the table."""

    kind: str
    name: str
    command: str
    make: Callable[[Path], list[str]]
    """Changes the inputs in a folder, and returns further arguments."""
    expect: Expect = "either"
    """``same``: status 0 with the numbers of the unchanged inputs."""
    starts_from: str = ""
    """``finished`` or ``stopped`` for a case that begins with the command's run in ``run``."""

    def __str__(self) -> str:
        return f"{self.kind}-{self.name}-{self.command}"


def write_inputs(folder: Path) -> None:
    """Pictures and one data file for each command, all valid."""
    (folder / "pics").mkdir()
    for number in range(12):
        Image.new("RGB", (24 + number, 24), ((200, 30, 30), (30, 200, 30))[number % 2]).save(
            folder / "pics" / f"{number}.png"
        )
    words = ("red", "green")
    rows = [
        {"id": f"r{n}", "image": f"{n}.png", "question": "What is it?", "answer": words[n % 2], "colour": words[n % 2]}
        for n in range(12)
    ]
    pairs = [
        {"id": f"p{n}", "clean": f"{2 * n}.png", "corrupt": f"{2 * n + 1}.png", "question": "What is it?",
         "answer": "red", "foil": "green"}
        for n in range(3)
    ]  # fmt: skip
    write_rows(folder, PROBE, rows)
    write_rows(folder, PATCH, pairs)
    write_rows(folder, COST, [{name: row[name] for name in ("id", "image", "question", "answer")} for row in rows[:4]])
    turns = [
        {"id": f"t{n}", "image": f"{n}.png", "conversations": [
            {"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "a thing"}]}
        for n in range(4)
    ]  # fmt: skip
    (folder / "turns.json").write_text(json.dumps(turns))
    things = ["car", "cup", "dog", "cat", "tree", "bus", "boat", "shoe", "house", "bird", "lamp", "hat"]
    captioned = [
        {**row, "caption": f"A {row['answer']} {thing} is here.", "boxes": {thing: [2, 2, 14, 14]}, "focus": thing}
        for row, thing in zip(rows, things, strict=True)
    ]
    write_rows(folder, CAPTURE, captioned)
    (folder / "pope" / "coco").mkdir(parents=True)
    asked = []
    for number, category in enumerate(("random", "popular", "adversarial")):
        mine = [
            {"question_id": 2 * number + n, "image": f"{n}.png", "text": f"Is there a {things[n]}?"} for n in (0, 1)
        ]
        asked += [{**question, "category": category} for question in mine]
        labels = [json.dumps({**question, "label": ("yes", "no")[n]}) for n, question in enumerate(mine)]
        (folder / "pope" / "coco" / f"coco_pope_{category}.json").write_text("\n".join(labels))
    write_rows(folder, BENCHMARK, asked)


def read_rows(folder: Path, command: str) -> list[dict[str, Any]]:
    """The rows of a command's data file."""
    text = (folder / INPUTS[command].table).read_text()
    rows: list[dict[str, Any]] = json.loads(text) if command == TUNE else [json.loads(one) for one in text.splitlines()]
    return rows


def write_rows(folder: Path, command: str, rows: Sequence[Any]) -> None:
    """Write a command's data file."""
    text = json.dumps(rows) if command == TUNE else "".join(json.dumps(row) + "\n" for row in rows)
    (folder / INPUTS[command].table).write_text(text)


# --- pictures: name -> what stands in the place of the first picture


def _png(width: int, height: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(b"\0" * min((width + 1) * height, 2**20))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def _saved(path: Path, mode: str = "RGB", size: tuple[int, int] = (24, 24), kind: str = "PNG", **how: Any) -> None:
    Image.new(mode, size).save(path, kind, **how)


_EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
_EXIF = b"Exif\0\0II*\0\x08\0\0\0\x02\0" + struct.pack("<HHI4s", 0x112, 3, 1, b"\x63\0\0\0") + b"\xff" * 12
PICTURES: dict[str, tuple[Callable[[Path], object], Expect]] = {
    "eps-named-png": (lambda path: path.write_bytes(_EPS), "refused"),
    "svg-named-png": (lambda path: path.write_text("<svg xmlns='http://www.w3.org/2000/svg'/>"), "refused"),
    "pdf-named-png": (lambda path: path.write_bytes(b"%PDF-1.4\n%\xff\n"), "refused"),
    "empty": (lambda path: path.write_bytes(b""), "refused"),
    "text": (lambda path: path.write_text("no picture"), "refused"),
    "cut": (lambda path: path.write_bytes(_png(24, 24)[:40]), "refused"),
    "header-alone": (lambda path: path.write_bytes(_png(24, 24)[:33]), "refused"),
    "bomb": (lambda path: path.write_bytes(_png(100_000, 100_000)), "refused"),
    "sides-of-zero": (lambda path: path.write_bytes(_png(0, 0)), "refused"),
    "flipped-byte": (lambda path: path.write_bytes(_png(24, 24)[:45] + b"\xff" + _png(24, 24)[46:]), "refused"),
    "named-pipe": (os.mkfifo, "refused"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "refused"),
    "folder": (lambda path: path.mkdir(), "refused"),
    "link-to-nothing": (lambda path: path.symlink_to("nowhere"), "refused"),
    "link-to-itself": (lambda path: path.symlink_to(path.name), "refused"),
    "missing": (lambda path: None, "refused"),
    "strip-20000x1": (lambda path: _saved(path, size=(20_000, 1)), "refused"),
    "strip-1x60000": (lambda path: _saved(path, size=(1, 60_000)), "refused"),
    "one-pixel": (lambda path: _saved(path, size=(1, 1)), "runs"),
    "odd-sides": (lambda path: _saved(path, size=(301, 7)), "runs"),
    "16-bit": (lambda path: _saved(path, "I;16"), "either"),
    "one-bit": (lambda path: _saved(path, "1"), "runs"),
    "palette": (lambda path: _saved(path, "P"), "runs"),
    "grey-alpha": (lambda path: _saved(path, "LA"), "runs"),
    "cmyk-jpeg": (lambda path: _saved(path, "CMYK", kind="JPEG"), "runs"),
    "float-tiff": (lambda path: _saved(path, "F", kind="TIFF"), "either"),
    "animation": (lambda path: _saved(path, "P", kind="GIF", save_all=True), "runs"),
    "damaged-exif": (lambda path: _saved(path, kind="JPEG", exif=_EXIF), "runs"),
}


def _picture(name: str, make: Callable[[Path], object], command: str) -> Callable[[Path], list[str]]:
    def change(folder: Path) -> list[str]:
        path = folder / "pics" / "0.png"
        path.unlink()
        make(path)
        return []

    return change


# --- values: name -> what stands in one field of the first row

VALUES: dict[str, Any] = {
    "half-surrogate": "\ud83d",
    "null-byte": "red\0",
    "escapes": "\x1b[31mred\x1b[0m\x07",
    "right-to-left": "\u202ered\u2066",
    "dollars": "$red$ and $",
    "frac": "\\frac{red",
    "html": "<script>alert(1)</script>&",
    "braces": "{{data}}{0}%s",
    "word-of-10000": WORD,
    "100000-letters": "red " * 25_000,
    "empty": "",
    "spaces": " \t\n ",
    "newlines": "red\r\n\u2028green",
    "image-marks": "<image>" * 40,
    "emoji": "👩‍👩‍👧‍👦 🇩🇪",
    "chinese": "红色",
    "path": "../../outside",
    "null": None,
    "true": True,
    "list": ["red"],
    "mapping": {"a": {"b": 1}},
    "deep": "DEEP",
    "400-digits": 10**400,
    "1e308": 1e308,
    "denormal": 5e-324,
    "nan": float("nan"),
    "infinity": float("inf"),
    "minus-zero": -0.0,
}


def _value(value: Any, command: str, field: str) -> Callable[[Path], list[str]]:
    def change(folder: Path) -> list[str]:
        rows = read_rows(folder, command)
        row = rows[0]["conversations"][1] if field == "value" else rows[0]
        row[field] = "@" if value == "DEEP" else value
        write_rows(folder, command, rows)
        if value == "DEEP":
            path = folder / INPUTS[command].table
            path.write_text(path.read_text().replace('"@"', "[" * 50_000 + "]" * 50_000))
        return []

    return change


# --- whole data files: name -> bytes from the valid bytes

FILES: dict[str, tuple[Callable[[bytes], bytes], Expect]] = {
    "empty": (lambda data: b"", "refused"),
    "newlines": (lambda data: b"\n\n\n", "refused"),
    "zeros": (lambda data: b"\0" * 4096, "refused"),
    "utf-16": (lambda data: data.decode().encode("utf-16"), "refused"),
    "latin-1": (lambda data: data.replace(b"?", b"\xe4?", 1), "refused"),
    "byte-order-mark": (lambda data: b"\xef\xbb\xbf" + data, "same"),
    "windows-lines": (lambda data: data.replace(b"\n", b"\r\n"), "same"),
    "cut": (lambda data: data[: len(data) // 2 + 7], "refused"),
    "gzip": (gzip.compress, "refused"),
    "a-number": (lambda data: b"7", "refused"),
    "a-text": (lambda data: b'"rows"', "refused"),
    "a-list": (lambda data: b"[1, 2]", "refused"),
    "deep-lists": (lambda data: b"[" * 100_000 + b"]" * 100_000, "refused"),
    "deep-mappings": (lambda data: b'{"a":' * 50_000 + b"1" + b"}" * 50_000, "refused"),
    "key-twice": (lambda data: data.replace(b"{", b'{"key": 1, "key": 1, ', 1), "refused"),
    "trailing-comma": (lambda data: data.rstrip().removesuffix(b"}").removesuffix(b"]") + b",}", "refused"),
    "text-after": (lambda data: data + b"\nand more", "refused"),
}


def _file(make: Callable[[bytes], bytes], command: str) -> Callable[[Path], list[str]]:
    def change(folder: Path) -> list[str]:
        path = folder / INPUTS[command].table
        path.write_bytes(make(path.read_bytes()))
        return []

    return change


# --- options: command -> (option, values)

PATHS = ("rows.jsonl", "rows.jsonl/run", "/proc/1/run", "pics", "\0run", "x" * 300)
UNREADABLE = ("x" * 300, "\0", "/proc/1/mem", "~nobody/x", "link", "")


def _option(name: str, value: str) -> Callable[[Path], list[str]]:
    return lambda folder: [f"{name}={value}"]


def _read(name: str, value: str) -> Callable[[Path], list[str]]:
    def change(folder: Path) -> list[str]:
        (folder / "link").symlink_to("link")
        return [f"{name}={value}"]

    return change


# --- settings in YAML

YAML: dict[str, str] = {
    "bomb": "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nlimit: [*b,*b,*b,*b,*b,*b]\n",
    "key-twice": "limit: 3\nlimit: 4\n",
    "deep": "limit: " + "[" * 5_000 + "]" * 5_000,
    "object": "limit: !!python/object/apply:os.system ['touch ../outside']\n",
    "list": "- limit\n",
    "date": "limit: 2024-99-99\n",
    "tabs": "limit:\t\t[\n",
    "unknown": "limmit: 3\n",
    "binary": "\x00\x01",
    "number-as-key": "3: 4\n",
}


def _yaml(text: str) -> Callable[[Path], list[str]]:
    def change(folder: Path) -> list[str]:
        (folder / "options.yaml").write_text(text)
        return ["--config", "options.yaml"]

    return change


# --- checkpoints: name -> (file, change of its mapping or bytes)

MODELS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "no-mapping": ("config.json", lambda config: [1]),
    "deep": ("config.json", lambda config: b'{"a":' * 50_000 + b"1" + b"}" * 50_000),
    "key-twice": ("config.json", lambda config: b'{"a": 1, "a": 2}'),
    "cut-config": ("config.json", lambda config: json.dumps(config).encode()[:200]),
    "million-layers": ("config.json", lambda config: _with(config, "text_config", num_hidden_layers=10**6)),
    "no-layers": ("config.json", lambda config: _with(config, "text_config", num_hidden_layers=0)),
    "negative-width": ("config.json", lambda config: _with(config, "text_config", hidden_size=-48)),
    "width-as-text": ("config.json", lambda config: _with(config, "text_config", hidden_size="48")),
    "huge-vocabulary": ("config.json", lambda config: _with(config, "text_config", vocab_size=10**15)),
    "select-layer-0": ("config.json", lambda config: {**config, "vision_feature_layer": 0}),
    "unknown-activation": ("config.json", lambda config: {**config, "projector_hidden_act": "nothing"}),
    "image-token-beyond": ("config.json", lambda config: {**config, "image_token_index": 10**9}),
    "patch-of-0": ("config.json", lambda config: _with(config, "vision_config", patch_size=0)),
    "infinite-epsilon": ("config.json", lambda config: _with(config, "text_config", rms_norm_eps=float("inf"))),
    "half-surrogate": ("config.json", lambda config: {**config, "model_type": "\ud83d"}),
    "quantised": ("config.json", lambda config: {**config, "quantization_config": {"quant_method": "nothing"}}),
    "cut-weights": ("model.safetensors", lambda data: data[: len(data) // 2]),
    "empty-weights": ("model.safetensors", lambda data: b""),
    "huge-header": ("model.safetensors", lambda data: b"\xff" * 8 + data[8:]),
    "no-weights": ("model.safetensors", lambda data: None),
    "cut-tokenizer": ("tokenizer.json", lambda config: json.dumps(config).encode()[:300]),
    "tokenizer-of-lists": ("tokenizer.json", lambda config: []),
    "tokenizer-of-nothing": ("tokenizer.json", lambda config: {}),
    "no-tokenizer": ("tokenizer.json", lambda config: None),
    "no-processor": ("processor_config.json", lambda config: None),
    "std-of-zeros": ("processor_config.json", lambda config: _with(config, "image_processor", image_std=[0, 0, 0])),
    "chat-template-broken": ("chat_template.jinja", lambda data: b"{% if"),
}


def _with(config: dict[str, Any], part: str, **values: Any) -> dict[str, Any]:
    return {**config, part: {**config.get(part, {}), **values}}


def _model(file: str, change: Callable[[Any], Any]) -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        path = folder / "model" / file
        data = path.read_bytes()
        found = change(json.loads(data) if file.endswith(".json") else data)
        path.unlink()
        if found is not None:
            path.write_bytes(found if isinstance(found, bytes) else json.dumps(found).encode())
        return ["--model", "model"]

    return make


# --- a run's own files, changed between two calls of its command

DAMAGE: dict[str, Callable[[bytes], bytes | None]] = {
    "flipped": lambda data: data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 0x10]) + data[len(data) // 2 + 1 :],
    "cut": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "gone": lambda data: None,
    "zeros": lambda data: b"\0" * len(data),
}
# Files that `stop` in test_campaign.py removes from a finished run.
REMOVED = ("results.parquet", "results.csv", "cost.json", "model.safetensors", "findings.csv", "examples.json",
           "scores.parquet")  # fmt: skip
# Files of a finished run that `python -m figures` reads.
SHOWN = {"results.csv": PROBE, "results.parquet": PATCH, "manifest.json": PROBE, "plan.json": TUNE, "config.json": TUNE}
ODD_JSON = ("[]", "7", '"x"', "{}", "null", '{"kind": 3}', "[" * 100_000, '{"a": 1, "a": 2}', "{")


def _damage(file: str, change: Callable[[bytes], bytes | None], of: str = "run") -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        path = folder / of / file
        data = change(path.read_bytes())
        path.unlink()
        if data is not None:
            path.write_bytes(data)
        return []

    return make


def _replace(file: str, text: str, of: str = "run") -> Callable[[Path], list[str]]:
    return _damage(file, lambda data: text.encode(), of)


def _cases(commands: Sequence[str]) -> Iterator[Case]:
    for command in commands:
        inputs = INPUTS[command]
        if inputs.table:
            for name, (make, expect) in PICTURES.items():
                if "boxes" in inputs.fields and expect == "runs":
                    expect = "either"  # the box may lie outside
                yield Case("picture", name, command, _picture(name, make, command), expect)
            for name, (change, expect) in FILES.items():
                yield Case("file", name, command, _file(change, command), expect if command != TUNE else "either")
        for field in inputs.fields:
            for name, value in VALUES.items():
                yield Case("value", f"{field}-{name}", command, _value(value, command, field))
        for option, values in inputs.options.items():
            for number, text in enumerate(values):
                yield Case("option", f"{option[2:]}-{number}", command, _option(option, text))
        for number, path in enumerate(PATHS):
            yield Case("path", f"out-{number}", command, _option("--out", path), "refused")
        for option in inputs.read:
            for number, path in enumerate(UNREADABLE):
                yield Case("path", f"{option[2:]}-{number}", command, _read(option, path))
        for name, text in YAML.items():
            yield Case("yaml", name, command, _yaml(text), "refused")
        for name, (file, model) in MODELS.items() if inputs.model else ():
            yield Case("model", name, command, _model(file, model))
        for file in inputs.own:
            for name, spoil in DAMAGE.items():
                expect = "either" if file in ("manifest.json", "pictures/0.png") else "same"
                for start in ("finished", "stopped"):
                    if start == "finished" or file not in REMOVED:
                        yield Case("own", f"{start}-{name}-{file}", command, _damage(file, spoil), expect, start)
        for file in inputs.stored:
            for name, spoil in DAMAGE.items():
                yield Case("stored", f"{name}-{file}", command, _damage(file, spoil, "stored"))
            if file.endswith(".json"):
                for number, text in enumerate(ODD_JSON):
                    yield Case("stored", f"odd-{number}-{file}", command, _replace(file, text, "stored"))


def _figure_cases() -> Iterator[Case]:
    for file, command in SHOWN.items():
        for name, spoil in DAMAGE.items():
            yield Case("figures", f"{name}-{file}", FIGURES, _damage(file, spoil), "either", f"finished:{command}")
        if file.endswith(".json"):
            for number, text in enumerate(ODD_JSON):
                make = _replace(file, text)
                yield Case("figures", f"odd-{number}-{file}", FIGURES, make, "either", f"finished:{command}")


CASES = (*_cases(FOUR), *_figure_cases())
NEWER_CASES = tuple(_cases(NEWER))
