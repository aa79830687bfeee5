"""The suites as data: columns, labels, framings, metrics, splits, official sizes, published scores.

Column names, class numbers and sizes are those of the hub's data sets. What a framing does with the columns:
:mod:`cramming_train.evaluation.framing`.
"""

from __future__ import annotations

from cramming_train.evaluation.tasks import Split, Suite, Task

PARQUET = "refs/convert/parquet"  # the hub's own conversion, for data sets whose main branch is a loading script


def _suite(name: str, title: str, tasks: tuple[Task, ...], **details) -> Suite:
    return Suite(name, title, {task.name: task for task in tasks}, **details)


# --- GLUE: Wang et al. 2018, arXiv 1804.07461; label strings of the test files as glue-benchmark.com/faq has them

PAIR = ("sentence1", "sentence2")
ENTAILMENT = ("entailment", "not_entailment")
NLI = ("entailment", "neutral", "contradiction")


def _glue(name, label, columns, labels, metric, train, validation, test, **details) -> Task:
    splits, tests = (Split(name, label, "validation", validation),), (Split(label, label, "test", test),)
    return Task(name, columns, labels, (metric,), train, splits, tests, **details)


GLUE = _suite(
    "glue",
    "GLUE",
    (
        _glue("cola", "CoLA", ("sentence",), ("0", "1"), "matthews_correlation", 8551, 1043, 1063),
        _glue("sst2", "SST-2", ("sentence",), ("0", "1"), "accuracy", 67349, 872, 1821),
        _glue("mrpc", "MRPC", PAIR, ("0", "1"), "f1", 3668, 408, 1725),
        _glue("qqp", "QQP", ("question1", "question2"), ("0", "1"), "f1", 363846, 40430, 390965),
        _glue("stsb", "STS-B", PAIR, (), "pearson", 5749, 1500, 1379, label_range=(0.0, 5.0)),
        Task(
            "mnli", ("premise", "hypothesis"), NLI, ("accuracy",), 392702,
            (Split("mnli", "MNLI-m", "validation_matched", 9815),
             Split("mnli_mm", "MNLI-mm", "validation_mismatched", 9832)),
            (Split("MNLI-m", "MNLI-m", "test_matched", 9796), Split("MNLI-mm", "MNLI-mm", "test_mismatched", 9847),
             Split("AX", "AX", "test", 1104, config="ax")),  # the diagnostic set goes with the MNLI classifier
        ),
        _glue("qnli", "QNLI", ("question", "sentence"), ENTAILMENT, "accuracy", 104743, 5463, 5463),
        _glue("rte", "RTE", PAIR, ENTAILMENT, "accuracy", 2490, 277, 3000),
        _glue("wnli", "WNLI", PAIR, ("0", "1"), "accuracy", 635, 71, 146),
    ),
    headline=("cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "mnli_mm", "qnli", "rte"),
    repository="nyu-mll/glue",
    optional=("wnli",),  # left out since BERT: its validation set contradicts its training set
    published={  # arXiv 2212.14034 and its code
        "BERT-base, fully trained (published)": {
            "mnli": 83.2, "mnli_mm": 83.4, "sst2": 91.9, "stsb": 86.7, "rte": 59.2, "qnli": 90.6, "qqp": 87.7,
            "mrpc": 89.3, "cola": 56.5, "mean": 80.9,
        },
        "crammed BERT, 24 h on an A6000 (published)": {
            "mnli": 83.9, "mnli_mm": 84.1, "sst2": 92.2, "stsb": 84.6, "rte": 53.8, "qnli": 89.5, "qqp": 87.3,
            "mrpc": 87.5, "cola": 44.5, "mean": 78.6,
        },
        "no pretraining (published)": {
            "mnli": 34.1, "mnli_mm": 34.1, "sst2": 79.9, "stsb": 17.8, "rte": 47.3, "qnli": 50.0, "qqp": 68.6,
            "mrpc": 77.9, "cola": 0.0, "mean": 45.5,
        },
    },
)  # fmt: skip

# --- SuperGLUE: Wang et al. 2019, arXiv 1905.00537. Metrics and mean are its table 1: eight tasks, two metrics of a
# task averaged. The original project takes cb's and multirc's F1 alone, counts the diagnostic sets, and leaves ReCoRD
# out.

FALSE_TRUE = ("False", "True")


def _superglue(name, label, columns, labels, metrics, train, validation, **details) -> Task:
    return Task(name, columns, labels, metrics, train, (Split(name, label, "validation", validation),), **details)


SUPERGLUE = _suite(
    "superglue",
    "SuperGLUE",
    (
        _superglue("boolq", "BoolQ", ("question", "passage"), FALSE_TRUE, ("accuracy",), 9427, 3270),
        _superglue(
            "cb", "CB", ("premise", "hypothesis"), ("entailment", "contradiction", "neutral"),
            ("accuracy", "f1_macro"), 250, 56,
        ),
        _superglue(
            "copa", "COPA", ("question", "premise"), ("choice1", "choice2"), ("accuracy",), 400, 100,
            framing="choice", choices=("choice1", "choice2"),
        ),
        _superglue(
            "multirc", "MultiRC", ("question", "paragraph", "answer"), FALSE_TRUE, ("f1", "exact_questions"),
            27243, 4848, framing="multirc",
        ),
        _superglue(
            "record", "ReCoRD", ("query", "passage"), (), ("record_f1", "record_exact"), 100730, 10000, framing="record"
        ),
        Task(
            "rte", ("premise", "hypothesis"), ENTAILMENT, ("accuracy",), 2490,
            (Split("rte", "RTE", "validation", 277),
             # diagnostic sets, published with their labels, for the RTE classifier
             Split("axb", "AX-b", "test", 1104, config="axb", columns=PAIR, metrics=("matthews_correlation",)),
             Split("axg", "AX-g", "test", 356, config="axg")),
        ),
        _superglue("wic", "WiC", ("word", "sentence1", "sentence2"), FALSE_TRUE, ("accuracy",), 5428, 638),
        _superglue(
            "wsc.fixed", "WSC", ("text", "span1_index", "span2_index", "span1_text", "span2_text"), FALSE_TRUE,
            ("accuracy",), 554, 104,
        ),
    ),
    headline=("boolq", "cb", "copa", "multirc", "record", "rte", "wic", "wsc.fixed"),
    repository="aps/super_glue",
    revision=PARQUET,
    recipe="superglue",
)  # fmt: skip

# --- Zellers et al. 2018, arXiv 1808.05326; Lai et al. 2017, arXiv 1704.04683

ENDINGS = ("ending0", "ending1", "ending2", "ending3")
SWAG = _suite(
    "swag",
    "SWAG",
    (Task("swag", ("startphrase",), ENDINGS, ("accuracy",), 73546, (Split("swag", "SWAG", "validation", 20006),),
          framing="choice", choices=ENDINGS, config="regular"),),
    headline=("swag",),
    repository="allenai/swag",
    revision=PARQUET,
    recipe="swag",
)  # fmt: skip
RACE = _suite(
    "race",
    "RACE",
    (Task("race", ("question", "article"), ("A", "B", "C", "D"), ("accuracy",), 87866,
          (Split("race", "RACE", "validation", 4887),), framing="choice", choices=("options",), label_column="answer",
          config="all"),),
    headline=("race",),
    repository="ehovy/race",
    recipe="race",
)  # fmt: skip

SUITES = {suite.name: suite for suite in (GLUE, SUPERGLUE, SWAG, RACE)}
