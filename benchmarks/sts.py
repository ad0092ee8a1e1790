"""Fine-tune the text side of systems on STS-B with several seeds, and compare them seed by seed.

    python -m benchmarks.sts configs/systems/single_prompt.yaml configs/systems/multi_prompt.yaml \\
        --setting configs/stsb_smollm2.yaml --dataset data/stsb --json docs/results/stsb_smollm2.json
    python -m benchmarks.sts ... --setting configs/stsb_gemma3.yaml --dataset data/stsb --json docs/results/stsb_gemma3.json

Settings, systems, cells and the JSON file are those of `python -m benchmarks.ablation`. The loss is CoSENT on the cosine of the
two sentences' embeddings. The metric is the Spearman correlation of that cosine with the scores, in percent. Of a system's
own losses, the diversity loss applies; the negation loss needs images and does not. With cached states, the frozen layers run
once. With `train_sampling_strategy: group_by_length`, batches hold little padding.
"""

import time
from pathlib import Path

from transformers import set_seed

from benchmarks.systems import Task, compare_systems
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


STS = Task("benchmarks.sts", __doc__, ("spearman",))


def main(argv: list[str] | None = None) -> dict:
    """The command; returns the content of the JSON file.

    Args:
        argv: words of the command line; None takes those of the process.
    """
    return compare_systems(argv, STS)


if __name__ == "__main__":
    main()
