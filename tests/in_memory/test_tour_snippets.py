"""The tour: each task takes at most eight lines without imports, and gives what it promises."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import laccolith as lc
from models.llava import Llava
from tasks.scenes.scene import make_scene

QUESTION = "What is in the picture? Answer the question using a single word or phrase."


@pytest.fixture(scope="module")
def smol() -> Llava:
    return lc.load("smol")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs of one's own: scenes as files, four with and four without a red background patch."""
    found = tmp_path_factory.mktemp("photographs")
    for number in range(8):
        image = make_scene(number, split="test").picture.open()
        if number % 2:
            image.paste((200, 30, 30), (0, 0, image.width // 2, image.height // 2))
        image.save(found / f"{number}.png")
    return found


def test_capture_from_photographs(folder: Path) -> None:
    llava = lc.load("random:tiny")
    inputs = llava.inputs(sorted(folder.glob("*.png")), "What is it?")
    acts = llava.capture(inputs, "resid_post", layers="1-3", tokens="image")
    assert acts["blocks.3.hook_resid_post"].shape == (8, llava.n_image_tokens, llava.d_model)
    assert len(repr(acts).splitlines()) <= 10


def test_activations_into_pandas_and_a_pipeline(folder: Path) -> None:
    llava = lc.load("random:tiny")
    examples = lc.examples_from(folder, question="What is it?", labels={"red": [0, 1] * 4})
    inputs = llava.inputs([e.pictures[0] for e in examples], "What is it?")
    acts = llava.capture(inputs, "blocks.2.hook_resid_post", tokens="image", pool="mean")
    table = acts.to_pandas()
    pipeline = make_pipeline(StandardScaler(), LogisticRegression()).fit(
        acts.numpy(), [e.labels["red"] for e in examples]
    )
    assert table.shape == (8, llava.d_model)
    assert np.array_equal(table.to_numpy(), acts.numpy())
    assert pipeline.score(acts.numpy(), [0, 1] * 4) == 1


def test_patch_image_tokens_from_one_picture_to_another(folder: Path, smol: Llava) -> None:
    clean, corrupt = smol.inputs(folder / "0.png", QUESTION), smol.inputs(folder / "1.png", QUESTION)
    effects = lc.patch(smol, clean, corrupt, site="resid_post", layers=12, tokens="image")
    assert effects.logits is not None
    assert effects.logits.shape[:2] == (1, 1)
    assert len(repr(effects).splitlines()) == 3
    # embeddings carry all that differs between the two runs
    whole = lc.patch(smol, clean, corrupt, site="resid_pre", layers=0, tokens="image")
    assert whole.recovered == pytest.approx([1], abs=1e-3)


def test_cut_attention_to_the_image_while_generating(folder: Path, smol: Llava) -> None:
    with lc.knocked_out(smol, source="image", target="last", layers="10-20"):
        text = smol.generate(folder / "0.png", QUESTION, max_new_tokens=5)
    assert isinstance(text, str)
    with lc.knocked_out(smol, source="image", target="question+last+answer"):
        blind = [smol.generate(folder / f"{i}.png", QUESTION, max_new_tokens=5) for i in (0, 1)]
    assert blind[0] == blind[1]  # nothing of the picture reaches the answer


def test_steer_while_generating(folder: Path) -> None:
    llava = lc.load("random:tiny")
    inputs = llava.inputs([folder / "0.png", folder / "1.png"], "What is it?")
    acts = llava.capture(inputs, "blocks.2.hook_resid_post", tokens="image", pool="mean").numpy()
    with lc.steered(llava, "resid_post", layers=2, direction=acts[1] - acts[0], alpha=8):
        changed = llava.generate(inputs, max_new_tokens=5)
    assert changed != llava.generate(inputs, max_new_tokens=5)


def test_words_that_image_tokens_hold(folder: Path, smol: Llava) -> None:
    words = smol.logit_lens(smol.inputs(folder / "0.png", QUESTION), tokens="image", layers="28-29", k=3)
    assert len(words) == 2 * smol.n_image_tokens
    assert list(words.columns) == ["layer", "example", "position", "words", "probability"]
    assert words["probability"].between(0, 1).all()


def test_examples_come_from_a_table_and_from_a_hugging_face_dataset(folder: Path) -> None:
    import pandas as pd
    from datasets import Dataset

    paths = sorted(map(str, folder.glob("*.png")))
    frame = pd.DataFrame({"image": paths, "ask": [f"Is it {i}?" for i in range(8)], "red": [False, True] * 4})
    data = Dataset.from_dict(
        {"image": [Image.open(p) for p in paths], "ask": list(frame["ask"]), "red": [False, True] * 4}
    )
    for source in (frame, data):
        examples = lc.examples_from(source, question="ask", labels=["red"])
        assert [e.question for e in examples][:2] == ["Is it 0?", "Is it 1?"]
        assert [e.labels["red"] for e in examples] == [False, True] * 4
        assert np.array_equal(np.asarray(examples[3].pictures[0].open()), np.asarray(Image.open(paths[3])))
    with pytest.raises(lc.UserError, match="source must have the column 'colour'"):
        lc.examples_from(frame, question="ask", labels=["colour"])
    with pytest.raises(lc.UserError, match="red must have one value for each of 8 pictures, got 2"):
        lc.examples_from(folder, question="?", labels={"red": [1, 2]})
