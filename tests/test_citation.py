"""CITATION.cff names this version, and the paper that this software follows."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_the_citation_is_of_this_version():
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    said = {key: re.search(f'^{key} = "(.*)"$', project, re.MULTILINE).group(1) for key in ("version", "license")}
    assert {key: citation[key] for key in said} == said
    # what the format wants of every citation and of every reference
    assert {"cff-version", "message", "title", "authors"} <= set(citation) and citation["type"] == "software"
    (paper,) = citation["references"]
    assert {"type", "title", "authors"} <= set(paper)
    assert paper["doi"] == "10.48550/arXiv.2212.14034"
    assert [author["family-names"] for author in paper["authors"]] == ["Geiping", "Goldstein"]
