# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Recipes say what flags say, and flags count more."""

from pathlib import Path

import pytest

from t5_experimental.training import finetune
from t5_experimental.training.cli import entry_point as commandline
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
        _, data, training = finetune.parse([*given, "--max_steps", "9"]).options
        assert (data.source_prefix, data.input_column, data.target_column) == ("yes: -1 ", "on", "target")
        assert (training.learning_rate, training.weight_decay, training.bf16) == (3e-4, 0.01, False)
        assert training.label_names == ["labels", "more"]
        assert training.lr_scheduler_kwargs == {"num_cycles": 1e-5}
        assert training.warmup_steps == 0
        assert training.max_steps == 9


def test_flags_override_what_a_recipe_says_of_the_same(flags, recipe):
    """What has no effect then is not taken for the user's; all else in the recipe is."""
    hub = "push_to_hub: true\nhub_model_id: user/name\n"
    path = recipe(
        f"save_steps: 5\nsave_total_limit: 2\nsave_only_model: true\nlearning_rate: 3e-4\neval_steps: 3\n{hub}"
    )
    common = [path, *flags]
    idle = {"save_steps", "save_total_limit", "save_only_model"}
    assert "hub_model_id" in finetune.parse(common).given
    assert "hub_model_id" not in finetune.parse([*common, "--push_to_hub", "False"]).given
    assert {*idle, "learning_rate", "eval_steps"} <= finetune.parse(common).given
    given = finetune.parse([*common, "--save_strategy", "no"]).given
    assert not idle & given
    assert {"learning_rate", "eval_steps", "save_strategy"} <= given
    assert "save_steps" in finetune.parse([*common, "--save_strategy", "no", "--save_steps", "7"]).given
    assert not {*idle, "learning_rate"} & finetune.parse([*common, "--do_train", "False"]).given
    assert "learning_rate" in finetune.parse([*common, "--do_train", "True"]).given


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("max_stepz: 1\n", "line 1: there is no option 'max_stepz'; the nearest is 'max_steps'"),
        ("\nrecipe: other.yaml\n", "line 2: there is no option 'recipe'"),
        ("max_steps: 1\nmax_steps: 2\n", "line 2: 'max_steps' is there twice"),
        ("max_steps: many\n", "invalid int value: 'many'"),
        ("lr_scheduler_kwargs:\n  num_cycles: 1\n", "line 1: 'lr_scheduler_kwargs' has a nested value"),
        ("- max_steps\n", "does not consist of lines `option: value`"),
        ("", "does not consist of lines `option: value`"),
        ("max_steps: [1\n", "is not YAML"),
        ("max_steps: 1\n---\nmax_steps: 2\n", "is not YAML"),
        ("[max_steps]: 1\n", "line 1: the name of an option is no list or mapping"),
        ("report_to: []\n", "line 1: 'report_to' is an empty list; give an item, or leave it out."),
        ("label_names: [--seed, 5]\n", "line 1: 'label_names' has the item '--seed', which would be an option"),
        ("label_names: [labels, --seed=5]\n", "line 1: 'label_names' has the item '--seed=5', which would be"),
        ('lr_scheduler_kwargs: \'{"num_cycles": 1, "num_cycles": 2}\'\n', "'num_cycles' is there twice in one object"),
        ("label_names: " + "[" * 5000, "is not YAML"),
        ("a" * 1000 + ": 1\n", "line 1: there is no option 'aaa"),
        ("seed: \0\n", "is not YAML"),
    ],
)
def test_what_is_wrong_with_a_recipe(text, complaint, flags, recipe):
    with pytest.raises(TrainingError) as error:
        finetune.parse([recipe(text), *flags])
    assert complaint in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        ("--train_file other.jsonl", "--train_file is given twice, and only one of the two would count: leave one out"),
        ("--train_file=other.jsonl", "--train_file is given twice"),
        ("--train-file other.jsonl", "--train_file is given twice"),
        ("--metric bleu --metric rouge", "--metric is given twice, .* give all of them after one"),
        ("--save_only_model --save_only_model", "--save_only_model is given twice"),
        ("--gradient_checkpointing --activation_checkpointing False", "are two names of one option: leave one out"),
        ("--bf16 False --bf16", "--bf16 is given twice"),
        ("--skip_memory_metrics --no_skip_memory_metrics", "--skip_memory_metrics is given twice"),
        ("--recipe finetune.yaml --recipe finetune_lora.yaml", "--recipe is given twice"),
        ('--lr_scheduler_type cosine --lr_scheduler_kwargs {"a":1,"a":2}', "'a' is there twice in one object"),
        ('--accelerator_config={"a":{"b":1,"b":2}}', "--accelerator_config: 'b' is there twice"),
    ],
)
def test_what_is_given_twice(more, complaint, flags):
    """One of the two would be lost without a word; a recipe and a flag are another matter."""
    with pytest.raises(TrainingError, match=complaint):
        finetune.parse([*flags, *more.split()])


def test_a_recipe_in_front_and_another_by_its_flag(flags):
    with pytest.raises(TrainingError, match="--recipe is given twice"):
        finetune.parse(["finetune.yaml", *flags, "--recipe", "finetune_lora.yaml"])


def test_values_that_look_like_options(flags):
    _, data, training = finetune.parse([*flags, "--source_prefix", "--seed 1: ", "--label_names", "a", "-1"]).options
    assert (data.source_prefix, training.seed, training.label_names) == ("--seed 1: ", 42, ["a", "-1"])


def test_a_recipe_may_begin_with_a_byte_order_mark(flags, recipe):
    _, _, training = finetune.parse([recipe("\ufeffmax_steps: 7\n"), *flags]).options
    assert training.max_steps == 7


def test_names_that_are_not_unicode(flags):
    with pytest.raises(TrainingError, match=r"The command line has '/tmp/.udcff': not Unicode text"):
        finetune.parse([*flags, "--test_file", "/tmp/\udcff"])


def test_columns_without_a_name(flags):
    for option in ("input_column", "target_column"):
        with pytest.raises(TrainingError, match=f"--{option} is empty: name a column"):
            finetune.parse([*flags, f"--{option}", " "])


def test_recipes_are_found_by_name(flags):
    _, _, training = finetune.parse(["finetune.yaml", *flags]).options
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
    run = finetune.parse([*flags, "--source_prefix", "a b", "--hub_token", "hf_1"])
    assert run.command.startswith("finetune.py --model_name_or_path")
    assert run.command.endswith("--source_prefix 'a b' --hub_token ...")
    assert "command" not in run.training.to_dict()
