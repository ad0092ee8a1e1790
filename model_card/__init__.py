"""`python -m model_card`: the model card of a checkpoint, from its config, its training record and its results."""
