"""The session of a card, with commands and facts that stand in for it: failures, time, Ctrl-C, going on, the page."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from benchmarks import gpu_session, results, session_machine, session_steps
from benchmarks.gpu_session import Session, read_state, run_command
from benchmarks.session_steps import Step

FACTS = {"GPU": "A Card", "driver": "580.1", "power limit": "350.00 W"}
PLANNED = [Step(name, f"about {name}", ("python", "-m", name), share) for name, share in
           (("tests", 0.5), ("tune", 0.25), ("report", 0.25))]  # fmt: skip


class StandIn:
    """Runs nothing: a status (None: the time was up) or an exception for each command, seconds that pass."""

    def __init__(self, outcomes=None, seconds=60.0):
        self.outcomes, self.seconds, self.now, self.ran = outcomes or {}, seconds, 0.0, []

    def __call__(self, command, log, seconds):
        self.ran.append((command[-1], round(seconds, 1)))
        self.now += min(self.seconds, seconds)
        log.write_text(f"output of {command[-1]}\nlast line\n")
        outcome = self.outcomes.get(command[-1], 0)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def session(self, folder, minutes=20, planned=PLANNED, again=False):
        return Session(folder, minutes, planned, again, self, lambda: FACTS, lambda: self.now)

    @property
    def names(self):
        return [name for name, _ in self.ran]


def statuses(folder):
    return {name: step["status"] for name, step in read_state(folder)["steps"].items()}


def test_all_steps_pass(tmp_path, capsys):
    runner = StandIn()
    assert runner.session(tmp_path).run() == 0
    assert runner.names == ["tests", "tune", "report"]
    assert set(statuses(tmp_path).values()) == {"passed"}
    page = (tmp_path / "summary.md").read_text()
    assert "# cramkernels on A Card" in page and "3 of 3 steps passed" in page and "| power limit | 350.00 W |" in page
    assert "3 of 3 steps passed" in capsys.readouterr().out


def test_the_time_is_kept_and_what_is_left_over_goes_on(tmp_path):
    runner = StandIn(seconds=60)
    runner.session(tmp_path, minutes=20).run()
    assert runner.ran == [("tests", 600.0), ("tune", 570.0), ("report", 1080.0)]
    slow = StandIn(seconds=1e9)
    slow.session(tmp_path, minutes=20, again=True).run()
    assert slow.ran == [("tests", 600.0), ("tune", 300.0), ("report", 300.0)] and slow.now <= 1200


def test_a_failed_step_is_recorded_and_the_next_goes_on(tmp_path):
    runner = StandIn({"tests": 1, "tune": None})
    assert runner.session(tmp_path).run() == 1
    assert runner.names == ["tests", "tune", "report"]
    assert statuses(tmp_path) == {"tests": "failed (1)", "tune": "timed out", "report": "passed"}
    page = (tmp_path / "summary.md").read_text()
    assert "1 of 3 steps passed" in page and "## tests: failed (1)" in page and "last line" in page
    assert "**timed out**" in page and "[tests.log](tests.log)" in page


def test_a_rerun_goes_on(tmp_path, capsys):
    StandIn({"tune": 3}).session(tmp_path).run()
    second = StandIn()
    assert second.session(tmp_path).run() == 0
    assert second.names == ["tune", "report"]  # the report of what is there now
    assert "tests: passed before" in capsys.readouterr().out
    assert statuses(tmp_path) == {"tests": "passed", "tune": "passed", "report": "passed"}
    third = StandIn()
    third.session(tmp_path, again=True).run()
    assert third.names == ["tests", "tune", "report"]


def test_ctrl_c_keeps_what_is_finished(tmp_path):
    runner = StandIn({"tune": KeyboardInterrupt()})
    assert runner.session(tmp_path).run() == 130
    assert statuses(tmp_path) == {"tests": "passed", "tune": "interrupted"}
    page = (tmp_path / "summary.md").read_text()
    assert "| report | about report | not run | | |" in page and "1 of 3 steps passed" in page
    second = StandIn()
    assert second.session(tmp_path).run() == 0 and second.names == ["tune", "report"]


def test_a_command_that_cannot_be_started_is_a_failure(tmp_path):
    assert StandIn({"tune": FileNotFoundError(2, "No such file", "python")}).session(tmp_path).run() == 1
    assert statuses(tmp_path)["tune"].startswith("failed (") and statuses(tmp_path)["report"] == "passed"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"steps": {"tests": 1}}', '{"steps": {"tests": {}}}'])
def test_a_damaged_state_counts_as_none(text, tmp_path):
    (tmp_path / gpu_session.STATE).write_text(text)
    runner = StandIn()
    assert runner.session(tmp_path).run() == 0 and runner.names == ["tests", "tune", "report"]


def test_the_page_has_the_figures(tmp_path):
    results.write(tmp_path, {
        "name": "A Card", "key": "a-card", "dtype": "bfloat16", "versions": {"torch": "9"},
        "ceilings": {"copy_bytes_per_second": 1e12, "gemm_flops_per_second": 1e14},
    }, [{
        "kind": "operation", "name": "geglu-8x8", "direction": "forward", "operation": "geglu", "family": "rows",
        "tokens": 8, "width": 8, "seconds": {"ours": 1e-3, "eager": 2e-3}, "ratios": {"eager": 0.5},
        "share_of_floor": 0.9,
    }])  # fmt: skip
    (tmp_path / "pretraining").mkdir()
    (tmp_path / "pretraining" / "summary.json").write_text(json.dumps({"tokens": 1234567, "validation_loss": 5.4321}))
    (tmp_path / "pretraining" / "loss.png").write_bytes(b"")
    StandIn().session(tmp_path).run()
    page = (tmp_path / "summary.md").read_text()
    assert "| geglu | 8 x 8 | forward | 1.000 | 90 % | 0.500 |" in page
    assert "| tokens | 1,234,567 |" in page and "| validation_loss | 5.432 |" in page
    assert "![loss](pretraining/loss.png)" in page and page.count("\n# ") == 0


def test_small_files_of_the_run_are_kept(tmp_path, monkeypatch):
    run = tmp_path / "runs" / "x"
    (run / "report").mkdir(parents=True)
    (run / "summary.json").write_text("{}")
    (run / "report" / "loss.png").write_bytes(b"png")
    (run / "weights.safetensors").write_bytes(b"w")
    (run / "log.jsonl").write_bytes(b" " * (gpu_session.KEPT_BYTES + 1))
    monkeypatch.setattr(gpu_session, "ROOT", tmp_path)
    folder = tmp_path / "results"
    folder.mkdir()
    step = Step("pretraining", "", ("python", "pretrain"), 1.0, keep=run.relative_to(tmp_path))
    StandIn().session(folder, planned=[step]).run()
    assert sorted(os.listdir(folder / "pretraining")) == ["loss.png", "summary.json"]


def test_a_command_runs_into_its_log(tmp_path):
    log = tmp_path / "log"
    assert run_command([sys.executable, "-c", "print('said'); raise SystemExit(3)"], log, 60) == 3
    assert log.read_text() == "said\n"


def test_time_is_up_for_the_command_and_its_children(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_session, "PATIENCE", 1.0)
    child = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print('up', flush=True); time.sleep(99)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    started = time.monotonic()
    assert run_command([sys.executable, "-c", parent], tmp_path / "log", 2) is None
    assert time.monotonic() - started < 20


def test_ctrl_c_in_a_running_step(tmp_path):
    """The command itself, as a terminal would stop it: the step ends, and the page is written."""
    program = (
        "import sys; from pathlib import Path; from benchmarks.gpu_session import Session; "
        "from benchmarks.session_steps import Step; "
        "step = Step('sleep', 'sleeps', (sys.executable, '-c', 'import time; time.sleep(99)'), 1.0); "
        f"sys.exit(Session(Path({str(tmp_path)!r}), 5, [step], facts=dict).run())"
    )
    process = subprocess.Popen([sys.executable, "-c", program], cwd=session_steps.ROOT, stdout=subprocess.PIPE)
    assert process.stdout.readline().startswith(b"sleep: sleeps")
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    process.stdout.close()
    assert statuses(tmp_path) == {"sleep": "interrupted"} and "interrupted" in (tmp_path / "summary.md").read_text()


def test_the_steps(tmp_path):
    planned = session_steps.steps(tmp_path, 20, "embedded")
    assert [step.name for step in planned] == [
        "info", "kernel-tests", "tune", "benchmarks", "pretraining", "report"
    ]  # fmt: skip
    assert sum(step.share for step in planned) == pytest.approx(1.0)
    pretraining = planned[4].command
    assert pretraining[pretraining.index("--hours") + 1] == "0.0833" and "--verify" in pretraining
    assert planned[4].share * 20 > 5 and planned[4].keep.name == pretraining[-1]
    short = session_steps.steps(tmp_path, 4, "embedded")[4].command
    assert float(short[short.index("--hours") + 1]) * 60 < 4 * planned[4].share
    inside = session_steps.steps(results.FOLDER / "a-card", 20, "embedded")[3].command
    assert inside[-1] == os.path.join("benchmarks", "results", "a-card")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu(capsys, tmp_path):
    assert gpu_session.main(["--out", str(tmp_path / "x")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: there is no GPU here") and said.count("\n") == 1 and "PyTorch" in said
    assert not list(tmp_path.iterdir())
    assert gpu_session.main(["--minutes", "0"]) == 2


def test_the_command_on_a_card(monkeypatch, tmp_path):
    runner = StandIn()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu_session, "run_command", runner)
    monkeypatch.setattr(gpu_session.Session.__init__, "__defaults__", (False, None, lambda: FACTS, time.monotonic))
    assert gpu_session.main(["--out", str(tmp_path / "card"), "--minutes", "5"]) == 0
    assert len(runner.ran) == 6 and (tmp_path / "card" / "summary.md").exists()


def test_what_nvidia_smi_says(monkeypatch):
    monkeypatch.setattr(session_machine.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    said = "580.65.06, 350.00 W, 350.00 W, 2100 MHz, 9751 MHz, [N/A], 34, Enabled, 4\n"

    def run(command, **options):
        return subprocess.CompletedProcess(command, 0, said, "")

    monkeypatch.setattr(session_machine.subprocess, "run", run)
    found = session_machine.of_the_driver(0)
    assert found["driver"] == "580.65.06" and found["highest clock"] == "2100 MHz" and "application clock" not in found

    def fails(command, **options):
        raise subprocess.CalledProcessError(9, command)

    monkeypatch.setattr(session_machine.subprocess, "run", fails)
    assert session_machine.of_the_driver(0) == {}
