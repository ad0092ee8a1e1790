"""Texts that say what a picture does not show: which are drawn, of which pictures they are true, and their loss in training."""

import numpy as np
import pytest
import torch
from conftest import arguments
from tiny_pictures import records, write_folder

import train_hf
from modeling_mpclip import MPCLIPModel
from mpclip.data.absence_texts import AbsenceTexts
from mpclip.data.exclusion_queries import Things, things_of_captions
from mpclip.data.image_text import ImageTextDataset, load_image_text
from mpclip.training.absence_loss import absence_loss, of_pairs
from mpclip.training.command_line import parse_options
from mpclip.training.run import build_trainer

pytestmark = pytest.mark.usefixtures("datasets_cache")

CAPTIONS = [
    ["a dog with a ball"],
    ["a dog on grass", "a dog runs"],
    ["grass and a ball"],
    ["a dog, a ball and grass"],
    ["something else"],
]


@pytest.fixture
def absences():
    return AbsenceTexts(things_of_captions(CAPTIONS))


def test_a_text_is_true_of_what_shows_the_one_and_not_the_other(absences):
    dog, ball, grass = (absences.names.index(name) for name in ("a dog", "a ball", "grass"))
    assert absences.text((dog, ball)) == "a dog without a ball"
    true = absences.true_of([(dog, ball), (grass, dog)], [4, 1, 0, 3, 2])
    assert true.tolist() == [[False, True, False, False, False], [False, False, False, False, True]]


def test_what_is_drawn_is_true_and_stands_beside_it_elsewhere(absences):
    drawn = {index: {absences.draw(index, epoch) for epoch in range(30)} for index in range(len(CAPTIONS))}
    assert {absences.text(pair) for pair in drawn[1]} == {"a dog without a ball", "grass without a ball"}
    assert drawn[3] == drawn[4] == {None}  # all that it may lack is there, or it shows nothing
    for index in (0, 1, 2):
        assert absences.true_of(list(drawn[index]), [index]).all()
        assert {absences.text(pair) for pair in drawn[index]} <= set(absences.every())
    assert absences.draw(1, 7) == AbsenceTexts(things_of_captions(CAPTIONS)).draw(1, 7)
    assert [AbsenceTexts(things_of_captions(CAPTIONS), seed).draw(0, 0) for seed in range(9)].count(absences.draw(0, 0)) < 9


def test_things_that_never_stand_together_are_refused():
    with pytest.raises(ValueError, match="without_weight needs pictures that show several things"):
        AbsenceTexts(Things(["a", "b"], np.eye(2, dtype=bool)))


def test_the_loss_is_that_of_each_right_pair_against_all_wrong_ones():
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).float()
    true = torch.tensor([[1, 0, 0, 1], [0, 1, 0, 0], [1, 1, 1, 1]], dtype=torch.bool)
    ways = []
    for scores, right in ((logits, true), (logits.T, true.T)):
        losses = [
            -(score.exp() / (score.exp() + row[~of].exp().sum())).log()
            for row, of in zip(scores, right, strict=True)
            for score in row[of]
        ]
        ways.append(torch.stack(losses).mean())
    torch.testing.assert_close(absence_loss(logits, true), sum(ways) / 2)


def test_a_text_without_a_wrong_picture_costs_nothing():
    logits = torch.zeros(1, 2, requires_grad=True)
    loss = absence_loss(logits, torch.ones(1, 2, dtype=torch.bool))
    loss.backward()
    assert loss == 0 and not logits.grad.any()


def absent_words(folder, out, *extra: str) -> list[str]:
    """A run on pictures of the things of `CAPTIONS`."""
    rows = [record | {"captions": CAPTIONS[i % 5]} for i, record in enumerate(records(10))]
    data = out.parent / "things"
    if not data.exists():
        write_folder(data, rows)
    return arguments(folder, out, "--dataset", str(data), "--without_weight", "0.5", "--eval_split", "none", *extra)


def test_a_step_has_both_losses(folder, tmp_path):
    trainer = build_trainer(parse_options(absent_words(folder, tmp_path / "out")))
    batch = next(iter(trainer.get_train_dataloader()))
    rows = batch.pop("row")
    T, B = batch["without_true"].shape
    assert B == len(rows) == len(batch["caption_id"]) and 0 < T <= B and len(batch["attention_mask"]) == B + T
    assert batch["without_true"].any(dim=1).all()
    model = trainer.model.eval()
    with torch.no_grad():
        loss, outputs = trainer.compute_loss(model, dict(batch), return_outputs=True)
        texts, images = outputs["text_embeds"], outputs["image_embeds"]
        plain = trainer.loss_of_embeddings(model, of_pairs(outputs, B), batch["caption_id"])
        absent = absence_loss(model.logit_scale(texts[B:] @ images.T), batch["without_true"])
    torch.testing.assert_close(loss, plain + 0.5 * absent)


def test_training_on_stored_states_equals_live_training(folder, tmp_path):
    train_hf.main(absent_words(folder, tmp_path / "live", "--adam_epsilon", "1e-4"))
    cache = ("--cache_states", "true", "--cache_format", "float32")
    train_hf.main(absent_words(folder, tmp_path / "cached", "--adam_epsilon", "1e-4", *cache))
    one, other = (MPCLIPModel.from_pretrained(tmp_path / name).state_dict() for name in ("live", "cached"))
    for name in one:
        torch.testing.assert_close(other[name], one[name], atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("extra", [("--forward_chunk", "2"), ("--video_column", "video"), ("--streaming", "true")])
def test_what_cannot_have_such_texts_is_refused(folder, tmp_path, extra):
    with pytest.raises(ValueError, match=r"without_weight|--video_column"):
        build_trainer(parse_options(absent_words(folder, tmp_path / "out", *extra)))


def test_items_draw_anew_in_each_epoch(tmp_path, absences):
    rows = load_image_text(write_folder(tmp_path, records(5)), "train")
    examples = ImageTextDataset(rows, with_images=False, absences=absences)
    drawn = set()
    for epoch in range(9):
        examples.set_epoch(epoch)
        drawn.add(examples[1]["without"])
        assert examples[4]["without"] is None
    assert len(drawn) == 2
