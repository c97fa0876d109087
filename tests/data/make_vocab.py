# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""Trains the small sentencepiece vocabulary of the demo and the tests on the restaurants' training file.

    python tests/data/make_vocab.py

writes `restaurants.model` beside this file. Special ids and normalisation are those of T5's vocabulary; with the
tokenizer's 100 sentinels on top, at most 1,100 ids are in use, and the golden checkpoints have 1,152 embedding rows.
"""

import io
import json
import string
from pathlib import Path

import sentencepiece


FOLDER = Path(__file__).parent
MAX_PIECES = 1000


def main() -> None:
    lines = (FOLDER / "restaurants_train.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [text for line in lines for text in json.loads(line).values()]
    # The trainer only considers substrings that different things can follow. Most words here are always followed by a
    # space; a second copy with commas makes whole words candidates.
    texts += [text.replace(" ", ", ") for text in texts]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type="unigram",
        vocab_size=MAX_PIECES,
        hard_vocab_limit=False,  # the texts have fewer words than that
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        normalization_rule_name="nmt_nfkc",
        character_coverage=1.0,
        # Other English text must not drown in unknown characters.
        required_chars=string.ascii_letters + string.digits + string.punctuation,
        num_threads=1,  # the same pieces on every machine
        minloglevel=1,
    )
    (FOLDER / "restaurants.model").write_bytes(model.getvalue())


if __name__ == "__main__":
    main()
