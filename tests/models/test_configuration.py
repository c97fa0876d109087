"""The configuration: defaults, per-layer widths, errors, round trips."""

import json
import tracemalloc

import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig

import t5_experimental
from t5_experimental import PRESETS, preset_config


def test_defaults_are_the_base_sizes():
    for family in ("t5.1.1", "t5.1.1.lm100k", "t5.1.th", "t5.1.n4w10"):
        preset = preset_config(f"{family}.base")
        assert preset.to_dict() == type(preset)().to_dict()


def test_fifteen_presets_and_a_clear_error_for_others():
    assert len(PRESETS) == len(set(PRESETS)) == 15
    with pytest.raises(ValueError, match=r"'t5\.1\.th\.xl' is not a released checkpoint; these are: t5\.1\.1\.small, "):
        preset_config("t5.1.th.xl")
    with pytest.raises(ValueError, match="'base' is not a released checkpoint"):
        preset_config("base")


def test_preset_takes_overrides():
    assert preset_config("t5.1.1.small", dropout_rate=0.0).dropout_rate == 0.0


def test_layer_specs_fill_what_a_layer_leaves_out():
    config = t5_experimental.T5TalkingHeadsConfig(
        num_layers=3,
        num_key_heads=4,
        d_v=16,
        layer_overrides={"encoder": [{"num_heads": 6, "d_ff": 8}, {"attention_type": "multi_head"}, {"d_k": 5}]},
    )
    narrow, plain, talking = config.layer_specs("encoder")
    assert (narrow.num_key_heads, narrow.num_heads, narrow.num_value_heads, narrow.d_ff) == (4, 6, 6, 8)
    assert (plain.num_key_heads, plain.num_heads, plain.num_value_heads, plain.d_v) == (24, 24, 24, 32)
    assert (talking.num_key_heads, talking.num_heads, talking.d_k, talking.d_v) == (4, 24, 5, 16)
    assert config.layer_specs("decoder") == (config.layer_specs("decoder")[0],) * 3


def test_first_layers_narrow_default_and_explicit():
    config = t5_experimental.T5FirstLayersNarrowConfig(num_heads=8, d_ff=32, num_decoder_layers=5)
    assert [spec.num_heads for spec in config.layer_specs("encoder")] == [4] * 4 + [8] * 10
    assert [spec.d_ff for spec in config.layer_specs("decoder")] == [16] * 4 + [32]
    uniform = t5_experimental.T5FirstLayersNarrowConfig(layer_overrides={})
    assert len(set(uniform.layer_specs("encoder"))) == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layer_overrides": {"encoder": [{}]}}, "has 1 entries for the encoder of 2 layers"),
        ({"layer_overrides": {"decoder": [{}, {"width": 3}]}}, r"layer 1 of the decoder has \['width'\]"),
        ({"layer_overrides": {"both": []}}, r"has the keys \['both'\]"),
        ({"num_key_heads": 2}, "plain multi-head attention"),
        ({"d_v": 2}, "plain multi-head attention"),
        ({"num_heads": 0}, "`num_heads` of layer 0 of the encoder is 0"),
        ({"attention_type": "flash"}, "attention_type"),
        ({"layer_overrides": {"encoder": [{}, {"attention_type": "flash"}]}}, "'flash'"),
        ({"layer_overrides": {"encoder": []}}, "has 0 entries for the encoder of 2 layers"),
        ({"num_key_heads": 0}, "`num_key_heads` of layer 0 of the encoder is 0"),
        ({"feed_forward_proj": "gated-foo"}, "`feed_forward_proj` is 'gated-foo'"),
        ({"feed_forward_proj": "gelu-gated"}, "`feed_forward_proj` is 'gelu-gated'"),
        ({"d_model": 0}, "`d_model` is 0"),
        ({"vocab_size": -1}, "`vocab_size` is -1"),
        ({"num_layers": 0}, "`num_layers` is 0"),
        ({"dropout_rate": 1.0}, "`dropout_rate` is 1.0"),
        ({"dropout_rate": float("nan")}, "`dropout_rate` is nan"),
        ({"layer_norm_epsilon": float("nan")}, "`layer_norm_epsilon` is nan"),
        ({"layer_norm_epsilon": float("inf")}, "`layer_norm_epsilon` is inf"),
        ({"layer_norm_epsilon": -1e-6}, "`layer_norm_epsilon` is -1e-06"),
        ({"relative_attention_num_buckets": 2}, "`relative_attention_num_buckets` is 2"),
        ({"relative_attention_max_distance": 16}, "`relative_attention_max_distance` 16"),
        ({"relative_attention_max_distance": 10**30}, "`relative_attention_max_distance` 10*:"),
        ({"relative_attention_num_buckets": 10**30}, "`relative_attention_num_buckets` is 10*"),
        ({"num_layers": 10**9}, "`num_layers` is 10*: it must be a positive integer of at most 4096"),
        ({"num_decoder_layers": 10**9}, "`num_decoder_layers` is 10*: it must be a positive integer of at most 4096"),
        ({"vocab_size": 10**30}, "`vocab_size` is 10*: it must be a positive integer of at most 2147483647"),
        ({"d_model": 10**30}, "`d_model` is 10*: it must be a positive integer of at most 2147483647"),
        ({"d_kv": 10**30}, "`d_k` of layer 0 of the encoder is 10*: it must be a positive integer of at most"),
        ({"num_heads": True}, "expected int, got bool"),
        ({"layer_overrides": {"encoder": [{"d_ff": 10**30}, {}]}}, "`d_ff` of layer 0 of the encoder is 10*"),
        ({"layer_overrides": {"encoder": [{"d_ff": True}, {}]}}, "`d_ff` of layer 0 of the encoder is True"),
        ({"initializer_factor": float("nan")}, "`initializer_factor` is nan"),
        ({"initializer_factor": float("inf")}, "`initializer_factor` is inf"),
        ({"initializer_factor": -1.0}, "`initializer_factor` is -1.0"),
    ],
)
def test_contradictions_are_refused(make_config, fields, message):
    with pytest.raises(StrictDataclassError, match=message):
        make_config("t5.1.1", **fields)


@pytest.mark.parametrize("name", ["num_layers", "num_decoder_layers"])
def test_absurd_counts_of_layers_allocate_nothing(name):
    """Layers are listed one by one, by this family before anything is checked."""
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=f"`{name}` is 10*: it must be a positive integer of at most 4096"):
            t5_experimental.T5FirstLayersNarrowConfig(**{name: 10**7})
        assert tracemalloc.get_traced_memory()[1] < 10**7
    finally:
        tracemalloc.stop()


def test_round_trip_through_files(config, tmp_path):
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is type(config)
    assert loaded.layer_specs("encoder") == config.layer_specs("encoder")
    assert loaded.layer_specs("decoder") == config.layer_specs("decoder")
    assert loaded.to_diff_dict() == config.to_diff_dict()
    assert json.loads((tmp_path / "config.json").read_text())["tie_word_embeddings"] is False


def test_names_that_transformers_users_read(make_config):
    config = make_config("t5.1.1")
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (32, 2, 4)
    assert config.is_encoder_decoder
    assert (config.pad_token_id, config.eos_token_id, config.decoder_start_token_id) == (0, 1, 0)
    narrow = make_config("t5.1.n4w10", num_layers=6, num_decoder_layers=5)
    assert narrow.get_text_config(decoder=True).num_hidden_layers == 5
    assert narrow.get_text_config().num_hidden_layers == 6


def test_activation_names(make_config):
    gated = make_config("t5.1.1")
    assert (gated.is_gated_act, gated.dense_act_fn) == (True, "gelu_pytorch_tanh")
    relu = make_config("t5.1.1", feed_forward_proj="relu")
    assert (relu.is_gated_act, relu.dense_act_fn) == (False, "relu")
    gelu = make_config("t5.1.1", feed_forward_proj="gelu")
    assert (gelu.is_gated_act, gelu.dense_act_fn) == (False, "gelu")


def test_rescaling_follows_the_shared_classifier(make_config):
    assert make_config("t5.1.1").scale_decoder_outputs is False
    assert make_config("t5.1.1", tie_word_embeddings=True).scale_decoder_outputs is True
    assert make_config("t5.1.1", tie_word_embeddings=True, scale_decoder_outputs=False).scale_decoder_outputs is False
