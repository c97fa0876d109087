"""Runs the original on batches in which some examples have targets but no inputs, and records what it computes.

Restores the golden checkpoints of `CHECKPOINTS`. Some rows of their own examples lose all inputs, and some packed rows
the inputs of one or of all their sequences. The file holds, under `<checkpoint>/`, what `golden.npz` holds: inputs,
targets, of packed rows segments and positions, loss, loss_after_step, and of unpacked ones greedy and beam4; in place
of the logits, which are large, `scores`, the log-probability of each target, float32 [batch, length].
"""

import argparse
import os
import pathlib


# For this process: the reference is a CPU reference, and the start-up log is noise.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import gin
import mesh_oracle
import numpy as np
import restore
import tensorflow.compat.v1 as tf


HERE = pathlib.Path(__file__).resolve().parent
CHECKPOINTS = ("t5.1.1.tiny", "t5.1.th.tiny", "t5.1.n4w10.tiny", "t5.1.0.tiny", "t5.1.1.tiny-packed")
# As in the recipes of those that decode.
DECODE_LENGTH = 20


def without_inputs(golden):
    """Takes inputs away from the examples of a golden file.

    Args:
        golden: dict of its arrays.

    Returns:
        Dict of the features, with changed inputs.
    """
    features = {name: golden[name].copy() for name in mesh_oracle.FEATURES if name in golden}
    inputs = features["inputs"]
    if "inputs_segmentation" not in features:
        inputs[[0, 2]] = 0
        return features
    segments = features["inputs_segmentation"]
    # The second sequence of the first row, the last one of the second, and all of the third.
    lost = np.zeros_like(segments, bool)
    lost[0], lost[1], lost[2] = segments[0] == 2, segments[1] == 3, True
    for name in ("inputs", "inputs_segmentation", "inputs_position"):
        features[name][lost] = 0
    return features


def scores(logits, targets):
    """Returns the log-probability of each target."""
    logits = logits.astype(np.float64)
    largest = logits.max(-1, keepdims=True)
    log_z = np.log(np.exp(logits - largest).sum(-1)) + largest[..., 0]
    return (np.take_along_axis(logits, targets[..., None], -1)[..., 0] - log_z).astype(np.float32)


def run(name):
    """Returns a dict of the features and of what the original makes of them, for one golden checkpoint."""
    folder = HERE / "golden" / name
    with np.load(folder / "golden.npz") as arrays:
        golden = dict(arrays)
    features = without_inputs(golden)
    dtype = mesh_oracle.variable_dtype("float32")
    found = restore.restore(folder, {**features, "logits": golden["logits"]}, dtype)
    if "inputs_segmentation" not in features:
        rows = golden["logits"].shape[-1]
        args = argparse.Namespace(vocab=rows, decode_length=DECODE_LENGTH)
        checkpoint = tf.train.latest_checkpoint(str(folder))
        found.update(mesh_oracle.decode(features["inputs"], checkpoint, args, dtype))
    gin.clear_config()
    found["scores"] = scores(found.pop("logits"), features["targets"])
    return {**features, **found}


def main():
    """Writes the file."""
    parser = argparse.ArgumentParser(description="Record what the original makes of examples without inputs.")
    parser.add_argument("--out", required=True, type=pathlib.Path, help="the .npz file to write")
    args = parser.parse_args()
    tf.disable_eager_execution()
    tf.logging.set_verbosity(tf.logging.ERROR)
    found = {f"{name}/{key}": value for name in CHECKPOINTS for key, value in run(name).items()}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(args.out, **found)
    losses = ", ".join(f"{name} {found[f'{name}/loss']:.4f}" for name in CHECKPOINTS)
    print(f"{args.out.name}: losses {losses}")


if __name__ == "__main__":
    main()
