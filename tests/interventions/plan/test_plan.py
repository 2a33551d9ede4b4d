"""Plans: invalid values are errors, and a plan unfolds into the rows of a table."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch

from interventions.plan.cells import CellSpec
from interventions.plan.groups import Masks, group_mask, is_pictured, parse_group, picture_mask
from interventions.plan.options import (
    OPERATIONS,
    AblateOptions,
    Corruption,
    PatchOptions,
    SkipOptions,
    SteerOptions,
    TransplantOptions,
)
from interventions.plan.plan import InterventionPlan
from models.capture import capture
from models.inputs import prepare
from models.llava import Llava
from models.sites import Site
from models.tokens import token_mask
from tests.conftest import make_examples


def made(data: dict[str, Any]) -> InterventionPlan:
    """The plan of plain data."""
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}
    for key, kind in (("options", OPERATIONS[values["op"]].options), ("corruption", Corruption)):
        if isinstance(values.get(key), dict):
            values[key] = kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in values[key].items()})
    return InterventionPlan(**values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"options": SkipOptions()}, "options must be PatchOptions for op 'patch', got SkipOptions"),
        ({"corruption": {"scale": 0.0}}, "scale must be a positive finite number, got 0.0"),
        ({"corruption": {"seeds": []}}, "seeds must be integers >= 0, at least one"),
        ({"window": 2}, "window must be an odd number of layers or one of up-to, onward, together, got 2"),
        ({"window": True}, "window must be an odd number"),
        ({"tokens": ["sky"]}, "tokens must be one of image, .*got 'sky'"),
        ({"tokens": ["patch(1)"]}, "tokens must be one of image"),
        ({"tokens": []}, "tokens must be given for op 'patch', as in image, got none"),
        ({"tokens": ["image->last"]}, "tokens must be one group for op 'patch', got 'image->last'"),
        ({"heads": "a"}, "heads must be like all, 0,3-5 or 0.3, got 'a'"),
        ({"metrics": []}, "metrics must contain at least one of logit_difference"),
    ],
)
def test_values_that_mean_nothing_are_refused(change: dict[str, Any], message: str) -> None:
    good = {"op": "patch", "sites": ["resid_pre"], "tokens": ["image"]}
    assert made(good)
    with pytest.raises(ValueError, match=message):
        made({**good, **change})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"op": "knockout", "tokens": ["image"]}, "tokens must be source->target for op 'knockout', got 'image'"),
        ({"op": "knockout"}, "tokens must be given for op 'knockout', as in image->question"),
        ({"op": "skip", "tokens": ["image"], "heads": "0"}, "heads must not be given for op 'skip', got '0'"),
        ({"op": "transplant", "tokens": ["image"]}, "tokens must not be given for op 'transplant'"),
        ({"op": "transplant", "options": {"donor": ""}}, "donor must be the name of a checkpoint, got ''"),
        ({"op": "attribute", "sites": ["z"], "tokens": ["last"], "window": 3}, "window must be 1 for op 'attribute'"),
        (
            {"op": "attribute", "sites": ["z"], "tokens": ["last"], "metrics": ["accuracy"]},
            "metric must have a gradient for op 'attribute', got 'accuracy'",
        ),
        (
            {
                "op": "attribute",
                "sites": ["z"],
                "tokens": ["last"],
                "metrics": ["kl"],
                "options": {"direction": "noise"},
            },
            "metric must not be kl for op 'attribute' with direction 'noise'",
        ),
        ({"op": "ablate", "sites": ["z"], "tokens": ["last"], "options": {"seed": -1}}, "seed must be an integer >= 0"),
        ({"op": "steer", "sites": ["z"], "tokens": ["last"], "options": {"direction": ""}}, "direction must be a name"),
    ],
)
def test_what_an_operation_cannot_do_is_refused(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made(data)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (InterventionPlan("patch", tokens=("image",)), "sites must be given for op 'patch'"),
        (
            InterventionPlan("knockout", sites=("z",), tokens=("image->last",)),
            "sites must not be given for op 'knockout'",
        ),
        (InterventionPlan("patch", sites=("resid_pre",), tokens=("image",), layers="3"), r"layer must be in \[0, 3\)"),
        (InterventionPlan("patch", sites=("pattern",), tokens=("image",)), "site must not be 'pattern' for op 'patch'"),
        (
            InterventionPlan("patch", sites=("resid_pre",), tokens=("image",), heads="0"),
            "heads must go with q, k, v or z",
        ),
        (InterventionPlan("patch", sites=("k",), tokens=("image",), heads="2"), r"head must be in \[0, 2\) for 'k'"),
        (
            InterventionPlan("patch", sites=("q",), tokens=("image",), heads="0+6"),
            r"head must be in \[0, 6\) for 'q'.*got 6",
        ),
        (InterventionPlan("patch", sites=("q",), tokens=("image",), heads="3-1"), "heads must ascend within a range"),
        (
            InterventionPlan("patch", sites=("q",), tokens=("image",), heads="2+2"),
            "heads must be named once each",
        ),
        (InterventionPlan("knockout", tokens=("image->last",), heads="6"), r"head must be in \[0, 6\) for 'pattern'"),
        (
            InterventionPlan("patch", sites=("vision:resid_pre",), tokens=("question",)),
            "tokens must be image tokens or 'all'",
        ),
        (
            InterventionPlan("steer", sites=("z",), tokens=("last",)),
            "site must be as wide as its stream for op 'steer', got 'z'",
        ),
        (
            InterventionPlan("patch", sites=("projector:in",), tokens=("image",), corruption=Corruption("noise")),
            "site must not come before the noise",
        ),
    ],
)
def test_a_plan_is_checked_against_the_model(llava: Llava, plan: InterventionPlan, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan.cells(llava)


@pytest.mark.parametrize(
    ("good", "field", "value", "message"),
    [
        (PatchOptions(), "direction", "sideways", "direction must be one of denoise, noise, got 'sideways'"),
        (AblateOptions(), "kind", "x", "ablation must be one of zero, mean, resample, got 'x'"),
        (SkipOptions(), "hidden", 1, "hidden must be true or false, got 1"),
        (SteerOptions(), "alpha", "x", "alpha must be a finite number, got 'x'"),
        (SteerOptions(), "alpha", float("nan"), "alpha must be a finite number, got nan"),
        (SteerOptions(), "unit", "mile", "unit must be one of norm, absolute, got 'mile'"),
        (TransplantOptions(), "head", 1, "head must be true or false, got 1"),
        (Corruption(), "kind", "mud", "corruption must be one of pair, blank, noise, got 'mud'"),
        (
            InterventionPlan("knockout", tokens=("image->last",)),
            "engine",
            "steam",
            "engine must be one of incremental, full",
        ),
        (
            InterventionPlan("knockout", tokens=("image->last",)),
            "metrics",
            ("luck",),
            "metric must be one of logit_diff.*'luck'",
        ),
        (
            InterventionPlan("knockout", tokens=("image->last",)),
            "tokens",
            "image",
            "tokens must be a list of names, got 'image'",
        ),
        (
            InterventionPlan("knockout", tokens=("image->last",)),
            "heads",
            3,
            "heads must be text such as '0-3,7', got 3",
        ),
        (
            InterventionPlan("knockout", tokens=("image->last",)),
            "corruption",
            "pair",
            "corruption must be a Corruption, got 'pair'",
        ),
    ],
)
def test_values_of_the_wrong_type_are_refused(good: Any, field: str, value: Any, message: str) -> None:
    bad = copy.copy(good)
    object.__setattr__(bad, field, value)  # past the type checks of the test run, which would come first
    good.__post_init__()
    with pytest.raises(ValueError, match=message):
        bad.__post_init__()


def test_another_operations_options_are_refused() -> None:
    with pytest.raises(ValueError, match="options must be PatchOptions for op 'patch', got SkipOptions"):
        InterventionPlan("patch", sites=("z",), tokens=("last",), options=SkipOptions())


@pytest.mark.parametrize(
    ("window", "expected"),
    [
        (1, [(0, "0"), (1, "1"), (2, "2")]),
        (3, [(0, "0-1"), (1, "0-2"), (2, "1-2")]),
        (9, [(0, "0-2"), (1, "0-2"), (2, "0-2")]),
        ("up-to", [(0, "0"), (1, "0-1"), (2, "0-2")]),
        ("onward", [(0, "0-2"), (1, "1-2"), (2, "2")]),
        ("together", [(0, "0-2")]),
    ],
)
def test_windows_are_clipped_and_say_which_layers_are_changed(
    llava: Llava, window: Any, expected: list[tuple[int, str]]
) -> None:
    specs = InterventionPlan("skip", tokens=("image",), window=window).cells(llava)
    assert [(spec.layer, spec.window) for spec in specs] == expected
    assert [spec.layers for spec in specs] == [tuple(range(int(text[0]), int(text[-1]) + 1)) for _, text in expected]


def test_listed_layers_are_changed_in_one_cell(llava_plain: Llava) -> None:
    (spec,) = InterventionPlan("transplant", layers="0,2-3", window="together").cells(llava_plain)
    assert (spec.site, spec.window, spec.layers, spec.part, spec.name) == (
        "weights",
        "0,2-3",
        (0, 2, 3),
        "language_model",
        "weights",
    )


def test_every_site_group_head_and_layer_is_a_cell_with_its_own_key(llava: Llava) -> None:
    plan = InterventionPlan("patch", sites=("z", "k", "q"), tokens=("image", "last"), heads="all")
    specs = plan.cells(llava)
    assert len(specs) == len({tuple(spec.row().values()) for spec in specs}) == (6 + 2 + 6) * 2 * 3
    assert tuple(specs[0].row()) == ("op", "site", "layer", "window", "tokens", "head")
    assert {spec.head for spec in specs if spec.name == "k"} == {"0", "1"}


def test_heads_may_be_changed_one_by_one_or_together(llava: Llava) -> None:
    specs = InterventionPlan("knockout", tokens=("image->last",), heads="0,2-3,1+5", layers="1").cells(llava)
    assert [spec.heads for spec in specs] == [(0,), (2,), (3,), (1, 5)]
    assert {spec.site for spec in specs} == {"blocks.1.attn.hook_pattern"}


def test_patches_unfold_into_one_cell_each(llava: Llava) -> None:
    specs = InterventionPlan("patch", sites=("projector:out",), tokens=("patches",)).cells(llava)
    assert len(specs) == 16
    assert specs[5] == CellSpec("patch", "vision_projector.hook_out", None, "", "patch(1,1)", None)
    edges = InterventionPlan("knockout", tokens=("patches->last",), layers="0").cells(llava)
    assert [spec.tokens for spec in edges[:2]] == ["patch(0,0)->last", "patch(0,1)->last"]


def test_a_row_of_the_table_says_which_sites_are_changed(llava: Llava) -> None:
    plan = InterventionPlan("ablate", sites=("vision:mlp_out@2",), tokens=("image",), window=3)
    (spec,) = plan.cells(llava)
    assert CellSpec(**spec.row()) == spec  # type: ignore[arg-type]
    assert spec.sites == tuple(Site("vision_tower", layer, "mlp_out") for layer in (1, 2))
    (outside,) = InterventionPlan("patch", sites=("final_norm",), tokens=("last",)).cells(llava)
    assert outside.sites == (Site("language_model", None, "final_norm"),)
    assert outside.layer is None


@pytest.mark.parametrize("side", ["left", "right"])
def test_groups_are_found_by_name_sum_and_difference(llava: Llava, side: str) -> None:
    examples = make_examples(3)
    inputs = prepare(llava, examples, padding_side=side, answers=True)  # type: ignore[arg-type]

    def mask(text: str) -> torch.Tensor:
        return group_mask(inputs, text, llava, examples)

    for name in ("image", "object", "question", "last", "text", "all"):
        assert torch.equal(mask(name), token_mask(inputs, name, llava, examples))
    assert torch.equal(mask("pos(-1)"), mask("last"))
    assert torch.equal(mask("image - object"), mask("image") & ~mask("object"))
    assert torch.equal(mask("image-object+object"), mask("image"))
    starts = [layout.real.start for layout in inputs.layout]
    assert mask("pos(0)").nonzero().tolist() == [[row, start] for row, start in enumerate(starts)]
    assert torch.equal(mask("patch(0,0)+patch(3,3)").sum(1), torch.full((3,), 2))
    assert torch.equal(mask("box(0,0,40,15)"), mask("box(0,0,40,15,0)"))
    answers = [range(layout.prompt_stop, layout.real.stop) for layout in inputs.layout]
    assert mask("answer").nonzero().tolist() == [[row, p] for row, found in enumerate(answers) for p in found]
    assert all(len(found) > 0 for found in answers)


def test_groups_without_a_position_are_refused(llava: Llava) -> None:
    examples = make_examples(2)
    inputs = prepare(llava, examples)
    with pytest.raises(ValueError, match="must contain a position of every example, got none for 'answer' in .*e0"):
        group_mask(inputs, "answer", llava, examples)
    with pytest.raises(ValueError, match=r"pos must be in \[-\d+, \d+\) for row 0 of the batch, got 9999"):
        group_mask(inputs, "pos(9999)", llava)
    with pytest.raises(ValueError, match="got none for 'image-all'"):
        group_mask(inputs, "image-all", llava, examples)


def test_terms_keep_their_signs_and_numbers() -> None:
    assert [(t.sign, t.name, t.numbers) for t in parse_group("box(1,2.5,3,4)-pos(-3)")] == [
        (1, "box", (1.0, 2.5, 3.0, 4.0)),
        (-1, "pos", (-3.0,)),
    ]
    assert [text for text in ("image-object", "all", "all-image", "text", "patch(1,2)") if is_pictured(text)] == [
        "image-object",
        "all",
        "patch(1,2)",
    ]


@pytest.mark.parametrize("text", ["image", "object", "all", "patch(1,2)"])
@pytest.mark.parametrize("part", ["vision_tower", "projector"])
def test_image_tokens_mean_the_same_patches_as_in_a_capture(llava: Llava, text: str, part: Any) -> None:
    examples = make_examples(3)
    inputs = prepare(llava, examples)
    site = Site("vision_tower", 0, "resid_pre") if part == "vision_tower" else Site("projector", None, "out")
    tokens = text if text == "all" else group_mask(inputs, text, llava, examples)
    found = capture(llava, inputs, [site], tokens=tokens)  # type: ignore[arg-type]
    mask = picture_mask(inputs, text, part, llava, examples)
    for row in range(3):
        assert mask[row].nonzero().flatten().tolist() == found.positions[site][row][found.mask[site][row]].tolist()


def test_examples_that_share_a_picture_must_mean_the_same_tokens_of_it(llava: Llava) -> None:
    examples = make_examples(2, n_questions=2)
    inputs = prepare(llava, examples)
    assert picture_mask(inputs, "image", "projector", llava, examples).all()
    with pytest.raises(ValueError, match="tokens must be the same in examples that share a picture, got 'object'"):
        picture_mask(inputs, "object", "projector", llava, examples)


def test_a_batch_makes_each_mask_once(llava: Llava) -> None:
    masks = Masks(llava, prepare(llava, make_examples(2)), None)
    assert masks.at("language_model", "image") is masks.at("language_model", "image")
    text_only = [replace(example, pictures=()) for example in make_examples(1)]
    with pytest.raises(ValueError, match="group 'image' must have a picture"):
        Masks(llava, prepare(llava, text_only), None).at("language_model", "image")
