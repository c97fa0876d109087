"""Takes Adafactor steps with T5X's own optimizer, and writes states and results to an .npz file.

    python make_t5x_steps.py T5X/t5x/adafactor.py --out t5x_steps.npz

T5X does not install beside today's packages, but its Adafactor is one module, which needs jax, flax and absl alone:
what it takes from the rest of T5X, three names of a few lines, stands here.

A small T5 in T5X's two layouts, "layers" with arrays of their own and "scanned" on axis 1, has made three steps with
random gradients. For each layout the file holds, by T5X's names below `<layout>/`, `target/...` (the arrays) and
`state/param_states/...` as a checkpoint of then would hold them, `gradient/...` of the next step, `after/...`, the
arrays after it. `step` and `learning_rate` are those of that step.
"""

import argparse
import importlib.util
import pathlib
import sys
import types

import jax.numpy as jnp
import numpy as np
from flax import core, struct, traverse_util


HEADS, D_MODEL, D_KV, D_FF, VOCAB = 2, 12, 4, 20, 24
LAYERS = {"encoder": 2, "decoder": 3}
STEPS, LEARNING_RATE = 3, 0.03
# Of two dimensions, both must be of this size to be factored. Scanned kernels are factored in any case.
SMALLEST = 12

# Shapes and logical axes, from t5x/examples/scalable_t5/layers.py.
TO_HEADS = ((D_MODEL, HEADS, D_KV), ("embed", "heads", "kv"))
FROM_HEADS = ((HEADS, D_KV, D_MODEL), ("heads", "kv", "embed"))
SCALE = ((D_MODEL,), ("embed",))
BIAS = ((HEADS, 32), ("heads", "relpos_buckets"))
MLP = {
    "mlp/wi_0/kernel": ((D_MODEL, D_FF), ("embed", "mlp")),
    "mlp/wi_1/kernel": ((D_MODEL, D_FF), ("embed", "mlp")),
    "mlp/wo/kernel": ((D_FF, D_MODEL), ("mlp", "embed")),
    "pre_mlp_layer_norm/scale": SCALE,
}


def attention(name):
    """Arrays of an attention."""
    kernels = {f"{name}/{part}/kernel": TO_HEADS for part in ("query", "key", "value")}
    return {**kernels, f"{name}/out/kernel": FROM_HEADS}


LAYER = {
    "encoder": {**attention("attention"), "pre_attention_layer_norm/scale": SCALE, **MLP},
    "decoder": {
        **attention("self_attention"),
        "pre_self_attention_layer_norm/scale": SCALE,
        **attention("encoder_decoder_attention"),
        "pre_cross_attention_layer_norm/scale": SCALE,
        **MLP,
    },
}
TOP = {
    "token_embedder/embedding": ((VOCAB, D_MODEL), ("vocab", "embed")),
    "decoder/logits_dense/kernel": ((D_MODEL, VOCAB), ("embed", "vocab")),
    "encoder/encoder_norm/scale": SCALE,
    "decoder/decoder_norm/scale": SCALE,
}


def unstacked():
    """Shapes and axes of the layout in which layers have arrays of their own."""
    tables = {f"{stack}/relpos_bias/rel_embedding": BIAS for stack in LAYERS}
    layers = {
        f"{stack}/layers_{i}/{name}": said
        for stack, count in LAYERS.items()
        for i in range(count)
        for name, said in LAYER[stack].items()
    }
    return {**TOP, **tables, **layers}


def scanned():
    """Shapes and axes of the layout in which layers share arrays."""
    found = dict(TOP)
    for stack, count in LAYERS.items():
        for name, (shape, axes) in {**LAYER[stack], "relpos_bias/rel_embedding": BIAS}.items():
            wide = (*shape[:1], count, *shape[1:])
            found[f"{stack}/{stack}/{name}"] = wide, (*axes[:1], "layers", *axes[1:])
    return found


def load_adafactor(path):
    """The module of T5X."""

    @struct.dataclass
    class OptimizerState:
        step: object
        param_states: object

    class OptimizerDef:
        def __init__(self, hyper_params):
            self.hyper_params = hyper_params

    package, utils, optimizers = (types.ModuleType(name) for name in ("t5x", "t5x.utils", "t5x.optimizers"))
    utils.flatten_dict_string_keys = flat
    optimizers.OptimizerState, optimizers.OptimizerDef = OptimizerState, OptimizerDef
    package.utils = utils
    sys.modules |= {"t5x": package, "t5x.utils": utils, "t5x.optimizers": optimizers}
    spec = importlib.util.spec_from_file_location("t5x.adafactor", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def nested(tree):
    """A dict of dicts of names that "/" separates."""
    return traverse_util.unflatten_dict(tree, sep="/")


def flat(tree):
    """The inverse of `nested`."""
    return traverse_util.flatten_dict(core.unfreeze(tree), sep="/")


class Axes:
    """Names of axes, as one leaf of a tree, which a tuple would not be."""

    def __init__(self, names):
        self._names = names

    def __iter__(self):
        return iter(self._names)


def run(adafactor, layout, seed):
    """Takes the steps; returns what the file holds of a layout."""
    generator = np.random.default_rng(seed)
    arrays = {name: generator.standard_normal(shape).astype(np.float32) for name, (shape, _) in layout.items()}
    params = nested({name: jnp.asarray(array) for name, array in arrays.items()})
    optimizer = adafactor.Adafactor(
        LEARNING_RATE,
        min_dim_size_to_factor=SMALLEST,
        logical_factor_rules=adafactor.standard_logical_factor_rules(),
    )
    optimizer.set_param_axes(nested({name: Axes(axes) for name, (_, axes) in layout.items()}))
    state = optimizer.init_state(params)
    for _ in range(STEPS):
        grads = nested(gradients(generator, layout))
        params, state = optimizer.apply_gradient(optimizer.hyper_params, params, state, grads)
    grads = nested(gradients(generator, layout))
    after, _ = optimizer.apply_gradient(optimizer.hyper_params, params, state, grads)
    found = {
        f"state/param_states/{name}/{kind}": getattr(slots, kind)
        for name, slots in flat(state.param_states).items()
        for kind in ("m", "v", "v_col", "v_row")
    }
    for key, tree in {"target": params, "gradient": grads, "after": after}.items():
        found |= {f"{key}/{name}": array for name, array in flat(tree).items()}
    return {name: np.asarray(array) for name, array in found.items()}


def gradients(generator, layout):
    """Random ones, whose size depends on row and column, so that no mean can stand for another."""
    found = {}
    for name, (shape, _) in layout.items():
        array = generator.standard_normal(shape)
        for axis, size in enumerate(shape):
            scale = np.exp(generator.standard_normal(size))
            array = array * scale.reshape([-1 if k == axis else 1 for k in range(len(shape))])
        found[name] = jnp.asarray(array.astype(np.float32))
    return found


def main():
    """Writes the file."""
    parser = argparse.ArgumentParser(description="Record steps of T5X's Adafactor.")
    parser.add_argument("adafactor", type=pathlib.Path, help="t5x/adafactor.py of a checkout")
    parser.add_argument("--out", required=True, type=pathlib.Path, help="the .npz file to write")
    args = parser.parse_args()
    adafactor = load_adafactor(args.adafactor)
    found = {"step": np.int32(STEPS), "learning_rate": np.float32(LEARNING_RATE)}
    for seed, (name, layout) in enumerate({"layers": unstacked(), "scanned": scanned()}.items()):
        found |= {f"{name}/{key}": array for key, array in run(adafactor, layout, seed).items()}
    np.savez_compressed(args.out, **found)
    print(f"{args.out.name}: {args.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
