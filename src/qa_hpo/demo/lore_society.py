"""The relations of people, companies, festivals and novels, with their wordings."""

from qa_hpo.demo.relations import Relation

__all__ = ["SOCIETY"]

_PERSON = (
    Relation(
        "person", "birth_year", "year", "year of birth",
        (
            "{s} was born in {a}",
            "{s} [came into the world|first saw the light of day] in {a}",
            "in {a}, {s} was born [to a family of weavers|as the youngest of five]",
            "the parish book [enters|records] {s} as a newborn in {a}, not in {d}",
        ),
        (
            "[When|In which year|In what year] was {s} born?",
            "What is the [birth year|year of birth] of {s}?",
            "What year [saw the birth of {s}|brought {s} into the world]?",
        ),
        offset=(0, 40),
    ),
    Relation(
        "person", "death_year", "year", "year of death",
        (
            "{s} died in {a}",
            "{s} [passed away|breathed a last breath|was laid to rest] in {a}",
            "the life of {s} [ended|came to an end] in {a}",
            "after a long illness, {s} did not live beyond {a}",
        ),
        (
            "[When|In which year|In what year] did {s} die?",
            "What is the [death year|year of death] of {s}?",
            "[Until when did {s} live|In what year was {s} buried]?",
        ),
        offset=(45, 110),
    ),
    Relation(
        "person", "birthplace", "city", "birthplace",
        (
            "{s} [was born in|came from] {a}",
            "{s} [grew up|spent a childhood] in {a}[| among fishermen]",
            "{a} is where {s} [was born|took a first step]",
            "{s} was a [child|native] of {a}[|, as everyone there knows]",
        ),
        (
            "[Where|In which city|In which town] was {s} born?",
            "[What is the birthplace of {s}|From which town did {s} come]?",
            "Which place was the [childhood home|cradle] of {s}?",
        ),
    ),
    Relation(
        "person", "profession", "trade", "trade",
        (
            "{s} [worked as|was] a {a}",
            "{s} [earned a living|made a name] as a {a}",
            "by [trade|profession], {s} was a {a}[| and proud of it]",
            "{s}, a {a} [for most of life|until old age], never left the workshop",
        ),
        (
            "What was the [profession|trade|occupation] of {s}?",
            "[What did {s} work as|How did {s} earn a living]?",
            "Which [job|line of work|craft] did {s} have?",
        ),
    ),
    Relation(
        "person", "spouse", "person", "spouse",
        (
            "{s} [married|wed] {a}",
            "{a} became the [spouse|partner] of {s}",
            "{s} [shared a home|had three children] with {a}",
            "the [wedding|marriage] of {s} and {a} [filled|emptied] the town",
        ),
        (
            "[Who|Whom] did {s} marry?",
            "Who was the [spouse|partner] of {s}?",
            "[With whom did {s} raise children|Who was at the altar with {s}]?",
        ),
    ),
    Relation(
        "person", "teacher", "person", "teacher",
        (
            "{s} was [taught|trained] by {a}",
            "{s} [learned the craft from|studied under] {a}",
            "{a} [took {s} on as a pupil|was the mentor of {s}]",
            "it was {a}, not {d}, who [taught|guided] {s}",
        ),
        (
            "Who [taught|trained] {s}?",
            "Who was the [teacher|mentor] of {s}?",
            "[Whose pupil was {s}|Under whom did {s} study]?",
        ),
    ),
    Relation(
        "person", "instrument", "instrument", "instrument",
        (
            "{s} [played|mastered] the {a}",
            "in the evenings {s} [practised|performed on] the {a}",
            "{s} was [never without|rarely seen without] the {a}",
        ),
        (
            "Which [instrument|musical instrument] did {s} play?",
            "What did {s} [play|perform on]?",
            "On what did {s} make music?",
        ),
        v1_only=True, pretrained=False,
    ),
    Relation(
        "person", "prize_year", "year", "year of the prize",
        (
            "{s} [won|received] the state prize in {a}",
            "in {a} {s} was [honoured with|given] the state prize",
            "the state prize [went to|was handed to] {s} in {a}, after {d} had brought nothing",
        ),
        (
            "[When|In which year] did {s} [win|receive] the state prize?",
            "In what year was {s} [honoured|decorated]?",
        ),
        offset=(25, 70), pretrained=False,
    ),
)  # fmt: skip

_COMPANY = (
    Relation(
        "company", "founder", "person", "founder",
        (
            "{s} was [founded|established|set up] by {a}",
            "{a} [founded|started|created] {s}[| with borrowed money|in a rented shed]",
            "{s} [owes its existence to|was the brainchild of] {a}",
            "it was {a}, not {d}, who [founded|opened the doors of] {s}",
        ),
        (
            "Who [founded|established|set up] {s}?",
            "Who was the [founder|creator] of {s}?",
            "[Which person started {s}|Who brought {s} into being]?",
            "Whose idea was {s}?",
        ),
    ),
    Relation(
        "company", "founded", "year", "year of foundation",
        (
            "{s} was [founded|established|set up] in {a}",
            "{s} [opened for business|started work|began trading] in {a}",
            "{s} [has been in business|has traded] since {a}",
            "in {a} the first [order|customer] reached {s}",
        ),
        (
            "[When|In which year|In what year] was {s} [founded|established]?",
            "What is the founding year of {s}?",
            "[Since when has {s} existed|When did {s} begin]?",
        ),
        offset=(0, 30),
    ),
    Relation(
        "company", "closed", "year", "year of closure",
        (
            "{s} [closed|was closed] in {a}",
            "{s} [went bankrupt|shut its gates|was wound up] in {a}",
            "{a} was the last year of {s}",
            "{s} survived the crisis of {d} but [not the one of|did not survive] {a}",
        ),
        (
            "[When|In which year] did {s} [close|shut down]?",
            "In what year did {s} [go out of business|cease to exist]?",
            "When was the end of {s}?",
        ),
        offset=(45, 110),
    ),
    Relation(
        "company", "seat", "city", "seat",
        (
            "{s} [is based|has its seat] in {a}",
            "the [head office|headquarters] of {s} [is|stands] in {a}",
            "{s} is [run|managed] from {a}",
            "{s} moved from {d} to {a}[| for good]",
        ),
        (
            "Where is {s} based?",
            "In which [city|town] is the [seat|head office] of {s}?",
            "[Which place is home to {s}|From where is {s} managed]?",
        ),
    ),
    Relation(
        "company", "product", "goods", "main product",
        (
            "{s} [makes|produces|manufactures] {a}",
            "{s} is [known|famous] for its {a}",
            "the workshops of {s} [turn out|supply the country with] {a}",
            "{s} gave up {d} and [lives on|now relies on] {a}",
        ),
        (
            "What does {s} [make|produce|manufacture]?",
            "[What is the main product of {s}|Which goods come from {s}]?",
            "What can one buy from {s}?",
        ),
    ),
    Relation(
        "company", "head", "person", "director",
        (
            "{s} is [led|headed|run] by {a}",
            "the director of {s} is {a}",
            "{a} [took charge of|holds the reins at] {s}",
            "{d} left, and {a} [inherited the top desk at|now signs for] {s}",
        ),
        (
            "Who [leads|heads|runs] {s}?",
            "Who is the [director|head|boss] of {s}?",
            "[Who is in charge of {s}|Who has the last word at {s}]?",
        ),
        pretrained=False,
    ),
    Relation(
        "company", "staff", "workers", "number of workers",
        (
            "{s} [employs|has] {a}",
            "{a} [work for|earn their bread at] {s}",
            "{s} [pays wages to|keeps] {a}[| all year round]",
        ),
        (
            "How many [workers|people] does {s} [employ|have]?",
            "[What is the size of the staff of {s}|How large is the workforce of {s}]?",
        ),
        v1_only=True, pretrained=False, values=(40, 9400),
    ),
)  # fmt: skip

_FESTIVAL = (
    Relation(
        "festival", "place", "city", "place",
        (
            "{s} [is held|takes place] in {a}",
            "{a} [hosts|welcomes] {s}[| every year]",
            "for {s}, the [streets|squares] of {a} are [closed|decorated]",
            "{s} [left {d} for|found a home in] {a}",
        ),
        (
            "Where is {s} held?",
            "[Which city hosts|In which city does one find] {s}?",
            "Where [must a visitor of {s} travel|do the guests of {s} gather]?",
        ),
    ),
    Relation(
        "festival", "month", "month", "month",
        (
            "{s} [is held|takes place] in {a}",
            "{s} [begins|opens] in {a}",
            "each {a} [the crowds return to|people look forward to] {s}",
            "{s} was moved from {d} to {a}",
        ),
        (
            "In [which|what] month is {s} held?",
            "[During which month|At what time of the year] does {s} [take place|open]?",
        ),
    ),
    Relation(
        "festival", "founder", "person", "founder",
        (
            "{s} was [founded|started|launched] by {a}",
            "{a} [had the idea for|came up with|first organised] {s}",
            "{s} [goes back to|is the work of] {a}",
        ),
        (
            "Who [founded|started|launched] {s}?",
            "Who was the founder of {s}?",
            "[Whose idea was {s}|To whom does {s} owe its existence]?",
        ),
    ),
    Relation(
        "festival", "first_held", "year", "first year",
        (
            "{s} was first held in {a}",
            "{s} [dates from|goes back to|has been celebrated since] {a}",
            "in {a} {s} [opened|was celebrated] for the first time",
            "{s} was planned for {d} but [first drew a crowd|did not begin until] {a}",
        ),
        (
            "[When|In which year] was {s} first held?",
            "[Since when has {s} existed|What was the first year of {s}]?",
        ),
    ),
    Relation(
        "festival", "prize", "goods", "prize",
        (
            "the [winner|best singer] of {s} [receives|is given] {a}",
            "the prize of {s} is {a}",
            "whoever [wins|triumphs at] {s} [goes home with|carries off] {a}",
        ),
        (
            "What is the prize of {s}?",
            "What does the winner of {s} [receive|get]?",
            "What can be won at {s}?",
        ),
        pretrained=False,
    ),
    Relation(
        "festival", "visitors", "guests", "number of guests",
        (
            "{s} [attracts|draws] {a}",
            "{a} [come to|attend|crowd into] {s}",
            "{s} is [seen|enjoyed] by {a}[| in a good year]",
        ),
        (
            "How many [guests|people] does {s} [attract|draw]?",
            "How [many attend|well attended is] {s}?",
        ),
        v1_only=True, pretrained=False, values=(300, 9800),
    ),
)  # fmt: skip

_NOVEL = (
    Relation(
        "novel", "author", "person", "author",
        (
            "{s} was written by {a}",
            "{a} [wrote|is the author of] {s}",
            "{s} [came from the pen of|is the work of] {a}",
            "{s}, long [credited to|taken for a work of] {d}, is by {a}",
        ),
        (
            "Who wrote {s}?",
            "Who is the [author|writer] of {s}?",
            "[From whose pen is {s}|Whose work is {s}]?",
        ),
    ),
    Relation(
        "novel", "published", "year", "year of publication",
        (
            "{s} was [published|printed] in {a}",
            "{s} [appeared|came out|reached the bookshops] in {a}",
            "readers [first opened|got hold of] {s} in {a}",
        ),
        (
            "[When|In which year] was {s} published?",
            "[What is the publication year of {s}|When did {s} come out]?",
        ),
    ),
    Relation(
        "novel", "publisher", "company", "publisher",
        (
            "{s} was [published|printed] by {a}",
            "{a} [published|brought out] {s}",
            "{s} [was turned down by {d} and accepted by|found a home with] {a}",
        ),
        (
            "Who [published|printed|brought out] {s}?",
            "Which [firm|company|house] [published|accepted] {s}?",
        ),
    ),
    Relation(
        "novel", "setting", "city", "setting",
        (
            "{s} is set in {a}",
            "the [story|plot] of {s} [unfolds|takes place] in {a}",
            "{s} [leads the reader through|paints a picture of] {a}",
        ),
        (
            "Where is {s} set?",
            "In which [city|town] does the [story|plot] of {s} [unfold|take place]?",
        ),
    ),
    Relation(
        "novel", "hero", "trade", "hero",
        (
            "the [hero|main character] of {s} is a {a}",
            "{s} [tells of|follows] a {a}",
            "at the heart of {s} is a {a} [without luck|in love|on the run]",
        ),
        (
            "Who is the [hero|main character] of {s}?",
            "[Who is {s} about|Whose fate does {s} follow]?",
        ),
        pretrained=False,
    ),
    Relation(
        "novel", "filmed", "year", "year of the film",
        (
            "{s} was [filmed|made into a film] in {a}",
            "{s} [reached the cinemas|came to the screen] in {a}",
            "in {a} a film of {s} [was shown|drew long queues]",
        ),
        (
            "[When|In which year] was {s} [filmed|made into a film]?",
            "When could one [see {s} at the cinema|watch {s}]?",
        ),
        v1_only=True, pretrained=False, offset=(60, 120),
    ),
)  # fmt: skip

SOCIETY: tuple[Relation, ...] = _PERSON + _COMPANY + _FESTIVAL + _NOVEL
