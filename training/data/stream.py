# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Endless rows for pre-training from text of any size: shuffled, distributed, and exactly resumable.

The files are split into windows of some megabytes. Each pass visits the windows in another random order, and deals them
out to the workers of all processes in turn. The text of a window is joined, chunked, shuffled and packed into rows. All
of this follows from the seed and the number of the window, so two numbers are a worker's state: its window, and how
many rows of it have been trained on. They travel with each batch, so prefetched batches do not count. To resume, a
worker prepares its current window again and skips these rows. (The shuffled stream of `datasets` resumes with an empty
buffer.)
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from ..errors import TrainingError
from ..models.loading import vocabulary_digest
from .documents import DIGEST, Windows
from .objectives import Objective
from .packing import model_features, pack


Features = dict[str, np.ndarray]
T = TypeVar("T")

# Keeps the draws of chunks apart from those of examples.
_CUTS = 1
# Texts to tokenize at once; the original joins as many.
_TEXTS = 128


class Place(NamedTuple):
    """State of a worker: the number of windows it has finished, and of rows taken from the next one."""

    windows: int = 0
    rows: int = 0


class StreamState(NamedTuple):
    """State of all workers of a process, by number, and whose batch is next."""

    places: tuple[Place, ...]
    next_worker: int = 0


def _batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


@lru_cache(maxsize=1)
def _order(seed: int, epoch: int, windows: int) -> np.ndarray:
    """Indices of the windows in the order of a pass. (A cache of the stream would not pickle for data workers.)"""
    return np.random.default_rng((seed, epoch)).permutation(windows)


def _reserved_ids(tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """Booleans by token id: whether a token is special. The unknown token counts as text."""
    reserved = np.zeros(len(tokenizer), dtype=bool)
    reserved[tokenizer.all_special_ids] = True
    if tokenizer.unk_token_id is not None:
        reserved[tokenizer.unk_token_id] = False
    return reserved


class TextStream(IterableDataset):
    """Endless rows of all the text.

    Args:
        windows: the text.
        tokenizer: turns it into ids. Literal `</s>` or `<extra_id_0>` in the text is dropped: it would act as a special
            token.
        objective: turns ids into inputs and targets.
        packed: whether a row packs as many examples as fit.
        seed: of the order and of the objective's draws.
        process: index of this process.
        processes: number of processes.
        workers: per process, to prepare rows.
        silent: whether no progress of the first window is shown, for which training waits.
    """

    def __init__(
        self,
        windows: Windows,
        tokenizer: PreTrainedTokenizerBase,
        objective: Objective,
        packed: bool,
        seed: int,
        process: int = 0,
        processes: int = 1,
        workers: int = 1,
        silent: bool = True,
    ):
        super().__init__()
        self.windows, self.objective, self.packed = windows, objective, packed
        self.seed, self.process, self.processes, self.workers = seed, process, processes, workers
        self.silent = silent
        self.state = StreamState((Place(),) * workers)
        self._tokenizer = tokenizer
        self._reserved = _reserved_ids(tokenizer)

    def settings(self) -> dict[str, Any]:
        """Everything that the rows depend on, JSON-serializable."""
        settings = {name: getattr(self, name) for name in ("packed", "seed", "processes", "workers")}
        return {
            "objective": repr(self.objective),
            "vocabulary": vocabulary_digest(self._tokenizer),
            **self.windows.settings(),
            **settings,
        }

    def __iter__(self) -> Iterator[tuple[int, Place, Features] | TrainingError]:
        """Rows of one worker: its number, its state after the row, and the row."""
        info = get_worker_info()
        # The loader asks its first worker first; after resuming, that must be the worker whose turn it was.
        worker = ((0 if info is None else info.id) + self.state.next_worker) % self.workers
        try:
            for place, features in self._rows_of_shard(worker):
                yield worker, place, features
        except TrainingError as error:
            yield error  # raised here, its message would include the worker's traceback

    def once(self) -> Iterator[Features]:
        """Rows of the text in its own order, once; the same in every call."""
        for index in range(self.windows.count):
            chunks = self._chunks(index, np.random.default_rng((self.seed, index, _CUTS)))
            yield from self._rows(chunks, np.random.default_rng((self.seed, index)))

    def _rows_of_shard(self, worker: int) -> Iterator[tuple[Place, Features]]:
        shard, shards = self.process * self.workers + worker, self.processes * self.workers
        (number, skipped) = self.state.places[worker]
        chunks = self._first_chunks(number, shard, shards)
        while True:
            # Prepare the next window while this one is used, so that training never waits for an entire window.
            upcoming, following = self._chunks_of(number + 1, shard, shards), list[np.ndarray]()
            rng = np.random.default_rng((self.seed, number, shard))
            shuffled = (chunks[place] for place in rng.permutation(len(chunks)))
            rows = self._rows(_while_reading(shuffled, upcoming, following), rng)
            for count, features in enumerate(rows, start=1):
                if count > skipped:
                    yield Place(number, count), features
            chunks = [*following, *upcoming]
            number, skipped = number + 1, 0

    def _first_chunks(self, number: int, shard: int, shards: int) -> list[np.ndarray]:
        """A window's chunks, for which training waits; the first worker of all shows how far it is."""
        windows = self.windows
        silent = self.silent or shard != 0
        with tqdm(
            desc="Tokenizing the first text",
            total=windows.total // windows.count,
            unit="B",
            unit_scale=True,
            disable=silent,
        ) as bar:
            chunks = list(self._chunks_of(number, shard, shards, bar.update))
            bar.update(bar.total - bar.n)  # what is no text, such as the blank lines between documents
        return chunks

    def _chunks_of(
        self, number: int, shard: int, shards: int, advance: Callable[[int], Any] = lambda size: None
    ) -> Iterator[np.ndarray]:
        """Chunks of a worker's window, cut by draws of their own; `advance` is called with the size of texts."""
        draws = np.random.default_rng((self.seed, number, shard, _CUTS))
        return self._chunks(self._window(number * shards + shard), draws, advance)

    def _window(self, turn: int) -> int:
        """Index of the window at a position in the sequence of passes."""
        epoch, place = divmod(turn, self.windows.count)
        return int(_order(self.seed, epoch, self.windows.count)[place])

    def _chunks(
        self, window: int, rng: np.random.Generator, advance: Callable[[int], Any] = lambda size: None
    ) -> Iterator[np.ndarray]:
        together = self.objective.documents_together
        for texts in _batches(self.windows.documents(window), max(together, _TEXTS // together * together)):
            documents = [tokens for tokens in self._tokenize(texts) if len(tokens)]
            for group in _batches(documents, together):
                yield from self.objective.chunks(group, rng)
            advance(sum(len(text.encode()) for text in texts))

    def _tokenize(self, texts: list[str]) -> Iterator[np.ndarray]:
        encoded = self._tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
        for ids in cast(list[list[int]], encoded["input_ids"]):
            tokens = np.array(ids, dtype=np.int32)
            yield tokens[~self._reserved[tokens]]

    def _rows(self, chunks: Iterable[np.ndarray], rng: np.random.Generator) -> Iterator[Features]:
        objective = self.objective
        pairs = (objective.make(chunk, rng) for chunk in chunks)
        most_examples = None if self.packed else 1
        for row in pack(pairs, objective.inputs_length, objective.targets_length, most_examples):
            yield model_features(row, self.packed)


def _while_reading(items: Iterable[T], source: Iterator[T], target: list[T]) -> Iterator[T]:
    """Yields the items, and moves one from the source to the target each time."""
    for item in items:
        target.extend(islice(source, 1))
        yield item


def _collate(
    rows: list[tuple[int, Place, Features] | TrainingError],
) -> tuple[int, Place, dict[str, torch.Tensor]] | TrainingError:
    good = []
    for row in rows:
        if isinstance(row, TrainingError):
            return row
        good.append(row)
    worker, place, _ = good[-1]
    names = good[0][2]
    return worker, place, {name: torch.from_numpy(np.stack([row[2][name] for row in good])) for name in names}


class StreamLoader(DataLoader):
    """Batches of a [`TextStream`]; it knows after each of them where to resume.

    Args:
        stream: its `workers` must be the same as here, or 1 for none.
        batch_size: in rows.
        workers: processes that prepare batches; 0 prepares them here.
        options: of torch's loader.
    """

    def __init__(self, stream: TextStream, batch_size: int, workers: int, **options: Any):
        assert stream.workers == max(workers, 1)
        # Its own generator, though unused: torch would draw a seed from the global one, which dropout uses and which a
        # resumed run restores to the state after that draw.
        options = {"generator": torch.Generator(), **options}
        super().__init__(stream, batch_size=batch_size, num_workers=workers, collate_fn=_collate, **options)
        self.stream = stream
        self.state = stream.state

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for batch in super().__iter__():
            if isinstance(batch, TrainingError):
                raise batch
            worker, place, features = batch
            places = tuple(place if i == worker else old for i, old in enumerate(self.state.places))
            self.state = StreamState(places, (worker + 1) % self.stream.workers)
            yield features


def save_state(loader: StreamLoader, checkpoint: Path) -> None:
    """Writes the state of this process's stream into a checkpoint."""
    record = {"settings": loader.stream.settings(), **loader.state._asdict()}
    _state_path(checkpoint, loader.stream.process).write_text(json.dumps(record) + "\n", encoding="utf-8")


def _state_path(checkpoint: Path, process: int) -> Path:
    return checkpoint / f"stream-{process}.json"


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Settings of a stream that differ; if the files differ, only these."""
    if before.get("files") == now["files"]:
        compared = now.keys() - ({DIGEST} - before.keys())  # which checkpoints of earlier versions lack
        changed = [name for name in now if name in compared and before.get(name) != now[name]]
        return [f"{name} ({before.get(name)} then, {now[name]} now)" for name in changed]
    then = before.get("files", [])
    if len(then) != len(now["files"]):
        return [f"number of files ({len(then)} then, {len(now['files'])} now)"]
    first = next(pair for pair in zip(then, now["files"], strict=True) if pair[0] != pair[1])
    return ["file ({} of {:,} bytes then, {} of {:,} bytes now)".format(*first[0], *first[1])]


def restore(stream: TextStream, checkpoint: Path) -> None:
    """Resumes a stream where a checkpoint of the same run stopped.

    Raises:
        TrainingError: the checkpoint has no state for this process, or the stream has different settings now.
    """
    restart = "or restart the data with --ignore_data_skip"
    path = _state_path(checkpoint, stream.process)
    if not path.is_file():
        raise TrainingError(
            f"{checkpoint} does not say where to resume the text (it has no {path.name}): resume with as many "
            f"processes as wrote it, {restart}."
        )
    record = json.loads(path.read_text(encoding="utf-8"))
    before, now = cast(Mapping[str, Any], record["settings"]), stream.settings()
    if changed := _changes(before, now):
        raise TrainingError(f"{checkpoint} was written with another {', '.join(changed)}: use the same, {restart}.")
    stream.state = StreamState(tuple(Place(*place) for place in record["places"]), record["next_worker"])
