"""transformers' own testers, out of its source distribution: downloaded by pip, unpacked in the cache, never in the repository.

The wheel holds no tests and the source distribution only the common ones, which lean on a few files that neither has.
`STAND_INS` are ours, the least that lets the testers be imported.
"""

import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import transformers

STAND_INS = {
    "tests/__init__.py": "",
    "tests/exporters/__init__.py": "",
    "tests/exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "tests/generation/__init__.py": "",
    "tests/generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "tests/fixtures/sample_text.txt": "A cat sits on the mat.\n\nA dog is left of a boat, and nobody is on the boat.\n",
    "tests/utils/__init__.py": "",
    "tests/utils/test_configuration_utils.py": "config_common_kwargs = {}\n",
    "utils/fetch_hub_objects_for_ci.py": "def url_to_local_path(url):\n    return url\n",
}


def peers_folder() -> Path:
    """The folder that holds `tests` and `utils` of the installed transformers; filled at the first call.

    Raises:
        subprocess.CalledProcessError: pip found no source distribution of this version (it says why on stderr).
    """
    name = f"transformers-{transformers.__version__}"
    folder = Path(os.environ.get("MPCLIP_CACHE") or "~/.cache/mpclip").expanduser() / "peers" / name
    if not folder.exists():
        _download(name, folder)
    for path, text in STAND_INS.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    return folder


def _download(name: str, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Written aside and renamed when complete.
    with tempfile.TemporaryDirectory(dir=folder.parent) as aside:
        options = ["--quiet", "--no-deps", "--no-binary", "transformers", "--no-build-isolation", "--dest", aside]
        requirement = f"transformers=={transformers.__version__}"
        subprocess.run([sys.executable, "-m", "pip", "download", *options, requirement], check=True)
        with tarfile.open(Path(aside, f"{name}.tar.gz")) as archive:
            tests = [member for member in archive if member.name.startswith(f"{name}/tests/")]
            archive.extractall(aside, tests, filter="data")
        Path(aside, name).rename(folder)
