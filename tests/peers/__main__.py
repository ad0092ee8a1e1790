"""transformers' common testers on our classes, as they stand here and as a checkpoint ships them.

    make peers                                    # everything
    python tests/peers -k test_save_load -x       # pytest's options

A failure fails the run unless `expected.py` lists the test with its reason; a listed test that passes, or is not there any
more, fails the run as well. The last line is `N passed, N failed, N skipped`; listed failures count as skipped.
Their pipeline tester needs models from the Hub and files no distribution has; tests/test_pipelines.py stands in its place.
"""

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
FILES = ("check_model.py", "check_processor.py", "check_tokenizer.py", "check_image_processor.py")
os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""}

import pytest  # noqa: E402
from expected import EXPECTED_FAILURES  # noqa: E402
from sources import peers_folder  # noqa: E402


class Ledger:
    """A pytest plugin that holds the run against the list of expected failures."""

    def __init__(self):
        self.passed, self.failed, self.skipped = set(), set(), set()
        self.collected: set[str] = set()

    def pytest_collection_modifyitems(self, items):
        for item in items:
            names = {item.name, f"{item.cls.__name__}::{item.name}"}
            self.collected |= names
            for name in names & EXPECTED_FAILURES.keys():
                item.add_marker(pytest.mark.xfail(reason=EXPECTED_FAILURES[name], strict=True))

    def pytest_runtest_logreport(self, report):
        if report.failed:
            self.failed.add(report.nodeid)
        elif report.skipped:
            self.skipped.add(report.nodeid)
        elif report.when == "call":
            self.passed.add(report.nodeid)


def main(arguments: list[str]) -> int:
    sys.path[:0] = [str(peers_folder()), str(HERE.parents[1])]
    ledger = Ledger()
    # `addopts=` without our --strict-markers: theirs are declared elsewhere.
    options = ["--rootdir", str(HERE.parents[1]), "-o", "addopts=", "-p", "no:cacheprovider", "--disable-warnings", "-q"]
    status = pytest.main([*options, *(str(HERE / file) for file in FILES), *arguments], plugins=[ledger])
    gone = set() if arguments else EXPECTED_FAILURES.keys() - ledger.collected
    for name in sorted(gone):
        print(f"{name} is listed in {HERE / 'expected.py'} and does not exist; take it out")
    passed = ledger.passed - ledger.failed
    print(f"{len(passed)} passed, {len(ledger.failed)} failed, {len(ledger.skipped - ledger.failed)} skipped")
    return int(status) or int(bool(gone))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
