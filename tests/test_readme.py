"""The README's commands are those that the programs take."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

from cramming_train.recipes import BUNDLES, apply_overrides, get_recipe
from cramming_train.recipes.training import TRAININGS

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
COMMANDS = re.findall(r"-m (cramming_train\.\w+)([^\n#`]*)", README)


def test_the_commands_are_found():
    assert len(COMMANDS) >= 8 and {name for name, _ in COMMANDS} >= {
        f"cramming_train.{verb}" for verb in ("pretrain", "prepare", "evaluate", "report")
    }


@pytest.mark.parametrize(("module", "arguments"), COMMANDS)
def test_the_command_line_is_accepted(module, arguments):
    """argparse ends the process where it does not know an option; recipes and keys have to exist."""
    parsed = importlib.import_module(module).build_parser().parse_args(shlex.split(arguments))
    changes = getattr(parsed, "overrides", None) or getattr(parsed, "set", [])
    apply_overrides(get_recipe(getattr(parsed, "recipe", None) or "crammed-bert"), changes)


def test_the_recipes_are_named():
    assert all(f"`{name}`" in README for name in (*BUNDLES, *TRAININGS))
