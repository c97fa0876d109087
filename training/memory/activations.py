# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Bytes that a forward pass keeps for the backward pass, counted from the widths of the layers.

Each term below is a tensor that an operator saves, found by listing what autograd saves for each family. On CPUs the
sums are compared with what autograd really keeps, in tests/training/test_activations.py; what differs on a CUDA device
(its norm and its dropout save less, its attention is fused) follows torch's sources and was not measured on one.
"""

from dataclasses import dataclass
from typing import Literal

from t5_experimental.attention_t5_experimental import _MIN_PAIRS, _MIN_QUERIES
from t5_experimental.configuration_t5_experimental import TALKING_HEADS, LayerSpec, T5ExperimentalConfig
from t5_experimental.loss_t5_experimental import _CHUNK


# An operator's own sums (root mean squares, log-sum-exps) and logits are in float32; ids are 8 bytes.
_WIDE = 4
_INDEX = 8


@dataclass(frozen=True)
class Step:
    """What a process computes in one forward pass.

    Attributes:
        examples: in the batch.
        source: tokens of an input.
        target: tokens of a target.
        device: "cpu" or "cuda".
        autocast: products are in bfloat16, of weights and hidden states in float32.
        half: weights and hidden states are in bfloat16, as DeepSpeed and FSDP keep them for the computation.
        padded: examples of a batch differ in length.
        packed: several share a row, of targets, too.
        trained: everything, adapters beside all linear layers, or a prompt.
        rank: of the adapters.
        checkpointing: blocks are computed again in the backward pass, without or with attention.
        whole_logits: the classifier is called as a module, as engines that shard it need, and all logits exist.
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
    whole_logits: bool = False
    attention: str = "sdpa"

    @property
    def stream(self) -> int:
        """Bytes of a number of the residual stream."""
        return 2 if self.half else 4

    @property
    def product(self) -> int:
        """Bytes of a number that comes out of a product."""
        return 2 if self.half or self.autocast else 4


@dataclass(frozen=True)
class Activations:
    """Bytes at the two moments that count.

    Attributes:
        forward: kept when the forward pass has ended.
        recomputed: what the backward pass of one block adds to that, with checkpointing.
    """

    forward: int
    recomputed: int

    @property
    def peak(self) -> int:
        """The most at one time."""
        return self.forward + self.recomputed


def activation_bytes(config: T5ExperimentalConfig, step: Step) -> Activations:
    """What a training step keeps of a model for conditional generation, with the chunked loss."""
    return _Counter(config, step).count()


class _Counter:
    """Adds up the saved tensors; `tokens` are those of the whole batch, of one stack."""

    def __init__(self, config: T5ExperimentalConfig, step: Step):
        self.config, self.step = config, step
        self.width = config.d_model
        self.rate = config.dropout_rate
        self.drops = config.dropout_rate > 0 and not config.broadcast_dropout

    def count(self) -> Activations:
        config, step = self.config, self.step
        source, target = step.examples * step.source, step.examples * step.target
        total = self._ends(source) + self._ends(target) + self._loss(target)
        if not self._casts():  # else every layer keeps a copy of its own
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
                # The block's input is there in any case.
                recomputed = max(recomputed, kept - tokens * self.width * step.stream)
        return Activations(total + blocks, recomputed)

    # Pieces that occur several times.

    def _casts(self) -> bool:
        return self.step.autocast and not self.step.half

    def _noise(self, numbers: int, size: int) -> int:
        """What dropout of `numbers` of `size` bytes each remembers: factors on the CPU, booleans elsewhere."""
        return numbers * (size if self.step.device == "cpu" else 1) if self.drops else 0

    def _inputs(self, tokens: int, width: int, layers: int) -> int:
        """What `layers` linear layers keep of one input: one tensor, but a copy for each where autocast makes one."""
        step, size = self.step, tokens * width * self.step.product
        if step.trained == "prompt":
            return 0
        low_rank = tokens * step.rank * step.product * layers
        if step.trained == "adapters" and self.rate:  # dropout of their own
            noise = tokens * width * (step.product if step.device == "cpu" else 1)
            return layers * (size + noise) + low_rank
        return size * (layers if self._casts() else 1) + low_rank

    def _norm(self, tokens: int) -> int:
        """Input and its root mean squares; without a fused kernel, as on the CPU, also what the scale multiplies."""
        factor = 2 if self.step.device == "cpu" and self.step.trained == "all" else 1
        return tokens * (self.width * self.step.stream * factor + _WIDE)

    def _ends(self, tokens: int) -> int:
        """Ids, dropout of the embedded input, final norm and its dropout."""
        numbers = tokens * self.width
        return tokens * _INDEX + 2 * self._noise(numbers, self.step.stream) + self._norm(tokens)

    # Attention.

    def _path(self, spec: LayerSpec, queries: int, keys: int, has_bias: bool) -> Literal["rows", "fused", "pairs"]:
        """How the attention is computed, see `T5Attention.uses_blocks` and `T5TalkingHeadsAttention`."""
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
        """What an attention keeps between its projections, and what of that it returns."""
        step = self.step
        rows, columns = step.examples * queries, step.examples * keys
        of_keys, of_values = spec.num_key_heads * spec.d_k, spec.num_value_heads * spec.d_v
        pairs = step.examples * queries * keys
        returned = rows * of_values * step.product
        path, size = self._path(spec, queries, keys, has_bias), step.product
        is_math = path == "pairs" and spec.attention_type != TALKING_HEADS and step.attention == "sdpa"
        if is_math:
            size = _WIDE
        kept = (rows * of_keys + columns * (of_keys + of_values)) * size
        if path == "fused":
            return kept + returned + rows * spec.num_heads * _WIDE, returned
        # The output projection keeps its input, if it learns anything.
        kept += self._inputs(rows, of_values, 1)
        if path == "rows":
            return kept, returned
        kept += pairs * spec.num_heads * _WIDE  # what the softmax returns
        if spec.attention_type == TALKING_HEADS:
            learned = spec.num_key_heads + spec.num_heads if step.trained == "all" else 0  # inputs of both mixes
            return kept + pairs * (learned + spec.num_value_heads) * size + self._noise(
                pairs * spec.num_value_heads, size
            ), 0
        # What is multiplied by the values, and before its dropout, unless that is what the softmax returned.
        kept += pairs * spec.num_heads * size * ((size < _WIDE) + self.drops)
        return kept + self._noise(pairs * spec.num_heads, size), 0

    def _biases(self, specs: tuple[LayerSpec, ...], length: int, is_decoder: bool) -> int:
        """Position bias and mask of every pair, which a stack has once for each number of heads, where an attention
        cannot do without; products in bfloat16 make a copy for each layer."""
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
                total += examples * spec.num_heads * pairs * step.product
        return total

    # A block.

    def _block(self, spec: LayerSpec, is_decoder: bool) -> tuple[int, int]:
        """What a block keeps, and what its attentions return of that."""
        step = self.step
        length = step.target if is_decoder else step.source
        tokens = step.examples * length
        after = self._noise(tokens * self.width, step.product)
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
        # Input of the activation and both factors of the gate; of relu the output, which may be the next layer's input.
        inner = 3 if gated else 1 if self.drops else 0
        total = self._inputs(tokens, self.width, 2 if gated else 1) + numbers * inner * self.step.product
        return total + self._noise(numbers, self.step.product) + self._inputs(tokens, d_ff, 1)

    def _loss(self, tokens: int) -> int:
        """Hidden states below the classifier, and the last chunk's logits, or all."""
        config, step = self.config, self.step
        total = tokens * (self.width * step.stream + 3 * _INDEX)
        if step.whole_logits:
            return total + tokens * config.vocab_size * _WIDE
        last = tokens - (tokens - 1) // _CHUNK * _CHUNK
        return total + last * config.vocab_size * _WIDE
