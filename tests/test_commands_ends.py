"""The last lines of a command: what comes next, as command lines that parse; and what is kept after Ctrl-C."""

import argparse
import os
import shlex
import signal
import time

import pytest
from search_fixtures import model, photos  # noqa: F401 (fixtures)

from eval.__main__ import make_parser
from eval.evaluate import report
from eval.result import Result
from eval.tasks.retrieval import Retrieval
from mpclip.cli import main
from mpclip.command import Stoppable, next_steps
from mpclip.search.queries import QueryEncoder
from mpclip.training.command_line import parse_options
from mpclip.training.run import _next as after_training


class Parsed(BaseException):
    """A command line was parsed."""


def parses(printed: str, monkeypatch, *expected: str) -> None:
    """The lines below "next:" are these commands, and each parses."""
    lines = printed.split("next:\n")[1].splitlines()
    commands = [shlex.split(line, comments=True) for line in lines]
    assert [" ".join(words[1:3]) for words in commands] == list(expected)
    parse = argparse.ArgumentParser.parse_args

    def parsed(*arguments, **kwargs):
        parse(*arguments, **kwargs)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parsed)
    for words in commands:
        with pytest.raises(Parsed):
            main(words[1:])


def test_an_index_says_how_it_is_searched(model, photos, tmp_path, monkeypatch, capsys):  # noqa: F811
    main(["search", "build", "--model", model, "--data", str(photos), "--index", str(tmp_path / "an index")])
    parses(capsys.readouterr().out, monkeypatch, "search query")


@pytest.mark.parametrize("more, expected", [([], ("eval retrieval", "search build")), (["--num_frames", "4"], ("eval video",))])
def test_training_says_how_the_model_is_used(more, expected, tmp_path, monkeypatch):
    column = ["--video_column", "file_name"] if more else ["--caption_separator", "|", "--follow_links", "true"]
    options = parse_options(["--dataset", "my photos", "--output_dir", str(tmp_path), "--eval_split", "train[90%:]", *column])
    parses(next_steps(after_training(options)), monkeypatch, *expected)


@pytest.mark.parametrize("models, expected", [(("a",), ("card a",)), (("a", "b"), ("eval compare",))])
def test_a_measurement_says_what_is_done_with_it(models, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a/training.json").write_text("{}")
    words = ["retrieval", "--model", *models, "--data", "x", "--split", "test", "--json", "out.json"]
    results = [Result("retrieval", "mean_recall", {"mean_recall": 1.0}) for _ in models]
    parses(report(results, make_parser().parse_args(words), Retrieval), monkeypatch, *expected)


def test_an_index_that_is_stopped_says_what_is_kept(model, photos, tmp_path, monkeypatch, capsys):  # noqa: F811
    """And the command that it tells goes on."""

    def stopped(*arguments):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    words = ["search", "build", "--model", model, "--data", str(photos), "--index", str(tmp_path / "index")]
    with monkeypatch.context() as patch:
        patch.setattr(QueryEncoder, "embed_pictures", stopped)
        with pytest.raises(SystemExit) as ended:
            main(words)
    signal.signal(signal.SIGINT, before)
    assert ended.value.code == 130
    told = capsys.readouterr().err.splitlines()[-1]
    kept, again = told.split(" To go on: ")
    assert kept.endswith(f"What is embedded is kept in {tmp_path / 'index'}, but for the last few hundred pictures.")
    assert shlex.split(again) == ["mpclip", *words]
    main(shlex.split(again)[1:])
    assert "11 pictures, 11 of them embedded now" in capsys.readouterr().out


def test_an_export_that_is_stopped_can_be_run_again(model, tmp_path, monkeypatch, capsys):  # noqa: F811
    out = tmp_path / "text"
    words = ["export", "text", model, str(out)]
    with monkeypatch.context() as patch:
        patch.setattr("mpclip.export.text.MPCLIPModel.save_pretrained", lambda *_: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(SystemExit) as ended:
            main(words)
    assert ended.value.code == 143 and not out.exists()
    capsys.readouterr()
    main(words)
    parses(capsys.readouterr().out, monkeypatch, f"card {out}")


@pytest.mark.parametrize("environment, told", [({"LOCAL_RANK": "1"}, ""), ({"WORLD_SIZE": "2"}, " (by the same launcher)")])
def test_one_process_of_a_job_speaks(environment, told, monkeypatch, capsys):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended, Stoppable("mpclip eval", ["a b"]):
        raise KeyboardInterrupt
    assert ended.value.code == 130
    assert capsys.readouterr().err == (f"mpclip eval: Stopped. To run it again{told}: mpclip eval 'a b'\n" if told else "")


def test_an_import_that_a_signal_broke_is_no_error_of_the_command():
    """A compiled module turns the exception of a signal into an ImportError."""
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with pytest.raises(SystemExit) as ended, Stoppable("mpclip eval", []):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        except KeyboardInterrupt:
            raise SystemExit("mpclip eval: initialization failed") from None
    signal.signal(signal.SIGTERM, before)
    assert ended.value.code == 143
