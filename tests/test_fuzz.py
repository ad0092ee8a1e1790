"""Whatever a config, a template, a text or a table of captions holds: it works, or a ValueError names what is wrong."""

import json
import warnings

import pytest
from conftest import TEXT_CONFIGS, VISION_CONFIGS, make_tokenizer
from PIL import Image

pytest.importorskip("hypothesis", reason="the fuzz tests need hypothesis: pip install hypothesis")
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modeling_mpclip import MPCLIPConfig
from modeling_mpclip.configuration_mpclip import LARGEST
from modeling_mpclip.model_options import OPTION_NAMES
from modeling_mpclip.prompt_tree import PromptTree
from mpclip.data.image_text import load_image_text

few = settings(
    max_examples=60,
    derandomize=True,  # the same examples on every machine
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
texts = st.text(st.characters(), max_size=12)  # half characters too
numbers = st.integers(-3, 12) | st.sampled_from([10**9, 10**30, 2.5, 0.0, float("nan"), float("inf"), -1e300])
scalars = st.none() | st.booleans() | numbers | texts
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=2), max_leaves=6
)
SMALL = {"num_prompts": 3, "projection_dim": 12, "pooling_width": 16, "pooling_heads": 2}
TEXT, VISION = TEXT_CONFIGS["llama"]().to_dict(), VISION_CONFIGS["vit"]().to_dict()
OWN = (*OPTION_NAMES, "text_only", "prompt_tree", "adaptive_token_ids", "text_config", "vision_config", "custom_pipelines")


def named(name: str, error: ValueError) -> bool:
    """Whether a message has the name of an option, also as words: "negated templates"."""
    return name.replace("_", " ").rstrip("s") in str(error).replace("_", " ").lower()


@few
@given(st.sampled_from(OWN), values)
def test_any_value_of_a_config(name, value):
    try:
        config = MPCLIPConfig(**{"text_config": TEXT, "vision_config": VISION, **SMALL, name: value})
    except ValueError as error:
        assert named(name, error), error
    else:
        assert MPCLIPConfig.from_dict(json.loads(config.to_json_string(use_diff=False))).to_dict() == config.to_dict()


@few
@given(st.sampled_from(["text_config", "vision_config"]), st.sampled_from([*LARGEST, "model_type", "rms_norm_eps"]), values)
def test_any_value_of_a_tower(tower, name, value):
    towers = {"text_config": TEXT, "vision_config": VISION}
    try:
        MPCLIPConfig(**towers | {tower: towers[tower] | {name: value}}, **SMALL)
    except ValueError as error:
        assert tower in str(error), error


templates = st.lists(
    st.sampled_from(["[APT-1]", "[APT-2] of", "[APT-02]", "[APT-٣]", "[APT-", " ", "\0", "<eos>"]) | texts, max_size=4
)


@few
@given(st.lists(templates, min_size=1, max_size=3))
def test_any_templates(given_templates):
    K = len(given_templates)
    try:
        config = MPCLIPConfig(TEXT, VISION, **SMALL | {"num_prompts": K}, templates=given_templates)
        tree = config.compile_prompts(make_tokenizer())
    except ValueError as error:
        assert "template" in str(error), error
    else:
        assert len(tree.readouts) == K and PromptTree.from_dict(json.loads(json.dumps(tree.to_dict()))) == tree
        assert MPCLIPConfig.from_dict(config.to_dict()).prompt_tree == config.prompt_tree


places = st.integers(-2, 4)


@few
@given(st.fixed_dictionaries({name: st.lists(places, max_size=4) for name in PromptTree.__dataclass_fields__}))
def test_any_prompt_tree(lists):
    try:
        tree = PromptTree.from_dict(lists)
    except ValueError as error:
        assert "prompt_tree" in str(error)
    else:
        assert len(tree.lineage) == len(tree.depths) == len(tree.token_ids)
        assert all(tree.lineage[i][i] for i in range(len(tree)))


rows = st.fixed_dictionaries(
    {"file_name": st.sampled_from(["0.png", "1.png", "./0.png", "2.png", "../0.png", "/0.png"]) | values},
    optional=dict.fromkeys(("captions", "caption", "split", "image", "other"), values),
)
lines = st.lists(rows.map(json.dumps) | texts.filter(lambda text: text.isprintable() or "\n" not in text), max_size=3)
cells = st.sampled_from(["0.png", "file_name", "caption", "a cat", '"', "'", ",", ";", "\t", "\n", "\0", "[", "split"]) | texts


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(2):
        Image.new("RGB", (4, 4)).save(folder / f"{i}.png")
    return folder


def works_or_is_named(folder, file: str, content: str) -> None:
    """Each row that comes out has a picture and captions that are texts."""
    (folder / file).write_bytes(content.encode("utf-8", "surrogatepass"))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            table = load_image_text(folder, "train")
    except ValueError as error:
        assert str(folder) in str(error), error
    else:
        assert all(row["image"].size == (4, 4) and row["captions"] for row in table)
        assert all(isinstance(caption, str) and caption.strip() for row in table["captions"] for caption in row)
    finally:
        (folder / file).unlink()


@few
@given(lines)
def test_any_metadata_jsonl(pictures, given_lines):
    works_or_is_named(pictures, "metadata.jsonl", "\n".join(given_lines))


@few
@given(st.lists(cells, max_size=10).map("".join))
def test_any_metadata_csv(pictures, rest):
    works_or_is_named(pictures, "metadata.csv", "file_name,caption\n0.png,a cat\n" + rest)
    works_or_is_named(pictures, "metadata.csv", rest)
