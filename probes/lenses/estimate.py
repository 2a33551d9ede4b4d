"""The time of ``lens-sweep`` and ``lens-sweep train``, estimated before they start."""

from collections.abc import Sequence

from models.inputs import prepare
from models.llava import Llava
from models.sites import Site
from probes.estimate import CAPTURE, forward_flops
from probes.lenses.config import LensConfig, TrainConfig
from probes.lenses.data import LensData
from probes.lenses.latent import N_LAYERS
from records.open_model import load_seconds
from records.processes import matmul_speed
from records.timings import TimeEstimate
from tasks.dataset import Dataset
from tasks.errors import user_errors

# Measured on one CPU thread, 2026-11-30, on matrices of smol's size; products are computed from a measured speed.
LOGIT = 1.7e-8  # seconds of an element of the logits in a reading: softmax, the first words, and ranks
NEIGHBOUR = 8e-9  # seconds of an element of the similarities of a latent lens
KL_ELEMENT = 1.5e-8  # seconds of an element of the logits in a divergence, and as much in its gradient
SHOWN = 0.5  # seconds of an example in the report: its picture and words
FIGURES = 3.0  # seconds
TEXTS = 1.5  # tokens that run for each that is indexed: texts begin alike
BACKWARD = 1.5  # time of the backward passes of Jacobians over that of their products


def sweep_estimate(
    config: LensConfig, llava: Llava, data: LensData, n: int, sites: Sequence[Site], device: str, world: int
) -> TimeEstimate:
    """The forward passes, and the head or the index at every patch and site of ``n`` examples.

    Args:
        config: The settings.
        llava: The model; its weights may have no values.
        data: The examples.
        n: Number of examples that are read.
        sites: The sites.
        device: Where this process runs.
        world: Number of processes, all equally fast.
    """
    second = 1 / matmul_speed(device, llava.dtype)
    with user_errors(ValueError):
        layout = prepare(llava, [data.examples[0]], preprocess=config.data.preprocess).layout[0]
    n_patches, width = llava.grid[0] * llava.grid[1], llava.d_model
    vocabulary = int(llava.config.text_config.vocab_size)
    entries = config.text.corpus_tokens * (1 + min(N_LAYERS, llava.n_layers))
    once = CAPTURE * second * forward_flops(llava, sites, positions=layout.images[0].stop, n_pictures=1)

    def reading(specs: Sequence[str]) -> float:
        each = once
        for spec in specs:
            latent = spec.startswith("latent")
            wide, element = (entries, NEIGHBOUR) if latent else (vocabulary, LOGIT)
            own = 0 if latent or spec == "logit" else 2.0 * width**2  # the lens's own matrix
            each += n_patches * len(sites) * ((2.0 * wide * width + own) * second + element * wide)
        return n * each / world

    specs, indexed = config.lens_specs, "latent" in config.lens_specs
    has_control = config.controls and not config.model.name.startswith("random:")
    of_control = [*(["logit"] if any(not s.startswith("latent") for s in specs) else []), *["latent"] * indexed]
    index = _index_seconds(config.text.corpus_tokens, llava, second)
    stages = {
        "load": load_seconds(llava),
        "indexing": index * indexed * (2 if has_control else 1),
        "reading": reading(specs),
        "reading the random model": reading(of_control) if has_control else 0.0,
        "tables": SHOWN * min(config.shown, n),
        "figures": FIGURES,
    }
    lenses = f"{len(specs)} lens{'' if len(specs) == 1 else 'es'}"
    return TimeEstimate(f"{n} examples at {len(sites)} sites with {lenses}", stages)


def training_estimate(
    config: TrainConfig, llava: Llava, data: Dataset | None, n_held_out: int, texts: Sequence[str], device: str
) -> TimeEstimate:
    """The passes that make a lens, and those of its score on ``n_held_out`` examples."""
    second, load = 1 / matmul_speed(device, llava.dtype), load_seconds(llava)
    if data is None:
        most = config.text.corpus_tokens
        stages = {"load": load, "indexing": _index_seconds(most, llava, second)}
        return TimeEstimate(f"{len(texts)} texts, up to {most} tokens", stages)
    with user_errors(ValueError):
        inputs = prepare(
            llava, [data.examples[0]], preprocess=config.data.preprocess, answers=bool(data.examples[0].answer)
        )
    image, length = int((inputs.input_ids == llava.image_token_id).sum()), inputs.n_positions
    vocabulary, blocks = int(llava.config.text_config.vocab_size), sum(p.numel() for p in llava.blocks.parameters())
    tower = llava.grid[0] * llava.grid[1] * sum(p.numel() for p in llava.vision_blocks.parameters())
    a_run = CAPTURE * 2.0 * second * (length * blocks + tower)
    head = vocabulary * (2.0 * llava.d_model * second + KL_ELEMENT)  # logits of a position, and their divergence
    scoring = n_held_out * (2 * a_run + 2 * (llava.n_layers + 1) * length * head)
    if config.kind == "jacobian":
        passes = 2 * BACKWARD * len(data) * length * blocks * llava.d_model * 2.0 * second  # one for each dimension
        stages = {"load": load, "Jacobians": passes, "scoring": scoring}
        return TimeEstimate(f"Jacobians of {len(data)} prompts", stages)
    n_read = image if config.read_at == "image" else length - image
    batch = min(config.batch_size, len(data))
    step = batch * (a_run + n_read * (1 + 2 * llava.n_layers) * head)
    stages = {"load": load, "training": config.steps * step, "scoring": scoring}
    return TimeEstimate(f"{config.steps} steps of {batch} examples", stages)


def _index_seconds(n_tokens: int, llava: Llava, second: float) -> float:
    """Seconds of the forward passes of the texts of a latent lens."""
    return TEXTS * CAPTURE * 2.0 * second * n_tokens * sum(p.numel() for p in llava.blocks.parameters())
