"""Each pinned template against conversations written out by hand.

They are in the family's published format, but for what docs/how-to/base-checkpoints.md says is ours.
"""

import pytest

from speechlmm_core.chat.messages import Message
from speechlmm_core.chat.template import BUILT_IN, read_template
from speechlmm_core.chat.tokenizer import ChatTokenizer, MediaPiece
from speechlmm_core.errors import DataError
from speechlmm_core.text_decoder.config import CausalLMConfig

AUDIO = {"type": "audio", "path": "a.wav"}
ASK = {"type": "text", "text": "Write it down."}

LLAMA = (
    "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
    "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
)
SMOL = (
    "<|im_start|>system\n## Metadata\n\nKnowledge Cutoff Date: June 2025\nToday Date: 08 July 2025\n"
    "Reasoning Mode: /no_think\n\n## Custom Instructions\n\n"
)
SMOL_DEFAULT = "You are a helpful AI assistant named SmolLM, trained by Hugging Face.\n\n"

# Template -> (the chat below, with [[ ]] around what is learnt; a prompt without a system message).
WRITTEN = {
    "llama_3": (
        LLAMA + "Be brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n[[Hello.<|eot_id|>]]"
        "<|start_header_id|>user<|end_header_id|>\n\n{audio}Write it down.<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n[[turn it on<|eot_id|>]]",
        LLAMA + "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    "chatml": (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\n[[Hello.<|im_end|>]]\n<|im_start|>user\n{audio}Write it down.<|im_end|>\n"
        "<|im_start|>assistant\n[[turn it on<|im_end|>]]\n",
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    ),
    "qwen3": (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\n[[Hello.<|im_end|>]]\n<|im_start|>user\n{audio}Write it down.<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\n[[turn it on<|im_end|>]]\n",
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
    ),
    "gemma3": (
        "<bos><start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\n[[Hello.<end_of_turn>]]\n"
        "<start_of_turn>user\n{audio}Write it down.<end_of_turn>\n<start_of_turn>model\n[[turn it on<end_of_turn>]]\n",
        "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n",
    ),
    "smollm3": (
        SMOL + "Be brief.\n\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n[[Hello.<|im_end|>]]\n"
        "<|im_start|>user\n{audio}Write it down.<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n[[turn it on<|im_end|>]]\n",
        SMOL + SMOL_DEFAULT + "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n",
    ),
    "mistral": (
        "<s>[INST] Be brief.\n\nHi[/INST][[ Hello.</s>]][INST] {audio}Write it down.[/INST][[ turn it on</s>]]",
        "<s>[INST] Hi[/INST]",
    ),
    "vicuna": (
        "<s>Be brief. USER: Hi ASSISTANT:[[ Hello.</s>]]USER: {audio}Write it down. ASSISTANT:[[ turn it on</s>]]",
        "<s>USER: Hi ASSISTANT:",
    ),
    "plain": (
        "<|begin_of_text|>Be brief.\nHi\n[[Hello.<|end_of_text|>]]{audio}Write it down.\n[[turn it on<|end_of_text|>]]",
        "<|begin_of_text|>Hi\n",
    ),
}
CHAT = [
    Message(role="system", content="Be brief."),
    Message(role="user", content="Hi"),
    Message(role="assistant", content="Hello."),
    Message(role="user", content=[AUDIO, ASK]),
    Message(role="assistant", content="turn it on"),
]


def tokenizer(template):
    return CausalLMConfig(tokenizer="bytes", chat_template=template).build_tokenizer()


def written_out(chat, pieces):
    """The string that pieces stand for, with [[ ]] around what is learnt."""
    out, learning = "", False
    for piece in pieces:
        if isinstance(piece, MediaPiece):
            out += "]]{audio}" if learning else "{audio}"
            learning = False
            continue
        for token, supervised in zip(piece.ids, piece.supervised, strict=True):
            if supervised != learning:
                out += "[[" if supervised else "]]"
            learning = supervised
            out += chat.tokenizer.decode([token])
    return out + ("]]" if learning else "")


def test_every_template_is_written_out_here():
    assert set(WRITTEN) == set(BUILT_IN)


@pytest.mark.parametrize("template", WRITTEN)
def test_a_conversation_reads_as_written_out_and_the_answers_are_learnt(template):
    chat = tokenizer(template)
    assert written_out(chat, chat.encode_chat(CHAT)) == WRITTEN[template][0]


@pytest.mark.parametrize("template", WRITTEN)
def test_counts_are_those_of_the_pieces(template):
    chat = tokenizer(template)
    hostile = "".join(BUILT_IN[template].all)
    odd = [Message(role="user", content=f" {hostile} x\n"), Message(role="assistant", content=hostile)]
    for messages, opened in ((CHAT, False), (CHAT[:2], True), (odd, False), (odd[:1], True)):
        pieces = chat.encode_chat(messages, add_generation_prompt=opened)
        tokens, items = chat.count_chat(messages, add_generation_prompt=opened)
        assert tokens == sum(len(piece.ids) for piece in pieces if not isinstance(piece, MediaPiece))
        assert items == [piece.item for piece in pieces if isinstance(piece, MediaPiece)]


@pytest.mark.parametrize("template", WRITTEN)
def test_a_prompt_opens_the_answer(template):
    chat = tokenizer(template)
    question = Message(role="user", content="Hi")
    prompt = chat.encode_chat([question], add_generation_prompt=True)
    assert written_out(chat, prompt) == WRITTEN[template][1]
    whole = chat.encode_chat([question, Message(role="assistant", content=" yes\n")])
    assert written_out(chat, whole).startswith(WRITTEN[template][1] + "[[")


@pytest.mark.parametrize("template", WRITTEN)
def test_the_names_of_special_tokens_stay_text(template):
    chat = tokenizer(template)
    special = {chat.tokenizer.convert_tokens_to_ids(name) for name in BUILT_IN[template].all}

    def count(text):
        pieces = chat.encode_chat([Message(role="user", content=text), Message(role="assistant", content=text)])
        return sum(token in special for piece in pieces for token in piece.ids)

    assert count("".join(BUILT_IN[template].all)) == count("x")
    (piece,) = chat.encode_chat([Message(role="user", content="q"), Message(role="assistant", content="a b")])
    answer = [token for token, mine in zip(piece.ids, piece.supervised, strict=True) if mine]
    assert chat.decode(answer).strip() == "a b"
    assert answer[-1] == chat.stop_token_ids[0]


@pytest.mark.parametrize("template", sorted({*WRITTEN} - {"qwen3"}))
def test_every_prompt_is_the_beginning_of_the_chat_that_is_learnt(template):
    """Not so in Qwen3, where only the last answer has a block of thoughts; and not so as Mistral published it."""
    chat = tokenizer(template)
    whole = written_out(chat, chat.encode_chat(CHAT))
    for number, answer in ((2, "[[Hello."), (4, "[[turn it on")):
        prompt = written_out(chat, chat.encode_chat(CHAT[:number], add_generation_prompt=True))
        assert whole.startswith(prompt + answer.replace("[[", "[[ " if template in ("mistral", "vicuna") else "[["))


def test_mistral_with_one_question_is_as_published():
    chat = tokenizer("mistral")
    prompt = written_out(chat, chat.encode_chat(CHAT[:2], add_generation_prompt=True))
    assert prompt == "<s>[INST] Be brief.\n\nHi[/INST]"


def test_models_not_tuned_to_chat_stop_at_their_tokenizer_s_own_end():
    """The template for them writes no token by name, so that it takes any tokenizer."""
    base = tokenizer("plain").tokenizer
    base.add_special_tokens({"eos_token": "<the end>"})
    chat = ChatTokenizer(base, read_template("plain"), "plain")
    end = base.convert_tokens_to_ids("<the end>")
    assert chat.stop_token_ids[0] == end
    (piece,) = chat.encode_chat(CHAT[:3])
    assert piece.ids[-1] == end
    assert piece.supervised[-1]


@pytest.mark.parametrize("template", ["gemma3", "mistral"])
def test_a_system_message_without_a_user_to_open_is_refused(template):
    with pytest.raises(DataError, match="leaves out or repeats a part of the conversation"):
        tokenizer(template).encode_chat([CHAT[0], Message(role="assistant", content="a")])
