"""Short everyday sentences from a small grammar: lower case, numbers spelled out, no punctuation but apostrophes."""

from __future__ import annotations

import random
import re

MIN_WORDS, MAX_WORDS = 2, 10

# Fillers of a slot are separated by "|" and may hold slots themselves.
SLOTS = {
    "animal": "dog|cat|horse|bird",
    "city": "london|paris|boston|berlin|rome|new york|madrid|dublin",
    "color": "red|green|blue|black|white|yellow|brown",
    "day": "today|tomorrow|on {weekday}|this evening|next week|tonight",
    "device": "light|lamp|heater|fan|radio|television|oven",
    "digit": "zero|one|two|three|four|five|six|seven|eight|nine",
    "drink": "coffee|tea|water|milk|orange juice",
    "food": "bread|butter|cheese|rice|sugar|chicken|soup|salad|fish",
    "fruit": "apples|oranges|bananas|eggs|potatoes|tomatoes",
    "half": "in the morning|in the afternoon|at night",
    "hour": "one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve",
    "month": "january|february|march|april|may|june|july|august|september|october|november|december",
    "music": "jazz|rock|quiet|happy|old",
    "name": "anna|peter|maria|david|sarah|john|emma|thomas",
    "number": "{tens}|{tens} {unit}|{teen}|{teen}",
    "object": "phone|bag|book|umbrella|jacket|ticket",
    "objects": "keys|glasses|shoes|letters",
    "opening": "door|window|gate",
    "ordinal": "first|second|third|fourth|fifth|last",
    "place": "park|station|airport|library|market|school|beach|hospital|museum",
    "relative": "mother|father|sister|brother|uncle|daughter|son|friend",
    "room": "kitchen|bedroom|bathroom|garden|garage|office|living room",
    "sky": "sunny|cloudy|windy|cold|warm|dry|wet",
    "task": "buy {food}|call {name}|feed the {animal}|pay the rent|clean the {room}|water the flowers|wash the car",
    "teen": "eleven|twelve|thirteen|fourteen|fifteen|sixteen|seventeen|eighteen|nineteen",
    "tens": "twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety",
    "time": "{hour} o'clock|half past {hour}|a quarter to {hour}|a quarter past {hour}|{hour} thirty|{hour} {half}",
    "unit": "two|three|four|five|six|seven|eight|nine",
    "vehicle": "train|bus|taxi|plane|boat",
    "weekday": "monday|tuesday|wednesday|thursday|friday|saturday|sunday",
}

TEMPLATES = """
turn on the {room} {device}
turn off the {device} in the {room}
please turn the {room} {device} off
is the {device} in the {room} still on
open the {room} {opening} {day}
please close the {opening} {name}
did you lock the {room} {opening}
set the {room} to {number} degrees
make the {room} a little warmer {day}
the {device} in the {room} doesn't work
wake me up at {time}
set an alarm for {time}
set a timer for {number} minutes
what time is it in {city} {name}
is it {time} already
what is the weather like in {city} {day}
will it rain in {city} {day}
will it snow in {city} in {month}
it is always {sky} in {month}
it will be {sky} in {city} {day}
it was {sky} and {sky} yesterday
is it {sky} or {sky} in {city}
call my {relative} at {time}
send a message to my {relative} {day}
tell {name} that i will be {number} minutes late
{name}'s birthday is in {month}
is your birthday in {month} or {month}
it is the {ordinal} of {month}
book a {vehicle} to {city} {day}
how long does the {vehicle} to {city} take
the {vehicle} to {city} leaves at {time}
how far is it from {city} to {city}
i want to go to {city} in {month}
we went to {city} last {month}
add {food} to my shopping list
add {food} and {fruit} to the shopping list
we need {number} {fruit}
do we have enough {food} for dinner {day}
i would like some {drink} and {food} please
can i have {food} and {drink}
would you like {drink} or {drink} {name}
play some {music} music in the {room}
play the {ordinal} {music} song again
turn the {music} music down {name}
that {music} song is too loud {name}
remind me to {task} {day}
don't forget to {task} {day}
did you {task} yesterday {name}
i have to {task} {day}
{name} will {task} {day}
my {relative} is in {city} {day}
{name} has {unit} {color} {fruit}
{name} and {name} are at the {place}
i'll meet {name} at the {place}
let's go to the {place} {day}
where is the {place} in {city}
how do i get to the {place}
it's the {ordinal} street after the {place}
is the {place} open on {weekday}
the {place} opens at {time}
the meeting is on {weekday} at {time}
what's on my calendar {day} {name}
get the {vehicle} at {time}
my number is {digit} {digit} {digit} {digit} {digit}
the code is {digit} {digit} {digit}
room {number} is on the {ordinal} floor
my {relative} is {number} years old
bus {number} goes to the {place}
read page {number} of {name}'s book
it costs {number} dollars
that's {number} dollars and {number} cents
where did i put my {color} {object}
i can't find my {color} {objects}
the {color} {object} is on the table
whose {color} {objects} are these
there is a {object} in {name}'s {room}
is that {name}'s {color} {object}
i like {name}'s {color} {objects}
the {color} {animal} is in the {room}
my {relative} has a {color} {animal}
there is a {color} {animal} at the {opening}
thank you very much for the {food} {name}
good morning {name} how are you {day}
good night {name} see you {day}
"""


def sentences(count: int) -> list[str]:
    """`count` different sentences, the same ones in the same order on every machine."""
    grammar = _Grammar(random.Random("sentences"))
    found: dict[str, None] = {}
    while len(found) < count:
        sentence = grammar.sentence()
        if MIN_WORDS <= len(sentence.split()) <= MAX_WORDS:
            found[sentence] = None
    return list(found)


class _Grammar:
    """Draws templates and fillers from shuffled bags, each emptied before it is filled again: no word stays rare."""

    def __init__(self, order: random.Random) -> None:
        self._order = order
        self._choices: dict[str, list[str]] = {name: fillers.split("|") for name, fillers in SLOTS.items()}
        self._choices["sentence"] = list(TEMPLATES.strip().splitlines())
        self._bags: dict[str, list[str]] = {name: [] for name in self._choices}
        self._last: dict[str, str] = {}

    def sentence(self) -> str:
        return self._draw("sentence")

    def _draw(self, name: str) -> str:
        bag = self._bags[name]
        if not bag:
            bag.extend(self._choices[name])
            self._order.shuffle(bag)
            if bag[-1] == self._last.get(name):  # nobody flies from london to london
                bag.insert(0, bag.pop())
        self._last[name] = bag.pop()
        return re.sub(r"\{(\w+)\}", lambda slot: self._draw(slot[1]), self._last[name])
