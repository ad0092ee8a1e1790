"""Fine-tune the text side of systems on STS-B with several seeds, and compare them seed by seed.

    python -m benchmarks.sts configs/systems/single_prompt.yaml configs/systems/multi_prompt.yaml \\
        --setting configs/stsb_smollm2.yaml --dataset data/stsb --json docs/results/stsb_smollm2.json
    python -m benchmarks.sts configs/systems/multi_prompt.yaml --setting configs/stsb_gemma3.yaml --dataset data/stsb \\
        --json docs/results/stsb_gemma3.json

Settings, systems, cells and the JSON file are those of `python -m benchmarks.ablation`. The loss is CoSENT on the cosine of the
two sentences' embeddings. The metric is the Spearman correlation of that cosine with the scores, in percent. Of a system's
own losses, the diversity loss applies; the negation loss needs images and does not. With cached states, the frozen layers run
once. With `train_sampling_strategy: group_by_length`, batches hold little padding.
"""

from benchmarks.systems import Task, compare_systems
from mpclip.command import start

STS = Task("benchmarks.sts", "benchmarks.sts_cells", __doc__, ("spearman",))


def main(argv: list[str] | None = None) -> dict:
    """The command; returns the content of the JSON file.

    Args:
        argv: words of the command line; None takes those of the process.
    """
    return compare_systems(argv, STS)


if __name__ == "__main__":
    start(main)
