"""The checkpoint as a sentence-transformers model.

    model = SentenceTransformer(folder_or_hub_id, trust_remote_code=True)
    queries = model.encode_query(["a street"], exclude="cars", aspect_weights=[1, 1, 1.5, 1, 1, 1])
    pictures = model.encode_document([pil_image, "picture.jpg"])
    model.similarity(queries, pictures)

Texts and images give L2-normalised float32 embeddings of D dimensions, K segments of D / K, as with `MPCLIPModel`.

A string that is the path of a picture file is that picture, whatever its name. A string that looks like the path of a picture
("cat.jpg") or like a URL and is none is refused; it is never embedded as a text. {"text": "cat.jpg"} is a text.
{"image": path} and a `pathlib.Path` are images. sentence-transformers itself knows few endings of pictures. So a list of paths
that mixes some of them, such as ".jpg" and ".avif", must hold `pathlib.Path` objects.
"""

import contextlib
import hashlib
import shutil
from pathlib import Path

import torch
from transformers import AutoModel, AutoProcessor, AutoTokenizer, PreTrainedModel

try:
    from sentence_transformers.base.modality import infer_batch_modality
    from sentence_transformers.base.modules import InputModule
except ImportError as error:
    raise ImportError("This needs sentence-transformers 6.0 or later: pip install 'sentence-transformers>=6.0'.") from error

from .picture_files import open_named, picture_named
from .segments import assembled, checked_count, checked_weights, refuse_excluding_itself

PICTURES = "assets"  # folder of the pictures that the model card shows


class MPCLIPSentenceModule(InputModule):
    """The only module of a `SentenceTransformer`: it holds the whole model.

    Args:
        model: [`MPCLIPModel`].
        processor: its [`MPCLIPProcessor`]; for a text-only model its tokenizer.
        origin: arguments of `load_dir_path` that locate the checkpoint. `save` copies the pictures of its card from there.

    `encode` takes these arguments in addition to its own:
        num_prompts: m; use the first m prompts alone, which is cheaper. The embeddings of texts and images then have D * m / K
            dimensions and equal those with truncate_dim=D * m / K and normalize_embeddings=True. `truncate_dim` alone keeps the
            first dimensions as they are, so their norm is below 1.
        aspect_weights: K factors of the segments, applied after normalisation as in `MPCLIPModel.forward`. Weight the queries
            only. The norm of the embedding is then no longer 1.
        exclude: one or more texts that the queries exclude (`segments.excluding`). They apply to all inputs of the call,
            because `encode` sorts its inputs but not its arguments.
    """

    forward_kwargs = {"num_prompts", "aspect_weights", "exclude"}

    def __init__(self, model: PreTrainedModel, processor, origin: dict | None = None):
        super().__init__()
        self.model = model
        self.processor = processor
        self.origin = origin

    @classmethod
    def load(
        cls,
        model_name_or_path: str,
        token: bool | str | None = None,
        cache_folder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        trust_remote_code: bool = False,
        model_kwargs: dict | None = None,
        processor_kwargs: dict | None = None,
        config_kwargs: dict | None = None,
        backend: str = "torch",
        **kwargs,
    ) -> "MPCLIPSentenceModule":
        """Load a checkpoint; `SentenceTransformer(...)` calls this.

        Args:
            model_name_or_path: folder or Hub id.
            token, cache_folder, revision, local_files_only, trust_remote_code: as for `SentenceTransformer`.
            model_kwargs, config_kwargs: for `AutoModel.from_pretrained`.
            processor_kwargs: for `AutoProcessor.from_pretrained`.
            backend: only "torch" is supported.

        Raises:
            ValueError: another backend, or a faulty checkpoint.
        """
        if backend != "torch":
            raise ValueError(f"backend={backend!r} is not supported by MP-CLIP. Use backend='torch'.")
        source = {
            "token": token,
            "cache_dir": cache_folder,
            "revision": revision,
            "local_files_only": local_files_only,
            "trust_remote_code": trust_remote_code,
        }
        model = AutoModel.from_pretrained(model_name_or_path, **source, **(config_kwargs or {}), **(model_kwargs or {}))
        auto_class = AutoTokenizer if model.config.text_only else AutoProcessor
        processor = auto_class.from_pretrained(model_name_or_path, **source, **(processor_kwargs or {}))
        origin = dict(token=token, cache_folder=cache_folder, revision=revision, local_files_only=local_files_only)
        return cls(model, processor, {"model_name_or_path": model_name_or_path, **origin})

    def save(self, output_path: str, *args, **kwargs) -> None:
        """Save a complete checkpoint: weights of both towers, processor, code, pictures of the card.

        Args:
            output_path: the folder.

        Raises:
            ValueError: the model was not loaded with trust_remote_code=True.
        """
        if not type(self).__module__.startswith("transformers_modules."):
            raise ValueError(
                "sentence-transformers would record this module as part of an installed package, and the checkpoint would not "
                "load without that package. Load the model with SentenceTransformer(folder, trust_remote_code=True), or save "
                "MPCLIPModel and its processor with their own save_pretrained."
            )
        self.model.save_pretrained(output_path)
        self.processor.save_pretrained(output_path)
        self._save_pictures(Path(output_path, PICTURES))

    def _save_pictures(self, folder: Path) -> None:
        """Copy the pictures of the card. sentence-transformers saves the card without them."""
        found = None
        with contextlib.suppress(OSError):  # without the Hub the card has no pictures, but the checkpoint is saved
            found = self.origin and self.load_dir_path(subfolder=PICTURES, **self.origin)
        if found and Path(found).is_dir() and Path(found).resolve() != folder.resolve():
            shutil.copytree(found, folder, dirs_exist_ok=True)

    def on_model_ready(self, model) -> None:
        """Give a model of a local folder a revision; sentence-transformers calls this.

        mteb keeps scores under a model's name and revision, and only models of the Hub have these. Without a revision it would
        report the scores of one folder for another.

        Args:
            model: the `SentenceTransformer`.
        """
        folder = Path(self.origin["model_name_or_path"]) if self.origin else None
        if folder is None or not folder.is_dir() or model.model_card_data.base_model_revision is not None:
            return
        weights = sorted(folder.glob("*.safetensors"))
        stamps = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in weights]
        model.model_card_data.base_model_revision = hashlib.sha1(str(stamps).encode()).hexdigest()

    @property
    def modalities(self) -> list[str]:
        """The kinds of inputs that `encode` takes."""
        return ["text"] if self.model.config.text_only else ["text", "image"]

    @property
    def tokenizer(self):
        """The tokenizer of the LLM."""
        return getattr(self.processor, "tokenizer", self.processor)

    @property
    def max_seq_length(self) -> int:
        """Tokens that a text is cut to. The prompts are not counted."""
        return self.tokenizer.model_max_length

    @max_seq_length.setter
    def max_seq_length(self, value: int) -> None:
        self.tokenizer.model_max_length = value

    def get_embedding_dimension(self) -> int:
        """D, the dimensions of an embedding."""
        return self.model.config.projection_dim

    def preprocess(
        self,
        inputs: list,
        prompt: str | None = None,
        exclude: str | list[str] | None = None,
        max_length: int | None = None,
        processing_kwargs: dict | None = None,
        **kwargs,
    ) -> dict[str, torch.Tensor]:
        """Turn texts or images into tensors for `forward`.

        Args:
            inputs: B texts or B images, not both. Images are PIL images, arrays or paths of image files. {"text": x} is a text.
            prompt: put before every text, also before the excluded ones.
            exclude: one or more texts that the queries exclude.
            max_length: tokens that texts are cut to. Default: `max_seq_length`.
            processing_kwargs: {"text": {...}, "image": {...}} for the tokenizer and the image processor.

        Returns:
            `input_ids` and `attention_mask` (B, N), or `pixel_values` (B, C, H, W). With `exclude` also `excluded_input_ids`
            and `excluded_attention_mask` (E, N').

        Raises:
            FileNotFoundError: an input looks like the path of an image file, and there is no such file.
            ValueError: inputs of several kinds, an image that cannot be read, a URL, an empty `exclude`, or one that names
                an input.
        """
        excluded = [exclude] if isinstance(exclude, str) else exclude
        if excluded is not None:
            if len(exclude) == 0:
                raise ValueError(f"exclude={exclude!r} names nothing: give one or more texts, or leave it out.")
            refuse_excluding_itself([x.get("text") if isinstance(x, dict) else x for x in inputs], excluded)
        if not self.model.config.text_only:
            inputs = [_picture_or_text(x) for x in inputs]
        are_images = infer_batch_modality(inputs, supported_modalities=self.modalities) == "image"
        inputs = [next(iter(x.values())) if isinstance(x, dict) and len(x) == 1 else x for x in inputs]  # {"image": picture}
        options = processing_kwargs or {}
        text_options = {"max_length": max_length, **options.get("text", {})}
        if are_images:
            features = dict(self.processor(images=inputs, return_tensors="pt", **options.get("image", {})))
        else:
            features = self._tokenize(inputs, prompt, **text_options)
        if excluded is not None:
            tokens = self._tokenize(list(excluded), prompt, **text_options)
            features |= {f"excluded_{name}": value for name, value in tokens.items()}
        return features

    def _tokenize(self, texts: list[str], prompt: str | None, **options) -> dict[str, torch.Tensor]:
        foreign = [text for text in texts if not isinstance(text, str)]
        if foreign:
            raise ValueError(f"Expected texts, and one of them is {foreign[0]!r}: give strings.")
        options = {"padding": True, "truncation": True, **options}
        return dict(self.processor(text=[(prompt or "") + text for text in texts], return_tensors="pt", **options))

    def forward(
        self,
        features: dict[str, torch.Tensor],
        num_prompts: int | None = None,
        aspect_weights: list[float] | None = None,
        exclude: str | list[str] | None = None,
    ) -> "SentenceFeatures":
        """Embed a batch.

        Args:
            features: from `preprocess`.
            num_prompts, aspect_weights: as for `encode`.
            exclude: not used here; `preprocess` has put the tokens of the excluded texts into `features`.

        Returns:
            The features with `prompt_embeds` (B, m, D / K) and `sentence_embedding` (B, D * m / K), both float32.
        """
        K = self.model.config.num_prompts
        m = checked_count(num_prompts, K, self.model.config.joint_projection)

        def embed_texts(prefix: str) -> torch.Tensor:
            ids, mask = features[f"{prefix}input_ids"], features[f"{prefix}attention_mask"]
            return self.model.get_text_features(ids, mask, num_prompts=m).prompt_embeds

        if "pixel_values" in features:
            pixels = {name: features[name] for name in self.processor.image_processor.model_input_names if name in features}
            segments = self.model.get_image_features(**pixels).prompt_embeds[:, :m]
        else:
            segments = embed_texts("")
        segments = segments.float()  # (B, m, D/K)
        excluded = embed_texts("excluded_").float() if "excluded_input_ids" in features else None
        weights = None if aspect_weights is None else checked_weights(aspect_weights, K).to(segments.device)  # (K,)
        embeds = assembled(segments, weights, excluded)  # (B, m * D/K)
        return SentenceFeatures({**features, "prompt_embeds": segments, "sentence_embedding": embeds})


class SentenceFeatures(dict):
    """Features of a batch, which say why a kind of embedding is not among them."""

    def __missing__(self, name: str):
        if name == "token_embeddings":
            raise ValueError(
                "output_value='token_embeddings': MP-CLIP embeds a text as a whole, through its prompts, and has no embedding "
                "of each token. Use output_value='sentence_embedding', or output_value=None, which also gives the segments of "
                "each text, as `prompt_embeds`."
            )
        raise KeyError(name)


def _picture_or_text(x):
    """A string, a path or {"image": path} as an opened picture, where it names one. Other inputs are returned unchanged."""
    if isinstance(x, dict) and isinstance(x.get("image"), (str, Path)):
        return x | {"image": open_named(x["image"])}
    if isinstance(x, Path):
        return open_named(x)
    picture = picture_named(x) if isinstance(x, str) else None
    return x if picture is None else picture
