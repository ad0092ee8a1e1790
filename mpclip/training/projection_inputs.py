"""What the projections of a model are given for pictures and texts: the inputs of a closed form (`closed_form.py`)."""

from collections.abc import Callable, Sequence

import torch
from accelerate import PartialState
from accelerate.utils import gather_object, reduce
from torch import nn

from modeling_mpclip.tower_inputs import masked_mean
from mpclip.progress import track

from .collator import MPCLIPCollator
from .ridge import Sums


def trained(module: nn.Module) -> nn.Module:
    """The module itself, or the copy of it that an adapter trains."""
    copies = getattr(module, "modules_to_save", None)
    return module if copies is None else copies[module.active_adapters[0]]


class ProjectionInputs:
    """Runs a model and takes what its pooling and its text projection are given.

    The processes of a job share the batches.

    Args:
        model, collator, context: as for `solve_projections`.
    """

    def __init__(self, model, collator: MPCLIPCollator, context: Callable):
        self.model, self.collator, self.context = model, collator, context
        self.state = PartialState()

    def pictures(self, dataset, order: list[int], batch_size: int) -> tuple[torch.Tensor, dict[int, list[str]]]:
        """(I, C) means of the normalised tokens of pictures, and place in the order -> captions, of this process's share."""
        batches, captions = self._share(_batches(range(len(order)), batch_size)), {}
        means = torch.zeros(len(order), self.model.image_token_dim)  # a process may have no batch
        pooling = trained(self.model.image_pooling)
        for places in track(batches, "Pictures for the closed form", len(batches), "batch"):
            examples = [dataset[order[place]] for place in places]
            captions |= {place: example["captions"] for place, example in zip(places, examples, strict=True)}
            which = "image" if self.collator.image_states is None else "index"
            inputs = self.collator.image_inputs([example[which] for example in examples])
            tokens, mask = self._given(pooling, inputs)
            normal = nn.functional.layer_norm(tokens.float(), tokens.shape[-1:])  # (b, N, C)
            mean = masked_mean(normal, torch.ones_like(normal[..., 0]) if mask is None else mask)  # (b, C)
            means[list(places)] = mean.cpu()
        return self._sum(means), captions

    def texts(
        self, captions: dict[int, list[str]], y: torch.Tensor, held: int, batch_size: int
    ) -> tuple[list[Sums], list[Sums], tuple[torch.Tensor, torch.Tensor]]:
        """Sums over texts and their pictures, for each of the n regressions, and the texts of the held-out pictures.

        Args:
            captions: place of a picture -> its captions.
            y: (I, r), the axes of the pictures.
            held: the first pictures are held out.

        Returns:
            The sums without and with the pictures that are held out, and of the latter (t, n, F) and the picture of each, (t,).
        """
        pairs = [(place, text) for place, texts in captions.items() for text in texts]
        pairs.sort(key=lambda pair: len(pair[1]))  # so that a batch has texts of about the same length
        config, batches = self.model.config, _batches(pairs, batch_size)
        n, F, r = 1 if config.joint_projection else config.num_prompts, config.text_width, y.shape[1]
        sums = [[Sums.zero(F, r) for _ in range(n)] for _ in range(2)]
        held_x, held_owner = [torch.zeros(0, n, F)], [torch.zeros(0, dtype=torch.long)]
        for batch in track(batches, "Texts for the closed form", len(batches), "batch"):
            (given,) = self._given(trained(self.model.text_projection), self.collator.text_inputs([text for _, text in batch]))
            x = given[:, :n].float().cpu()  # (b, n, F); with joint_projection all segments are given the same
            owner = torch.tensor([place for place, _ in batch])  # (b,)
            for part, chosen in zip(sums, (owner >= held, owner < held), strict=True):
                for k in range(n):
                    part[k].add(Sums.of(x[chosen, k], y[owner[chosen]]))
            held_x.append(x[owner < held])
            held_owner.append(owner[owner < held])
        of_all = [[Sums(*(self._sum(value) for value in vars(one).values())) for one in part] for part in sums]
        texts = gather_object([torch.cat(held_x)]), gather_object([torch.cat(held_owner)])
        return *of_all, tuple(torch.cat(part) for part in texts)

    def _share(self, batches: list) -> list:
        """Those of the batches that this process reads."""
        return batches[self.state.process_index :: self.state.num_processes]

    def _given(self, module: nn.Module, inputs: dict[str, torch.Tensor]) -> tuple:
        """The arguments of the first call of a module of the model. Stored states hold negated prompts if the loss has them."""
        seen = []
        handle = module.register_forward_pre_hook(lambda _, arguments: seen.append(arguments))
        try:
            with self.context():
                on_device = {name: value.to(self.model.device) for name, value in inputs.items()}
                self.model(**on_device, negated=bool(self.model.config.negation_weight))
        finally:
            handle.remove()
        return seen[0]

    def _sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over the processes."""
        return reduce(tensor.to(self.state.device), "sum").cpu() if self.state.num_processes > 1 else tensor


def _batches(items: Sequence, size: int) -> list[Sequence]:
    return [items[start : start + size] for start in range(0, len(items), size)]
