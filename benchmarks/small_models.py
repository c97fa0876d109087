# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""What the worked examples share: a vocabulary, small models from scratch, and the entry points as users start them."""

import io
import json
import shutil
import string
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from t5_experimental import T5ExperimentalConfig, preset_config

from .usage import Usage, measure


REPOSITORY = Path(__file__).parents[1]
SENTINELS = 100

_SIZE = {"d_model": 128, "num_layers": 6, "num_heads": 4, "d_kv": 32, "d_ff": 256}
# Talking heads have twice as many heads of half the size, as in the released ones. The first four layers of n4w10 are
# half as wide as the last two: 4 * 3 + 2 * 6 heads are as many as 6 * 4, and likewise the inner units.
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "t5.1.1": ("t5.1.1.base", _SIZE),
    "t5.1.th": ("t5.1.th.base", {**_SIZE, "num_heads": 8, "d_kv": 16}),
    "t5.1.n4w10": ("t5.1.n4w10.base", {**_SIZE, "num_heads": 6, "d_ff": 384}),
}
"""The preset whose family it is, and the fields that make it small, by name."""

COLOURS = ("#d1603d", "#5b8db8", "#6a9a58")


def train_vocabulary(texts: Iterable[str], path: Path, pieces: int) -> None:
    """Writes a sentencepiece model of at most this count of pieces, with T5's special ids and normalization."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type="unigram",
        vocab_size=pieces,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        normalization_rule_name="nmt_nfkc",
        character_coverage=1.0,
        required_chars=string.ascii_letters + string.digits + string.punctuation,
        num_threads=1,  # the same pieces on every machine
        minloglevel=1,
    )
    path.write_bytes(model.getvalue())


def small_config(shape: str, pieces: int) -> T5ExperimentalConfig:
    """Configuration of one of [`SHAPES`] for a vocabulary; its rows are rounded up to a multiple of 128."""
    preset, fields = SHAPES[shape]
    return preset_config(preset, **fields, vocab_size=-(-(pieces + SENTINELS) // 128) * 128)


def make_model(folder: Path, shape: str, vocabulary: Path, seed: int) -> int:
    """Writes a folder with fresh weights and a tokenizer; returns the number of parameters."""
    folder.mkdir(parents=True)
    shutil.copyfile(vocabulary, folder / "spiece.model")
    tokenizer_config = {"tokenizer_class": "T5Tokenizer", "extra_ids": SENTINELS}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    pieces = len(AutoTokenizer.from_pretrained(folder)) - SENTINELS
    torch.manual_seed(seed)
    model = AutoModelForSeq2SeqLM.from_config(small_config(shape, pieces))
    model.save_pretrained(folder)
    return model.num_parameters()


def flags(options: Mapping[str, Any]) -> list[str]:
    """Options as a command line has them."""
    return [text for name, value in options.items() for text in (f"--{name}", str(value))]


def launch(script: str, options: Mapping[str, Any], threads: int) -> Usage:
    """Runs an entry point on the CPU through accelerate.

    Args:
        script: name of the entry point, as "finetune".
        options: of the entry point, `output_dir` among them.
        threads: of the processor.

    Returns:
        What the whole program took, its start and the evaluations included.

    Raises:
        RuntimeError: it failed.
    """
    output = Path(options["output_dir"])
    output.parent.mkdir(parents=True, exist_ok=True)
    cache = output.parent / "cache" / output.name  # its own, since several run at the same time
    environment = [f"OMP_NUM_THREADS={threads}", f"HF_DATASETS_CACHE={cache}", "HF_HUB_OFFLINE=1"]
    launcher = ["--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    program = [str(REPOSITORY / "training" / f"{script}.py"), *flags({"use_cpu": True, **options})]
    return measure(["env", *environment, sys.executable, "-m", "accelerate.commands.launch", *launcher, *program])


def launch_all(script: str, runs: Sequence[Mapping[str, Any]], at_once: int) -> list[Usage]:
    """Runs an entry point with each of several sets of options, on one thread each, `at_once` at the same time."""
    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(lambda options: launch(script, options, threads=1), runs))


def read_figures(output: Path) -> dict[str, Any]:
    """The final figures of a run, and its log: dictionaries with `step`."""
    last = max(output.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    return {
        **json.loads((output / "all_results.json").read_text()),
        "log": json.loads((last / "trainer_state.json").read_text())["log_history"],
    }


def curve(log: Iterable[Mapping[str, float]], name: str) -> tuple[list[float], list[float]]:
    """Steps, and what a figure was at them."""
    rows = [(row["step"], row[name]) for row in log if name in row]
    return [step for step, _ in rows], [value for _, value in rows]


def draw_curves(path: Path, title: str, panels: Mapping[str, Mapping[str, tuple[list[float], list[float]]]]) -> None:
    """One chart for each panel, beside each other, with a line for each name: figures over steps."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        1, len(panels), figsize=(4.5 * len(panels), 3.2), squeeze=False, layout="constrained"
    )
    for axis, (heading, lines) in zip(axes[0], panels.items(), strict=True):
        for colour, (name, (steps, values)) in zip(COLOURS, lines.items(), strict=False):
            axis.plot(steps, values, label=name, color=colour, linewidth=1.5)
        axis.set_title(heading)
        axis.set_xlabel("steps")
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=9)
    figure.savefig(path, dpi=150)
