"""Gradio, asked to tell nobody and to keep visitors' files in a folder of this process."""

import atexit
import os
import shutil
import tempfile
from functools import cache
from types import ModuleType


@cache
def gradio() -> ModuleType:
    """The package.

    Uploads and shown pictures go to a new folder, which is deleted at the end of the process. Gradio's own default is one
    folder for all of its apps on a machine, and each of them hands out what lies there.

    Raises:
        ImportError: it is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio as package
    except ImportError as error:
        raise ImportError(f'the app needs gradio ({error}): pip install "mpclip[app]"') from error
    folder = tempfile.mkdtemp(prefix="mpclip-app-", dir=os.environ.get("GRADIO_TEMP_DIR"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["GRADIO_TEMP_DIR"] = folder
    os.environ["GRADIO_EXAMPLES_CACHE"] = os.path.join(folder, "examples")
    return package
