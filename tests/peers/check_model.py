"""`ModelTesterMixin` and `ConfigTester` on MPCLIPModel and MPCLIPConfig, as imported and as a checkpoint ships them."""

import unittest

from checkpoint import save_checkpoint
from conftest import TEXT_CONFIGS, VISION_CONFIGS, make_tokenizer
from tests.test_configuration_common import ConfigTester
from tests.test_modeling_common import ModelTesterMixin, floats_tensor, ids_tensor, random_attention_mask
from transformers import AutoConfig, AutoModel

from modeling_mpclip import MPCLIPConfig, MPCLIPModel


class ModelTester:
    """What the mixin asks for: a tiny configuration and a batch of paired texts and images."""

    batch_size, seq_length, num_hidden_layers = 5, 7, 2
    is_training = True

    def __init__(self, config_class: type, text: str, vision: str):
        self.config_class, self.text, self.vision = config_class, text, vision

    def get_config(self):
        text, vision = TEXT_CONFIGS[self.text]().to_dict(), VISION_CONFIGS[self.vision]()
        text |= {"num_hidden_layers": 2, "initializer_range": 0.02}  # sharp attention would exceed their tolerances
        if text.get("layer_types"):
            text["layer_types"] = ["sliding_attention", "full_attention"]
        sizes = dict(num_prompts=3, projection_dim=12, pooling_width=16, pooling_heads=2)
        config = self.config_class(text, vision, adaptive_tokens="input", **sizes)
        config.compile_prompts(make_tokenizer())
        return config

    def prepare_config_and_inputs_for_common(self):
        inputs = {
            "input_ids": ids_tensor([self.batch_size, self.seq_length], 300),
            "attention_mask": random_attention_mask([self.batch_size, self.seq_length]),
            "pixel_values": floats_tensor([self.batch_size, 3, 32, 32]),
        }
        return self.get_config(), inputs


class Checks(ModelTesterMixin):
    config_class, text, vision = MPCLIPConfig, "llama", "vit"
    _is_composite = True
    additional_model_inputs = ["pixel_values"]  # beside the texts, so that there are logits to compare
    test_can_init_all_missing_weights_before_2023 = True  # our files carry no year, which counts as old

    def setUp(self):
        self.model_tester = ModelTester(self.config_class, self.text, self.vision)
        self.config_tester = ConfigTester(self, config_class=self.config_class, has_text_modality=False, num_prompts=3)

    def test_config(self):
        self.config_tester.run_common_tests()

    def test_reverse_loading_mapping(self):
        super().test_reverse_loading_mapping(check_keys_were_modified=False)  # the logit scale changes its shape, not its name

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels)
        return {**inputs, "return_loss": True} if return_labels else inputs

    def _video_features_prepare_config_and_inputs(self):
        config, inputs = super()._video_features_prepare_config_and_inputs()
        return config, {"pixel_values_videos": inputs["pixel_values_videos"][:, None]}  # videos of one frame


class LlamaWithViTTest(Checks, unittest.TestCase):
    all_model_classes = (MPCLIPModel,)


class Gemma3WithSiglipTest(Checks, unittest.TestCase):
    """Sliding layers, a scaled embedding, a vision tower without class token."""

    all_model_classes = (MPCLIPModel,)
    text, vision = "gemma3", "siglip"


class CheckpointTest(Checks, unittest.TestCase):
    """The classes that `trust_remote_code=True` loads out of a saved folder."""

    @classmethod
    def setUpClass(cls):
        folder = save_checkpoint()
        cls.config_class = type(AutoConfig.from_pretrained(folder, trust_remote_code=True))
        cls.all_model_classes = (type(AutoModel.from_pretrained(folder, trust_remote_code=True)),)
