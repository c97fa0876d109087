"""Rows of the T5 paper's data sets, made up for `make_tasks.py`, with the columns that the Hugging Face hub gives them.

They look for what text conversion can get wrong: empty texts, other scripts, punctuation, white space that is not a
space, markup, labels between two roundings, spans before and after each other, several answers and none.
"""

# One sentence each.
SENTENCES = [
    "The book was read .",
    "",
    "Ärger, naïve — 東京 ✓",
    "two  spaces\tand a tab",
    "a\u00a0b\nc",
    "100% \\1 {N} $",
]


def _labeled(columns, texts, labels):
    """Rows of one text column each, or two that take the texts in turn."""
    rows = []
    for number, label in enumerate(labels):
        cells = {column: texts[(number + place) % len(texts)] for place, column in enumerate(columns)}
        rows.append({**cells, "label": label, "idx": number})
    return rows


def _multirc(number, paragraph, question, answer, text, label):
    idx = {"paragraph": paragraph, "question": question, "answer": answer}
    return {
        "paragraph": f"<b>Sent 1: </b>{text}<br><b>Sent 2: </b>No <i>more</i>.<br/> <BR>",
        "question": f"What about {question}?",
        "answer": ["Yes", "", "No <br> no", "Ja: überall"][answer],
        "idx": idx,
        "label": label,
    }


def _wsc(text, span1, span2, label, idx):
    return {
        "text": text,
        "span1_index": span1[0],
        "span1_text": span1[1],
        "span2_index": span2[0],
        "span2_text": span2[1],
        "idx": idx,
        "label": label,
    }


def _record(number, passage, query, entities, answers):
    return {
        "passage": passage,
        "query": query,
        "entities": entities,
        "entity_spans": {"text": entities, "start": [0] * len(entities), "end": [1] * len(entities)},
        "answers": answers,
        "idx": {"passage": number // 2, "query": number},
    }


def _squad(number, context, question, answers):
    return {
        "id": f"{number:024x}",
        "title": "A title",
        "context": context,
        "question": question,
        "answers": {"text": answers, "answer_start": [0] * len(answers)},
    }


# Two texts of WSC that the original writes out, since their spans are wrong.
WHIP = (
    "The boy continued to whip the pony , and eventually the pony threw him over. John laughed out quite loud. "
    '"Good for him," he said. '
)
MAGIC = (
    "When they had eventually calmed down a bit , and had gotten home, Mr. Farley put the magic pebble in an iron safe "
    ". Some day they might want to use it , but really for now, what more could they wish for?"
)

WSC = [
    _wsc("Mark told Pete many lies about himself .", (0, "Mark"), (6, "himself"), 1, 0),
    _wsc("The city refused the permit because they feared a riot", (0, "The city"), (6, "they"), 1, 1),
    _wsc("The city refused the permit because they feared a riot", (3, "the permit"), (6, "they"), 0, 2),
    _wsc("If he comes , Jürgen's  brother stays", (4, "Jürgen's"), (1, "he"), 0, 3),
    _wsc("Everybody likes Anna but Ben envies her", (2, "Anna"), (6, "her"), 1, 4),
    _wsc("An X ray hurt Tom but X did not kill him today", (4, "Tom"), (10, "him"), -1, 5),
    _wsc(WHIP, (7, "the pony"), (20, "him"), 0, 6),
    _wsc(MAGIC, (16, "the magic pebble"), (27, "it"), 1, 7),
    _wsc("Sue's dog bit it before a few of the cats left", (0, "Sue's dog"), (3, "it"), 0, 8),
]

# Here the marks go to the first place where the span stands, and nowhere if it is not where the index says.
WSC_MARKED = [*WSC, _wsc("This is a test sentence .", (3, "test"), (0, "This"), 0, 9)]
WSC_MARKED += [_wsc("Bob paid for Charlie .", (1, "Charlie"), (0, "Bob"), 1, 10)]
WSC_MARKED += [_wsc("Fast cars , fast cars race", (3, "fast cars"), (0, "Fast"), 0, 11)]

PASSAGE = (
    'Text (CNN) -- It rains in Bonn.\n@highlight\nBonn is "wet"\n@highlight\nWet!\n@highlight\nNo end\n@highlight\nStop'
)

TRANSLATIONS = ["That is good.", "", "Größe — ça va? Bună ziua!", " two  spaces\n", "«Ein» Satz, z. B. dieser."]

ARTICLES = [
    ("By A. Writer . It rained .\nIt was wet .", "It rained . It was wet .\nThe end ."),
    ("", "Nothing happened ."),
    ("(CNN)Ärger in Köln… “Nein!”", "Police in Köln said no ."),
    ("One sentence only", "One sentence . Two sentences . Three"),
]

LONG = "In 1990 (or 1991?), Beyoncé's “Déjà_vu” cost $5,000\u00a0—\tnot 5% more.\n\n Really…\x0bend"

ROWS = {
    "glue_cola": _labeled(["sentence"], SENTENCES, [0, 1, 1, 0, 1, -1, 1]),
    "glue_sst2": _labeled(["sentence"], SENTENCES, [0, 1, 1, 0, -1, 1]),
    "glue_mrpc": _labeled(["sentence1", "sentence2"], SENTENCES, [1, 0, 1, 1, 0, -1]),
    "glue_qqp": _labeled(["question1", "question2"], SENTENCES, [1, 0, 1, 1, 0, -1]),
    "glue_stsb": _labeled(
        ["sentence1", "sentence2"],
        SENTENCES,
        [5.0, 0.0, 3.799999952316284, 2.5, 1.1, 0.1, 0.5, 4.3, 3.25, 4.699999809265137, 1.7000000476837158],
    ),
    "glue_mnli": _labeled(["premise", "hypothesis"], SENTENCES, [0, 1, 2, -1, 2, 1]),
    "glue_mnli_mismatched": _labeled(["premise", "hypothesis"], SENTENCES, [2, 1, 0, -1]),
    "glue_qnli": _labeled(["question", "sentence"], SENTENCES, [0, 1, 0, -1, 1]),
    "glue_rte": _labeled(["sentence1", "sentence2"], SENTENCES, [0, 1, 0, -1, 1]),
    "glue_wnli": _labeled(["sentence1", "sentence2"], SENTENCES, [0, 1, 0, -1, 1]),
    "super_glue_boolq": _labeled(["question", "passage"], SENTENCES, [0, 1, 1, -1, 1]),
    "super_glue_cb": _labeled(["premise", "hypothesis"], SENTENCES, [0, 1, 2, -1, 2, 1, 0]),
    "super_glue_copa": [
        {"premise": text, "choice1": f"1 {text}", "choice2": "", "question": question, "label": label, "idx": number}
        for number, (text, question, label) in enumerate(
            zip(SENTENCES, ["cause", "effect"] * 3, [0, 1, 1, 0, -1, 1], strict=True)
        )
    ],
    "super_glue_multirc": [
        _multirc(0, 0, 0, 0, "Rain", 1),
        _multirc(1, 0, 0, 1, "Rain", 0),
        _multirc(2, 0, 0, 2, "Rain", 1),
        _multirc(3, 0, 1, 0, "東京</b>", 0),
        _multirc(4, 0, 1, 3, "東京</b>", 0),
        _multirc(5, 1, 2, 0, "", 1),
        _multirc(6, 1, 3, 1, "", 0),
        _multirc(7, 1, 3, 2, "", -1),
    ],
    "super_glue_record": [
        _record(0, PASSAGE, "A @placeholder is wet.", ["Bonn", "CNN"], ["Bonn"]),
        _record(1, PASSAGE, "@placeholder's rain, “heute”", ["Bonn", "Köln", "Köln-Süd"], ["Köln", "Bonn", "Köln-Süd"]),
        _record(2, "", "", [], ["the only one"]),
        _record(3, "No highlights here.", "What is @placeholder?", ["It"], []),
        _record(4, "End'\n@highlight\n", "Who @placeholder?", ["A, B", "C"], ["A, B", "C."]),
    ],
    "super_glue_rte": _labeled(["premise", "hypothesis"], SENTENCES, [0, 1, 0, -1, 1]),
    "super_glue_wic": [
        {
            **{"word": "bank", "sentence1": SENTENCES[number], "sentence2": SENTENCES[-number]},
            **{"start1": 0, "start2": 3, "end1": 4, "end2": 7, "idx": number, "label": label},
        }
        for number, label in enumerate([0, 1, 1, -1, 0])
    ],
    "super_glue_wsc": WSC,
    "super_glue_wsc_marked": WSC_MARKED,
    "squad": [
        _squad(0, LONG, "When?", ["1990", "1990 (or 1991?)", "or"]),
        _squad(1, "A  b (c) [d]: the-end", "What's  “d”?", ["(c)"]),
        _squad(2, "", "", [""]),
        _squad(3, "`~!@#$%^&*()_+-={}|;':\",./<>?\\", "ASCII?", ["~ !", "An answer, the answer.", "answer the"]),
        _squad(4, "Das Ärgernis der 東京、です。", "Wo?", ["東京、", "der 東京"]),
    ],
    "cnn_dailymail": [{"article": text, "highlights": summary, "id": "x"} for text, summary in ARTICLES],
    "xsum": [{"document": text, "summary": summary, "id": "x"} for text, summary in ARTICLES],
    **{
        f"{name}_en{code}": [
            {"translation": {"en": text, code: TRANSLATIONS[-number]}} for number, text in enumerate(TRANSLATIONS)
        ]
        for name, code in (
            ("wmt14", "de"),
            ("wmt_t2t", "de"),
            ("wmt19", "de"),
            ("wmt14", "fr"),
            ("wmt15", "fr"),
            ("wmt16", "ro"),
        )
    },
}
