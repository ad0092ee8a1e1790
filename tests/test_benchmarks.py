"""The counts against the formula on paper, the slow paths of the speed benchmark against the fast one."""

import contextlib
import io
import json
import time
from types import SimpleNamespace

import pytest
import torch
from conftest import TEXT_CONFIGS, make_model, make_processor, make_tokenizer, pretrained
from transformers import AutoTokenizer

from benchmarks import (
    branch_times,
    branches,
    cache_formats,
    captions,
    contenders,
    cost_page,
    flop_counts,
    flops,
    guard_programs,
    guard_times,
    guards,
    llm_shapes,
    serving,
    serving_engines,
    speed,
    speed_ratios,
    throughput,
    timing,
)
from modeling_mpclip import compile_prompt_tree, default_templates
from modeling_mpclip.prompt_tree import add_adaptive_tokens
from mpclip.data.backbones import BACKBONES

GEMMA_2B = llm_shapes.TEXT_CONFIGS["Gemma-2B"]


@pytest.fixture(scope="module")
def gemma():
    return flop_counts.meta_model(GEMMA_2B())


def gemma_of_two_layers():
    """Gemma-2B's config with 2 of its 18 layers, where it does not matter how much is counted."""
    config = GEMMA_2B()
    config.num_hidden_layers = 2
    return config


def layer(columns: int, queries: int, attended: int) -> float:
    """Multiply-adds of a Gemma-2B layer: keys and values of all columns, the rest for the queries alone."""
    keys_values, rest = 2 * 2048 * 256, 2 * 2048 * 2048 + 3 * 2048 * 16384
    if queries < columns:
        columns += queries  # the layer that runs on the readouts makes their keys and values a second time
    return columns * keys_values + queries * (rest + 2 * attended * 2048)


@pytest.mark.parametrize("negated, prompts", [(False, 6), (True, 12)])
def test_counts_are_those_on_paper(gemma, negated, prompts):
    tokens = 22 + (61 if negated else 37)
    readout = layer(tokens, prompts, tokens) + prompts * 2048 * 128  # and its projection
    for mode, expected in {
        "tree": 18 * layer(tokens, tokens, tokens) + prompts * 2048 * 128,
        "tree+readout": 17 * layer(tokens, tokens, tokens) + readout,
        "cached": readout,
    }.items():
        gmacs, counted = flop_counts.count_text(gemma, mode, negated, 22)
        assert counted == tokens
        assert gmacs == pytest.approx(expected / 1e9, rel=1e-3)  # rotary angles are small products too


def test_modes_count_their_tokens():
    gemma = flop_counts.meta_model(gemma_of_two_layers())
    assert flop_counts.count_text(gemma, "masked", True, 22)[1] == 22 + 42 + 54
    assert flop_counts.count_text(gemma, "separate", True, 22)[1] == 6 * (22 + 7) + 6 * (22 + 9)


def test_the_papers_setting_costs_less_than_vanilla_clip(gemma):
    image = sum(flop_counts.count_image(gemma).values())
    assert flop_counts.count_text(gemma, "tree+readout", False, 22)[0] + image <= 129
    cached = flop_counts.count_text(gemma, "cached", False, 22)[0] + image
    assert cached <= 18.8 and cached < 17.5 + flop_counts.count_clip_text()


def test_the_command_writes_what_it_prints(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(flop_counts, "TEXT_CONFIGS", {"Gemma-2B": gemma_of_two_layers})
    result = flops.main(["--json", str(tmp_path / "flops.json")])
    assert json.loads((tmp_path / "flops.json").read_text()) == result
    assert {row["mode"] for row in result["rows"]} == {"vanilla", *flop_counts.MODES}
    assert f"uncached {result['source_setting']['uncached']:.2f}" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, backbone in BACKBONES.items() if backbone.kind == "text"])
def test_word_tokenizer_cuts_the_templates_as_real_ones_do(name):
    real = AutoTokenizer.from_pretrained(pretrained(name))
    templates, negated = default_templates(6), default_templates(6, negated=True)
    words = flop_counts.word_tokenizer([*templates, *negated])
    for tokenizer in (real, words):
        add_adaptive_tokens(tokenizer, templates)
    ours, theirs = (compile_prompt_tree(tokenizer, templates, negated) for tokenizer in (words, real))
    assert (ours.parents, ours.readouts, ours.negated_readouts) == (theirs.parents, theirs.readouts, theirs.negated_readouts)


def test_meta_model_has_no_weights(gemma):
    assert all(parameter.device == torch.device("meta") for parameter in gemma.parameters())


# Speed ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny_shape(monkeypatch):
    """A tower of random weights small enough to time nothing, under the real tokenizer."""
    config = TEXT_CONFIGS["llama"]().to_dict() | {"vocab_size": 49152, "max_position_embeddings": 512}
    shape = lambda: type(TEXT_CONFIGS["llama"]())(**config)  # noqa: E731
    monkeypatch.setitem(llm_shapes.SHAPES, "tiny", shape)
    pretrained(llm_shapes.REAL)


@torch.no_grad()
def test_contenders_give_the_same_states(tiny_shape):
    bench = contenders.Contenders("tiny", "cpu", torch.float32)
    ids, mask = bench.batch(["A dog runs.", "Two boats on a lake in the evening, one of them red", "x"])
    tree, both = bench.tree(), bench.tree(negated=True)
    separate = bench.separate(ids, mask, both)
    assert (separate[:, :1] - separate[:, 1:]).abs().amax(dim=(0, 2)).min() > 1e-2
    torch.testing.assert_close(bench.masked(ids, mask, both), separate, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(bench.prefix_cached(ids, mask, tree), separate[:, :6], atol=1e-4, rtol=1e-3)


def test_the_speed_benchmark_runs_and_draws(tiny_shape, tmp_path, monkeypatch):
    monkeypatch.setattr(captions, "FLICKR8K", (tmp_path / "absent",))
    monkeypatch.setattr(speed_ratios, "captions", lambda data, count: captions.captions(data, 256))
    monkeypatch.setattr(throughput, "SWEEPS", dict.fromkeys(throughput.SWEEPS, (1, 2, 4)))
    monkeypatch.setitem(timing.PRODUCT_SIZES, "cpu", (64,))
    options = ["--tower", "tiny", "--device", "cpu", "--dtype", "float32", "--batch_size", "2", "--seconds", "0"]
    result = speed.main([*options, "--json", str(tmp_path / "speed.json"), "--png", str(tmp_path / "speed.png")])
    assert json.loads((tmp_path / "speed.json").read_text())["sweeps"] == result["sweeps"]
    assert {"masked_vs_separate", "masked_vs_separate_negation", "masked_vs_prefix_cache", "peak_share"} <= result.keys()
    assert 0 <= result["padding"]["by_length"] < result["padding"]["random"] < 1
    assert result["data"] == "OpenMoji scenes" and all(result[name] > 0 for name in speed.RATIOS)
    assert (tmp_path / "speed.png").stat().st_size > 10_000


def test_every_way_to_the_prompts_is_timed_against_the_tree(tiny_shape, tmp_path, monkeypatch):
    monkeypatch.setattr(
        branch_times, "captions", lambda data, count: (["a dog", "two boats on a lake", "a cat", "x"], "four captions")
    )
    options = ["--tower", "tiny", "--device", "cpu", "--precision", "float32", "--quick"]
    result = branches.main([*options, "--json", str(tmp_path / "branches.json")])
    assert json.loads((tmp_path / "branches.json").read_text()) == result
    timed = [(row["work"], row["way"]) for row in result["rows"]]
    assert timed == [(work, way) for work in ("embed", "train") for way in ("branches", "rows", "separate")]
    assert all(row["ratio"] > 0 for row in result["rows"]) and result["precision"] == "float32"


def test_the_forced_ways_run_as_they_are_called(tiny_shape, monkeypatch):
    bench = contenders.Contenders("tiny", "cpu", torch.float32)
    texts = bench.batch(["A dog runs.", "Two boats on a lake", "x"])
    rows = []
    bench.prompted.layers[0].register_forward_pre_hook(lambda layer, inputs: rows.append(inputs[0].shape[0]))
    states = {name: way(texts) for name, way in branch_times.ways(bench, bench.tree()).items()}
    assert rows == [3, *[1, 6] * 3, 18]  # three texts; each text and its six branches; three texts with six prompts
    for name, found in states.items():
        torch.testing.assert_close(found, states["tree"], atol=1e-4, rtol=1e-3, msg=name)
    with pytest.raises(RuntimeError, match="The contenders disagree"):
        contenders.check_same(states["tree"], states["tree"].flip(0))


def test_format_summary_pairs_seeds():
    cell = lambda form, seed, size, recall: {  # noqa: E731
        "format": form,
        "seed": seed,
        "text_bytes": size,
        "image_bytes": size,
        "metrics": {"eval_mean_recall": recall},
    }
    cells = [cell("float32", seed, 8, recall) for seed, recall in enumerate((50.0, 52.0, 51.0))]
    cells += [cell("int8", seed, 2, recall) for seed, recall in enumerate((49.0, 50.0, 49.5))]
    plain, int8 = cache_formats.summary([*cells, cell("bfloat16", 0, 4, 50.0)])
    assert plain["difference"] == 0 and plain["margin_95"] == 0 and plain["size"] == 1
    assert int8["size"] == 0.25 and int8["difference"] == -1.5
    assert int8["margin_95"] == pytest.approx(4.3027 * 0.5 / 3**0.5, rel=1e-3)  # t of two degrees of freedom, deviation 0.5


def test_the_serving_benchmark_compares_every_engine(tmp_path, monkeypatch):
    for package in ("onnxruntime", "onnxscript", "torchao"):
        pytest.importorskip(package, reason=f"an engine needs it: pip install {package}")
    tokenizer = make_tokenizer()
    make_model(tokenizer=tokenizer).save_pretrained(tmp_path / "model")
    make_processor(tokenizer).save_pretrained(tmp_path / "model")
    monkeypatch.setattr(
        serving_engines, "captions", lambda data: (["a cat", "the red mat of a boat", "a dog"], "three captions")
    )
    monkeypatch.setattr(serving_engines, "BATCH_SIZES", (1, 3))
    options = ["--quick", "--model", str(tmp_path / "model"), "--json", str(tmp_path / "serving.json")]
    result = serving.main(options)
    assert json.loads((tmp_path / "serving.json").read_text()) == result
    single = {row["engine"]: row for row in result["rows"] if row["batch_size"] == 1}
    assert len(result["rows"]) == 2 * len(single) and all(row["speedup"] > 0 for row in result["rows"])
    assert single["torch float32"]["cosine"] == pytest.approx(1) and single["onnxruntime float32"]["cosine"] == pytest.approx(1)
    for engine in ("torch int8 weights", "onnxruntime int8 weights", "onnxruntime int8"):
        assert 0.5 < single[engine]["cosine"] < 0.99999
    sizes = {name: row["megabytes"] for name, row in single.items()}
    assert sizes["torch bfloat16"] == pytest.approx(sizes["torch float32"] / 2)
    assert sizes["torch int8 weights"] < sizes["torch float32"] < sizes["onnxruntime float32"]  # the graph itself


def test_quartiles_are_told_of_ten_rounds_and_more(monkeypatch):
    seconds = iter([*[2.0, 1.0] * 9, *[3.0, 1.0] * 10])
    monkeypatch.setattr(timing.Clock, "time", lambda self, call: next(seconds))
    now = iter([*[0.0] * 8, 9.0, *[0.0] * 9, 9.0])  # the time is over after nine rounds, and after ten
    monkeypatch.setattr(timing, "time", SimpleNamespace(monotonic=lambda: next(now)))
    clock = timing.Clock("cpu", 1.0)
    nine, ten = (clock.ratio(lambda: None, lambda: None) for _ in range(2))
    assert (nine["rounds"], nine["ratio"], nine["quartiles"]) == (9, 2.0, None)
    assert (ten["rounds"], ten["ratio"], ten["quartiles"]) == (10, 3.0, [3.0, 3.0])
    assert timing.with_quartiles(["x"], [["a"]], [nine]) == (["x"], [["a"]])
    few = nine | {"quartiles": [1.0, 2.0]}  # as old results have them
    told = timing.with_quartiles(["x"], [["a"], ["b"]], [few, ten])
    assert told == (["x", "quartiles"], [["a", None], ["b", "3.00 to 3.00"]])


def test_milliseconds_are_shown_of_the_reference_alone():
    told = {"quartiles": None, "rounds": 2, "megabytes": 5.0, "cosine": 1.0, "batch_size": 1}
    rows = [{"engine": serving.REFERENCE, "ms_per_text": 113.4, "speedup": 0.99, **told}]
    rows.append({"engine": "torch bfloat16", "ms_per_text": 83.85, "speedup": 1.86, **told})
    reference, other = serving.table({"rows": rows}).splitlines()[2:]
    assert "| - | 113.40 |" in reference and "| 1.86 | - |" in other
    timed = {"ratio": 3.07, "slow_ms": 4694.2, "fast_ms": 1513.3, "quartiles": None, "rounds": 3}
    line = speed.table({"detail": {"masked_vs_separate": timed, "implementations": {}}}).splitlines()[2]
    assert "| 3.07 | 1,513.30 | 3 |" in line and "4,694" not in line


@pytest.fixture
def in_this_process(monkeypatch):
    """The programs of the guards benchmark run here, as if this process had started for each of them."""

    def run(command: list[str], **_) -> SimpleNamespace:
        program, *argv = command[command.index("benchmarks.guard_programs") + 1 :]
        monkeypatch.setattr("mpclip.encoding.fingerprint.STARTED", time.time_ns())
        with contextlib.redirect_stdout(shown := io.StringIO()):
            getattr(guard_programs, program)(argv)
        return SimpleNamespace(stdout=shown.getvalue())

    monkeypatch.setattr(guard_times, "subprocess", SimpleNamespace(run=run, PIPE=None))


def test_the_guards_benchmark_times_every_check(folder, tmp_path, monkeypatch, in_this_process):
    monkeypatch.setattr(guard_times, "TOWERS", (str(folder / "text"), str(folder / "vision")))
    options = ["--pictures", "600", "--examples", "12", "--seconds", "0", "--repeats", "1"]
    result = guards.main([*options, "--json", str(tmp_path / "guards.json")])
    assert json.loads((tmp_path / "guards.json").read_text()) == result
    programs = [row["program"] for row in result["rows"]]
    assert programs == ["load", "load and embed", "train", "train", "train", "search", "search, --verify"]
    assert all(0 < row["check_s"] < row["whole_s"] for row in result["rows"][1:])  # the first is a difference, and may be none
    assert result["rows"][5]["check_s"] < result["rows"][6]["check_s"]  # a query does not hash
    assert guards.table(result).count("\n| ") == 1 + len(programs)


def test_the_cost_page_is_what_the_measurements_give():
    assert cost_page.PAGE.read_text() == cost_page.filled(cost_page.PAGE.read_text())
