# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Bytes of activations that a forward pass keeps for the backward pass, computed from the layer sizes.

Each term below is a tensor that an operator saves, found by listing what autograd saves for each family. For CPUs,
tests/training/test_activations.py compares the sums with what autograd saves. The differences on CUDA devices (norms
and dropout save less, attention is fused) follow torch's source code; they were not measured on a device.
"""

from dataclasses import dataclass
from typing import Literal

from t5_experimental.attention_t5_experimental import _MIN_PAIRS, _MIN_QUERIES
from t5_experimental.configuration_t5_experimental import TALKING_HEADS, LayerSpec, T5ExperimentalConfig
from t5_experimental.loss_t5_experimental import _CHUNK


# Reductions (root mean squares, log-sum-exps) and logits are in float32; ids take 8 bytes.
_WIDE = 4
_INDEX = 8


@dataclass(frozen=True)
class Step:
    """One forward pass of a process.

    Attributes:
        examples: in the batch.
        source: tokens of an input.
        target: tokens of a target.
        device: "cpu" or "cuda".
        autocast: matmuls are in bfloat16, weights and hidden states in float32.
        half: weights and hidden states are in bfloat16, as in DeepSpeed's and FSDP's computation.
        padded: examples of a batch differ in length.
        packed: several examples share a row.
        trained: everything, adapters on all linear layers, or a prompt.
        rank: of the adapters.
        checkpointing: activation checkpointing of blocks, without or with their attention.
        all_logits: all logits exist, as engines that shard the classifier must call it as a module.
        attention: the implementation, "sdpa" or "eager".
    """

    examples: int
    source: int
    target: int
    device: Literal["cpu", "cuda"] = "cuda"
    autocast: bool = False
    half: bool = False
    padded: bool = True
    packed: bool = False
    trained: Literal["all", "adapters", "prompt"] = "all"
    rank: int = 0
    checkpointing: Literal["none", "full", "keep_attention"] = "none"
    all_logits: bool = False
    attention: str = "sdpa"

    @property
    def stream(self) -> int:
        """Bytes of a value in the residual stream."""
        return 2 if self.half else 4

    @property
    def matmul(self) -> int:
        """Bytes of a value that a matmul returns."""
        return 2 if self.half or self.autocast else 4


@dataclass(frozen=True)
class Activations:
    """Bytes at the two peaks.

    Attributes:
        forward: kept at the end of the forward pass.
        recomputed: added by the backward pass of one block, with activation checkpointing.
    """

    forward: int
    recomputed: int

    @property
    def peak(self) -> int:
        """The maximum."""
        return self.forward + self.recomputed


def activation_bytes(config: T5ExperimentalConfig, step: Step) -> Activations:
    """Activations of a training step of a conditional generation model, with the chunked loss."""
    return _Counter(config, step).count()


class _Counter:
    """Adds up saved tensors; `tokens` are those of one stack, in the entire batch."""

    def __init__(self, config: T5ExperimentalConfig, step: Step):
        self.config, self.step = config, step
        self.width = config.d_model
        self.rate = config.dropout_rate
        self.drops = config.dropout_rate > 0 and not config.broadcast_dropout

    def count(self) -> Activations:
        config, step = self.config, self.step
        source, target = step.examples * step.source, step.examples * step.target
        total = self._ends(source) + self._ends(target) + self._loss(target)
        if not self._casts():  # otherwise every layer keeps its own copy
            total += self._inputs(source, self.width, 0) or source * self.width * step.stream
        blocks, recomputed = 0, 0
        for stack, tokens, length in (("encoder", source, step.source), ("decoder", target, step.target)):
            specs = config.layer_specs(stack)
            is_decoder = stack == "decoder"
            blocks += self._biases(specs, length, is_decoder)
            for spec in specs:
                kept, attended = self._block(spec, is_decoder)
                if step.checkpointing == "none":
                    blocks += kept
                    continue
                blocks += tokens * self.width * step.stream + (attended if step.checkpointing != "full" else 0)
                # The block's input is kept in any case.
                recomputed = max(recomputed, kept - tokens * self.width * step.stream)
        return Activations(total + blocks, recomputed)

    # Terms that occur several times.

    def _casts(self) -> bool:
        return self.step.autocast and not self.step.half

    def _noise(self, numbers: int, size: int) -> int:
        """Dropout's saved state for `numbers` values of `size` bytes: factors on the CPU, booleans elsewhere."""
        return numbers * (size if self.step.device == "cpu" else 1) if self.drops else 0

    def _inputs(self, tokens: int, width: int, layers: int) -> int:
        """What `layers` linear layers save of one input: one tensor, but a copy per layer where autocast casts."""
        step, size = self.step, tokens * width * self.step.matmul
        if step.trained == "prompt":
            return 0
        low_rank = tokens * step.rank * step.matmul * layers
        if step.trained == "adapters" and self.rate:  # adapters have dropout of their own
            noise = tokens * width * (step.matmul if step.device == "cpu" else 1)
            return layers * (size + noise) + low_rank
        return size * (layers if self._casts() else 1) + low_rank

    def _norm(self, tokens: int) -> int:
        """Input and its root mean squares; without a fused kernel, as on the CPU, also the normalized input."""
        factor = 2 if self.step.device == "cpu" and self.step.trained == "all" else 1
        return tokens * (self.width * self.step.stream * factor + _WIDE)

    def _ends(self, tokens: int) -> int:
        """Ids, dropout of the embedded input, final norm and its dropout."""
        numbers = tokens * self.width
        return tokens * _INDEX + 2 * self._noise(numbers, self.step.stream) + self._norm(tokens)

    # Attention.

    def _path(self, spec: LayerSpec, queries: int, keys: int, has_bias: bool) -> Literal["rows", "fused", "pairs"]:
        """Which implementation computes the attention, see `T5Attention.uses_blocks` and `T5TalkingHeadsAttention`."""
        step = self.step
        is_small = queries < _MIN_QUERIES or queries * keys < _MIN_PAIRS
        if step.attention != "sdpa":
            return "pairs"
        if spec.attention_type == TALKING_HEADS:
            return "pairs" if is_small else "rows"
        if step.device != "cpu":
            return "fused"
        learns = has_bias and step.trained == "all"
        if not learns and not self.drops:
            return "fused"
        return "pairs" if is_small or step.autocast or step.half else "rows"

    def _attention(self, spec: LayerSpec, queries: int, keys: int, has_bias: bool) -> tuple[int, int]:
        """Bytes that an attention saves between its projections, and the part of these that it returns."""
        step = self.step
        rows, columns = step.examples * queries, step.examples * keys
        of_keys, of_values = spec.num_key_heads * spec.d_k, spec.num_value_heads * spec.d_v
        pairs = step.examples * queries * keys
        returned = rows * of_values * step.matmul
        path, size = self._path(spec, queries, keys, has_bias), step.matmul
        is_math = path == "pairs" and spec.attention_type != TALKING_HEADS and step.attention == "sdpa"
        if is_math:
            size = _WIDE
        kept = (rows * of_keys + columns * (of_keys + of_values)) * size
        if path == "fused":
            return kept + returned + rows * spec.num_heads * _WIDE, returned
        # The output projection saves its input if it is trained.
        kept += self._inputs(rows, of_values, 1)
        if path == "rows":
            return kept, returned
        kept += pairs * spec.num_heads * _WIDE  # output of the softmax
        if spec.attention_type == TALKING_HEADS:
            learned = spec.num_key_heads + spec.num_heads if step.trained == "all" else 0  # inputs of both mixes
            return kept + pairs * (learned + spec.num_value_heads) * size + self._noise(
                pairs * spec.num_value_heads, size
            ), 0
        # The weights for the values, and these before dropout unless that is the softmax's output.
        kept += pairs * spec.num_heads * size * ((size < _WIDE) + self.drops)
        return kept + self._noise(pairs * spec.num_heads, size), 0

    def _biases(self, specs: tuple[LayerSpec, ...], length: int, is_decoder: bool) -> int:
        """Position bias and mask of all pairs, once per stack and number of heads, where the implementation of the
        attention needs them; matmuls in bfloat16 make a copy for each layer."""
        step, total = self.step, 0
        examples = step.examples if step.packed or (step.padded and not is_decoder) else 1
        seen = set()
        for spec in specs:
            path = self._path(spec, length, length, has_bias=True)
            if path == "rows":
                continue
            pairs = length * length
            if spec.num_heads not in seen:
                seen.add(spec.num_heads)
                total += pairs * _INDEX + pairs * (1 if is_decoder else 0)
                if path == "fused" and (not self._casts() or step.checkpointing != "none"):
                    total += examples * spec.num_heads * pairs * step.stream
            if path == "fused" and self._casts() and step.checkpointing == "none":
                total += examples * spec.num_heads * pairs * step.matmul
        return total

    # A block.

    def _block(self, spec: LayerSpec, is_decoder: bool) -> tuple[int, int]:
        """Bytes that a block saves, and the part of these that its attentions return."""
        step = self.step
        length = step.target if is_decoder else step.source
        tokens = step.examples * length
        after = self._noise(tokens * self.width, step.matmul)
        kept, attended = self._attention(spec, length, length, has_bias=True)
        total = self._norm(tokens) + self._inputs(tokens, self.width, 3) + kept + after
        if is_decoder:
            kept, more = self._attention(spec, length, step.source, has_bias=False)
            total += self._norm(tokens) + self._inputs(tokens, self.width, 1) + kept + after
            if self._casts() or (step.trained == "adapters" and self.rate):
                total += self._inputs(step.examples * step.source, self.width, 2)
            attended += more
        total += self._norm(tokens) + self._feed_forward(tokens, spec.d_ff) + after
        return total, attended

    def _feed_forward(self, tokens: int, d_ff: int) -> int:
        numbers, gated = tokens * d_ff, self.config.is_gated_act
        # Input of the activation and both factors of the gate; for relu its output, often the next layer's input.
        inner = 3 if gated else 1 if self.drops else 0
        total = self._inputs(tokens, self.width, 2 if gated else 1) + numbers * inner * self.step.matmul
        return total + self._noise(numbers, self.step.matmul) + self._inputs(tokens, d_ff, 1)

    def _loss(self, tokens: int) -> int:
        """Hidden states before the classifier, and the logits of the last chunk, or all."""
        config, step = self.config, self.step
        total = tokens * (self.width * step.stream + 3 * _INDEX)
        if step.all_logits:
            return total + tokens * config.vocab_size * _WIDE
        last = tokens - (tokens - 1) // _CHUNK * _CHUNK
        return total + last * config.vocab_size * _WIDE
