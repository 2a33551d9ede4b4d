"""Run ``layerwise-finetune mix``: read the parts by index, write one shuffled file, count what is in it.

finished = run_mix(MixConfig(parts=("llava=llava.json", "gqa=gqa.json,share=0.5")))
finished.results, finished.folder / "mix.json"
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

import numpy as np
import numpy.typing as npt
import pandas as pd

from records.manifest import commit
from records.processes import Processes
from records.progress import OnProgress, ProgressBars
from records.run import FinishedRun, Run, check_space, read_timings, writing
from records.tables import read_results
from records.timings import TimeEstimate
from tasks.checksums import move_recorded
from tasks.errors import UserError, shown
from tasks.files import is_folder
from tasks.readers.media import describe_unread, picture_name
from tasks.readers.picture_folder import PictureFolder
from tuning.data.conversation import UnusableSampleError
from tuning.mix.composition import PartCounts, render_summary, tabulate
from tuning.mix.config import DATA, RUN, MixConfig
from tuning.mix.part import Part, Sample, pictures_of

_EVERY = 1000  # samples between two reports of progress
# Seconds of a sample, and of a byte of the files that hold it, measured on one CPU thread, 2026-11-30.
SAMPLE_SECONDS, BYTE_SECONDS = 1.3e-4, 9e-8


def run_mix(
    config: MixConfig,
    *,
    command: Sequence[str] = (),
    on_progress: OnProgress | None = None,
    on_note: Callable[[str], None] = lambda line: None,
) -> FinishedRun | str:
    """Write the mix, and print its composition. The memory does not grow with the texts.

    Args:
        config: The settings.
        command: The command line, for the manifest.
        on_progress: Called with (stage, newly done, total); None shows bars in a terminal or notebook.
        on_note: Called for each file of the run that changed since it was written, and with the keys that are not read.

    Returns:
        The finished run; with ``config.dry_run`` the numbers of samples and the estimated time as text.

    Raises:
        UserError: If a part cannot be read, a sample cannot be used and ``skip_bad`` is False, or the disk is full.

    Example:
        >>> row = {"question": "What is it?", "answer": "A dog.", "image": "1.jpg"}
        >>> _ = Path("vqa.jsonl").write_text(json.dumps(row))
        >>> finished = run_mix(MixConfig(parts=("vqav2=vqa.jsonl,prefix=coco",), out=Path("mix")))
        >>> json.loads(Path("mix/mix.json").read_text())[0]["image"]
        'coco/1.jpg'
    """
    on_progress = on_progress or ProgressBars()
    run = Run(config.folder, RUN, config.settings, command=command, overwrite=config.overwrite)
    with run.timings.stage("reading parts"):
        parts = [Part(spec) for spec in config.specs]
    if config.images is not None and not is_folder(config.images):
        raise UserError(f"images must be a folder, got {str(config.images)!r}. Check the path.")
    chosen = [part.chosen(config.seed) for part in parts]
    if config.dry_run:
        each = [
            f"{part.spec.name}: {len(used):,} of {len(part):,} samples, format {part.spec.format}"
            for part, used in zip(parts, chosen, strict=True)
        ]
        stages = {**run.timings.seconds, "writing": _writing_seconds(parts, chosen)}
        return "\n".join([*each, str(TimeEstimate(f"{sum(map(len, chosen)):,} samples", stages))])
    check_space(
        sum(part.spec.path.stat().st_size for part in parts), config.folder, what="mix", advice="Use a smaller share."
    )
    places = np.concatenate([np.stack([np.full_like(used, i), used], axis=1) for i, used in enumerate(chosen)])
    order = np.random.default_rng(config.seed).permutation(len(places))
    with run.open(Processes(), on_note=on_note, data={part.spec.name: part.digest for part in parts}):
        if not run.is_finished:
            counts = {part.spec.name: PartCounts() for part in parts}
            skipped: list[tuple[str, str, str]] = []
            samples = _samples(config, parts, places[order], counts, skipped, on_progress)
            with writing(config.folder), run.timings.stage("writing"):
                n_written = _write(config.folder / DATA, samples)
                if skipped:
                    table = pd.DataFrame(skipped, columns=["part", "sample", "reason"])
                    commit(config.folder / "skipped.csv", table.to_csv(index=False).encode())
            unread = sum((part.unread for part in parts), Counter[str]())
            if unread:
                on_note(describe_unread(tuple(unread.items())))
            if not n_written:
                (config.folder / DATA).unlink()
                raise UserError("part must have a sample that can be used, got none. See skipped.csv.")
            with run.timings.stage("table"):
                results = tabulate(counts, {part.spec.name: part.spec.format for part in parts})
            run.finish(results)
    return finished_mix(config.folder)


def finished_mix(folder: Path) -> FinishedRun:
    """The finished mix in ``folder``; raise ``UserError`` if there is none."""
    results = read_results(folder, RUN)
    total = results[results["part"] == "all"].iloc[0]
    notes = [f"data: {folder / DATA} ({int(total['samples']):,} samples)"]
    if total["skipped"]:
        notes.append(f"left out: {int(total['skipped']):,} samples, listed in {folder / 'skipped.csv'}")
    return FinishedRun(folder, results, render_summary(results), notes=tuple(notes), timings=read_timings(folder, RUN))


def _writing_seconds(parts: Sequence[Part], chosen: Sequence[npt.NDArray[np.int64]]) -> float:
    """Estimated time to read, count and write the chosen samples; those of one file are taken to be equally long."""
    seconds = 0.0
    for part, used in zip(parts, chosen, strict=True):
        n_bytes = part.spec.path.stat().st_size * len(used) / max(1, len(part))
        seconds += SAMPLE_SECONDS * len(used) + BYTE_SECONDS * n_bytes
    return seconds


def _samples(
    config: MixConfig,
    parts: Sequence[Part],
    places: npt.NDArray[np.int64],
    counts: dict[str, PartCounts],
    skipped: list[tuple[str, str, str]],
    on_progress: OnProgress,
) -> Iterator[Sample]:
    """The samples at ``places`` (part, index) in order, counted as they pass."""
    folder = None if config.images is None else PictureFolder(config.images, follow_links=True)
    for done, (number, index) in enumerate(places, 1):
        part = parts[int(number)]
        name = part.spec.name
        try:
            sample = part[int(index)]
            if folder is not None:
                _check_pictures(sample, folder)
        except UnusableSampleError as error:
            if not config.skip_bad:
                raise UserError(
                    f"samples must be usable, got sample {error.sample or index} of part {name}: {error}. Correct it, "
                    "or leave such samples out with --skip-bad."
                ) from error
            counts[name].skipped += 1
            skipped.append((name, str(error.sample or index), str(error)))
            continue
        counts[name].add(sample)
        yield sample
        if done % _EVERY == 0:
            on_progress("mix", _EVERY, len(places))
    on_progress("mix", len(places) % _EVERY, len(places))


def _check_pictures(sample: Sample, folder: PictureFolder) -> None:
    """Check that each picture of a sample is a file in the folder, or is written as text."""
    for one in pictures_of(sample):
        try:
            name = folder.add(one, f"sample {sample['id']}")
        except UserError as error:
            raise UnusableSampleError(str(error), sample["id"]) from error
        if picture_name(name) and folder.stats.pop(name)[0] < 0:  # popped, so that the memory does not grow
            raise UnusableSampleError(f"its picture {shown(one)} is missing", sample["id"])


def _write(path: Path, samples: Iterator[Sample]) -> int:
    """Write a JSON array one sample at a time; the file appears when it is complete. Returns the number of samples."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            n_written = _write_array(file, samples)
            file.flush()
            os.fsync(file.fileno())
        move_recorded(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return n_written


def _write_array(file: TextIO, samples: Iterator[Sample]) -> int:
    n_written = 0
    file.write("[")
    for sample in samples:
        file.write((",\n" if n_written else "\n") + json.dumps(sample, ensure_ascii=False))
        n_written += 1
    file.write("\n]\n")
    return n_written
