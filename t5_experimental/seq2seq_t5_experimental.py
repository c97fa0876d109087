# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""The bare model, the model for conditional generation, and the encoder alone.

These classes are the same for all families; modeling_t5_experimental.py derives the named ones. Submodules are named as
in transformers' T5.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import GenerationMixin
from transformers.cache_utils import Cache, EncoderDecoderCache
from transformers.modeling_outputs import (
    BaseModelOutput,
    Seq2SeqLMOutput,
    Seq2SeqModelOutput,
)
from transformers.utils.generic import can_return_tuple

from .cache_t5_experimental import growing
from .calls_t5_experimental import is_bare_linear
from .configuration_t5_experimental import T5ExperimentalConfig
from .decoding_t5_experimental import decoding_session, next_token_logits
from .loss_t5_experimental import IGNORE_INDEX, chunked_token_losses, cross_entropy_loss, mean_of_counted
from .stack_t5_experimental import T5ExperimentalPreTrainedModel, T5Stack, require_one
from .unpadding_t5_experimental import positions_up_to_labels


class T5ExperimentalEncoderDecoder(T5ExperimentalPreTrainedModel):
    """Encoder and decoder with a shared embedding; base of the models below and of question answering."""

    _input_embed_layer = "shared"
    _shared_embeddings = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
    _tied_weights_keys = dict.fromkeys(_shared_embeddings, "shared.weight")
    # Other arguments that give decoder inputs, for a message.
    _alternatives_to_decoder_inputs = ""
    # Old transformers releases saved this bias, which T5 does not have.
    _keys_to_ignore_on_load_unexpected = [
        r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight"
    ]

    def __init__(self, config: T5ExperimentalConfig):
        super().__init__(config)
        config = self.config
        self.shared = nn.Embedding(config.vocab_size, config.d_model)
        self.encoder = T5Stack(config, "encoder")
        self.decoder = T5Stack(config, "decoder")

    @property
    def dummy_inputs(self) -> dict[str, torch.Tensor]:
        """Arguments of a call, for programs that only want to see one."""
        ids = super().dummy_inputs["input_ids"]
        return {"input_ids": ids, "decoder_input_ids": ids, "decoder_attention_mask": torch.ones_like(ids)}

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        encoder_outputs: BaseModelOutput | tuple | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        decoder_inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        segment_ids: torch.Tensor | None = None,
        decoder_segment_ids: torch.Tensor | None = None,
        needed: torch.Tensor | None = None,
    ) -> Seq2SeqModelOutput:
        """Encodes and decodes.

        If the encoder's inputs have enough padding, the encoder unpads them, and `encoder_last_hidden_state` is 0 at
        padding. It computes padding if it is called alone, or with `output_attentions` or `output_hidden_states`.

        Args:
            input_ids: `(batch, source)`; or `inputs_embeds` `(batch, source, d_model)`, or `encoder_outputs`.
            attention_mask: `(batch, source)`, 0 at padding.
            decoder_input_ids: `(batch, target)`; or `decoder_inputs_embeds` `(batch, target, d_model)`.
            decoder_attention_mask: `(batch, target)`, 0 at padding; with a cache, past positions come first.
            encoder_outputs: earlier output of the encoder, which then does not run.
            past_key_values: cache of earlier positions.
            use_cache: return a cache; the config's `use_cache` unless given.
            output_attentions: return softmax weights of all attentions.
            output_hidden_states: return hidden states of all layers.
            segment_ids: `(batch, source)`, packed examples: 1, 2, … in the order of the examples, 0 at padding. All
                three attentions attend only to positions with the same id.
            decoder_segment_ids: `(batch, target)`, the same for the decoder.
            needed: `(batch, target)`, false after the last position of a row that the caller reads; the output may be 0
                there.

        Raises:
            ValueError: a stack gets both or neither of ids and embeddings, or masks or segment ids have wrong shapes.
        """
        if (segment_ids is None) != (decoder_segment_ids is None):
            raise ValueError(
                "Packed batches need both `segment_ids` and `decoder_segment_ids`: give both, which encoder-decoder "
                "attention compares."
            )
        if encoder_outputs is None and attention_mask is not None and attention_mask.shape[1:-1].numel() > 1:
            raise ValueError(
                "An attention mask with a query axis fits the encoder alone: pass `segment_ids` for packed "
                "examples, or run the encoder first and give `encoder_outputs` and a 2-D mask."
            )
        if encoder_outputs is None:
            require_one(input_ids, inputs_embeds, "", "encoder", "`encoder_outputs` or ")
        require_one(
            decoder_input_ids, decoder_inputs_embeds, "decoder_", "decoder", self._alternatives_to_decoder_inputs
        )
        encoded: BaseModelOutput
        if encoder_outputs is None:
            encoded = self.encoder(
                input_ids=input_ids,
                attention_mask=attention_mask,
                inputs_embeds=inputs_embeds,
                output_attentions=output_attentions,
                output_hidden_states=output_hidden_states,
                segment_ids=segment_ids,
                skip_padding=True,
                return_dict=True,
            )
        elif isinstance(encoder_outputs, BaseModelOutput):
            encoded = encoder_outputs
        else:
            encoded = BaseModelOutput(*encoder_outputs)
        decoder_outputs = self.decoder(
            input_ids=decoder_input_ids,
            attention_mask=decoder_attention_mask,
            encoder_hidden_states=encoded.last_hidden_state,
            encoder_attention_mask=attention_mask,
            inputs_embeds=decoder_inputs_embeds,
            past_key_values=past_key_values,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            segment_ids=decoder_segment_ids,
            encoder_segment_ids=segment_ids,
            skip_padding=True,
            needed=needed,
            return_dict=True,
        )
        return Seq2SeqModelOutput(
            last_hidden_state=decoder_outputs.last_hidden_state,
            past_key_values=decoder_outputs.past_key_values,
            decoder_hidden_states=decoder_outputs.hidden_states,
            decoder_attentions=decoder_outputs.attentions,
            cross_attentions=decoder_outputs.cross_attentions,
            encoder_last_hidden_state=encoded.last_hidden_state,
            encoder_hidden_states=encoded.hidden_states,
            encoder_attentions=encoded.attentions,
        )


def intermediate_outputs(outputs: Seq2SeqModelOutput) -> dict[str, Any]:
    """A bare model's outputs except the last hidden state, for the output of a head on top of it."""
    return {name: value for name, value in outputs.items() if name != "last_hidden_state"}


class T5ExperimentalModel(T5ExperimentalEncoderDecoder):
    """Encoder and decoder without a head."""

    def __init__(self, config: T5ExperimentalConfig):
        super().__init__(config)
        self.post_init()


class T5ExperimentalForConditionalGeneration(T5ExperimentalEncoderDecoder, GenerationMixin):
    """Encoder and decoder with a language modeling head, whose weight is tied to the embedding only if configured."""

    _tied_weights_keys = {**T5ExperimentalEncoderDecoder._tied_weights_keys, "lm_head.weight": "shared.weight"}
    _alternatives_to_decoder_inputs = "`labels` or "
    # The loss is divided by the trainer's count of target tokens when it passes one.
    accepts_loss_kwargs = True
    # Largest decoder, in bytes, whose weights `generate` copies for a faster kernel on a CPU.
    packed_decoder_limit = 4 * 2**30
    # "int8": `generate` rounds weights to 8 bits, see `decoding_session`.
    decoding_weights: str | None = None

    def __init__(self, config: T5ExperimentalConfig):
        super().__init__(config)
        self.lm_head = nn.Linear(self.config.d_model, self.config.vocab_size, bias=False)
        self.post_init()

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict[str, str]:
        tied = super().get_expanded_tied_weights_keys(all_submodels=all_submodels)
        if not self.config.tie_word_embeddings:
            tied.pop("lm_head.weight", None)
        return tied

    def tie_weights(self, missing_keys: set[str] | None = None, recompute_mapping: bool = True) -> None:
        """As in transformers. The classifier of a stock T5 that is not stored is the embedding, if its configuration
        does not say otherwise: transformers 5 saves a tied classifier once. A model without a head has none to save."""
        classes = self.config.architectures or [type(self).__name__]
        is_unsaid = getattr(self.config, "_classifier_is_unsaid", False)
        is_missing = missing_keys is not None and "lm_head.weight" in missing_keys
        if is_unsaid and is_missing and any(name.endswith("ForConditionalGeneration") for name in classes):
            self.config.tie_word_embeddings = True
            self.all_tied_weights_keys = {**self.all_tied_weights_keys, "lm_head.weight": "shared.weight"}
        super().tie_weights(missing_keys=missing_keys, recompute_mapping=recompute_mapping)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        encoder_outputs: BaseModelOutput | tuple | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        decoder_inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        segment_ids: torch.Tensor | None = None,
        decoder_segment_ids: torch.Tensor | None = None,
        num_items_in_batch: int | torch.Tensor | None = None,
        z_loss: float = 0.0,
        smoothing: float = 0.0,
        skip_logits: bool = False,
    ) -> Seq2SeqLMOutput:
        """Predicts target tokens; takes the arguments of [`T5ExperimentalModel.forward`], and

        Args:
            labels: `(batch, target)`, ids to predict, -100 where the loss ignores a position. If no decoder inputs are
                given, they are the labels shifted right.
            num_items_in_batch: divisor of the loss, instead of the number of labels, see [`cross_entropy_loss`]. The
                original's loss is [`original_loss`] of the logits, or `num_items_in_batch=labels.numel()` here.
            z_loss: weight of the squared log-normalizer, see [`token_losses`].
            smoothing: `label_smoothing` of [`token_losses`]. Not named so because `Trainer` takes every argument with
                "label" in its name for labels.
            skip_logits: return the loss alone, computed in chunks of a few hundred tokens to save the memory of the
                logits; the decoder skips positions after the last label of a row. All logits exist at once if `lm_head`
                has hooks or is not a plain linear layer (adapters), or if a mode such as `FlopCounterMode` is active.

        Raises:
            ValueError: `skip_logits` without `labels`.
        """
        if skip_logits and labels is None:
            raise ValueError("`skip_logits` returns only the loss, which needs `labels`: give `labels`, or drop it.")
        if labels is not None:
            if use_cache is None:
                use_cache = False
            if decoder_input_ids is None and decoder_inputs_embeds is None:
                if decoder_segment_ids is not None or decoder_attention_mask is not None:
                    decoder_input_ids = self._shift_right(labels, decoder_segment_ids)
                else:  # a collator may pad on the left
                    begun = (labels != IGNORE_INDEX).cumsum(-1) > 0
                    decoder_input_ids, decoder_attention_mask = self._decoder_inputs(labels, begun)
        others = (input_ids, inputs_embeds, decoder_inputs_embeds, labels, segment_ids, decoder_segment_ids)
        config = self.config
        wants_more = (
            output_attentions or output_hidden_states or config.output_attentions or config.output_hidden_states
        )
        is_step = use_cache is not False and not wants_more and all(other is None for other in others)
        if is_step and not torch.compiler.is_compiling():
            next_logits = next_token_logits(
                self, decoder_input_ids, past_key_values, attention_mask, decoder_attention_mask
            )
            if next_logits is not None:
                return Seq2SeqLMOutput(
                    logits=next_logits,
                    past_key_values=past_key_values,  # type: ignore[arg-type]
                    encoder_last_hidden_state=None if encoder_outputs is None else encoder_outputs[0],
                )
        outputs = super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            decoder_input_ids=decoder_input_ids,
            decoder_attention_mask=decoder_attention_mask,
            encoder_outputs=encoder_outputs,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            decoder_inputs_embeds=decoder_inputs_embeds,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            segment_ids=segment_ids,
            decoder_segment_ids=decoder_segment_ids,
            needed=positions_up_to_labels(labels, IGNORE_INDEX) if labels is not None and skip_logits else None,
            return_dict=True,
        )
        hidden_states: Any = outputs.last_hidden_state
        if self.config.scale_decoder_outputs:
            hidden_states = hidden_states * self.config.d_model**-0.5
        if labels is not None and skip_logits and is_bare_linear(self.lm_head):
            matrix = self._adapted_embedding()
            weight = self.lm_head.weight if matrix is None else matrix
            losses = chunked_token_losses(hidden_states, weight, labels, z_loss, smoothing)
            loss = mean_of_counted(losses, labels, num_items_in_batch)
            return Seq2SeqLMOutput(loss=loss, **intermediate_outputs(outputs))
        logits = self._classify(hidden_states)
        if labels is None:
            return Seq2SeqLMOutput(logits=logits, **intermediate_outputs(outputs))
        loss = cross_entropy_loss(logits, labels, num_items_in_batch, z_loss, smoothing)
        return Seq2SeqLMOutput(
            loss=loss,
            logits=None if skip_logits else logits,
            **intermediate_outputs(outputs),
        )

    def _adapted_embedding(self) -> torch.Tensor | None:
        """`(vocab, d_model)`, the embedding as an adapter on `shared` changes it, if the classifier is tied to it; None
        if the classifier's own weight is right."""
        if not self.config.tie_word_embeddings or type(self.lm_head) is not nn.Linear:
            return None
        if type(self.shared) is nn.Embedding:
            return None
        return self.shared(torch.arange(self.lm_head.out_features, device=self.lm_head.weight.device))

    def _classify(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`(b, n, d_model)` -> logits `(b, n, vocab)`."""
        matrix = self._adapted_embedding()
        if matrix is None:
            return self.lm_head(hidden_states)
        return torch.func.functional_call(self.lm_head, {"weight": matrix}, (hidden_states,))

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        # Removing or merging an adapter puts back a plain embedding: tie the classifier to it again.
        if name == "shared" and type(value) is nn.Embedding and self.config.tie_word_embeddings:
            classifier = self._modules.get("lm_head")
            if type(classifier) is nn.Linear and classifier.weight.shape == value.weight.shape:
                classifier.weight = value.weight

    @functools.wraps(GenerationMixin.generate)
    def generate(self, *args: Any, **kwargs: Any) -> Any:
        names = ("inputs", "input_ids", "inputs_embeds", "encoder_outputs", "custom_generate")
        generation_config = kwargs.get("generation_config") or self.generation_config
        if not args and all(kwargs.get(name) is None for name in names) and generation_config.bos_token_id is None:
            raise ValueError(
                "`generate` has no encoder inputs: give `input_ids`, `inputs_embeds` or `encoder_outputs`."
            )
        if isinstance(kwargs.get("encoder_outputs"), tuple):
            kwargs["encoder_outputs"] = BaseModelOutput(*kwargs["encoder_outputs"])
        if kwargs.get("assistant_model") is None:  # it gets the same arguments, and may be transformers' T5
            kwargs.setdefault("skip_padding", True)
        with decoding_session(self, self.decoding_weights):
            return super().generate(*args, **kwargs)  # type: ignore[misc]

    def _prefill(self, input_ids: Any, generation_config: Any, *args: Any, **kwargs: Any) -> Any:
        """Runs the decoder's prompt in one chunk: transformers would also cut the encoder's mask into chunks, and long
        inputs go to the encoder anyway."""
        generation_config.prefill_chunk_size = None
        return super()._prefill(input_ids, generation_config, *args, **kwargs)  # type: ignore[misc]

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], generation_mode: Any, batch_size: int, length: int
    ) -> Any:
        """Makes a static cache long enough for a prompt of embeddings, which `generate` counts as one start token, and
        lets dynamic caches grow in place."""
        prompt = model_kwargs.get("decoder_inputs_embeds")
        if prompt is not None:
            length += prompt.shape[1] - 1
        is_given = model_kwargs.get("past_key_values") is not None
        super()._prepare_cache_for_generation(  # type: ignore[misc]
            generation_config, model_kwargs, generation_mode, batch_size, length
        )
        cache = model_kwargs.get("past_key_values")
        if not is_given and isinstance(cache, EncoderDecoderCache):
            growing(cache.self_attention_cache)
            growing(cache.cross_attention_cache)

    def create_masks_for_generate(
        self, attention_mask: torch.Tensor | None, past_key_values: Cache, **unused: Any
    ) -> torch.Tensor | None:
        """The decoder's padding mask, padded to a static cache's length so that all steps have the same shapes. The
        decoder adds the causal mask itself."""
        if attention_mask is None:
            return None
        length, _ = past_key_values.get_mask_sizes(1, 0)
        return F.pad(attention_mask, (0, length - attention_mask.shape[1]))

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.Tensor,
        decoder_inputs_embeds: torch.Tensor | None = None,
        is_first_iteration: bool | None = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Arguments of the next forward pass of `generate`.

        Args:
            input_ids: `(batch, length)`, decoder ids so far; `generate` put the start token first.
            decoder_inputs_embeds: `(batch, prompt, d_model)`, the decoder's prompt, instead of the start token.
            is_first_iteration: whether nothing has been generated yet.
            kwargs: passed on to transformers.
        """
        kwargs.pop("skip_padding", None)  # for the encoder, which has already run
        inputs = super().prepare_inputs_for_generation(  # type: ignore[misc]
            input_ids,  # type: ignore[arg-type]
            is_first_iteration=is_first_iteration,
            **kwargs,
        )
        has_past = inputs.get("past_key_values") is not None and not is_first_iteration
        if decoder_inputs_embeds is not None and not has_past:
            generated = self.shared(input_ids[:, 1:])
            inputs["decoder_input_ids"] = None
            inputs["decoder_inputs_embeds"] = torch.cat([decoder_inputs_embeds, generated], dim=1)
        # `generate` also passes arguments of its own (`tokenizer`) and position ids, which T5 does not have.
        taken = _arguments(type(self).forward)
        return inputs if taken is None else {name: value for name, value in inputs.items() if name in taken}

    def prepare_decoder_input_ids_from_labels(
        self, labels: torch.Tensor, decoder_segment_ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Decoder inputs `(batch, target)` that predict `labels` `(batch, target)`; collators call this."""
        return self._shift_right(labels, decoder_segment_ids)


@functools.cache
def _arguments(function: Callable[..., Any]) -> frozenset[str] | None:
    """Names of a function's arguments; None if it accepts any name."""
    parameters = inspect.signature(function).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return None if takes_any else frozenset(parameters)


class T5ExperimentalEncoderModel(T5ExperimentalPreTrainedModel):
    """The encoder alone, for example as the text encoder of an image model."""

    _input_embed_layer = "shared"
    _shared_embeddings = ("encoder.embed_tokens.weight",)
    _tied_weights_keys = {"encoder.embed_tokens.weight": "shared.weight"}
    _keys_to_ignore_on_load_unexpected = [r"^decoder\.", r"^lm_head\."]

    def __init__(self, config: T5ExperimentalConfig):
        super().__init__(config)
        config = self.config
        self.shared = nn.Embedding(config.vocab_size, config.d_model)
        self.encoder = T5Stack(config, "encoder")
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        segment_ids: torch.Tensor | None = None,
        skip_padding: bool = False,
    ) -> BaseModelOutput:
        """Encodes; takes the arguments of [`T5ExperimentalModel.forward`], and

        Args:
            skip_padding: unpad the inputs, given `attention_mask` or `segment_ids`, if there is enough padding; the
                output is 0 there. Otherwise padding positions get the same values as in transformers' T5.
        """
        return self.encoder(
            input_ids=input_ids,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            segment_ids=segment_ids,
            skip_padding=skip_padding,
            return_dict=True,
        )
