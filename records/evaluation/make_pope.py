"""``benchmark-eval make-pope``: POPE-style questions about scenes or the user's own pictures."""

from pathlib import Path

from records.evaluation.config import MakePopeConfig
from tasks.benchmarks.layout.make_pope import listed_pictures, scene_pictures, write_pope
from tasks.errors import UserError
from tasks.scenes.drawings import KINDS

SCENES = "scenes"


def make_pope(config: MakePopeConfig) -> str:
    """Write the files of the settings; return a sentence about them.

    Questions about scenes have the words that the embedded model was trained on: ``Is there a cat?``.

    Raises:
        UserError: If the folder is not empty, or the data cannot be used.

    Example:
        >>> make_pope(MakePopeConfig(Path("pope"), pictures=2, size=28))
        'POPE-style questions about 2 pictures: pope. Score a model with --benchmark pope=pope'
    """
    if config.out is None:
        raise UserError("out must be given, got none. Write --out FOLDER.")
    if config.pictures < 1 or config.seed < 0:
        raise UserError(f"pictures must be >= 1 and seed >= 0, got {config.pictures} and {config.seed}.")
    if config.data == SCENES:
        pictures = scene_pictures(config.pictures, seed=config.seed, size=config.size)
        write_pope(config.out, pictures, vocabulary=tuple(KINDS), ending="?", seed=config.seed)
    else:
        pictures = listed_pictures(
            Path(config.data), config.images, limit=config.pictures, follow_links=config.follow_links
        )
        write_pope(config.out, pictures, seed=config.seed)
    where = config.out
    return f"POPE-style questions about {len(pictures)} pictures: {where}. Score a model with --benchmark pope={where}"
