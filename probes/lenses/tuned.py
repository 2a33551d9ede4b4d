"""The tuned lens: one affine translator for each layer, trained to predict what the last layer predicts.

lens = TunedLens.load("runs/tuned"); lens.words(llava, inputs, layers="10-20")

A folder holds ``params.safetensors`` and ``config.json``. Folders of the package tuned-lens, with ``params.pt``, load
too; its translator ``i`` reads the input of block ``i``, which is ``resid_post`` of block ``i - 1``.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from models.inputs import Inputs
from models.layer_ranges import LayerRange
from models.llava import Llava
from models.loading.checkpoints import load_restricted
from models.sites import Site
from models.tokens import Group
from probes.lenses.reading import MADE_ANEW, is_last, lens_sites, lens_words
from records.manifest import commit
from tasks.checksums import check_recorded
from tasks.errors import UserError, one_line
from tasks.files import is_file
from tasks.readers.parse import parse_json

PARAMS, PICKLED, CONFIG = "params.safetensors", "params.pt", "config.json"


class Translator(NamedTuple):
    """h becomes h + weight h + bias."""

    weight: Float[Tensor, "d_model d_model"]
    bias: Float[Tensor, " d_model"]


@dataclass(frozen=True, eq=False)
class TunedLens:
    """Affine translators by site: the input of the language model and ``resid_post`` of all blocks but the last.

    Source: Belrose et al. 2023, "Eliciting Latent Predictions from Transformers with the Tuned Lens",
        arXiv 2303.08112. The residual form is that of the package tuned-lens.

    Example:
        >>> from models import load
        >>> lens = TunedLens.zero(load("random:tiny"))
        >>> lens.d_model, len(lens.translators)
        (48, 4)
    """

    translators: Mapping[Site, Translator]
    """The translator of each site."""
    n_layers: int
    """Blocks of the model that the lens was made for."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """Further entries of ``config.json``, such as the positions that it was trained on."""

    @staticmethod
    def zero(llava: Llava) -> "TunedLens":
        """A lens that equals the logit lens, from which training starts."""
        d, device = llava.d_model, llava.device
        made = {
            site: Translator(torch.zeros(d, d, device=device), torch.zeros(d, device=device))
            for site in lens_sites(llava.n_layers)[:-1]
        }
        about = {"base_model_name_or_path": llava.id, "weight_hash": llava.weight_hash}
        return TunedLens(made, llava.n_layers, about)

    @property
    def name(self) -> str:
        """The name in tables: ``tuned``, with the positions that it was trained on."""
        positions = self.about.get("positions")
        return f"tuned:{positions}" if positions else "tuned"

    @property
    def d_model(self) -> int:
        """The width of the residual stream."""
        return next(iter(self.translators.values())).bias.shape[0]

    def reads(self, site: Site, n_layers: int) -> bool:
        """True if there is a translator for ``site``, or it is the last block's output."""
        return n_layers == self.n_layers and (site in self.translators or is_last(site, n_layers))

    def transport(self, resid: Float[Tensor, "*batch d_model"], site: Site) -> Float[Tensor, "*batch d_model"]:
        """``resid`` + weight ``resid`` + bias; the last block's output stays."""
        if site not in self.translators:
            return resid
        weight, bias = (part.to(resid.device, resid.dtype) for part in self.translators[site])
        return resid + torch.nn.functional.linear(resid, weight, bias)

    def words(
        self, llava: Llava, inputs: Inputs, *, tokens: Group = "image", layers: LayerRange | None = None, k: int = 5
    ) -> pd.DataFrame:
        """The ``k`` most likely words at each token and layer; columns as ``Llava.logit_lens``."""
        return lens_words(self, llava, inputs, tokens=tokens, layers=layers, k=k)

    def save(self, folder: str | Path) -> None:
        """Write ``params.safetensors``, then ``config.json``, with the names and the entries of tuned-lens."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        sites = lens_sites(self.n_layers)[:-1]
        tensors = {
            f"{sites.index(site)}.{part}": value.detach().float().cpu().contiguous()
            for site, translator in self.translators.items()
            for part, value in translator._asdict().items()
        }
        config = {
            **self.about, "d_model": self.d_model, "num_hidden_layers": self.n_layers, "bias": True,
            "lens_type": "linear_tuned_lens",
        }  # fmt: skip
        commit(folder / PARAMS, save(tensors))
        commit(folder / CONFIG, (json.dumps(config, indent=2) + "\n").encode())

    @staticmethod
    def load(folder: str | Path) -> "TunedLens":
        """The lens in a folder that ``save`` or the package tuned-lens wrote.

        Raises:
            UserError: If the folder holds no such lens, or a file of it changed.
        """
        folder = Path(folder)
        path = next((folder / name for name in (PARAMS, PICKLED) if is_file(folder / name)), None)
        if path is None or not is_file(folder / CONFIG):
            raise UserError(
                f"tuned lens must be a folder with {CONFIG} and {PARAMS} or {PICKLED}, got {str(folder)!r}. "
                "lens-sweep train writes one."
            )
        for file in (path, folder / CONFIG):
            check_recorded(file, advice=MADE_ANEW)
        try:
            config = parse_json((folder / CONFIG).read_bytes())
            state: dict[str, Tensor] = load_file(path) if path.name == PARAMS else load_restricted(path)
            n_layers, width = int(config["num_hidden_layers"]), int(config["d_model"])
            sites = lens_sites(n_layers)[:-1]
            zero = torch.zeros(width)
            found = {
                site: Translator(state[f"{i}.weight"].float(), state.get(f"{i}.bias", zero).float())
                for i, site in enumerate(sites)
                if f"{i}.weight" in state
            }
        except (OSError, ValueError, LookupError, TypeError, AttributeError, SafetensorError) as error:
            raise UserError(f"tuned lens must be readable, got {str(folder)!r} ({one_line(error)}).") from error
        shapes = {(tuple(one.weight.shape), tuple(one.bias.shape)) for one in found.values()}
        if shapes != {((width, width), (width,))}:
            raise UserError(
                f"tuned lens must have matrices of {width} x {width}, got {sorted(shapes)} in {str(folder)!r}."
            )
        known = ("d_model", "num_hidden_layers", "bias", "lens_type")
        return TunedLens(found, n_layers, {key: value for key, value in config.items() if key not in known})
