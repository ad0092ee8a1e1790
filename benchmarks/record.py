"""What every benchmark writes beside its numbers."""

import datetime
import shlex

from mpclip.hardware import describe_machine


def provenance(module: str, argv: list[str], device: str = "cpu") -> dict:
    """`command`, `date` and `machine` of a measurement."""
    return {
        "command": shlex.join(["python", "-m", module, *argv]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": describe_machine(device),
    }
