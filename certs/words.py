"""A key as eight words, so that two people can compare it by telephone.

One word stands for one byte of the SHA-256 of the key. The rule of the list: 256 English nouns and plain words of four to eight
letters, no two with the same first three letters and no two that differ by one letter, so that a word misheard is not
another word. The list never changes: a changed word would change the name of every key.
"""

from certs.party import CertificateError

WORD_COUNT = 8  # 64 bits of the fingerprint: an impostor has to make about 2**64 key pairs to match one of them

_LIST = (
    "acorn airport album alder almond amber anchor angle apple apron arrow artist aspen atlas attic autumn avenue badge "
    "bagel baker bamboo banjo barrel basket beacon berry bicycle birch bishop blanket bonnet bottle branch bridge bronze "
    "bucket buffalo button cabin cactus camel candle carbon castle cedar cellar chapel cherry chimney cinema circle citrus "
    "clover cobalt coffee comet copper coral cotton cradle cricket crystal curtain dagger dairy dancer delta dentist desert "
    "diamond doctor dolphin domino donkey dragon drummer eagle echo eclipse editor elbow elephant emerald engine envelope "
    "estate evening fabric falcon family farmer feather fender fiddle finger flame flute forest fossil fountain funnel "
    "gadget galaxy garden gentle glacier goblet golden granite guitar hammer hazel helmet heron hobby honey horizon hotel "
    "hunter iceberg igloo indigo insect island ivory jacket jaguar jasmine jelly jockey journey jungle kayak kennel kettle "
    "kidney kitchen koala ladder lagoon lantern laurel lemon leopard letter lilac linen lizard lobster locket lumber lunch "
    "magnet mango maple marble meadow melody mirror mitten morning motor muffin museum napkin needle nephew nickel noodle "
    "north nutmeg oasis ocean olive onion orange orbit orchid otter oven oyster paddle palace panda parrot pastry peanut "
    "pebble pencil pepper piano pigeon pillow planet plum poem poppy potato prairie puzzle pyramid quarry queen quilt "
    "rabbit radio raven ribbon river robin salmon sandal satin school season shadow shelter silver spider spoon statue "
    "summer sunset table tailor temple thunder ticket tiger timber tomato torch trumpet tulip turkey umbrella unicorn "
    "valley vanilla velvet vessel village violin volcano voyage waffle wagon walnut water window wombat yacht yellow zebra "
    "zipper zone "
)
WORDS: tuple[str, ...] = tuple(_LIST.split())
_INDEX = {word: value for value, word in enumerate(WORDS)}


def words_of(fingerprint: bytes) -> str:
    """Return the words that people read to each other; `fingerprint` is the SHA-256 of a key."""
    if len(fingerprint) < WORD_COUNT:
        raise CertificateError(f"a fingerprint has 32 bytes, this one has {len(fingerprint)}: pass the SHA-256 of the key")
    return "-".join(WORDS[byte] for byte in fingerprint[:WORD_COUNT])


def compare_words(spoken: str, fingerprint: bytes, whose: str) -> None:
    """Return if `spoken` (dashes, spaces, any case) names `fingerprint`; CertificateError with the first difference."""
    heard = spoken.lower().replace("-", " ").split()
    expected = words_of(fingerprint).split("-")
    if len(heard) != WORD_COUNT:
        raise CertificateError(f"{whose}: {len(heard)} words were given, a key has {WORD_COUNT}: type all of them in order")
    for place, (word, right) in enumerate(zip(heard, expected, strict=True), start=1):
        if word not in _INDEX:
            raise CertificateError(f"{whose}: word {place}, '{word}', is not on the word list: ask for it again, spelled out")
        if word != right:
            raise CertificateError(f"{whose}: word {place} does not match this key: do not go on, somebody may have swapped it")
