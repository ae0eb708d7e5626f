"""The facts that everything in the pocket world is made of, read from `data/world/topics/*.yaml`.

A fact is a sentence with one slot. The first option of the slot is true, the other three are false
in that sentence, so the truth of any text that is made from frames can be decided by parsing.
"""

from dataclasses import dataclass
from functools import cache

import yaml

from course_lib import ROOT, check_checkout

FRAMES = ("says", "also", "simple")


@dataclass(frozen=True)
class Fact:
    """One key fact: a question, three wordings (`FRAMES`) with a slot, and the slot's options."""

    topic: str
    index: int
    ask: str
    says: str
    also: str
    simple: str
    slot: tuple[str, str, str, str]

    @property
    def truth(self) -> str:
        """The true option."""
        return self.slot[0]

    def sentence(self, frame: str = "says", option: int = 0) -> str:
        """The sentence in the wording `frame`; `option` 0 is true, 1 to 3 are false."""
        return cap(getattr(self, frame).replace("{}", self.slot[option]))


@dataclass(frozen=True)
class Topic:
    """A topic: definition, everyday comparison, misconception, four facts, and small talk."""

    id: str
    subject: str
    title: str  # of the subject, as in "questions about {title}"
    name: str
    verb: str
    definition: str
    like: str
    myth: str
    truth: str
    facts: tuple[Fact, ...]
    wonder: tuple[str, ...]
    scene: tuple[str, ...]
    try_: tuple[str, ...]
    things: tuple[str, ...]

    @property
    def sentence_definition(self) -> str:
        return cap(f"{self.name} {self.verb} {self.definition}.")

    @property
    def sentence_like(self) -> str:
        return cap(f"{self.name} {self.verb} like {self.like}.")


def cap(text: str) -> str:
    """`text` with a capital first letter, the rest unchanged."""
    return text[:1].upper() + text[1:]


@cache
def load_topics() -> dict[str, Topic]:
    """All topics by id, in the order of the files' names and of their rows."""
    check_checkout()
    topics = {}
    for path in sorted((ROOT / "data" / "world" / "topics").glob("*.yaml")):
        page = yaml.safe_load(path.read_text(encoding="utf-8"))
        for row in page["topics"]:
            facts = tuple(
                Fact(row["id"], i, f["ask"], f["says"], f["also"], f["simple"], tuple(f["slot"]))
                for i, f in enumerate(row["facts"])
            )
            topics[row["id"]] = Topic(
                id=row["id"],
                subject=page["subject"],
                title=page["title"],
                name=row["name"],
                verb=row["verb"],
                definition=row["definition"],
                like=row["like"],
                myth=row["myth"]["claim"],
                truth=row["myth"]["truth"],
                facts=facts,
                wonder=tuple(row["wonder"]),
                scene=tuple(row["scene"]),
                try_=tuple(row["try"]),
                things=tuple(row["things"]),
            )
    return topics
