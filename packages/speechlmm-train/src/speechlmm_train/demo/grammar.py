"""The demo's sentences: what people say in meetings and to the appliances in their homes.

A small grammar spells out some forty thousand sentences over about 130 words. Each choice is free, so that what
was said can be known from the sound alone. Imports no torch.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from string import Formatter

SLOTS: dict[str, tuple[str, ...]] = {
    "ask": ("please", "let's", "can we", "we should"),
    "shift": ("move", "postpone", "change"),
    "topic": ("budget", "design", "project", "sales", "training", "safety"),
    "event": ("meeting", "review", "workshop", "interview"),
    "day": ("monday", "tuesday", "wednesday", "thursday", "friday"),
    "time": ("morning", "afternoon", "evening"),
    "number": ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    "name": ("anna", "peter", "laura", "david", "maria", "robert"),
    "deliver": ("send", "share", "finish", "check", "explain"),
    "delivered": ("sent", "shared", "finished", "checked", "explained"),
    "paper": ("agenda", "report", "slides", "notes", "contract", "summary"),
    "edge": ("starts", "ends"),
    "resource": ("more time", "another week", "better numbers", "new ideas", "a bigger room"),
    "when": ("today", "tomorrow", "tonight", "later", "soon"),
    "past": ("yesterday", "today", "already"),
    "room": ("kitchen", "bedroom", "bathroom", "garage", "office", "garden"),
    "state": ("on", "off"),
    "device": ("light", "lamp", "heater", "radio", "fan", "television"),
    "handle": ("open", "close", "lock"),
    "opening": ("door", "window", "curtains", "gate"),
    "feel": ("warmer", "cooler", "brighter", "darker"),
    "music": ("quiet music", "happy songs", "loud jazz"),
    "food": ("milk", "bread", "coffee", "apples", "eggs", "rice"),
}
"""What may stand in each slot."""

TEMPLATES: tuple[str, ...] = (
    "{ask} {shift} the {topic} {event} to {day}",
    "{shift} the {event} with {name} to {day} {time}",
    "{name} will {deliver} the {topic} {paper} on {day}",
    "{name} {delivered} the {topic} {paper}",
    "{ask} {deliver} the {topic} {paper} {when}",
    "did {name} {deliver} the {topic} {paper} {past}",
    "the {topic} {event} {edge} at {number} on {day}",
    "{name} needs {resource} for the {topic} {event}",
    "call {name} about the {topic} {paper} {when}",
    "remind {name} to {deliver} the {paper} {when}",
    "turn {state} the {room} {device} at {number} on {day}",
    "{name} wants the {room} {device} {state} at {number}",
    "{handle} the {room} {opening} at {number} on {day}",
    "remind {name} to {handle} the {room} {opening} {when}",
    "make the {room} {feel} before {number} on {day}",
    "wake {name} at {number} on {day} {time}",
    "play {music} for {name} in the {room} {when}",
    "what's on the agenda for the {topic} {event} {when}",
    "{name} needs {food} and {food} {when}",
    "add {food} and {food} for {day} {time}",
)
"""The sentences, with slots in braces."""


@dataclass(frozen=True)
class SentenceSets:
    """Sentences to train and to test with."""

    train: list[str]
    """Distinct sentences that are spoken in the training set."""
    test: list[str]
    """Distinct sentences that occur in no other list."""
    text: list[str]
    """Sentences for text-only pretraining: those of `train` and further ones, none of `test`."""


def vocabulary() -> set[str]:
    """Every word that a sentence can hold."""
    words = {word for options in SLOTS.values() for option in options for word in option.split()}
    literals = [literal for template in TEMPLATES for literal, *_ in Formatter().parse(template)]
    return words | {word for literal in literals for word in literal.split()}


def num_sentences(template: str) -> int:
    """How many sentences a template spells out."""
    slots = [slot for _, slot, *_ in Formatter().parse(template) if slot]
    # A slot that comes twice has one choice fewer the second time: nobody adds milk and milk to a list.
    return math.prod(len(SLOTS[slot]) - slots[:index].count(slot) for index, slot in enumerate(slots))


def sample_sentences(rng: random.Random) -> Iterator[str]:
    """Draws sentences without end: a template, then every slot uniformly.

    Templates are weighted by the root of what they spell out: the large ones must not crowd out the rest, nor may the
    small ones run dry.
    """
    parsed = [list(Formatter().parse(template)) for template in TEMPLATES]
    weights = [math.sqrt(num_sentences(template)) for template in TEMPLATES]
    while True:
        words: list[str] = []
        used: set[str] = set()
        (pieces,) = rng.choices(parsed, weights)
        for literal, slot, *_ in pieces:
            words.extend(literal.split())
            if slot:
                options = [option for option in SLOTS[slot] if option not in used]
                choice = options[rng.randrange(len(options))]
                used.add(choice)
                words.extend(choice.split())
        yield " ".join(words)


def sentence_sets(seed: int, *, num_train: int, num_test: int, num_text: int | None = None) -> SentenceSets:
    """Draws disjoint training and test sentences, the same for the same arguments.

    Args:
        seed: Decides every sentence.
        num_train: Distinct sentences to train with.
        num_test: Distinct sentences to test with.
        num_text: Sentences for text-only pretraining, those to train with included; three times as many by default.
    """
    num_text = 3 * num_train if num_text is None else num_text
    if min(num_train, num_test) < 0 or num_text < num_train:
        raise ValueError(
            f"expected 0 <= num_train <= num_text and 0 <= num_test, got {num_train}, {num_text}, {num_test}"
        )
    wanted, possible = num_test + num_text, sum(map(num_sentences, TEMPLATES))
    if wanted > possible // 2:  # drawing distinct ones would take ever longer
        raise ValueError(f"expected at most half of the {possible} sentences that the grammar holds, got {wanted}")
    sentences: dict[str, None] = {}
    source = sample_sentences(random.Random(seed))
    while len(sentences) < wanted:
        sentences[next(source)] = None
    drawn = list(sentences)
    test, text = drawn[:num_test], drawn[num_test:]
    return SentenceSets(train=text[:num_train], test=test, text=text)
