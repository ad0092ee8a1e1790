"""`ImageProcessingTestMixin` on the image processors of the embedded towers, which run without torchvision."""

import unittest

from tests.test_image_processing_common import ImageProcessingTester, ImageProcessingTestMixin
from transformers import CLIPImageProcessorPil, EfficientNetImageProcessorPil


class Tester(ImageProcessingTester):
    def __init__(self, parent):
        size = {"height": 18, "width": 18}
        super().__init__(parent, do_resize=True, size=size, do_normalize=True, do_convert_rgb=True, do_center_crop=False)

    def _get_image_processing_classes(self):
        return {"pil": self.parent.processor_class}


class CLIPImageProcessorTest(ImageProcessingTestMixin, unittest.TestCase):
    image_processor_tester_class = Tester
    processor_class = CLIPImageProcessorPil


class EfficientNetImageProcessorTest(ImageProcessingTestMixin, unittest.TestCase):
    image_processor_tester_class = Tester
    processor_class = EfficientNetImageProcessorPil
