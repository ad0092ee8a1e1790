"""MP-CLIP: multi-prompt text embeddings from a pretrained LLM, matched segment by segment with images.

Every checkpoint carries a copy of these files. They need torch and transformers, nothing else. A name is imported on first use.
The first use of any name also registers the classes with transformers' auto classes, such as `AutoModel`.
"""

import importlib

MODULES = {
    "MPCLIPConfig": "configuration_mpclip",
    "MPCLIPImageOutput": "outputs_mpclip",
    "MPCLIPModel": "modeling_mpclip",
    "MPCLIPOutput": "outputs_mpclip",
    "MPCLIPProcessor": "processing_mpclip",
    "MPCLIPTextOutput": "outputs_mpclip",
    "PromptTree": "prompt_tree",
    "add_adaptive_tokens": "prompt_tree",
    "compile_prompt_tree": "prompt_tree",
    "default_templates": "prompt_tree",
}
__all__ = list(MODULES)


def __getattr__(name: str):
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    _register()
    value = getattr(importlib.import_module(f".{MODULES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *MODULES})


def _register() -> None:
    """Register our classes with transformers' auto classes. A checkpoint then loads without trust_remote_code=True."""
    from transformers import AutoConfig, AutoModel, AutoModelForZeroShotImageClassification, AutoProcessor

    from .configuration_mpclip import MPCLIPConfig
    from .modeling_mpclip import MPCLIPModel
    from .processing_mpclip import MPCLIPProcessor

    AutoConfig.register("mpclip", MPCLIPConfig, exist_ok=True)
    AutoModel.register(MPCLIPConfig, MPCLIPModel, exist_ok=True)
    AutoModelForZeroShotImageClassification.register(MPCLIPConfig, MPCLIPModel, exist_ok=True)
    AutoProcessor.register(MPCLIPConfig, MPCLIPProcessor, exist_ok=True)
