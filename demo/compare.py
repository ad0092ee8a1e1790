"""The steps of the demo: draw scenes, train both systems, measure them on held-out scenes, show what they find."""

import datetime
import json
import logging
import warnings
from pathlib import Path

import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file

from demo.stages import Stages
from eval.tasks import differences, retrieval
from model_card.card import write_card
from mpclip.data.backbones import prepare_backbone
from mpclip.data.image_text import load_image_text
from mpclip.data.openmoji import scenes as openmoji_scenes
from mpclip.files import aside, read_json, write_json
from mpclip.hardware import best_device, describe_machine, speeds
from mpclip.progress import duration
from mpclip.stop import StopSignals
from mpclip.training.command_line import parse_options
from mpclip.training.resume import shaping_options
from mpclip.training.run import build_trainer, train

RECIPE = "configs/openmoji_smollm2.yaml"
# System -> recipes laid over `RECIPE`.
SYSTEMS = {
    "multi_prompt": [],
    # The only difference: one prompt, and with it one pooling query, gives all dimensions.
    "single_prompt": ["configs/systems/single_prompt.yaml"],
}


def compare(out: Path, train_scenes: int, test_scenes: int, signals: StopSignals | None = None) -> dict:
    """Run the demo.

    Args:
        out: folder to write to.
        train_scenes: number of scenes to train on.
        test_scenes: number of held-out scenes.
        signals: end a training after a step, with a checkpoint. By default they are not watched.

    Returns:
        The content of results.json: recalls, intervals and mistakes of each system, and how they were measured.
    """
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    logging.basicConfig(format="%(message)s")
    logging.getLogger("train_hf").setLevel(logging.INFO)

    stages = Stages(out, train_scenes + test_scenes)
    _say("1/4  Pretrained towers and scenes", stages)
    scenes = out / "scenes"
    with stages.stage("towers and scenes"):
        for name in ("smollm2-135m", "efficientnet-lite0"):
            print(f"     {name}: {prepare_backbone(name)}")
        counts = {"train": train_scenes, "validation": 0, "test": test_scenes, "captions_per_scene": 1}
        drawn = [f"--{name}={value}" for name, value in counts.items()]
        openmoji_scenes.main([f"--out={scenes}", *drawn, f"--contact_sheet={out / 'scenes.png'}"])
        rows = load_image_text(str(scenes), "test")

    results: dict = {}
    trained_now = False
    for i, (system, difference) in enumerate(SYSTEMS.items()):
        _say(f"{i + 2}/4  {system.replace('_', ' ')}: training and held-out retrieval", stages)
        argv = [RECIPE, *difference, "--dataset", str(scenes), "--cache_dir", str(out / "cache")]
        argv += ["--output_dir", str(out / system)]
        embeds, was_trained = _embeddings(argv, rows, stages, signals)
        trained_now |= not was_trained
        results[system] = _measure(embeds, rows)
        if system == "multi_prompt":
            retrieval.write_grid(rows, embeds, out / "queries.png")
    results |= {
        "about": f"{len(rows)} held-out OpenMoji scenes in families of near-twins, after {train_scenes} training scenes.",
        "scenes": len(rows),
        "training_scenes": train_scenes,
        "seconds": round(sum(stages.seconds.values()), 1),
        "stages": stages.seconds,
        "precision": parse_options([RECIPE]).training.precision,
        "speed": speeds(best_device()),
        "recipe": RECIPE,
        "command": "make demo",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": describe_machine(str(parse_options(argv).training.device)),
    }
    _say("4/4  Results", stages)
    file = out / "results.json"
    if file.exists() and not trained_now:
        results = read_json(file)  # nothing was trained: keep the date of the training
    write_json(file, results)
    print(_table(results))
    _show_use(out, results)
    return results


def _embeddings(argv: list[str], rows, stages: Stages, signals: StopSignals | None) -> tuple[dict, bool]:
    """Train a system, unless it is trained already, and embed the held-out scenes.

    The embeddings are saved beside the checkpoint with the options that shaped them. They are read only if the options are the
    same.

    Args:
        argv: the command line of train_hf.py.
        rows: the held-out scenes.
        stages: times the stages of the system.
        signals: as for `compare`.

    Returns:
        image_embeds (I, D), text_embeds (T, D) and caption_image (T,); and whether the system was trained already.
    """
    options = parse_options(argv)
    folder = Path(options.training.output_dir)
    stored = folder / "test_embeddings.safetensors"
    shaped_by = json.dumps(shaping_options(options), sort_keys=True)
    identity = {"options": shaped_by, "scenes": str(len(rows))}
    if stored.exists():
        with safe_open(stored, "pt") as file:
            if file.metadata() == identity:
                print(f"     already trained: {folder}")
                return {name: file.get_tensor(name) for name in file.keys()}, True  # noqa: SIM118 (it is no dict)
    with stages.stage(f"{folder.name}: states of the frozen towers"):
        trainer = build_trainer(options, write_card=write_card)
    with stages.stage(f"{folder.name}: training"):
        train(trainer, options=options, command=["python", "train_hf.py", *argv], signals=signals)
    with stages.stage(f"{folder.name}: held-out scenes"):
        image_embeds, text_embeds, caption_image = map(torch.from_numpy, trainer.predict(trainer.eval_dataset).predictions)
    embeds = {"image_embeds": image_embeds, "text_embeds": text_embeds, "caption_image": caption_image}
    with aside(stored) as written:
        save_file(embeds, written, metadata=identity)
    return embeds, False


def _measure(embeds: dict, rows) -> dict:
    """Recalls and their intervals by direction, and the mistakes by difference."""
    found = retrieval.measure(embeds)
    ways, intervals = retrieval.recalls_of(found.to_json())
    mistakes = differences.count_mistakes(**embeds, text_ranks=found.items["text_rank"], rows=rows)
    mean = {"mean_recall": found.metrics["mean_recall"]}
    return ways | mean | {"interval_95": intervals, "mistakes": {"queries": found.counts["captions"], **mistakes}}


def _table(results: dict) -> str:
    """Recalls and mistakes of both systems, as plain text."""
    head = f"{'held-out scenes, in percent':<28}" + "".join(f"{name:>9}" for name in ["T2I R@1", "R@5", "R@10"])
    lines = [head + "".join(f"{name:>9}" for name in ["I2T R@1", "R@5", "R@10"])]
    for system in SYSTEMS:
        both = [*results[system]["text_to_image"].values(), *results[system]["image_to_text"].values()]
        lines.append(f"{system.replace('_', ' '):<28}" + "".join(f"{value:9.1f}" for value in both))
    lines.append("")
    lines.append(f"{results['multi_prompt']['mistakes']['queries']} queries: wrong first pictures, by difference:")
    for system in SYSTEMS:
        kinds = ", ".join(f"{k.replace('_', ' ')} {n}" for k, n in results[system]["mistakes"].items() if k != "queries")
        lines.append(f"{system.replace('_', ' '):<16} {kinds}")
    return "\n".join(lines)


def _show_use(out: Path, results: dict) -> None:
    """Print what was written, and how the model is loaded."""
    took = f"{duration(results['seconds'])}, computing in {results['precision']}"
    print(f"""
Scenes: {out / "scenes.png"}. Queries and what they find: {out / "queries.png"}. All numbers: {out / "results.json"}.
Duration: {took}. To use the model anywhere, without this repository:

    from transformers import AutoModel, AutoProcessor
    model = AutoModel.from_pretrained("{out / "multi_prompt"}", trust_remote_code=True)
    processor = AutoProcessor.from_pretrained("{out / "multi_prompt"}", trust_remote_code=True)
""")


def _say(title: str, stages: Stages) -> None:
    """Print the heading of a step, with the time left."""
    heading = ", ".join(filter(None, [title, stages.left()]))
    print(f"\n{heading}\n{'-' * len(heading)}", flush=True)
