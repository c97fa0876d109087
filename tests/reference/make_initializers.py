"""Measures how the original initialises every kind of variable, and writes the statistics to a JSON file.

Three tiny models (plain t5.1.1, talking heads with three different head counts, t5.1.0) are initialised with several
seeds. Their sizes are all different, so that a formula with the wrong size in it cannot pass by accident. Variables of
one kind are pooled over layers, stacks and seeds.

Each entry holds the kind's `formula` (of the standard deviation the original asks for, with the sizes as given in
`sizes`), its value `requested_std`, the measured statistics and the `distribution` they tell:

    constant            every value is the same
    uniform             max |x| / std is sqrt(3)
    normal              untruncated: max |x| / requested std well above 2
    truncated_normal    nothing beyond 2 requested standard deviations, and the measured std is only
                        0.8796 of the requested: TensorFlow cuts the tails off and does not rescale
"""

import argparse
import collections.abc
import dataclasses
import json
import math
import pathlib
import re

import mesh_oracle
import numpy as np
import tensorflow.compat.v1 as tf


SEEDS = range(1, 9)
VOCAB = 1024
BUCKETS = 32
PLAIN = {"d_model": 128, "d_ff": 192, "d_kv": 16, "num_heads": 6, "num_layers": 2, "dropout_rate": 0.0}
TALKING = {
    "d_model": 128,
    "d_ff": 192,
    "num_layers": 2,
    "key_heads": 8,
    "heads": 6,
    "value_heads": 5,
    "key_size": 16,
    "value_size": 12,
}


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of variable.

    Attributes:
        pattern: regular expression that the variables' names match.
        formula: the standard deviation that the original asks for, in words of the sizes.
        requested_std: the same as a function of the sizes.
    """

    pattern: str
    formula: str
    requested_std: collections.abc.Callable


def scaled(pattern, *sizes):
    """Returns a kind whose variance is one over the product of the named sizes; without any, it is one."""
    product = " * ".join(sizes)
    formula = f"({product}) ** -0.5" if len(sizes) > 1 else f"{product} ** -0.5" if sizes else "1"
    return Kind(pattern, formula, lambda of: math.prod(of[size] for size in sizes) ** -0.5)


def glorot_bias(heads):
    """Returns the kind of the [heads, buckets] bias: uniform within (6 / (heads + buckets)) ** 0.5 of zero."""
    pattern = r"/relative_attention_bias$"
    return Kind(pattern, f"(2 / ({heads} + {BUCKETS})) ** 0.5", lambda of: (2 / (of[heads] + BUCKETS)) ** 0.5)


COMMON_KINDS = {
    "embedding": scaled(r"shared/embedding$"),
    "rms_scale": Kind(r"/rms_norm/scale$", "0 (every value is 1)", lambda of: 0.0),
    "feed_forward_wo": scaled(r"/DenseReluDense/wo/kernel$", "d_ff"),
}
ATTENTION_KINDS = {
    "attention_q": scaled(r"Attention/q$", "d_model", "d_kv"),
    "attention_k": scaled(r"Attention/k$", "d_model"),
    "attention_v": scaled(r"Attention/v$", "d_model"),
    "attention_o": scaled(r"Attention/o$", "num_heads", "d_kv"),
    "relative_attention_bias": glorot_bias("num_heads"),
}
TALKING_KINDS = {
    "talking_heads_q": scaled(r"Attention/q/kernel$", "d_model", "key_size"),
    "talking_heads_k": scaled(r"Attention/k/kernel$", "d_model"),
    "talking_heads_v": scaled(r"Attention/v/kernel$", "d_model"),
    "talking_heads_y": scaled(r"Attention/y/kernel$", "value_heads", "value_size"),
    "talking_heads_logits": scaled(r"Attention/logits/kernel$", "key_heads"),
    "talking_heads_weights": scaled(r"Attention/weights/kernel$", "heads"),
    "relative_attention_bias": glorot_bias("heads"),
}
GATED_KINDS = {
    "feed_forward_wi_0": scaled(r"/DenseReluDense/wi_0/kernel$", "d_model"),
    "feed_forward_wi_1": scaled(r"/DenseReluDense/wi_1/kernel$", "d_model"),
    "classifier": scaled(r"decoder/logits/kernel$", "d_model"),
}
UNGATED_KINDS = {"feed_forward_wi": scaled(r"/DenseReluDense/wi/kernel$", "d_model")}


def talking_bindings(sizes):
    """Returns the gin statements of a talking-heads model of the given sizes."""
    layer = "TalkingHeadsSelfAttention"
    statements = [f"{name}={sizes[name]}" for name in ("d_model", "d_ff", "num_layers")]
    for axis, name in (("key", "key_heads"), ("softmax", "heads"), ("value", "value_heads")):
        statements.append(f"{layer}.{axis}_heads_dims=[({name!r}, {sizes[name]})]")
    return statements + [f"{layer}.{name}={sizes[name]}" for name in ("key_size", "value_size")]


def plain_bindings(sizes):
    """Returns the gin statements of a model without talking heads of the given sizes."""
    return [f"{name}={value}" for name, value in sizes.items()]


# Gin model: its sizes, its gin statements and the kinds of variables it has.
MODELS = {
    "t5.1.1.base": (PLAIN, plain_bindings(PLAIN), {**COMMON_KINDS, **ATTENTION_KINDS, **GATED_KINDS}),
    "t5.1.th.base": (TALKING, talking_bindings(TALKING), {**COMMON_KINDS, **TALKING_KINDS, **GATED_KINDS}),
    "t5.1.0.small": (PLAIN, plain_bindings(PLAIN), {**COMMON_KINDS, **ATTENTION_KINDS, **UNGATED_KINDS}),
}


def initial_values(seed):
    """Builds the configured model and initialises it.

    Args:
        seed: TensorFlow's graph-level seed.

    Returns:
        Dict from variable name to its initial value, a float32 array.
    """
    one_token = np.zeros((1, 1), np.int32)
    with tf.Graph().as_default():
        tf.set_random_seed(seed)
        mesh_oracle.build_teacher_forced(
            {"inputs": one_token, "targets": one_token}, VOCAB, mesh_oracle.variable_dtype("float32")
        )
        with tf.Session() as session:
            session.run(tf.global_variables_initializer())
            return session.run({variable.op.name: variable for variable in tf.trainable_variables()})


def pool_by_kind(runs, kinds):
    """Pools the values of all variables of a kind.

    Args:
        runs: list of dicts from variable name to array.
        kinds: dict from the kind's name to its `Kind`.

    Returns:
        Dict from kind to its values, a float64 array of one dimension.

    Raises:
        ValueError: if a variable belongs to no kind or to several.
    """
    pools = {kind: [] for kind in kinds}
    for run in runs:
        for name, value in run.items():
            matching = [kind for kind, rule in kinds.items() if re.search(rule.pattern, name)]
            if len(matching) != 1:
                raise ValueError(f"variable {name} belongs to {matching or 'no kind'}; correct the patterns")
            pools[matching[0]].append(value.ravel())
    return {kind: np.concatenate(values).astype(np.float64) for kind, values in pools.items()}


def statistics(values, kind, sizes):
    """Describes the values of one kind of variable, and tells the distribution they come from."""
    requested = kind.requested_std(sizes)
    std = float(values.std())
    result = {
        "formula": kind.formula,
        "requested_std": requested,
        "count": int(values.size),
        "mean": float(values.mean()),
        "std": std,
        "min": float(values.min()),
        "max": float(values.max()),
    }
    if std == 0.0:
        return {**result, "distribution": "constant"}
    farthest = float(np.abs(values).max())
    result["std_over_requested"] = std / requested
    result["max_abs_over_requested"] = farthest / requested
    result["kurtosis"] = float(((values - values.mean()) ** 4).mean() / std**4)
    return {**result, "distribution": distribution(farthest / requested, result["kurtosis"])}


def distribution(farthest, kurtosis):
    """Names a distribution by its farthest value, in requested standard deviations, and its kurtosis.

    A uniform distribution has kurtosis 1.8, a normal one cut off at two standard deviations 2.37, a whole one 3.
    """
    if farthest <= math.sqrt(3) * 1.0001 and kurtosis < 2.0:
        return "uniform"
    return "truncated_normal" if farthest <= 2.0001 else "normal"


def measure(gin_root):
    """Initialises every model with every seed.

    Returns:
        Dict from gin model to its `sizes` and the statistics of its `kinds`.
    """
    report = {}
    for model, (sizes, bindings, kinds) in MODELS.items():
        mesh_oracle.parse_gin(gin_root, model, bindings=bindings)
        pools = pool_by_kind([initial_values(seed) for seed in SEEDS], kinds)
        report[model] = {
            "sizes": {**sizes, "vocab": VOCAB, "buckets": BUCKETS},
            "seeds": list(SEEDS),
            "kinds": {kind: statistics(values, kinds[kind], sizes) for kind, values in pools.items()},
        }
    return report


def main():
    """Writes the file."""
    parser = argparse.ArgumentParser(description="Measure how the original initialises its variables.")
    parser.add_argument("--gin-root", required=True, help="the folder t5/models/gin of the t5 wheel")
    parser.add_argument("--out", required=True, type=pathlib.Path, help="the .json file to write")
    args = parser.parse_args()
    tf.disable_eager_execution()
    tf.logging.set_verbosity(tf.logging.ERROR)
    report = measure(args.gin_root)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"{args.out.name}: {sum(len(entry['kinds']) for entry in report.values())} kinds of variables")


if __name__ == "__main__":
    main()
