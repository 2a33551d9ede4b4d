"""Training and evaluation samples made from scenes."""

import hashlib
import json

import numpy as np

from tasks.errors import UserError
from tasks.scenes.drawings import NOUNS
from tasks.scenes.questions import FAMILIES, Family, ask, ask_for_caption, with_caption
from tasks.scenes.scene import COLOURS, MOST_SCENES, Scene, Split, make_scene
from tuning.data.conversation import Conversation, from_examples

# Scenes on which neither the embedded tower nor the embedded checkpoints were trained
FIRST_TRAINING_SCENE = 4_000_000
FIRST_EVALUATION_SCENE = 200_000
FIRST_CAPTION_SCENE = 6_000_000  # captions on which stage 1 is scored


class SceneMix:
    """The embedded instruction mix: questions about scenes in LLaVA-1.5's response formats.

    Each sample is one scene with several questions that do not see each other (``apart``), or that follow each other
    as in LLaVA's data. Some samples have a caption in words instead of a picture.
    """

    def __init__(
        self,
        n: int,
        *,
        seed: int = 0,
        questions: int = 7,
        text_share: float = 0.25,
        caption_share: float = 0.25,
        format_prompts: bool = True,
        apart: bool = True,
        stage: int = 2,
        first: int = FIRST_TRAINING_SCENE,
    ) -> None:
        """Describe the mix; scenes are drawn on access.

        Args:
            n: Number of scenes.
            seed: Seed of scenes and questions.
            questions: Questions per scene; the option-letter family, the hardest to learn, occurs twice.
            text_share: Share of samples with a caption instead of a picture.
            caption_share: Share of picture samples with a caption question as well.
            format_prompts: Whether questions end in a format prompt ("... a single word or phrase.").
            apart: Whether questions about one scene are hidden from each other.
            stage: 1 for captions alone, as in LLaVA's first stage; 2 for the mix.
            first: Number of the first scene.

        Raises:
            UserError: If a number is out of its range.
        """
        most, shares = len(FAMILIES) + 1, (text_share, caption_share)
        if not (1 <= n <= MOST_SCENES and 1 <= questions <= most and all(0 <= share <= 1 for share in shares)):
            raise UserError(
                f"scenes must have n in [1, {MOST_SCENES:,}], questions in [1, {most}] and shares in [0, 1], got {n}, "
                f"{questions}, {text_share}, {caption_share}. Correct them."
            )
        self.name = "scenes"
        self._n, self._seed, self._questions, self._stage, self._first = n, seed, questions, stage, first
        self._text, self._caption, self._formats, self._apart = text_share, caption_share, format_prompts, apart
        drawn = make_scene(first, seed=seed)
        described = [n, seed, questions, text_share, caption_share, format_prompts, apart, stage, first, NOUNS, COLOURS]
        digest = hashlib.sha256(json.dumps(described).encode())
        digest.update(drawn.picture.open().tobytes())  # fonts and Pillow decide the pixels
        self.digest = digest.hexdigest()[:16]

    def __len__(self) -> int:
        """The number of scenes."""
        return self._n

    def __getitem__(self, index: int) -> Conversation:
        """The sample about scene ``index``."""
        if not 0 <= index < self._n:
            raise IndexError(index)
        scene = make_scene(self._first + index, seed=self._seed)
        if self._stage == 1:
            return from_examples([ask_for_caption(scene)])
        rng = np.random.default_rng([self._seed, index])
        drawn = self._draw(rng)
        asked = [ask(scene, family, seed=self._seed * 1009 + index + 7919 * turn) for turn, family in enumerate(drawn)]
        if rng.random() < self._text:
            asked = [with_caption(example, scene.caption) for example in asked]
        elif rng.random() < self._caption:
            asked.append(ask_for_caption(scene))
        return from_examples(asked, apart=self._apart, format_prompts=self._formats)

    def _draw(self, rng: np.random.Generator) -> list[Family]:
        """The families of the questions: all different, and one more option-letter question."""
        twice = ["choice", "choice"] if self._questions > 1 else []
        others = [family for family in FAMILIES if not twice or family != "choice"]
        picked = [others[int(i)] for i in rng.permutation(len(others))[: self._questions - len(twice)]]
        mixed = [*picked, *twice]
        return [mixed[int(i)] for i in rng.permutation(len(mixed))]  # type: ignore[misc]


class SceneQuestions:
    """For scoring: one question of every family about each of ``n`` scenes outside the training data."""

    def __init__(self, n: int, *, split: Split = "test", text: bool = False, format_prompts: bool = True) -> None:
        """Describe the questions; scenes are drawn on access.

        Args:
            n: Number of scenes.
            split: ``"test"`` uses the drawings of training, ``"unseen"`` the held-out ones.
            text: Whether a caption in words replaces the picture.
            format_prompts: Whether questions end in a format prompt.
        """
        if n < 1:
            raise UserError(f"n must be >= 1, got {n}. Ask about at least one scene.")
        self.name = f"scenes-{'text' if text else split}"
        self._n, self._split, self._text, self._formats = n, split, text, format_prompts
        described = json.dumps([n, split, text, format_prompts, NOUNS, COLOURS, FIRST_EVALUATION_SCENE])
        self.digest = hashlib.sha256(described.encode()).hexdigest()[:16]

    def __len__(self) -> int:
        """The number of scenes."""
        return self._n

    def __getitem__(self, index: int) -> Conversation:
        """All questions about scene ``index``, hidden from each other."""
        if not 0 <= index < self._n:
            raise IndexError(index)
        scene: Scene = make_scene(FIRST_EVALUATION_SCENE + index, split=self._split)
        asked = [ask(scene, family) for family in FAMILIES]
        if self._text:
            asked = [with_caption(example, scene.caption) for example in asked]
        return from_examples(asked, apart=True, format_prompts=self._formats)
