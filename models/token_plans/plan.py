"""Token plans as plain data: ``parse_token_plan("keep:0.5@2:attention", n_layers=32)``.

In every layer image tokens are in one of three states. ``compute``: as in the model. ``freeze``: their residual stream
passes the layer unchanged, and other tokens still attend to them. ``hide``: it passes unchanged, and no token attends
to them. Text tokens are computed in every layer.
"""

import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

from models.layer_ranges import format_layers, parse_layers
from tasks.checksums import check_recorded
from tasks.errors import UserError
from tasks.files import is_file
from tasks.readers.parse import parse_json

State = Literal["compute", "freeze", "hide"]
Rule = Literal["attention", "random", "uniform"]
FORMS = (
    "all, leave@16, enter@6, freeze:14-31, hide:0-4+25-31, keep:0.5@2:attention, keep:0.5@2:random@0, "
    "keep:0.5@2:uniform, 6-16:hide or 6-16:freeze"
)
_PIECE = re.compile(
    r"(?P<at>leave|enter)@(?P<layer>\d{1,6})"
    r"|(?P<over>freeze|hide):(?P<layers>\d{1,6}(?:-\d{1,6})?)"
    r"|keep:(?P<share>\d{0,6}\.?\d{1,6})@(?P<stage>\d{1,6}):(?:(?P<rule>attention|uniform)|random@(?P<seed>\d{1,6}))"
    r"|(?P<band>\d{1,6}(?:-\d{1,6})?)(?::(?P<outside>freeze|hide))?"
)


@dataclass(frozen=True)
class Keep:
    """From ``layer`` on a share of the image tokens stays; the others are hidden in all later layers.

    ``share`` counts image tokens of the prompt, not of the previous stage. ``rule`` chooses them: the most attention
    that the prompt's last position pays in ``layer`` (mean over heads), at random with ``seed``, or evenly spaced.
    """

    share: float
    layer: int
    rule: Rule
    seed: int = 0

    def __str__(self) -> str:
        """The stage as text."""
        rule = f"random@{self.seed}" if self.rule == "random" else self.rule
        return f"keep:{self.share:g}@{self.layer}:{rule}"

    def count(self, n_image: int) -> int:
        """The number of image tokens that stay of ``n_image`` in a prompt; at least one if there are any."""
        return min(n_image, max(1, int(self.share * n_image + 0.5)))


@dataclass(frozen=True)
class TokenPlan:
    """The state of image tokens in every layer, and the stages at which some of them are dropped.

    Example:
        >>> plan = parse_token_plan("6-16:freeze", n_layers=32)
        >>> plan.layers("compute"), plan.layers("freeze")
        ('6-16', '0-5,17-31')
    """

    text: str
    """The plan in its shortest form."""
    states: tuple[State, ...]
    """The state of image tokens in each layer."""
    stages: tuple[Keep, ...] = ()
    """In ascending order of layers."""

    @property
    def is_all(self) -> bool:
        """True if the plan changes nothing."""
        return not self.stages and set(self.states) == {"compute"}

    def stage_at(self, layer: int) -> Keep | None:
        """The stage that begins with ``layer``."""
        return next((stage for stage in self.stages if stage.layer == layer), None)

    def kept(self, layer: int, n_image: int) -> int:
        """How many of ``n_image`` image tokens no stage has dropped in ``layer``."""
        stages = [stage for stage in self.stages if stage.layer <= layer]
        return stages[-1].count(n_image) if stages and n_image else n_image

    def layers(self, state: State) -> str:
        """The layers in which image tokens have a state, such as ``"0-5,17-31"``."""
        return format_layers(layer for layer, found in enumerate(self.states) if found == state)


def parse_token_plan(text: str, n_layers: int) -> TokenPlan:
    """The plan that ``text`` describes for a language model of ``n_layers``.

    - ``all``: the model as it is.
    - ``leave@K``: image tokens are hidden from layer K on; their keys and values are not stored there (VTW).
    - ``enter@K``: image tokens are hidden below layer K; earlier layers read text alone.
    - ``freeze:A-B``: image tokens pass these layers unchanged and are still attended to (ShortV).
    - ``hide:A-B``: image tokens pass these layers unchanged and are not attended to.
    - ``keep:SHARE@K:RULE``: from layer K on a share of the image tokens stays (FastV, PyramidDrop). ``RULE`` is
      ``attention``, ``random@SEED`` or ``uniform``.
    - ``A-B:hide``, ``A-B:freeze``: a band; image tokens are computed in these layers only, and hidden or frozen
      outside. ``A-B`` means ``A-B:hide``.

    Several ranges or stages are joined by ``+``: ``hide:0-4+25-31``, ``keep:0.5@8:uniform+keep:0.25@16:uniform``.
    Layers count from 0 and both ends are included.

    Raises:
        UserError: If the text has another form, a layer is out of range or named twice, no layer computes image tokens,
            a share is not in (0, 1] or not below the previous one, or a stage begins where image tokens are hidden.

    Example:
        >>> parse_token_plan("hide:0-1+3", n_layers=4).states
        ('hide', 'hide', 'compute', 'hide')
        >>> parse_token_plan("keep:0.5@2:random@7", n_layers=4).stages
        (Keep(share=0.5, layer=2, rule='random', seed=7),)
    """
    text = "".join(text.split())
    states: list[State] = ["compute"] * n_layers
    if text == "all":
        return TokenPlan("all", tuple(states))
    named: dict[int, str] = {}
    stages: list[Keep] = []
    band: State | None = None
    previous = ""
    pieces = text.split("+")
    for piece in pieces:
        match = _PIECE.fullmatch(piece)
        if match is not None and match["band"] and match["outside"] is None and previous in ("freeze", "hide"):
            match = _PIECE.fullmatch(f"{previous}:{piece}")  # a further range of the piece before
        if match is None:
            raise UserError(f"token plan must be a form like {FORMS}, got {text!r}. Several are joined by +.")
        if match["share"]:
            stages.append(_stage(match, n_layers, text))
            previous = "keep"
        elif match["band"]:
            if len(pieces) > 1:
                raise UserError(
                    f"token plan must be a band alone, got {text!r}. Write it as hide: or freeze: with the layers "
                    "outside the band."
                )
            band = "freeze" if match["outside"] == "freeze" else "hide"
            inside = parse_layers(match["band"], n_layers)
            states = ["compute" if layer in inside else band for layer in range(n_layers)]
        else:
            state: State = "freeze" if match["over"] == "freeze" else "hide"
            for layer in _layers(match, n_layers):
                if layer in named:
                    raise UserError(
                        f"token plan must name each layer once, got layer {layer} in {named[layer]} and in {piece} "
                        f"of {text!r}."
                    )
                named[layer] = piece
                states[layer] = state
            previous = match["over"] or match["at"]
    if "compute" not in states:
        raise UserError(
            f"token plan must leave a layer in which image tokens are computed, got none of {n_layers} in {text!r}."
        )
    _check_stages(stages, states, text)
    return TokenPlan(f"{text}:hide" if band == "hide" and ":" not in text else text, tuple(states), tuple(stages))


def parse_token_plans(text: str, n_layers: int) -> tuple[TokenPlan, ...]:
    """Several plans, separated by commas; raise ``UserError`` as ``parse_token_plan``, or if one is named twice.

    Example:
        >>> [plan.text for plan in parse_token_plans("all,leave@2,1-2", n_layers=4)]
        ['all', 'leave@2', '1-2:hide']
    """
    plans = tuple(parse_token_plan(piece, n_layers) for piece in text.split(","))
    names = [plan.text for plan in plans]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"token plans must be named once each, got {name!r} twice in {text!r}.")
    return plans


def recorded_token_plan(folder: str | Path, n_layers: int) -> str:
    """The token plan that a folder of ``layerwise-finetune`` was trained under; ``"all"`` for any other model.

    Raises:
        UserError: If ``plan.json`` cannot be read, or its plan does not fit the model.

    Example:
        >>> recorded_token_plan("smol", n_layers=30)
        'all'
    """
    path = Path(folder) / "plan.json"
    if not is_file(path):
        return "all"
    check_recorded(path, advice="Start the same layerwise-finetune again: it is made anew.")
    try:
        text = parse_json(path.read_bytes())["plan"].get("token_plan", "all")
        return parse_token_plan(str(text), n_layers).text
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"plan.json must be what layerwise-finetune wrote, got {str(path)!r} ({error}).") from error


def _layers(match: re.Match[str], n_layers: int) -> tuple[int, ...]:
    """The layers of a piece ``leave@K``, ``enter@K``, ``freeze:A-B`` or ``hide:A-B``."""
    if match["layers"]:
        return parse_layers(match["layers"], n_layers)
    (layer,) = parse_layers(match["layer"], n_layers)
    return tuple(range(layer, n_layers) if match["at"] == "leave" else range(layer))


def _stage(match: re.Match[str], n_layers: int, text: str) -> Keep:
    share = float(match["share"])
    if not 0 < share <= 1:
        raise UserError(
            f"share must be in (0, 1], got {match['share']} in {text!r}. 0.5 keeps half of the image tokens."
        )
    (layer,) = parse_layers(match["stage"], n_layers)
    rules: dict[str, Rule] = {"attention": "attention", "uniform": "uniform"}
    rule = rules.get(match["rule"] or "", "random")
    return Keep(share, layer, rule, int(match["seed"] or 0))


def _check_stages(stages: list[Keep], states: list[State], text: str) -> None:
    """Check that stages ascend in layers and descend in shares, and begin where image tokens are attended to."""
    for before, after in pairwise(stages):
        if after.layer <= before.layer or after.share >= before.share:
            raise UserError(
                f"stages must have ascending layers and descending shares, got {before} before {after} in {text!r}. "
                "Shares count all image tokens of the prompt."
            )
    for stage in stages:
        if states[stage.layer] == "hide":
            raise UserError(
                f"stage must begin where image tokens are attended to, got {stage} in {text!r}, which hides them in "
                f"layer {stage.layer}."
            )
