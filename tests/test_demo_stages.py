"""The demo's stages: their seconds add up over interruptions, and the time left follows the pace of this machine."""

import json

import pytest

from demo import stages as module
from demo.stages import Stages


@pytest.fixture
def clock(tmp_path, monkeypatch):
    """A clock that is set by hand. The recorded run took 400 seconds on a machine of twice this speed."""
    now = [0.0]
    recorded = {
        "training_scenes": 900,
        "scenes": 100,
        "stages": {"scenes": 100, "training": 300},
        "speed": {"dtype": "bfloat16", "gflops": {"float32": 50, "bfloat16": 200}},
    }
    (tmp_path / "recorded.json").write_text(json.dumps(recorded))
    monkeypatch.setattr(module, "REFERENCE", tmp_path / "recorded.json")
    monkeypatch.setattr(module, "speeds", lambda device: {"dtype": "float32", "gflops": {"float32": 100, "bfloat16": 1}})
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_the_time_left_follows_what_was_seen(clock, tmp_path):
    stages = Stages(tmp_path, 500)  # half the pictures, at half the speed
    assert stages.left() == "about 6.7 minutes left"
    with stages.stage("scenes"):
        clock[0] += 150  # three times the recorded pace
    assert stages.left() == "about 7.5 minutes left"
    with stages.stage("training"):
        clock[0] += 450
    assert stages.left() == "" and stages.seconds == {"scenes": 150, "training": 450}


def test_an_interrupted_stage_counts_on(clock, tmp_path):
    with pytest.raises(KeyboardInterrupt), Stages(tmp_path, 500).stage("training"):
        clock[0] += 60
        raise KeyboardInterrupt
    stages = Stages(tmp_path, 500)
    assert stages.seconds == {"training": 60} and "left" in stages.left()
    for seconds in (30, 5):  # the second time it is found finished
        with stages.stage("training"):
            clock[0] += seconds
    assert stages.seconds == Stages(tmp_path, 500).seconds == {"training": 90}
