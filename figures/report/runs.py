"""One run directory as one part of the page: which kind of run it is, what it was made of, and its sections."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from figures.report.comparing import cost_scatter, described, training_log
from figures.report.maps import probe_maps
from figures.report.patching import patch_curves, patch_heat, patch_map, shown_table
from figures.report.probing import probe_curves
from figures.report.tables import table_section
from figures.runs import COMPARE, PATCH, PROBE, TUNE, RunError, kind_of_run, read_table

Json = dict[str, Any]
Told = tuple[str, list[Json | None]]  # a title, and the sections that there are
_OPS = {
    "patch": "activation patching",
    "ablate": "ablation",
    "knockout": "attention knockout",
    "skip": "skipping layers",
    "steer": "steering",
    "attribute": "attribution patching",
    "transplant": "transplanting layers",
}


def describe_run(folder: Path, *, most_rows: int) -> Json:
    """What the page shows of a finished run.

    Args:
        folder: Any run directory: of a probe sweep, a patch sweep, a comparison of plans, or a tuning run.
        most_rows: Of one table.

    Raises:
        RunError: If the folder holds no run of these, or one that is not finished.
        ValueError: If its files do not fit each other.
    """
    kind = kind_of_run(folder)
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    title, sections = _READERS[kind](folder, manifest, most_rows)
    return {
        "name": folder.resolve().name,
        "command": kind,
        "title": title,
        "facts": _facts(manifest),
        "manifest": json.dumps(manifest, indent=2, ensure_ascii=False) if manifest else "",
        "sections": [section for section in sections if section is not None],
    }


def _tell_probe(folder: Path, manifest: Json, most_rows: int) -> Told:
    results = read_table(_finished(folder, "results.parquet", "results.csv"), PROBE)
    return f"{results['model'].iloc[0]}: what probes read, layer by layer", [
        probe_curves(results),
        probe_maps(folder, results),
        table_section(results, title="All scores", source="results.csv", most_rows=most_rows),
    ]


def _tell_patch(folder: Path, manifest: Json, most_rows: int) -> Told:
    results = read_table(_finished(folder, "results.parquet", "results.csv"), PATCH)
    first = results.iloc[0]
    return f"{first['model']}: {_OPS.get(str(first['op']), str(first['op']))}", [
        patch_curves(results),
        patch_heat(results),
        patch_map(folder, results),
        table_section(shown_table(results), title="All cells", source="results.csv", most_rows=most_rows),
    ]


def _tell_compare(folder: Path, manifest: Json, most_rows: int) -> Told:
    table = read_table(_finished(folder, "compare.csv"), COMPARE)
    return f"{_model(manifest)}tuning plans side by side", [
        cost_scatter(table),
        table_section(table, title="All plans", source="compare.csv", most_rows=most_rows),
    ]


def _tell_tuning(folder: Path, manifest: Json, most_rows: int) -> Told:
    sections: list[Json | None] = [training_log(folder)]
    for name, title in (("plan.json", "What trained"), ("cost.json", "What it cost")):
        table = described(folder / name)
        sections.append(None if table is None else table_section(table, title=title, source=name, most_rows=most_rows))
    if all(section is None for section in sections):
        raise RunError(f"RUN must have begun, got one without log and plan in {str(folder)!r}. Start it again.")
    return f"{_model(manifest)}layer-targeted tuning", sections


def _finished(folder: Path, *names: str) -> Path:
    """The first of the files that is there."""
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise RunError(f"RUN must be finished, got one without {names[0]} in {str(folder)!r}. Start it again to resume.")


def _model(manifest: Json) -> str:
    name = manifest.get("settings", {}).get("model")
    return f"{name}: " if name else ""


def _facts(manifest: Json) -> list[list[str]]:
    """The manifest's main entries in words."""
    model, data, settings = (
        value if isinstance(value := manifest.get(key), dict) else {} for key in ("model", "data", "settings")
    )
    found = {
        "model": model.get("id") or settings.get("model"),
        "revision": model.get("revision"),
        "weights": model.get("weight_hash"),
        "data": data.get("name") or settings.get("data"),
        "data hash": data.get("digest"),
        "seed": settings.get("seed", settings.get("seeds")),
        "finished": manifest.get("finished"),
    }
    return [[key, str(value)] for key, value in found.items() if value is not None]


_READERS: dict[str, Callable[[Path, Json, int], Told]] = {
    PROBE: _tell_probe,
    PATCH: _tell_patch,
    COMPARE: _tell_compare,
    TUNE: _tell_tuning,
}
