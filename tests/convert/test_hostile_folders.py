# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Folders whose files lie: export, verify and push end in one sentence each, and leave nothing behind."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from t5_experimental.convert import hub


Edit = Callable[[dict[str, Any]], Any]
Run = Callable[..., SimpleNamespace]

NAME = "t5.1.1.tiny"
TENSOR = "encoder.final_layer_norm.weight"


@pytest.fixture
def folder(converted: Callable[[str], Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(converted(NAME), tmp_path / "folder"))


def edit_json(path: Path, edit: Edit) -> None:
    fields = json.loads(path.read_text())
    edit(fields)
    path.write_text(json.dumps(fields))


def assert_refused(result: SimpleNamespace, message: str) -> None:
    lines = [line for line in result.err.splitlines() if not re.match(r"\r?(variables|tensors|verified):", line)]
    sentence = lines[-1].rpartition("\r")[2]
    assert re.fullmatch(rf"error: .*({message}).*\.", sentence), result.err
    assert sentence.isprintable()
    assert len(sentence) < 3000
    assert result.status == 1


def set_to(**fields: Any) -> Edit:
    return lambda table: table.update(fields)


CONFIGS: dict[str, tuple[Edit, str]] = {
    "layers": (set_to(num_layers=10**9), "config.json describes no model .`num_layers` is 10*: .* at most 4096"),
    "decoder layers": (set_to(num_decoder_layers=10**9), "`num_decoder_layers` is 10*: .* at most 4096"),
    "layers of a narrow family": (
        set_to(num_layers=10**9, model_type="t5_first_layers_narrow"),
        "`num_layers` is 10*: .* at most 4096",
    ),
    "distance": (set_to(relative_attention_max_distance=10**30), "`relative_attention_max_distance` 10*"),
    "text": (set_to(num_layers="many"), "Field 'num_layers' expected int, got str"),
    "list": (set_to(d_model=[1]), "Field 'd_model' expected int, got list"),
    "null": (set_to(d_model=None), "Field 'd_model' expected int, got NoneType"),
    "fraction": (set_to(d_model=32.0), "Field 'd_model' expected int, got float"),
    "overrides": (set_to(layer_overrides={"encoder": [1]}), "layer_overrides"),
    "activation": (set_to(feed_forward_proj=["gelu"]), "feed_forward_proj"),
    "terminal's own characters": (set_to(attention_type="\x1b[31m"), r"attention_type.*\\x1b\[31m"),
    "no type": (lambda fields: fields.pop("model_type"), "a model of type None"),
    "unknown type": (set_to(model_type="bert\x1b[31m"), r"a model of type 'bert\\x1b\[31m'"),
    "type of no type": (set_to(model_type=["t5"]), r"a model of type \['t5'\]"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_configurations(case: str, folder: Path, run: Run, tmp_path: Path) -> None:
    edit, message = CONFIGS[case]
    edit_json(folder / "config.json", edit)
    assert_refused(run("export", folder, tmp_path / "out"), message)
    assert os.listdir(tmp_path) == ["folder"]


def test_fields_that_would_replace_what_the_configuration_does(folder: Path, run: Run, tmp_path: Path) -> None:
    """transformers makes an attribute of every field; those of this package's models alone count here."""
    edit_json(folder / "config.json", set_to(layer_specs=1, to_dict=1, id2label=1, use_new_attention=True))
    assert run("export", folder, tmp_path / "out").status == 0


TEXTS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "Expecting value"),
    "no object": (b"[]", "it is no JSON object"),
    "deep": (b"[" * 10**5, "it is nested too deeply"),
    "deep objects": (b'{"a":' * 10**5, "it is nested too deeply"),
    "twice": (b'{"options": {"a": 1, "b": 2, "a": 3}}', "'a' is in it twice"),
    "no UTF-8": (b'{"options": "\xff"}', "can't decode byte 0xff"),
    "half a character": (b'{"options": ["\\udce9"]}', "can't encode character"),
    "NaN": (b'{"options": NaN}', "NaN is no number of JSON"),
    "long number": (b'{"options": ' + b"9" * 5000 + b"}", "4300 digits"),
}


@pytest.mark.parametrize("case", TEXTS)
@pytest.mark.parametrize(
    ("command", "file"),
    [("export", "config.json"), ("export", "conversion.json"), ("verify", "conversion.json"), ("push", "config.json")],
)
def test_texts_that_are_no_tables(
    case: str, command: str, file: str, folder: Path, reference: Path, run: Run, tmp_path: Path
) -> None:
    text, message = TEXTS[case]
    (folder / file).write_bytes(text)
    assert_refused(run(command, *arguments(command, folder, reference)), message)
    assert os.listdir(tmp_path) == ["folder"]


def arguments(command: str, folder: Path, reference: Path) -> tuple[object, ...]:
    return {
        "export": (folder, folder.parent / "out"),
        "verify": (reference / "golden" / NAME, folder),
        "push": (folder, "user/name"),
    }[command]


@pytest.mark.parametrize(
    ("command", "file"),
    [
        ("export", "config.json"),
        ("export", "conversion.json"),
        ("export", "model.safetensors"),
        ("verify", "conversion.json"),
        ("verify", "model.safetensors"),
        ("push", "config.json"),
        ("export", "model.safetensors.index.json"),
    ],
)
def test_what_is_no_file(command: str, file: str, folder: Path, reference: Path, run: Run) -> None:
    """Reading a pipe without a writer would not end."""
    (folder / file).unlink(missing_ok=True)
    os.mkfifo(folder / file)
    message = "has no model.safetensors|is not a file" if file.startswith("model") else "is not a file"
    if file == "model.safetensors.index.json":  # as where there is none
        assert run(command, *arguments(command, folder, reference)).status == 0
        return
    assert_refused(run(command, *arguments(command, folder, reference)), message)


def test_files_larger_than_any_of_their_kind(folder: Path, reference: Path, run: Run) -> None:
    for command, file in (("export", "config.json"), ("verify", "conversion.json")):
        text = (folder / file).read_bytes()
        with (folder / file).open("wb") as opened:
            opened.truncate(2**40)
        assert_refused(run(command, *arguments(command, folder, reference)), "it has more than 33,554,432 bytes")
        (folder / file).write_bytes(text)


RECORDS: dict[str, tuple[Edit, str]] = {
    "another version's": (lambda r: r["options"].update(colour=1), "another version of this command, with .* 'colour'"),
    "an argument": (lambda r: r["options"].update(cache_dir="/"), "another version of this command, with"),
    "family": (lambda r: r["options"].update(family="t5.9"), "its option family is 't5.9'"),
    "family of no type": (lambda r: r["options"].update(family=["auto"]), "its option family is"),
    "dtype": (lambda r: r["options"].update(dtype="int8"), "its option dtype is 'int8'"),
    "shards of no size": (lambda r: r["options"].update(max_shard_size=0), "its option max_shard_size is 0"),
    "shards without end": (lambda r: r["options"].update(max_shard_size=10**30), "its option max_shard_size is 10*"),
    "shards of a fraction": (lambda r: r["options"].update(max_shard_size=1.5), "its option max_shard_size is 1.5"),
    "heads": (lambda r: r["options"].update(d_kv=-1), "its option d_kv is -1"),
    "activation": (lambda r: r["options"].update(feed_forward_proj=1), "its option feed_forward_proj is 1"),
    "terminal's own characters": (
        lambda r: r["options"].update(feed_forward_proj="\x1b[31m"),
        "its option feed_forward_proj is '.x1b",
    ),
    "flag": (lambda r: r["options"].update(encoder_only="no"), "its option encoder_only is 'no'"),
    "format": (lambda r: r["options"].update(output_format="x"), "its option output_format is 'x'"),
    "optimizer": (lambda r: r["options"].update(optimizer=1), "its option optimizer is 1"),
    "no options": (set_to(options=[]), "no table of options"),
    "no tensors": (set_to(tensors=[]), "no table of tensors"),
    "tensor of no row": (lambda r: r["tensors"].update({TENSOR: 1}), "no table of tensors"),
    "tensor from nowhere": (lambda r: r["tensors"][TENSOR].pop("source"), f"does not say the source of '{TENSOR}'"),
    "file elsewhere": (lambda r: r["tensors"][TENSOR].update(file="../x.safetensors"), "'../x.safetensors' is no name"),
    "file of the system": (lambda r: r["tensors"][TENSOR].update(file="/etc/passwd"), "'/etc/passwd' is no name"),
    "long name": (lambda r: r["tensors"][TENSOR].update(file="a" * 5000), "is no name of a file in its folder"),
    "no source": (set_to(source=None), "it names no source"),
    "step": (set_to(step="now"), "its step is 'now'"),
    "fraction of a step": (set_to(step=1.5), "its step is 1.5"),
}


@pytest.mark.parametrize("case", RECORDS)
@pytest.mark.parametrize("command", ["verify", "push", "export"])
def test_records(case: str, command: str, folder: Path, reference: Path, run: Run, tmp_path: Path) -> None:
    edit, message = RECORDS[case]
    edit_json(folder / "conversion.json", edit)
    assert_refused(run(command, *arguments(command, folder, reference)), f"conversion.json cannot be read .*{message}")
    assert os.listdir(tmp_path) == ["folder"]


@pytest.mark.parametrize("step", [-1, 2**63, True])
def test_steps(step: int, folder: Path, run: Run, tmp_path: Path) -> None:
    edit_json(folder / "conversion.json", set_to(step=step))
    assert_refused(run("export", folder, tmp_path / "out"), "step is .*")


def edit_header(path: Path, edit: Edit) -> None:
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    text = edit(header)
    encoded = text if isinstance(text, bytes) else json.dumps(header).encode()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + data[8 + length :])


def row(**fields: Any) -> Edit:
    return lambda header: header[TENSOR].update(fields) and None


def twice(header: dict[str, Any]) -> bytes:
    text = json.dumps(header)
    return f'{text[:-1]}, "{TENSOR}": {json.dumps(header[TENSOR])}}}'.encode()


HEADERS: dict[str, tuple[Edit, str]] = {
    "metadata": (set_to(__metadata__={"format": 1}), "its metadata are not texts"),
    "metadata of pairs": (set_to(__metadata__=[["step", "9"]]), "its metadata are not texts"),
    "dtype": (row(dtype="I1024"), "has the dtype 'I1024'"),
    "dtype of no type": (row(dtype=["F32"]), "has the dtype"),
    "shape of text": (row(shape="32"), "are no lists of integers"),
    "shape of texts": (row(shape=["32"]), "are no lists of integers"),
    "shape of fractions": (row(shape=[32.0]), "are no lists of integers"),
    "negative shape": (row(shape=[-32]), "are no lists of integers"),
    "product beyond all": (row(shape=[2**62] * 60), "bytes, which float32"),
    "integers beyond all": (row(shape=[10**400]), "are no lists of integers"),
    "axes": (row(shape=[1] * 99), "has 99 axes"),
    "offsets of fractions": (row(data_offsets=[0.0, 128.0]), "are no lists of integers"),
    "three offsets": (row(data_offsets=[0, 1, 2]), "has 3 data_offsets"),
    "offsets beyond the file": (row(data_offsets=[10**12, 10**12 + 128]), "begins at byte"),
    "turned offsets": (row(data_offsets=[128, 0]), "bytes, which float32"),
    "overlapping": (row(data_offsets=[0, 128]), "begins at byte"),
    "no offsets": (lambda header: header[TENSOR].pop("data_offsets"), "does not say of"),
    "more": (row(strides=[1]), "does not say of"),
    "no row": (set_to(**{TENSOR: []}), "does not say of"),
    "twice": (twice, f"'{TENSOR}' is in it twice"),
    "no object": (lambda header: b"[]", "it is no JSON object"),
    "deep": (lambda header: b"[" * 10**5, "it is nested too deeply"),
    "no UTF-8": (lambda header: b'{"\xff": 1}', "can't decode byte 0xff"),
    "NaN": (lambda header: b'{"a": NaN}', "NaN is no number of JSON"),
    "name": (lambda header: header.update({"\x1b" * 9000: header.pop(TENSOR)}), "has no tensor|'.*' is|is not in"),
}


@pytest.mark.parametrize("case", HEADERS)
@pytest.mark.parametrize("command", ["export", "verify", "push"])
def test_headers(case: str, command: str, folder: Path, reference: Path, run: Run, tmp_path: Path) -> None:
    edit, message = HEADERS[case]
    edit_header(folder / "model.safetensors", edit)
    if (case, command) == ("name", "push"):
        return  # what tensors are called is the model's business
    assert_refused(run(command, *arguments(command, folder, reference)), message)
    assert os.listdir(tmp_path) == ["folder"]


@pytest.mark.parametrize("length", [0, 7, 2**63, 2**40, 10**8])
def test_lengths_of_headers(length: int, folder: Path, run: Run, tmp_path: Path) -> None:
    path = folder / "model.safetensors"
    with path.open("r+b") as file:
        file.write(length.to_bytes(8, "little"))
        file.truncate(max(path.stat().st_size, 10**9))
    assert_refused(run("export", folder, tmp_path / "out"), "model.safetensors is no complete safetensors file")


INDEXES: dict[str, tuple[Any, str]] = {
    "above": ({"weight_map": {TENSOR: "../model.safetensors"}}, "'../model.safetensors' is no name of a file"),
    "absolute": ({"weight_map": {TENSOR: "/etc/passwd"}}, "'/etc/passwd' is no name of a file"),
    "the folder itself": ({"weight_map": {TENSOR: ".."}}, "'..' is no name of a file"),
    "NUL": ({"weight_map": {TENSOR: "a\0"}}, r"'a\\x00' is no name of a file"),
    "surrogate": ({"weight_map": {TENSOR: "\udce9"}}, "can't encode character"),
    "no name": ({"weight_map": {TENSOR: 1}}, "its weight_map does not say"),
    "no map": ({"weight_map": []}, "its weight_map does not say"),
    "empty": ({"weight_map": {}}, "its weight_map does not say"),
    "nothing": ({}, "its weight_map does not say"),
    "missing": ({"weight_map": {TENSOR: "model-9.safetensors"}}, "model-9.safetensors is missing"),
}


@pytest.mark.parametrize("case", INDEXES)
@pytest.mark.parametrize("command", ["export", "push"])
def test_indexes(case: str, command: str, folder: Path, reference: Path, run: Run, tmp_path: Path) -> None:
    fields, message = INDEXES[case]
    (folder / "model.safetensors").unlink()
    edit_json(folder / "conversion.json", set_to(tensors={}))  # by which a push would miss it
    (folder / "model.safetensors.index.json").write_text(json.dumps(fields))
    assert_refused(run(command, *arguments(command, folder, reference)), message)
    assert os.listdir(tmp_path) == ["folder"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["x"], "auto_map"),
        ({"AutoConfig": 1}, "auto_map"),
        ({"AutoConfig": "../x.y"}, "is no name of a file"),
        ({"AutoConfig": "x.y\0"}, "is no name"),
        ({"AutoConfig": "9" * 5000}, "is no name"),
    ],
)
def test_code_that_is_elsewhere(names: Any, message: str, folder: Path, run: Run) -> None:
    edit_json(folder / "config.json", set_to(auto_map=names))
    assert_refused(run("push", folder, "user/name"), message)


def test_names_that_cannot_be_sent(folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "check_token", lambda: pytest.fail("the folder is taken"))
    (folder / "notes").mkdir()
    (folder / "notes" / os.fsdecode(b"caf\xe9.txt")).touch()
    assert_refused(run("push", folder, "user/name"), r"the name 'caf\\udce9.txt' in .* is not UTF-8: rename that file")
    assert_refused(run("push", folder, os.fsdecode(b"user/caf\xe9")), r"'user/caf\\udce9' is no name of a repository")
