# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Finding the checkpoint that the user means."""

from pathlib import Path

import pytest

from t5_experimental.convert.errors import ConversionError
from t5_experimental.convert.source.checkpoint import resolve


def put(folder: Path, *prefixes: str, shards: int = 1, state: str | None = None) -> Path:
    """Empty files of checkpoints, and the `checkpoint` file's path if one is given."""
    folder.mkdir(parents=True, exist_ok=True)
    for prefix in prefixes:
        (folder / f"{prefix}.index").touch()
        for k in range(shards):
            (folder / f"{prefix}.data-{k:05d}-of-{shards:05d}").touch()
    if state is not None:
        (folder / "checkpoint").write_text(
            f'model_checkpoint_path: "{state}"\nall_model_checkpoint_paths: "model.ckpt-1"\n'
            f'all_model_checkpoint_paths: "{state}"\n'
        )
    return folder


@pytest.mark.parametrize(
    "state",
    [
        "model.ckpt-20",
        "/nowhere/models/t5/model.ckpt-20",
        "gs://t5-data/pretrained_models/t5.1.1.base/model.ckpt-20",
        "C:\\\\models\\\\model.ckpt-20",
        "sub/model.ckpt-20",
    ],
)
def test_the_state_file_picks_also_in_a_moved_folder(state: str, tmp_path: Path) -> None:
    folder = put(tmp_path / "moved", "model.ckpt-10", "model.ckpt-20", "model.ckpt-30", state=state)
    found = resolve(folder)
    assert found.prefix == folder / "model.ckpt-20"
    assert found.named_step == 20
    assert found.name == "moved/model.ckpt-20"


def test_paths_in_the_state_file_that_lead_elsewhere(tmp_path: Path) -> None:
    put(tmp_path / "run" / "sub", "model.ckpt-5")
    relative = put(tmp_path / "run", state="sub/model.ckpt-5")
    assert resolve(relative).prefix == tmp_path / "run" / "sub" / "model.ckpt-5"
    absolute = put(tmp_path / "other", state=str(tmp_path / "run" / "sub" / "model.ckpt-5"))
    assert resolve(absolute).prefix == tmp_path / "run" / "sub" / "model.ckpt-5"


def test_a_single_index_needs_no_state_file(tmp_path: Path) -> None:
    folder = put(tmp_path, "model.ckpt-7", shards=3)
    assert resolve(folder).prefix == folder / "model.ckpt-7"
    assert resolve(str(folder) + "/").prefix == folder / "model.ckpt-7"


@pytest.mark.parametrize("suffix", ["", ".index", ".meta", ".data-00001-of-00002"])
def test_a_prefix_or_one_of_its_files(suffix: str, tmp_path: Path) -> None:
    put(tmp_path, "model.ckpt-7", "model.ckpt-8", shards=2, state="model.ckpt-8")
    assert resolve(tmp_path / f"model.ckpt-7{suffix}").prefix == tmp_path / "model.ckpt-7"


def test_gin_beside_the_checkpoint(tmp_path: Path) -> None:
    assert resolve(put(tmp_path, "weights")).gin_file is None
    assert resolve(tmp_path).named_step is None
    (tmp_path / "operative_config.gin").touch()
    assert resolve(tmp_path).gin_file == "operative_config.gin"


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="nothing does not exist"):
        resolve(tmp_path / "nothing")
    with pytest.raises(ConversionError, match=r"nothing/model.ckpt-1 does not exist"):
        resolve(tmp_path / "nothing" / "model.ckpt-1")
    with pytest.raises(ConversionError, match="holds no checkpoint"):
        resolve(tmp_path)
    (tmp_path / "model.ckpt-1.data-00000-of-00001").touch()
    with pytest.raises(ConversionError, match=r"model.ckpt-1.index is missing"):
        resolve(tmp_path / "model.ckpt-1")


def test_several_to_choose_from(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match=r"2 checkpoints .* model.ckpt-1, model.ckpt-2"):
        resolve(put(tmp_path, "model.ckpt-1", "model.ckpt-2"))


def test_a_state_file_that_names_something_else(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match=r"names model.ckpt-9, whose .index is not .*: model.ckpt-1"):
        resolve(put(tmp_path, "model.ckpt-1", state="/old/model.ckpt-9"))
    (tmp_path / "checkpoint").write_text("something else\n")
    with pytest.raises(ConversionError, match="names no checkpoint"):
        resolve(tmp_path)


def test_missing_shards(tmp_path: Path) -> None:
    put(tmp_path, "model.ckpt-1", shards=4)
    (tmp_path / "model.ckpt-1.data-00001-of-00004").unlink()
    (tmp_path / "model.ckpt-1.data-00003-of-00004").unlink()
    with pytest.raises(ConversionError, match=r"2 of 4 data files are missing.*first model.ckpt-1.data-00001-of-00004"):
        resolve(tmp_path)
    for path in tmp_path.glob("*.data-*"):
        path.unlink()
    with pytest.raises(ConversionError, match="has an index but no data"):
        resolve(tmp_path)
