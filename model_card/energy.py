"""The energy that a piece of work takes, measured by `codecarbon` where that is installed."""

import contextlib
import logging
from collections.abc import Iterator

try:
    import codecarbon
except ImportError:
    codecarbon = None


@contextlib.contextmanager
def measured_energy(wanted: bool = True) -> Iterator[dict[str, float]]:
    """Gives a dictionary that holds `energy_kwh` of this machine in the end; empty without codecarbon or its answer.

    The offline tracker asks no server. It wants a country for the emissions, which it would take from a table of yearly means;
    they are left out, and the energy does not depend on it.
    """
    measured: dict[str, float] = {}
    if codecarbon is None or not wanted:
        yield measured
        return
    # Its trackers speak before they have read their own `log_level`.
    logging.getLogger("codecarbon").setLevel(logging.CRITICAL)
    tracker = codecarbon.OfflineEmissionsTracker(
        country_iso_code="FRA", save_to_file=False, log_level="critical", allow_multiple_runs=True
    )
    tracker.start()
    try:
        yield measured
    finally:
        tracker.stop()
        data = getattr(tracker, "final_emissions_data", None)  # it swallows its own errors and then has none
        if data is not None:
            measured["energy_kwh"] = data.energy_consumed
