# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Models with a head for sequence classification, token classification or question answering.

Submodules are named as in transformers' T5.
"""

import torch
from torch import nn
from torch.nn import functional as F
from transformers.modeling_outputs import (
    BaseModelOutput,
    Seq2SeqQuestionAnsweringModelOutput,
    Seq2SeqSequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.utils.generic import can_return_tuple

from .calls_t5_experimental import is_traced
from .configuration_t5_experimental import T5ExperimentalConfig
from .seq2seq_t5_experimental import (
    T5ExperimentalEncoderDecoder,
    T5ExperimentalEncoderModel,
    T5ExperimentalModel,
    intermediate_outputs,
)
from .stack_t5_experimental import T5ExperimentalPreTrainedModel


class T5ClassificationHead(nn.Module):
    """Two linear layers on one hidden state per example."""

    def __init__(self, config: T5ExperimentalConfig):
        super().__init__()
        self.dense = nn.Linear(config.d_model, config.d_model)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.out_proj = nn.Linear(config.d_model, config.num_labels or 2)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`(batch, d_model)` -> `(batch, num_labels)`."""
        return self.out_proj(self.dropout(torch.tanh(self.dense(self.dropout(hidden_states)))))


def classification_loss(logits: torch.Tensor, labels: torch.Tensor, config: T5ExperimentalConfig) -> torch.Tensor:
    """Loss of `logits` `(batch, num_labels)` for the config's `problem_type`.

    If it is not set: regression with one label, single-label classification with integer labels, else multi-label
    classification.
    """
    labels = labels.to(logits.device)
    problem_type = config.problem_type
    if problem_type is None:
        if config.num_labels == 1:
            problem_type = "regression"
        else:
            problem_type = "multi_label_classification" if labels.is_floating_point() else "single_label_classification"
    if problem_type == "regression":
        return F.mse_loss(logits.squeeze(-1), labels.to(logits.dtype).reshape(logits.squeeze(-1).shape))
    if problem_type == "multi_label_classification":
        return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
    return F.cross_entropy(logits, labels.flatten())


def _real_tokens(attention_mask: torch.Tensor | None) -> torch.Tensor | None:
    """Booleans `(batch, length)`, false at padding, from a 2-D mask; None without one."""
    return attention_mask != 0 if attention_mask is not None and attention_mask.ndim == 2 else None


class T5ExperimentalForSequenceClassification(T5ExperimentalPreTrainedModel):
    """Sequence classification or regression, from the decoder's state at the last end-of-sequence token."""

    def __init__(self, config: T5ExperimentalConfig):
        super().__init__(config)
        config = self.config
        self.transformer = T5ExperimentalModel(config)
        self.classification_head = T5ClassificationHead(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        encoder_outputs: BaseModelOutput | tuple | None = None,
        inputs_embeds: torch.Tensor | None = None,
        decoder_inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> Seq2SeqSequenceClassifierOutput:
        """Classifies; takes the arguments of [`T5ExperimentalModel.forward`]. If no decoder inputs are given, they are
        the inputs shifted right.

        Padding may be on either side if `attention_mask` marks it. Compiled models do not check for the
        end-of-sequence token.

        Args:
            input_ids: `(batch, source)`; also needed with `inputs_embeds`, to find the end-of-sequence token.
            labels: `(batch,)` class indices or regression targets, or `(batch, num_labels)` for multi-label
                classification.

        Raises:
            ValueError: `input_ids` is missing, or an example has no end-of-sequence token.
        """
        if input_ids is None:
            raise ValueError("Sequence classification reads the state at the end-of-sequence token: give `input_ids`.")
        real = _real_tokens(attention_mask)
        is_eos = torch.isin(input_ids, torch.as_tensor(self.config.eos_token_id, device=input_ids.device))
        if real is not None:
            is_eos = is_eos & real.to(is_eos.device)
        if not is_traced() and not bool(is_eos.any(-1).all()):
            missing = (~is_eos.any(-1)).nonzero().flatten().tolist()
            raise ValueError(
                "Every example must contain the end-of-sequence token, which T5's tokenizer appends: it is missing "
                f"from example {', '.join(map(str, missing))} of the batch."
            )
        if decoder_input_ids is None and decoder_inputs_embeds is None:
            decoder_input_ids, mask = self._decoder_inputs(input_ids, real)
            decoder_attention_mask = mask if decoder_attention_mask is None else decoder_attention_mask
        outputs = self.transformer(
            input_ids=input_ids if inputs_embeds is None else None,
            attention_mask=attention_mask,
            decoder_input_ids=decoder_input_ids,
            decoder_attention_mask=decoder_attention_mask,
            encoder_outputs=encoder_outputs,
            inputs_embeds=inputs_embeds,
            decoder_inputs_embeds=decoder_inputs_embeds,
            use_cache=False if use_cache is None else use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        last_eos = (is_eos * positions).argmax(-1)
        states = outputs.last_hidden_state
        rows = torch.arange(states.shape[0], device=states.device)
        logits = self.classification_head(states[rows, last_eos.to(states.device)])
        loss = None if labels is None else classification_loss(logits, labels, self.config)
        return Seq2SeqSequenceClassifierOutput(loss=loss, logits=logits, **intermediate_outputs(outputs))


class T5ExperimentalForTokenClassification(T5ExperimentalPreTrainedModel):
    """Token classification with the encoder alone."""

    _keys_to_ignore_on_load_unexpected = [r"decoder\.", r"^lm_head\."]

    def __init__(self, config: T5ExperimentalConfig):
        super().__init__(config)
        config = self.config
        self.num_labels = config.num_labels
        self.transformer = T5ExperimentalEncoderModel(config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(config.d_model, config.num_labels or 2)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> TokenClassifierOutput:
        """Classifies every token; for the other arguments see [`T5ExperimentalModel.forward`].

        Args:
            labels: `(batch, source)`, class indices, -100 where the loss ignores a token.
        """
        outputs = self.transformer(
            input_ids=input_ids,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        logits = self.classifier(self.dropout(outputs.last_hidden_state))
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits.flatten(0, 1), labels.to(logits.device).flatten())
        return TokenClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class T5ExperimentalForQuestionAnswering(T5ExperimentalEncoderDecoder):
    """Extractive question answering: start and end of the answer in the text, as in SQuAD."""

    def __init__(self, config: T5ExperimentalConfig):
        super().__init__(config)
        config = self.config
        self.num_labels = config.num_labels
        self.qa_outputs = nn.Linear(config.d_model, config.num_labels or 2)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        encoder_outputs: BaseModelOutput | tuple | None = None,
        start_positions: torch.Tensor | None = None,
        end_positions: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        decoder_inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> Seq2SeqQuestionAnsweringModelOutput:
        """Scores every position; for the other arguments see [`T5ExperimentalModel.forward`].

        If no decoder inputs are given, they are the inputs shifted right. Padding may be on either side if
        `attention_mask` marks it; positions count from the first column.

        Args:
            start_positions: `(batch,)`, index of the answer's first token; the loss ignores positions beyond the text.
            end_positions: `(batch,)`, index of the answer's last token.
        """
        if decoder_input_ids is None and decoder_inputs_embeds is None:
            if input_ids is None:
                raise ValueError("Give `input_ids`, or the decoder's `decoder_input_ids` or `decoder_inputs_embeds`.")
            decoder_input_ids, mask = self._decoder_inputs(input_ids, _real_tokens(attention_mask))
            decoder_attention_mask = mask if decoder_attention_mask is None else decoder_attention_mask
        outputs = super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            decoder_input_ids=decoder_input_ids,
            decoder_attention_mask=decoder_attention_mask,
            encoder_outputs=encoder_outputs,
            inputs_embeds=inputs_embeds,
            decoder_inputs_embeds=decoder_inputs_embeds,
            use_cache=False if use_cache is None else use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        start_logits, end_logits = (
            logits.contiguous() for logits in self.qa_outputs(outputs.last_hidden_state).unbind(-1)
        )
        loss = None
        if start_positions is not None and end_positions is not None:
            length = start_logits.shape[1]
            losses = [
                F.cross_entropy(logits, positions.to(logits.device).reshape(-1).clamp(0, length), ignore_index=length)
                for logits, positions in ((start_logits, start_positions), (end_logits, end_positions))
            ]
            loss = (losses[0] + losses[1]) / 2
        return Seq2SeqQuestionAnsweringModelOutput(
            loss=loss, start_logits=start_logits, end_logits=end_logits, **intermediate_outputs(outputs)
        )
