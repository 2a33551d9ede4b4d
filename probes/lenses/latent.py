"""The latent lens: the contextual text activations that lie nearest to a residual stream, with their layers.

lens = build_latent_lens(llava, ["A red cat at the top left."]); lens.search(vectors, k=5)

An entry of the index is one token of a text at one layer. Texts that share their first tokens share the entries there.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from models.inputs import Inputs, prepare
from models.layer_ranges import LayerRange
from models.llava import Llava
from models.sites import Site
from models.tokens import Group
from probes.lenses.reading import MADE_ANEW, check_lens, lens_sites
from records.manifest import commit
from tasks.checksums import check_recorded
from tasks.errors import UserError, one_line
from tasks.example import Example
from tasks.readers.parse import parse_json

VECTORS, CONFIG = "index.safetensors", "config.json"
N_LAYERS = 8  # layers of the index by default, evenly spread; LatentLens takes as many
MOST_TOKENS = 4096  # tokens of the index by default, at each layer
_QUERIES = 1024  # queries that are compared with the index at a time
_CONTEXT = 40  # characters of text kept before a token
_LETTERS = re.compile(r"[^\W\d_]+")


class Neighbours(NamedTuple):
    """The nearest entries of each query, nearest first."""

    similarity: Float[Tensor, "query k"]
    """Cosine similarity."""
    token: Int[Tensor, "query k"]
    """Number of the token in the index."""
    place: Int[Tensor, "query k"]
    """Number of the layer in ``LatentLens.sites``."""


@dataclass(frozen=True, eq=False)
class LatentLens:
    """An index of text activations.

    Source: LatentLens, McGill-NLP/latentlens (2026): nearest contextual text embeddings of visual tokens.

    Example:
        >>> from models import load
        >>> llava = load("random:tiny")
        >>> lens = build_latent_lens(llava, ["A red cat.", "A blue dog."], layers="0,2")
        >>> [str(site) for site in lens.sites]
        ['blocks.0.hook_resid_pre', 'blocks.0.hook_resid_post', 'blocks.2.hook_resid_post']
        >>> lens.search(lens.vectors[1][:2].float(), k=1).place.flatten().tolist()
        [1, 1]
    """

    vectors: Float[Tensor, "site token d_model"]
    """Unit vectors, half precision."""
    sites: tuple[Site, ...]
    """The layers of the index, in the order of the forward pass."""
    words: tuple[str, ...]
    """For each token its word as far as the text has been read, in lower case."""
    contexts: tuple[str, ...]
    """For each token the text that ends with it."""
    n_layers: int
    """Blocks of the model."""

    @property
    def name(self) -> str:
        """The name in tables."""
        return "latent"

    @property
    def d_model(self) -> int:
        """The width of the residual stream."""
        return self.vectors.shape[-1]

    def reads(self, site: Site, n_layers: int) -> bool:
        """True: every site is compared with the same index."""
        return n_layers == self.n_layers

    @property
    def depths(self) -> list[float]:
        """The depth of each layer of the index: 0 is the language model's input, 1 the last block's output."""
        return [0.0 if site.name == "resid_pre" else (int(site.layer or 0) + 1) / self.n_layers for site in self.sites]

    def search(self, queries: Float[Tensor, "query d_model"], *, k: int = 5) -> Neighbours:
        """The ``k`` entries of the whole index with the largest cosine similarity to each query.

        Raises:
            UserError: If the index has fewer entries than ``k``, or another width.
        """
        n_sites, n_tokens, width = self.vectors.shape
        if k > n_sites * n_tokens or k < 1:
            raise UserError(f"k must be in [1, {n_sites * n_tokens}], the entries of the index, got {k}.")
        if queries.shape[-1] != width:
            raise UserError(f"queries must have the width of the index, {width}, got {queries.shape[-1]}.")
        flat = self.vectors.flatten(0, 1).to(queries.device)
        parts = []
        for chunk in torch.nn.functional.normalize(queries.float(), dim=-1).split(_QUERIES):
            kind = flat.dtype if flat.is_cuda else torch.float32
            best: list[tuple[Tensor, Tensor]] = []
            for start in range(0, len(flat), n_tokens):
                scores = (chunk.to(kind) @ flat[start : start + n_tokens].to(kind).T).float()
                top = scores.topk(min(k, n_tokens), dim=1)
                best.append((top.values, top.indices + start))
            values, indices = (torch.cat(one, 1) for one in zip(*best, strict=True))
            top = values.topk(k, dim=1)
            parts.append((top.values, indices.gather(1, top.indices)))
        values, indices = (torch.cat(one) for one in zip(*parts, strict=True))
        return Neighbours(values, indices % n_tokens, indices // n_tokens)

    def words_at(
        self, llava: Llava, inputs: Inputs, *, tokens: Group = "image", layers: LayerRange | None = None, k: int = 5
    ) -> pd.DataFrame:
        """The ``k`` nearest text tokens of each token and layer.

        Columns: ``layer``, ``example``, ``position``, ``rank`` (from 1), ``word``, ``context``, ``similarity`` and
        ``neighbour_layer`` (the block of the text activation; -1 for the language model's input).
        """
        sites = lens_sites(llava.n_layers, layers, entry=False)
        check_lens(self, llava, sites)
        found = llava.capture(inputs, sites, tokens=tokens)
        tables = []
        for site in sites:
            kept = found.mask[site]
            near = self.search(found[site][kept], k=k)
            n = len(near.token)
            token, place = near.token.flatten().tolist(), near.place.flatten().tolist()
            columns = {
                "layer": site.layer, "example": kept.nonzero()[:, 0].repeat_interleave(k).tolist(),
                "position": found.positions[site][kept].repeat_interleave(k).tolist(),
                "rank": [rank + 1 for _ in range(n) for rank in range(k)], "word": [self.words[i] for i in token],
                "context": [self.contexts[i] for i in token], "similarity": near.similarity.flatten().tolist(),
                "neighbour_layer": [block_of(self.sites[i]) for i in place],
            }  # fmt: skip
            tables.append(pd.DataFrame(columns))
        return pd.concat(tables, ignore_index=True)

    def save(self, folder: str | Path) -> None:
        """Write ``index.safetensors``, then ``config.json`` with the texts."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = {
            "n_layers": self.n_layers, "sites": [str(site) for site in self.sites], "words": self.words,
            "contexts": self.contexts,
        }  # fmt: skip
        commit(folder / VECTORS, save({"vectors": self.vectors.cpu().contiguous()}))
        commit(folder / CONFIG, (json.dumps(config) + "\n").encode())

    @staticmethod
    def load(folder: str | Path) -> "LatentLens":
        """The index in a folder that ``save`` wrote.

        Raises:
            UserError: If the folder holds no index, or a file of it changed.
        """
        folder = Path(folder)
        for name in (CONFIG, VECTORS):
            check_recorded(folder / name, advice=MADE_ANEW)
        try:
            config = parse_json((folder / CONFIG).read_bytes())
            vectors = load_file(folder / VECTORS)["vectors"]
            sites = tuple(Site.parse(text) for text in config["sites"])
            found = LatentLens(
                vectors, sites, tuple(config["words"]), tuple(config["contexts"]), int(config["n_layers"])
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            raise UserError(
                f"latent lens must be a folder with {CONFIG} and {VECTORS}, got {str(folder)!r} "
                f"({one_line(error)[:120]}). lens-sweep train --kind latent writes one."
            ) from error
        if vectors.shape[:2] != (len(sites), len(found.words)) or len(found.words) != len(found.contexts):
            raise UserError(
                f"latent lens must have one vector for each layer and token, got others in {str(folder)!r}."
            )
        return found


def build_latent_lens(
    llava: Llava,
    texts: Sequence[str],
    *,
    layers: LayerRange | None = None,
    most_tokens: int = MOST_TOKENS,
    on_text: Callable[[int, int], None] = lambda done, total: None,
) -> LatentLens:
    """An index of the activations of some texts.

    Args:
        llava: The model.
        texts: Each runs alone, cut at the model's context.
        layers: Blocks whose output is indexed besides the language model's input; None for eight, evenly spread.
        most_tokens: Largest number of tokens at each layer; texts that come later are left out.
        on_text: Called with 1 and the number of texts for each.

    Raises:
        UserError: If the texts contain no token.

    Example:
        >>> from models import load
        >>> build_latent_lens(load("random:tiny"), ["A red cat."], layers=[1]).vectors.shape[0]
        2
    """
    chosen = layers if layers is not None else even_layers(llava.n_layers)
    sites = lens_sites(llava.n_layers, chosen)
    limit = int(llava.config.text_config.max_position_embeddings)
    seen: set[tuple[int, ...]] = set()
    words: list[str] = []
    contexts: list[str] = []
    kept: dict[Site, list[Tensor]] = {site: [] for site in sites}
    for text in texts:
        on_text(1, len(texts))
        encoding = llava.tokenizer(text, return_offsets_mapping=True, verbose=False)
        ids, offsets = list(encoding["input_ids"])[:limit], list(encoding["offset_mapping"])[:limit]
        fresh: list[int] = []
        for i, (start, stop) in enumerate(offsets):
            prefix = tuple(ids[: i + 1])
            if stop > start and prefix not in seen and len(words) + len(fresh) < most_tokens:
                seen.add(prefix)
                fresh.append(i)
        if not fresh:
            continue
        words += [word_so_far(text, *offsets[i]) for i in fresh]
        contexts += [text[max(0, offsets[i][1] - _CONTEXT) : offsets[i][1]] for i in fresh]
        read = text[: offsets[-1][1]]
        inputs = prepare(llava, [Example("text", (), read, "", group="text")], prompts=[read])
        wanted = torch.zeros_like(inputs.input_ids, dtype=torch.bool)
        wanted[0, fresh] = True
        resid = llava.capture(inputs, sites, tokens=wanted)
        for site in sites:
            kept[site].append(torch.nn.functional.normalize(resid[site][0].float(), dim=-1).half().cpu())
    if not words:
        raise UserError(f"corpus must have at least one token, got {len(texts)} texts without any. Name another file.")
    vectors = torch.stack([torch.cat(kept[site]) for site in sites]).to(llava.device)
    return LatentLens(vectors, tuple(sites), tuple(words), tuple(contexts), llava.n_layers)


def even_layers(n_layers: int) -> list[int]:
    """At most eight blocks, evenly spread, the last one among them."""
    n = min(N_LAYERS, n_layers)
    return sorted({round((i + 1) * n_layers / n) - 1 for i in range(n)})


def block_of(site: Site) -> int:
    """The block that a site follows; -1 for the language model's input."""
    return -1 if site.name == "resid_pre" else int(site.layer or 0)


def word_so_far(text: str, start: int, stop: int) -> str:
    """The letters of the token's word up to the token's end, in lower case; the token itself if it has no letters.

    The token `` c`` of `` cactus`` gives ``c``: at that position the model has not read the rest.

    Example:
        >>> word_so_far("a cactus", 3, 8), word_so_far("a cactus", 1, 3)
        ('cactus', 'c')
    """
    found = [match for match in _LETTERS.finditer(text[:stop]) if match.end() > start]
    return (found[-1].group() if found else text[start:stop].strip()).lower()
