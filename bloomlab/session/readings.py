"""What a run's residual stream holds: lens columns, sizes, directions, contributions."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from sklearn.decomposition import PCA
from torch import Tensor

from bloomlab.analysis.lens import Reading, divergence, log_probabilities, read_streams
from bloomlab.errors import InputError
from bloomlab.experiments.attribution import Attribution, attribute_logits
from bloomlab.printable import checked_ids
from bloomlab.session.attention import columns_of
from bloomlab.session.run import Run

ROWS_AT_ONCE = 2**24  # numbers of logits
MASSIVE = 20.0  # times the median size of the stream's numbers


@dataclass(frozen=True, kw_only=True, eq=False)
class Stream:
    """The residual stream in few numbers.

    Attributes:
        norms: length of the stream before each layer and after the last.
        cosines: of the stream before and after each layer.
        points: its direction in the plane of the two largest principal components of all layers
            and tokens (vectors scaled to length 1).
        explained: share of the variance along each.
        massive: channel, layer and token of the largest numbers, beyond 20 times their layer's
            median.
    """

    norms: Float[np.ndarray, "state pos"]
    cosines: Float[np.ndarray, "layer pos"]
    points: Float[np.ndarray, "state pos 2"]
    explained: Float[np.ndarray, " 2"]
    massive: list[dict[str, Any]]


@torch.no_grad()
def read_lens(run: Run, positions: Any, *, k: int = 5, chosen: Any = ()) -> Reading:
    """What the stream after each layer would predict at some positions (logit lens).

    Args:
        run: its stream is read; no forward.
        positions: columns, the rows of the reading.
        k: how many of the likeliest tokens.
        chosen: ids whose rank and probability are wanted.

    Raises:
        InputError: no such position or id.
    """
    model = run.model
    ids = checked_ids(chosen)
    at = torch.as_tensor(columns_of(positions, len(run)), device=run.ids.device)
    if max(ids, default=0) >= model.config.vocab_size:
        raise InputError(f"ids {ids!r:.80}, expected some of 0 to {model.config.vocab_size - 1}.")

    def read(stream: Float[Tensor, "row d_model"]) -> Float[Tensor, "row vocab"]:
        return model.unembed(model.ln_final.plain(stream))

    streams = [resid[0, at] for resid in run.resid[1:]]
    wanted = torch.tensor(ids, dtype=torch.long, device=at.device).expand(len(at), -1)
    return read_streams(
        streams,
        [read] * len(streams),
        model.ln_final(run.resid[-1])[0, at],
        model.unembed,
        chosen=wanted,
        k=min(k, model.config.vocab_size),
        at_once=max(1, ROWS_AT_ONCE // model.config.vocab_size),
    )


@torch.no_grad()
def read_stream(run: Run) -> Stream:
    """Norms, cosines, principal components and massive activations of a run."""
    states = torch.cat([resid.float() for resid in run.resid]).cpu()  # state pos d_model
    norms = states.norm(dim=-1)
    unit = states / norms[..., None].clamp(min=1e-12)
    flat = unit.flatten(0, 1).numpy()
    points, explained = np.zeros((len(flat), 2)), np.zeros(2)
    if np.isfinite(flat).all() and len(flat) > 2:
        found = PCA(2, svd_solver="covariance_eigh")
        points[:], explained[:] = found.fit_transform(flat), found.explained_variance_ratio_
    massive = []
    for layer, state in enumerate(states):
        size, median = state.abs(), float(state.abs().median())
        value, at = size.flatten().max(0)
        if float(value) > MASSIVE * median:
            token, channel = divmod(int(at), state.shape[1])
            massive.append(
                {
                    "layer": layer,
                    "token": token,
                    "channel": channel,
                    "value": float(state[token, channel]),
                    "times": float(value) / max(median, 1e-12),
                }
            )
    return Stream(
        norms=norms.numpy(),
        cosines=(unit[1:] * unit[:-1]).sum(-1).numpy(),
        points=points.reshape(*norms.shape, 2),
        explained=explained,
        massive=massive,
    )


def read_contributions(run: Run, position: int, answer: int | None = None) -> Attribution:
    """What each component adds to a logit at a position, under the run's edits.

    `answer`: an id; None: the likeliest token. See `experiments.attribute_logits`.

    Raises:
        InputError: no such position or id.
    """
    [column] = columns_of([position], len(run))
    kept = [block.attn.heads for block in run.model.blocks]
    with run.model.hooks(fwd_hooks=run.edits.interventions(kept, run.means)):
        return attribute_logits(
            run.model,
            run.ids[:, : column + 1],
            answers=None if answer is None else torch.tensor([answer], device=run.ids.device),
            progress=False,
        )


def next_difference(clean: Run, edited: Run, k: int, position: int = -1) -> dict[str, Any]:
    """The likeliest next tokens of both runs, ordered by the larger probability.

    Keys: ids, labels, before and after (probabilities), logits (after minus before), kl (of the
    clean prediction from the edited one, in nats).
    """
    first, second = clean.logits(position), edited.logits(position)
    before, after = (log_probabilities(one[None])[0] for one in (first, second))
    k = min(k, len(first))
    either = torch.cat([before.topk(k).indices, after.topk(k).indices]).unique()
    ids = either[torch.maximum(before, after)[either].argsort(descending=True)][:k]
    return {
        "ids": ids.tolist(),
        "labels": clean.labels(ids),
        "before": before[ids].exp().tolist(),
        "after": after[ids].exp().tolist(),
        "logits": (second - first)[ids].tolist(),
        "kl": float(divergence(before[None], after[None])[0]),
    }
