"""`python -m eval` with several models, compare, what is left out, models that are refused, and the protocol of all tasks."""

import argparse
import inspect
import json
import re
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from colour_model import ColourEncoder, coloured_rows
from sentence_helpers import save_checkpoint
from transformers import BertConfig

from eval.__main__ import TASKS, main, task_class
from eval.compare import paired_differences
from eval.evaluate import result_paths, short_names
from eval.options import add_common_options
from eval.result import Result, load_items, load_result
from eval.tables import text_table, with_interval
from eval.tasks.differences import FOUND, Differences
from mpclip.encoding import load_encoder
from mpclip.export.text import export_text


class RedEncoder(ColourEncoder):
    """Sees red alone."""

    def embed_texts(self, texts):
        return super().embed_texts(texts) * torch.tensor([1.0, 0.2, 0.0])

    def embed_images(self, images):
        return super().embed_images(images) * torch.tensor([1.0, 0.2, 0.0])


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A saved data set, and models that load by name: those with "red" in it see red alone."""
    monkeypatch.setattr(
        "mpclip.encoding.load_encoder", lambda name, *_, **__: RedEncoder() if "red" in name else ColourEncoder()
    )
    coloured_rows(30).save_to_disk(tmp_path / "data")
    return str(tmp_path / "data")


def arguments(data, *models: str, out, task: str = "retrieval") -> list[str]:
    given = ["--model", *models, "--data", data, "--split", "train", "--json", str(out)]
    return [task, *given, "--device", "cpu", "--precision", "float32"]


# Several models


def test_several_models_give_one_table_and_paired_differences(data, tmp_path, capsys, monkeypatch):
    loads = []
    load = task_class("retrieval").load
    monkeypatch.setattr(task_class("retrieval"), "load", lambda *args, **kwargs: loads.append(1) or load(*args, **kwargs))
    monkeypatch.setenv("COLUMNS", "90")
    main([*arguments(data, "hub/colour", "hub/red", out=tmp_path / "out"), "--grid", str(tmp_path / "found.png")])
    printed = capsys.readouterr().out
    assert len(loads) == 1
    colour, red = (json.loads((tmp_path / "out" / f"{name}.json").read_text()) for name in ("colour", "red"))
    assert (colour["model"], red["model"]) == ("hub/colour", "hub/red") and "against" not in colour
    assert (tmp_path / "found.colour.png").exists() and (tmp_path / "found.red.png").exists()
    against = red["against"]
    assert against["model"] == "hub/colour"
    for name, value in against["differences"].items():
        assert value == pytest.approx(red["metrics"][name] - colour["metrics"][name])
        low, high = against["intervals"][name]
        assert low <= value <= high
    change = with_interval(against["differences"]["mean_recall"], against["intervals"]["mean_recall"], signed=True)
    line = next(line for line in printed.splitlines()[::-1] if line.startswith("  minus colour"))
    assert change in line and max(map(len, printed.split("\n\nwritten")[0].splitlines())) <= 90
    assert f"written: {tmp_path}/out/colour.json, {tmp_path}/out/red.json, {tmp_path}/found.colour.png" in printed


def test_names_of_models_and_of_their_files():
    assert short_names(["openai/clip"]) == ["clip"]
    assert short_names(["runs/a/final", "runs/b/final/"]) == ["a/final", "b/final"]
    assert short_names(["clip", "openai/clip"]) == ["clip", "openai/clip"]
    assert short_names([".", "x"])[0] == Path.cwd().name
    with pytest.raises(ValueError, match=r"--model names runs/a/ twice"):
        short_names(["runs/a", "runs/b", "runs/a/"])
    assert result_paths("x/out.json", ["a/final"]) == [Path("x/out.json")]
    models = ["a/final", "b/final"]
    assert [str(path) for path in result_paths("x/out.json", models)] == ["x/out.a-final.json", "x/out.b-final.json"]
    assert [str(path) for path in result_paths("x", models)] == ["x/a-final.json", "x/b-final.json"]


def test_wide_tables_go_on_below():
    table = text_table(["", "first", "second"], [["model", "1.0", "2.0"]], width=15)
    assert table == "       first\nmodel  1.0\n\n       second\nmodel  2.0"
    assert len(text_table(["", "first", "second"], [["model", "1.0", "2.0"]], width=80).splitlines()) == 2


# Compare


def result(tmp_path, name: str, found: list[int], **changed) -> str:
    items = {"found": np.array(found, dtype=np.int8), "caption_image": np.arange(len(found))}
    metrics = Differences.metrics_of(items, np.ones(len(found), dtype=int))
    origin = {"model": f"hub/{name}", "data": "scenes", "split": "test", "limit": None, "dtype": "float32"} | changed
    made = Result("differences", "right", metrics, {"right": [0.0, 1.0]}, {"captions": len(found)}, items, origin)
    made.save(tmp_path / f"{name}.json")
    return str(tmp_path / f"{name}.json")


def test_compare_prints_and_plots(tmp_path, capsys):
    one = result(tmp_path, "one", [0] * 30 + [1] * 10)
    two = result(tmp_path, "two", [0] * 36 + [1] * 4, dtype="bfloat16")
    main(["compare", one, two, "--plot", str(tmp_path / "new" / "plot.png")])
    printed = capsys.readouterr().out
    assert "differences on scenes, split test: 40 units" in printed and "dtype: float32 and bfloat16" in printed
    line = next(line for line in printed.splitlines() if line.startswith("right *"))
    cells = line.split()
    assert cells[2:5] == ["75.0", "90.0", "+15.0"]
    low, high = float(cells[5].strip("(")), float(cells[7].strip(")"))
    assert 0 < low < 15 < high < 30  # about 15 +- 11
    pixels = np.asarray(PIL.Image.open(tmp_path / "new" / "plot.png").convert("RGB")).astype(int)
    assert (np.abs(pixels - (0x2B, 0x6C, 0xB0)).max(axis=2) < 3).any()  # the lines of intervals

    main(["compare", one, one])
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("right *"))
    assert line.split()[-4:] == ["+0.0", "(+0.0", "to", "+0.0)"]


def test_results_that_cannot_be_compared_are_refused(tmp_path):
    one = result(tmp_path, "one", [0, 1, 0])

    def refused(other: str, message: str):
        with pytest.raises(SystemExit, match=message):
            main(["compare", one, other])

    refused(
        result(tmp_path, "a", [0, 1, 0], data="others", split="train"), "differ in data 'scenes' and 'others', split 'test' and"
    )
    refused(result(tmp_path, "b", [0, 1, 0], left_out={"rows": 1}), "differ in left_out None and")
    refused(result(tmp_path, "e", [0, 1, 0], seed=1), "differ in seed None and 1")
    refused(result(tmp_path, "c", [0, 1]), "different numbers of items .*found 3 and 2.* not of the same data")
    bare = result(tmp_path, "d", [0, 1, 0])
    Path(bare).with_suffix(".items.npz").unlink()
    refused(bare, r"names its items in d.items.npz, which is not beside it")
    content = json.loads(Path(one).read_text())
    del content["items"]
    (tmp_path / "e.json").write_text(json.dumps(content))
    refused(str(tmp_path / "e.json"), "has no scores of single items. Measure again")
    (tmp_path / "f.json").write_text('{"text_to_image": {}}')
    refused(str(tmp_path / "f.json"), "f.json is no result of `python -m eval TASK --json`: it has no task")
    broken = result(tmp_path, "g", [0, 1, 0])
    Path(broken).with_suffix(".items.npz").write_bytes(b"PK damaged")
    refused(broken, "g.items.npz is damaged")
    refused(str(tmp_path / "none.json"), "No such file")


def test_paired_intervals_are_narrower_than_those_of_two_samples():
    """Two models that fail on the same items: the difference is certain, whichever items are drawn."""
    generator = np.random.default_rng(0)
    one = generator.integers(2, size=200)
    two = one.copy()
    two[:3] = 0
    items = [{"found": found, "caption_image": np.arange(200)} for found in (one, two)]
    found = paired_differences(Differences, items[1], items[0])
    low, high = found.intervals["right"]
    assert found.units == 200 and high - low < 5  # of unpaired shares it would be 20


# Differences


def test_the_metrics_of_differences_are_those_of_its_items(data, tmp_path):
    items = {"found": np.array([0, 0, 1, 8, 0, 6]), "caption_image": np.array([0, 0, 0, 1, 1, 2])}
    assert Differences.units(items) == 3
    once = Differences.metrics_of(items, np.ones(3, dtype=int))
    assert once["right"] == 50 and once["wrong_relation"] == once["wrong_other_scene"] == pytest.approx(100 / 6)
    assert next(iter(once)) == "right" and len(once) == len(FOUND) and sum(once.values()) == pytest.approx(100)
    drawn = Differences.metrics_of(items, np.array([2, 0, 1]))  # the first picture twice
    assert drawn["right"] == pytest.approx(400 / 7) and drawn["wrong_other_scene"] == 0

    rows = datasets.load_from_disk(data)
    scenes = [{"background": str(i % 3), "layout": "center", "objects": []} for i in range(30)]
    rows = rows.add_column("scene", scenes).add_column("family", [i // 2 for i in range(30)])
    rows.save_to_disk(tmp_path / "scenes")
    main(arguments(str(tmp_path / "scenes"), "red", out=tmp_path / "out.json", task="differences"))
    saved, items = load_result(tmp_path / "out.json"), load_items(tmp_path / "out.json")
    assert saved["metrics"] == Differences.metrics_of(items, np.ones(Differences.units(items), dtype=int))
    assert saved["intervals"].keys() == saved["metrics"].keys() and 0 < saved["metrics"]["right"] < 100


# What is left out, and what is refused


def test_what_is_left_out_is_counted(tmp_path, capsys, data):
    folder = tmp_path / "photos"
    folder.mkdir()
    lines = []
    for i, row in enumerate(coloured_rows(6)):
        row["image"].save(folder / f"{i}.png")
        lines.append(json.dumps({"file_name": f"{i}.png", "captions": [] if i == 2 else row["captions"]}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    (folder / "4.png").write_bytes(b"no picture")
    with pytest.warns(UserWarning, match=r"2\.png \(no caption\)"):
        main(arguments(str(folder), "colour", out=tmp_path / "out.json"))
    assert "4 images" in (printed := capsys.readouterr().out)
    assert "; left out: 1 rows without a caption, 1 rows with an image that cannot be decoded" in printed
    left_out = json.loads((tmp_path / "out.json").read_text())["left_out"]
    assert left_out == {"rows without a caption": 1, "rows with an image that cannot be decoded": 1}
    with pytest.raises(SystemExit, match=r"1 of 6 rows without a caption: 2.png"):
        main([*arguments(str(folder), "colour", out=tmp_path / "out.json"), "--bad", "fail"])


def test_models_of_text_alone_are_refused_before_the_data_are_read(tmp_path):
    save_checkpoint(tmp_path / "whole")
    export_text(str(tmp_path / "whole"), tmp_path / "text")
    BertConfig().save_pretrained(tmp_path / "bert")
    for name, message in (("text", "text embeds texts alone, and pictures are needed"), ("bert", "bert is a BertModel, which")):
        with pytest.raises(SystemExit, match=message):
            # The first model could be measured, but there are no data.
            main(arguments("no/such/data/set", str(tmp_path / "whole"), str(tmp_path / name), out=tmp_path / "out"))
    encoder = load_encoder(str(tmp_path / "text"))
    for embed in (encoder.images, encoder.clips):
        with pytest.raises(ValueError, match="embeds texts alone"):
            embed([])


# Embeddings that are kept


def test_a_second_run_computes_nothing(tmp_path, monkeypatch):
    save_checkpoint(tmp_path / "model")
    coloured_rows(5).save_to_disk(tmp_path / "data")
    monkeypatch.setattr("eval.options.embeddings_folder", lambda: tmp_path / "kept")
    command = arguments(str(tmp_path / "data"), str(tmp_path / "model"), out=tmp_path / "out.json")
    main([*command, "--no_cache"])
    assert not (tmp_path / "kept").exists()
    main(command)
    first = json.loads((tmp_path / "out.json").read_text())["metrics"]
    monkeypatch.setattr("mpclip.encoding.ModelEncoder._forward", lambda *_: pytest.fail("computed again"))
    main(command)
    assert json.loads((tmp_path / "out.json").read_text())["metrics"] == first


# The protocol


@pytest.mark.parametrize("name", TASKS)
def test_every_task_keeps_the_protocol(name):
    cls = task_class(name)
    assert cls.name == name and cls.takes and isinstance(getattr(cls, "texts_only", False), bool)
    assert inspect.getmodule(cls).__doc__.splitlines()[0].endswith((".", "?"))
    assert all(isinstance(inspect.getattr_static(cls, part), staticmethod) for part in ("add_options", "units", "metrics_of"))
    assert list(inspect.signature(cls.units).parameters) == ["items"]
    assert list(inspect.signature(cls.metrics_of).parameters) == ["items", "counts"]
    assert list(inspect.signature(cls.load).parameters)[:4] == ["self", "source", "split", "limit"]
    run = list(inspect.signature(cls.run).parameters.values())
    assert run[0].name == "self" and run[-1].kind is inspect.Parameter.VAR_KEYWORD
    cls()  # all options have defaults

    parser = argparse.ArgumentParser()
    add_common_options(parser, cls.takes)
    cls.add_options(parser)  # no option has the name of a common one
    told = parser.format_help().split("options:")[1]
    options = vars(parser.parse_args(["--model", "m", "--data", "d", "--split", "s", "--json", "j"]))
    assert set(getattr(cls, "writes", ())) <= options.keys()
    # A file that a task writes is named in `writes`, so that several models do not overwrite it.
    files = set(re.findall(r"^  --(\w+) OUT\.\S", told, flags=re.MULTILINE))
    assert files == set(getattr(cls, "writes", ()))
