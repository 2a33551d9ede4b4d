"""Captions: the layouts of COCO, Karpathy, Flickr30k and lmms-lab, the score and its interval, bad files."""

import json
from pathlib import Path
from typing import Any

import pytest

from records.evaluation.cli import main
from records.evaluation.intervals import BOUNDED, score_estimate
from tasks.benchmarks import caption
from tasks.errors import UserError
from tasks.rules.cider import cider_scores
from tests.tasks.benchmarks.bundle import found, png, read, score, uploads, write

TEXTS = {1: ["A red cat.", "A cat on grass."], 2: ["Two dogs run."], 3: ["A plate of food."]}
ANSWERS = ["A red cat on grass.", "Two dogs.", "A bus."]
COCO = {
    "images": [{"id": n, "file_name": f"{n}.jpg", "width": 9, "height": 9} for n in TEXTS],
    "annotations": [{"id": 7, "image_id": n, "caption": text} for n, own in reversed(TEXTS.items()) for text in own],
}
KARPATHY = {
    "images": [
        {"imgid": 0, "filename": "0.jpg", "split": "train", "sentences": [{"raw": "Left out."}]},
        *(
            {"imgid": n, "filename": f"{n}.jpg", "split": "test", "sentences": [{"raw": text} for text in own]}
            for n, own in TEXTS.items()
        ),
    ]
}
TOKEN = "".join(f"{n}.jpg#{i}\t{text}\n" for n, own in TEXTS.items() for i, text in enumerate(own))
LMMS = [{"img_id": n, "caption": own, "image": {"bytes": png((n, 0, 0)), "path": None}} for n, own in TEXTS.items()]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("captions_val2014.json", COCO),
        ("dataset_flickr30k.json", KARPATHY),
        ("results_20130124.token", TOKEN),
        ("a.parquet", LMMS),
    ],
)
def test_every_layout_gives_the_same_questions_and_score(name: str, content: Any, tmp_path: Path) -> None:
    folder = write(tmp_path, {name: content, **{f"images/{n}.jpg": png() for n in TEXTS}})
    questions = read("caption", folder)
    assert [(int(q.id), q.label) for q in questions] == [(n, tuple(own)) for n, own in TEXTS.items()]
    assert {q.text for q in questions} == {caption.PROMPT} and all(q.picture and q.picture.open() for q in questions)
    scores = score("caption", folder, ANSWERS)
    values = cider_scores(ANSWERS, list(TEXTS.values()))
    assert found(scores) == {"CIDEr all": pytest.approx(100 * values.mean(), abs=1e-4)}
    assert scores.main == pytest.approx(100 * values.mean())
    estimate = score_estimate(scores)
    assert estimate is not None and estimate.interval == BOUNDED, "no interval of an accuracy"
    assert 0 < estimate.lower < estimate.value < estimate.upper < 1000
    (upload,) = uploads("caption", folder, ANSWERS).values()
    assert json.loads(upload)[1] == {"image_id": questions[1].id, "caption": "Two dogs."}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("captions_a.json", "{}", "COCO's or Karpathy's layout, got KeyError"),
        ("captions_a.json", {"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": []}, "a list of captions"),
        ("captions_a.json", {"images": [], "annotations": []}, "at least one picture"),
        ("a.token", "1.jpg\tA cat.\n", "got line 1 of a.token"),
        ("a.token", b"\xff\xfea", "questions must be text"),
    ],
)
def test_other_layouts_are_one_sentence(name: str, content: Any, said: str, tmp_path: Path) -> None:
    folder = write(tmp_path, {name: content})
    with pytest.raises(UserError, match=said) as error:
        read("caption", folder)
    assert "\n" not in str(error.value)


def test_benchmark_eval_scores_captions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = {f"images/{n}.jpg": png((80 * n, 0, 0)) for n in TEXTS}
    folder = write(tmp_path / "captions", {"captions_val.json": COCO, **pictures})
    main(
        [
            "--model",
            "random:tiny",
            "--benchmark",
            f"caption={folder}",
            "--new-tokens",
            "3",
            "--out",
            str(tmp_path / "r"),
        ]
    )
    assert "CIDEr" in capsys.readouterr().out
    answers = tmp_path / "right.jsonl"
    answers.write_text("".join(json.dumps({"question_id": n, "text": own[0]}) + "\n" for n, own in TEXTS.items()))
    main(["score", "caption", "--answers", str(answers), "--questions", str(folder), "--json"])
    scored = json.loads(capsys.readouterr().out)
    assert scored["score"] == pytest.approx(
        100 * cider_scores([t[0] for t in TEXTS.values()], list(TEXTS.values())).mean()
    )
    assert "weights of phrases" in scored["notes"][0]
