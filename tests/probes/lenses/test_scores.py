"""Words, ranks and tables of lenses on hand-made values, and the command ``lens-sweep`` from end to end."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from models.inputs import prepare
from models.llava import Llava
from models.sites import Site
from models.tokens import token_mask
from probes.lenses import LensConfig, LogitLens, TrainConfig, TunedLens, run_lens_sweep, run_lens_training
from probes.lenses.cli import main
from probes.lenses.config import CorpusOptions, DataOptions, TrainDataOptions
from probes.lenses.score_example import COLUMNS, NEAREST, Wanted, best_rank, read_example, score_rows
from probes.lenses.table import middle_sentences, tabulate
from probes.lenses.words import matched_tokens, matched_words, others, word_table
from records.intervals import mean_intervals
from records.options import ModelOptions
from records.run import FinishedRun
from tasks.errors import UserError
from tests.conftest import make_examples
from tests.damage import flip, unfinish

# Words that the tokenizer of tiny models has as one token, as synonyms of the colours of scenes.
WORDS = {"orange": "picture", "yellow": "question", "green": "letter", "blue": "word", "purple": "phrase",
         "white": "option"}  # fmt: skip


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("words") / "words.json"
    path.write_text(json.dumps({colour: [word] for colour, word in WORDS.items()}))
    return path


def sweep(out: Path, words: Path, *lenses: str, limit: int = 5, shown: int = 2, controls: bool = True) -> LensConfig:
    """Scenes on a tiny random model; the object's word is its colour."""
    data = DataOptions(limit=limit)
    return LensConfig(
        ModelOptions("random:tiny"), data, lenses, None, CorpusOptions(corpus_tokens=60), "colour", words, controls,
        shown, 3, out=out,
    )  # fmt: skip


def train(out: Path, kind: str, *, steps: int = 4, positions: str | None = None) -> TrainConfig:
    data = TrainDataOptions(limit=3, eval_limit=3)
    return TrainConfig(
        ModelOptions("random:tiny"), kind, positions, data, CorpusOptions(corpus_tokens=40), steps=steps,  # type: ignore[arg-type]
        batch_size=2, out=out,
    )  # fmt: skip


def test_word_start_tokens_name_one_word_and_are_no_short_pieces(llava: Llava) -> None:
    table = word_table(
        llava, ["Cat", "dog", "taxi", "tiger"], {"dog": ["picture"], "taxi": ["letter"], "tiger": ["letter"]}
    )
    text = {word: [llava.tokenizer.decode([token]) for token in tokens] for word, tokens in table.tokens.items()}
    assert text["cat"] == [" cat"]  # cats starts with the same token
    assert text["dog"] == [" picture"]  # its own first token is the piece " d"
    assert table.left_out == ("taxi", "tiger")  # " letter" would name both
    assert table.forms["cat"] == ("cat", "cats")
    assert others(["a", "a", "b", "a"]) == ["b", "b", "a", "b"]
    assert others(["a", "a"]) == ["a", "a"]


def test_words_of_like_frequency_are_other_words(llava: Llava) -> None:
    table = word_table(llava, ["cat", "red"], {})
    found = matched_tokens(llava, table)
    vocabulary = {token: text for text, token in llava.tokenizer.get_vocab().items()}
    starts = [t for t, text in vocabulary.items() if text[0] == "Ġ" and len(text) > 3 and text[1:].isalpha()]
    for word, tokens in found.items():
        (own,) = table.tokens[word]
        free = [t for t in starts if t not in {t for all_ in table.tokens.values() for t in all_}]
        assert len(tokens) == 1 and abs(tokens[0] - own) == min(abs(t - own) for t in free)
    text = ["cat", "cat", "taxi", "taxi", "umbrella", "is", "is"]
    assert matched_words(text, word_table(llava, ["cat"], {})) == {"cat": ("taxi",)}


def test_rank_is_the_number_of_tokens_that_are_more_likely() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0, 0.0], [0.0, 1.0, 2.0, 3.0]])
    assert best_rank(logits, [1, 3]).tolist() == [2, 0]
    assert best_rank(logits, []).tolist() == [4, 4]


def test_a_lens_that_predicts_the_object_hits_in_its_box_alone(llava: Llava) -> None:
    """A planted answer: the residual stream of every patch in the box is moved to the word's own logit direction."""
    example = make_examples(2)[1]
    inputs = prepare(llava, [example])
    box = token_mask(inputs, "object", llava, [example])
    token = int(llava.tokenizer.convert_tokens_to_ids("Ġcat"))  # type: ignore[arg-type]
    site = Site("language_model", 1, "resid_post")
    image = llava.capture(inputs, site, tokens="image")
    within = {
        tuple(row.tolist())
        for row, in_box in zip(image[site][0], box[0][image.positions[site][0]], strict=True)
        if in_box
    }
    direction = llava.model.lm_head.weight[token].detach()

    class Planted(LogitLens):
        def transport(self, resid: torch.Tensor, site: Site) -> torch.Tensor:
            chosen = torch.tensor([tuple(row.tolist()) in within for row in resid])
            return torch.where(chosen[:, None], 1000 * direction, resid)

    wanted = Wanted({"object": (token,), "other": (token + 1,)}, {})
    inside, readings = read_example(llava, [Planted()], [site], example, wanted, top_k=2)
    table = score_rows(readings, inside, example, "test").set_index(["words", "place"])
    assert tuple(table.reset_index()[list(COLUMNS)].columns) == COLUMNS
    n = int(box.sum())
    assert table.loc[("object", "inside"), "hit@1"] == table.loc[("object", "inside"), "patches"] == n > 0
    assert table.loc[("object", "outside"), "hit@1"] < 16 - n
    assert table.loc[("other", "inside"), "hit@1"] == 0
    reading = readings["logit", site]
    assert (reading.top[inside, 0] == token).all() and (
        reading.p_object[inside] > reading.p_object[~inside].max()
    ).all()


def made_scores() -> pd.DataFrame:
    """Four groups with four patches inside the box and twelve outside, at one site."""
    rows = [
        {
            "lens": "logit", "id": str(i), "group": f"g{i}", "split": "test", "site": "blocks.0.hook_resid_post",
            "place": place, "words": "object", "patches": patches, "hit@1": hits, "hit@5": hits, "hit@10": patches,
            "reciprocal_rank": hits / 2,
        }
        for i in range(4) for place, patches, hits in (("inside", 4, i), ("outside", 12, 3))
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=list(COLUMNS))


def test_a_split_without_patches_outside_boxes_has_scores_inside_alone() -> None:
    scores = made_scores()
    scores.loc[scores["place"] == "outside", ["patches", "hit@1", "hit@5", "hit@10", "reciprocal_rank"]] = 0
    table = tabulate(scores, pd.DataFrame(columns=[*NEAREST, "words"]), model="made", n_layers=2)
    rows = table[(table["metric"] == "mrr") & (table["place"] == "outside")]
    assert len(rows) and rows[["lower", "upper"]].isna().all(axis=None)


def test_a_difference_counts_the_patches_of_groups_on_both_sides() -> None:
    scores = made_scores()
    alone = (scores["place"] == "outside") & (scores["group"] == "g3")  # its box fills the picture
    scores.loc[alone, ["patches", "hit@1", "hit@5", "hit@10", "reciprocal_rank"]] = 0
    table = tabulate(scores, pd.DataFrame(columns=[*NEAREST, "words"]), model="made", n_layers=2)
    counts = table[table["metric"] == "hit@1"].set_index("place")[["n", "n_groups"]]
    assert counts.T.to_dict("list") == {"inside": [16, 4], "outside": [36, 3], "difference": [48, 3]}


def test_table_of_made_scores() -> None:
    table = tabulate(made_scores(), pd.DataFrame(columns=[*NEAREST, "words"]), model="made", n_layers=2)
    found = table.set_index(["metric", "place"])
    assert found.loc[("hit@1", "inside"), "score"] == (0 + 1 + 2 + 3) / 16
    assert found.loc[("hit@10", "outside"), "score"] == 1
    assert found.loc[("mrr", "outside"), "score"] == 1.5 / 12
    change = np.arange(4) / 4 - 3 / 12
    assert found.loc[("hit@1", "difference"), "score"] == pytest.approx(change.mean())
    assert found.loc[("hit@1", "difference"), "lower"] < change.mean() < found.loc[("hit@1", "difference"), "upper"]
    assert found.loc[("hit@10", "difference"), "lower"] < 0 < found.loc[("hit@10", "difference"), "upper"]  # all equal
    change = np.arange(4) / 8 - 1.5 / 12
    assert found.loc[("mrr", "difference"), "lower"] == mean_intervals(change[None]).lower[0]
    assert (found.loc[("hit@1", "inside"), "n"], found.loc[("hit@1", "inside"), "n_groups"]) == (16, 4)
    assert set(found["depth"]) == {0.5}


@pytest.mark.parametrize(
    ("middle", "control", "said"), [(15, 2, "Yes"), (15, 15, "Not shown"), (1, 9, "No"), (5, 2, "Not")]
)
def test_middle_layers_are_named_only_with_evidence(middle: int, control: int, said: str) -> None:
    rng = np.random.default_rng(0)
    rows = [
        {
            "lens": "latent", "id": str(i), "group": str(i), "split": "test", "site": "blocks.0.hook_resid_pre",
            "patches": 16, "middle": int(np.clip(value + rng.integers(-1, 2), 0, 16)), "depth": 8.0,
            "index_middle": 0.315, "words": words,
        }
        for i in range(30) for words, value in (("any", middle), ("random_init", control))
    ]  # fmt: skip
    table = tabulate(made_scores(), pd.DataFrame(rows), model="made", n_layers=9)
    (sentence,) = middle_sentences(table)
    assert f"? {said}" in sentence and "31.5%" in sentence


def test_a_killed_sweep_goes_on_and_gives_equal_bytes(tmp_path: Path, words: Path) -> None:
    finished = run_lens_sweep(sweep(tmp_path / "whole", words, "logit", "latent"))
    assert isinstance(finished, FinishedRun)
    table = finished.results
    assert set(table["split"]) == {"test", "unseen"} and set(table["lens"]) == {"logit", "latent"}
    assert set(table["words"]) == {"object", "other", "frequency", "any"}  # a random model has no random control
    assert table.loc[table["place"] != "difference", "score"].between(0, 1).all()
    tokens = pd.read_parquet(tmp_path / "whole" / "tokens.parquet")
    assert len(tokens) == 2 * 2 * 5 * 16 * 3  # examples, lenses, sites, patches, words
    assert tokens.loc[tokens["lens"] == "latent", "neighbour_layer"].notna().all()

    class KilledError(Exception):
        pass

    def kill(stage: str, done: int, total: int) -> None:
        if (tmp_path / "cut" / "shards" / "model-scores-00000.parquet").is_file():
            raise KilledError

    with pytest.raises(KilledError):
        run_lens_sweep(sweep(tmp_path / "cut", words, "logit", "latent"), on_progress=kill)
    run_lens_sweep(sweep(tmp_path / "cut", words, "logit", "latent"))
    for name in ("results.csv", "tokens.parquet", "scores.parquet", "examples.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    with pytest.raises(UserError, match="shown was 2, is 1"):
        run_lens_sweep(sweep(tmp_path / "cut", words, "logit", "latent", shown=1))


def test_changed_shards_are_named_and_read_again(tmp_path: Path, words: Path) -> None:
    settings, run = sweep(tmp_path, words, "logit", "latent"), tmp_path
    run_lens_sweep(settings)
    names = ("results.csv", "tokens.parquet", "scores.parquet", "examples.json", "pictures/1.png")
    before = {name: (run / name).read_bytes() for name in names}
    for finished in (False, True):
        if not finished:
            unfinish(run)
        for name in ("scores-00000", "nearest-00001", "tokens-00000"):
            flip(run / "shards" / f"model-{name}.parquet", 200)  # in the values
        flip(run / "pictures/1.png")
        notes: list[str] = []
        run_lens_sweep(settings, on_note=notes.append)
        for name in ("scores-00000", "nearest-00001", "tokens-00000"):
            assert f"shards/model-{name}.parquet is damaged: its examples are read again" in notes
        assert "pictures/1.png is damaged: it is made anew" in notes
        assert {name: (run / name).read_bytes() for name in names} == before


@pytest.mark.parametrize("kind", ["tuned", "jacobian"])
def test_a_changed_checkpoint_or_lens_is_named_and_made_anew(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, lens = train(tmp_path, kind, steps=26), {"tuned": "params.safetensors", "jacobian": "lens.pt"}[kind]
    with monkeypatch.context() as patched:
        patched.setattr("pathlib.Path.unlink", lambda *a, **k: None)  # the checkpoint stays
        run_lens_training(settings)
    before = {name: (tmp_path / name).read_bytes() for name in ("results.csv", lens)}
    for name in ("checkpoint.safetensors", lens):
        unfinish(tmp_path)
        flip(tmp_path / name, -3)
        notes: list[str] = []
        run_lens_training(settings, on_note=notes.append)
        assert f"{name} is damaged: the run counts as unfinished" in notes
        assert {name: (tmp_path / name).read_bytes() for name in before} == before
    assert not list(tmp_path.glob(".*.partial"))


def test_training_resumes_and_its_lens_is_scored(tmp_path: Path, words: Path) -> None:
    made = run_lens_training(train(tmp_path / "whole", "tuned", steps=26))
    assert isinstance(made, FinishedRun)
    assert set(made.results["positions"]) == {"text", "image"}

    class KilledError(Exception):
        pass

    def kill(stage: str, done: int, total: int) -> None:
        if (tmp_path / "cut" / "checkpoint.safetensors").is_file():
            raise KilledError

    with pytest.raises(KilledError):
        run_lens_training(train(tmp_path / "cut", "tuned", steps=26), on_progress=kill)
    run_lens_training(train(tmp_path / "cut", "tuned", steps=26))
    for name in ("params.safetensors", "results.csv"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert not (tmp_path / "cut" / "checkpoint.safetensors").exists()
    assert isinstance(TunedLens.load(tmp_path / "cut"), TunedLens)
    run_lens_training(train(tmp_path / "index", "latent"))
    specs = [f"tuned:{tmp_path / 'cut'}", f"latent:{tmp_path / 'index'}"]
    finished = run_lens_sweep(sweep(tmp_path / "run", words, *specs, limit=2, shown=0, controls=False))
    assert isinstance(finished, FinishedRun)
    assert set(finished.results["lens"]) == {"tuned:text", "latent"}
    assert not (tmp_path / "run" / "tokens.parquet").exists()


def test_command_trains_reads_shows_reports_and_estimates(
    tmp_path: Path, words: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["--model", "random:tiny", "--limit", "2"]
    main(["train", *model, "--kind", "jacobian", "--eval-limit", "2", "--out", str(tmp_path / "j")])
    assert "jacobian:image against the logit lens" in " ".join(capsys.readouterr().out.split())
    main(["show", str(tmp_path / "j")])
    assert f"lens: {tmp_path / 'j' / 'lens.pt'}" in capsys.readouterr().out
    given = [*model, "--lens", f"jacobian:{tmp_path / 'j' / 'lens.pt'}", "--target", "colour", "--words", str(words),
             "--layers", "0-1", "--shown", "1", "--top-k", "2"]  # fmt: skip
    main([*given, "--out", str(tmp_path / "run")])
    printed = capsys.readouterr().out
    assert "jacobian:image" in printed and (tmp_path / "run" / "figures" / "lenses.png").is_file()
    sites = pd.read_csv(tmp_path / "run" / "results.csv")["site"].unique().tolist()
    assert sites == ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]  # it cannot read the input
    main(["show", str(tmp_path / "run")])
    assert "jacobian:image" in capsys.readouterr().out
    main(["report", str(tmp_path / "run"), "--out", str(tmp_path / "report.html")])
    assert "Words at the patches" in (tmp_path / "report.html").read_text(encoding="utf-8")
    capsys.readouterr()
    main([*given, "--out", str(tmp_path / "dry"), "--dry-run"])
    assert "4 examples at 3 sites with 1 lens, about " in capsys.readouterr().out
    main(
        [
            "train",
            *model,
            "--steps",
            "3",
            "--optimizer",
            "adam",
            "--lr",
            "0.01",
            "--dry-run",
            "--out",
            str(tmp_path / "dry"),
        ]
    )
    assert "3 steps of 2 examples" in capsys.readouterr().out
    assert not (tmp_path / "dry").exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--lens", "nonsense"], "lens must be logit"),
        (["--lens", "tuned:/nowhere"], "tuned lens must be a folder with config.json"),
        (["--lens", "jacobian:/nowhere.pt"], "Jacobian lens must be a file of TransformerLens' format"),
        (["--lens", "latent:/nowhere"], "latent lens must be a folder"),
        (["--lens", "latent", "--corpus", "/nowhere.txt"], "corpus must be a readable text file"),
        (["--lens", "latent", "--corpus", "EMPTY"], "corpus must have at least one token"),
        (["--lens", "logit", "--lens", "logit"], "must be named once each"),
        (["--layers", "9"], "layer must be in [0, 4), got 9"),
        (["--target", "smell"], "target must be a label of every example"),
        (["--target", "place"], "words must have a word-start token"),
        (["--words", "EMPTY"], "words must be a readable JSON file"),
        (["--top-k", "0"], "top-k must be >= 1"),
        (["--limit", "0"], "n must be in"),
        (["train", "--kind", "jacobian", "--layers", "3"], "layers must leave out the last one"),
        (["train", "--layers", "1"], "layers must be left out for a tuned lens"),
        (["train", "--lr", "-1"], "lr must be positive"),
        (["train", "--data", "/nowhere.jsonl"], "nowhere.jsonl"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(
    given: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").write_text(" \n\n ")
    given = [str(tmp_path / "empty") if word == "EMPTY" else word for word in given]
    given = given if given[0] == "train" else ["run", *given]
    with pytest.raises(SystemExit) as end:
        main([given[0], "--model", "random:tiny", "--out", str(tmp_path / "run"), *given[1:]])
    error = capsys.readouterr().err
    assert end.value.code == 2
    assert said in error
    assert error.count("\n") == 1 and len(error) < 400
    assert not (tmp_path / "run").exists()


def test_your_own_data_needs_a_corpus_and_a_held_out_split(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (30, 30)).save(tmp_path / "a.png")
    row = {"image": "a.png", "question": "q", "answer": "a", "boxes": {"cat": [0, 0, 20, 20]}, "focus": "cat"}
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row))
    model = ModelOptions("random:tiny")
    with pytest.raises(UserError, match="corpus must be given"):
        run_lens_sweep(LensConfig(model, DataOptions(str(path)), ("latent",), out=tmp_path / "run"))
    with pytest.raises(UserError, match="eval-split must be given"):
        run_lens_training(TrainConfig(model, data=TrainDataOptions(str(path)), out=tmp_path / "run"))
    finished = run_lens_sweep(LensConfig(model, DataOptions(str(path)), out=tmp_path / "run"))
    assert isinstance(finished, FinishedRun)
    assert set(finished.results["split"]) == {"all"}  # the word is the name of the box in focus
    path.write_text(json.dumps(row | {"boxes": None, "focus": None}))
    with pytest.raises(UserError, match="must have a box in focus"):
        run_lens_sweep(LensConfig(model, DataOptions(str(path)), out=tmp_path / "other"))
