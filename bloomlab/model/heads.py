"""The four BLOOMs with a head: language model, sequence, token and span classification."""

import logging
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from bloomlab.errors import InputError
from bloomlab.model.bloom import BloomModel, Inputs
from bloomlab.model.embed import Unembed
from bloomlab.model.generate import Generation
from bloomlab.model.losses import (
    IGNORED,
    as_numbers,
    check_labels,
    check_shape,
    kept,
    next_token_loss,
    span_loss,
)
from bloomlab.model.outputs import (
    CausalLMOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutputWithPast,
    TokenClassifierOutput,
)

log = logging.getLogger("bloomlab")


class BloomForCausalLM(Generation):
    """A BLOOM that predicts the next token; the unembedding is tied to the embedding."""

    hf_class = "BloomForCausalLM"
    accepts_loss_kwargs = True
    loss_type = "ForCausalLM"  # tells transformers' Trainer which labels count

    def build_head(self) -> None:
        """Add the unembedding."""
        self.unembed = Unembed(self.embed, tied=self.config.tie_word_embeddings)

    def init_weights(self, modules: Any = None) -> None:
        """Draw weights from N(0, initializer_range), biases 0; of all modules, or of some."""
        super().init_weights(modules)
        if self.unembed.weight is not None and (modules is None or self.unembed in modules):
            nn.init.normal_(self.unembed.weight, 0.0, self.config.initializer_range)

    @property
    def W_U(self) -> Float[Tensor, "d_model vocab"]:
        """Unembedding weights: a view of the parameter."""
        return self.unembed.W_U

    @property
    def b_U(self) -> Float[Tensor, " vocab"]:
        """Zeros: BLOOM's unembedding has no bias."""
        return self.unembed.b_U

    def get_output_embeddings(self) -> nn.Module:
        """The unembedding."""
        return self.unembed

    def forward(
        self,
        input_ids: Inputs | None = None,
        *,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: Tensor | int | None = None,
        return_dict: bool | None = None,
        return_type: str | None = None,
        **arguments: Any,
    ) -> Any:
        """Next-token logits [batch pos vocab], and the loss in nats if there are labels.

        Takes the arguments of `BloomModel.backbone` too.

        Args:
            input_ids: token ids [batch pos], or text.
            labels: [batch pos], usually the ids themselves (shifted inside); -100 is ignored.
            logits_to_keep: the last n positions only (0: all), or the positions to keep.
            num_items_in_batch: divide the summed loss by this instead of by the labels' number.
            return_dict: False returns a tuple.
            return_type: "logits", "loss" (of the input itself without `labels`) or "both": bare
                tensors, as in TransformerLens.
            **arguments: see `BloomModel.backbone`.
        """
        if labels is None and return_type in ("loss", "both"):
            labels, arguments = self._own_labels(input_ids, arguments)
            input_ids = arguments.pop("input_ids")
        back = self.backbone(input_ids, return_type=return_type, **arguments)
        if back.stopped:
            return back.last
        logits = self.unembed(kept(back.last, logits_to_keep))
        loss = None
        if labels is not None:
            loss = next_token_loss(logits, labels, num_items=num_items_in_batch)
        output = CausalLMOutput(loss=loss, logits=logits, **back.fields())
        return self.deliver(output, logits, return_dict=return_dict, return_type=return_type)

    def _own_labels(self, inputs: Any, arguments: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        mask = arguments.get("attention_mask")
        if isinstance(inputs, str | list | tuple):
            inputs, own = self.to_tokens_and_mask(inputs)
            mask = own if mask is None else mask
        if not isinstance(inputs, Tensor) or inputs.is_floating_point():
            raise InputError("return_type='loss' needs labels when the input is not token ids.")
        hidden = torch.zeros_like(inputs, dtype=torch.bool)
        if mask is not None:
            hidden = torch.as_tensor(mask, device=inputs.device)[:, -inputs.shape[1] :] == 0
            hidden[:, 1:] |= hidden[:, :-1].clone()  # padding predicts nothing either
        arguments = {**arguments, "input_ids": inputs, "attention_mask": mask}
        return inputs.masked_fill(hidden, IGNORED), arguments


class BloomForSequenceClassification(BloomModel):
    """A BLOOM that labels a text, read off its last token that is no padding."""

    hf_class = "BloomForSequenceClassification"

    def build_head(self) -> None:
        """Add the classifier."""
        self.score = nn.Linear(self.config.hidden_size, self.config.n_label, bias=False)

    def forward(
        self,
        input_ids: Inputs | None = None,
        *,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
        return_type: str | None = None,
        **arguments: Any,
    ) -> Any:
        """Logits [batch num_labels] of each text, and the loss if there are labels.

        Takes the arguments of `BloomModel.backbone` too. The last token is the rightmost one that
        is not `config.pad_token_id`; with `inputs_embeds`, simply the last.

        Args:
            input_ids: token ids [batch pos], or text.
            labels: [batch] (classes, or numbers if num_labels is 1) or [batch num_labels].
            return_dict: False returns a tuple.
            return_type: "logits", "loss" or "both" return bare tensors.
            **arguments: see `BloomModel.backbone`.
        """
        if isinstance(input_ids, str | list | tuple):
            input_ids, mask = self.to_tokens_and_mask(input_ids)
            arguments = {"attention_mask": mask, **arguments}
        back = self.backbone(input_ids, return_type=return_type, **arguments)
        if back.stopped:
            return back.last
        rows = torch.arange(len(back.last), device=back.last.device)
        logits = self.score(back.last)[rows, self._last_token(input_ids, len(rows))]
        loss = None if labels is None else self._loss(logits, labels)
        output = SequenceClassifierOutputWithPast(loss=loss, logits=logits, **back.fields())
        return self.deliver(output, logits, return_dict=return_dict, return_type=return_type)

    def _last_token(self, ids: Any, batch: int) -> Tensor | int:
        pad = self.config.pad_token_id
        if pad is None and batch != 1:
            raise InputError(
                f"{batch} texts, but config.pad_token_id is None: which token is each text's last "
                "cannot be told. Set config.pad_token_id (3 in BLOOM's tokenizers)."
            )
        if pad is None:
            return -1
        if not isinstance(ids, Tensor) or ids.is_floating_point():
            log.warning("padding cannot be seen in inputs_embeds; using the last position.")
            return -1
        columns = torch.arange(ids.shape[-1], device=ids.device)
        return (columns * (ids != pad)).argmax(-1)

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        kind = self.config.problem_type
        if kind is None:  # told from the labels each time; transformers writes it into the config
            integer = not labels.is_floating_point() and labels.dtype != torch.bool
            kind = "single_label_classification" if integer else "multi_label_classification"
            kind = "regression" if self.config.num_labels == 1 else kind
        if kind == "regression":
            return F.mse_loss(logits.squeeze(), as_numbers(labels, logits).squeeze())
        if kind == "single_label_classification":
            check_shape(labels, logits.shape[:1], "[batch]")
            check_labels(labels, self.config.n_label)
            return F.cross_entropy(logits.view(-1, self.config.n_label), labels.view(-1))
        return F.binary_cross_entropy_with_logits(logits, as_numbers(labels, logits))


class BloomForTokenClassification(BloomModel):
    """A BLOOM that labels every token."""

    hf_class = "BloomForTokenClassification"

    def build_head(self) -> None:
        """Add dropout and classifier."""
        rates = (getattr(self.config, "classifier_dropout", None), self.config.hidden_dropout)
        self.dropout = nn.Dropout(next((rate for rate in rates if rate is not None), 0.1))
        self.classifier = nn.Linear(self.config.hidden_size, self.config.n_label)

    def forward(
        self,
        input_ids: Inputs | None = None,
        *,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
        return_type: str | None = None,
        **arguments: Any,
    ) -> Any:
        """Logits [batch pos num_labels] of each token, and the loss in nats if there are labels.

        Takes the arguments of `BloomModel.backbone` too.

        Args:
            input_ids: token ids [batch pos], or text.
            labels: [batch pos]; -100 is ignored (the attention mask does not matter here).
            return_dict: False returns a tuple.
            return_type: "logits", "loss" or "both" return bare tensors.
            **arguments: see `BloomModel.backbone`.
        """
        back = self.backbone(input_ids, return_type=return_type, **arguments)
        if back.stopped:
            return back.last
        logits = self.classifier(self.dropout(back.last))
        loss = None
        if labels is not None:
            check_shape(labels, logits.shape[:2], "[batch pos]")
            check_labels(labels, self.config.n_label)
            loss = F.cross_entropy(logits.flatten(0, 1), labels.to(logits.device).flatten())
        output = TokenClassifierOutput(loss=loss, logits=logits, **back.fields(past=False))
        return self.deliver(output, logits, return_dict=return_dict, return_type=return_type)


class BloomForQuestionAnswering(BloomModel):
    """A BLOOM that marks where an answer starts and ends."""

    hf_class = "BloomForQuestionAnswering"

    def build_head(self) -> None:
        """Add the span classifier."""
        self.qa_outputs = nn.Linear(self.config.hidden_size, 2)

    def forward(
        self,
        input_ids: Inputs | None = None,
        *,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        return_dict: bool | None = None,
        return_type: str | None = None,
        **arguments: Any,
    ) -> Any:
        """Logits [batch pos] of the answer's start and of its end, and the loss if both are given.

        Takes the arguments of `BloomModel.backbone` too.

        Args:
            input_ids: token ids [batch pos], or text.
            start_positions: [batch]; a position outside the text is ignored.
            end_positions: [batch]; a position outside the text is ignored.
            return_dict: False returns a tuple.
            return_type: "logits" returns both as [batch pos 2]; "loss" and "both" as elsewhere.
            **arguments: see `BloomModel.backbone`.
        """
        back = self.backbone(input_ids, return_type=return_type, **arguments)
        if back.stopped:
            return back.last
        both = self.qa_outputs(back.last)
        start, end = (logits.contiguous() for logits in both.unbind(-1))
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = (span_loss(start, start_positions) + span_loss(end, end_positions)) / 2
        output = QuestionAnsweringModelOutput(
            loss=loss, start_logits=start, end_logits=end, **back.fields(past=False)
        )
        return self.deliver(output, both, return_dict=return_dict, return_type=return_type)
