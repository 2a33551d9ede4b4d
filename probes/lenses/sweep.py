"""Run ``lens-sweep``: read every example with every lens, score the words, write tables, figure and the report's words.

finished = run_lens_sweep(LensConfig(lenses=("logit",)))
finished.results, finished.figures[0]
"""

import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor

import figures
from models.hooks import CaptureError
from models.inputs import prepare
from models.llava import Llava
from models.loading.load import randomised
from models.pixels import to_png
from models.sites import Site
from probes.lenses.config import RUN, SCENES, LensConfig
from probes.lenses.data import LensData, digest_of, load_corpus, load_examples
from probes.lenses.estimate import sweep_estimate
from probes.lenses.jacobian import JacobianLens
from probes.lenses.latent import LatentLens, build_latent_lens
from probes.lenses.reading import INPUT, LogitLens, Transport, check_lens, lens_sites
from probes.lenses.report_table import render_summary
from probes.lenses.score_example import COLUMNS, NEAREST, Wanted, nearest_rows, read_example, score_rows, token_rows
from probes.lenses.table import middle_sentences, tabulate
from probes.lenses.tuned import TunedLens
from probes.lenses.words import WordTable, dump, matched_tokens, matched_words, others, read_synonyms, word_table
from probes.maps.write import about_example
from records.manifest import commit
from records.open_model import describe_model, open_model
from records.processes import Processes, join_processes, own_device
from records.progress import OnProgress, ProgressBars
from records.run import FinishedRun, Run, read_timings, writing
from records.tables import read_results
from records.timings import TimeEstimate, Timings
from tasks.checksums import is_whole
from tasks.errors import UserError, user_errors

Lens = Transport | LatentLens
_CONTROL_SEED = 2**16  # added to the seed, so that the control differs from a random model of the same seed
SHARD = 4  # examples of a shard
_TOKENS = ("lens", "example", "site", "name", "layer", "row", "col", "rank", "word", "strength", "neighbour_layer",
           "p_object")  # fmt: skip


@dataclass(frozen=True)
class _Words:
    """The words of every example, for the model and for the control model."""

    table: WordTable
    words: tuple[str, ...]
    tokens: Mapping[str, tuple[int, ...]]
    """Frequency-matched tokens of each word."""
    forms: Mapping[str, tuple[str, ...]]
    """Frequency-matched words of the corpus."""
    controls: bool

    def of(self, index: int, other: str) -> Wanted:
        """The words of example ``index``; ``other`` is another example's word."""
        word, table = self.words[index], self.table
        tokens, forms = {"object": table.tokens[word]}, {"object": table.forms[word]}
        if self.controls:
            tokens |= {"other": table.tokens[other], "frequency": self.tokens[word]}
            forms |= {"other": table.forms[other], "frequency": self.forms.get(word, ())}
        return Wanted(tokens, forms)


def run_lens_sweep(
    config: LensConfig,
    *,
    llava: Llava | None = None,
    command: Sequence[str] = (),
    on_progress: OnProgress | None = None,
    on_note: Callable[[str], None] = lambda line: None,
) -> FinishedRun | TimeEstimate | None:
    """Score lenses, or resume a run that was killed.

    Args:
        config: The settings.
        llava: The model of ``config``, if it is in memory; otherwise it is loaded.
        command: The command line, for the manifest.
        on_progress: Called with (stage, newly done, total); None shows bars in a terminal or notebook.
        on_note: Called with the estimate and with notes on words that have no token.

    Returns:
        The finished run; the estimate if ``config.dry_run`` is set; None on all processes but rank 0.

    Raises:
        UserError: If the settings, the data, a lens or the model cannot be used.

    Example:
        >>> from probes.lenses.config import DataOptions
        >>> from records.options import ModelOptions
        >>> config = LensConfig(ModelOptions("random:tiny"), DataOptions(limit=2), dry_run=True)
        >>> run_lens_sweep(config)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        tasks.errors.UserError: words must have a word-start token in random:tiny@0, got none for ...
    """
    on_progress = on_progress or ProgressBars()
    run = Run(config.folder, RUN, config.settings, command=command, overwrite=config.overwrite)
    data = load_examples(config.data, config.target, seed=config.seed)
    synonyms = read_synonyms(config.words)
    uses_text = "latent" in config.lens_specs
    texts = load_corpus(config.text, config.data.spec, seed=config.seed) if uses_text else []
    loaded = {spec: _load(spec) for spec in config.lens_specs if spec != "latent"}
    device = own_device(config.model.device)
    processes = join_processes(device)
    with run.timings.stage("load"):
        llava = open_model(config.model, device=device, seed=config.seed, given=llava, weights=not config.dry_run)
    if config.data.spec == SCENES:
        data = load_examples(config.data, config.target, seed=config.seed, size=llava.image_size)
    sites = lens_sites(llava.n_layers, config.layers)
    names = [lens.name for lens in loaded.values()]
    if len(set(names)) < len(names):
        raise UserError(
            f"lens must be made for different positions to be told apart, got {', '.join(names)}. Run them apart."
        )
    for lens in loaded.values():
        own = [site for site in sites if not (isinstance(lens, JacobianLens) and site == INPUT)]
        check_lens(lens, llava, own)
    table = word_table(llava, data.words, synonyms)
    kept = [i for i, word in enumerate(data.words) if table.tokens[word]]
    if not kept:
        raise UserError(
            f"words must have a word-start token in {llava.id}, got none for {', '.join(table.left_out[:5])}."
        )
    estimate = sweep_estimate(config, llava, data, len(kept), sites, device, processes.world)
    if config.dry_run:
        return estimate
    on_note(str(estimate))
    if len(kept) < len(data.words):
        on_note(
            f"{len(data.words) - len(kept)} examples left out: no token starts {', '.join(table.left_out[:5])} alone"
        )
    about = {
        "name": data.name, "digest": data.digest, "n_examples": len(kept), "words": digest_of([dump(table)]),
        "corpus": digest_of(texts), "lenses": [_describe(lens) for lens in loaded.values()],
    }  # fmt: skip
    with run.open(processes, on_note=on_note, model=describe_model(llava), data=about):
        job = _Job(
            config, data, kept, table, sites, loaded, texts, processes, on_progress, on_note, timings=run.timings
        )
        notes = job.read(llava)
        if config.controls and not config.model.name.startswith("random:"):
            job.read_control(llava)
        processes.wait()
        if not processes.is_main:
            return None
        finished = run.is_finished
        with run.timings.stage("tables"):
            if not (finished and job.has_pictures):
                job.write_shown(llava)
            if not finished:
                scores, nearest = job.collect()
                results = tabulate(scores, nearest, model=config.model.name, n_layers=llava.n_layers, seed=config.seed)
        if not finished:
            with writing(config.folder):
                commit(config.folder / "scores.parquet", scores.to_parquet(index=False))
            run.finish(results)
            with writing(config.folder), run.drawing():
                figures.drawn_figures(config.folder, again=True)
    for note in notes:
        on_note(note)
    return finished_lens_sweep(config.folder)


def finished_lens_sweep(folder: Path) -> FinishedRun:
    """The finished run in ``folder``, with its figures drawn; raise ``UserError`` if there is none."""
    results = read_results(folder, RUN)
    with writing(folder):
        drawn = figures.drawn_figures(folder)
    notes = middle_sentences(results)
    return FinishedRun(folder, results, render_summary(results), drawn, notes, timings=read_timings(folder, RUN))


class _Job:
    """The work of a run, in shards of some examples that are written when they are done."""

    def __init__(
        self,
        config: LensConfig,
        data: LensData,
        kept: Sequence[int],
        table: WordTable,
        sites: Sequence[Site],
        loaded: Mapping[str, Lens],
        texts: Sequence[str],
        processes: Processes,
        on_progress: OnProgress,
        on_note: Callable[[str], None],
        *,
        timings: Timings,
    ) -> None:
        self.on_note, self.timings = on_note, timings
        self.config, self.data, self.kept, self.table, self.sites = config, data, list(kept), table, sites
        self.loaded, self.texts, self.processes, self.on_progress = loaded, texts, processes, on_progress
        self.shards = [self.kept[at : at + SHARD] for at in range(0, len(self.kept), SHARD)]
        self.others = dict(zip(self.kept, others([data.words[i] for i in self.kept]), strict=True))
        self.n_shown = min(config.shown, len(self.kept))

    def read(self, llava: Llava) -> list[str]:
        """Write the missing shards of this rank; return notes on what a latent lens cannot find."""
        missing = self._missing("model")
        if not missing:
            return []
        lenses = self._lenses(llava, self.config.lens_specs)
        with self.timings.stage("reading"):
            self._run(llava, lenses, self._words(llava, lenses), missing, "model", "reading")
        notes = []
        for lens in lenses:
            if isinstance(lens, LatentLens):
                known = set(lens.words)
                absent = [i for i in self.kept if known.isdisjoint(self.table.forms[self.data.words[i]])]
                names = ", ".join(sorted({self.data.words[i] for i in absent})[:5])
                if absent:
                    notes.append(f"{len(absent)} examples' words are not in the corpus of the latent lens: {names}")
        return notes

    def read_control(self, llava: Llava) -> None:
        """The same on a randomly initialised model: the logit lens, and a latent lens of its own."""
        missing = self._missing("random")
        if not missing:
            return
        control = randomised(llava, self.config.seed + _CONTROL_SEED)
        specs = ["logit"] if any(not spec.startswith("latent") for spec in self.config.lens_specs) else []
        lenses = self._lenses(control, [*specs, *(["latent"] if self.texts else [])])
        with self.timings.stage("reading the random model"):
            words = replace(self._words(control, lenses), controls=False)
            self._run(control, lenses, words, missing, "random", "reading the random model")

    def collect(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The scores and the nearest layers of all shards; the random model's scores stand with every lens."""
        scores = self._all("model", "scores", COLUMNS)
        nearest = self._all("model", "nearest", NEAREST).assign(words="any")
        if self._path("random", 0, "scores").is_file():
            control = self._all("random", "scores", COLUMNS).assign(words="random_init")
            near = self._all("random", "nearest", NEAREST).assign(words="random_init")
            nearest = pd.concat([nearest, near], ignore_index=True) if len(near) else nearest
            parts = [scores]
            for lens in dict.fromkeys(scores["lens"]):
                own = control[control["lens"] == ("latent" if lens == "latent" else "logit")]
                sites = set(scores.loc[scores["lens"] == lens, "site"])
                parts.append(own[own["site"].isin(sites)].assign(lens=lens))
            scores = pd.concat(parts, ignore_index=True)
        return scores, nearest

    @property
    def has_pictures(self) -> bool:
        """True if the pictures of the first examples are there, as they were written."""
        return all(is_whole(self.config.folder / "pictures" / f"{k}.png") for k in range(self.n_shown))

    def write_shown(self, llava: Llava) -> None:
        """Write ``tokens.parquet``, ``examples.json`` and the pictures of the first examples."""
        if not self.n_shown:
            return
        folder, about = self.config.folder, []
        parts = [self._read("model", n, "tokens", _TOKENS) for n in range(-(-self.n_shown // SHARD))]
        for k, index in enumerate(self.kept[: self.n_shown]):
            example = self.data.examples[index]
            inputs = prepare(llava, [example], preprocess=self.config.data.preprocess)
            assert inputs.pixel_values is not None  # every example has a picture
            path = folder / "pictures" / f"{k}.png"
            if path.is_file() and not is_whole(path):
                self.on_note(f"{path.relative_to(folder)} is damaged: it is made anew")
            with writing(folder):
                path.parent.mkdir(exist_ok=True)
                commit(path, to_png(llava, inputs.pixel_values[inputs.image_of[0][0]]))
            word = self.data.words[index]
            about.append(
                {"k": k, **about_example(llava, inputs, example), "word": word, "forms": self.table.forms[word],
                 "split": self.data.splits[index]}
            )  # fmt: skip
        tokens = pd.concat(parts, ignore_index=True)
        tokens = tokens[tokens["example"].isin([str(entry["example"]) for entry in about])]
        with writing(folder):
            commit(folder / "examples.json", (json.dumps(about, indent=1) + "\n").encode())
            commit(folder / "tokens.parquet", tokens.to_parquet(index=False))

    def _run(
        self, llava: Llava, lenses: Sequence[Lens], words: _Words, shards: Sequence[int], who: str, stage: str
    ) -> None:
        config, total = self.config, sum(len(self.shards[n]) for n in shards)
        for number in shards:
            found: dict[str, list[pd.DataFrame]] = {"scores": [], "nearest": [], "tokens": []}
            for place, index in enumerate(self.shards[number]):
                example, split = self.data.examples[index], self.data.splits[index]
                with user_errors(CaptureError):
                    inside, readings = read_example(
                        llava, lenses, self.sites, example, words.of(index, self.others[index]), top_k=config.top_k,
                        preprocess=config.data.preprocess,
                    )  # fmt: skip
                found["scores"].append(score_rows(readings, inside, example, split))
                found["nearest"].append(nearest_rows(readings, lenses, example, split, llava.n_layers))
                if who == "model" and number * SHARD + place < self.n_shown:
                    found["tokens"].append(token_rows(llava, lenses, readings, example, config.top_k))
                self.on_progress(stage, 1, total)
            with writing(config.folder):
                (config.folder / "shards").mkdir(exist_ok=True)
                for name in ("tokens", "nearest", "scores"):  # the scores come last: a shard that has them is done
                    if found[name]:
                        table = pd.concat(found[name], ignore_index=True)
                        commit(self._path(who, number, name), table.to_parquet(index=False))

    def _lenses(self, llava: Llava, specs: Sequence[str]) -> list[Lens]:
        """The lenses of the settings for a model; a latent lens without a folder is made from the text."""
        found: list[Lens] = []
        for spec in specs:
            if spec == "latent":
                stage = f"indexing {llava.id}"
                with self.timings.stage("indexing"):
                    made = build_latent_lens(
                        llava, self.texts, most_tokens=self.config.text.corpus_tokens,
                        on_text=partial(self.on_progress, stage),
                    )  # fmt: skip
                found.append(made)
            else:
                found.append(LogitLens() if spec == "logit" else self.loaded[spec])
        return found

    def _words(self, llava: Llava, lenses: Sequence[Lens]) -> _Words:
        latent = next((lens for lens in lenses if isinstance(lens, LatentLens)), None)
        forms = {} if latent is None else matched_words(latent.words, self.table)
        tokens = matched_tokens(llava, self.table) if self.config.controls else {}
        return _Words(self.table, self.data.words, tokens, forms, self.config.controls)

    def _missing(self, who: str) -> list[int]:
        """The shards of this rank that lack a file, or have a damaged one, which is named."""
        missing = []
        for number in range(self.processes.rank, len(self.shards), self.processes.world):
            shown = who == "model" and number * SHARD < self.n_shown
            paths = [self._path(who, number, name) for name in ("scores", "nearest", *(("tokens",) if shown else ()))]
            damaged = [path for path in paths if path.is_file() and not is_whole(path)]
            for path in damaged:
                self.on_note(f"{path.relative_to(self.config.folder)} is damaged: its examples are read again")
            if damaged or not all(path.is_file() for path in paths) or self._read(who, number, "scores", COLUMNS).empty:
                missing.append(number)
        return missing

    def _all(self, who: str, name: str, columns: tuple[str, ...]) -> pd.DataFrame:
        parts = [self._read(who, n, name, columns) for n in range(len(self.shards))]
        kept = [part for part in parts if len(part)]
        return pd.concat(kept, ignore_index=True) if kept else parts[0]

    def _path(self, who: str, number: int, name: str) -> Path:
        return self.config.folder / "shards" / f"{who}-{name}-{number:05d}.parquet"

    def _read(self, who: str, number: int, name: str, columns: tuple[str, ...]) -> pd.DataFrame:
        """A part of a shard; empty if it has no file as it was written."""
        if not is_whole(self._path(who, number, name)):
            return pd.DataFrame(columns=list(columns))
        try:
            found = pd.read_parquet(io.BytesIO(self._path(who, number, name).read_bytes()))
        except (OSError, ValueError):
            return pd.DataFrame(columns=list(columns))
        return found if tuple(found.columns) == columns else pd.DataFrame(columns=list(columns))


def _load(spec: str) -> Lens:
    kind, _, path = spec.partition(":")
    if kind == "logit":
        return LogitLens()
    return {"tuned": TunedLens, "jacobian": JacobianLens, "latent": LatentLens}[kind].load(path)  # type: ignore[attr-defined,no-any-return]


def _describe(lens: Lens) -> dict[str, Any]:
    """What the manifest says about a lens: a run that is resumed must have the same numbers."""
    tensors: list[Tensor] = []
    if isinstance(lens, TunedLens):
        tensors = [part for translator in lens.translators.values() for part in translator]
    elif isinstance(lens, JacobianLens):
        tensors = list(lens.jacobians.values())
    elif isinstance(lens, LatentLens):
        tensors = [lens.vectors]
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().float().cpu().numpy().tobytes())
    return {"name": lens.name, "width": lens.d_model, "digest": digest.hexdigest()[:16]}
