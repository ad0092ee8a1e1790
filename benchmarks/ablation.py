"""Train retrieval systems with several seeds, compare them seed by seed, and write the result as JSON.

    python -m benchmarks.ablation configs/systems/*.yaml --setting configs/flickr8k_smollm2.yaml --dataset data/flickr8k \\
        --splits "validation[:50%]" "validation[50%:]" --json docs/results/flickr8k_systems.json
    python -m benchmarks.ablation configs/systems/mean_pooling.yaml configs/systems/multi_prompt.yaml --seeds 5 \\
        --setting configs/flickr8k_smollm2.yaml --dataset data/flickr8k --json docs/results/two_systems.json

    setting   a recipe of train_hf.py that all systems share: towers, data, schedule
    system    a recipe with the options in which a system differs from the setting; its file name is its name
    cell      one system trained with one seed

Any further option of train_hf.py applies to all cells. The cells share the cached states of the frozen towers. No checkpoint is
chosen by its score: every run ends at the end of its schedule, and the final model is measured on each of `--splits`.

Each cell is written to the JSON file when it is finished. The same command, started again, trains the missing cells only; it
may also add systems or seeds. If the file has cells of a system that were trained with other options, the command names these
options and stops.

The JSON file holds

    rows         the metrics of a cell on a split
    summary      mean and standard deviation over seeds, for each system and split
    comparisons  paired differences to each baseline, and those that the paper reports: the mean and, from three seeds on, its
                 95% interval (Student's t)
    options      the options of each system that shape its weights
    overrides    those of them that differ from the setting
    commands     every command that added to the file; `command` is the last one

With several splits, the split "all" is the mean over them. A plot of the same name is written beside the file.
"""

from benchmarks.systems import Task, compare_systems
from mpclip.command import start

RETRIEVAL = Task("benchmarks.ablation", "benchmarks.retrieval_cells", __doc__, ("mean_recall", "t2i_R@1", "i2t_R@1"))


def main(argv: list[str] | None = None) -> dict:
    """The command.

    Args:
        argv: words of the command line; None takes those of the process.

    Returns:
        The content of the JSON file.
    """
    return compare_systems(argv, RETRIEVAL)


if __name__ == "__main__":
    start(main)
