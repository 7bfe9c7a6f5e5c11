"""Wordings and words of the prompt sets: those that a demo model practises, those kept from it, those for any model.

The recipe of the demo model trains on `PRACTISED` wordings with `PRACTISED` names only; tests of behaviour use the
held-out ones and say so. Places, objects and verbs are shared by both: what is held out is how a sentence is built and
who is in it. `STANDARD` and `NAMES` are for models that were trained on text at large.

A wording introduces two people `{a}` and `{b}`; one of them is the subject `{s}`, who gives an object to the other, the
indirect object `{i}`. `{p}`, `{v}` and `{o}` are the place, the verb and the object. The text up to ` {i}` is the
prompt of the indirect-object task (Wang et al., arXiv 2211.00593).
"""

WORDINGS_PRACTISED = (
    "When {a} and {b} went to the {p}, {s} {v} a {o} to {i}.",
    "Then, {a} and {b} went to the {p}. {s} {v} a {o} to {i}.",
    "After {a} and {b} left the {p}, {s} {v} a {o} to {i}.",
    "While {a} and {b} were at the {p}, {s} {v} a {o} to {i}.",
    "{a} and {b} had a long day at the {p}, and {s} {v} a {o} to {i}.",
    "One day {a} and {b} met near the {p}. Later {s} {v} a {o} to {i}.",
    "Friends {a} and {b} found a {o} at the {p}, and {s} {v} it to {i}.",
    "The {p} was quiet when {a} and {b} arrived, so {s} {v} the {o} to {i}.",
)
"""The sentences that name-swapping paragraphs are made of."""

WORDINGS_HELD_OUT = (
    "It rained all morning, so {a} stayed with {b} inside the {p}, where {s} {v} an old {o} to {i}.",
    "{a} had not seen {b} for years until they shared a bench outside the {p}; that is why {s} {v} this {o} to {i}.",
    "There were only two people left in the {p}, {a} and {b}. In the end {s} {v} the last {o} to {i}.",
    "On Sunday the {p} belonged to {a} and {b}: first they talked, then {s} {v} another {o} to {i}.",
    "According to the newspaper, {a} was seen with {b} behind the {p}, and before noon {s} {v} some {o} to {i}.",
    "Nobody knew how {a} had followed {b} into the {p}, but as soon as the lights came on {s} {v} every {o} to {i}.",
)
"""Sentences built differently, never trained on."""

STANDARD = (
    "Last summer {a} and {b} worked together at the {p}, and {s} {v} a {o} to {i}.",
    "As soon as {a} and {b} reached the {p}, {s} {v} a {o} to {i}.",
    "Before {a} and {b} said goodbye at the {p}, {s} {v} a {o} to {i}.",
    "Yesterday {a} and {b} had lunch near the {p}. Afterwards {s} {v} a {o} to {i}.",
    "During the visit of {a} and {b} to the {p}, {s} {v} a {o} to {i}.",
    "Since {a} and {b} were both waiting at the {p}, {s} {v} a {o} to {i}.",
    "The neighbours {a} and {b} were talking about the {p} when {s} {v} a {o} to {i}.",
    "Once {a} and {b} had seen enough of the {p}, {s} {v} a {o} to {i}.",
    "Because {a} and {b} had argued at the {p}, {s} {v} a {o} to {i}.",
    "At the {p}, {a} and {b} sat side by side until {s} {v} a {o} to {i}.",
    "Everyone at the {p} knew {a} and {b}, so nobody was surprised when {s} {v} a {o} to {i}.",
    "In the morning {a} and {b} walked to the {p}; in the evening {s} {v} a {o} to {i}.",
    "For their anniversary {a} and {b} returned to the {p}, where {s} {v} a {o} to {i}.",
    "Having met at the {p}, {a} and {b} became friends, and {s} {v} a {o} to {i}.",
    "With {a} and {b} alone in the {p}, {s} quietly {v} a {o} to {i}.",
    "My cousins {a} and {b} live close to the {p}, and last week {s} {v} a {o} to {i}.",
)
"""Sentences that any model of English could complete."""

NAMES_PRACTISED = (
    *("John", "Mary", "Tom", "James", "Dan", "Anna", "Kate", "Jack", "Paul", "Mark"),
    *("Alice", "Sarah", "Emma", "David", "Lucy", "Peter", "Susan", "Henry", "Jane", "George"),
    *("Laura", "Adam", "Ruth", "Simon", "Claire", "Frank", "Helen", "Robert", "Julia", "Charles"),
)
"""The people of name-swapping paragraphs."""

NAMES_HELD_OUT = ("William", "Michael", "Richard", "Edward", "Margaret", "Philip", "Tim", "Lily", "Sam", "Ben")
"""People who never appear in such a paragraph (ordinary text may mention them)."""

PLACES = (
    *("store", "park", "school", "garden", "house", "station", "market", "office"),
    *("church", "river", "library", "beach", "farm", "hotel", "theatre"),
)
OBJECTS = (
    *("book", "drink", "ring", "letter", "ball", "flower", "basket", "key"),
    *("bone", "cake", "coat", "lamp", "map", "pen", "cup"),
)
VERBS = ("gave", "handed", "passed", "offered", "brought", "sent", "showed")

WOMEN = (
    *("Mary", "Anna", "Kate", "Alice", "Sarah", "Emma", "Lucy", "Susan", "Jane", "Laura"),
    *("Ruth", "Claire", "Helen", "Julia", "Margaret", "Lily", "Elizabeth", "Jennifer", "Linda", "Barbara"),
    *("Jessica", "Karen", "Nancy", "Lisa", "Betty", "Sandra", "Emily", "Michelle", "Carol", "Amanda"),
    *("Melissa", "Deborah", "Stephanie", "Rebecca", "Sharon", "Amy", "Angela", "Rachel", "Maria", "Diana"),
    *("Olivia", "Sophia", "Hannah", "Martha", "Julie", "Victoria", "Catherine", "Charlotte", "Nicole", "Ellen"),
)
MEN = (
    *("John", "Tom", "James", "Dan", "Jack", "Paul", "David", "Peter", "Henry", "George"),
    *("Adam", "Simon", "Frank", "Robert", "Charles", "William", "Michael", "Richard", "Edward", "Philip"),
    *("Tim", "Ben", "Joseph", "Thomas", "Daniel", "Matthew", "Anthony", "Steven", "Andrew", "Joshua"),
    *("Kevin", "Brian", "Timothy", "Ronald", "Jason", "Jeffrey", "Ryan", "Jacob", "Gary", "Nicholas"),
    *("Eric", "Stephen", "Jonathan", "Larry", "Justin", "Scott", "Brandon", "Benjamin", "Samuel", "Gregory"),
)
NAMES = WOMEN + MEN
"""A hundred common first names; a tokenizer's own are those of them that are one token."""

SENTENCES = {"practised": WORDINGS_PRACTISED, "held-out": WORDINGS_HELD_OUT, "standard": STANDARD}
PEOPLE = {"practised": NAMES_PRACTISED, "held-out": NAMES_HELD_OUT, "common": NAMES}

PRONOUN = (
    "Everyone liked {n} because",
    "It was getting dark, but {n} said that",
    "After {n} came back from the market,",
    "When {n} heard the news,",
    "People listened to {n} whenever",
    "The train was late, so {n} wrote that",
    "Before {n} went to bed,",
    "Nobody had told {n} that",
)
"""Sentences that go on with the pronoun of the person `{n}`."""

LASTED = (
    "The {n} lasted from the year {y} to the year",
    "The {n} began in the year {y} and ended in the year",
    "According to the old chronicle, the {n} went on from the year {y} until the year",
    "The {n} that had started in the year {y} was over by the year",
)
"""Sentences that go on with a year after `{y}`; `{n}` is one of :data:`EVENTS`."""

EVENTS = (
    *("war", "siege", "reign", "drought", "famine", "dispute", "expedition", "construction", "rebellion", "campaign"),
    *("plague", "strike", "conflict", "journey", "occupation", "negotiation", "trial", "voyage", "crisis", "alliance"),
)
