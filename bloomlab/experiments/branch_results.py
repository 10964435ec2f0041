"""What the branches of a generation said, and where they part."""

from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bloomlab.errors import UnknownNameError
from bloomlab.experiments.framed import Framed
from bloomlab.experiments.readings import Readings
from bloomlab.model.cache import KVCache


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Branches(Framed):
    """Branches of one generation; made by `compare_branches`.

    Attributes:
        names: of the branches, in order of the first axis below.
        reference: name of the one that others are compared with.
        prompt: ids, padding included.
        attention_mask: False for padding.
        from_step: first step at which branches differ.
        tokens: what each said, from step 0 on; the padding token after a row's end.
        counts: False after a row's end.
        texts: what each row spells, without the prompt; empty without a tokenizer.
        kl: divergence of the model's prediction from the reference's, KL(reference || branch) in
            nats, at the steps from `from_step` on, before processors and temperature. Once the
            tokens differ it is that of two texts. NaN after the end of either row.
        readings: read-outs at every token, by branch; empty if none were asked for.
        cache: what the branches have in common, without its last token; None where that is none.
    """

    names: tuple[str, ...]
    reference: str
    prompt: Int[Tensor, "batch pos"]
    attention_mask: Bool[Tensor, "batch pos"]
    from_step: int
    tokens: Int[Tensor, "branch batch new"]
    counts: Bool[Tensor, "branch batch new"]
    texts: dict[str, list[str]]
    kl: Float[Tensor, "branch batch step"]
    readings: dict[str, Readings]
    cache: KVCache | None

    def tokens_of(self, name: str) -> Int[Tensor, "batch new"]:
        """The generated tokens of a branch.

        Raises:
            UnknownNameError: no such branch.
        """
        return self.tokens[self._index(name)]

    @property
    def first_difference(self) -> Int[Tensor, "branch batch"]:
        """First step whose token is not the reference's; -1 where the texts are the same.

        A row that ended counts as differing from one that goes on.
        """
        ours = self.tokens.masked_fill(~self.counts, -1)
        differs = ours != ours[self._index(self.reference)]
        return torch.where(differs.any(-1), differs.int().argmax(-1), -1)

    @property
    def frame(self) -> pd.DataFrame:
        """One row a branch, row of text and step: branch, row, step, token, same, kl.

        `same`: whether the reference has this token at this step. `kl` is NaN at the steps in
        common.
        """
        n_branch, n_row, n_new = self.tokens.shape
        tokens, counts = self.tokens.cpu(), self.counts.cpu()
        place = self._index(self.reference)
        same = (tokens == tokens[place]) & (counts == counts[place])
        kl = torch.full(self.tokens.shape, torch.nan, dtype=self.kl.dtype)
        kl[:, :, self.from_step :] = self.kl.cpu()
        axes = torch.meshgrid(*(torch.arange(n) for n in (n_branch, n_row, n_new)), indexing="ij")
        branch, row, step = (axis[counts].numpy() for axis in axes)
        return pd.DataFrame(
            {
                "branch": [self.names[i] for i in branch],
                "row": row,
                "step": step,
                "token": tokens[counts].numpy(),
                "same": same[counts].numpy(),
                "kl": kl[counts].numpy(),
            }
        )

    def _index(self, name: str) -> int:
        if name not in self.names:
            raise UnknownNameError("branch", name, self.names)
        return self.names.index(name)
