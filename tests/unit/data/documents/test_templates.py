"""Templates: what they parse, what they make, and that data can neither format nor place anything."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentlm.data.documents.document import RawImage
from latentlm.data.documents.records import RawRecord
from latentlm.data.documents.templates import DocumentTemplate, default_template
from latentlm.data.records import BadRecord

IMAGE = RawImage(b"picture", "a.png")


def record(image: RawImage | None = IMAGE, **fields) -> RawRecord:
    return RawRecord(image=image, fields=fields, key=0, name="a.jsonl:1")


@pytest.mark.parametrize(
    ("template", "parts"),
    [
        ("{caption}{image}", ("a cat", IMAGE)),
        ("{image} This is {caption}.", (IMAGE, " This is a cat.")),
        ("{image}", (IMAGE,)),
        ("{image}{image}", (IMAGE, IMAGE)),
        ("{label}: {{{caption}}}", ("3: {a cat}",)),
        ("{empty}{image}{empty}", ("", IMAGE, "")),
        ("literal", ("literal",)),
    ],
)
def test_a_template_makes_a_document_of_a_record(template, parts):
    assert DocumentTemplate.parse(template).render(record(caption="a cat", label=3, empty="")) == parts


@pytest.mark.parametrize("template", ["", "{", "a } b", "{}", "{ }", "{caption", "{a{b}}", "{caption}}"])
def test_malformed_templates_are_refused_with_the_place(template):
    with pytest.raises(ValueError, match=r"character \d+|is empty"):
        DocumentTemplate.parse(template)


@pytest.mark.parametrize("template", ["{caption.__class__}", "{caption!r}", "{caption:>10}", "{0}", "{caption[0]}"])
def test_format_syntax_is_only_an_unknown_field(template):
    with pytest.raises(BadRecord, match=r"which the template .* asks for; it has caption, image"):
        DocumentTemplate.parse(template).render(record(caption="a cat"))


@pytest.mark.parametrize("caption", ["{image}", "{label}", "<|begin_of_image|>", "}}{{", "\0", "%s {0.__class__}"])
def test_captions_stay_plain_text_whatever_they_spell(caption):
    assert DocumentTemplate.parse("{caption}{image}").render(record(caption=caption, label=1)) == (caption, IMAGE)


@given(text=st.text(min_size=1))
def test_any_text_can_be_written_as_a_literal(text):
    escaped = text.replace("{", "{{").replace("}", "}}")
    assert DocumentTemplate.parse(escaped).render(record()) == (text,)


def test_an_absent_field_or_picture_makes_a_bad_record_that_says_what_there_is():
    with pytest.raises(BadRecord, match=r"a.jsonl:1: has no caption, which .* asks for; it has image"):
        DocumentTemplate.parse("{caption}").render(record(caption=None))
    with pytest.raises(BadRecord, match=r"has no image, .* it has nothing"):
        DocumentTemplate.parse("{image}").render(record(image=None))


@pytest.mark.parametrize("value", [["a"], {"a": 1}, b"bytes"])
def test_values_that_are_neither_text_nor_number_are_refused(value):
    with pytest.raises(BadRecord, match="takes texts and numbers"):
        DocumentTemplate.parse("{keywords}").render(record(keywords=value))


@pytest.mark.parametrize(
    ("names", "source"),
    [
        ({"text"}, "{text}"),
        ({"image", "caption", "label"}, "{caption}{image}"),
        ({"image", "text"}, "{text}{image}"),
        ({"image"}, "{image}"),
        ({"label"}, None),
        ({"caption", "text"}, None),
    ],
)
def test_without_a_template_a_record_says_its_text_and_then_its_picture(names, source):
    template = default_template(names)
    assert (template and template.source) == source
    if template:
        assert template == DocumentTemplate.parse(template.source)
