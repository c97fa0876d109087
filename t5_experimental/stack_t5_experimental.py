# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""A stack of blocks, encoder or decoder.

embed -> dropout -> block 0 .. block N-1 -> norm -> dropout
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPastAndCrossAttentions
from transformers.utils import logging
from transformers.utils.generic import can_return_tuple

from .activation_checkpointing_t5_experimental import with_kept_attention
from .attention_t5_experimental import HeadProjection, InitialValues, T5Attention
from .block_t5_experimental import BlockOutput, T5Block, T5Dropout, T5LayerNorm
from .cache_t5_experimental import growing
from .calls_t5_experimental import may_read_values
from .configuration_t5_experimental import T5ExperimentalConfig
from .loss_t5_experimental import shift_right
from .unpadding_t5_experimental import Tokens, find_tokens, real_positions
from .visibility_t5_experimental import Visibility, inputless_queries, masked_bias, visibility, without_padding


logger = logging.get_logger(__name__)


class T5ExperimentalPreTrainedModel(PreTrainedModel):
    """Initialization, loading and saving that all models share."""

    config: T5ExperimentalConfig
    config_class = T5ExperimentalConfig
    base_model_prefix = "transformer"
    supports_gradient_checkpointing = True
    _no_split_modules = ["T5Block"]
    _keep_in_fp32_modules = ["wo"]
    _supports_sdpa = True
    _can_compile_fullgraph = True
    # Embeddings of the stacks, always tied to the model's `shared`, whether or not the classifier is.
    _shared_embeddings: tuple[str, ...] = ()

    def __init__(self, config: PreTrainedConfig):
        # Not by type: a converted folder carries a copy of these files, and so a config class of its own.
        if isinstance(config, PreTrainedConfig) and not hasattr(config, "layer_specs"):
            config = self.config_class.of_stock(config)
        super().__init__(config)

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets `shared`, to an adapter's wrapper for example, as the embedding of both stacks, too."""
        super().__setattr__(name, value)
        if name == "shared" and isinstance(value, nn.Module):
            for stack in (self._modules.get("encoder"), self._modules.get("decoder")):
                if stack is not None:
                    stack.set_input_embeddings(value)  # type: ignore[operator]

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict[str, str]:
        """Tied parameters and their sources: always the stacks' embeddings, the classifier only if configured."""
        tied = super().get_expanded_tied_weights_keys(all_submodels=all_submodels)
        return dict.fromkeys(self._shared_embeddings, "shared.weight") | tied

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initializes a module as the original does.

        Linear weights are truncated at two standard deviations, as in TensorFlow's variance scaling. A module that is
        initialized differently has an attribute `initial_values`, because transformers passes the modules that hold
        parameters, not their parents.
        """
        factor = self.config.initializer_factor
        if isinstance(module, T5LayerNorm):
            init.constant_(module.weight, factor)
            return
        if isinstance(module, nn.Embedding):
            values = InitialValues("normal", 1.0)
        elif isinstance(module, nn.Linear):
            values = InitialValues("truncated_normal", module.in_features**-0.5)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, HeadProjection):
            values = InitialValues("truncated_normal", module.weight.shape[0] ** -0.5)
        else:
            return
        distribution, scale = getattr(module, "initial_values", values)
        scale *= factor
        if distribution == "uniform":
            init.uniform_(module.weight, -scale, scale)
        elif distribution == "normal":
            init.normal_(module.weight, std=scale)
        else:
            init.trunc_normal_(module.weight, std=scale, a=-2 * scale, b=2 * scale)

    def _set_gradient_checkpointing(
        self, enable: bool = True, gradient_checkpointing_func: Callable[..., Any] = checkpoint, **kwargs: Any
    ) -> None:
        """As in transformers; `gradient_checkpointing_kwargs={"keep_attention": True}` also keeps attention
        outputs."""
        super()._set_gradient_checkpointing(enable, with_kept_attention(gradient_checkpointing_func), **kwargs)

    def _shift_right(self, labels: torch.Tensor, segment_ids: torch.Tensor | None = None) -> torch.Tensor:
        return shift_right(labels, self.config, segment_ids)

    def _decoder_inputs(
        self, targets: torch.Tensor, real: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Decoder inputs that predict `targets`, which may be padded on the left, and the mask that hides this padding.

        Args:
            targets: `(batch, length)`, token ids, or -100 at padding.
            real: booleans `(batch, length)`, false at padding; None if there is no padding.
        """
        shifted = self._shift_right(targets)
        if real is None or (may_read_values(real, wait=False) and bool(real[:, 0].all())):
            return shifted, None  # causality hides padding on the right
        is_first = real & (real.cumsum(-1) == 1)
        return shifted.masked_fill(is_first, cast(int, self.config.decoder_start_token_id)), real


def require_one(
    input_ids: torch.Tensor | None,
    inputs_embeds: torch.Tensor | None,
    prefix: str,
    stack: str,
    alternatives: str = "",
) -> None:
    """Checks that a stack gets either ids or embeddings.

    Args:
        input_ids: ids for the stack.
        inputs_embeds: embeddings for the stack.
        prefix: prefix of both arguments' names, for the message.
        stack: `"encoder"` or `"decoder"`.
        alternatives: other arguments that would do, for the message.

    Raises:
        ValueError: both are given, or neither.
    """
    if input_ids is not None and inputs_embeds is not None:
        raise ValueError(f"Give either `{prefix}input_ids` or `{prefix}inputs_embeds`, not both.")
    if input_ids is None and inputs_embeds is None:
        choice = f"{alternatives}`{prefix}input_ids` (or `{prefix}inputs_embeds`)"
        raise ValueError(f"The {stack} has no inputs: give {choice}.")


class StackPass(NamedTuple):
    """One forward pass of a stack, ready for the blocks; made by [`T5Stack._prepare`].

    Attributes:
        hidden_states: input of the first block, `(b, n, d_model)`, or unpadded `(1, tokens, d_model)`.
        visible: mask of self-attention.
        encoder_hidden_states: see [`T5Block.forward`].
        encoder_attention_bias: see [`T5Block.forward`].
        encoder_visible: see [`T5Block.forward`].
        past_key_values: cache to read and extend.
        output_attentions: return the weights of every attention.
        output_hidden_states: return the input of every block.
    """

    hidden_states: torch.Tensor
    visible: Visibility
    encoder_hidden_states: torch.Tensor | None
    encoder_attention_bias: torch.Tensor | None
    encoder_visible: Visibility | None
    past_key_values: Cache | None
    output_attentions: bool
    output_hidden_states: bool


class T5Stack(T5ExperimentalPreTrainedModel):
    """The encoder or the decoder.

    Args:
        config: config of the whole model.
        stack: `"encoder"` or `"decoder"`.
    """

    def __init__(self, config: T5ExperimentalConfig, stack: str):
        super().__init__(config)
        config = self.config
        self.is_decoder = stack == "decoder"
        # A separate module, as in transformers' T5, so that device maps can place it; its weight is tied to `shared`.
        self.embed_tokens = nn.Embedding(config.vocab_size, config.d_model)
        specs = config.layer_specs(stack)
        self._bias_holders = config.bias_holders(stack)
        self.block = nn.ModuleList(
            T5Block(config, spec, self.is_decoder, self._bias_holders[index] == index, index)
            for index, spec in enumerate(specs)
        )
        self.final_layer_norm = T5LayerNorm(config.d_model, config.layer_norm_epsilon)
        self.dropout = T5Dropout(config)
        self.gradient_checkpointing = False
        self.post_init()

    @property
    def bias_holders(self) -> Sequence[int]:
        """For every block, the index of the one whose table of relative position biases it uses.

        Raises:
            ValueError: blocks were removed, and a table that others need with them.
        """
        if len(self.block) == len(self._bias_holders):
            return self._bias_holders
        holders: list[int] = []
        latest: dict[int, int] = {}  # by number of heads
        for index, block in enumerate(self.block):
            attention = cast(Any, block).layer[0].SelfAttention
            heads = attention.spec.num_heads
            if hasattr(attention, "relative_attention_bias"):
                latest[heads] = index
            elif heads not in latest:
                raise ValueError(
                    f"Block {index} has no table of relative position biases, nor has an earlier one of {heads} heads: "
                    "keep the block that has it."
                )
            holders.append(latest[heads])
        return holders

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        segment_ids: torch.Tensor | None = None,
        encoder_segment_ids: torch.Tensor | None = None,
        skip_padding: bool = False,
        needed: torch.Tensor | None = None,
    ) -> BaseModelOutput | BaseModelOutputWithPastAndCrossAttentions:
        """Runs the stack.

        Args:
            input_ids: `(b, n)`; or give `inputs_embeds` `(b, n, d_model)`.
            attention_mask: `(b, m)`, or with a query axis as described in [`visibility`]; with a cache it covers past
                and new positions.
            encoder_hidden_states: `(b, m, d_model)`, decoder only.
            encoder_attention_mask: `(b, m)`, decoder only.
            past_key_values: cache to continue from, decoder only.
            use_cache: return a cache, decoder only.
            output_attentions: return the weights of every attention.
            output_hidden_states: return the input of every block, and the final output.
            segment_ids: `(b, n)`, packed examples, 0 for padding; with a cache it covers past and new positions.
            encoder_segment_ids: `(b, m)`, decoder only.
            skip_padding: unpad the encoder's sequences, given a 2-D mask or segment ids, if there is enough padding to
                make it worthwhile: the encoder returns 0 at padding, and the decoder computes no keys and values there.
                No effect in compiled models, or with `output_attentions` or `output_hidden_states`.
            needed: `(b, n)`, decoder only: false after the last position of a row that the caller reads; the output may
                be 0 there. No effect with a cache, or where `skip_padding` has none.

        Raises:
            ValueError: both or neither of `input_ids` and `inputs_embeds` are given, or masks have wrong shapes.
        """
        require_one(input_ids, inputs_embeds, "", "decoder" if self.is_decoder else "encoder")
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        if output_hidden_states is None:
            output_hidden_states = bool(self.config.output_hidden_states)
        stack_pass = self._prepare(
            self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds,
            (attention_mask, segment_ids),
            encoder_hidden_states,
            (encoder_attention_mask, encoder_segment_ids),
            past_key_values=self._cache(past_key_values, use_cache),
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            skip_padding=skip_padding,
            needed=needed,
        )
        return self._finish(stack_pass, *self._run_blocks(stack_pass))

    def _prepare(
        self,
        inputs_embeds: torch.Tensor,
        padding: tuple[torch.Tensor | None, torch.Tensor | None],
        encoder_hidden_states: torch.Tensor | None,
        encoder_padding: tuple[torch.Tensor | None, torch.Tensor | None],
        *,
        past_key_values: Cache | None,
        output_attentions: bool,
        output_hidden_states: bool,
        skip_padding: bool,
        needed: torch.Tensor | None,
    ) -> StackPass:
        """Unpads, and builds masks; for arguments see [`T5Stack.forward`]. Each `padding` is an attention mask and
        segment ids."""
        attention_mask, segment_ids = padding
        if output_attentions or output_hidden_states or self._has_compiled_blocks():
            skip_padding, needed = False, None
        elif skip_padding and not self.is_decoder:
            needed = real_positions(attention_mask, segment_ids)
        tokens = None
        if past_key_values is None and (attention_mask is None or attention_mask.ndim == 2):
            tokens = find_tokens(needed, inputs_embeds)
        if tokens is not None:
            inputs_embeds, attention_mask, segment_ids = tokens.trim(inputs_embeds, attention_mask, segment_ids)
        visible = self._visible(inputs_embeds, attention_mask, segment_ids, past_key_values)
        visible = visible._replace(query_tokens=tokens, key_tokens=tokens)
        encoder_visible, encoder_bias = None, None
        if encoder_hidden_states is not None:
            encoder_hidden_states, encoder_visible = self._encoder_output(
                encoder_hidden_states, encoder_padding, visible, past_key_values, skip_padding
            )
            encoder_bias = self._encoder_attention_bias(inputs_embeds, encoder_visible, output_attentions)
        return StackPass(
            hidden_states=self.dropout(inputs_embeds if tokens is None else tokens.gather(inputs_embeds), tokens),
            visible=visible,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_bias=encoder_bias,
            encoder_visible=encoder_visible,
            past_key_values=past_key_values,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )

    def _run_blocks(self, stack_pass: StackPass) -> tuple[torch.Tensor, list[BlockOutput]]:
        """Returns the last block's hidden states, and the outputs of all blocks if the stack returns more than that."""
        keeps_outputs = stack_pass.output_attentions or stack_pass.output_hidden_states
        outputs: list[BlockOutput] = []
        biases: dict[int, tuple[torch.Tensor, torch.Tensor | None]] = {}  # by the layer with the table
        hidden_states = stack_pass.hidden_states
        for block, holder in zip(self.block, self.bias_holders, strict=True):
            result = block(
                hidden_states,
                *biases.get(holder, (None, None)),
                stack_pass.visible,
                stack_pass.encoder_hidden_states,
                stack_pass.encoder_attention_bias,
                stack_pass.encoder_visible,
                past_key_values=stack_pass.past_key_values,
                output_attentions=stack_pass.output_attentions,
            )
            output = BlockOutput(*result)  # reentrant checkpointing returns a plain tuple
            hidden_states = output.hidden_states
            biases[holder] = output.diagonals, output.attention_bias
            if keeps_outputs:
                outputs.append(output)
        return hidden_states, outputs

    def _finish(
        self, stack_pass: StackPass, hidden_states: torch.Tensor, block_outputs: list[BlockOutput]
    ) -> BaseModelOutput | BaseModelOutputWithPastAndCrossAttentions:
        """Applies the final norm and dropout, pads again, and collects the outputs."""
        tokens = stack_pass.visible.query_tokens
        hidden_states = self.dropout(self.final_layer_norm(hidden_states), tokens)
        if tokens is not None:
            hidden_states = tokens.restore(hidden_states)
        outputs: dict[str, Any] = {"last_hidden_state": hidden_states}
        if stack_pass.output_hidden_states:
            inputs = [stack_pass.hidden_states, *(output.hidden_states for output in block_outputs[:-1])]
            outputs["hidden_states"] = (*inputs, hidden_states)
        if stack_pass.output_attentions:
            outputs["attentions"] = tuple(output.self_weights for output in block_outputs)
        if not self.is_decoder:
            return BaseModelOutput(**outputs)
        if stack_pass.output_attentions and stack_pass.encoder_hidden_states is not None:
            outputs["cross_attentions"] = tuple(output.cross_weights for output in block_outputs)
        return BaseModelOutputWithPastAndCrossAttentions(**outputs, past_key_values=stack_pass.past_key_values)

    def _has_compiled_blocks(self) -> bool:
        """Whether blocks are compiled one by one: each number of tokens would recompile them."""
        return any(block._compiled_call_impl is not None or "_orig_mod" in block._modules for block in self.block)

    def _encoder_output(
        self,
        states: torch.Tensor,
        padding: tuple[torch.Tensor | None, torch.Tensor | None],
        queries: Visibility,
        past_key_values: Cache | None,
        skip_padding: bool,
    ) -> tuple[torch.Tensor, Visibility]:
        """Clears or removes padding in the encoder's output, and builds the mask of encoder-decoder attention.

        Args:
            states: `(b, m, d_model)`, the encoder's output.
            padding: attention mask and segment ids of it, `(b, m)` or None.
            queries: mask of the decoder's self-attention.
            past_key_values: cache in use.
            skip_padding: see [`T5Stack.forward`].

        Returns:
            The states, `(b, m', d_model)`, or unpadded `(1, tokens, d_model)`; and the mask.
        """
        query_length, query_segments = queries.query_length, queries.query_segments
        mask, segment_ids = padding
        visible = visibility(mask, query_segments, segment_ids, query_length, states.shape[1])
        inputless = inputless_queries(visible)
        tokens = self._encoder_tokens(real_positions(*padding), states, past_key_values) if skip_padding else None
        if tokens is not None:
            if inputless is not None:  # these queries attend to padding columns too
                tokens = tokens.whole()
            states, mask, segment_ids = tokens.trim(states, mask, segment_ids)
            visible = visibility(mask, query_segments, segment_ids, query_length, states.shape[1])
            states = tokens.gather(states)
        elif not _has_encoder_keys(past_key_values):
            states = without_padding(states, visible)
        return states, visible._replace(query_tokens=queries.query_tokens, key_tokens=tokens, inputless=inputless)

    @staticmethod
    def _encoder_tokens(
        needed: torch.Tensor | None, encoder_hidden_states: torch.Tensor, past_key_values: Cache | None
    ) -> Tokens | None:
        """The encoder positions that get keys and values. A cache holds all columns, in the mask's order."""
        if past_key_values is None:
            return find_tokens(needed, encoder_hidden_states)
        if _has_encoder_keys(past_key_values):
            return None
        tokens = find_tokens(needed, encoder_hidden_states)
        return None if tokens is None else tokens.whole()

    def _cache(self, past_key_values: Cache | None, use_cache: bool | None) -> Cache | None:
        """The cache to use; a new one if `use_cache` asks for it and none is given."""
        if not self.is_decoder:
            return None
        if self.gradient_checkpointing and self.training:
            if use_cache or past_key_values is not None:
                logger.warning_once(
                    "Gradient checkpointing runs the blocks twice and cannot use a cache: setting `use_cache=False`."
                )
            return None
        if use_cache is None:
            use_cache = self.config.use_cache
        if past_key_values is None:
            return EncoderDecoderCache(growing(DynamicCache()), growing(DynamicCache())) if use_cache else None
        if not isinstance(past_key_values, Cache):
            raise ValueError(
                f"`past_key_values` is a {type(past_key_values).__name__}: give an `EncoderDecoderCache`, or nothing "
                "and `use_cache=True`."
            )
        if not isinstance(past_key_values, EncoderDecoderCache):
            # Both attentions of a layer would write into the same cache.
            return EncoderDecoderCache(past_key_values, DynamicCache())
        return past_key_values

    def _visible(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None,
        segment_ids: torch.Tensor | None,
        past_key_values: Cache | None,
    ) -> Visibility:
        """Mask of self-attention over the cached and the new positions."""
        query_length = key_length = inputs_embeds.shape[1]
        past_length: int | torch.Tensor = 0
        if past_key_values is not None:
            past_length = past_key_values.get_seq_length()
            if isinstance(past_length, torch.Tensor):
                past_length = past_length.clone()  # a static cache advances its counter in place as the blocks run
            key_length, _ = past_key_values.get_mask_sizes(query_length, 0)
        query_segments = segment_ids[:, -query_length:] if segment_ids is not None else None
        return visibility(
            attention_mask, query_segments, segment_ids, query_length, key_length, past_length, self.is_decoder
        )

    def _encoder_attention_bias(
        self, inputs_embeds: torch.Tensor, visible: Visibility, output_attentions: bool
    ) -> torch.Tensor | None:
        """Mask of encoder-decoder attention, broadcastable to `(b, h, n, m)`; None if no layer needs one."""
        attentions: list[T5Attention] = [block.layer[1].EncDecAttention for block in self.block]  # type: ignore
        if all(attention.uses_blocks(inputs_embeds, None, visible, output_attentions) for attention in attentions):
            return None
        mask = visible.all_rows(inputs_embeds.device)
        if mask is None:
            return None
        return masked_bias(torch.zeros((), dtype=inputs_embeds.dtype, device=inputs_embeds.device), mask)


def _has_encoder_keys(past_key_values: Cache | None) -> bool:
    """Whether a cache that [`T5Stack._cache`] returned already holds the encoder's keys and values."""
    return isinstance(past_key_values, EncoderDecoderCache) and bool(past_key_values.is_updated.get(0))
