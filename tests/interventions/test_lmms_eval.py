"""lmms-eval: interventions as text, the class with a stand-in for lmms-eval's, and the real harness where installed."""

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from PIL import Image

from interventions.harness.interventions import intervening, parse_interventions
from interventions.in_memory.context_managers import knocked_out
from models.llava import Llava
from models.loading.load import load
from models.loading.smol import compose
from records.evaluation.answering import answer_batch
from tasks.benchmarks.layout.make_pope import scene_pictures, write_pope
from tasks.benchmarks.layout.question import Question
from tasks.benchmarks.registry import find_benchmark
from tasks.errors import UserError

INSTALLED = importlib.util.find_spec("lmms_eval") is not None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nonsense", "intervention must be OPERATION:WHERE:LAYERS"),
        ("steer:image:3", "with knockout, skip or ablate"),
        ("skip:image:", "intervention must be"),
        ("knockout:image:0-3", "must be knockout:SOURCE->TARGET:LAYERS"),
        ("ablate:attn_out:3", "must be ablate:SITE@TOKENS:LAYERS"),
        ("skip:image:3+", "got ''"),
    ],
)
def test_interventions_of_another_form_are_one_sentence(text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        parse_interventions(text)


def test_interventions_of_a_text_change_runs_as_the_context_managers_do() -> None:
    llava = load("random:tiny", seed=0)
    inputs = llava.inputs(Image.open(BytesIO(scene_pictures(1, size=28)[0].content())), "What is it?")
    plain = llava.logits(inputs)
    with knocked_out(llava, source="image", target="last", layers="0-1"):
        expected = llava.logits(inputs)
    with intervening(llava, parse_interventions("knockout:image->last:0-1")):
        assert (llava.logits(inputs) == expected).all() and (expected != plain).any()
    for text in ("skip:image:0-3", "ablate:mlp_out@image:2", "ablate:mlp_out@all:2+skip:image:0"):
        with intervening(llava, parse_interventions(text)):
            assert (llava.logits(inputs) != plain).any(), text
    with intervening(llava, parse_interventions("")):
        assert (llava.logits(inputs) == plain).all()


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """``LaccolithModel`` on a base class with the attributes of lmms-eval 0.7.3, whether it is installed or not."""

    class Base:
        def __init__(self) -> None:
            self.cache_hook = SimpleNamespace(add_partial=lambda *a: None)
            self.task_dict: dict[str, Any] = {}

    package, api, model = (ModuleType(name) for name in ("lmms_eval", "lmms_eval.api", "lmms_eval.api.model"))
    model.lmms = Base  # type: ignore[attr-defined]
    for module in (package, api, model):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.delitem(sys.modules, "interventions.harness.model", raising=False)
    yield importlib.import_module("interventions.harness.model").LaccolithModel
    sys.modules.pop("interventions.harness.model", None)


def requests_of(questions: list[Question], **options: Any) -> tuple[list[Any], dict[str, Any]]:
    """Requests as lmms-eval makes them, and the documents that they refer to."""
    documents = [{"visuals": [q.picture.open()] if q.picture else []} for q in questions]

    def visuals(document: dict[str, Any]) -> list[Any]:
        return list(document["visuals"])

    made = [
        SimpleNamespace(args=(q.text, {"max_new_tokens": 3, **options}, visuals, number, "scenes", "test"))
        for number, q in enumerate(questions)
    ]
    return made, {"scenes": {"test": documents}}


def test_answers_in_batches_are_those_of_benchmark_eval(stand_in: Any, tmp_path: Path) -> None:
    write_pope(tmp_path / "pope", scene_pictures(2, size=28), ending="?")
    pope = find_benchmark("pope")
    questions = [*pope.read(pope.module.FILES.find(tmp_path / "pope"))[:4], Question("t", "What is a cat?")]
    llava = load("random:tiny", seed=0)
    made, documents = requests_of(questions)
    found = []
    for arguments, plan in (({}, "all"), ({"token_plan": "leave@1"}, "leave@1")):
        model = stand_in(pretrained="random:tiny", batch_size=3, **arguments)
        model.task_dict = documents
        expected = [answer_batch(llava, [q], new_tokens=3, token_plan=plan)[0] for q in questions]
        assert model.generate_until(made) == expected
        found.append(expected)
    changed = stand_in(pretrained="random:tiny", batch_size="2", intervention="knockout:image->last:0-3")
    changed.task_dict = documents
    with knocked_out(llava, source="image", target="last", layers="0-3"):
        expected = answer_batch(llava, questions[:4], new_tokens=3)
    assert changed.generate_until(made[:4]) == expected
    assert expected != found[0][:4] and found[0] != found[1], "interventions and token plans change answers"
    first = found[0][0]
    model = stand_in(pretrained="random:tiny")
    model.task_dict = documents
    assert model.generate_until(requests_of(questions[:1], until=[first[2]])[0]) == [first], "as llava_hf"
    for options in ({"do_sample": True}, {"num_beams": 2}, {"temperature": 0.5}):
        with pytest.raises(UserError, match="must be greedy"):
            model.generate_until(requests_of(questions[:1], **options)[0])
    with pytest.raises(UserError, match="output_type generate_until, got loglikelihood"):
        model.loglikelihood(made)
    model.task_dict["scenes"]["test"][0]["visuals"] = ["film.mp4"]
    with pytest.raises(UserError, match="task must show pictures"):
        model.generate_until(made)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"batch_size": "auto"}, "batch_size must be a number >= 1, got 'auto'"),
        ({"preprocess": "crop"}, "preprocess must be pad or hf, got 'crop'"),
        ({"colour": "red"}, "model_args must be arguments of LaccolithModel, got 'colour'"),
        ({"intervention": "x"}, "intervention must be"),
        ({"token_plan": "leave@99"}, "layer must be in"),
    ],
)
def test_bad_arguments_are_one_sentence(stand_in: Any, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        stand_in(pretrained="random:tiny", **arguments)


TASK = """
dataset_path: parquet
dataset_kwargs:
  data_files: {{test: "{data}"}}
task: laccolith_scenes
test_split: test
output_type: generate_until
doc_to_visual: !function scene_task.visuals
doc_to_text: question
doc_to_target: answer
generation_kwargs: {{max_new_tokens: 4, temperature: 0, do_sample: false}}
process_results: !function scene_task.results
metric_list:
  - metric: exact
    aggregation: mean
    higher_is_better: true
metadata: [{{version: 0.0}}]
"""
CODE = """
import io

from PIL import Image


def visuals(doc):
    return [Image.open(io.BytesIO(doc["image"]["bytes"])).convert("RGB")]


def results(doc, answers):
    return {"exact": float(answers[0].strip().lower() == doc["answer"])}
"""


@pytest.mark.smol
@pytest.mark.skipif(not INSTALLED, reason="lmms-eval is not installed")
@pytest.mark.filterwarnings("default")
def test_a_task_on_scenes_gives_the_same_answers_through_llava_hf_and_our_entry_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LMMS_EVAL_DATASETS_CACHE", str(tmp_path / "cache"))
    lmms_evaluator = importlib.import_module("lmms_eval.evaluator")
    manager = importlib.import_module("lmms_eval.tasks").TaskManager
    llava: Llava = load("smol")
    folder = compose("smol")
    write_pope(tmp_path / "pope", scene_pictures(4, size=llava.image_size), ending="?")
    pope = find_benchmark("pope")
    questions = pope.read(pope.module.FILES.find(tmp_path / "pope"))[:8]
    rows = [
        {
            "question": q.text, "answer": q.label,
            "image": {"bytes": (tmp_path / "pope" / "val2014" / q.row["image"]).read_bytes(), "path": None},
        }
        for q in questions
    ]  # fmt: skip
    pd.DataFrame(rows).to_parquet(tmp_path / "scenes.parquet", index=False)
    (tmp_path / "task").mkdir()
    (tmp_path / "task" / "scenes.yaml").write_text(TASK.format(data=tmp_path / "scenes.parquet"))
    (tmp_path / "task" / "scene_task.py").write_text(CODE)

    tasks = manager(include_path=str(tmp_path / "task"), include_defaults=False)

    def answers(model: str, batch_size: int, **arguments: Any) -> list[str]:
        words = ",".join(f"{name}={value}" for name, value in {"pretrained": folder, **arguments}.items())
        found = lmms_evaluator.simple_evaluate(
            model=model, model_args=words, batch_size=batch_size, device="cpu",
            tasks=["laccolith_scenes"], task_manager=tasks, force_simple=True, log_samples=True, bootstrap_iters=0,
        )  # fmt: skip
        samples = sorted(found["samples"]["laccolith_scenes"], key=lambda sample: sample["doc_id"])
        return [str(sample["filtered_resps"][0]).strip() for sample in samples]

    ours = answer_batch(llava, questions, new_tokens=4, preprocess="hf")
    assert len(set(ours)) > 1
    assert answers("laccolith", batch_size=4, preprocess="hf") == ours
    assert answers("llava_hf", batch_size=1, dtype="float32", device_map="cpu") == ours
    plan = answer_batch(llava, questions, new_tokens=4, preprocess="hf", token_plan="leave@6")
    assert answers("laccolith", batch_size=5, preprocess="hf", token_plan="leave@6") == plan
