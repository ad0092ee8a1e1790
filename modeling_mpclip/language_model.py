"""Loads the text tower from checkpoints that hold its weights under other names: vision-language models, experts one by one."""

from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

# Where vision-language checkpoints, old and new, hold their language model: "language_model.model.", "model.text_model.", ...
LANGUAGE_MODEL_PREFIX = {r"^(model\.)?(language_model|text_model)\.(model\.)?": ""}


def load_from_whole_model(
    tower_class: type[PreTrainedModel], source: str, config: PreTrainedConfig, own: dict, kwargs: dict
) -> tuple[PreTrainedModel, list[str]] | None:
    """Load a checkpoint by transformers' own class, and make a text tower of the decoder in it.

    transformers converts the weights of old checkpoints for its own classes only: it joins experts that were saved one by one.

    Args:
        tower_class: class of the text tower.
        source: folder or Hub id of the checkpoint.
        config: of the decoder.
        own: arguments of the tower besides its config.
        kwargs: of `from_pretrained`.

    Returns:
        The tower, and the names of the decoder's weights that the checkpoint lacks. None: it has no such decoder.
    """
    whole, info = AutoModel.from_pretrained(source, output_loading_info=True, **kwargs)
    decoder_class = tower_class.__bases__[1]
    found = ((name, module) for name, module in whole.named_modules() if type(module) is decoder_class)
    name, decoder = next(found, (None, None))
    if decoder is None:
        return None
    prefix = f"{name}." if name else ""
    missing = [key.removeprefix(prefix) for key in info["missing_keys"] if key.startswith(prefix)]
    tower = tower_class.from_pretrained(None, config=config, state_dict=decoder.state_dict(), **own, **kwargs)
    return tower, missing
