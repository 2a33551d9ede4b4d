"""Original LLaVA folders: what they compute and the ids they make are those of the authors' own code, by hand."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaForConditionalGeneration,
)

from models.inputs import prepare
from models.llava import Llava
from models.loading.convert import main
from models.loading.load import load
from models.loading.original import is_original, read_original
from tasks.errors import UserError
from tasks.prompts import CAPTION, LETTER, SHORT, SYSTEM, vicuna_v1
from tests.conftest import make_examples

ROWS = 420  # tokens of the original, which transformers' LLaVA fills up to 448
VISION = CLIPVisionConfig(
    image_size=28,
    patch_size=7,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=3,
    num_attention_heads=4,
    projection_dim=32,
)
TEXT = LlamaConfig(
    vocab_size=ROWS,
    hidden_size=48,
    intermediate_size=96,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    max_position_embeddings=512,
    rms_norm_eps=1e-5,
)


class Authors(nn.Module):
    """LLaVA as its authors write it: CLIP's features but one, a projector, and LLaMA with the picture spliced in."""

    def __init__(self, projector: str, text: LlamaConfig = TEXT) -> None:
        super().__init__()
        self.first_patch = 1  # behind the class token
        torch.manual_seed(0)
        self.clip = CLIPModel(
            CLIPConfig(
                text_config=CLIPTextConfig(
                    vocab_size=40, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
                ).to_dict(),
                vision_config=VISION.to_dict(),
                projection_dim=32,
            )
        ).eval()
        self.tower = CLIPVisionModel(VISION).eval()
        self.tower.load_state_dict({_vision_key(k): v for k, v in self._vision().items()})
        self.projector = (
            nn.Linear(32, 48)
            if projector == "linear"
            else nn.Sequential(nn.Linear(32, 48), nn.GELU(), nn.Linear(48, 48))
        )
        self.llama = LlamaForCausalLM(text).eval()

    def _vision(self) -> dict[str, Tensor]:
        found = {k: v for k, v in self.clip.state_dict().items() if k.startswith("vision_model.")}
        assert found
        return found

    @torch.inference_mode()
    def forward(self, before: Tensor, pixels: Tensor, after: Tensor) -> Tensor:
        features = self.tower(pixels, output_hidden_states=True).hidden_states[-2][:, self.first_patch :]
        embed = self.llama.get_input_embeddings()
        spliced = torch.cat([embed(before), self.projector(features), embed(after)], 1)
        logits: Tensor = self.llama(inputs_embeds=spliced).logits
        return logits

    def weights(self, *, tower: bool = True) -> dict[str, Tensor]:
        """The keys of the authors' own checkpoints."""
        found = dict(self.llama.state_dict())
        found |= {f"model.mm_projector.{k}": v for k, v in self.projector.state_dict().items()}
        if tower:
            found |= {f"model.vision_tower.vision_tower.{k}": v for k, v in self._vision().items()}
        return {k: v.clone().contiguous() for k, v in found.items()}


def _vision_key(key: str) -> str:
    nested = any(k.startswith("vision_model.") for k in CLIPVisionModel(VISION).state_dict())
    return key if nested else key.removeprefix("vision_model.")


@pytest.fixture(scope="module")
def sentences() -> bytes:
    """A LLaMA tokenizer (BPE with bytes, a space in front of everything) that SentencePiece learned from prompts."""
    learned = io.BytesIO()
    corpus = [SYSTEM, SHORT, LETTER, CAPTION, vicuna_v1("What is in the picture? Is there a red cat at the top left?")]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line.replace("<image>", " ").replace("\n", " ") for line in corpus * 3]),
        model_writer=learned,
        vocab_size=ROWS,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=1.0,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        minloglevel=2,
    )
    return learned.getvalue()


def write_tokenizer(folder: Path, sentences: bytes) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.model").write_bytes(sentences)
    described = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False, "legacy": False}
    marks = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(described | marks))
    (folder / "special_tokens_map.json").write_text(json.dumps(marks | {"pad_token": "<unk>"}))


def write_config(folder: Path, tower: str = "clip", **changes: object) -> None:
    folder.mkdir(exist_ok=True)
    text = {
        key: getattr(TEXT, key)
        for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    }
    own = {
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava_llama",
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 512,
        "mm_vision_tower": tower,
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_hidden_size": 32,
        "mm_use_im_start_end": False,
        "image_aspect_ratio": "pad",
        "tie_word_embeddings": False,
    }
    described = {k: v for k, v in {**text, **own, **changes}.items() if v is not ...}
    (folder / "config.json").write_text(json.dumps(described))


def write_tower(folder: Path, authors: Authors) -> None:
    authors.clip.save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}).save_pretrained(folder)


Write = Callable[..., tuple[Path, Authors]]


@pytest.fixture
def write(tmp_path: Path, sentences: bytes) -> Write:
    """Writes an original folder: whole, with the tower beside it, in safetensors or shards of ``.bin``."""

    def written(
        projector: str = "mlp2x_gelu", *, inside: bool = True, bins: bool = False, **changes: Any
    ) -> tuple[Path, Authors]:
        authors, folder = Authors(projector), tmp_path / "llava-original"
        folder.mkdir()
        write_tokenizer(folder, sentences)
        write_tower(folder / "clip", authors)
        write_config(folder, **{"mm_projector_type": projector, **changes})
        weights = authors.weights(tower=inside)
        if bins:
            names = [f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
            index = {key: names[number % 2] for number, key in enumerate(weights)}
            for name in names:
                torch.save({k: v for k, v in weights.items() if index[k] == name}, folder / name)
            (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))
        else:
            save_file(weights, folder / "model.safetensors")
        return folder, authors

    return written


def check_same(llava: Llava, authors: Authors) -> None:
    """Logits of all original tokens, at every position."""
    generator = torch.Generator().manual_seed(1)
    before, after = torch.randint(3, ROWS, (2, 1, 6), generator=generator)
    pixels = torch.randn(1, 3, 28, 28, generator=generator)
    wanted = authors(before, pixels, after)
    ids = torch.cat([before, torch.full((1, llava.n_image_tokens), llava.image_token_id), after], 1)
    with torch.inference_mode():
        ours = llava.model(input_ids=ids, pixel_values=pixels).logits
    assert ours.shape[-1] == 448
    assert_close(ours[..., :ROWS], wanted, rtol=1e-5, atol=1e-5)
    filled = ours[..., ROWS:]
    assert_close(filled, wanted.mean(-1, keepdim=True).expand_as(filled), rtol=1e-4, atol=1e-5)  # the mean row


@pytest.mark.parametrize("projector", ["mlp2x_gelu", "linear"])
@pytest.mark.parametrize(("inside", "bins"), [(True, True), (False, False)])
def test_an_original_folder_computes_what_the_authors_code_does(
    write: Write, projector: str, inside: bool, bins: bool
) -> None:
    folder, authors = write(projector, inside=inside, bins=bins)
    assert is_original(folder)
    check_same(load(folder), authors)


def test_a_projector_of_the_first_llava_needs_no_type(write: Write) -> None:
    folder, authors = write("linear", mm_projector_type=..., mm_vision_select_feature=...)
    check_same(load(folder), authors)


def test_prompts_become_the_ids_of_the_authors_code(write: Write, sentences: bytes) -> None:
    folder, _ = write()
    llava = load(folder)
    pieces: Any = sentencepiece.SentencePieceProcessor(model_proto=sentences)
    examples = make_examples(2)
    inputs = prepare(llava, examples)
    for row, example in enumerate(examples):
        parts = vicuna_v1(example.question).split("<image>")
        before, after = (pieces.encode(part) for part in parts)
        wanted = [1, *before, *[llava.image_token_id] * llava.n_image_tokens, *after]
        assert inputs.input_ids[row][inputs.attention_mask[row].bool()].tolist() == wanted
    assert llava.image_token_id == pieces.vocab_size() == ROWS


def test_a_stage_1_folder_takes_its_language_model_from_elsewhere(tmp_path: Path, sentences: bytes) -> None:
    turned = LlamaConfig(**{**TEXT.to_dict(), "rope_parameters": {"rope_type": "default", "rope_theta": 50.0}})
    authors, folder, base = Authors("mlp2x_gelu", turned), tmp_path / "pretrain", tmp_path / "vicuna"
    write_config(folder, str(tmp_path / "clip"), vocab_size=1)
    torch.save(
        {f"model.mm_projector.{k}": v for k, v in authors.projector.state_dict().items()}, folder / "mm_projector.bin"
    )
    authors.llama.save_pretrained(base)
    write_tokenizer(base, sentences)
    write_tower(tmp_path / "clip", authors)
    with pytest.raises(UserError, match=r"only mm_projector.bin in pretrain. Name it: load\(..., base="):
        load(folder)
    llava = load(folder, base=base)
    check_same(llava, authors)
    state = torch.load(folder / "mm_projector.bin", weights_only=True)
    torch.save({k: v + 1 for k, v in state.items()}, folder / "mm_projector.bin")
    assert load(folder, base=base).weight_hash != llava.weight_hash  # every file that was read counts
    with pytest.raises(UserError, match="base is for original stage-1 folders"):
        load("smol-stage1", base=base)
    described = json.loads((base / "config.json").read_text())
    for changes, message in (
        ({"model_type": "mistral"}, "language model must be a LLaMA"),
        ({"text_config": {}}, "language model must be a LLaMA"),
        ({"rms_norm_eps": None}, "got no rms_norm_eps in vicuna"),
    ):
        (base / "config.json").write_text(json.dumps({**described, **changes}))
        with pytest.raises(UserError, match=message):
            load(folder, base=base)


def test_the_converted_folder_opens_in_plain_transformers(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, authors = write(bins=True)
    for path in folder.glob("*.bin"):  # as published: in half precision
        torch.save({k: v.half() for k, v in torch.load(path, weights_only=True).items()}, path)
    out = tmp_path / "made" / "llava-hf"
    monkeypatch.setattr("sys.argv", ["models.loading.convert", str(folder), str(out)])
    main()
    assert capsys.readouterr().out.strip() == str(out)
    plain = LlavaForConditionalGeneration.from_pretrained(out)
    assert plain.dtype == torch.float16
    prompt = vicuna_v1("Is there a red cat?")
    again = AutoTokenizer.from_pretrained(out)(prompt).input_ids
    assert again == load(folder).tokenizer(prompt).input_ids
    check_same(load(out), authors.half().float())
    photograph = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8))
    wanted = load(folder).inputs(photograph, "What?").pixel_values
    pictures: Any = AutoImageProcessor.from_pretrained(out, backend="pil")  # pads, as this model was trained
    assert torch.equal(pictures(photograph, return_tensors="pt")["pixel_values"], wanted)
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "out must not exist" in capsys.readouterr().err


def test_the_published_tower_inside_a_checkpoint_needs_no_download(write: Write) -> None:
    folder, _ = write(mm_vision_tower="openai/clip-vit-large-patch14-336")
    with pytest.raises(UserError, match=r"must have shape .*1024.* got"):
        load(folder)  # the sizes of the real one are known without it
    read = read_original(folder)
    assert (read.config.image_seq_length, read.processor.image_processor.crop_size["height"]) == (576, 336)


def test_old_buffers_and_a_tower_in_bin_files_are_read(write: Write) -> None:
    folder, authors = write(inside=False, bins=True)
    tower = {**authors.clip.state_dict(), "vision_model.embeddings.position_ids": torch.arange(17)[None]}
    (folder / "clip" / "model.safetensors").unlink()
    torch.save(
        {**tower, "vision_model.embeddings.position_ids": torch.arange(17)[None]}, folder / "clip" / "pytorch_model.bin"
    )
    shard = folder / "pytorch_model-00001-of-00002.bin"
    weights = torch.load(shard, weights_only=True)
    torch.save(
        {**weights, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}, shard,
        _use_new_zipfile_serialization=False,  # as torch before 1.6 wrote
    )  # fmt: skip
    check_same(load(folder), authors)


def test_the_class_token_comes_along_where_the_config_says_so(write: Write) -> None:
    folder, authors = write(mm_vision_select_feature="cls_patch")
    authors.first_patch = 0
    llava = load(folder)
    assert llava.n_image_tokens == 17
    check_same(llava, authors)


@pytest.mark.parametrize("ratio", ["square", ...])
def test_cropped_pictures_are_pointed_out(write: Write, ratio: object) -> None:
    folder, _ = write(image_aspect_ratio=ratio)
    with pytest.warns(UserWarning, match="Use preprocess='hf'"):
        load(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["LlavaMptForCausalLM"]}, "architectures must be LlavaLlamaForCausalLM"),
        ({"mm_projector_type": "mlp3x_gelu"}, "mm_projector_type must be linear or mlp2x_gelu, got mlp3x_gelu"),
        ({"image_aspect_ratio": "anyres"}, "image_aspect_ratio must be square or pad, got anyres"),
        ({"mm_use_im_start_end": True}, "mm_use_im_start_end must be False, got True"),
        ({"mm_vision_select_feature": "both"}, "mm_vision_select_feature must be patch or cls_patch"),
        ({"mm_vision_tower": "nowhere/no-such-tower"}, "mm_vision_tower must be a folder, or a Hugging Face id"),
        ({"mm_vision_tower": None}, "mm_vision_tower must name a vision tower, got None"),
        ({"mm_vision_select_layer": "last"}, "config.json must be readable"),
        ({"hidden_size": 40}, "config.json must be readable"),
        ({"hidden_size": 60}, r"embed_tokens.weight must have the shape \(420, 60\) of config.json, got \(420, 48\)"),
        ({"vocab_size": "many"}, "vocab_size must be an integer, got 'many'"),
        ({"vocab_size": 400}, "vocab_size must be at least 420, the tokens of the tokenizer, got 400"),
        ({"vocab_size": 440}, r"must have the shape \(440, 48\) of config.json, got \(420, 48\)"),
        ({"mm_vision_select_layer": 0}, r"vision_feature_layer must be one layer, in \[1, 3\] or \[-3, -1\], got 0"),
        ({"mm_vision_select_layer": -4}, "vision_feature_layer must be one layer"),
        ({"hidden_act": "hardly"}, "hidden_act must be an activation of transformers, got 'hardly'"),
        ({"num_hidden_layers": 10**6}, r"num_hidden_layers must be an integer in \[1, 256\], got 1000000"),
        ({"num_hidden_layers": -1}, "num_hidden_layers must be an integer"),
        ({"num_attention_heads": 0}, "got .* in llava-original"),
        ({"num_key_value_heads": 5}, "num_attention_heads must be a multiple of 5, got 6"),
        ({"intermediate_size": 0}, "intermediate_size must be an integer"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps must be a positive number, got nan"),
        ({"rope_theta": -1.0}, "rope_theta must be a positive number, got -1.0"),
        ({"architectures": {"a": 1}}, "architectures must be LlavaLlamaForCausalLM"),
    ],
)
def test_what_is_no_llava_is_refused(write: Write, changes: dict[str, object], message: str) -> None:
    folder, _ = write(**changes)
    with pytest.raises(ValueError, match=message):
        load(folder)


def _change_weights(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors")


def test_a_delta_is_recognised_by_its_weights_and_not_by_a_name(write: Write, sentences: bytes) -> None:
    folder, authors = write(_name_or_path="liuhaotian/LLaVA-7b-delta-v1-1")
    named = folder.rename(folder.with_name("llava-7b-delta-v0"))
    check_same(load(named), authors)
    base = Authors("mlp2x_gelu").llama.state_dict()
    _change_weights(named, lambda weights: {k: v - base[k] if k in base else v for k, v in weights.items()})
    renamed = named.rename(named.with_name("llava-7b"))
    with pytest.raises(UserError, match="checkpoint must be complete, got delta weights in llava-7b"):
        load(renamed)


@pytest.mark.parametrize("key", ["model.embed_tokens.weight", "lm_head.weight"])
@pytest.mark.parametrize("rows", [260, 421])
def test_embeddings_and_heads_of_another_size_are_refused(write: Write, key: str, rows: int) -> None:
    folder, _ = write()
    _change_weights(folder, lambda weights: {**weights, key: torch.zeros(rows, 48)})
    with pytest.raises(UserError, match=rf"must have the shape \(420, 48\) of config.json, got \({rows}, 48\)"):
        load(folder)


def test_a_projector_file_cannot_replace_the_embeddings_by_two_rows(tmp_path: Path, sentences: bytes) -> None:
    authors, folder, base = Authors("mlp2x_gelu"), tmp_path / "pretrain", tmp_path / "vicuna"
    write_config(folder, str(tmp_path / "clip"))
    weights = {f"model.mm_projector.{k}": v for k, v in authors.projector.state_dict().items()}
    torch.save({**weights, "model.embed_tokens.weight": torch.zeros(2, 48)}, folder / "mm_projector.bin")
    authors.llama.save_pretrained(base)
    write_tokenizer(base, sentences)
    write_tower(tmp_path / "clip", authors)
    with pytest.raises(
        UserError, match=r"embed_tokens.weight must have the shape \(420, 48\) of config.json, got \(2, "
    ):
        load(folder, base=base)


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a":' * 100_000, "[]", '"mm_vision_tower"', "\x00", "{" * 10])
def test_a_config_that_is_no_mapping_ends_in_one_sentence(write: Write, content: str) -> None:
    folder, _ = write()
    (folder / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"config.json must ") as caught:
        load(folder)
    assert len(str(caught.value)) < 400


def test_factors_a_missing_tokenizer_and_a_missing_tower_are_refused(write: Write) -> None:
    folder, _ = write(inside=False)
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="Merge them first"):
        load(folder)
    (folder / "adapter_config.json").unlink()
    shutil.rmtree(folder / "clip")
    with pytest.raises(UserError, match="mm_vision_tower must be a folder"):
        load(folder)
    write_tower(folder / "clip", Authors("linear"))
    with pytest.raises(UserError, match="base must be None unless the folder contains only a projector"):
        load(folder, base=folder)
    (folder / "clip" / "config.json").write_text("{")
    with pytest.raises(UserError, match="config.json must be readable"):
        load(folder)
    (folder / "tokenizer.model").write_bytes(b"no tokenizer")
    with pytest.raises(UserError, match=r"must hold LLaMA's tokenizer.model"):
        load(folder)
    (folder / "tokenizer.model").unlink()
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"type": "BPE", "byte_fallback": False}}))
    with pytest.raises(UserError, match=r"got a tokenizer.json of another kind"):
        load(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"must hold LLaMA's tokenizer.model, got none"):
        load(folder)
