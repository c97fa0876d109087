"""transformers' own tests of models, run for all families: `make test-peers`, which brings them.

They come with the source distribution of the transformers release that is installed. It lacks the two mixins for
generation and export. A checkout has them: `make test-peers TRANSFORMERS_TESTS=CHECKOUT/tests` runs them, too.
"""

import functools
import importlib
import os
import sys
import unittest
from pathlib import Path
from types import ModuleType

import pytest
import torch

import t5_experimental


FOLDER = os.environ.get("TRANSFORMERS_TESTS")
if not FOLDER:
    pytest.skip("transformers' tests are no part of this repository: `make test-peers` brings them", True)

# Modules that the source distribution lacks, and what the common tests import from them.
LACKING = {"exporters.test_export": "ExportTesterMixin", "generation.test_utils": "GenerationTesterMixin"}

NARROW = {"num_heads": 2, "d_ff": 16}  # a first layer of T5FirstLayersNarrow

FAMILIES = ("T5V11", "T5LMAdapted", "T5TalkingHeads", "T5FirstLayersNarrow")
SEQ2SEQ = ("Model", "ForConditionalGeneration", "ForSequenceClassification", "ForQuestionAnswering")
ENCODERS = ("EncoderModel", "ForTokenClassification")
KINDS = {
    "MODEL": ("Model", "EncoderModel"),
    "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM": ("ForConditionalGeneration",),
    "MODEL_FOR_SEQUENCE_CLASSIFICATION": ("ForSequenceClassification",),
    "MODEL_FOR_QUESTION_ANSWERING": ("ForQuestionAnswering",),
    "MODEL_FOR_TOKEN_CLASSIFICATION": ("ForTokenClassification",),
}

# Tests that fail on purpose, by the mixin or the models that they are run on, or by the family.
DIFFERENCES = {
    "GenerationTesterMixin": {
        "test_prepare_inputs_for_generation_kwargs_forwards": "`forward` takes no arguments that it does not know",
    },
    SEQ2SEQ: {
        "test_inputs_embeds": "classes of texts are read at the end-of-sequence token, which `input_ids` alone tell",
        "test_model_base_model_prefix": "the language model holds its stacks itself, as its checkpoints name them",
    },
    "T5FirstLayersNarrow": {
        "test_attention_outputs": "its layers differ in their number of heads, and the test expects one number for all",
    },
}

# Those of generation that expect one number of heads; they run once more where the first layers are narrow in `d_ff`.
EXPECT_ONE_NUMBER_OF_HEADS = (
    "test_assisted_decoding_matches_greedy_search_0_random",
    "test_assisted_decoding_matches_greedy_search_1_same",
    "test_assisted_decoding_sample",
    "test_beam_sample_generate_dict_output",
    "test_beam_search_generate_dict_output",
    "test_beam_search_generate_dict_outputs_use_cache",
    "test_generate_compilation_all_outputs",
    "test_greedy_generate_dict_outputs",
    "test_greedy_generate_dict_outputs_use_cache",
    "test_past_key_values_format",
    "test_sample_generate_dict_output",
)
DIFFERENCES["T5FirstLayersNarrow", "GenerationTesterMixin"] = dict.fromkeys(
    EXPECT_ONE_NUMBER_OF_HEADS, DIFFERENCES["T5FirstLayersNarrow"]["test_attention_outputs"]
)


def load_common(folder):
    """The module of the common tests, as part of a package whose missing modules hold empty classes."""
    package = ModuleType("transformers_tests")
    package.__path__ = [str(folder)]
    sys.modules[package.__name__] = package
    for name, class_name in LACKING.items():
        if not (folder / f"{name.replace('.', '/')}.py").is_file():
            parent = ModuleType(f"transformers_tests.{name.partition('.')[0]}")
            parent.__path__ = []
            module = ModuleType(f"transformers_tests.{name}")
            setattr(module, class_name, type(class_name, (), {"is_empty": True}))
            sys.modules |= {parent.__name__: parent, module.__name__: module}
        else:  # one of them names another in full
            sys.modules[f"tests.{name}"] = importlib.import_module(f"transformers_tests.{name}")
    return with_our_names(importlib.import_module("transformers_tests.test_modeling_common"))


def with_our_names(common):
    """Lets the common tests know what kind of model a class is, which they look up in the names of transformers'."""
    for kind, suffixes in KINDS.items():
        ours = {f"{family}{suffix}": family + suffix for family in FAMILIES for suffix in suffixes}
        setattr(common, f"{kind}_MAPPING_NAMES", {**getattr(common, f"{kind}_MAPPING_NAMES"), **ours})
    return common


COMMON = load_common(Path(FOLDER).resolve())


class ModelTester:
    """Sizes and inputs, under the names that the mixins read."""

    batch_size, seq_length, encoder_seq_length, decoder_seq_length = 13, 7, 7, 7
    key_length = encoder_key_length = decoder_key_length = 7
    num_hidden_layers, hidden_size, num_attention_heads, vocab_size = 2, 32, 4, 99
    is_training = True

    def __init__(self, parent, family, is_encoder_decoder, first_layer):
        self.parent, self.family, self.is_encoder_decoder = parent, family, is_encoder_decoder
        self.first_layer = first_layer

    def get_config(self):
        narrow = {stack: [self.first_layer, {}] for stack in ("encoder", "decoder")}
        options = {"layer_overrides": narrow} if self.family == "T5FirstLayersNarrow" else {}
        return getattr(t5_experimental, self.family + "Config")(
            vocab_size=self.vocab_size,
            d_model=self.hidden_size,
            d_kv=8,
            d_ff=37,
            num_layers=self.num_hidden_layers,
            num_heads=self.num_attention_heads,
            is_encoder_decoder=self.is_encoder_decoder,
            dropout_rate=0.1,
            initializer_factor=0.002,
            **options,
        )

    def prepare_config_and_inputs_for_common(self):
        ids = COMMON.ids_tensor([self.batch_size, self.seq_length], self.vocab_size).clamp(min=2)
        ids[:, -1] = 1
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if self.is_encoder_decoder:
            decoder_ids = COMMON.ids_tensor([self.batch_size, self.seq_length], self.vocab_size).clamp(min=2)
            inputs |= {"decoder_input_ids": decoder_ids, "decoder_attention_mask": torch.ones_like(decoder_ids)}
        return self.get_config(), inputs


class FamilyTests(COMMON.ModelTesterMixin):
    """What the mixins ask of a class of tests; the classes below name the models."""

    model_split_percents = [0.5, 0.8, 0.9]
    family, first_layer = "", NARROW

    def setUp(self):
        self.model_tester = ModelTester(self, self.family, self.is_encoder_decoder, self.first_layer)


def expected_to_fail(test, reason):
    """A test of its own, as those of the mixin are shared by all classes."""

    @pytest.mark.xfail(strict=True, reason=reason)
    @functools.wraps(test)
    def failing(self):
        test(self)

    return failing


def make_tests(family, suffixes, mixins, first_layer=NARROW):
    """A class of tests, whose deliberate differences must fail: one that passes is reported."""
    kind = "Encoder" if suffixes == ENCODERS else "" if first_layer == NARROW else "InWidth"
    attributes = {
        "family": family,
        "first_layer": first_layer,
        "is_encoder_decoder": suffixes == SEQ2SEQ,
        "all_model_classes": tuple(getattr(t5_experimental, family + suffix) for suffix in suffixes),
        "__module__": __name__,
    }
    tests = type(f"Test{family}{kind}", (FamilyTests, *mixins, unittest.TestCase), attributes)
    of_mixins = [mixin.__name__ for mixin in mixins if not hasattr(mixin, "is_empty")]
    of_heads = [family, *((family, mixin) for mixin in of_mixins)] if first_layer == NARROW else []
    for name in (*of_mixins, suffixes, *of_heads):
        for test, reason in DIFFERENCES.get(name, {}).items():
            setattr(tests, test, expected_to_fail(getattr(tests, test), reason))
    if hasattr(COMMON.GenerationTesterMixin, "is_empty"):
        skip = unittest.skip("the source distribution lacks the tests of generation; ours are in tests/models")
        tests.test_generation_tester_mixin_inheritance = skip(lambda self: None)
    return tests


GENERATION = (COMMON.GenerationTesterMixin,)
globals().update(
    (tests.__name__, tests)
    for tests in (
        *(make_tests(family, SEQ2SEQ, GENERATION) for family in FAMILIES),
        *(make_tests(family, ENCODERS, ()) for family in FAMILIES),
        make_tests("T5FirstLayersNarrow", SEQ2SEQ, GENERATION, first_layer={"d_ff": NARROW["d_ff"]}),
    )
)
