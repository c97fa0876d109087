"""Evaluates the original's relative position buckets and writes them to an .npz file.

The file holds `relative_position`, memory position minus query position, int32 [positions], and one array of
buckets of the same shape for every setting, named `<direction>_<number of buckets>_<maximum distance>`.
"""

import argparse
import pathlib

import mesh_oracle
import mesh_tensorflow as mtf
import numpy as np
import tensorflow.compat.v1 as tf
from mesh_tensorflow.transformer import transformer_layers


FARTHEST = 600
SETTINGS = ((32, 128), (16, 64), (8, 20))  # (number of buckets, maximum distance)
DIRECTIONS = {"bidirectional": True, "unidirectional": False}


def original_buckets(positions):
    """Evaluates `_relative_position_bucket` for every setting.

    Args:
        positions: int32 array, shape [positions].

    Returns:
        Dict from a setting's name to its buckets, int32 [positions].
    """
    with tf.Graph().as_default():
        graph = mtf.Graph()
        mesh = mtf.Mesh(graph, "mesh")
        shape = mtf.Shape([mtf.Dimension("positions", len(positions))])
        imported = mtf.import_tf_tensor(mesh, tf.constant(positions), shape)
        buckets = {
            f"{direction}_{num_buckets}_{max_distance}": transformer_layers._relative_position_bucket(
                imported, bidirectional=bidirectional, num_buckets=num_buckets, max_distance=max_distance
            )
            for direction, bidirectional in DIRECTIONS.items()
            for num_buckets, max_distance in SETTINGS
        }
        lowering = mesh_oracle.lower(graph, mesh)
        with tf.Session() as session:
            return session.run({name: lowering.export_to_tf_tensor(tensor) for name, tensor in buckets.items()})


def main():
    """Writes the file."""
    parser = argparse.ArgumentParser(description="Record the original's relative position buckets.")
    parser.add_argument("--out", required=True, type=pathlib.Path, help="the .npz file to write")
    args = parser.parse_args()
    positions = np.arange(-FARTHEST, FARTHEST + 1, dtype=np.int32)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(args.out, relative_position=positions, **original_buckets(positions))
    print(f"{args.out.name}: {len(positions)} relative positions, {len(DIRECTIONS) * len(SETTINGS)} settings")


if __name__ == "__main__":
    main()
