# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""What an entry point can answer before it imports torch and transformers, which takes seven seconds: the help, and
that an option does not exist."""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Protocol

from t5_experimental.garbage import pause_collection

from ..errors import TrainingError
from .option_names import names_of, refuse_unknown
from .option_texts import OptionText, ProgramText, program_of


class Described(Protocol):
    """What the line of usage needs of a program."""

    @property
    def name(self) -> str: ...

    @property
    def usage(self) -> str: ...


# Of transformers' options, those that most runs give.
_OFTEN = (
    *("output_dir", "max_steps", "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps"),
    *("warmup_steps", "weight_decay", "max_grad_norm", "label_smoothing_factor"),
    *("activation_checkpointing", "gradient_checkpointing"),
    *("eval_strategy", "eval_steps", "per_device_eval_batch_size", "predict_with_generate"),
    *("generation_max_length", "generation_num_beams", "save_strategy", "save_steps", "save_total_limit"),
    *("load_best_model_at_end", "metric_for_best_model", "fp16", "use_cpu", "seed", "dataloader_num_workers"),
    *("run_name", "disable_tqdm"),
)
_HELP = ("-h", "--help")
# Besides the options of the dataclasses.
_OTHERS = ("help", "help_all", "recipe")


def before_imports(name: str) -> None:
    """What an entry point that is run does first: it gives its [`answer`], or gets ready for imports that take seconds.
    [`EntryPoint.start`] collects garbage again."""
    answer(name)
    pause_collection()


def answer(name: str, arguments: Sequence[str] | None = None) -> None:
    """Ends the process if the help is asked for, or if an option does not exist.

    Of several processes, the first one answers; the launcher ends the others when it has failed. If transformers'
    source is written in another way than expected, the parser answers, later.

    Args:
        name: of the entry point, a module of `training/`.
        arguments: of the command line.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    wants_help = bool(set(_HELP) & set(words))
    if int(os.environ.get("LOCAL_RANK", "0")) > 0:
        if wants_help:
            sys.exit(0)
        return
    try:
        program = program_of(name)
    except (LookupError, OSError, SyntaxError):
        return
    if wants_help:
        sys.stdout.write(help_of(program))
        sys.exit(0)
    names = [*program.options, *_OTHERS]
    for word in words:
        flag = word.partition("=")[0]
        if not flag.startswith("--") or " " in flag:  # the latter is a value to argparse
            continue
        if next(names_of([flag], names)) not in names:
            try:
                refuse_unknown(flag, list(program.options))
            except TrainingError as error:
                sys.exit(f"{name}: {error}")


def help_of(program: ProgramText) -> str:
    """The usual help: our options in groups, then the most used ones of transformers."""
    parser = argparse.ArgumentParser(
        prog=f"{program.name}.py", description=program.description, usage=usage(program), add_help=False
    )
    ours = [option for option in program.options.values() if option.is_ours]
    for title in dict.fromkeys(option.group for option in ours):
        _add(parser, title, [option for option in ours if option.group == title])
    often = [program.options[name] for name in _OFTEN if name in program.options]
    often = [option for option in often if not option.is_ours and not option.help.startswith("Deprecated")]
    _add(parser, "Options of transformers that most runs use", often)
    more = parser.add_argument_group(f"Help: {len(program.options)} options in all")
    more.add_argument(*_HELP, action="store_true", help="Print this.")
    more.add_argument("--help-all", action="store_true", help="Print all options, with those of transformers.")
    more.add_argument("--recipe", metavar="FILE", help=RECIPE_HELP)
    return parser.format_help()


RECIPE_HELP = (
    "YAML file of options, `name: value` on each line; it may also come first, without the flag. Flags override it."
)


def usage(program: Described) -> str:
    """The required options; a generated line would list all."""
    return f"{program.name}.py [RECIPE.yaml] {program.usage} [more options]"


def _add(parser: argparse.ArgumentParser, title: str, options: Sequence[OptionText]) -> None:
    group = parser.add_argument_group(title)
    for option in options:
        said = "efault" in option.help or option.default in ("None", "False", "''", "[]")
        value = (option.default or "").strip("'")
        default = " Required." if option.default is None else f" Default: {value}."
        # Up to the first blank line: transformers continues with examples.
        text = " ".join(option.help.split("\n\n")[0].split()) + ("" if said else default)
        group.add_argument(f"--{option.name}", metavar="", help=text.replace("%", "%%"))
