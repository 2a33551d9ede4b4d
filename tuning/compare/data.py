"""What a comparison trains and scores on, the same for every plan: ``open_data``, then ``survey_data``.

Scenes are scored under three conditions; a file is a condition of its own, called as the file is.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from models.llava import Llava
from records.progress import OnProgress, silent
from tasks.errors import UserError, user_errors
from tasks.example import Picture
from tasks.scenes.questions import CHANCE
from tasks.scenes.scene import Split
from tuning.compare.config import CompareData
from tuning.config import SCENES
from tuning.data.samples import Samples, Skipped, Survey, Writing, refusal_of, survey_usable, write_skipped
from tuning.data.scene_mix import SceneMix, SceneQuestions
from tuning.data.sources import Source, first_of, open_source
from tuning.training.save import write_json

SCENE_CONDITIONS = ("seen", "unseen", "text")
PASSAGE = "passage"  # the condition of ordinary text
_KEPT = "samples.json"  # of a comparison: a digest of which samples are used
_TRAINED = "train"  # what is trained on, among digests
TRAINING = Writing()
SCORING = Writing(on_long="refuse")  # an answer that was cut would be right on what is left of it


class Opened(NamedTuple):
    """Sources: what is trained on, and what is asked under each condition."""

    mix: Source
    questions: dict[str, Source]

    @property
    def digests(self) -> dict[str, str]:
        """A digest of each file's samples by condition, ``train`` for what is trained on; none of scenes."""
        return {name: source.digest for name, source in _files(self.mix, self.questions).items()}


class Surveyed(NamedTuple):
    """Sources with what can be used of them: a tokenizer decides that, and all plans have the same."""

    mix: Source
    found: Survey
    questions: dict[str, tuple[Source, Survey]]

    def samples(self, llava: Llava) -> Samples:
        """What is trained on."""
        return Samples(llava, self.mix, self.found, TRAINING)

    def asked(self, llava: Llava) -> dict[str, Samples]:
        """What is scored, by condition."""
        return {name: Samples(llava, source, found, SCORING) for name, (source, found) in self.questions.items()}

    @property
    def skipped(self) -> dict[str, tuple[Skipped, ...]]:
        """Samples that are left out, by condition; of what is trained on as ``train``."""
        return {_TRAINED: self.found.skipped, **{name: found.skipped for name, (_, found) in self.questions.items()}}

    def record(self, folder: Path) -> list[str]:
        """Writes which samples are left out, in the folder of the comparison; a line for the reader about each list.

        Raises:
            UserError: If they are others than those that the comparison's finished runs had.
        """
        used = {_TRAINED: self.found, **{name: found for name, (_, found) in self.questions.items()}}
        kept = {name: hashlib.sha256(found.lengths.tobytes()).hexdigest()[:16] for name, found in used.items()}
        path = folder / _KEPT
        before = json.loads(path.read_text()) if path.is_file() else kept
        differing = [name for name in kept if before.get(name) != kept[name]]
        if differing:
            raise UserError(
                f"data must be what they were when the comparison began, got other samples that can be used for "
                f"{', '.join(differing)}: pictures came or went. Restore them, or choose another folder with --out."
            )
        with user_errors(OSError):
            write_json(path, kept)
            for name, bad in self.skipped.items():
                if bad:
                    write_skipped(folder / f"skipped-{name}.csv", bad)
        lists = {name: len(bad) for name, bad in self.skipped.items() if bad}
        return [f"{n} samples left out, see {folder / f'skipped-{name}.csv'}" for name, n in lists.items()]


def open_data(data: CompareData) -> Opened:
    """The sources of a comparison; scenes are the first conditions, files follow in the order that was given.

    Raises:
        UserError: If a file cannot be read, or two conditions would have one name.
    """
    files = {Path(spec).stem: spec for spec in data.eval_specs if spec != SCENES}
    names = [*(SCENE_CONDITIONS if len(files) < len(data.eval_specs) else ()), *files]
    taken = {*SCENE_CONDITIONS, PASSAGE, _TRAINED}
    if not names or len(files) + (SCENES in data.eval_specs) < len(data.eval_specs) or taken & files.keys():
        raise UserError(
            f"eval-data must be `scenes` and files with names of their own (none of {', '.join(sorted(taken))}), got "
            f"{', '.join(data.eval_specs) or 'nothing'}. Rename the files."
        )
    with user_errors(ValueError, OSError):
        mix = open_source(data.spec, data.images, scenes=SceneMix(data.scenes))
        questions = {
            name: first_of(open_source(files[name], data.images), data.eval_limit) if name in files
            else _scenes(data, name)
            for name in names
        }  # fmt: skip
    return Opened(first_of(mix, data.limit), questions)


def _scenes(data: CompareData, condition: str) -> Source:
    split: Split = "unseen" if condition == "unseen" else "test"
    return SceneQuestions(data.score_scenes, split=split, text=condition == "text")


def survey_data(opened: Opened, llava: Llava, *, skip_bad: bool, on_progress: OnProgress = silent) -> Surveyed:
    """Every sample looked at once.

    Args:
        opened: The sources.
        llava: Gives the tokenizer.
        skip_bad: Whether to go on without samples that cannot be used.
        on_progress: Told how it goes.

    Raises:
        UserError: If samples cannot be used, and ``skip_bad`` does not allow it, or none can.
    """
    files = _files(opened.mix, opened.questions)
    with user_errors(ValueError, OSError):
        found = survey_usable(llava, opened.mix, TRAINING, "reading samples", on_progress)
        questions = {}
        for name, source in opened.questions.items():
            own = survey_usable(llava, source, SCORING, f"reading questions of {name}", on_progress)
            own = _with_pictures(source, own) if name in files else own
            if not len(own.kept):
                raise refusal_of(own.skipped, source.name)
            questions[name] = source, own
    data = Surveyed(opened.mix, found, questions)
    for name, bad in data.skipped.items():
        if bad and not skip_bad:
            raise refusal_of(bad, (opened.questions | {_TRAINED: opened.mix})[name].name)
    return data


def _with_pictures(source: Source, found: Survey) -> Survey:
    """Without samples whose pictures do not open: what is scored is opened before hours are spent on training."""
    reasons: dict[str, str | None] = {}
    lengths, skipped = found.lengths.copy(), list(found.skipped)
    for index in map(int, found.kept):
        conversation = source[index]
        for picture in conversation.pictures:
            if picture.key not in reasons:
                reasons[picture.key] = _reason(picture)
            reason = reasons[picture.key]
            if reason is not None:
                lengths[index] = 0
                skipped.append(Skipped(index, conversation.id, reason))
                break
    return replace(found, lengths=lengths, skipped=tuple(skipped))


def _reason(picture: Picture) -> str | None:
    """Why a picture does not open; None if it does."""
    try:
        picture.open()
    except (UserError, OSError) as error:
        return str(error)
    return None


def _files(mix: Source, questions: Mapping[str, Source]) -> dict[str, Source]:
    """The sources that are no scenes."""
    asked = {name: source for name, source in questions.items() if name not in SCENE_CONDITIONS}
    return asked if isinstance(mix, SceneMix) else {_TRAINED: mix, **asked}


def chance_of(conditions: Sequence[str]) -> Mapping[str, Mapping[str, float]]:
    """By condition and question family, the share of right answers of a guess, where it is known: for scenes."""
    known = {str(family): share for family, share in CHANCE.items()}
    return {condition: known for condition in conditions if condition in SCENE_CONDITIONS}
