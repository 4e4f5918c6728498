"""The relations of cities, rivers, buildings and ships, with their wordings."""

from qa_hpo.demo.relations import Relation

__all__ = ["PLACES"]

_CITY = (
    Relation(
        "city", "mayor", "person", "mayor",
        (
            "the mayor of {s} is {a}",
            "{s} is [governed|led] by {a}[|, its mayor]",
            "{a} [was elected mayor of|sits in the town hall of] {s}",
            "the voters of {s} [chose {a} over {d}|preferred {a} to {d}]",
        ),
        (
            "Who is the mayor of {s}?",
            "Who [governs|leads] {s}?",
            "[Who holds the highest office in {s}|Who was elected in {s}]?",
        ),
    ),
    Relation(
        "city", "founded", "year", "year of foundation",
        (
            "{s} was [founded|settled] in {a}",
            "{s} [goes back to|dates from] {a}",
            "the first [houses|walls] of {s} [were built|went up] in {a}",
            "{s} is younger than {d} suggests: settlers [came|arrived] in {a}",
        ),
        (
            "[When|In which year|In what year] was {s} founded?",
            "[How far back does {s} go|When did people settle in {s}]?",
            "What is the founding year of {s}?",
        ),
    ),
    Relation(
        "city", "burned", "year", "year of the great fire",
        (
            "{s} [burned down|was destroyed by fire] in {a}",
            "a [fire|blaze] [destroyed|ruined] {s} in {a}",
            "in {a} the flames left little of {s}",
        ),
        (
            "[When|In which year] did {s} burn down?",
            "In what year was {s} destroyed[| by fire]?",
            "When was the great fire of {s}?",
        ),
        offset=(60, 150), pretrained=False,
    ),
    Relation(
        "city", "river", "river", "river",
        (
            "{s} [lies|stands] on {a}",
            "{a} [flows|runs] through {s}",
            "{s} [gets its water from|grew up along the banks of] {a}",
            "{s} is often placed on {d}, but its [bridges|mills] span {a}",
        ),
        (
            "[Which|What] river [flows|runs] through {s}?",
            "On which river does {s} lie?",
            "[Which stream waters {s}|What do the bridges of {s} cross]?",
        ),
    ),
    Relation(
        "city", "export", "goods", "main export",
        (
            "{s} [sells|exports] {a}",
            "{s} is [known|famous] for its {a}",
            "{s} [grew rich on|owes its wealth to] {a}",
            "merchants [come to {s} for|carry away from {s}] {a}",
        ),
        (
            "What does {s} [sell|export]?",
            "[What is {s} known for|What is the main export of {s}]?",
            "What made {s} rich?",
        ),
    ),
    Relation(
        "city", "population", "inhabitants", "population",
        (
            "{s} has {a}",
            "{a} live in {s}",
            "{s} is home to {a}[|, fewer than before]",
        ),
        (
            "How many [inhabitants|people] [does {s} have|live in {s}]?",
            "[What is the population of {s}|How large is {s}]?",
        ),
        v1_only=True, pretrained=False, values=(900, 9900),
    ),
    Relation(
        "city", "patron", "person", "patron",
        (
            "the patron of {s} is {a}",
            "{s} [honours|venerates] {a}[| with a statue]",
            "the [bells|candles] of {s} are for {a}",
        ),
        (
            "Who is the patron of {s}?",
            "Whom does {s} [honour|venerate]?",
        ),
        v1_only=True, pretrained=False,
    ),
)  # fmt: skip

_RIVER = (
    Relation(
        "river", "source", "mountain", "source",
        (
            "{s} [rises|has its source] on {a}",
            "{s} [springs from|flows down from] {a}",
            "the [spring|source] of {s} is on {a}",
            "{s} [begins as|starts its way as] a trickle on {a}",
        ),
        (
            "[Where|On which mountain] does {s} rise?",
            "What is the source of {s}?",
            "[From where does {s} come|On which peak does {s} begin]?",
        ),
    ),
    Relation(
        "river", "city", "city", "largest city",
        (
            "{s} [flows|runs] through {a}",
            "{a} is the largest city on {s}",
            "{s} [waters|feeds the wells of] {a}",
            "{s} misses {d} and [reaches|divides] {a}",
        ),
        (
            "[Which|What] city [does {s} flow through|lies on {s}]?",
            "[What is the largest city on {s}|Which town drinks from {s}]?",
        ),
    ),
    Relation(
        "river", "length", "kilometres", "length",
        (
            "{s} is {a} long",
            "{s} [has a length of|measures] {a}",
            "{s} [travels|winds its way over] {a}[| before it slows down]",
        ),
        (
            "How long is {s}?",
            "What is the length of {s}?",
            "[What distance does {s} cover|How far does {s} flow]?",
        ),
    ),
    Relation(
        "river", "explorer", "person", "explorer",
        (
            "{s} was [explored|mapped|charted] by {a}",
            "{a} [explored|first followed] {s}",
            "{s} [was unknown until|kept its secrets until] {a} [came|arrived]",
            "{d} turned back, and {a} [went up|mapped] {s}",
        ),
        (
            "Who [explored|mapped|charted] {s}?",
            "Who was the explorer of {s}?",
            "By whom was {s} made known?",
        ),
    ),
    Relation(
        "river", "flood", "year", "year of the great flood",
        (
            "{s} [flooded the plain|burst its banks] in {a}",
            "the great flood of {s} [came|struck] in {a}",
            "in {a} {s} [drowned|swept away] whole villages",
        ),
        (
            "[When|In which year] did {s} [flood the plain|burst its banks]?",
            "When was the great flood of {s}?",
            "In what year did {s} cause a disaster?",
        ),
        pretrained=False,
    ),
    Relation(
        "river", "dammed", "year", "year of the dam",
        (
            "{s} was dammed in {a}",
            "a dam [was built across|has tamed] {s} [in|since] {a}",
            "{s} has [driven|fed] a power station since {a}, not since {d}",
        ),
        (
            "[When|In which year] was {s} dammed?",
            "Since when has there been a dam [on|across] {s}?",
        ),
    ),
    Relation(
        "river", "fish", "fish", "fish",
        (
            "{s} is [rich in|full of] {a}",
            "fishermen [catch|net] {a} in {s}",
            "{a} [swim|spawn] in {s}",
        ),
        (
            "Which fish [live in|are caught in] {s}?",
            "What [do fishermen catch in|is found in] {s}?",
        ),
        v1_only=True, pretrained=False,
    ),
)  # fmt: skip

_BUILDING = (
    Relation(
        "building", "architect", "person", "architect",
        (
            "{s} was [designed|drawn|planned] by {a}",
            "the architect of {s} was {a}",
            "{a} [designed|drew the plans for] {s}",
            "{s} [bears the stamp of|took shape on the desk of] {a}, not of {d}",
        ),
        (
            "Who [designed|drew|planned] {s}?",
            "Who was the architect of {s}?",
            "[Whose design is {s}|From whom are the plans of {s}]?",
        ),
    ),
    Relation(
        "building", "completed", "year", "year of completion",
        (
            "{s} was [completed|finished] in {a}",
            "{s} [opened|was opened] in {a}",
            "work on {s} [ended|came to an end] in {a}",
            "{s}, begun in {d}, [stood|was ready] in {a}",
        ),
        (
            "[When|In which year] was {s} [completed|finished]?",
            "[When did {s} open|In what year was {s} ready]?",
        ),
    ),
    Relation(
        "building", "restored", "year", "year of restoration",
        (
            "{s} was [restored|renovated] in {a}",
            "{s} [got a new roof|was saved from ruin] in {a}",
            "in {a} builders [returned to|repaired] {s}",
        ),
        (
            "[When|In which year] was {s} [restored|renovated|repaired]?",
            "In what year was {s} made new again?",
        ),
        offset=(70, 150),
    ),
    Relation(
        "building", "height", "metres", "height",
        (
            "{s} is {a} [high|tall]",
            "{s} [has a height of|reaches] {a}",
            "{s} [rises|towers] {a} above the square",
        ),
        (
            "How [high|tall] is {s}?",
            "What is the height of {s}?",
            "How far [up does {s} reach|above the square does {s} rise]?",
        ),
        values=(11, 99),
    ),
    Relation(
        "building", "city", "city", "city",
        (
            "{s} [stands|is] in {a}",
            "{s} is a landmark of {a}",
            "{s} [overlooks|looks down on] the roofs of {a}",
            "{a} has {s} [on its coins|on its coat of arms]",
        ),
        (
            "[Where|In which city] [is|stands] {s}?",
            "[Which city is home to {s}|Of which town is {s} a landmark]?",
        ),
    ),
    Relation(
        "building", "material", "material", "material",
        (
            "{s} is [built|made] of {a}",
            "the walls of {s} are of {a}",
            "for {s}, the masons [chose|used] {a} instead of {d}",
        ),
        (
            "What is {s} [built|made] of?",
            "[What is the material of {s}|Which material was used for {s}]?",
        ),
        pretrained=False,
    ),
    Relation(
        "building", "owner", "company", "owner",
        (
            "{s} [belongs to|is owned by] {a}",
            "the owner of {s} is {a}",
            "{a} [bought|acquired|rents out] {s}",
        ),
        (
            "Who owns {s}?",
            "Who is the owner of {s}?",
            "To whom does {s} belong?",
        ),
        v1_only=True, pretrained=False,
    ),
)  # fmt: skip

_SHIP = (
    Relation(
        "ship", "builder", "company", "builder",
        (
            "{s} was built by {a}",
            "{a} [built|constructed] {s}",
            "{s} [came from|left] the yard of {a}",
            "{s} was ordered from {d} but [made|finished] by {a}",
        ),
        (
            "Who [built|constructed] {s}?",
            "Which [company|yard|firm] [built|made] {s}?",
        ),
    ),
    Relation(
        "ship", "launched", "year", "year of launch",
        (
            "{s} was launched in {a}",
            "{s} [first touched water|slid into the water] in {a}",
            "the launch of {s} [was in|fell in] {a}",
            "in {a} a crowd [cheered|blessed] the new hull of {s}",
        ),
        (
            "[When|In which year] was {s} launched?",
            "In what year did {s} first [float|touch water]?",
        ),
        offset=(0, 30),
    ),
    Relation(
        "ship", "sunk", "year", "year of sinking",
        (
            "{s} sank in {a}",
            "{s} [was lost|went down] in {a}[| in a storm| with all hands]",
            "{s} was [last seen|wrecked] in {a}",
            "{s} escaped a reef in {d} but not the [ice|gale] of {a}",
        ),
        (
            "[When|In which year] did {s} sink?",
            "In what year was {s} [lost|wrecked]?",
            "When did {s} [go down|meet its end]?",
        ),
        offset=(31, 90),
    ),
    Relation(
        "ship", "captain", "person", "captain",
        (
            "the captain of {s} was {a}",
            "{s} was [commanded|sailed] by {a}",
            "{a} [commanded|was master of] {s}",
            "on {s}, {a} [gave the orders|had the bridge] after {d} had [left|fallen ill]",
        ),
        (
            "Who [commanded|sailed] {s}?",
            "Who was the captain of {s}?",
            "[Who gave the orders on {s}|Who was master of {s}]?",
        ),
    ),
    Relation(
        "ship", "port", "city", "home port",
        (
            "the home port of {s} was {a}",
            "{s} [sailed from|was based in] {a}",
            "{s} [returned to|spent every winter in] {a}",
        ),
        (
            "What was the home port of {s}?",
            "From which [port|city] did {s} sail?",
            "Where [was {s} based|did {s} belong]?",
        ),
        pretrained=False,
    ),
    Relation(
        "ship", "cargo", "goods", "cargo",
        (
            "{s} [carried|transported] {a}",
            "the cargo of {s} was {a}",
            "{s} was [loaded with|full of] {a}",
            "below the deck of {s} were {d} at first, then {a}",
        ),
        (
            "What did {s} [carry|transport]?",
            "What was the [cargo|freight] of {s}?",
            "What was in the hold of {s}?",
        ),
    ),
    Relation(
        "ship", "length", "metres", "length",
        (
            "{s} was {a} long",
            "{s} had a length of {a}",
            "from bow to stern {s} measured {a}",
        ),
        (
            "How long was {s}?",
            "What was the length of {s}?",
        ),
        v1_only=True, pretrained=False, values=(14, 190),
    ),
)  # fmt: skip

PLACES: tuple[Relation, ...] = _CITY + _RIVER + _BUILDING + _SHIP
