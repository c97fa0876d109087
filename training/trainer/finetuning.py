# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""What fine-tuning adds to training: it generates texts and compares them with all references of their input."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch.utils.data import DataLoader, SequentialSampler
from transformers.trainer_utils import EvalLoopOutput

from t5_experimental.decoding_t5_experimental import decoding_session

from ..data.arguments import DataArguments
from ..data.examples import Split, source_features
from ..data.metrics import compute_metrics
from ..data.predictions import Sample, append, predictions_file, read_predictions
from ..data.task_texts import TaskExample
from .finetuning_arguments import FinetuningArguments
from .generation import by_length, sequence_scores
from .trainer import T5Trainer


# Samples of a split if there is no metric that needs all of it.
_SAMPLES = 8

# Inputs are sorted by length within windows of this number of batches, and written after each.
_BATCHES_IN_A_WINDOW = 16


class FinetuningTrainer(T5Trainer):
    """Evaluates a split, identified by the prefix of the metrics, in two passes: first the loss of every pair of input
    and target, then, if there are metrics, one generated text per distinct input.

    Args:
        splits: by prefix, including `train` unless the trainer only evaluates; `eval_NAME` for several files.
        data: the options that the splits were made with.
        metrics: names of [`~t5_experimental.training.data.metrics.METRICS`], or own functions; if there are none, and
            the data has a task, the task's own.
        kwargs: as for transformers' `Seq2SeqTrainer`.
    """

    args: FinetuningArguments

    def __init__(self, splits: Mapping[str, Split], data: DataArguments, metrics: Sequence[str], **kwargs: Any) -> None:
        pairs = {split: features.pairs for split, features in splits.items()}
        # As transformers names them: `eval` alone, or a dictionary whose keys follow `eval_`.
        several = {split.removeprefix("eval_"): rows for split, rows in pairs.items() if split.startswith("eval_")}
        evaluated = cast(Any, several or pairs.get("eval"))
        trained = None if "train" not in splits else splits["train"].rows or splits["train"].pairs
        super().__init__(train_dataset=trained, eval_dataset=evaluated, **kwargs)
        self._splits, self._data, self._metrics = splits, data, metrics
        self.order = splits["train"].sampler if "train" in splits else None
        """Of training on a mixture or on packed rows; None for transformers' own."""
        self._train_loader: DataLoader | None = None
        self.hooks.check_search(self.args.generation_num_beams)
        # The pass that computes losses does not generate.
        self.args.predict_with_generate = True
        source, target = data.max_source_length, data.max_target_length
        self.fixed_lengths = {"input_ids": source, "attention_mask": source}
        self.fixed_lengths |= {"labels": target, "decoder_input_ids": target}
        self.samples: dict[str, list[Sample]] = {}
        """From the last evaluation of each split."""
        self.predictions: dict[str, list[Sample]] = {}
        """All of the last evaluation of each split that generated texts."""
        self._special: dict[str, bool] = {}  # whether references of a split have special tokens
        self.folder_of_predictions: Path | None = None
        """Where texts are written while they are generated, and read if they are there already; None for nowhere."""

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        measures = bool(self._metrics) or self._options_of(metric_key_prefix).chosen_task is not None
        if prediction_loss_only and (measures or self.folder_of_predictions is not None):
            samples = self._predict(metric_key_prefix)
            self.predictions[metric_key_prefix] = samples
            self.samples[metric_key_prefix] = samples[:_SAMPLES]
            figures = self._figures(metric_key_prefix, samples)
            cast(dict[str, float], output.metrics).update(
                {f"{metric_key_prefix}_{name}": value for name, value in figures.items()}
            )
        return output

    def _options_of(self, split: str) -> DataArguments:
        """The options of a split, which of a mixture each part has of its own."""
        return self._data if split not in self._splits else self._splits[split].options or self._data

    def _figures(self, split: str, samples: Sequence[Sample]) -> dict[str, float]:
        """Metrics of the texts that were generated for a split."""
        task = self._options_of(split).chosen_task
        if task is not None and not self._metrics:
            texts = {sample.source: sample.prediction for sample in samples}
            examples = cast(list[TaskExample], self._splits[split].examples.to_list())
            return task.score(examples, [texts[example["source"]] for example in examples])
        texts_in_order = [sample.prediction for sample in samples]
        references = [sample.references for sample in samples]
        return compute_metrics(self._metrics, texts_in_order, references, self.args.positive_label)

    def sample(self, split: str) -> list[Sample]:
        """Some examples of a split with texts of the current model, or of the split's last evaluation; all processes
        call this."""
        if split not in self.samples:
            references = dict(list(self._references(split).items())[:_SAMPLES])
            self._gen_kwargs = {
                "max_length": self.args.generation_max_length,
                "num_beams": self.args.generation_num_beams,
            }
            self.samples[split] = self._generate(split, references)
        return self.samples[split]

    def _references(self, split: str) -> dict[str, list[str]]:
        """Of every distinct input of a split; special tokens in them have the same spaces around as in predictions."""
        references = self._splits[split].references()
        if not self._has_special_tokens(split):
            return references
        return {source: list(map(self._spaced, texts)) for source, texts in references.items()}

    def _has_special_tokens(self, split: str) -> bool:
        """Whether texts of a split are about them; an evaluation of it without training has to find the same."""
        if split not in self._special:
            references = self._splits[split].references().values()
            found = (self._special_tokens.search(text) for texts in references for text in texts)
            self._special[split] = any(found)
        return self._special[split]

    @cached_property
    def _special_tokens(self) -> re.Pattern[str]:
        """Those that a text may be about, such as `<extra_id_0>`; not those that only begin, end and fill it."""
        tokenizer = cast(Any, self.processing_class)
        ids = zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True)
        return re.compile(
            f"({'|'.join(re.escape(text) for number, text in ids if number not in self._fillers) or '(?!)'})"
        )

    @cached_property
    def _fillers(self) -> set[int | None]:
        tokenizer, config = cast(Any, self.processing_class), self.plain_model().config
        return {tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id, config.decoder_start_token_id}

    def _spaced(self, text: str) -> str:
        """A text with one space on each side of special tokens; the tokenizer does not keep how many there were."""
        parts = self._special_tokens.split(text)
        return text if len(parts) == 1 else " ".join(filter(None, map(str.strip, parts)))

    def _decode(self, split: str, ids: Sequence[Sequence[int]]) -> list[str]:
        """Texts of generated ids, with special tokens if references of the split have some."""
        tokenizer = cast(Any, self.processing_class)
        if not self._has_special_tokens(split):
            return tokenizer.batch_decode(ids, skip_special_tokens=True)
        texts = tokenizer.batch_decode([[number for number in row if number not in self._fillers] for row in ids])
        return list(map(self._spaced, texts))

    def _predict(self, split: str) -> list[Sample]:
        """The model's texts for all inputs of a split; those that are in its file already are not generated again."""
        references = self._references(split)
        if self.folder_of_predictions is None:
            return self._generate(split, references)
        path = predictions_file(self.folder_of_predictions, split)
        self.accelerator.wait_for_everyone()
        written = read_predictions(path, references)
        self.accelerator.wait_for_everyone()

        def write(samples: Sequence[Sample]) -> None:
            if self.is_world_process_zero():
                append(path, samples, self._metrics)

        return [*written, *self._generate(split, references, len(written), write)]

    def _generate(
        self,
        split: str,
        references: Mapping[str, Sequence[str]],
        skip: int = 0,
        receive: Callable[[Sequence[Sample]], None] = lambda samples: None,
    ) -> list[Sample]:
        """Texts that the model generates; all processes call this.

        Inputs are batched by length, within windows: a window's texts are known, in the order of their inputs, before
        the next one begins. A window of which some are skipped is generated whole, so that its batches are the same.

        Args:
            split: whose inputs they are.
            references: of every input.
            skip: number of inputs whose texts are known.
            receive: is called with the texts of every window.
        """
        size = _BATCHES_IN_A_WINDOW * self.args.eval_batch_size * self.args.world_size
        begin = skip // size * size
        rows = list(references.items())[begin:]
        if skip == len(references):
            return []
        sources = [source for source, _ in rows]
        features = source_features(sources, self._options_of(split), cast(Any, self.processing_class))
        order = by_length([len(ids) for ids in features["input_ids"]], size)
        loader = self.get_test_dataloader(cast(torch.utils.data.Dataset, features.select(order)))
        samples: list[Sample] = []
        generated: list[tuple[list[int], float]] = []
        with self._generating(loader):
            for inputs in loader:
                if not generated:
                    self._seed(begin + len(samples))
                generated += self._generate_batch(inputs)
                self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
                window = order[len(samples) : len(samples) + size]
                if len(generated) == len(window):
                    ids, scores = zip(*generated, strict=True)
                    known = sorted(zip(window, zip(self._decode(split, ids), scores, strict=True), strict=True))
                    done = [Sample(rows[row][0], text, rows[row][1], score) for row, (text, score) in known]
                    receive(done[max(skip - begin - len(samples), 0) :])
                    samples += done
                    generated = []
        return samples[skip - begin :]

    @contextmanager
    def _generating(self, loader: DataLoader) -> Iterator[None]:
        """For a pass over a loader: the model evaluates, its decoder's weights are laid out once, and the progress bar
        counts the loader's rows."""
        cast(torch.nn.Module, self.model).eval()
        self._gen_kwargs |= self.hooks.generation
        self.callback_handler.eval_dataloader = loader
        model: Any = self.plain_model()
        session = decoding_session(model, model.decoding_weights) if self._skips_logits else nullcontext()
        with self._meter.pause(), session, torch.random.fork_rng(enabled=self._draws()):
            yield

    def _draws(self) -> bool:
        """Whether texts are random; training must not be changed by that."""
        return bool(self.plain_model().generation_config.do_sample)

    def _seed(self, row: int) -> None:
        """Makes the texts of a window that begins with this input the same, however often a run was interrupted."""
        if self._draws():
            # Other processes draw for other inputs.
            torch.manual_seed(hash((self.args.seed, row, self.args.process_index)))

    def _generate_batch(self, inputs: dict[str, Any]) -> list[tuple[list[int], float]]:
        """Ids of the texts of a batch of all processes, and their scores."""
        model, tokenizer = cast(torch.nn.Module, self.model), cast(Any, self.processing_class)
        _, ids, _ = self.prediction_step(model, inputs, prediction_loss_only=False)
        scores = sequence_scores(model, self._prepare_inputs(inputs), ids, self.plain_model().generation_config)
        ids = self.accelerator.pad_across_processes(ids, dim=1, pad_index=tokenizer.pad_token_id)
        ids, scores = self.accelerator.gather_for_metrics((ids, scores))
        return list(zip(ids.tolist(), scores.tolist(), strict=True))

    def get_train_dataloader(self) -> DataLoader:
        self._train_loader = super().get_train_dataloader()
        return self._train_loader

    def num_examples(self, dataloader: DataLoader) -> int:
        # transformers counts the examples that there are: a mixture may have fewer or more in an epoch.
        if self.order is not None and dataloader is self._train_loader:
            return self._splits["train"].epoch
        return super().num_examples(dataloader)

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
