"""Packaging: `convert/` and `training/` install as subpackages of `t5_experimental`, so no generic name is claimed."""

import re
from pathlib import Path

from setuptools import setup


HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "t5_experimental" / "__init__.py").read_text()).group(1)

EXTRAS = {
    # Reading TensorFlow checkpoints, and turning sentencepiece vocabularies into tokenizers.
    "convert": [
        "tensorflow-cpu>=2.16; sys_platform == 'linux' and platform_machine == 'x86_64'",
        "tensorflow>=2.16; sys_platform != 'linux' or platform_machine != 'x86_64'",
        "ml_dtypes>=0.4",
        "sentencepiece>=0.2",
        "protobuf",
        "tqdm",
    ],
    "training": ["accelerate>=1.10", "datasets>=4.0", "sentencepiece>=0.2", "protobuf"],
    "deepspeed": ["deepspeed>=0.18"],
    # Needs an environment of its own: torch and torch_xla must be of the same release.
    "xla": ["torch_xla>=2.9"],
    "peft": ["peft>=0.18"],
    "dev": ["pytest>=8", "pytest-xdist", "hypothesis", "ruff", "mypy"],
}

setup(
    name="t5-experimental",
    version=VERSION,
    description="Google's experimental T5 checkpoints (t5.1.1, lm100k, th, n4w10) for PyTorch and transformers",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    install_requires=["torch>=2.9", "transformers>=5.17,<6"],
    extras_require=EXTRAS,
    packages=["t5_experimental", "t5_experimental.convert", "t5_experimental.training"],
    package_dir={"t5_experimental.convert": "convert", "t5_experimental.training": "training"},
    package_data={"t5_experimental": ["py.typed"]},
    entry_points={"console_scripts": ["t5-experimental=t5_experimental.convert.cli:main"]},
)
