"""A model, the prompt it is looking at, what is changed in it, and what views point at."""

from typing import Any

import traitlets

from bloomlab.errors import InputError, ShapeError
from bloomlab.model.heads import BloomForCausalLM
from bloomlab.session.edits import Edits
from bloomlab.session.generation import Generated, generate
from bloomlab.session.questions import Questions
from bloomlab.session.run import Run, run_text
from bloomlab.session.selection import RUNS, Selection


class Session(Questions, traitlets.HasTraits):
    """What views look through: they share its prompt, its edits and its selection.

    A run is made when it is first asked for and kept until prompt, edits or `refresh` say
    otherwise; the edited run resumes from the clean one at the first edited layer.

    Attributes:
        prompt: the text; assign another, and all views follow.
        edits: what is changed while the model runs; assign others likewise.
        selection: what the views point at.
        generations: by name; a new prompt forgets them.

    Raises:
        InputError: not a BloomForCausalLM with a tokenizer.
    """

    prompt: Any = traitlets.TraitType("")
    edits: Any = traitlets.TraitType()
    generations = traitlets.Dict()
    version = traitlets.Int(0)  # of the runs; views watch it

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
        self._importance: Any = None
        self._stopped = ""  # why the last run was not made
        self._selection = Selection(model.config.n_layer, model.config.n_head)
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
    def selection(self) -> Selection:
        """What the views point at; `selection.set(layer=2, head=7)`."""
        return self._selection

    def __repr__(self) -> str:
        return f"Session({self.prompt!r:.60}, {self.edits!r}, {self.selection!r})"

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
        self._runs.clear()
        self._importance, self.generations = None, {}

    def refresh(self) -> None:
        """Forget all runs and generations, as after a change of the model's weights.

        Views ask again.
        """
        self._runs.clear()
        self._importance, self._stopped, self.generations = None, "", {}
        self.version += 1

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
        if which not in self._runs and self._stopped:
            raise InputError(self._stopped)
        try:
            if which not in self._runs and which == "clean":
                self._runs["clean"] = self.look(self.prompt)
            elif which not in self._runs:
                clean = self.run("clean")
                self._runs["edited"] = run_text(model, clean.ids, self.edits, clean)
        except KeyboardInterrupt:  # one is enough, however many views ask
            self._stopped = (
                "the run was interrupted: change prompt or edits, or call session.refresh()"
            )
            raise
        return self._runs[which]

    @traitlets.observe("prompt")
    def _on_prompt(self, _change: object) -> None:
        self.selection.set(query=-1, key=-1, step=-1)  # columns of another text
        self.refresh()

    @traitlets.validate("prompt")
    def _checked_prompt(self, proposal: Any) -> str:
        if not isinstance(proposal["value"], str):
            raise InputError(f"a Session looks at one text, got {proposal['value']!r:.80}.")
        return proposal["value"]

    @traitlets.validate("edits")
    def _checked(self, proposal: Any) -> Edits:
        edits, shape = proposal["value"], self._model_shape
        if not isinstance(edits, Edits):
            raise InputError(
                f"edits are {type(edits).__name__}, expected Edits: session.edits.with_mask(mask), "
                ".with_heads(...), .with_slope(...)."
            )
        if edits.scale.shape != shape:
            raise ShapeError("edits", got=edits.scale.shape, expected=str(shape))
        return edits

    @traitlets.observe("edits")
    def _on_edits(self, _change: object) -> None:
        self._runs.pop("edited", None)
        self._stopped = ""

    # -- generations -------------------------------------------------------------------------------

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
