"""Refuses runs in which nothing would be learned: no step is made, or a batch has no negatives."""

from .arguments import MPCLIPTrainingArguments


def refuse_no_negatives(arguments: MPCLIPTrainingArguments) -> None:
    """Refuse a schedule without steps, and a batch of one.

    In a batch of one pair, the softmax loss is 0. The sigmoid loss only pulls that pair together, until all embeddings are
    equal. Gradient accumulation and more processes add no negatives.

    Raises:
        ValueError: the option, its value, and what to set.
    """
    if arguments.per_device_train_batch_size < 2:
        raise ValueError(
            f"per_device_train_batch_size={arguments.per_device_train_batch_size}: a pair is contrasted with the other pairs "
            "of its batch, and there are none. Set it to 2 or more; the larger, the better. gradient_accumulation_steps adds "
            "no negatives."
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
