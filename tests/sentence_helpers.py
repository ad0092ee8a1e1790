"""Checkpoints as sentence-transformers models: made, loaded and trained in the tests."""

from pathlib import Path

import datasets
from conftest import make_model, make_processor, make_tokenizer
from PIL import Image
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments

TEXTS = ["The cat sits on the red mat.", "", "A small boat", "x" * 300, "dog"]
IMAGES = [Image.new("RGB", (40, 30), color) for color in ("red", "green", "blue", "yellow")]
MAX_LENGTH = 20
PAIRS = {
    "anchor": ["a red cat", "a blue boat", "the dog", "no people"] * 4,
    "positive": ["the cat is red", "a boat that is blue", "one dog", "nobody"] * 4,
}


def save_checkpoint(folder: Path, padding_side: str = "right", **kwargs) -> Path:
    """A tiny checkpoint; `kwargs` are `make_model`'s."""
    tokenizer = make_tokenizer()
    tokenizer.model_max_length, tokenizer.padding_side = MAX_LENGTH, padding_side
    make_model(tokenizer=tokenizer, **kwargs).save_pretrained(folder)
    make_processor(tokenizer).save_pretrained(folder)
    return folder


def load(folder: Path, **kwargs) -> SentenceTransformer:
    return SentenceTransformer(str(folder), trust_remote_code=True, device="cpu", **kwargs)


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a checkpoint but for its card."""
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name != "README.md"}


def train(model, rows: dict, loss, out, **kwargs) -> SentenceTransformerTrainer:
    """A dozen steps, a loss logged for each; `kwargs` are the training arguments'."""
    options = SentenceTransformerTrainingArguments(
        output_dir=str(out),
        num_train_epochs=6,
        per_device_train_batch_size=4,
        learning_rate=5e-3,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        seed=0,
        **kwargs,
    )
    trainer = SentenceTransformerTrainer(model=model, args=options, train_dataset=datasets.Dataset.from_dict(rows), loss=loss)
    trainer.train()
    return trainer
