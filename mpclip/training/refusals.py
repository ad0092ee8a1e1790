"""Options of a training run that cannot work, alone or together: refused before anything is loaded."""

from .arguments import RunOptions
from .batch_size import refuse_no_negatives


def refuse_illegal(options: RunOptions, cached_images: bool) -> None:
    """Refuse options that cannot work, alone or together.

    Args:
        options: of the run.
        cached_images: whether the states of pictures are stored.

    Raises:
        ValueError: the message names the options and says what to set.
    """
    if not options.training.without_steps:
        refuse_no_negatives(options.training)
    if options.data.dataset is None:
        raise ValueError("No data set given: pass --dataset with a Hub id, a folder or a parquet file.")
    if options.training.without_steps and options.model.projection_start != "closed_form":
        raise ValueError(
            "num_train_epochs=0 trains nothing. Give a number of epochs, or solve the projections alone with "
            "--projection_start closed_form."
        )
    if options.data.video_column and options.model.projection_start == "closed_form" and options.model.clip_pooling == "mean":
        raise ValueError(
            "projection_start='closed_form' reads a clip as the tokens of all its frames, and clip_pooling='mean' takes a mean "
            "of the frames' embeddings. Use clip_pooling='tokens', or leave projection_start out."
        )
    options.model.refuse_missing_sources()
    if options.training.n_gpu > 1:
        raise ValueError(
            f"One process sees {options.training.n_gpu} GPUs, and torch would split every batch among them. Start one process "
            "per GPU with `accelerate launch train_hf.py ...`, or use one GPU with CUDA_VISIBLE_DEVICES=0."
        )
    chunked = [name for name in ("forward_chunk", "forward_chunk_tokens") if getattr(options.training, name) is not None]
    cannot = ["video_column"] if options.data.video_column else chunked
    if options.data.without_weight and cannot:
        raise ValueError(
            f"without_weight={options.data.without_weight} does not work with {cannot[0]}: its texts are made for pictures, "
            "and meet those of a whole batch. Leave one of them out."
        )
    if options.data.video_column and options.data.smallest_crop < 1:
        raise ValueError(
            f"smallest_crop={options.data.smallest_crop} draws crops of pictures, and video_column trains on clips, whose "
            "frames stay whole. Leave one of them out."
        )
    if cached_images and options.data.smallest_crop < 1:
        raise ValueError(
            f"smallest_crop={options.data.smallest_crop} draws new crops in every epoch, but cache_states stores the states of "
            "whole images. Use --vision_tuning full, --cache_states false or --smallest_crop 1."
        )
