"""Each lens against an oracle: the model's logits, brute force, autograd, TransformerLens, the files of tuned-lens."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch.testing import assert_close

from models.inputs import Inputs, prepare
from models.llava import Llava
from models.loading.load import load
from models.other_libraries import to_transformer_lens
from models.sites import Site
from probes.lenses import (
    JacobianLens,
    LatentLens,
    LogitLens,
    TunedLens,
    build_latent_lens,
    fit_jacobian_lens,
    lens_sites,
    train_tuned_lens,
)
from probes.lenses.jacobian import jacobians_of
from probes.lenses.latent import word_so_far
from probes.lenses.reading import INPUT, lens_logits
from probes.lenses.training_run import compare_kl
from probes.lenses.tuned import Translator
from probes.lenses.tuned_training import TunedTrainer, kl_by_site, position_mask, residuals
from tasks.errors import UserError
from tests.conftest import make_examples
from tests.damage import flip

TEXTS = [
    "A red cat at the top left.",
    "A red dog at the top left and a taxi.",
    "The umbrella is blue, the taxi is red.",
]


@pytest.fixture(scope="module")
def inputs(llava: Llava) -> Inputs:
    """Four prompts with answers and pictures."""
    return prepare(llava, make_examples(4), answers=True)


def identity(llava: Llava) -> JacobianLens:
    return JacobianLens({layer: torch.eye(llava.d_model) for layer in range(llava.n_layers - 1)}, n_prompts=1)


def test_logit_lens_of_the_last_block_is_the_models_logits_bitwise(llava: Llava, inputs: Inputs) -> None:
    last = lens_sites(llava.n_layers)[-1]
    found = llava.capture(inputs, last, tokens="all")
    with torch.inference_mode():
        logits = llava.model(**inputs.model_kwargs()).logits
        for lens in (LogitLens(), TunedLens.zero(llava), identity(llava)):
            read = lens_logits(lens, llava, found[last], last)
            for row, mask in enumerate(found.mask[last]):
                assert torch.equal(read[row, : int(mask.sum())], logits[row, : int(mask.sum())])


def test_untrained_lenses_are_the_logit_lens_at_every_site(llava: Llava, inputs: Inputs) -> None:
    sites = lens_sites(llava.n_layers)
    found = llava.capture(inputs, sites, tokens="image")
    with torch.inference_mode():
        for site in sites:
            plain = lens_logits(LogitLens(), llava, found[site], site)
            assert torch.equal(lens_logits(TunedLens.zero(llava), llava, found[site], site), plain)
            if site != INPUT:
                assert torch.equal(lens_logits(identity(llava), llava, found[site], site), plain)
    words = llava.logit_lens(inputs, layers="0-1", k=2)
    for lens in (LogitLens(), TunedLens.zero(llava), identity(llava)):
        pd.testing.assert_frame_equal(lens.words(llava, inputs, layers="0-1", k=2), words)


def test_a_translator_is_h_plus_a_h_plus_b(llava: Llava) -> None:
    d, generator = llava.d_model, torch.Generator().manual_seed(0)
    weight, bias, h = (torch.randn(*shape, generator=generator) for shape in ((d, d), (d,), (3, d)))
    site = Site("language_model", 0, "resid_post")
    lens = TunedLens({site: Translator(weight, bias)}, llava.n_layers)
    assert_close(lens.transport(h, site), torch.stack([row + weight @ row + bias for row in h]))
    assert_close(JacobianLens({0: weight}, 1).transport(h, site), torch.stack([weight @ row for row in h]))


@pytest.mark.parametrize("positions", ["text", "image"])
def test_training_lowers_kl_on_held_out_prompts_at_every_layer_but_the_last(llava: Llava, positions: str) -> None:
    batches = [prepare(llava, make_examples(16)[at : at + 8], answers=True) for at in (0, 8)]
    lens = train_tuned_lens(llava, batches, positions=positions, steps=40)  # type: ignore[arg-type]
    held_out = make_examples(40)[20:]
    rows = []
    for number, example in enumerate(held_out):
        one = prepare(llava, [example], answers=True)
        for site, name, value in kl_by_site(llava, [LogitLens(), lens], one, positions):  # type: ignore[arg-type]
            rows.append((positions, str(site), name, f"g{number}", value))
    raw = pd.DataFrame(rows, columns=["positions", "site", "lens", "group", "kl"])
    table = compare_kl(raw, model="tiny", lens=lens.name, n_layers=llava.n_layers)
    assert table["n"].eq(20).all()
    earlier, last = table.iloc[:-1], table.iloc[-1]
    assert (earlier["upper"] < 0).all()
    assert last["kl_logit"] == last["kl"] == pytest.approx(0, abs=1e-6)
    assert lens.about["positions"] == positions


def test_loss_and_held_out_kl_are_those_of_the_formula(llava: Llava, inputs: Inputs) -> None:
    with torch.inference_mode():
        final = llava.model(**inputs.model_kwargs()).logits.log_softmax(-1)
    mask = position_mask(llava, inputs, "text")
    sites = lens_sites(llava.n_layers)
    resid = residuals(llava, inputs, sites, mask)
    expected = []
    for site in sites[:-1]:
        read = llava.unembed(resid[site]).log_softmax(-1)
        p = final[mask]
        expected.append(float(torch.nn.functional.kl_div(read, p, log_target=True, reduction="batchmean").detach()))
    trainer = TunedTrainer(llava, positions="text", steps=3)
    assert trainer.step(inputs) == pytest.approx(np.mean(expected), rel=1e-4)
    assert all(parameter.grad is None for parameter in llava.model.parameters())


def test_a_restored_trainer_goes_on_as_the_first_one(llava: Llava, inputs: Inputs) -> None:
    for optimizer in ("sgd", "adam"):
        whole, first, second = (
            TunedTrainer(llava, positions="text", steps=4, optimizer=optimizer)  # type: ignore[arg-type]
            for _ in range(3)
        )
        for _ in range(4):
            whole.step(inputs)
        for _ in range(2):
            first.step(inputs)
        second.restore(first.state())
        for _ in range(2):
            second.step(inputs)
        for site, translator in whole.translators.items():
            assert torch.equal(translator.weight, second.translators[site].weight)


def test_tuned_lens_files_keep_every_number_and_those_of_tuned_lens_open(llava: Llava, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    made = {
        site: Translator(torch.randn(48, 48, generator=generator), torch.randn(48, generator=generator))
        for site in lens_sites(llava.n_layers)[:-1]
    }
    TunedLens(made, llava.n_layers, {"positions": "text"}).save(tmp_path / "ours")
    found = TunedLens.load(tmp_path / "ours")
    assert found.name == "tuned:text" and found.n_layers == llava.n_layers
    theirs = torch.nn.ModuleList([torch.nn.Linear(48, 48) for _ in range(llava.n_layers)])  # as tuned-lens keeps them
    for module, translator in zip(theirs, made.values(), strict=True):
        module.load_state_dict(translator._asdict())
    (tmp_path / "theirs").mkdir()
    torch.save(theirs.state_dict(), tmp_path / "theirs" / "params.pt")
    config = {"base_model_name_or_path": "x", "d_model": 48, "num_hidden_layers": llava.n_layers, "bias": True}
    (tmp_path / "theirs" / "config.json").write_text(json.dumps(config))
    for lens in (found, TunedLens.load(tmp_path / "theirs")):
        for site, translator in made.items():
            assert torch.equal(lens.translators[site].weight, translator.weight)
            assert torch.equal(lens.translators[site].bias, translator.bias)
    hidden = torch.randn(2, 48, generator=generator)  # their index 1 is the input of block 1
    post0 = Site("language_model", 0, "resid_post")
    assert_close(found.transport(hidden, post0), (hidden + theirs[1](hidden)).detach())


def test_jacobians_equal_derivatives_taken_one_position_at_a_time(llava: Llava) -> None:
    one = prepare(llava, make_examples(1))
    site, last = (Site("language_model", layer, "resid_post") for layer in (0, llava.n_layers - 1))
    before = [parameter.requires_grad for parameter in llava.model.parameters()]
    found = jacobians_of(llava, one, [site], sources="image", together=7)
    assert found is not None
    resid = llava.capture(one, [site, last], tokens="all")
    start = resid[site].clone()

    def rest(value: torch.Tensor) -> torch.Tensor:
        for block in llava.blocks[1:]:
            value = block(value, position_embeddings=llava.rotary(value, one.position_ids))
        return value

    with torch.enable_grad():
        assert_close(rest(start), resid[last], atol=1e-5, rtol=1e-4)
        image = one.layout[0].images[0]
        target = torch.zeros(one.n_positions, dtype=torch.bool)
        target[image.start : one.layout[0].real.stop - 1] = True
        full = torch.autograd.functional.jacobian(lambda value: rest(value)[0, target].sum(0), start)
    expected = full[:, 0, image.start : image.stop].mean(1)
    assert_close(found[0], expected, atol=1e-5, rtol=1e-4)  # float32 sums in another order
    first = jacobians_of(llava, one, [site], sources="image", together=7, rows=10)
    assert first is not None
    assert torch.equal(first[0], found[0][:10])
    assert [parameter.requires_grad for parameter in llava.model.parameters()] == before


@pytest.mark.filterwarnings("ignore")  # the library's own warnings, at import and at boot
def test_jacobian_lens_and_its_file_are_those_of_transformer_lens(llava: Llava, tmp_path: Path) -> None:
    from transformer_lens.tools.analysis.jacobian_lens import JacobianLens as TheirLens

    text = " ".join(TEXTS)
    one = prepare(llava, [make_examples(1)[0].__class__("t", (), text, "", group="t")], prompts=[text])
    ours = fit_jacobian_lens(llava, [one], sources="text")
    bridge = to_transformer_lens(llava)
    bridge.eval()
    tokens = one.input_ids
    resid = llava.capture(one, "resid_post", tokens="all")
    ours.save(tmp_path / "ours.pt", dtype=torch.float32)
    opened = TheirLens.load(str(tmp_path / "ours.pt"))
    opened.save(str(tmp_path / "theirs.pt"), dtype=torch.float32)
    back = JacobianLens.load(tmp_path / "theirs.pt")
    assert opened.n_prompts == back.n_prompts == 1 and back.about["sources"] == "text"
    for layer, matrix in ours.jacobians.items():
        assert torch.equal(back.jacobians[layer], matrix)
        site = Site("language_model", layer, "resid_post")
        with torch.inference_mode():
            read = lens_logits(back, llava, resid[site], site)
            theirs = bridge.unembed(bridge.ln_final(resid[site] @ opened.jacobians[layer].T))
        assert_close(read, theirs, atol=2e-5, rtol=1e-4)  # two orders of summation
    from transformer_lens.tools.analysis.jacobian_lens import _fit_transport_matrices, _ordinary_vjp

    class Fixed:
        """The bridge with tokens of our own: no start token is added."""

        def __getattr__(self, name: str) -> object:
            return getattr(bridge, name)

        def __call__(self, *args: object, **kwargs: object) -> object:
            return bridge(*args, **kwargs)

        def to_tokens(self, prompt: str) -> torch.Tensor:
            return tokens

    matrices, _ = _fit_transport_matrices(
        Fixed(), [text], source_layers=sorted(ours.jacobians), dim_batch=16, max_seq_len=512, skip_first_positions=16,
        show_progress=False, backward_provider=_ordinary_vjp,
    )  # fmt: skip
    for layer, matrix in matrices.items():
        assert_close(ours.jacobians[layer], matrix, atol=1e-4, rtol=1e-3)  # eager against sdpa attention


def test_nearest_texts_are_those_of_brute_force(llava: Llava, inputs: Inputs, tmp_path: Path) -> None:
    lens = build_latent_lens(llava, TEXTS, layers="0-1")
    n_sites, n_tokens, _ = lens.vectors.shape
    lens.save(tmp_path / "index")
    again = LatentLens.load(tmp_path / "index")
    queries = llava.capture(inputs, "blocks.1.hook_resid_post", tokens="image")["resid_post"].flatten(0, 1)
    cosine = torch.nn.functional.cosine_similarity(queries[:, None], lens.vectors.float().flatten(0, 1)[None], dim=-1)
    expected = cosine.topk(6, dim=1)
    for one in (lens, again):
        near = one.search(queries, k=6)
        assert_close(near.similarity, expected.values, atol=2e-3, rtol=0)  # unit vectors are stored in half precision
        flat = near.place * n_tokens + near.token
        assert_close(cosine.gather(1, flat), expected.values, atol=2e-3, rtol=0)  # ties may be in another order
    assert n_sites == 3


def test_the_index_holds_each_prefix_once_with_the_word_read_so_far(llava: Llava) -> None:
    lens = build_latent_lens(llava, ["A red cat.", "A red dog.", "A red cat."], layers=[2])
    assert list(lens.words).count("red") == 1 and list(lens.words).count("cat") == 1
    place = lens.words.index("cat")
    assert lens.contexts[place] == "A red cat"
    one = prepare(llava, [make_examples(1)[0].__class__("t", (), "A red cat", "", group="t")], prompts=["A red cat"])
    alone = llava.capture(one, "blocks.2.hook_resid_post", tokens="all")["resid_post"][0, -1]
    found = lens.search(alone[None], k=1)
    assert int(found.token[0, 0]) == place and float(found.similarity[0, 0]) == pytest.approx(1, abs=2e-3)
    assert lens.depths[int(found.place[0, 0])] == 1.0
    assert [word_so_far("an icy cactus!", *span) for span in ((3, 5), (6, 10), (6, 13), (13, 14))] == [
        "ic", "cac", "cactus", "!",
    ]  # fmt: skip
    table = lens.words_at(llava, one, tokens="all", layers=[2], k=1)
    assert table["word"].iloc[-1] == "cat" and table["neighbour_layer"].iloc[-1] == 2


def test_lenses_that_do_not_fit_or_cannot_be_read_are_refused(llava: Llava, inputs: Inputs, tmp_path: Path) -> None:
    other = load("random:tiny")
    narrow = JacobianLens({0: torch.eye(32)}, 1)
    with pytest.raises(UserError, match="width of the model, got 32"):
        narrow.words(llava, inputs)
    with pytest.raises(UserError, match=r"got none for 'blocks.1.hook_resid_post' in jacobian"):
        JacobianLens({0: torch.eye(llava.d_model)}, 1).words(llava, inputs)
    assert other.n_layers != llava.n_layers
    with pytest.raises(UserError, match="must read every chosen site"):
        TunedLens.zero(other).words(llava, inputs, layers=[0])
    with pytest.raises(UserError, match="at least one token"):
        build_latent_lens(llava, ["", ""])
    with pytest.raises(UserError, match="leave out the last one"):
        fit_jacobian_lens(llava, [inputs.select([0])], layers=[llava.n_layers - 1])
    (tmp_path / "pickle.pt").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    for load_it, path in ((JacobianLens.load, "pickle.pt"), (JacobianLens.load, "none.pt"), (TunedLens.load, "."),
                          (LatentLens.load, ".")):  # fmt: skip
        with pytest.raises(UserError, match="lens must be"):
            load_it(tmp_path / path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"\x80\x02cos\nsystem\n(S'true'\ntR.", b"no pickle"])
def test_a_damaged_or_hostile_lens_file_is_one_sentence(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "lens.pt").write_bytes(content)
    with pytest.raises(UserError, match="Jacobian lens must be a file of"):
        JacobianLens.load(tmp_path / "lens.pt")
    (tmp_path / "config.json").write_text('{"num_hidden_layers": 2, "d_model": 4}')
    (tmp_path / "params.pt").write_bytes(content)
    with pytest.raises(UserError, match="tuned lens must be readable"):
        TunedLens.load(tmp_path)


def test_a_changed_lens_is_refused_and_files_of_others_beside_it_are_read(llava: Llava, tmp_path: Path) -> None:
    TunedLens.zero(llava).save(tmp_path / "tuned")
    build_latent_lens(llava, TEXTS, layers="1").save(tmp_path / "latent")
    JacobianLens({0: torch.eye(4)}, 1).save(tmp_path / "lens.pt")
    (tmp_path / "other.pt").write_bytes((tmp_path / "lens.pt").read_bytes())  # by another program
    JacobianLens.load(tmp_path / "other.pt")
    assert not list(tmp_path.glob(".*.partial"))
    for load_it, folder, names in (
        (TunedLens.load, "tuned", ("params.safetensors", "config.json")),
        (LatentLens.load, "latent", ("index.safetensors", "config.json")),
        (JacobianLens.load, "lens.pt", ("",)),
    ):
        load_it(tmp_path / folder)
        for name in names:
            path = tmp_path / folder / name
            whole = path.read_bytes()
            flip(path, len(whole) * 3 // 4)
            with pytest.raises(UserError, match="must be as it was written, got changed bytes"):
                load_it(tmp_path / folder)
            path.write_bytes(whole)


def test_a_lens_that_is_written_while_the_disk_fills_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(state: object, path: str) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    path = tmp_path / "lens.pt"
    JacobianLens({0: torch.eye(4)}, 1).save(path)
    whole = path.read_bytes()
    monkeypatch.setattr("torch.save", full)
    with pytest.raises(OSError, match="No space"):
        JacobianLens({0: torch.ones(4, 4)}, 1).save(path)
    assert path.read_bytes() == whole and not list(tmp_path.glob(".*.partial"))
