"""What a comparison trains and scores on, the same for every plan: ``open_data``, then ``survey_data``.

Scenes are scored under three conditions; a file is a condition of its own, called as the file is.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from models.llava import Llava
from records.errors import BadInput, refusing
from records.progress import OnProgress, silent
from tasks.questions import CHANCE
from tasks.scenes import Split
from tuning.config import SCENES, CompareConfig
from tuning.data import Samples, Skipped, Survey, Writing, refusal_of, survey_usable, write_skipped
from tuning.sources import SceneMix, SceneQuestions, Source, first_of, open_source

SCENE_CONDITIONS = ("seen", "unseen", "text")
PASSAGE = "passage"  # the condition of ordinary text
TRAINING = Writing()
SCORING = Writing(on_long="refuse")  # an answer that was cut would be right on what is left of it


class Opened(NamedTuple):
    """Sources: what is trained on, and what is asked under each condition."""

    mix: Source
    questions: dict[str, Source]

    @property
    def digests(self) -> dict[str, str]:
        """A digest of each file's samples by condition, ``train`` for what is trained on; none of scenes."""
        asked = {name: source.digest for name, source in self.questions.items() if name not in SCENE_CONDITIONS}
        return asked if isinstance(self.mix, SceneMix) else {"train": self.mix.digest, **asked}


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
        """Samples that are left out, by the name of their list."""
        asked = {f"skipped-{name}": found.skipped for name, (_, found) in self.questions.items()}
        return {"skipped": self.found.skipped, **asked}

    def list_skipped(self, folder: Path) -> None:
        """Writes a list of those of each source that has any."""
        for name, bad in self.skipped.items():
            if bad:
                write_skipped(folder / f"{name}.csv", bad)


def open_data(config: CompareConfig) -> Opened:
    """The sources of a comparison.

    Raises:
        BadInput: If a file cannot be read, or two conditions would have one name.
    """
    names = [name for spec in config.eval_data for name in (SCENE_CONDITIONS if spec == SCENES else (Path(spec).stem,))]
    reserved = {PASSAGE, "train"} | (set() if SCENES in config.eval_data else set(SCENE_CONDITIONS))
    if not names or len(set(names)) < len(names) or reserved & set(names):
        raise BadInput(
            f"eval-data must be `scenes` and files with names of their own (none of {', '.join(SCENE_CONDITIONS)}, "
            f"{PASSAGE}, train), got {', '.join(config.eval_data) or 'nothing'}. Rename the files."
        )
    questions: dict[str, Source] = {}
    with refusing(ValueError, OSError):
        mix = open_source(config.data, config.images, scenes=SceneMix(config.scenes))
        for spec in config.eval_data:
            if spec == SCENES:
                questions |= {name: _scenes(config, name) for name in SCENE_CONDITIONS}
            else:
                questions[Path(spec).stem] = first_of(open_source(spec, config.images), config.eval_limit)
    return Opened(first_of(mix, config.limit), questions)


def _scenes(config: CompareConfig, condition: str) -> Source:
    split: Split = "unseen" if condition == "unseen" else "test"
    return SceneQuestions(config.score_scenes, split=split, text=condition == "text")


def survey_data(opened: Opened, llava: Llava, *, skip_bad: bool, on_progress: OnProgress = silent) -> Surveyed:
    """Every sample looked at once.

    Args:
        opened: The sources.
        llava: Gives the tokenizer.
        skip_bad: Whether to go on without samples that cannot be used.
        on_progress: Told how it goes.

    Raises:
        BadInput: If samples cannot be used, and ``skip_bad`` does not allow it, or none can.
    """
    with refusing(ValueError, OSError):
        found = survey_usable(llava, opened.mix, TRAINING, "reading samples", on_progress)
        questions = {
            name: (source, survey_usable(llava, source, SCORING, "reading questions", on_progress))
            for name, source in opened.questions.items()
        }
    data = Surveyed(opened.mix, found, questions)
    for bad in data.skipped.values():
        if bad and not skip_bad:
            raise refusal_of(bad)
    return data


def chance_of(conditions: Sequence[str]) -> Mapping[str, Mapping[str, float]]:
    """By condition and question family, the share of right answers of a guess, where it is known: for scenes."""
    known = {str(family): share for family, share in CHANCE.items()}
    return {condition: known for condition in conditions if condition in SCENE_CONDITIONS}
