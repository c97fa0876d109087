"""Packaging: `convert/` and `training/` install as subpackages of `t5_experimental`, so no generic name is claimed."""

import re
from pathlib import Path

from setuptools import find_packages, setup


HERE = Path(__file__).parent
INIT = (HERE / "t5_experimental" / "__init__.py").read_text(encoding="utf-8")
VERSION = re.search(r'__version__ = "(.+)"', INIT).group(1)

# The converter reads checkpoints, casts and counts with these; the models themselves need torch and transformers alone.
REQUIREMENTS = [
    "torch>=2.9",
    "transformers>=5.17,<6",
    "ml_dtypes>=0.4",
    "google-crc32c>=1.5",
    "cramjam>=2.8",
    "filelock",
    "tqdm",
]

# The two in the middle are what torch's exporter to ONNX is made of.
ONNX = ["onnx>=1.19", "onnx-ir>=1.1", "onnxscript>=0.7", "onnxruntime>=1.20"]

EXTRAS = {
    # What converting a vocabulary takes; all else needs nothing more. Before 0.2.1, a damaged file can end the process.
    "convert": ["sentencepiece>=0.2.1", "protobuf"],
    # Checkpoints at gs://, s3:// and https://.
    "remote": ["fsspec>=2025.3", "aiohttp>=3.10", "gcsfs>=2025.3", "s3fs>=2025.3"],
    # Weights of Flax and of TensorFlow 2 that transformers 4 wrote, and checkpoints of T5X and Orbax.
    "flax": ["msgpack>=1.0"],
    "tf2": ["h5py>=3.8"],
    "t5x": ["msgpack>=1.0", "tensorstore>=0.1.60"],
    "training": [
        "accelerate>=1.10",
        "datasets>=4.0",
        "sentencepiece>=0.2.1",
        "protobuf",
        "pyyaml",
        "jinja2",
        "psutil",
        "sacrebleu>=2.4",
        "rouge_score>=0.1.2",
    ],
    # Logs of training go there where it is installed.
    "tensorboard": ["tensorboard>=2.18"],
    # Files for llama.cpp.
    "gguf": ["gguf>=0.17"],
    "deepspeed": ["deepspeed>=0.18"],
    # `t5-experimental export-onnx`; onnxruntime compares what was written with torch.
    "onnx": ONNX,
    # Needs an environment of its own: torch and torch_xla must be of the same release.
    "xla": ["torch_xla>=2.9"],
    "peft": ["peft>=0.18"],
    # What generation and encoder are timed against, and the chart.
    "benchmarks": ["ctranslate2>=4.6", "openvino>=2025.1", *ONNX, "matplotlib"],
    # TensorFlow judges our reader of its checkpoints, CTranslate2 the folders that we write for it; Flax, h5py, Orbax
    # and tensorstore write samples of other sources. `build` uses the setuptools of the environment, without a network.
    # No release of TensorFlow installs on Python 3.14 yet; tests that need one are skipped there.
    "dev": [
        "build>=1.2",
        "setuptools>=77",
        "pytest>=8",
        "pytest-xdist",
        "hypothesis",
        "ruff",
        "mypy",
        *ONNX,
        "ctranslate2>=4.6",
        "gguf>=0.17",
        "matplotlib>=3.9",
        "flax>=0.10",
        "h5py>=3.8",
        "msgpack>=1.0",
        "orbax-checkpoint>=0.11",
        "tensorstore>=0.1.60",
        "triton>=3.7; sys_platform == 'linux' and platform_machine == 'x86_64'",
        "tensorflow-cpu>=2.16; python_version < '3.14' and sys_platform == 'linux' and platform_machine == 'x86_64'",
        "tensorflow>=2.16; python_version < '3.14' and (sys_platform != 'linux' or platform_machine != 'x86_64')",
    ],
}


def rooms(top: str) -> list[str]:
    """Packages below `convert/` or `training/`, dotted."""
    return [f"{top}.{name}" for name in sorted(find_packages(HERE / top))]


setup(
    name="t5-experimental",
    version=VERSION,
    description="Google's experimental T5 checkpoints (t5.1.1, lm100k, th, n4w10) for PyTorch and transformers",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    author="The t5_experimental authors",
    keywords=[
        "t5",
        "transformers",
        "pytorch",
        "talking-heads attention",
        "mesh tensorflow",
        "checkpoint conversion",
        "fine-tuning",
        "prompt tuning",
    ],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Programming Language :: Python :: 3.14",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Text Processing :: Linguistic",
        "Typing :: Typed",
    ],
    project_urls={
        "Original code (T5)": "https://github.com/google-research/text-to-text-transfer-transformer",
        "Original code (Mesh TensorFlow)": "https://github.com/tensorflow/mesh",
        "Paper (T5)": "https://arxiv.org/abs/1910.10683",
        "Paper (GLU variants)": "https://arxiv.org/abs/2002.05202",
        "Paper (talking heads)": "https://arxiv.org/abs/2003.02436",
        "Paper (prompt tuning)": "https://arxiv.org/abs/2104.08691",
    },
    python_requires=">=3.11",
    install_requires=REQUIREMENTS,
    extras_require=EXTRAS,
    packages=[
        "t5_experimental",
        *(f"t5_experimental.{name}" for top in ("convert", "training") for name in [top, *rooms(top)]),
    ],
    package_dir={"t5_experimental.convert": "convert", "t5_experimental.training": "training"},
    package_data={
        "t5_experimental": ["py.typed"],
        "t5_experimental.training": ["configs/*.yaml", "recipes/*.yaml"],
        "t5_experimental.training.report": ["templates/*"],
    },
    entry_points={"console_scripts": ["t5-experimental=t5_experimental.convert.cli:main"]},
)
