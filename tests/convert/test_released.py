"""The released checkpoints: names to addresses, and sizes against those of the original's variables."""

import json
import math
from pathlib import Path

import pytest

from t5_experimental import PRESETS
from t5_experimental.convert.bundle.reader import TensorBundleReader
from t5_experimental.convert.errors import ConversionError
from t5_experimental.convert.presets_table import presets_table, sizes, slot_size
from t5_experimental.convert.released import BUCKET, VOCABULARY, is_released, resolve_released


PREFIX = "model.ckpt-300"


def test_every_name_has_an_address() -> None:
    found = [resolve_released(name) for name in PRESETS]
    assert len({released.source for released in found}) == 15
    for released in found:
        assert is_released(released.name)
        assert released.source == f"{BUCKET}/pretrained_models/{released.name}"
        assert released.vocabulary == VOCABULARY
        assert released.licence == "apache-2.0"
        assert released.name.startswith(f"{released.family}.")
    assert resolve_released("t5.1.1.xl").step == 1_000_000
    assert resolve_released("t5.1.1.lm100k.xl").step == 1_100_000
    assert resolve_released("t5.1.th.base").step is None


def test_other_names_are_refused() -> None:
    assert not is_released("t5.1.1")
    assert not is_released(Path("t5.1.1.small"))
    with pytest.raises(ConversionError, match=r"^t5\.1\.1\.bse is not .*: did you mean t5\.1\.1\.base"):
        resolve_released("t5.1.1.bse")
    with pytest.raises(ConversionError, match="`t5-experimental presets` lists them"):
        resolve_released("bart")


@pytest.mark.parametrize("name", PRESETS)
def test_sizes_are_those_of_the_originals_variables(name: str, reference: Path) -> None:
    path = reference / "shapes" / f"{name.replace('.lm100k', '')}.shapes.json"
    shapes = [[size for _, size in axes] for axes in json.loads(path.read_text())["variables"].values()]
    found = sizes(name)
    assert found.parameters == sum(map(math.prod, shapes))
    assert found.weight_bytes == found.output_bytes["float32"] == 4 * found.parameters
    assert found.output_bytes["bfloat16"] == 2 * found.parameters
    slots = 0
    for shape in shapes:
        *_, second, first = sorted([1, *shape])
        slots += sum(math.prod(shape) // n for n in (first, second)) if second >= 128 else math.prod(shape)
    assert found.slot_bytes == 4 * slots


def test_slots_are_estimated_as_genuine_checkpoints_have_them(reference: Path) -> None:
    found = TensorBundleReader(reference / "golden" / "t5.1.th.tiny-uneven" / PREFIX).variables
    slots = {name: math.prod(variable.shape) for name, variable in found.items() if "_slot_" in name}
    owners = {name.rpartition("_slot_")[0] for name in slots}
    assert len(owners) > 20
    for owner in owners:
        have = sum(slots.get(f"{owner}_slot_{kind}", 0) for kind in ("v", "vr", "vc"))
        # The tiny ones were trained with another threshold than the released ones.
        assert slot_size(found[owner].shape, factored_from=16) == have, owner


def test_the_table() -> None:
    lines = presets_table().splitlines()
    assert lines[0].split()[:6] == ["name", "family", "parameters", "download", "with", "slots"]
    assert [line.split()[0] for line in lines[1:16]] == list(PRESETS)
    xxl = next(line for line in lines if line.startswith("t5.1.1.lm100k.xxl"))
    assert xxl.split()[2] == "11,135,332,352"
    assert "44.54 GB" in xxl
    assert "22.27 GB" in xxl
    assert VOCABULARY in lines[-3]
