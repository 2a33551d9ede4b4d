"""The band's rivals: as many layers as the band, whatever the model's depth."""

import pytest

from tuning.plan.default_plans import default_plans
from tuning.plan.layers import anchor_band, select_layers

BANDS = {"anchor": None, "one": (3,), "three": (1, 2, 3), "five": tuple(range(2, 7)), "seven": tuple(range(1, 8))}


def layers(n_layers: int, band: tuple[int, ...] | None) -> dict[str, tuple[int, ...]]:
    """The layers of the plans by name."""
    return {plan.name: select_layers(plan.layers, n_layers) for plan in default_plans(n_layers, band=band)}


@pytest.mark.parametrize("band", BANDS.values(), ids=BANDS)
@pytest.mark.parametrize("n_layers", range(8, 49))
def test_every_rival_has_as_many_layers_as_the_band(n_layers: int, band: tuple[int, ...] | None) -> None:
    size = len(band or anchor_band(n_layers))
    found = layers(n_layers, band)
    for name in ("middle band", "first", "last", "evenly spread", "random layers", "LoRA on the band"):
        assert len(set(found[name])) == len(found[name]) == size, name
    spread = found["evenly spread"]
    gaps = {later - earlier for earlier, later in zip(spread, (*spread[1:], n_layers), strict=True)}
    assert max(gaps) - min(gaps) <= 1
    assert spread[0] == 0


def test_evenly_spread_layers_keep_their_spec_where_the_depth_is_a_multiple() -> None:
    specs = {n: next(p.layers for p in default_plans(n) if p.name == "evenly spread") for n in (30, 32)}
    assert specs[30] == "every:3"
    assert select_layers(specs[32], 32) == (0, 3, 6, 9, 12, 15, 17, 20, 23, 26, 29)
    whole = next(p for p in default_plans(8, band=range(8)) if p.name == "evenly spread")
    assert select_layers(whole.layers, 8) == tuple(range(8))
