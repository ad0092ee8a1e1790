"""The commands: one entry, help without torch, what is installed, who imports whom."""

import ast
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from mpclip.cli import COMMANDS, main, manual

ROOT = Path(__file__).parent.parent

# Every command with its help, run in one process; then none of these may have been imported.
HELPS = """
import contextlib, importlib, io, pathlib, sys
import train_hf, demo.__main__, eval.__main__, mpclip.cli, mpclip.data.backbones, mpclip.data.openmoji.scenes
import mpclip.data.composition.__main__, mpclip.data.openmoji.categories, mpclip.data.openmoji.moving
import mpclip.export.__main__, mpclip.search.__main__, model_card.__main__

commands = {
    train_hf.main: [[]],
    demo.__main__.main: [[]],
    eval.__main__.main: [[], *([task] for task in eval.__main__.TASKS), ["compare"]],
    mpclip.cli.main: [[], *([name] for name in mpclip.cli.COMMANDS), ["search", "build"], ["search", "query"]],
    mpclip.data.backbones.main: [[]],
    mpclip.data.composition.__main__.main: [[]],
    mpclip.data.openmoji.categories.main: [[]],
    mpclip.data.openmoji.moving.main: [[]],
    mpclip.data.openmoji.scenes.main: [[]],
    mpclip.export.__main__.main: [[], ["onnx"], ["int8"], ["text"]],
    mpclip.search.__main__.main: [[], ["build"], ["query"]],
    model_card.__main__.main: [[]],
}
benchmarks = [file.stem for file in pathlib.Path("benchmarks").glob("*.py") if "\\ndef main(" in file.read_text()]
assert len(benchmarks) >= 12, benchmarks
commands |= {importlib.import_module(f"benchmarks.{name}").main: [[]] for name in benchmarks}
for main, calls in commands.items():
    for call in calls:
        shown = io.StringIO()
        with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
            main([*call, "--help"])
        assert "usage:" in shown.getvalue(), (main.__module__, call)
        heavy = {"torch", "sentence_transformers", "datasets", "matplotlib", "pandas"} & set(sys.modules)
        assert not heavy, f"{main.__module__} {call} --help imports {heavy}"
print("all shown")
"""


def test_no_help_loads_torch():
    run = subprocess.run([sys.executable, "-c", HELPS], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.stdout == "all shown\n", run.stderr[-2000:]


def test_one_entry_for_all_commands(capsys):
    main(["--help"])
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in COMMANDS) and "mpclip search query --index" in shown
    with pytest.raises(SystemExit) as stopped:
        main(["trane"])
    assert stopped.value.code == 2
    assert f"no command 'trane'; expected one of: {', '.join(COMMANDS)}" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["eval", "retrieval"])
    assert "usage: mpclip eval retrieval" in capsys.readouterr().err
    with pytest.raises(SystemExit, match=r"^mpclip train: Unknown option 'num_promts'"):
        main(["train", "--num_promts", "3"])


def test_a_manual_is_read_without_import():
    assert manual("mpclip.export.onnx").startswith("Writes one tower of a checkpoint as an ONNX graph")


def test_what_is_installed(tmp_path):
    """The wheel has the library and the command, and neither the demo nor the benchmarks."""
    source = tmp_path / "source"  # a copy: building writes into the folder
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "train_hf.py"):
        shutil.copy(ROOT / name, source)
    for name in ("modeling_mpclip", "mpclip", "eval", "model_card", "benchmarks", "demo"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path / "wheel"),
    ]
    subprocess.run([*build, str(source)], check=True, capture_output=True)
    (wheel,) = (tmp_path / "wheel").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    top = {path.name for path in (tmp_path / "installed").iterdir() if not path.name.endswith(".dist-info")}
    assert top == {"modeling_mpclip", "mpclip", "eval", "model_card", "train_hf.py"}
    packages = {path.parent.relative_to(ROOT) for name in top for path in (ROOT / name).rglob("*.py")}
    installed = {path.parent.relative_to(tmp_path / "installed") for path in (tmp_path / "installed").rglob("*.py")}
    assert packages == installed - {Path(".")}
    assert {path.name for path in (ROOT / "model_card").glob("*.md")} == {
        path.name for path in (tmp_path / "installed" / "model_card").glob("*.md")
    }
    # Only the wheel on the path: the repository would hide what it lacks.
    path = str(tmp_path / "installed")
    script = f"import sys; sys.path.insert(0, {path!r}); from mpclip.cli import main; main(['train', '--help'])"
    run = subprocess.run([sys.executable, "-I", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0 and "--text_model" in run.stdout, run.stderr[-2000:]


def test_nothing_imports_the_script():
    """`train_hf.py` is a command; the library is what others use. (The other import rules are contracts of import-linter.)"""
    for package in ("modeling_mpclip", "mpclip", "eval", "model_card", "benchmarks", "demo"):
        for file in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                assert "train_hf" not in names, file
    assert len((ROOT / "train_hf.py").read_text().splitlines()) <= 120


def test_test_files_import_no_other_test_file():
    for file in (ROOT / "tests").glob("test_*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [name for name in names if name.startswith("test_")], f"{file.name} imports {names}"
