"""`python -m model_card`: the card of a checkpoint, filled from its config, its origin and what was measured."""
