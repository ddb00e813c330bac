"""The tasks: what a composed document asks and says. Each is a function of a dealer; the table at the end names them.

Phrasings are data: plain ASCII and short, for a byte tokenizer reads them. In braces stand {name} "seven", {a_name}
"a seven", {plural} "sevens", {noun} "digit", {a_noun} "a digit"; only our own phrasings are formatted, never a name.

Every task ends in an answer, and what stands before it is its prompt. What is asked, and the answer, are drawn alike
and before the pictures, so that the text of a question says no more about its answer than how frequent answers are.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from latentlm.data.documents.composed.pools import MAX_OF_ONE_CLASS, Dealer, Shown, with_article
from latentlm.data.documents.document import RawDocument, RawPart

CAPTIONS = (
    "A photo of {a_name}.",
    "A picture of {a_name}.",
    "This is {a_name}.",
    "The {noun} is {a_name}.",
    "Here is {a_noun}: {name}.",
)
WHICH = ("Which {noun} is this?", "What {noun} is shown?", "Name the {noun}.")
HOW_MANY = ("How many are {plural}?", "How many {plural} are there?", "Count the {plural}.")
IS_THERE = ("Is there {a_name}?", "Do you see {a_name}?", "Does {a_name} appear?")
STORIES = (
    ("First {a_name}", ", then {a_name}", "."),
    ("Look, {a_name}:", " And now {a_name}:", " The end."),
    ("Page one: {a_name}.", " Next page: {a_name}.", " That is all."),
)
"""Before the first picture, before each further one, after the last."""
MORE_LIKE_THE_FIRST = (
    ("Like this:", " and not like that:", " One more:"),
    ("Here is one", " and another.", " Again the first kind:"),
)
"""Before the first picture, before the second, before the answer."""
NUMBER_WORDS = ("zero", "one", "two", "three", "four")
INVENTED = (
    *("blicket", "dax", "drobe", "fep", "frim", "glorp", "hux", "jeld", "kiv", "lorp", "mip", "nazz"),
    *("pilk", "quib", "sked", "snarf", "tiz", "toma", "vorb", "wug", "yelk", "zav", "zorn", "zunt"),
)
"""Names without a meaning; the first two are those of the studies of children that Tsimpoukelli et al. follow."""
NUM_SHOTS = (0, 1, 2, 4)

Piece = str | Shown


@dataclass(frozen=True, eq=False)
class Composition:
    """A document in the making.

    Attributes:
        prompt: What is given; two texts never stand side by side.
        answer: What follows; at least one piece.
        fields: What evaluation needs beyond what every composition says; JSON's types.
    """

    prompt: tuple[Piece, ...]
    answer: tuple[Piece, ...]
    fields: Mapping[str, Any] = field(default_factory=dict)

    def document(self, task: str, *, key: int, name: str) -> RawDocument:
        """The document; a text at the prompt's end and one at the answer's beginning become one part.

        Its fields: `task`; `answer_part` and `answer_prefix`, where the answer begins (see `split_prompt`); of its
        pictures in order `pools`, `labels`, `label_names` and `picture_keys`; and those of the task.
        """
        pieces, begins_at, prefix = [*self.prompt, *self.answer], len(self.prompt), ""
        if self.prompt and isinstance(self.prompt[-1], str) and isinstance(self.answer[0], str):
            begins_at, prefix = begins_at - 1, self.prompt[-1]
            pieces[begins_at : begins_at + 2] = [prefix + self.answer[0]]
        shown = [piece for piece in pieces if isinstance(piece, Shown)]
        parts: tuple[RawPart, ...] = tuple(piece.image if isinstance(piece, Shown) else piece for piece in pieces)
        said = {
            "task": task,
            "answer_part": begins_at,
            "answer_prefix": prefix,
            "pools": [one.pool.noun for one in shown],
            "labels": [one.label for one in shown],
            "label_names": [one.name for one in shown],
            "picture_keys": [one.key for one in shown],
        }
        return RawDocument(parts, key, name, {**said, **self.fields})


def caption_to_image(dealer: Dealer) -> Composition:
    """A caption, then the picture. Fields: `caption`."""
    shown = _any_picture(dealer)
    caption = _about(shown, dealer.pick(CAPTIONS))
    return Composition((caption,), (shown,), {"caption": caption})


def image_to_caption(dealer: Dealer) -> Composition:
    """A picture, then a caption. Fields: `caption`, and `references`: every way to say it, for CIDEr."""
    shown = _any_picture(dealer)
    references = [_about(shown, phrasing) for phrasing in CAPTIONS]
    caption = dealer.pick(references)
    return Composition((shown,), (caption,), {"caption": caption, "references": references})


def which(dealer: Dealer) -> Composition:
    """A picture, and which of its pool's classes it is. Fields: `question`, `answer`."""
    shown = _any_picture(dealer)
    return _asked([shown], _about(shown, dealer.pick(WHICH)), shown.name)


def how_many(dealer: Dealer) -> Composition:
    """Two to four pictures of one pool, and how many show a class; each count from none to all is as likely.

    Fields: `question`, `answer` (a number word), `asked_name`.
    """
    pool = dealer.pool()
    asked = dealer.label(pool)
    total = 2 + dealer.number(MAX_OF_ONE_CLASS - 1)
    count = dealer.number(total + 1)
    others = [dealer.label(pool, other_than=asked) for _ in range(total - count)]
    labels = dealer.sample([asked] * count + others, total)
    question = dealer.pick(HOW_MANY).format(plural=pool.plurals[asked])
    shown = [dealer.picture(pool, label) for label in labels]
    return _asked(shown, question, NUMBER_WORDS[count], asked_name=pool.names[asked])


def is_there(dealer: Dealer) -> Composition:
    """One to three pictures of one pool, and whether one shows a class; yes and no are as likely.

    With pictures of several pools the right pool alone would make a yes more likely.

    Fields: `question`, `answer` (yes or no), `asked_name`.
    """
    pool = dealer.pool()
    asked = dealer.label(pool)
    total = 1 + dealer.number(3)
    present = dealer.number(2)
    others = [dealer.label(pool, other_than=asked) for _ in range(total - present)]
    labels = dealer.sample([asked] * present + others, total)
    question = dealer.pick(IS_THERE).format(a_name=with_article(pool.names[asked]))
    shown = [dealer.picture(pool, label) for label in labels]
    return _asked(shown, question, "yes" if present else "no", asked_name=pool.names[asked])


def interleaved(dealer: Dealer) -> Composition:
    """A running text that names and shows two to four pictures of any pools; the prompt is its first words."""
    opening, following, ending = dealer.pick(STORIES)
    shown = [_any_picture(dealer) for _ in range(2 + dealer.number(3))]
    answer: list[Piece] = [shown[0]]
    for one in shown[1:]:
        answer += [_about(one, following), one]
    return Composition((_about(shown[0], opening),), (*answer, ending))


def few_shot(dealer: Dealer) -> Composition:
    """Pictures of two classes under invented names, then one more to be named, as Tsimpoukelli et al. (2021) ask.

    The names are drawn anew for every document, so that only its own examples tell them. The first sentence lists
    them, in any order: without examples the answer is right half of the time.

    Fields: `answer`, `choices` (both names), `num_shots` (examples in all; the classes take turns).
    """
    pool = dealer.pool()
    classes = dealer.sample(range(pool.num_classes), 2)
    names = dict(zip(classes, dealer.sample(INVENTED, 2), strict=True))
    num_shots = dealer.pick(NUM_SHOTS)
    examples = dealer.sample([classes[number % 2] for number in range(num_shots)], num_shots)
    asked = dealer.pick(classes)
    choices = dealer.sample(list(names.values()), 2)
    prompt: list[Piece] = [f"Two names: {choices[0]} and {choices[1]}."]
    for label in examples:
        prompt += [dealer.picture(pool, label), f"{names[label]}."]
    fields = {"answer": names[asked], "choices": choices, "num_shots": num_shots}
    return Composition((*prompt, dealer.picture(pool, asked)), (f"{names[asked]}.",), fields)


def two_image_prompt(dealer: Dealer) -> Composition:
    """Pictures of two classes of one pool, then another of the first class."""
    pool = dealer.pool()
    first, second = dealer.sample(range(pool.num_classes), 2)
    texts = dealer.pick(MORE_LIKE_THE_FIRST)
    shown = [dealer.picture(pool, label) for label in (first, second, first)]
    return Composition((texts[0], shown[0], texts[1], shown[1], texts[2]), (shown[2],))


def _any_picture(dealer: Dealer) -> Shown:
    pool = dealer.pool()
    return dealer.picture(pool, dealer.label(pool))


def _about(shown: Shown, phrasing: str) -> str:
    noun, name = shown.pool.noun, shown.name
    return phrasing.format(noun=noun, a_noun=with_article(noun), name=name, a_name=with_article(name))


def _asked(shown: Sequence[Shown], question: str, answer: str, **fields: str) -> Composition:
    # The space belongs to the answer, as text tokenizers have it: a prompt that ended in one would cut a token in two.
    prompt = (*shown, f"Q: {question} A:")
    return Composition(prompt, (f" {answer}",), {"question": question, "answer": answer, **fields})


TASKS: dict[str, Callable[[Dealer], Composition]] = {
    "caption_to_image": caption_to_image,
    "image_to_caption": image_to_caption,
    "which": which,
    "how_many": how_many,
    "is_there": is_there,
    "interleaved": interleaved,
    "few_shot": few_shot,
    "two_image_prompt": two_image_prompt,
}
"""Name, as configs and the field `task` have it, -> how it is composed."""
