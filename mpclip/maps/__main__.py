"""Draws where in a picture or video each prompt's answer to a text comes from.

    mpclip maps --model runs/demo/multi_prompt --image scene.png --text "a dog" --out dog.png
    mpclip maps --model runs/demo/multi_prompt --image scene.png --text "a dog" --kind attention --out attention.png
    mpclip maps --model runs/clips --video clip.mp4 --text "a dog moves left" --out clip.png

The sheet shows the picture, the sum of all maps, and the map of each prompt, with the prompt's part of the cosine of picture
and text. Of a video, each frame has a row. Coloured places are above the mean, the same colour meaning the same for all
prompts. Kinds of maps:

    occlusion   what the score loses without a place (the default)
    value       what each place says about the text
    attention   how much the pooling weighs each place, whatever the text
    gradient    how much each place moves the score

docs/evaluation/pointing.md says how far to trust them.

The Python files of the checkpoint are run (trust_remote_code=True). Give only checkpoints that you trust.
"""

import argparse
from pathlib import Path

from mpclip.argument_types import count
from mpclip.command import start
from mpclip.hardware import usable_device
from mpclip.maps import BEST, KINDS


def make_parser(prog: str) -> argparse.ArgumentParser:
    """The parser of the command."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="MP-CLIP checkpoint: a folder or a Hub id; its Python files are run")
    shown = parser.add_mutually_exclusive_group(required=True)
    shown.add_argument("--image", metavar="FILE", help="a picture")
    shown.add_argument("--video", metavar="FILE", help="a video file (needs the package av)")
    parser.add_argument("--text", required=True, help="what to look for, written as captions are: 'a dog', not 'dog'")
    parser.add_argument("--out", required=True, type=Path, metavar="OUT.png", help="the picture to write")
    parser.add_argument("--kind", choices=KINDS, default=BEST, help="kind of map (default: %(default)s)")
    parser.add_argument("--frames", type=count, default=8, help="frames to take from a video (default: %(default)s)")
    parser.add_argument("--device", type=usable_device, help="cpu, cuda, cuda:1, ... (default: the GPU if there is one)")
    return parser


def main(arguments: list[str] | None = None, prog: str = "python -m mpclip.maps") -> None:
    """The command. torch is loaded when it runs, and not for `--help`.

    Args:
        arguments: words of the command line; None takes those of the process.
        prog: name of the command in messages.

    Raises:
        SystemExit: code 2 for a wrong command line; code 1 and one line for an error that the user can fix.
    """
    parser = make_parser(prog)
    options = parser.parse_args(arguments)
    try:
        print(run(options))
    except (ImportError, OSError, ValueError) as error:
        raise SystemExit(f"{parser.prog}: {' '.join(str(error).split())}") from error


def run(options: argparse.Namespace) -> str:
    """Draw, and return what to print: the parts of the score, and the file."""
    if options.out.suffix.lower() != ".png":
        raise ValueError(f"--out {options.out}: expected a name that ends in .png")
    if options.image is not None:
        from modeling_mpclip.picture_files import open_named

        picture = {"image": open_named(options.image)}  # before the model takes its time
    else:
        from modeling_mpclip.video_files import video_frames

        picture = {"clip": video_frames(options.video, options.frames)}

    from mpclip.encoding import load_encoder, refuse_unfit
    from mpclip.maps.drawing import draw_maps
    from mpclip.maps.prompt_maps import prompt_maps
    from mpclip.maps.seen import refuse_peer

    refuse_unfit(options.model)
    encoder = load_encoder(options.model, device=options.device)
    refuse_peer(encoder)
    found = prompt_maps(encoder.model, encoder.processor, options.text, kind=options.kind, **picture)
    draw_maps(found, options.out)
    width = max(map(len, found.prompts))
    lines = [f"{name:<{width}}  {share:+.3f}" for name, share in zip(found.prompts, found.shares, strict=True)]
    return "\n".join([f"{'cosine':<{width}}  {found.score:+.3f}, the sum of:", *lines, "", f"written: {options.out}"])


if __name__ == "__main__":
    start(main)
