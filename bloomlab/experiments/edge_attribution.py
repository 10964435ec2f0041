"""Edge attribution patching: what path patching of every edge would give, to first order.

score(writer -> reader) = <theirs - ours of the writer, dM / d input of the reader>, summed over
tokens: two forwards and one backward for all edges (EAP; Syed et al., 2023, arXiv:2310.10348).
EAP-IG averages the derivative over runs whose embeddings lie between both texts', so that a
saturated softmax hides less (Hanna et al., 2024, arXiv:2403.17806). Both may miss edges into the
queries and keys of sharp heads: `patch_paths` and `find_circuit` measure what these predict.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from bloomlab.analysis.attribution import before_norm
from bloomlab.analysis.intervals import standard_error
from bloomlab.errors import InputError, UnknownNameError
from bloomlab.experiments.contrast import Contrast
from bloomlab.experiments.edge_runs import EdgeRuns
from bloomlab.experiments.framed import Framed
from bloomlab.experiments.graph import Edge, Graph, strongest
from bloomlab.experiments.judge import Judge
from bloomlab.experiments.recorded import given

KINDS = ("eap", "eap_ig")
STEPS = 5
AT_ONCE = 2**21  # tokens x writers x examples
NORMED = ("hook_resid_pre", "hook_resid_mid")  # what a layer's LayerNorms get
READ = ("attn.hook_q", "attn.hook_k", "attn.hook_v", "mlp.hook_pre")  # what they are read into


@dataclass(frozen=True, kw_only=True, repr=False)
class EdgeScores(Framed):
    """A score of every edge and example: its predicted effect, in the metric's unit.

    Attributes:
        edges: reader after reader.
        values: patched - unpatched, predicted.
        kind: "eap" or "eap_ig".
        direction: as in `patch_paths`.
        metric: its name.
    """

    edges: list[Edge]
    values: Float[Tensor, "edge example"]
    kind: str
    direction: str
    metric: str

    @property
    def frame(self) -> pd.DataFrame:
        """One row an edge: sender, receiver, score (mean over examples), stderr."""
        senders, receivers = zip(*self.edges, strict=True)
        scores = {"score": self.values.mean(-1), "stderr": standard_error(self.values)}
        columns = {name: value.tolist() for name, value in scores.items()}
        return pd.DataFrame({"sender": senders, "receiver": receivers, **columns})

    def circuit(self, n_edge: int) -> list[Edge]:
        """The edges with the largest |score|, without those that lead from or to nowhere.

        Args:
            n_edge: how many are chosen; those left are fewer where a chosen writer has no chosen
                input, or a chosen reader no chosen output.

        Raises:
            InputError: a number of edges that there is not.
        """
        return strongest(self.edges, self.values.mean(-1), n_edge)


@torch.enable_grad()
def attribute_edges(
    model: Any,
    clean: Any,
    corrupted: Any,
    metric: Any = "logit_difference",
    *,
    kind: str = "eap_ig",
    steps: int = STEPS,
    answers: Any = None,
    positions: Any = -1,
    direction: str = "noise",
    rows: int | None = None,
    progress: bool = True,
) -> EdgeScores:
    """The effect of patching each edge of the graph, predicted from derivatives of the metric.

    Args:
        model: a BLOOM with an unembedding; no hooks attached.
        clean: texts, ids [batch pos] or a dict with `attention_mask`.
        corrupted: as many texts, token by token as long.
        metric: as in `patch_activations`; one that has derivatives.
        kind: "eap", or "eap_ig", slower and closer.
        steps: runs over which "eap_ig" averages: at k/steps of the way from the other text's
            embeddings to the unpatched one's, k = 1 ... steps.
        answers: as in `patch_activations`.
        positions: columns whose logits the metric sees.
        direction: as in `patch_paths`.
        rows: examples in a forward; None: by free memory.
        progress: show a bar while it takes long.

    Raises:
        UnknownNameError: no such kind, direction or metric.
        InputError: steps below 1, a metric without derivatives (or "kl" where it is 0), hooks
            attached, and as `patch_paths`.
        ShapeError: another number of texts, or answers that do not fit.
        UnsupportedError: heads were pruned, or a stream that is no sum
            (apply_residual_connection_post_layernorm).
    """
    if kind not in KINDS:
        raise UnknownNameError("kind", kind, KINDS)
    if isinstance(steps, bool) or steps < 1:
        raise InputError(f"steps is {steps!r}, expected 1 or more.")
    pair = Contrast.of(
        model,
        clean,
        corrupted,
        metric,
        answers=answers,
        positions=positions,
        direction=direction,
        rows=rows,
    )
    if pair.metric.needs_clean and direction == "noise" and (kind == "eap" or steps == 1):
        raise InputError(
            "the derivative of 'kl' is 0 at the clean run. Take kind='eap_ig' with several steps, "
            "direction='denoise', or another metric."
        )
    graph = Graph.of(model)
    shares = [step / steps for step in range(1, steps + 1)] if kind == "eap_ig" else [1.0]
    at_once = max(1, min(pair.at_once, AT_ONCE // (pair.n_pos * graph.exists.shape[1])))
    found: list[Tensor] = []
    with tqdm(total=len(pair.clean), unit="text", delay=2, disable=not progress) as bar:
        for examples, base, source in pair.parts(at_once):
            columns = pair.metric.columns(pair.n_pos)
            runs = EdgeRuns(model=model, base=base, source=source, graph=graph, columns=columns)
            judge = pair.judge(examples, pair.ends(runs)[0])
            each = [_scores(runs, judge, share) for share in shares]
            found.append(torch.stack(each).mean(0))
            bar.update(len(base))
    scores = torch.cat(found)[:, graph.exists]
    return EdgeScores(
        edges=graph.edges,
        values=scores.T.contiguous(),
        kind=kind,
        direction=direction,
        metric=pair.metric.name,
    )


def _scores(runs: EdgeRuns, judge: Judge, share: float) -> Float[Tensor, "example receiver sender"]:
    """<writer's difference, derivative at the reader> at a share of the way between both texts."""
    graph = runs.graph
    every = range(len(graph.senders))
    change = torch.stack([runs.difference(sender) for sender in every], 2)  # x pos sender d_model
    found = change.new_zeros(len(change), *graph.exists.shape)
    slopes = _slopes(runs, judge, share)
    for layer, some in enumerate(slopes):
        here = graph.receiver_layers == layer
        found[:, here] = torch.einsum("xprd,xpsd->xrs", some, change)
    return found.cpu()


def _slopes(
    runs: EdgeRuns, judge: Judge, share: float
) -> list[Float[Tensor, "example pos receiver d_model"]]:
    """Derivatives of the metric by the input of every reader, layer by layer, logits last."""
    model, n_layer = runs.model, runs.model.config.n_layer
    seen: dict[str, Tensor] = {}
    names = [f"blocks.{layer}.{point}" for layer in range(n_layer) for point in (*NORMED, *READ)]
    names.append(f"blocks.{n_layer - 1}.hook_resid_post")
    theirs, ours = (runs.written(run, 0) for run in (runs.theirs_seen, runs.ours_seen))
    begun = (theirs + share * (ours - theirs)).requires_grad_()
    with model.hooks(fwd_hooks=[(name, _keep(seen)) for name in names]):
        last = model.backbone(
            begun, start_at_layer=0, attention_mask=given(runs.base.mask), use_cache=False
        ).last
    values = judge(last[:, runs.columns], 1)
    if not values.requires_grad:
        raise InputError(
            f"metric {judge.metric.name!r} has no derivative. Take logit_difference or another."
        )
    wanted = [f"blocks.{layer}.{point}" for layer in range(n_layer) for point in READ]
    found = torch.autograd.grad(
        values.sum(), [*(seen[name] for name in wanted), last], materialize_grads=True
    )
    slope = dict(zip(wanted, found, strict=False))
    slopes: list[Tensor] = []
    for layer, block in enumerate(model.blocks):
        q, k, v, mlp = (slope[f"blocks.{layer}.{point}"] for point in READ)
        weights = block.attn.W_Q, block.attn.W_K, block.attn.W_V
        heads = [
            torch.einsum("xphd,hmd->xphm", some, weight)
            for some, weight in zip((q, k, v), weights, strict=True)
        ]
        pre, mid = (seen[f"blocks.{layer}.{point}"].detach() for point in NORMED)
        slopes.append(
            torch.cat(
                [
                    before_norm(torch.cat(heads, 2), pre, block.ln1.w, block.ln1.eps),
                    before_norm(
                        (mlp @ block.mlp.W_in.T)[:, :, None], mid, block.ln2.w, block.ln2.eps
                    ),
                ],
                2,
            ).detach()
        )
    post, norm = seen[names[-1]].detach(), model.ln_final
    return [*slopes, before_norm(found[-1][:, :, None], post, norm.w, norm.eps).detach()]


def _keep(seen: dict[str, Tensor]) -> Callable[..., None]:
    def keep(value: Tensor, hook: Any) -> None:
        seen[hook.name] = value

    keep.only_reads = True  # pyright: ignore[reportFunctionMemberAccess]  # functions have it
    return keep
