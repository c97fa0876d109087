# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""What all entry points share: options from flags and YAML recipes, and one-sentence errors for what the user can
solve."""

import dataclasses
import errno
import json
import os
import re
import sys
import time
import warnings
from argparse import SUPPRESS, ArgumentParser
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, cast

import yaml
from transformers import HfArgumentParser

from t5_experimental.garbage import resume_collection

from ..engines.lost_processes import lost_peer
from ..errors import ProcessError, TrainingError, check_unicode, in_a_line, shown, unique_names
from ..interruption import claim_word, end, leave, peer_was_interrupted, received, watched
from ..trainer.arguments import T5TrainingArguments, names_given
from ..trainer.checkpoint_folders import where_it_resumes
from ..trainer.settle import Run, settle
from .first_answers import RECIPE_HELP, answer, usage
from .option_names import names_of, nearest, refuse_unknown
from .own_command import as_text, own_command


RECIPES = Path(__file__).parents[1] / "recipes"

# Longer than a launcher needs to end the other processes when one has failed, slow imports included.
SECONDS_TO_BE_ENDED = 60

# Options that take JSON.
_JSON_OPTIONS = {*T5TrainingArguments._VALID_DICT_FIELDS, "config_overrides"}

# Names that transformers has deprecated, but still accepts.
_OTHER_NAMES = {
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
}

_NULL = "tag:yaml.org,2002:null"


# As argparse distinguishes them from options.
_NEGATIVE_NUMBER = re.compile(r"-(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$")


class _Parser(HfArgumentParser):
    """Raises errors like everything else here, where argparse's own parser exits with its usage."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._negative_number_matcher = _NEGATIVE_NUMBER  # argparse's own knows no exponents

    def error(self, message: str) -> NoReturn:
        raise TrainingError(f"{message}; --help lists the usual options.")


@dataclass(frozen=True)
class EntryPoint:
    """A program of `training/`: its name in messages, what `--help` says, and the dataclasses of its options."""

    name: str
    description: str
    usage: str
    """The required options; the generated line would list about a hundred options of transformers."""
    options: tuple[type, ...]

    def parse(self, arguments: Sequence[str] | None = None) -> Run[Any]:
        """A run with one object of each dataclass, checked and settled.

        A recipe is the first argument, or follows `--recipe`. Flags override it.

        Args:
            arguments: instead of the command line, for tests and notebooks.

        Raises:
            TrainingError: anything that the user can solve.
        """
        given = list(sys.argv[1:] if arguments is None else arguments)
        answer(self.name, given)
        parser = _Parser(
            cast(Iterable[Any], self.options),
            description=self.description,
            usage=usage(self),
            allow_abbrev=False,
            add_help=False,
        )
        parser.add_argument("-h", "--help", "--help-all", action="help", help="Print this.")
        parser.add_argument("--recipe", default=SUPPRESS, metavar="FILE", help=RECIPE_HELP)
        names = [field.name for option in self.options for field in dataclasses.fields(option) if field.init]
        _check_once(given, names)
        for word in given:
            # Undecodable bytes from the shell; such names could neither be printed nor written to a report.
            check_unicode(word, f"The command line has {shown(word)}")
        recipe, flags = _split_recipe(given)
        of_recipe = [] if recipe is None else list(_recipe_flags(_find_recipe(recipe), names))
        on_line, flags = list(names_of(flags, names)), [*of_recipe, *flags]
        _check_json(flags)
        try:
            *options, unknown = parser.parse_args_into_dataclasses(
                args=flags, return_remaining_strings=True, look_for_args_file=False
            )
            if unknown:
                refuse_unknown(unknown[0].partition("=")[0], names)
            command = as_text(own_command() if arguments is None else [f"{self.name}.py", *given])
            trains = all(getattr(option, "do_train", None) is not False for option in options)
            return settle(tuple(options), command, names_given(on_line, list(names_of(of_recipe, names)), trains))
        except (ValueError, TypeError) as error:  # raised by transformers' own options
            raise TrainingError(in_a_line(error)) from error

    def start(self, run: Callable[[Any], None], arguments: Sequence[str] | None = None) -> None:
        """Runs `run`; a problem that the user can solve ends it with a sentence, from one process per machine."""
        # transformers has renamed the option in 5.23, and still accepts the old name.
        warnings.filterwarnings("ignore", "`(is_)?gradient_checkpointing", FutureWarning)
        settled: Run[Any] | None = None
        try:
            with watched():
                settled = self.parse(arguments)
                resume_collection()
                run(settled)
        except BaseException as error:
            # Not only for its own exception: code that writes a file may replace it by another error.
            if (number := received()) is not None:
                end(self.name, number, _where_it_resumes(settled))
            self._explain(error)
            raise

    def _explain(self, error: BaseException) -> None:
        """Ends the process with a sentence, if the error has one."""
        error = _about_a_path(error)
        if isinstance(error, TrainingError):
            if int(os.environ.get("LOCAL_RANK", "0")) > 0 and not isinstance(error, ProcessError):
                # The launcher ends all processes as soon as one fails: let the first one report before that.
                time.sleep(SECONDS_TO_BE_ENDED)
                sys.exit(1)
            claim_word()
            sys.exit(f"{self.name}: {error}")
        # The launcher ends the other processes, which should not report that.
        claim_word()
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            sys.exit(
                f"{self.name}: {error.filename or 'A file'} cannot be written ({error.strerror}): make room and run "
                "the same command again, which resumes from the last checkpoint."
            )
        if (lost := lost_peer(error)) is not None:
            if peer_was_interrupted():
                leave(1)
            sys.exit(f"{self.name}: {lost}")


def _about_a_path(error: BaseException) -> BaseException:
    """What a library or `Path.is_file` raises for a path that the user gave, as a sentence; other errors as they
    are."""
    # A name is too long for all processes, but what may be read depends on the machine.
    kinds = {errno.ENAMETOOLONG: TrainingError, errno.EACCES: ProcessError, errno.EPERM: ProcessError}
    if not isinstance(error, OSError) or not error.filename or error.errno not in kinds:
        return error
    return kinds[error.errno](
        f"{in_a_line(error.filename)} cannot be used ({error.strerror}): give another path, or make it accessible."
    )


def _where_it_resumes(run: Run[Any] | None) -> str:
    """What the same command would do now, as a sentence. Without a run, it ended before it was settled."""
    if run is None:
        return "Nothing has been written: the same command starts over."
    return where_it_resumes(Path(str(run.training.output_dir)), run.checkpoint, run.resumes)


def _check_once(arguments: Sequence[str], names: Sequence[str]) -> None:
    """Refuses options that are given twice: argparse silently takes the last."""
    given = [name for name in names_of(arguments, names) if name in names or name == "recipe"]
    if arguments and not arguments[0].startswith("-"):
        given.insert(0, "recipe")
    seen: dict[str, str] = {}
    for name in given:
        before = seen.get(usual := _OTHER_NAMES.get(name, name))
        seen[usual] = name
        if before not in (None, name):
            raise TrainingError(f"--{before} and --{name} are two names of one option: leave one out.")
        if before is not None:
            raise TrainingError(
                f"--{name} is given twice, and only one of the two would count: leave one out, or, if it takes several "
                "values, give all of them after one."
            )


def _check_json(flags: Sequence[str]) -> None:
    """Refuses duplicate names in the objects of JSON options, given directly or as a file."""
    option = ""
    for flag in flags:
        name, _, value = flag.partition("=")
        if name.startswith("--") and " " not in name:
            option = name.removeprefix("--").replace("-", "_")
        else:
            value = flag
        if option not in _JSON_OPTIONS:
            continue
        if value.endswith(".json") and Path(value).is_file():
            value = Path(value).read_text(encoding="utf-8", errors="replace")
        with suppress(ValueError, RecursionError):  # reported when the option is read
            json.loads(value, object_pairs_hook=unique_names(f"--{option}"))


def _split_recipe(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """The recipe among the arguments, or None, and the other arguments."""
    if arguments and not arguments[0].startswith("-"):
        return arguments[0], list(arguments[1:])
    finder = ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    finder.add_argument("--recipe", nargs="?")
    found, others = finder.parse_known_args(arguments)
    if found.recipe is None and "--recipe" in arguments:
        raise TrainingError("--recipe needs the name of a YAML file.")
    return found.recipe, others


def _find_recipe(name: str) -> Path:
    """The file of that name, or else the recipe that the package ships."""
    shipped = {path.name: path for path in sorted(RECIPES.glob("*.yaml"))}
    path = Path(name)
    if not path.is_file() and name in shipped:
        return shipped[name]
    if not path.is_file():
        raise TrainingError(
            f"The recipe {name} does not exist: give the path of a YAML file, or one of {', '.join(shipped)}, which "
            "come with the package."
        )
    return path


def _recipe_flags(path: Path, names: Sequence[str]) -> Iterator[str]:
    """Converts a recipe to the equivalent flags, with values exactly as written.

    Args:
        path: the YAML file.
        names: of all options.
    """
    try:
        recipe = yaml.compose(path.read_text(encoding="utf-8-sig"), Loader=yaml.SafeLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise TrainingError(f"The recipe {path} is not YAML: {in_a_line(error)}.") from error
    if not isinstance(recipe, yaml.MappingNode):
        raise TrainingError(f"The recipe {path} does not consist of lines `option: value`.")
    seen = set()
    for key, value in recipe.value:
        where = f"The recipe {path}, line {key.start_mark.line + 1}"
        if not isinstance(key, yaml.ScalarNode):
            raise TrainingError(f"{where}: the name of an option is no list or mapping; write `option: value`.")
        name = str(key.value)
        if name not in names:
            near = nearest(name, names)
            raise TrainingError(
                f"{where}: there is no option {shown(name)}; the nearest is {near!r}, and --help-all lists all."
            )
        if name in seen:
            raise TrainingError(f"{where}: {name!r} is there twice; leave one of them out.")
        seen.add(name)
        if value.tag == _NULL:  # the option's own default
            continue
        if isinstance(value, yaml.ScalarNode):
            yield f"--{name}={value.value}"
        elif isinstance(value, yaml.SequenceNode) and all(isinstance(item, yaml.ScalarNode) for item in value.value):
            items = [str(item.value) for item in value.value]
            if bad := [item for item in items if item.startswith("-") and not _NEGATIVE_NUMBER.fullmatch(item)]:
                raise TrainingError(
                    f"{where}: {name!r} has the item {shown(bad[0])}, which would be an option on the command line; "
                    "leave it out."
                )
            if not items:
                raise TrainingError(f"{where}: {name!r} is an empty list; give an item, or leave it out.")
            yield f"--{name}"
            yield from items
        else:
            raise TrainingError(
                f"{where}: {name!r} has a nested value; write it as on the command line, as JSON in quotation marks."
            )
