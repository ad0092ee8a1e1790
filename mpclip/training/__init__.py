"""What trains an MP-CLIP model: arguments, Trainer, collator, tuning of the towers, caches of frozen towers' states."""
