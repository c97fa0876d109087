"""What lies where the converter works and is not its own: nothing is followed, removed, renamed or written through."""

import errno
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from t5_experimental.convert.output.beside import reclaimable


Run = Callable[..., Any]


def folder_of_others(path: Path, elsewhere: Path) -> None:
    path.mkdir()
    (path / "thesis.tex").write_text("mine")
    # What a folder of models or of a training run has.
    for name in ("config.json", "checkpoint", "operative_config.gin", "unfinished.json", "model.ckpt-1.index"):
        (path / name).write_text("{}")


def left_by_an_older_version(path: Path, elsewhere: Path) -> None:
    path.mkdir()
    (path / "unfinished.json").write_text('{"key": "x", "files": {"model.safetensors": {}}}')
    (path / "model.safetensors").write_bytes(b"many hours of work")


def finished_by_an_older_version(path: Path, elsewhere: Path) -> None:
    path.mkdir()
    (path / "conversion.json").write_text('{"source": "x", "step": 1, "options": {}, "tensors": {}}')
    (path / "export.json").write_text("{}")
    (path / "config.json").write_text("{}")


def links_as_records(path: Path, elsewhere: Path) -> None:
    """Records that are not files, of which one would be waited for forever."""
    path.mkdir()
    (path / "thesis.tex").write_text("mine")
    (path / "t5-experimental.mark").symlink_to(elsewhere / "folder" / "thesis.tex")
    os.mkfifo(path / "conversion.json")
    (path / "export.json").symlink_to("export.json")


FOREIGN: dict[str, Callable[[Path, Path], None]] = {
    "link to a folder": lambda path, elsewhere: path.symlink_to(elsewhere / "folder"),
    "link to a file": lambda path, elsewhere: path.symlink_to(elsewhere / "file"),
    "dangling link": lambda path, elsewhere: path.symlink_to(elsewhere / "nothing"),
    "link to itself": lambda path, elsewhere: path.symlink_to(path),
    "file": lambda path, elsewhere: path.write_text("mine") and None,
    "FIFO": lambda path, elsewhere: os.mkfifo(path),
    "folder of others": folder_of_others,
    "left by an older version": left_by_an_older_version,
    "finished by an older version": finished_by_an_older_version,
    "links as records": links_as_records,
}


def everything(folder: Path) -> dict[str, Any]:
    """All that is below a folder, by its path, no link followed."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        content = os.readlink(path) if stat.S_ISLNK(mode) else path.read_bytes() if stat.S_ISREG(mode) else None
        found[path.relative_to(folder).as_posix()] = (mode, path.lstat().st_ino, content)
    return found


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A folder of other things; one of them is a folder that the converter would take for its own."""
    (tmp_path / "elsewhere").mkdir()
    folder_of_others(tmp_path / "elsewhere" / "folder", tmp_path)
    (tmp_path / "elsewhere" / "file").write_text("mine")
    return tmp_path / "elsewhere"


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


@pytest.fixture(scope="session")
def model(converted: Callable[[str], Path]) -> Path:
    return converted("t5.1.1.tiny")


@pytest.fixture
def commands(reference: Path, model: Path, work: Path) -> dict[str, list[object]]:
    convert = ["convert", reference / "golden" / "t5.1.1.tiny", work / "out"]
    export = ["export", model, work / "out"]
    return {
        "convert": convert,
        "resume": [*convert, "--resume"],
        "overwrite": [*convert, "--overwrite"],
        "overwrite and resume": [*convert, "--overwrite", "--resume"],
        "export": export,
        "export and overwrite": [*export, "--overwrite"],
    }


COMMANDS = ("convert", "resume", "overwrite", "overwrite and resume", "export", "export and overwrite")


def assert_refused(result: Any, name: str) -> None:
    sentence = result.err.splitlines()[-1].rpartition("\r")[2]
    assert result.status == 1, result.err
    assert sentence.startswith("error: "), result.err
    assert name in sentence
    assert sentence.endswith(".")
    assert "Errno" not in sentence
    assert "Traceback" not in result.err


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize("name", [".out.partial", ".out.partial.lock", "out"])
def test_what_is_not_ours_stops_the_command(
    name: str, kind: str, command: str, commands: dict[str, list[object]], work: Path, elsewhere: Path, run: Run
) -> None:
    FOREIGN[kind](work / name, elsewhere)
    before = everything(work), everything(elsewhere)
    result = run(*commands[command])
    assert (everything(work), everything(elsewhere)) == before
    assert_refused(result, name)


@pytest.mark.parametrize("command", ["convert", "export"])
@pytest.mark.parametrize("kind", FOREIGN)
def test_what_is_not_ours_is_not_where_the_old_folder_goes(
    kind: str, command: str, commands: dict[str, list[object]], work: Path, elsewhere: Path, run: Run
) -> None:
    assert run(*commands[command]).status == 0
    FOREIGN[kind](work / ".out.old", elsewhere)
    before = everything(work), everything(elsewhere)
    again = "overwrite" if command == "convert" else "export and overwrite"
    result = run(*commands[again])
    assert (everything(work), everything(elsewhere)) == before
    assert_refused(result, ".out.old")
    # Where nothing is replaced, it disturbs nothing.
    shutil.rmtree(work / "out")
    kept = everything(elsewhere)
    assert run(*commands[command]).status == 0
    after = everything(work)
    assert {path: what for path, what in before[0].items() if path.startswith(".out.old")}.items() <= after.items()
    assert everything(elsewhere) == kept
    assert {path.partition("/")[0] for path in after} == {"out", ".out.old"}


@pytest.mark.parametrize("command", ["convert", "export"])
@pytest.mark.parametrize("kind", [*FOREIGN, "file in a converted folder"])
def test_a_folder_with_something_of_others_in_it_is_not_replaced(
    kind: str, command: str, commands: dict[str, list[object]], work: Path, elsewhere: Path, run: Run
) -> None:
    """Notes beside a converted model, say, and a checkpoint that a run has written beside an exported one."""
    assert run(*commands[command]).status == 0
    FOREIGN.get(kind, FOREIGN["file"])(work / "out" / "model.ckpt-9.index", elsewhere)
    before = everything(work), everything(elsewhere)
    result = run(*commands["overwrite" if command == "convert" else "export and overwrite"])
    assert (everything(work), everything(elsewhere)) == before
    assert_refused(result, "model.ckpt-9.index")


@pytest.mark.parametrize("name", ["model.safetensors", "conversion.json", "config.json"])
def test_a_link_in_place_of_a_file_of_ours_is_not_replaced(
    name: str, commands: dict[str, list[object]], work: Path, elsewhere: Path, run: Run
) -> None:
    assert run(*commands["convert"]).status == 0
    (work / "out" / name).rename(elsewhere / name)
    (work / "out" / name).symlink_to(elsewhere / name)
    before = everything(work), everything(elsewhere)
    result = run(*commands["overwrite"])
    assert (everything(work), everything(elsewhere)) == before
    assert_refused(result, "out")


@pytest.mark.parametrize("command", ["convert", "resume", "export"])
@pytest.mark.parametrize("kind", [kind for kind in FOREIGN if kind != "file"])
def test_among_what_a_run_has_left_only_its_files_are_its_own(
    kind: str,
    command: str,
    commands: dict[str, list[object]],
    work: Path,
    elsewhere: Path,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    leave_unfinished(commands["resume"], run, monkeypatch)
    FOREIGN[kind](work / ".out.partial" / "model.safetensors.unfinished", elsewhere)
    before = everything(work), everything(elsewhere)
    result = run(*commands[command])
    assert (everything(work), everything(elsewhere)) == before
    assert_refused(result, "model.safetensors.unfinished")


def leave_unfinished(command: list[object], run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs a command with `--resume` that fails when all its tensors are written."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr("t5_experimental.convert.pipeline.write_record", fail)
        assert run(*command).status == 1


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("what", ["nothing", "beginning of its record", "finished files"])
def test_what_a_run_of_ours_has_left_is_taken_over(
    what: str,
    command: str,
    commands: dict[str, list[object]],
    work: Path,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    partial = work / ".out.partial"
    if what == "finished files":
        leave_unfinished(commands["resume"], run, monkeypatch)
        assert (partial / "model.safetensors").exists()
    else:  # killed that early
        partial.mkdir()
        if what != "nothing":
            (partial / "t5-experimental.mark").write_text("t5-exp")
    (work / ".out.partial.lock").touch()
    result = run(*commands[command])
    assert result.status == 0, result.err
    assert os.listdir(work) == ["out"]
    assert not (work / "out" / "t5-experimental.mark").exists()


@pytest.mark.parametrize("command", ["overwrite", "export and overwrite"])
def test_an_empty_folder_is_replaced(command: str, commands: dict[str, list[object]], work: Path, run: Run) -> None:
    (work / "out").mkdir()
    assert run(*commands[command]).status == 0
    assert os.listdir(work) == ["out"]
    assert len(os.listdir(work / "out")) > 3


@pytest.mark.parametrize("appears", ["folder of others", "link to a folder", "dangling link", "file"])
@pytest.mark.parametrize("command", ["convert", "overwrite", "export", "export and overwrite"])
def test_what_appears_while_the_command_runs_is_left_alone(
    command: str,
    appears: str,
    commands: dict[str, list[object]],
    work: Path,
    elsewhere: Path,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from t5_experimental import own_folders

    sync = own_folders.flush

    def and_appear(folder: Path) -> None:
        sync(folder)
        FOREIGN[appears](work / "out", elsewhere)

    monkeypatch.setattr(own_folders, "flush", and_appear)
    kept = everything(elsewhere)
    result = run(*commands[command])
    assert_refused(result, "out")
    assert os.listdir(work) == ["out"]
    (work / "other").mkdir()
    FOREIGN[appears](work / "other" / "out", elsewhere)
    contents = {
        folder: {name: (mode, content) for name, (mode, _, content) in everything(folder).items()}
        for folder in (work, work / "other")
    }
    assert contents[work / "other"].items() <= contents[work].items()
    assert everything(elsewhere) == kept


@pytest.mark.parametrize("kind", ["link to a folder", "folder of others", "left by an older version"])
def test_bytes_of_others_do_not_count_as_free(kind: str, work: Path, elsewhere: Path) -> None:
    FOREIGN[kind](work / ".out.partial", elsewhere)
    assert reclaimable(work / "out") == 0


def test_a_link_on_the_way_to_the_output_is_followed(
    commands: dict[str, list[object]], work: Path, elsewhere: Path, run: Run
) -> None:
    (work / "disk").symlink_to(elsewhere / "folder")
    command = [*commands["convert"][:2], work / "disk" / "out"]
    assert run(*command).status == 0
    assert (elsewhere / "folder" / "out" / "config.json").is_file()
    (work / "loop").symlink_to("loop")
    assert_refused(run(*commands["convert"][:2], work / "loop" / "out"), "loop")
    (work / "dangling").symlink_to("nowhere")
    assert_refused(run(*commands["convert"][:2], work / "dangling" / "out"), "dangling")
    assert sorted(os.listdir(work)) == ["dangling", "disk", "loop"]


def test_flushing_waits_for_nothing_and_needs_no_flushed_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A FIFO and a dangling link are passed over; some network disks flush files, but no folders."""
    from t5_experimental import own_folders

    flush, flushed = os.fsync, []

    def of_files_alone(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        flushed.append(os.fstat(descriptor).st_size)
        flush(descriptor)

    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_bytes(b"abc")
    monkeypatch.setattr(os, "fsync", of_files_alone)
    own_folders.flush(tmp_path)
    assert flushed == [3]

    def full(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="Input/output"):
        own_folders.flush(tmp_path)
