"""Ratios of running times, measured side by side in one run on SmolLM2-135M and real captions.

    python -m benchmarks.speed --quick                                   # under a minute on two cores
    python -m benchmarks.speed --json docs/cost/speed.json --png docs/cost/speed.png
    python -m benchmarks.speed --tower gemma-2b --device cuda --batch_size 256 --compile --json docs/cost/speed_gpu.json

masked_vs_separate            K separate passes of "text + prompt" / one pass over the prompt tree
masked_vs_separate_negation   the same with the K negated prompts
masked_vs_prefix_cache        the text once, then its key-value cache expanded to K continuations / one pass
encode_vs_single_prompt       all K embeddings / sentence-transformers' encode of the same LLM with one prompt, last token
encode_vs_single_prompt_short the same with the prompts "The [APT-i]:" against one of that length
cached_vs_live_step           text side of a training step from the caption / from cached states
peak_share                    share of the machine's best matrix product that one pass reaches

The first three compute the same hidden states, which is checked before they are timed. Every contender runs in the same dtype,
each with the attention implementation that is fastest for it; batches are padded to their longest text, alike for all. Slow and
fast take turns. The median of the ratios of neighbours is reported, from ten rounds on with its quartiles. Without --quick,
sweeps over K, text length and batch size follow.
"""

import argparse
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from benchmarks.contenders import REAL, SHAPES, Contenders, K
from benchmarks.record import provenance
from benchmarks.timing import Clock, with_quartiles
from eval.tables import markdown_table
from modeling_mpclip import MPCLIPModel, MPCLIPProcessor
from mpclip.data.backbones import prepare_backbone
from mpclip.data.image_text import load_image_text
from mpclip.data.openmoji.scenes import generate_scenes
from mpclip.files import write_json
from mpclip.training.samplers import LengthSampler
from mpclip.training.state_cache import cache_text_states

FLICKR8K = Path("data/flickr8k"), Path("../shared/data/flickr8k")  # used when it is there
# As in configs/flickr8k_smollm2.yaml: six prompts of 13 columns, where the paper's take 37.
SHORT_TEMPLATES = [f"The [APT-{i}]:" for i in range(1, K + 1)]


def captions(data: str | None, count: int = 2048) -> tuple[list[str], str]:
    """One caption of each of the first pictures, in random order, and the name of the data."""
    if data is None:
        data = next((str(folder) for folder in FLICKR8K if folder.exists()), None)
    if data is None:
        rows, data = [scene.captions for scene in generate_scenes({"train": count})], "OpenMoji scenes"
    else:
        rows = load_image_text(data, "train", limit=count).with_format(None)["captions"]
    texts = [row[i % len(row)] for i, row in enumerate(rows)]
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(0)).tolist()
    return [texts[i] for i in order], data


# Measurements -----------------------------------------------------------------------------------------------------


@torch.inference_mode()
def passes(bench: Contenders, clock: Clock, texts: list[str], size: int, names: tuple[str, ...]) -> dict:
    """The three ratios of hidden states, and which attention implementation each contender used."""
    ids, mask = bench.batch(texts[:size])
    tree, both = bench.tree(), bench.tree(negated=True)
    few = ids[: max(size // 4, 1)], mask[: max(size // 4, 1)]
    expected = bench.separate(*few, both)
    _check_same(bench.masked(*few, both), expected)
    _check_same(bench.prefix_cached(*few, tree), expected[:, :K])
    used = {
        "masked": clock.best_implementation(bench.prompted, lambda: bench.masked(*few, tree), names),
        "plain": clock.best_implementation(bench.plain, lambda: bench.separate(*few, tree), names),
    }
    one_pass = lambda: bench.masked(ids, mask, tree)  # noqa: E731
    return {
        "implementations": used,
        "padded_text_tokens": ids.shape[1],
        "mean_text_tokens": float(mask.sum() / len(mask)),
        "masked_vs_separate": clock.ratio(lambda: bench.separate(ids, mask, tree), one_pass),
        "masked_vs_separate_negation": clock.ratio(
            lambda: bench.separate(ids, mask, both), lambda: bench.masked(ids, mask, both)
        ),
        "masked_vs_prefix_cache": clock.ratio(lambda: bench.prefix_cached(ids, mask, tree), one_pass),
    }


def _check_same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    cosine = torch.nn.functional.cosine_similarity(ours.float(), theirs.float(), dim=-1)
    if cosine.min() < 0.99:
        raise RuntimeError(f"The contenders disagree: cosine {cosine.min():.3f}. Their times cannot be compared.")


# Our templates (None: the paper's), and a prompt for the plain model with as many tokens as one of them.
WORDINGS = {
    "encode_vs_single_prompt": (None, " The aspect of this image means:"),
    "encode_vs_single_prompt_short": (SHORT_TEMPLATES, " The aspect:"),
}


def encode(bench: Contenders, clock: Clock, texts: list[str], folder: Path, wordings: dict) -> dict:
    """All K embeddings against one, both through sentence-transformers with its defaults, for each of some `WORDINGS`."""
    kwargs = {"dtype": bench.dtype, "attn_implementation": bench.plain.config._attn_implementation}
    # Texts as they are: by itself it would wrap them in this chat model's dialogue, twice as many tokens again.
    plain_text = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}
    transformer = Transformer(
        str(prepare_backbone(REAL)), model_kwargs=kwargs, modality_config=plain_text, module_output_name="token_embeddings"
    )
    transformer.tokenizer.pad_token = transformer.tokenizer.pad_token or transformer.tokenizer.eos_token
    single = SentenceTransformer(
        modules=[transformer, Pooling(transformer.get_embedding_dimension(), "lasttoken")], device=bench.device
    )
    kwargs["attn_implementation"] = {"text_config": bench.prompted.config._attn_implementation}
    ratios = {}
    for name, (templates, prompt) in wordings.items():
        for part in retrieval_model(templates):
            part.save_pretrained(folder / name)
        ours = SentenceTransformer(
            str(folder / name), trust_remote_code=True, device=bench.device, model_kwargs={**kwargs, "dtype": bench.dtype}
        )
        prompted = [text + prompt for text in texts]
        ratios[name] = clock.ratio(partial(ours.encode, texts), partial(single.encode, prompted))
    return ratios


def retrieval_model(templates: list[str] | None = None) -> tuple[MPCLIPModel, MPCLIPProcessor]:
    """The real LLM as a model of K prompts (the paper's by default), its projections drawn at random, and its processor."""
    towers = str(prepare_backbone(REAL)), str(prepare_backbone("efficientnet-lite0"))
    model = MPCLIPModel.from_pretrained_towers(
        *towers, num_prompts=K, templates=templates, projection_dim=768, adaptive_tokens="boundary", boundary_layer=29
    )
    config = model.config
    return model, MPCLIPProcessor.from_pretrained_towers(*towers, [*config.templates, *config.negated_templates])


def padding_share(bench: Contenders, texts: list[str], size: int = 128) -> dict:
    """Share of the text-side tokens of training batches that are padding, in random order and grouped by length."""
    lengths = [len(ids) for ids in bench.tokenizer(texts)["input_ids"]]
    prompts, shares = len(bench.tree()), {}
    by_length = LengthSampler(lambda: list(map(len, texts)), size, seed=0, epoch=lambda: 0)
    for name, order in (("random", range(len(texts))), ("by_length", list(by_length))):
        order = [lengths[i] for i in order][: len(texts) // size * size]
        padded = sum(size * (max(order[i : i + size]) + prompts) for i in range(0, len(order), size))
        shares[name] = 1 - (sum(order) + prompts * len(order)) / padded
    return shares


def training_step(bench: Contenders, clock: Clock, texts: list[str], size: int, folder: Path) -> dict:
    """From captions to updated weights of the text side, layers below the last one frozen; autocast."""
    model, processor = retrieval_model()
    model.requires_grad_(False)
    trained = [*model.text_model.layers[-1].parameters(), *model.text_model.norm.parameters(), model.text_projection.weight]
    trained.append(model.text_model.boundary_embedding.weight)
    for parameter in trained:
        parameter.requires_grad_(True)
    model.to(bench.device).train()
    texts = texts[:size]
    states = cache_text_states(model, processor.tokenizer, texts, folder / "cache", device=bench.device)
    optimizer = torch.optim.AdamW(trained, lr=1e-5)
    direction = torch.randn(768, device=bench.device)

    def step(inputs: dict) -> None:
        inputs = {name: value.to(bench.device) for name, value in inputs.items()}
        with torch.autocast(bench.device.split(":")[0], bench.dtype, enabled=bench.dtype != torch.float32):
            embeds = model.get_text_features(**inputs).pooler_output  # (B, D)
        torch.nn.functional.normalize(embeds.float(), dim=-1).matmul(direction).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    live = lambda: step(processor(text=texts, truncation=True))  # noqa: E731
    return clock.ratio(live, lambda: step(states.batch(texts)))


@torch.inference_mode()
def peak_share(bench: Contenders, clock: Clock, texts: list[str], size: int) -> dict:
    """Tokens and operations per second of one pass against the best matrix product."""
    ids, mask = bench.batch(sorted(texts, key=len)[len(texts) // 2 :][:size])  # of about one length: padding would flatter
    tree = bench.tree()
    run = lambda: bench.masked(ids, mask, tree)  # noqa: E731
    with FlopCounterMode(display=False) as counter:
        run()
    peak, times = clock.matmul_peak(bench.dtype), []
    end = time.monotonic() + clock.seconds
    while len(times) < 2 or time.monotonic() < end:
        times.append(clock.time(run))
    peak = max(peak, clock.matmul_peak(bench.dtype))  # the machine may have been busier before
    rate = counter.get_total_flops() / statistics.median(times)
    tokens = ids.shape[0] * (ids.shape[1] + len(tree))
    return {"share": rate / peak, "tokens_per_second": tokens / statistics.median(times), "flops": rate, "peak_flops": peak}


@torch.inference_mode()
def sweep(bench: Contenders, clock: Clock, size: int) -> list[dict]:
    """Milliseconds per batch of one pass, separate passes and prefix caching over K, text length and batch size."""
    cells = [("K", k, k, 16, size) for k in (1, 2, 4, 8, 16)]
    cells += [("text tokens", n, K, n, size) for n in (8, 32, 64, 128, 256)]
    cells += [("batch size", b, K, 16, b) for b in (1, 4, 8, 16, 32)]
    rows = []
    for axis, value, num_prompts, length, batch_size in tqdm(cells, desc="sweeps", disable=None):
        tree = bench.tree(num_prompts)
        ids = torch.randint(100, 10000, (batch_size, length), device=bench.device)
        mask = torch.ones_like(ids)
        row = {"axis": axis, "value": value, "tokens": length + len(tree), "separate_tokens": num_prompts * (length + 7)}
        for name in ("masked", "separate", "prefix_cached"):
            call = partial(getattr(bench, name), ids, mask, tree)
            call()
            row[f"{name}_ms"] = 1e3 * statistics.median(clock.time(call) for _ in range(2))
        rows.append(row)
    return rows


def plot(rows: list[dict], path: str | Path) -> None:
    """Three panels, one for each axis; dashed is what the token count of the tree predicts from the middle of the sweep."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 3, figsize=(12, 3.8), constrained_layout=True)
    names = {"separate": "K separate passes", "prefix_cached": "prefix cache, K continuations", "masked": "one masked pass"}
    colors = {"separate": "#c44e52", "prefix_cached": "#dd8452", "masked": "#2a6f97"}
    for panel, axis in zip(panels, ("K", "text tokens", "batch size"), strict=True):
        part = [row for row in rows if row["axis"] == axis]
        values = [row["value"] for row in part]
        for name, label in names.items():
            panel.plot(values, [row[f"{name}_ms"] for row in part], "o-", color=colors[name], label=label, markersize=4)
        middle = part[len(part) // 2]
        work = [row["tokens"] * (row["value"] if axis == "batch size" else 1) for row in part]
        unit = middle["masked_ms"] / work[len(part) // 2]
        panel.plot(values, [unit * w for w in work], "--", color="gray", label="proportional to the tree's tokens", zorder=0)
        panel.set(xlabel={"K": "prompts K", "text tokens": "tokens of the text", "batch size": "texts in a batch"}[axis])
        panel.set_ylim(bottom=0)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("milliseconds per batch")
    panels[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def peak_shares(
    bench: Contenders, clock: Clock, texts: list[str], size: int, names: tuple[str, ...], compiled: bool
) -> list[dict]:
    """`peak_share` under each attention implementation, plain and compiled."""
    rows, plain_forward = [], bench.prompted.forward
    for name in names:
        bench.prompted.set_attn_implementation(name)
        for compile in (False, True) if compiled else (False,):
            bench.prompted.forward = torch.compile(plain_forward) if compile else plain_forward
            rows.append({"attention": name, "compiled": compile, **peak_share(bench, clock, texts, size)})
            print(f"{name}{' compiled' if compile else ''}: {rows[-1]['share']:.0%} of the peak", flush=True)
    bench.prompted.forward = plain_forward
    return rows


# Command ----------------------------------------------------------------------------------------------------------

RATIOS = ("masked_vs_separate", "masked_vs_separate_negation", "masked_vs_prefix_cache")


def measure(bench: Contenders, options: argparse.Namespace) -> dict:
    quick = options.quick
    seconds, size = (0.5, 6) if quick else (options.seconds, options.batch_size)
    clock = Clock(options.device, seconds)
    texts, data = captions(options.data, 256 if quick else 2048)
    names = tuple(options.attention or (("sdpa", "eager") if options.device == "cpu" else ("sdpa",)))
    result = {"tower": options.tower, "dtype": options.dtype, "batch_size": size, "data": data, "quick": options.quick}

    detail = passes(bench, clock, texts, size, names[:2])
    _show({name: detail[name]["ratio"] for name in RATIOS})
    if options.tower == REAL:
        with tempfile.TemporaryDirectory() as folder:
            wordings = dict(list(WORDINGS.items())[:1]) if quick else WORDINGS
            encoded = encode(bench, clock, texts[: (4 if quick else 8) * size], Path(folder), wordings)
            _show({name: value["ratio"] for name, value in encoded.items()})
            detail |= encoded
            detail["cached_vs_live_step"] = training_step(bench, clock, texts, 2 * size, Path(folder))
            _show({"cached_vs_live_step": detail["cached_vs_live_step"]["ratio"]})
    tried = (detail["implementations"]["masked"],) if quick else names
    shares = peak_shares(bench, clock, texts, 4 * size, tried, options.compile)
    best = max(shares, key=lambda row: row["share"])
    result |= {name: value["ratio"] for name, value in detail.items() if isinstance(value, dict) and "ratio" in value}
    result |= {"peak_share": best["share"], "tokens_per_second": best["tokens_per_second"]}
    result |= {"detail": detail, "peak_shares": shares, "padding": padding_share(bench, texts)}
    return result


def _show(values: dict[str, float]) -> None:
    for name, value in values.items():
        print(f"{name:<30}{value:6.2f}", flush=True)


# What each ratio divides: numerator and denominator.
COMPARED = {
    "masked_vs_separate": ("K separate passes", "one masked pass"),
    "masked_vs_separate_negation": ("2 K separate passes, with the negated prompts", "one masked pass with them"),
    "masked_vs_prefix_cache": ("the text once, then K continuations of its cache", "one masked pass"),
    "encode_vs_single_prompt": ("encode with all K prompts", "encode with one prompt"),
    "encode_vs_single_prompt_short": ("the same with short prompts", "encode with one short prompt"),
    "cached_vs_live_step": ("training step from captions", "training step from cached states"),
}


def table(result: dict) -> str:
    """Markdown: median ratios; milliseconds of the denominator alone, since those of both contradict a median of ratios."""
    timed = {name: result["detail"][name] for name in COMPARED if name in result["detail"]}
    head = ["ratio", "numerator", "denominator", "median ratio", "denominator, ms", "rounds"]
    rows = [[name, *COMPARED[name], one["ratio"], one["fast_ms"], one["rounds"]] for name, one in timed.items()]
    return markdown_table(*with_quartiles(head, rows, list(timed.values())))


def sentences(result: dict) -> str:
    """How near one pass comes to the machine's best matrix product, and what grouping by length saves."""
    lines = []
    for row in result["peak_shares"]:
        how = f"{row['attention']}{', compiled' if row['compiled'] else ''}"
        lines.append(
            f"* {how}: {row['tokens_per_second']:,.0f} tokens/s and {row['flops'] / 1e9:,.0f} GFLOPS. That is "
            f"{row['share']:.0%} of the machine's best matrix product ({row['peak_flops'] / 1e9:,.0f} GFLOPS)."
        )
    padding = (
        f"A training batch of 128 captions and their prompts is {result['padding']['random']:.0%} padding in random order, and "
        f"{result['padding']['by_length']:.0%} when captions are grouped by length."
    )
    return f"One masked pass in {result['dtype']}, by attention implementation:\n\n" + "\n".join(lines) + f"\n\n{padding}"


def main(argv: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small batches, few rounds, no sweeps")
    parser.add_argument("--json", metavar="OUT.json", help="where to write the result")
    parser.add_argument("--png", metavar="OUT.png", help="where to draw the sweeps")
    parser.add_argument("--data", help="captions of this data set (default: Flickr8k if it is in data/, else the demo's)")
    parser.add_argument("--tower", default=REAL, choices=(REAL, *SHAPES), help="real, or a random shape")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(%(default)s)")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"), help="(%(default)s)")
    parser.add_argument("--seconds", type=float, default=30.0, help="for each ratio, two rounds at least (%(default)s)")
    parser.add_argument("--batch_size", type=int, default=32, help="texts in a pass (%(default)s)")
    parser.add_argument(
        "--attention",
        nargs="+",
        choices=("sdpa", "eager", "flex_attention"),
        help="implementations to try (default: sdpa, eager)",
    )
    parser.add_argument("--compile", action="store_true", help="measure the share of the peak under torch.compile too")
    options = parser.parse_args(argv)
    transformers.logging.set_verbosity_error()  # new adaptive tokens are reported missing
    given = sys.argv[1:] if argv is None else argv
    bench = Contenders(options.tower, options.device, getattr(torch, options.dtype))
    result = {**measure(bench, options), **provenance("benchmarks.speed", given, options.device)}
    print(f"\n{table(result)}\n\n{sentences(result)}")
    if options.json:
        write_json(options.json, result)
    if not options.quick:
        result["sweeps"] = sweep(bench, Clock(options.device, 0), max(options.batch_size // 4, 1))
        if options.json:
            write_json(options.json, result)
        if options.png:
            plot(result["sweeps"], options.png)
    return result


if __name__ == "__main__":
    main()
