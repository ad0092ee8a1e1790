"""Saves a class whose code cannot go along with a checkpoint, such as one of a notebook, under the nearest class that can."""

import contextlib
import inspect
import logging
import sys
from pathlib import Path

logger = logging.getLogger(__name__)


def shipped_class(cls: type) -> type:
    """The class that a checkpoint names for `cls`: `cls` itself, or its nearest base class that can be loaded from a file.

    transformers does not copy the code of `__main__`: a notebook has no file, and a script would run again. A class inside a
    function, or one that is made at run time, is not found in its module.

    Args:
        cls: class of a model, config or processor that is registered for an auto class.
    """
    return next(base for base in inspect.getmro(cls) if _can_be_loaded(base))


def _can_be_loaded(cls: type) -> bool:
    if not getattr(cls, "_auto_class", None):  # a mixin
        return False
    module = sys.modules.get(cls.__module__)
    file = getattr(module, "__file__", None)
    has_file = cls.__module__ != "__main__" and file is not None and Path(file).is_file()
    return has_file and getattr(module, cls.__name__, None) is cls


@contextlib.contextmanager
def saved_as_shipped(thing):
    """Within the block, a model, config or processor has the name of its `shipped_class`; its methods stay its own.

    Args:
        thing: what is being saved. If its own class cannot be shipped, a warning says what the checkpoint will name. A class
            that torch has made of it, such as FSDP2's, holds no code of its own: what counts is the class below.
    """
    own, shipped = type(thing), shipped_class(type(thing))
    if shipped is own:
        yield
        return
    own_code = next(base for base in inspect.getmro(own) if base.__module__.partition(".")[0] != "torch")
    if own_code is not shipped:
        _warn(own_code, shipped)
    object.__setattr__(thing, "__class__", type(shipped.__name__, (own,), {"__module__": shipped.__module__}))
    try:
        yield
    finally:
        object.__setattr__(thing, "__class__", own)


def _warn(own: type, shipped: type) -> None:
    logger.warning(
        "The code of %s, which is defined in %s, cannot be saved. The checkpoint names %s instead, which is what %s will load. "
        "Load it with %s.from_pretrained, or move %s to a module of its own and import it from there.",
        *(own.__name__, own.__module__, shipped.__name__, shipped._auto_class, own.__name__, own.__name__),
    )
