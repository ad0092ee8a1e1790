"""Every command shows three examples that parse, and Ctrl-C ends it with a sentence that says how to go on.

`mpclip`'s commands are those of `mpclip.cli.COMMANDS`, with all that stand below them.
"""

import argparse
import contextlib
import importlib
import io
import os
import re
import runpy
import shlex
import signal
import sys
from pathlib import Path

import pytest
import torch

import train_hf
from mpclip.cli import COMMANDS, main

ROOT = Path(__file__).parent.parent
TOPS = ("mpclip", "eval", "model_card", "demo", "benchmarks")
SHOWN = ("mpclip ", "python train_hf.py", *(f"python -m {top}" for top in TOPS))  # what the examples of a help begin with


class Parsed(BaseException):
    """A command line was parsed; the work, which would follow, is left out."""


def program(words: list[str]):
    """The function that runs a command line without the words that name the program, and these words."""
    if words[0] == "mpclip":
        return main, words[:1]
    if words[:2] == ["python", "train_hf.py"]:
        return train_hf.main, words[:2]
    assert words[:2] == ["python", "-m"], words
    module = importlib.import_module(words[2])
    return getattr(module, "main", None) or importlib.import_module(f"{words[2]}.__main__").main, words[:3]


@pytest.fixture
def only_parse(monkeypatch):
    """Commands do not go further than parsing their command line, and then call the function that is given."""

    def patch(then):
        parse, options_of = argparse.ArgumentParser.parse_args, train_hf.parse_options

        def parsed(parser, *arguments, **kwargs):
            options = parse(parser, *arguments, **kwargs)
            then()
            return options

        def read(argv):
            options = options_of(argv)
            then()
            return options

        monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parsed)
        monkeypatch.setattr(train_hf, "parse_options", read)
        monkeypatch.setattr("benchmarks.systems._go_on", lambda *parsed: then())  # it takes options of train_hf.py too
        monkeypatch.chdir(ROOT)

    return patch


def parsed() -> None:
    raise Parsed


def interrupted() -> None:
    """Ctrl-C. If the command does not take it, nothing runs all the same: examples write into docs/."""
    os.kill(os.getpid(), signal.SIGINT)
    raise Parsed


def commands_of_mpclip() -> list[str]:
    """All of them, such as `mpclip search` and `mpclip search build`."""
    found = []
    for name, (module, _) in COMMANDS.items():
        found.append(f"mpclip {name}")
        if name != "train":  # it has options of dataclasses, and no command below it
            found += [f"mpclip {name} {below}" for below in below_of(importlib.import_module(module).main)]
    return found


def below_of(run) -> list[str]:
    """The subcommands of a command."""
    made, add = [], argparse.ArgumentParser.add_subparsers

    def kept(parser, **kwargs):
        made.append(add(parser, **kwargs))
        return made[-1]

    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        patch.setattr(argparse.ArgumentParser, "add_subparsers", kept)
        run(["--help"])
    return [name for one in made for name in one.choices]


def modules() -> list[str]:
    """What runs as `python -m MODULE` and parses a command line: data, the demo, benchmarks, and mpclip's commands."""
    found = []
    for file in sorted(
        path for top in ("mpclip", "eval", "model_card", "demo", "benchmarks") for path in (ROOT / top).rglob("*.py")
    ):
        text = file.read_text()
        if "\ndef main(" in text and '__name__ == "__main__"' in text and file.name != "cli.py":
            found.append(".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__"))
    return found


MODULES = modules()
OF_MPCLIP = [module.removesuffix(".__main__") for module, _ in COMMANDS.values()]
SHORT = [name for name in MODULES if name.startswith("benchmarks.")]  # one example is enough


def help_of(words: list[str]) -> str:
    run, named = program(words)
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
        run([*words[len(named) :], "--help"])
    return shown.getvalue()


def examples(text: str) -> list[list[str]]:
    """The words of the examples in a help: its indented lines that begin with the name of a program."""
    joined = text.replace("\\\n", " ")
    lines = re.findall(rf"^ {{4}}((?:{'|'.join(SHOWN)}).*)$", joined, flags=re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines]


COMMANDS_SHOWN = [*commands_of_mpclip(), *(f"python -m {name}" for name in MODULES if name not in OF_MPCLIP), "mpclip"]


@pytest.mark.parametrize("command", COMMANDS_SHOWN)
def test_a_help_has_examples_that_parse(command, only_parse):
    words = command.split()
    shown = examples(help_of(words))
    own = [example for example in shown if example[: len(words)] == words]
    assert own and len(shown) >= (1 if words[-1] in SHORT else 3), f"{command} --help has the examples {shown}"
    only_parse(parsed)
    for example in shown:
        if "cuda" in example and not torch.cuda.is_available():
            continue
        run, named = program(example)
        with pytest.raises(Parsed):
            run(example[len(named) :])


@pytest.mark.filterwarnings("ignore:.*found in sys.modules after import:RuntimeWarning")
@pytest.mark.parametrize("command", [f"python -m {name}" for name in MODULES] + [f"mpclip {name}" for name in COMMANDS])
def test_ctrl_c_ends_a_command_with_a_sentence(command, only_parse, monkeypatch, capsys):
    words = command.split()
    example = next(one for one in examples(help_of(words)) if one[: len(words)] == words or one[0] == "mpclip")
    arguments = example[2 if example[0] == "mpclip" else 3 :]  # `mpclip eval` is `python -m eval`
    only_parse(interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background processes ignore it
    monkeypatch.setattr(sys, "argv", [words[-1], *arguments])
    with pytest.raises(BaseException) as ended:
        if words[0] == "mpclip":
            main([words[1], *arguments])
        else:
            runpy.run_module(words[2], run_name="__main__", alter_sys=True)
    signal.signal(signal.SIGINT, before)
    assert ended.type is SystemExit and ended.value.code == 130, "end the module with `start(main)` of mpclip.command"
    again = f" To run it again: {shlex.join([*words, *arguments])}" if command != "mpclip train" else " The run had not begun."
    assert capsys.readouterr().err.splitlines()[-1] == f"{command}: Stopped.{again}"
