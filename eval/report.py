"""Write docs/results.md from the measurements in docs/results/*.json."""

import argparse
import json
from pathlib import Path

HEAD = """# Results

Written by `python -m eval report` from the JSON files in docs/results; no number here was typed by hand.
Recall in percent; a tie counts against the model. ± is half of the 95% interval over the choice of test images.
"""


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m eval report", description=__doc__)
    parser.add_argument("--results", type=Path, default=Path("docs/results"), help="folder of JSON files (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("docs/results.md"), help="page to write (%(default)s)")
    options = parser.parse_args(arguments)
    if not options.results.is_dir() or not list(options.results.glob("*.json")):
        raise SystemExit(f"No measurement in {options.results}: python -m eval retrieval --json writes one.")
    sections = [_section(file.stem, json.loads(file.read_text())) for file in sorted(options.results.glob("*.json"))]
    options.out.write_text("\n".join([HEAD, *sections]))
    print(f"written: {options.out}")


def _section(name: str, result: dict) -> str:
    """A demo result holds several systems, the result of `python -m eval retrieval` is one."""
    systems = {key: value for key, value in result.items() if isinstance(value, dict) and "mean_recall" in value}
    lines = [f"## {name}", "", result.get("about", ""), ""]
    lines += ["| system | T2I R@1 | R@5 | R@10 | I2T R@1 | R@5 | R@10 | mean |", "|---|---|---|---|---|---|---|---|"]
    for system, measured in (systems or {name: result}).items():
        cells = []
        for way in ("text_to_image", "image_to_text"):
            for recall, value in measured[way].items():
                low, high = measured["interval_95"][way][recall]
                cells.append(f"{value:.1f} ± {(high - low) / 2:.1f}")
        lines.append(f"| {system.replace('_', ' ')} | {' | '.join(cells)} | {measured['mean_recall']:.1f} |")
    for system, measured in systems.items():
        if "mistakes" in measured:
            kinds = ", ".join(f"{kind.replace('_', ' ')} {count}" for kind, count in measured["mistakes"].items())
            lines += ["", f"Wrong first pictures of the {system.replace('_', ' ')} model, by what differs: {kinds}."]
    machine = result["machine"]
    facts = {
        "images": result.get("images") or result.get("scenes"),
        "captions": result.get("captions"),
        "split": result.get("split"),
        "command": f"`{result['command']}`",
        "date": result["date"],
        "seconds": result["seconds"],
        "machine": ", ".join(f"{key} {value}" for key, value in machine.items()),
    }
    lines += ["", *(f"* {key}: {value}" for key, value in facts.items() if value is not None), ""]
    return "\n".join(lines)
