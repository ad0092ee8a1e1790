"""Train the multi-prompt model and its single-prompt baseline on OpenMoji scenes, and compare them on held-out scenes.

`make demo` runs this. Everything lands in runs/demo:

    scenes/                     the pictures with their captions, and the drawings' attribution
    cache/                      states of the frozen towers; computed once, used by both systems
    multi_prompt/ single_prompt/  the checkpoints, as train_hf.py leaves them
    scenes.png queries.png      a few families, and a few queries with what they found
    results.json

An interrupted run goes on where it was, and a finished one is shown again at once; `make clean` starts afresh.
"""

import argparse
import datetime
import json
import logging
import time
import warnings
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file

import train_hf
from eval.retrieval import measure, write_grid
from mpclip.data.backbones import prepare_backbone
from mpclip.data.image_text import load_image_text
from mpclip.data.openmoji import scenes as openmoji_scenes
from mpclip.hardware import describe_machine
from mpclip.training.options import parse_arguments

RECIPE = "configs/openmoji_smollm2.yaml"
SYSTEMS = {
    "multi_prompt": [],
    # The baseline differs in this alone: one prompt, and with it one query of the image pooling, gives all dimensions.
    "single_prompt": ["configs/systems/single_prompt.yaml"],
}
SCENES = {"train": 5000, "test": 600}


def main(arguments: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder for everything (default: runs/demo)")
    parser.add_argument("--train", type=int, default=SCENES["train"], help="training scenes (default: %(default)s)")
    parser.add_argument("--test", type=int, default=SCENES["test"], help="held-out scenes (default: %(default)s)")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    logging.basicConfig(format="%(message)s")
    logging.getLogger("train_hf").setLevel(logging.INFO)

    started, resumed = time.monotonic(), options.out.exists()
    _say("1/4  Pretrained towers and scenes")
    for name in ("smollm2-135m", "efficientnet-lite0"):
        print(f"     {name}: {prepare_backbone(name)}")
    scenes = options.out / "scenes"
    counts = {"train": options.train, "validation": 0, "test": options.test, "captions_per_scene": 1}
    drawn = [f"--{name}={value}" for name, value in counts.items()]
    openmoji_scenes.main([f"--out={scenes}", *drawn, f"--contact_sheet={options.out / 'scenes.png'}"])
    rows = load_image_text(str(scenes), "test")

    results: dict = {}
    trained_now = False
    for i, (system, difference) in enumerate(SYSTEMS.items()):
        _say(f"{i + 2}/4  {system.replace('_', ' ')}: training and held-out retrieval")
        argv = [RECIPE, *difference, "--dataset", str(scenes), "--cache_dir", str(options.out / "cache")]
        argv += ["--output_dir", str(options.out / system)]
        embeds, was_trained = _embeddings(argv, rows)
        trained_now |= not was_trained
        results[system] = measure(embeds, rows)
        if system == "multi_prompt":
            write_grid(rows, embeds, options.out / "queries.png")
    results |= {
        "about": f"{len(rows)} held-out OpenMoji scenes in families of near-twins, after {options.train} training scenes.",
        "scenes": len(rows),
        "training_scenes": options.train,
        "seconds": round(time.monotonic() - started, 1),
        "resumed": resumed,  # then `seconds` are those of the last part alone
        "recipe": RECIPE,
        "command": "make demo",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": describe_machine(),
    }
    _say("4/4  Results")
    file = options.out / "results.json"
    if file.exists() and not trained_now:
        results = json.loads(file.read_text())  # nothing new was measured: date and duration stay those of the training
    file.write_text(json.dumps(results, indent=1) + "\n")
    print(_table(results))
    _show_use(options.out, results)
    return results


def _embeddings(argv: list[str], rows) -> tuple[dict, bool]:
    """Embeddings of the held-out scenes by the system that `argv` describes, and whether it had been trained before.

    Kept beside the checkpoint with the command that made them, and used again only by the same.
    """
    described = parse_arguments(argv)
    folder = Path(described[2].output_dir)
    stored = folder / "test_embeddings.safetensors"
    options = train_hf.what_shapes_the_weights(*described)
    identity = {"options": json.dumps(options, default=str, sort_keys=True), "scenes": str(len(rows))}
    if stored.exists():
        with safe_open(stored, "pt") as file:
            if file.metadata() == identity:
                print(f"     already trained: {folder}")
                return {name: file.get_tensor(name) for name in file.keys()}, True  # noqa: SIM118 (it is no dict)
    trainer = train_hf.build_trainer(*described)
    train_hf.train(trainer, argv, described[:2])
    image_embeds, text_embeds, caption_mask = trainer.predict(trainer.eval_dataset).predictions
    real = caption_mask > 0  # (I, C)
    embeds = {
        "image_embeds": torch.from_numpy(image_embeds),
        "text_embeds": torch.from_numpy(text_embeds[real]),
        "caption_image": torch.from_numpy(np.nonzero(real)[0].copy()),
    }
    save_file(embeds, stored, metadata=identity)
    return embeds, False


def _table(results: dict) -> str:
    head = f"{'held-out scenes, in percent':<28}" + "".join(f"{name:>9}" for name in ["T2I R@1", "R@5", "R@10"])
    lines = [head + "".join(f"{name:>9}" for name in ["I2T R@1", "R@5", "R@10"])]
    for system in SYSTEMS:
        both = [*results[system]["text_to_image"].values(), *results[system]["image_to_text"].values()]
        lines.append(f"{system.replace('_', ' '):<28}" + "".join(f"{value:9.1f}" for value in both))
    lines.append("")
    lines.append(f"wrong first picture, of {results['multi_prompt']['mistakes']['queries']} queries, by what differs:")
    for system in SYSTEMS:
        kinds = ", ".join(f"{k.replace('_', ' ')} {n}" for k, n in results[system]["mistakes"].items() if k != "queries")
        lines.append(f"{system.replace('_', ' '):<16} {kinds}")
    return "\n".join(lines)


def _show_use(out: Path, results: dict) -> None:
    duration = f"{results['seconds'] / 60:.1f} min{', the last part of a resumed run' if results['resumed'] else ''}"
    print(f"""
A few families of scenes: {out / "scenes.png"}, what queries find: {out / "queries.png"}, all numbers: {out / "results.json"}
({duration}). Use it anywhere, without this repository:

    from transformers import AutoModel, AutoProcessor
    model = AutoModel.from_pretrained("{out / "multi_prompt"}", trust_remote_code=True)
    processor = AutoProcessor.from_pretrained("{out / "multi_prompt"}", trust_remote_code=True)
""")


def _say(title: str) -> None:
    print(f"\n{title}\n{'-' * len(title)}", flush=True)


if __name__ == "__main__":
    main()
