"""python -m cramming_train.evaluate: judge a run on GLUE, or by its held-out masked-LM loss."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from cramming_train.data import PreparedData, open_prepared
from cramming_train.errors import UsageError, command
from cramming_train.glue.hub import Hub
from cramming_train.glue.reading import Folder
from cramming_train.glue.results import write_json
from cramming_train.glue.subject import pretrained_subject, random_subject
from cramming_train.glue.suite import Subject, load_tasks, run_glue
from cramming_train.glue.table import comparison_lines, score_lines, summary_lines
from cramming_train.glue.tasks import DEFAULT_TASKS, TASKS
from cramming_train.precision import Precision
from cramming_train.recipes import Recipe, apply_overrides, default_recipe, get_recipe
from cramming_train.runs import DEFAULT_RUNS_DIR, Run, find_run, list_runs
from cramming_train.validation import held_out_loss

NO_RUN = "none"
