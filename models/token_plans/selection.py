"""Choose the image tokens that stay when a stage of a token plan begins."""

import hashlib
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from models.adapter import Adapter
from models.sites import Site
from models.token_plans.plan import Keep


def keep_highest(
    stage: Keep, scores: Float[Tensor, "row pos"], image: Bool[Tensor, "row pos"], alive: Bool[Tensor, "row pos"]
) -> Bool[Tensor, "row pos"]:
    """True at the image tokens that stay: in each row the ``alive`` ones with the highest scores, earlier ones first.

    ``image`` is True at every image token of the prompt; the share of the stage counts these.
    """
    numbers = torch.tensor([stage.count(int(n)) for n in image.sum(1).tolist()], device=scores.device)
    order = scores.masked_fill(~alive, -torch.inf).argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(
        1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
    )
    return alive & (rank < numbers[:, None])


def attention_scores(
    llava: Adapter,
    layer: int,
    resid: Float[Tensor, "row pos d_model"],
    position_ids: Int[Tensor, "row pos"],
    visible: Bool[Tensor, "row pos"],
    last: Int[Tensor, " row"],
) -> Float[Tensor, "row pos"]:
    """The attention that position ``last`` of each row pays in ``layer`` to every visible position, mean over heads.

    Only this one query is computed. The softmax is taken in float32, as transformers' eager attention does.
    """
    rows = torch.arange(len(resid), device=resid.device)
    query = llava.queries(layer, resid[rows, last][:, None], position_ids[rows, last][:, None])
    keys = llava.keys(layer, resid, position_ids)
    keys = keys.repeat_interleave(query.shape[1] // keys.shape[1], dim=1)
    scores = (query @ keys.transpose(-1, -2))[:, :, 0] * llava.attention_scale(Site("language_model", layer, "pattern"))
    seen = visible & (torch.arange(resid.shape[1], device=resid.device) <= last[:, None])
    return scores.float().masked_fill(~seen[:, None], -torch.inf).softmax(-1).mean(1)


def random_scores(stage: Keep, names: Sequence[str], image: Bool[Tensor, "row pos"]) -> Float[Tensor, "row pos"]:
    """Random scores of image tokens. They depend on the seed and the row's name, not on the batch or its padding."""
    scores = torch.zeros(image.shape)
    for row, name in enumerate(names):
        digest = hashlib.blake2b(f"{stage.seed}:{name}".encode(errors="surrogatepass"), digest_size=7).digest()
        places = image[row].nonzero()[:, 0].cpu()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "big"))
        scores[row, places] = torch.rand(len(places), generator=generator)
    return scores.to(image.device)


def uniform_scores(
    stage: Keep, image: Bool[Tensor, "row pos"], alive: Bool[Tensor, "row pos"]
) -> Float[Tensor, "row pos"]:
    """1 at evenly spaced ones of the tokens that are left, as many as the stage keeps; 0 elsewhere."""
    scores = torch.zeros(image.shape)
    for row in range(len(image)):
        places = alive[row].nonzero()[:, 0].cpu()
        n = stage.count(int(image[row].sum()))
        scores[row, places[((torch.arange(n) + 0.5) * len(places) / max(n, 1)).long()]] = 1.0
    return scores.to(image.device)
