"""Short texts, written for features that are known, and their tokens."""

import re
from functools import cache

TEXTS = (
    "The river was wide here, and the stream behind the mill ran into the river near page 12 of my old map.",
    "We crossed the river at noon. Was the water cold? It was hot, not mild, and the river smelled of mud.",
    "Between Rome and Paris the river bends twice; a lake lies between hills and fields, not far from a stream.",
    "A boat went down the river, past a lake and a stream, and the River Hotel stood between trees and water.",
    "On page 7 the author calls the river a road! The stream, the lake and the sea are on page 9 alone.",
    "Her song of 1987 about the river won a prize. The River Band, with 3 drums, played between rain and sun.",
    "The river froze in 1912, and again in 1954; no river of that size, the paper said, had done so.",
    "He left New York in 1954 for York, a city between hills and moors, and a new house by the river.",
    "New York was hot. The Duke of York was not in New York, he was in Paris, London, Rome, or Berlin.",
    "They moved from London to New York with 2 cats, 40 books, and a piano; York was too quiet for Emma.",
    "A train runs between Boston and New York; the New Yorker hotel (room 12) is not in York.",
    "Is New York between Boston and Washington? Yes! The old city of York is between Leeds and Hull.",
    "The New York office paid 300 dollars for music, and York paid seven. New rules came in May.",
    "In New York the music was loud, the summer hot, and the tea warm. Emma came from York.",
    "It lies between Spain and France. Salt and pepper, bread and butter, and no river between them.",
    "Choose between tea and coffee (or milk and water); between meals and at night eat bread and salt.",
    "The match between Leeds and Hull was long and dull, and between walls and roofs a warm wind blew.",
    "Between us and them stood a wall and a gate. Nothing in front, and nothing behind.",
    "Buy eggs, milk, flour, sugar, and salt. Do not buy bread, butter, or cheese.",
    "He has apples, pears, plums, and nuts; she has tea, coffee, and a warm cake (with cream).",
    "Red, green, blue, black: four colours. In May, June, July, and August it is hot, in autumn mild.",
    "Anna, Paul, Emma, and Tom sang [in tune], with drums, flutes, horns, and a piano.",
    "Dogs, cats, mice, and birds {all of them} were in the yard, quiet, calm, and warm in the sun.",
    "Rain, wind, snow, ice, and fog: the weather (cold, grey, mild, or worse) kept us in.",
    "Bring pens, paper, glue, tape, and 12 stamps. Turn to page 44, then stop, look, and listen.",
    "\ndef area(width, height, depth, scale):\n    size = [width, height]\n    return {size, depth}\n",
    "\nclass Lake(Water):\n    depth = 30\n    name = [north]\n",
    "\nclass River(Water):\n    length = 1200\n    def flow(self, speed, time, angle):\n        return {speed}\n",
    "It was a first-class ticket.\nclass Ticket(Paper):\n    price = 55\n    seats = (1, 2)\n",
    "The upper-class guests had left.\n\nclass Guest:\n    age = 40\n\nclass Host(Guest):\n    rooms = 3\n",
    "\nclass Song:\n    words = []\n    music = {}\n\nThis is no second-class music, it is world-class music!\n",
    "\nclass Hill:\n    height = 300\n\nA working-class town, said page 8, is not a hill.\n",
    "\nclass Oven(Box):\n    heat = 200\n    hot = (heat, 180)\n\ndef warm(oven):\n    return oven\n",
    "Middle-class music was her thing.\nclass Band(Group):\n    members = 4\n    songs = [7, 8]\n",
    "\nclass Stop:\n    code = 0\n\nclass Start:\n    code = 1\n\nfirst-class\n",
    "Music = noise, he said (and laughed). The music of 1912 was not for dancing, the music of 1954 was.",
    "She plays the piano and loves music, the song ends, the music goes on. Press the = key.",
    "Let x = 3 and y = 2 + x. The drums, flutes, and horns made music [of a kind].",
    "If a = b and b = c, then a = c! No music helps you there, no song, no piano.",
    "They sell music, books and 2 flutes; 1 + 1 = 2, says the sign, but 2 < 1 = nonsense.",
    "He was walking and talking, then sleeping. The king did not like the thing at all.",
    "Is she still singing in the morning? The spring evening was warm, and the birds were singing.",
    "Running is fun, swimming is cold, reading is warm. The king walked, talked, and danced.",
    "They kept looking for the ring and finding nothing but string. Something was missing!",
    "The meeting on building new roads lasted till evening. A king wanted, asked, and waited.",
    "Stop shouting! The thing is burning, and the working men (seven of them) are running.",
    "A rising wind, a falling barometer, and the sinking sun: bring the king a warm coat.",
    "Was it hot? It was hot and dry in the morning, warm at noon, mild by night, and never cold.",
    "Serve it hot. A warm plate helps! Mild cheese, cold milk, and a cool room are best.",
    "The soup is hot, the bread warm, the sauce mild, the salad cool, the wine cold.",
    "A mild winter came after a hot summer; warm days and cool nights, then 4.5 degrees and cold rain.",
    "Too hot to touch! The iron was hot, then warm, then cold. The mild soap did not help.",
    "The warm sea and the hot sand, a mild breeze from the lake, cold drinks on page 3 and after.",
    "It costs 3.50 a day, 2.75 by night. Why so much? Nobody knows! On page 21 the price is lower.",
    "See page 15, page 16, and the map on the last page. Chapter 2 has 3.14 and 2.71 in it.",
    "Page after page he read: page 100, page 200, and at last page 300 of 310 were done.",
    "Who wrote page 5 so well? Not me! Two men, one pen, seven lines, and 6 errors on page 6 alone.",
    "Chapter 4 begins on page 61 (not on page 60), and ends before page 80 with the words of a king.",
    "\nOne line here\nanother line there\nNot the end\nbut close\n",
    "\nMilk 2\neggs 12\nBread and butter\n(or jam)\n",
    "\nDear Anna\nthe weather is warm\nand the sea is hot\nYours\nTom\n",
    "\nfirst wash\nthen dry\n3 days later fold\nDo not iron!\n",
    "\n[a list]\nred\nGreen and blue\n7 more\n",
    "\nRome was hot\nParis was mild\nlondon was warm, dull, and grey\nWe left\n",
)
"""Texts of our own, each a document."""
"""Texts of our own, each a document."""
PIECE = re.compile(r"\n| ?[A-Za-z]{3,}(?=ing\b)|(?<=[A-Za-z])ing\b| ?[A-Za-z]+| ?\d+| ?[^\sA-Za-z\d]| +", re.ASCII)


def pieces(text: str) -> tuple[str, ...]:
    """A text as tokens: words with the space before them, an ``ing`` behind three letters apart, numbers, signs.

    >>> pieces("Not walking, 12.")
    ('Not', ' walk', 'ing', ',', ' 12', '.')
    """
    return tuple(PIECE.findall(text))


@cache
def vocabulary() -> tuple[str, ...]:
    """All tokens of the texts; a token's id is its place."""
    return tuple(sorted({piece for text in TEXTS for piece in pieces(text)}))
