# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""What fine-tuning adds to training: it generates texts and compares them with all references of their input."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch.utils.data import DataLoader, SequentialSampler
from transformers.trainer_utils import EvalLoopOutput

from ..data.arguments import DataArguments
from ..data.examples import Split, source_features
from ..data.metrics import compute_metrics
from ..data.task_texts import TaskExample
from ..data.tasks import Task
from .trainer import T5Trainer


# Samples of a split if there is no metric that needs all of it.
_SAMPLES = 8


@dataclass(frozen=True)
class Sample:
    """An input, the model's output, and the references."""

    source: str
    prediction: str
    references: Sequence[str]


class FinetuningTrainer(T5Trainer):
    """Evaluates a split, identified by the prefix of the metrics, in two passes: first the loss of every pair of input
    and target, then, if there are metrics, one generated text per distinct input.

    Args:
        splits: by prefix, including `train`.
        data: the options that the splits were made with.
        metrics: names of [`~t5_experimental.training.data.metrics.METRICS`]; if there are none, and the data has a
            task, the task's own.
        kwargs: as for transformers' `Seq2SeqTrainer`.
    """

    def __init__(self, splits: Mapping[str, Split], data: DataArguments, metrics: Sequence[str], **kwargs: Any) -> None:
        pairs = {split: features.pairs for split, features in splits.items()}
        rows = splits["train"].rows
        super().__init__(
            train_dataset=pairs["train"] if rows is None else rows, eval_dataset=pairs.get("eval"), **kwargs
        )
        self._splits, self._data, self._metrics = splits, data, metrics
        self.order = splits["train"].sampler
        """Of training on a mixture or on packed rows; None for transformers' own."""
        self._measures = bool(metrics) or data.chosen_task is not None
        self.hooks.check_search(self.args.generation_num_beams)
        # The pass that computes losses does not generate.
        self.args.predict_with_generate = True
        source, target = data.max_source_length, data.max_target_length
        self.fixed_lengths = {"input_ids": source, "attention_mask": source}
        self.fixed_lengths |= {"labels": target, "decoder_input_ids": target}
        self.samples: dict[str, list[Sample]] = {}
        """From the last evaluation of each split."""

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        if self._measures and prediction_loss_only:
            references = self._splits[metric_key_prefix].references()
            predictions = self._generate_texts(list(references), metric_key_prefix)
            self.samples[metric_key_prefix] = _some(references, predictions)
            figures = self._figures(self._splits[metric_key_prefix], references, predictions)
            cast(dict[str, float], output.metrics).update(
                {f"{metric_key_prefix}_{name}": value for name, value in figures.items()}
            )
        return output

    def _figures(
        self, split: Split, references: Mapping[str, Sequence[str]], predictions: Sequence[str]
    ) -> dict[str, float]:
        """Metrics of texts that were generated for the inputs of `references`."""
        if self._metrics:
            return compute_metrics(self._metrics, predictions, list(references.values()))
        texts = dict(zip(references, predictions, strict=True))
        examples = cast(list[TaskExample], split.examples.to_list())
        return cast(Task, self._data.chosen_task).score(examples, [texts[example["source"]] for example in examples])

    def sample(self, split: str) -> list[Sample]:
        """Some examples of a split with texts of the current model, or of the split's last evaluation; all processes
        call this."""
        if split not in self.samples:
            references = dict(list(self._splits[split].references().items())[:_SAMPLES])
            self._gen_kwargs = {
                "max_length": self.args.generation_max_length,
                "num_beams": self.args.generation_num_beams,
            }
            self.samples[split] = _some(references, self._generate_texts(list(references), split))
        return self.samples[split]

    def _generate_texts(self, sources: list[str], prefix: str) -> list[str]:
        """Texts that the model generates for each input; all processes call this."""
        tokenizer = cast(Any, self.processing_class)
        features = source_features(sources, self._data, tokenizer)
        loader = self.get_test_dataloader(cast(torch.utils.data.Dataset, features))
        self._gen_kwargs |= self.hooks.generation
        output = super().evaluation_loop(loader, "Generation", prediction_loss_only=False, metric_key_prefix=prefix)
        ids = cast(np.ndarray, output.predictions)
        # Rows are padded with -100.
        return tokenizer.batch_decode(np.where(ids < 0, tokenizer.pad_token_id, ids), skip_special_tokens=True)

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler | None:
        return super()._get_train_sampler(train_dataset) if self.order is None else self.order

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # accelerate's loaders do not reach the sampler if batches are skipped and dealt out to processes.
        if self.order is not None:
            self.order.set_epoch(kwargs["epoch"])
        super()._run_epoch(*args, **kwargs)

    def _get_eval_sampler(self, eval_dataset: Any) -> torch.utils.data.Sampler | None:
        # Predictions have the order of their inputs, even where training groups examples by length.
        return SequentialSampler(eval_dataset) if self.args.world_size <= 1 else None


def _some(references: Mapping[str, Sequence[str]], predictions: Sequence[str]) -> list[Sample]:
    rows = zip(references.items(), predictions, strict=True)
    return [Sample(source, prediction, texts) for (source, texts), prediction in rows][:_SAMPLES]
