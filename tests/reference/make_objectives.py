"""Records what the original makes of token sequences: noise masks, all its objectives, packing.

    python make_objectives.py --out objectives.npz
    python make_objectives.py --check               compare with what lies beside this file

Every record has the random decisions beside the outcome: what `seqio.stateless_shuffle` made of the seeds, or the
length of the prefix. Needs the environment of `requirements-objectives.txt`.
"""

import argparse
import functools
import pathlib

import numpy as np
import seqio
import tensorflow as tf
from t5.data import preprocessors


HERE = pathlib.Path(__file__).resolve().parent
VOCABULARY_SIZE = 32100
EOS = 1


class Vocabulary(seqio.PassThroughVocabulary):
    """Ids alone; T5's size and end of sequence."""

    def __init__(self):
        super().__init__(size=VOCABULARY_SIZE, eos_id=EOS)


FEATURES = {name: seqio.Feature(Vocabulary(), add_eos=True) for name in ("inputs", "targets")}


def ragged(arrays):
    """Returns arrays of unequal length as one, and their lengths."""
    return np.concatenate([np.zeros(0, np.int32), *arrays]).astype(np.int32), np.array([len(a) for a in arrays])


def documents(lengths, seed):
    """Returns a dataset of random documents, and the documents."""
    rng = np.random.default_rng(seed)
    arrays = [rng.integers(3, 32000, length).astype(np.int32) for length in lengths]
    spec = {"targets": tf.TensorSpec([None], tf.int32)}
    return tf.data.Dataset.from_generator(lambda: ({"targets": a} for a in arrays), output_signature=spec), arrays


def record_lengths():
    """Returns rows (inputs, density, mean span) and what `random_spans_helper` gives for them."""
    settings = [(n, d, m) for n in (16, 64, 128, 512, 1024) for d in (0.1, 0.15, 0.3, 0.5) for m in (2.0, 3.0, 5.0)]
    results = [preprocessors.random_spans_helper(n, d, m, 1, 1) for n, d, m in settings]
    return {"lengths_settings": np.array(settings), "lengths_results": np.array(results)}


def shuffled_starts(items, segments, seed):
    """Returns the decision inside `random_spans_noise_mask`."""
    return seqio.stateless_shuffle(tf.cast(tf.range(items - 1) < segments - 1, tf.int32), seed).numpy()


def record_masks():
    """Returns masks of many lengths and settings, each with the decisions that led to it."""
    rows, masks, noise_starts, other_starts = [], [], [], []
    lengths = [*range(1, 41), 100, 113, 114, 333, 512, 567, 568, 1137]
    for length in lengths:
        for density, mean in ((0.15, 3.0), (0.5, 3.0), (0.3, 1.5), (0.15, 10.0)):
            seeds = tf.constant([[length, 1], [2, int(density * 100)]], tf.int32)
            mask = preprocessors.random_spans_noise_mask(length, density, seeds, mean).numpy()
            # What the mask itself does not tell: a span at the end that is cut off with a length of 1.
            size = max(length, 2)
            whole = preprocessors.random_spans_noise_mask(size, density, seeds, mean).numpy()
            noise = int(whole.sum())
            spans = int((np.diff(np.concatenate(([0], whole.astype(int)))) == 1).sum())
            rows.append((length, density, mean, noise, spans))
            masks.append(mask)
            noise_starts.append(shuffled_starts(noise, spans, seeds[0]))
            other_starts.append(shuffled_starts(size - noise, spans, seeds[1]))
    record = {"mask_settings": np.array(rows)}
    for name, arrays in (("mask", masks), ("mask_noise_starts", noise_starts), ("mask_other_starts", other_starts)):
        record[name], record[f"{name}_lengths"] = ragged(arrays)
    return record


def run(preprocessor, dataset, sequence_length, seed):
    """Returns inputs and targets of a whole pipeline, the end-of-sequence token included."""
    with seqio.utils.map_seed_manager(seed):
        dataset = preprocessor(dataset, sequence_length=sequence_length, output_features=FEATURES)
    dataset = seqio.preprocessors.append_eos_after_trim(
        dataset, output_features=FEATURES, sequence_length=sequence_length
    )
    return list(dataset.as_numpy_iterator())


def record_pipeline(name, preprocessor, lengths, sequence_length, seed):
    """Returns documents and the examples that a pipeline makes of them; the decisions can be read off these."""
    dataset, arrays = documents(lengths, seed)
    examples = run(preprocessor, dataset, sequence_length, seed)
    record = {f"{name}_limits": np.array([sequence_length["inputs"], sequence_length["targets"]])}
    columns = {
        "documents": arrays,
        "inputs": [e["inputs"] for e in examples],
        "targets": [e["targets"] for e in examples],
    }
    for column, values in columns.items():
        record[f"{name}_{column}"], record[f"{name}_{column}_lengths"] = ragged(values)
    return record


def deshuffling(dataset, sequence_length, output_features):
    """Deshuffling, as `t5/models/gin/objectives/all_permute.gin` puts it together."""
    dataset = preprocessors.split_tokens_to_inputs_length(
        dataset, output_features=output_features, sequence_length=sequence_length
    )
    return preprocessors.denoise(
        dataset,
        output_features,
        noise_density=1.0,
        noise_mask_fn=preprocessors.iid_noise_mask,
        inputs_fn=preprocessors.permute_noise_tokens,
    )


def record_denoisers():
    """Returns documents and examples of UL2's denoisers, each on its own, in the order of the paper's table."""
    limits, record = {"inputs": 256, "targets": 256}, {}
    settings = [(3.0, 0.15), (8.0, 0.15), (3.0, 0.5), (8.0, 0.5), (64.0, 0.15), (64.0, 0.5)]
    for number, (mean, density) in enumerate(settings):
        denoiser = functools.partial(preprocessors.span_corruption, mean_noise_span_length=mean, noise_density=density)
        record |= record_pipeline(f"ul2_{number}", denoiser, [700, 30, 900], limits, 20 + number)
    prefix = functools.partial(preprocessors.prefix_lm, noise_density=0.25)
    return record | record_pipeline(f"ul2_{len(settings)}", prefix, [1, 2, 30, 255, 600], limits, 30)


def record_pipelines():
    """Returns documents and examples of the objectives, as `t5/data/tasks.py` or its gin files make them."""
    rng = np.random.default_rng(5)
    # More than 128 documents, which the original joins, so that one chunk is short in the middle.
    lengths = [*rng.integers(1, 60, 140), 1, 1200, 2, 568]
    record = record_pipeline("span", preprocessors.span_corruption, lengths, {"inputs": 512, "targets": 114}, 11)
    lengths = [1, 2, 3, 30, 31, 32, 63, 100, 400]
    record |= record_pipeline("prefix", preprocessors.prefix_lm, lengths, {"inputs": 32, "targets": 32}, 12)
    record |= record_pipeline("trimmed", preprocessors.prefix_lm, lengths, {"inputs": 64, "targets": 16}, 13)
    dataset, arrays = documents([*rng.integers(1, 40, 130), 300], 14)
    chunks = [
        e["targets"]
        for e in preprocessors.full_lm(
            dataset, sequence_length={"targets": 64}, output_features={"targets": FEATURES["targets"]}
        ).as_numpy_iterator()
    ]
    for column, values in {"lm_documents": arrays, "lm_targets": chunks}.items():
        record[column], record[f"{column}_lengths"] = ragged(values)
    record |= record_pipeline(
        "iid", preprocessors.iid_denoising, [*rng.integers(1, 60, 140), 1, 1200, 2], {"inputs": 512, "targets": 192}, 15
    )
    record |= record_pipeline("short", preprocessors.iid_denoising, [600], {"inputs": 17, "targets": 17}, 17)
    record |= record_pipeline("deshuffled", deshuffling, [1, 2, 3, 62, 63, 64, 200], {"inputs": 64, "targets": 64}, 16)
    return record | record_denoisers()


def record_prefix_bounds():
    """Returns the shortest and longest prefixes of many draws, for lengths and densities."""
    settings = [(n, d) for n in (1, 2, 3, 10, 11) for d in (0.1, 0.25, 0.5)]
    results = []
    for length, density in settings:
        seeds = [tf.constant([[seed, 3]], tf.int32) for seed in range(120)]
        drawn = [int(preprocessors.random_prefix_noise_mask(length, density, s).numpy().sum()) for s in seeds]
        results.append((min(drawn), max(drawn)))
    return {"prefix_bounds_settings": np.array(settings), "prefix_bounds": np.array(results)}


def record_packing():
    """Returns examples and the rows that seqio packs them into; more examples than one of its batches."""
    rng = np.random.default_rng(7)
    pairs = [(rng.integers(3, 100, n), rng.integers(3, 100, m)) for n, m in rng.integers(1, 15, (70, 2))]
    spec = {name: tf.TensorSpec([None], tf.int32) for name in ("inputs", "targets")}
    dataset = tf.data.Dataset.from_generator(
        lambda: ({"inputs": s, "targets": t} for s, t in pairs), output_signature=spec
    )
    rows = list(seqio.trim_and_pack_dataset(dataset, {"inputs": 32, "targets": 12}).as_numpy_iterator())
    record = {f"packed_{name}": np.stack([row[name] for row in rows]) for name in rows[0]}
    record["pack_inputs"], record["pack_inputs_lengths"] = ragged([s for s, _ in pairs])
    record["pack_targets"], record["pack_targets_lengths"] = ragged([t for _, t in pairs])
    return record


def make():
    """Returns all records."""
    record = record_lengths() | record_masks() | record_prefix_bounds() | record_pipelines() | record_packing()
    return {name: array.astype(np.int32) if array.dtype == np.int64 else array for name, array in record.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "objectives.npz")
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    arguments = parser.parse_args()
    record = make()
    if not arguments.check:
        np.savez_compressed(arguments.out, **record)
        return
    with np.load(arguments.out) as stored:
        different = [n for n in sorted({*record, *stored}) if not np.array_equal(record.get(n), stored.get(n))]
    if different:
        raise SystemExit(f"Different from {arguments.out}: {', '.join(different)}.")
    print("equal")


if __name__ == "__main__":
    main()
