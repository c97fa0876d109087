"""Runs the original Mesh TensorFlow T5 code on the CPU and records what it computes.

The script builds any gin model of the `t5` wheel, trains it for a few steps with the original
Adafactor so that no variable keeps its initial value, saves a genuine TensorFlow checkpoint with
the optimizer's slot variables, and writes golden inputs and outputs beside it:

    <out>/checkpoint, model.ckpt-<steps>.{index,data-*}
    <out>/operative_config.gin
    <out>/golden.npz    inputs, targets, logits, loss, loss_after_step, greedy, beam4

With `--shapes-only` it writes the name and the dimensions of every trainable variable instead,
which costs no memory and so works for the full-size models.

It needs the environment of `requirements.txt` beside this file, not the project's own.
"""

import argparse
import dataclasses
import json
import logging
import pathlib

import gin
import mesh_tensorflow as mtf
import numpy as np
import tensorflow.compat.v1 as tf
from mesh_tensorflow import optimize
from mesh_tensorflow.transformer import utils


# Adafactor factors a slot only when both of the two largest dimensions reach this size. The original's default,
# 128, would leave every slot of a tiny model unfactored.
MIN_DIM_SIZE_TO_FACTOR = 16
BEAM_SIZE = 4
BEAM_ALPHA = 0.6
EOS_ID = 1
FEATURES = (
    "inputs",
    "targets",
    "inputs_segmentation",
    "targets_segmentation",
    "inputs_position",
    "targets_position",
)
FIRST_PIECE_ID = 3  # 0, 1 and 2 are padding, end of sequence and unknown


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of a batch and of the vocabulary its ids come from.

    Attributes:
        batch: number of examples.
        input_length: length of an encoder sequence, padding included.
        target_length: length of a decoder sequence, padding included.
        vocab: vocabulary size before it is rounded up to a multiple of 128.
        alphabet: number of different pieces in the copy task.
        reserved: number of ids at the end of the vocabulary that no example uses (the sentinels).
    """

    batch: int
    input_length: int
    target_length: int
    vocab: int
    alphabet: int
    reserved: int


@dataclasses.dataclass(frozen=True)
class TeacherForcedGraph:
    """A Mesh graph that maps inputs and targets to logits and a loss.

    Attributes:
        graph: the Mesh graph.
        mesh: the Mesh on which all its tensors live.
        placeholders: TensorFlow placeholders by feature name.
        logits: Mesh tensor, shape [batch, target_length, padded vocabulary].
        loss: Mesh scalar, the training loss with its z-loss.
    """

    graph: mtf.Graph
    mesh: mtf.Mesh
    placeholders: dict
    logits: mtf.Tensor
    loss: mtf.Tensor


# --- Configuration ---------------------------------------------------------------------------------------------


def parse_gin(gin_root, model, gin_files=(), bindings=()):
    """Loads the original's default configuration, then a model's, then overrides.

    Args:
        gin_root: the folder `t5/models/gin` of the `t5` wheel.
        model: name of a file in `gin_root/models` without its suffix, for example `t5.1.1.base`.
        gin_files: further gin files, parsed after the model's; a path or a name relative to `gin_root`.
        bindings: single gin statements such as `d_model=32`; they win over all files.
    """
    defaults = pathlib.Path(utils.__file__).parent / "gin" / "defaults.gin"
    gin.clear_config()
    gin.add_config_file_search_path(str(gin_root))
    # Gin logs an error for every search folder that lacks a file, even when the next one has it.
    logging.disable(logging.ERROR)
    gin.parse_config_files_and_bindings(
        [str(defaults), f"models/{model}.gin", *map(str, gin_files)],
        # The default, bfloat16 activations, has no CPU kernels.
        [*bindings, "utils.get_variable_dtype.activation_dtype='float32'"],
    )
    logging.disable(logging.NOTSET)


def variable_dtype(master):
    """Returns the dtype triple of all variables: `master` in the checkpoint, float32 while computing."""
    return mtf.VariableDType(master_dtype=tf.as_dtype(master), slice_dtype=tf.float32, activation_dtype=tf.float32)


# --- Examples --------------------------------------------------------------------------------------------------


def padded_ids(rng, length, sizes):
    """Draws id sequences that end with an end-of-sequence id and padding.

    The first row is full, so that at least one position of every example set has no padding after it.

    Args:
        rng: a `numpy.random.RandomState`.
        length: length of the sequences.
        sizes: a `Sizes`.

    Returns:
        int32 array, shape [batch, length].
    """
    ids = rng.randint(FIRST_PIECE_ID, sizes.vocab - sizes.reserved, size=(sizes.batch, length)).astype(np.int32)
    for row in range(sizes.batch):
        used = length if row == 0 else rng.randint(max(2, length // 2), length + 1)
        ids[row, used - 1] = EOS_ID
        ids[row, used:] = 0
    return ids


def copy_task_batch(rng, sizes):
    """Draws examples of a task a tiny model can learn, so that decoding gives something to compare.

    The targets repeat the inputs, each piece moved on within the alphabet by 0, 7 or 14 places in turn.

    Args:
        rng: a `numpy.random.RandomState`.
        sizes: a `Sizes`.

    Returns:
        Dict with `inputs`, int32 [batch, input_length], and `targets`, int32 [batch, target_length].
    """
    inputs = padded_ids(rng, sizes.input_length, sizes)
    is_piece = inputs > EOS_ID
    inputs[is_piece] = FIRST_PIECE_ID + inputs[is_piece] % sizes.alphabet
    targets = np.zeros((sizes.batch, sizes.target_length), np.int32)
    for row in range(sizes.batch):
        copied = min(int(is_piece[row].sum()), sizes.target_length - 1)
        moved = inputs[row, :copied] - FIRST_PIECE_ID + 7 * (np.arange(copied) % 3)
        targets[row, :copied] = FIRST_PIECE_ID + moved % sizes.alphabet
        targets[row, copied] = EOS_ID
    return {"inputs": inputs, "targets": targets}


def packed_rows(rng, length, sizes):
    """Draws rows that each hold three sequences, one after the other.

    Args:
        rng: a `numpy.random.RandomState`.
        length: length of the rows.
        sizes: a `Sizes`.

    Returns:
        Tuple of ids, segment ids (from 1, 0 for padding) and positions within the segment, each int32
        [batch, length].
    """
    ids = rng.randint(FIRST_PIECE_ID, sizes.vocab - sizes.reserved, size=(sizes.batch, length)).astype(np.int32)
    segments = np.zeros_like(ids)
    positions = np.zeros_like(ids)
    for row in range(sizes.batch):
        cuts = sorted(rng.choice(np.arange(3, length - 3), size=2, replace=False))
        start = 0
        for number, end in enumerate([*cuts, length - rng.randint(0, 3)], start=1):
            segments[row, start:end] = number
            positions[row, start:end] = np.arange(end - start)
            ids[row, end - 1] = EOS_ID
            start = end
        ids[row, start:] = 0
    return ids, segments, positions


def packed_batch(rng, sizes):
    """Draws packed examples of random ids; returns a dict of the six features, each int32 [batch, length]."""
    features = {}
    for side, length in (("inputs", sizes.input_length), ("targets", sizes.target_length)):
        ids, segments, positions = packed_rows(rng, length, sizes)
        features.update({side: ids, f"{side}_segmentation": segments, f"{side}_position": positions})
    return features


# --- Graphs ----------------------------------------------------------------------------------------------------


def build_teacher_forced(features, vocab, dtype):
    """Builds the training graph as the original's `tpu_estimator_model_fn` does.

    Args:
        features: dict of int32 arrays; only names and shapes are used. Segmentations and positions are optional.
        vocab: vocabulary size before rounding.
        dtype: a `mtf.VariableDType`.

    Returns:
        A `TeacherForcedGraph`.
    """
    graph = mtf.Graph()
    mesh = mtf.Mesh(graph, "mesh")
    model = utils.build_model("bitransformer", input_vocab_size=vocab, output_vocab_size=vocab)
    placeholders, imported = {}, {}
    # A TensorFlow initializer's seed counts the operations made before it: this order is part of the reference.
    for name in [name for name in FEATURES if name in features]:
        batch, length = features[name].shape
        placeholders[name] = tf.placeholder(tf.int32, [batch, length], name=name)
        shape = mtf.Shape([mtf.Dimension("batch", batch), mtf.Dimension("length", length)])
        imported[name] = mtf.import_tf_tensor(mesh, placeholders[name], shape)
    inputs, targets = imported["inputs"], imported["targets"]
    if "inputs_segmentation" in imported:
        context = {
            "encoder_sequence_id": imported["inputs_segmentation"],
            "decoder_sequence_id": imported["targets_segmentation"],
            "encoder_position": imported["inputs_position"],
            "decoder_position": imported["targets_position"],
        }
    else:
        context = {"encoder_sequence_id": mtf.minimum(inputs, 1), "decoder_sequence_id": mtf.minimum(targets, 1)}
    logits, loss = model.call_simple(
        inputs=inputs,
        targets=targets,
        compute_loss=True,
        mode=tf.estimator.ModeKeys.TRAIN,
        variable_dtype=dtype,
        **context,
    )
    return TeacherForcedGraph(graph, mesh, placeholders, logits, loss)


def lower(graph, mesh):
    """Lowers a Mesh graph to TensorFlow operations on one device."""
    implementation = mtf.placement_mesh_impl.PlacementMeshImpl(shape=[], layout={}, devices=[""])
    return mtf.Lowering(graph, {mesh: implementation})


def variable_dimensions(features, vocab, dtype):
    """Builds a model without running it.

    Returns:
        Dict from the name of every trainable variable, in the order of creation, to its [name, size] pairs.
    """
    with tf.Graph().as_default():
        built = build_teacher_forced(features, vocab, dtype)
        return {v.name: [[d.name, d.size] for d in v.shape.dims] for v in built.graph.trainable_variables}


# --- Runs ------------------------------------------------------------------------------------------------------


def train_and_save(features, next_batch, args, dtype):
    """Trains, saves a checkpoint and computes the teacher-forced golden values.

    Args:
        features: the golden batch, a dict of int32 arrays.
        next_batch: function without arguments that returns the next training batch.
        args: the parsed command line.
        dtype: a `mtf.VariableDType`.

    Returns:
        Tuple of the checkpoint's path, the dict of golden values and the list of training losses.
    """
    with tf.Graph().as_default():
        tf.set_random_seed(args.seed + 1)
        built = build_teacher_forced(features, args.vocab, dtype)
        variables = built.graph.trainable_variables
        gradients = mtf.gradients([built.loss], [v.outputs[0] for v in variables])
        adafactor = optimize.AdafactorOptimizer(
            learning_rate=args.learning_rate, min_dim_size_to_factor=args.min_dim_size_to_factor
        )
        updates = adafactor.apply_grads(gradients, variables)

        lowering = lower(built.graph, built.mesh)
        loss = tf.cast(lowering.export_to_tf_tensor(built.loss), tf.float32)
        logits = lowering.export_to_tf_tensor(built.logits)
        update = tf.group(*[lowering.lowered_operation(u) for u in updates])
        global_step = tf.train.get_or_create_global_step()
        # The update reads the step for Adafactor's decay, so the step must not move before the update is done.
        with tf.control_dependencies([update]):
            advance = tf.assign_add(global_step, 1)
        saver = tf.train.Saver(tf.global_variables(), sharded=False, save_relative_paths=True)
        slices_to_masters = lowering.copy_slices_to_masters()
        masters_to_slices = lowering.copy_masters_to_slices()

        def feed(batch):
            return {built.placeholders[name]: value for name, value in batch.items()}

        with tf.Session() as session:
            session.run(tf.global_variables_initializer())
            session.run(masters_to_slices)
            losses = [float(session.run([loss, advance], feed(next_batch()))[0]) for _ in range(args.steps)]
            session.run(slices_to_masters)
            # Back again: the slices now hold what a restored run would see, rounded if the masters are bfloat16.
            session.run(masters_to_slices)
            golden = dict(features)
            golden["logits"], golden["loss"] = session.run([logits, loss], feed(features))
            path = saver.save(
                session, str(args.out / "model.ckpt"), global_step=int(session.run(global_step)), write_meta_graph=False
            )
            session.run(update, feed(features))
            golden["loss_after_step"] = session.run(loss, feed(features))
    return path, golden, losses


def decode(inputs, checkpoint, args, dtype):
    """Decodes with the original's greedy and beam search from a saved checkpoint.

    Args:
        inputs: int32 array, shape [batch, input_length].
        checkpoint: path of the checkpoint to restore.
        args: the parsed command line.
        dtype: a `mtf.VariableDType`.

    Returns:
        Dict with `greedy` and `beam4`, int32 [batch, input_length]: the original decodes into a sequence as long
        as its input.
    """
    with tf.Graph().as_default():
        graph = mtf.Graph()
        mesh = mtf.Mesh(graph, "mesh")
        model = utils.build_model("bitransformer", input_vocab_size=args.vocab, output_vocab_size=args.vocab)
        placeholder = tf.placeholder(tf.int32, inputs.shape)
        shape = mtf.Shape([mtf.Dimension("batch", inputs.shape[0]), mtf.Dimension("length", inputs.shape[1])])
        imported = mtf.import_tf_tensor(mesh, placeholder, shape)
        options = {
            "variable_dtype": dtype,
            "decode_length_multiplier": 0.0,
            "decode_length_constant": args.decode_length,
        }
        greedy = model.decode(imported, beam_size=1, temperature=0.0, **options)
        beam = model.decode(imported, beam_size=BEAM_SIZE, alpha=BEAM_ALPHA, **options)
        lowering = lower(graph, mesh)
        outputs = {"greedy": lowering.export_to_tf_tensor(greedy), "beam4": lowering.export_to_tf_tensor(beam)}
        saver = tf.train.Saver(tf.global_variables())
        masters_to_slices = lowering.copy_masters_to_slices()
        with tf.Session() as session:
            saver.restore(session, checkpoint)
            session.run(masters_to_slices)
            return session.run(outputs, {placeholder: inputs})


# --- Files -----------------------------------------------------------------------------------------------------


def write_shapes(path, dimensions):
    """Writes variable names and dimensions as JSON, one variable a line so that a difference is easy to read."""
    total = sum(int(np.prod([size for _, size in dims])) for dims in dimensions.values())
    lines = [f"  {json.dumps(name)}: {json.dumps(dims)}" for name, dims in dimensions.items()]
    text = f'{{"total_parameters": {total},\n "variables": {{\n' + ",\n".join(lines) + "\n }}\n"
    path.write_text(text, encoding="utf-8")
    print(f"{path.name}: {len(lines)} variables, {total:,} parameters")


def write_golden(args):
    """Makes one golden folder: examples, training, checkpoint, decoding and configuration."""
    rng = np.random.RandomState(args.seed)
    sizes = Sizes(args.batch, args.input_length, args.target_length, args.vocab, args.alphabet, args.reserved_ids)
    dtype = variable_dtype(args.master_dtype)
    # Drawn even if a packed batch replaces it: so the stored packed golden was made.
    features = copy_task_batch(rng, sizes)
    if args.packed:
        features = packed_batch(rng, sizes)
    by_heart = args.packed or args.by_heart
    next_batch = (lambda: features) if by_heart else (lambda: copy_task_batch(rng, sizes))
    path, golden, losses = train_and_save(features, next_batch, args, dtype)
    if args.decode_length:
        golden.update(decode(features["inputs"], path, args, dtype))
    np.savez_compressed(args.out / "golden.npz", **golden)
    (args.out / "operative_config.gin").write_text(gin.operative_config_str(), encoding="utf-8")
    print(
        f"{args.out.name}: training loss {losses[0]:.4f} -> {losses[-1]:.4f}, golden batch {golden['loss']:.4f}, "
        f"after one more step {golden['loss_after_step']:.4f}, {len(tf.train.list_variables(path))} variables"
    )


def parse_args(argv=None):
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description="Run the original Mesh TensorFlow T5 code and record what it computes."
    )
    parser.add_argument("--gin-root", required=True, help="the folder t5/models/gin of the t5 wheel")
    parser.add_argument("--model", required=True, help="gin model name, for example t5.1.1.base")
    parser.add_argument("--gin-file", action="append", default=[], help="a further gin file; may be repeated")
    parser.add_argument("--bind", action="append", default=[], help="a gin statement such as d_model=32; repeatable")
    parser.add_argument("--out", required=True, type=pathlib.Path, help="folder to write (with --shapes-only, a file)")
    parser.add_argument("--shapes-only", action="store_true", help="write variable names and dimensions, train nothing")
    parser.add_argument("--vocab", type=int, default=1100, help="vocabulary size before rounding up to 128")
    parser.add_argument("--reserved-ids", type=int, default=28, help="ids at the vocabulary's end left unused")
    parser.add_argument("--alphabet", type=int, default=40, help="number of different pieces in the copy task")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--input-length", type=int, default=20)
    parser.add_argument("--target-length", type=int, default=16)
    parser.add_argument(
        "--packed", action="store_true", help="learn one packed batch by heart instead of the copy task"
    )
    parser.add_argument("--by-heart", action="store_true", help="learn one batch of the copy task by heart")
    parser.add_argument("--steps", type=int, default=300, help="training steps")
    parser.add_argument("--learning-rate", type=float, default=0.03)
    parser.add_argument(
        "--min-dim-size-to-factor",
        type=int,
        default=MIN_DIM_SIZE_TO_FACTOR,
        help="Adafactor factors larger slots; the original's default is 128",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the examples; the variables' seed is one more")
    parser.add_argument("--master-dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--decode-length", type=int, default=0, help="beam search's length limit; 0: no decoding")
    return parser.parse_args(argv)


def main(argv=None):
    """Writes one golden folder or one shapes file."""
    args = parse_args(argv)
    tf.disable_eager_execution()
    tf.logging.set_verbosity(tf.logging.ERROR)
    parse_gin(args.gin_root, args.model, args.gin_file, args.bind)
    if args.shapes_only:
        one_token = np.zeros((1, 1), np.int32)
        features = {"inputs": one_token, "targets": one_token}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write_shapes(args.out, variable_dimensions(features, args.vocab, variable_dtype(args.master_dtype)))
    else:
        args.out.mkdir(parents=True, exist_ok=True)
        write_golden(args)


if __name__ == "__main__":
    main()
