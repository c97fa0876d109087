# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Options that all entry points share, as dataclasses for the command line parser."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, cast

from transformers import Trainer
from transformers.integrations import get_available_reporting_integrations, get_reporting_integration_callbacks

from t5_experimental.activation_checkpointing_t5_experimental import OPTION

from ..errors import TrainingError, check_at_least, in_a_line
from ..optim.arguments import OptimizerArguments
from .losses import LossDenominator, check_loss_options


# `--estimate` without a value: the engine and the processes of this launch.
LAUNCHED = "launched"

# Keys of `--gradient_checkpointing_kwargs`: ours, and those of torch's checkpoint function.
_CHECKPOINTING = {OPTION, "use_reentrant", "preserve_rng_state", "determinism_check", "debug", "early_stop"}


# Options that only have an effect in training; evaluate.py has fewer of them.
OF_TRAINING_ALONE = {
    *("per_device_train_batch_size", "gradient_accumulation_steps", "max_steps", "num_train_epochs"),
    *("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps"),
    *("optim", "optim_args", "optim_target_modules", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon"),
    *("max_grad_norm", "label_smoothing_factor", "gradient_checkpointing", "gradient_checkpointing_kwargs"),
    *("eval_strategy", "eval_steps", "eval_delay", "eval_on_start", "logging_strategy", "logging_steps"),
    *("save_strategy", "save_steps", "save_total_limit", "save_only_model", "push_to_hub", "resume_from_checkpoint"),
    *("load_best_model_at_end", "metric_for_best_model", "greater_is_better", "train_sampling_strategy"),
    *("lora_rank", "merge_lora", "optimizer_preset", "optimizer_slots", "pack", "z_loss", "loss_denominator"),
    *("early_stopping_patience", "early_stopping_threshold", "dropout_rate", "broadcast_dropout"),
    *("logging_nan_inf_filter", "logging_first_step", "data_seed", "dataloader_drop_last", "ignore_data_skip"),
    *("auto_find_batch_size", "average_tokens_across_devices", "torch_empty_cache_steps", "save_on_each_node"),
    *("restore_callback_states_from_checkpoint", "include_num_input_tokens_seen"),
    *("hub_model_id", "hub_strategy", "hub_always_push", "hub_revision"),
}
# Options that need --push_to_hub. A token may be given to all runs alike, and trackio reads `hub_private_repo`.
_OF_HUB = ("hub_model_id", "hub_strategy", "hub_always_push", "hub_revision")
# What a recipe says to no effect if a flag has another of these.
_OVERRIDDEN = {
    "eval_strategy": {"eval_steps", "eval_delay"},
    "save_strategy": {"save_steps", "save_total_limit", "save_only_model"},
    "logging_strategy": {"logging_steps"},
    "push_to_hub": set(_OF_HUB),
}

# Of numpy's generator.
_HIGHEST_SEED = 2**32 - 1


def names_given(flags: Collection[str], recipe: Collection[str], trains: bool) -> frozenset[str]:
    """Names of the options that the user gave, for checks whether they have an effect: those on the command line, and
    those of a recipe that these do not override, as `--save_strategy no` overrides its `save_steps`.

    Args:
        flags: names of the options on the command line.
        recipe: of those in the recipe.
        trains: not with `--do_train False`, which overrides all that a recipe says of training.
    """
    overridden = {name for flag in flags for name in _OVERRIDDEN.get(flag, ())}
    overridden |= set() if trains else OF_TRAINING_ALONE
    return frozenset({*flags, *(set(recipe) - overridden)})


def _value(choice: Any) -> str:
    """The name of a choice, which may be a member of an enumeration or its value."""
    return str(getattr(choice, "value", choice))


def _check_reporters(names: list[str]) -> None:
    available = get_available_reporting_integrations()
    for name, reporter in zip(names, get_reporting_integration_callbacks(names), strict=True):
        if name in available:
            continue
        try:
            reporter()  # the list is incomplete, but constructors check for themselves
        except (ImportError, RuntimeError) as error:
            raise TrainingError(
                f"--report_to {name} needs a package that is not installed ({error}): install it, or leave it out."
            ) from error


def _check_compile_mode(backend: str | None, mode: str | None) -> None:
    """Refuses what torch.compile would refuse at the first step."""
    if mode is None or backend not in (None, "inductor"):
        return
    from torch._inductor import list_mode_options

    if mode not in (modes := list_mode_options()):
        raise TrainingError(f"--torch_compile_mode {mode} is not one of {', '.join(modes)}: choose one of these.")


OF_DENOMINATOR = {
    "help": "Divisor of a step's summed loss: the tokens to predict, or, as in the original, all target positions, "
    "padding included. Evaluation always divides by tokens."
}


@dataclass
class T5TrainingArguments(OptimizerArguments):
    """Training: transformers' own options, with the defaults that all entry points share, and with checks."""

    may_only_evaluate: ClassVar[bool] = False
    """Whether a run may leave out training."""
    more_training: ClassVar[str] = "more --max_steps or --num_train_epochs"
    """Options that train a finished run further, for messages."""

    logging_steps: float = field(default=50, metadata={"help": "Steps between two logs of the loss."})
    z_loss: float = field(
        default=0.0,
        metadata={"help": "Weight of the z-loss, the squared log-normalizer, in training; the original uses 1e-4."},
    )
    loss_denominator: LossDenominator = field(default="tokens", metadata=OF_DENOMINATOR)
    logging_nan_inf_filter: bool = field(
        default=False,
        metadata={
            "help": "Keep NaN and infinite losses of training out of the log, and do not stop at them. Such weights "
            "are not saved, and such a loss of an evaluation ends the run."
        },
    )
    bf16: bool | None = field(  # type: ignore[assignment]  # None until settled
        default=None,
        metadata={
            "help": "Compute in bfloat16 where that is safe, with float32 weights. Default: on CUDA devices that "
            "support it, unless another precision is given; not on the CPU, where it is slower than float32. "
            "--bf16 False is float32.",
            # As the parser sets for switches whose default is not None.
            "nargs": "?",
            "const": True,
        },
    )
    resume_from_checkpoint: str | None = field(
        default="auto",
        metadata={
            "help": "Checkpoint folder to resume from. Default: auto, the newest complete one in --output_dir, so that "
            "the same command resumes a run that died; without one, the run starts from scratch. True requires that "
            "there is one, False that there is none."
        },
    )
    report_to: None | str | list[str] = field(  # noqa: RUF036 - the parser needs transformers' order
        default=None,
        metadata={"help": "Where to log besides the report, such as wandb. Default: tensorboard, if it is installed."},
    )
    do_train: bool | None = field(  # type: ignore[assignment]  # None is not given
        default=None,
        metadata={
            "help": "Every run with training data trains, unless this is False: then fine-tuning only evaluates.",
            "nargs": "?",
            "const": True,
        },
    )
    do_eval: bool | None = field(  # type: ignore[assignment]
        default=None,
        metadata={"help": "A --validation_file is always evaluated at the end.", "nargs": "?", "const": True},
    )
    do_predict: bool | None = field(  # type: ignore[assignment]
        default=None,
        metadata={"help": "A --test_file is always evaluated at the end.", "nargs": "?", "const": True},
    )
    estimate: str | None = field(
        default=None,
        metadata={
            "help": "Trains nothing and loads no weights: prints how much memory each device needs, as launched or "
            "under ENGINE:PROCESSES, such as deepspeed_zero3:8.",
            "nargs": "?",
            "const": LAUNCHED,
        },
    )
    early_stopping_patience: int | None = field(
        default=None,
        metadata={
            "help": "End after this many evaluations in a row that do not improve --metric_for_best_model (default: "
            "the loss)."
        },
    )
    early_stopping_threshold: float = field(
        default=0.0, metadata={"help": "What counts as an improvement for --early_stopping_patience: more than this."}
    )
    xla_spmd: bool = field(
        default=False,
        metadata={
            "help": "Through torch_xla, one process drives all devices (SPMD): each holds its rows of the weights and "
            "optimizer state, and its part of the batch, whose size is the total of all devices."
        },
    )

    def __post_init__(self) -> None:
        """Checks the options on their own. Transformers' own `__post_init__`, which joins the process group, is called
        by [`~t5_experimental.training.trainer.settle.settle`]."""
        if self.output_dir is None and self.estimate is None:
            raise TrainingError("--output_dir is missing: give the folder to write the model to.")
        self._check_amount()
        if self.load_best_model_at_end:
            self._check_best_is_saved()
        self._check_early_stopping()
        self._check_best_has_a_metric()
        self._check_without_effect()
        check_loss_options(self.z_loss, self.label_smoothing_factor)
        self.settle_optimizer()

    def _check_best_is_saved(self) -> None:
        evaluates, saves = _value(self.eval_strategy), _value(self.save_strategy)
        if evaluates == "no":
            raise TrainingError(
                "--load_best_model_at_end needs evaluations to compare: give --validation_file and --eval_strategy."
            )
        if saves == "best":
            return
        if evaluates != saves:
            raise TrainingError(
                f"--load_best_model_at_end needs a checkpoint of every evaluation, but --eval_strategy is {evaluates} "
                f"and --save_strategy {saves}: give the same, or --save_strategy best."
            )
        steps = self.eval_steps or self.logging_steps  # as transformers chooses
        if evaluates == "steps" and steps != self.save_steps:
            raise TrainingError(
                f"--load_best_model_at_end needs a checkpoint of every evaluation, but --eval_steps is {steps:g} and "
                f"--save_steps {self.save_steps:g}: give the same, or --save_strategy best."
            )

    def _check_best_has_a_metric(self) -> None:
        if _value(self.save_strategy) != "best":
            return
        if _value(self.eval_strategy) == "no":
            raise TrainingError(
                "--save_strategy best needs evaluations to compare: give --validation_file and --eval_strategy."
            )
        if self.metric_for_best_model is None and not self.load_best_model_at_end:
            raise TrainingError(
                "--save_strategy best does not say what is compared: give --metric_for_best_model, such as loss."
            )

    def _check_without_effect(self) -> None:
        """Refuses options of transformers that these models or data would ignore."""
        if self.neftune_noise_alpha is not None:
            raise TrainingError(
                "--neftune_noise_alpha has no effect on these models, which do not read embeddings where transformers "
                "adds noise: leave it out."
            )
        if self.use_liger_kernel:
            raise TrainingError(
                "--use_liger_kernel has no effect on these models, which have kernels of their own: leave it out."
            )
        if self.dataloader_num_workers == 0:
            for option in ("dataloader_persistent_workers", "dataloader_prefetch_factor"):
                if getattr(self, option):
                    raise TrainingError(
                        f"--{option} has no effect without --dataloader_num_workers: give both, or none."
                    )

    def _check_early_stopping(self) -> None:
        check_at_least(self, 1, "early_stopping_patience")
        check_at_least(self, 0, "early_stopping_threshold")
        if self.early_stopping_patience is None:
            if self.early_stopping_threshold:
                raise TrainingError(
                    "--early_stopping_threshold has no effect without --early_stopping_patience: give both, or none."
                )
            return
        if _value(self.eval_strategy) == "no":
            raise TrainingError(
                "--early_stopping_patience needs evaluations to compare: give --validation_file and --eval_strategy."
            )
        self.metric_for_best_model = self.metric_for_best_model or "loss"

    def check_files(self) -> None:
        """Refuses options that name missing files.

        Raises:
            TrainingError: a file does not exist, or cannot be read.
        """
        if isinstance(self.deepspeed, str) and self.deepspeed.endswith(".json") and not Path(self.deepspeed).is_file():
            raise TrainingError(f"--deepspeed {self.deepspeed} does not exist: give the path of a configuration.")
        self.check_slots()

    def check_packages(self) -> None:
        """Refuses options that need a missing package.

        Raises:
            TrainingError: one is missing.
        """
        _check_reporters(cast(list[str], self.report_to))
        _check_compile_mode(self.torch_compile_backend, self.torch_compile_mode)
        if self.optimizer_preset is not None:
            return
        try:
            Trainer.get_optimizer_cls_and_kwargs(self)
        except ImportError as error:
            raise TrainingError(
                f"--optim {_value(self.optim)} needs a package that is not installed ({in_a_line(error)}): install it, "
                "or choose another."
            ) from error
        except (ValueError, TypeError, NotImplementedError) as error:
            if "pass a" in str(error):  # the model, which is not there yet
                return
            raise TrainingError(
                f"--optim {_value(self.optim)} does not work like this ({in_a_line(error)}): give or install what it "
                "lacks, or choose another."
            ) from error

    def check_data(self, given: Collection[str], has_validation: bool, has_test: bool) -> None:
        """Refuses options that need data that there is not, or that contradict the data.

        Args:
            given: names of the options that the user gave.
            has_validation: whether there are validation examples.
            has_test: whether there are test examples.
        """
        if self.eval_strategy != "no" and not has_validation:
            raise TrainingError("--eval_strategy needs examples to evaluate on: give --validation_file, too.")
        if self.eval_on_start and not has_validation:
            raise TrainingError("--eval_on_start needs examples to evaluate on: give --validation_file, too.")
        self._check_given(given)
        if self.gradient_checkpointing_kwargs is not None and not self.gradient_checkpointing:
            raise TrainingError(
                "--gradient_checkpointing_kwargs has no effect without --gradient_checkpointing: give both, or none."
            )
        if unknown := sorted(set(cast(dict[str, Any], self.gradient_checkpointing_kwargs or {})) - _CHECKPOINTING):
            raise TrainingError(
                f"--gradient_checkpointing_kwargs has {unknown[0]!r}, which is not one of "
                f"{', '.join(sorted(_CHECKPOINTING))}."
            )
        if self.do_train is False and not self.may_only_evaluate:
            raise TrainingError("--do_train False leaves nothing to do, since every such run trains: leave it out.")
        if self.do_train is False and not (has_validation or has_test):
            raise TrainingError("--do_train False leaves nothing to do: give --validation_file or --test_file, too.")
        wishes = (
            ("do_eval", self.do_eval, has_validation, "validation_file"),
            ("do_predict", self.do_predict, has_test, "test_file"),
        )
        for option, wish, is_there, source in wishes:
            if wish and not is_there:
                raise TrainingError(f"--{option} needs examples to evaluate on: give --{source}, too.")
            if wish is False and is_there:
                raise TrainingError(f"--{option} False contradicts --{source}, which is evaluated on: leave one out.")

    def _check_given(self, given: Collection[str]) -> None:
        """Refuses options that the user gave without the one that they belong to."""
        evaluates, saves, logs = map(_value, (self.eval_strategy, self.save_strategy, self.logging_strategy))
        needed = (
            ("eval_steps", evaluates == "steps", "--eval_strategy steps"),
            ("eval_delay", evaluates != "no", "--eval_strategy"),
            ("save_steps", saves == "steps", "--save_strategy steps"),
            ("logging_steps", logs == "steps", "--logging_strategy steps"),
            ("greater_is_better", self.metric_for_best_model is not None, "--metric_for_best_model"),
            *((option, self.push_to_hub, "--push_to_hub") for option in _OF_HUB),
        )
        for option, has_effect, other in needed:
            if option in given and not has_effect:
                raise TrainingError(f"--{option} has no effect without {other}: give both, or none.")
        for option in ("save_total_limit", "save_only_model"):
            if option in given and saves == "no":
                raise TrainingError(f"--{option} has no effect with --save_strategy no: leave one of them out.")
        if {"max_steps", "num_train_epochs"} <= set(given) and self.max_steps > 0:
            raise TrainingError("--num_train_epochs has no effect with --max_steps: leave one of them out.")
        for option in ("label_names", "length_column_name", "sortish_sampler"):
            if option in given:
                raise TrainingError(f"--{option} does not apply to data that this program tokenizes: leave it out.")

    def check_best_metric(self, figures: Sequence[str]) -> None:
        """Refuses a --metric_for_best_model that no evaluation computes; `figures` are the available ones."""
        wanted = self.metric_for_best_model
        if wanted is None or wanted.removeprefix("eval_") in figures:
            return
        other = ", or give --metric" if hasattr(self, "metric") else ""
        raise TrainingError(
            f"--metric_for_best_model {wanted} is not computed, only {', '.join(figures)}: choose one of these{other}."
        )

    def _check_amount(self) -> None:
        check_at_least(self, 0, "dataloader_num_workers", "seed", "data_seed")
        check_at_least(self, 1, "generation_num_beams", "gradient_accumulation_steps", "dataloader_prefetch_factor")
        check_at_least(self, 1, "per_device_train_batch_size", "per_device_eval_batch_size")
        check_at_least(self, 2, "generation_max_length")  # the decoder's start token counts
        for option in ("seed", "data_seed"):
            if (value := getattr(self, option)) is not None and value > _HIGHEST_SEED:
                raise TrainingError(f"--{option} is {value}: it must be at most {_HIGHEST_SEED}.")
        if self.max_steps < 1 and self.max_steps != T5TrainingArguments.max_steps:
            raise TrainingError(f"--max_steps is {self.max_steps}, which trains nothing: it must be at least 1.")
        for option in ("save_steps", "eval_steps", "logging_steps"):
            if (value := getattr(self, option)) is not None and not value > 0:
                raise TrainingError(f"--{option} is {value:g}: it must be more than 0.")
        if self.max_steps < 1 and self.num_train_epochs <= 0:
            raise TrainingError(
                f"--num_train_epochs is {self.num_train_epochs:g}, which trains nothing: it must be more than 0, or "
                "give --max_steps."
            )
