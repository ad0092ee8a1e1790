"""The two pipelines of transformers that take pictures, with our conversion of pictures and the scores that belong to the loss.

    classify = pipeline("zero-shot-image-classification", model=folder_or_hub_id, trust_remote_code=True)

transformers' own classes would drop the alpha channel of a picture, which shows whatever colour lies under it, and would give
softmax scores for every model. A checkpoint names the classes of this file in `custom_pipelines` of its config, so that
`pipeline` uses them. For a model in memory, pass one of them as `pipeline_class`.
"""

from transformers import ImageFeatureExtractionPipeline, ZeroShotImageClassificationPipeline

from .picture_files import load_rgb


class MPCLIPZeroShotImageClassificationPipeline(ZeroShotImageClassificationPipeline):
    """Compares a picture with labels.

    A model of the sigmoid loss gives each label its own probability: they need not sum to 1. One of the softmax loss gives
    probabilities that sum to 1, as transformers' class does.
    """

    def preprocess(self, image, candidate_labels=None, timeout=None, **kwargs):
        """`image` is whatever `load_rgb` takes."""
        return super().preprocess(load_rgb(image, timeout), candidate_labels, **kwargs)

    def postprocess(self, model_outputs) -> list[dict]:
        """Logits (1, number of labels) -> `score` and `label` of each label, the best first."""
        if self.model.config.loss != "sigmoid":
            return super().postprocess(model_outputs)
        scores = model_outputs["logits"][0].sigmoid().tolist()
        found = zip(scores, model_outputs["candidate_labels"], strict=True)
        return [{"score": score, "label": label} for score, label in sorted(found, key=lambda pair: -pair[0])]


class MPCLIPImageFeatureExtractionPipeline(ImageFeatureExtractionPipeline):
    """Embeds a picture: (1, D), L2-normalised."""

    def preprocess(self, image, timeout=None, **kwargs):
        """`image` is whatever `load_rgb` takes."""
        return super().preprocess(load_rgb(image, timeout), **kwargs)
