"""The outputs of `MPCLIPModel`, which name every intermediate result."""

from dataclasses import dataclass

import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput


@dataclass
class MPCLIPTextOutput(BaseModelOutputWithPooling):
    """Features of texts.

    prompt_embeds: (B, K, D / K), the segment of each prompt; not normalised, unless `aspect_weights` were given.
    negated_prompt_embeds: (B, K, D / K), the same for the negated prompts; None unless requested.
    pooler_output: (B, D), the K segments of `prompt_embeds` joined.
    last_hidden_state: (B, R, H), the LLM's output at the readouts.
    hidden_states, attentions: of the LLM, as `PromptedTextTower.forward` describes them; None unless requested.
    """

    prompt_embeds: torch.FloatTensor | None = None
    negated_prompt_embeds: torch.FloatTensor | None = None


@dataclass
class MPCLIPImageOutput(BaseModelOutputWithPooling):
    """Features of images or videos.

    prompt_embeds: (B, K, D / K), the segment that is compared with each prompt's, not normalised.
    pooler_output: (B, D), the K segments of `prompt_embeds` joined.
    last_hidden_state: (B, N, C), the vision tokens; of a video, those of all frames.
    hidden_states, attentions: of the vision encoder, for B videos those of B * T frames; None unless requested.
    pooling_attentions: (B, Q, heads, N), weights of the attention pooling; None for the other poolings.
    """

    prompt_embeds: torch.FloatTensor | None = None
    pooling_attentions: torch.FloatTensor | None = None


@dataclass
class MPCLIPOutput(ModelOutput):
    """Every intermediate result by name. Fields whose input was not given are None.

    Without images the first field that is not None is `text_embeds`; without texts it is `image_embeds`. The pipelines
    "feature-extraction" and "image-feature-extraction" return that first field, (1, D) per input.

    loss: contrastive_loss + diversity_weight * diversity_loss + negation_weight * negation_loss.
    contrastive_loss, diversity_loss, negation_loss: the parts before weighting, 0-dimensional.
    logits_per_image: (B_images, B_texts) scale * cosine (+ bias). `logits_per_text` is its transpose.
    text_embeds, image_embeds: (B, D) float32, L2-normalised as a whole. `aspect_weights` are then applied to `text_embeds`.
    text_prompt_embeds, image_prompt_embeds: (B, K, D / K), the segments before normalisation.
    negated_text_embeds, negated_prompt_embeds: (B, D) and (B, K, D / K), the same for the negated prompts.
    text_model_output, vision_model_output: [`MPCLIPTextOutput`] and [`MPCLIPImageOutput`].
    """

    loss: torch.FloatTensor | None = None
    contrastive_loss: torch.FloatTensor | None = None
    diversity_loss: torch.FloatTensor | None = None
    negation_loss: torch.FloatTensor | None = None
    logits_per_image: torch.FloatTensor | None = None
    logits_per_text: torch.FloatTensor | None = None
    text_embeds: torch.FloatTensor | None = None
    image_embeds: torch.FloatTensor | None = None
    text_prompt_embeds: torch.FloatTensor | None = None
    image_prompt_embeds: torch.FloatTensor | None = None
    negated_text_embeds: torch.FloatTensor | None = None
    negated_prompt_embeds: torch.FloatTensor | None = None
    text_model_output: MPCLIPTextOutput | None = None
    vision_model_output: MPCLIPImageOutput | None = None

    def to_tuple(self) -> tuple:
        """The fields that are not None, as nested tuples."""
        return tuple(value.to_tuple() if isinstance(value, ModelOutput) else value for value in self.values())
