"""The examples of a sweep or a capture: those to fit probes on, then those to score only; unreadable pictures left out.

Errors in the user's data are raised here, before a model is loaded.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from probes.config import DataOptions
from tasks.dataset import Dataset, join, pick
from tasks.errors import UserError, user_errors
from tasks.example import Example
from tasks.readers.load_dataset import BadPicture, check_pictures, load_dataset
from tasks.scenes.datasets import scenes_dataset
from tasks.scenes.scene import SIZE

SCENES = "scenes"
NO_CAPTION = "caption must be given for the condition caption, got none"
SCENE_LIMIT = 200  # about four minutes for smol on two cores


class Examples(NamedTuple):
    """What the settings name."""

    name: str
    """Name of the data in output."""
    fitted: Dataset
    """The examples to fit on."""
    transfer: Dataset | None
    """Those to score only; None for none."""

    @property
    def both(self) -> Sequence[Example]:
        """All examples, those to fit on first."""
        return join(self.fitted.examples, () if self.transfer is None else self.transfer.examples)

    @property
    def digest(self) -> str:
        """A hash of all that can change a result."""
        return self.fitted.digest if self.transfer is None else f"{self.fitted.digest}+{self.transfer.digest}"


class Readable(NamedTuple):
    """The examples with readable pictures."""

    examples: Sequence[Example]
    """Those to fit on first."""
    n_fitted: int
    """The number of them to fit on."""
    skipped: tuple[BadPicture, ...]
    """Those left out."""


def load_examples(data: DataOptions, *, seed: int, targets: Sequence[str] | None = None, size: int = SIZE) -> Examples:
    """Read the examples that the options name.

    Args:
        data: The options.
        seed: Seed of the scenes.
        targets: Labels that every row of a file must have; None for every label column.
        size: Width and height of scenes in pixels.

    Raises:
        UserError: If an option or the data are invalid.
    """
    for option, value in (("limit", data.limit), ("transfer-limit", data.transfer_limit)):
        if value is not None and value < 1:
            raise UserError(f"{option} must be >= 1, got {value}. Leave it out for the default.")
    if data.spec == SCENES and data.captions is not None:
        raise UserError("captions must go with data of your own, got scenes, which have theirs. Leave them out.")
    if data.spec == SCENES:
        n = data.limit or SCENE_LIMIT
        split, transfer = data.split or "test", data.transfer or "unseen"
        n_transfer = data.transfer_limit or max(2, n // 3)
        fitted = scenes_dataset(split=split, n=n, seed=seed, size=size)
        shared = set(split.split("+")) & set(transfer.split("+"))
        if transfer == "none" or transfer == split or (shared and data.transfer is None):
            return Examples(SCENES, fitted, None)
        if shared:
            raise UserError(
                f"transfer must share no split with split {split!r}, got {transfer!r}. Name another one, or none."
            )
        return Examples(SCENES, fitted, scenes_dataset(split=transfer, n=n_transfer, seed=seed, size=size))
    with user_errors(OSError):
        read = partial(
            load_dataset, data.spec, data.images, targets=targets, captions=data.captions,
            follow_links=data.follow_links,
        )  # fmt: skip
        fitted = read(split=data.split, limit=data.limit)
        if data.transfer in (None, "none"):
            return Examples(Path(data.spec).name, fitted, None)
        if data.split is None or data.split == data.transfer:
            raise UserError(
                f"split must be given, and another than transfer, got split {data.split!r} with transfer "
                f"{data.transfer!r}. Name the split that probes are fitted on."
            )
        other = read(split=data.transfer, limit=data.transfer_limit)
        return Examples(Path(data.spec).name, fitted, other)


def readable(found: Examples, data: DataOptions, *, captioned: bool = False) -> Readable:
    """The examples with readable pictures, and those that are left out.

    Args:
        found: The examples.
        data: The options; with ``skip_bad`` examples that cannot be used are left out.
        captioned: Whether examples without a caption cannot be used.

    Raises:
        UserError: If a picture cannot be read and ``skip_bad`` is not set, or none can.
    """
    both, first, fitted, transfer = found.both, len(found.fitted.examples), found.fitted, found.transfer
    if data.spec == SCENES:
        return Readable(both, first, ())
    bad = [check_pictures(fitted), [] if transfer is None else check_pictures(transfer)]
    if captioned and data.skip_bad:
        for part, examples in zip(bad, (fitted.examples, () if transfer is None else transfer.examples), strict=True):
            known = {item.id for item in part}
            part += [BadPicture(e.id, NO_CAPTION) for e in examples if not e.captions and e.id not in known]
    skipped = tuple(BadPicture(item.id, " ".join(item.reason.split())) for part in bad for item in part)
    if skipped and not data.skip_bad:
        more = f" {len(skipped) - 1} more examples have bad pictures." if len(skipped) > 1 else ""
        raise UserError(
            f"{skipped[0].reason} It belongs to example {skipped[0].id!r}.{more} --skip-bad leaves such examples out."
        )
    unreadable = [{item.id for item in part} for part in bad]
    kept = [i for i, example in enumerate(both) if example.id not in unreadable[i >= first]]
    n_fitted = sum(i < first for i in kept)
    if n_fitted == 0:
        raise UserError(f"some example must have readable pictures, got none of {len(both)}. Check the image folder.")
    return Readable(pick(both, kept), n_fitted, skipped)
