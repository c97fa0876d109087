# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""The layering of docs/architecture.md, read from all imports: who may import whom, in how many levels."""

import ast
import sys

import pytest

from tests.support import import_levels
from tests.support.import_levels import LIBRARY, ROOT, TOPS, dependencies, imports_of, levels, source_files


_BELOW_ENTRY_POINTS = ("models", "engines", "data", "optim", "trainer", "report", "cli", "memory", "run.py")

# What each room may import from its own top folder, the leaves apart; the order is from the bottom to the top.
LEAVES = {
    "convert": ("readable.py", "errors.py", "signals.py"),
    "training": ("errors.py", "interruption.py", "permissions.py"),
}
ROOMS = {
    "convert": {
        "tensors.py": set(),
        "released.py": set(),
        "source": {"tensors.py", "released.py"},
        "bundle": {"tensors.py", "source"},
        "arrays": {"tensors.py", "source"},
        "mesh": {"tensors.py"},
        "plan": {"tensors.py", "mesh"},
        "presets_table.py": {"tensors.py", "released.py", "mesh"},
        "output": {"tensors.py", "source", "mesh", "plan"},
        "pipeline.py": {"tensors.py", "source", "bundle", "arrays", "mesh", "plan", "output"},
        "export.py": {"tensors.py", "source", "bundle", "mesh", "plan", "output"},
        "export_gguf.py": {"mesh", "plan", "output"},
        "hub.py": {"plan", "output"},
        "loading.py": set(),
        "generate.py": {"loading.py"},
        "onnx": set(),
        "export_onnx.py": {"plan", "output", "onnx", "loading.py"},
        "cli.py": {
            "mesh",
            "plan",
            "output",
            "presets_table.py",
            "pipeline.py",
            "export.py",
            "export_gguf.py",
            "hub.py",
            "generate.py",
            "export_onnx.py",
        },
    },
    "training": {
        "models": set(),
        "engines": set(),
        "data": {"models"},
        "optim": {"engines"},
        "trainer": {"models", "engines", "data", "optim"},
        "report": {"engines", "optim", "trainer"},
        "cli": {"engines", "trainer"},
        "memory": {"models", "engines", "optim", "trainer", "report"},
        "run.py": {"trainer", "report"},
        "evaluation.py": {"models", "data", "trainer", "report"},
        "finetune.py": {*_BELOW_ENTRY_POINTS, "evaluation.py"},
        "evaluate.py": {*_BELOW_ENTRY_POINTS, "evaluation.py"},
        "pretrain.py": {*_BELOW_ENTRY_POINTS},
        "prompt_tune.py": {*_BELOW_ENTRY_POINTS, "finetune.py"},
    },
}
MOST_LEVELS = {"convert": 7, "training": 8, LIBRARY: 13}

# What a module of the library may import at its top: huggingface_hub and numpy come with transformers, triton with
# CUDA builds.
LIBRARY_NEEDS = {"torch", "transformers", "huggingface_hub", "numpy", "triton"}


@pytest.mark.parametrize("top", ROOMS)
def test_rooms_import_only_from_below(top: str) -> None:
    found = dependencies(top)
    allowed = {
        f"{top}/{room}": {f"{top}/{below}" for below in (*LEAVES[top], *targets)}
        for room, targets in {**ROOMS[top], **dict.fromkeys(LEAVES[top], ())}.items()
    }
    assert found.keys() == allowed.keys()
    assert {room: targets - allowed[room] for room, targets in found.items() if targets - allowed[room]} == {}


@pytest.mark.parametrize("top", TOPS)
def test_there_is_no_circle_and_few_levels(top: str) -> None:
    found = levels(dependencies(top))  # a circle is an error
    assert max(found.values()) <= MOST_LEVELS[top]


@pytest.mark.parametrize("top", TOPS)
def test_files_of_a_room_are_no_circle_either(top: str) -> None:
    files = {str(path): set() for path in source_files(top) if path.name != "__init__.py"}
    for path in source_files(top):
        for found in imports_of(path):
            if str(path) in files and str(found.imported) in files and found.imported != path:
                files[str(path)].add(str(found.imported))
    assert levels(files).keys() == files.keys()  # a circle is an error


def test_convert_and_training_never_meet_and_the_library_knows_neither() -> None:
    above = {LIBRARY: {LIBRARY}, "convert": {LIBRARY, "convert"}, "training": {LIBRARY, "training"}}
    wrong = [
        f"{path}:{found.line} imports {found.imported}"
        for top in TOPS
        for path in source_files(top)
        for found in imports_of(path)
        if found.imported.parts[0] not in above[top]
    ]
    assert wrong == []


def test_the_library_needs_torch_and_transformers_alone() -> None:
    needed = set()
    for path in source_files(LIBRARY):
        for node in ast.parse((ROOT / path).read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [str(node.module)]
            needed |= {name.partition(".")[0] for name in names}
    assert needed - set(sys.stdlib_module_names) <= LIBRARY_NEEDS


def test_a_circle_is_found() -> None:
    with pytest.raises(ValueError, match="a -> b -> a"):
        levels({"a": {"b"}, "b": {"a"}})


def test_levels_are_counted() -> None:
    assert levels({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == {"a": 3, "b": 2, "c": 1}


def test_every_form_of_import_is_seen(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    code = {
        "convert/a.py": "from . import b\nfrom .room import c\ndef f():\n    from ..presets import PRESETS\n",
        "convert/b.py": "import t5_experimental.convert.room.c\n",
        "convert/room/__init__.py": "",
        "convert/room/c.py": "from ..b import *\nfrom t5_experimental import presets\n",
        "t5_experimental/presets.py": "PRESETS = 1\n",
    }
    for name, text in code.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(import_levels, "ROOT", tmp_path)
    tops = ("convert", LIBRARY)
    files = {import_levels.module_name(path): path for top in tops for path in source_files(top)}
    monkeypatch.setattr(import_levels, "_FILES", files)
    seen = {str(path): {str(found.imported) for found in imports_of(path)} for path in source_files("convert")}
    assert seen == {
        "convert/a.py": {"convert/b.py", "convert/room/c.py", "t5_experimental/presets.py"},
        "convert/b.py": {"convert/room/c.py"},
        "convert/room/__init__.py": set(),
        "convert/room/c.py": {"convert/b.py", "t5_experimental/presets.py"},
    }
    with pytest.raises(ValueError, match=r"convert/b\.py -> convert/room -> convert/b\.py"):
        levels(dependencies("convert"))
