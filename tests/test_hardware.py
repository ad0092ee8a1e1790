"""The dtype to compute in is the one that the machine computes fastest; the speeds are measured once and kept."""

import json
import logging

import pytest

from mpclip import hardware
from mpclip.hardware import choose_precision, main, precision_told, speeds
from mpclip.training import parse_options

# matrix product and layer, GFLOPS -> the choice
MACHINES = {
    "AVX2": ({"float32": 95, "bfloat16": 0.8}, {"float32": 80}, "float32"),
    "AVX512": ({"float32": 220, "bfloat16": 60}, {"float32": 160}, "float32"),
    "AMX": ({"float32": 100, "bfloat16": 420}, {"float32": 80, "bfloat16": 230}, "bfloat16"),
    "AMX, but no faster in a layer": ({"float32": 100, "bfloat16": 420}, {"float32": 80, "bfloat16": 90}, "float32"),
    "GPU": (
        {"float32": 2e4, "bfloat16": 2e5, "float16": 2.1e5},
        {"float32": 1e4, "bfloat16": 9e4, "float16": 9.5e4},
        "bfloat16",
    ),
    "GPU without bfloat16": ({"float32": 8e3, "bfloat16": 2e3, "float16": 4e4}, {"float32": 6e3, "float16": 2e4}, "float16"),
}


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """A machine whose speeds are set, and the list of (kind, dtype) that were measured."""
    monkeypatch.setenv("MPCLIP_CACHE", str(tmp_path))
    speeds.cache_clear()
    calls = []

    def machine(name: str) -> list:
        matmul, layer, _ = MACHINES[name]
        monkeypatch.setattr(hardware, "_matmul_gflops", lambda dtype, device: calls.append(("matmul", dtype)) or matmul[dtype])
        monkeypatch.setattr(hardware, "_layer_gflops", lambda dtype, device: calls.append(("layer", dtype)) or layer[dtype])
        return calls

    yield machine
    speeds.cache_clear()


@pytest.mark.parametrize("name", MACHINES)
def test_the_fastest_dtype_is_chosen(name, measured, monkeypatch):
    matmul, layer, fastest = MACHINES[name]
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: name)
    calls = measured(name)
    device = "cuda:0" if name.startswith("GPU") else "cpu"
    assert choose_precision("auto", device) == fastest
    # A layer in a dtype that is computed in software would take seconds.
    assert calls == [("matmul", dtype) for dtype in matmul] + [("layer", dtype) for dtype in layer]


def test_speeds_are_measured_once(measured, tmp_path, monkeypatch):
    calls = measured("AMX")
    first = speeds("cpu")
    speeds.cache_clear()  # as in another process
    assert speeds("cpu") == first and len(calls) == 4
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default")
    speeds.cache_clear()
    assert speeds("cpu") == first and len(calls) == 8  # another key: the variable changes the speed
    (tmp_path / "hardware.json").write_text("{half a")
    speeds.cache_clear()
    assert speeds("cpu") == first and len(calls) == 12 and len(json.loads((tmp_path / "hardware.json").read_text())) == 1


def test_a_slow_choice_is_carried_out_with_a_warning(measured, caplog):
    caplog.set_level(logging.INFO, "mpclip.hardware")
    calls = measured("AVX2")
    assert choose_precision("float32", "cpu") == "float32" and not calls  # nothing to compare with
    assert choose_precision("bfloat16", "cpu") == "bfloat16"
    (record,) = caplog.records
    assert record.levelname == "WARNING" and "119 times slower than in float32 (0.8 against 95 GFLOPS)" in record.getMessage()
    assert choose_precision("auto", "cpu") == "float32" and len(caplog.records) == 1
    told = "Computing in float32 on cpu, the fastest here (GFLOPS of a matrix product: float32 95, bfloat16 0.8)"
    assert precision_told("float32", "cpu") == told
    assert precision_told("bfloat16", "cpu").startswith("Computing in bfloat16 on cpu (GFLOPS")
    with pytest.raises(ValueError, match="precision='half': expected one of auto, float32, bfloat16, float16"):
        choose_precision("half", "cpu")


@pytest.mark.parametrize(
    "machine, given, precision",
    [
        ("AMX", [], "bfloat16"),
        ("AVX2", [], "float32"),
        ("AVX2", ["--precision", "bfloat16"], "bfloat16"),
        ("AVX2", ["--bf16", "true"], "bfloat16"),
        ("AMX", ["--bf16", "false"], "float32"),
        ("AMX", ["--precision", "float32"], "float32"),
    ],
)
def test_training_computes_in_the_dtype_that_was_chosen(machine, given, precision, measured, tmp_path):
    measured(machine)
    training = parse_options(["--output_dir", str(tmp_path), "--use_cpu", "true", *given]).training
    assert (training.precision, training.bf16, training.fp16) == (precision, precision == "bfloat16", False)


def test_two_names_for_the_dtype_must_agree(tmp_path):
    argv = ["--output_dir", str(tmp_path), "--precision", "float32", "--bf16", "true"]
    with pytest.raises(ValueError, match="precision='float32' contradicts bf16=True, fp16=False: give one of them"):
        parse_options(argv)


def test_a_folder_that_cannot_be_written_changes_nothing(measured, monkeypatch):
    measured("AMX")
    monkeypatch.setenv("MPCLIP_CACHE", "/proc/no such folder")
    assert choose_precision("auto", "cpu") == "bfloat16"


def test_the_command_measures_this_machine(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MPCLIP_CACHE", str(tmp_path))
    speeds.cache_clear()
    main(["--json", "--device", "cpu"])
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"device", "gflops", "layer_gflops", "dtype"} and set(found["gflops"]) == {"float32", "bfloat16"}
    assert all(0 < speed < 1e5 for speed in found["gflops"].values()) and found["dtype"] in found["layer_gflops"]
    main(["--device", "cpu"])
    assert f"Computes in {found['dtype']}" in capsys.readouterr().out
    speeds.cache_clear()
