"""TensorBoard, wandb and trackio: called as their signatures want, and, where installed, for real and offline."""

import inspect
import json
import os
import sqlite3
import subprocess
import sys
import types

import pytest

from cramming_train import pretrain
from cramming_train.errors import RunError, UsageError
from cramming_train.trackers import TRACKERS, check_trackers, open_trackers
from cramming_train.tracking import RunLog

CONFIG = {"recipe": {"name": "mini"}, "seed": 3}


# The signatures of wandb 0.31, trackio 0.43 and torch 2.13's SummaryWriter, without what no tracker would want
def wandb_init(entity=None, project=None, dir=None, id=None, name=None, notes=None, tags=None, config=None, group=None,
               job_type=None, mode=None, reinit=None, resume=None, settings=None):  # fmt: skip
    ...


def wandb_log(data, step=None, commit=None): ...


def wandb_define_metric(name, step_metric=None, step_sync=None, hidden=None, summary=None, overwrite=None): ...


def wandb_finish(exit_code=None): ...


def trackio_init(project, name=None, group=None, space_id=None, server_url=None, dataset_id=None, config=None,
                 resume="never", settings=None, private=None, embed=True, auto_log_gpu=None):  # fmt: skip
    ...


def trackio_log(metrics, step=None): ...


def trackio_finish(): ...


def writer_init(log_dir=None, comment="", purge_step=None, max_queue=10, flush_secs=120, filename_suffix=""): ...


def writer_add_scalar(tag, scalar_value, global_step=None, walltime=None, new_style=False, double_precision=False): ...


def writer_close(): ...


@pytest.fixture
def calls(monkeypatch):
    """Stand-ins in the place of the packages; every call is bound to the signature and noted."""
    noted = []

    def stand_in(signature, result=None):
        def call(*args, **kwargs):
            bound = inspect.signature(signature).bind(*args, **kwargs)
            noted.append((signature.__name__, dict(bound.arguments)))
            return result

        return call

    run = types.SimpleNamespace(
        log=stand_in(wandb_log), finish=stand_in(wandb_finish), define_metric=stand_in(wandb_define_metric)
    )
    other = types.SimpleNamespace(log=stand_in(trackio_log), finish=stand_in(trackio_finish))
    writer = types.SimpleNamespace(add_scalar=stand_in(writer_add_scalar), close=stand_in(writer_close))
    modules = {
        "wandb": types.SimpleNamespace(init=stand_in(wandb_init, run)),
        "trackio": types.SimpleNamespace(init=stand_in(trackio_init, other)),
        "torch.utils.tensorboard": types.SimpleNamespace(SummaryWriter=stand_in(writer_init, writer)),
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return noted


def test_each_is_called_as_it_wants(calls, tmp_path):
    for tracker in open_trackers(["tensorboard", "wandb", "trackio", "wandb"], tmp_path, "run", CONFIG):
        tracker.scalars({"train/loss": 1.5}, 3)
        tracker.close()
    assert calls == [
        ("writer_init", {"log_dir": tmp_path / "tensorboard"}),
        ("wandb_init", {"project": "cramming_train", "name": "run", "id": "run", "resume": "allow",
                        "dir": str(tmp_path), "config": CONFIG}),
        ("wandb_define_metric", {"name": "*", "step_metric": "step"}),
        ("trackio_init", {"project": "cramming_train", "name": "run", "resume": "allow", "config": CONFIG,
                          "embed": False}),
        ("writer_add_scalar", {"tag": "train/loss", "scalar_value": 1.5, "global_step": 3}),
        ("writer_close", {}),
        ("wandb_log", {"data": {"train/loss": 1.5, "step": 3}}),
        ("wandb_finish", {}),
        ("trackio_log", {"metrics": {"train/loss": 1.5}, "step": 3}),
        ("trackio_finish", {}),
    ]  # fmt: skip


@pytest.mark.parametrize("name", TRACKERS)
def test_a_missing_package_says_what_to_install(name, monkeypatch, tmp_path, capsys):
    """Before anything is prepared or made."""
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError, match=f"^--track {name}: not installed; run pip install {name}$"):
        check_trackers(["json", name])
    monkeypatch.chdir(tmp_path)
    assert pretrain.main(["--track", name, "--data", "nowhere.txt"]) == 2
    assert capsys.readouterr().err == f"error: --track {name}: not installed; run pip install {name}\n"
    assert list(tmp_path.iterdir()) == []


def test_one_that_does_not_open_is_one_line(calls, monkeypatch, tmp_path):
    """Such as wandb without a login."""

    def refuse(**options):
        raise ValueError("No API key\nconfigured")

    monkeypatch.setattr(sys.modules["wandb"], "init", refuse)
    with pytest.raises(RunError, match="^--track wandb: ValueError: No API key; resume without it"):
        open_trackers(["wandb"], tmp_path, "run", CONFIG)


def log_a_resumed_run(name, folder):
    """Steps 1, 2, 3, then again from 2: what a tracker sees of a run that was killed and resumed."""
    for steps in ((1, 2, 3), (2, 3, 4)):
        log = RunLog(folder / "log.jsonl", lambda: 1.0, open_trackers([name], folder, "a-run", CONFIG))
        for step in steps:
            log.write("step", step=step, loss=10.0 / step, note="text")
        log.write("validation", step=steps[-1], loss=5.0)
        log.close()


def test_tensorboard_for_real(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log_a_resumed_run("tensorboard", tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) == {"train/step", "train/loss", "validation/step", "validation/loss"}
    assert [(e.step, e.value) for e in events.Scalars("validation/loss")][-1] == (4, 5.0)
    assert {e.step for e in events.Scalars("train/loss")} == {1, 2, 3, 4}


def in_a_process_of_its_own(name, folder, **environment):
    """These packages start threads and servers and read their environment once."""
    script = (
        "import sys; from pathlib import Path; from tests.training.test_trackers import log_a_resumed_run;"
        "log_a_resumed_run(sys.argv[1], Path(sys.argv[2]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, name, str(folder)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0 and "left out" not in done.stderr, done.stderr[-2000:]


def test_trackio_for_real(tmp_path):
    pytest.importorskip("trackio", reason="trackio is not installed")
    in_a_process_of_its_own("trackio", tmp_path, TRACKIO_DIR=str(tmp_path / "trackio"), HF_HUB_OFFLINE="1")
    (database,) = (tmp_path / "trackio").glob("cramming_train*.db")
    with sqlite3.connect(database) as connection:
        rows = connection.execute("select run_name, step, metrics from metrics order by id").fetchall()
    assert {run for run, _, _ in rows} == {"a-run"} and {step for _, step, _ in rows} == {1, 2, 3, 4}
    losses = [json.loads(metrics)["train/loss"] for _, _, metrics in rows if "train/loss" in json.loads(metrics)]
    assert losses == [10.0 / step for step in (1, 2, 3, 2, 3, 4)]


def test_wandb_for_real(tmp_path):
    pytest.importorskip("wandb", reason="wandb is not installed")
    in_a_process_of_its_own("wandb", tmp_path, WANDB_MODE="offline", WANDB_SILENT="true")
    runs = list((tmp_path / "wandb").glob("offline-run-*-a-run/run-a-run.wandb"))
    assert len(runs) >= 1 and all(b"train/loss" in run.read_bytes() for run in runs)
