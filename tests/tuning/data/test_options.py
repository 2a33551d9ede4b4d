"""Options of training data: preprocessing, links, and data that a plan cannot learn from."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.llava import Llava
from tasks.errors import UserError
from tests.tuning.conftest import turns
from tuning.config import DataOptions, Stage, TuningConfig
from tuning.data.prompt_format import PromptFormat
from tuning.data.samples import survey
from tuning.data.scene_mix import SceneMix
from tuning.plan.plan import LayerPlan
from tuning.plan.resolve import resolve
from tuning.run import check_pictured, evaluation_sources, scoring_format, training_source


@pytest.mark.parametrize(("stage", "default"), [(1, "hf"), (2, "pad")])
def test_pictures_are_prepared_as_the_option_says(stage: Stage, default: str) -> None:
    config = TuningConfig(stage=stage)
    assert config.prompt_format.preprocess == default
    for scored in ("scenes", "questions.json"):
        how = scoring_format(replace(config, data=DataOptions(eval_spec=scored)))
        assert how.preprocess == default
        assert how.recipe == ("plain" if stage == 1 and scored == "scenes" else "vicuna_v1")
    for given in ("pad", "hf"):
        chosen = replace(config, data=DataOptions(preprocess=given))  # type: ignore[arg-type]
        assert chosen.prompt_format.preprocess == scoring_format(chosen).preprocess == given
        assert chosen.settings["preprocess"] == given


def test_links_are_followed_for_training_and_scoring_on_request(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "data").mkdir()
    Image.new("RGB", (30, 20)).save(tmp_path / "elsewhere" / "1.png")
    (tmp_path / "data" / "coco").symlink_to(tmp_path / "elsewhere")
    path = tmp_path / "mix.json"
    path.write_text(json.dumps([{"id": "a", "image": "coco/1.png", "conversations": turns("<image>\nA?", "b")}]))
    data = DataOptions(str(path), images=tmp_path / "data", eval_spec=str(path))
    with pytest.raises(UserError, match="Add --follow-links"):
        training_source(TuningConfig(data=data))[0]
    config = TuningConfig(data=replace(data, follow_links=True))
    for source in (training_source(config), evaluation_sources(config)["eval"]):
        assert source[0].pictures[0].open().size == (30, 20)
    assert "follow_links" not in config.settings


def test_a_projector_alone_needs_pictures(llava: Llava) -> None:
    words = survey(llava, SceneMix(3, text_share=1.0), PromptFormat())
    pictured = survey(llava, SceneMix(3, text_share=0.0), PromptFormat())
    assert not words.pictured.any()
    assert np.all(pictured.pictured)
    projector = resolve(LayerPlan("none", ("projector",)), llava)
    check_pictured(projector, pictured)
    check_pictured(resolve(LayerPlan("1", ("projector",)), llava), words)
    check_pictured(resolve(LayerPlan("none", ("projector", "lm_head")), llava), words)
    with pytest.raises(UserError, match="no gradient reaches the weights"):
        check_pictured(projector, words)
