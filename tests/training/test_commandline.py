# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Recipes say what flags say, and flags count more."""

from pathlib import Path

import pytest

from t5_experimental.training import commandline, finetune
from t5_experimental.training.errors import TrainingError


@pytest.fixture
def flags(tiny_models, tmp_path) -> list[str]:
    """What finetune cannot do without."""
    train_file = tmp_path / "train.jsonl"
    train_file.write_text('{"source": "a", "target": "b"}\n')
    model = tiny_models["t5_v1_1"]
    return (
        f"--model_name_or_path {model} --train_file {train_file} --output_dir {tmp_path / 'output'} --use_cpu".split()
    )


@pytest.fixture
def recipe(tmp_path):
    def write(text: str) -> str:
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        return str(path)

    return write


def test_values_are_taken_as_written_and_flags_count_more(flags, recipe):
    text = """
# comment
learning_rate: 3e-4
weight_decay: 0.010
source_prefix: "yes: -1 "
input_column: on
bf16: no
label_names: [labels, more]
lr_scheduler_type: cosine
lr_scheduler_kwargs: '{"num_cycles": 1e-5}'
warmup_steps: null
max_steps: 7
"""
    path = recipe(text)
    for given in ([path, *flags], [*flags, "--recipe", path], [f"--recipe={path}", *flags]):
        _, data, training = finetune.parse([*given, "--max_steps", "9"])
        assert (data.source_prefix, data.input_column, data.target_column) == ("yes: -1 ", "on", "target")
        assert (training.learning_rate, training.weight_decay, training.bf16) == (3e-4, 0.01, False)
        assert training.label_names == ["labels", "more"]
        assert training.lr_scheduler_kwargs == {"num_cycles": 1e-5}
        assert training.warmup_steps == 0
        assert training.max_steps == 9


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("max_stepz: 1\n", "line 1: there is no option 'max_stepz'; the nearest is 'max_steps'"),
        ("\nrecipe: other.yaml\n", "line 2: there is no option 'recipe'"),
        ("max_steps: 1\nmax_steps: 2\n", "line 2: 'max_steps' stands there twice"),
        ("max_steps: many\n", "invalid int value: 'many'"),
        ("lr_scheduler_kwargs:\n  num_cycles: 1\n", "line 1: 'lr_scheduler_kwargs' has a nested value"),
        ("- max_steps\n", "does not consist of lines `option: value`"),
        ("", "does not consist of lines `option: value`"),
        ("max_steps: [1\n", "is not YAML"),
    ],
)
def test_what_is_wrong_with_a_recipe(text, complaint, flags, recipe):
    with pytest.raises(TrainingError) as error:
        finetune.parse([recipe(text), *flags])
    assert complaint in str(error.value)
    assert "\n" not in str(error.value)


def test_recipes_are_found_by_name(flags):
    _, _, training = finetune.parse(["finetune.yaml", *flags])
    assert training.per_device_train_batch_size == 128
    with pytest.raises(TrainingError, match=r"The recipe none.yaml does not exist: .*finetune.yaml"):
        finetune.parse(["none.yaml", *flags])
    with pytest.raises(TrainingError, match="--recipe needs the name"):
        finetune.parse(["--recipe"])


@pytest.mark.parametrize("path", sorted(commandline.RECIPES.glob("finetune*.yaml")), ids=lambda path: path.name)
def test_every_recipe_opens_with_its_launch_command(path: Path, flags):
    first = path.read_text().splitlines()[0]
    assert first.startswith(f"# accelerate launch training/finetune.py training/recipes/{path.name} ")
    finetune.parse([str(path), *flags])


def test_the_command_is_kept_without_tokens(flags):
    _, _, training = finetune.parse([*flags, "--source_prefix", "a b", "--hub_token", "hf_1", "--hub_token=hf_2"])
    assert training.command.startswith("finetune.py --model_name_or_path")
    assert training.command.endswith("--source_prefix 'a b' --hub_token ... --hub_token=...")
    assert "command" not in training.to_dict()
