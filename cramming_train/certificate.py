"""The five rules of cramming, each kept, broken or still open, and certificate.json: what anyone needs to check a run.

The rules follow from the facts in summary.json alone. Whatever adds a fact later (GLUE, the search for downstream text)
goes through :func:`revise`, which states the rules anew and writes the certificate again.
"""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path
from typing import Any

from cramming_train.checkpoint import MODEL_FILE, list_checkpoints, load_state, write_json_atomically
from cramming_train.data import embedded, hub
from cramming_train.errors import RunError
from cramming_train.evaluation.results import glue_scores
from cramming_train.runs import SUMMARY_FILE, TOKENIZER_FILE, Run, read_json
from cramming_train.summary import write_summary

CERTIFICATE_FILE, CONTAMINATION_FILE = "certificate.json", "contamination.json"
DAY_SECONDS = 24 * 3600
RESULTS = (
    "parameters", "tokens", "epochs", "optimizer_steps", "train_seconds", "train_loss", "validation_loss",
    "validation_accuracy",
)  # of summary.json  # fmt: skip
STATES = {True: "kept", False: "broken", None: "open"}


def rules(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """The five rules: ``rule``, ``kept`` (None where it is not known yet) and ``why``."""
    origin = started_from(summary)
    started = (
        f"random initialisation, seed {summary.get('seed')}" if origin is None else f"weights imported from {origin}"
    )
    judged = summary.get("judged", {"kept": None, "why": "not judged yet: run python -m cramming_train.evaluate"})
    return [
        _rule("a transformer trained with masked language modelling, from scratch", origin is None, started),
        _rule("no pretrained model in any part of the pipeline", *_pretrained_parts(summary["data"], origin)),
        _rule("any raw text except downstream data", *_downstream_text(summary)),
        _rule("one GPU, 24 hours", *_time_and_hardware(summary)),
        _rule("judged on GLUE, one set of hyperparameters, at most 5 epochs", judged["kept"], judged["why"]),
    ]


def started_from(summary: dict[str, Any]) -> str | None:
    """Where the first weights came from, None where from chance: weights trained on here, or taken over as they are."""
    return summary.get("init_from") or summary.get("imported")


def _rule(rule: str, kept: bool | None, why: str) -> dict[str, Any]:
    return {"rule": rule, "kept": kept, "why": why}


def _time_and_hardware(summary: dict[str, Any]) -> tuple[bool | None, str]:
    seconds, processes = summary.get("train_seconds"), summary.get("processes")
    if seconds is None or processes is None:
        return None, "time and hardware of the training are not known"
    several = "es" if processes > 1 else ""
    ran = f"{processes} process{several} on {summary['device']}, {seconds:,.0f} of {DAY_SECONDS:,} seconds"
    return processes == 1 and seconds <= DAY_SECONDS, ran


def _pretrained_parts(data: dict[str, Any], origin: str | None) -> tuple[bool, str]:
    found = [] if origin is None else [f"the weights of {origin}"]
    source = data["source"]
    if data["source_kind"] != "rows":
        tokenizer = "the tokenizer was trained on the same text"
    elif source == hub.PILE_ROWS:
        tokenizer = "tokenizer and rows are the original project's own, trained from scratch by its word"
    else:
        found.append(f"the tokenizer that came with the ready-made rows ({source})")
    return (False, "made elsewhere: " + " and ".join(found)) if found else (True, tokenizer)


def _downstream_text(summary: dict[str, Any]) -> tuple[bool | None, str]:
    """Whether GLUE was looked for in the rows, and found."""
    data = summary["data"]
    found = data.get("contamination")
    text = f"raw text from {data['source']}"
    if data["source_kind"] == embedded.SOURCE:
        text = "documentation of this machine's Python packages, a demonstration"
    if data["source_kind"] == "rows":
        text = f"rows prepared by others ({data['source']})"
    if (summary.get("epochs") or 0) > 1:
        text += f", used {summary['epochs']:.1f} times"
    if data["fingerprint"] is None:
        return None, "the text is not known"
    if found is None:
        command = f"python -m cramming_train.contamination --run {summary.get('name', 'RUN')}"
        return None, f"{text}; not compared with GLUE: run {command}"
    if found["overlapping"]:
        where = ", ".join(name for name, entry in found["sets"].items() if entry["overlapping"])
        return False, (
            f"{text}; {found['overlapping']:,} of {found['checked']:,} sentences of GLUE ({where}) overlap with "
            f"{found['rows_affected']:,} of {found['rows']:,} rows ({found['words']} words in a row)"
        )
    why = f"{text}; none of {found['checked']:,} sentences of GLUE overlaps ({found['words']} words in a row)"
    if found["not_given"]:
        return None, f"{why}; not compared: {', '.join(found['not_given'])}"
    return True, why


def contamination(run: Run, prepared: Path) -> dict[str, Any] | None:
    """What the search for downstream text found in the run's very rows: noted in the run, or beside the rows."""
    for path in (run.path / CONTAMINATION_FILE, prepared / CONTAMINATION_FILE):
        with contextlib.suppress(RunError):  # missing or damaged: then nothing is known
            found = read_json(path)
            if found.get("fingerprint") == run.settings["data"]["fingerprint"]:
                return found
    return None


def revise(run: Run, **facts: Any) -> None:
    """Add facts to the summary (``judged``; ``contamination`` goes to its data), then rules and certificate anew."""
    summary = run.summary
    if summary is None:
        return
    if "contamination" in facts:
        summary["data"]["contamination"] = facts.pop("contamination")
    summary.update(facts)
    summary["rules"] = rules(summary)
    write_summary(run, summary)
    write_certificate(run)


def write_certificate(run: Run) -> Path | None:
    """Write RUN/certificate.json from what lies in the run; None where the run has not ended."""
    summary = run.summary
    if summary is None:
        return None
    path = run.path / CERTIFICATE_FILE
    try:
        content = certificate(run, summary)
    except KeyError as error:
        raise RunError(f"{run.path / SUMMARY_FILE}: of another version of this program (no {error})") from None
    write_json_atomically(path, content)
    return path


def certificate(run: Run, summary: dict[str, Any]) -> dict[str, Any]:
    """The content of certificate.json."""
    settings = run.settings
    scores = glue_scores(run.path)
    return {
        "run": run.name,
        "finished": summary["finished"],
        "verdict": verdict(summary["rules"]),
        "rules": [{**rule, "state": STATES[rule["kept"]]} for rule in summary["rules"]],
        "results": {
            **{key: summary.get(key) for key in RESULTS},
            "glue_mean": None if scores is None else scores["mean"],
        },
        "hardware": {**{key: summary.get(key) for key in ("device", "processes")}, **summary.get("hardware", {})},
        "software": summary.get("versions"),
        "kernels": summary.get("kernels"),
        "data": summary["data"],
        "sha256": _digests(run),
        "recipe": settings["recipe"],
        "settings": {key: settings.get(key) for key in ("seed", "hours", "tokens", "text_column")},
    }


def verdict(stated: list[dict[str, Any]]) -> str:
    """Of all rules together: broken where one is, else open where one is, else kept."""
    kept = [rule["kept"] for rule in stated]
    return STATES[False if False in kept else None if None in kept else True]


def _digests(run: Run) -> dict[str, str]:
    """SHA-256 of the weights and the tokenizer that these results belong to."""
    digests = {}
    tokenizer = run.path / TOKENIZER_FILE
    if tokenizer.exists():
        digests[TOKENIZER_FILE] = hashlib.sha256(tokenizer.read_bytes()).hexdigest()
    checkpoints = list_checkpoints(run.checkpoints)
    if checkpoints:
        digests[MODEL_FILE] = load_state(checkpoints[-1])["sha256"][MODEL_FILE]
    return digests
