"""Measures trained models: `python -m eval --help` lists what can be measured."""
