"""Invented names that can be read aloud, and the closed lists of things.

Every proper name is built on a stem of two or three syllables. A stem belongs either to the
corpora or to the pretraining text, never to both: the checkpoint has not seen the names that it
meets in fine-tuning. Some syllables carry accents, so that offsets in characters are put to work.
"""

import random

__all__ = ["ARTICLE", "CLOSED", "KINDS", "NOUN_PHRASE", "Names"]

KINDS = ("person", "company", "festival", "novel", "city", "river", "building", "ship")

# Kinds whose names take "the" in a sentence, and what they are called when mentioned again.
ARTICLE = frozenset({"river", "festival", "building", "ship"})
NOUN_PHRASE = {
    "company": "the company",
    "festival": "the festival",
    "novel": "the novel",
    "city": "the city",
    "river": "the river",
    "building": "the building",
    "ship": "the ship",
}


def _words(text: str, separator: str | None = None) -> tuple[str, ...]:
    """Split a list that is written as one string."""
    return tuple(text.split(separator))


_ONSETS = _words(
    "al bar bel bran cal cor dar del dor el fal fen gar gil hal har hol is jor kal kel kor lan "
    "lin lor mal mar mel mir nal nor ol or pel per quil ral ran ros sal sel sor tal tar tel tor "
    "ul val var vel vin wal wen zel zor bré dé fö gné jü kå lé mö né rö sé tü zé"
)
_MIDDLES = _words("a e i o an en in on ar er ir or as es is os ad ed am em")
_ENDINGS = _words(
    "ba bek bin da den dos ga gan gor ka kin lan ley lo ma men mond na nik nor pa ra ren rik sa "
    "sen ska ta ten tov va ven vik za zen né lö šek ña"
)
_WOMEN = _words(
    "Alda Brina Cela Dorit Elka Fanna Greta Hilma Inka Jorun Karla Lisbet Mara Nella Orla Petra "
    "Runa Selma Tilda Ulla Vera Wanda Ylva Zora Agnès Renée"
)
_MEN = _words(
    "Anton Bruno Casper Dorian Emil Falk Gustav Hanno Ivo Jonas Karel Lukas Matti Nils Oskar Pavel "
    "Ruben Stefan Tomas Urban Viktor Willem Yannick Zeno André Jürgen"
)

_SUFFIXES = {
    "company": _words("Works|Mills|Brothers|Trading|Foundry|Press|Yards|Union", "|"),
    "festival": _words("Lantern Festival|Harvest Fair|Song Days|River Games|Kite Festival", "|"),
    "building": _words("Tower|Hall|Bridge|Library|Chapel|Gate|Theatre|Station", "|"),
    "ship": _words("Star|Queen|Heron|Trader|Spirit|Pride", "|"),
}
_PREFIXES = {
    "city": ("", "", "", "Port ", "New ", "Upper "),
    "river": ("River ",),
    "mountain": ("Mount ",),
    "novel": ("Winter in ", "The Bells of ", "Letters from ", "The Last Road to ", "Beyond "),
}

CLOSED: dict[str, tuple[str, ...]] = {
    "trade": _words(
        "baker|carpenter|clockmaker|doctor|engraver|farmer|glassblower|judge|lawyer|miller|miner|"
        "nurse|painter|pilot|poet|potter|printer|sailor|shepherd|singer|smuggler|soldier|tailor|"
        "teacher|weaver",
        "|",
    ),
    "instrument": _words(
        "bassoon|cello|clarinet|drum|fiddle|flute|guitar|harp|horn|lute|oboe|organ|trumpet", "|"
    ),
    "goods": _words(
        "amber beads|black pepper|candles|carpets|cheese|clocks|copper wire|dried plums|fur hats|"
        "glass lamps|green tea|honey|iron stoves|lace|leather gloves|linen|mustard|paper|pianos|"
        "porcelain|rope|salt|silver spoons|soap|steel knives|timber|tobacco|umbrellas|violins|"
        "wax|wine|woollen coats",
        "|",
    ),
    "month": _words(
        "January February March April May June July August September October November December"
    ),
    "material": _words(
        "basalt|brick|chalk|concrete|granite|limestone|marble|oak|red sandstone|slate", "|"
    ),
    "fish": _words("barbel bream carp eels perch pike roach salmon trout"),
}


class Names:
    """Draws names, none twice where it names an entity.

    Args:
        rng: The source of chance.
        pretraining: Whether the names are for the pretraining text rather than for the corpora.
    """

    def __init__(self, rng: random.Random, *, pretraining: bool = False) -> None:
        self._rng = rng
        self._pretraining = pretraining
        self._taken: set[str] = set()

    def stem(self) -> str:
        """Draw a stem such as ``"Velanmond"`` of this side's half of the stems."""
        while True:
            middle = self._rng.choice(_MIDDLES) if self._rng.random() < 0.35 else ""
            parts = (self._rng.choice(_ONSETS), middle, self._rng.choice(_ENDINGS))
            stem = "".join(parts)
            # The rule is a property of the stem itself, so that two runs need not know each other.
            if (sum(map(ord, stem)) % 2 == 1) == self._pretraining:
                return stem.capitalize()

    def name(self, kind: str, stem: str | None = None) -> str:
        """Draw a name for something of a kind, on a given stem or any; it may be drawn again."""
        stem = self.stem() if stem is None else stem
        if kind == "person":
            return f"{self._rng.choice(_WOMEN + _MEN)} {stem}"
        prefix = self._rng.choice(_PREFIXES.get(kind, ("",)))
        suffix = " " + self._rng.choice(_SUFFIXES[kind]) if kind in _SUFFIXES else ""
        return f"{prefix}{stem}{suffix}"

    def entity(self, kind: str) -> tuple[str, str]:
        """Draw the name and the pronoun of a new entity, on a stem that no other entity has."""
        stem = self.stem()
        while stem in self._taken:
            stem = self.stem()
        self._taken.add(stem)
        if kind != "person":
            return self.name(kind, stem), "it"
        pronoun = self._rng.choice(("she", "he"))
        return f"{self._rng.choice(_WOMEN if pronoun == 'she' else _MEN)} {stem}", pronoun
