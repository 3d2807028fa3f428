"""Meetings made in the layouts of AMI and ICSI: words, segments and summaries in NITE XML."""

from __future__ import annotations

from typing import Any

import pytest

from speechlmm_core.data.chats import chat_of
from speechlmm_core.data.example import Example
from speechlmm_core.errors import DataError
from speechlmm_train.corpora.xml import read_xml

HEAD = '<?xml version="1.0" encoding="ISO-8859-1" standalone="yes"?>\n<nite:root xmlns:nite="http://nite.sourceforge.net/">'


def text_of(example: Example) -> str:
    """All of an interleaved text, what is heard by its transcript."""
    (message,) = chat_of(example)
    return " ".join(str(item.get("transcript", item.get("text", ""))).strip() for item in message.content)


def xml(*lines: str) -> str:
    return "\n".join([HEAD, *lines, "</nite:root>\n"])


def make_ami(made: Any, meeting: str = "ES2004a", top: str = "") -> None:
    made.text(
        f"{top}words/{meeting}.A.words.xml",
        xml(
            f'<w nite:id="{meeting}.A.words0" starttime="0.5" endtime="0.75">Well</w>',
            f'<w nite:id="{meeting}.A.words1" starttime="0.75" endtime="0.75" punc="true">,</w>',
            f'<vocalsound nite:id="{meeting}.A.words2" starttime="0.75" endtime="1.0" type="laugh"/>',
            f'<w nite:id="{meeting}.A.words3" starttime="1.0" endtime="1.25">caf\xe9s</w>',
            f'<w nite:id="{meeting}.A.words4" starttime="1.25" endtime="1.25" punc="true">.</w>',
            f'<w nite:id="{meeting}.A.words5" starttime="3.0" endtime="3.5">Bye</w>',
            f'<vocalsound nite:id="{meeting}.A.words6" starttime="3.5" endtime="3.75" type="cough"/>',
        ),
        encoding="latin-1",
    )
    words = f"{meeting}.A.words.xml#id({meeting}.A.words"
    made.text(
        f"{top}segments/{meeting}.A.segments.xml",
        xml(
            f'<segment nite:id="{meeting}.sync.1" transcriber_start="0.5" transcriber_end="1.5">',
            f'<nite:child href="{words}0)..id({meeting}.A.words4)"/></segment>',
            f'<segment nite:id="{meeting}.sync.3" transcriber_start="2.75" transcriber_end="3.5">',
            f'<nite:child href="{words}5)"/></segment>',
            f'<segment nite:id="{meeting}.sync.5" transcriber_start="3.5" transcriber_end="3.75">',
            f'<nite:child href="{words}6)"/></segment>',
        ),
    )
    made.text(
        f"{top}words/{meeting}.B.words.xml",
        xml(f'<w nite:id="{meeting}.B.words0" starttime="1.75" endtime="2.25">Right</w>'),
    )
    made.text(
        f"{top}segments/{meeting}.B.segments.xml",
        xml(
            f'<segment nite:id="{meeting}.sync.2" transcriber_start="1.75" transcriber_end="2.5">',
            f'<nite:child href="{meeting}.B.words.xml#id({meeting}.B.words0)"/></segment>',
        ),
    )
    made.text(
        f"{top}corpusResources/meetings.xml",
        xml(
            *(
                f'<meeting observation="{one}"><speaker nxt_agent="A" channel="1" global_name="FEE005" role="PM"/>'
                '<speaker nxt_agent="B" channel="0" global_name="MEE006" role="UI"/></meeting>'
                for one in ("ES2004a", "IN1001")
            ),
        ),
    )
    made.text(
        f"{top}abstractive/{meeting}.abssumm.xml",
        xml(
            '<abstract nite:id="a"><sentence nite:id="s1">They met.</sentence>',
            '<sentence nite:id="s2">\n  They\n  left. </sentence></abstract>',
            '<actions nite:id="b"><sentence nite:id="s3">A will call.</sentence></actions>',
            '<decisions nite:id="c"><sentence nite:id="s4">*NA*</sentence></decisions>',
        ),
    )
    for name, rate in {"Headset-0": 16_000, "Headset-1": 16_000, "Mix-Headset": 16_000}.items():
        made.audio(f"amicorpus/{meeting}/audio/{meeting}.{name}.wav", 4.0, rate)


@pytest.mark.parametrize("top", ["", "ami_public_manual_1.6.2/"])
def test_ami_segments(made: Any, heard: Any, top: str) -> None:
    make_ami(made, top=top)
    (part,) = made.parts("AMI", task="ASR").values()
    assert part.destination == "test"
    rows = [(e.id, e.text, e.speaker, e.media["audio"]["start"], e.media["audio"]["end"]) for e in part.examples]
    assert rows == [
        ("ES2004a.sync.1", "Well, cafés.", "FEE005", 0.5, 1.5),
        ("ES2004a.sync.3", "Bye", "FEE005", 2.75, 3.5),
        ("ES2004a.sync.2", "Right", "MEE006", 1.75, 2.5),
    ]
    assert [example.media["audio"]["path"][-13:] for example in part.examples] == [
        "Headset-1.wav",
        "Headset-1.wav",
        "Headset-0.wav",
    ]
    assert [heard(example) for example in part.examples] == [16_000, 12_000, 12_000]
    assert part.examples[2].fields["words"] == [{"word": "Right", "start": 1.75, "end": 2.25}]


def test_meetings_are_read_with_spans_that_are_heard(made: Any, heard: Any) -> None:
    make_ami(made)
    options = {"min_words": 1, "max_words": 2}
    (part,) = made.parts("AMI", task="InterleavedTextAudioNTP", task_options=options).values()
    # Punctuation belongs to its word, as in the text.
    assert [text_of(example) for example in part.examples] == ["Well, cafés.", "Bye", "Right"]
    assert part.examples[0].fields["words"] == [
        {"word": "Well,", "start": 0.5, "end": 0.75},
        {"word": "cafés.", "start": 1.0, "end": 1.25},
    ]


def test_ami_summaries(made: Any, heard: Any) -> None:
    make_ami(made)
    make_ami(made, "IN1001")
    (made.root / "abstractive/IN1001.abssumm.xml").unlink()
    spoken = "A: Well, cafés.\nB: Right\nA: Bye"
    (summary,) = made.examples("ami", task="ssum", partitions=["test"])
    assert (summary.id, summary.text, summary.transcript) == ("ES2004a", "They met. They left.", spoken)
    assert summary.media["audio"]["path"].endswith("Mix-Headset.wav")
    assert heard(summary) == 64_000
    (text,) = made.examples("ami", task="tsum", partitions=["test"], sections=["abstract", "actions", "decisions"])
    assert (text.source_text, text.text, dict(text.media)) == (spoken, "They met. They left. A will call.", {})
    with pytest.raises(DataError, match=r"the 1 meetings of 'train' in '.*' have no summaries"):
        made.parts("ami", task="ssum", partitions=["train"])


def test_icsi(made: Any, heard: Any) -> None:
    made.text(
        "ICSI/Words/Bmr021.A.words.xml",
        xml(
            '<w nite:id="w.1" starttime="0.25" endtime="0.5" c="W">so</w>',
            '<w nite:id="w.2" starttime="" endtime="" c="CM">,</w>',
            '<w nite:id="w.3" starttime="0.5" endtime="0.75" c="W">forty</w>',
            '<w nite:id="w.4" c="HYPH">-</w>',
            '<w nite:id="w.5" starttime="0.75" endtime="1.0" c="W">two</w>',
            '<w nite:id="w.6" c=".">.</w>',
        ),
    )
    made.text(
        "ICSI/Segments/Bmr021.A.segs.xml",
        xml(
            '<segment nite:id="s.1" starttime="0.25" endtime="1.25" participant="me011">',
            '<nite:child href="Bmr021.A.words.xml#id(w.1)..id(w.6)"/></segment>',
            '<segment nite:id="s.2" starttime="1.25" endtime="1.5" participant="me011"/>',
        ),
    )
    made.text(
        "ICSIplus/Contributions/Summarization/abstractive/Bmr021.abssumm.xml",
        xml("<abstract><sentence>Numbers were named.</sentence></abstract>"),
    )
    made.audio("Bmr021.interaction.wav", 2.0)
    (segment,) = made.examples("ICSI", task="asr")
    assert (segment.id, segment.text, segment.speaker) == ("s.1", "so, forty-two.", "me011")
    assert (segment.media["audio"]["start"], segment.media["audio"]["end"], heard(segment)) == (0.25, 1.25, 16_000)
    (summary,) = made.examples("icsi", task="ssum", partitions=["dev"])
    assert (summary.text, summary.transcript, heard(summary)) == ("Numbers were named.", "A: so, forty-two.", 32_000)
    (text,) = made.examples("icsi", task="tsum", partitions=["dev"])
    assert (text.text, text.source_text) == ("Numbers were named.", "A: so, forty-two.")
    with pytest.raises(DataError, match=r"no partition 'train' \(there are: dev\)"):
        made.parts("icsi", task="asr", partitions=["train"])


@pytest.mark.parametrize("text", ["", "<r>", "<r/><r/>", '<?xml version="1.0" encoding="none-such"?><r/>', "<r>\0</r>"])
def test_xml_that_is_none_is_one_line(made: Any, text: str) -> None:
    with pytest.raises(DataError, match=r"odd\.xml' is not well-formed XML: ") as caught:
        read_xml(made.text("odd.xml", text))
    assert "\n" not in str(caught.value)


def test_what_is_wrong_with_meetings_is_one_line(made: Any) -> None:
    with pytest.raises(DataError, match=r"holds no words/\{meeting\}"):
        made.parts("ami", task="asr")
    make_ami(made)
    made.text("words/ES2004a.B.words.xml", xml('<w nite:id="other" starttime="0" endtime="1">Hm</w>'))
    with pytest.raises(DataError, match=r"ES2004a.B.segments.xml#ES2004a.sync.2: there is no word 'ES2004a.B.words0'"):
        made.parts("ami", task="asr")
    made.text("words/ES2004a.B.words.xml", "<nite:root><w></nite:root>")
    with pytest.raises(DataError, match=r"ES2004a.B.words.xml' is not well-formed XML: mismatched tag: line 1"):
        made.parts("ami", task="asr")
    make_ami(made)
    made.text("corpusResources/meetings.xml", xml('<meeting observation="ES2004a"/>'))
    with pytest.raises(DataError, match=r"'corpusResources/meetings.xml' names no agent 'A' of this meeting"):
        made.parts("ami", task="asr")
    (made.root / "corpusResources/meetings.xml").unlink()
    with pytest.raises(DataError, match=r"meetings.xml' does not exist; is the corpus unpacked completely\?"):
        made.parts("ami", task="asr")


BOMB = '<!DOCTYPE r [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]><r>&b;</r>'
OUTSIDE = '<!DOCTYPE r [<!ENTITY a SYSTEM "file:///etc/hostname">]><r>&a;</r>'
PARAMETER = '<!DOCTYPE r [<!ENTITY % a SYSTEM "file:///etc/hostname"> %a;]><r/>'


@pytest.mark.parametrize("text", [BOMB, OUTSIDE, PARAMETER])
def test_xml_with_entities_is_refused(made: Any, text: str) -> None:
    path = made.text("strange.xml", text)
    with pytest.raises(DataError, match=r"strange.xml' declares XML entities"):
        read_xml(path)
    assert read_xml(made.text("plain.xml", '<!DOCTYPE r SYSTEM "r.dtd"><r>&lt;a&gt;</r>')).text == "<a>"
