"""The word lists of the rules for captions: colours, things and relations of everyday photographs.

A thing has a name, which a rule reads and writes, and evidence: every word that may mean it or imply it. A thing counts as
absent from a picture only if no caption has a word of its evidence. So the evidence is wide: "bike" may mean a motorcycle too.
"""

from typing import NamedTuple

COLOURS = ("black", "white", "red", "blue", "green", "yellow", "orange", "pink", "brown", "purple", "grey", "gray", "tan")
SAME_COLOURS = ({"grey", "gray"}, {"brown", "tan"}, {"pink", "purple"})  # near enough to be true of one thing


class Thing(NamedTuple):
    """A thing that captions name.

    Attributes:
        kind: things of one kind replace one another.
        name: in the singular.
        evidence: words that may mean the thing or imply it; its name and plural are among them.
    """

    kind: str
    name: str
    evidence: frozenset[str]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _things(kind: str, table: str) -> list[Thing]:
    """Read "name: evidence ...", one thing after another, over any number of lines. Name and plural need not be repeated."""
    names: dict[str, list[str]] = {}
    for word in table.split():
        if word.endswith(":"):
            evidence = names[word[:-1]] = []
        else:
            evidence.append(word)
    return [Thing(kind, name, frozenset({name, f"{name}s", *evidence})) for name, evidence in names.items()]


_GROUPS = """people person crowd group couple family others friends team players adult adults child children kid kids baby
    toddler someone"""
_MALE = f"""man men guy guys male males boy boys gentleman he him his himself father dad groom cowboy fisherman businessman
    {_GROUPS}"""
_FEMALE = f"woman women lady ladies female females girl girls she her herself mother mom bride {_GROUPS}"
_ANIMAL = "animal animals pet pets creature"

THINGS = [
    *_things("person", f"man: {_MALE} boy: {_MALE} woman: {_FEMALE} girl: {_FEMALE}"),
    *_things(
        "animal",
        f"""
        dog: puppy puppies greyhound greyhounds poodle terrier retriever shepherd labrador lab collie hound spaniel bulldog
            husky dalmatian beagle boxer pug corgi chihuahua pup pups canine doberman rottweiler {_ANIMAL}
        cat: kitten kittens {_ANIMAL}
        horse: pony ponies horseback rodeo bronco jockey carriage polo stallion mare {_ANIMAL}
        cow: cattle bull bulls calf calves ox oxen rodeo {_ANIMAL}
        bird: duck ducks seagull seagulls pigeon pigeons goose geese parrot eagle hawk swan gull gulls owl crane heron pelican
            {_ANIMAL}
        sheep: lamb lambs goat goats ram {_ANIMAL}
        elephant: {_ANIMAL}
        monkey: ape gorilla chimpanzee {_ANIMAL}
        """,
    ),
    *_things(
        "vehicle",
        """
        car: vehicle vehicles jeep truck van taxi cab automobile racecar traffic driving drives racing race atv buggy
        bus: buses vehicle vehicles traffic
        truck: vehicle vehicles jeep pickup car cars van traffic firetruck
        train: subway railway locomotive tracks rail trolley tram
        boat: canoe canoes kayak kayaks kayaker kayaking raft rafting rapids paddle paddling sailboat sailing ship rowing
            rowboat motorboat yacht jet
        bicycle: bike bikes biking biker bikers bicyclist bicyclists cyclist cyclists cycling cycle bmx unicycle tricycle
            motorcycle
        motorcycle: bike bikes biker bikers motorbike motorbikes motocross motorcyclist motorcyclists scooter atv moped
        airplane: plane planes jet aircraft helicopter
        """,
    ),
    *_things(
        "plaything",
        """
        ball: football soccer baseball basketball tennis volleyball softball rugby cricket golf hockey bowling toy toys
            juggling pitch pitcher game object
        frisbee: disc disk toy toys object
        skateboard: skateboarder skateboarders skateboarding skater skaters skating skates skate board boards trick ramp
        surfboard: surfer surfers surfing surfs surf board boards wave waves bodyboard
        snowboard: snowboarder snowboarders snowboarding board boards ski skis skier skiing slope
        kite: parachute parasail
        balloon: toy toys object
        guitar: instrument instruments band musician musicians music concert bass
        umbrella: parasol shade
        camera: photo photos photograph photographer picture pictures filming video
        book: reading reads read newspaper magazine
        rope: leash lead line climbing climber climbs cord string lasso tug
        """,
    ),
]

# What may stand around a thing that is replaced. After "soccer" or before "house", a ball or a dog is a part of something else.
BEFORE = _words(
    """a an the his her their its another one small large big little young old older wet tall long short furry fluffy playing
    riding holding throwing of on in with"""
).union(COLOURS)
AFTER = _words(
    """in on with and is at near over under to that who while through by from as down up into across along behind beside runs
    jumps plays stands sits walks has holds catches looks swims leaps rides carries chases wears running jumping playing
    standing sitting walking holding looking swimming leaping riding carrying chasing wearing laying lying dressed"""
)

# Nouns that stand behind a colour, each with words for the same thing in other captions; those after "|" are read there only.
_COLOURED = """
    shirt shirts t-shirt jersey sweater sweatshirt blouse uniform | top tee outfit clothing clothes
    jacket jackets coat coats vest suit hoodie wetsuit | outfit clothing clothes
    pants jeans trousers shorts trunks | outfit clothing clothes uniform bottoms
    hat hats cap caps helmet helmets bandanna headband | headgear
    dress dresses skirt gown bikini swimsuit | outfit clothing clothes
    shoes boots socks | sneakers
    gloves goggles sunglasses scarf
    hair beard | haired
    dog dogs puppy puppies | one ones
    cat cats kitten | one
    horse horses pony | one
    bird birds | one
    car cars truck van jeep | vehicle one
    ball balls | toy
    frisbee | disc toy
    bike bicycle motorcycle | one
    boat kayak canoe raft
    wall walls building fence door house
    bag backpack purse
    umbrella balloon kite
    collar leash harness
    couch chair bench sofa
    flower flowers
    slide swing tube
    bucket cup bottle box
    rope net
    carpet blanket towel
    sign banner flag
"""
_GROUPS_COLOURED = [[part.split() for part in line.partition("|")[::2]] for line in _COLOURED.strip().splitlines()]
COLOURED = {noun: frozenset(nouns + others) for nouns, others in _GROUPS_COLOURED for noun in nouns}
# Between a colour and its noun, as in "red soccer ball".
MATERIALS = _words(
    "soccer tennis hooded striped plastic rubber wooden dress tank baseball winter life sports leather metal knit long"
)

# Phrases of opposite meaning: pattern, its opposite, words of the opposite. The words that follow make them prepositions of
# place: "climbs up a rock", not "dressed up".
_DETERMINER = r"(?= (?:a|an|the|some|his|her|their|its|another)\b(?! (?:air|distance)\b))"
_SLOPES = "hill|stairs|steps|mountain|rock|cliff|ramp|slope|tree|ladder|hillside|staircase"
_SLOPE = rf"(?= (?:a|an|the|some)(?: \w+)? (?:{_SLOPES})\b)"
OPPOSITES = [
    (r"in front of", "behind", ("behind",)),
    (rf"behind{_DETERMINER}", "in front of", ("front",)),
    (rf"above{_DETERMINER}", "below", ("below", "beneath", "under", "underneath")),
    (rf"below{_DETERMINER}", "above", ("above", "over")),
    (rf"(?<!out )over{_DETERMINER}", "under", ("under", "underneath", "beneath", "below", "through")),
    (rf"under{_DETERMINER}", "over", ("over", "above", "on", "onto")),
    (rf"underneath{_DETERMINER}", "above", ("over", "above", "on", "onto")),
    (r"on top of", "underneath", ("under", "underneath", "beneath", "below")),
    (rf"into{_DETERMINER}", "out of", ("out", "from", "emerges", "leaving")),
    (rf"out of{_DETERMINER}", "into", ("into", "in", "enters", "entering")),
    (rf"inside(?: of)?{_DETERMINER}", "outside", ("outside", "outdoors")),
    (rf"outside(?: of)?{_DETERMINER}", "inside", ("inside", "indoors", "in")),
    (rf"up{_SLOPE}", "down", ("down", "descends", "descending", "slides", "sliding")),
    (rf"down{_SLOPE}", "up", ("up", "climbs", "climbing", "ascends")),
]

NEGATIONS = _words("no not without nobody none nothing never neither nor cannot isn't aren't doesn't don't")
# Words that say or suggest that there are several of something. "A dog is not running" may then be true of another dog.
SEVERAL = _words(
    """two three four five six seven eight nine ten several many some few group groups crowd crowds couple pair both other
    others another one each people family friends team players men women boys girls guys ladies children kids adults dogs
    puppies horses bikers riders runners teammates"""
)
