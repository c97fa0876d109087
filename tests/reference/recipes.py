"""How every file of the reference data was made: one script and its exact arguments for each.

Only data: `recreate.py` runs it. Paths in the arguments are relative to this folder.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One command that makes one folder or file.

    Attributes:
        output: what it makes, relative to this folder.
        script: the script beside this file that makes it.
        arguments: the script's arguments, less `--out` and `--gin-root`, which `recreate.py` adds.
        reads_gin: whether the script wants `--gin-root`.
    """

    output: str
    script: str
    arguments: tuple = ()
    reads_gin: bool = True


# The sizes every tiny model shares. The released models' sizes come from the gin model itself.
WIDTHS = {"d_model": 32, "d_ff": 64}
PLAIN = {**WIDTHS, "d_kv": 8, "num_heads": 4}
TALKING = {
    **WIDTHS,
    "num_heads": 4,
    "TalkingHeadsSelfAttention.key_size": 8,
    "TalkingHeadsSelfAttention.value_size": 8,
}
UNEVEN = {
    **WIDTHS,
    "TalkingHeadsSelfAttention.key_heads_dims": [("key_heads", 2)],
    "TalkingHeadsSelfAttention.softmax_heads_dims": [("heads", 4)],
    "TalkingHeadsSelfAttention.value_heads_dims": [("value_heads", 3)],
    "TalkingHeadsSelfAttention.key_size": 8,
    "TalkingHeadsSelfAttention.value_size": 6,
}
# A vocabulary that needs no rounding, where its size is beside the point.
SMALL_VOCAB = ("--vocab", "256")
DECODE = ("--decode-length", "20")


def bind(bindings):
    """Returns the `--bind` arguments of a dict of gin bindings."""
    return tuple(f"--bind={name}={value!r}" for name, value in bindings.items())


def golden(name, model, bindings, *arguments):
    """Returns the recipe of a golden folder: a tiny version of a gin model, trained a little."""
    return Recipe(f"golden/{name}", "mesh_oracle.py", ("--model", model, *bind(bindings), *arguments))


def shapes(model, *arguments):
    """Returns the recipe of the variable shapes of a full-size gin model."""
    arguments = arguments or ("--model", model)
    return Recipe(f"shapes/{model}.shapes.json", "mesh_oracle.py", ("--shapes-only", "--vocab", "32100", *arguments))


RECIPES = (
    golden("t5.1.1.tiny", "t5.1.1.base", {**PLAIN, "num_layers": 2}, *("--seed", "1", "--steps", "800"), *DECODE),
    golden("t5.1.th.tiny", "t5.1.th.base", {**TALKING, "num_layers": 2}, *("--seed", "2", "--steps", "800"), *DECODE),
    golden(
        "t5.1.n4w10.tiny",
        "t5.1.1.base",
        PLAIN,
        *("--gin-file", "gin_files/t5.1.n4w10.tiny.gin", "--seed", "3", "--steps", "300"),
        *DECODE,
    ),
    golden(
        "t5.1.1.tiny-packed",
        "t5.1.1.base",
        {**PLAIN, "num_layers": 2},
        *("--packed", "--seed", "4", "--steps", "60"),
    ),
    golden(
        "t5.1.th.tiny-uneven",
        "t5.1.th.base",
        {**UNEVEN, "num_layers": 2},
        *("--seed", "5", "--steps", "300"),
        *SMALL_VOCAB,
        *DECODE,
    ),
    golden(
        "t5.1.mixed.tiny",
        "t5.1.th.base",
        TALKING,
        *("--gin-file", "gin_files/t5.1.mixed.tiny.gin", "--seed", "6", "--steps", "300"),
        *SMALL_VOCAB,
        *DECODE,
    ),
    golden(
        # The only one whose gin model trains with dropout, which golden values cannot have.
        "t5.1.0.tiny",
        "t5.1.0.small",
        {**PLAIN, "num_layers": 2, "dropout_rate": 0.0},
        *("--seed", "7", "--steps", "300"),
        *SMALL_VOCAB,
        *DECODE,
    ),
    golden(
        "t5.1.1.tiny-bfloat16",
        "t5.1.1.base",
        {**PLAIN, "num_layers": 2},
        *("--master-dtype", "bfloat16", "--seed", "8", "--steps", "200"),
        *SMALL_VOCAB,
        *DECODE,
    ),
    golden(
        "t5.1.1.tiny-legacy",
        "t5.1.1.base",
        {**PLAIN, "num_layers": 2},
        *("--gin-file", "gin_files/t5.1.1.tiny-legacy.gin", "--seed", "9", "--steps", "200"),
        *SMALL_VOCAB,
        *DECODE,
    ),
    golden(
        # Longer than the largest bucketed distance, 128, on both sides. Learnt by heart, because only then do the
        # logits depend on every bucket: a barely trained model would not notice a wrong one far away.
        "t5.1.1.tiny-long",
        "t5.1.1.base",
        {**PLAIN, "num_layers": 2},
        *("--batch", "2", "--input-length", "200", "--target-length", "160", "--seed", "10"),
        *("--by-heart", "--steps", "300"),
        *SMALL_VOCAB,
        *("--decode-length", "200"),
    ),
    golden(
        "t5.1.1.tiny-biases",
        "t5.1.1.base",
        {**PLAIN, "num_layers": 3, "SelfAttention.relative_attention_type": "bias"},
        *("--seed", "11", "--steps", "300"),
        *SMALL_VOCAB,
        *DECODE,
    ),
    Recipe("golden/buckets.npz", "make_buckets.py", reads_gin=False),
    Recipe("golden/initializers.json", "make_initializers.py"),
    Recipe("golden/no_inputs.npz", "make_no_inputs.py", reads_gin=False),
    Recipe("golden/curves.npz", "make_curves.py", reads_gin=False),
    shapes("t5.1.1.small"),
    shapes("t5.1.1.base"),
    shapes("t5.1.1.large"),
    shapes("t5.1.1.xl"),
    shapes("t5.1.1.xxl"),
    shapes("t5.1.th.base"),
    shapes("t5.1.th.large"),
    shapes("t5.1.n4w10.base"),
    shapes("t5.1.n4w10.large"),
    # The wheel's file lacks its include and its num_layers; both are given here.
    shapes(
        "t5.1.n4w10.xl",
        *("--model", "t5.1.1.base", "--gin-file", "models/t5.1.n4w10.xl.gin", "--bind=num_layers=1"),
    ),
)
