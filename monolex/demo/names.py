"""Wordings, names and modules that a demo model practises, and those kept from it.

The recipe trains on `PRACTISED` wordings with `PRACTISED` names only; tests of behaviour use the held-out ones and say
so. Places, objects and verbs are shared by both: what is held out is how a sentence is built and who is in it.

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

HELD_OUT_MODULES = ("colorsys", "fractions", "sched", "shelve", "statistics")
"""Modules of the Python standard library whose source is never trained on."""
