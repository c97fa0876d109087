# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""What all training adds to transformers' `Seq2SeqTrainer`: exact token counts, a stop at NaN, throughput, and losses
without memory for all logits."""

import math
from collections.abc import Mapping
from typing import Any, NoReturn, cast

import torch
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, ProgressCallback
from transformers.trainer_utils import EvalLoopOutput

from t5_experimental.loss_t5_experimental import IGNORE_INDEX
from t5_experimental.seq2seq_t5_experimental import T5ExperimentalForConditionalGeneration

from ..engines.engine import check_engine
from ..engines.fsdp2 import full_prompt, has_prompt, share_embedding, use_full_checkpoints
from ..engines.fsdp2_weights import is_empty, shard_and_load
from ..engines.hooks import hooks_for
from ..engines.parts import SayPartsCallback
from ..errors import TrainingError, in_a_line
from .arguments import T5TrainingArguments
from .generation import keeping_generation
from .losses import loss_arguments, with_all_positions
from .nonfinite import FirstNonFinite, named, non_finite
from .same_run import use_learning_rate, write_record
from .saving import SavingTrainer
from .throughput import TokenMeter, TokenProgressCallback


class T5Trainer(SavingTrainer):
    """`Seq2SeqTrainer` that counts every example and token once, stops at NaN, and never saves broken weights.

    A loss or gradient that is infinite or NaN ends the run before anything is logged or saved: at once on a single CPU
    process, otherwise within ten steps (through XLA, at the next log). Each process only sees the losses of its own
    examples, so all processes agree before they stop: otherwise, the others would wait forever.
    """

    args: T5TrainingArguments

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        check_engine(self.run.engine, self.accelerator)
        self.hooks = hooks_for(self.args.device)
        for callback in (*self.hooks.callbacks(), SayPartsCallback()):
            self.add_callback(callback)
        if self.run.engine.is_fsdp2:
            share_embedding(self.plain_model())
            if has_prompt(self.model):
                use_full_checkpoints(self.accelerator)
        self._first_bad: FirstNonFinite | None = None
        self._steps_between_checks = self.hooks.steps_between_checks(self.args.world_size)
        self._makes_optimizer = self.optimizer is None
        self._parts: list[list[torch.nn.Parameter]] | None = None
        self._meter = TokenMeter(self.args.device)
        self._trained_tokens, self._trained_seconds = 0, 0.0
        self._evaluated: list[torch.Tensor] = []
        # Other models, such as transformers' own T5, do not accept these arguments.
        self._skips_logits = isinstance(self.plain_model(), T5ExperimentalForConditionalGeneration)
        if self._skips_logits:
            self.label_smoother = None
        if self.pop_callback(ProgressCallback) is not None:
            self.add_callback(TokenProgressCallback())
        self.fixed_lengths: Mapping[str, int] = {}

    def plain_model(self) -> PreTrainedModel:
        """The model itself, without adapters."""
        model = cast(Any, self.model)
        return model.get_base_model() if hasattr(model, "get_base_model") else model

    def _get_dataloader(self, dataset: Any, description: str, batch_size: int, *args: Any, **kwargs: Any) -> DataLoader:
        collate, drops = self.data_collator, self.args.dataloader_drop_last
        # Evaluation counts every example; transformers would drop some of them there, too.
        self.args.dataloader_drop_last = drops and description == "Training"
        self.data_collator = self.hooks.prepare_collator(collate, batch_size, self.fixed_lengths, self.processing_class)
        try:
            loader = super()._get_dataloader(dataset, description, batch_size, *args, **kwargs)
            # Its own, though nothing random comes of it: for each new iterator torch would draw a seed from the global
            # one, which dropout uses, and a resumed run makes another number of iterators if workers persist.
            getattr(loader, "base_dataloader", loader).generator = torch.Generator()
            return self.hooks.prepare_loader(loader)
        finally:
            self.data_collator, self.args.dataloader_drop_last = collate, drops

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        with self.hooks.skipping_batches():
            super()._run_epoch(*args, **kwargs)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return self.hooks.prepare_inputs(super()._prepare_inputs(inputs))

    # Monitoring of steps.

    def train(self, *args: Any, **kwargs: Any) -> Any:
        self._meter.read()
        return super().train(*args, **kwargs)

    def training_step(self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        self._meter.add(inputs)
        self.hooks.restore_random_state()
        loss = super().training_step(model, inputs, *args, **kwargs)
        if not self.args.logging_nan_inf_filter:
            self._look_for_bad_numbers(loss)
        return loss

    def _look_for_bad_numbers(self, loss: torch.Tensor) -> None:
        # Engines may have replaced the parameters since this object was created.
        weights = dict(cast(torch.nn.Module, self.model).named_parameters())
        if self._first_bad is None:
            self._first_bad = FirstNonFinite(list(weights), self.args.device)
        # float16's scaler expects infinite gradients, and skips such steps.
        is_last = self.accelerator.sync_gradients and self.accelerator.scaler is None
        gradients = [weight.grad for weight in weights.values()] if is_last else None
        self._first_bad.look(self.state.global_step + 1, loss, gradients)
        if self.accelerator.sync_gradients and (self.state.global_step + 1) % self._steps_between_checks == 0:
            self._stop_at_bad_steps()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs or "train_loss" in logs:
            self._log_speed(logs)
        super().log(logs, start_time)
        # "loss", "train_loss" (of the entire run), "eval_loss", "test_loss"
        bad = [
            f"the {name} is {value}"
            for name, value in logs.items()
            if name.endswith("loss") and not math.isfinite(value)
        ]
        self._stop_at_bad_steps(*bad)

    def _log_speed(self, logs: dict[str, float]) -> None:
        """Adds tokens per second: since the last log, or of the entire run at its end."""
        tokens, seconds = self._meter.read()
        count = int(self.accelerator.gather(tokens.reshape(1)).sum().item())
        self._trained_tokens, self._trained_seconds = self._trained_tokens + count, self._trained_seconds + seconds
        if "loss" in logs:
            logs["tokens_per_second"] = round(count / seconds, 1)
        else:
            logs["train_tokens_per_second"] = round(self._trained_tokens / self._trained_seconds, 1)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        # Checkpoints use this method, too. The last update may have broken the weights although its loss was fine.
        self._stop_at_bad_steps()
        self._stop_at_bad_weights()
        with full_prompt(self.model):
            super().save_model(output_dir, _internal_call)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        with self._meter.pause():
            super()._save_checkpoint(*args, **kwargs)

    def _save_rng_state(self, output_dir: str) -> None:
        self.hooks.save_random_state()
        super()._save_rng_state(output_dir)

    def _stop_at_bad_steps(self, *otherwise: str) -> None:
        """Ends the run if a step had a bad loss or gradient, or because of `otherwise`; all processes call this."""
        finite = torch.tensor(not otherwise, device=self.args.device)
        if self._first_bad is not None:
            finite = finite & self._first_bad.all_finite()
        if self._holds_everywhere(finite):
            return
        step = self.state.global_step
        found = None if self._first_bad is None else self._first_bad.describe(self.accelerator)
        self._stop(found or f"After step {step}, {otherwise[0] if otherwise else 'a loss is not finite'}")

    def _stop_at_bad_weights(self) -> None:
        names, weights = zip(*cast(torch.nn.Module, self.model).named_parameters(), strict=True)
        # DeepSpeed's ZeRO-3 keeps a weight's shard next to an empty parameter.
        bad = non_finite([getattr(weight, "ds_tensor", weight) for weight in weights], self.args.device)
        if not self._holds_everywhere(~bad.any()):
            bad = self.accelerator.gather(bad.int()[None]).amax(0).bool()
            self._stop(f"After step {self.state.global_step}, {named(names, bad)} became infinite or NaN")

    def _holds_everywhere(self, finite: torch.Tensor) -> bool:
        """Whether `finite`, a scalar, is true on every process; all processes call this."""
        return bool(self.accelerator.gather(finite.int().reshape(1)).all().item())

    def _stop(self, problem: str) -> NoReturn:
        instead = ", and use --bf16 or full precision instead of --fp16" if self.args.fp16 else ""
        raise TrainingError(f"{problem}: nothing more is saved; lower --learning_rate{instead}.")

    # Resuming, and the hub.

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        # Files have shared parameters under their first name only.
        shared = set(getattr(self.plain_model(), "all_tied_weights_keys", ()))
        missing = [name for name in load_result.missing_keys if name not in shared]
        load_result.missing_keys[:] = missing
        super()._issue_warnings_after_load(load_result)

    def init_hf_repo(self, token: str | None = None) -> None:
        try:
            super().init_hf_repo(token)
        except Exception as error:  # the hub's client raises errors of several libraries
            raise TrainingError(
                f"--push_to_hub cannot make the repository ({in_a_line(error)}): log in with `hf auth login`, or "
                "leave it out and upload the finished folder later."
            ) from error

    # The optimizer.

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        is_cut_here = is_empty(self.plain_model())
        if is_cut_here:
            shard_and_load(self.plain_model(), str(self.plain_model().name_or_path), self.accelerator)
        optimizer = self._create_optimizer(model)
        if is_cut_here:
            self._parts = [list(group["params"]) for group in optimizer.param_groups]
        return optimizer

    def _create_optimizer(self, model: torch.nn.Module | None) -> torch.optim.Optimizer:
        if self.args.chosen_optimizer().preset is None or self.optimizer is not None:
            return super().create_optimizer(model)
        self.optimizer, schedule = self.args.build_preset(cast(torch.nn.Module, self.model if model is None else model))
        if self.lr_scheduler is None:
            self.lr_scheduler = schedule  # if None, transformers builds the one of --lr_scheduler_type
        return self.optimizer

    def create_scheduler(self, *args: Any, **kwargs: Any) -> Any:
        # Called right after accelerate has prepared the optimizer and matched its parameters by memory address: all
        # those of which this process has no rows have the address 0.
        if self._parts is not None:
            for group, parameters in zip(cast(Any, self.optimizer).param_groups, self._parts, strict=True):
                group["params"] = parameters
        return super().create_scheduler(*args, **kwargs)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            write_record(self, output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and self._makes_optimizer:
            use_learning_rate(self.lr_scheduler, self.args.highest_learning_rate())

    # Losses.

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> torch.Tensor | int | None:
        if self.args.loss_denominator == "positions":
            length = self.fixed_lengths.get("labels")
            batch_samples = [with_all_positions(batch, length) for batch in batch_samples]
        return super()._get_num_items_in_batch(batch_samples, device)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        if model.training and self._skips_logits:
            inputs = {**inputs, **loss_arguments(self.args.z_loss, self.args.label_smoothing_factor)}
        if not model.training:
            num_items_in_batch = None  # evaluation divides once, by the tokens of all batches
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def prediction_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
        **kwargs: Any,
    ) -> tuple[Any, Any, Any]:
        # Collators set labels to None if there are none.
        inputs = {name: value for name, value in inputs.items() if value is not None}
        if "labels" in inputs:
            inputs["labels"] = self._without_fillers(inputs["labels"])
        if prediction_loss_only and self._skips_logits:
            inputs["skip_logits"] = True
        if self.run.engine.is_fsdp2:
            # Each token gathers parameters from all processes, so a process whose texts have ended continues until all
            # have. transformers does so for FSDP1, but not for FSDP2.
            self._gen_kwargs = {**getattr(self, "_gen_kwargs", {}), "synced_gpus": True}
        with keeping_generation(self.plain_model()):
            loss, logits, labels = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys, **kwargs)
        if loss is not None:
            mean = cast(torch.Tensor, loss).float()
            count = (inputs["labels"] != IGNORE_INDEX).sum().to(mean)
            self._evaluated.append(torch.stack([mean * count, count]))
        return loss, logits, labels

    def _without_fillers(self, labels: torch.Tensor) -> torch.Tensor:
        """Labels `(batch, length)` in which the copies are ignored that fill up the last batch of several processes.
        accelerate drops these when it gathers, in the order of the processes."""
        state = self.accelerator.gradient_state
        if not state.end_of_dataloader or state.remainder <= 0:
            return labels
        first = self.accelerator.process_index * len(labels)
        is_real = torch.arange(first, first + len(labels), device=labels.device) < state.remainder
        return labels.masked_fill(~is_real[:, None], IGNORE_INDEX)

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        # Seq2SeqTrainer would count the copies as separate examples.
        self.gather_function = self.accelerator.gather_for_metrics
        self._evaluated = []
        with self._meter.pause():
            output = super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
            if self._evaluated:  # transformers has the mean of the batches' means
                cast(dict[str, float], output.metrics)[f"{metric_key_prefix}_loss"] = self._evaluated_loss()
        return output

    def _evaluated_loss(self) -> float:
        """Mean over all target tokens of the evaluation, on all processes."""
        sums = torch.stack(self._evaluated).cpu().double().sum(0).float().to(self.args.device)
        total, count = self.accelerator.gather(sums[None]).sum(0).tolist()
        return total / max(count, 1)

    # The end of a run.

    def merge_adapter(self) -> None:
        """Merges the adapters into the weights; the full model is saved and evaluated then."""
        self.model = cast(Any, self.accelerator.unwrap_model(self.model)).merge_and_unload()
        self.model_wrapped = self.model

    def leave_process_group(self) -> None:
        """Leaves the process group; the last thing that a run does.

        The data-parallel wrapper of the model is released first. As the group's last owner, it would wait for gloo's
        threads while holding the GIL, and these may wait for the GIL to release the tensors of their last collective:
        the process would hang (seen with torch 2.13 on the CPU, in one run of four). Left to interpreter shutdown, one
        run of twenty aborts.
        """
        self.model_wrapped = cast(torch.nn.Module, self.model)
        self.accelerator.free_memory()
        self.accelerator.end_training()
