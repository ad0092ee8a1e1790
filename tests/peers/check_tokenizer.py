"""`TokenizerTesterMixin` on a tokenizer with the adaptive tokens, as a checkpoint holds it."""

import unittest

from checkpoint import save_checkpoint
from tests.test_tokenization_common import TokenizerTesterMixin
from tests.test_tokenizers_backend_mixin import TokenizersBackendTesterMixin
from transformers import TokenizersBackend


class TokenizerTest(TokenizerTesterMixin, unittest.TestCase):
    tokenizer_class = rust_tokenizer_class = TokenizersBackend

    @classmethod
    def setUpClass(cls):
        cls.from_pretrained_id = save_checkpoint()
        super().setUpClass()


class TokenizersBackendTest(TokenizersBackendTesterMixin, unittest.TestCase):
    tokenizer_class = rust_tokenizer_class = TokenizersBackend

    @classmethod
    def setUpClass(cls):
        cls.from_pretrained_id = save_checkpoint()
        super().setUpClass()
