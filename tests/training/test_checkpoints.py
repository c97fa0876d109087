# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Which checkpoint a run resumes from, and which ones stay."""

import os
import re
from pathlib import Path

import pytest

from t5_experimental import T5V11Config, own_folders
from t5_experimental.training import finetune
from t5_experimental.training.cli.entry_point import EntryPoint
from t5_experimental.training.errors import TrainingError
from t5_experimental.training.report import report
from t5_experimental.training.trainer.arguments import T5TrainingArguments
from t5_experimental.training.trainer.checkpoint_folders import (
    ASIDE,
    RECORD,
    Record,
    check_same_run,
    choose_checkpoint,
    complete,
    damage,
    file_sizes,
    put_in_place,
    remove_oldest,
    why_not_written,
)
from t5_experimental.training.trainer.settle import settle


def make_checkpoint(
    folder: Path, step: int, processes: int = 2, examples: int = 8, engine: str = "", model_only: bool = False
) -> Path:
    path = folder / f"checkpoint-{step}"
    (path / "shards").mkdir(parents=True)
    (path / "trainer_state.json").write_text("{}")
    (path / "shards" / "weights").write_text("1" * 2000)
    complete(path, Record(file_sizes(path), processes, examples, engine, model_only))
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_newest_whole_one_is_chosen(tmp_path):
    assert choose_checkpoint("auto", tmp_path / "missing") == (None, "")
    oldest, middle, newest = (make_checkpoint(tmp_path, step) for step in (9, 10, 200))
    (tmp_path / "checkpoint-best").mkdir()
    for wanted in ("auto", "True"):
        assert choose_checkpoint(wanted, tmp_path) == (str(newest), f"resumes from {newest}")
    (newest / "shards" / "weights").write_text("1")
    (middle / "shards" / "weights").unlink()
    for wanted in ("auto", "True"):
        chosen, said = choose_checkpoint(wanted, tmp_path)
        assert chosen == str(oldest)
        assert said == (
            f"resumes from {oldest}, since checkpoint-200 is not a complete checkpoint (its shards/weights has 1 bytes "
            "instead of 2,000) and checkpoint-10 is not a complete checkpoint (it has no shards/weights)"
        )
    with pytest.raises(TrainingError, match=r"checkpoint-10 is not a complete checkpoint \(it has no shards/weights\)"):
        choose_checkpoint(str(middle), tmp_path)
    assert choose_checkpoint(str(oldest), tmp_path)[0] == str(oldest)
    (oldest / "trainer_state.json").write_text("{")
    chosen, said = choose_checkpoint("auto", tmp_path)
    assert chosen is None
    assert said.startswith("starts over, since checkpoint-200 is not")
    assert said.endswith("checkpoint-9 is not a complete checkpoint (its trainer_state.json cannot be read)")
    with pytest.raises(TrainingError, match=r"needs a checkpoint in --output_dir .* which has no complete one"):
        choose_checkpoint("true", tmp_path)


def test_beginning_anew_beside_checkpoints_is_refused(tmp_path):
    assert choose_checkpoint("False", tmp_path) == (None, "")
    make_checkpoint(tmp_path, 3)
    for wanted in ("False", None):
        with pytest.raises(TrainingError, match=r"holds checkpoint-3 of an earlier run"):
            choose_checkpoint(wanted, tmp_path)


def test_records_that_are_damaged_or_missing(tmp_path):
    checkpoint = make_checkpoint(tmp_path, 3)
    for text in ("", "[]", '{"files": {}}', "\udcff"):
        (checkpoint / RECORD).write_text(text, errors="surrogateescape")
        assert damage(checkpoint) == "its complete.json cannot be read"
    (checkpoint / RECORD).unlink()  # as transformers' own trainer leaves it
    assert damage(checkpoint) is None
    check_same_run(checkpoint, "", 1, 1)


def test_weights_alone_are_not_gone_on_from(tmp_path):
    checkpoint = make_checkpoint(tmp_path, 3, model_only=True)
    for wanted in ("auto", "true", str(checkpoint)):
        with pytest.raises(TrainingError, match=r"checkpoint-3 was written with --save_only_model"):
            choose_checkpoint(wanted, tmp_path)


@pytest.mark.parametrize(
    ("written", "now", "problem"),
    [
        ("", ("", 1, 8), None),
        ("", ("", 4, None), None),
        ("", ("", 4, 16), "was written with 8 examples per step, but now there are 16: choose"),
        ("", ("FSDP2", 2, 8), "was written without DeepSpeed or FSDP, and this run is with FSDP2"),
        ("DeepSpeed ZeRO-2", ("DeepSpeed ZeRO-2", 2, 8), None),
        ("DeepSpeed ZeRO-2", ("DeepSpeed ZeRO-2", 4, 8), "by 2 processes, and DeepSpeed ZeRO-2 cannot reshard it for"),
        (
            "DeepSpeed ZeRO-2",
            ("DeepSpeed ZeRO-3", 2, 8),
            "with DeepSpeed ZeRO-2, and this run is with DeepSpeed ZeRO-3",
        ),
        ("FSDP2", ("FSDP2", 4, 8), None),
    ],
)
def test_other_engines_and_processes(written, now, problem, tmp_path):
    checkpoint = make_checkpoint(tmp_path, 3, engine=written)
    if problem is None:
        check_same_run(checkpoint, *now)
    else:
        with pytest.raises(TrainingError, match=re.escape(problem)):
            check_same_run(checkpoint, *now)


def test_a_checkpoint_replaces_one_that_the_run_went_back_behind(tmp_path):
    old = make_checkpoint(tmp_path, 3)
    (old / "leftover").touch()
    new = make_checkpoint(tmp_path / ASIDE, 3)
    put_in_place(new, old)
    assert damage(old) is None
    assert not (old / "leftover").exists()
    assert names(tmp_path / ASIDE) == []


def test_the_newest_and_the_best_stay(tmp_path):
    made = {step: make_checkpoint(tmp_path, step) for step in (9, 10, 20, 30, 40)}
    os.utime(made[30], (0, 0))  # the clock does not count
    remove_oldest(tmp_path, None, made[30], None)
    remove_oldest(tmp_path, 5, made[30], None)
    assert len(names(tmp_path)) == 5
    # The run went back behind step 40, and has come to 30.
    remove_oldest(tmp_path, 4, made[30], None)
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-20", "checkpoint-30", "checkpoint-9"]
    remove_oldest(tmp_path, 2, made[30], str(made[9]))
    assert names(tmp_path) == ["checkpoint-30", "checkpoint-9"]
    remove_oldest(tmp_path, 1, made[30], str(made[9]))
    assert names(tmp_path) == ["checkpoint-30", "checkpoint-9"]
    remove_oldest(tmp_path, 1, made[30], None)
    assert names(tmp_path) == ["checkpoint-30"]


def test_a_full_disk_is_a_sentence_wherever_it_strikes(monkeypatch):
    monkeypatch.setattr(EntryPoint, "parse", lambda self, arguments: arguments)

    def write_report(error: Exception) -> None:
        raise error

    with pytest.raises(SystemExit, match=r"^finetune: report.html cannot be written \(No space left on device\): make"):
        finetune.ENTRY_POINT.start(write_report, OSError(28, "No space left on device", "report.html"))
    with pytest.raises(SystemExit, match=r"^finetune: report.html cannot be used \(Permission denied\): give another"):
        finetune.ENTRY_POINT.start(write_report, PermissionError(13, "Permission denied", "report.html"))
    for error in (OSError(5, "Input/output error", "report.html"), PermissionError(13, "Permission denied")):
        with pytest.raises(OSError, match=error.strerror):
            finetune.ENTRY_POINT.start(write_report, error)


def test_what_is_the_disks_fault():
    assert why_not_written(OSError(28, "No space left on device")) == "No space left on device"
    assert why_not_written(RuntimeError("Error while serializing: I/O error: File too large")) == "File too large"
    assert why_not_written(RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos")) is not None
    assert why_not_written(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None


def make_foreign(kind: str, path: Path, elsewhere: Path) -> None:
    elsewhere.mkdir(exist_ok=True)
    (elsewhere / "thesis.tex").write_text("mine")
    if kind == "link":
        path.symlink_to(elsewhere)
    elif kind == "dangling link":
        path.symlink_to(elsewhere / "nothing")
    elif kind == "file":
        path.write_text("mine")
    elif kind == "FIFO":
        os.mkfifo(path)
    else:
        path.mkdir()
        (path / "trainer_state.json").write_text("{}")


FOREIGN = ("link", "dangling link", "file", "FIFO", "folder")


def seen(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.lstat().st_mode, path.lstat().st_ino) for path in folder.rglob("*")}


@pytest.mark.parametrize("kind", FOREIGN)
def test_what_has_the_name_of_unfinished_work_stops_a_run_before_it_begins(kind, tmp_path):
    output = tmp_path / "output"
    output.mkdir()
    make_foreign(kind, output / ASIDE, tmp_path / "elsewhere")
    before = seen(tmp_path)
    with pytest.raises(TrainingError, match=rf"{ASIDE} is in the way of .*: remove or rename it\.$"):
        settle((T5TrainingArguments(output_dir=str(output), use_cpu=True),))
    assert seen(tmp_path) == before
    make_checkpoint(output, 8)
    with pytest.raises(OSError, match="made by another program"):
        remove_oldest(output, 1, make_checkpoint(output, 9), None)
    assert before.items() <= seen(tmp_path).items()


@pytest.mark.parametrize("kind", FOREIGN)
def test_what_has_the_name_of_a_checkpoint_to_come_stops_a_run_before_it_begins(kind, tmp_path):
    output = tmp_path / "output"
    output.mkdir()
    whole = make_checkpoint(output, 3)
    make_foreign(kind, output / "checkpoint-2", tmp_path / "elsewhere")  # disturbs nothing
    assert choose_checkpoint("auto", output)[0] == str(whole)
    make_foreign(kind, output / "checkpoint-4", tmp_path / "elsewhere")
    if kind in ("link", "folder"):  # which may hold a checkpoint of transformers' own trainer, to be gone on from
        (output / "checkpoint-4" / "trainer_state.json").write_text("{")
    before = seen(tmp_path)
    with pytest.raises(TrainingError, match=r"checkpoint-4 is in the way of a run .*: remove or rename it\.$"):
        choose_checkpoint("auto", output)
    with pytest.raises(TrainingError, match=r"checkpoint-4 is in the way"):
        put_in_place(make_checkpoint(tmp_path / "new", 4), output / "checkpoint-4")
    assert before.items() <= seen(tmp_path).items()


@pytest.mark.parametrize("kind", FOREIGN)
def test_only_checkpoints_of_this_program_are_removed(kind, tmp_path):
    output = tmp_path / "output"
    output.mkdir()
    make_foreign(kind, output / "checkpoint-1", tmp_path / "elsewhere")
    before = seen(tmp_path)
    made = [make_checkpoint(output, step) for step in (2, 3, 4)]
    remove_oldest(output, 2, made[-1], None)
    assert names(output) == ["checkpoint-1", "checkpoint-3", "checkpoint-4"]
    assert before.items() <= seen(tmp_path).items()


def test_unfinished_work_of_this_program_is_known_at_every_moment(tmp_path, monkeypatch):
    """Another process may look while it is removed, and a kill may come between any two steps."""
    folder = tmp_path / ASIDE
    own_folders.begin(folder)
    (folder / "checkpoint-3").mkdir()
    for k in range(5):
        (folder / f"file-{k}").touch()
    looks = []

    def look(function):
        def call(*arguments, **options):
            assert own_folders.why_not_unfinished(folder) is None
            looks.append(function)
            return function(*arguments, **options)

        return call

    monkeypatch.setattr(os, "unlink", look(os.unlink))
    monkeypatch.setattr(os, "rmdir", look(os.rmdir))
    own_folders.remove(folder)
    assert len(looks) == 8
    assert names(tmp_path) == []
    assert own_folders.why_not_unfinished(folder) is None


def test_a_report_is_not_written_through_a_link(tmp_path):
    output, mine = tmp_path / "output", tmp_path / "mine"
    output.mkdir()
    mine.write_text("mine")
    for name in (".README.md.unfinished", ".report.html.unfinished"):
        (output / name).symlink_to(mine)
    config = T5V11Config(architectures=["T5V11ForConditionalGeneration"])
    card = report.card_of_import(config, "model", settle((T5TrainingArguments(output_dir=str(output), use_cpu=True),)))
    report.write_card(output, card)
    assert mine.read_text() == "mine"
    assert names(output) == [".README.md.unfinished", ".report.html.unfinished", "README.md"]
