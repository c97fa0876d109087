# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Conversions that end before their time: killed at every step, interrupted, out of disk; and going on with them."""

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock

from t5_experimental import own_folders
from t5_experimental.convert.bundle.reader import TensorBundleReader
from t5_experimental.convert.output import resume as finished_files
from t5_experimental.convert.output import safetensors_writer as writer
from t5_experimental.convert.output.beside import reclaimable


Run = Callable[..., Any]
SHARDS = ("--max-shard-size", "60KB")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def source(reference: Path) -> Path:
    return reference / "golden" / "t5.1.1.tiny"


@pytest.fixture
def expected(source: Path, run: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What an undisturbed conversion to a folder called "out" writes."""
    output = tmp_path_factory.mktemp("expected") / "out"
    assert run("convert", source, output, *SHARDS).status == 0
    return contents(output)


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, BaseException], None]:
    """`stop_after(count, error)`: writing ends with the error when `count` blocks are on the disk."""
    write = writer._Background._write

    def stop(count: int, error: BaseException) -> None:
        left = [count]

        def limited(self: Any, *arguments: Any) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise error
            write(self, *arguments)

        monkeypatch.setattr(writer._Background, "_write", limited)

    return stop


@pytest.fixture
def stopped(
    source: Path,
    run: Run,
    tmp_path: Path,
    stop_after: Callable[[int, BaseException], None],
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """The hidden folder that an interrupted run with `--resume` has left."""
    with monkeypatch.context():
        stop_after(52, KeyboardInterrupt())
        result = run("convert", source, tmp_path / "out", *SHARDS, "--resume")
    monkeypatch.undo()
    assert result.status == 130
    assert "finished files are kept for --resume" in result.err
    partial = tmp_path / ".out.partial"
    assert sorted(os.listdir(tmp_path)) == [".out.partial"]
    shards = {path.name for path in partial.glob("*.safetensors")}
    assert len(shards) > 3
    assert {path.name for path in partial.iterdir()} == {*shards, finished_files.FILENAME, own_folders.MARK}
    return partial


def identities(folder: Path) -> dict[str, tuple[int, int]]:
    status = {path.name: path.stat() for path in folder.glob("*.safetensors")}
    return {name: (one.st_ino, one.st_mtime_ns) for name, one in status.items()}


def test_finished_files_are_kept(
    source: Path,
    run: Run,
    tmp_path: Path,
    expected: dict[str, bytes],
    stopped: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept = identities(stopped)
    seen: list[str] = []
    blocks = TensorBundleReader.blocks

    def noted(self: TensorBundleReader, name: str, *size: Any) -> Iterator[np.ndarray]:
        seen.append(name)
        return blocks(self, name, *size)

    monkeypatch.setattr(TensorBundleReader, "blocks", noted)
    assert run("convert", source, tmp_path / "out", *SHARDS, "--resume", "--verify").status == 0
    assert contents(tmp_path / "out") == expected
    assert kept.items() <= identities(tmp_path / "out").items()
    record = json.loads(expected["conversion.json"])["tensors"]
    # Once to write what was missing, and everything to verify.
    wanted = [row["source"] for row in record.values() if row["file"] not in kept]
    assert sorted(seen) == sorted(wanted + [row["source"] for row in record.values()])


def test_a_damaged_file_is_not_kept(
    source: Path, run: Run, tmp_path: Path, expected: dict[str, bytes], stopped: Path
) -> None:
    kept = identities(stopped)
    names = sorted(kept)
    data = bytearray((stopped / names[0]).read_bytes())
    data[-1] ^= 1
    (stopped / names[0]).write_bytes(data)
    (stopped / names[1]).write_bytes((stopped / names[1]).read_bytes()[:-4])
    (stopped / names[2]).unlink()
    assert run("convert", source, tmp_path / "out", *SHARDS, "--resume").status == 0
    assert contents(tmp_path / "out") == expected
    assert {name: kept[name] for name in names[3:]}.items() <= identities(tmp_path / "out").items()


@pytest.mark.parametrize("change", ["dtype", "shards", "source", "list"])
def test_another_conversion_begins_anew(
    change: str, source: Path, reference: Path, run: Run, tmp_path: Path, expected: dict[str, bytes], stopped: Path
) -> None:
    """What was left does not fit, so nothing of it may be in the output."""
    options = {"dtype": [*SHARDS, "--dtype", "bfloat16"], "shards": []}.get(change, [*SHARDS])
    if change == "source":
        source = reference / "golden" / "t5.1.1.tiny-packed"
    if change == "list":
        (stopped / finished_files.FILENAME).write_text('{"key": ')
    assert run("convert", source, tmp_path / "out", *options, "--resume").status == 0
    assert run("convert", source, tmp_path / "again" / "out", *options).status == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "again" / "out")
    assert (contents(tmp_path / "out") == expected) == (change == "list")


def test_without_resume_all_is_written_again(
    source: Path, run: Run, tmp_path: Path, expected: dict[str, bytes], stopped: Path
) -> None:
    kept = identities(stopped)
    result = run("convert", source, tmp_path / "out", *SHARDS)
    assert result.status == 0
    assert ".out.partial, which an earlier run left, is started over" in result.err
    assert contents(tmp_path / "out") == expected
    assert not kept.items() & identities(tmp_path / "out").items()


@pytest.mark.parametrize("resume", [(), ("--resume",)], ids=["anew", "resume"])
def test_a_complete_folder_that_lacks_its_name_is_written_again(
    resume: tuple[str, ...], source: Path, expected: dict[str, bytes], run: Run, tmp_path: Path
) -> None:
    """Killed between the last file and the renaming; its list of finished files is gone by then."""
    assert run("convert", source, tmp_path / "out", *SHARDS).status == 0
    (tmp_path / "out").rename(tmp_path / ".out.partial")
    result = run("convert", source, tmp_path / "out", *SHARDS, *resume)
    assert result.status == 0, result.err
    assert contents(tmp_path / "out") == expected
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("resume", [False, True])
def test_a_full_disk(
    resume: bool,
    source: Path,
    run: Run,
    tmp_path: Path,
    stop_after: Callable[[int, BaseException], None],
) -> None:
    stop_after(40, OSError(errno.ENOSPC, "No space left on device"))
    result = run("convert", source, tmp_path / "out", *SHARDS, *(["--resume"] if resume else []))
    assert result.status == 1
    kept = "finished files are kept for --resume" if resume else "nothing was left behind"
    assert result.err.splitlines()[-1].endswith(f"out is full: make room or choose another disk; {kept}.")
    assert [path.name for path in tmp_path.iterdir()] == ([".out.partial"] if resume else [])
    assert not list(tmp_path.rglob("*.unfinished"))


def test_bytes_that_are_there_need_not_be_free(
    source: Path, run: Run, tmp_path: Path, stopped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    present = sum(path.stat().st_size for path in stopped.iterdir())
    usage = shutil.disk_usage(tmp_path)
    for free, status in ((494_080 + 2**24 - present, 0), (494_080 + 2**24 - present - 1, 1)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: usage._replace(free=free))
        result = run("convert", source, tmp_path / "out", *SHARDS, "--resume", "--overwrite")
        assert result.status == status, result.err
        present = 0


def test_two_runs_do_not_write_the_same_output(source: Path, run: Run, tmp_path: Path) -> None:
    with FileLock(tmp_path / ".out.partial.lock"):
        result = run("convert", source, tmp_path / "out")
    assert result.status == 1
    assert "another run is writing" in result.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("what", ["sparse", "folder", "nothing"])
def test_what_an_earlier_run_left_counts_as_free(what: str, tmp_path: Path) -> None:
    """Only as many bytes as the disk gets back."""
    partial = tmp_path / ".out.partial"
    if what != "nothing":
        own_folders.begin(partial)
        (partial / "folder").mkdir()
    if what == "sparse":
        with (partial / "model.safetensors.unfinished").open("wb") as file:
            file.truncate(10**9)
    assert reclaimable(tmp_path / "out") < 10**5
    assert reclaimable(tmp_path / ("x" * 250)) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", ["old", "out"])
def test_a_signal_waits_until_the_folder_has_its_name(
    moment: str, number: int, source: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    assert run("convert", source, output).status == 0
    rename = own_folders.rename

    def and_signal(folder: Path, name: Path) -> None:
        rename(folder, name)
        if name.name.endswith(moment):
            os.kill(os.getpid(), number)

    monkeypatch.setattr(own_folders, "rename", and_signal)
    result = run("convert", source, output, "--overwrite", *SHARDS)
    assert result.status == 130
    assert result.err.splitlines()[-1] == f"error: interrupted; {output} is complete."
    assert os.listdir(tmp_path) == ["out"]
    assert (output / "model-00001-of-00006.safetensors").exists()


def test_damaged_bytes_are_blamed_for_impossible_numbers(
    golden_copy: Callable[..., Path], run: Run, tmp_path: Path
) -> None:
    folder = golden_copy("t5.1.1.tiny")
    (path,) = folder.glob("*.data-*")
    data = np.fromfile(path, np.uint8)
    # Exponents of all ones in the middle of the file, which is some weight's.
    data[len(data) // 2 // 4 * 4 :][:64] = 255
    data.tofile(path)
    result = run("convert", folder, tmp_path / "out")
    assert result.status == 1
    assert "fails its checksum" in result.err


KILLED = """
import json, os, signal, sys
from pathlib import Path
from t5_experimental import without_models
from t5_experimental.convert import pipeline

source, output, options = Path(sys.argv[1]), Path(sys.argv[2]), eval(sys.argv[3])
steps = 0
last = None

def count(event, arguments):
    # Every look at, and every change of, what lies beside the output.
    global steps
    if last is not None and arguments and str(output.parent) in str(arguments[0]):
        steps += 1
        if steps > last:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(count)

def convert(limit):
    # The exit status of a process of its own, and how many steps it took.
    global last
    read, write = os.pipe()
    if (pid := os.fork()) == 0:
        last, status = limit, 1
        try:
            pipeline.convert(source, output, max_shard_size=60_000, **options)
            os.write(write, str(steps).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(write)
    _, status = os.waitpid(pid, 0)
    return status, int(os.read(read, 20) or 0)

def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}

with without_models():
    pipeline.inspect(source)  # imports what all runs need
    status, total = convert(10**9)
    assert status == 0 and total > 50, (status, total)
    expected = contents(output)
    for k in range(0, total, int(sys.argv[4])):
        if not options.get("overwrite"):
            for path in output.iterdir():
                path.unlink()
            output.rmdir()
        status, _ = convert(k)
        assert status == signal.SIGKILL, (k, status)
        partial, old = (output.with_name(f".{output.name}.{kind}") for kind in ("partial", "old"))
        # A file of nothing yet, which is opened before it is written, loads as little as one that is not there.
        configs = [folder / "config.json" for folder in (output, partial, old)]
        complete = [config.parent for config in configs if config.exists() and config.read_bytes()]
        for folder in complete:
            found = contents(folder)
            if folder == partial:
                for name in ("unfinished.json", "t5-experimental.mark", "conversion.json.draft"):
                    found.pop(name, None)
                # The list of files and their checksums come last.
                record, whole = (json.loads(folder["conversion.json"]) for folder in (found, expected))
                record |= {name: whole[name] for name in ("crc32c", "files")}
                found["conversion.json"] = (json.dumps(record, indent=2) + chr(10)).encode()
            assert found == expected, (k, folder.name)
        if options.get("overwrite"):
            assert output in complete or old in complete, k
        elif output in complete:
            # It was all done, but for letting go of the lock.
            output.with_name(f".{output.name}.partial.lock").unlink(missing_ok=True)
            continue
        status, _ = convert(10**9)
        assert status == 0, (k, status)
        assert contents(output) == expected, k
        assert os.listdir(output.parent) == [output.name], (k, os.listdir(output.parent))
print("killed", len(range(0, total, int(sys.argv[4]))), "times")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a copy of the process")
@pytest.mark.parametrize("options", [{}, {"resume": True}, {"overwrite": True, "resume": True}], ids=str)
def test_killed_at_every_step(options: dict[str, bool], source: Path, tmp_path: Path) -> None:
    """`kill -9` before each of the steps that touch the disk; what is left never loads unless it is complete, and the
    same command finishes."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    (tmp_path / "new").mkdir()
    every = os.environ.get("KILL_EVERY", "13")
    command = [sys.executable, "-c", KILLED, str(source), str(tmp_path / "new" / "out"), repr(options), every]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "killed" in done.stdout
