"""The log: appended at once, readable after any kill, and honest about steps that were taken back."""

import json

from cramming_train.tracking import RunLog, effective_events, read_log, seconds_used


def test_events_are_readable_at_once_and_numbers_that_are_not_finite_become_null(tmp_path):
    log = RunLog(tmp_path / "log.jsonl", lambda: 12.5)
    log.write("step", step=1, loss=float("nan"), nested={"x": [float("inf"), 2.0]})
    (record,) = read_log(tmp_path / "log.jsonl")
    assert record["event"] == "step" and record["elapsed"] == 12.5 and record["loss"] is None
    assert record["nested"] == {"x": [None, 2.0]}
    log.close()


def test_a_line_cut_short_by_a_kill_is_passed_over(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text(json.dumps({"event": "step", "step": 1, "elapsed": 3.0}) + '\n{"event": "st')
    RunLog(path, lambda: 4.0).write("resume", step=1)
    assert [record["event"] for record in read_log(path)] == ["step", "resume"]


def test_time_used_is_the_last_heartbeats(tmp_path):
    path = tmp_path / "log.jsonl"
    assert seconds_used(path) == 0
    times = iter([1.0, 9.0])
    log = RunLog(path, lambda: next(times))
    log.write("step", step=1)
    log.heartbeat(every=0.0)
    assert seconds_used(path) == 9.0
    log.heartbeat(every=60.0)  # nothing is due
    assert len(list(read_log(path))) == 2


def test_steps_behind_a_resume_or_a_recovery_do_not_count(tmp_path):
    log = RunLog(tmp_path / "log.jsonl", lambda: 0.0)
    for step in (1, 2, 3):
        log.write("step", step=step)
    log.write("resume", step=1)
    log.write("step", step=2)
    log.write("validation", step=2)
    log.write("recovery", step=1)
    events = effective_events(tmp_path / "log.jsonl")
    assert [(e["event"], e["step"]) for e in events] == [("step", 1), ("resume", 1), ("recovery", 1)]


def test_trackers_get_the_numbers_of_steps_and_validations(tmp_path):
    class Memory:
        name, seen, closed = "memory", [], False

        def scalars(self, values, step):
            self.seen.append((values, step))

        def close(self):
            self.closed = True

    memory = Memory()
    log = RunLog(tmp_path / "log.jsonl", lambda: 0.0, (memory,))
    log.write("step", step=4, loss=1.5, note="text")
    log.write("validation", step=4, loss=2.5)
    log.write("checkpoint", step=4)
    log.close()
    assert memory.seen == [
        ({"train/step": 4.0, "train/loss": 1.5}, 4),
        ({"validation/step": 4.0, "validation/loss": 2.5}, 4),
    ]
    assert memory.closed


def test_a_tracker_that_fails_is_left_out_and_the_run_goes_on(tmp_path, capsys):
    class Good:
        name, seen, closed = "good", [], 0

        def scalars(self, values, step):
            self.seen.append(step)

        def close(self):
            self.closed += 1

    class Bad(Good):
        name, asked = "bad", 0

        def scalars(self, values, step):
            self.asked += 1
            raise ConnectionError("server gone\nfor good")

    good, bad = Good(), Bad()
    log = RunLog(tmp_path / "log.jsonl", lambda: 0.0, (bad, good))
    for step in (1, 2):
        log.write("step", step=step, loss=1.0)
    log.close()
    assert good.seen == [1, 2] and good.closed == 1 and bad.asked == 1 and bad.closed == 0
    assert [record["step"] for record in read_log(tmp_path / "log.jsonl")] == [1, 2]
    warning = capsys.readouterr().err
    assert warning == "WARNING: --track bad: ConnectionError: server gone; left out from here on\n"
