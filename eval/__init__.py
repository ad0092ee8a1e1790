"""Measure trained models. `python -m eval --help` lists the tasks."""
