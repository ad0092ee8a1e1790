"""What is done with segments is done alike by every door: the model, sentence-transformers, an index, an encoder."""

import pytest
import torch
import torch.nn.functional as F
from conftest import make_model, make_processor, make_tokenizer
from PIL import Image
from sentence_transformers import SentenceTransformer

from modeling_mpclip.segments import (
    EXCLUSION,
    assembled,
    checked_count,
    checked_weights,
    excluding,
    normalized,
    refuse_excluding_itself,
    weighted,
    with_segment_of,
)
from mpclip.search.build import build_index
from mpclip.search.queries import QueryEncoder
from mpclip.search.search import PictureIndex

TEXTS = ["The cat sits.", "a small boat"]
WEIGHTS = [1.25, 0.5, 0.0]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("segments") / "ours"
    tokenizer = make_tokenizer()
    make_model(tokenizer=tokenizer).save_pretrained(folder)
    make_processor(tokenizer).save_pretrained(folder)
    return str(folder)


def test_by_hand():
    segments = torch.tensor([[[3.0], [4.0], [12.0]]])  # (1, 3, 1), of length 13
    torch.testing.assert_close(normalized(segments), torch.tensor([[3.0, 4.0, 12.0]]) / 13)
    torch.testing.assert_close(assembled(segments[:, :2]), torch.tensor([[0.6, 0.8]]))
    weights = checked_weights([2, 1, 0.5], 3)
    torch.testing.assert_close(assembled(segments, weights), torch.tensor([[6.0, 4.0, 6.0]]) / 13)
    torch.testing.assert_close(assembled(segments[:, :2], weights), torch.tensor([[1.2, 0.8]]))
    assert assembled(segments.bfloat16()).dtype == torch.float32


def test_exclusion_takes_what_is_not_shared():
    x, t = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.6, 0.8, 0.0])
    query = excluding(t[None], x[None])[0]
    apart = x - 0.6 * t  # orthogonal to t, of length 0.8
    torch.testing.assert_close(query, F.normalize(t - EXCLUSION * apart, dim=0))
    assert query @ x < t @ x and query @ t == pytest.approx(1 / (1 + (0.8 * EXCLUSION) ** 2) ** 0.5)
    both = excluding(t[None], torch.stack([x, torch.tensor([0.0, 0.0, 1.0])]))[0]
    torch.testing.assert_close(both, F.normalize(t - EXCLUSION * (apart + torch.tensor([0.0, 0.0, 1.0])), dim=0))
    segments = torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(0))
    expected = weighted(excluding(normalized(segments[:2]), normalized(segments[2:])), torch.tensor(WEIGHTS))
    torch.testing.assert_close(assembled(segments[:2], torch.tensor(WEIGHTS), segments[2:]), expected)


def test_a_query_that_excludes_itself_is_refused(checkpoint):
    unit = torch.eye(3)
    with pytest.raises(ValueError, match="same embedding, so nothing is left"):
        excluding(unit[:2], unit[1:2])
    with pytest.raises(ValueError, match=r"query ' a small boat' is also among the excluded texts \['a small boat'\]"):
        refuse_excluding_itself(["a boat", " a small boat"], ["a small boat"])
    encoder = QueryEncoder(checkpoint)
    with pytest.raises(ValueError, match="query 'a small boat' is also among the excluded texts"):
        encoder.embed_queries(TEXTS, exclude=["a cat", "a small boat"])
    picture = Image.new("RGB", (40, 30), "red")  # what it shows besides is left
    assert encoder.embed_queries(TEXTS[1:], [picture], exclude=TEXTS[1:]).norm() == pytest.approx(1)


@pytest.mark.parametrize(
    "weights, message", [([1.0], "for each of the 3 prompts"), ([1.0, float("nan"), 1.0], "expected finite")]
)
def test_wrong_weights_are_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        checked_weights(weights, 3)


def test_a_number_of_prompts_is_checked():
    assert checked_count(None, 6) == 6 and checked_count(2, 6) == 2
    with pytest.raises(ValueError, match="num_prompts=7; this model has 6, of which the first 1 to 6 can be used alone"):
        checked_count(7, 6)


def test_aspect_weights_mean_the_same_by_every_door(checkpoint, tmp_path):
    """`forward`, `get_text_features`, `encode` and an index's query give one embedding; its scores are the weighted sums."""
    Image.new("RGB", (40, 30), "red").save(tmp_path / "red.png")
    index_folder = tmp_path / "index"
    (tmp_path / "photos").mkdir()
    (tmp_path / "red.png").rename(tmp_path / "photos" / "red.png")
    build_index(checkpoint, str(tmp_path / "photos"), index_folder)
    encoder = QueryEncoder(checkpoint)
    model = encoder.encoder.model
    batch = encoder.encoder.processor(text=TEXTS)
    with torch.no_grad():
        by_forward = model(**batch, aspect_weights=WEIGHTS).text_embeds
        by_features = model.get_text_features(**batch, aspect_weights=WEIGHTS).pooler_output
        plain = model(**batch).text_embeds
    sentences = SentenceTransformer(checkpoint, trust_remote_code=True)
    by_encode = sentences.encode_query(TEXTS, aspect_weights=WEIGHTS, convert_to_tensor=True)
    by_index = encoder.embed_queries(TEXTS, weights=WEIGHTS)

    expected = (plain.unflatten(1, (3, -1)) * torch.tensor(WEIGHTS)[:, None]).flatten(1)
    for embeds in (by_forward, by_features, by_encode.cpu(), by_index):
        torch.testing.assert_close(embeds, expected, atol=1e-6, rtol=1e-5)

    hits = PictureIndex(index_folder, encoder).search(by_index, 1)
    image = encoder.encoder.images([Image.open(tmp_path / "photos" / "red.png").convert("RGB")])[0]
    for (hit,), text in zip(hits, plain, strict=True):
        by_segment = (image * text).unflatten(0, (3, -1)).sum(dim=1) * torch.tensor(WEIGHTS)  # (K,)
        torch.testing.assert_close(torch.tensor(hit.aspects), by_segment, atol=1e-6, rtol=1e-4)
        assert hit.score == pytest.approx(float(by_segment.sum()), abs=1e-5)


def test_fewer_prompts_with_weights_and_exclusion(checkpoint):
    """The first two prompts of the model alone, as `encode` gives them."""
    sentences = SentenceTransformer(checkpoint, trust_remote_code=True)
    with torch.no_grad():
        model, processor = sentences[0].model, sentences[0].processor
        segments = model(**processor(text=[*TEXTS, "cars"])).text_prompt_embeds  # (3, K, D/K)
    expected = assembled(segments[:2, :2], torch.tensor(WEIGHTS), segments[2:])
    given = dict(num_prompts=2, aspect_weights=WEIGHTS, exclude="cars", convert_to_tensor=True)
    torch.testing.assert_close(sentences.encode_query(TEXTS, **given).cpu(), expected, atol=1e-6, rtol=1e-5)


def test_one_segment_of_another_embedding():
    first, second = (F.normalize(torch.randn(4, 6), dim=1) for _ in range(2))
    mixed = with_segment_of(first, second, 1, 3)
    expected = torch.cat([first[:, :2], second[:, 2:4], first[:, 4:]], 1)
    torch.testing.assert_close(mixed, expected / expected.norm(dim=1, keepdim=True))
    for wrong in (-1, 3):
        with pytest.raises(ValueError, match=f"segment={wrong}; expected one of 0 to 2"):
            with_segment_of(first, second, wrong, 3)
