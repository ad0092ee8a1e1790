"""MP-CLIP: multi-prompt text embeddings from a pretrained LLM, matched segment by segment with images.

The files of this folder travel with every checkpoint and need torch and transformers alone.
"""

from transformers import AutoConfig, AutoModel, AutoModelForZeroShotImageClassification, AutoProcessor

from .configuration_mpclip import MPCLIPConfig
from .modeling_mpclip import MPCLIPImageOutput, MPCLIPModel, MPCLIPOutput, MPCLIPTextOutput
from .processing_mpclip import MPCLIPProcessor
from .prompt_tree import PromptTree, add_adaptive_tokens, compile_prompt_tree, default_templates

AutoConfig.register("mpclip", MPCLIPConfig, exist_ok=True)
AutoModel.register(MPCLIPConfig, MPCLIPModel, exist_ok=True)
AutoModelForZeroShotImageClassification.register(MPCLIPConfig, MPCLIPModel, exist_ok=True)
AutoProcessor.register(MPCLIPConfig, MPCLIPProcessor, exist_ok=True)

# `save_pretrained` then writes the code beside the weights.
MPCLIPConfig.register_for_auto_class()
MPCLIPModel.register_for_auto_class("AutoModel")
MPCLIPProcessor.register_for_auto_class()

__all__ = [
    "MPCLIPConfig",
    "MPCLIPImageOutput",
    "MPCLIPModel",
    "MPCLIPOutput",
    "MPCLIPProcessor",
    "MPCLIPTextOutput",
    "PromptTree",
    "add_adaptive_tokens",
    "compile_prompt_tree",
    "default_templates",
]
