"""Where the time of a training step goes, and what changes it: batch, loader's workers, precision, torch.compile.

    python -m benchmarks.steps --json docs/cost/steps.json
    python -m benchmarks.steps --steps 2 --batches 64 --workers 0 --precisions float32 --parts throughput

throughput   pairs per second by batch, workers and precision, and processor milliseconds per pair
profile      the same step by torch.profiler: the share of each part of the model, and the slowest operations
compile      a step of a model by torch.compile against one of the plain model, in turns; their losses; the time to compile

Each part has a record of its own: a command that measures some parts replaces those in the JSON and keeps the others.

The towers are the packaged ones, with six prompts, and the LLM's last layer is trained, as in configs/flickr8k_smollm2.yaml.
The states are made up and stored in bfloat16. The wall clock counts what else the machine does; processor time hardly does.
"""

import os
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from benchmarks.memory import fill_stores, states_in, step_model
from benchmarks.record import command_parser, provenance
from eval.tables import markdown_table
from mpclip.command import start
from mpclip.files import read_json, write_json

PARTS = ("throughput", "profile", "compile")
# What a profile tells -> the module that it is the forward pass of, by the name of its attribute.
MODULES = {
    "last layer of the LLM, forward": "text_model",
    "projection of texts, forward": "text_projection",
    "attention pooling of pictures, forward": "image_pooling",
    "projection of pictures, forward": "image_projection",
}
WORTH_IT = 1.1  # torch.compile is advised if a step is so many times faster


class Step:
    """A training step on cached states; calling it with a batch makes one and returns the loss.

    Args:
        folder: from `fill_stores`.
        batch: pairs.
        precision: name of the dtype that is computed in.
        compiled: whether the model runs by torch.compile.
    """

    def __init__(self, folder: Path, batch: int, precision: str, compiled: bool = False):
        import torch

        torch.manual_seed(0)
        self.model, self.batch, self.states = step_model(), batch, states_in(folder)
        self.forward = torch.compile(self.model) if compiled else self.model
        self.autocast = torch.autocast("cpu", getattr(torch, precision), enabled=precision != "float32")
        self.optimizer = torch.optim.AdamW((weight for weight in self.model.parameters() if weight.requires_grad), lr=1e-4)

    def collate(self, rows: list[int]) -> dict:
        """The inputs of some rows of the store."""
        import torch

        return self.states.read({name: torch.tensor(rows) for name in ("text_row", "image_row")})

    def __call__(self, inputs: dict) -> float:
        from torch.nn.utils import clip_grad_norm_
        from torch.profiler import record_function

        from mpclip.training.tiled_loss import loss_of_pairs

        with self.autocast:
            outputs = self.forward(**inputs)
            with record_function("the loss, forward"):
                loss = loss_of_pairs(outputs, self.model.config, self.model.logit_scale)["loss"]
        with record_function("backward pass"):
            loss.backward()
        with record_function("the optimizer"):
            clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
        return loss.item()


def throughput(step: Step, workers: int, steps: int) -> dict:
    """Time `steps` steps, after one that is not timed.

    Returns:
        `pairs_per_second` by the wall clock; `cpu_ms_per_pair`, processor time of this process alone; `waiting_share`, the
        share of the wall clock in which the step waited for its batch.
    """
    from torch.utils.data import DataLoader

    rows = [i % len(step.states.text_of) for i in range(step.batch * (steps + 1))]
    batches = iter(DataLoader(rows, step.batch, collate_fn=step.collate, num_workers=workers))
    step(next(batches))
    began, used, waited = time.perf_counter(), time.process_time(), 0.0
    for _ in range(steps):
        asked = time.perf_counter()
        inputs = next(batches)
        waited += time.perf_counter() - asked
        step(inputs)
    seconds, pairs = time.perf_counter() - began, step.batch * steps
    return {
        "pairs_per_second": pairs / seconds,
        "cpu_ms_per_pair": 1e3 * (time.process_time() - used) / pairs,
        "waiting_share": waited / seconds,
    }


def profile(step: Step) -> dict:
    """Profile a step, after one that is not profiled.

    Returns:
        `parts`: `part` and `share` of the processor time, and `operations`: `operation`, `calls` and `share`, the slowest
        first.
    """
    from torch.profiler import ProfilerActivity, record_function
    from torch.profiler import profile as profiled

    rows = list(range(step.batch))
    step(step.collate(rows))
    with ExitStack() as hooks, profiled(activities=[ProfilerActivity.CPU]) as found:
        for part, name in MODULES.items():
            _mark(getattr(step.model, name), part, hooks)
        with record_function("reading the states"):
            inputs = step.collate(rows)
        step(inputs)
    events = found.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    time_of = {event.key: event.cpu_time_total for event in events}
    names = ("reading the states", *MODULES, "the loss, forward", "backward pass", "the optimizer")
    parts = [{"part": name, "share": time_of.get(name, 0.0) / total} for name in names]
    parts.append({"part": "all else", "share": 1 - sum(row["share"] for row in parts)})
    slowest = sorted(events, key=lambda event: -event.self_cpu_time_total)
    operations = [
        {"operation": event.key, "calls": event.count, "share": event.self_cpu_time_total / total}
        for event in slowest
        if event.key.startswith("aten::")
    ]
    return {"parts": parts, "operations": operations[:8]}


def _mark(module, part: str, hooks: ExitStack) -> None:
    """Let a profile tell a module's forward pass by the name `part`, until the hooks are closed."""
    from torch.profiler import record_function

    running = []

    def begin(*_) -> None:
        running.append(record_function(part))
        running[-1].__enter__()

    hooks.callback(module.register_forward_pre_hook(begin).remove)
    hooks.callback(module.register_forward_hook(lambda *_: running.pop().__exit__(None, None, None)).remove)


def processor_seconds() -> float:
    """Those of this process and of its children that have ended, such as compilers."""
    return time.process_time() + sum(os.times()[2:4])


def compiled_or_not(folder: Path, batch: int, precision: str, steps: int) -> dict:
    """Compare steps with and without torch.compile, from the same weights on the same batches, in turns.

    Returns:
        `ratio` of processor times, plain / compiled, as a median over steps; `plain_ms` and `compiled_ms` per step;
        `compiling_s`, the first step's processor time; `loss_difference`, the largest; and `worth_it`.
    """
    import statistics

    plain, compiled = (Step(folder, batch, precision, by_compiler) for by_compiler in (False, True))
    times: dict[Step, list[float]] = {plain: [], compiled: []}
    losses: dict[Step, list[float]] = {plain: [], compiled: []}
    for i in range(steps + 2):
        rows = [(i * batch + j) % len(plain.states.text_of) for j in range(batch)]
        inputs = plain.collate(rows)
        for step in (plain, compiled):
            began = processor_seconds()
            losses[step].append(step(inputs))
            times[step].append(processor_seconds() - began)
    ratios = [a / b for a, b in zip(times[plain][2:], times[compiled][2:], strict=True)]
    return {
        "batch": batch,
        "precision": precision,
        "ratio": statistics.median(ratios),
        "plain_ms": 1e3 * statistics.median(times[plain][2:]),
        "compiled_ms": 1e3 * statistics.median(times[compiled][2:]),
        "compiling_s": times[compiled][0],
        "loss_difference": max(abs(a - b) for a, b in zip(losses[plain], losses[compiled], strict=True)),
        "worth_it": statistics.median(ratios) >= WORTH_IT,
    }


def tables(result: dict) -> str:
    """All parts in Markdown."""
    blocks = []
    if rows := result.get("throughput"):
        head = ["pairs", "workers", "precision", "pairs/s", "processor ms per pair", "waiting for data"]
        cells = [
            [
                *(row[name] for name in ("batch", "workers", "precision")),
                *(f"{row[name]:.1f}" for name in ("pairs_per_second", "cpu_ms_per_pair")),
                f"{row['waiting_share']:.0%}",
            ]
            for row in rows
        ]
        blocks.append(markdown_table(head, cells))
    if found := result.get("profile"):
        cells = [[row["part"], f"{row['share']:.0%}"] for row in found["parts"]]
        told = ", ".join(f"{row['operation']} {row['share']:.0%}" for row in found["operations"])
        blocks.append(f"{markdown_table(['part of a step', 'processor time'], cells)}\n\nThe slowest operations: {told}.")
    if found := result.get("compile"):
        blocks.append(
            f"torch.compile: a step of {found['batch']} pairs in {found['precision']} takes {found['plain_ms']:,.0f} ms of "
            f"processor time without it and {found['compiled_ms']:,.0f} with it ({found['ratio']:.2f} times as fast), after "
            f"{found['compiling_s']:,.0f} s of compiling. The losses differ by {found['loss_difference']:.1g} at most. "
            f"{'It pays off in long runs.' if found['worth_it'] else 'It does not pay off here.'}"
        )
    return "\n\n".join(blocks)


def merged(before: dict, now: dict) -> dict:
    """A result with the parts that were measured now in place of those of before, each with its own record.

    Args:
        before: the content of the JSON; empty if there was none.
        now: parts by name, and `records`: part -> its `command`, `date` and `machine`.
    """
    records = before.get("records", {}) | now["records"]
    return {part: (now if part in now else before)[part] for part in PARTS if part in records} | {"records": records}


def main(argv: list[str] | None = None) -> dict:
    """The command; returns what it measured."""
    argv = sys.argv[1:] if argv is None else argv
    parser = command_parser("benchmarks.steps", __doc__)
    parser.add_argument("--steps", type=int, default=3, help="timed steps of each measurement (default: %(default)s)")
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 256], help="pairs per step (default: 64 256)")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1], help="workers of the loader (default: 0 1)")
    parser.add_argument("--precisions", nargs="+", default=["float32", "bfloat16"], help="(default: float32 bfloat16)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what is measured (default: all)")
    parser.add_argument("--json", metavar="OUT.json", help="where to write the result")
    options = parser.parse_args(argv)
    result: dict = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fill_stores(folder, 2 * max(options.batches))
        if "throughput" in options.parts:
            result["throughput"] = [
                {"batch": batch, "workers": workers, "precision": precision}
                | throughput(Step(folder, batch, precision), workers, options.steps)
                for precision in options.precisions
                for batch in options.batches
                for workers in options.workers
            ]
        if "profile" in options.parts:
            result["profile"] = profile(Step(folder, options.batches[-1], options.precisions[0]))
        if "compile" in options.parts:
            result["compile"] = compiled_or_not(folder, options.batches[0], options.precisions[0], options.steps)
    record = provenance("benchmarks.steps", argv)
    result |= {"records": dict.fromkeys(result, record)}
    if options.json:
        result = merged(read_json(options.json), result)
        write_json(options.json, result)
    print(tables(result))
    return result


if __name__ == "__main__":
    start(main)
