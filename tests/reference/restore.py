"""Restores exported checkpoints with the original code, and compares what it computes then with the golden data.

    python restore.py FOLDER ...

Each folder is what `t5-experimental export` wrote from a converted golden checkpoint, optimizer included, and has its
name. Nothing but the exported `operative_config.gin` tells the original what to build: neither its defaults nor the gin
files of the `t5` wheel are read. Only dropout is switched off.

Run it in the environment of `requirements.txt` beside this file. The exit status is 1 if anything differs.
"""

import os
import pathlib
import sys


# For this process: the reference is a CPU reference, and the start-up log is noise.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import gin
import mesh_oracle
import mesh_tensorflow as mtf
import numpy as np
import tensorflow.compat.v1 as tf
from mesh_tensorflow import optimize
from mesh_tensorflow.transformer import utils


HERE = pathlib.Path(__file__).resolve().parent

# That of all recipes.
LEARNING_RATE = 0.03
# With the arithmetic that the golden data were made with nothing differs; other kernels round their sums differently.
TOLERANCE = 1e-5


def restore(folder, golden, dtype=None):
    """Restores one checkpoint, variables, slots and step, and runs it.

    Args:
        folder: the exported checkpoint.
        golden: dict of the arrays in `golden.npz`.
        dtype: a `mtf.VariableDType`; what the gin file says unless given.

    Returns:
        Dict with `logits`, `loss` and `loss_after_step`.
    """
    gin.clear_config()
    gin.parse_config_files_and_bindings([str(folder / "operative_config.gin")], ["dropout_rate = 0.0"])
    features = {name: golden[name] for name in mesh_oracle.FEATURES if name in golden}
    with tf.Graph().as_default():
        # The count of rows is a multiple of the vocabulary divisor, so that it is not rounded up once more.
        built = mesh_oracle.build_teacher_forced(
            features, golden["logits"].shape[-1], dtype or utils.get_variable_dtype()
        )
        variables = built.graph.trainable_variables
        gradients = mtf.gradients([built.loss], [v.outputs[0] for v in variables])
        adafactor = optimize.AdafactorOptimizer(
            learning_rate=LEARNING_RATE, min_dim_size_to_factor=mesh_oracle.MIN_DIM_SIZE_TO_FACTOR
        )
        # The update reads the step for Adafactor's decay.
        tf.train.get_or_create_global_step()
        updates = adafactor.apply_grads(gradients, variables)
        lowering = mesh_oracle.lower(built.graph, built.mesh)
        logits = lowering.export_to_tf_tensor(built.logits)
        loss = tf.cast(lowering.export_to_tf_tensor(built.loss), tf.float32)
        update = tf.group(*[lowering.lowered_operation(u) for u in updates])
        saver = tf.train.Saver(tf.global_variables())
        masters_to_slices = lowering.copy_masters_to_slices()
        feed = {built.placeholders[name]: value for name, value in features.items()}
        with tf.Session() as session:
            saver.restore(session, tf.train.latest_checkpoint(str(folder)))
            session.run(masters_to_slices)
            found = dict(zip(("logits", "loss"), session.run([logits, loss], feed), strict=True))
            session.run(update, feed)
            found["loss_after_step"] = session.run(loss, feed)
    return found


def main(folders):
    """Restores all folders; returns the exit status."""
    tf.disable_eager_execution()
    tf.logging.set_verbosity(tf.logging.ERROR)
    failed = False
    for folder in map(pathlib.Path, folders):
        with np.load(HERE / "golden" / folder.name / "golden.npz") as arrays:
            golden = dict(arrays)
        found = restore(folder, golden)
        differences = {name: float(np.abs(value - golden[name]).max()) for name, value in found.items()}
        different = any(difference > TOLERANCE for difference in differences.values())
        summary = ", ".join(f"{name} off by {difference:.1e}" for name, difference in differences.items())
        print(f"{'DIFFERENT' if different else 'ok'}: {folder.name}: {summary}", flush=True)
        failed |= different
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
