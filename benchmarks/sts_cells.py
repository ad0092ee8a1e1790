"""Trains and measures a cell of `benchmarks.sts`: the text side of one system with one seed."""

import time
from pathlib import Path

from transformers import set_seed

from mpclip.data.sentence_pairs import load_sts
from mpclip.training.command_line import parse_options
from mpclip.training.run import build_model
from mpclip.training.sentence_pairs import SIDES, SentencePairCollator, SentencePairTrainer
from mpclip.training.state_cache import cache_text_states
from mpclip.training.tuning import prepare_tuning


def build_trainer(argv: list[str], splits: list[str]) -> tuple[SentencePairTrainer, dict]:
    """The trainer of a cell, and the rows of its training split and of `splits`.

    Args:
        argv: the command line of train_hf.py.
        splits: the splits to measure on.
    """
    options = parse_options(argv)
    data, arguments = options.data, options.training
    set_seed(arguments.seed)
    rows = {split: load_sts(data.dataset, split) for split in (data.train_split, *splits)}
    base, processor = build_model(options.model, data.max_text_length)
    model = prepare_tuning(base, options.model)
    states = None
    if data.cache_states and data.cache_text_states:
        texts = [row[side] for part in rows.values() for row in part for side in SIDES]
        states = cache_text_states(
            base, processor.tokenizer, texts, Path(data.cache_dir), False, data.cache_format, arguments.device
        )
    trainer = SentencePairTrainer(
        model=model,
        args=arguments,
        train_dataset=rows[data.train_split],
        data_collator=SentencePairCollator(processor, states),
        processing_class=processor,
    )
    return trainer, rows


def train_cell(argv: list[str], splits: list[str]) -> dict[str, dict]:
    """Train one cell and measure it.

    Args:
        argv: the command line of train_hf.py.
        splits: the splits to measure on.

    Returns:
        Split -> `spearman`, in percent, and `train_seconds`.
    """
    started = time.monotonic()
    trainer, rows = build_trainer(argv, splits)
    trainer.train()
    seconds = round(time.monotonic() - started, 1)
    return {
        split: {"spearman": trainer.predict(rows[split]).metrics["test_spearman"], "train_seconds": seconds} for split in splits
    }
