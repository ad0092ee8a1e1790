"""Refuses runs in which nothing would be learned: no step is made, or a batch has no negatives."""

from .arguments import MPCLIPTrainingArguments


def refuse_no_negatives(arguments: MPCLIPTrainingArguments) -> None:
    """Refuse a schedule without steps, and a batch of one.

    In a batch of one pair, the softmax loss is 0. The sigmoid loss only pulls that pair together, until all embeddings are
    equal. Gradient accumulation adds no negatives.

    Raises:
        ValueError: the option, its value, and what to set. Also for several processes whose last batches would differ in size.
    """
    if arguments.per_device_train_batch_size < 2:
        raise ValueError(
            f"per_device_train_batch_size={arguments.per_device_train_batch_size}: a pair is contrasted with the other pairs "
            "of its batch, and there are none. Set it to 2 or more; the larger, the better. gradient_accumulation_steps adds "
            "no negatives."
        )
    if arguments.world_size > 1 and not (arguments.dataloader_drop_last or arguments.accelerator_config.even_batches):
        raise ValueError(
            "dataloader_drop_last=False and even_batches=False in accelerator_config: some processes would have a short last "
            "batch or none, but all contrast their batches with one another. Leave dataloader_drop_last true."
        )
    if arguments.max_steps == 0:
        raise ValueError("max_steps=0: no step would be made. Set it above 0, or leave it out.")


def refuse_few_examples(count: int, arguments: MPCLIPTrainingArguments, what: str = "examples") -> None:
    """Refuse a training set that does not fill one batch of each process, or whose last batch would be a single pair.

    Args:
        count: number of training examples, without those that were skipped.
        arguments: of the run.
        what: the examples in words, for the message.

    Raises:
        ValueError: both numbers, and the option to set.
    """
    size, processes = arguments.per_device_train_batch_size, arguments.world_size
    needed = size * processes if arguments.dataloader_drop_last else 2 * processes
    if count >= needed:
        if processes == 1 and not arguments.dataloader_drop_last and count % size == 1:
            raise ValueError(
                f"There are {count} {what}; in batches of {size} the last one has a single pair and no negatives. Leave "
                "dataloader_drop_last true, or set another --per_device_train_batch_size."
            )
        return
    batch = f"a batch of {size}" + (f" for each of {processes} processes, {size * processes} in all" if processes > 1 else "")
    possible = count // processes
    advice = f"Set --per_device_train_batch_size to {possible} or less" if possible > 1 else "Give more pictures"
    raise ValueError(f"There are {count} {what}, fewer than {batch}, so no step could be made. {advice}.")


def pairs_per_process(arguments: MPCLIPTrainingArguments) -> int:
    """Pairs per step in each process."""
    split = arguments.accelerator_config.split_batches
    return arguments.train_batch_size // (arguments.world_size if split else 1)


def batch_told(count: int, arguments: MPCLIPTrainingArguments) -> str:
    """How the processes of a job share an epoch, as a sentence.

    Args:
        count: number of training examples.
        arguments: of the run.
    """
    processes = arguments.world_size
    together = pairs_per_process(arguments) * processes
    rest = count % together
    if not rest:
        what = "no example is left out of an epoch"
    elif arguments.dataloader_drop_last:
        what = f"{rest} of {count} examples are left out of each epoch, drawn anew"
    else:
        what = f"{together - rest} examples are taken twice per epoch to fill the last batch"
    return f"{processes} processes contrast {together} pairs per step with one another; {what}"
