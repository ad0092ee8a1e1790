"""Does retrieval gain from queries that an LLM has expanded?

    python -m benchmarks.expanded_queries --models runs/flickr8k/mean_pooling runs/flickr8k/multi_prompt \\
        --data data/flickr8k --split "validation[50%:]" --json docs/results/expanded_queries.json

For each caption, SmolLM2-135M-Instruct writes one more sentence with details. The expanded query is the caption and after it
this sentence. Every model searches with the captions and with the expanded queries. In the paper, expanded queries make vanilla
CLIP worse: on Flickr30k, R@1 falls from 61.4 to 60.2 image-to-text and from 43.7 to 43.3 text-to-image. The sentences are kept
in `--cache`, so that an interrupted command continues.

For each model, the JSON file holds the recalls with both kinds of queries, and the difference of mean recall with its 95%
interval (paired bootstrap over images). It also holds a few expansions to read.
"""

import hashlib
import json
from pathlib import Path

from benchmarks.record import as_arguments, command_parser, provenance
from benchmarks.results_tables import expansion_table
from eval.intervals import bootstrap_interval
from mpclip.command import start
from mpclip.data.backbones import prepare_backbone
from mpclip.files import read_json, write_json
from mpclip.hardware import choose_precision
from mpclip.progress import track

WRITER = "smollm2-135m"  # the LLM that writes the sentences
REQUEST = "Describe in one sentence and in more detail the photo of which the caption is: {caption}"
NEW_TOKENS = 32  # of a sentence, at most
SHOWN = 8  # expansions in the JSON file


def write_expansions(captions: list[str], cache: Path, batch_size: int = 64) -> dict[str, str]:
    """Write a sentence for each caption, by greedy decoding.

    Args:
        captions: the captions.
        cache: folder where sentences are kept; those of an earlier run are read from it.
        batch_size: captions in a batch.

    Returns:
        Caption -> sentence.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    identity = json.dumps([WRITER, REQUEST, NEW_TOKENS])
    file = cache / f"expansions-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.json"
    known = read_json(file)
    missing = sorted({caption for caption in captions if caption not in known}, key=len)  # sorted by length, for little padding
    if missing:
        folder = prepare_backbone(WRITER)
        tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        writer = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, choose_precision())).eval()
        for start in track(range(0, len(missing), batch_size), "Expanding captions", -(-len(missing) // batch_size), "batch"):
            batch = missing[start : start + batch_size]
            asked = [[{"role": "user", "content": REQUEST.format(caption=caption)}] for caption in batch]
            inputs = tokenizer.apply_chat_template(
                asked, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
            )
            written = writer.generate(
                **inputs, max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=tokenizer.pad_token_id
            )  # (B, N + new)
            answers = tokenizer.batch_decode(written[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            known |= {caption: " ".join(answer.split()) for caption, answer in zip(batch, answers, strict=True)}
            write_json(file, known)
    return known


def main(argv: list[str] | None = None) -> dict:
    """The command; returns the content of the JSON file.

    Args:
        argv: words of the command line; None takes those of the process.
    """
    parser = command_parser("benchmarks.expanded_queries", __doc__)
    parser.add_argument("--models", nargs="+", required=True, help="checkpoints; their Python files are run")
    parser.add_argument("--data", required=True, help="images with captions: folder, parquet file or Hub id")
    parser.add_argument("--split", required=True, help="name of the split, such as validation or test")
    parser.add_argument("--json", required=True, metavar="OUT.json", help="where to write the result")
    parser.add_argument(
        "--cache", type=Path, default=Path("runs/cache"), help="folder of written sentences (default: %(default)s)"
    )
    parser.add_argument("--limit", type=int, help="only the first LIMIT images, for a quick look")
    options = parser.parse_args(argv)

    from eval.metrics import recalls, recalls_of_images, retrieval_ranks
    from mpclip.data.image_text import load_image_text
    from mpclip.encoding import encode_dataset, load_encoder

    rows = load_image_text(options.data, options.split, limit=options.limit)
    captions = [caption for row in rows["captions"][:] for caption in row]
    expansions = write_expansions(captions, options.cache)
    expanded = rows.map(lambda row: {"captions": [f"{caption} {expansions[caption]}" for caption in row["captions"]]})
    results = {}
    for path in options.models:
        encoder = load_encoder(path, "bfloat16")
        result, of_images = {}, {}
        for name, table in {"captions": rows, "expanded": expanded}.items():
            embeds = encode_dataset(encoder, table)
            ranks = retrieval_ranks(**embeds)
            result[name] = recalls(*ranks)
            of_images[name] = recalls_of_images(*ranks, embeds["caption_image"].numpy())  # (I,)
        change = of_images["expanded"] - of_images["captions"]
        result["difference"] = {"mean": float(change.mean()), "interval_95": bootstrap_interval(change)}
        results[Path(path).name] = result
    command = as_arguments({name: getattr(options, name) for name in ("data", "split", "json")})
    command += ["--models", *options.models] + (["--limit", str(options.limit)] if options.limit else [])
    result = {
        "data": options.data,
        "split": options.split,
        "writer": WRITER,
        "request": REQUEST,
        "models": results,
        "expansions": {caption: expansions[caption] for caption in captions[:: max(1, len(captions) // SHOWN)][:SHOWN]},
        **provenance("benchmarks.expanded_queries", command, str(encoder.device)),
    }
    write_json(options.json, result)
    print(expansion_table(results))
    return result


if __name__ == "__main__":
    start(main)
