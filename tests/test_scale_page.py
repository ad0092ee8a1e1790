"""The calculation of docs/scale.md against hand-made numbers, and the verdicts of the benchmarks that the page shows."""

import json

import pytest

from benchmarks import cost_page, long_run, memory, scale_page, steps

FLOPS = {
    "rows": [
        {"text_model": "Gemma-2B", "mode": "tree+readout", "negation": False, "gmacs_text": 110.0},
        {"text_model": "Gemma-2B", "mode": "cached", "negation": False, "gmacs_text": 1.0},
        {"text_model": "Gemma-2B", "mode": "cached", "negation": True, "gmacs_text": 9.0},
    ],
    "image": {"encoder": 18.0, "pooling": 1.0},
}
PARAMETERS = {"llm": 1000, "last_layer": 100, "image_tower": 50, "new": 10}


def test_the_calculation():
    assumed = {name: default for name, (default, _, _) in scale_page.ASSUMED.items()}
    assumed |= {"tflops": 100.0, "utilisation": 0.5, "pairs": 1e6, "images": 1e6, "dollars": 2.0, "batch": 10, "dimensions": 4}
    assumed["disk"] = 1.0
    found = scale_page.calculate(FLOPS, PARAMETERS, assumed)
    live, texts, both = found["epochs"]
    assert [row["gmacs"] for row in (live, texts, both)] == [109 + 3 * 20, 3 * 20, 3 * 2]
    # 25,000 GMACs per second: half of 100 TFLOPS, of two operations each.
    assert live["gpu_hours"] == pytest.approx(1e6 * 169 / 25_000 / 3600) and live["dollars"] == 2 * live["gpu_hours"]
    assert live["hours"]["8"] == live["gpu_hours"] / 8 and live["stored_tb"] == 0
    assert texts["stored_tb"] == pytest.approx(59 * 2048 * 2 * 1e6 / 1e12)
    assert texts["read_mb_per_second"] == pytest.approx(59 * 2048 * 2 * (25_000 / 60) / 1e6)
    assert both["limit"] == "reading" and live["limit"] == texts["limit"] == "computing"
    assert both["gpu_hours"] == pytest.approx(1e6 * 2 * (59 * 2048 + 197 * 768) / 1e9 / 3600)
    node, many = found["exchange"]
    assert node["embeddings_mb"] * 1e6 == pytest.approx(2 * 7 * (2 * 10 * 4 * 4))  # gathered, and gradients back
    assert node["ddp_mb"] * 1e6 == pytest.approx(2 * 7 / 8 * 160 * 4)
    assert node["fsdp_mb"] * 1e6 == pytest.approx(7 / 8 * (2 * 2 * 1060 + 4 * 160))
    assert node["seconds_ddp"] == pytest.approx((node["embeddings_mb"] + node["ddp_mb"]) / 450e3)
    assert many["gpus"] == 256 and many["seconds_compute"] == node["seconds_compute"] == pytest.approx(10 * 169 / 25_000)
    assert found["embedding"]["float16_tb"] == pytest.approx(1e6 * 4 * 2 / 1e12)
    assert "An epoch of 1,000,000 pairs" in scale_page.tables({"assumed": assumed, "calculated": found})


def test_the_page_is_what_the_measurements_give():
    page = scale_page.PAGE.read_text(encoding="utf-8")
    assert page == cost_page.filled(page, scale_page.TABLES)


def points(memory_of, files=lambda i: 20) -> dict:
    looks = [{"minute": i / 6, "steps": 10 * i, "memory_mb": memory_of(i), "files": files(i), "threads": 3} for i in range(72)]
    return {"program": "train", "steps": 720, "points": looks}


def test_growth_is_told_from_noise_and_from_a_warm_up():
    noise = [0.3, -0.2, 0.1, -0.4, 0.2]
    flat = long_run.judged(points(lambda i: min(50 + 10 * i, 200) + noise[i % 5]))  # grows for 15 of 72 looks
    assert not flat["grows"] and abs(flat["growth_mb"]) < 0.3 and flat["files"] == [20, 20]
    leak = long_run.judged(points(lambda i: 200 + 0.2 * i + noise[i % 5]))
    assert leak["grows"] and leak["growth_mb"] == pytest.approx(0.2 * 47, rel=0.05)
    assert leak["bytes_per_step"] == pytest.approx(0.02 * 2**20, rel=0.05)
    assert long_run.judged(points(lambda i: 200 + noise[i % 5], files=lambda i: 20 + i // 12))["grows"]
    assert "| yes |" in long_run.table({"rows": [leak]}) and "| no |" in long_run.table({"rows": [flat]})
    with pytest.raises(ValueError, match="Raise --minutes"):
        long_run.judged({"program": "train", "steps": 1, "points": flat["points"][:5]})


def test_tables_of_steps_and_of_memory():
    row = {
        "batch": 64,
        "workers": 0,
        "precision": "float32",
        "pairs_per_second": 99.44,
        "cpu_ms_per_pair": 10,
        "waiting_share": 0.1,
    }
    profile = {
        "parts": [{"part": "backward pass", "share": 0.5}],
        "operations": [{"operation": "aten::mm", "calls": 9, "share": 0.4}],
    }
    compiled = {
        "batch": 64,
        "precision": "float32",
        "ratio": 1.3,
        "plain_ms": 1300.0,
        "compiled_ms": 1000.0,
        "compiling_s": 60.0,
    }
    compiled |= {"loss_difference": 1e-6, "worth_it": True}
    told = steps.tables({"throughput": [row], "profile": profile, "compile": compiled})
    assert "| 64 | 0 | float32 | 99.4 | 10.0 | 10% |" in told and "| backward pass | 50% |" in told and "aten::mm 40%" in told
    assert "1.30 times as fast" in told and "It pays off" in told
    cell = {"pairs": 256, "chunk": 128, "seconds": 2.0, "peak_mb": 1000.0, "peak_with_files_mb": 1100.0, "batch_mb": 45.0}
    assert "1.10 times that at 256" in memory.summary({"cells": [cell], "ratio": 1.1})


def test_parts_of_steps_are_replaced_alone():
    """Each keeps its record, and the page tells all of them."""
    machine = {"cpu": "A"}
    old = {"command": "old", "date": "2026-01-01T00:00:00", "machine": machine}
    new = {"command": "new", "date": "2026-02-02T00:00:00", "machine": machine}
    before = {"throughput": [1], "profile": {"a": 1}, "records": {"throughput": old, "profile": old}}
    found = steps.merged(before, {"profile": {"a": 2}, "compile": {"b": 3}, "records": {"profile": new, "compile": new}})
    assert {part: found[part] for part in steps.PARTS} == {"throughput": [1], "profile": {"a": 2}, "compile": {"b": 3}}
    assert found["records"] == {"throughput": old, "profile": new, "compile": new}
    assert cost_page.how_measured(found) == "`old`, 2026-01-01, cpu A<br>`new`, 2026-02-02, cpu A"
    assert steps.merged({}, before) == before


def test_a_step_of_the_benchmark_runs(tmp_path, monkeypatch):
    """On a tiny model and tiny stores: throughput, and a profile that names all parts."""
    from conftest import make_model

    from mpclip.training import ModelArguments, prepare_tuning

    def tiny():
        model = make_model(layers=1, adaptive_tokens="boundary", boundary_layer=0)
        return prepare_tuning(model, ModelArguments(text_tuning="last")).train()

    monkeypatch.setattr(steps, "step_model", tiny)
    for name, value in {"TEXT_TOKENS": 4, "PROMPT_TOKENS": len(tiny().prompt_tree()), "TEXT_WIDTH": 32}.items():
        monkeypatch.setattr(memory, name, value)
    monkeypatch.setattr(memory, "VISION_TOKENS", 17)
    monkeypatch.setattr(memory, "VISION_WIDTH", 32)
    options = [
        "--parts",
        "throughput",
        "profile",
        "--steps",
        "1",
        "--batches",
        "3",
        "--workers",
        "0",
        "--precisions",
        "float32",
    ]
    result = steps.main([*options, "--json", str(tmp_path / "steps.json")])
    assert json.loads((tmp_path / "steps.json").read_text()) == result
    (row,) = result["throughput"]
    assert row["pairs_per_second"] > 0 and 0 < row["waiting_share"] < 1
    shares = {part["part"]: part["share"] for part in result["profile"]["parts"]}
    assert sum(shares.values()) == pytest.approx(1)
    assert all(share > 0 for part, share in shares.items() if part != "all else")
