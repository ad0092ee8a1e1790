"""Maps: where in a picture or a clip each segment of its embedding comes from, and what that has to do with a text.

    found = prompt_maps(model, processor, "a dog", image=picture)   prompt_maps.py   found.maps (1, K, H, W), found.shares (K,)
    draw_maps(found, "dog.png")                                     drawing.py       a sheet of the picture and its maps

seen.py runs the vision encoder and knows where its tokens lie; kinds.py and gradients.py make the kinds of map.
"""

KINDS = ("occlusion", "value", "attention", "gradient")  # kinds.py says what they are
BEST = "occlusion"  # wins the pointing game (docs/evaluation/pointing.md)
