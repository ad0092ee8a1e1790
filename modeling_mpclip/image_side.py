"""The image side of the model: pixels, frames or cached vision tokens -> the segments that answer the prompts."""

import torch
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import can_return_tuple

from .clip_frames import mean_of_frames, with_frame_position
from .image_tower import AttentionPooling, SegmentProjection
from .outputs_mpclip import MPCLIPImageOutput
from .tower_inputs import (
    asked,
    masked_mean,
    refuse_no_patches,
    refuse_no_pixels,
    refuse_no_tokens,
    refuse_other_frames,
    refuse_other_mask,
)
from .vision_encoder import build_vision_model, run_vision_model, settle, token_width
from .vision_families import NO_VIDEOS_IN_PATCHES, class_tokens, leading_tokens, vision_family


class ImageSide:
    """Part of [`MPCLIPModel`]; uses its `config`, `vision_model`, `image_pooling` and `image_projection`."""

    def _add_image_side(self, vision_model: PreTrainedModel | None) -> None:
        """Set vision encoder, pooling and projection."""
        config = self.config
        self.vision_model = vision_model if vision_model is not None else build_vision_model(config.vision_config)
        settle(self.vision_model.config)
        if config.image_pooling == "cls" and not class_tokens(config.vision_config):
            raise ValueError(
                f"image_pooling='cls' needs a class token, and {type(self.vision_model).__name__} has none. "
                "Use 'attention', 'attention_per_prompt' or 'mean'."
            )
        self.image_token_dim = token_width(config.vision_config)  # C, the number of channels of a vision token
        queries, D, C = config.num_pooling_queries, config.projection_dim, self.image_token_dim
        attends = config.image_pooling.startswith("attention")
        width = config.pooling_width if attends else C
        self.image_pooling = AttentionPooling(queries, C, width, config.pooling_heads) if attends else None
        self.image_projection = SegmentProjection(queries, width, D)

    @property
    def _channels(self) -> int:
        """Channels of a picture."""
        return getattr(self.config.vision_config, "num_channels", 3)

    @property
    def _takes_patches(self) -> bool:
        """Whether the vision encoder takes patches that the image processor has cut, with a mask."""
        return vision_family(self.config.vision_config).output == "patches"

    def vision_tokens(
        self,
        pixel_values: torch.Tensor,
        pixel_attention_mask: torch.Tensor | None = None,
        spatial_shapes: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Pixels -> (B, N, C) vision tokens. The other methods take them as `vision_hidden_states`.

        Args:
            pixel_values, pixel_attention_mask, spatial_shapes: as for `get_image_features`.
        """
        return self._encode_images(pixel_values, pixel_attention_mask, spatial_shapes).last_hidden_state

    def _encode_images(
        self,
        pixel_values: torch.Tensor,
        pixel_attention_mask: torch.Tensor | None = None,
        spatial_shapes: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | list[int] | None = None,
    ) -> BaseModelOutput:
        """Run the vision encoder; `last_hidden_state` is the (B, N, C) tokens."""
        self._refuse_images_if_text_only()
        flags = asked(output_attentions, output_hidden_states)
        if self._takes_patches:
            refuse_no_patches(pixel_values, pixel_attention_mask, spatial_shapes)
            flags |= {"pixel_attention_mask": pixel_attention_mask, "spatial_shapes": spatial_shapes}
        else:
            refuse_no_pixels("pixel_values", pixel_values, "(B, C, H, W)", self._channels)
        return run_vision_model(self.vision_model, pixel_values, **flags)

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: torch.Tensor | None = None,
        vision_hidden_states: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | list[int] | None = None,
        pixel_attention_mask: torch.Tensor | None = None,
        spatial_shapes: torch.Tensor | None = None,
    ) -> MPCLIPImageOutput:
        """Embed images.

        Args:
            pixel_values: (B, C, H, W). For SigLIP 2 NaFlex: (B, N, C * p * p) patches.
            vision_hidden_states: (B, N, C) from `vision_tokens`, in place of the pixels.
            output_attentions, output_hidden_states: also return those of the vision encoder, if it runs.
            pixel_attention_mask: (B, N), 0 for padding patches of SigLIP 2 NaFlex, or for their tokens.
            spatial_shapes: (B, 2), rows and columns of the patches of SigLIP 2 NaFlex.

        Returns:
            [`MPCLIPImageOutput`], or its tuple with return_dict=False.

        Raises:
            ValueError: none or both of pixels and tokens are given, or the model is text-only.
        """
        if (pixel_values is None) == (vision_hidden_states is None):
            raise ValueError("Give exactly one of pixel_values and vision_hidden_states.")
        if vision_hidden_states is not None:
            self._refuse_images_if_text_only()
            refuse_no_tokens(vision_hidden_states, self.image_token_dim)
            encoded = BaseModelOutput(vision_hidden_states)
        else:
            encoded = self._encode_images(
                pixel_values, pixel_attention_mask, spatial_shapes, output_attentions, output_hidden_states
            )
        mask = None
        if pixel_attention_mask is not None:
            refuse_other_mask(pixel_attention_mask, tuple(encoded.last_hidden_state.shape[:2]), "pixel_attention_mask")
            mask = pixel_attention_mask.bool()  # (B, N)
        return self._pool_image(encoded, mask)

    @can_return_tuple
    def get_video_features(
        self,
        pixel_values_videos: torch.Tensor | None = None,
        frame_mask: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | list[int] | None = None,
        vision_hidden_states: torch.Tensor | None = None,
    ) -> MPCLIPImageOutput:
        """Embed videos: pool the vision tokens of all frames (paper, section 1.4), or as `config.clip_pooling` says.

        Args:
            pixel_values_videos: (B, T, C, H, W).
            frame_mask: (B, T), 0 for padding frames. Without it every frame counts.
            output_attentions, output_hidden_states: also return those of the vision encoder, for the B * T frames.
            vision_hidden_states: (B, T, N, C), the `vision_tokens` of the frames, in place of the pixels.

        Returns:
            [`MPCLIPImageOutput`], or its tuple with return_dict=False.

        Raises:
            ValueError: an argument has another shape, none or both of pixels and tokens are given, a video has no frame, or the
                model is text-only.
        """
        self._refuse_images_if_text_only()
        if self._takes_patches:
            raise ValueError(NO_VIDEOS_IN_PATCHES)
        if (pixel_values_videos is None) == (vision_hidden_states is None):
            raise ValueError("Give exactly one of pixel_values_videos and vision_hidden_states.")
        if vision_hidden_states is not None:
            refuse_no_tokens(vision_hidden_states, self.image_token_dim, "(B, T, N, C)")
            encoded, (B, T) = BaseModelOutput(vision_hidden_states.flatten(0, 1)), vision_hidden_states.shape[:2]
        else:
            refuse_no_pixels("pixel_values_videos", pixel_values_videos, "(B, T, C, H, W)", self._channels)
            B, T = pixel_values_videos.shape[:2]
            flags = {"output_attentions": output_attentions, "output_hidden_states": output_hidden_states}
            encoded = self._encode_images(pixel_values_videos.flatten(0, 1), **flags)
        refuse_other_frames(frame_mask, (B, T))
        if self.config.clip_pooling == "mean":
            return self._mean_of_frames(encoded, frame_mask, (B, T))
        tokens = encoded.last_hidden_state.to(self.image_projection.weight.dtype)  # (B*T, N, C)
        frames = tokens.unflatten(0, (B, T))  # (B, T, N, C)
        if self.config.frame_position == "sinusoid":
            frames = with_frame_position(frames, frame_mask)
        mask = None if frame_mask is None else frame_mask.bool().repeat_interleave(tokens.shape[1], dim=1)  # (B, T*N)
        encoded.last_hidden_state = frames.flatten(1, 2)  # (B, T*N, C)
        return self._pool_image(encoded, mask, frames=T)

    def _mean_of_frames(
        self, encoded: BaseModelOutput, frame_mask: torch.Tensor | None, shape: tuple[int, int]
    ) -> MPCLIPImageOutput:
        """Pool each of the (B*T, N, C) frames as a picture, and take the mean of their normalised embeddings."""
        output = self._pool_image(encoded)
        mask = torch.ones(shape, device=output.prompt_embeds.device) if frame_mask is None else frame_mask
        segments = mean_of_frames(output.prompt_embeds.unflatten(0, shape), mask)  # (B, K, D/K)
        output.last_hidden_state = output.last_hidden_state.unflatten(0, shape).flatten(1, 2)  # (B, T*N, C)
        output.prompt_embeds, output.pooler_output = segments, segments.flatten(1)
        if output.pooling_attentions is not None:
            share = (mask / mask.sum(dim=1, keepdim=True)).to(output.pooling_attentions)  # (B, T), of each frame in the mean
            weights = output.pooling_attentions.unflatten(0, shape) * share[..., None, None, None]  # (B, T, Q, heads, N)
            output.pooling_attentions = weights.permute(0, 2, 3, 1, 4).flatten(3)  # (B, Q, heads, T*N)
        return output

    def _pool_image(self, encoded: BaseModelOutput, mask: torch.Tensor | None = None, frames: int = 1) -> MPCLIPImageOutput:
        """Pool and project (B, N, C) tokens of `frames` frames; `mask` (B, N) is False for tokens that are padding."""
        tokens = encoded.last_hidden_state.to(self.image_projection.weight.dtype)  # they may have another dtype
        attentions, all_tokens = None, tokens
        if self.config.image_tokens == "patches" and (leading := leading_tokens(self.config.vision_config)):
            tokens, mask = (
                x if x is None else x.unflatten(1, (frames, -1))[:, :, leading:].flatten(1, 2) for x in (tokens, mask)
            )  # (B, N - frames * leading, C) and (B, N - frames * leading)
        if self.image_pooling is not None:
            vectors, attentions = self.image_pooling(tokens, mask)  # (B, Q, W), (B, Q, heads, N)
        elif self.config.image_pooling == "cls":
            first = tokens.unflatten(1, (frames, -1))[:, :, 0]  # (B, frames, C)
            frame_mask = mask.unflatten(1, (frames, -1))[:, :, 0] if mask is not None else torch.ones_like(first[..., 0])
            vectors = masked_mean(first, frame_mask)[:, None]  # (B, 1, C)
        else:
            vectors = masked_mean(tokens, mask if mask is not None else torch.ones_like(tokens[..., 0]))[:, None]  # (B, 1, C)
        embeds = self.image_projection(vectors).flatten(1)  # (B, D)
        return MPCLIPImageOutput(
            last_hidden_state=all_tokens,
            pooler_output=embeds,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
            prompt_embeds=embeds.unflatten(1, (self.config.num_prompts, -1)),  # (B, K, D/K)
            pooling_attentions=attentions,
        )

    def _refuse_images_if_text_only(self) -> None:
        """Raise a ValueError if the model has no image side."""
        if self.config.text_only:
            raise ValueError("This text-only checkpoint has no image side. Use the checkpoint that it was exported from.")
