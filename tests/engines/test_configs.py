# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""The files for `accelerate launch --config_file`: read as the launcher reads them, so that no misspelt key passes."""

from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import DeepSpeedPlugin

from t5_experimental.stack_t5_experimental import T5Block


CONFIGS = sorted((Path(__file__).parents[2] / "training" / "configs").glob("*.yaml"))
DEEPSPEED = [path for path in CONFIGS if path.stem.startswith("deepspeed")]


def unknown_keys(path: Path) -> list[str]:
    """Keys that the launcher would pass over; it complains only of those on top.

    Raises:
        ValueError: of these.
    """
    config = load_config_from_file(str(path))
    sections = {"fsdp": config.fsdp_config, "": config.deepspeed_config}
    known = set(vars(launch_command_parser().parse_args(["script.py"])))
    return [key for prefix, section in sections.items() for key in section if key not in known or prefix not in key]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_key_is_known_and_explained(path):
    assert unknown_keys(path) == []
    config = load_config_from_file(str(path))
    assert config.num_machines == 1
    assert config.use_cpu is False  # accelerate would leave the engine out
    text = path.read_text()
    assert f"accelerate launch --config_file training/configs/{path.name} " in text
    plain = (
        "compute_environment",
        "distributed_type",
        "num_machines",
        "num_processes",
        "deepspeed_config",
        "fsdp_config",
    )
    plain += ("fsdp_version", "offload_param_device")
    for line in text.splitlines():
        name = line.partition(":")[0].strip()
        assert "#" in line or name in (
            *plain,
            "deepspeed_config",
            "fsdp_config",
            "fsdp_version",
            "offload_param_device",
        )


@pytest.mark.parametrize("section", ["deepspeed_config", "fsdp_config"])
def test_misspelt_keys_are_found(section, tmp_path):
    config = yaml.safe_load(next(path for path in CONFIGS if section in path.read_text()).read_text())
    config[section]["zero_stages" if section == "deepspeed_config" else "fsdp_versoin"] = 3
    (tmp_path / "misspelt.yaml").write_text(yaml.safe_dump(config))
    assert len(unknown_keys(tmp_path / "misspelt.yaml")) == 1
    config["num_proceses"] = 2
    (tmp_path / "misspelt.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ValueError, match="num_proceses"):
        unknown_keys(tmp_path / "misspelt.yaml")


def test_what_fsdp_gathers_at_a_time_is_a_block_of_every_family(model):
    path = next(path for path in CONFIGS if path.stem == "fsdp2")
    name = load_config_from_file(str(path)).fsdp_config["fsdp_transformer_layer_cls_to_wrap"]
    blocks = [module for module in model.modules() if type(module).__name__ == name]
    assert all(isinstance(block, T5Block) for block in blocks)
    assert len(blocks) == len([*model.encoder.block, *model.decoder.block])


@pytest.mark.parametrize("path", DEEPSPEED, ids=lambda path: path.stem)
def test_deepspeed_takes_the_settings(path, monkeypatch: pytest.MonkeyPatch):
    """As the launcher hands them on, in the environment."""
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    from deepspeed.runtime.config import DeepSpeedConfig

    section = load_config_from_file(str(path)).deepspeed_config
    names = {
        "zero_stage": "ZERO_STAGE",
        "zero3_init_flag": "ZERO3_INIT",
        "zero3_save_16bit_model": "ZERO3_SAVE_16BIT_MODEL",
        "offload_optimizer_device": "OFFLOAD_OPTIMIZER_DEVICE",
        "offload_param_device": "OFFLOAD_PARAM_DEVICE",
    }
    assert set(section) - set(names) == {"deepspeed_multinode_launcher"}
    for key, name in names.items():
        if key in section:
            monkeypatch.setenv(f"ACCELERATE_DEEPSPEED_{name}", str(section[key]).lower())
    plugin = DeepSpeedPlugin()
    settings = {**plugin.deepspeed_config, "train_batch_size": 1, "train_micro_batch_size_per_gpu": 1}
    zero = DeepSpeedConfig({**settings, "gradient_accumulation_steps": 1, "gradient_clipping": 1.0}).zero_config
    assert zero.stage == section["zero_stage"]
    assert zero.gather_16bit_weights_on_model_save == (zero.stage == 3)
    places = {str(part.device) for part in (zero.offload_optimizer, zero.offload_param)}
    assert places == {"cpu" if path.stem.endswith("offload") else "none"}
    assert plugin.zero3_init_flag == (zero.stage == 3)
