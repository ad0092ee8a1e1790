"""The page: its controls, and which action each of them calls."""

import functools
import html
import io
import logging
from collections.abc import Callable, Sequence

import PIL.Image

from mpclip.app import actions
from mpclip.app.collection import Collection
from mpclip.app.gradio_package import gradio
from mpclip.app.uploads import FORMATS, MAX_BYTES, read_upload
from mpclip.maps import BEST, KINDS
from mpclip.search.search import Hit

gr = gradio()
logger = logging.getLogger(__name__)

HIGHEST_WEIGHT = 3.0
KEPT = 3600  # seconds for which files of pictures are kept
EXAMPLES = 4
# Models are not made for several threads, and the bound of `read_upload` is one of the process.
ONE_AT_A_TIME = {"concurrency_id": "models", "concurrency_limit": 1, "api_visibility": "private"}
ABOUT_MAPS = (
    "Choose a picture above to see where in it the query is found, prompt by prompt. This takes some seconds. Coloured places "
    "are above the mean; the numbers are parts of the cosine of picture and text."
)
CSS = """
.gradio-container { max-width: 1200px !important; margin: 0 auto !important; }
.pictures .grid-wrap { max-height: none !important; overflow: visible !important; }
.pictures .grid-container { grid-template-columns: repeat(auto-fill, minmax(min(150px, 45%), 1fr)) !important; }
.pictures .gallery-item, .pictures .thumbnail-item { height: 100%; }
.pictures .thumbnail-item { aspect-ratio: auto !important; display: flex !important; flex-direction: column; }
.pictures .thumbnail-item > img { aspect-ratio: 1; height: auto !important; object-fit: contain !important; flex: none; }
.pictures .caption-label { position: static !important; max-width: none !important; max-height: none !important;
  padding: .4rem .5rem !important; border: 0 !important; background: none !important; text-align: left; white-space: normal; }
"""


def theme() -> "gr.themes.Base":
    """Gradio's own look, with colours in which white and grey words can be read (a contrast of 4.5 and more)."""
    base = gr.themes.Default(primary_hue="indigo", neutral_hue="stone")
    return base.set(
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
    )


def build_page(opened: Sequence[Collection]) -> "gr.Blocks":
    """The page of one or several models.

    Args:
        opened: collections of the same pictures.

    Returns:
        the page, for `serve`.
    """
    title = f"{opened[0].size:,} pictures"
    with gr.Blocks(title=f"MP-CLIP: {title}", analytics_enabled=False, delete_cache=(KEPT, KEPT)) as page:
        gr.Markdown(f"# Search {title}\n\nwith {' and '.join(f'**{_plain(one.name)}**' for one in opened)}")
        with gr.Tab("Search"):
            _search_tab(opened)
        with gr.Tab("Classify"):
            _classify_tab(opened)
    return page


# Search -----------------------------------------------------------------------------------------------------------


def _search_tab(opened: Sequence[Collection]) -> None:
    with gr.Row():
        with gr.Column(scale=3, min_width=280):
            text = gr.Textbox(
                label="What to find", placeholder="a cat on a pink background", max_length=actions.MOST_CHARACTERS, lines=1
            )
            exclude = gr.Textbox(
                label="And not",
                info="What the pictures shall not show, one text per line (Shift+Enter begins a line).",
                placeholder="a dog",
                max_length=actions.MOST_CHARACTERS,
                lines=1,
                max_lines=actions.MOST_TEXTS,
            )
            top = gr.Slider(1, actions.MOST_HITS, value=12, step=1, label="Pictures to show")
            button = gr.Button("Search", variant="primary")
        with gr.Column(scale=2, min_width=240):
            picture = picture_input("Like this picture (with a text: both count the same)")
    if captions := opened[0].captions(EXAMPLES):
        gr.Examples([[caption] for caption in captions], [text], label="Captions of some pictures, to begin with")
    controls = [_prompt_controls(one) for one in opened]
    asked = gr.State("")
    found, galleries = [], []
    with gr.Row():
        for one in opened:
            with gr.Column(min_width=300):
                galleries.append(
                    gr.Gallery(
                        label=f"Found by {one.name}",
                        columns=4 if len(opened) == 1 else 3,
                        object_fit="contain",
                        height="auto",
                        allow_preview=False,
                        interactive=False,
                        buttons=[],
                        elem_classes=["hits", "pictures"],
                    )
                )
                found.append(gr.State([]))
    maps = _map_controls()

    inputs = [text, picture, exclude, top, *(control for group in controls for control in group)]
    outputs = [asked, *found, *galleries, maps["gallery"], maps["told"]]
    search = functools.partial(_search, opened, [len(group) for group in controls])
    gr.on([button.click, text.submit, exclude.submit], told(search), inputs, outputs, **ONE_AT_A_TIME)
    again = [control.release for group in controls for control in group] + [top.release]
    gr.on(again, told(functools.partial(search, again=True)), inputs, outputs, trigger_mode="always_last", **ONE_AT_A_TIME)
    for one, hits, gallery in zip(opened, found, galleries, strict=True):
        inputs = [hits, asked, maps["text"], maps["kind"]]
        gallery.select(_shows_maps(one), inputs, [maps["gallery"], maps["told"]], **ONE_AT_A_TIME)


def _prompt_controls(one: Collection) -> list:
    """A slider for the number of prompts, and one for the weight of each; none for a model without prompts."""
    names = one.prompts()
    if not names:
        return []
    with gr.Accordion(f"Prompts of {one.name}", open=False):
        gr.Markdown("Each prompt reads the query in its own way and scores its own part of a picture's embedding.")
        count = gr.Slider(
            1, len(names), value=len(names), step=1, label="Prompts used", info="The first ones; the others do not count."
        )
        with gr.Row():
            weights = [
                gr.Slider(0, HIGHEST_WEIGHT, value=1, step=0.1, label=f"Weight of “{name}”", min_width=300) for name in names
            ]
    return [count, *weights]


def _map_controls() -> dict:
    with gr.Accordion("Where the query is found", open=True):
        told_ = gr.Markdown(ABOUT_MAPS)
        with gr.Row():
            text = gr.Textbox(
                label="Text of the maps", info="Empty: the query itself.", max_length=actions.MOST_CHARACTERS, min_width=240
            )
            kind = gr.Dropdown(
                list(KINDS),
                value=BEST,
                label="Kind of map",
                info="docs/evaluation/pointing.md compares them.",
                min_width=240,
            )
        gallery = gr.Gallery(
            label="Maps of each prompt",
            columns=4,
            object_fit="contain",
            height="auto",
            interactive=False,
            visible=False,
            buttons=["fullscreen"],
            elem_classes=["maps", "pictures"],
        )
    return {"text": text, "kind": kind, "gallery": gallery, "told": told_}


def _search(
    opened: Sequence[Collection],
    counts: Sequence[int],
    text: str,
    picture: str | None,
    exclude: str,
    top: float,
    *controls: float,
    again: bool = False,
) -> list:
    """The query, the hits of each model, their galleries, and no maps. `again`: a slider moved; without a query, nothing."""
    if again and not text.strip() and picture is None:
        return [gr.skip()] * (1 + 2 * len(opened) + 2)
    opened_picture = read_upload(picture) if picture else None
    found, remaining = [], list(controls)
    for one, count in zip(opened, counts, strict=True):
        own, remaining = remaining[:count], remaining[count:]
        how = {"prompts": int(own[0]), "weights": own[1:]} if own else {}
        found.append(actions.find(one, text, opened_picture, actions.lines_of(exclude), top=int(top), **how))
    shown = [
        gr.Gallery([(_opened(small), line) for small, line in actions.captioned(hits)], selected_index=None) for hits in found
    ]
    return [text.strip(), *found, *shown, gr.Gallery([], visible=False), ABOUT_MAPS]


def _shows_maps(one: Collection) -> Callable:
    """What a click on a picture that `one` found does."""

    def show(hits: list[Hit], asked: str, text: str, kind: str, clicked: gr.SelectData):
        if not isinstance(clicked.index, int) or not 0 <= clicked.index < len(hits):
            raise ValueError("This picture is no longer among the answers. Search again.")
        hit = hits[clicked.index]
        maps = actions.maps_of(one, hit, text.strip() or asked, kind)
        about = f"**{_plain(hit.caption or hit.picture)}** (found by {_plain(one.name)})"
        shown = [(_in_bytes(picture), line) for picture, line in maps]
        return gr.Gallery(shown, visible=True, selected_index=None), f"{about}\n\n{ABOUT_MAPS}"

    return told(show)


# Classification ---------------------------------------------------------------------------------------------------


def _classify_tab(opened: Sequence[Collection]) -> None:
    with gr.Row():
        with gr.Column(min_width=280):
            picture = picture_input("Picture to classify")
        with gr.Column(min_width=280):
            names = gr.Textbox(
                label="Classes",
                info=f"2 to {actions.MOST_CLASSES} names, one per line or with commas between them.",
                placeholder="a cat, a dog, a bicycle",
                lines=5,
                max_length=actions.MOST_CHARACTERS * 10,
            )
            button = gr.Button("Classify", variant="primary")
    with gr.Row():
        labels = [gr.Label(label=f"By {one.name}", num_top_classes=10, min_width=280) for one in opened]

    def classify(picture: str | None, names: str) -> list[dict[str, float]]:
        chosen = actions.class_names(names)
        if picture is None:
            raise ValueError("There is no picture yet. Add one to classify.")
        read = read_upload(picture)
        return [actions.classify(one, read, chosen) for one in opened]

    gr.on([button.click], told(classify), [picture, names], labels, **ONE_AT_A_TIME)


# Parts ------------------------------------------------------------------------------------------------------------


def picture_input(label: str) -> "gr.Image":
    """A control for a picture of the visitor. Its value is the path of the file, which `read_upload` checks and decodes.

    Gradio itself would decode every picture, whatever its size and format, before a function sees it.
    """
    sent = f"Drop a picture here, or choose one\n{', '.join(FORMATS)}; at most {MAX_BYTES // 2**20} MB"
    control = gr.Image(label=label, type="filepath", sources=["upload", "clipboard"], placeholder=sent, height=260, buttons=[])
    control.preprocess = lambda payload: None if payload is None else payload.path  # in Gradio's folder: that is checked before
    return control


def told(action: Callable) -> Callable:
    """The action, whose errors the page shows in plain words.

    A ValueError is about what the visitor gave, and is shown as it is. Other errors may name files of this machine: they go to
    the log.
    """

    @functools.wraps(action)
    def wrapped(*arguments):
        try:
            return action(*arguments)
        except ValueError as error:
            raise gr.Error(html.escape(str(error)), duration=10, print_exception=False) from error
        except Exception as error:
            logger.exception("An action of the app failed")
            raise gr.Error("This did not work, and the cause is in the log of the server.", print_exception=False) from error

    return wrapped


def _plain(text: str) -> str:
    """Text in Markdown that is shown as it is."""
    return "".join(f"\\{c}" if c in "\\`*_{}[]()<>#+-.!|~$" else c for c in text.replace("\n", " "))


def _opened(jpeg: bytes) -> PIL.Image.Image:
    return PIL.Image.open(io.BytesIO(jpeg))


def _in_bytes(picture) -> PIL.Image.Image:
    """(H, W, 3) float in 0..1 -> a picture."""
    return PIL.Image.fromarray((picture * 255).round().clip(0, 255).astype("uint8"))
