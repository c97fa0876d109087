"""Makes the reference data again with the original code, and compares it with the stored data.

    python recreate.py --gin-root GIN --out DIR            everything, into DIR
    python recreate.py t5.1.1.tiny buckets --gin-root ...  some of it
    python recreate.py --check --gin-root ... --out DIR    compare with what lies beside this file

With `--check` the exit status is 1 if anything differs by more than the tolerances below. What must be equal and what
may drift is decided in the `compare_*` functions.

Run it in the environment of `requirements.txt` beside this file; `make_reference.sh` sets one up.
"""

import argparse
import json
import os
import pathlib
import shlex
import subprocess
import sys

import numpy as np
from recipes import RECIPES


HERE = pathlib.Path(__file__).resolve().parent

# For this process and for the scripts it starts: the reference is a CPU reference, and the start-up log is noise.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# With the same arithmetic a re-creation is equal bit for bit; other kernels round their sums differently, and hundreds
# of training steps enlarge that, to 6 % of a loss in the worst case measured (see the README). The absolute part is for
# the examples learnt by heart, whose losses are close to zero.
LOSS_TOLERANCE = {"rtol": 0.1, "atol": 0.01}
ARITHMETIC_TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
STATISTICS_TOLERANCE = {"rtol": 1e-3, "atol": 1e-6}
EXACT_ARRAYS = (
    "inputs",
    "targets",
    "inputs_segmentation",
    "targets_segmentation",
    "inputs_position",
    "targets_position",
)
LOSSES = ("loss", "loss_after_step")


def short_name(recipe):
    """Returns a recipe's name on the command line, for example `t5.1.1.tiny`, `buckets`, `t5.1.1.base.shapes`."""
    return recipe.output.split("/", maxsplit=1)[1].removesuffix(".npz").removesuffix(".json")


def recreate(recipe, gin_root, out):
    """Runs a recipe in a process of its own, because TensorFlow and gin keep state.

    Args:
        recipe: a `Recipe`.
        gin_root: the folder `t5/models/gin` of the `t5` wheel.
        out: folder that takes the place of this one.

    Returns:
        Path of what was made.
    """
    made = out / recipe.output
    made.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(HERE / recipe.script), *recipe.arguments, "--out", str(made)]
    if recipe.reads_gin:
        command += ["--gin-root", str(gin_root)]
    subprocess.run(command, cwd=HERE, check=True)
    return made


# --- Comparison: each function returns a list of differences and a one-line summary ------------------------------


def relative_difference(new, old):
    """Returns the root mean square of the difference of two arrays, relative to that of the old one."""
    new, old = np.asarray(new, np.float64), np.asarray(old, np.float64)
    scale = np.sqrt(np.mean(old**2))
    difference = np.sqrt(np.mean((new - old) ** 2))
    return float(difference / scale) if scale else float(difference)


def compare_arrays(new, old):
    """Compares two `golden.npz` files.

    The examples must be equal and the losses close. Logits and decoded ids are only summarised: they follow from
    weights that training on another processor changes.
    """
    if set(new) != set(old):
        return [f"golden.npz holds {sorted(new)}, stored are {sorted(old)}"], ""
    differences = [
        f"{name}: shape {new[name].shape}, stored {old[name].shape}"
        for name in old
        if new[name].shape != old[name].shape
    ]
    if differences:
        return differences, ""
    differences += [
        f"{name} differs" for name in EXACT_ARRAYS if name in old and not np.array_equal(new[name], old[name])
    ]
    for name in LOSSES:
        if not np.isclose(new[name], old[name], **LOSS_TOLERANCE):
            differences.append(f"{name}: {new[name]:.6f}, stored {old[name]:.6f}")
    summary = [f"{name} off by {relative_difference(new[name], old[name]):.1e}" for name in (*LOSSES, "logits")]
    summary += [f"{np.mean(new[name] == old[name]):.0%} of {name} equal" for name in ("greedy", "beam4") if name in old]
    return differences, ", ".join(summary)


def compare_checkpoints(new, old):
    """Compares the names, shapes and dtypes of all variables of two checkpoints, and summarises their values."""
    import tensorflow as tf  # here, so that the recipes can be listed without it

    new, old = tf.train.load_checkpoint(str(new)), tf.train.load_checkpoint(str(old))
    new_shapes, old_shapes = new.get_variable_to_shape_map(), old.get_variable_to_shape_map()
    new_dtypes, old_dtypes = new.get_variable_to_dtype_map(), old.get_variable_to_dtype_map()
    differences = [f"variable {name} is missing" for name in sorted(set(old_shapes) - set(new_shapes))]
    differences += [f"variable {name} is new" for name in sorted(set(new_shapes) - set(old_shapes))]
    drift = 0.0
    for name in sorted(set(new_shapes) & set(old_shapes)):
        if new_shapes[name] != old_shapes[name] or new_dtypes[name] != old_dtypes[name]:
            differences.append(
                f"variable {name}: {new_shapes[name]} {new_dtypes[name].name}, "
                f"stored {old_shapes[name]} {old_dtypes[name].name}"
            )
        elif "_slot_" not in name:
            drift = max(drift, relative_difference(new.get_tensor(name), old.get_tensor(name)))
    return differences, f"variables off by up to {drift:.1e}"


def compare_golden(new, old):
    """Compares two golden folders."""
    with np.load(new / "golden.npz") as new_arrays, np.load(old / "golden.npz") as old_arrays:
        differences, summary = compare_arrays(dict(new_arrays), dict(old_arrays))
    more_differences, more_summary = compare_checkpoints(new, old)
    return differences + more_differences, f"{summary}, {more_summary}"


def compare_archives(new, old):
    """Compares two .npz files: integers must be equal, numbers, which no training has changed, nearly so."""
    with np.load(new) as new_arrays, np.load(old) as old_arrays:
        if set(new_arrays) != set(old_arrays):
            return [f"holds {sorted(new_arrays)}, stored are {sorted(old_arrays)}"], ""
        differences = [
            f"{name} differs"
            for name in old_arrays
            if new_arrays[name].shape != old_arrays[name].shape
            or not np.allclose(new_arrays[name], old_arrays[name], **tolerance_of(old_arrays[name]))
        ]
    return differences, "equal"


def tolerance_of(array):
    """Returns how far an array of a kind may be off."""
    return ARITHMETIC_TOLERANCE if np.issubdtype(array.dtype, np.floating) else {"rtol": 0, "atol": 0}


def compare_json(new, old):
    """Compares two JSON files: equal, but for floating-point numbers, which may differ a little."""
    differences = list(json_differences(json.loads(new.read_text()), json.loads(old.read_text()), ""))
    return differences, "equal"


def json_differences(new, old, where):
    """Yields the places where two JSON values differ."""
    if isinstance(old, dict) and isinstance(new, dict) and list(new) == list(old):
        for key in old:
            yield from json_differences(new[key], old[key], f"{where}/{key}")
    elif isinstance(old, float) and isinstance(new, float):
        if not np.isclose(new, old, **STATISTICS_TOLERANCE):
            yield f"{where}: {new}, stored {old}"
    elif new != old:
        yield f"{where}: {new}, stored {old}"


def compare(new, old):
    """Compares what a recipe made with what is stored."""
    if not old.exists():
        return [f"nothing is stored at {old.relative_to(HERE)}"], ""
    if old.is_dir():
        return compare_golden(new, old)
    return compare_archives(new, old) if old.suffix == ".npz" else compare_json(new, old)


# --- Command line ------------------------------------------------------------------------------------------------


def parse_args(argv=None):
    """Reads the command line."""
    parser = argparse.ArgumentParser(description="Make the reference data again with the original code.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="what to make; everything if none is given")
    parser.add_argument("--list", action="store_true", help="list all names with their commands and stop")
    parser.add_argument("--gin-root", type=pathlib.Path, help="the folder t5/models/gin of the t5 wheel")
    parser.add_argument("--out", type=pathlib.Path, help="folder to write to")
    parser.add_argument("--check", action="store_true", help="compare with the stored data; exit 1 if it differs")
    args = parser.parse_args(argv)
    unknown = set(args.names) - {short_name(recipe) for recipe in RECIPES}
    if unknown:
        parser.error(f"unknown name {', '.join(sorted(unknown))}; --list shows all names")
    if not args.list and not (args.gin_root and args.out):
        parser.error("--gin-root and --out are needed")
    if args.check and args.out and args.out.resolve() == HERE:
        parser.error("--check compares --out with this folder, so --out must be another one")
    return args


def main(argv=None):
    """Runs the recipes; returns the exit status."""
    args = parse_args(argv)
    failed = []
    for recipe in RECIPES:
        name = short_name(recipe)
        if args.names and name not in args.names:
            continue
        if args.list:
            print(f"{name}: {recipe.script} {shlex.join(recipe.arguments)}")
            continue
        made = recreate(recipe, args.gin_root.resolve(), args.out.resolve())
        if args.check:
            differences, summary = compare(made, HERE / recipe.output)
            print(f"{'DIFFERENT' if differences else 'ok'}: {name}: {'; '.join(differences) or summary}", flush=True)
            failed += [name] if differences else []
    if failed:
        print(f"{len(failed)} differ from the stored data: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
