"""Real data that lies beside the repository on some machines."""

import os
from pathlib import Path

import pytest


def shared_data(name: str) -> Path:
    """The folder of a data set in shared/data, or in MPCLIP_SHARED_DATA; skips the test where it is not there."""
    given = os.environ.get("MPCLIP_SHARED_DATA")
    places = [Path(given)] if given else [parent / "shared/data" for parent in Path(__file__).resolve().parents]
    for place in places:
        if (place / name).is_dir():
            return place / name
    pytest.skip(f"{name} is not there: put it in shared/data beside the repository, or set MPCLIP_SHARED_DATA")
