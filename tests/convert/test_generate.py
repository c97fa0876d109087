# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""`t5-experimental generate`: texts in, texts out."""

import io
import json
import os
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from t5_experimental import (
    T5TalkingHeadsForConditionalGeneration,
    T5V11Config,
    T5V11EncoderModel,
    T5V11ForConditionalGeneration,
    T5V11ForSequenceClassification,
    T5V11Model,
)
from t5_experimental.convert.cli import main
from t5_experimental.convert.generate import _on_a_line
from t5_experimental.kernels_t5_experimental import int8_kernels
from tests.conftest import TINY


LINES = ["cheap food", "", "a restaurant by the river, cheap", "name[The Mill]"]


class Terminal(io.StringIO):
    """Remembers what was written, and when it was to appear."""

    def __init__(self):
        super().__init__()
        self.flushed = []

    def isatty(self):
        return True

    def flush(self):
        self.flushed.append(self.getvalue())


@pytest.fixture(scope="module")
def folder(tiny_models):
    return tiny_models["t5_talking_heads"]


@pytest.fixture(scope="module")
def expected(folder):
    """`expected(**options)`: what the model writes for each line alone."""
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)

    def texts(lines=LINES, model=model, **options):
        inputs = [tokenizer([line], return_tensors="pt") for line in lines]
        ids = [model.eval().generate(**dict(one), **options) for one in inputs]
        return [text for one in ids for text in tokenizer.batch_decode(one, skip_special_tokens=True)]

    return texts


@pytest.fixture
def write(folder, monkeypatch, capsys):
    """`write(words)`: status, texts and errors of the command for the lines."""

    def run(words="", lines=LINES, model=folder):
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        capsys.readouterr()  # what came before, such as a bar of transformers
        status = main(["generate", str(model), *words.split()])
        printed = capsys.readouterr()
        return status, printed.out.split("\n")[:-1], printed.err

    return run


@pytest.mark.parametrize("words", ["--max-new-tokens 7 --batch-size 3", "--max_new_tokens=7"])
def test_every_line_has_its_text(words, write, expected):
    assert write(words) == (0, expected(max_new_tokens=7), "")


def test_options_are_those_of_generate(write, expected):
    beams = "--num-beams 3 --num-return-sequences 2 --length_penalty 2 --early-stopping --no-repeat-ngram-size 2"
    options = {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 2.0, "early_stopping": True}
    options |= {"no_repeat_ngram_size": 2, "max_new_tokens": 6}
    assert write(f"{beams} --max-new-tokens 6")[1] == expected(**options)
    random = "--do_sample --temperature 2 --top_k 40 --top_p 0.9 --repetition_penalty 1.1 --max_new_tokens 6 --seed"
    first, same, other = (write(f"{random} {seed}")[1] for seed in (1, 1, 2))
    assert first == same != other
    prefixed = [f"name: {line}" for line in LINES]
    assert write("--max_new_tokens 5 --source-prefix name:\N{NO-BREAK SPACE}")[0] == 0
    monkey = write("--max_new_tokens 5", lines=prefixed)[1]
    assert monkey == expected(prefixed, max_new_tokens=5)


def test_length_is_the_models_own_or_a_sensible_one(write, folder, expected, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "model")
    (copy / "generation_config.json").write_text(
        json.dumps({**json.loads((copy / "generation_config.json").read_text()), "max_length": 4})
    )
    assert write(model=copy)[1] == expected(max_length=4)
    assert write("--max-new-tokens 9", model=copy)[1] == expected(max_new_tokens=9)
    assert "would have 4 tokens and the longest 3: change" in write("--min-new-tokens 4", model=copy)[2]
    assert write("--min-new-tokens 3", model=copy)[1] == expected(max_new_tokens=3, min_new_tokens=3)
    assert write(lines=LINES[:1])[1] == expected(LINES[:1], max_new_tokens=128)
    (copy / "generation_config.json").write_text(json.dumps({"decoder_start_token_id": 0, "min_new_tokens": 9}))
    assert "would have 9 tokens and the longest 5: change" in write("--max-new-tokens 5", model=copy)[2]


def test_prompts_and_adapters(write, folder, expected, tmp_path):
    peft = pytest.importorskip("peft")
    model = AutoModelForSeq2SeqLM.from_pretrained(folder)
    torch.manual_seed(1)
    config = peft.PromptTuningConfig(
        task_type="SEQ_2_SEQ_LM", num_virtual_tokens=3, token_dim=32, num_transformer_submodules=1
    )
    prompted = peft.get_peft_model(model, config)
    prompted.save_pretrained(tmp_path / "prompt")
    texts = expected(model=prompted, max_new_tokens=7)
    assert texts != expected(max_new_tokens=7)
    assert write(f"--prompt {tmp_path / 'prompt'} --max-new-tokens 7")[1] == texts
    assert write("--max-new-tokens 7", model=tmp_path / "prompt")[1] == texts  # it names its model
    settings = tmp_path / "prompt" / "generation_config.json"
    settings.write_text('{"max_new_tokens": 4}')  # as training leaves it
    assert write(f"--prompt {tmp_path / 'prompt'}")[1] == expected(model=prompted, max_new_tokens=4)
    settings.write_text('{"max_new_tokens": ')
    assert "generation_config.json of" in write(f"--prompt {tmp_path / 'prompt'}")[2]


@pytest.mark.skipif(not int8_kernels(), reason="this torch or processor has no right int8 kernel")
def test_weights_in_int8(write, folder, expected, tmp_path):
    """What the model writes in a session of its own, also with an adapter, which is merged."""
    peft = pytest.importorskip("peft")
    model = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()

    def rounded(model):
        model.decoding_weights = "int8"
        return expected(model=model, max_new_tokens=9)

    assert write("--weights int8 --max-new-tokens 9 --batch-size 1")[1] == rounded(model)
    torch.manual_seed(1)
    adapted = peft.get_peft_model(
        AutoModelForSeq2SeqLM.from_pretrained(folder),
        peft.LoraConfig(target_modules=["q", "v"], init_lora_weights=False, lora_alpha=64),
    )
    adapted.save_pretrained(tmp_path / "adapter")
    words = f"--weights int8 --max-new-tokens 9 --batch-size 1 --prompt {tmp_path / 'adapter'}"
    assert write(words)[1] == rounded(adapted.merge_and_unload())


def test_int8_that_torch_cannot_multiply_is_refused(write, monkeypatch):
    monkeypatch.setattr("t5_experimental.kernels_t5_experimental.int8_kernels", list)
    status, texts, errors = write("--weights int8")
    assert (status, texts) == (1, [])
    assert errors == "error: --weights int8: torch multiplies no int8 weights rightly here; leave it out.\n"


def test_terminals_are_answered_word_by_word(folder, expected, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in LINES)))
    monkeypatch.setattr("sys.stdout", terminal)
    assert main(["generate", str(folder), "--max-new-tokens", "30"]) == 0
    texts = expected(max_new_tokens=30)
    assert [line.rstrip() for line in terminal.getvalue().split("\n")[:-1]] == [text.rstrip() for text in texts]
    assert len(terminal.flushed) > len(LINES) + 5
    # Beams change until the end.
    terminal = Terminal()
    monkeypatch.setattr("sys.stdin", io.StringIO("cheap food\n"))
    monkeypatch.setattr("sys.stdout", terminal)
    assert main(["generate", str(folder), "--max-new-tokens", "9", "--num-beams", "2"]) == 0
    assert terminal.getvalue() == f"{expected(LINES[:1], max_new_tokens=9, num_beams=2)[0]}\n"


def test_texts_stay_on_their_line():
    assert _on_a_line("a\nb\x1b[31m\u2028c\N{NO-BREAK SPACE}d\N{IDEOGRAPHIC SPACE}") == (
        "a\\nb\\x1b[31m\\u2028c\N{NO-BREAK SPACE}d\N{IDEOGRAPHIC SPACE}"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--batch-size 0", "--batch-size is 0: it must be from 1 to 2147483647"),
        ("--num-beams 0", "--num-beams is 0: it must be from 1 to 2147483647"),
        ("--max-new-tokens -1", "--max-new-tokens is -1: it must be from 1 to 2147483647"),
        ("--do-sample --top-k -1", "--top-k is -1: it must be from 0 to 2147483647"),
        ("--do-sample --temperature 0", "--temperature is 0.0: it must be from 1e-30 to 1e30"),
        ("--do-sample --temperature nan", "--temperature is nan: it must be from 1e-30 to 1e30"),
        ("--do-sample --top-p 1.5", "--top-p is 1.5: it must be more than 0 and at most 1"),
        ("--do-sample --min-p -0.1", "--min-p is -0.1: it must be from 0 to 1"),
        ("--repetition-penalty inf", "--repetition-penalty is inf: it must be from 1e-30 to 1e30"),
        ("--num-beams 2 --length-penalty nan", "--length-penalty is nan: it must be from -10 to 10"),
        ("--seed 1", "--seed has no effect without --do-sample"),
        ("--temperature 0.5", "The options of generate contradict each other: .*`temperature`"),
        ("--num-return-sequences 2", "contradict each other"),
        ("--weights int8 --device cuda", "--weights int8 is for CPUs, not for cuda: add --device cpu"),
        ("--prompt {empty}", "empty is not a folder of an adapter .it has no adapter_config.json."),
        ("--device nowhere:1", "--device nowhere:1 is none that torch has: "),
        ("--device meta", "--device meta computes no numbers: "),
        ("--do-sample --temperature 1e-320", "--temperature is 1e-320: it must be from 1e-30 to 1e30"),
        ("--num-beams 2 --length-penalty 1e300", "--length-penalty is 1e.300: it must be from -10 to 10"),
        (f"--num-beams {10**30}", "--num-beams is 10*: it must be from 1 to 2147483647"),
        (f"--do-sample --seed {10**23}", "--seed is 10*: it must be from -2..63 to 2..64 - 1"),
        ("--min-new-tokens 129", "shortest text would have 129 tokens and the longest 128: change --min-new-tokens or"),
        ("--min-new-tokens 3 --max-new-tokens 2", "shortest text would have 3 tokens and the longest 2: "),
    ],
)
def test_bad_options_end_before_anything_is_read(words, message, folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr("sys.stdin", iter(lambda: pytest.fail("a line was read"), None))
    assert main(["generate", str(folder), *words.format(empty=tmp_path / "empty").split()]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.fullmatch(rf"error: .*{message}.*\n", printed.err), printed.err


def test_bad_folders_and_lines(folder, write, tmp_path, monkeypatch, capsys):
    assert "is not a model folder (it has no config.json)" in write(model=tmp_path)[2]
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "adapter_config.json does not name a model" in write(model=tmp_path)[2]
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "gone"}')
    assert "is an adapter for 'gone', which is no model folder here" in write(model=tmp_path)[2]
    bare = shutil.copytree(folder, tmp_path / "bare", ignore=shutil.ignore_patterns("spiece.model", "tokenizer*"))
    assert "has no tokenizer: convert the checkpoint with --vocab" in write(model=bare)[2]
    (bare / "spiece.model").write_bytes((folder / "spiece.model").read_bytes())
    (bare / "model.safetensors").write_bytes(b"damaged")
    assert "does not load: " in write(model=bare)[2]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"cheap\nf\xff\n"), encoding="utf-8"))
    assert main(["generate", str(folder), "--max-new-tokens", "3"]) == 1
    assert "The input is not UTF-8 text (" in capsys.readouterr().err


@pytest.mark.parametrize("words", ["", "--weights int8"])
def test_folders_of_stock_t5_write_what_converted_ones_write(words, write, tiny_models, tmp_path):
    converted, stock = tiny_models["t5_v1_1"], shutil.copytree(tiny_models["t5_v1_1"], tmp_path / "stock")
    config = json.loads((stock / "config.json").read_text())
    fields = {name: config[name] for name in ("vocab_size", "d_model", "d_kv", "d_ff", "num_heads", "num_layers")}
    fields |= {"model_type": "t5", "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
    fields |= {"transformers_version": "4.40.0", "decoder_start_token_id": 0}
    (stock / "config.json").write_text(json.dumps(fields))
    expected = write(f"--max-new-tokens 7 {words}", model=converted)
    assert expected[0] == 0
    assert write(f"--max-new-tokens 7 {words}", model=stock) == expected

    (stock / "config.json").write_text(json.dumps({"model_type": "bart"}))
    assert "holds a model of type 'bart', which is no T5" in write(model=stock)[2]


def test_weights_that_are_not_the_models_are_refused(write, tiny_models, tmp_path):
    """transformers fills them with random numbers, without a word."""
    model = T5V11ForConditionalGeneration.from_pretrained(tiny_models["t5_v1_1"])
    tokenizer = [tiny_models["t5_v1_1"] / name for name in ("spiece.model", "tokenizer_config.json")]

    def message(name, save):
        save(tmp_path / name)
        for path in tokenizer:
            shutil.copy(path, tmp_path / name)
        status, texts, errors = write("--max-new-tokens 3", model=tmp_path / name)
        assert (status, texts, errors.count("\n")) == (1, [], 1)
        return errors

    def changed(**changes):
        weights = {name: weight.clone() for name, weight in model.state_dict().items()} | changes
        weights = {name: weight for name, weight in weights.items() if weight is not None}
        return lambda folder: model.save_pretrained(folder, state_dict=weights)

    table = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    assert f"has no tensor for {table}" in message("missing", changed(**{table: None}))
    assert f"{table} of" in (wide := message("wide", changed(**{table: torch.zeros(32, 5)})))
    assert "has the shape [32, 5], and the model of its config.json [32, 4]" in wide
    assert "has a tensor 'other'" in message("more", changed(other=torch.zeros(3)))
    for head in (T5V11ForSequenceClassification, T5V11Model):
        found = message(head.__name__, head.from_pretrained(tiny_models["t5_v1_1"]).save_pretrained)
        assert "has no tensor for lm_head.weight" in found
    encoder = T5V11EncoderModel(T5V11Config(**TINY))
    assert "has no tensor for decoder." in message("encoder", encoder.save_pretrained)
    encoder.config.is_encoder_decoder = False
    assert "holds an encoder alone, which writes no text" in message("alone", encoder.save_pretrained)
    small = T5V11ForConditionalGeneration(T5V11Config(**{**TINY, "vocab_size": 278}))
    assert "and the model's embedding 278 rows: copy both" in message("small", small.save_pretrained)


def test_adapters_without_a_tensor_are_refused(write, folder, tmp_path):
    peft = pytest.importorskip("peft")
    model = AutoModelForSeq2SeqLM.from_pretrained(folder)
    peft.get_peft_model(model, peft.LoraConfig(target_modules=["q"])).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "adapter_model.safetensors")
    name = sorted(weights)[0]
    save_file({key: weight for key, weight in weights.items() if key != name}, tmp_path / "adapter_model.safetensors")
    assert "does not load: Found missing adapter keys" in write(model=tmp_path)[2]


def test_what_torch_refuses_is_one_sentence(write, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("probability tensor contains\nnan")

    monkeypatch.setattr(T5TalkingHeadsForConditionalGeneration, "generate", fail)
    assert write()[::2] == (1, "error: The model cannot write with these options: probability tensor contains nan\n")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no device that is always full")
def test_output_and_input_that_fail_are_one_sentence(folder, monkeypatch, capsys):
    for words in (["generate", str(folder), "--max-new-tokens", "3"], ["presets"]):
        monkeypatch.setattr("sys.stdin", io.StringIO("cheap food\n"))
        with monkeypatch.context() as patched, open("/dev/full", "w") as full:
            patched.setattr("sys.stdout", full)
            assert main(words) == 1
        assert capsys.readouterr().err.endswith(
            "error: the output cannot be written (No space left on device): make room for it, or send it elsewhere.\n"
        )
    monkeypatch.setattr("sys.stdin", None)
    assert main(["generate", str(folder)]) == 1
    assert capsys.readouterr().err == "error: The standard input or output is closed: leave both open.\n"
