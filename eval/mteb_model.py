"""A checkpoint in a folder as a model of mteb, for text and picture tasks.

    import mteb
    from eval.mteb_model import mteb_model

    results = mteb.evaluate(mteb_model("runs/demo/multi_prompt"), mteb.get_tasks(["Flickr30kT2IRetrieval", "STSBenchmark"]))

For a checkpoint on the Hub there is also `mteb.get_model("you/model", trust_remote_code=True)`; it asks for torchvision, which
ours does not use. But it loads no folder, and `mteb.evaluate` takes every `SentenceTransformer` for a model of texts alone.
`mteb_model` returns mteb's own wrapper, with the metadata that mteb would read on the Hub.
"""

from pathlib import Path
from typing import TYPE_CHECKING, get_args

from huggingface_hub import ModelCard, ModelCardData, try_to_load_from_cache

from modeling_mpclip.source_names import refuse_missing_folder
from mpclip.encoding.fingerprint import model_fingerprint

if TYPE_CHECKING:
    from mteb.models import SentenceTransformerEncoderWrapper
    from sentence_transformers import SentenceTransformer


def mteb_model(model: "str | Path | SentenceTransformer", **loading) -> "SentenceTransformerEncoderWrapper":
    """A model for `mteb.evaluate` (ours).

    Args:
        model: folder or Hub id of a checkpoint, ours or another of sentence-transformers; or one that is loaded already. The
            Python files of a checkpoint are run (trust_remote_code=True): give only checkpoints that you trust.
        loading: arguments of `SentenceTransformer`, such as `device`.

    Returns:
        mteb's wrapper, with its `mteb_model_meta`:
            name, revision: the Hub id and the commit. For a folder "local/" and its name, and the hash of weights and config.
                mteb keeps results under both, and so never gives those of other weights.
            modalities, embed_dim, max_tokens, similarity_fn_name, n_parameters and the like: of the model.
            license, languages, adapted_from: of its card; None if it does not say, or if mteb does not know the licence.

    Raises:
        ImportError: mteb is not installed.
        OSError: there is no such folder or Hub id.
    """
    try:
        from mteb.models import SentenceTransformerEncoderWrapper
    except ImportError as error:
        raise ImportError("This needs mteb 2.26 or later: pip install 'mteb>=2.26'.") from error
    from sentence_transformers import SentenceTransformer

    if isinstance(model, SentenceTransformer):
        source = model.transformers_model.name_or_path
    else:
        source = str(model)
        refuse_missing_folder(source)
        model = SentenceTransformer(source, trust_remote_code=True, **loading)
    wrapper = SentenceTransformerEncoderWrapper(model)
    wrapper.mteb_model_meta = wrapper.mteb_model_meta.model_copy(update=_known(model, source))
    return wrapper


def _known(model: "SentenceTransformer", source: str) -> dict:
    """Fields of mteb's `ModelMeta` that the model, its folder or repository and its card tell.

    Args:
        model: the model.
        source: the folder or Hub id that it comes from.
    """
    from mteb.languages.iso_mappings import _hf_langs_to_iso_lang_scripts
    from mteb.types import Licenses, Modalities

    local = Path(source).is_dir()
    card_file = Path(source, "README.md") if local else try_to_load_from_cache(source, "README.md")
    read = isinstance(card_file, str | Path) and Path(card_file).is_file()
    card = ModelCard.load(card_file, ignore_metadata_errors=True).data if read else ModelCardData()
    weights = list(model.parameters())
    inner = model.transformers_model
    is_ours = inner is not None and inner.config.model_type == "mpclip"
    known = {
        "name": f"local/{Path(source).resolve().name}" if local else source,
        "revision": model_fingerprint(source, model) if local else None,
        "modalities": [kind for kind in get_args(Modalities) if kind in model.modalities],
        "embed_dim": model.get_embedding_dimension(),
        "n_parameters": sum(weight.numel() for weight in weights),
        # mteb takes the width of an embedding for that of a token, which is right for few models.
        "n_embedding_parameters": inner.get_input_embeddings().weight.numel() if is_ours else None,
        "memory_usage_mb": round(sum(weight.numel() * weight.element_size() for weight in weights) / 2**20, 1),
        "license": card.license if card.license in get_args(Licenses) else None,
        "languages": _hf_langs_to_iso_lang_scripts(card.language),
        "adapted_from": card.base_model[0] if isinstance(card.base_model, list) else card.base_model,
        "open_weights": True,
        "use_instructions": any(model.prompts.values()),
        "reference": None if local else f"https://huggingface.co/{source}",
    }
    return {field: value for field, value in known.items() if value is not None}
