"""`ProcessorTesterMixin` on MPCLIPProcessor."""

import unittest

from checkpoint import save_checkpoint
from conftest import make_model, make_processor, make_tokenizer
from tests.test_processing_common import ProcessorTesterMixin
from transformers import AutoProcessor

from modeling_mpclip import MPCLIPProcessor


class Checks(ProcessorTesterMixin):
    @classmethod
    def _setup_image_processor(cls):
        return make_processor(make_tokenizer()).image_processor

    @classmethod
    def _setup_tokenizer(cls):
        tokenizer = make_tokenizer()
        make_model(tokenizer=tokenizer)  # adds [APT-i]
        return tokenizer


class ProcessorTest(Checks, unittest.TestCase):
    processor_class = MPCLIPProcessor


class CheckpointProcessorTest(Checks, unittest.TestCase):
    """The class that `trust_remote_code=True` loads out of a saved folder."""

    @classmethod
    def setUpClass(cls):
        cls.processor_class = type(AutoProcessor.from_pretrained(save_checkpoint(), trust_remote_code=True))
        super().setUpClass()
