"""A model, the prompt it is looking at, what is changed in it, and what views point at."""

from typing import Any

import numpy as np
import traitlets
from jaxtyping import Float

from bloomlab.errors import InputError, ShapeError, UnknownNameError
from bloomlab.experiments.head_ablation import ablate_heads
from bloomlab.experiments.head_search import prune_order
from bloomlab.model.heads import BloomForCausalLM
from bloomlab.model.inflate import whole
from bloomlab.session.edits import Edits
from bloomlab.session.generation import Generated, generate
from bloomlab.session.matching import common_places, likeliest_of_two
from bloomlab.session.readings import (
    Stream,
    next_difference,
    read_contributions,
    read_lens,
    read_stream,
)
from bloomlab.session.run import Run, difference_tiles, run_text
from bloomlab.session.selection import Selection

RUNS = ("edited", "clean")
DIFFERENCE = "difference"
FLOWS = ("head", "value", "mean", "rollout")


class Session(traitlets.HasTraits):
    """What views look through: they share its prompt, its edits and its selection.

    A run is made when it is first asked for and kept until prompt, edits or `refresh` say
    otherwise; the edited run resumes from the clean one at the first edited layer.

    Attributes:
        prompt: the text; assign another, and all views follow.
        edits: what is changed while the model runs; assign others likewise.
        selection: what the views point at.

    Raises:
        InputError: not a BloomForCausalLM with a tokenizer.
    """

    prompt = traitlets.Unicode()
    edits = traitlets.Instance(Edits)
    generations = traitlets.Dict()

    def __init__(self, model: Any, prompt: str = "") -> None:
        if not isinstance(model, BloomForCausalLM) or model.tokenizer is None:
            raise InputError(
                f"a Session needs a BloomForCausalLM with its tokenizer, as bl.load gives it; got "
                f"{type(model).__name__}."
            )
        if not isinstance(prompt, str):
            raise InputError(f"a Session looks at one text, got {prompt!r:.80}.")
        self._model: Any = model
        self._runs: dict[str, Run] = {}
        self.selection = Selection()
        self._model_shape = model.config.n_layer, model.config.n_head
        none = Edits.none(*self._model_shape)
        super().__init__(prompt=prompt, edits=none)

    @property
    def model(self) -> Any:
        """The model.

        Raises:
            InputError: the session was closed.
        """
        if self._model is None:
            raise InputError("this session is closed: its model was let go. Make another Session.")
        return self._model

    @property
    def n_layer(self) -> int:
        """Number of layers."""
        return len(self.edits.scale)

    @property
    def n_head(self) -> int:
        """Number of heads in a layer, pruned ones counted."""
        return self.edits.scale.shape[1]

    def kept(self, layer: int) -> list[int]:
        """Numbers of a layer's heads."""
        return list(self.model.blocks[layer].attn.heads)

    def close(self) -> None:
        """Let go of the model and of all runs; views keep what they show."""
        self._model = None
        self.refresh()

    def refresh(self) -> None:
        """Forget all runs, as after a change of the model's weights."""
        self._runs.clear()
        self.generations = {}

    # -- runs --------------------------------------------------------------------------------------

    def look(self, prompt: str, edits: Edits | None = None) -> Run:
        """A run of any text; the session's own prompt and edits stay.

        Raises:
            InputError: an empty text, or one that is too long for the memory.
        """
        if not isinstance(prompt, str):
            raise InputError(f"a Session looks at one text, got {prompt!r:.80}.")
        ids = self.model.to_tokens(prompt)
        none = Edits.none(self.n_layer, self.n_head)
        clean = run_text(self.model, ids, none)
        return clean if edits is None else run_text(self.model, ids, edits, clean)

    def run(self, which: str = "edited") -> Run:
        """The "edited" or the "clean" run of the prompt.

        Raises:
            InputError: no such run, an empty prompt, or one that is too long for the memory.
        """
        if which not in RUNS:
            raise InputError(f"a run is {which!r}, expected one of {RUNS}.")
        model = self.model
        if which not in self._runs:
            if which == "clean":
                self._runs["clean"] = self.look(self.prompt)
            else:
                clean = self.run("clean")
                self._runs["edited"] = run_text(model, clean.ids, self.edits, clean)
        return self._runs[which]

    @traitlets.observe("prompt")
    def _on_prompt(self, _change: object) -> None:
        self.refresh()

    @traitlets.validate("edits")
    def _checked(self, proposal: Any) -> Edits:
        shape = self._model_shape
        if proposal["value"].scale.shape != shape:
            raise ShapeError("edits", got=proposal["value"].scale.shape, expected=str(shape))
        return proposal["value"]

    @traitlets.observe("edits")
    def _on_edits(self, _change: object) -> None:
        self._runs.pop("edited", None)

    # -- questions ---------------------------------------------------------------------------------

    def attention(
        self, mode: str, layer: int, head: int, *, which: str = "edited", queries: Any = None
    ) -> Float[np.ndarray, "query key"]:
        """A quantity of one head, see `Attention.heads`; or "difference": edited minus clean."""
        if mode == DIFFERENCE:
            edited, clean = (self.run(run).pattern(layer, head, queries) for run in RUNS)
            return edited - clean
        return self.run(which).pattern(layer, head, queries, quantity=mode)

    def tiles(
        self, mode: str, layer: int, size: int, *, which: str = "edited"
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pooled attention of a layer's heads, see `Attention.tiles`; "difference" as above.

        A cell of a difference is the one farthest from 0.
        """
        if mode != DIFFERENCE:
            return self.run(which).tiles(layer, size, quantity=mode)
        edited, clean = (self.run(run) for run in RUNS)
        return difference_tiles(edited, clean, layer, size)

    def flow(
        self, flow: str, layer: int, head: int, *, which: str = "edited"
    ) -> Float[np.ndarray, "query key"]:
        """Weights between tokens by one of FLOWS, 0 ... 1 (but "value" in norms).

        "head", "value": of one head; "mean": of its layer; "rollout": of all layers up to it.

        Raises:
            UnknownNameError: no such flow.
            InputError: no such layer or head.
        """
        run = self.run(which)
        run.require(layer)
        if flow not in FLOWS:
            raise UnknownNameError("flow of attention", flow, FLOWS)
        if flow in ("head", "value"):
            return run.pattern(layer, head, quantity="value" if flow == "value" else "pattern")
        found = run.attention.mean(layer) if flow == "mean" else run.attention.rollout(layer)
        return found.cpu().numpy()

    def slope(self, layer: int, head: int) -> float:
        """The edited slope of a head, logits per token.

        Raises:
            InputError: no such head, or one that was pruned.
        """
        self.edits.require(layer, head)
        attn = self.model.blocks[layer].attn
        own = attn.slopes[attn.index([head])]
        return float(self.edits.slopes_of(layer, own, [head])[0])

    def next_of_two(
        self, first: Run, second: Run, k: int = 8
    ) -> tuple[list[str], list[float], list[float]]:
        """Labels of the likeliest next tokens of two runs, maybe of two models, and probabilities.

        See `matching.likeliest_of_two`.
        """
        return likeliest_of_two(first, second, k)

    def aligned(self, first: Run, second: Run) -> list[tuple[int, int]]:
        """Places of the tokens that two runs have in common, in order: edit-distance alignment."""
        return common_places(first.tokens, second.tokens)

    def next_tokens(self, k: int = 10, position: int = -1) -> dict[str, Any]:
        """The next token before and after the edits; see `readings.next_difference`."""
        return next_difference(self.run("clean"), self.run("edited"), k, position)

    def importance(self) -> Float[np.ndarray, "layer head"]:
        """What the next-token prediction loses without each head, KL in nats; NaN if pruned."""
        ids, heads = self.run("clean").ids, self._heads()
        found = ablate_heads(self._swept(), ids, "kl", heads=heads, positions=-1, progress=False)
        return found.matrix.float().numpy()

    def least_harm(self, limit: float) -> list[tuple[int, int]]:
        """Heads that greedy search removes, the least harmful first, while KL stays within a limit.

        KL of the intact model's next-token prediction from the pruned one's, in nats.
        """
        ids = self.run("clean").ids
        order = prune_order(
            self._swept(), ids, search="iterative", metric="kl", positions=-1, progress=False
        )
        sizes = np.asarray(order.metrics)
        within = np.flatnonzero(sizes <= limit)
        removed = order.heads[: int(within.max()) + 1] if len(within) else ()
        there = set(self._heads())
        return [head for head in removed if head in there]

    def lens(self, positions: Any, *, which: str = "edited", k: int = 5, chosen: Any = ()) -> Any:
        """Logit lens at some positions; see `readings.read_lens`."""
        return read_lens(self.run(which), positions, k=k, chosen=chosen)

    def stream(self, which: str = "edited") -> Stream:
        """Norms, cosines and principal components of the residual stream."""
        return read_stream(self.run(which))

    def contributions(
        self, position: int = -1, *, which: str = "edited", answer: Any = None
    ) -> Any:
        """What each component adds to a logit; see `readings.read_contributions`."""
        return read_contributions(self.run(which), position, answer)

    def generate(self, name: str = "main", **options: Any) -> Generated:
        """Generate from the prompt under the edits, as a new branch; see `generation.generate`."""
        return self._generate(name, **options)

    def branch(self, parent: str, step: int, token: int | None = None, **options: Any) -> Generated:
        """Go on from a step of a branch with another token, or with the edits in force now.

        Raises:
            InputError: no such branch or step.
        """
        if parent not in self.generations:
            raise InputError(f"no branch {parent!r}; there are {list(self.generations)}.")
        numbers = range(1, len(self.generations) + 2)
        name = next(f"branch {i}" for i in numbers if f"branch {i}" not in self.generations)
        return self._generate(
            name,
            parent=self.generations[parent],
            since=step,
            token=token,
            **options,
        )

    def _heads(self) -> list[tuple[int, int]]:
        return [(layer, head) for layer in range(self.n_layer) for head in self.kept(layer)]

    def _swept(self) -> Any:
        """The model with all heads, pruned ones zero: sweeps need a whole one."""
        return self.model if self.model.config.kept_heads is None else whole(self.model)

    def _generate(self, name: str, **options: Any) -> Generated:
        run = self.run("clean")
        made = generate(
            self.model,
            run.ids,
            name=name,
            edits=self.edits,
            means=run.means,
            first=lambda: self.run("edited").last_rows(),
            **options,
        )
        self.generations = {**self.generations, made.name: made}
        return made
