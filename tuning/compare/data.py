"""The data of a comparison, the same for every plan: ``open_data``, then ``survey_data``."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from models.llava import Llava
from models.pixels import Preprocess
from records.evaluation.sources import OpenBenchmark, open_benchmark
from records.progress import OnProgress, silent
from records.run import writing
from tasks.checksums import read_whole_json
from tasks.errors import UserError, user_errors
from tasks.example import Picture
from tasks.scenes.questions import CHANCE
from tasks.scenes.scene import Split
from tuning.compare.config import CompareData
from tuning.config import SCENES
from tuning.data.prompt_format import PromptFormat
from tuning.data.samples import Samples, Skipped, Survey, skipped_error, survey_usable, write_skipped
from tuning.data.scene_mix import SceneMix, SceneQuestions
from tuning.data.sources import Source, first_of, open_source
from tuning.scoring.benchmarks import PREFIX, check_scored_here
from tuning.training.save import write_json

SCENE_CONDITIONS = ("seen", "unseen", "text")
TEXT_CONDITION = "passage"  # the condition of ordinary text
_USED = "samples.json"  # digests of the samples that are used
_TRAIN = "train"  # key of the training data


class OpenData(NamedTuple):
    """The sources of a comparison: training data, and scored data by condition."""

    train: Source
    eval: dict[str, Source]
    benchmarks: tuple[OpenBenchmark, ...] = ()

    @property
    def digests(self) -> dict[str, str]:
        """The digest of each file's samples by condition (``train`` for the training data); scenes have none.

        A benchmark has one of its questions, and one of its labels, which its stored scores depend on.
        """
        return {
            **{name: source.digest for name, source in self.files.items()},
            **{f"{PREFIX}{one.name}": one.digest for one in self.benchmarks},
            **{f"labels of {one.name}": one.labels_digest for one in self.benchmarks},
        }

    @property
    def files(self) -> dict[str, Source]:
        """The sources that are not scenes, by condition."""
        scored = {name: source for name, source in self.eval.items() if name not in SCENE_CONDITIONS}
        return scored if isinstance(self.train, SceneMix) else {_TRAIN: self.train, **scored}


class SurveyedData(NamedTuple):
    """The sources of a comparison with the samples that all plans use."""

    data: OpenData
    train_survey: Survey
    eval_surveys: dict[str, Survey]
    preprocess: Preprocess = "pad"

    def samples(self, llava: Llava) -> Samples:
        """The training samples."""
        return Samples(llava, self.data.train, self.train_survey, training_format(self.preprocess))

    def eval_samples(self, llava: Llava) -> dict[str, Samples]:
        """The scored samples by condition."""
        how = scoring_format(self.preprocess)
        return {name: Samples(llava, self.data.eval[name], survey, how) for name, survey in self.eval_surveys.items()}

    @property
    def surveys(self) -> dict[str, Survey]:
        """The surveys by condition, ``train`` for the training data."""
        return {_TRAIN: self.train_survey, **self.eval_surveys}

    def record(self, folder: Path) -> list[str]:
        """Write digests of the used samples and lists of the unused ones into ``folder``; return a line per list.

        Raises ``UserError`` if the finished runs of the comparison used other samples.
        """
        used = {n: hashlib.sha256(s.lengths.tobytes()).hexdigest()[:16] for n, s in self.surveys.items()}
        path = folder / _USED
        before = read_whole_json(path, advice="Choose another --out.") if path.is_file() else used
        differing = [name for name in used if before.get(name) != used[name]]
        if differing:
            raise UserError(
                f"data must be those with which the comparison began, got a change in the samples that can be used for "
                f"{', '.join(differing)}: pictures were added or removed. Restore them, or choose another --out."
            )
        skipped = {name: survey.skipped for name, survey in self.surveys.items() if survey.skipped}
        with writing(folder):
            write_json(path, used)
            for name, bad in skipped.items():
                write_skipped(folder / f"skipped-{name}.csv", bad)
        return [f"{len(bad)} samples left out, see {folder / f'skipped-{name}.csv'}" for name, bad in skipped.items()]


def open_data(data: CompareData) -> OpenData:
    """The sources of a comparison; scenes are the first conditions, files follow in the given order.

    Raises ``UserError`` if a file cannot be read, or two conditions have the same name.
    """
    files = {Path(spec).stem: spec for spec in data.eval_specs if spec != SCENES}
    names = [*(SCENE_CONDITIONS if len(files) < len(data.eval_specs) else ()), *files]
    taken = {*SCENE_CONDITIONS, TEXT_CONDITION, _TRAIN}
    if not names or len(files) + (SCENES in data.eval_specs) < len(data.eval_specs) or taken & files.keys():
        raise UserError(
            f"eval-data must be `scenes` and files with different names (none of {', '.join(sorted(taken))}), got "
            f"{', '.join(data.eval_specs) or 'nothing'}. Rename the files."
        )
    with user_errors(ValueError, OSError):
        read = partial(open_source, images=data.images, follow_links=data.follow_links)
        train = read(data.spec, scenes=SceneMix(data.scenes))
        scored = {
            name: first_of(read(files[name]), data.eval_limit) if name in files
            else _scenes(data, name)
            for name in names
        }  # fmt: skip
    return OpenData(first_of(train, data.limit), scored, _benchmarks(data, {*taken, *files}))


def _benchmarks(data: CompareData, taken: set[str]) -> tuple[OpenBenchmark, ...]:
    """The benchmarks that are scored; ``UserError`` if one cannot be scored here or has the name of a condition."""
    opened = []
    for spec in data.eval_benchmarks:
        if not spec.startswith(PREFIX):
            raise UserError(f"eval must be benchmark:NAME=FOLDER, got {spec!r}. Files are named with --eval-data.")
        one = open_benchmark(
            spec.removeprefix(PREFIX), limit=data.eval_limit, follow_links=data.follow_links, skip_bad=data.skip_bad
        )
        if one.name in taken:
            raise UserError(f"eval must name each condition once, got {one.name!r} twice. Rename the file.")
        taken.add(one.name)
        opened.append(one)
    check_scored_here(opened)
    return tuple(opened)


def _scenes(data: CompareData, condition: str) -> Source:
    split: Split = "unseen" if condition == "unseen" else "test"
    return SceneQuestions(data.score_scenes, split=split, text=condition == "text")


def training_format(preprocess: Preprocess) -> PromptFormat:
    """How samples become tokens and pixels in training."""
    return PromptFormat(preprocess=preprocess)


def scoring_format(preprocess: Preprocess) -> PromptFormat:
    """How questions become tokens and pixels: a cut answer would count as right if its remaining part is right."""
    return PromptFormat(on_long="refuse", preprocess=preprocess)


def survey_data(
    data: OpenData, llava: Llava, *, skip_bad: bool, preprocess: Preprocess = "pad", on_progress: OnProgress = silent
) -> SurveyedData:
    """Check every sample once. Which samples can be used depends on the tokenizer only, so all plans use the same.

    Raises ``UserError`` if none can be used, or some cannot and ``skip_bad`` is False.
    """
    with user_errors(ValueError, OSError):
        trained = survey_usable(llava, data.train, training_format(preprocess), "reading samples", on_progress)
        scored = {}
        for name, source in data.eval.items():
            own = survey_usable(llava, source, scoring_format(preprocess), f"reading questions of {name}", on_progress)
            scored[name] = _with_pictures(source, own) if name in data.files else own
            if not len(scored[name].kept):
                raise skipped_error(scored[name].skipped, source.name)
    surveyed = SurveyedData(data, trained, scored, preprocess)
    for name, survey in surveyed.surveys.items():
        if survey.skipped and not skip_bad:
            raise skipped_error(survey.skipped, (data.eval | {_TRAIN: data.train})[name].name)
    return surveyed


def _with_pictures(source: Source, survey: Survey) -> Survey:
    """The survey without samples whose pictures do not open, since scoring comes after hours of training."""
    reasons: dict[str, str | None] = {}
    lengths, skipped = survey.lengths.copy(), list(survey.skipped)
    for index in map(int, survey.kept):
        conversation = source[index]
        for picture in conversation.pictures:
            if picture.key not in reasons:
                reasons[picture.key] = _reason(picture)
            reason = reasons[picture.key]
            if reason is not None:
                lengths[index] = 0
                skipped.append(Skipped(index, conversation.id, reason))
                break
    return replace(survey, lengths=lengths, skipped=tuple(skipped))


def _reason(picture: Picture) -> str | None:
    """The error of a picture that does not open; None if it does."""
    try:
        picture.open()
    except (UserError, OSError) as error:
        return str(error)
    return None


def chance_of(conditions: Sequence[str]) -> Mapping[str, Mapping[str, float]]:
    """The share of right answers of a random guess by condition and question family, for scenes."""
    known = {str(family): share for family, share in CHANCE.items()}
    return {condition: known for condition in conditions if condition in SCENE_CONDITIONS}
